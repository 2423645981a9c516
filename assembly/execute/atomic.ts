/** XCHG XADD CMPXCHG CMPXCHG8B CMPXCHG16B (SDM vol. 2). One thread runs all vCPUs: a plain read-modify-write is atomic. Owns no state. */
import { CPU_LEAVE, EXC_GP, EXC_UD, LEAVE_NONE, OP_REG } from '../generated/layout'
import { raise, raiseError } from '../cpu/exceptions'
import { F_1_ECX, featureOrBare } from '../cpu/features'
import { getFlags, setArithmetic } from '../cpu/flags'
import { commitModify, leaving, modifyMem } from '../memory/access'
import { addFlags, maskOf, subFlags } from './arith'
import { aborted } from './linear'
import { eaWrite, finishRm, isMemory, modifyRm, operandSize, readRegister, writeRegister } from './operands'

export function xchg(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const p = modifyRm(s, op, size)
  if (p == 0) return load<u32>(s, CPU_LEAVE)
  const g = s + <usize>load<u8>(op, OP_REG)
  const old = readRegister(p, size)
  const code = finishRm(s, op, size, p, readRegister(g, size))
  if (aborted(code)) return code
  writeRegister(g, size, old)
  return code
}

export function xadd(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const p = modifyRm(s, op, size)
  if (p == 0) return load<u32>(s, CPU_LEAVE)
  const g = s + <usize>load<u8>(op, OP_REG)
  const a = readRegister(p, size)
  const b = readRegister(g, size)
  // The destination is written last: XADD r,r of one register leaves the sum.
  if (p == g) {
    writeRegister(p, size, a + b)
  } else {
    const code = finishRm(s, op, size, p, a + b)
    if (aborted(code)) return code
    writeRegister(g, size, a)
    setArithmetic(s, addFlags(a, b, shift))
    return code
  }
  setArithmetic(s, addFlags(a, b, shift))
  return LEAVE_NONE
}

export function cmpxchg(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const p = modifyRm(s, op, size)
  if (p == 0) return load<u32>(s, CPU_LEAVE)
  const a = load<u64>(s) & maskOf(shift)
  const b = readRegister(p, size)
  let code: u32 = 0
  // Memory is written in any case; a register that does not compare equal keeps even its upper half (AMD).
  if (a == b || isMemory(op)) code = finishRm(s, op, size, p, a == b ? readRegister(s + <usize>load<u8>(op, OP_REG), size) : b)
  if (aborted(code)) return code
  if (a != b) writeRegister(s, size, b)
  setArithmetic(s, subFlags(a, b, shift))
  return code
}

const RCX: usize = 8
const RDX: usize = 16
const RBX: usize = 24
const ZF: u32 = 0x40

/** CMPXCHG8B; with REX.W CMPXCHG16B, which wants alignment. Only ZF changes. */
export function cmpxchgPair(s: usize, op: usize): u32 {
  const half: u32 = operandSize(op) == 8 ? 8 : 4
  if (half == 8 && !featureOrBare(s, F_1_ECX, 13)) return raise(s, EXC_UD)
  const va = eaWrite(s, op, half << 1)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  if (half == 8 && (va & 15) != 0) return raiseError(s, EXC_GP, 0)
  const p = modifyMem(s, op, va, half << 1)
  if (p == 0) return load<u32>(s, CPU_LEAVE)
  const low = readRegister(p, half)
  const high = readRegister(p + half, half)
  const equal = low == readRegister(s, half) && high == readRegister(s + RDX, half)
  if (equal) {
    if (half == 8) {
      store<u64>(p, load<u64>(s, RBX))
      store<u64>(p + 8, load<u64>(s, RCX))
    } else {
      store<u32>(p, load<u32>(s, RBX))
      store<u32>(p + 4, load<u32>(s, RCX))
    }
  }
  const code = commitModify(s, op)
  if (aborted(code)) return code
  const flags = <u32>getFlags(s) & ~ZF
  if (!equal) {
    writeRegister(s, half, low)
    writeRegister(s + RDX, half, high)
  }
  setArithmetic(s, equal ? flags | ZF : flags)
  return code
}
