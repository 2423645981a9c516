/**
 * ioeventfds (Linux 7.3 virt/kvm/eventfd.c ioeventfd_write): port and MMIO writes that only count, without an exit. Counts
 * wait here until the host takes them; an entry with NOTIFY (somebody listens to its eventfd) makes KVM_RUN return to the
 * host's loop at the next boundary (WHY_HOST), which the VMM does not see. Owns CHIP_IOEVENTS and the pages behind it.
 */
import { CHIP_HOST_WORK, CHIP_IOEVENTS, CHIP_IOEVENT_COUNT, CPU_BUDGET } from '../generated/layout'
import { allocPages, freePages } from '../memory/frames'
import { chipOf, vmOf } from './state'

/** NR_IOBUS_DEVS: rows of address u64, value u64, length u32, flags u32, count u64. */
const MOST: u32 = 1000
const ROW: usize = 32
const PAGES: u32 = 8
const USED: u32 = 1
const PIO: u32 = 2
const MATCH: u32 = 4
const NOTIFY: u32 = 8
/** KVM_VIRTIO_CCW_NOTIFY_BUS: nothing on x86 writes there. */
const UNREACHED: u32 = 16

function rowAt(vm: usize, index: u32): usize {
  const at: usize = load<u32>(chipOf(vm), CHIP_IOEVENTS)
  return at && index < MOST ? at + <usize>index * ROW : 0
}

/** The row's index, -28 (no room) or -12. */
export function ioeventAdd(vm: usize, address: u64, value: u64, length: u32, flags: u32): i32 {
  const chip = chipOf(vm)
  if (load<u32>(chip, CHIP_IOEVENTS) == 0) {
    const pages = allocPages(PAGES)
    if (!pages) return -12
    store<u32>(chip, <u32>pages, CHIP_IOEVENTS)
  }
  for (let i: u32 = 0; i < MOST; i++) {
    const row = rowAt(vm, i)
    if (load<u32>(row, 20) & USED) continue
    store<u64>(row, address)
    store<u64>(row, value, 8)
    store<u32>(row, length, 16)
    store<u32>(row, (flags & (PIO | MATCH | NOTIFY | UNREACHED)) | USED, 20)
    store<u64>(row, 0, 24)
    if (i >= load<u32>(chip, CHIP_IOEVENT_COUNT)) store<u32>(chip, i + 1, CHIP_IOEVENT_COUNT)
    return i
  }
  return -28
}

export function ioeventRemove(vm: usize, index: u32): void {
  const row = rowAt(vm, index)
  if (row) store<u32>(row, 0, 20)
}

export function ioeventNotify(vm: usize, index: u32, on: bool): void {
  const row = rowAt(vm, index)
  if (row) store<u32>(row, (load<u32>(row, 20) & ~NOTIFY) | (on ? NOTIFY : 0), 20)
}

/** Takes the count. */
export function ioeventTake(vm: usize, index: u32): u64 {
  const row = rowAt(vm, index)
  if (!row) return 0
  const count = load<u64>(row, 24)
  store<u64>(row, 0, 24)
  return count
}

/** ioeventfd_in_range of every row: true if the write was somebody's. */
export function ioeventWrite(s: usize, port: bool, address: u64, size: u32, value: u64): bool {
  const chip = chipOf(vmOf(s))
  const n = chip ? load<u32>(chip, CHIP_IOEVENT_COUNT) : 0
  if (n == 0) return false
  const given = size == 8 ? value : value & (((1 as u64) << ((size << 3) as u64)) - 1)
  let row: usize = load<u32>(chip, CHIP_IOEVENTS)
  for (let i: u32 = 0; i < n; i++, row += ROW) {
    const flags = load<u32>(row, 20)
    if ((flags & USED) == 0 || (flags & UNREACHED) != 0 || ((flags & PIO) != 0) != port || load<u64>(row) != address) continue
    const length = load<u32>(row, 16)
    if (length != 0 && length != size) continue
    if (length != 0 && (flags & MATCH) != 0 && load<u64>(row, 8) != given) continue
    store<u64>(row, load<u64>(row, 24) + 1, 24)
    if (flags & NOTIFY) hostWorkFor(s)
    return true
  }
  return false
}

/** KVM_RUN returns to the host's loop at the next boundary. */
export function hostWorkFor(s: usize): void {
  store<u32>(chipOf(vmOf(s)), 1, CHIP_HOST_WORK)
  atomic.store<u64>(s + CPU_BUDGET, 0)
}

export function ioeventFree(vm: usize): void {
  const at: usize = load<u32>(chipOf(vm), CHIP_IOEVENTS)
  if (at) freePages(at, PAGES)
}
