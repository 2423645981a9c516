/**
 * Software TLB: three L1 arrays by privilege, an L2 with generations, a paging-structure cache.
 * A tag exists only where an access of that kind needs nothing but the bytes: page walk, slot, encryption view, code lines
 * and dirty log are all decided at fill. Owns VCPU_TLB_*, VCPU_TLB2, VCPU_PSC, the MMU structure, CPU_TLB_BASE.
 *
 * A context is a number (12 bits, never 0) that stands for one PCID since it was last flushed, or for all global entries since they
 * were: a flush gives out a new one.
 * L2 entry (16 bytes): u64 tag {11:0 context, 63:12 virtual page}, u32 data (L2_*), u32 MMU_CLEAN when quick.ts had checked the frame.
 * PSC entry (16 bytes): u64 tag {42:0 VA >> 21, 51:43 PSC generation, 63:52 context}, u32 address of the table that the walk goes
 * on in, u32 rights so far and level.
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
  CPU_TLB_CONTEXT,
  DEBUG_DATA,
  FRAME_CODE,
  FRAME_DIRTY,
  FRAME_KEY,
  GLOBAL,
  GLOBAL_VCPUS,
  GLOBAL_VCPU_COUNT,
  MMU_FLUSHES,
  MMU_CLEAN,
  MMU_CONTEXTS,
  MMU_GLOBAL_CONTEXT,
  MMU_LARGE_BASE,
  MMU_LARGE_MASK,
  MMU_PCIDS,
  MMU_PSC_GENERATION,
  MMU_QUICK,
  MMU_QUICK_ALLOW,
  MMU_QUICK_BIT,
  MMU_QUICK_GLOBAL,
  MMU_QUICK_LOCAL,
  MMU_QUICK_NOW,
  MMU_QUICK_PSC,
  MMU_QUICK_WANT,
  MMU_USED,
  MMU_FILLS,
  MMU_FILL_LIST,
  TLB_ADDEND,
  TLB_CODE,
  TLB_EXEC,
  TLB_READ,
  TLB_WRITE,
  VCPU_CONTEXTS,
  VCPU_CONTEXTS_SIZE,
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
  VCPU_MMU,
} from '../generated/layout'
import { CR0_AM, CR0_WP, CR4_PCIDE, CR4_SMAP, CR4_SMEP, FLAG_AC } from '../generated/registers'
export { CR0_WP, CR4_SMEP } from '../generated/registers'
import { watchedPage } from '../cpu/watch'
import { dropDense, newStamp } from './dense'
import { frameInfo } from './frames'

/** L1 arrays. */
export const USER: u32 = 0
export const SUPERVISOR: u32 = 1
export const SMAP: u32 = 2

/** Data word of an L2 entry; 31:12 are the frame. Bits 5:0 are a shift of QUICK_ALLOW; U and GLOBAL are where a page-table entry has them. */
export const L2_U: u32 = 4
export const L2_X: u32 = 8
export const L2_W: u32 = 0x10
/** Data accesses go through the private view. */
export const L2_PRIVATE: u32 = 0x80
/** D is set in the page-table entry, the dirty log has the page, and the slot is writable: a write tag may be installed. */
export const L2_STORE: u32 = 0x20
export const L2_VALID: u32 = 0x40
export const L2_GLOBAL: u32 = 0x100
export const L2_LARGE: u32 = 0x400
/** Word 12 of a PSC entry: L2_W, L2_U and L2_X of the way there, L2_VALID and L2_STORE, L2_GLOBAL if CR4.PGE is set, and PSC_LEVEL2. */
export const PSC_LEVEL2: u32 = 0x200

const NONE: u64 = ~0
/** 0xfff never comes up: ~0 is the tag of no entry. */
const CONTEXT_MAX: u32 = 0xffe
export const FILL_LIST_MAX: u32 = 900
/** Up to here entries are emptied one by one: the fill of an array takes as long as some 60. */
const FLUSH_SINGLY: u32 = 64

/** The L1 array for explicit accesses in the current state. */
export function currentArray(s: usize): u32 {
  if (load<u32>(s, CPU_CPL) == 3) return USER
  return (load<u64>(s, CPU_CR4) & CR4_SMAP) != 0 && (load<u64>(s, CPU_EFLAGS) & FLAG_AC) == 0 ? SMAP : SUPERVISOR
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
  return load<u32>(s, CPU_CPL) == 3 && (load<u64>(s, CPU_EFLAGS) & FLAG_AC) != 0 && (load<u64>(s, CPU_CR0) & CR0_AM) != 0
}

/** Chooses the L1 array from CPL, CR4.SMAP, CR0.AM and RFLAGS.AC. */
export function selectTlb(s: usize): void {
  const checked = alignmentChecked(s)
  const array: u32 = checked ? 3 : currentArray(s)
  store<u32>(s, <u32>(checked ? s + VCPU_TLB_EMPTY : arrayBase(s, array)), CPU_TLB_BASE)
  store<u64>(s, load<u64>(s + ((<usize>array) << 3), VCPU_MMU + MMU_QUICK_ALLOW), VCPU_MMU + MMU_QUICK_NOW)
  store<u32>(s, 1 << array, VCPU_MMU + MMU_QUICK_BIT)
}

/** The jump cache maps linear addresses too: a new generation in its key makes all of it stale. */
export function newJumpGeneration(s: usize): void {
  const key = load<u32>(s, CPU_JUMP_KEY) + 1024
  if (key < 1024) memory.fill(s + VCPU_JUMP, 0, VCPU_JUMP_SIZE)
  store<u32>(s, key, CPU_JUMP_KEY)
}

/** With a full list every array counts as used. */
function arraysUsed(s: usize, fills: u32): u32 {
  return fills < FILL_LIST_MAX ? load<u32>(s, VCPU_MMU + MMU_USED) : 7
}

function flushArrays(s: usize): void {
  const fills = load<u32>(s, VCPU_MMU + MMU_FILLS)
  if (fills <= FLUSH_SINGLY) {
    for (let i: u32 = 0; i < fills; i++) {
      const e = <usize>load<u32>(s + ((<usize>i) << 2), VCPU_MMU + MMU_FILL_LIST)
      store<u64>(e, NONE, TLB_READ)
      store<u64>(e, NONE, TLB_WRITE)
      store<u64>(e, NONE, TLB_EXEC)
    }
  } else {
    const used = arraysUsed(s, fills)
    for (let i: u32 = 0; i < 3; i++) {
      if ((used >> i) & 1) memory.fill(arrayBase(s, i), 0xff, VCPU_TLB_USER_SIZE)
    }
  }
  store<u32>(s, 0, VCPU_MMU + MMU_USED)
  store<u32>(s, 0, VCPU_MMU + MMU_FILLS)
  store<u64>(s, load<u64>(s, VCPU_MMU + MMU_FLUSHES) + 1, VCPU_MMU + MMU_FLUSHES)
  newJumpGeneration(s)
}

/** CR0.WP was set: no store of the supervisor may go on by a tag from before. */
export function dropSupervisorStores(s: usize): void {
  const fills = load<u32>(s, VCPU_MMU + MMU_FILLS)
  const first = arrayBase(s, SUPERVISOR)
  if (fills <= FLUSH_SINGLY) {
    for (let i: u32 = 0; i < fills; i++) {
      const e = <usize>load<u32>(s + ((<usize>i) << 2), VCPU_MMU + MMU_FILL_LIST)
      if (e >= first) store<u64>(e, NONE, TLB_WRITE)
    }
    return
  }
  // Emptied as a whole, the arrays leave the list: one that stays long would make the next change as slow.
  const used = arraysUsed(s, fills)
  const whole = fills >= FILL_LIST_MAX
  for (let i: u32 = whole ? 0 : 1; i < 3; i++) {
    if ((used >> i) & 1) memory.fill(arrayBase(s, i), 0xff, VCPU_TLB_USER_SIZE)
  }
  let kept: u32 = 0
  if (!whole) {
    for (let i: u32 = 0; i < fills; i++) {
      const e = load<u32>(s + ((<usize>i) << 2), VCPU_MMU + MMU_FILL_LIST)
      if (<usize>e >= first) continue
      store<u32>(s + ((<usize>kept) << 2), e, VCPU_MMU + MMU_FILL_LIST)
      kept++
    }
  }
  store<u32>(s, kept, VCPU_MMU + MMU_FILLS)
  store<u32>(s, whole ? 0 : used & 1, VCPU_MMU + MMU_USED)
}

function dropContexts(s: usize): void {
  if (load<u32>(s, VCPU_MMU + MMU_PCIDS)) memory.fill(s + VCPU_CONTEXTS, 0, VCPU_CONTEXTS_SIZE)
  else store<u32>(s, 0, VCPU_CONTEXTS)
  store<u32>(s, 0, VCPU_MMU + MMU_PCIDS)
}

function newContext(s: usize): u32 {
  const context = load<u32>(s, VCPU_MMU + MMU_CONTEXTS) + 1
  store<u32>(s, context, VCPU_MMU + MMU_CONTEXTS)
  if (context <= CONTEXT_MAX) return context
  memory.fill(s + VCPU_TLB2, 0, VCPU_TLB2_SIZE)
  memory.fill(s + VCPU_PSC, 0, VCPU_PSC_SIZE)
  dropContexts(s)
  store<u32>(s, 1, VCPU_MMU + MMU_GLOBAL_CONTEXT)
  store<u32>(s, 2, VCPU_MMU + MMU_CONTEXTS)
  return 2
}

/** Gives the current PCID its context: a new one, or with `keep` the one it has. */
function enterContext(s: usize, keep: bool): void {
  const id = <usize>pcid(s)
  let context: u32 = keep ? load<u32>(s + (id << 2), VCPU_CONTEXTS) : 0
  if (context == 0) {
    context = newContext(s)
    store<u32>(s + (id << 2), context, VCPU_CONTEXTS)
    if (id != 0) store<u32>(s, 1, VCPU_MMU + MMU_PCIDS)
  }
  store<u32>(s, context, CPU_TLB_CONTEXT)
  newStamp(s)
  quickTags(s)
}

/** MMU_QUICK: as quickPrepare left it, without and with use. */
export const PREPARED: u32 = 1
export const USABLE: u32 = 2

/** memory/quick.ts finds nothing until it is prepared again. */
function quickDrop(s: usize): void {
  newStamp(s)
  store<u32>(s, 0, VCPU_MMU + MMU_QUICK)
  store<u64>(s, NONE, VCPU_MMU + MMU_QUICK_LOCAL)
  store<u64>(s, NONE, VCPU_MMU + MMU_QUICK_GLOBAL)
  store<u64>(s, NONE, VCPU_MMU + MMU_QUICK_PSC)
  store<u64>(s, NONE, VCPU_MMU + MMU_QUICK_WANT)
}

/** Generations or PCID have changed. */
export function quickTags(s: usize): void {
  if (load<u32>(s, VCPU_MMU + MMU_QUICK) != USABLE) return
  store<u64>(s, l2Tag(s, 0, false), VCPU_MMU + MMU_QUICK_LOCAL)
  store<u64>(s, l2Tag(s, 0, true), VCPU_MMU + MMU_QUICK_GLOBAL)
  store<u64>(s, pscTag(s, 0), VCPU_MMU + MMU_QUICK_PSC)
}

/** A zeroed arena holds tags of page 0: makes the L1 arrays empty. */
export function initTlb(s: usize): void {
  store<u32>(s, 7, VCPU_MMU + MMU_USED)
  store<u32>(s, FLUSH_SINGLY + 1, VCPU_MMU + MMU_FILLS)
  store<u32>(s, 1, VCPU_MMU + MMU_CLEAN)
  memory.fill(s + VCPU_TLB_EMPTY, 0xff, VCPU_TLB_EMPTY_SIZE)
  flushTlb(s)
  selectTlb(s)
}

/** Everything, global entries included; new jump-cache generation. */
export function flushTlb(s: usize): void {
  quickDrop(s)
  flushArrays(s)
  dropContexts(s)
  store<u32>(s, newContext(s), VCPU_MMU + MMU_GLOBAL_CONTEXT)
  enterContext(s, false)
  store<u64>(s, NONE, VCPU_MMU + MMU_LARGE_BASE)
  store<u64>(s, 0, VCPU_MMU + MMU_LARGE_MASK)
}

/** MOV to CR3: the entries of the new PCID go; global ones come back from L2. */
export function flushTlbLocal(s: usize): void {
  flushArrays(s)
  enterContext(s, false)
}

/** MOV to CR3 with bit 63 set under PCIDE: nothing is invalidated, but the L1 arrays know no PCID. */
export function flushTlbArrays(s: usize): void {
  flushArrays(s)
  enterContext(s, true)
}

/** INVPCID of one context. */
export function flushPcid(s: usize, id: u32): void {
  if (<u64>id == pcid(s)) flushTlbLocal(s)
  else store<u32>(s + ((<usize>id) << 2), 0, VCPU_CONTEXTS)
}

/** INVPCID of all contexts, global entries excepted. */
export function flushPcids(s: usize): void {
  dropContexts(s)
  flushTlbLocal(s)
}

/** Tag of an L2 entry. */
export function l2Tag(s: usize, va: u64, isGlobal: bool): u64 {
  const context = isGlobal ? load<u32>(s, VCPU_MMU + MMU_GLOBAL_CONTEXT) : load<u32>(s, CPU_TLB_CONTEXT)
  return (va & ~0xfff) | <u64>context
}

export function l2Entry(s: usize, va: u64): usize {
  const vpn = va >> 12
  return s + VCPU_TLB2 + ((<usize>((vpn ^ (vpn >> 16)) & 65535)) << 4)
}

function pcid(s: usize): u64 {
  return (load<u64>(s, CPU_CR4) & CR4_PCIDE) != 0 ? load<u64>(s, CPU_CR3) & 0xfff : 0
}

export function pscTag(s: usize, va: u64): u64 {
  return (va >> 21) | ((<u64>load<u32>(s, VCPU_MMU + MMU_PSC_GENERATION)) << 43) | ((<u64>load<u32>(s, CPU_TLB_CONTEXT)) << 52)
}

export function pscEntry(s: usize, va: u64): usize {
  return s + VCPU_PSC + ((<usize>((va >> 21) & 511)) << 4)
}

/** Remembers that a page larger than 4 KiB was cached in pieces. */
export function noteLarge(s: usize, va: u64, size: u64): void {
  let base = load<u64>(s, VCPU_MMU + MMU_LARGE_BASE)
  let mask = load<u64>(s, VCPU_MMU + MMU_LARGE_MASK)
  if (base == NONE) {
    mask = ~(size - 1)
    base = va & mask
  } else {
    mask &= ~(size - 1)
    while (((va ^ base) & mask) != 0) mask <<= 1
    base &= mask
  }
  store<u64>(s, base, VCPU_MMU + MMU_LARGE_BASE)
  store<u64>(s, mask, VCPU_MMU + MMU_LARGE_MASK)
}

/** INVLPG: every translation of the page, global ones too, and all paging-structure entries (SDM vol 3, 4.10.4.1). */
export function invalidatePage(s: usize, va: u64): void {
  const l2 = l2Entry(s, va)
  const tag = load<u64>(l2)
  const data = load<u32>(l2, 8)
  const known = (data & L2_VALID) != 0 && (tag == l2Tag(s, va, false) || tag == l2Tag(s, va, true))
  if (!known || data & L2_LARGE) {
    if ((va & load<u64>(s, VCPU_MMU + MMU_LARGE_MASK)) == load<u64>(s, VCPU_MMU + MMU_LARGE_BASE)) {
      flushTlb(s)
      return
    }
  }
  store<u64>(l2, 0)
  store<u64>(l2, 0, 8)
  dropDense(s, va)
  const generation = (load<u32>(s, VCPU_MMU + MMU_PSC_GENERATION) + 1) & 511
  store<u32>(s, generation, VCPU_MMU + MMU_PSC_GENERATION)
  if (generation == 0) memory.fill(s + VCPU_PSC, 0, VCPU_PSC_SIZE)
  quickTags(s)
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
    store<u32>(s, load<u32>(s, VCPU_MMU + MMU_CLEAN) + 1, VCPU_MMU + MMU_CLEAN)
    newStamp(s)
    const count = load<u32>(s, VCPU_MMU + MMU_FILLS)
    if (count >= FILL_LIST_MAX) {
      const end = arrayBase(s, 3)
      for (let e = arrayBase(s, 0); e < end; e += 32) dropWriteTag(e, frame)
    } else {
      for (let k: u32 = 0; k < count; k++) dropWriteTag(<usize>load<u32>(s + ((<usize>k) << 2), VCPU_MMU + MMU_FILL_LIST), frame)
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
  if (w != NONE) store<u8>(info, load<u8>(info, FRAME_DIRTY) | 1, FRAME_DIRTY)
  const fills = load<u32>(s, VCPU_MMU + MMU_FILLS)
  store<u32>(s, load<u32>(s, VCPU_MMU + MMU_USED) | (1 << array), VCPU_MMU + MMU_USED)
  if (fills < FILL_LIST_MAX) {
    store<u32>(s + ((<usize>fills) << 2), <u32>e, VCPU_MMU + MMU_FILL_LIST)
    store<u32>(s, fills + 1, VCPU_MMU + MMU_FILLS)
  }
}
