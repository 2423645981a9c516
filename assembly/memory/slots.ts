/**
 * Memory slots: guest-physical address -> page of a backing (KVM_SET_USER_MEMORY_REGION).
 * Owns VM_SLOTS, VM_SLOT_COUNT, VM_SLOT_MAP and the SLOT structures. A u16 per 2 MiB of the first 8 GiB names the slot
 * that covers all of it; units with several slots or a partial one, and everything above, are searched.
 */
import {
  BACKING_PAGES,
  SIZEOF_SLOT,
  SLOT_BACKING,
  SLOT_DIRTY_BITMAP,
  SLOT_FLAGS,
  SLOT_GPA,
  SLOT_ID,
  SLOT_OFFSET_PAGES,
  SLOT_SIZE,
  VM_SLOTS,
  VM_SLOT_COUNT,
  VM_SLOT_MAP,
} from '../generated/layout'
import { backingFrame, backingFree, backingPeek, backingRetain } from './backing'
import { allocPages, freePages, pagesFor } from './frames'
import { flushEverywhere } from './tlb'

const SLOTS_MAX: u32 = 512
const SLOTS_PAGES: u32 = 8 // 512 * 64 bytes
const MAP_PAGES: u32 = 2 // 4096 * u16
const MAP_REACH: u64 = 0x200000000 // 8 GiB
const SEVERAL: u16 = 0xffff

/** KVM_MEM_* (include/uapi/linux/kvm.h). */
export const MEM_LOG_DIRTY: u32 = 1
export const MEM_READONLY: u32 = 2

const ENOENT: i32 = -2
const ENOMEM: i32 = -12
const EEXIST: i32 = -17
const EINVAL: i32 = -22
const ENOSPC: i32 = -28

function rebuild(vm: usize): void {
  const map = <usize>load<u32>(vm, VM_SLOT_MAP)
  memory.fill(map, 0, (<usize>MAP_PAGES) << 12)
  const slots = <usize>load<u32>(vm, VM_SLOTS)
  const n = load<u32>(vm, VM_SLOT_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const slot = slots + <usize>i * SIZEOF_SLOT
    if (load<u32>(slot, SLOT_BACKING) == 0) continue
    const start = load<u64>(slot, SLOT_GPA)
    const end = start + load<u64>(slot, SLOT_SIZE)
    for (let unit = start >> 21; unit << 21 < end && unit << 21 < MAP_REACH; unit++) {
      const at = map + ((<usize>unit) << 1)
      const whole = start <= unit << 21 && end >= (unit + 1) << 21
      store<u16>(at, load<u16>(at) == 0 && whole ? <u16>(i + 1) : SEVERAL)
    }
  }
}

function search(vm: usize, gpa: u64): usize {
  let slot = <usize>load<u32>(vm, VM_SLOTS)
  if (slot == 0) return 0
  const end = slot + <usize>load<u32>(vm, VM_SLOT_COUNT) * SIZEOF_SLOT
  for (; slot < end; slot += SIZEOF_SLOT) {
    if (load<u32>(slot, SLOT_BACKING) != 0 && gpa - load<u64>(slot, SLOT_GPA) < load<u64>(slot, SLOT_SIZE)) return slot
  }
  return 0
}

/** The slot that holds `gpa`, 0 = none (MMIO). */
export function slotFind(vm: usize, gpa: u64): usize {
  if (gpa < MAP_REACH) {
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

/** The same without allocating: 0 = never touched. */
export function slotPeek(slot: usize, gpa: u64): usize {
  const page = <u32>((gpa - load<u64>(slot, SLOT_GPA)) >> 12) + load<u32>(slot, SLOT_OFFSET_PAGES)
  return backingPeek(<usize>load<u32>(slot, SLOT_BACKING), page)
}

/** The slot with this KVM id, 0 = none. */
export function slotById(vm: usize, id: u32): usize {
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
export function bitmapPages(slot: usize): u32 {
  return pagesFor((load<u64>(slot, SLOT_SIZE) + 0x7fff) >> 15)
}

function overlaps(vm: usize, self: usize, gpa: u64, size: u64): bool {
  let slot = <usize>load<u32>(vm, VM_SLOTS)
  const end = slot + <usize>load<u32>(vm, VM_SLOT_COUNT) * SIZEOF_SLOT
  for (; slot < end; slot += SIZEOF_SLOT) {
    if (slot == self || load<u32>(slot, SLOT_BACKING) == 0) continue
    const start = load<u64>(slot, SLOT_GPA)
    if (gpa < start + load<u64>(slot, SLOT_SIZE) && start < gpa + size) return true
  }
  return false
}

/** What KVM_SET_USER_MEMORY_REGION allows (__kvm_set_memory_region): create, delete (size 0), move, change LOG_DIRTY. */
export function slotSet(vm: usize, id: u32, gpa: u64, size: u64, flags: u32, backing: usize, offsetPages: u32): i32 {
  if (load<u32>(vm, VM_SLOTS) == 0) {
    const slots = allocPages(SLOTS_PAGES)
    const map = allocPages(MAP_PAGES)
    if (slots == 0 || map == 0) return ENOMEM
    store<u32>(vm, <u32>slots, VM_SLOTS)
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
  if (overlaps(vm, slot, gpa, size)) return EEXIST
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
  store<u32>(vm, n + 1, VM_SLOT_COUNT)
  return slots + <usize>n * SIZEOF_SLOT
}

function remove(slot: usize): void {
  dropBitmap(slot)
  const b = <usize>load<u32>(slot, SLOT_BACKING)
  memory.fill(slot, 0, SIZEOF_SLOT)
  backingFree(b)
}

/** Takes all slots of a dying VM down. */
export function slotsFree(vm: usize): void {
  const slots = <usize>load<u32>(vm, VM_SLOTS)
  if (slots == 0) return
  const n = load<u32>(vm, VM_SLOT_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const slot = slots + <usize>i * SIZEOF_SLOT
    if (load<u32>(slot, SLOT_BACKING) != 0) remove(slot)
  }
  flushEverywhere()
  freePages(slots, SLOTS_PAGES)
  freePages(<usize>load<u32>(vm, VM_SLOT_MAP), MAP_PAGES)
  store<u32>(vm, 0, VM_SLOTS)
  store<u32>(vm, 0, VM_SLOT_MAP)
  store<u32>(vm, 0, VM_SLOT_COUNT)
}

/**
 * Copies bytes [offset, offset + most) of a slot's dirty bitmap to `to` and clears them (KVM_GET_DIRTY_LOG; a multiple of
 * 8 bytes in all, as the kernel copies whole longs). Bytes copied, or a negative errno.
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
  memory.fill(bitmap + <usize>offset, 0, <usize>n)
  flushEverywhere() // the next store to each page must take the slow path again
  return <i32>n
}

/** Notes a store to `gpa`, when its slot logs. */
export function dirtyMark(slot: usize, gpa: u64): void {
  const bitmap = <usize>load<u32>(slot, SLOT_DIRTY_BITMAP)
  if (bitmap == 0) return
  const page = (gpa - load<u64>(slot, SLOT_GPA)) >> 12
  const at = bitmap + <usize>(page >> 3)
  store<u8>(at, load<u8>(at) | <u8>(1 << ((page & 7) as u8)))
}
