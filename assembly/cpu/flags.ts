/**
 * RFLAGS. Arithmetic flags are lazy: the last flag-setting operation leaves its class, width,
 * result and operands in the CPU structure, and each flag is computed when it is asked for.
 * Owns CPU_FLAG_*, CPU_EFLAGS. (SDM vol 1, 3.4.3; APM vol 1, 3.1.4)
 */
import {
  CPU_EFLAGS,
  CPU_FLAG_A,
  CPU_FLAG_B,
  CPU_FLAG_KIND,
  CPU_FLAG_RESULT,
  CPU_FLAG_SHIFT,
  FLAG_ADD,
  FLAG_DEC,
  FLAG_EAGER,
  FLAG_INC,
  FLAG_LOGIC,
  FLAG_RESULT_ONLY,
  FLAG_SUB,
} from '../generated/layout'

export const CF: u32 = 1
export const PF: u32 = 4
export const AF: u32 = 0x10
export const ZF: u32 = 0x40
export const SF: u32 = 0x80
export const TF: u32 = 0x100
export const IF: u32 = 0x200
export const DF: u32 = 0x400
export const OF: u32 = 0x800
const ARITHMETIC: u32 = 0x8d5

export function carry(s: usize): u32 {
  const kind = load<u32>(s, CPU_FLAG_KIND)
  if (kind == FLAG_SUB) return u32(load<u64>(s, CPU_FLAG_A) < load<u64>(s, CPU_FLAG_B))
  if (kind == FLAG_LOGIC) return 0
  if (kind == FLAG_ADD) return u32(load<u64>(s, CPU_FLAG_RESULT) < load<u64>(s, CPU_FLAG_A))
  return kept(s, kind) & CF
}

/** CF, OF and AF where they are kept as bits: EFLAGS if eager, else FLAG_A. */
function kept(s: usize, kind: u32): u32 {
  return kind == FLAG_EAGER ? <u32>load<u64>(s, CPU_EFLAGS) : <u32>load<u64>(s, CPU_FLAG_A)
}

function zero(s: usize): bool {
  if (load<u32>(s, CPU_FLAG_KIND) == FLAG_EAGER) return (<u32>load<u64>(s, CPU_EFLAGS) & ZF) != 0
  return load<u64>(s, CPU_FLAG_RESULT) == 0
}

function sign(s: usize): bool {
  if (load<u32>(s, CPU_FLAG_KIND) == FLAG_EAGER) return (<u32>load<u64>(s, CPU_EFLAGS) & SF) != 0
  return <i64>(load<u64>(s, CPU_FLAG_RESULT) << (<u64>load<u32>(s, CPU_FLAG_SHIFT))) < 0
}

function parity(s: usize): bool {
  if (load<u32>(s, CPU_FLAG_KIND) == FLAG_EAGER) return (<u32>load<u64>(s, CPU_EFLAGS) & PF) != 0
  return (popcnt<u32>(<u32>load<u64>(s, CPU_FLAG_RESULT) & 0xff) & 1) == 0
}

export function overflow(s: usize): bool {
  const kind = load<u32>(s, CPU_FLAG_KIND)
  if (kind == FLAG_LOGIC) return false
  if (kind == FLAG_EAGER || kind == FLAG_RESULT_ONLY) return (kept(s, kind) & OF) != 0
  const shift = <u64>load<u32>(s, CPU_FLAG_SHIFT)
  const r = load<u64>(s, CPU_FLAG_RESULT)
  if (kind == FLAG_INC) return r << shift == (<u64>1) << 63
  if (kind == FLAG_DEC) return r == (((<u64>1) << 63) - 1) >> shift
  const a = load<u64>(s, CPU_FLAG_A)
  const b = load<u64>(s, CPU_FLAG_B)
  const v = kind == FLAG_SUB ? (a ^ b) & (a ^ r) : (a ^ r) & (b ^ r)
  return <i64>(v << shift) < 0
}

function adjust(s: usize): u32 {
  const kind = load<u32>(s, CPU_FLAG_KIND)
  if (kind == FLAG_LOGIC) return 0
  if (kind == FLAG_EAGER || kind == FLAG_RESULT_ONLY) return kept(s, kind) & AF
  const r = <u32>load<u64>(s, CPU_FLAG_RESULT)
  if (kind == FLAG_INC) return (r & 15) == 0 ? AF : 0
  if (kind == FLAG_DEC) return (r & 15) == 15 ? AF : 0
  return (<u32>load<u64>(s, CPU_FLAG_A) ^ <u32>load<u64>(s, CPU_FLAG_B) ^ r) & AF
}

/** CF PF AF ZF SF OF in their RFLAGS positions. */
export function arithmetic(s: usize): u32 {
  if (load<u32>(s, CPU_FLAG_KIND) == FLAG_EAGER) return <u32>load<u64>(s, CPU_EFLAGS) & ARITHMETIC
  return carry(s) | adjust(s) | (parity(s) ? PF : 0) | (zero(s) ? ZF : 0) | (sign(s) ? SF : 0) | (overflow(s) ? OF : 0)
}

/** The bits of RFLAGS that are never lazy: TF, IF, DF, IOPL and above. */
export function controlFlags(s: usize): u64 {
  return load<u64>(s, CPU_EFLAGS) & ~(<u64>ARITHMETIC)
}

/** RFLAGS with all lazy bits computed. */
export function getFlags(s: usize): u64 {
  return (load<u64>(s, CPU_EFLAGS) & ~(<u64>ARITHMETIC)) | <u64>arithmetic(s) | 2
}

/** Replaces RFLAGS whole (bit 1 forced); the caller has masked what may change and calls updateMode if AC, VM or TF changed. */
export function setFlags(s: usize, value: u64): void {
  store<u64>(s, value | 2, CPU_EFLAGS)
  store<u32>(s, FLAG_EAGER, CPU_FLAG_KIND)
}

/** Replaces CF PF AF ZF SF OF only. */
export function setArithmetic(s: usize, bits: u32): void {
  store<u64>(s, (load<u64>(s, CPU_EFLAGS) & ~(<u64>ARITHMETIC)) | <u64>(bits & ARITHMETIC) | 2, CPU_EFLAGS)
  store<u32>(s, FLAG_EAGER, CPU_FLAG_KIND)
}

/** ZF SF PF from `result` (width 64 - shift); CF OF AF as given. */
export function setResult(s: usize, result: u64, shift: u32, cfOfAf: u32): void {
  store<u64>(s, <u64>FLAG_RESULT_ONLY | ((<u64>shift) << 32), CPU_FLAG_KIND)
  store<u64>(s, result, CPU_FLAG_RESULT)
  store<u64>(s, <u64>cfOfAf, CPU_FLAG_A)
}

/** Condition code 0..15 of Jcc, SETcc, CMOVcc (SDM vol 1, appendix B). */
export function condition(s: usize, code: u32): bool {
  let r: bool
  const kind = load<u32>(s, CPU_FLAG_KIND)
  switch (code >> 1) {
    case 0:
      r = overflow(s)
      break
    case 1:
      r = carry(s) != 0
      break
    case 2:
      r = zero(s)
      break
    case 3:
      r = kind == FLAG_SUB ? load<u64>(s, CPU_FLAG_A) <= load<u64>(s, CPU_FLAG_B) : carry(s) != 0 || zero(s)
      break
    case 4:
      r = sign(s)
      break
    case 5:
      r = parity(s)
      break
    case 6:
      r = less(s)
      break
    default:
      r = zero(s) || less(s)
      break
  }
  return (code & 1) != 0 ? !r : r
}

/** SF != OF. */
function less(s: usize): bool {
  if (load<u32>(s, CPU_FLAG_KIND) == FLAG_SUB) {
    const shift = <u64>load<u32>(s, CPU_FLAG_SHIFT)
    return <i64>(load<u64>(s, CPU_FLAG_B) << shift) > <i64>(load<u64>(s, CPU_FLAG_A) << shift)
  }
  return sign(s) != overflow(s)
}

/** Rotates: CF and OF as given, the others stay. */
export function rotateFlags(s: usize, cfOf: u32): void {
  const kind = load<u32>(s, CPU_FLAG_KIND)
  if (kind == FLAG_EAGER) {
    store<u64>(s, (load<u64>(s, CPU_EFLAGS) & ~(<u64>(CF | OF))) | <u64>cfOf, CPU_EFLAGS)
    return
  }
  store<u64>(s, <u64>(adjust(s) | cfOf), CPU_FLAG_A)
  store<u32>(s, FLAG_RESULT_ONLY, CPU_FLAG_KIND)
}
