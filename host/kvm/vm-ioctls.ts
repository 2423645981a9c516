/** The table of VM requests. */
import { type Handler, type HandlerOptions, type IoctlTable, ioctlTable, type RequestName } from './dispatch.ts'
import type { Kernel } from './kernel.ts'
import { CPU_RANDOM, QUIRK_STUFF_FEATURE_MSRS, VM_DISABLED_QUIRKS } from '../generated/layout.ts'
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
    vcpu.cpu.setBigUint64(CPU_RANDOM, kernel.nextRandomState(), true)
    if (kernel.options.host === 'intel') setMsr(vcpu, UCODE_REV, INTEL_UCODE_REV)
    if ((vm.view.getUint32(VM_DISABLED_QUIRKS, true) & QUIRK_STUFF_FEATURE_MSRS) !== 0) clearFeatureMsrs(vcpu)
    vm.vcpus.set(id, vcpu)
    vm.retain()
    initSevVcpu(vcpu)
    return kernel.install(vcpu)
  },
]

/** Without KVM_X86_QUIRK_STUFF_FEATURE_MSRS the feature MSRs start as 0: microcode revision, PLATFORM_INFO. */
function clearFeatureMsrs(vcpu: VcpuFd): void {
  for (const index of [UCODE_REV, 0xce]) setMsr(vcpu, index, 0n)
}

/** IA32_UCODE_REV, and what vmx_vcpu_create puts there; the table has that of svm_vcpu_create. */
const UCODE_REV = 0x8b
const INTEL_UCODE_REV = 0x100000000n

function setMsr({ kernel, s }: VcpuFd, index: number, value: bigint): void {
  kernel.core.stagingView.setBigUint64(0, value, true)
  kernel.core.call.msrSet(s, index)
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
