/**
 * Pointers that lead nowhere. Every request with a struct answers -EFAULT to one, except where the kernel asks something
 * before it touches the caller's memory: that is here, from Linux 7.3 (arch/x86/kvm/x86.c kvm_arch_vm_ioctl,
 * kvm_arch_vcpu_ioctl; virt/kvm/kvm_main.c kvm_vcpu_ioctl). No behaviour here.
 */
import type { PolicyType } from './kvm-policy.ts'

export type PointerPhase = 'created' | 'initialised' | 'vcpus' | 'sealed'

export interface AskedFirst {
  readonly ioctls: readonly string[]
  readonly types: readonly PolicyType[]
  readonly phases: readonly PointerPhase[]
  /** Only without the interrupt controllers and the PIT in the kernel. */
  readonly withoutIrqchip?: boolean
  readonly errno: string
  readonly why: string
}

const AMD: readonly PolicyType[] = ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp']
const ALL: readonly PolicyType[] = [...AMD, 'tdx']
const VCPUS: readonly PointerPhase[] = ['vcpus', 'sealed']
const EVERY: readonly PointerPhase[] = ['created', 'initialised', ...VCPUS]
/** Read by copy_to_user last: has_protected_state comes first. Their counterparts copy in first, SREGS2 excepted. */
const STATE = ['KVM_GET_REGS', 'KVM_GET_SREGS', 'KVM_GET_SREGS2', 'KVM_SET_SREGS2', 'KVM_GET_XCRS', 'KVM_GET_DEBUGREGS']
const FPU = ['KVM_GET_FPU', 'KVM_GET_XSAVE', 'KVM_GET_XSAVE2']

export const ASKED_FIRST: readonly AskedFirst[] = [
  { ioctls: [...STATE, ...FPU], types: ['tdx'], phases: VCPUS, errno: 'EINVAL', why: 'has_protected_state, guest_state_protected' },
  { ioctls: [...STATE, ...FPU], types: ['sev-es'], phases: ['sealed'], errno: 'EINVAL', why: 'has_protected_state, guest_state_protected' },
  { ioctls: STATE, types: ['snp'], phases: ['sealed'], errno: 'EINVAL', why: 'has_protected_state, guest_state_protected' },
  {
    ioctls: ['KVM_GET_LAPIC', 'KVM_SET_LAPIC', 'KVM_SET_VAPIC_ADDR'],
    types: AMD,
    phases: VCPUS,
    withoutIrqchip: true,
    errno: 'EINVAL',
    why: 'lapic_in_kernel',
  },
  {
    ioctls: ['KVM_GET_LAPIC'],
    types: ['tdx'],
    phases: VCPUS,
    errno: 'EINVAL',
    why: 'guest_apic_protected; KVM_SET_LAPIC copies in before it asks',
  },
  { ioctls: ['KVM_SET_IDENTITY_MAP_ADDR'], types: ALL, phases: VCPUS, errno: 'EINVAL', why: 'created_vcpus' },
  { ioctls: ['KVM_GET_PIT2'], types: AMD, phases: EVERY, withoutIrqchip: true, errno: 'ENXIO', why: 'no vpit' },
  { ioctls: ['KVM_GET_PIT2'], types: ['tdx'], phases: EVERY, errno: 'ENXIO', why: 'no vpit' },
  { ioctls: ['KVM_GET_NESTED_STATE', 'KVM_SET_NESTED_STATE'], types: ALL, phases: VCPUS, errno: 'EINVAL', why: 'kvm_nested_ops.enabled' },
  { ioctls: ['KVM_MEMORY_ENCRYPT_OP@vcpu'], types: AMD, phases: VCPUS, errno: 'ENOTTY', why: 'no vcpu_mem_enc_ioctl' },
]

/** Requests whose table runs on behind a header: a header at the end of the memory, and what it says. */
export const TAILS: readonly (readonly [ioctl: string, header: string])[] = [
  ['KVM_GET_MSR_INDEX_LIST', 'u32@0=512'],
  ['KVM_GET_MSR_FEATURE_INDEX_LIST', 'u32@0=512'],
  ['KVM_GET_SUPPORTED_CPUID', 'u32@0=256'],
  ['KVM_SET_GSI_ROUTING', 'u32@0=1'],
  ['KVM_GET_MSRS', 'u32@0=1'],
  ['KVM_SET_MSRS', 'u32@0=1'],
  ['KVM_SET_CPUID2', 'u32@0=1'],
  ['KVM_GET_CPUID2', 'u32@0=256'],
  ['KVM_SET_SIGNAL_MASK', 'u32@0=8'],
  ['KVM_SET_PMU_EVENT_FILTER', 'u32@4=1'],
]
