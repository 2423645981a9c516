/**
 * Operands of several words: x87 environments and states (14, 28, 94, 108 bytes) FXSAVE images (512) and XSAVE's beginning (576), cut as Zen 4
 * cuts them where they go round at the end of the address size; ten-byte numbers; the plain areas of XSAVE. Owns MOVED.
 */
import { CPU_MODE, EXC_AC, EXC_GP, EXC_SS, LEAVE_NEXT, MODE_CS64, MODE_CS_MASK, OP_SEG, SEG_SS } from '../generated/layout'
import { raiseError } from '../cpu/exceptions'
import { leaving, plainRead, plainWrite, readBytes, readMem, writable, writeBytes, writeMem } from '../memory/access'
import { alignmentChecked } from '../memory/tlb'
import { canonical } from '../memory/translate'
import { addressMask, effectiveOffset, segmentAddress } from './operands'
import { left, stored } from './sse-operands'

const IMAGE: u32 = 512
/** IMAGE and the header of XSAVE. */
export const STATE: u32 = 576
/** Bytes that a readOperand which failed had read. */
export let MOVED: u32 = 0

/** Bytes of a word of the header. */
function word(n: u32): u32 {
  return n == 14 || n == 94 ? 2 : 4
}

/** Size of the piece at `at` of an operand of `n` bytes. */
function pieceSize(n: u32, at: u32): u32 {
  if (n >= IMAGE) return 16
  const header: u32 = word(n) * 7
  if (at < header) return word(n)
  return (at - header) % 10 == 0 ? 8 : 2
}

/** Linear address of `size` bytes at `at` of the operand; test leaving(s). */
function piece(s: usize, op: usize, at: u32, size: u32, write: bool): u64 {
  const va = segmentAddress(s, <u32>load<u8>(op, OP_SEG), (effectiveOffset(s, op) + <u64>at) & addressMask(op), size, write)
  if (!leaving(s) && !(canonical(s, va) && canonical(s, va + <u64>size - 1))) refuse(s, op)
  return va
}

function refuse(s: usize, op: usize): void {
  raiseError(s, load<u8>(op, OP_SEG) == <u8>SEG_SS ? EXC_SS : EXC_GP, 0)
}

/** True if the operand goes round at the end of its address size. */
function wraps(s: usize, op: usize, n: u32): bool {
  const offset = effectiveOffset(s, op)
  const last = offset + <u64>n - 1
  return last > addressMask(op) || last < offset
}

/** Linear addresses of legacy code have 32 bits. */
function linear(s: usize, va: u64): u64 {
  return (load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64 ? va : va & 0xffffffff
}

function touch(s: usize, op: usize, va: u64, size: u32, write: bool): bool {
  if (write) return writable(s, op, va, size)
  readMem(s, op, va, size)
  return !leaving(s)
}

/**
 * Checks an x87 environment or state before the first byte of it moves, in the CPU's order: its first word, then its last byte.
 * Its linear address; test leaving(s).
 */
export function beginEnvironment(s: usize, op: usize, n: u32, write: bool): u64 {
  const va = piece(s, op, 0, word(n), write)
  if (leaving(s) || !areaAligned(s, va, n) || !touch(s, op, va, word(n), write)) return va
  const last = piece(s, op, n - 1, 1, write)
  if (!leaving(s)) touch(s, op, last, 1, write)
  return va
}

/** As beginEnvironment for FXSAVE and FXRSTOR: the segment at the first word, alignment, the last byte, only then the first page. */
export function beginImage(s: usize, op: usize, write: bool): u64 {
  const va = piece(s, op, 0, 4, false)
  if (leaving(s)) return va
  if ((va & 15) != 0) {
    if (areaAligned(s, va, IMAGE)) raiseError(s, EXC_GP, 0)
    return va
  }
  const last = piece(s, op, IMAGE - 1, 1, write)
  if (!leaving(s) && touch(s, op, last, 1, write)) touch(s, op, va, 1, write)
  return va
}

/** As beginEnvironment for the legacy region and the header of XSAVE and XRSTOR, of which the latter touches the header. */
export function beginState(s: usize, op: usize, write: bool): u64 {
  const va = piece(s, op, 0, 4, write)
  if (leaving(s)) return va
  if ((va & 63) != 0) raiseError(s, EXC_GP, 0)
  else if (touch(s, op, va, 4, write)) {
    const size: u32 = write ? 1 : 4
    const second = piece(s, op, write ? STATE - 1 : IMAGE, size, write)
    if (!leaving(s)) touch(s, op, second, size, write)
  }
  return va
}

/** After begin...: `n` bytes of the operand to `to`. 0 or LEAVE. */
export function readOperand(s: usize, op: usize, va: u64, to: usize, n: u32): u32 {
  MOVED = 0
  if (!wraps(s, op, n)) return copyIn(s, op, va, to, n)
  for (let at: u32 = 0; at < n; at += pieceSize(n, at)) {
    MOVED = at
    const from = piece(s, op, at, pieceSize(n, at), false)
    if (leaving(s)) return left(s)
    const leave = copyIn(s, op, from, to + at, pieceSize(n, at))
    if (leave) return leave
  }
  return 0
}

/** After begin...: the first `used` bytes of an operand of `n`. What a wrapping operand wrote before it failed stays written. */
export function writeOperand(s: usize, op: usize, va: u64, from: usize, used: u32, n: u32): u32 {
  if (!wraps(s, op, n)) return copyOut(s, op, va, from, used)
  let retired: u32 = 0
  for (let at: u32 = 0; at < used; at += pieceSize(n, at)) {
    const size = min<u32>(pieceSize(n, at), used - at)
    const to = piece(s, op, at, size, true)
    if (leaving(s)) return left(s)
    const leave = copyOut(s, op, to, from + at, size)
    if (!stored(leave)) return leave
    if (leave) retired = leave
  }
  return retired
}

/** #AC: an area counts as words of 4 bytes, the small environments as words of 2 (measured on Zen 4). */
function areaAligned(s: usize, va: u64, n: u32): bool {
  if (!alignmentChecked(s) || (va & (word(n) - 1)) == 0 || !canonical(s, va)) return true
  raiseError(s, EXC_AC, 0)
  return false
}

/** Copies `n` bytes of a component of XSAVE from guest memory. 0 or LEAVE. */
export function readArea(s: usize, op: usize, va: u64, to: usize, n: u32): u32 {
  if (!areaCanonical(s, op, va) || !areaAligned(s, va, n)) return left(s)
  return copyIn(s, op, va, to, n)
}

/** Copies `n` bytes to guest memory; a fault on a later page is raised before the first byte is written. */
export function writeArea(s: usize, op: usize, va: u64, from: usize, n: u32): u32 {
  const page = (va + n - 1) & ~(<u64>4095)
  if (!areaCanonical(s, op, va) || !areaAligned(s, va, n)) return left(s)
  if (page > va && !(writable(s, op, va, 1) && writable(s, op, page, 1))) return left(s)
  return copyOut(s, op, va, from, n)
}

/** The first word is canonical before a page is looked at. */
function areaCanonical(s: usize, op: usize, va: u64): bool {
  if (canonical(s, va) && canonical(s, va + 3)) return true
  refuse(s, op)
  return false
}

function copyIn(s: usize, op: usize, va: u64, to: usize, n: u32): u32 {
  for (let done: u32 = 0; done < n; ) {
    const at = linear(s, va + done)
    let chunk: u32 = 4096 - (<u32>at & 4095)
    if (chunk > n - done) chunk = n - done
    const p = plainRead(s, at)
    if (p) {
      memory.copy(to + done, p, chunk)
    } else {
      chunk = alignmentChecked(s) ? 1 : chunk > 64 ? 64 : chunk
      const leave = readBytes(s, op, at, to + done, chunk)
      if (leave) return leave
    }
    done += chunk
  }
  return 0
}

function copyOut(s: usize, op: usize, va: u64, from: usize, n: u32): u32 {
  let retired: u32 = 0
  for (let done: u32 = 0; done < n; ) {
    const at = linear(s, va + done)
    let chunk: u32 = 4096 - (<u32>at & 4095)
    if (chunk > n - done) chunk = n - done
    const p = plainWrite(s, at)
    if (p) {
      memory.copy(p, from + done, chunk)
    } else {
      chunk = alignmentChecked(s) ? 1 : chunk > 64 ? 64 : chunk
      const leave = writeBytes(s, op, at, from + done, chunk)
      if (leave == LEAVE_NEXT) retired = leave
      else if (leave) return leave
    }
    done += chunk
  }
  return retired
}

/** A ten-byte number into the register image `to`: eight bytes, then two, each with its own checks (measured on Zen 4). False = leaving. */
export function load80(s: usize, op: usize, to: usize): bool {
  const low = piece(s, op, 0, 8, false)
  if (leaving(s)) return false
  const value = readMem(s, op, low, 8)
  if (leaving(s)) return false
  const high = piece(s, op, 8, 2, false)
  if (leaving(s)) return false
  store<u16>(to, <u16>readMem(s, op, high, 2), 8)
  store<u64>(to, value)
  return !leaving(s)
}

/** Stores ten bytes, or only touches them (`go` false). 0 or LEAVE. */
export function store80(s: usize, op: usize, from: usize, go: bool): u32 {
  const low = piece(s, op, 0, 8, true)
  if (leaving(s) || !writable(s, op, low, 8)) return left(s)
  const high = piece(s, op, 8, 2, true)
  if (leaving(s) || !writable(s, op, high, 2) || !go) return left(s)
  const leave = writeMem(s, op, low, 8, load<u64>(from))
  if (!stored(leave)) return leave
  const second = writeMem(s, op, high, 2, <u64>load<u16>(from, 8))
  return second ? second : leave
}
