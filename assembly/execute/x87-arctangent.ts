/** FPATAN (SDM vol 2, table 3-30): a table of sixteenths and a series on 128-bit significands. Owns no state. */
import { left } from './sse-operands'
import { DE, DENORMAL, EXP, INFINITE, SIG, SIGN, TOP, ZERO, flag } from './softfloat'
import { settleNan, unpackExtended, zeroResult } from './softfloat-extended'
import {
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
import { st } from './x87-state'
import { enter, isEmpty, putSt, settle, stackFault, pop } from './x87-operands'
import { finish } from './x87-transcendental'

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
