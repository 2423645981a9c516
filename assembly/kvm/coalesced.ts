/**
 * Coalesced MMIO and ports (Linux 7.3 virt/kvm/coalesced_mmio.c): writes to a registered zone go to a ring that userspace
 * empties at its next exit. Linux has one ring per VM, mapped into every vCPU at page 2; here each vCPU has its page, and all
 * carry the same. Owns VM_ZONE*. struct kvm_coalesced_mmio_ring: first, last u32; entries of address u64, length, pio u32, data u64.
 */
import { VCPU_COALESCED, VM_VCPUS, VM_VCPU_COUNT, VM_ZONES, VM_ZONE_COUNT, VM_ZONE_FIRST, VM_ZONE_LAST } from '../generated/layout'
import { allocPages, freePages } from '../memory/frames'
import { vmOf } from './state'

const ZONE: usize = 16
/** NR_IOBUS_DEVS for each of the two buses. */
const ZONES_MOST: u32 = 1000
const ZONE_PAGES: u32 = 8
/** KVM_COALESCED_MMIO_MAX. */
const RING_MOST: u32 = 170
const ENTRIES: usize = 8
const ENTRY: usize = 24

const ENOSPC: i32 = -28
const ENOMEM: i32 = -12

function ring(vm: usize, i: u32): usize {
  const s = <usize>load<u32>(vm + VM_VCPUS + ((<usize>i) << 2))
  return s != 0 ? s + VCPU_COALESCED : 0
}

/** coalesced_mmio_in_range. */
function holds(zone: usize, address: u64, size: u32, pio: u32): bool {
  const start = load<u64>(zone)
  const end = address + <u64>size
  return load<u32>(zone, 12) == pio && end >= address && address >= start && end <= start + <u64>load<u32>(zone, 8)
}

/** KVM_REGISTER_COALESCED_MMIO: 0, -ENOSPC or -ENOMEM. */
export function zoneAdd(vm: usize, address: u64, size: u32, pio: u32): i32 {
  let zones = <usize>load<u32>(vm, VM_ZONES)
  if (zones == 0) {
    zones = allocPages(ZONE_PAGES)
    if (zones == 0) return ENOMEM
    store<u32>(vm, <u32>zones, VM_ZONES)
  }
  const count = load<u32>(vm, VM_ZONE_COUNT)
  let same: u32 = 0
  for (let i: u32 = 0; i < count; i++) if (load<u32>(zones + <usize>i * ZONE, 12) == pio) same++
  if (same >= ZONES_MOST) return ENOSPC
  const zone = zones + <usize>count * ZONE
  store<u64>(zone, address)
  store<u32>(zone, size, 8)
  store<u32>(zone, pio, 12)
  store<u32>(vm, count + 1, VM_ZONE_COUNT)
  return 0
}

/** KVM_UNREGISTER_COALESCED_MMIO: every zone that holds the range goes. */
export function zoneRemove(vm: usize, address: u64, size: u32, pio: u32): void {
  const zones = <usize>load<u32>(vm, VM_ZONES)
  let count = load<u32>(vm, VM_ZONE_COUNT)
  for (let i: u32 = 0; i < count; ) {
    const zone = zones + <usize>i * ZONE
    if (holds(zone, address, size, pio)) {
      count--
      memory.copy(zone, zone + ZONE, <usize>(count - i) * ZONE)
    } else i++
  }
  store<u32>(vm, count, VM_ZONE_COUNT)
}

/** An index of the ring as userspace changed it, through whichever page: all get it. */
function indexSync(vm: usize, at: usize, known: usize): void {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  const old = load<u32>(known)
  let value = old
  for (let i: u32 = 0; i < count && value == old; i++) if (ring(vm, i) != 0) value = atomic.load<u32>(ring(vm, i) + at)
  if (value == old) return
  store<u32>(known, value)
  for (let i: u32 = 0; i < count; i++) if (ring(vm, i) != 0) atomic.store<u32>(ring(vm, i) + at, value)
}

/** What userspace has taken out is taken out; `last` is as much its memory (the kernel checks it at each use). */
export function ringSync(vm: usize): void {
  if (load<u32>(vm, VM_ZONES) == 0) return
  indexSync(vm, 0, vm + VM_ZONE_FIRST)
  indexSync(vm, 4, vm + VM_ZONE_LAST)
}

/** A new vCPU sees the same ring. */
export function ringJoin(vm: usize, s: usize): void {
  if (load<u32>(vm, VM_ZONES) == 0) return
  for (let i: u32 = 0; i < load<u32>(vm, VM_VCPU_COUNT); i++) {
    const page = ring(vm, i)
    if (page == 0 || page == s + VCPU_COALESCED) continue
    memory.copy(s + VCPU_COALESCED, page, 4096)
    return
  }
}

/** coalesced_mmio_write: true if the write went into the ring; a full ring makes it an exit. */
export function coalescedWrite(s: usize, port: bool, address: u64, size: u32, value: u64): bool {
  const vm = vmOf(s)
  const zones = load<u32>(vm, VM_ZONE_COUNT)
  if (zones == 0) return false
  const pio: u32 = port ? 1 : 0
  let found: bool = false
  for (let i: u32 = 0; i < zones && !found; i++) found = holds(<usize>load<u32>(vm, VM_ZONES) + <usize>i * ZONE, address, size, pio)
  if (!found) return false
  ringSync(vm)
  const last = load<u32>(vm, VM_ZONE_LAST)
  if (last >= RING_MOST) return false
  const next: u32 = last + 1 == RING_MOST ? 0 : last + 1
  if (next == load<u32>(vm, VM_ZONE_FIRST)) return false
  for (let i: u32 = 0; i < load<u32>(vm, VM_VCPU_COUNT); i++) {
    const page = ring(vm, i)
    if (page == 0) continue
    const entry = page + ENTRIES + <usize>last * ENTRY
    store<u64>(entry, address)
    store<u32>(entry, size, 8)
    store<u32>(entry, pio, 12)
    store<u64>(entry, size >= 8 ? value : value & (((1 as u64) << ((size << 3) as u64)) - 1), 16)
    atomic.store<u32>(page + 4, next)
  }
  store<u32>(vm, next, VM_ZONE_LAST)
  return true
}

export function zonesFree(vm: usize): void {
  if (load<u32>(vm, VM_ZONES) != 0) freePages(<usize>load<u32>(vm, VM_ZONES), ZONE_PAGES)
  store<u32>(vm, 0, VM_ZONES)
  store<u32>(vm, 0, VM_ZONE_COUNT)
}
