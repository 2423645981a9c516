/**
 * Conditions of KVM_GET_MSRS, KVM_SET_MSRS and KVM_GET/SET_ONE_REG: which registers answer what, by VM type, before and after
 * protection (Linux 7.3 arch/x86/kvm/msrs.c __msr_io; svm/svm.c sev_es_prevent_msr_access, svm_recalc_msr_intercepts; svm/sev.c
 * sev_es_recalc_msr_intercepts; vmx/tdx.c tdx_has_emulated_msr). The words are explained in spec/kvm-condition.ts.
 */
import { ALL, AMD, both, type Condition, ES, NOT_ES, row } from './kvm-condition.ts'
import type { PolicyType } from './kvm-policy.ts'

const VCPU = ['init', 'vcpu', 'cpuid']
const SEALED = ['init', 'vcpu', 'cpuid', 'seal']
const TD = ['init', 'vcpu', 'cpuid', 'td-vcpu']
const LEGACY_ES: readonly PolicyType[] = ['sev-es-legacy']
const NEW_ES: readonly PolicyType[] = ['sev-es', 'snp']
const TDX: readonly PolicyType[] = ['tdx']

/** struct kvm_msrs with these entries. */
const list = (...entries: readonly (readonly [index: number, value?: string])[]): string =>
  [
    `u32@0=${entries.length}`,
    ...entries.map(([index, value = '0'], i) => `u32@${8 + i * 16}=0x${index.toString(16)} u64@${16 + i * 16}=${value}`),
  ].join(' ')
const one = (index: number, value?: string): string => list(value === undefined ? [index] : [index, value])
const seen = (index: number, value: string): string => `KVM_GET_MSRS@vcpu ${one(index)} => u64@16=${value}`

/** KVM does not intercept writes of these: the guest's own, not KVM's, once its state is sealed. */
const PASSED: readonly (readonly [number, string])[] = [
  [0xc0000081, '0x23001000000000'],
  [0xc0000082, '0xffffffff81000000'],
  [0xc0000083, '0xffffffff81000000'],
  [0xc0000084, '0x700'],
  [0xc0000100, '0x7000'],
  [0xc0000101, '0x7000'],
  [0xc0000102, '0x7000'],
  [0x174, '0x10'],
  [0x175, '0x7000'],
  [0x176, '0x7000'],
  [0xc0000080, '0'],
  [0x277, '0x0007040600070406'],
  [0xc0000103, '5'],
  [0x1d9, '0'],
  [0x1db, '0'],
  [0x1dc, '0'],
  [0x1dd, '0'],
  [0x1de, '0'],
]
/** Passed only with the feature in the guest's CPUID: leaf 0x80000008 with IBPB, IBRS and STIBP. */
const PASSED_WITH: readonly number[] = [0x48, 0x49]
const WITH_IBRS = 'KVM_SET_CPUID2@vcpu u32@0=1 u32@8=0x80000008 u32@20=0x3030 u32@24=0xd000'
/** KVM's own in every state: time stamp, MTRRs, APIC base, machine check, clocks. */
const KEPT: readonly (readonly [number, string])[] = [
  [0x3b, '0x1000'],
  [0x2ff, '0xc06'],
  [0x250, '0x0606060606060606'],
  [0x200, '0x80000006'],
  [0x1b, '0xfee00900'],
  [0x400, '0xffffffffffffffff'],
  [0x17a, '4'],
  [0xc0010015, '0x01000000'],
]

const AMD_MSRS: readonly Condition[] = [
  ...KEPT.flatMap(([index, value]) => [
    ...both(
      'KVM_SET_MSRS',
      AMD,
      ['init', 'vcpu', 'KVM_X86_SETUP_MCE@vcpu u64@0=10'],
      one(index, value),
      '=1',
      seen(index, value),
      'other MSRs ok',
    ),
    ...both(
      'KVM_GET_MSRS',
      AMD,
      ['init', 'vcpu', 'KVM_X86_SETUP_MCE@vcpu u64@0=10', `KVM_SET_MSRS@vcpu ${one(index, value)}`],
      one(index),
      '=1',
      `=> u64@16=${value}`,
      'other MSRs ok',
    ),
  ]),
  // IA32_TSC runs on, so it is at least what was written.
  ...both(
    'KVM_SET_MSRS',
    AMD,
    VCPU,
    one(0x10, '0x100000000'),
    '=1',
    `KVM_GET_MSRS@vcpu ${one(0x10)} => u64@16>=0x100000000`,
    'returns number of entries processed',
  ),
  ...both('KVM_GET_MSRS', AMD, VCPU, list([0x2ff], [0x250], [0xdead]), '=2', [], 'returns number of entries processed'),
  ...both('KVM_SET_MSRS', AMD, VCPU, list([0x2ff, '0xc06'], [0xdead], [0x3b, '5']), '=1', seen(0x3b, '0')),
  ...both('KVM_GET_MSRS', ALL, VCPU, 'u32@0=256', 'E2BIG'),
  ...both('KVM_SET_MSRS', ALL, VCPU, 'u32@0=256', 'E2BIG'),
  ...both('KVM_GET_MSRS', ALL, VCPU, '', '=0'),
  // IA32_XSS stays reachable although the guest owns it.
  ...both('KVM_GET_MSRS', AMD, VCPU, one(0xda0), '=1', '=> u64@16=0', 'MSR_IA32_XSS ok'),
  ...both('KVM_SET_MSRS', AMD, VCPU, one(0xda0), '=1', [], 'MSR_IA32_XSS ok'),
  // SEV_STATUS is no register of KVM's, before or after.
  ...both('KVM_GET_MSRS', AMD, VCPU, one(0xc0010131), '=0'),
  row('KVM_GET_MSRS', AMD, VCPU, one(0xc0010130), '=0'),
  row('KVM_SET_MSRS', AMD, VCPU, one(0xc0010130, '0x1000'), '=0'),
  ...PASSED.flatMap(([index, value]) => [
    row('KVM_SET_MSRS', AMD, VCPU, one(index, value), '=1', seen(index, value)),
    row('KVM_SET_MSRS', NOT_ES, SEALED, one(index, value), '=1', seen(index, value)),
    row('KVM_GET_MSRS', LEGACY_ES, SEALED, one(index, '1'), '=1', '=> u64@16=0', 'pass-through MSR reads 0'),
    row('KVM_SET_MSRS', LEGACY_ES, SEALED, one(index, value), '=1', seen(index, '0'), 'pass-through MSR reads 0'),
    row('KVM_GET_MSRS', NEW_ES, SEALED, list([0x2ff], [index], [0x250]), '=1', [], 'returned count stops'),
    row('KVM_SET_MSRS', NEW_ES, SEALED, list([0x2ff, '0xc06'], [index, value], [0x3b, '5']), '=1', seen(0x3b, '0'), 'returned count stops'),
  ]),
  ...PASSED_WITH.flatMap((index) => [
    row('KVM_GET_MSRS', LEGACY_ES, ['init', 'vcpu', WITH_IBRS, 'seal'], one(index, '1'), '=1', '=> u64@16=0', 'pass-through MSR reads 0'),
    row('KVM_GET_MSRS', NEW_ES, ['init', 'vcpu', WITH_IBRS, 'seal'], list([0x2ff], [index], [0x250]), '=1', [], 'returned count stops'),
    row('KVM_SET_MSRS', NEW_ES, ['init', 'vcpu', WITH_IBRS, 'seal'], list([0x2ff, '0xc06'], [index], [0x3b, '5']), '=1', seen(0x3b, '0')),
  ]),
  row('KVM_GET_MSRS', LEGACY_ES, SEALED, one(0xc0010130, '1'), '=1', '=> u64@16=0', 'pass-through MSR reads 0'),
  row('KVM_GET_MSRS', NEW_ES, SEALED, one(0xc0010130), '=0', [], 'returned count stops'),
  // Without the feature in the guest's CPUID the register is intercepted, and KVM's.
  row('KVM_GET_MSRS', ES, ['init', 'vcpu', 'KVM_SET_CPUID2@vcpu u32@0=1', 'seal'], one(0x48), '=1', '=> u64@16=0', 'other MSRs ok'),
  row('KVM_GET_MSRS', ES, ['init', 'vcpu', 'KVM_SET_CPUID2@vcpu u32@0=1', 'seal'], one(0xc0000103), '=1', '=> u64@16=0', 'other MSRs ok'),
]

/** tdx_has_emulated_msr, with a value to write. */
const TD_WRITES: readonly (readonly [number, string])[] = [
  [0x8b, '0x100000000'],
  [0x1fc, '1'],
  [0x277, '0x0007040600070406'],
  [0x200, '0x80000006'],
  [0x250, '0x0606060606060606'],
  [0x26f, '0x0606060606060606'],
  [0x2ff, '0xc06'],
  [0x1a0, '0x1801'],
  [0x140, '0'],
  [0x17a, '4'],
  [0x17b, '0'],
  [0x4d0, '1'],
  [0x400, '0xffffffffffffffff'],
  [0x80f, '0x1ff'],
  [0x832, '0x10030'],
  [0x838, '0'],
  [0x83e, '0xb'],
]
/** Read as they are at the start. */
const TD_READS: readonly (readonly [number, string])[] = [
  [0xfe, '0x508'],
  [0xce, '0x80000000'],
  [0x1b, '0xfee00d00'],
  [0xc0000080, '0xd01'],
  [0x3a, '1'],
  [0x179, '10'],
  [0x10a, '0'],
  [0x4b564d05, '1'],
  [0x280, '0'],
  [0x802, '0'],
  [0x803, '0x1050014'],
  [0x6e0, '0'],
]
/** Everything else stops the loop: time stamp, kvmclock, what the module or the guest keeps. */
const TD_NEVER: readonly number[] = [
  0x10, 0x3b, 0x48, 0x174, 0x1d9, 0xda0, 0xc0000081, 0xc0000100, 0xc0000103, 0x4b564d00, 0x4b564d01, 0x808, 0x80b, 0x210, 0x270,
]
const SETUP_MCE = 'KVM_X86_SETUP_MCE@vcpu u64@0=10'
const STOPS = 'count stops at the first MSR outside'
const READ_ONLY = 'APICBASE, EFER, FEAT_CTL are read-only'

const TD_MSRS: readonly Condition[] = [TD, ['init', 'vcpu', 'seal']].flatMap((steps) => {
  const setup = [...steps, SETUP_MCE]
  return [
    ...TD_WRITES.flatMap(([index, value]) => [
      row('KVM_SET_MSRS', TDX, setup, one(index, value), '=1', seen(index, value)),
      row('KVM_GET_MSRS', TDX, setup, one(index), '=1'),
    ]),
    ...TD_READS.map(([index, value]) => row('KVM_GET_MSRS', TDX, setup, one(index), '=1', `=> u64@16=${value}`)),
    ...TD_NEVER.flatMap((index) => [
      row('KVM_GET_MSRS', TDX, setup, list([0x2ff], [index], [0xfe]), '=1', [], STOPS),
      row('KVM_SET_MSRS', TDX, setup, list([0x2ff, '0xc06'], [index], [0x1fc, '1']), '=1', seen(0x1fc, '0'), STOPS),
    ]),
    ...[0x1b, 0xc0000080, 0x3a].flatMap((index) => [
      row('KVM_SET_MSRS', TDX, setup, one(index, '0'), '=0', [], READ_ONLY),
      row('KVM_GET_MSRS', TDX, setup, one(index, '0'), '=1', '=> u64@16!=0', READ_ONLY),
    ]),
    row('KVM_SET_MSRS', TDX, setup, one(0x4d0, '2'), '=0'),
  ]
})

/** KVM_GET_ONE_REG, KVM_SET_ONE_REG: MSRs by id. */
const id = (index: number): string => `u64@0=0x2030000200000000 u32@0=0x${index.toString(16)} u64@8=$buf`
const ONE_REG: readonly Condition[] = [
  ...both('KVM_GET_ONE_REG', AMD, ['init', 'vcpu', `KVM_SET_MSRS@vcpu ${one(0x3b, '0x1000')}`], id(0x3b), 'ok', 'buf => u64@0=0x1000'),
  ...both('KVM_SET_ONE_REG', AMD, ['init', 'buf u64@0=0x1000', 'vcpu'], id(0x3b), 'ok', seen(0x3b, '0x1000')),
  ...(['KVM_GET_ONE_REG', 'KVM_SET_ONE_REG'] as const).flatMap((name) => [
    ...both(name, ALL, VCPU, 'u64@0=0x2030000300000010 u64@8=$buf', 'EINVAL', [], 'unknown register'),
    ...both(name, ALL, VCPU, 'u64@0=0x203000020000dead u64@8=$buf', 'EINVAL', [], 'unknown register'),
    ...both(name, ALL, VCPU, 'u64@0=0x2020000200000010 u64@8=$buf', 'EINVAL', [], 'unknown register'),
    ...both(name, AMD, VCPU, 'u64@0=0x203000020000003b u64@8=$wild', 'EFAULT'),
    row(name, NEW_ES, SEALED, id(0xc0000082), 'EINVAL', [], ['-EINVAL for pass-through MSRs', '-EINVAL for pass-through MSR']),
    row(name, TDX, TD, id(0x10), 'EINVAL'),
    row(name, TDX, ['init', 'vcpu', 'seal'], id(0x10), 'EINVAL'),
    row(name, TDX, TD, id(0x2ff), 'ok', [], 'ok'),
    row(name, TDX, ['init', 'vcpu', 'seal'], id(0x2ff), 'ok', [], 'ok'),
  ]),
  row('KVM_GET_ONE_REG', LEGACY_ES, [...SEALED, 'buf u64@0=1'], id(0xc0000082), 'ok', 'buf => u64@0=0', 'pass-through MSR reads 0'),
  row(
    'KVM_SET_ONE_REG',
    LEGACY_ES,
    [...SEALED, 'buf u64@0=0x7000'],
    id(0xc0000082),
    'ok',
    seen(0xc0000082, '0'),
    'pass-through MSRs ignored',
  ),
  row('KVM_SET_ONE_REG', TDX, TD, id(0xc0000080), 'EINVAL', [], 'read-only'),
  row('KVM_SET_ONE_REG', TDX, ['init', 'vcpu', 'seal'], id(0xc0000080), 'EINVAL', [], 'read-only'),
]

export const MSR_CONDITIONS: readonly Condition[] = [...AMD_MSRS, ...TD_MSRS, ...ONE_REG]
