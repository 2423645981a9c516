/** The /dev/kvm file descriptor (virt/kvm/kvm_main.c kvm_dev_ioctl, arch/x86/kvm/x86.c kvm_arch_dev_ioctl). */
import { KVM_API_VERSION, VCPU_MMAP_SIZE, VM_TYPE } from '../generated/kvm-abi.js'
import { POLICY_TYPES, type PolicyEntry } from '../policy/table.js'
import { dispatch, type IoctlTable, ioctlTable, type Target } from './dispatch.js'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.js'
import { VmFd } from './vm.js'

const tables = new WeakMap<Kernel, IoctlTable<SystemFd>>()

/** VM types of KVM_CAP_VM_TYPES on this host. */
export function supportedVmTypes(kernel: Kernel): number {
  const common = 1 << VM_TYPE.DEFAULT
  if (kernel.options.host === 'intel') return kernel.options.linux === '6.12' ? common : common | (1 << VM_TYPE.TDX)
  return common | (1 << VM_TYPE.SEV) | (1 << VM_TYPE.SEV_ES) | (1 << VM_TYPE.SNP)
}

export class SystemFd implements FileDescriptor, Target {
  readonly kind = 'system'
  readonly kernel: Kernel
  readonly typeIndex = POLICY_TYPES.indexOf('default')
  readonly #table: IoctlTable<SystemFd>

  constructor(kernel: Kernel) {
    this.kernel = kernel
    let table = tables.get(kernel)
    if (table === undefined) {
      table = ioctlTable<SystemFd>(kernel.policy, [
        ['KVM_GET_API_VERSION', (system, _bytes, value) => (value === 0 ? KVM_API_VERSION : system.#notZero('KVM_GET_API_VERSION'))],
        ['KVM_GET_VCPU_MMAP_SIZE', (system, _bytes, value) => (value === 0 ? VCPU_MMAP_SIZE : system.#notZero('KVM_GET_VCPU_MMAP_SIZE'))],
        ['KVM_CREATE_VM', (system, _bytes, type) => system.#createVm(type)],
      ])
      tables.set(kernel, table)
    }
    this.#table = table
  }

  phase(_row: PolicyEntry): 0 | 1 {
    return 0
  }

  ioctl(request: number, argument: IoctlArgument): number {
    return dispatch(this.#table, this, request, argument, 'EINVAL')
  }

  close(): void {
    // VMs outlive the file descriptor that made them.
  }

  #notZero(name: string): number {
    return this.kernel.refuse('EINVAL', name, 'the argument must be 0', 'virt/kvm/kvm_main.c kvm_dev_ioctl')
  }

  #createVm(type: number): number {
    const { kernel } = this
    if (!(type >= 0 && type < 32) || (supportedVmTypes(kernel) & (1 << type)) === 0) {
      return kernel.refuse('EINVAL', 'KVM_CREATE_VM', `VM type ${type} is not in KVM_CAP_VM_TYPES of this host`, 'arch/x86/kvm/x86.c kvm_arch_init_vm', {
        switch: 'supported_vm_types',
      })
    }
    const address = kernel.core.call.vmCreate()
    if (address <= 0) return kernel.refuse('ENOMEM', 'KVM_CREATE_VM', 'no memory left for a VM', 'cloister')
    return kernel.install(new VmFd(kernel, type, address))
  }
}
