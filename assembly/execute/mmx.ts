/**
 * MMX moves (SDM vol 2; vol 1, chapter 9). MMX registers are the significands of the physical x87 registers.
 * Owns no state.
 */
import { leaving } from '../memory/access'
import { getRm, isMemory, operandSize, setReg, setRm } from './operands'
import { enterMmx, left, mmxReg, mmxRm, mmxSource, mmxUsable, putMmx, sseUsable, stored, storeMemory, xmmReg, xmmRm } from './sse-operands'
import { storeMasked } from './sse-move'

export function movdToMmx(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  const value = getRm(s, op, operandSize(op))
  if (leaving(s)) return left(s)
  enterMmx(s)
  return putMmx(s, op, value)
}
export function movdFromMmx(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  const size = operandSize(op)
  const value = load<u64>(mmxReg(s, op))
  const leave = setRm(s, op, size, size == 8 ? value : value & 0xffffffff)
  if (stored(leave)) enterMmx(s)
  return leave
}
export function movqMmx(s: usize, op: usize): u32 {
  const p = mmxSource(s, op, 8)
  return p ? putMmx(s, op, load<u64>(p)) : left(s)
}
export function movqMmxStore(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  if (isMemory(op)) {
    const leave = storeMemory(s, op, mmxReg(s, op), 8)
    if (stored(leave)) enterMmx(s)
    return leave
  }
  enterMmx(s)
  const to = mmxRm(s, op)
  store<u64>(to, load<u64>(mmxReg(s, op)))
  store<u16>(to, 0xffff, 8)
  return 0
}
export function movq2dq(s: usize, op: usize): u32 {
  if (!sseUsable(s) || !mmxUsable(s)) return left(s)
  enterMmx(s)
  const at = xmmReg(s, op)
  store<u64>(at, load<u64>(mmxRm(s, op)))
  store<u64>(at, 0, 8)
  return 0
}
export function movdq2q(s: usize, op: usize): u32 {
  if (!sseUsable(s) || !mmxUsable(s)) return left(s)
  enterMmx(s)
  return putMmx(s, op, load<u64>(xmmRm(s, op)))
}
export function pmovmskbMmx(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  enterMmx(s)
  setReg(s, op, 4, <u64>(i8x16.bitmask(v128.load64_zero(mmxRm(s, op))) & 0xff))
  return 0
}
export function maskmovq(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  // Also where the store faults (measured on Zen 4).
  enterMmx(s)
  return storeMasked(s, op, mmxReg(s, op), mmxRm(s, op), 8)
}
