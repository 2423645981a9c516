/**
 * What profiles and kernel versions change in the policy table. `upstream` is the table itself;
 * `rfc-2020` defines TDX (seed mail 000) and legacy SEV-ES (seed mails 001, 004), its other columns
 * inherit `upstream`.
 */
import type { PolicyType } from '../generated/kvm-policy.ts'

export const PROFILES = ['upstream', 'rfc-2020'] as const
export type Profile = (typeof PROFILES)[number]

/** A profile of the caller's own: overlays on one of the built-in profiles. */
export interface ProfileData {
  readonly name: string
  /** Built-in profile it starts from; default `upstream`. */
  readonly base?: Profile
  readonly overlays: readonly Overlay[]
}

export interface Overlay {
  /** Applies to this profile or kernel version only. */
  readonly profile?: Profile
  readonly linux?: '6.12' | '7.3'
  readonly ioctls: readonly string[]
  readonly types: readonly PolicyType[]
  readonly phase?: 'before' | 'after'
  readonly cell: string
  readonly source: string
}

const FPU = ['KVM_GET_FPU', 'KVM_SET_FPU', 'KVM_GET_XSAVE', 'KVM_GET_XSAVE2', 'KVM_SET_XSAVE'] as const

export const OVERLAYS: readonly Overlay[] = [
  // Seed mail 000: the deny list for TDX.
  {
    profile: 'rfc-2020',
    ioctls: [
      'KVM_INTERRUPT',
      'KVM_SMI',
      'KVM_X86_SETUP_MCE',
      'KVM_X86_SET_MCE',
      'KVM_GET_DEBUGREGS',
      'KVM_SET_DEBUGREGS',
      ...FPU,
      'KVM_GET_XCRS',
      'KVM_SET_XCRS',
      'KVM_GET_REGS',
      'KVM_SET_REGS',
      'KVM_GET_SREGS',
      'KVM_SET_SREGS',
      'KVM_SET_GUEST_DEBUG',
      'KVM_GET_MP_STATE',
      'KVM_SET_MP_STATE',
    ],
    types: ['tdx'],
    cell: 'error:EINVAL; denied by the 2020 proposal',
    source: 'seed mail 000 (A1, A2)',
  },
  // Seed mail 004: no guest FPU is allocated for SEV-ES, so its state is refused from time zero.
  {
    profile: 'rfc-2020',
    ioctls: FPU,
    types: ['sev-es-legacy'],
    cell: 'error:EINVAL; no guest FPU is allocated in the 2020 proposal',
    source: 'seed mail 004 (E3)',
  },
  // Linux 6.12: guest_memfd only for VM types with private memory, and no TDX at all.
  {
    linux: '6.12',
    ioctls: ['KVM_CREATE_GUEST_MEMFD'],
    types: ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es'],
    cell: 'error:EINVAL; 6.12 offers guest_memfd to VM types with private memory only',
    source: 'Linux 6.12 virt/kvm/kvm_main.c KVM_CAP_GUEST_MEMFD',
  },
  {
    linux: '6.12',
    ioctls: ['KVM_GET_ONE_REG', 'KVM_SET_ONE_REG'],
    types: ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp', 'tdx'],
    cell: 'error:EINVAL; 6.12 has no such request on x86',
    source: 'Linux 6.12 arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl',
  },
  {
    linux: '6.12',
    ioctls: ['KVM_CREATE_VM'],
    types: ['tdx'],
    cell: 'error:EINVAL; 6.12 has no TDX',
    source: 'Linux 6.12 arch/x86/kvm/x86.c kvm_is_vm_type_supported',
  },
]
