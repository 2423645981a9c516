/**
 * Double extended precision (80-bit) arithmetic for x87 (SDM vol 1, 4.8, 8.2-8.5). Operands are addresses of registers
 * (u64 significand, u16 sign and exponent); results are in RESULT_SIG and RESULT_SE, exceptions in softfloat's FLAGS.
 * Owns PRECISION and RESULT_*: valid only inside one handler.
 */
import {
  DE,
  DENORMAL,
  EXP,
  IE,
  INFINITE,
  LOW,
  MASKS,
  NORMAL,
  OE,
  PE,
  QNAN,
  ROUNDING,
  SIG,
  SIGN,
  SNAN,
  TOP,
  UE,
  UNSUPPORTED,
  ZE,
  ZERO,
  addCore,
  divCore,
  flag,
  fromInteger,
  mulCore,
  roundsUp,
  setNumber,
  setUp,
  shiftRightJam,
  sqrtCore,
} from './softfloat'
import { order } from './softfloat-binary'

const QUIET: u64 = 0x4000000000000000

const LEAST: i32 = -16382

const GREATEST: i32 = 16383

/** What an unmasked overflow or underflow adds to the exponent (SDM vol 1, 8.5.4-5). */
const WRAP: i32 = 24576

/** Significand bits of the precision control: 24, 53 or 64. */
export let PRECISION: u32 = 64

export let RESULT_SIG: u64 = 0

export let RESULT_SE: u32 = 0

export function setPrecision(bits: u32): void {
  PRECISION = bits
}

export function setResult(sig: u64, se: u32): void {
  RESULT_SIG = sig
  RESULT_SE = se
}

export function zeroResult(sign: u32): void {
  setResult(0, sign << 15)
}

export function infinityResult(sign: u32): void {
  setResult(TOP, (sign << 15) | 0x7fff)
}

export function defaultResult(): void {
  setResult(TOP | QUIET, 0xffff)
}

export function invalidResult(): void {
  flag(IE)
  defaultResult()
}

/** Class of the register at p; SIGN, EXP and SIG describe it when it is finite and not zero. */
export function unpackExtended(p: usize): u32 {
  const sig = load<u64>(p)
  const se = <u32>load<u16>(p, 8)
  const exponent = se & 0x7fff
  signOf(se)
  if (exponent == 0x7fff) {
    if (<i64>sig >= 0) return UNSUPPORTED
    if (sig == TOP) return INFINITE
    return (sig & QUIET) != 0 ? QNAN : SNAN
  }
  if (exponent == 0) {
    if (sig == 0) return ZERO
    const n = <i32>clz<u64>(sig)
    setNumber(se >> 15, LEAST - n, sig << n, 0)
    return DENORMAL
  }
  if (<i64>sig >= 0) return UNSUPPORTED
  setNumber(se >> 15, <i32>exponent - 16383, sig, 0)
  return NORMAL
}

function signOf(se: u32): void {
  setNumber(se >> 15, 0, 0, 0)
}

/** The larger significand wins; among equals the positive one; an SNaN loses to a QNaN (SDM vol 1, table 4-7). */
function propagate(px: usize, cx: u32, py: usize, cy: u32): void {
  if (cx == SNAN || cy == SNAN) flag(IE)
  let second = cx < QNAN
  if (cx >= QNAN && cy >= QNAN) {
    const x = load<u64>(px) | QUIET
    const y = load<u64>(py) | QUIET
    if (cx == SNAN && cy == QNAN) second = true
    else if (cx == QNAN && cy == SNAN) second = false
    else second = x != y ? x < y : load<u16>(px, 8) > load<u16>(py, 8)
  }
  const p = second ? py : px
  setResult(load<u64>(p) | QUIET, <u32>load<u16>(p, 8))
}

/** Handles NaNs and unsupported operands; true when the result is settled. */
export function settleNan(px: usize, cx: u32, py: usize, cy: u32): bool {
  if (cx < QNAN && cy < QNAN) return false
  if (cx == UNSUPPORTED || cy == UNSUPPORTED) invalidResult()
  else propagate(px, cx, py, cy)
  return true
}

/** Rounds SIGN, EXP, SIG:LOW to PRECISION bits in the extended range. */
export function roundExtended(): void {
  const drop: u64 = 64 - PRECISION
  const mask = ((<u64>1) << drop) - 1
  let tiny = false
  if (EXP < LEAST) {
    tiny = EXP < LEAST - 1 || !((SIG & ~mask) == ~mask && up(drop, mask))
    if (tiny && (MASKS & UE) == 0) {
      flag(UE)
      setNumber(SIGN, EXP + WRAP, SIG, LOW)
      tiny = false
      if (EXP < LEAST) {
        // Beyond even the wrapped range (FSCALE): zero.
        flag(PE)
        setUp(false)
        zeroResult(SIGN)
        return
      }
    } else {
      shiftRightJam(<u32>(LEAST - EXP))
      setNumber(SIGN, LEAST, SIG, LOW)
    }
  }
  const inexact = ((SIG & mask) | LOW) != 0
  const increment = up(drop, mask)
  let value = SIG & ~mask
  let exponent = EXP
  if (inexact) flag(tiny ? UE | PE : PE)
  setUp(increment)
  if (increment) {
    value += (<u64>1) << drop
    if (value == 0) {
      value = TOP
      exponent++
    }
  }
  if (exponent > GREATEST) {
    flag(OE)
    if ((MASKS & OE) != 0) {
      flag(PE)
      const infinite = ROUNDING == 0 || (ROUNDING == 1 && SIGN != 0) || (ROUNDING == 2 && SIGN == 0)
      setUp(infinite)
      if (infinite) infinityResult(SIGN)
      else setResult(~mask, (SIGN << 15) | 0x7ffe)
      return
    }
    exponent -= WRAP
    if (exponent > GREATEST) {
      flag(PE)
      setUp(true)
      infinityResult(SIGN)
      return
    }
  }
  setResult(value, (SIGN << 15) | (<i64>value < 0 ? <u32>(exponent + 16383) : 0))
}

export function up(drop: u64, mask: u64): bool {
  if (drop == 0) return roundsUp(SIGN, LOW >> 1, (<u64>1) << 62, LOW & 1, (SIG & 1) != 0)
  return roundsUp(SIGN, SIG & mask, (<u64>1) << (drop - 1), LOW, ((SIG >> drop) & 1) != 0)
}

export const ADD: u32 = 0

export const MUL: u32 = 1

export const SUB: u32 = 2

export const DIV: u32 = 3

/** RESULT = x op y. dx/dy: the operand was a denormal f32 or f64 in memory. */
export function compute(kind: u32, px: usize, dx: bool, py: usize, dy: bool): void {
  let cx = unpackExtended(px)
  const sx = SIGN
  const ex = EXP
  const mx = SIG
  let cy = unpackExtended(py)
  let sy = SIGN
  if (settleNan(px, cx, py, cy)) return
  if (dx) cx = DENORMAL
  if (dy) cy = DENORMAL
  const denormal = cx == DENORMAL || cy == DENORMAL
  if (kind == ADD || kind == SUB) {
    if (kind == SUB) sy ^= 1
    if (cx == INFINITE && cy == INFINITE && sx != sy) return invalidResult()
    if (denormal) flag(DE)
    if (cx == INFINITE) return infinityResult(sx)
    if (cy == INFINITE) return infinityResult(sy)
    if (cx == ZERO && cy == ZERO) return zeroResult(sx == sy ? sx : u32(ROUNDING == 1))
    if (cx == ZERO) setNumber(sy, EXP, SIG, 0)
    else if (cy == ZERO) setNumber(sx, ex, mx, 0)
    else {
      addCore(sx, ex, mx, sy, EXP, SIG)
      if (SIG == 0) return zeroResult(u32(ROUNDING == 1))
    }
    return roundExtended()
  }
  const sign = sx ^ sy
  if (kind == MUL) {
    if ((cx == INFINITE && cy == ZERO) || (cx == ZERO && cy == INFINITE)) return invalidResult()
    if (denormal) flag(DE)
    if (cx == INFINITE || cy == INFINITE) return infinityResult(sign)
    if (cx == ZERO || cy == ZERO) return zeroResult(sign)
    mulCore(sign, ex, mx, EXP, SIG)
    return roundExtended()
  }
  if ((cx == INFINITE && cy == INFINITE) || (cx == ZERO && cy == ZERO)) return invalidResult()
  if (cy == ZERO && cx != INFINITE) {
    flag(ZE)
    return infinityResult(sign)
  }
  if (denormal) flag(DE)
  if (cx == INFINITE) return infinityResult(sign)
  if (cx == ZERO || cy == INFINITE) return zeroResult(sign)
  divCore(sign, ex, mx, EXP, SIG)
  roundExtended()
}

/** -1, 0, 1, 2 = unordered; IE for SNaN and unsupported, and for QNaN when `signalling`. */
export function compareExtended(px: usize, py: usize, dy: bool, signalling: bool): i32 {
  const cx = unpackExtended(px)
  const sx = SIGN
  const ex = EXP
  const mx = SIG
  const cy = unpackExtended(py)
  if (cx >= QNAN || cy >= QNAN) {
    if (signalling || cx >= SNAN || cy >= SNAN) flag(IE)
    return 2
  }
  if (cx == DENORMAL || cy == DENORMAL || dy) flag(DE)
  return order(cx, sx, ex, mx, cy, SIGN, EXP, SIG)
}

export function sqrtExtended(p: usize): void {
  const c = unpackExtended(p)
  if (settleNan(p, c, p, c)) return
  if (c == ZERO) return zeroResult(SIGN)
  if (SIGN != 0) return invalidResult()
  if (c == INFINITE) return infinityResult(0)
  if (c == DENORMAL) flag(DE)
  sqrtCore(EXP, SIG)
  roundExtended()
}

/** Raw widening of an f32 (payload kept, SNaN not quieted) to `to`; true if it was a denormal. */
export function widen32(bits: u32, to: usize): bool {
  const sign = (bits >> 31) << 15
  const exponent = (bits >> 23) & 0xff
  const fraction = ((<u64>bits) << 41) >> 1
  return widenTo(to, sign, exponent, fraction, 0xff, 127)
}

export function widen64(bits: u64, to: usize): bool {
  const sign = (<u32>(bits >> 63)) << 15
  const exponent = <u32>(bits >> 52) & 0x7ff
  return widenTo(to, sign, exponent, (bits << 12) >> 1, 0x7ff, 1023)
}

function widenTo(to: usize, sign: u32, exponent: u32, fraction: u64, special: u32, bias: i32): bool {
  if (exponent == 0) {
    if (fraction == 0) {
      store<u64>(to, 0)
      store<u16>(to, <u16>sign, 8)
      return false
    }
    const n = <i32>clz<u64>(fraction)
    store<u64>(to, fraction << n)
    store<u16>(to, <u16>(sign | <u32>(16383 - bias + 1 - n)), 8)
    return true
  }
  store<u64>(to, TOP | fraction)
  store<u16>(to, <u16>(sign | (exponent == special ? 0x7fff : <u32>(<i32>exponent - bias + 16383))), 8)
  return false
}

export function widenInteger(value: i64, to: usize): void {
  if (!fromInteger(value)) {
    store<u64>(to, 0)
    store<u16>(to, 0, 8)
    return
  }
  store<u64>(to, SIG)
  store<u16>(to, <u16>((SIGN << 15) | <u32>(EXP + 16383)), 8)
}
