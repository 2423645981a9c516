/** RCL and RCR (SDM vol. 2, RCL/RCR/ROL/ROR). Owns no state. */
import { CPU_LEAVE, OP_IMM } from '../generated/layout'
import { CF, OF, carry, getFlags, setArithmetic } from '../cpu/flags'
import { maskOf } from './arith'
import { aborted } from './linear'
import { finishRm, modifyRm, operandSize, readRegister } from './operands'

/** The 9-, 17-, 33- or 65-bit quantity CF:operand rotated; OF is defined for counts of one only. */
function rotate(s: usize, op: usize, amount: u32, right: bool): u32 {
  const size = operandSize(op)
  const width: u64 = (<u64>size) << 3
  const shift = <u32>ctz(size)
  const masked = amount & (size == 8 ? 63 : 31)
  const p = modifyRm(s, op, size)
  if (p == 0) return load<u32>(s, CPU_LEAVE)
  const a = readRegister(p, size)
  if (masked == 0) return finishRm(s, op, size, p, a)
  const n: u64 = <u64>masked % (width + 1)
  const c = <u64>carry(s)
  let r = a
  let out = c
  if (n != 0) {
    // Shifts by the whole 64 are split in two: WASM takes counts modulo 64.
    if (right) {
      r = (a >> n) | (c << (width - n)) | (n > 1 ? (a << 1) << (width - n) : 0)
      out = a >> (n - 1)
    } else {
      r = (a << n) | (c << (n - 1)) | (n > 1 ? (a >> 1) >> (width - n) : 0)
      out = a >> (width - n)
    }
    if (n == width) r = right ? (c << 0) | (a << 1) : (c << (width - 1)) | (a >> 1)
    r &= maskOf(shift)
  }
  const code = finishRm(s, op, size, p, r)
  if (aborted(code)) return code
  const top = (r >> (width - 1)) & 1
  const over = right ? top ^ ((r >> (width - 2)) & 1) : top ^ (out & 1)
  setArithmetic(s, (<u32>getFlags(s) & ~(CF | OF)) | (<u32>out & CF) | (over ? OF : 0))
  return code
}

export function rclImm(s: usize, op: usize): u32 {
  return rotate(s, op, <u32>load<u8>(op, OP_IMM), false)
}
export function rclOne(s: usize, op: usize): u32 {
  return rotate(s, op, 1, false)
}
export function rclCl(s: usize, op: usize): u32 {
  return rotate(s, op, <u32>load<u8>(s, 8), false)
}
export function rcrImm(s: usize, op: usize): u32 {
  return rotate(s, op, <u32>load<u8>(op, OP_IMM), true)
}
export function rcrOne(s: usize, op: usize): u32 {
  return rotate(s, op, 1, true)
}
export function rcrCl(s: usize, op: usize): u32 {
  return rotate(s, op, <u32>load<u8>(s, 8), true)
}
