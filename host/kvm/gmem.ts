/** What kvm_gmem_populate (virt/kvm/guest_memfd.c) asks of a page before launch commands may fill it. */
import { KVM_MEM_GUEST_MEMFD } from './vm-memory.ts'
import type { VmFd } from './vm.ts'

/** Why the page at `gpa` cannot be populated, null if it can. */
export function gmemRefusal(vm: VmFd, gpa: bigint): string | null {
  for (const slot of vm.slots.values()) {
    if (gpa < slot.gpa || gpa >= slot.gpa + slot.size) continue
    if ((slot.flags & KVM_MEM_GUEST_MEMFD) === 0) return `the slot at 0x${gpa.toString(16)} has no guest_memfd`
    return vm.isPrivate(gpa) ? null : `the page at 0x${gpa.toString(16)} does not have the private attribute`
  }
  return `there is no slot at 0x${gpa.toString(16)}`
}
