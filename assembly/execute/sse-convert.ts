/** SSE/SSE2 conversions (SDM vol 2, CVTxx2xx). Owns no state beyond MXCSR flags (sse-float.ts). */
import { CPU_MXCSR, OP_EXTRA, VCPU_FPU } from '../generated/layout'
import { leaving } from '../memory/access'
import { getRm, isMemory, operandSize, setReg } from './operands'
import { beginSse, finishSse, MXCSR_PE, ordinary32, ordinary64, PLAIN, PLAIN_MASK, safe32 } from './sse-float'
import { enterMmx, left, memory, mmxRm, mmxUsable, put, putMmx, source, sourceOf, sseUsable, xmmReg, xmmRm } from './sse-operands'
import { integerToFloat, narrow, toInteger, widen } from './softfloat-binary'

export function cvtps2pd(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  beginSse(s)
  const r0 = widen(<u64>load<u32>(p))
  const r1 = widen(<u64>load<u32>(p, 4))
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(at, r0)
  store<u64>(at, r1, 8)
  return 0
}
export function cvtpd2ps(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  beginSse(s)
  const r0 = narrow(load<u64>(p))
  const r1 = narrow(load<u64>(p, 8))
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(at, r0 | (r1 << 32))
  store<u64>(at, 0, 8)
  return 0
}
export function cvtss2sd(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  if (ordinary32(load<u32>(p))) {
    store<f64>(xmmReg(s, op), <f64>load<f32>(p))
    return 0
  }
  beginSse(s)
  const r = widen(<u64>load<u32>(p))
  const leave = finishSse(s)
  if (leave == 0) store<u64>(xmmReg(s, op), r)
  return leave
}
export function cvtsd2ss(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  const mxcsr = load<u32>(s, CPU_MXCSR)
  if ((mxcsr & PLAIN_MASK) == PLAIN && ordinary64(load<u64>(p))) {
    const x = load<f64>(p)
    const r = <f32>x
    if (safe32(reinterpret<u32>(r)) && ((mxcsr & MXCSR_PE) != 0 || <f64>r == x)) {
      store<f32>(xmmReg(s, op), r)
      return 0
    }
  }
  beginSse(s)
  const r = narrow(load<u64>(p))
  const leave = finishSse(s)
  if (leave == 0) store<u32>(xmmReg(s, op), <u32>r)
  return leave
}

/** CVTSI2SS, CVTSI2SD. */
export function cvtsi2ss(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return left(s)
  beginSse(s)
  const r = integerToFloat(size == 8 ? <i64>value : <i64>(<i32>value), false)
  const leave = finishSse(s)
  if (leave == 0) store<u32>(xmmReg(s, op), <u32>r)
  return leave
}
export function cvtsi2sd(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return left(s)
  if (size == 4) {
    store<f64>(xmmReg(s, op), <f64>(<i32>value))
    return 0
  }
  beginSse(s)
  const r = integerToFloat(<i64>value, true)
  const leave = finishSse(s)
  if (leave == 0) store<u64>(xmmReg(s, op), r)
  return leave
}
/** CVTTSS2SI 2C, CVTSS2SI 2D. */
export function cvtss2si(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  return toGeneral(s, op, <u64>load<u32>(p), false)
}
export function cvtsd2si(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  const x = load<f64>(p)
  const mxcsr = load<u32>(s, CPU_MXCSR)
  // In range and PE masked, truncating or to nearest: WASM's conversion, and PE when it was not exact.
  if (ordinary64(load<u64>(p)) && Math.abs(x) < 2147483647 && (mxcsr & 0x1000) != 0) {
    const truncate = load<u32>(op, OP_EXTRA) == 0x2c
    if (truncate || (mxcsr & 0x6000) == 0) {
      const r = <i32>(truncate ? x : nearest<f64>(x))
      if (<f64>r != x) store<u32>(s, mxcsr | MXCSR_PE, CPU_MXCSR)
      setReg(s, op, operandSize(op) == 8 ? 8 : 4, <u64>(<i64>r))
      return 0
    }
  }
  return toGeneral(s, op, load<u64>(p), true)
}
function toGeneral(s: usize, op: usize, value: u64, wide: bool): u32 {
  const size = operandSize(op) == 8 ? 8 : 4
  beginSse(s)
  const r = toInteger(value, wide, size << 3, load<u32>(op, OP_EXTRA) == 0x2c)
  const leave = finishSse(s)
  if (leave == 0) setReg(s, op, size, <u64>r)
  return leave
}

export function cvtdq2ps(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const scratch = s + VCPU_FPU
  beginSse(s)
  for (let i: usize = 0; i < 16; i += 4) store<u32>(scratch + i, <u32>integerToFloat(<i64>load<i32>(p + i), false))
  const leave = finishSse(s)
  return leave ? leave : put(s, op, v128.load(scratch))
}
/** CVTPS2DQ (truncate = false), CVTTPS2DQ. */
function ps2dq(s: usize, op: usize, truncate: bool): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const scratch = s + VCPU_FPU
  beginSse(s)
  for (let i: usize = 0; i < 16; i += 4) store<u32>(scratch + i, <u32>toInteger(<u64>load<u32>(p + i), false, 32, truncate))
  const leave = finishSse(s)
  return leave ? leave : put(s, op, v128.load(scratch))
}
export function cvtps2dq(s: usize, op: usize): u32 {
  return ps2dq(s, op, false)
}
export function cvttps2dq(s: usize, op: usize): u32 {
  return ps2dq(s, op, true)
}
export function cvtdq2pd(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  return put(s, op, f64x2.convert_low_i32x4_s(v128.load64_zero(p)))
}
function pd2dq(s: usize, op: usize, truncate: bool): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  beginSse(s)
  const r0 = <u32>toInteger(load<u64>(p), true, 32, truncate)
  const r1 = <u32>toInteger(load<u64>(p, 8), true, 32, truncate)
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(at, <u64>r0 | ((<u64>r1) << 32))
  store<u64>(at, 0, 8)
  return 0
}
export function cvtpd2dq(s: usize, op: usize): u32 {
  return pd2dq(s, op, false)
}
export function cvttpd2dq(s: usize, op: usize): u32 {
  return pd2dq(s, op, true)
}

/** MMX integers to floats: with a memory operand they do not enter MMX state. */
export function cvtpi2ps(s: usize, op: usize): u32 {
  if (!sseUsable(s) || (!isMemory(op) && !mmxUsable(s))) return left(s)
  const p = isMemory(op) ? memory(s, op, 8) : mmxRm(s, op)
  if (!p) return left(s)
  // The reference CPU enters MMX state even when the conversion then signals.
  if (!isMemory(op)) enterMmx(s)
  beginSse(s)
  const r0 = integerToFloat(<i64>load<i32>(p), false)
  const r1 = integerToFloat(<i64>load<i32>(p, 4), false)
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(xmmReg(s, op), r0 | (r1 << 32))
  return 0
}
export function cvtpi2pd(s: usize, op: usize): u32 {
  if (!sseUsable(s) || (!isMemory(op) && !mmxUsable(s))) return left(s)
  const p = isMemory(op) ? memory(s, op, 8) : mmxRm(s, op)
  if (!p) return left(s)
  if (!isMemory(op)) enterMmx(s)
  return put(s, op, f64x2.convert_low_i32x4_s(v128.load64_zero(p)))
}
/** CVTTPS2PI 2C, CVTPS2PI 2D. */
export function cvtps2pi(s: usize, op: usize): u32 {
  if (!sseUsable(s) || !mmxUsable(s)) return left(s)
  const p = isMemory(op) ? memory(s, op, 8) : xmmRm(s, op)
  if (!p) return left(s)
  const truncate = load<u32>(op, OP_EXTRA) == 0x2c
  enterMmx(s)
  beginSse(s)
  const r0 = <u32>toInteger(<u64>load<u32>(p), false, 32, truncate)
  const r1 = <u32>toInteger(<u64>load<u32>(p, 4), false, 32, truncate)
  const leave = finishSse(s)
  if (leave) return leave
  return putMmx(s, op, <u64>r0 | ((<u64>r1) << 32))
}
export function cvtpd2pi(s: usize, op: usize): u32 {
  if (!sseUsable(s) || !mmxUsable(s)) return left(s)
  const p = source(s, op)
  if (!p) return left(s)
  const truncate = load<u32>(op, OP_EXTRA) == 0x2c
  enterMmx(s)
  beginSse(s)
  const r0 = <u32>toInteger(load<u64>(p), true, 32, truncate)
  const r1 = <u32>toInteger(load<u64>(p, 8), true, 32, truncate)
  const leave = finishSse(s)
  if (leave) return leave
  return putMmx(s, op, <u64>r0 | ((<u64>r1) << 32))
}
