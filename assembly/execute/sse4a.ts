/** AMD's SSE4a (APM vol 4, EXTRQ, INSERTQ, MOVNTSD, MOVNTSS). Owns no state. */
import { EXC_UD, OP_IMM } from '../generated/layout'
import { raise } from '../cpu/exceptions'
import { intelCompatible } from '../cpu/features'
import { left, sseUsable, storeMemory, xmmReg, xmmRm } from './sse-operands'

/** #UD on Intel; then as any SSE instruction. */
function usable(s: usize): bool {
  if (!intelCompatible(s)) return sseUsable(s)
  raise(s, EXC_UD)
  return false
}
/** APM vol 4 leaves bits 127:64 undefined; the reference CPU clears them. */
function putLow(at: usize, value: u64): u32 {
  store<u64>(at, value)
  store<u64>(at, 0, 8)
  return 0
}
/** Mask of a field; length 0 means 64. */
function fieldMask(length: u32): u64 {
  return length == 0 ? ~(<u64>0) : ((<u64>1) << length) - 1
}
function extractField(at: usize, length: u32, index: u32): u32 {
  return putLow(at, (load<u64>(at) >> index) & fieldMask(length))
}
function insertField(at: usize, value: u64, length: u32, index: u32): u32 {
  const mask = fieldMask(length)
  return putLow(at, (load<u64>(at) & ~(mask << index)) | ((value & mask) << index))
}
export function extrqImmediate(s: usize, op: usize): u32 {
  if (!usable(s)) return left(s)
  return extractField(xmmRm(s, op), <u32>load<u8>(op, OP_IMM) & 63, <u32>load<u8>(op, OP_IMM + 1) & 63)
}
export function extrq(s: usize, op: usize): u32 {
  if (!usable(s)) return left(s)
  const control = xmmRm(s, op)
  return extractField(xmmReg(s, op), <u32>load<u8>(control) & 63, <u32>load<u8>(control, 1) & 63)
}
export function insertqImmediate(s: usize, op: usize): u32 {
  if (!usable(s)) return left(s)
  return insertField(xmmReg(s, op), load<u64>(xmmRm(s, op)), <u32>load<u8>(op, OP_IMM) & 63, <u32>load<u8>(op, OP_IMM + 1) & 63)
}
export function insertq(s: usize, op: usize): u32 {
  if (!usable(s)) return left(s)
  const from = xmmRm(s, op)
  return insertField(xmmReg(s, op), load<u64>(from), <u32>load<u8>(from, 8) & 63, <u32>load<u8>(from, 9) & 63)
}
export function movntsd(s: usize, op: usize): u32 {
  return usable(s) ? storeMemory(s, op, xmmReg(s, op), 8) : left(s)
}
export function movntss(s: usize, op: usize): u32 {
  return usable(s) ? storeMemory(s, op, xmmReg(s, op), 4) : left(s)
}
