/**
 * Software TLB: three L1 arrays by privilege, an L2 with generations, a paging-structure cache (facts/memory.md section 1).
 * A tag exists only where an access of that kind needs nothing but the bytes: page walk, slot, encryption view, code lines
 * and dirty log are all decided at fill. Owns VCPU_TLB_*, VCPU_TLB2, VCPU_PSC, the MMU structure, CPU_TLB_BASE.
 *
 * L2 entry (16 bytes): u64 tag {44:0 virtual page, 56:45 PCID, 57 global, 63:58 generation}, u32 data (L2_*), u32 0.
 * PSC entry (16 bytes): u64 tag {35:0 VA >> 21, 44:36 PSC generation, 56:45 PCID, 63:58 generation}, u32 address of the table
 * that the walk goes on in, u32 rights so far and level (paging/walk.ts).
 */
import {
  CPU_CPL,
  CPU_CR0,
  CPU_CR3,
  CPU_CR4,
  CPU_DEBUG_ARMED,
  CPU_EFLAGS,
  CPU_JUMP_KEY,
  CPU_TLB_BASE,
  CPU_TLB_GENERATION,
  DEBUG_DATA,
  FRAME_CODE,
  FRAME_DIRTY,
  FRAME_KEY,
  GLOBAL,
  GLOBAL_VCPUS,
  GLOBAL_VCPU_COUNT,
  MMU_FLUSHES,
  MMU_GLOBAL_GENERATION,
  MMU_LARGE_BASE,
  MMU_LARGE_MASK,
  MMU_PSC_GENERATION,
  MMU_USED,
  MMU_WRITE_COUNT,
  MMU_WRITE_LIST,
  TLB_ADDEND,
  TLB_CODE,
  TLB_EXEC,
  TLB_READ,
  TLB_WRITE,
  VCPU_JUMP,
  VCPU_JUMP_SIZE,
  VCPU_PSC,
  VCPU_PSC_SIZE,
  VCPU_TLB2,
  VCPU_TLB_EMPTY,
  VCPU_TLB_EMPTY_SIZE,
  VCPU_TLB2_SIZE,
  VCPU_TLB_USER,
  VCPU_TLB_USER_SIZE,
  VCPU_WRITE_LIST,
} from '../generated/layout'
import { watchedPage } from '../cpu/watch'
import { frameInfo } from './frames'

/** L1 arrays. */
export const USER: u32 = 0
export const SUPERVISOR: u32 = 1
export const SMAP: u32 = 2

export const CR0_WP: u64 = 1 << 16
const CR0_AM: u64 = 1 << 18
export const CR4_SMEP: u64 = 1 << 20
export const CR4_SMAP: u64 = 1 << 21
export const CR4_PCIDE: u64 = 1 << 17
const RFLAGS_AC: u64 = 1 << 18

/** Data word of an L2 entry; 31:12 are the frame. */
export const L2_VALID: u32 = 1
export const L2_W: u32 = 2
export const L2_X: u32 = 4
export const L2_U: u32 = 8
/** D is set in the page-table entry, the dirty log has the page, and the slot is writable: a write tag may be installed. */
export const L2_STORE: u32 = 16
/** Data accesses go through the private view. */
export const L2_PRIVATE: u32 = 32
export const L2_GLOBAL: u32 = 64
export const L2_LARGE: u32 = 256

const NONE: u64 = ~0
const VPN_MASK: u64 = (1 << 45) - 1
const GLOBAL_BIT: u64 = 1 << 57
const WRITE_LIST_MAX: u32 = 1000

/** The L1 array for explicit accesses in the current state. */
export function currentArray(s: usize): u32 {
  if (load<u32>(s, CPU_CPL) == 3) return USER
  return (load<u64>(s, CPU_CR4) & CR4_SMAP) != 0 && (load<u64>(s, CPU_EFLAGS) & RFLAGS_AC) == 0 ? SMAP : SUPERVISOR
}

/** The L1 array for implicit supervisor accesses: these ignore AC (SDM vol 3, 4.6.1). */
export function implicitArray(s: usize): u32 {
  return (load<u64>(s, CPU_CR4) & CR4_SMAP) != 0 ? SMAP : SUPERVISOR
}

export function arrayBase(s: usize, array: u32): usize {
  return s + VCPU_TLB_USER + <usize>array * VCPU_TLB_USER_SIZE
}

/** CPL 3 with CR0.AM and RFLAGS.AC: every access is looked at (SDM vol 3, 6.15, #AC). */
export function alignmentChecked(s: usize): bool {
  return load<u32>(s, CPU_CPL) == 3 && (load<u64>(s, CPU_EFLAGS) & RFLAGS_AC) != 0 && (load<u64>(s, CPU_CR0) & CR0_AM) != 0
}

/** Chooses the L1 array from CPL, CR4.SMAP, CR0.AM and RFLAGS.AC. */
export function selectTlb(s: usize): void {
  const base = alignmentChecked(s) ? s + VCPU_TLB_EMPTY : arrayBase(s, currentArray(s))
  store<u32>(s, <u32>base, CPU_TLB_BASE)
}

/** The jump cache maps linear addresses too: a new generation in its key makes all of it stale. */
function newJumpGeneration(s: usize): void {
  const key = load<u32>(s, CPU_JUMP_KEY) + 1024
  if (key < 1024) memory.fill(s + VCPU_JUMP, 0, VCPU_JUMP_SIZE)
  store<u32>(s, key, CPU_JUMP_KEY)
}

function flushArrays(s: usize): void {
  const used = load<u32>(s, VCPU_WRITE_LIST + MMU_USED)
  for (let i: u32 = 0; i < 3; i++) {
    if ((used >> i) & 1) memory.fill(arrayBase(s, i), 0xff, VCPU_TLB_USER_SIZE)
  }
  store<u32>(s, 0, VCPU_WRITE_LIST + MMU_USED)
  store<u32>(s, 0, VCPU_WRITE_LIST + MMU_WRITE_COUNT)
  store<u64>(s, load<u64>(s, VCPU_WRITE_LIST + MMU_FLUSHES) + 1, VCPU_WRITE_LIST + MMU_FLUSHES)
  newJumpGeneration(s)
}

function newGeneration(s: usize): void {
  const generation = (load<u32>(s, CPU_TLB_GENERATION) + 1) & 63
  store<u32>(s, generation, CPU_TLB_GENERATION)
  if (generation == 0) {
    memory.fill(s + VCPU_TLB2, 0, VCPU_TLB2_SIZE)
    memory.fill(s + VCPU_PSC, 0, VCPU_PSC_SIZE)
  }
}

/** A zeroed arena holds tags of page 0: makes the L1 arrays empty. */
export function initTlb(s: usize): void {
  store<u32>(s, 7, VCPU_WRITE_LIST + MMU_USED)
  memory.fill(s + VCPU_TLB_EMPTY, 0xff, VCPU_TLB_EMPTY_SIZE)
  flushTlb(s)
  selectTlb(s)
}

/** Everything, global entries included; new jump-cache generation. */
export function flushTlb(s: usize): void {
  flushArrays(s)
  newGeneration(s)
  const generation = (load<u32>(s, VCPU_WRITE_LIST + MMU_GLOBAL_GENERATION) + 1) & 63
  store<u32>(s, generation, VCPU_WRITE_LIST + MMU_GLOBAL_GENERATION)
  if (generation == 0) memory.fill(s + VCPU_TLB2, 0, VCPU_TLB2_SIZE)
  store<u64>(s, NONE, VCPU_WRITE_LIST + MMU_LARGE_BASE)
  store<u64>(s, 0, VCPU_WRITE_LIST + MMU_LARGE_MASK)
}

/** MOV to CR3: keeps global entries (they come back from L2). */
export function flushTlbLocal(s: usize): void {
  flushArrays(s)
  newGeneration(s)
}

/** MOV to CR3 with bit 63 set under PCIDE: nothing is invalidated, but the L1 arrays know no PCID. */
export function flushTlbArrays(s: usize): void {
  flushArrays(s)
}

/** Tag of an L2 entry. */
export function l2Tag(s: usize, va: u64, isGlobal: bool): u64 {
  const vpn = (va >> 12) & VPN_MASK
  if (isGlobal) return vpn | GLOBAL_BIT | ((<u64>load<u32>(s, VCPU_WRITE_LIST + MMU_GLOBAL_GENERATION)) << 58)
  return vpn | (pcid(s) << 45) | ((<u64>load<u32>(s, CPU_TLB_GENERATION)) << 58)
}

export function l2Entry(s: usize, va: u64): usize {
  const vpn = va >> 12
  return s + VCPU_TLB2 + ((<usize>((vpn ^ (vpn >> 13)) & 8191)) << 4)
}

export function pcid(s: usize): u64 {
  return (load<u64>(s, CPU_CR4) & CR4_PCIDE) != 0 ? load<u64>(s, CPU_CR3) & 0xfff : 0
}

export function pscTag(s: usize, va: u64): u64 {
  return (
    ((va >> 21) & 0xfffffffff) |
    ((<u64>load<u32>(s, VCPU_WRITE_LIST + MMU_PSC_GENERATION)) << 36) |
    (pcid(s) << 45) |
    ((<u64>load<u32>(s, CPU_TLB_GENERATION)) << 58)
  )
}

export function pscEntry(s: usize, va: u64): usize {
  return s + VCPU_PSC + ((<usize>((va >> 21) & 511)) << 4)
}

/** Remembers that a page larger than 4 KiB was cached in pieces. */
export function noteLarge(s: usize, va: u64, size: u64): void {
  let base = load<u64>(s, VCPU_WRITE_LIST + MMU_LARGE_BASE)
  let mask = load<u64>(s, VCPU_WRITE_LIST + MMU_LARGE_MASK)
  if (base == NONE) {
    mask = ~(size - 1)
    base = va & mask
  } else {
    mask &= ~(size - 1)
    while (((va ^ base) & mask) != 0) mask <<= 1
    base &= mask
  }
  store<u64>(s, base, VCPU_WRITE_LIST + MMU_LARGE_BASE)
  store<u64>(s, mask, VCPU_WRITE_LIST + MMU_LARGE_MASK)
}

/** INVLPG: every translation of the page, global ones too, and all paging-structure entries (SDM vol 3, 4.10.4.1). */
export function invalidatePage(s: usize, va: u64): void {
  const l2 = l2Entry(s, va)
  const tag = load<u64>(l2)
  const data = load<u32>(l2, 8)
  const known = (data & L2_VALID) != 0 && (tag == l2Tag(s, va, false) || tag == l2Tag(s, va, true))
  if (!known || data & L2_LARGE) {
    if ((va & load<u64>(s, VCPU_WRITE_LIST + MMU_LARGE_MASK)) == load<u64>(s, VCPU_WRITE_LIST + MMU_LARGE_BASE)) {
      flushTlb(s)
      return
    }
  }
  store<u64>(l2, 0)
  store<u32>(l2, 0, 8)
  const generation = (load<u32>(s, VCPU_WRITE_LIST + MMU_PSC_GENERATION) + 1) & 511
  store<u32>(s, generation, VCPU_WRITE_LIST + MMU_PSC_GENERATION)
  if (generation == 0) memory.fill(s + VCPU_PSC, 0, VCPU_PSC_SIZE)
  const page = va & ~0xfff
  const offset = <usize>((va >> 7) & 0x7fe0)
  for (let i: u32 = 0; i < 3; i++) {
    const e = arrayBase(s, i) + offset
    if (load<u64>(e, TLB_READ) != page && load<u64>(e, TLB_EXEC) != page && load<u64>(e, TLB_WRITE) != page) continue
    store<u64>(e, NONE, TLB_READ)
    store<u64>(e, NONE, TLB_WRITE)
    store<u64>(e, NONE, TLB_EXEC)
  }
  newJumpGeneration(s)
}

/** All vCPUs of all VMs. The one place where cross-thread shootdown will wait for acknowledgements. */
export function flushEverywhere(): void {
  const n = load<u32>(GLOBAL, GLOBAL_VCPU_COUNT)
  for (let i: u32 = 0; i < n; i++) flushTlb(<usize>load<u32>(GLOBAL + ((<usize>i) << 2), GLOBAL_VCPUS))
}

/** Every translation of one frame in all vCPUs. A whole flush (0.6 us) is cheaper than finding the entries. */
export function flushFrame(frame: usize): void {
  flushEverywhere()
}

/** The frame becomes code (decode/cache.ts): its write tags go, in all vCPUs. */
export function dropWriteTags(frame: usize): void {
  const n = load<u32>(GLOBAL, GLOBAL_VCPU_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const s = <usize>load<u32>(GLOBAL + ((<usize>i) << 2), GLOBAL_VCPUS)
    const count = load<u32>(s, VCPU_WRITE_LIST + MMU_WRITE_COUNT)
    if (count > WRITE_LIST_MAX) {
      const end = arrayBase(s, 3)
      for (let e = arrayBase(s, 0); e < end; e += 32) dropWriteTag(e, frame)
    } else {
      for (let k: u32 = 0; k < count; k++) dropWriteTag(<usize>load<u32>(s + ((<usize>k) << 2), VCPU_WRITE_LIST + MMU_WRITE_LIST), frame)
    }
  }
}

function dropWriteTag(e: usize, frame: usize): void {
  const tag = load<u64>(e, TLB_WRITE)
  if (tag != NONE && <u32>tag + load<u32>(e, TLB_ADDEND) == <u32>frame) {
    store<u64>(e, NONE, TLB_WRITE)
    store<u32>(e, 1, TLB_CODE)
  }
}

/**
 * Installs what L2 word `data` allows for the page of `va` in one L1 array. dataKey and codeKey are the views of data
 * accesses and of fetches: only the frame's stored form gets tags.
 */
export function fillEntry(s: usize, array: u32, va: u64, data: u32, dataKey: u32, codeKey: u32): void {
  const e = arrayBase(s, array) + <usize>((va >> 7) & 0x7fe0)
  const frame = <usize>(data & ~0xfff)
  const page = va & ~0xfff
  const info = frameInfo(frame)
  const key = <u32>load<u16>(info, FRAME_KEY)
  const user = (data & L2_U) != 0
  let r = NONE
  let w = NONE
  let x = NONE
  let code: u32 = 0
  if (key == dataKey && (array == USER ? user : array == SUPERVISOR || !user)) {
    r = page
    if (data & L2_STORE && (data & L2_W || (array != USER && (load<u64>(s, CPU_CR0) & CR0_WP) == 0))) {
      if (load<u32>(info, FRAME_CODE) == 0) w = page
      else code = 1
    }
  }
  if ((load<u32>(s, CPU_DEBUG_ARMED) & DEBUG_DATA) != 0 && watchedPage(s, page)) {
    r = NONE
    w = NONE
    code = 0
  }
  if (key == codeKey && data & L2_X && (array == USER ? user : !user || (load<u64>(s, CPU_CR4) & CR4_SMEP) == 0)) x = page
  store<u64>(e, r, TLB_READ)
  store<u64>(e, w, TLB_WRITE)
  store<u64>(e, x, TLB_EXEC)
  store<u32>(e, <u32>frame - <u32>page, TLB_ADDEND)
  store<u32>(e, code, TLB_CODE)
  store<u32>(s, load<u32>(s, VCPU_WRITE_LIST + MMU_USED) | (1 << array), VCPU_WRITE_LIST + MMU_USED)
  if (w != NONE) {
    store<u8>(info, load<u8>(info, FRAME_DIRTY) | 1, FRAME_DIRTY)
    const count = load<u32>(s, VCPU_WRITE_LIST + MMU_WRITE_COUNT)
    if (count < WRITE_LIST_MAX) store<u32>(s + ((<usize>count) << 2), <u32>e, VCPU_WRITE_LIST + MMU_WRITE_LIST)
    if (count <= WRITE_LIST_MAX) store<u32>(s, count + 1, VCPU_WRITE_LIST + MMU_WRITE_COUNT)
  }
}
