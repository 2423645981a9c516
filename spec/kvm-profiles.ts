/**
 * What profiles and kernel versions change in the policy table (spec/kvm-policy.ts), and which mails asked for it.
 * `upstream` is the table itself; `rfc-2020` defines TDX (seed mail 000) and legacy SEV-ES (seed mails 001, 004),
 * its other columns inherit `upstream`. No behaviour here.
 */
import type { PolicyType } from './kvm-policy.ts'

/** Built-in policy profiles: `upstream` is Linux as merged, `rfc-2020` the SEV-ES and TDX proposals of 2020. */
export const PROFILES = ['upstream', 'rfc-2020'] as const
/** Name of a built-in policy profile. */
export type Profile = (typeof PROFILES)[number]

/** The VM types a profile defines; every other column inherits `upstream`. */
export const PROFILE_TYPES: Readonly<Record<Profile, readonly PolicyType[]>> = {
  upstream: ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp', 'tdx'],
  'rfc-2020': ['sev-es-legacy', 'tdx'],
}

/** A replaced cell: these ioctls, for these VM types, in this phase. */
export interface Overlay {
  /** Applies to this profile or kernel version only. */
  readonly profile?: Profile
  readonly linux?: '6.12' | '7.3'
  /** Rows of the policy table. */
  readonly ioctls: readonly string[]
  /** Columns of the policy table. */
  readonly types: readonly PolicyType[]
  /** Before or after guest state is protected; default both. */
  readonly phase?: 'before' | 'after'
  /** `result[:ERRNO][?][; detail]`, as in docs/policy.md: `ok`, `error:EINVAL; why`. */
  readonly cell: string
  /** Who asks for it. */
  readonly source: string
}

/** A profile of the caller's own: overlays on one of the built-in profiles. */
export interface ProfileData {
  /** What errors call it. */
  readonly name: string
  /** Built-in profile it starts from; default `upstream`. */
  readonly base?: Profile
  /** Later ones win. */
  readonly overlays: readonly Overlay[]
}

const FPU = ['KVM_GET_FPU', 'KVM_SET_FPU', 'KVM_GET_XSAVE', 'KVM_GET_XSAVE2', 'KVM_SET_XSAVE'] as const
const SYNC = 'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0'

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
    ],
    types: ['tdx'],
    cell: 'error:EINVAL; on the list of ioctls that the 2020 proposal blocks for TDX',
    source: 'seed mail 000 (A1)',
  },
  {
    profile: 'rfc-2020',
    ioctls: ['KVM_GET_MP_STATE', 'KVM_SET_MP_STATE'],
    types: ['tdx'],
    cell: 'error:EINVAL; the 2020 proposal thinks it should be blocked too',
    source: 'seed mail 000 (A2)',
  },
  // What a protected guest exports through kvm_run and the events.
  {
    profile: 'rfc-2020',
    ioctls: ['KVM_RUN'],
    types: ['sev-es-legacy', 'tdx'],
    phase: 'after',
    cell: 'ok?; afterwards kvm_run holds dummies: if_flag, cr8, apic_base and ready_for_interrupt_injection are 0; an interrupt window is never granted',
    source: 'seed mail 000 (A3)',
  },
  {
    profile: 'rfc-2020',
    ioctls: ['KVM_GET_VCPU_EVENTS'],
    types: ['tdx'],
    cell: 'ok; flags = NMI_PENDING alone, interrupt.shadow = 0',
    source: 'seed mail 000 (A4)',
  },
  {
    profile: 'rfc-2020',
    ioctls: ['KVM_GET_VCPU_EVENTS'],
    types: ['sev-es-legacy'],
    phase: 'after',
    cell: 'ok; flags = NMI_PENDING alone, interrupt.shadow = 0',
    source: 'seed mail 000 (A4)',
  },
  {
    profile: 'rfc-2020',
    ioctls: ['KVM_SET_VCPU_EVENTS'],
    types: ['tdx'],
    cell: 'ok?; any flag but NMI_PENDING and any injected exception is -EINVAL',
    source: 'seed mail 000 (A4, A7)',
  },
  {
    profile: 'rfc-2020',
    ioctls: ['KVM_SET_VCPU_EVENTS'],
    types: ['sev-es-legacy'],
    phase: 'after',
    cell: 'ok?; any flag but NMI_PENDING is -EINVAL',
    source: 'seed mail 000 (A4)',
  },
  {
    profile: 'rfc-2020',
    ioctls: [SYNC],
    types: ['tdx'],
    cell: 'ok?; EVENTS (4) alone, REGS and SREGS are -EINVAL',
    source: 'seed mails 000 (A6), 003 (D6)',
  },
  {
    profile: 'rfc-2020',
    ioctls: [SYNC],
    types: ['sev-es-legacy'],
    phase: 'after',
    cell: 'ok?; EVENTS (4) alone, REGS and SREGS are -EINVAL',
    source: 'seed mails 000 (A6), 003 (D6)',
  },
  // Seed mail 004: no guest FPU is allocated for SEV-ES, so its state is refused from time zero.
  {
    profile: 'rfc-2020',
    ioctls: FPU,
    types: ['sev-es-legacy'],
    cell: 'error:EINVAL; no guest FPU is allocated in the 2020 proposal',
    source: 'seed mail 004 (E3)',
  },
  // Linux 6.12: no registers by id, and no TDX at all. (A guest_memfd can be made for any VM; only slots ask for private memory.)
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

/** Where the seed mails speak of an ioctl: what was proposed, and what Linux merged. */
export interface MailNote {
  /** Number of the mail in the project's seeds, and the rule made from it. */
  readonly mail: string
  /** Letter and number of the rule. */
  readonly rule: string
  /** Rows of the policy table. */
  readonly ioctls: readonly string[]
  /** Columns of the policy table. */
  readonly types: readonly PolicyType[]
  /** What the mail asks for. */
  readonly proposed: string
  /** What Linux does. */
  readonly merged: string
}

const PROTECTED: readonly PolicyType[] = ['sev-es-legacy', 'sev-es', 'snp', 'tdx']
const SEV_ES: readonly PolicyType[] = ['sev-es-legacy', 'sev-es', 'snp']
const MAIL_000 = '000 (Sean Christopherson, 2020-09-15, SEV-ES hypervisor support)'
const MAIL_001 = '001 (Tom Lendacky, 2020-09-18, QEMU SEV-ES guest support)'
const MAIL_003 = '003 (Sean Christopherson, 2024-05-13, SNP_EXTENDED_GUEST_REQUEST)'
const MAIL_004 = '004 (Tom Lendacky, 2020-09-17, Prevent debugging under SEV-ES)'

/** All of them; `cloister policy --explain` prints those of an ioctl. */
export const MAIL_NOTES: readonly MailNote[] = [
  {
    mail: MAIL_000,
    rule: 'A1',
    ioctls: ['KVM_INTERRUPT'],
    types: ['tdx'],
    proposed: 'blocked: interrupts of a TD go through posted interrupts only',
    merged: 'not blocked: 0 or -EEXIST, the vector is never delivered',
  },
  {
    mail: MAIL_000,
    rule: 'A1',
    ioctls: ['KVM_SMI'],
    types: ['tdx'],
    proposed: 'blocked',
    merged: '-ENOTTY through has_emulated_msr(kvm, SMBASE)',
  },
  {
    mail: MAIL_000,
    rule: 'A1',
    ioctls: ['KVM_X86_SETUP_MCE', 'KVM_X86_SET_MCE'],
    types: ['tdx'],
    proposed: 'blocked',
    merged: 'not blocked',
  },
  {
    mail: MAIL_000,
    rule: 'A1',
    ioctls: [
      'KVM_GET_DEBUGREGS',
      'KVM_SET_DEBUGREGS',
      'KVM_GET_XSAVE',
      'KVM_GET_XSAVE2',
      'KVM_SET_XSAVE',
      'KVM_GET_XCRS',
      'KVM_SET_XCRS',
      'KVM_GET_REGS',
      'KVM_SET_REGS',
      'KVM_GET_SREGS',
      'KVM_SET_SREGS',
      'KVM_SET_GUEST_DEBUG',
      'KVM_GET_FPU',
      'KVM_SET_FPU',
    ],
    types: ['tdx'],
    proposed: 'blocked',
    merged: '-EINVAL from the creation of the vCPU on (SREGS2, XSAVE2 and LAPIC were added to the list)',
  },
  {
    mail: MAIL_000,
    rule: 'A2',
    ioctls: ['KVM_GET_MP_STATE', 'KVM_SET_MP_STATE'],
    types: ['tdx'],
    proposed: 'should be blocked too',
    merged: 'never done',
  },
  {
    mail: MAIL_000,
    rule: 'A3',
    ioctls: ['KVM_RUN'],
    types: PROTECTED,
    proposed: 'an interrupt window is never granted; the exported run state is dummy',
    merged: "cr8 and apic_base are KVM's copies; if_flag is 0 for a TD, the saved interrupt state for SEV-ES",
  },
  {
    mail: MAIL_000,
    rule: 'A4',
    ioctls: ['KVM_GET_VCPU_EVENTS', 'KVM_SET_VCPU_EVENTS'],
    types: PROTECTED,
    proposed: 'no interrupt shadow; only NMI_PENDING is accepted in flags',
    merged: 'the shadow of a TD reads 0; the mask of flags was not merged, injection hooks of a TD do nothing',
  },
  {
    mail: MAIL_000,
    rule: 'A6',
    ioctls: [SYNC],
    types: PROTECTED,
    proposed: 'EVENTS alone for a protected guest',
    merged: 'nothing at all for types SEV_ES, SNP and TDX, from creation; unchanged for legacy SEV-ES',
  },
  {
    mail: MAIL_003,
    rule: 'D6',
    ioctls: [SYNC],
    types: PROTECTED,
    proposed: 'KVM_SYNC_X86_REGS and SREGS ought to be rejected if guest state is protected',
    merged: 'they are, except for legacy SEV-ES',
  },
  {
    mail: MAIL_000,
    rule: 'A8',
    ioctls: ['KVM_SET_TSC_KHZ@vcpu', 'KVM_SET_DEVICE_ATTR (KVM_VCPU_TSC_CTRL/KVM_VCPU_TSC_OFFSET)', 'KVM_SET_TSC_KHZ'],
    types: ['tdx'],
    proposed: 'tsc_immutable: KVM has no write access to the TSC offset',
    merged: 'guest_tsc_protected: -EINVAL for scaling of a vCPU, offset writes are dropped in silence',
  },
  {
    mail: MAIL_000,
    rule: 'A8',
    ioctls: ['KVM_CREATE_IRQCHIP', 'KVM_IRQFD', 'KVM_CREATE_VCPU'],
    types: ['tdx'],
    proposed: 'eoi_intercept_unsupported: no level-triggered interrupts',
    merged: 'has_protected_eoi: no in-kernel IOAPIC, vCPUs need the split irqchip, resample irqfds are refused',
  },
  {
    mail: MAIL_000,
    rule: 'A8',
    ioctls: ['KVM_SET_USER_MEMORY_REGION', 'KVM_SET_USER_MEMORY_REGION2'],
    types: PROTECTED,
    proposed: 'readonly_mem_unsupported: private memory needs RWX (expected for TDX only)',
    merged: 'refused for types SEV_ES, SNP and TDX; legacy SEV-ES may still have read-only slots',
  },
  {
    mail: MAIL_001,
    rule: 'B2, B6',
    ioctls: ['KVM_GET_REGS', 'KVM_SET_REGS', 'KVM_GET_SREGS', 'KVM_SET_SREGS', 'KVM_GET_SREGS2', 'KVM_SET_SREGS2'],
    types: SEV_ES,
    proposed: 'no register changes after LAUNCH_UPDATE_VMSA; reads give zeros, or what the GHCB exchanged',
    merged: 'so for the legacy VM type; the newer types return -EINVAL',
  },
  {
    mail: MAIL_001,
    rule: 'B6',
    ioctls: ['KVM_GET_MSRS', 'KVM_SET_MSRS'],
    types: SEV_ES,
    proposed: 'MSRs are a bit of a special case',
    merged: 'passed-through MSRs read 0 (legacy) or end the loop (newer types); the others work',
  },
  {
    mail: MAIL_001,
    rule: 'B5',
    ioctls: ['KVM_SMI', 'KVM_CHECK_EXTENSION'],
    types: SEV_ES,
    proposed: 'KVM_CAP_X86_SMM answered per VM, has_emulated_msr takes an optional VM',
    merged: 'exactly so; KVM_SMI uses the same question and is -ENOTTY',
  },
  {
    mail: MAIL_004,
    rule: 'E2',
    ioctls: ['KVM_SET_GUEST_DEBUG'],
    types: SEV_ES,
    proposed: 'allowed until the VMSA is encrypted; LAUNCH_UPDATE_VMSA is refused while it is active',
    merged: 'both halves merged, and DR7 is checked as well',
  },
  {
    mail: MAIL_004,
    rule: 'E1',
    ioctls: ['KVM_SET_REGS', 'KVM_SET_SREGS', 'KVM_GET_XCRS'],
    types: SEV_ES,
    proposed: 'legal between creation and the encryption of the VMSA',
    merged: 'merged',
  },
  {
    mail: MAIL_004,
    rule: 'E3',
    ioctls: [...FPU],
    types: SEV_ES,
    proposed: 'refused from time zero: no guest FPU is allocated',
    merged: 'allowed until the VMSA is sealed, then -EINVAL or (legacy) zeros',
  },
]
