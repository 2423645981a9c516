/**
 * F2XM1, FYL2X, FYL2XP1 (SDM vol 2; vol 1, 8.3.9-8.3.10): series on 128-bit significands, rounded once, so within one unit in the last
 * place of the true value. Owns no state.
 */
import { left } from './sse-operands'
import { DE, DENORMAL, EXP, INFINITE, NORMAL, PE, SIG, SIGN, TOP, ZE, ZERO, flag, setNumber } from './softfloat'
import {
  infinityResult,
  invalidResult,
  roundExtended,
  setPrecision,
  settleNan,
  unpackExtended,
  zeroResult,
  setResult,
} from './softfloat-extended'
import {
  LN2_EXP,
  LN2_HIGH,
  LN2_LOW,
  LOG2E_EXP,
  LOG2E_HIGH,
  LOG2E_LOW,
  W_EXP,
  W_HIGH,
  W_LOW,
  W_SIGN,
  wide,
  wideAdd,
  wideDiv,
  wideDivSmall,
  wideMul,
} from './softfloat-wide'
import { st } from './x87-state'
import { enter, isEmpty, putSt, settle, stackFault, pop } from './x87-operands'

/** Rounds W into RESULT; always inexact. */
export function finish(): void {
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

export function flipSign(sign: u32): void {
  wide(W_SIGN ^ (sign & 1), W_EXP, W_HIGH, W_LOW)
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
