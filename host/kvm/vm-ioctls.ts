/** The table of VM requests. */
import { type Handler, type HandlerOptions, type IoctlTable, ioctlTable, type RequestName } from './dispatch.js'
import type { Kernel } from './kernel.js'
import { memoryHandlers } from './vm-memory.js'
import { VcpuFd } from './vcpu.js'
import type { VmFd } from './vm.js'

export type VmRow = readonly [name: RequestName, handler: Handler<VmFd>, options?: HandlerOptions]

/** CONFIG_KVM_MAX_NR_VCPUS and KVM_MAX_VCPU_IDS. */
export const MAX_VCPUS = 1024
const MAX_VCPU_IDS = 4096

const createVcpu: VmRow = [
  'KVM_CREATE_VCPU',
  (vm, _bytes, id) => {
    const { kernel } = vm
    const source = 'virt/kvm/kvm_main.c kvm_vm_ioctl_create_vcpu'
    if (!(id >= 0 && id < MAX_VCPU_IDS)) return kernel.refuse('EINVAL', 'KVM_CREATE_VCPU', `vcpu_id ${id} is out of range`, source)
    if (vm.vcpus.size >= MAX_VCPUS) return kernel.refuse('EINVAL', 'KVM_CREATE_VCPU', 'too many vCPUs', source)
    if (vm.vcpus.has(id)) return kernel.refuse('EEXIST', 'KVM_CREATE_VCPU', `vCPU ${id} exists`, source)
    const s = kernel.core.call.vcpuCreate(vm.address, id)
    if (s <= 0) return kernel.refuse('ENOMEM', 'KVM_CREATE_VCPU', 'no memory left for a vCPU arena', 'cloister')
    const vcpu = new VcpuFd(vm, id, s)
    vm.vcpus.set(id, vcpu)
    return kernel.install(vcpu)
  },
]

const tables = new WeakMap<Kernel, IoctlTable<VmFd>>()

export function vmTable(kernel: Kernel): IoctlTable<VmFd> {
  let table = tables.get(kernel)
  if (table === undefined) {
    table = ioctlTable<VmFd>(kernel.policy, [createVcpu, ...memoryHandlers])
    tables.set(kernel, table)
  }
  return table
}
