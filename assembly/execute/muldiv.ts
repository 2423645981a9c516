/** MUL, IMUL (one operand), DIV, IDIV in all sizes (SDM vol. 2). Owns no state. */
import { CPU_LEAVE, EXC_DE, LEAVE_NONE } from '../generated/layout'
import { AF, CF, OF, getFlags, setArithmetic } from '../cpu/flags'
import { raise } from '../cpu/exceptions'
import { leaving } from '../memory/access'
import { divide128, maskOf, mulHigh, mulHighSigned, signExtend } from './arith'
import { getRm, operandSize } from './operands'

const RDX: usize = 16

/** rDX:rAX = high:low (AX for bytes). */
function setPair(s: usize, shift: u32, high: u64, low: u64): void {
  if (shift == 0) store<u16>(s, <u16>((high << 8) | (low & 0xff)))
  else if (shift == 1) {
    store<u16>(s, <u16>low)
    store<u16>(s, <u16>high, RDX)
  } else if (shift == 2) {
    store<u64>(s, low & 0xffff_ffff)
    store<u64>(s, high & 0xffff_ffff, RDX)
  } else {
    store<u64>(s, low)
    store<u64>(s, high, RDX)
  }
}

/** SF ZF AF PF are undefined: unchanged, as on Zen 4. */
function productFlags(s: usize, wide: bool): void {
  setArithmetic(s, (<u32>getFlags(s) & ~(CF | OF)) | (wide ? CF | OF : 0))
}

export function mul(s: usize, op: usize): u32 {
  const shift = <u32>ctz(operandSize(op))
  const b = getRm(s, op, 1 << shift)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const a = load<u64>(s) & maskOf(shift)
  const low = a * b
  const high = shift == 3 ? mulHigh(a, b) : low >> (8 << shift)
  setPair(s, shift, high, low)
  productFlags(s, high != 0)
  return LEAVE_NONE
}

export function imul(s: usize, op: usize): u32 {
  const shift = <u32>ctz(operandSize(op))
  const b = signExtend(getRm(s, op, 1 << shift), shift)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const a = signExtend(load<u64>(s), shift)
  const low = a * b
  const high: i64 = shift == 3 ? mulHighSigned(a, b) : low >> (8 << shift)
  setPair(s, shift, <u64>high, <u64>low)
  const wide = shift == 3 ? high != low >> 63 : signExtend(<u64>low, shift) != low
  productFlags(s, wide)
  return LEAVE_NONE
}

function dividendHigh(s: usize, shift: u32): u64 {
  return shift == 0 ? <u64>load<u8>(s, 1) : load<u64>(s, RDX) & maskOf(shift)
}

/** Flags of DIV and IDIV are undefined; as on Zen 4: AF set, SF ZF PF cleared, CF and OF unchanged. */
function quotientFlags(s: usize): void {
  setArithmetic(s, (<u32>getFlags(s) & (CF | OF)) | AF)
}

export function div(s: usize, op: usize): u32 {
  const shift = <u32>ctz(operandSize(op))
  const d = getRm(s, op, 1 << shift)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const high = dividendHigh(s, shift)
  if (high >= d) return raise(s, EXC_DE)
  const low = load<u64>(s) & maskOf(shift)
  let q: u64
  let r: u64
  if (shift == 3) {
    q = divide128(high, low, d)
    r = low - q * d
  } else {
    const n = (high << (8 << shift)) | low
    q = n / d
    r = n % d
  }
  setPair(s, shift, r, q)
  quotientFlags(s)
  return LEAVE_NONE
}

export function idiv(s: usize, op: usize): u32 {
  const shift = <u32>ctz(operandSize(op))
  const d = signExtend(getRm(s, op, 1 << shift), shift)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  if (d == 0) return raise(s, EXC_DE)
  let high = dividendHigh(s, shift)
  let low = load<u64>(s) & maskOf(shift)
  if (shift < 3) {
    const n = signExtend((high << (8 << shift)) | low, shift + 1)
    if (shift == 2 && n == i64.MIN_VALUE && d == -1) return raise(s, EXC_DE)
    const q = n / d
    if (signExtend(<u64>q, shift) != q) return raise(s, EXC_DE)
    setPair(s, shift, <u64>(n % d), <u64>q)
    quotientFlags(s)
    return LEAVE_NONE
  }
  const negative = <i64>high < 0
  if (negative) {
    low = 0 - low
    high = ~high + (low == 0 ? 1 : 0)
  }
  const m: u64 = d < 0 ? 0 - <u64>d : <u64>d
  if (high >= m) return raise(s, EXC_DE)
  let q = divide128(high, low, m)
  let r = low - q * m
  const opposite = negative != d < 0
  if (opposite ? q > 0x8000_0000_0000_0000 : q > 0x7fff_ffff_ffff_ffff) return raise(s, EXC_DE)
  if (opposite) q = 0 - q
  if (negative) r = 0 - r
  setPair(s, 3, r, q)
  quotientFlags(s)
  return LEAVE_NONE
}
