/**
 * What one access to one page comes to: plain bytes, bytes that need care (other encryption view, code lines), MMIO, or a
 * reason to leave. All policy is paid here, and installed in the TLBs. The result is in address/gpa/view.
 */
import {
  CPU_APIC_BASE,
  CPU_CR0,
  CPU_CR4,
  CPU_DEBUG_ARMED,
  CPU_EFER,
  CPU_LEAVE,
  CPU_STOP_DETAIL,
  CPU_STOP_REASON,
  CPU_TLB_BASE,
  VCPU_TLB_EMPTY,
  CPU_VM,
  DEBUG_DATA,
  EXC_GP,
  EXC_SS,
  FRAME_CODE,
  FRAME_DIRTY,
  LEAVE_EXIT_RETRY,
  MMU_QUICK,
  SLOT_DIRTY_BITMAP,
  SLOT_FLAGS,
  SLOT_GPA,
  CPU_STOP_INFO,
  STOP_FETCH_MMIO,
  STOP_MEMORY_FAULT,
  STOP_OUT_OF_MEMORY,
  STOP_RING_FULL,
  VCPU_MMU,
  VM_ASID,
  VM_IRQCHIP,
} from '../generated/layout'
import { CR0_WP, CR4_LA57, CR4_SMEP, EFER_LMA } from '../generated/registers'
import { raiseError, raisePageFault } from '../cpu/exceptions'
import { watchedPage } from '../cpu/watch'
import {
  EXEC,
  READ,
  walk,
  walkData,
  walkDirty,
  walkError,
  walkGpa,
  walkMissing,
  WALK_MISSING,
  walkRestricted,
  WALK_FAULT,
  WALK_OK,
  WRITE,
} from '../paging/walk'
import { frameInfo } from './frames'
import { isPrivate } from './attributes'
import { ringNews } from './dirty-ring'
import { quickPrepare } from './quick'
import { dirtyMark, MEM_READONLY, memoryFrame, MISMATCH, noteUnit, slotFind } from './slots'
import {
  currentArray,
  fillEntry,
  implicitArray,
  l2Entry,
  l2Tag,
  L2_GLOBAL,
  L2_PRIVATE,
  L2_STORE,
  L2_U,
  L2_VALID,
  L2_W,
  L2_X,
  SMAP,
  USER,
} from './tlb'
import { convert, countWrong, matches } from './views'

/** How an access is made: READ, WRITE or EXEC in bits 1:0, plus these. */
export const IMPLICIT: u32 = 4
export const STACK: u32 = 8

export const PLAIN: u32 = 0
/** RAM, through viewRead / writeRam only. */
const SPECIAL: u32 = 1
export const MMIO: u32 = 2
export const LEFT: u32 = 3

/** Linear address of the byte (PLAIN, SPECIAL). */
export let address: usize = 0
/** Guest-physical address of the byte (MMIO). */
export let gpa: u64 = 0
/** ASID key of the view this access uses (PLAIN, SPECIAL). */
export let view: u32 = 0

const APIC_ENABLED: u64 = 1 << 11
const APIC_X2: u64 = 1 << 10

function stop(s: usize, reason: u32, detail: u64): u32 {
  store<u32>(s, reason, CPU_STOP_REASON)
  store<u64>(s, detail, CPU_STOP_DETAIL)
  store<u32>(s, LEAVE_EXIT_RETRY, CPU_LEAVE)
  return LEFT
}

/** KVM_EXIT_MEMORY_FAULT: the access is private exactly where the attribute says so, and finds no such memory. */
function memoryFault(s: usize, page: u64): u32 {
  store<u64>(s, isPrivate(<usize>load<u32>(s, CPU_VM), page) ? 1 : 0, CPU_STOP_INFO)
  return stop(s, STOP_MEMORY_FAULT, page)
}

/** Whether `va` is canonical for the paging mode; always true outside of long mode. */
export function canonical(s: usize, va: u64): bool {
  if ((load<u64>(s, CPU_EFER) & EFER_LMA) == 0) return true
  const shift: i64 = (load<u64>(s, CPU_CR4) & CR4_LA57) != 0 ? 7 : 16
  return <u64>(<i64>(va << shift) >> shift) == va
}

/** Linear addresses have 32 bits outside of long mode. */
export function truncate(s: usize, va: u64): u64 {
  return (load<u64>(s, CPU_EFER) & EFER_LMA) != 0 ? va : va & 0xffffffff
}

function permitted(s: usize, data: u32, array: u32, access: u32): bool {
  const user = (data & L2_U) != 0
  if (array == USER && !user) return false
  if (access == EXEC) return (data & L2_X) != 0 && (array == USER || !user || (load<u64>(s, CPU_CR4) & CR4_SMEP) == 0)
  if (array == SMAP && user) return false
  if (access == READ) return true
  return (data & L2_STORE) != 0 && ((data & L2_W) != 0 || (array != USER && (load<u64>(s, CPU_CR0) & CR0_WP) == 0))
}

/** The frame is known: view and code lines decide between PLAIN and SPECIAL. */
function finish(s: usize, va: u64, data: u32, array: u32, access: u32, install: bool): u32 {
  const frame = <usize>(data & ~0xfff)
  const codeKey = load<u32>(<usize>load<u32>(s, CPU_VM), VM_ASID)
  const dataKey: u32 = data & L2_PRIVATE ? codeKey : 0
  view = access == EXEC ? codeKey : dataKey
  address = frame + <usize>(va & 0xfff)
  let plain: bool = true
  if (!matches(frame, view)) {
    if (access == EXEC) convert(frame, view)
    else plain = countWrong(frame, view)
  }
  if (!plain) return SPECIAL // no tag would be set for this kind of access
  if (install) fillEntry(s, array, va, data, dataKey, codeKey)
  return access == WRITE && load<u32>(frameInfo(frame), FRAME_CODE) != 0 ? SPECIAL : PLAIN
}

/**
 * Address of plain RAM at `va` from the L2 TLB alone, 0 if it has to be resolved: for bulk forms whose two pages share one
 * L1 entry (4 MiB apart), which would evict each other at every element.
 */
export function knownPlain(s: usize, va: u64, access: u32): usize {
  // Where alignment is checked, and where a byte is watched, every access is looked at.
  if (load<u32>(s, CPU_TLB_BASE) == <u32>(s + VCPU_TLB_EMPTY)) return 0
  if ((load<u32>(s, CPU_DEBUG_ARMED) & DEBUG_DATA) != 0 && watchedPage(s, va)) return 0
  const l2 = l2Entry(s, va)
  const data = load<u32>(l2, 8)
  if ((data & L2_VALID) == 0 || load<u64>(l2) != l2Tag(s, va, (data & L2_GLOBAL) != 0)) return 0
  if (!permitted(s, data, currentArray(s), access)) return 0
  const frame = <usize>(data & ~0xfff)
  const key: u32 = data & L2_PRIVATE ? load<u32>(<usize>load<u32>(s, CPU_VM), VM_ASID) : 0
  if (!matches(frame, key) || (access == WRITE && load<u32>(frameInfo(frame), FRAME_CODE) != 0)) return 0
  return frame + <usize>(va & 0xfff)
}

/** The in-kernel local APIC lies over whatever is at its page, for its own vCPU. */
function isApicPage(s: usize, page: u64): bool {
  const base = load<u64>(s, CPU_APIC_BASE)
  return (
    (base & 0x000ffffffffff000) == page &&
    (base & (APIC_ENABLED | APIC_X2)) == APIC_ENABLED &&
    load<u32>(<usize>load<u32>(s, CPU_VM), VM_IRQCHIP) != 0
  )
}

/** Resolves `va` (see truncate) for an access that stays inside its page. */
export function translate(s: usize, va: u64, how: u32): u32 {
  const access = how & 3
  const array = how & IMPLICIT ? implicitArray(s) : currentArray(s)
  if (!canonical(s, va)) {
    raiseError(s, how & STACK ? EXC_SS : EXC_GP, 0)
    return LEFT
  }
  if (load<u32>(s, VCPU_MMU + MMU_QUICK) == 0) quickPrepare(s)
  const l2 = l2Entry(s, va)
  const known = load<u32>(l2, 8)
  if (known & L2_VALID) {
    const tag = load<u64>(l2)
    if (tag == l2Tag(s, va, (known & L2_GLOBAL) != 0) && permitted(s, known, array, access))
      return finish(s, va, known, array, access, true)
  }

  const walked = walk(s, va, access, array == USER, array == SMAP, false)
  if (walked != WALK_OK) {
    if (walked == WALK_MISSING) return memoryFault(s, walkMissing)
    if (walked != WALK_FAULT) return stop(s, STOP_OUT_OF_MEMORY, va)
    raisePageFault(s, va, walkError)
    return LEFT
  }
  const page = walkGpa
  gpa = page | (va & 0xfff)
  const slot: usize = isApicPage(s, page) ? 0 : slotFind(<usize>load<u32>(s, CPU_VM), page)
  const vm = <usize>load<u32>(s, CPU_VM)
  if (slot == 0) {
    if (isPrivate(vm, page)) return memoryFault(s, page)
    return access == EXEC ? stop(s, STOP_FETCH_MMIO, gpa) : MMIO
  }
  const frame = memoryFrame(vm, slot, page)
  if (frame == MISMATCH) return memoryFault(s, page)
  if (frame == 0) return stop(s, STOP_OUT_OF_MEMORY, gpa)
  const readonly = (load<u32>(slot, SLOT_FLAGS) & MEM_READONLY) != 0
  if (readonly && access == WRITE) return MMIO

  noteUnit(vm, slot, page)
  const info = frameInfo(frame)
  if (access == WRITE) {
    dirtyMark(vm, slot, page)
    store<u8>(info, load<u8>(info, FRAME_DIRTY) | 1, FRAME_DIRTY)
  }
  if (ringNews(s)) return stop(s, STOP_RING_FULL, gpa) // pushed and full: the access is made after userspace has collected
  let data = walkData | <u32>frame | L2_VALID
  if (walkDirty && !readonly && (access == WRITE || ((load<u8>(info, FRAME_DIRTY) & 1) != 0 && isLogged(slot, page)))) data |= L2_STORE
  if (walkRestricted) return finish(s, va, data, array, access, false)
  store<u64>(l2, l2Tag(s, va, (data & L2_GLOBAL) != 0))
  store<u64>(l2, <u64>data, 8)
  return finish(s, va, data, array, access, true)
}

/** True if a store to the page needs no entry in the dirty log any more. */
function isLogged(slot: usize, page: u64): bool {
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap == 0) return true
  const n = (page - load<u64>(slot, SLOT_GPA)) >> 12
  return ((load<u8>(bitmap + <usize>(n >> 3)) >> <u8>(n & 7)) & 1) != 0
}
