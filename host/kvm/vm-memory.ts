/** Memory slots: KVM_SET_USER_MEMORY_REGION(2) (virt/kvm/kvm_main.c kvm_set_memory_region). */
import { viewOf } from './dispatch.ts'
import type { Kernel } from './kernel.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

export interface Slot {
  readonly id: number
  readonly flags: number
  readonly gpa: bigint
  readonly size: bigint
  readonly userspaceAddr: bigint
}

export const KVM_MEM_LOG_DIRTY_PAGES = 1
export const KVM_MEM_READONLY = 2
export const KVM_MEM_GUEST_MEMFD = 4
const SLOTS_NUM = 0x7fff
const MAX_PAGES = (1n << 31n) - 1n
/** What the core's SLOT array holds. */
const CORE_SLOTS = 512
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
  if (two) {
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
  if (as >= (vm.hasPrivateMem ? 1 : 2) || id >= SLOTS_NUM) return refuse(kernel, name, `no slot 0x${slot.toString(16)}`)
  if (gpa + size > 1n << 64n) return refuse(kernel, name, 'the region wraps around')
  if (size >> 12n > MAX_PAGES) return refuse(kernel, name, 'the region is too large')
  const old = vm.slots.get(slot)
  if (size === 0n) {
    if (old === undefined) return refuse(kernel, name, 'deletes a slot that does not exist')
    vm.slots.delete(slot)
    if (as === 0) kernel.core.call.slotSet(vm.address, id, 0n, 0n, 0, 0, 0)
    return 0
  }
  if (old !== undefined) {
    if ((old.flags & KVM_MEM_GUEST_MEMFD) !== 0) return refuse(kernel, name, 'a guest_memfd slot can only be deleted')
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
  if ((flags & KVM_MEM_GUEST_MEMFD) !== 0) return kernel.unimplemented(name, 'KVM_MEM_GUEST_MEMFD')
  const place = kernel.memory.find(userspaceAddr, Number(size))
  if (place === null || place.mapping.backing === 0)
    return kernel.badPointer(name, 'userspace_addr is not (wholly) inside an anonymous mapping')
  if (as === 0) {
    if (id >= CORE_SLOTS) return kernel.unimplemented(name, `slot number ${id} (the core holds ${CORE_SLOTS})`)
    const result = kernel.core.call.slotSet(vm.address, id, gpa, size, flags, place.mapping.backing, place.offset >>> 12)
    if (result < 0) return kernel.refuse('ENOMEM', name, `the core refused the slot (${result})`, 'cloister')
  }
  vm.slots.set(slot, { id: slot, flags, gpa, size, userspaceAddr })
  return 0
}

export const memoryHandlers: readonly VmRow[] = [
  ['KVM_SET_USER_MEMORY_REGION', (vm, bytes) => setRegion(vm, 'KVM_SET_USER_MEMORY_REGION', bytes, false)],
  ['KVM_SET_USER_MEMORY_REGION2', (vm, bytes) => setRegion(vm, 'KVM_SET_USER_MEMORY_REGION2', bytes, true)],
]
