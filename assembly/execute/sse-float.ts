/**
 * SSE/SSE2/SSE3 arithmetic and compares (SDM vol 1, 10.4, 11.4; vol 2). WASM floats serve while every operand and result is an
 * ordinary number, rounding is to nearest, all exceptions are masked and PE is known; everything else goes to softfloat.
 * Owns CPU_MXCSR's exception flags.
 */
import { CPU_CR4, CPU_MXCSR, EXC_UD, EXC_XM, OP_EXTRA } from '../generated/layout'
import { CR4_OSXMMEXCPT } from '../generated/registers'
import { raise } from '../cpu/exceptions'
import { left, source, sourceOf, xmmReg } from './sse-operands'
import { FLAGS, begin } from './softfloat'
import { add, div, minmax, mul, sqrt } from './softfloat-binary'

const MXCSR_DAZ: u32 = 0x40

const MXCSR_FTZ: u32 = 0x8000

/** All exceptions masked, nearest: what WASM's floats do, apart from flags. */
export const PLAIN_MASK: u32 = 0x7f80

export const PLAIN: u32 = 0x1f80

export const MXCSR_PE: u32 = 0x20

export function beginSse(s: usize): void {
  const m = load<u32>(s, CPU_MXCSR)
  begin((m >> 13) & 3, (m >> 7) & 0x3f, (m & MXCSR_FTZ) != 0, (m & MXCSR_DAZ) != 0)
}

/** Flags into MXCSR; #XM (or #UD) when one is unmasked: then nothing else may be written (SDM vol 1, 11.5.2-3). */
export function finishSse(s: usize): u32 {
  const mxcsr = load<u32>(s, CPU_MXCSR)
  let found = FLAGS
  const unmasked = found & ~(mxcsr >> 7) & 0x3f
  // A pre-computation exception (IE, DE, ZE) ends the instruction before rounding.
  if ((unmasked & 7) != 0) found &= 7
  store<u32>(s, mxcsr | found, CPU_MXCSR)
  if (unmasked == 0) return 0
  return raise(s, (load<u64>(s, CPU_CR4) & CR4_OSXMMEXCPT) != 0 ? EXC_XM : EXC_UD)
}

function arithmetic(opcode: u32, a: u64, b: u64, wide: bool): u64 {
  switch (opcode) {
    case 0x51:
      return sqrt(b, wide)
    case 0x58:
      return add(a, b, wide, 0)
    case 0x59:
      return mul(a, b, wide)
    case 0x5c:
      return add(a, b, wide, 1)
    case 0x5d:
      return minmax(a, b, wide, false)
    case 0x5e:
      return div(a, b, wide)
    default:
      return minmax(a, b, wide, true)
  }
}

export function ordinary64(x: u64): bool {
  return (<u32>(x >> 52) & 0x7ff) - 1 < 0x7fe
}

export function ordinary32(x: u32): bool {
  return ((x >> 23) & 0xff) - 1 < 0xfe
}

/** Results next to the underflow threshold are left to softfloat as well. */
function safe64(x: u64): bool {
  return (<u32>(x >> 52) & 0x7ff) - 2 < 0x7fd
}

export function safe32(x: u32): bool {
  return ((x >> 23) & 0xff) - 2 < 0xfd
}

let FAST: u64 = 0

/** Tries the WASM way; FAST has the result. */
function fast64(mxcsr: u32, opcode: u32, a: u64, b: u64): bool {
  if ((mxcsr & PLAIN_MASK) != PLAIN || !ordinary64(b)) return false
  const y = reinterpret<f64>(b)
  const known = (mxcsr & MXCSR_PE) != 0
  let r: f64
  if (opcode == 0x51) {
    if (!known || <i64>b < 0) return false
    r = sqrt64(y)
  } else {
    if (!ordinary64(a)) return false
    const x = reinterpret<f64>(a)
    switch (opcode) {
      case 0x58:
      case 0x5c: {
        const z = opcode == 0x58 ? y : -y
        r = x + z
        if (!known) {
          // Knuth's exact error of a sum.
          const t = r - x
          if (x - (r - t) + (z - t) != 0) return false
        }
        break
      }
      case 0x59: {
        if (!known) return false
        r = x * y
        break
      }
      case 0x5e: {
        if (!known) return false
        r = x / y
        break
      }
      case 0x5d: {
        FAST = x < y ? a : b
        return true
      }
      default: {
        FAST = x > y ? a : b
        return true
      }
    }
  }
  FAST = reinterpret<u64>(r)
  return safe64(FAST)
}

function sqrt64(x: f64): f64 {
  return Math.sqrt(x)
}

function fast32(mxcsr: u32, opcode: u32, a: u32, b: u32): bool {
  if ((mxcsr & PLAIN_MASK) != PLAIN || !ordinary32(b)) return false
  const y = reinterpret<f32>(b)
  const known = (mxcsr & MXCSR_PE) != 0
  let r: f32
  if (opcode == 0x51) {
    if (<i32>b < 0) return false
    r = Mathf.sqrt(y)
    if (!known && <f64>r * <f64>r != <f64>y) return false
  } else {
    if (!ordinary32(a)) return false
    const x = reinterpret<f32>(a)
    switch (opcode) {
      case 0x58:
      case 0x5c: {
        const z = opcode == 0x58 ? y : -y
        r = x + z
        if (!known) {
          const t = r - x
          if (x - (r - t) + (z - t) != 0) return false
        }
        break
      }
      case 0x59: {
        r = x * y
        if (!known && <f64>r != <f64>x * <f64>y) return false
        break
      }
      case 0x5e: {
        r = x / y
        if (!known && <f64>r * <f64>y != <f64>x) return false
        break
      }
      case 0x5d: {
        FAST = <u64>(x < y ? a : b)
        return true
      }
      default: {
        FAST = <u64>(x > y ? a : b)
        return true
      }
    }
  }
  FAST = <u64>reinterpret<u32>(r)
  return safe32(<u32>FAST)
}

/** One lane by the cheapest exact way; softfloat's flags accumulate in FLAGS. */
function lane64(mxcsr: u32, opcode: u32, a: u64, b: u64): u64 {
  return fast64(mxcsr, opcode, a, b) ? FAST : arithmetic(opcode, a, b, true)
}

function lane32(mxcsr: u32, opcode: u32, a: u32, b: u32): u32 {
  return fast32(mxcsr, opcode, a, b) ? <u32>FAST : <u32>arithmetic(opcode, <u64>a, <u64>b, false)
}

export function floatSd(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const b = load<u64>(p)
  if (fast64(load<u32>(s, CPU_MXCSR), opcode, load<u64>(at), b)) {
    store<u64>(at, FAST)
    return 0
  }
  beginSse(s)
  const r = arithmetic(opcode, load<u64>(at), b, true)
  const leave = finishSse(s)
  if (leave == 0) store<u64>(at, r)
  return leave
}

export function floatSs(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const b = load<u32>(p)
  if (fast32(load<u32>(s, CPU_MXCSR), opcode, load<u32>(at), b)) {
    store<u32>(at, <u32>FAST)
    return 0
  }
  beginSse(s)
  const r = arithmetic(opcode, <u64>load<u32>(at), <u64>b, false)
  const leave = finishSse(s)
  if (leave == 0) store<u32>(at, <u32>r)
  return leave
}

let FAST_VECTOR: v128 = i64x2.splat(0)
/** All lanes at once when nothing can signal but PE, which is set already. FAST_VECTOR has the result. */
function fastPd(opcode: u32, a: v128, b: v128): bool {
  const infinite = i64x2.splat(0x7ff0000000000000)
  const zero = i64x2.splat(0)
  const eb = v128.and(b, infinite)
  const ea = opcode == 0x51 ? eb : v128.and(a, infinite)
  if (v128.any_true(v128.or(v128.or(i64x2.eq(ea, zero), i64x2.eq(ea, infinite)), v128.or(i64x2.eq(eb, zero), i64x2.eq(eb, infinite)))))
    return false
  switch (opcode) {
    case 0x51: {
      FAST_VECTOR = f64x2.sqrt(b)
      break
    }
    case 0x58: {
      FAST_VECTOR = f64x2.add(a, b)
      break
    }
    case 0x59: {
      FAST_VECTOR = f64x2.mul(a, b)
      break
    }
    case 0x5c: {
      FAST_VECTOR = f64x2.sub(a, b)
      break
    }
    case 0x5e: {
      FAST_VECTOR = f64x2.div(a, b)
      break
    }
    default: {
      FAST_VECTOR = v128.bitselect(a, b, opcode == 0x5d ? f64x2.lt(a, b) : f64x2.gt(a, b))
      return true
    }
  }
  const e = v128.and(FAST_VECTOR, infinite)
  return i64x2.all_true(v128.and(i64x2.gt_s(e, i64x2.splat(0x0010000000000000)), i64x2.ne(e, infinite)))
}
function fastPs(opcode: u32, a: v128, b: v128): bool {
  const infinite = i32x4.splat(0x7f800000)
  const zero = i32x4.splat(0)
  const eb = v128.and(b, infinite)
  const ea = opcode == 0x51 ? eb : v128.and(a, infinite)
  if (v128.any_true(v128.or(v128.or(i32x4.eq(ea, zero), i32x4.eq(ea, infinite)), v128.or(i32x4.eq(eb, zero), i32x4.eq(eb, infinite)))))
    return false
  switch (opcode) {
    case 0x51: {
      FAST_VECTOR = f32x4.sqrt(b)
      break
    }
    case 0x58: {
      FAST_VECTOR = f32x4.add(a, b)
      break
    }
    case 0x59: {
      FAST_VECTOR = f32x4.mul(a, b)
      break
    }
    case 0x5c: {
      FAST_VECTOR = f32x4.sub(a, b)
      break
    }
    case 0x5e: {
      FAST_VECTOR = f32x4.div(a, b)
      break
    }
    default: {
      FAST_VECTOR = v128.bitselect(a, b, opcode == 0x5d ? f32x4.lt(a, b) : f32x4.gt(a, b))
      return true
    }
  }
  const e = v128.and(FAST_VECTOR, infinite)
  return i32x4.all_true(v128.and(i32x4.gt_s(e, i32x4.splat(0x00800000)), i32x4.ne(e, infinite)))
}
/** Masked, nearest, PE set. */
function vectorsAllowed(mxcsr: u32): bool {
  return (mxcsr & (PLAIN_MASK | MXCSR_PE)) == (PLAIN | MXCSR_PE)
}

export function floatPd(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const mxcsr = load<u32>(s, CPU_MXCSR)
  if (vectorsAllowed(mxcsr) && fastPd(opcode, v128.load(at), v128.load(p))) {
    v128.store(at, FAST_VECTOR)
    return 0
  }
  beginSse(s)
  const r0 = lane64(mxcsr, opcode, load<u64>(at), load<u64>(p))
  const r1 = lane64(mxcsr, opcode, load<u64>(at, 8), load<u64>(p, 8))
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(at, r0)
  store<u64>(at, r1, 8)
  return 0
}

export function floatPs(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const mxcsr = load<u32>(s, CPU_MXCSR)
  if (vectorsAllowed(mxcsr) && fastPs(opcode, v128.load(at), v128.load(p))) {
    v128.store(at, FAST_VECTOR)
    return 0
  }
  beginSse(s)
  const r0 = lane32(mxcsr, opcode, load<u32>(at), load<u32>(p))
  const r1 = lane32(mxcsr, opcode, load<u32>(at, 4), load<u32>(p, 4))
  const r2 = lane32(mxcsr, opcode, load<u32>(at, 8), load<u32>(p, 8))
  const r3 = lane32(mxcsr, opcode, load<u32>(at, 12), load<u32>(p, 12))
  const leave = finishSse(s)
  return leave ? leave : put4(at, r0, r1, r2, r3)
}

export function put4(at: usize, r0: u32, r1: u32, r2: u32, r3: u32): u32 {
  store<u32>(at, r0)
  store<u32>(at, r1, 4)
  store<u32>(at, r2, 8)
  store<u32>(at, r3, 12)
  return 0
}

/** HADDPx, HSUBPx (7C, 7D) and ADDSUBPx (D0). */
export function horizontalPd(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const a0 = load<u64>(at)
  const a1 = load<u64>(at, 8)
  const b0 = load<u64>(p)
  const b1 = load<u64>(p, 8)
  beginSse(s)
  const negate = u32(opcode == 0x7d)
  const r0 = opcode == 0xd0 ? add(a0, b0, true, 1) : add(a0, a1, true, negate)
  const r1 = opcode == 0xd0 ? add(a1, b1, true, 0) : add(b0, b1, true, negate)
  const leave = finishSse(s)
  if (leave) return leave
  store<u64>(at, r0)
  store<u64>(at, r1, 8)
  return 0
}

export function horizontalPs(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const opcode = load<u32>(op, OP_EXTRA)
  const a0 = <u64>load<u32>(at)
  const a1 = <u64>load<u32>(at, 4)
  const a2 = <u64>load<u32>(at, 8)
  const a3 = <u64>load<u32>(at, 12)
  const b0 = <u64>load<u32>(p)
  const b1 = <u64>load<u32>(p, 4)
  const b2 = <u64>load<u32>(p, 8)
  const b3 = <u64>load<u32>(p, 12)
  beginSse(s)
  const negate = u32(opcode == 0x7d)
  const alternate = opcode == 0xd0
  const r0 = alternate ? add(a0, b0, false, 1) : add(a0, a1, false, negate)
  const r1 = alternate ? add(a1, b1, false, 0) : add(a2, a3, false, negate)
  const r2 = alternate ? add(a2, b2, false, 1) : add(b0, b1, false, negate)
  const r3 = alternate ? add(a3, b3, false, 0) : add(b2, b3, false, negate)
  const leave = finishSse(s)
  return leave ? leave : put4(at, <u32>r0, <u32>r1, <u32>r2, <u32>r3)
}
