/**
 * Packed integer arithmetic, one switch for SSE2 and MMX (SDM vol 2, PADDB..PXOR; SSSE3; SSE4.1/4.2).
 * The opcode byte (OP_EXTRA) selects the operation. Owns no state.
 */
import { OP_EXTRA, OP_IMM, OP_MODRM } from '../generated/layout'
import {
  enterMmx,
  first,
  halfUsed,
  left,
  mmxReg,
  mmxRm,
  mmxSource,
  mmxUsable,
  put,
  putMmx,
  source,
  sourceLow,
  sseUsable,
  xmmRm,
} from './sse-operands'

export function opcodeOf(op: usize): u32 {
  return load<u32>(op, OP_EXTRA) & 0xff
}

export function immediate(op: usize): u32 {
  return <u32>load<u8>(op, OP_IMM)
}

/** Shift count of PSLLW xmm, xmm: the low 64 bits of the source, saturated. */
function countOf(b: v128): i32 {
  const n = i64x2.extract_lane(b, 0)
  return <u64>n > 255 ? 255 : <i32>n
}

function shiftLeft(a: v128, n: i32, width: u32): v128 {
  if (<u32>n >= width) return i64x2.splat(0)
  return width == 16 ? i16x8.shl(a, n) : width == 32 ? i32x4.shl(a, n) : i64x2.shl(a, n)
}

function shiftRight(a: v128, n: i32, width: u32): v128 {
  if (<u32>n >= width) return i64x2.splat(0)
  return width == 16 ? i16x8.shr_u(a, n) : width == 32 ? i32x4.shr_u(a, n) : i64x2.shr_u(a, n)
}

function shiftArithmetic(a: v128, n: i32, width: u32): v128 {
  const m = <u32>n >= width ? <i32>width - 1 : n
  return width == 16 ? i16x8.shr_s(a, m) : i32x4.shr_s(a, m)
}

function low32(a: v128): v128 {
  return v128.and(a, i64x2.splat(0xffffffff))
}

function signed32(a: v128): v128 {
  return i64x2.shr_s(i64x2.shl(a, 32), 32)
}

function sad(a: v128, b: v128): v128 {
  const d = i8x16.sub(i8x16.max_u(a, b), i8x16.min_u(a, b))
  const t = i32x4.extadd_pairwise_i16x8_u(i16x8.extadd_pairwise_i8x16_u(d))
  return i64x2.add(low32(t), i64x2.shr_u(t, 32))
}

function mulHighSigned(a: v128, b: v128): v128 {
  return i16x8.narrow_i32x4_s(i32x4.shr_s(i32x4.extmul_low_i16x8_s(a, b), 16), i32x4.shr_s(i32x4.extmul_high_i16x8_s(a, b), 16))
}

function mulHighUnsigned(a: v128, b: v128): v128 {
  return i16x8.narrow_i32x4_u(i32x4.shr_u(i32x4.extmul_low_i16x8_u(a, b), 16), i32x4.shr_u(i32x4.extmul_high_i16x8_u(a, b), 16))
}

/** PMULHRSW: ((a * b >> 14) + 1) >> 1, low 16 bits (0x8000 * 0x8000 gives 0x8000, unlike q15mulr). */
function mulRound(a: v128, b: v128): v128 {
  const one = i32x4.splat(1)
  const low = i32x4.shr_s(i32x4.add(i32x4.shr_s(i32x4.extmul_low_i16x8_s(a, b), 14), one), 1)
  const high = i32x4.shr_s(i32x4.add(i32x4.shr_s(i32x4.extmul_high_i16x8_s(a, b), 14), one), 1)
  return v128.shuffle<i16>(low, high, 0, 2, 4, 6, 8, 10, 12, 14)
}

function mulAddBytes(a: v128, b: v128): v128 {
  const even = i16x8.mul(v128.and(a, i16x8.splat(0xff)), i16x8.shr_s(i16x8.shl(b, 8), 8))
  return i16x8.add_sat_s(even, i16x8.mul(i16x8.shr_u(a, 8), i16x8.shr_s(b, 8)))
}

/** Map 0F: SSE2 integer and logic. `a` is the destination. */
function packed(opcode: u32, a: v128, b: v128): v128 {
  switch (opcode) {
    case 0x60:
      return v128.shuffle<i8>(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
    case 0x61:
      return v128.shuffle<i16>(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
    case 0x14:
    case 0x62:
      return v128.shuffle<i32>(a, b, 0, 4, 1, 5)
    case 0x63:
      return i8x16.narrow_i16x8_s(a, b)
    case 0x64:
      return i8x16.gt_s(a, b)
    case 0x65:
      return i16x8.gt_s(a, b)
    case 0x66:
      return i32x4.gt_s(a, b)
    case 0x67:
      return i8x16.narrow_i16x8_u(a, b)
    case 0x68:
      return v128.shuffle<i8>(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
    case 0x69:
      return v128.shuffle<i16>(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
    case 0x15:
    case 0x6a:
      return v128.shuffle<i32>(a, b, 2, 6, 3, 7)
    case 0x6b:
      return i16x8.narrow_i32x4_s(a, b)
    case 0x6c:
      return v128.shuffle<i64>(a, b, 0, 2)
    case 0x6d:
      return v128.shuffle<i64>(a, b, 1, 3)
    case 0x74:
      return i8x16.eq(a, b)
    case 0x75:
      return i16x8.eq(a, b)
    case 0x76:
      return i32x4.eq(a, b)
    case 0xd1:
      return shiftRight(a, countOf(b), 16)
    case 0xd2:
      return shiftRight(a, countOf(b), 32)
    case 0xd3:
      return shiftRight(a, countOf(b), 64)
    case 0xd4:
      return i64x2.add(a, b)
    case 0xd5:
      return i16x8.mul(a, b)
    case 0xd8:
      return i8x16.sub_sat_u(a, b)
    case 0xd9:
      return i16x8.sub_sat_u(a, b)
    case 0xda:
      return i8x16.min_u(a, b)
    case 0x54:
    case 0xdb:
      return v128.and(a, b)
    case 0xdc:
      return i8x16.add_sat_u(a, b)
    case 0xdd:
      return i16x8.add_sat_u(a, b)
    case 0xde:
      return i8x16.max_u(a, b)
    case 0x55:
    case 0xdf:
      return v128.andnot(b, a)
    case 0xe0:
      return i8x16.avgr_u(a, b)
    case 0xe1:
      return shiftArithmetic(a, countOf(b), 16)
    case 0xe2:
      return shiftArithmetic(a, countOf(b), 32)
    case 0xe3:
      return i16x8.avgr_u(a, b)
    case 0xe4:
      return mulHighUnsigned(a, b)
    case 0xe5:
      return mulHighSigned(a, b)
    case 0xe8:
      return i8x16.sub_sat_s(a, b)
    case 0xe9:
      return i16x8.sub_sat_s(a, b)
    case 0xea:
      return i16x8.min_s(a, b)
    case 0x56:
    case 0xeb:
      return v128.or(a, b)
    case 0xec:
      return i8x16.add_sat_s(a, b)
    case 0xed:
      return i16x8.add_sat_s(a, b)
    case 0xee:
      return i16x8.max_s(a, b)
    case 0x57:
    case 0xef:
      return v128.xor(a, b)
    case 0xf1:
      return shiftLeft(a, countOf(b), 16)
    case 0xf2:
      return shiftLeft(a, countOf(b), 32)
    case 0xf3:
      return shiftLeft(a, countOf(b), 64)
    case 0xf4:
      return i64x2.mul(low32(a), low32(b))
    case 0xf5:
      return i32x4.dot_i16x8_s(a, b)
    case 0xf6:
      return sad(a, b)
    case 0xf8:
      return i8x16.sub(a, b)
    case 0xf9:
      return i16x8.sub(a, b)
    case 0xfa:
      return i32x4.sub(a, b)
    case 0xfb:
      return i64x2.sub(a, b)
    case 0xfc:
      return i8x16.add(a, b)
    case 0xfd:
      return i16x8.add(a, b)
    case 0xfe:
      return i32x4.add(a, b)
    default:
      return unreachable()
  }
}

/** Map 0F38: SSSE3 and SSE4. */
function packed38(opcode: u32, a: v128, b: v128): v128 {
  const zero = i64x2.splat(0)
  switch (opcode) {
    case 0x00:
      return i8x16.swizzle(a, v128.and(b, i8x16.splat(<i8>0x8f)))
    case 0x01:
      return i16x8.add(v128.shuffle<i16>(a, b, 0, 2, 4, 6, 8, 10, 12, 14), v128.shuffle<i16>(a, b, 1, 3, 5, 7, 9, 11, 13, 15))
    case 0x02:
      return i32x4.add(v128.shuffle<i32>(a, b, 0, 2, 4, 6), v128.shuffle<i32>(a, b, 1, 3, 5, 7))
    case 0x03:
      return i16x8.add_sat_s(v128.shuffle<i16>(a, b, 0, 2, 4, 6, 8, 10, 12, 14), v128.shuffle<i16>(a, b, 1, 3, 5, 7, 9, 11, 13, 15))
    case 0x04:
      return mulAddBytes(a, b)
    case 0x05:
      return i16x8.sub(v128.shuffle<i16>(a, b, 0, 2, 4, 6, 8, 10, 12, 14), v128.shuffle<i16>(a, b, 1, 3, 5, 7, 9, 11, 13, 15))
    case 0x06:
      return i32x4.sub(v128.shuffle<i32>(a, b, 0, 2, 4, 6), v128.shuffle<i32>(a, b, 1, 3, 5, 7))
    case 0x07:
      return i16x8.sub_sat_s(v128.shuffle<i16>(a, b, 0, 2, 4, 6, 8, 10, 12, 14), v128.shuffle<i16>(a, b, 1, 3, 5, 7, 9, 11, 13, 15))
    case 0x08:
      return v128.and(v128.bitselect(i8x16.neg(a), a, i8x16.lt_s(b, zero)), i8x16.ne(b, zero))
    case 0x09:
      return v128.and(v128.bitselect(i16x8.neg(a), a, i16x8.lt_s(b, zero)), i16x8.ne(b, zero))
    case 0x0a:
      return v128.and(v128.bitselect(i32x4.neg(a), a, i32x4.lt_s(b, zero)), i32x4.ne(b, zero))
    case 0x0b:
      return mulRound(a, b)
    case 0x1c:
      return i8x16.abs(b)
    case 0x1d:
      return i16x8.abs(b)
    case 0x1e:
      return i32x4.abs(b)
    case 0x28:
      return i64x2.mul(signed32(a), signed32(b))
    case 0x29:
      return i64x2.eq(a, b)
    case 0x2b:
      return i16x8.narrow_i32x4_u(a, b)
    case 0x37:
      return i64x2.gt_s(a, b)
    case 0x38:
      return i8x16.min_s(a, b)
    case 0x39:
      return i32x4.min_s(a, b)
    case 0x3a:
      return i16x8.min_u(a, b)
    case 0x3b:
      return i32x4.min_u(a, b)
    case 0x3c:
      return i8x16.max_s(a, b)
    case 0x3d:
      return i32x4.max_s(a, b)
    case 0x3e:
      return i16x8.max_u(a, b)
    case 0x3f:
      return i32x4.max_u(a, b)
    case 0x40:
      return i32x4.mul(a, b)
    default:
      return unreachable()
  }
}

export function sseAlu(s: usize, op: usize): u32 {
  const p = halfUsed(s, op, opcodeOf(op)) ? sourceLow(s, op) : source(s, op)
  return p ? put(s, op, packed(opcodeOf(op), first(s, op), v128.load(p))) : left(s)
}

export function sseAlu38(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, packed38(opcodeOf(op), first(s, op), v128.load(p))) : left(s)
}

export function putLow(s: usize, op: usize, value: v128): u32 {
  return putMmx(s, op, <u64>i64x2.extract_lane(value, 0))
}

export function mmxAlu(s: usize, op: usize): u32 {
  const opcode = opcodeOf(op)
  // PUNPCKL reads only half of its source (SDM vol 2: mm/m32).
  const p = mmxSource(s, op, opcode >= 0x60 && opcode <= 0x62 ? 4 : 8)
  if (!p) return left(s)
  const a = v128.load64_zero(mmxReg(s, op))
  const b = opcode >= 0x60 && opcode <= 0x62 ? v128.load32_zero(p) : v128.load64_zero(p)
  if (opcode == 0x63 || opcode == 0x67 || opcode == 0x6b) return putLow(s, op, packed(opcode, v128.shuffle<i64>(a, b, 0, 2), b))
  // PUNPCKH of eight bytes is the upper half of PUNPCKL of sixteen.
  if (opcode >= 0x68 && opcode <= 0x6a) return putMmx(s, op, <u64>i64x2.extract_lane(packed(opcode - 8, a, b), 1))
  return putLow(s, op, packed(opcode, a, b))
}

export function mmxAlu38(s: usize, op: usize): u32 {
  const opcode = opcodeOf(op)
  const p = mmxSource(s, op, 8)
  if (!p) return left(s)
  const a = v128.load64_zero(mmxReg(s, op))
  const b = v128.load64_zero(p)
  if (opcode == 0) return putLow(s, op, i8x16.swizzle(a, v128.and(b, i8x16.splat(<i8>0x87))))
  if (opcode <= 7 && opcode != 4) return putLow(s, op, packed38(opcode, v128.shuffle<i64>(a, b, 0, 2), b))
  return putLow(s, op, packed38(opcode, a, b))
}

/** 0F 71, 72, 73: shifts by an immediate; ModRM.reg selects. */
function shiftGroup(opcode: u32, kind: u32, a: v128, n: i32): v128 {
  const width: u32 = opcode == 0x71 ? 16 : opcode == 0x72 ? 32 : 64
  if (kind == 2) return shiftRight(a, n, width)
  if (kind == 4) return shiftArithmetic(a, n, width)
  return shiftLeft(a, n, width)
}

export function sseShift(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const at = xmmRm(s, op)
  v128.store(at, shiftGroup(opcodeOf(op), (<u32>load<u8>(op, OP_MODRM) >> 3) & 7, v128.load(at), <i32>immediate(op)))
  return 0
}

export function mmxShift(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  enterMmx(s)
  const at = mmxRm(s, op)
  const r = shiftGroup(opcodeOf(op), (<u32>load<u8>(op, OP_MODRM) >> 3) & 7, v128.load64_zero(at), <i32>immediate(op))
  store<u64>(at, i64x2.extract_lane(r, 0))
  store<u16>(at, 0xffff, 8)
  return 0
}
