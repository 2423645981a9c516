/** KVM_REGISTER_COALESCED_MMIO and KVM_UNREGISTER_COALESCED_MMIO (virt/kvm/coalesced_mmio.c); the ring is page 2 of a vCPU. */
import { viewOf } from './dispatch.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

/** KVM_COALESCED_MMIO_PAGE_OFFSET: what KVM_CAP_COALESCED_MMIO answers. */
export const COALESCED_PAGE = 2

/** struct kvm_coalesced_mmio_zone: addr u64, size u32, pio u32. */
function zone(vm: VmFd, name: 'KVM_REGISTER_COALESCED_MMIO' | 'KVM_UNREGISTER_COALESCED_MMIO', bytes: Uint8Array): number {
  const { kernel } = vm
  const { call } = kernel.core
  const view = viewOf(bytes)
  const [address, size, pio] = [view.getBigUint64(0, true), view.getUint32(8, true), view.getUint32(12, true)]
  const register = name === 'KVM_REGISTER_COALESCED_MMIO'
  const source = `virt/kvm/coalesced_mmio.c kvm_vm_ioctl_${register ? '' : 'un'}register_coalesced_mmio`
  if (pio > 1) return kernel.refuse('EINVAL', name, `pio is 0 or 1, not ${pio}`, source)
  if (!register) {
    call.zoneRemove(vm.address, address, size, pio)
    return 0
  }
  const result = call.zoneAdd(vm.address, address, size, pio)
  if (result === 0) return 0
  return kernel.refuse(result === -28 ? 'ENOSPC' : 'ENOMEM', name, result === -28 ? 'the bus has 1000 devices' : 'no memory left', source)
}

export const coalescedHandlers: readonly VmRow[] = [
  ['KVM_REGISTER_COALESCED_MMIO', (vm, bytes) => zone(vm, 'KVM_REGISTER_COALESCED_MMIO', bytes)],
  ['KVM_UNREGISTER_COALESCED_MMIO', (vm, bytes) => zone(vm, 'KVM_UNREGISTER_COALESCED_MMIO', bytes)],
]
