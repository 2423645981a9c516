/** SSE arithmetic on f32 and f64 bit patterns (SDM vol 1, 11.5, E.4; NaN rules: table 4-7). Owns no state. */
import {
  addCore,
  DE,
  defaultNan,
  DENORMAL,
  divCore,
  EXP,
  flag,
  fromInteger,
  IE,
  INFINITE,
  LOW,
  mulCore,
  packInfinity,
  packZero,
  PE,
  QNAN,
  quiet,
  ROUNDING,
  roundFloat,
  roundInteger,
  roundsUp,
  SIG,
  SIGN,
  SNAN,
  setNumber,
  shiftRightJam,
  sqrtCore,
  unpack,
  ZE,
  ZERO,
  normalise,
  FLAGS,
  dropFlags,
  setRounding,
} from './softfloat'

/** One operand is a NaN: the first operand if it is one, else the second. */
function propagate(a: u64, ca: u32, b: u64, cb: u32, wide: bool): u64 {
  if (ca == SNAN || cb == SNAN) flag(IE)
  return quiet(ca >= QNAN ? a : b, wide)
}
function invalid(wide: bool): u64 {
  flag(IE)
  return defaultNan(wide)
}

export function add(a: u64, b: u64, wide: bool, negate: u32): u64 {
  const ca = unpack(a, wide)
  const sa = SIGN
  const ea = EXP
  const ma = SIG
  const cb = unpack(b, wide)
  const sb = SIGN ^ negate
  if (ca >= QNAN || cb >= QNAN) return propagate(a, ca, b, cb, wide)
  if (ca == INFINITE && cb == INFINITE && sa != sb) return invalid(wide)
  if (ca == DENORMAL || cb == DENORMAL) flag(DE)
  if (ca == INFINITE) return packInfinity(sa, wide)
  if (cb == INFINITE) return packInfinity(sb, wide)
  if (ca == ZERO && cb == ZERO) return packZero(sa == sb ? sa : u32(ROUNDING == 1), wide)
  if (ca == ZERO) setNumber(sb, EXP, SIG, 0)
  else if (cb == ZERO) setNumber(sa, ea, ma, 0)
  else {
    addCore(sa, ea, ma, sb, EXP, SIG)
    if (SIG == 0) return packZero(u32(ROUNDING == 1), wide)
  }
  return roundFloat(wide)
}

export function mul(a: u64, b: u64, wide: bool): u64 {
  const ca = unpack(a, wide)
  const sa = SIGN
  const ea = EXP
  const ma = SIG
  const cb = unpack(b, wide)
  const sign = sa ^ SIGN
  if (ca >= QNAN || cb >= QNAN) return propagate(a, ca, b, cb, wide)
  if ((ca == INFINITE && cb == ZERO) || (ca == ZERO && cb == INFINITE)) return invalid(wide)
  if (ca == DENORMAL || cb == DENORMAL) flag(DE)
  if (ca == INFINITE || cb == INFINITE) return packInfinity(sign, wide)
  if (ca == ZERO || cb == ZERO) return packZero(sign, wide)
  mulCore(sign, ea, ma, EXP, SIG)
  return roundFloat(wide)
}

export function div(a: u64, b: u64, wide: bool): u64 {
  const ca = unpack(a, wide)
  const sa = SIGN
  const ea = EXP
  const ma = SIG
  const cb = unpack(b, wide)
  const sign = sa ^ SIGN
  if (ca >= QNAN || cb >= QNAN) return propagate(a, ca, b, cb, wide)
  if ((ca == INFINITE && cb == INFINITE) || (ca == ZERO && cb == ZERO)) return invalid(wide)
  if (ca == INFINITE) {
    if (cb == DENORMAL) flag(DE)
    return packInfinity(sign, wide)
  }
  if (cb == ZERO) {
    flag(ZE)
    return packInfinity(sign, wide)
  }
  if (ca == DENORMAL || cb == DENORMAL) flag(DE)
  if (ca == ZERO || cb == INFINITE) return packZero(sign, wide)
  divCore(sign, ea, ma, EXP, SIG)
  return roundFloat(wide)
}

export function sqrt(b: u64, wide: bool): u64 {
  const c = unpack(b, wide)
  if (c >= QNAN) return propagate(b, c, b, c, wide)
  if (c == ZERO) return packZero(SIGN, wide)
  if (SIGN != 0) return invalid(wide)
  if (c == INFINITE) return b
  if (c == DENORMAL) flag(DE)
  sqrtCore(EXP, SIG)
  return roundFloat(wide)
}

/** -1, 0, 1; 2 = unordered. Flags: SNaN always IE, QNaN when `signalling`; DE. */
export function compare(a: u64, b: u64, wide: bool, signalling: bool): i32 {
  const ca = unpack(a, wide)
  const sa = SIGN
  const ea = EXP
  const ma = SIG
  const cb = unpack(b, wide)
  if (ca >= QNAN || cb >= QNAN) {
    if (signalling || ca == SNAN || cb == SNAN) flag(IE)
    return 2
  }
  if (ca == DENORMAL || cb == DENORMAL) flag(DE)
  return order(ca, sa, ea, ma, cb, SIGN, EXP, SIG)
}
/** Order of two unpacked numbers without NaNs. */
export function order(ca: u32, sa: u32, ea: i32, ma: u64, cb: u32, sb: u32, eb: i32, mb: u64): i32 {
  if (ca == ZERO && cb == ZERO) return 0
  if (ca == ZERO) return sb != 0 ? 1 : -1
  const below = sa != 0 ? 1 : -1
  if (cb == ZERO || sa != sb) return -below
  if (ca == INFINITE || cb == INFINITE) return ca == cb ? 0 : ca == INFINITE ? -below : below
  if (ea != eb) return ea < eb ? below : -below
  return ma == mb ? 0 : ma < mb ? below : -below
}

/** MINxx and MAXxx: any NaN, or two zeros, give the second operand (SDM vol 2, MINPS). Denormals are passed as they are unless DAZ. */
export function minmax(a: u64, b: u64, wide: bool, max: bool): u64 {
  const ca = unpack(a, wide)
  const sa = SIGN
  const ea = EXP
  const ma = SIG
  const cb = unpack(b, wide)
  const second = cb == ZERO ? packZero(SIGN, wide) : b
  if (ca >= QNAN || cb >= QNAN) {
    flag(IE)
    return second
  }
  if (ca == DENORMAL || cb == DENORMAL) flag(DE)
  const o = order(ca, sa, ea, ma, cb, SIGN, EXP, SIG)
  if (max ? o > 0 : o < 0) return ca == ZERO ? packZero(sa, wide) : a
  return second
}

export function narrow(a: u64): u64 {
  const c = unpack(a, true)
  if (c >= QNAN) {
    if (c == SNAN) flag(IE)
    return ((a >> 32) & 0x80000000) | 0x7fc00000 | ((a >> 29) & 0x3fffff)
  }
  if (c == INFINITE) return packInfinity(SIGN, false)
  if (c == ZERO) return packZero(SIGN, false)
  if (c == DENORMAL) flag(DE)
  setNumber(SIGN, EXP, SIG, 0)
  return roundFloat(false)
}
export function widen(a: u64): u64 {
  const c = unpack(a, false)
  if (c >= QNAN) {
    if (c == SNAN) flag(IE)
    return ((a & 0x80000000) << 32) | 0x7ff8000000000000 | ((a & 0x3fffff) << 29)
  }
  if (c == INFINITE) return packInfinity(SIGN, true)
  if (c == ZERO) return packZero(SIGN, true)
  if (c == DENORMAL) flag(DE)
  setNumber(SIGN, EXP, SIG, 0)
  return roundFloat(true)
}

/** Conversion to a signed integer of `bits`; NaN and infinity are invalid. DE is not signalled. */
export function toInteger(a: u64, wide: bool, bits: u32, truncate: bool): i64 {
  const c = unpack(a, wide)
  if (c >= INFINITE) {
    flag(IE)
    return bits == 64 ? i64.MIN_VALUE : <i64>i32.MIN_VALUE
  }
  if (c == ZERO) return 0
  setNumber(SIGN, EXP, SIG, 0)
  return roundInteger(bits, truncate ? 3 : ROUNDING)
}
export function integerToFloat(value: i64, wide: bool): u64 {
  return fromInteger(value) ? roundFloat(wide) : 0
}

/** SIGN, EXP, SIG rounded to an integral value in place; false if it became 0. PE when inexact. */
function integral(): bool {
  setNumber(SIGN, EXP, SIG, 0)
  if (EXP >= 63) return true
  const sign = SIGN
  shiftRightJam(<u32>(63 - EXP))
  const inexact = LOW != 0
  const up = roundsUp(sign, LOW >> 1, (<u64>1) << 62, LOW & 1, (SIG & 1) != 0)
  let value = SIG
  if (inexact) flag(PE)
  if (up) value++
  if (value == 0) return false
  setNumber(sign, 63, value, 0)
  normalise()
  return true
}
/** ROUNDPS and kin: imm bit 2 selects MXCSR rounding, bit 3 suppresses PE. */
export function roundIntegral(a: u64, wide: bool, control: u32): u64 {
  const c = unpack(a, wide)
  if (c >= QNAN) {
    if (c == SNAN) flag(IE)
    return quiet(a, wide)
  }
  if (c == INFINITE) return a
  if (c == ZERO) return packZero(SIGN, wide)
  const before = FLAGS
  const saved = ROUNDING
  if ((control & 4) == 0) setRounding(control & 3)
  const sign = SIGN
  const value = integral() ? roundFloat(wide) : packZero(sign, wide)
  setRounding(saved)
  if ((control & 8) != 0) dropFlags(~PE | before)
  return value
}
