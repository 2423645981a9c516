/** The /dev/kvm file descriptor (virt/kvm/kvm_main.c kvm_dev_ioctl, arch/x86/kvm/x86.c kvm_arch_dev_ioctl). */
import { CPUID_ENTRY_SIZE, encodeCpuid } from '../cpuid/entries.ts'
import { supportedCpuid } from '../cpuid/supported.ts'
import { KVM_API_VERSION, VCPU_MMAP_SIZE } from '../generated/kvm-abi.ts'
import { POLICY_TYPES, type PolicyEntry } from '../policy/table.ts'
import { SEV_FEATURE, SNP_POLICY } from '../generated/psp.ts'
import { checkExtension } from './caps.ts'
import { dispatch, type IoctlTable, ioctlTable, type Target, viewOf } from './dispatch.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import { featureMsrs, savedMsrs } from './msr-lists.ts'
import { getFeatureMsrs, mceCapSupported, msrEntries } from './vcpu-msrs.ts'
import { XCR0_SUPPORTED } from './vcpu-fpu.ts'
import { supportedVmTypes } from './vm-types.ts'
import { VmFd } from './vm.ts'

const cpuidTail = (header: DataView): number => 8 + Math.min(header.getUint32(0, true), 256) * CPUID_ENTRY_SIZE
const listTail = (header: DataView): number => 4 + Math.min(header.getUint32(0, true), 1024) * 4
const tables = new WeakMap<Kernel, IoctlTable<SystemFd>>()

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
        ['KVM_CHECK_EXTENSION', (system, _bytes, cap) => checkExtension(system.kernel, null, cap)],
        ['KVM_GET_SUPPORTED_CPUID', (system, bytes) => system.#cpuid(bytes), { tail: cpuidTail }],
        ['KVM_GET_EMULATED_CPUID', (system, bytes) => system.#emulatedCpuid(bytes), { tail: cpuidTail }],
        ['KVM_GET_MSR_INDEX_LIST', (system, bytes) => system.#list('KVM_GET_MSR_INDEX_LIST', bytes, savedMsrs), { tail: listTail }],
        [
          'KVM_GET_MSR_FEATURE_INDEX_LIST',
          (system, bytes) => system.#list('KVM_GET_MSR_FEATURE_INDEX_LIST', bytes, featureMsrs),
          { tail: listTail },
        ],
        ['KVM_GET_MSRS', (system, bytes) => getFeatureMsrs(system.kernel, bytes), { tail: msrEntries, row: 'KVM_GET_MSRS@system' }],
        ['KVM_X86_GET_MCE_CAP_SUPPORTED', (system, bytes) => system.#mce(bytes)],
        ['KVM_HAS_DEVICE_ATTR', (system, bytes) => (system.#attribute('KVM_HAS_DEVICE_ATTR', bytes) === null ? -6 : 0)],
        ['KVM_GET_DEVICE_ATTR', (system, bytes) => system.#getAttribute(bytes)],
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
      return kernel.refuse(
        'EINVAL',
        'KVM_CREATE_VM',
        `VM type ${type} is not in KVM_CAP_VM_TYPES of this host`,
        'arch/x86/kvm/x86.c kvm_arch_init_vm',
        {
          switch: 'supported_vm_types',
        },
      )
    }
    const address = kernel.core.call.vmCreate() >>> 0
    if (address === 0) return kernel.refuse('ENOMEM', 'KVM_CREATE_VM', 'no memory left for a VM', 'cloister')
    return kernel.install(new VmFd(kernel, type, address))
  }

  #cpuid(bytes: Uint8Array): number {
    const { kernel } = this
    const view = viewOf(bytes)
    const room = view.getUint32(0, true)
    const table = encodeCpuid(supportedCpuid(kernel.options.host))
    const count = (table.length - 8) / CPUID_ENTRY_SIZE
    if (room < count)
      return kernel.refuse(
        'E2BIG',
        'KVM_GET_SUPPORTED_CPUID',
        `${count} entries are there, ${room} asked for`,
        'arch/x86/kvm/cpuid.c kvm_dev_ioctl_get_cpuid',
      )
    if (bytes.length < table.length) return kernel.badPointer('KVM_GET_SUPPORTED_CPUID', 'the entries run over the end of the buffer')
    bytes.set(table)
    return 0
  }

  /** MOVBE is native here; RDPID too: nothing is emulated beyond what is supported. */
  #emulatedCpuid(bytes: Uint8Array): number {
    viewOf(bytes).setUint32(0, 0, true)
    return 0
  }

  /** struct kvm_msr_list: the number needed comes back with -E2BIG. */
  #list(name: string, bytes: Uint8Array, list: readonly number[]): number {
    const view = viewOf(bytes)
    const room = view.getUint32(0, true)
    view.setUint32(0, list.length, true)
    if (room < list.length)
      return this.kernel.refuse(
        'E2BIG',
        name,
        `${list.length} indices are there, ${room} asked for`,
        'arch/x86/kvm/x86.c kvm_arch_dev_ioctl',
      )
    if (bytes.length < 4 + list.length * 4) return this.kernel.badPointer(name, 'the indices run over the end of the buffer')
    list.forEach((index, i) => {
      view.setUint32(4 + i * 4, index, true)
    })
    return 0
  }

  #mce(bytes: Uint8Array): number {
    viewOf(bytes).setBigUint64(0, mceCapSupported(this.kernel.options.host), true)
    return 0
  }

  /** struct kvm_device_attr: flags, group u32, attr, addr u64. Group 0: XCOMP_GUEST_SUPP; group 1: SEV. */
  #attribute(name: string, bytes: Uint8Array): bigint | null {
    const view = viewOf(bytes)
    const group = view.getUint32(4, true)
    const attr = view.getBigUint64(8, true)
    if (group === 0 && attr === 0n) return XCR0_SUPPORTED
    if (group === 1 && this.kernel.options.host === 'amd') {
      if (attr === 0n) return SEV_FEATURE.DEBUG_SWAP | SEV_FEATURE.SECURE_TSC
      if (attr === 1n) return SNP_POLICY.MASK
      if (attr === 2n) return 1n
    }
    this.kernel.refuse('ENXIO', name, `no attribute ${group}/${attr}`, 'arch/x86/kvm/x86.c __kvm_x86_dev_get_attr')
    return null
  }

  #getAttribute(bytes: Uint8Array): number {
    const value = this.#attribute('KVM_GET_DEVICE_ATTR', bytes)
    if (value === null) return -6
    const out = new Uint8Array(8)
    viewOf(out).setBigUint64(0, value, true)
    return this.kernel.memory.copyOut(viewOf(bytes).getBigUint64(16, true), out) ? 0 : this.kernel.badPointer('KVM_GET_DEVICE_ATTR')
  }
}
