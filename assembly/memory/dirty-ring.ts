/**
 * The dirty ring of each vCPU (virt/kvm/dirty_ring.c): struct kvm_dirty_gfn { flags, slot u32; offset u64 } at page 64 of its
 * mapping. Owns VKVM_RING*; entries are shared with userspace, so nothing read from them is trusted.
 */
import {
  VCPU_KVM,
  VKVM_RING,
  VKVM_RING_HEAD,
  VKVM_RING_RESET,
  VM_RING_ENTRIES,
  VM_RING_SOFT,
  VM_VCPUS,
  VM_VCPU_COUNT,
} from '../generated/layout'
import { allocPages, freePages, pagesFor } from './frames'
import { dirtyReset } from './slots'
import { flushEverywhere } from './tlb'

const ENTRY_SHIFT: u32 = 4
const DIRTY: u32 = 1
const RESET: u32 = 2

/** kvm_get_running_vcpu: whose ring takes what KVM writes. */
let running: usize = 0
/** An entry was pushed since the last look, and the ring of the running vCPU is soft-full. */
let news: bool = false

export function ringRun(s: usize): void {
  running = s
  news = false
}

/** KVM_CREATE_VCPU with a dirty ring; false = out of memory. */
export function ringCreate(vm: usize, s: usize): bool {
  const entries = load<u32>(vm, VM_RING_ENTRIES)
  if (entries == 0) return true
  const ring = allocPages(pagesFor((<u64>entries) << ENTRY_SHIFT))
  store<u32>(s + VCPU_KVM, <u32>ring, VKVM_RING)
  return ring != 0
}

export function ringFree(vm: usize, s: usize): void {
  freePages(<usize>load<u32>(s + VCPU_KVM, VKVM_RING), pagesFor((<u64>load<u32>(vm, VM_RING_ENTRIES)) << ENTRY_SHIFT))
  store<u32>(s + VCPU_KVM, 0, VKVM_RING)
}

/** kvm_dirty_ring_soft_full. */
export function ringFull(vm: usize, s: usize): bool {
  if (load<u32>(vm, VM_RING_ENTRIES) == 0) return false
  const k = s + VCPU_KVM
  return load<u32>(k, VKVM_RING_HEAD) - load<u32>(k, VKVM_RING_RESET) >= load<u32>(vm, VM_RING_SOFT)
}

/** kvm_dirty_ring_push, to the running vCPU. */
export function ringPush(vm: usize, slot: u32, page: u64): void {
  if (running == 0) return
  const k = running + VCPU_KVM
  const ring = <usize>load<u32>(k, VKVM_RING)
  if (ring == 0) return
  const head = load<u32>(k, VKVM_RING_HEAD)
  const entry = ring + ((<usize>(head & (load<u32>(vm, VM_RING_ENTRIES) - 1))) << ENTRY_SHIFT)
  store<u32>(entry, slot, 4)
  store<u64>(entry, page, 8)
  atomic.store<u32>(entry, DIRTY)
  store<u32>(k, head + 1, VKVM_RING_HEAD)
  if (ringFull(vm, running)) news = true
}

/** True once after a push that made the ring of `s` soft-full: the vCPU leaves before it goes on. */
export function ringNews(s: usize): bool {
  if (!news || s != running) return false
  news = false
  return true
}

/** Whoever was told so will ask again. */
export function ringAgain(): void {
  news = true
}

/** KVM_RESET_DIRTY_RINGS: entries that userspace has collected are free again, their pages write-protected. How many. */
export function ringReset(vm: usize): i32 {
  const mask = load<u32>(vm, VM_RING_ENTRIES) - 1
  let cleared: i32 = 0
  for (let i: u32 = 0; i < load<u32>(vm, VM_VCPU_COUNT); i++) {
    const s = <usize>load<u32>(vm + VM_VCPUS + ((<usize>i) << 2))
    if (s == 0) continue
    const k = s + VCPU_KVM
    const ring = <usize>load<u32>(k, VKVM_RING)
    if (ring == 0) continue
    let at = load<u32>(k, VKVM_RING_RESET)
    while (true) {
      const entry = ring + ((<usize>(at & mask)) << ENTRY_SHIFT)
      if ((atomic.load<u32>(entry) & RESET) == 0) break
      dirtyReset(vm, load<u32>(entry, 4), load<u64>(entry, 8))
      atomic.store<u32>(entry, 0)
      at++
      cleared++
    }
    store<u32>(k, at, VKVM_RING_RESET)
  }
  if (cleared != 0) flushEverywhere()
  return cleared
}
