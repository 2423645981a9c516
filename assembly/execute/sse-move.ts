/**
 * SSE/SSE2/SSE3 moves, fences and cache-line instructions (SDM vol 2, MOVAPS..MOVUPS, LFENCE, CLFLUSH).
 * Owns no state.
 */
import { CPU_DEBUG_ARMED, CPU_GPR, DEBUG_DATA, EXC_GP, LEAVE_NEXT, OP_SEG } from '../generated/layout'
import { watchAccess } from '../cpu/watch'
import { raiseError } from '../cpu/exceptions'
import { leaving, probe, readMem, writable } from '../memory/access'
import { addressMask, ea, getReg, getRm, isMemory, operandSize, segmentAddress, setReg, setRm } from './operands'
import {
  first,
  left,
  misaligned,
  memory,
  put,
  readable,
  source,
  sourceOf,
  sseUsable,
  storeAligned,
  storeAt,
  storeMemory,
  xmmReg,
  xmmRm,
} from './sse-operands'

/** MOVUPS, MOVUPD, MOVDQU, LDDQU: load. */
export function movups(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 16)
  return p ? put(s, op, v128.load(p)) : left(s)
}
export function movupsStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  if (isMemory(op)) return storeMemory(s, op, xmmReg(s, op), 16)
  v128.store(xmmRm(s, op), first(s, op))
  return 0
}
/** MOVAPS, MOVAPD, MOVDQA, MOVNTDQA: always #GP when misaligned. */
export function movaps(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  if (!isMemory(op)) return put(s, op, v128.load(xmmRm(s, op)))
  const va = ea(s, op, 16)
  if (leaving(s)) return misaligned(s, op) ? raiseError(s, EXC_GP, 0) : left(s)
  if ((va & 15) != 0) return raiseError(s, EXC_GP, 0)
  const p = readable(s, op, va, 16)
  return p ? put(s, op, v128.load(p)) : left(s)
}
/** MOVAPS, MOVAPD, MOVDQA, MOVNTPS, MOVNTPD, MOVNTDQ. */
export function movapsStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  if (isMemory(op)) return storeAligned(s, op, xmmReg(s, op))
  v128.store(xmmRm(s, op), first(s, op))
  return 0
}

export function movss(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 4)
  if (!p) return left(s)
  if (isMemory(op)) return put(s, op, v128.load32_zero(p))
  store<u32>(xmmReg(s, op), load<u32>(p))
  return 0
}
export function movssStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  if (isMemory(op)) return storeMemory(s, op, xmmReg(s, op), 4)
  store<u32>(xmmRm(s, op), load<u32>(xmmReg(s, op)))
  return 0
}
export function movsdXmm(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  if (!p) return left(s)
  if (isMemory(op)) return put(s, op, v128.load64_zero(p))
  store<u64>(xmmReg(s, op), load<u64>(p))
  return 0
}
export function movsdXmmStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  if (isMemory(op)) return storeMemory(s, op, xmmReg(s, op), 8)
  store<u64>(xmmRm(s, op), load<u64>(xmmReg(s, op)))
  return 0
}

/** MOVLPS, MOVLPD. */
export function movlps(s: usize, op: usize): u32 {
  const p = sseUsable(s) ? memory(s, op, 8) : 0
  if (!p) return left(s)
  store<u64>(xmmReg(s, op), load<u64>(p))
  return 0
}
export function movhlps(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  store<u64>(xmmReg(s, op), load<u64>(xmmRm(s, op), 8))
  return 0
}
export function movlpsStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  return storeMemory(s, op, xmmReg(s, op), 8)
}
export function movlhps(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  store<u64>(xmmReg(s, op), load<u64>(xmmRm(s, op)), 8)
  return 0
}
/** MOVHPS, MOVHPD. */
export function movhps(s: usize, op: usize): u32 {
  const p = sseUsable(s) ? memory(s, op, 8) : 0
  if (!p) return left(s)
  store<u64>(xmmReg(s, op), load<u64>(p), 8)
  return 0
}
export function movhpsStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  return storeMemory(s, op, xmmReg(s, op) + 8, 8)
}

export function movddup(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  return p ? put(s, op, v128.load64_splat(p)) : left(s)
}
export function movsldup(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const b = v128.load(p)
  return put(s, op, v128.shuffle<i32>(b, b, 0, 0, 2, 2))
}
export function movshdup(s: usize, op: usize): u32 {
  const p = source(s, op)
  if (!p) return left(s)
  const b = v128.load(p)
  return put(s, op, v128.shuffle<i32>(b, b, 1, 1, 3, 3))
}

/** MOVD/MOVQ from a general register or memory. */
export function movdToXmm(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const value = getRm(s, op, operandSize(op))
  if (leaving(s)) return left(s)
  const at = xmmReg(s, op)
  store<u64>(at, value)
  store<u64>(at, 0, 8)
  return 0
}
export function movdFromXmm(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const size = operandSize(op)
  return setRm(s, op, size, size == 8 ? load<u64>(xmmReg(s, op)) : <u64>load<u32>(xmmReg(s, op)))
}
/** F3 0F 7E. */
export function movqXmm(s: usize, op: usize): u32 {
  const p = sourceOf(s, op, 8)
  return p ? put(s, op, v128.load64_zero(p)) : left(s)
}
/** 66 0F D6. */
export function movqXmmStore(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  if (isMemory(op)) return storeMemory(s, op, xmmReg(s, op), 8)
  v128.store(xmmRm(s, op), v128.load64_zero(xmmReg(s, op)))
  return 0
}

export function movmskps(s: usize, op: usize): u32 {
  const p = sseUsable(s) ? xmmRm(s, op) : 0
  if (!p) return left(s)
  setReg(s, op, 4, <u64>i32x4.bitmask(v128.load(p)))
  return 0
}
export function movmskpd(s: usize, op: usize): u32 {
  const p = sseUsable(s) ? xmmRm(s, op) : 0
  if (!p) return left(s)
  setReg(s, op, 4, <u64>i64x2.bitmask(v128.load(p)))
  return 0
}
export function pmovmskb(s: usize, op: usize): u32 {
  const p = sseUsable(s) ? xmmRm(s, op) : 0
  if (!p) return left(s)
  setReg(s, op, 4, <u64>i8x16.bitmask(v128.load(p)))
  return 0
}

/** Byte by byte: each byte that the mask names is a write of its own; the first fault wins and earlier bytes of a page cannot be undone. */
export function maskmovdqu(s: usize, op: usize): u32 {
  const mask = sseUsable(s) ? xmmRm(s, op) : 0
  return mask ? storeMasked(s, op, xmmReg(s, op), mask, 16) : left(s)
}
/** MASKMOVDQU and MASKMOVQ store to DS:[rDI], or the overriding segment. */
export function storeMasked(s: usize, op: usize, from: usize, mask: usize, n: u32): u32 {
  const offset = load<u64>(s, CPU_GPR + 7 * 8)
  const segment = <u32>load<u8>(op, OP_SEG)
  // By eights all of it is accessed, also what is masked out; then it goes byte by byte round the end of the address size (measured on Zen 4).
  for (let i: u32 = 0; i < n; i += 8) {
    const va = segmentAddress(s, segment, (offset + <u64>i) & addressMask(op), 8, true)
    if (leaving(s) || !writable(s, op, va, 8)) return left(s)
  }
  let retired: u32 = 0
  for (let i: u32 = 0; i < n; i++) {
    if (load<i8>(mask + i) >= 0) continue
    const va = segmentAddress(s, segment, (offset + <u64>i) & addressMask(op), 1, true)
    if (leaving(s)) return left(s)
    const leave = storeAt(s, op, va, from + i, 1)
    if (leave) {
      if (leave != LEAVE_NEXT) return leave
      retired = leave
    }
  }
  return retired
}

/** MOVNTI: an ordinary store; ordering hints have no meaning here. */
export function movnti(s: usize, op: usize): u32 {
  const size = operandSize(op)
  return setRm(s, op, size, getReg(s, op, size))
}

/** Ordering instructions order nothing: one vCPU's accesses are performed in program order. */
export function fence(s: usize, op: usize): u32 {
  return 0
}
/** CLFLUSH, CLFLUSHOPT, CLWB: the address is translated, and watched, as for a byte load (SDM vol 2, CLFLUSH; seen on Zen 4). */
export function clflush(s: usize, op: usize): u32 {
  const va = ea(s, op, 1)
  if (leaving(s)) return left(s)
  if (probe(s, va) != ~(<u64>0)) {
    if (load<u32>(s, CPU_DEBUG_ARMED) & DEBUG_DATA) watchAccess(s, va, 1, false)
    return 0
  }
  readMem(s, op, va, 1)
  return left(s)
}
