/**
 * Memory slots: guest-physical address -> page of a backing (KVM_SET_USER_MEMORY_REGION).
 * Owns VM_SLOTS, VM_SLOT_COUNT, VM_SLOT_MAP and the SLOT structures. A u16 per 2 MiB of the first 8 GiB names the slot
 * that covers all of it; units with several slots or a partial one, and everything above, are searched.
 */
import {
  BACKING_FRAMES,
  BACKING_PAGES,
  SIZEOF_SLOT,
  SLOT_BACKING,
  SLOT_DIRTY_BITMAP,
  SLOT_FLAGS,
  SLOT_GPA,
  SLOT_ID,
  SLOT_OFFSET_PAGES,
  SLOT_PRIVATE,
  SLOT_PRIVATE_OFFSET,
  SLOT_SIZE,
  VM_MANUAL_PROTECT,
  VM_PRIVATE_COUNT,
  VM_RING_ENTRIES,
  VM_SLOT_CAPACITY,
  VM_SLOTS,
  VM_SLOT_COUNT,
  VM_SLOT_MAP,
  VM_UNITS,
} from '../generated/layout'
import { isPrivate, privateFree } from './attributes'
import { backingFrame, backingFree, backingPeek, backingRetain } from './backing'
import { ringPush } from './dirty-ring'
import { allocPages, freePages, pagesFor } from './frames'
import { flushEverywhere } from './tlb'

const SLOTS_FIRST: u32 = 512
/** KVM_USER_MEM_SLOTS. */
const SLOTS_MAX: u32 = 32764
const MAP_PAGES: u32 = 2 // 4096 * u16
const UNITS_PAGES: u32 = 5 // 4096 * u32, and 512 zeros
const ZEROS: usize = 0x4000
const MAP_REACH: u64 = 0x200000000 // 8 GiB
const SEVERAL: u16 = 0xffff

/** KVM_MEM_* (include/uapi/linux/kvm.h). */
const MEM_LOG_DIRTY: u32 = 1
export const MEM_READONLY: u32 = 2
/** Our own: no memory of the VMM behind userspace_addr; all accesses go to the guest_memfd (KVM_MEMSLOT_GMEM_ONLY). */
const SLOT_NO_SHARED: u32 = 1 << 30
const SLOT_GMEM_ONLY: u32 = 1 << 31
/** No frame: memory the page should come from is not there (see memoryFrame). */
export const MISMATCH: usize = 1

const ENOENT: i32 = -2
const ENOMEM: i32 = -12
const EFAULT: i32 = -14
const EEXIST: i32 = -17
const EINVAL: i32 = -22
const ENOSPC: i32 = -28

/** Address space of the accesses that follow: 1 while a vCPU runs in system management mode, else 0 (kvm_arch_vcpu_memslots_id). */
let space: u32 = 0

/** The one before is returned. */
export function slotSpace(number: u32): u32 {
  const old = space
  space = number
  return old
}

function rebuild(vm: usize): void {
  const map = <usize>load<u32>(vm, VM_SLOT_MAP)
  memory.fill(map, 0, (<usize>MAP_PAGES) << 12)
  const slots = <usize>load<u32>(vm, VM_SLOTS)
  const n = load<u32>(vm, VM_SLOT_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const slot = slots + <usize>i * SIZEOF_SLOT
    if (load<u32>(slot, SLOT_BACKING) == 0 || load<u32>(slot, SLOT_ID) >> 16 != 0) continue
    const start = load<u64>(slot, SLOT_GPA)
    const end = start + load<u64>(slot, SLOT_SIZE)
    for (let unit = start >> 21; unit << 21 < end && unit << 21 < MAP_REACH; unit++) {
      const at = map + ((<usize>unit) << 1)
      const whole = start <= unit << 21 && end >= (unit + 1) << 21
      store<u16>(at, load<u16>(at) == 0 && whole ? <u16>(i + 1) : SEVERAL)
    }
  }
  resetUnits(vm)
}

/** Forgets VM_UNITS: slots, their flags or the private pages have changed. */
export function resetUnits(vm: usize): void {
  const units = <usize>load<u32>(vm, VM_UNITS)
  if (units == 0) return
  for (let unit: u32 = 0; unit < 4096; unit++) store<u32>(units + ((<usize>unit) << 2), <u32>(units + ZEROS))
}

/**
 * VM_UNITS: the part of the frame map behind the 2 MiB of `gpa`, which is in `slot` and has a frame, if an access to any of its
 * pages needs nothing but the frame: one slot, writable, no dirty log, no guest_memfd, no private page in the VM.
 */
export function noteUnit(vm: usize, slot: usize, gpa: u64): void {
  const units = <usize>load<u32>(vm, VM_UNITS)
  if (gpa >= MAP_REACH || space != 0 || load<u32>(vm, VM_PRIVATE_COUNT) != 0) return
  const at = units + ((<usize>(gpa >> 21)) << 2)
  if (load<u32>(at) != <u32>(units + ZEROS)) return
  if (load<u16>(<usize>load<u32>(vm, VM_SLOT_MAP) + ((<usize>(gpa >> 21)) << 1)) == SEVERAL) return
  if ((load<u32>(slot, SLOT_FLAGS) & (MEM_READONLY | MEM_LOG_DIRTY | SLOT_NO_SHARED | SLOT_GMEM_ONLY)) != 0) return
  const page = <u32>(((gpa & ~0x1fffff) - load<u64>(slot, SLOT_GPA)) >> 12) + load<u32>(slot, SLOT_OFFSET_PAGES)
  // A table of the frame map holds 1024 pages.
  if ((page & 511) != 0) return
  const table = <usize>load<u32>(<usize>load<u32>(<usize>load<u32>(slot, SLOT_BACKING), BACKING_FRAMES) + ((<usize>(page >> 10)) << 2))
  store<u32>(at, <u32>(table + ((<usize>(page & 1023)) << 2)))
}

function search(vm: usize, gpa: u64): usize {
  let slot = <usize>load<u32>(vm, VM_SLOTS)
  if (slot == 0) return 0
  const end = slot + <usize>load<u32>(vm, VM_SLOT_COUNT) * SIZEOF_SLOT
  for (; slot < end; slot += SIZEOF_SLOT) {
    if (load<u32>(slot, SLOT_BACKING) == 0 || load<u32>(slot, SLOT_ID) >> 16 != space) continue
    if (gpa - load<u64>(slot, SLOT_GPA) < load<u64>(slot, SLOT_SIZE)) return slot
  }
  return 0
}

/** The slot that holds `gpa`, 0 = none (MMIO). */
export function slotFind(vm: usize, gpa: u64): usize {
  if (gpa < MAP_REACH && space == 0) {
    const map = <usize>load<u32>(vm, VM_SLOT_MAP)
    if (map == 0) return 0
    const n = load<u16>(map + ((<usize>(gpa >> 21)) << 1))
    if (n != SEVERAL) return n == 0 ? 0 : <usize>load<u32>(vm, VM_SLOTS) + <usize>(n - 1) * SIZEOF_SLOT
  }
  return search(vm, gpa)
}

/** Frame of `gpa` in `slot`, allocated if need be; 0 = out of memory. */
export function slotFrame(slot: usize, gpa: u64): usize {
  const page = <u32>((gpa - load<u64>(slot, SLOT_GPA)) >> 12) + load<u32>(slot, SLOT_OFFSET_PAGES)
  return backingFrame(<usize>load<u32>(slot, SLOT_BACKING), page)
}

/**
 * Frame of `gpa` for an access of the guest: of the guest_memfd if the page's attribute is private, else of the VMM's mapping
 * (kvm_mmu_faultin_pfn). 0 = out of memory, MISMATCH = nothing there.
 */
export function memoryFrame(vm: usize, slot: usize, gpa: u64): usize {
  const flags = load<u32>(slot, SLOT_FLAGS)
  if ((flags & SLOT_GMEM_ONLY) == 0 && !isPrivate(vm, gpa)) return flags & SLOT_NO_SHARED ? MISMATCH : slotFrame(slot, gpa)
  const b = <usize>load<u32>(slot, SLOT_PRIVATE)
  if (b == 0) return MISMATCH
  return backingFrame(b, <u32>((gpa - load<u64>(slot, SLOT_GPA)) >> 12) + load<u32>(slot, SLOT_PRIVATE_OFFSET))
}

/** kvm_write_guest and kvm_read_guest go through the VMM's mapping. */
export function hasShared(slot: usize): bool {
  return (load<u32>(slot, SLOT_FLAGS) & SLOT_NO_SHARED) == 0
}

/** KVM_PRE_FAULT_MEMORY of one page: 0, -ENOENT (MMIO), -EFAULT or -ENOMEM. */
export function gpaFault(vm: usize, gpa: u64): i32 {
  const slot = slotFind(vm, gpa)
  if (slot == 0) return isPrivate(vm, gpa) ? EFAULT : ENOENT
  const frame = memoryFrame(vm, slot, gpa)
  return frame == 0 ? ENOMEM : frame == MISMATCH ? EFAULT : 0
}

/** The same without allocating: 0 = never touched. */
export function slotPeek(slot: usize, gpa: u64): usize {
  const page = <u32>((gpa - load<u64>(slot, SLOT_GPA)) >> 12) + load<u32>(slot, SLOT_OFFSET_PAGES)
  return backingPeek(<usize>load<u32>(slot, SLOT_BACKING), page)
}

/** The slot with this KVM id, 0 = none. */
function slotById(vm: usize, id: u32): usize {
  let slot = <usize>load<u32>(vm, VM_SLOTS)
  if (slot == 0) return 0
  const end = slot + <usize>load<u32>(vm, VM_SLOT_COUNT) * SIZEOF_SLOT
  for (; slot < end; slot += SIZEOF_SLOT) {
    if (load<u32>(slot, SLOT_BACKING) != 0 && load<u32>(slot, SLOT_ID) == id) return slot
  }
  return 0
}

function dropBitmap(slot: usize): void {
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap != 0) freePages(bitmap, bitmapPages(slot))
  store<u32>(slot, 0, SLOT_DIRTY_BITMAP)
}

/** Pages of the dirty bitmap of a slot (one bit per 4 KiB). */
function bitmapPages(slot: usize): u32 {
  return pagesFor((load<u64>(slot, SLOT_SIZE) + 0x7fff) >> 15)
}

function overlaps(vm: usize, self: usize, id: u32, gpa: u64, size: u64): bool {
  let slot = <usize>load<u32>(vm, VM_SLOTS)
  const end = slot + <usize>load<u32>(vm, VM_SLOT_COUNT) * SIZEOF_SLOT
  for (; slot < end; slot += SIZEOF_SLOT) {
    if (slot == self || load<u32>(slot, SLOT_BACKING) == 0 || load<u32>(slot, SLOT_ID) >> 16 != id >> 16) continue
    const start = load<u64>(slot, SLOT_GPA)
    if (gpa < start + load<u64>(slot, SLOT_SIZE) && start < gpa + size) return true
  }
  return false
}

/** What KVM_SET_USER_MEMORY_REGION allows (__kvm_set_memory_region): create, delete (size 0), move, change LOG_DIRTY. */
export function slotSet(vm: usize, id: u32, gpa: u64, size: u64, flags: u32, backing: usize, offsetPages: u32): i32 {
  if (load<u32>(vm, VM_SLOTS) == 0) {
    const slots = allocPages(slotPages(SLOTS_FIRST))
    const map = allocPages(MAP_PAGES)
    const units = allocPages(UNITS_PAGES)
    if (slots == 0 || map == 0 || units == 0) {
      freePages(slots, slotPages(SLOTS_FIRST))
      freePages(map, MAP_PAGES)
      freePages(units, UNITS_PAGES)
      return ENOMEM
    }
    store<u32>(vm, <u32>units, VM_UNITS)
    store<u32>(vm, <u32>slots, VM_SLOTS)
    store<u32>(vm, SLOTS_FIRST, VM_SLOT_CAPACITY)
    store<u32>(vm, <u32>map, VM_SLOT_MAP)
  }
  let slot = slotById(vm, id)
  if (size == 0) {
    if (slot == 0) return EINVAL
    remove(slot)
    rebuild(vm)
    flushEverywhere()
    return 0
  }
  if (((gpa | size) & 4095) != 0 || gpa + size < gpa || flags & ~(MEM_LOG_DIRTY | MEM_READONLY) || backing == 0) return EINVAL
  if (<u64>offsetPages + (size >> 12) > <u64>load<u32>(backing, BACKING_PAGES)) return EINVAL
  if (slot != 0) {
    // An existing slot may move or change its flags; size, memory and READONLY are fixed.
    if (size != load<u64>(slot, SLOT_SIZE) || <u32>backing != load<u32>(slot, SLOT_BACKING)) return EINVAL
    if (offsetPages != load<u32>(slot, SLOT_OFFSET_PAGES) || ((flags ^ load<u32>(slot, SLOT_FLAGS)) & MEM_READONLY) != 0) return EINVAL
  }
  if (overlaps(vm, slot, id, gpa, size)) return EEXIST
  if (slot == 0) {
    slot = unused(vm)
    if (slot == 0) return ENOSPC
    backingRetain(backing)
    store<u32>(slot, 0, SLOT_DIRTY_BITMAP)
  }
  store<u64>(slot, gpa, SLOT_GPA)
  store<u64>(slot, size, SLOT_SIZE)
  store<u32>(slot, <u32>backing, SLOT_BACKING)
  store<u32>(slot, offsetPages, SLOT_OFFSET_PAGES)
  store<u32>(slot, flags, SLOT_FLAGS)
  store<u32>(slot, id, SLOT_ID)
  let result: i32 = 0
  if ((flags & MEM_LOG_DIRTY) == 0) dropBitmap(slot)
  else if (load<u32>(slot, SLOT_DIRTY_BITMAP) == 0) {
    const bitmap = allocPages(bitmapPages(slot))
    if (bitmap == 0) {
      store<u32>(slot, flags & ~MEM_LOG_DIRTY, SLOT_FLAGS)
      result = ENOMEM
    } else if (load<u32>(vm, VM_MANUAL_PROTECT) & 2) {
      const pages = size >> 12
      memory.fill(bitmap, 0xff, <usize>(pages >> 3))
      if (pages & 7) store<u8>(bitmap + <usize>(pages >> 3), ((<u8>1) << ((pages & 7) as u8)) - 1)
    }
    store<u32>(slot, <u32>bitmap, SLOT_DIRTY_BITMAP)
  }
  rebuild(vm)
  flushEverywhere()
  return result
}

function unused(vm: usize): usize {
  const slots = <usize>load<u32>(vm, VM_SLOTS)
  const n = load<u32>(vm, VM_SLOT_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const slot = slots + <usize>i * SIZEOF_SLOT
    if (load<u32>(slot, SLOT_BACKING) == 0) return slot
  }
  if (n == SLOTS_MAX) return 0
  if (n == load<u32>(vm, VM_SLOT_CAPACITY) && !grow(vm)) return 0
  store<u32>(vm, n + 1, VM_SLOT_COUNT)
  return <usize>load<u32>(vm, VM_SLOTS) + <usize>n * SIZEOF_SLOT
}

/** Twice as many slots. */
function grow(vm: usize): bool {
  const have = load<u32>(vm, VM_SLOT_CAPACITY)
  const old = <usize>load<u32>(vm, VM_SLOTS)
  const slots = allocPages(slotPages(have * 2))
  if (slots == 0) return false
  memory.copy(slots, old, <usize>have * SIZEOF_SLOT)
  freePages(old, slotPages(have))
  store<u32>(vm, <u32>slots, VM_SLOTS)
  store<u32>(vm, have * 2, VM_SLOT_CAPACITY)
  return true
}

function slotPages(entries: u32): u32 {
  return pagesFor(<u64>entries * <u64>SIZEOF_SLOT)
}

/** Binds a guest_memfd to a slot just made (kvm_gmem_bind); `flags` SLOT_NO_SHARED, SLOT_GMEM_ONLY. */
export function slotBind(vm: usize, id: u32, gmem: usize, offsetPages: u32, flags: u32): void {
  const slot = slotById(vm, id)
  if (slot == 0 || gmem == 0) return
  backingRetain(gmem)
  store<u32>(slot, <u32>gmem, SLOT_PRIVATE)
  store<u32>(slot, offsetPages, SLOT_PRIVATE_OFFSET)
  store<u32>(slot, load<u32>(slot, SLOT_FLAGS) | (flags & (SLOT_NO_SHARED | SLOT_GMEM_ONLY)), SLOT_FLAGS)
  resetUnits(vm)
  flushEverywhere()
}

/** The guest_memfd is closed: its slots lose their private memory (kvm_gmem_release). */
export function slotUnbind(vm: usize, id: u32): void {
  const slot = slotById(vm, id)
  if (slot == 0) return
  const gmem = <usize>load<u32>(slot, SLOT_PRIVATE)
  store<u32>(slot, 0, SLOT_PRIVATE)
  flushEverywhere()
  if (gmem != 0) backingFree(gmem)
}

function remove(slot: usize): void {
  dropBitmap(slot)
  const b = <usize>load<u32>(slot, SLOT_BACKING)
  const gmem = <usize>load<u32>(slot, SLOT_PRIVATE)
  memory.fill(slot, 0, SIZEOF_SLOT)
  backingFree(b)
  if (gmem != 0) backingFree(gmem)
}

/** Takes all slots of a dying VM down. */
export function slotsFree(vm: usize): void {
  privateFree(vm)
  const slots = <usize>load<u32>(vm, VM_SLOTS)
  if (slots == 0) return
  const n = load<u32>(vm, VM_SLOT_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const slot = slots + <usize>i * SIZEOF_SLOT
    if (load<u32>(slot, SLOT_BACKING) != 0) remove(slot)
  }
  flushEverywhere()
  freePages(slots, slotPages(load<u32>(vm, VM_SLOT_CAPACITY)))
  freePages(<usize>load<u32>(vm, VM_SLOT_MAP), MAP_PAGES)
  freePages(<usize>load<u32>(vm, VM_UNITS), UNITS_PAGES)
  store<u32>(vm, 0, VM_UNITS)
  store<u32>(vm, 0, VM_SLOTS)
  store<u32>(vm, 0, VM_SLOT_MAP)
  store<u32>(vm, 0, VM_SLOT_COUNT)
}

/**
 * Copies bytes [offset, offset + most) of a slot's dirty bitmap to `to` and, without manual protection, clears them
 * (KVM_GET_DIRTY_LOG; a multiple of 8 bytes in all, as the kernel copies whole longs). Bytes copied, or a negative errno.
 */
export function dirtyLog(vm: usize, id: u32, to: usize, offset: u32, most: u32): i32 {
  const slot = slotById(vm, id)
  if (slot == 0) return ENOENT
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap == 0) return ENOENT
  const all = <u32>((((load<u64>(slot, SLOT_SIZE) >> 12) + 63) >> 6) << 3)
  if (offset >= all) return 0
  const n = all - offset < most ? all - offset : most
  memory.copy(to, bitmap + <usize>offset, <usize>n)
  if (load<u32>(vm, VM_MANUAL_PROTECT) & 1) return <i32>n
  memory.fill(bitmap + <usize>offset, 0, <usize>n)
  flushEverywhere() // the next store to each page must take the slow path again
  return <i32>n
}

/** KVM_CLEAR_DIRTY_LOG: clears the bits set in the `n` bytes at `from`, which stand for the pages from byte `offset` of the bitmap on. */
export function dirtyClear(vm: usize, id: u32, from: usize, offset: u32, n: u32): i32 {
  const slot = slotById(vm, id)
  if (slot == 0) return ENOENT
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap == 0) return ENOENT
  const all = bitmapPages(slot) << 12
  for (let i: u32 = 0; i < n && offset + i < all; i++) {
    const at = bitmap + <usize>(offset + i)
    store<u8>(at, load<u8>(at) & ~load<u8>(from + <usize>i))
  }
  flushEverywhere()
  return 0
}

/** Write-protects one page again (kvm_reset_dirty_gfn). The caller flushes. */
export function dirtyReset(vm: usize, id: u32, page: u64): void {
  const slot = slotById(vm, id)
  if (slot == 0 || page >= load<u64>(slot, SLOT_SIZE) >> 12) return
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap == 0) return
  const at = bitmap + <usize>(page >> 3)
  store<u8>(at, load<u8>(at) & ~(<u8>(1 << ((page & 7) as u8))))
}

/**
 * Notes a store to `gpa`, when its slot logs. With a dirty ring the bitmap is what is not write-protected: KVM's own writes
 * (`own`) make an entry each, those of the guest one until the next reset.
 */
export function dirtyMark(vm: usize, slot: usize, gpa: u64, own: bool = false): void {
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap == 0) return
  const page = (gpa - load<u64>(slot, SLOT_GPA)) >> 12
  const at = bitmap + <usize>(page >> 3)
  const bit = <u8>(1 << ((page & 7) as u8))
  const old = load<u8>(at)
  if ((old & bit) != 0 && !own) return
  store<u8>(at, old | bit)
  if (load<u32>(vm, VM_RING_ENTRIES)) ringPush(vm, load<u32>(slot, SLOT_ID), page)
}
