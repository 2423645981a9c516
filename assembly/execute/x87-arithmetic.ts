/** x87 arithmetic, compares and ST(0) functions that are exact or correctly rounded (SDM vol 2, FADD..FXTRACT). Owns no state. */
import { OP_EXTRA, OP_MODRM } from '../generated/layout'
import { setArithmetic } from '../cpu/flags'
import { left, memory } from './sse-operands'
import { DE, DENORMAL, EXP, FLAGS, INFINITE, NORMAL, SIG, SIGN, UNSUPPORTED, ZE, ZERO, flag } from './softfloat'
import {
  ADD,
  DIV,
  MUL,
  SUB,
  compareExtended,
  compute,
  infinityResult,
  settleNan,
  sqrtExtended,
  unpackExtended,
  widen32,
  widen64,
  widenInteger,
  zeroResult,
  setResult,
} from './softfloat-extended'
import { PARTIAL, QUOTIENT, REDUCED, remainderExtended, roundToIntegral, scaleExtended } from './softfloat-remainder'
import { FSW_C0, FSW_C1, FSW_C2, FSW_C3, st } from './x87-state'
import {
  abandon,
  clearC1,
  enter,
  index,
  isEmpty,
  pushResult,
  putSt,
  report,
  scratch,
  setCodes,
  settle,
  stackFault,
  pop,
} from './x87-operands'

/** Reads the memory operand of D8 (m32), DA (m32int), DC (m64), DE (m16int) into scratch. 0 = leaving, 1 = read, 2 = read, and it was a denormal. */
function readOperand(s: usize, op: usize): u32 {
  const opcode = load<u32>(op, OP_EXTRA)
  const p = memory(s, op, opcode == 0xdc ? 8 : opcode == 0xde ? 2 : 4)
  if (!p) return 0
  const to = scratch(s)
  if (opcode == 0xd8) return widen32(load<u32>(p), to) ? 2 : 1
  if (opcode == 0xdc) return widen64(load<u64>(p), to) ? 2 : 1
  widenInteger(opcode == 0xda ? <i64>load<i32>(p) : <i64>load<i16>(p), to)
  return 1
}

/** ModRM.reg 0 ADD, 1 MUL, 4 SUB, 5 SUBR, 6 DIV, 7 DIVR, of ST(0) and the other operand. */
function perform(kind: u32, a: usize, b: usize, denormal: bool): void {
  if (kind == 0) compute(ADD, a, false, b, denormal)
  else if (kind == 1) compute(MUL, a, false, b, denormal)
  else if (kind == 4) compute(SUB, a, false, b, denormal)
  else if (kind == 5) compute(SUB, b, denormal, a, false)
  else if (kind == 6) compute(DIV, a, false, b, denormal)
  else compute(DIV, b, denormal, a, false)
}

export function x87Memory(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const read = readOperand(s, op)
  if (!read) return abandon(s)
  if (isEmpty(s, 0)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  perform((<u32>load<u8>(op, OP_MODRM) >> 3) & 7, st(s, 0), scratch(s), read == 2)
  if (settle(s)) putSt(s, 0)
  return 0
}

/** D8: ST(0) = ST(0) op ST(i); DC: ST(i) = ...; DE: and pop. */
export function x87Register(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const i = index(op)
  const opcode = load<u32>(op, OP_EXTRA)
  const to = opcode == 0xd8 ? 0 : i
  let go: bool
  if (isEmpty(s, 0) || isEmpty(s, i)) go = stackFault(s, false)
  else {
    perform((<u32>load<u8>(op, OP_MODRM) >> 3) & 7, st(s, 0), st(s, i), false)
    go = settle(s)
  }
  if (!go) return 0
  putSt(s, to)
  if (opcode == 0xde) pop(s)
  return 0
}

function setOrder(s: usize, o: i32): void {
  setCodes(s, FSW_C0 | FSW_C2 | FSW_C3, o == 2 ? FSW_C0 | FSW_C2 | FSW_C3 : o == 0 ? FSW_C3 : o < 0 ? FSW_C0 : 0)
}

/** Compare of ST(0) with the register image at b; true when pops may follow. */
function comparison(s: usize, empty: bool, b: usize, denormal: bool, signalling: bool): bool {
  clearC1(s)
  if (empty) {
    const go = stackFault(s, false)
    setOrder(s, 2)
    return go
  }
  const o = compareExtended(st(s, 0), b, denormal, signalling)
  setOrder(s, o)
  return report(s, FLAGS, 7)
}

/** FCOM(P), FICOM(P) with memory: ModRM.reg 3 pops. */
export function fcomMemory(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const read = readOperand(s, op)
  if (!read) return abandon(s)
  if (comparison(s, isEmpty(s, 0), scratch(s), read == 2, true) && ((<u32>load<u8>(op, OP_MODRM) >> 3) & 7) == 3) pop(s)
  return 0
}

/** FCOM, FCOMP: D8/DC/DE D0.. and D8..: ModRM.reg 3 pops. */
export function fcom(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const i = index(op)
  if (comparison(s, isEmpty(s, 0) || isEmpty(s, i), st(s, i), false, true) && ((<u32>load<u8>(op, OP_MODRM) >> 3) & 7) == 3) pop(s)
  return 0
}

/** DE D0..D7: an alias of FCOMP. */
export function fcomp5(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const i = index(op)
  if (comparison(s, isEmpty(s, 0) || isEmpty(s, i), st(s, i), false, true)) pop(s)
  return 0
}

/** FCOMPP (DE D9) and FUCOMPP (DA E9). */
export function fcompp(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  if (comparison(s, isEmpty(s, 0) || isEmpty(s, 1), st(s, 1), false, load<u32>(op, OP_EXTRA) == 0xde)) {
    pop(s)
    pop(s)
  }
  return 0
}

/** FUCOM (DD /4), FUCOMP (DD /5). */
export function fucom(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const i = index(op)
  if (comparison(s, isEmpty(s, 0) || isEmpty(s, i), st(s, i), false, false) && ((<u32>load<u8>(op, OP_MODRM) >> 3) & 7) == 5) pop(s)
  return 0
}

/** FCOMI (DB /6), FUCOMI (DB /5), and with pop DF. */
export function fcomi(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const i = index(op)
  let o = 2
  let go: bool
  if (isEmpty(s, 0) || isEmpty(s, i)) go = stackFault(s, false)
  else {
    o = compareExtended(st(s, 0), st(s, i), false, ((<u32>load<u8>(op, OP_MODRM) >> 3) & 7) == 6)
    go = report(s, FLAGS, 7)
  }
  setArithmetic(s, o == 2 ? 0x45 : o == 0 ? 0x40 : o < 0 ? 1 : 0)
  if (go && load<u32>(op, OP_EXTRA) == 0xdf) pop(s)
  return 0
}

export function ftst(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const zero = scratch(s)
  store<u64>(zero, 0)
  store<u16>(zero, 0, 8)
  comparison(s, isEmpty(s, 0), zero, false, true)
  return 0
}

export function fxam(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const p = st(s, 0)
  const c = unpackExtended(p)
  let codes: u32
  if (isEmpty(s, 0)) codes = FSW_C3 | FSW_C0
  else if (c == UNSUPPORTED) codes = 0
  else if (c == ZERO) codes = FSW_C3
  else if (c == DENORMAL) codes = FSW_C3 | FSW_C2
  else if (c == NORMAL) codes = FSW_C2
  else codes = c == INFINITE ? FSW_C2 | FSW_C0 : FSW_C0
  setCodes(s, FSW_C0 | FSW_C1 | FSW_C2 | FSW_C3, codes | ((<u32>load<u16>(p, 8) >> 15) << 9))
  return 0
}

/** Unary functions: 0 = ST(0) empty and that is unmasked, or the operation was refused. */
function unary(s: usize): void {
  if (settle(s)) putSt(s, 0)
}

export function fsqrt(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  if (isEmpty(s, 0)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  sqrtExtended(st(s, 0))
  unary(s)
  return 0
}

export function frndint(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  if (isEmpty(s, 0)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  roundToIntegral(st(s, 0))
  unary(s)
  return 0
}

export function fscale(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  if (isEmpty(s, 0) || isEmpty(s, 1)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  scaleExtended(st(s, 0), st(s, 1))
  unary(s)
  return 0
}

/** FPREM (D9 F8), FPREM1 (D9 F5): C2 = reduction incomplete, C0 C3 C1 = quotient bits 2 1 0. */
export function fprem(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  if (isEmpty(s, 0) || isEmpty(s, 1)) {
    setCodes(s, FSW_C2, 0)
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  remainderExtended(st(s, 0), st(s, 1), load<u8>(op, OP_MODRM) == 0xf5)
  const q = <u32>QUOTIENT
  const go = report(s, FLAGS, 7)
  let codes: u32 = PARTIAL ? FSW_C2 : 0
  if ((q & 4) != 0) codes |= FSW_C0
  if ((q & 2) != 0) codes |= FSW_C3
  if ((q & 1) != 0) codes |= FSW_C1
  // NaNs and refused operations leave C0 and C3 as they were.
  if (!REDUCED || !go) codes = 0
  setCodes(s, !REDUCED || !go ? FSW_C1 | FSW_C2 : FSW_C0 | FSW_C1 | FSW_C2 | FSW_C3, codes)
  if (go) putSt(s, 0)
  return 0
}

export function fabs(s: usize, op: usize): u32 {
  return changeSign(s, op, 0x7fff, 0)
}

export function fchs(s: usize, op: usize): u32 {
  return changeSign(s, op, 0xffff, 0x8000)
}

function changeSign(s: usize, op: usize, keep: u32, flip: u32): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  if (isEmpty(s, 0)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  const p = st(s, 0)
  store<u16>(p, <u16>((<u32>load<u16>(p, 8) & keep) ^ flip), 8)
  return 0
}

/** ST(0) becomes the exponent, then the significand is pushed. */
export function fxtract(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  const underflow = isEmpty(s, 0)
  if (underflow || !isEmpty(s, 7)) {
    if (stackFault(s, !underflow)) {
      putSt(s, 0)
      pushResult(s)
    }
    return 0
  }
  const p = st(s, 0)
  const c = unpackExtended(p)
  if (settleNan(p, c, p, c)) {
    if (!settle(s)) return 0
    putSt(s, 0)
    pushResult(s)
    return 0
  }
  const sign = SIGN
  if (c == ZERO) {
    flag(ZE)
    if (!settle(s)) return 0
    infinityResult(1)
    putSt(s, 0)
    zeroResult(sign)
    pushResult(s)
    return 0
  }
  if (c == INFINITE) {
    infinityResult(0)
    putSt(s, 0)
    infinityResult(sign)
    pushResult(s)
    return 0
  }
  if (c == DENORMAL) flag(DE)
  const significand = SIG
  const exponent = EXP
  if (!settle(s)) return 0
  widenInteger(<i64>exponent, p)
  setResult(significand, (sign << 15) | 16383)
  pushResult(s)
  return 0
}
