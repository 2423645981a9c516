/** Element moves and blends (SDM vol 2, PINSR, PEXTR, INSERTPS, BLEND, MPSADBW, PHMINPOSUW). Owns no state. */
import { CPU_XMM } from '../generated/layout'
import { leaving } from '../memory/access'
import { getRm, isMemory, operandSize, setReg, setRm } from './operands'
import {
  enterMmx,
  first,
  halfUsed,
  left,
  memory,
  mmxReg,
  mmxRm,
  mmxUsable,
  put,
  source,
  sourceLow,
  sseUsable,
  xmmReg,
  xmmRm,
} from './sse-operands'
import { immediate } from './sse-integer'

export function pinsrw(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const value = getRm(s, op, 2)
  if (leaving(s)) return left(s)
  store<u16>(xmmReg(s, op) + ((immediate(op) & 7) << 1), <u16>value)
  return 0
}
export function pinsrwMmx(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  const value = getRm(s, op, 2)
  if (leaving(s)) return left(s)
  enterMmx(s)
  const at = mmxReg(s, op)
  store<u16>(at + ((immediate(op) & 3) << 1), <u16>value)
  store<u16>(at, 0xffff, 8)
  return 0
}
export function pextrw(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  setReg(s, op, 4, <u64>load<u16>(xmmRm(s, op) + ((immediate(op) & 7) << 1)))
  return 0
}
export function pextrwMmx(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  enterMmx(s)
  setReg(s, op, 4, <u64>load<u16>(mmxRm(s, op) + ((immediate(op) & 3) << 1)))
  return 0
}
export function pinsrb(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  // A byte operand of the register form is the low byte, never AH..BH: read a dword there.
  const value = getRm(s, op, isMemory(op) ? 1 : 4)
  if (leaving(s)) return left(s)
  store<u8>(xmmReg(s, op) + (immediate(op) & 15), <u8>value)
  return 0
}
export function pinsrd(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return left(s)
  if (size == 8) store<u64>(xmmReg(s, op) + ((immediate(op) & 1) << 3), value)
  else store<u32>(xmmReg(s, op) + ((immediate(op) & 3) << 2), <u32>value)
  return 0
}
/** Elements narrower than 32 bits are zero-extended in a register and stored as they are in memory. */
function extract(s: usize, op: usize, size: u32, value: u64): u32 {
  return setRm(s, op, isMemory(op) || size == 8 ? size : 4, value)
}
export function pextrb(s: usize, op: usize): u32 {
  return sseUsable(s) ? extract(s, op, 1, <u64>load<u8>(xmmReg(s, op) + (immediate(op) & 15))) : left(s)
}
export function pextrw41(s: usize, op: usize): u32 {
  return sseUsable(s) ? extract(s, op, 2, <u64>load<u16>(xmmReg(s, op) + ((immediate(op) & 7) << 1))) : left(s)
}
export function pextrd(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const at = xmmReg(s, op)
  const n = immediate(op)
  if (operandSize(op) == 8) return extract(s, op, 8, load<u64>(at + ((n & 1) << 3)))
  return extract(s, op, 4, <u64>load<u32>(at + ((n & 3) << 2)))
}
export function extractps(s: usize, op: usize): u32 {
  return sseUsable(s) ? extract(s, op, 4, <u64>load<u32>(xmmReg(s, op) + ((immediate(op) & 3) << 2))) : left(s)
}
export function insertps(s: usize, op: usize): u32 {
  const n = immediate(op)
  const p = sseUsable(s) ? (isMemory(op) ? memory(s, op, 4) : xmmRm(s, op) + ((n >> 6) << 2)) : 0
  if (!p) return left(s)
  const value = load<u32>(p)
  const at = xmmReg(s, op)
  store<u32>(at + (((n >> 4) & 3) << 2), value)
  for (let i: u32 = 0; i < 4; i++) if (((n >> i) & 1) != 0) store<u32>(at + (i << 2), 0)
  return 0
}

export function unpcklpd(s: usize, op: usize): u32 {
  const p = halfUsed(s, op, 0x14) ? sourceLow(s, op) : source(s, op)
  return p ? put(s, op, v128.shuffle<i64>(first(s, op), v128.load(p), 0, 2)) : left(s)
}
export function unpckhpd(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.shuffle<i64>(first(s, op), v128.load(p), 1, 3)) : left(s)
}

export function pblendvb(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.bitselect(v128.load(p), first(s, op), i8x16.shr_s(v128.load(s, CPU_XMM), 7))) : left(s)
}
export function blendvps(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.bitselect(v128.load(p), first(s, op), i32x4.shr_s(v128.load(s, CPU_XMM), 31))) : left(s)
}
export function blendvpd(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.bitselect(v128.load(p), first(s, op), i64x2.shr_s(v128.load(s, CPU_XMM), 63))) : left(s)
}
/** Mask whose element i (of `width` bytes) is all ones where bit i of n is set. */
function spread(n: u32, width: u32): v128 {
  if (width == 8) return i64x2.ne(v128.and(i64x2.splat(n), i64x2(1, 2)), i64x2.splat(0))
  if (width == 4) return i32x4.ne(v128.and(i32x4.splat(n), i32x4(1, 2, 4, 8)), i32x4.splat(0))
  return i16x8.ne(v128.and(i16x8.splat(<i16>n), i16x8(1, 2, 4, 8, 16, 32, 64, 128)), i16x8.splat(0))
}
export function blendps(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.bitselect(v128.load(p), first(s, op), spread(immediate(op), 4))) : left(s)
}
export function blendpd(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.bitselect(v128.load(p), first(s, op), spread(immediate(op), 8))) : left(s)
}
export function pblendw(s: usize, op: usize): u32 {
  const p = source(s, op)
  return p ? put(s, op, v128.bitselect(v128.load(p), first(s, op), spread(immediate(op), 2))) : left(s)
}

export function phminposuw(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  let best: u32 = 0x10000
  let at: u32 = 0
  for (let i: u32 = 0; i < 8; i++) {
    const x = <u32>load<u16>(p + (i << 1))
    if (x < best) {
      best = x
      at = i
    }
  }
  const to = xmmReg(s, op)
  store<u64>(to, <u64>(best | (at << 16)))
  store<u64>(to, 0, 8)
  return 0
}
export function mpsadbw(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const n = immediate(op)
  const b = p + ((n & 3) << 2)
  const at = xmmReg(s, op)
  const a = at + (n & 4)
  let low: u64 = 0
  let high: u64 = 0
  for (let i: u32 = 0; i < 8; i++) {
    let sum: i32 = 0
    for (let k: u32 = 0; k < 4; k++) sum += abs<i32>(<i32>load<u8>(a + i + k) - <i32>load<u8>(b + k))
    if (i < 4) low |= (<u64>sum) << (i << 4)
    else high |= (<u64>sum) << ((i - 4) << 4)
  }
  store<u64>(at, low)
  store<u64>(at, high, 8)
  return 0
}
