/** The table of VM requests. */
import { type Handler, type HandlerOptions, type IoctlTable, ioctlTable, type RequestName } from './dispatch.ts'
import type { Kernel } from './kernel.ts'
import { QUIRK_STUFF_FEATURE_MSRS, VM_DISABLED_QUIRKS } from '../generated/layout.ts'
import { MAX_VCPU_IDS, MAX_VCPUS } from './caps.ts'
import { initSevVcpu } from './sev-vm.ts'
import { irqHandlers } from './vm-irq.ts'
import { StatsFd, vmStatistics } from './stats.ts'
import { tdxVcpuRefusal } from './tdx.ts'
import { memoryHandlers } from './vm-memory.ts'
import { miscVmHandlers } from './vm-misc.ts'
import { VcpuFd } from './vcpu.ts'
import type { VmFd } from './vm.ts'

export type VmRow = readonly [name: RequestName, handler: Handler<VmFd>, options?: HandlerOptions]

const createVcpu: VmRow = [
  'KVM_CREATE_VCPU',
  (vm, _bytes, id) => {
    const { kernel } = vm
    const source = 'virt/kvm/kvm_main.c kvm_vm_ioctl_create_vcpu'
    if (!(id >= 0 && id < MAX_VCPU_IDS)) return kernel.refuse('EINVAL', 'KVM_CREATE_VCPU', `vcpu_id ${id} is out of range`, source)
    if (vm.vcpus.size >= MAX_VCPUS) return kernel.refuse('EINVAL', 'KVM_CREATE_VCPU', 'too many vCPUs', source)
    // kvm_arch_vcpu_precreate: the first vCPU settles the number of ids.
    if (vm.maxVcpuIds === 0) vm.maxVcpuIds = MAX_VCPU_IDS
    if (id >= vm.maxVcpuIds)
      return kernel.refuse('EINVAL', 'KVM_CREATE_VCPU', `KVM_CAP_MAX_VCPU_ID allows ids below ${vm.maxVcpuIds}`, source)
    if (vm.vcpus.has(id)) return kernel.refuse('EEXIST', 'KVM_CREATE_VCPU', `vCPU ${id} exists`, source)
    if (vm.td !== null) {
      const refused = tdxVcpuRefusal(vm)
      if (refused < 0) return refused
    }
    const s = kernel.core.call.vcpuCreate(vm.address, id) >>> 0
    if (s === 0) return kernel.refuse('ENOMEM', 'KVM_CREATE_VCPU', 'no memory left for a vCPU arena', 'cloister')
    const vcpu = new VcpuFd(vm, id, s)
    if ((vm.view.getUint32(VM_DISABLED_QUIRKS, true) & QUIRK_STUFF_FEATURE_MSRS) !== 0) clearFeatureMsrs(vcpu)
    vm.vcpus.set(id, vcpu)
    vm.retain()
    initSevVcpu(vcpu)
    return kernel.install(vcpu)
  },
]

/** Without KVM_X86_QUIRK_STUFF_FEATURE_MSRS the feature MSRs start as 0: microcode revision, PLATFORM_INFO. */
function clearFeatureMsrs({ kernel, s }: VcpuFd): void {
  for (const index of [0x8b, 0xce]) {
    kernel.core.stagingView.setBigUint64(0, 0n, true)
    kernel.core.call.msrSet(s, index)
  }
}

const statsFd: VmRow = ['KVM_GET_STATS_FD', (vm) => vm.kernel.install(new StatsFd(vm.kernel, 'kvm-1', vmStatistics(vm)))]

const tables = new WeakMap<Kernel, IoctlTable<VmFd>>()

export function vmTable(kernel: Kernel): IoctlTable<VmFd> {
  let table = tables.get(kernel)
  if (table === undefined) {
    table = ioctlTable<VmFd>(kernel.policy, [createVcpu, ...memoryHandlers, ...irqHandlers, ...miscVmHandlers, statsFd])
    tables.set(kernel, table)
  }
  return table
}
