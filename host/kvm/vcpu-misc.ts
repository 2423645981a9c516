/** CPUID tables, TSC, translation and the small rest of vCPU requests (arch/x86/kvm/{cpuid,x86}.c). */
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import { CPU_TSC_OFFSET, VCPU_CPUID, VKVM_CPUID_EBX, VKVM_CPUID_ECX, VKVM_CPUID_EDX, VKVM_TSC_KHZ } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import { tdxVcpuCommand } from './tdx.ts'
import { translate } from './translate.ts'
import { takePvFeatures } from './vcpu-pv.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

const X86 = 'arch/x86/kvm/x86.c'
/** The host's TSC frequency (assembly/kvm/time.ts). */
const HOST_TSC_KHZ = 2_000_000
/** KVM_MAX_CPUID_ENTRIES. */
export const MAX_CPUID_ENTRIES = 256
/** Where the core keeps the table: count u32 at 0, entries from here. */
const TABLE_AT = 16

/** Leaves of which kvm_update_cpuid_runtime changes a part: OSXSAVE and APIC, OSPKE, the sizes of the XSAVE area. */
const RUNTIME_LEAVES: ReadonlySet<number> = new Set([1, 7, 0xd])

/** kvm_update_cpuid_runtime on a copy. */
function withRuntime(vcpu: VcpuFd, entries: Uint8Array): Uint8Array {
  const out = new Uint8Array(entries)
  const view = viewOf(out)
  for (let at = 0; at < out.length; at += CPUID_ENTRY_SIZE) {
    const [leaf, index] = [view.getUint32(at, true), view.getUint32(at + 4, true)]
    if (!RUNTIME_LEAVES.has(leaf) || vcpu.guestStateProtected) continue
    vcpu.kernel.core.call.cpuidAnswer(vcpu.s, leaf, index)
    if (leaf === 1) {
      view.setUint32(at + 20, vcpu.kvm.getUint32(VKVM_CPUID_ECX, true), true)
      view.setUint32(at + 24, vcpu.kvm.getUint32(VKVM_CPUID_EDX, true), true)
    } else if (leaf === 7 && index === 0) view.setUint32(at + 20, vcpu.kvm.getUint32(VKVM_CPUID_ECX, true), true)
    else if (leaf === 0xd && index < 2) view.setUint32(at + 16, vcpu.kvm.getUint32(VKVM_CPUID_EBX, true), true)
  }
  return out
}

function setCpuid2(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel } = vcpu
  const count = viewOf(bytes).getUint32(0, true)
  if (count > MAX_CPUID_ENTRIES)
    return kernel.refuse(
      'E2BIG',
      'KVM_SET_CPUID2',
      `${count} entries (at most ${MAX_CPUID_ENTRIES})`,
      'arch/x86/kvm/cpuid.c kvm_vcpu_ioctl_set_cpuid2',
    )
  const size = count * CPUID_ENTRY_SIZE
  if (bytes.length < 8 + size) return kernel.badPointer('KVM_SET_CPUID2', 'the entries run over the end of the buffer')
  const entries = new Uint8Array(bytes.subarray(8, 8 + size))
  if (vcpu.hasRun) {
    // kvm_cpuid_check_equal, after the bits that follow the registers are brought up to date in both.
    const [old, now] = [withRuntime(vcpu, vcpu.cpuid), withRuntime(vcpu, entries)]
    const same = old.length === now.length && now.every((b, i) => b === old[i])
    return same
      ? 0
      : kernel.refuse('EINVAL', 'KVM_SET_CPUID2', 'CPUID cannot change after the first KVM_RUN', 'arch/x86/kvm/cpuid.c kvm_set_cpuid')
  }
  takePvFeatures(vcpu, entries)
  vcpu.cpuid = entries
  const table = kernel.core.bytes(vcpu.s + VCPU_CPUID, TABLE_AT + MAX_CPUID_ENTRIES * CPUID_ENTRY_SIZE)
  table.fill(0)
  table.set(entries, TABLE_AT)
  kernel.core.view(vcpu.s + VCPU_CPUID, 4).setUint32(0, count, true)
  kernel.core.call.cpuidChanged(vcpu.s)
  return 0
}

function getCpuid2(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, cpuid } = vcpu
  const view = viewOf(bytes)
  const count = cpuid.length / CPUID_ENTRY_SIZE
  if (view.getUint32(0, true) < count)
    return kernel.refuse('E2BIG', 'KVM_GET_CPUID2', `${count} entries are there`, 'arch/x86/kvm/cpuid.c kvm_vcpu_ioctl_get_cpuid2')
  if (bytes.length < 8 + cpuid.length) return kernel.badPointer('KVM_GET_CPUID2', 'the entries run over the end of the buffer')
  bytes.set(withRuntime(vcpu, cpuid), 8)
  view.setUint32(0, count, true)
  return 0
}

/** Every modelled host scales: the guest's TSC is virtual time at its own rate, plus the offset. */
function setTscKhz(vcpu: VcpuFd, _bytes: Uint8Array, value: number): number {
  return setTsc(vcpu, 'KVM_SET_TSC_KHZ', value)
}

function setTsc(vcpu: VcpuFd, name: string, khz: number): number {
  if (!(khz >= 0 && khz < 0x7fffffff))
    return vcpu.kernel.refuse('EINVAL', name, `${khz} kHz is above the maximum`, `${X86} kvm_arch_vcpu_ioctl`)
  if (vcpu.vm.guestTscProtected)
    return vcpu.kernel.refuse('EINVAL', name, 'the guest has Secure TSC', `${X86} kvm_arch_vcpu_ioctl (guest_tsc_protected)`)
  // 0 means the host's rate (tsc_khz).
  vcpu.kernel.core.call.clockStale(vcpu.vm.address)
  vcpu.kvm.setUint32(VKVM_TSC_KHZ, khz === 0 ? HOST_TSC_KHZ : Math.trunc(khz), true)
  return 0
}

/** struct kvm_translation: linear u64, physical u64, valid, writeable, usermode u8. */
function translation(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const none = 0xffffffffffffffffn
  // CR3 of a protected guest is not known to KVM: the walk fails.
  const physical = vcpu.guestStateProtected ? none : translate(vcpu, view.getBigUint64(0, true))
  view.setBigUint64(8, physical, true)
  view.setUint8(16, physical === none ? 0 : 1)
  view.setUint8(17, 1)
  view.setUint8(18, 0)
  return 0
}

/** KVM_VCPU_TSC_CTRL / KVM_VCPU_TSC_OFFSET: group 0, attribute 0. */
function deviceAttr(vcpu: VcpuFd, name: string, bytes: Uint8Array, act: (address: bigint) => number): number {
  const view = viewOf(bytes)
  if (view.getUint32(4, true) !== 0 || view.getBigUint64(8, true) !== 0n) {
    return vcpu.kernel.refuse('ENXIO', name, 'only KVM_VCPU_TSC_CTRL / KVM_VCPU_TSC_OFFSET is known', `${X86} kvm_vcpu_ioctl_device_attr`)
  }
  return act(view.getBigUint64(16, true))
}

const entries = (header: DataView): number => 8 + Math.min(header.getUint32(0, true), MAX_CPUID_ENTRIES) * CPUID_ENTRY_SIZE

export const miscHandlers: readonly VcpuRow[] = [
  ['KVM_SET_CPUID2', setCpuid2, { tail: entries }],
  ['KVM_GET_CPUID2', getCpuid2, { tail: entries }],
  ['KVM_SET_TSC_KHZ', setTscKhz, { row: 'KVM_SET_TSC_KHZ@vcpu' }],
  ['KVM_GET_TSC_KHZ', (vcpu) => vcpu.kvm.getUint32(VKVM_TSC_KHZ, true) || vcpu.vm.tscKhz, { row: 'KVM_GET_TSC_KHZ@vcpu' }],
  ['KVM_TRANSLATE', translation],
  ['KVM_HAS_DEVICE_ATTR', (vcpu, bytes) => deviceAttr(vcpu, 'KVM_HAS_DEVICE_ATTR', bytes, () => 0), { row: '' }],
  [
    'KVM_GET_DEVICE_ATTR',
    (vcpu, bytes) =>
      deviceAttr(vcpu, 'KVM_GET_DEVICE_ATTR', bytes, (address) => {
        const value = new Uint8Array(8)
        viewOf(value).setBigUint64(0, vcpu.cpu.getBigUint64(CPU_TSC_OFFSET, true), true)
        return vcpu.kernel.memory.copyOut(address, value) ? 0 : vcpu.kernel.badPointer('KVM_GET_DEVICE_ATTR')
      }),
    { row: 'KVM_GET_DEVICE_ATTR (KVM_VCPU_TSC_CTRL/KVM_VCPU_TSC_OFFSET)' },
  ],
  [
    'KVM_SET_DEVICE_ATTR',
    (vcpu, bytes, _value, rule) =>
      deviceAttr(vcpu, 'KVM_SET_DEVICE_ATTR', bytes, (address) => {
        const value = vcpu.kernel.memory.copyIn(address, 8)
        if (value === null) return vcpu.kernel.badPointer('KVM_SET_DEVICE_ATTR')
        if (rule?.result !== 'ok-ignored' && !vcpu.vm.guestTscProtected) {
          vcpu.cpu.setBigUint64(CPU_TSC_OFFSET, viewOf(value).getBigUint64(0, true), true)
          vcpu.kernel.core.call.clockStale(vcpu.vm.address)
        }
        return 0
      }),
    { row: 'KVM_SET_DEVICE_ATTR (KVM_VCPU_TSC_CTRL/KVM_VCPU_TSC_OFFSET)', checks: true },
  ],
  // NULL takes the mask away; the set follows the header.
  ['KVM_SET_SIGNAL_MASK', signalMask, { nullable: true, tail: () => 4 + SIGSET }],
  ['KVM_MEMORY_ENCRYPT_OP', tdxVcpuCommand, { row: 'KVM_MEMORY_ENCRYPT_OP@vcpu', size: 24, nullable: true, first: notATd }],
  ['KVM_PRE_FAULT_MEMORY', preFault, { before: preFaultRange }],
]

/** svm has no vcpu_mem_enc_ioctl; vt_vcpu_mem_enc_ioctl asks for a TD before it copies. */
function notATd({ kernel, vm }: VcpuFd): number {
  const name = 'KVM_MEMORY_ENCRYPT_OP'
  if (kernel.options.host === 'amd') return kernel.refuse('ENOTTY', name, 'no vCPU commands on this host', `${X86} kvm_arch_vcpu_ioctl`)
  return vm.td === null ? kernel.refuse('EINVAL', name, 'not a TD', 'arch/x86/kvm/vmx/main.c vt_vcpu_mem_enc_ioctl') : 0
}

const PRE_FAULT = 'virt/kvm/kvm_main.c kvm_vcpu_pre_fault_memory'
const SIGSET = 8

/** struct kvm_signal_mask: len u32, then the set. */
function signalMask(vcpu: VcpuFd, bytes: Uint8Array): number {
  if (bytes.length === 0) return 0
  const length = viewOf(bytes).getUint32(0, true)
  if (length !== SIGSET)
    return vcpu.kernel.refuse('EINVAL', 'KVM_SET_SIGNAL_MASK', `len ${length} (must be ${SIGSET})`, 'virt/kvm/kvm_main.c kvm_vcpu_ioctl')
  return bytes.length < 4 + SIGSET ? vcpu.kernel.badPointer('KVM_SET_SIGNAL_MASK', 'the set runs over the end of the buffer') : 0
}

/** What is asked before whether the VM may pre-fault at all. */
function preFaultRange({ kernel }: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const [gpa, size, flags] = [view.getBigUint64(0, true), view.getBigUint64(8, true), view.getBigUint64(16, true)]
  return flags !== 0n || (gpa & 0xfffn) !== 0n || (size & 0xfffn) !== 0n || size === 0n || gpa + size >= 1n << 64n
    ? kernel.refuse('EINVAL', 'KVM_PRE_FAULT_MEMORY', 'flags, alignment or range', PRE_FAULT)
    : 0
}

/** struct kvm_pre_fault_memory: gpa, size, flags u64; the struct tells what remains. */
function preFault(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, vm } = vcpu
  const view = viewOf(bytes)
  const [gpa, size] = [view.getBigUint64(0, true), view.getBigUint64(8, true)]
  const source = PRE_FAULT
  if (!vm.preFaultAllowed) {
    return kernel.refuse(
      'EOPNOTSUPP',
      'KVM_PRE_FAULT_MEMORY',
      'the guest is still being built',
      'arch/x86/kvm/mmu/mmu.c kvm_arch_vcpu_pre_fault_memory',
      {
        switch: 'pre_fault_allowed',
      },
    )
  }
  // kvm_is_gfn_alias: one page, two addresses.
  if (vm.td !== null && (gpa & vm.td.sharedBit) !== 0n)
    return kernel.refuse('EINVAL', 'KVM_PRE_FAULT_MEMORY', 'the address has the shared bit set', 'arch/x86/kvm/mmu/mmu.c kvm_is_gfn_alias')
  let done = 0n
  let failed = 0
  for (; done < size && failed === 0; done += failed === 0 ? 4096n : 0n) failed = kernel.core.call.gpaFault(vm.address, gpa + done)
  view.setBigUint64(0, gpa + done, true)
  view.setBigUint64(8, size - done, true)
  if (done !== 0n || failed === 0) return 0
  const code = failed === -2 ? 'ENOENT' : failed === -14 ? 'EFAULT' : 'ENOMEM'
  const why = failed === -2 ? 'no slot there' : failed === -14 ? 'no memory of the kind that the attributes say' : 'no memory left'
  return kernel.refuse(code, 'KVM_PRE_FAULT_MEMORY', why, source)
}
