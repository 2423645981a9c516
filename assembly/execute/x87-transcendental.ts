/**
 * FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1 (SDM vol 2; vol 1, 8.3.7-8.3.10): series on 128-bit significands,
 * rounded once, so within one unit in the last place of the true value. Trigonometric arguments are reduced by the 66-bit pi of the manual.
 * Owns no state.
 */
import { left } from './sse-operands'
import { DE, DENORMAL, EXP, flag, INFINITE, NORMAL, PE, SIG, SIGN, setNumber, TOP, ZE, ZERO } from './softfloat'
import {
  infinityResult,
  invalidResult,
  RESULT_SE,
  RESULT_SIG,
  roundExtended,
  setPrecision,
  setResult,
  settleNan,
  unpackExtended,
  zeroResult,
} from './softfloat-extended'
import {
  LN2_EXP,
  LN2_HIGH,
  LN2_LOW,
  LOG2E_EXP,
  LOG2E_HIGH,
  LOG2E_LOW,
  PI_EXP,
  PI_HIGH,
  PI_LOW,
  W_EXP,
  W_HIGH,
  W_LOW,
  W_SIGN,
  wide,
  wideAdd,
  wideAtan,
  wideDiv,
  wideDivSmall,
  wideMul,
} from './softfloat-wide'
import { clearC1, enter, isEmpty, pop, pushResult, putSt, setCodes, settle, stackFault } from './x87-operands'
import { FSW_C2, st } from './x87-state'

/** Rounds W into RESULT; always inexact. */
function finish(): void {
  setPrecision(64)
  setNumber(W_SIGN, W_EXP, W_HIGH, W_LOW | 1)
  roundExtended()
}

/** As finish, for a W that may be exact; PE is signalled all the same. */
function finishExact(): void {
  flag(PE)
  setPrecision(64)
  setNumber(W_SIGN, W_EXP, W_HIGH, W_LOW)
  roundExtended()
}

/** W = 1 + W^2 terms ... : sum of (-1)^k x^(2k) / (2k + first)!, by Horner; x2 is |x|^2 (its sign makes the series alternate). */
function factorialSeries(exp: i32, high: u64, low: u64, first: u32): void {
  wide(0, 0, TOP, 0)
  for (let k: u32 = 16; k > 0; k--) {
    wideMul(1, exp, high, low)
    wideDivSmall((2 * k - 1 + first) * (2 * k + first))
    wideAdd(0, 0, TOP, 0)
  }
  // Below 1, however little, so that directed rounding sees it.
  if (W_EXP == 0) wide(0, -1, ~(<u64>0), ~(<u64>0))
}
/** W = sin of the wide number (exp, high, low) in [0, pi/4]. */
function sine(exp: i32, high: u64, low: u64): void {
  wide(0, exp, high, low)
  wideMul(0, exp, high, low)
  factorialSeries(W_EXP, W_HIGH, W_LOW, 1)
  wideMul(0, exp, high, low)
}
function cosine(exp: i32, high: u64, low: u64): void {
  wide(0, exp, high, low)
  wideMul(0, exp, high, low)
  factorialSeries(W_EXP, W_HIGH, W_LOW, 0)
}

/** Reduced argument: quadrant and a number in [0, pi/4], with its sign. */
let quadrant: u32 = 0
let reducedSign: u32 = 0
let reducedExp: i32 = 0
let reducedHigh: u64 = 0
let reducedLow: u64 = 0
/** pi/2 = HALF_PI / 2^65 (66 bits: SDM vol 1, 8.3.8). */
const HALF_PI_HIGH: u64 = 3
const HALF_PI_LOW: u64 = 0x243f6a8885a308d3
/** |x| = sig / 2^63 * 2^exp modulo pi/2, exactly. */
function reduce(exp: i32, sig: u64): void {
  quadrant = 0
  reducedSign = 0
  reducedExp = exp
  reducedHigh = sig
  reducedLow = 0
  if (exp < -1) return
  let h: u64 = 0
  let l = sig
  let q: u32 = 0
  for (let i = -2; i < exp; i++) {
    h = (h << 1) | (l >> 63)
    l <<= 1
    q <<= 1
    if (h > HALF_PI_HIGH || (h == HALF_PI_HIGH && l >= HALF_PI_LOW)) {
      h = h - HALF_PI_HIGH - u64(l < HALF_PI_LOW)
      l -= HALF_PI_LOW
      q++
    }
  }
  // More than pi/4: take the distance to the next multiple.
  const h2 = (h << 1) | (l >> 63)
  const l2 = l << 1
  if (h2 > HALF_PI_HIGH || (h2 == HALF_PI_HIGH && l2 > HALF_PI_LOW)) {
    h = HALF_PI_HIGH - h - u64(HALF_PI_LOW < l)
    l = HALF_PI_LOW - l
    reducedSign = 1
    q++
  }
  quadrant = q
  if (h == 0 && l == 0) {
    reducedHigh = 0
    return
  }
  const n: u32 = h != 0 ? <u32>clz<u64>(h) : 64 + <u32>clz<u64>(l)
  if (n >= 64) {
    reducedHigh = l << (n - 64)
    reducedLow = 0
  } else {
    reducedHigh = (h << n) | (n > 0 ? l >> (64 - n) : 0)
    reducedLow = l << n
  }
  // The value is (h:l) / 2^65 and h:l has 128 bits.
  reducedExp = 62 - <i32>n
}
/** RESULT = sin (which = 0) or cos (1) of the reduced argument of a number with `sign`. */
function sineOrCosine(which: u32, sign: u32): void {
  const k = (quadrant + which) & 3
  if ((k & 1) == 0) {
    sine(reducedExp, reducedHigh, reducedLow)
    flipSign(reducedSign)
  } else cosine(reducedExp, reducedHigh, reducedLow)
  flipSign(k >> 1)
  if (which == 0) flipSign(sign)
  finish()
}
function flipSign(sign: u32): void {
  wide(W_SIGN ^ (sign & 1), W_EXP, W_HIGH, W_LOW)
}

/** Common start of the trigonometric functions; true when ST(0) is an ordinary argument in range (then it is reduced). */
let argumentSign: u32 = 0
const ORDINARY: u32 = 0
const DONE: u32 = 1
const IS_ZERO: u32 = 2
const IS_NAN: u32 = 3
function argument(s: usize): u32 {
  const p = st(s, 0)
  const c = unpackExtended(p)
  if (settleNan(p, c, p, c)) return IS_NAN
  argumentSign = SIGN
  if (c == INFINITE) {
    invalidResult()
    return IS_NAN
  }
  if (c == ZERO) return IS_ZERO
  if (EXP >= 63) {
    clearC1(s)
    setCodes(s, FSW_C2, FSW_C2)
    return DONE
  }
  if (c == DENORMAL) flag(DE)
  reduce(EXP, SIG)
  return ORDINARY
}

export function fsin(s: usize, op: usize): u32 {
  return trigonometric(s, op, 0)
}
export function fcos(s: usize, op: usize): u32 {
  return trigonometric(s, op, 1)
}
function trigonometric(s: usize, op: usize, which: u32): u32 {
  if (!enter(s, op)) return left(s)
  setCodes(s, FSW_C2, 0)
  if (isEmpty(s, 0)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  const kind = argument(s)
  if (kind == DONE) return 0
  if (kind == IS_ZERO) {
    if (which == 0) zeroResult(argumentSign)
    else setResult(TOP, 0x3fff)
  } else if (kind == ORDINARY) sineOrCosine(which, argumentSign)
  if (settle(s)) putSt(s, 0)
  return 0
}

/** FSINCOS: ST(0) = sin, then cos is pushed. FPTAN: ST(0) = tan, then 1.0 is pushed. */
export function fsincos(s: usize, op: usize): u32 {
  return pair(s, op, false)
}
export function fptan(s: usize, op: usize): u32 {
  return pair(s, op, true)
}
function pair(s: usize, op: usize, tangent: bool): u32 {
  if (!enter(s, op)) return left(s)
  setCodes(s, FSW_C2, 0)
  const underflow = isEmpty(s, 0)
  if (underflow || !isEmpty(s, 7)) {
    if (stackFault(s, !underflow)) {
      putSt(s, 0)
      pushResult(s)
    }
    return 0
  }
  const kind = argument(s)
  if (kind == DONE) return 0
  if (kind == IS_NAN) {
    if (!settle(s)) return 0
    putSt(s, 0)
    pushResult(s)
    return 0
  }
  let sig: u64 = TOP
  let se: u32 = 0x3fff
  if (kind == IS_ZERO) zeroResult(argumentSign)
  else if (tangent) {
    sine(reducedExp, reducedHigh, reducedLow)
    const exp = W_EXP
    const high = W_HIGH
    const low = W_LOW
    cosine(reducedExp, reducedHigh, reducedLow)
    if ((quadrant & 1) == 0) {
      const e = W_EXP
      const h = W_HIGH
      const l = W_LOW
      wide(0, exp, high, low)
      wideDiv(0, e, h, l)
    } else wideDiv(1, exp, high, low)
    flipSign(argumentSign ^ reducedSign)
    finish()
  } else {
    sineOrCosine(1, argumentSign)
    sig = RESULT_SIG
    se = RESULT_SE
    sineOrCosine(0, argumentSign)
  }
  if (!settle(s)) return 0
  putSt(s, 0)
  setResult(sig, se)
  pushResult(s)
  return 0
}

/** 2^x - 1; outside -1..1 the reference CPU returns x. */
export function f2xm1(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  if (isEmpty(s, 0)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  const p = st(s, 0)
  const c = unpackExtended(p)
  if (!settleNan(p, c, p, c)) {
    if (c == DENORMAL) flag(DE)
    if (c == ZERO || c == INFINITE || EXP >= 0) {
      const minusOne = c == NORMAL && EXP == 0 && SIG == TOP && SIGN != 0
      if (c != ZERO && c != INFINITE) flag(PE)
      if (c == INFINITE && SIGN != 0) setResult(TOP, 0xbfff)
      else setResult(load<u64>(p), minusOne ? 0xbffe : <u32>load<u16>(p, 8))
    } else {
      wide(SIGN, EXP, SIG, 0)
      wideMul(0, LN2_EXP, LN2_HIGH, LN2_LOW)
      const sign = W_SIGN
      const exp = W_EXP
      const high = W_HIGH
      const low = W_LOW
      wide(0, 0, TOP, 0)
      for (let k: u32 = 30; k > 1; k--) {
        wideMul(sign, exp, high, low)
        wideDivSmall(k)
        wideAdd(0, 0, TOP, 0)
      }
      wideMul(sign, exp, high, low)
      finish()
    }
  }
  if (settle(s)) putSt(s, 0)
  return 0
}

/** W = 2 atanh(W) * log2(e) = log2((1 + W) / (1 - W)), |W| < 0.18. */
function logarithm(): void {
  const sign = W_SIGN
  const exp = W_EXP
  const high = W_HIGH
  const low = W_LOW
  if (high == 0) return
  wideMul(sign, exp, high, low)
  const e2 = W_EXP
  const h2 = W_HIGH
  const l2 = W_LOW
  wide(0, 0, TOP, 0)
  wideDivSmall(51)
  for (let k: i32 = 24; k >= 0; k--) {
    wideMul(0, e2, h2, l2)
    const e = W_EXP
    const h = W_HIGH
    const l = W_LOW
    wide(0, 0, TOP, 0)
    if (k > 0) wideDivSmall(<u32>(2 * k + 1))
    wideAdd(0, e, h, l)
  }
  wideMul(sign, exp + 1, high, low)
  wideMul(0, LOG2E_EXP, LOG2E_HIGH, LOG2E_LOW)
}

/** ST(1) = ST(1) * log2(ST(0)), pop. */
export function fyl2x(s: usize, op: usize): u32 {
  return logarithmic(s, op, false)
}
/** ST(1) = ST(1) * log2(ST(0) + 1), pop. */
export function fyl2xp1(s: usize, op: usize): u32 {
  return logarithmic(s, op, true)
}
function logarithmic(s: usize, op: usize, plusOne: bool): u32 {
  if (!enter(s, op)) return left(s)
  let go: bool
  if (isEmpty(s, 0) || isEmpty(s, 1)) go = stackFault(s, false)
  else {
    if (plusOne) logarithmOfSum(st(s, 0), st(s, 1))
    else logarithmOf(st(s, 0), st(s, 1))
    go = settle(s)
  }
  if (!go) return 0
  putSt(s, 1)
  pop(s)
  return 0
}
function logarithmOf(px: usize, py: usize): void {
  const cy = unpackExtended(py)
  const sy = SIGN
  const ey = EXP
  const my = SIG
  const cx = unpackExtended(px)
  const sx = SIGN
  if (settleNan(py, cy, px, cx)) return
  if (cx != ZERO && sx != 0) return invalidResult()
  const denormal = cx == DENORMAL || cy == DENORMAL
  if (cx == ZERO) {
    if (cy == ZERO) return invalidResult()
    if (cy != INFINITE) flag(ZE)
    return infinityResult(sy ^ 1)
  }
  if (cx == INFINITE) {
    if (cy == ZERO) return invalidResult()
    if (denormal) flag(DE)
    return infinityResult(sy)
  }
  const exp = EXP
  const sig = SIG
  const one = exp == 0 && sig == TOP
  const below = u32(exp < 0)
  if (cy == INFINITE) {
    if (one) return invalidResult()
    if (denormal) flag(DE)
    return infinityResult(sy ^ below)
  }
  if (denormal) flag(DE)
  if (cy == ZERO || one) return zeroResult(one ? sy : sy ^ below)
  wide(0, exp, sig, 0)
  logarithmOfWide()
  wideMul(sy, ey, my, 0)
  finishExact()
}
/** W = log2(W), W > 0 and not 1. */
function logarithmOfWide(): void {
  // W = 2^k * m, m in [sqrt(1/2), sqrt(2)).
  let k = W_EXP
  const high = W_HIGH
  const low = W_LOW
  if (high == TOP && low == 0) return integerWide(k)
  let scale = 0
  if (high >= 0xb504f333f9de6484) {
    k++
    scale = -1
  }
  wide(0, scale, high, low)
  wideAdd(0, 0, TOP, 0)
  const e = W_EXP
  const h = W_HIGH
  const l = W_LOW
  wide(0, scale, high, low)
  wideAdd(1, 0, TOP, 0)
  wideDiv(0, e, h, l)
  logarithm()
  if (k != 0) {
    const ls = W_SIGN
    const le = W_EXP
    const lh = W_HIGH
    const ll = W_LOW
    integerWide(k)
    wideAdd(ls, le, lh, ll)
  }
}
/** W = k. */
function integerWide(k: i32): void {
  const m = <u64>abs<i32>(k)
  const n = <i32>clz<u64>(m)
  wide(u32(k < 0), 63 - n, m << n, 0)
}
function logarithmOfSum(px: usize, py: usize): void {
  const cy = unpackExtended(py)
  const sy = SIGN
  const ey = EXP
  const my = SIG
  const cx = unpackExtended(px)
  const sx = SIGN
  if (settleNan(py, cy, px, cx)) return
  const denormal = cx == DENORMAL || cy == DENORMAL
  if (cx == INFINITE) {
    if (sx != 0 || cy == ZERO) return invalidResult()
    if (denormal) flag(DE)
    return infinityResult(sy)
  }
  if (cy == INFINITE) {
    if (cx == ZERO) return invalidResult()
    if (denormal) flag(DE)
    return infinityResult(sx ^ sy)
  }
  if (denormal) flag(DE)
  if (cx == ZERO || cy == ZERO) return zeroResult(sx ^ sy)
  const exp = EXP
  const sig = SIG
  if (exp >= -2) {
    // Beyond the manual's range (1 - sqrt(1/2)) the reference CPU goes on where a logarithm exists, else returns ST(0).
    if (sx != 0 && exp >= 0) {
      flag(PE)
      return setResult(sig, <u32>load<u16>(px, 8))
    }
    wide(sx, exp, sig, 0)
    wideAdd(0, 0, TOP, 0)
    logarithmOfWide()
    wideMul(sy, ey, my, 0)
    return finishExact()
  }
  // log2(1 + x) = log2((1 + z) / (1 - z)), z = x / (2 + x).
  wide(sx, exp, sig, 0)
  wideAdd(0, 1, TOP, 0)
  const e = W_EXP
  const h = W_HIGH
  const l = W_LOW
  wide(sx, exp, sig, 0)
  wideDiv(0, e, h, l)
  logarithm()
  wideMul(sy, ey, my, 0)
  finish()
}

/** W = pi * 2^-shift, with a sign. */
function piOver(shift: i32): void {
  wide(0, PI_EXP - shift, PI_HIGH, PI_LOW)
}
/** ST(1) = atan2(ST(1), ST(0)), pop (SDM vol 2, FPATAN, table 3-30). */
export function fpatan(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  let go: bool
  if (isEmpty(s, 0) || isEmpty(s, 1)) go = stackFault(s, false)
  else {
    arctangent(st(s, 1), st(s, 0))
    go = settle(s)
  }
  if (!go) return 0
  putSt(s, 1)
  pop(s)
  return 0
}
function arctangent(py: usize, px: usize): void {
  const cy = unpackExtended(py)
  const sy = SIGN
  let ey = EXP
  let my = SIG
  const cx = unpackExtended(px)
  const sx = SIGN
  let ex = EXP
  let mx = SIG
  if (settleNan(py, cy, px, cx)) return
  if (cx == DENORMAL || cy == DENORMAL) flag(DE)
  if (cy == ZERO || (cx == INFINITE && cy != INFINITE)) {
    if (sx == 0) return zeroResult(sy)
    piOver(0)
  } else if (cy == INFINITE && cx == INFINITE) {
    piOver(2)
    if (sx != 0) {
      // 3 pi / 4
      const h = W_HIGH
      const l = W_LOW
      wideAdd(0, PI_EXP - 1, h, l)
    }
  } else if (cx == ZERO || cy == INFINITE) piOver(1)
  else {
    const swap = ey > ex || (ey == ex && my > mx)
    if (swap) {
      const e = ey
      ey = ex
      ex = e
      const m = my
      my = mx
      mx = m
    }
    // t = min / max in (0, 1], then atan(t) = atan(c) + atan((t - c) / (1 + t c)), c = k / 16.
    wide(0, ey, my, 0)
    wideDiv(0, ex, mx, 0)
    let te = W_EXP
    let th = W_HIGH
    let tl = W_LOW
    let k: u32 = 0
    if (te >= -5) k = te == 0 ? 16 : <u32>(((th >> <u64>(58 - te)) + 1) >> 1)
    if (k != 0) {
      const n = <i32>clz<u64>(<u64>k)
      const ce = 63 - n - 4
      const ch = (<u64>k) << n
      wideMul(0, ce, ch, 0)
      wideAdd(0, 0, TOP, 0)
      const de = W_EXP
      const dh = W_HIGH
      const dl = W_LOW
      wide(0, te, th, tl)
      wideAdd(1, ce, ch, 0)
      if (W_HIGH != 0) wideDiv(0, de, dh, dl)
    }
    const rs = W_SIGN
    const re = W_EXP
    const rh = W_HIGH
    const rl = W_LOW
    if (rh != 0) {
      wideMul(rs, re, rh, rl)
      te = W_EXP
      th = W_HIGH
      tl = W_LOW
      wide(0, 0, TOP, 0)
      wideDivSmall(27)
      for (let i: i32 = 12; i >= 0; i--) {
        wideMul(1, te, th, tl)
        const e = W_EXP
        const h = W_HIGH
        const l = W_LOW
        const sign = W_SIGN
        wide(0, 0, TOP, 0)
        if (i > 0) wideDivSmall(<u32>(2 * i + 1))
        wideAdd(sign, e, h, l)
      }
      wideMul(rs, re, rh, rl)
    }
    if (k != 0) {
      const as = W_SIGN
      const ae = W_EXP
      const ah = W_HIGH
      const al = W_LOW
      wideAtan(k)
      wideAdd(as, ae, ah, al)
    }
    if (swap) fromMultiple(1)
    if (sx != 0) fromMultiple(0)
  }
  wide(sy, W_EXP, W_HIGH, W_LOW)
  finish()
}
/** W = pi * 2^-shift - W. */
function fromMultiple(shift: i32): void {
  const e = W_EXP
  const h = W_HIGH
  const l = W_LOW
  piOver(shift)
  wideAdd(1, e, h, l)
}
