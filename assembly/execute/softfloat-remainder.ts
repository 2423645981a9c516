/** FPREM, FPREM1, FSCALE and FRNDINT on the 80-bit format (SDM vol 2). Owns QUOTIENT, PARTIAL and REDUCED: valid only inside one handler. */
import {
  DE,
  DENORMAL,
  EXP,
  INFINITE,
  LOW,
  PE,
  SIG,
  SIGN,
  ZERO,
  addCore,
  flag,
  normalise,
  setNumber,
  setUp,
  shiftRightJam,
} from './softfloat'
import {
  PRECISION,
  setPrecision,
  infinityResult,
  invalidResult,
  roundExtended,
  setResult,
  settleNan,
  unpackExtended,
  up,
  zeroResult,
} from './softfloat-extended'

/** FRNDINT. */
export function roundToIntegral(p: usize): void {
  const c = unpackExtended(p)
  if (settleNan(p, c, p, c)) return
  if (c == INFINITE) return infinityResult(SIGN)
  if (c == ZERO) return zeroResult(SIGN)
  if (c == DENORMAL) flag(DE)
  if (EXP >= 63) return setResult(SIG, <u32>load<u16>(p, 8))
  const sign = SIGN
  shiftRightJam(<u32>(63 - EXP))
  const increment = up(0, 0)
  if (LOW != 0) flag(PE)
  setUp(increment)
  const value = SIG + u64(increment)
  if (value == 0) return zeroResult(sign)
  setNumber(sign, 63, value, 0)
  normalise()
  setResult(SIG, (sign << 15) | <u32>(EXP + 16383))
}

/** ST(0) * 2^trunc(ST(1)) (SDM vol 2, FSCALE, table 3-31). */
export function scaleExtended(px: usize, py: usize): void {
  const cy = unpackExtended(py)
  const sy = SIGN
  const ey = EXP
  const my = SIG
  const cx = unpackExtended(px)
  if (settleNan(px, cx, py, cy)) return
  const sx = SIGN
  if (cy == INFINITE) {
    if ((cx == INFINITE && sy != 0) || (cx == ZERO && sy == 0)) return invalidResult()
    if (cx == DENORMAL) flag(DE)
    return sy != 0 ? zeroResult(sx) : infinityResult(sx)
  }
  if (cx == DENORMAL || cy == DENORMAL) flag(DE)
  if (cx == INFINITE) return infinityResult(sx)
  if (cx == ZERO) return zeroResult(sx)
  let n = 0
  if (cy != ZERO && ey >= 0) {
    n = ey > 17 ? 0x20000 : <i32>(my >> (63 - ey))
    if (sy != 0) n = -n
  }
  setNumber(sx, EXP + n, SIG, 0)
  const saved = PRECISION
  setPrecision(64)
  roundExtended()
  setPrecision(saved)
}

/** Quotient bits of the last remainder; PARTIAL when it is not complete. */
export let QUOTIENT: u64 = 0

export let PARTIAL: bool = false

/** The operands were numbers, so the quotient bits mean something. */
export let REDUCED: bool = false

/** FPREM (truncating) and FPREM1 (`nearest`): SDM vol 2. */
export function remainderExtended(px: usize, py: usize, nearest: bool): void {
  QUOTIENT = 0
  PARTIAL = false
  REDUCED = false
  const cy = unpackExtended(py)
  const ey = EXP
  const my = SIG
  const cx = unpackExtended(px)
  if (settleNan(px, cx, py, cy)) return
  if (cx == INFINITE || cy == ZERO) return invalidResult()
  REDUCED = true
  if (cx == DENORMAL || cy == DENORMAL) flag(DE)
  if (cx == ZERO) return zeroResult(SIGN)
  let sign = SIGN
  const saved = PRECISION
  setPrecision(64)
  const distance = EXP - ey
  if (cy == INFINITE || (nearest ? distance + 1 : distance) < 0) {
    roundExtended()
    setPrecision(saved)
    return
  }
  let rest = SIG
  let steps = distance
  let scale = ey
  if (distance >= 64) {
    PARTIAL = true
    steps = (distance & 31) | 32
    scale = EXP - steps
  }
  let q: u64 = 0
  let carry = false
  if (steps >= 0) {
    for (let i = 0; ; i++) {
      q <<= 1
      if (carry || rest >= my) {
        rest -= my
        q |= 1
      }
      if (i == steps) break
      carry = <i64>rest < 0
      rest <<= 1
    }
  }
  if (PARTIAL) q = 0
  else if (nearest) {
    // rest / my against one half, at the divisor's scale (for distance -1 the dividend is rest / 2).
    let more = false
    if (distance < 0) more = rest > my
    else {
      const double = rest << 1
      const over = <i64>rest < 0 || double > my
      more = over || (double == my && (q & 1) != 0)
    }
    if (more) {
      q++
      sign ^= 1
      if (distance < 0) {
        // my - rest / 2, kept exactly in 65 bits: in units of half the divisor's last place.
        setNumber(0, ey, my, 0)
        addCore(0, ey, my, 1, ey - 1, rest)
        setNumber(sign, EXP, SIG, LOW)
        QUOTIENT = q
        roundExtended()
        setPrecision(saved)
        return
      }
      rest = my - rest
    } else if (distance < 0) scale = ey - 1
  }
  QUOTIENT = q
  if (rest == 0) zeroResult(zeroSign(sign, nearest, px))
  else {
    setNumber(sign, scale, rest, 0)
    normalise()
    roundExtended()
  }
  setPrecision(saved)
}

/** A zero remainder has the sign of the dividend. */
function zeroSign(sign: u32, nearest: bool, px: usize): u32 {
  return nearest ? <u32>load<u16>(px, 8) >> 15 : sign
}
