/** x87 loads, stores, constants and stack management (SDM vol 2, FLD, FST, FILD, FIST, FBLD, FBSTP, FXCH, FCMOV). Owns no state. */
import { CPU_FSW, CPU_FTOP, OP_EXTRA, OP_MODRM, VCPU_FPU } from '../generated/layout'
import { condition } from '../cpu/flags'
import { left, memory, storeMemory, stored } from './sse-operands'
import { load80, store80 } from './area'
import { eaWrite } from './operands'
import { leaving, writable } from '../memory/access'
import {
  DE,
  dropFlags,
  EXP,
  FLAGS,
  flag,
  IE,
  INFINITE,
  MASKS,
  OE,
  PE,
  QNAN,
  ROUNDING,
  roundFloat,
  roundInteger,
  SIG,
  SIGN,
  setNumber,
  SNAN,
  UE,
  UNSUPPORTED,
  UP,
  ZERO,
} from './softfloat'
import { defaultResult, RESULT_SE, RESULT_SIG, setResult, unpackExtended, widen32, widen64, widenInteger } from './softfloat-extended'
import {
  abandon,
  clearC1,
  enter,
  index,
  isEmpty,
  pop,
  pushResult,
  putSt,
  report,
  scratch,
  setCodes,
  setEmpty,
  stackFault,
} from './x87-operands'
import { FSW_C1, st } from './x87-state'

const QUIET: u64 = 0x4000000000000000

/** Result registers from the register image at p. */
function take(p: usize): void {
  setResult(load<u64>(p), <u32>load<u16>(p, 8))
}
function pushChecked(s: usize): u32 {
  clearC1(s)
  if (!isEmpty(s, 7)) {
    if (stackFault(s, true)) pushResult(s)
    return 0
  }
  pushResult(s)
  return 0
}
/** FLD m32 (D9), m64 (DD): converts, so SNaN and denormals signal. */
export function fldFloat(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const wide = load<u32>(op, OP_EXTRA) == 0xdd
  const p = memory(s, op, wide ? 8 : 4)
  if (!p) return abandon(s)
  const to = scratch(s)
  const denormal = wide ? widen64(load<u64>(p), to) : widen32(load<u32>(p), to)
  clearC1(s)
  if (!isEmpty(s, 7)) {
    if (stackFault(s, true)) pushResult(s)
    return 0
  }
  take(to)
  if (denormal) flag(DE)
  else if (unpackExtended(to) == SNAN) {
    flag(IE)
    setResult(RESULT_SIG | QUIET, RESULT_SE)
  }
  if (report(s, FLAGS, IE)) pushResult(s)
  return 0
}
export function fldExtended(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const p = s + VCPU_FPU
  if (!load80(s, op, p)) return abandon(s)
  take(p)
  return pushChecked(s)
}
/** FILD m16 (DF /0), m32 (DB /0), m64 (DF /5). */
export function fild(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const size: u32 = load<u32>(op, OP_EXTRA) == 0xdb ? 4 : (<u32>load<u8>(op, OP_MODRM) & 0x38) == 0 ? 2 : 8
  const p = memory(s, op, size)
  if (!p) return abandon(s)
  const to = scratch(s)
  widenInteger(size == 2 ? <i64>load<i16>(p) : size == 4 ? <i64>load<i32>(p) : load<i64>(p), to)
  take(to)
  return pushChecked(s)
}
export function fldSt(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  const i = index(op)
  if (isEmpty(s, i)) {
    if (stackFault(s, false)) pushResult(s)
    return 0
  }
  take(st(s, i))
  return pushChecked(s)
}

/** Constants: 66-bit values, rounded by RC (SDM vol 2, FLD1). */
export function fldConstant(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const down = ROUNDING == 1 || ROUNDING == 3
  const up = ROUNDING == 2
  switch (index(op)) {
    case 0: {
      setResult(0x8000000000000000, 0x3fff)
      break
    }
    case 1: {
      setResult(up ? 0xd49a784bcd1b8aff : 0xd49a784bcd1b8afe, 0x4000)
      break
    }
    case 2: {
      setResult(down ? 0xb8aa3b295c17f0bb : 0xb8aa3b295c17f0bc, 0x3fff)
      break
    }
    case 3: {
      setResult(down ? 0xc90fdaa22168c234 : 0xc90fdaa22168c235, 0x4000)
      break
    }
    case 4: {
      setResult(down ? 0x9a209a84fbcff798 : 0x9a209a84fbcff799, 0x3ffd)
      break
    }
    case 5: {
      setResult(down ? 0xb17217f7d1cf79ab : 0xb17217f7d1cf79ac, 0x3ffe)
      break
    }
    default:
      setResult(0, 0)
  }
  return pushChecked(s)
}

/** ST(0) as an f32 or f64; FLAGS tell what happened. */
function narrowSt(p: usize, wide: bool): u64 {
  const c = unpackExtended(p)
  const sign: u64 = wide ? (<u64>SIGN) << 63 : (<u64>SIGN) << 31
  if (c == ZERO) return sign
  if (c == INFINITE) return sign | (wide ? 0x7ff0000000000000 : 0x7f800000)
  if (c == UNSUPPORTED) {
    flag(IE)
    return wide ? 0xfff8000000000000 : 0xffc00000
  }
  if (c >= QNAN) {
    if (c == SNAN) flag(IE)
    const payload = (load<u64>(p) | QUIET) << 1
    return sign | (wide ? 0x7ff0000000000000 | (payload >> 12) : 0x7f800000 | (payload >> 41))
  }
  setNumber(SIGN, EXP, SIG, 0)
  return roundFloat(wide)
}
/** FST(P) m32 (D9), m64 (DD): ModRM.reg 3 pops. Unmasked IE, OE and UE store nothing. */
export function fstFloat(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const wide = load<u32>(op, OP_EXTRA) == 0xdd
  const size: u32 = wide ? 8 : 4
  const status = load<u32>(s, CPU_FSW)
  clearC1(s)
  const at = scratch(s)
  let value: u64
  let go: bool
  if (isEmpty(s, 0)) {
    go = stackFault(s, false)
    value = wide ? 0xfff8000000000000 : 0xffc00000
  } else {
    value = narrowSt(st(s, 0), wide)
    // A refused store is not an inexact one.
    if ((FLAGS & ~MASKS & (OE | UE)) != 0) dropFlags(~PE)
    go = report(s, FLAGS, IE | OE | UE)
    if (go && UP) setCodes(s, FSW_C1, FSW_C1)
  }
  store<u64>(at, value)
  return finishStore(s, op, at, size, go, status, ((<u32>load<u8>(op, OP_MODRM) >> 3) & 7) == 3)
}
function touch(s: usize, op: usize, size: u32): u32 {
  const va = eaWrite(s, op, size)
  if (leaving(s)) return left(s)
  return writable(s, op, va, size) ? 0 : left(s)
}

/** Stores, or only checks the address; a fault undoes the status word. */
function finishStore(s: usize, op: usize, at: usize, size: u32, go: bool, status: u32, popping: bool): u32 {
  // A store that an unmasked exception refuses still touches its operand.
  const leave = size == 10 ? store80(s, op, at, go) : go ? storeMemory(s, op, at, size) : touch(s, op, size)
  if (!stored(leave)) {
    store<u32>(s, status, CPU_FSW)
    abandon(s)
    return leave
  }
  if (go && popping) pop(s)
  return leave
}
export function fstpExtended(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const status = load<u32>(s, CPU_FSW)
  clearC1(s)
  const at = scratch(s)
  let go: bool = true
  if (isEmpty(s, 0)) {
    go = stackFault(s, false)
    defaultResult()
  } else take(st(s, 0))
  store<u64>(at, RESULT_SIG)
  store<u16>(at, <u16>RESULT_SE, 8)
  return finishStore(s, op, at, 10, go, status, true)
}

/** ST(0) as an integer of `bits`; NaN, infinity and overflow give the indefinite integer. */
function integerSt(p: usize, bits: u32, truncate: bool): i64 {
  const c = unpackExtended(p)
  if (c == ZERO) return 0
  if (c >= INFINITE) {
    flag(IE)
    return bits == 64 ? i64.MIN_VALUE : bits == 32 ? <i64>i32.MIN_VALUE : <i64>i16.MIN_VALUE
  }
  setNumber(SIGN, EXP, SIG, 0)
  return roundInteger(bits, truncate ? 3 : ROUNDING)
}
/** FIST (2), FISTP (3; DF /7 64-bit), FISTTP (1): DB m32, DF m16, DD /1 m64. */
export function fist(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const opcode = load<u32>(op, OP_EXTRA)
  const kind = (<u32>load<u8>(op, OP_MODRM) >> 3) & 7
  const size: u32 = opcode == 0xdb ? 4 : opcode == 0xdd || kind == 7 ? 8 : 2
  const status = load<u32>(s, CPU_FSW)
  clearC1(s)
  let value: i64
  let go: bool
  if (isEmpty(s, 0)) {
    go = stackFault(s, false)
    value = size == 8 ? i64.MIN_VALUE : size == 4 ? <i64>i32.MIN_VALUE : <i64>i16.MIN_VALUE
  } else {
    value = integerSt(st(s, 0), size << 3, kind == 1)
    go = report(s, FLAGS, IE)
    if (go && UP && (FLAGS & IE) == 0) setCodes(s, FSW_C1, FSW_C1)
  }
  const at = scratch(s)
  store<i64>(at, value)
  return finishStore(s, op, at, size, go, status, kind != 2)
}

export function fbld(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const p = s + VCPU_FPU
  if (!load80(s, op, p)) return abandon(s)
  let value: i64 = 0
  for (let i = 8; i >= 0; i--) {
    const b = <i64>load<u8>(p + i)
    value = value * 100 + (b >> 4) * 10 + (b & 15)
  }
  const sign = <u32>load<u8>(p, 9) >> 7
  const to = scratch(s)
  widenInteger(value, to)
  setResult(load<u64>(to), <u32>load<u16>(to, 8) | (sign << 15))
  return pushChecked(s)
}
export function fbstp(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const status = load<u32>(s, CPU_FSW)
  clearC1(s)
  const at = scratch(s)
  let go: bool
  let value: i64 = 0
  let bad = true
  const sign = <u32>load<u16>(st(s, 0), 8) >> 15
  if (isEmpty(s, 0)) go = stackFault(s, false)
  else {
    value = integerSt(st(s, 0), 64, false)
    if (value < 0) value = 0 - value
    if ((FLAGS & IE) == 0) {
      bad = <u64>value > 999999999999999999
      if (bad) {
        dropFlags(~PE)
        flag(IE)
      }
    }
    go = report(s, FLAGS, IE)
    if (go && UP && !bad) setCodes(s, FSW_C1, FSW_C1)
  }
  if (bad) {
    store<u64>(at, 0xc000000000000000)
    store<u16>(at, 0xffff, 8)
  } else {
    for (let i = 0; i < 9; i++) {
      const two = <u32>(value % 100)
      value /= 100
      store<u8>(at + i, <u8>(((two / 10) << 4) | (two % 10)))
    }
    store<u8>(at, <u8>(sign << 7), 9)
  }
  return finishStore(s, op, at, 10, go, status, true)
}

/** FST ST(i) (DD /2), FSTP ST(i) (DD /3 and its aliases). */
export function fstSt(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  if (isEmpty(s, 0)) {
    if (!stackFault(s, false)) return 0
  } else take(st(s, 0))
  putSt(s, index(op))
  if (load<u32>(op, OP_EXTRA) != 0xdd || (<u32>load<u8>(op, OP_MODRM) & 0x38) == 0x18) pop(s)
  return 0
}
export function fxch(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  const i = index(op)
  const a = st(s, 0)
  const b = st(s, i)
  const emptyA = isEmpty(s, 0)
  const emptyB = isEmpty(s, i)
  if (emptyA || emptyB) {
    if (!stackFault(s, false)) return 0
    if (emptyA) putSt(s, 0)
    if (emptyB) putSt(s, i)
  }
  const sig = load<u64>(a)
  const se = load<u16>(a, 8)
  store<u64>(a, load<u64>(b))
  store<u16>(a, load<u16>(b, 8), 8)
  store<u64>(b, sig)
  store<u16>(b, se, 8)
  return 0
}
/** FCMOVcc: DA below, equal, below-or-equal, unordered; DB the opposites. */
export function fcmov(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  const i = index(op)
  if (isEmpty(s, 0) || isEmpty(s, i)) {
    if (stackFault(s, false)) putSt(s, 0)
    return 0
  }
  const kind = (<u32>load<u8>(op, OP_MODRM) >> 3) & 3
  const code: u32 = kind == 0 ? 2 : kind == 1 ? 4 : kind == 2 ? 6 : 10
  if (condition(s, code) == (load<u32>(op, OP_EXTRA) == 0xda)) {
    take(st(s, i))
    putSt(s, 0)
  }
  return 0
}
export function ffree(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  setEmpty(s, index(op))
  return 0
}
/** FSTPNCE (D9 /3): FSTP that does not check ST(0). */
export function fstpnce(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  if (!isEmpty(s, 0)) {
    take(st(s, 0))
    putSt(s, index(op))
  }
  pop(s)
  return 0
}
/** FFREEP (DF /0): FFREE and pop. */
export function ffreep(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  setEmpty(s, index(op))
  pop(s)
  return 0
}
/** FNOP leaves its pointers, unlike the control instructions. */
export function fnop(s: usize, op: usize): u32 {
  return enter(s, op) ? 0 : left(s)
}
/** FINCSTP (D9 F7), FDECSTP (D9 F6): no tag changes. */
export function fincstp(s: usize, op: usize): u32 {
  if (!enter(s, op)) return left(s)
  clearC1(s)
  store<u32>(s, (load<u32>(s, CPU_FTOP) + (load<u8>(op, OP_MODRM) == 0xf7 ? 1 : 7)) & 7, CPU_FTOP)
  return 0
}
