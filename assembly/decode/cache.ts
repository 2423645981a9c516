/**
 * Decoded blocks of a vCPU: lookup by linear RIP (jump cache) and by host frame + offset + mode
 * (hash), decoding, and invalidation by 128-byte code lines. Owns VCPU_JUMP, VCPU_BUCKETS,
 * VCPU_FRAME_BUCKETS, VCPU_BLOCKS and the FRAME_CODE masks.
 */
import { DROPPED } from './constants'
import { raiseError } from '../cpu/exceptions'
import { quietUnseen } from './quiet'
import { chained, fused, H_CONTINUE, isJcc } from '../generated/opcodes'
import {
  BLOCK_BYTES,
  BLOCK_COUNT,
  BLOCK_FRAME,
  BLOCK_FRAME2,
  BLOCK_FRAME_NEXT,
  BLOCK_LENGTH,
  BLOCK_MODE,
  BLOCK_NEXT,
  CPU_BLOCKS_TOP,
  CPU_JUMP_KEY,
  CPU_LINK,
  CPU_MODE,
  CPU_OP,
  CPU_RIP,
  CPU_SEGMENTS,
  EXC_GP,
  FRAME_CODE,
  FRAME_INFO,
  GLOBAL,
  GLOBAL_VCPU_COUNT,
  GLOBAL_VCPUS,
  MODE_CS64,
  MODE_CS_MASK,
  MODE_FLAT,
  MODE_SS32,
  OP_ID,
  OP_IMM,
  OP_SCALE,
  SEG_BASE,
  SEG_CS,
  SEG_LIMIT,
  SIZEOF_BLOCK,
  SIZEOF_FRAME,
  SIZEOF_OP,
  VCPU_BLOCKS,
  VCPU_BLOCKS_SIZE,
  VCPU_BUCKETS,
  VCPU_BUCKETS_SIZE,
  VCPU_FRAME_BUCKETS,
  VCPU_FRAME_BUCKETS_SIZE,
  VCPU_JUMP,
  VCPU_JUMP_SIZE,
  VCPU_PARTIAL,
} from '../generated/layout'
import { fetchAddress } from '../memory/access'
import { dropWriteTags } from '../memory/tlb'
import { canonical } from '../memory/translate'
import { decode, ENDS } from './decoder'

const MAX_OPS: u32 = 64
const NEVER: u64 = ~(<u64>0)
/** Bytes of an instruction that crosses a page, gathered (32 bytes at the end of VCPU_PARTIAL). */
const GATHER: usize = VCPU_PARTIAL + 0x1f00
const KEY_MODE: u32 = MODE_CS_MASK | MODE_SS32 | MODE_FLAT

function linearRip(s: usize): u64 {
  const rip = load<u64>(s, CPU_RIP)
  if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64) return rip
  return <u64>(<u32>(load<u64>(s + CPU_SEGMENTS + <usize>SEG_CS * 16, SEG_BASE) + rip))
}

function jumpSlot(s: usize, linear: u64): usize {
  return s + VCPU_JUMP + (((<usize>linear ^ (<usize>linear >> 12)) & 4095) << 4)
}

/**
 * Which end of a legacy code segment lies inside the page of `linear`. Blocks are keyed by host address, and other segments reach
 * the same bytes: what such an end means for them is part of the key. EDGE_LOW: a jump may wrap or leave the segment within the page,
 * so that nothing is chained. EDGE_HIGH: the limit is looked at before every instruction.
 */
const EDGE_LOW: u32 = 0x40
const EDGE_HIGH: u32 = 0x80

function edges(s: usize, linear: u64, mode: u32): u32 {
  if ((mode & MODE_CS_MASK) == MODE_CS64 || (mode & MODE_FLAT) != 0) return 0
  const cs = s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4)
  const base = <u32>load<u64>(cs, SEG_BASE)
  const last = base + load<u32>(cs, SEG_LIMIT)
  let found: u32 = 0
  if ((base & 0xfff) != 0 && ((<u32>linear ^ base) & 0xfffff000) == 0) found = EDGE_LOW
  if ((last & 0xfff) != 0xfff && ((<u32>linear ^ last) & 0xfffff000) == 0) found |= EDGE_HIGH
  return found
}

/** The block at the current RIP if the jump cache has it, else 0. */
export function quickLookup(s: usize): usize {
  const linear = linearRip(s)
  const e = jumpSlot(s, linear)
  if (load<u64>(e) != linear || load<u32>(e, 12) != load<u32>(s, CPU_JUMP_KEY)) return 0
  return <usize>load<u32>(e, 8)
}

/** The block at the current RIP, decoded if need be; 0 = an exception is pending (LEAVE set). */
export function lookup(s: usize): usize {
  const linear = linearRip(s)
  const e = jumpSlot(s, linear)
  if (load<u64>(e) == linear && load<u32>(e, 12) == load<u32>(s, CPU_JUMP_KEY)) {
    const hit = <usize>load<u32>(e, 8)
    if (load<u32>(hit, BLOCK_COUNT) != DROPPED) return hit
  }
  const mode = load<u32>(s, CPU_MODE)
  if ((mode & MODE_CS_MASK) != MODE_CS64) {
    if (load<u64>(s, CPU_RIP) > <u64>load<u32>(s + CPU_SEGMENTS + <usize>SEG_CS * 16, SEG_LIMIT)) {
      raiseError(s, EXC_GP, 0)
      return 0
    }
  } else if (!canonical(s, linear)) {
    raiseError(s, EXC_GP, 0)
    return 0
  }
  const address = fetchAddress(s, linear)
  if (!address) return 0
  const key = (mode & KEY_MODE) | edges(s, linear, mode)
  let b = find(s, linear, address, key)
  if (!b) {
    b = decodeBlock(s, linear, address, key)
    if (!b) return 0
  } else if (key & EDGE_HIGH) {
    const room = <u64>load<u32>(s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4), SEG_LIMIT) - load<u64>(s, CPU_RIP)
    if (<u64>load<u32>(b, BLOCK_BYTES) - 1 > room) {
      raiseError(s, EXC_GP, 0)
      return 0
    }
  }
  if (!load<u32>(b, BLOCK_FRAME2)) {
    store<u64>(e, linear)
    store<u32>(e, <u32>b, 8)
    store<u32>(e, load<u32>(s, CPU_JUMP_KEY), 12)
  }
  return b
}

function bucket(s: usize, address: usize): usize {
  return s + VCPU_BUCKETS + (((address ^ (address >> 14)) & 16383) << 2)
}

function find(s: usize, linear: u64, address: usize, mode: u32): usize {
  let b = <usize>load<u32>(bucket(s, address))
  while (b) {
    if (load<u32>(b, BLOCK_FRAME) == <u32>address && load<u32>(b, BLOCK_MODE) == mode && load<u32>(b, BLOCK_COUNT) != DROPPED) {
      const second = load<u32>(b, BLOCK_FRAME2)
      if (!second) return b
      const now = fetchAddress(s, nextPage(s, linear))
      if (!now) return 0
      if (<u32>now == second && sameBytes(b, address, now)) return b
    }
    b = <usize>load<u32>(b, BLOCK_NEXT)
  }
  return 0
}

/** An instruction across two pages is not tracked by lines of the second: its bytes (kept behind its ops) are compared. */
function sameBytes(b: usize, address: usize, second: usize): bool {
  const length = <usize>load<u32>(b, BLOCK_BYTES)
  const room: usize = 0x1000 - (address & 0xfff)
  const kept = b + SIZEOF_BLOCK + 2 * SIZEOF_OP
  for (let i: usize = 0; i < length; i++) {
    if (load<u8>(kept + i) != load<u8>(i < room ? address + i : second + i - room)) return false
  }
  return true
}

function nextPage(s: usize, linear: u64): u64 {
  const next = (linear & ~(<u64>0xfff)) + 0x1000
  return (load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64 ? next : <u64>(<u32>next)
}

/** Decodes up to MAX_OPS instructions of one page; 0 = the first one cannot be fetched (LEAVE set). */
function decodeBlock(s: usize, linear: u64, address: usize, mode: u32): usize {
  let b = <usize>load<u32>(s, CPU_BLOCKS_TOP)
  if (!b || b + SIZEOF_OP * <usize>(MAX_OPS + 2) > s + VCPU_BLOCKS + VCPU_BLOCKS_SIZE) {
    flushBlocks(s)
    b = s + VCPU_BLOCKS
  }
  const pageEnd = (address & ~(<usize>0xfff)) + 0x1000
  const limit =
    (mode & MODE_CS_MASK) == MODE_CS64 ? NEVER : <u64>load<u32>(s + CPU_SEGMENTS + <usize>SEG_CS * 16, SEG_LIMIT) - load<u64>(s, CPU_RIP)
  let p = address
  let at: u32 = 0
  let count: u32 = 0
  let op = b + SIZEOF_BLOCK
  let second: usize = 0
  let ended = false
  for (;;) {
    let from = p
    const room = <u32>(pageEnd - p)
    if (room < 16) {
      from = s + GATHER
      memory.fill(from, 0, 32)
      memory.copy(from, p, room)
    }
    let r = decode(s, op, from, at, mode)
    let length = r & 0xff
    if (length > room) {
      if (count) break
      second = fetchAddress(s, nextPage(s, linear))
      if (!second) return 0
      memory.copy(from + <usize>room, second, 16)
      r = decode(s, op, from, at, mode)
      length = r & 0xff
      if (<u64>length - 1 > limit) {
        raiseError(s, EXC_GP, 0)
        return 0
      }
      ended = (r & ENDS) != 0
      at += length
      p += length
      count = 1
      break
    }
    if (<u64>(at + length) - 1 > limit) {
      if (count) break
      raiseError(s, EXC_GP, 0)
      return 0
    }
    if ((r & ENDS) != 0) {
      if (mode < EDGE_LOW) linkable(op, address, at + length)
      if (count && isJcc(<u32>load<u16>(op))) {
        const both = fused(<u32>load<u16>(op - SIZEOF_OP), <u32>load<u16>(op))
        if (both) store<u16>(op - SIZEOF_OP, <u16>both)
      }
    }
    at += length
    p += length
    count++
    if ((r & ENDS) != 0) {
      ended = true
      break
    }
    if (p >= pageEnd || count == MAX_OPS || (mode & EDGE_HIGH) != 0) break
    op += SIZEOF_OP
  }
  let end = b + SIZEOF_BLOCK + SIZEOF_OP * <usize>count
  if (!ended) {
    memory.fill(end, 0, SIZEOF_OP)
    store<u16>(end, <u16>H_CONTINUE, OP_ID)
    store<u64>(end, <u64>at, OP_IMM)
    if (!second && p < pageEnd && mode < EDGE_LOW) store<u8>(end, 1, OP_SCALE)
    end += SIZEOF_OP
  }
  quietUnseen(b + SIZEOF_BLOCK, end)
  if (second) {
    end = b + SIZEOF_BLOCK + 2 * SIZEOF_OP
    memory.copy(end, s + GATHER, SIZEOF_OP)
    end += SIZEOF_OP
  }
  store<u32>(s, <u32>end, CPU_BLOCKS_TOP)
  store<u32>(b, count, BLOCK_COUNT)
  store<u32>(b, count, BLOCK_LENGTH)
  store<u32>(b, mode, BLOCK_MODE)
  store<u32>(b, <u32>address, BLOCK_FRAME)
  store<u32>(b, <u32>second, BLOCK_FRAME2)
  store<u32>(b, at, BLOCK_BYTES)
  const head = bucket(s, address)
  store<u32>(b, load<u32>(head), BLOCK_NEXT)
  store<u32>(head, <u32>b)
  const frames = frameBucket(s, address)
  store<u32>(b, load<u32>(frames), BLOCK_FRAME_NEXT)
  store<u32>(frames, <u32>b)
  markCode(s, address, second ? <u32>(pageEnd - address) : at)
  return b
}

/** Which chain slots of a relative branch may be linked: targets on the same page (same frame by then). */
function linkable(op: usize, address: usize, next: u32): void {
  if (!chained(<u32>load<u16>(op))) return
  const start = <u32>address & 0xfff
  const target = <i64>start + load<i64>(op, OP_IMM)
  const fall = start + next
  store<u8>(op, (target >= 0 && target < 0x1000 ? <u8>1 : 0) | (fall < 0x1000 ? <u8>2 : 0), OP_SCALE)
}

function frameBucket(s: usize, address: usize): usize {
  return s + VCPU_FRAME_BUCKETS + (((address >> 12) & 4095) << 2)
}

/** Mask of the 128-byte lines of a frame that `bytes` from `address` cover. */
function lineMask(address: usize, bytes: u32): u32 {
  const first = (<u32>address & 0xfff) >> 7
  const last = ((<u32>address & 0xfff) + bytes - 1) >> 7
  const upper: u32 = last >= 31 ? 0xffffffff : ((<u32>1) << (last + 1)) - 1
  return upper & ~(((<u32>1) << first) - 1)
}

function markCode(s: usize, address: usize, bytes: u32): void {
  if (!bytes) return
  const info = FRAME_INFO + (address >> 12) * SIZEOF_FRAME
  const old = load<u32>(info, FRAME_CODE)
  const mask = old | lineMask(address, bytes)
  if (mask == old) return
  store<u32>(info, mask, FRAME_CODE)
  if (!old) dropWriteTags(address & ~(<usize>0xfff))
}

/** Code bytes in these lines of `frame` change: drops the blocks of every vCPU. True if the block that `s` executes (CPU_OP) was hit. */
export function invalidateLines(s: usize, frame: usize, lines: u32): bool {
  const info = FRAME_INFO + (frame >> 12) * SIZEOF_FRAME
  const code = load<u32>(info, FRAME_CODE)
  if ((code & lines) == 0) return false
  const op = s ? <usize>load<u32>(s, CPU_OP) : 0
  let hit = false
  const count = load<u32>(GLOBAL, GLOBAL_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const v = <usize>load<u32>(GLOBAL + GLOBAL_VCPUS + ((<usize>i) << 2))
    let slot = frameBucket(v, frame)
    let b = <usize>load<u32>(slot)
    while (b) {
      const next = load<u32>(b, BLOCK_FRAME_NEXT)
      if (covers(b, frame, lines)) {
        store<u32>(b, DROPPED, BLOCK_COUNT)
        store<u32>(slot, next)
        unlink(v, b)
        if (v == s && op > b && op < b + SIZEOF_OP * <usize>(load<u32>(b, BLOCK_LENGTH) + 1)) hit = true
      } else slot = b + BLOCK_FRAME_NEXT
      b = <usize>next
    }
    // A cut block is a copy: it stops at the next boundary, which CPU_OP inside it makes now.
    if (v == s && op >= s + VCPU_PARTIAL && op < s + VCPU_PARTIAL + 0x1f00) hit = true
  }
  store<u32>(info, code & ~lines, FRAME_CODE)
  return hit
}

/** Takes a dropped block out of its hash bucket. */
function unlink(s: usize, b: usize): void {
  let slot = bucket(s, <usize>load<u32>(b, BLOCK_FRAME))
  while (<usize>load<u32>(slot) != b) slot = <usize>load<u32>(slot) + BLOCK_NEXT
  store<u32>(slot, load<u32>(b, BLOCK_NEXT))
}

function covers(b: usize, frame: usize, lines: u32): bool {
  const address = <usize>load<u32>(b, BLOCK_FRAME)
  if ((address & ~(<usize>0xfff)) != frame) return false
  const room: u32 = 0x1000 - (<u32>address & 0xfff)
  const bytes = load<u32>(b, BLOCK_BYTES)
  return (lineMask(address, bytes < room ? bytes : room) & lines) != 0
}

/** Drops every block of this vCPU. */
export function flushBlocks(s: usize): void {
  memory.fill(s + VCPU_BUCKETS, 0, VCPU_BUCKETS_SIZE)
  memory.fill(s + VCPU_FRAME_BUCKETS, 0, VCPU_FRAME_BUCKETS_SIZE)
  memory.fill(s + VCPU_JUMP, 0xff, VCPU_JUMP_SIZE)
  store<u32>(s, <u32>(s + VCPU_BLOCKS), CPU_BLOCKS_TOP)
  store<u32>(s, 0, CPU_LINK)
}
