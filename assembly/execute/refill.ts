/**
 * The way back into the fast loop after a TLB miss: computes the address that the op at hand would access and fills the TLB
 * for it, with no other effect. Faults, MMIO, page crossings and anything unusual are left to the slow function.
 */
import { accessOf } from '../generated/opcodes'
import {
  CPU_GPR,
  CPU_LEAVE,
  CPU_MODE,
  CPU_OP,
  CPU_SEGMENTS,
  CPU_STOP_REASON,
  CPU_TLB_BASE,
  MODE_FLAT,
  MODE_SS32,
  OP_BASE,
  OP_DISP,
  OP_EA,
  OP_ID,
  OP_INDEX,
  OP_SCALE,
  OP_SEG,
  STOP_NONE,
  TLB_READ,
  TLB_WRITE,
} from '../generated/layout'
import { PLAIN, translate, truncate } from '../memory/translate'

const RSP: usize = CPU_GPR + 32
const WRITE: u32 = 1
const STACK: u32 = 2

/** True if the L1 TLB now serves the op: the fast function can go on at it. */
export function refill(s: usize, op: usize): bool {
  const word = accessOf(<u32>load<u16>(op, OP_ID))
  if (word == 0) return false
  const size = word >> 4
  const writes = (word & WRITE) != 0
  let va: u64
  if (word & STACK) {
    // The fast loop's 32-bit stack forms are for flat stacks.
    if (size == 4 && (load<u32>(s, CPU_MODE) & (MODE_FLAT | MODE_SS32)) != (MODE_FLAT | MODE_SS32)) return false
    va = load<u64>(s, RSP) - (writes ? <u64>size : 0)
    if (size == 4) va &= 0xffffffff
  } else {
    const shift = <u64>load<u8>(op, OP_SCALE)
    const index = load<u64>(s + <usize>load<u8>(op, OP_INDEX))
    va = load<u64>(s + <usize>load<u8>(op, OP_BASE)) + (index << shift) + <u64>(<i64>load<i32>(op, OP_DISP))
    const kind = load<u8>(op, OP_EA)
    if (kind == 1) va &= 0xffffffff
    else if (kind == 3) va += load<u64>(s + ((<usize>load<u8>(op, OP_SEG)) << 4), CPU_SEGMENTS)
    else if (kind != 0) return false
  }
  if (truncate(s, va) != va || (va & 0xfff) + <u64>size > 0x1000) return false
  store<u32>(s, <u32>op, CPU_OP)
  const found = translate(s, va, writes ? 1 : 0)
  if (found != PLAIN) {
    // The slow function meets the same fault again and reports it.
    store<u32>(s, 0, CPU_LEAVE)
    store<u32>(s, STOP_NONE, CPU_STOP_REASON)
    return false
  }
  const e = <usize>load<u32>(s, CPU_TLB_BASE) + <usize>((va >> 7) & 0x7fe0)
  return (writes ? load<u64>(e, TLB_WRITE) : load<u64>(e, TLB_READ)) == (va & ~0xfff)
}
