/**
 * FSIN, FCOS, FSINCOS, FPTAN (SDM vol 2; vol 1, 8.3.7-8.3.10): arguments are reduced by the 66-bit pi of the manual, then a series on
 * 128-bit significands is rounded once. Owns the reduced argument: valid only inside one handler.
 */
import { left } from './sse-operands'
import { DE, DENORMAL, EXP, INFINITE, SIG, SIGN, TOP, ZERO, flag } from './softfloat'
import { RESULT_SE, RESULT_SIG, invalidResult, settleNan, unpackExtended, zeroResult, setResult } from './softfloat-extended'
import { W_EXP, W_HIGH, W_LOW, wide, wideAdd, wideDiv, wideDivSmall, wideMul } from './softfloat-wide'
import { FSW_C2, st } from './x87-state'
import { clearC1, enter, isEmpty, pushResult, putSt, setCodes, settle, stackFault } from './x87-operands'
import { finish, flipSign } from './x87-transcendental'

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
