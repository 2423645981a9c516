/**
 * Memory slots and attributes: KVM_SET_USER_MEMORY_REGION(2) (virt/kvm/kvm_main.c kvm_set_memory_region),
 * KVM_SET_MEMORY_ATTRIBUTES.
 */
import { VM_PHYS_MASK } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import { coalescedHandlers } from './coalesced.ts'
import { dirtyHandlers } from './dirty-log.ts'
import { createGuestMemfd, GuestMemfd } from './guest-memfd.ts'
import type { Kernel } from './kernel.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

export interface Slot {
  readonly id: number
  readonly flags: number
  readonly gpa: bigint
  readonly size: bigint
  readonly userspaceAddr: bigint
  readonly guestMemfd?: GuestMemfd
}

export const KVM_MEM_LOG_DIRTY_PAGES = 1
export const KVM_MEM_READONLY = 2
export const KVM_MEM_GUEST_MEMFD = 4
/** KVM_USER_MEM_SLOTS = SHRT_MAX - KVM_INTERNAL_MEM_SLOTS. */
export const USER_SLOTS = 32764
const MAX_PAGES = (1n << 31n) - 1n
/** SLOT_NO_SHARED and SLOT_GMEM_ONLY (assembly/memory/slots.ts). */
const NO_SHARED = 1 << 30
const GMEM_ONLY = (1 << 31) >>> 0
const USER_END = 1n << 47n
const SOURCE = 'virt/kvm/kvm_main.c kvm_set_memory_region'

function refuse(kernel: Kernel, name: string, reason: string): number {
  return kernel.refuse('EINVAL', name, reason, SOURCE)
}

function setRegion(vm: VmFd, name: string, bytes: Uint8Array, two: boolean): number {
  const { kernel } = vm
  const view = viewOf(bytes)
  const slot = view.getUint32(0, true)
  const flags = view.getUint32(4, true)
  const gpa = view.getBigUint64(8, true)
  const size = view.getBigUint64(16, true)
  const userspaceAddr = view.getBigUint64(24, true)
  let valid = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
  if (two && (kernel.options.linux !== '6.12' || vm.hasPrivateMem)) {
    valid |= KVM_MEM_GUEST_MEMFD
    if ((flags & KVM_MEM_GUEST_MEMFD) !== 0) valid &= ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
  }
  if (vm.hasProtectedState && (flags & KVM_MEM_READONLY) !== 0) {
    return kernel.refuse(
      'EINVAL',
      name,
      'read-only slots are not possible: protected guests need RWX',
      'virt/kvm/kvm_main.c check_memory_region_flags (kvm_arch_has_readonly_mem)',
      {
        switch: 'has_protected_state',
      },
    )
  }
  if ((flags & ~valid) !== 0) return refuse(kernel, name, `flags 0x${flags.toString(16)} are not valid here`)
  const as = slot >>> 16
  const id = slot & 0xffff
  if ((size & 0xfffn) !== 0n) return refuse(kernel, name, 'memory_size is not a multiple of the page size')
  if ((gpa & 0xfffn) !== 0n) return refuse(kernel, name, 'guest_phys_addr is not page aligned')
  if ((userspaceAddr & 0xfffn) !== 0n || userspaceAddr + size > USER_END)
    return refuse(kernel, name, 'userspace_addr is not a page-aligned user address')
  const private_ = (flags & KVM_MEM_GUEST_MEMFD) !== 0
  const offset = private_ ? view.getBigUint64(32, true) : 0n
  if ((offset & 0xfffn) !== 0n || offset + size >= 1n << 64n) return refuse(kernel, name, 'guest_memfd_offset is not aligned, or wraps')
  if (as >= (vm.hasPrivateMem ? 1 : 2) || id >= USER_SLOTS) return refuse(kernel, name, `no slot 0x${slot.toString(16)}`)
  if (gpa + size >= 1n << 64n) return refuse(kernel, name, 'the region wraps around')
  if (size >> 12n > MAX_PAGES) return refuse(kernel, name, 'the region is too large')
  const old = vm.slots.get(slot)
  if (size === 0n) {
    if (old === undefined) return refuse(kernel, name, 'deletes a slot that does not exist')
    vm.slots.delete(slot)
    old.guestMemfd?.bindings.delete(slot)
    kernel.core.call.slotSet(vm.address, slot, 0n, 0n, 0, 0, 0)
    return 0
  }
  if (old !== undefined) {
    if (private_ || (old.flags & KVM_MEM_GUEST_MEMFD) !== 0) return refuse(kernel, name, 'a guest_memfd slot can only be deleted')
    if (old.userspaceAddr !== userspaceAddr || old.size !== size || ((old.flags ^ flags) & KVM_MEM_READONLY) !== 0) {
      return refuse(kernel, name, 'size, userspace_addr and READONLY of a slot cannot change')
    }
    if (old.gpa === gpa && old.flags === flags) return 0
  }
  if (old === undefined || old.gpa !== gpa) {
    for (const [other, s] of vm.slots) {
      if (other !== slot && other >>> 16 === as && s.gpa < gpa + size && gpa < s.gpa + s.size) {
        return kernel.refuse('EEXIST', name, `overlaps slot ${other & 0xffff}`, SOURCE)
      }
    }
  }
  let guestMemfd: GuestMemfd | undefined
  if (private_) {
    const file = kernel.file(view.getInt32(40, true))
    if (file === null) return kernel.refuse('EBADF', name, 'guest_memfd is not open', 'virt/kvm/guest_memfd.c kvm_gmem_bind')
    if (!(file instanceof GuestMemfd)) return refuse(kernel, name, 'not a guest_memfd')
    const refused = file.admits(vm, name, offset, size)
    if (refused < 0) return refused
    guestMemfd = file
  }
  // kvm_arch_prepare_memory_region: kvm_mmu_max_gfn.
  const most = vm.view.getBigUint64(VM_PHYS_MASK, true) + 4096n
  if ((old === undefined || old.gpa !== gpa) && gpa + size > most)
    return refuse(kernel, name, 'the region ends above the physical addresses of the host')
  const place = kernel.memory.find(userspaceAddr, Number(size))
  const shared = place !== null && place.mapping.backing !== 0 ? place : null
  // A mapping that is not there faults when it is used; a slot that could use nothing else is refused at once.
  if (shared === null && guestMemfd === undefined)
    return kernel.badPointer(name, 'userspace_addr is not (wholly) inside an anonymous mapping')
  const { call } = kernel.core
  const backing = shared === null ? (guestMemfd as GuestMemfd).backing : shared.mapping.backing
  const page = shared === null ? Number(offset >> 12n) : shared.offset >>> 12
  const result = call.slotSet(vm.address, slot, gpa, size, flags & 3, backing, page)
  if (result < 0) return kernel.refuse('ENOMEM', name, `the core refused the slot (${result})`, 'cloister')
  if (guestMemfd !== undefined) {
    const only = guestMemfd.mappable ? GMEM_ONLY : 0
    call.slotBind(vm.address, slot, guestMemfd.backing, Number(offset >> 12n), (shared === null ? NO_SHARED : 0) | only)
  }
  guestMemfd?.bindings.set(slot, { start: offset, end: offset + size })
  vm.slots.set(slot, { id: slot, flags, gpa, size, userspaceAddr, ...(guestMemfd === undefined ? {} : { guestMemfd }) })
  return 0
}

const KVM_MEMORY_ATTRIBUTE_PRIVATE = 8n

/** struct kvm_memory_attributes: address, size, attributes, flags u64. */
function setMemoryAttributes(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const view = viewOf(bytes)
  const [address, size, attributes, flags] = [0, 8, 16, 24].map((at) => view.getBigUint64(at, true)) as [bigint, bigint, bigint, bigint]
  const refuse_ = (reason: string): number =>
    kernel.refuse('EINVAL', 'KVM_SET_MEMORY_ATTRIBUTES', reason, 'virt/kvm/kvm_main.c kvm_vm_ioctl_set_mem_attributes', {
      switch: 'has_private_mem',
    })
  if (flags !== 0n) return refuse_('flags must be 0')
  if ((attributes & ~(vm.hasPrivateMem ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0n)) !== 0n)
    return refuse_(`attributes 0x${attributes.toString(16)} are not possible for this VM type`)
  if (size === 0n || address + size >= 1n << 64n) return refuse_('size 0 or a wrapping range')
  if ((address & 0xfffn) !== 0n || (size & 0xfffn) !== 0n) return refuse_('address and size must be page aligned')
  const result = kernel.core.call.privateSet(vm.address, address >> 12n, size >> 12n, attributes === 0n ? 0 : 1)
  return result < 0 ? kernel.refuse('ENOMEM', 'KVM_SET_MEMORY_ATTRIBUTES', 'no memory left', 'cloister') : 0
}

export const memoryHandlers: readonly VmRow[] = [
  ['KVM_SET_USER_MEMORY_REGION', (vm, bytes) => setRegion(vm, 'KVM_SET_USER_MEMORY_REGION', bytes, false)],
  ['KVM_SET_USER_MEMORY_REGION2', (vm, bytes) => setRegion(vm, 'KVM_SET_USER_MEMORY_REGION2', bytes, true)],
  createGuestMemfd,
  ['KVM_SET_MEMORY_ATTRIBUTES', setMemoryAttributes],
  ...dirtyHandlers,
  ...coalescedHandlers,
]
