/** SSE4.2 string compares PCMPESTRM 60, PCMPESTRI 61, PCMPISTRM 62, PCMPISTRI 63 (SDM vol 2, 4.1). Owns no state. */
import { CPU_GPR, CPU_XMM, OP_EXTRA } from '../generated/layout'
import { setArithmetic } from '../cpu/flags'
import { operandSize } from './operands'
import { left, sourceOf, xmmReg } from './sse-operands'
import { immediate } from './sse-integer'

/** Element i, sign- or zero-extended as imm bits 1:0 say. */
function element(p: usize, i: u32, format: u32): i32 {
  switch (format) {
    case 0:
      return <i32>load<u8>(p + i)
    case 1:
      return <i32>load<u16>(p + (i << 1))
    case 2:
      return <i32>load<i8>(p + i)
    default:
      return <i32>load<i16>(p + (i << 1))
  }
}
function implicitLength(p: usize, n: u32, format: u32): u32 {
  let i: u32 = 0
  while (i < n && element(p, i, format) != 0) i++
  return i
}
/** |EAX| or |RAX| (EDX, RDX), at most n. */
function explicitLength(value: i64, n: u32): u32 {
  const m = value < 0 ? 0 - <u64>value : <u64>value
  return m > <u64>n ? n : <u32>m
}

/** IntRes1: one bit for each element of b. */
function aggregate(kind: u32, a: usize, la: u32, b: usize, lb: u32, n: u32, format: u32): u32 {
  let result: u32 = 0
  for (let j: u32 = 0; j < n; j++) {
    let hit = false
    if (kind == 2) hit = j < la && j < lb ? element(a, j, format) == element(b, j, format) : j >= la && j >= lb
    else if (kind == 3) {
      hit = true
      for (let i: u32 = 0; i + j < n && i < la && hit; i++) hit = i + j < lb && element(a, i, format) == element(b, i + j, format)
    } else if (j < lb) {
      const x = element(b, j, format)
      if (kind == 0) for (let i: u32 = 0; i < la && !hit; i++) hit = element(a, i, format) == x
      else for (let i: u32 = 0; i + 1 < la && !hit; i += 2) hit = element(a, i, format) <= x && x <= element(a, i + 1, format)
    }
    if (hit) result |= 1 << j
  }
  return result
}

export function pcmpstr(s: usize, op: usize): u32 {
  const b = sourceOf(s, op, 16)
  if (!b) return left(s)
  const a = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const control = immediate(op)
  const format = control & 3
  const n: u32 = (format & 1) != 0 ? 8 : 16
  let la: u32
  let lb: u32
  if (opcode <= 0x61) {
    const wide = operandSize(op) == 8
    la = explicitLength(wide ? load<i64>(s, CPU_GPR) : <i64>load<i32>(s, CPU_GPR), n)
    lb = explicitLength(wide ? load<i64>(s, CPU_GPR + 16) : <i64>load<i32>(s, CPU_GPR + 16), n)
  } else {
    la = implicitLength(a, n, format)
    lb = implicitLength(b, n, format)
  }
  const all: u32 = (1 << n) - 1
  let result = aggregate((control >> 2) & 3, a, la, b, lb, n, format)
  const polarity = (control >> 4) & 3
  if (polarity == 1) result ^= all
  else if (polarity == 3) result ^= (1 << lb) - 1
  setArithmetic(s, u32(result != 0) | (lb < n ? 0x40 : 0) | (la < n ? 0x80 : 0) | ((result & 1) << 11))
  if ((opcode & 1) != 0) {
    const index = result == 0 ? n : (control & 0x40) != 0 ? 31 - clz<u32>(result) : ctz<u32>(result)
    store<u64>(s, <u64>index, CPU_GPR + 8)
    return 0
  }
  const at = s + CPU_XMM
  if ((control & 0x40) == 0) {
    store<u64>(at, <u64>result)
    store<u64>(at, 0, 8)
    return 0
  }
  for (let i: u32 = 0; i < n; i++) {
    const bit = (result >> i) & 1
    if (n == 16) store<u8>(at + i, <u8>(0 - bit))
    else store<u16>(at + (i << 1), <u16>(0 - bit))
  }
  return 0
}
