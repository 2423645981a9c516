/** SSE compares, ROUNDxx, dot products and estimates (SDM vol 2, CMPPS, COMISS, ROUNDPS, DPPS, RCPPS). Owns no state. */
import { OP_EXTRA, VCPU_FPU } from '../generated/layout'
import { setArithmetic } from '../cpu/flags'
import { left, put, source, sourceOf, xmmReg } from './sse-operands'
import { immediate } from './sse-integer'
import { beginSse, finishSse, ordinary32, ordinary64, put4 } from './sse-float'
import { add, compare, mul, roundIntegral } from './softfloat-binary'

/** CMPxx predicates: LT, LE, NLT and NLE signal on QNaN (SDM vol 2, table 3-1). */
function predicate(a: u64, b: u64, wide: bool, n: u32): bool {
  const o = compare(a, b, wide, (n & 3) == 1 || (n & 3) == 2)
  const kind = n & 3
  const r = kind == 0 ? o == 0 : kind == 1 ? o == -1 : kind == 2 ? o <= 0 : o == 2
  return r != ((n & 4) != 0)
}

export function cmpSd(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  beginSse(s)
  const r = predicate(load<u64>(at), load<u64>(p), true, immediate(op) & 7)
  const leave = finishSse(s)
  if (leave == 0) store<u64>(at, r ? ~(<u64>0) : 0)
  return leave
}

export function cmpSs(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  beginSse(s)
  const r = predicate(<u64>load<u32>(at), <u64>load<u32>(p), false, immediate(op) & 7)
  const leave = finishSse(s)
  if (leave == 0) store<u32>(at, r ? ~(<u32>0) : 0)
  return leave
}

export function cmpPd(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const n = immediate(op) & 7
  beginSse(s)
  const r0 = predicate(load<u64>(at), load<u64>(p), true, n)
  const r1 = predicate(load<u64>(at, 8), load<u64>(p, 8), true, n)
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(at, r0 ? ~(<u64>0) : 0)
  store<u64>(at, r1 ? ~(<u64>0) : 0, 8)
  return 0
}

export function cmpPs(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const n = immediate(op) & 7
  beginSse(s)
  const scratch = s + VCPU_FPU
  for (let i: usize = 0; i < 16; i += 4) {
    store<u32>(scratch + i, predicate(<u64>load<u32>(at + i), <u64>load<u32>(p + i), false, n) ? ~(<u32>0) : 0)
  }
  const leave = finishSse(s)
  if (leave == 0) v128.store(at, v128.load(scratch))
  return leave
}

/** Ordinary or zero: compares without a flag. */
function comparable64(x: u64): bool {
  return ordinary64(x) || x << 1 == 0
}

function comparable32(x: u32): bool {
  return ordinary32(x) || x << 1 == 0
}

/** COMISx (2F) and UCOMISx (2E): ZF PF CF from the order, OF SF AF cleared. */
function comis(s: usize, op: usize, a: u64, b: u64, wide: bool): u32 {
  beginSse(s)
  const o = compare(a, b, wide, load<u32>(op, OP_EXTRA) == 0x2f)
  const leave = finishSse(s)
  if (leave == 0) setArithmetic(s, o == 2 ? 0x45 : o == 0 ? 0x40 : o < 0 ? 1 : 0)
  return leave
}

export function comisd(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  const a = load<u64>(xmmReg(s, op))
  const b = load<u64>(p)
  if (!comparable64(a) || !comparable64(b)) return comis(s, op, a, b, true)
  const x = reinterpret<f64>(a)
  const y = reinterpret<f64>(b)
  setArithmetic(s, x == y ? 0x40 : x < y ? 1 : 0)
  return 0
}

export function comiss(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  const a = load<u32>(xmmReg(s, op))
  const b = load<u32>(p)
  if (!comparable32(a) || !comparable32(b)) return comis(s, op, <u64>a, <u64>b, false)
  const x = reinterpret<f32>(a)
  const y = reinterpret<f32>(b)
  setArithmetic(s, x == y ? 0x40 : x < y ? 1 : 0)
  return 0
}

/** ROUNDPS 08, ROUNDPD 09, ROUNDSS 0A, ROUNDSD 0B. */
export function roundFloats(s: usize, op: usize): u32 {
  const kind = load<u32>(op, OP_EXTRA)
  const p = kind <= 9 ? source(s, op) : sourceOf(s, op, kind == 10 ? 4 : 8)
  if (!p) return left(s)
  const wide = (kind & 1) != 0
  const n = kind == 8 ? 4 : kind == 9 ? 2 : 1
  const scratch = s + VCPU_FPU
  const at = xmmReg(s, op)
  v128.store(scratch, v128.load(at))
  beginSse(s)
  for (let i = 0; i < n; i++) {
    if (wide) store<u64>(scratch + (i << 3), roundIntegral(load<u64>(p + (i << 3)), true, immediate(op)))
    else store<u32>(scratch + (i << 2), <u32>roundIntegral(<u64>load<u32>(p + (i << 2)), false, immediate(op)))
  }
  const leave = finishSse(s)
  return leave ? leave : put(s, op, v128.load(scratch))
}

/** DPPS 40 and DPPD 41: products, then sums in pairs; each step may signal. */
export function dotProduct(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const n = immediate(op)
  const scratch = s + VCPU_FPU
  if (load<u32>(op, OP_EXTRA) == 0x41) {
    beginSse(s)
    const t0 = (n & 16) != 0 ? mul(load<u64>(at), load<u64>(p), true) : 0
    const t1 = (n & 32) != 0 ? mul(load<u64>(at, 8), load<u64>(p, 8), true) : 0
    let leave = finishSse(s)
    if (leave) return leave
    beginSse(s)
    const sum = add(t0, t1, true, 0)
    leave = finishSse(s)
    if (leave) return leave
    store<u64>(at, (n & 1) != 0 ? sum : 0)
    store<u64>(at, (n & 2) != 0 ? sum : 0, 8)
    return 0
  }
  beginSse(s)
  for (let i: u32 = 0; i < 4; i++) {
    const at4 = i << 2
    store<u32>(scratch + at4, ((n >> (4 + i)) & 1) != 0 ? <u32>mul(<u64>load<u32>(at + at4), <u64>load<u32>(p + at4), false) : 0)
  }
  let leave = finishSse(s)
  if (leave) return leave
  beginSse(s)
  const low = add(<u64>load<u32>(scratch), <u64>load<u32>(scratch, 4), false, 0)
  const high = add(<u64>load<u32>(scratch, 8), <u64>load<u32>(scratch, 12), false, 0)
  leave = finishSse(s)
  if (leave) return leave
  beginSse(s)
  const sum = <u32>add(low, high, false, 0)
  leave = finishSse(s)
  if (leave) return leave
  return put4(at, (n & 1) != 0 ? sum : 0, (n & 2) != 0 ? sum : 0, (n & 4) != 0 ? sum : 0, (n & 8) != 0 ? sum : 0)
}

/** RCPSS/RSQRTSS: the manual bounds the relative error by 1.5 * 2^-12; no flags. Denormals count as zeros. */
function estimate(x: u32, root: bool): u32 {
  const sign = x & 0x80000000
  const magnitude = x & 0x7fffffff
  if (magnitude > 0x7f800000) return x | 0x400000
  if (magnitude < 0x800000) return sign | 0x7f800000
  if (root && sign != 0) return 0xffc00000
  if (magnitude == 0x7f800000) return sign
  const f = <f64>reinterpret<f32>(x)
  const r = reinterpret<u32>(<f32>(1 / (root ? Math.sqrt(f) : f)))
  return (r & 0x7fffffff) < 0x800000 ? sign : (r + 0x400) & 0xfffff800
}

export function estimatePs(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const root = load<u32>(op, OP_EXTRA) == 0x52
  return put4(
    xmmReg(s, op),
    estimate(load<u32>(p), root),
    estimate(load<u32>(p, 4), root),
    estimate(load<u32>(p, 8), root),
    estimate(load<u32>(p, 12), root),
  )
}

export function estimateSs(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  store<u32>(xmmReg(s, op), estimate(load<u32>(p), load<u32>(op, OP_EXTRA) == 0x52))
  return 0
}
