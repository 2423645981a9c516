/**
 * Read-modify-write of the E operand. The page is checked for writing before anything is read, as the hardware does,
 * so that a #PF reports a write. Owns no state.
 */
import { CPU_LEAVE, CPU_SCRATCH, OPF_MEM, OP_FLAGS, OP_RM } from '../generated/layout'
import { commitModify, leaving, modifyMem } from '../memory/access'
import { ea } from './operands'

/** Address of the operand, to be read with loadSized and written with finish(); 0 = leaving. */
export function begin(s: usize, op: usize, size: u32): usize {
  if ((load<u8>(op, OP_FLAGS) & OPF_MEM) == 0) return s + <usize>load<u8>(op, OP_RM)
  const va = ea(s, op, size)
  if (leaving(s)) return 0
  return modifyMem(s, op, va, size)
}

export function loadSized(p: usize, size: u32): u64 {
  if (size == 1) return load<u8>(p)
  if (size == 2) return load<u16>(p)
  if (size == 4) return load<u32>(p)
  return load<u64>(p)
}

function storeSized(p: usize, size: u32, value: u64): void {
  if (size == 1) store<u8>(p, <u8>value)
  else if (size == 2) store<u16>(p, <u16>value)
  else if (size == 4) store<u32>(p, <u32>value)
  else store<u64>(p, value)
}

/** Writes what begin() opened; 0 or LEAVE. Commit nothing else before it unless aborted() of its result is false. */
export function finish(s: usize, op: usize, p: usize, size: u32, value: u64): u32 {
  if ((load<u8>(op, OP_FLAGS) & OPF_MEM) == 0) {
    storeRegister(p, size, value)
    return 0
  }
  storeSized(p, size, value)
  return p == s + CPU_SCRATCH ? commitModify(s, op) : load<u32>(s, CPU_LEAVE)
}

/** Register write at its address: 32 bits zero the upper half. */
export function storeRegister(p: usize, size: u32, value: u64): void {
  if (size == 4) store<u64>(p, value & 0xffff_ffff)
  else storeSized(p, size, value)
}
