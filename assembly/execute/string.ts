/**
 * MOVS STOS LODS SCAS CMPS with REP, REPE, REPNE (SDM vol. 2, REP/REPE/REPZ/REPNE/REPNZ; vol. 1 section 7.3.9).
 * State is committed after every iteration or page-wise chunk, so that a fault or an exit leaves RIP on the
 * instruction with exact registers. A long repetition gives way after 64 KiB (repeat.ts).
 */
import {
  CPU_EFLAGS,
  CPU_LEAVE,
  CPU_MMIO_CURSOR,
  CPU_MMIO_DONE,
  CPU_TLB_BASE,
  LEAVE_NONE,
  OPF_REP,
  OPF_REPNE,
  OP_FLAGS,
  OP_SEG,
  SEG_ES,
  VCPU_TLB_EMPTY,
} from '../generated/layout'
import { FLAG_DF } from '../generated/registers'
import { setArithmetic } from '../cpu/flags'
import { leaving, plainRead, plainWrite, readMem, writeMem } from '../memory/access'
import { aborted, getCounter, linear, NO_ADDRESS, setCounter, tryLinear } from './linear'
import { addressMask, operandSize } from './operands'
import { subFlags } from './arith'
import { disturbed, giveWay, giveWayEarly, stretch, takeRepeated } from './repeat'

const RCX: u32 = 1
const RSI: u32 = 6
const RDI: u32 = 7

function repeated(op: usize): bool {
  return (load<u8>(op, OP_FLAGS) & (OPF_REP | OPF_REPNE)) != 0
}

function backward(s: usize): bool {
  return (load<u64>(s, CPU_EFLAGS) & FLAG_DF) != 0
}

/** MMIO fragments logged for a finished iteration do not belong to the next one. */
function iterationDone(s: usize): void {
  store<u32>(s, 0, CPU_MMIO_DONE)
  store<u32>(s, 0, CPU_MMIO_CURSOR)
}

/**
 * Elements from `offset` on (towards higher or lower addresses) that lie in one page, do not wrap at the
 * address size and pass segmentation; 0 = take the one-by-one path. `limit` is the most wanted.
 */
function run(s: usize, op: usize, segment: u32, offset: u64, shift: u32, limit: u64, down: bool, write: bool): u64 {
  const size: u32 = 1 << shift
  const mask = addressMask(op)
  const first = tryLinear(s, segment, offset, size, write)
  if (first == NO_ADDRESS) return 0
  const within = first & 0xfff
  if (within + size > 0x1000) return 0
  // The empty TLB is in use while alignment is checked.
  if ((first & (size - 1)) != 0 && load<u32>(s, CPU_TLB_BASE) == <u32>(s + VCPU_TLB_EMPTY)) return 0
  let n: u64
  if (down) {
    n = (within >> shift) + 1
    n = min(n, limit)
    const room = (offset >> shift) + 1
    if (room != 0) n = min(n, room)
    if (tryLinear(s, segment, offset - ((n - 1) << shift), size, write) == NO_ADDRESS) return 0
  } else {
    n = (0x1000 - within) >> shift
    n = min(n, limit)
    const room = (mask - offset) >> shift
    if (room < n) n = room
    if (n == 0) return 0
    if (tryLinear(s, segment, offset + ((n - 1) << shift), size, write) == NO_ADDRESS) return 0
  }
  return n
}

function loadElement(p: usize, shift: u32): u64 {
  if (shift == 0) return load<u8>(p)
  if (shift == 1) return load<u16>(p)
  if (shift == 2) return load<u32>(p)
  return load<u64>(p)
}

function storeElement(p: usize, shift: u32, value: u64): void {
  if (shift == 0) store<u8>(p, <u8>value)
  else if (shift == 1) store<u16>(p, <u16>value)
  else if (shift == 2) store<u32>(p, <u32>value)
  else store<u64>(p, value)
}

/** n elements element by element, as the hardware defines overlapping moves. */
function copyElements(to: usize, from: usize, n: u64, shift: u32, down: bool): void {
  const size: usize = (<usize>1) << shift
  if (down) {
    let i = (<usize>n - 1) << shift
    for (; ; i -= size) {
      storeElement(to + i, shift, loadElement(from + i, shift))
      if (i == 0) break
    }
  } else {
    const end = (<usize>n) << shift
    for (let i: usize = 0; i < end; i += size) storeElement(to + i, shift, loadElement(from + i, shift))
  }
}

/** `to` and `from` are the lowest addresses of the two ranges. */
function copyRange(to: usize, from: usize, n: u64, shift: u32, down: bool): void {
  const bytes = (<usize>n) << shift
  const collides = down ? to < from && from - to < bytes : to > from && to - from < bytes
  if (collides) copyElements(to, from, n, shift, down)
  else memory.copy(to, from, bytes)
}

function fillRange(to: usize, n: u64, shift: u32, value: u64): void {
  const bytes = (<usize>n) << shift
  let v = value
  if (shift == 0) v &= 0xff
  if (shift < 1) v |= v << 8
  if (shift == 1) v &= 0xffff
  if (shift < 2) v |= v << 16
  if (shift == 2) v &= 0xffff_ffff
  if (shift < 3) v |= v << 32
  if (v == (v & 0xff) * 0x0101_0101_0101_0101) {
    memory.fill(to, <u8>v, bytes)
    return
  }
  let i: usize = 0
  for (; i + 8 <= bytes; i += 8) store<u64>(to + i, v)
  for (; i < bytes; i++) {
    store<u8>(to + i, <u8>v)
    v >>= 8
  }
}

export function movs(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const segment = <u32>load<u8>(op, OP_SEG)
  const down = backward(s)
  const step: u64 = down ? 0 - <u64>size : size
  const rep = repeated(op)
  const mask = addressMask(op)
  let count: u64 = rep ? getCounter(s, op, RCX) : 1
  const done: u32 = rep ? takeRepeated(s) : 0
  if (count == 0) return LEAVE_NONE
  let si = getCounter(s, op, RSI)
  let di = getCounter(s, op, RDI)
  const total = count > 1 ? stretch(s, count, shift, done) : count
  let work = total
  while (work != 0) {
    let n: u64 = 0
    if (work > 1) {
      n = run(s, op, segment, si, shift, work, down, false)
      if (n > 1) n = run(s, op, SEG_ES, di, shift, n, down, true)
      if (n > 1) {
        const back: u64 = down ? (n - 1) << shift : 0
        const from = plainRead(s, tryLinear(s, segment, si - back, size, false))
        const to = from ? plainWrite(s, tryLinear(s, SEG_ES, di - back, size, true)) : 0
        if (to) copyRange(to, from, n, shift, down)
        else n = 0
      } else n = 0
    }
    let code: u32 = 0
    if (n == 0) {
      n = 1
      const from = linear(s, segment, si, size, false)
      if (leaving(s)) return load<u32>(s, CPU_LEAVE)
      const value = readMem(s, op, from, size)
      if (leaving(s)) return load<u32>(s, CPU_LEAVE)
      const to = linear(s, SEG_ES, di, size, true)
      if (leaving(s)) return load<u32>(s, CPU_LEAVE)
      code = writeMem(s, op, to, size, value)
      if (aborted(code)) return code
    }
    si = (si + n * step) & mask
    di = (di + n * step) & mask
    count -= n
    work -= n
    setCounter(s, op, RSI, si)
    setCounter(s, op, RDI, di)
    if (rep) {
      setCounter(s, op, RCX, count)
      iterationDone(s)
    }
    if (code) return count != 0 && rep ? giveWayEarly(s, op, done + ((<u32>(total - work)) << shift)) : code
    if (work != 0 && disturbed(s)) break
  }
  return count != 0 && rep ? giveWay(s, op) : LEAVE_NONE
}

export function stos(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const down = backward(s)
  const step: u64 = down ? 0 - <u64>size : size
  const rep = repeated(op)
  const mask = addressMask(op)
  const value = load<u64>(s)
  let count: u64 = rep ? getCounter(s, op, RCX) : 1
  const done: u32 = rep ? takeRepeated(s) : 0
  if (count == 0) return LEAVE_NONE
  let di = getCounter(s, op, RDI)
  const total = count > 1 ? stretch(s, count, shift, done) : count
  let work = total
  while (work != 0) {
    let n: u64 = 0
    if (work > 1) {
      n = run(s, op, SEG_ES, di, shift, work, down, true)
      if (n > 1) {
        const back: u64 = down ? (n - 1) << shift : 0
        const to = plainWrite(s, tryLinear(s, SEG_ES, di - back, size, true))
        if (to) fillRange(to, n, shift, value)
        else n = 0
      } else n = 0
    }
    let code: u32 = 0
    if (n == 0) {
      n = 1
      const to = linear(s, SEG_ES, di, size, true)
      if (leaving(s)) return load<u32>(s, CPU_LEAVE)
      code = writeMem(s, op, to, size, value)
      if (aborted(code)) return code
    }
    di = (di + n * step) & mask
    count -= n
    work -= n
    setCounter(s, op, RDI, di)
    if (rep) {
      setCounter(s, op, RCX, count)
      iterationDone(s)
    }
    if (code) return count != 0 && rep ? giveWayEarly(s, op, done + ((<u32>(total - work)) << shift)) : code
    if (work != 0 && disturbed(s)) break
  }
  return count != 0 && rep ? giveWay(s, op) : LEAVE_NONE
}

export function lods(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const segment = <u32>load<u8>(op, OP_SEG)
  const step: u64 = backward(s) ? 0 - <u64>size : size
  const rep = repeated(op)
  let count: u64 = rep ? getCounter(s, op, RCX) : 1
  if (count == 0) return LEAVE_NONE
  let work = count > 1 ? stretch(s, count, shift, 0) : count
  while (work != 0) {
    const si = getCounter(s, op, RSI)
    const from = linear(s, segment, si, size, false)
    if (leaving(s)) return load<u32>(s, CPU_LEAVE)
    const value = readMem(s, op, from, size)
    if (leaving(s)) return load<u32>(s, CPU_LEAVE)
    if (shift == 0) store<u8>(s, <u8>value)
    else if (shift == 1) store<u16>(s, <u16>value)
    else if (shift == 2) store<u64>(s, value & 0xffff_ffff)
    else store<u64>(s, value)
    setCounter(s, op, RSI, si + step)
    count--
    work--
    if (rep) {
      setCounter(s, op, RCX, count)
      iterationDone(s)
    }
    if (work != 0 && disturbed(s)) break
  }
  return count != 0 && rep ? giveWay(s, op) : LEAVE_NONE
}

/** True if the repetition goes on after a comparison with this outcome. */
function goesOn(op: usize, equal: bool): bool {
  return load<u8>(op, OP_FLAGS) & OPF_REPNE ? !equal : equal
}

/** A repetition that faults or exits keeps the flags of the last comparison that was done (measured on Zen 4). */
function cutShort(s: usize, any: bool, a: u64, b: u64, shift: u32): u32 {
  if (any) setArithmetic(s, subFlags(a, b, shift))
  return load<u32>(s, CPU_LEAVE)
}

export function scas(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const down = backward(s)
  const step: u64 = down ? 0 - <u64>size : size
  const rep = repeated(op)
  const mask = addressMask(op)
  const a = load<u64>(s) & (<u64>-1 >> (64 - (8 << shift)))
  let count: u64 = rep ? getCounter(s, op, RCX) : 1
  if (count == 0) return LEAVE_NONE
  let di = getCounter(s, op, RDI)
  let work = count > 1 ? stretch(s, count, shift, 0) : count
  let last: u64 = 0
  let any = false
  while (work != 0) {
    let n: u64 = 0
    let b: u64 = 0
    if (work > 1) {
      const most = run(s, op, SEG_ES, di, shift, work, down, false)
      const p = most > 1 ? plainRead(s, tryLinear(s, SEG_ES, di, size, false)) : 0
      if (p) {
        for (let q = p; n < most; q += <usize>step) {
          b = loadElement(q, shift)
          n++
          if (!goesOn(op, a == b)) break
        }
      }
    }
    if (n == 0) {
      n = 1
      const at = linear(s, SEG_ES, di, size, false)
      if (leaving(s)) return cutShort(s, any, a, last, shift)
      b = readMem(s, op, at, size)
      if (leaving(s)) return cutShort(s, any, a, last, shift)
    }
    di = (di + n * step) & mask
    count -= n
    work -= n
    setCounter(s, op, RDI, di)
    if (rep) {
      setCounter(s, op, RCX, count)
      iterationDone(s)
    }
    if (!rep || count == 0 || !goesOn(op, a == b)) {
      setArithmetic(s, subFlags(a, b, shift))
      return LEAVE_NONE
    }
    last = b
    any = true
    if (disturbed(s)) break
  }
  setArithmetic(s, subFlags(a, last, shift))
  return giveWay(s, op)
}

export function cmps(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const segment = <u32>load<u8>(op, OP_SEG)
  const down = backward(s)
  const step: u64 = down ? 0 - <u64>size : size
  const rep = repeated(op)
  const mask = addressMask(op)
  let count: u64 = rep ? getCounter(s, op, RCX) : 1
  if (count == 0) return LEAVE_NONE
  let si = getCounter(s, op, RSI)
  let di = getCounter(s, op, RDI)
  let work = count > 1 ? stretch(s, count, shift, 0) : count
  let lastA: u64 = 0
  let lastB: u64 = 0
  let any = false
  while (work != 0) {
    let n: u64 = 0
    let a: u64 = 0
    let b: u64 = 0
    if (work > 1) {
      let most = run(s, op, segment, si, shift, work, down, false)
      if (most > 1) most = run(s, op, SEG_ES, di, shift, most, down, false)
      if (most > 1) {
        let p = plainRead(s, tryLinear(s, segment, si, size, false))
        let q = p ? plainRead(s, tryLinear(s, SEG_ES, di, size, false)) : 0
        if (q) {
          while (n < most) {
            a = loadElement(p, shift)
            b = loadElement(q, shift)
            p += <usize>step
            q += <usize>step
            n++
            if (!goesOn(op, a == b)) break
          }
        }
      }
    }
    if (n == 0) {
      n = 1
      // Measured on Zen 4: the rDI operand is read first, but for REPE CMPSB.
      const rsiFirst = size == 1 && (load<u8>(op, OP_FLAGS) & OPF_REP) != 0
      for (let k = 0; k < 2; k++) {
        const source = (k == 0) == rsiFirst
        const at = linear(s, source ? segment : SEG_ES, source ? si : di, size, false)
        if (leaving(s)) return cutShort(s, any, lastA, lastB, shift)
        const value = readMem(s, op, at, size)
        if (leaving(s)) return cutShort(s, any, lastA, lastB, shift)
        if (source) a = value
        else b = value
      }
    }
    si = (si + n * step) & mask
    di = (di + n * step) & mask
    count -= n
    work -= n
    setCounter(s, op, RSI, si)
    setCounter(s, op, RDI, di)
    if (rep) {
      setCounter(s, op, RCX, count)
      iterationDone(s)
    }
    if (!rep || count == 0 || !goesOn(op, a == b)) {
      setArithmetic(s, subFlags(a, b, shift))
      return LEAVE_NONE
    }
    lastA = a
    lastB = b
    any = true
    if (disturbed(s)) break
  }
  setArithmetic(s, subFlags(lastA, lastB, shift))
  return giveWay(s, op)
}

/** XLAT: AL = [rBX + AL]. */
export function xlat(s: usize, op: usize): u32 {
  const offset = (load<u64>(s, 24) + <u64>load<u8>(s)) & addressMask(op)
  const at = linear(s, <u32>load<u8>(op, OP_SEG), offset, 1, false)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const value = readMem(s, op, at, 1)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  store<u8>(s, <u8>value)
  return LEAVE_NONE
}
