/** Arithmetic helpers of cold integer handlers: flag bits of an addition or subtraction, operand masks, wide products. Owns no state. */
import { AF, CF, OF, PF, SF, ZF } from '../cpu/flags'

/** All ones of 1 << shift bytes. */
export function maskOf(shift: u32): u64 {
  return <u64>-1 >> (64 - (8 << shift))
}

export function signExtend(value: u64, shift: u32): i64 {
  const n: u64 = 64 - (8 << shift)
  return <i64>(value << n) >> n
}

/** SF, ZF and PF of a result. */
export function resultFlags(result: u64, shift: u32): u32 {
  const r = result & maskOf(shift)
  let f: u32 = popcnt<u32>(<u32>r & 0xff) & 1 ? 0 : PF
  if (r == 0) f |= ZF
  if ((r >> ((8 << shift) - 1)) & 1) f |= SF
  return f
}

/** Flags of a - b (operands zero-extended, 1 << shift bytes). */
export function subFlags(a: u64, b: u64, shift: u32): u32 {
  const r = (a - b) & maskOf(shift)
  let f = resultFlags(r, shift)
  if (a < b) f |= CF
  if ((a ^ b ^ r) & 0x10) f |= AF
  if ((((a ^ b) & (a ^ r)) >> ((8 << shift) - 1)) & 1) f |= OF
  return f
}

/** Flags of a + b (operands zero-extended, 1 << shift bytes). */
export function addFlags(a: u64, b: u64, shift: u32): u32 {
  const r = (a + b) & maskOf(shift)
  let f = resultFlags(r, shift)
  if (r < a) f |= CF
  if ((a ^ b ^ r) & 0x10) f |= AF
  if ((((a ^ r) & (b ^ r)) >> ((8 << shift) - 1)) & 1) f |= OF
  return f
}

/** Upper half of the unsigned 128-bit product. */
export function mulHigh(a: u64, b: u64): u64 {
  const al = a & 0xffff_ffff
  const ah = a >> 32
  const bl = b & 0xffff_ffff
  const bh = b >> 32
  const t = ah * bl + ((al * bl) >> 32)
  const u = al * bh + (t & 0xffff_ffff)
  return ah * bh + (t >> 32) + (u >> 32)
}

/** Upper half of the signed 128-bit product. */
export function mulHighSigned(a: i64, b: i64): i64 {
  return <i64>mulHigh(<u64>a, <u64>b) - (a < 0 ? b : 0) - (b < 0 ? a : 0)
}

/** Quotient of high:low / d with high < d; the remainder is low - quotient * d (mod 2^64). Restoring division, 32 bits at a time. */
export function divide128(high: u64, low: u64, d: u64): u64 {
  if (high == 0) return low / d
  // Knuth, TAOCP vol. 2, 4.3.1 algorithm D with two digits of 32 bits.
  const n = clz<u64>(d)
  const v = d << n
  const v1 = v >> 32
  const v0 = v & 0xffff_ffff
  const u2 = n == 0 ? high : (high << n) | (low >> (64 - n))
  const u10 = low << n
  const u1 = u10 >> 32
  const u0 = u10 & 0xffff_ffff
  let q1 = u2 / v1
  let r = u2 - q1 * v1
  while (q1 >> 32 != 0 || q1 * v0 > ((r << 32) | u1)) {
    q1--
    r += v1
    if (r >> 32 != 0) break
  }
  const rest = (u2 << 32) + u1 - q1 * v
  let q0 = rest / v1
  r = rest - q0 * v1
  while (q0 >> 32 != 0 || q0 * v0 > ((r << 32) | u0)) {
    q0--
    r += v1
    if (r >> 32 != 0) break
  }
  return (q1 << 32) + q0
}
