/** Shuffles, byte shifts and widening moves (SDM vol 2, PSHUFD, SHUFPS, PALIGNR, PMOVSX). Owns no state. */
import { VCPU_FPU } from '../generated/layout'
import { setArithmetic } from '../cpu/flags'
import { first, left, mmxReg, mmxSource, put, putMmx, source, sourceOf, sseUsable, xmmReg, xmmRm } from './sse-operands'
import { immediate, opcodeOf, putLow } from './sse-integer'

/** Bytes `n`.. of high:low, zeros beyond: PALIGNR, PSRLDQ, PSLLDQ (through memory: the shift is not a constant). */
function align(s: usize, high: v128, low: v128, n: u32): v128 {
  if (n >= 32) return i64x2.splat(0)
  v128.store(s, low, VCPU_FPU)
  v128.store(s, high, VCPU_FPU + 16)
  v128.store(s, i64x2.splat(0), VCPU_FPU + 32)
  return v128.load(s + n, VCPU_FPU)
}

export function psrldq(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const at = xmmRm(s, op)
  const n = immediate(op)
  v128.store(at, align(s, i64x2.splat(0), v128.load(at), n > 16 ? 16 : n))
  return 0
}

export function pslldq(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const at = xmmRm(s, op)
  const n = immediate(op)
  v128.store(at, align(s, v128.load(at), i64x2.splat(0), 16 - (n > 16 ? 16 : n)))
  return 0
}

export function palignr(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, align(s, first(s, op), v128.load(p), immediate(op))) : left(s)
}

export function palignrMmx(s: usize, op: usize): u32 {
  const p = mmxSource(s, op, 8)
  if (!p) return left(s)
  const n = immediate(op)
  return putLow(
    s,
    op,
    align(s, i64x2.splat(0), v128.shuffle<i64>(v128.load64_zero(p), v128.load64_zero(mmxReg(s, op)), 0, 2), n > 16 ? 16 : n),
  )
}

export function pshufd(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const n = immediate(op)
  const b0 = load<u32>(p + ((n & 3) << 2))
  const b1 = load<u32>(p + (((n >> 2) & 3) << 2))
  const b2 = load<u32>(p + (((n >> 4) & 3) << 2))
  const b3 = load<u32>(p + (((n >> 6) & 3) << 2))
  return put(s, op, i64x2(<i64>b0 | ((<i64>b1) << 32), <i64>b2 | ((<i64>b3) << 32)))
}

/** Four words of `x` in the order of `n` (PSHUFLW, PSHUFHW, PSHUFW). */
function shuffleWords(x: u64, n: u32): u64 {
  return (
    ((x >> ((n & 3) << 4)) & 0xffff) |
    (((x >> (((n >> 2) & 3) << 4)) & 0xffff) << 16) |
    (((x >> (((n >> 4) & 3) << 4)) & 0xffff) << 32) |
    ((x >> (((n >> 6) & 3) << 4)) << 48)
  )
}

export function pshuflw(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  return put(s, op, i64x2(shuffleWords(load<u64>(p), immediate(op)), load<u64>(p, 8)))
}

export function pshufhw(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  return put(s, op, i64x2(load<u64>(p), shuffleWords(load<u64>(p, 8), immediate(op))))
}

export function pshufw(s: usize, op: usize): u32 {
  const p = mmxSource(s, op, 8)
  return p ? putMmx(s, op, shuffleWords(load<u64>(p), immediate(op))) : left(s)
}

export function shufps(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const n = immediate(op)
  const a = xmmReg(s, op)
  const low = <u64>load<u32>(a + ((n & 3) << 2)) | ((<u64>load<u32>(a + (((n >> 2) & 3) << 2))) << 32)
  const high = <u64>load<u32>(p + (((n >> 4) & 3) << 2)) | ((<u64>load<u32>(p + (((n >> 6) & 3) << 2))) << 32)
  return put(s, op, i64x2(low, high))
}

export function shufpd(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const n = immediate(op)
  return put(s, op, i64x2(load<u64>(xmmReg(s, op) + ((n & 1) << 3)), load<u64>(p + ((n & 2) << 2))))
}

/** SSE4.1 PMOVSX/PMOVZX: 0F38 20..25 and 30..35. */
export function pmovx(s: usize, op: usize): u32 {
  const kind = opcodeOf(op) & 7
  const size: u32 = kind == 0 || kind == 3 || kind == 5 ? 8 : kind == 2 ? 2 : 4
  const p = sourceOf(s, op, size)
  if (!p) return left(s)
  const b = size == 8 ? v128.load64_zero(p) : size == 4 ? v128.load32_zero(p) : i32x4.replace_lane(i32x4.splat(0), 0, <i32>load<u16>(p))
  if ((opcodeOf(op) & 0x10) != 0) {
    const zero = i64x2.splat(0)
    const bytes = v128.shuffle<i8>(b, zero, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
    if (kind == 0) return put(s, op, bytes)
    if (kind == 1) return put(s, op, i32x4.extend_low_i16x8_u(bytes))
    if (kind == 2) return put(s, op, i64x2.extend_low_i32x4_u(i32x4.extend_low_i16x8_u(bytes)))
    if (kind == 3) return put(s, op, i32x4.extend_low_i16x8_u(b))
    if (kind == 4) return put(s, op, i64x2.extend_low_i32x4_u(i32x4.extend_low_i16x8_u(b)))
    return put(s, op, i64x2.extend_low_i32x4_u(b))
  }
  if (kind == 0) return put(s, op, i16x8.extend_low_i8x16_s(b))
  if (kind == 1) return put(s, op, i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(b)))
  if (kind == 2) return put(s, op, i64x2.extend_low_i32x4_s(i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(b))))
  if (kind == 3) return put(s, op, i32x4.extend_low_i16x8_s(b))
  if (kind == 4) return put(s, op, i64x2.extend_low_i32x4_s(i32x4.extend_low_i16x8_s(b)))
  return put(s, op, i64x2.extend_low_i32x4_s(b))
}

export function ptest(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const a = first(s, op)
  const b = v128.load(p)
  setArithmetic(s, (v128.any_true(v128.and(a, b)) ? 0 : 0x40) | (v128.any_true(v128.andnot(b, a)) ? 0 : 1))
  return 0
}
