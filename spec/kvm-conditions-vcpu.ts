/**
 * Conditions of the vCPU's requests: running, registers, events, timers, debug (Linux 7.3 arch/x86/kvm/x86.c, regs.c, cpuid.c,
 * lapic.c). The words are explained in spec/kvm-condition.ts.
 */
import { ALL, AMD, both, type Condition, ES, NEW, NOT_ES, PROTECTED, row, SHARED } from './kvm-condition.ts'
import type { PolicyType } from './kvm-policy.ts'

const VCPU = ['init', 'vcpu']
const SEALED = ['init', 'vcpu', 'seal']
/** With the local APIC in the kernel. */
const LAPIC = ['init', 'irqchip', 'vcpu']
const SPLIT = ['init', 'split', 'vcpu']
const LEGACY_ES: readonly PolicyType[] = ['sev-es-legacy']
/** Guests whose state stays readable. */
const OPEN: readonly PolicyType[] = ['default', 'sev-legacy', 'sev']

const RUNNING: readonly Condition[] = [
  row('KVM_RUN', NEW, ['vcpu'], 0, 'EINVAL'),
  ...both('KVM_RUN', AMD, VCPU, 1, 'EINVAL'),
  ...both('KVM_RUN', OPEN, ['init', 'slot', 'vcpu'], 0, 'ok'),
  row('KVM_RUN', ES, ['init', 'slot', 'vcpu', 'seal'], 0, 'ok'),
  row(
    'KVM_RUN',
    ['sev-es-legacy', 'sev-es', 'snp'],
    ['init', 'slot', 'vcpu'],
    0,
    'KVM_EXIT_FAIL_ENTRY',
    'run => u64@32=0xffffffffffffffff',
    ['after INIT2 not refused by KVM', 'KVM_EXIT_FAIL_ENTRY with hardware reason ~0'],
  ),
  row('KVM_RUN', ['tdx'], VCPU, 0, 'EINVAL'),
  row('KVM_RUN', ['tdx'], [...VCPU, 'cpuid', 'td-vcpu'], 0, 'EINVAL'),
  // A TD's AP waits for an INIT that never comes; KVM_TDX_INIT_VCPU makes it runnable.
  row('KVM_RUN', ['tdx'], ['init', 'KVM_SET_BOOT_CPU_ID 1', 'vcpu'], 0, 'EINTR', [], 'AP vCPU still UNINITIALIZED'),
  // Sets of registers in kvm_run: kvm_valid_regs at 288, kvm_dirty_regs at 296, RAX of the set at 304.
  ...both(
    'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0',
    SHARED.filter((t) => t !== 'sev-es'),
    ['init', 'slot', 'vcpu'],
    'u64@288=8',
    'EINVAL',
  ),
  ...both(
    'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0',
    SHARED.filter((t) => t !== 'sev-es'),
    ['init', 'slot', 'vcpu'],
    'u64@296=8',
    'EINVAL',
  ),
  ...both(
    'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0',
    OPEN,
    ['init', 'slot', 'vcpu'],
    'u8@1=1 u64@288=1 u64@296=1 u64@304=0x77 u64@440=2',
    'ok',
    ['run => u64@296=0 u64@304=0x77', 'KVM_GET_REGS@vcpu => u64@0=0x77'],
  ),
  row(
    'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0',
    LEGACY_ES,
    ['init', 'slot', 'vcpu', 'seal'],
    'u8@1=1 u64@296=1 u64@304=0x77 u64@440=2',
    'ok',
    ['run => u64@296=0', 'KVM_GET_REGS@vcpu => u64@0=0x77'],
    'dirty regs are accepted',
  ),
  row(
    'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0',
    LEGACY_ES,
    ['init', 'slot', 'vcpu', 'seal'],
    'u8@1=1 u64@288=7 u64@304=0x77',
    'ok',
    'run => u64@304=0x77',
    'NOT stored back',
  ),
  ...([1, 2, 4] as const).flatMap((set) => [
    row('KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0', PROTECTED, VCPU, `u64@288=${set}`, 'EINVAL'),
    row('KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0', PROTECTED, SEALED, `u64@288=${set}`, 'EINVAL'),
  ]),
]

/** [ioctl, struct size]: what a sealed guest of type SEV_ES or SNP, and every TD, refuses. */
const REGISTERS = ['REGS', 'SREGS', 'SREGS2', 'XCRS', 'DEBUGREGS'] as const
const FPU = ['FPU', 'XSAVE'] as const
const SNP_FPU = 'SNP launch does not mark the fpstate confidential'

const REGISTER_STATE: readonly Condition[] = [
  ...[...REGISTERS, ...FPU].flatMap((name) => [
    row(`KVM_GET_${name}`, AMD, VCPU, '', 'ok'),
    row(`KVM_SET_${name}`, AMD, VCPU, `<KVM_GET_${name}`, 'ok'),
    row(`KVM_GET_${name}`, [...OPEN, 'sev-es-legacy'], SEALED, '', 'ok'),
    row(`KVM_SET_${name}`, [...OPEN, 'sev-es-legacy'], SEALED, `<KVM_GET_${name}`, 'ok'),
    row(`KVM_GET_${name}`, ['sev-es'], SEALED, '', 'EINVAL'),
    row(`KVM_SET_${name}`, ['sev-es'], SEALED, '', 'EINVAL'),
    row(`KVM_GET_${name}`, ['tdx'], VCPU, '', 'EINVAL'),
    row(`KVM_SET_${name}`, ['tdx'], VCPU, '', 'EINVAL'),
    row(`KVM_GET_${name}`, ['tdx'], SEALED, '', 'EINVAL'),
    row(`KVM_SET_${name}`, ['tdx'], SEALED, '', 'EINVAL'),
  ]),
  ...REGISTERS.flatMap((name) => [
    row(`KVM_GET_${name}`, ['snp'], SEALED, '', 'EINVAL'),
    row(`KVM_SET_${name}`, ['snp'], SEALED, '', 'EINVAL'),
  ]),
  // Legacy SEV-ES: copies, zeros, and what is taken without effect.
  row(
    'KVM_GET_REGS',
    LEGACY_ES,
    ['init', 'vcpu', 'KVM_SET_REGS@vcpu u64@0=0x11 u64@128=0x1234 u64@136=2', 'seal'],
    '',
    'ok',
    '=> u64@0=0x11 u64@128=0x1234 u64@136=2',
    'RIP/RFLAGS stale',
  ),
  row(
    'KVM_SET_REGS',
    LEGACY_ES,
    SEALED,
    'u64@0=0x77 u64@56=0x99 u64@136=2',
    'ok',
    'KVM_GET_REGS@vcpu => u64@0=0x77 u64@56=0x99',
    'only KVM copy changes',
  ),
  ...(['KVM_GET_SREGS', 'KVM_GET_SREGS2'] as const).map((name) =>
    row(
      name,
      LEGACY_ES,
      SEALED,
      '',
      'ok',
      [
        '=> zero@0+224 u64@224=0x60000010 zero@232+16 u64@248=0 u64@264=0 u64@272=0xfee00900',
        name === 'KVM_GET_SREGS' ? '=> zero@280+32' : '=> zero@280+40',
      ],
      name === 'KVM_GET_SREGS' ? 'cr0 cr4 cr8 efer apic_base valid' : ['same as GET_SREGS', 'pdptrs zero'],
    ),
  ),
  row('KVM_SET_SREGS', LEGACY_ES, SEALED, '<KVM_GET_SREGS u64@224=0x80000010', 'EINVAL', [], 'validated'),
  row(
    'KVM_SET_SREGS',
    LEGACY_ES,
    SEALED,
    '<KVM_GET_SREGS u64@248=0x20 u64@240=0x1000 u64@272=0xfee00100 u64@280=2',
    'ok',
    'KVM_GET_SREGS@vcpu => u64@240=0 u64@248=0 u64@272=0xfee00100',
    'only apic_base',
  ),
  row('KVM_SET_SREGS2', LEGACY_ES, SEALED, '<KVM_GET_SREGS2 u64@280=1', 'EINVAL', [], 'PDPTRS_VALID'),
  row(
    'KVM_SET_SREGS2',
    LEGACY_ES,
    SEALED,
    '<KVM_GET_SREGS2 u64@248=0x20 u64@272=0xfee00100',
    'ok',
    'KVM_GET_SREGS2@vcpu => u64@248=0 u64@272=0xfee00100',
    'only apic_base',
  ),
  row('KVM_GET_FPU', LEGACY_ES, ['init', 'vcpu', 'KVM_SET_FPU@vcpu u64@0=5 u64@152=7', 'seal'], 'u64@0=1', 'ok', '=> zero@0+416'),
  row('KVM_SET_FPU', LEGACY_ES, SEALED, 'u64@0=5 u64@152=7', 'ok', 'KVM_GET_FPU@vcpu => zero@0+416'),
  ...(['KVM_GET_XSAVE', 'KVM_GET_XSAVE2'] as const).flatMap((name) => [
    row(name, LEGACY_ES, SEALED, 'u64@0=1', 'ok', '=> zero@0+4096'),
    row(name, ['snp'], SEALED, '', 'ok', '=> u16@0=0x37f', SNP_FPU),
  ]),
  row('KVM_SET_XSAVE', LEGACY_ES, SEALED, 'u64@512=2 u64@160=7', 'ok', 'KVM_GET_XSAVE@vcpu => zero@0+4096'),
  row('KVM_GET_FPU', ['snp'], SEALED, '', 'ok', '=> u16@128=0x37f', SNP_FPU),
  row('KVM_SET_FPU', ['snp'], SEALED, '<KVM_GET_FPU u64@152=7', 'ok', 'KVM_GET_FPU@vcpu => u64@152=7', SNP_FPU),
  row('KVM_SET_XSAVE', ['snp'], SEALED, '<KVM_GET_XSAVE u64@160=7 u64@512=3', 'ok', 'KVM_GET_XSAVE@vcpu => u64@160=7', SNP_FPU),
  row('KVM_GET_XCRS', LEGACY_ES, SEALED, '', 'ok', '=> u32@0=1 u64@16=1', 'XCR0 as last reported'),
  row(
    'KVM_SET_XCRS',
    LEGACY_ES,
    ['init', 'vcpu', 'cpuid', 'seal'],
    'u32@0=1 u64@16=3',
    'ok',
    'KVM_GET_XCRS@vcpu => u64@16=3',
    'only KVM copy',
  ),
  ...[VCPU, SEALED].flatMap((setup) => [
    row('KVM_SET_XCRS', [...OPEN, 'sev-es-legacy'], setup, 'u32@0=17', 'EINVAL'),
    row('KVM_SET_XCRS', [...OPEN, 'sev-es-legacy'], setup, 'u32@0=1 u64@16=2', 'EINVAL'),
  ]),
  row(
    'KVM_GET_DEBUGREGS',
    LEGACY_ES,
    ['init', 'vcpu', 'KVM_SET_DEBUGREGS@vcpu u64@0=0x1234 u64@40=0x400', 'seal'],
    '',
    'ok',
    '=> u64@0=0x1234',
    'stale KVM copy',
  ),
  row(
    'KVM_SET_DEBUGREGS',
    LEGACY_ES,
    SEALED,
    'u64@0=0x5678 u64@32=0xffff0ff0 u64@40=0x400',
    'ok',
    'KVM_GET_DEBUGREGS@vcpu => u64@0=0x5678',
    'read back by KVM_GET_DEBUGREGS',
  ),
  ...both('KVM_SET_DEBUGREGS', OPEN, VCPU, 'u64@0=0x5678 u64@40=0x400', 'ok', 'KVM_GET_DEBUGREGS@vcpu => u64@0=0x5678'),
  ...both('KVM_SET_DEBUGREGS', OPEN, VCPU, 'u64@48=1', 'EINVAL'),
  ...both('KVM_SET_DEBUGREGS', OPEN, VCPU, 'u64@40=0x100000000', 'EINVAL'),
  // Guest debug: E2.
  row('KVM_SET_GUEST_DEBUG', AMD, VCPU, 'u32@0=1', 'ok'),
  row('KVM_SET_GUEST_DEBUG', OPEN, SEALED, 'u32@0=1', 'ok'),
  row('KVM_SET_GUEST_DEBUG', ['sev-es-legacy', 'sev-es', 'snp'], SEALED, 'u32@0=1', 'EINVAL'),
  row('KVM_SET_GUEST_DEBUG', ['sev-es-legacy', 'sev-es', 'snp'], SEALED, 'u32@0=0', 'EINVAL'),
  row('KVM_SET_GUEST_DEBUG', ['tdx'], VCPU, 'u32@0=1', 'EINVAL'),
  row('KVM_SET_GUEST_DEBUG', ['tdx'], SEALED, 'u32@0=1', 'EINVAL'),
  // Translation is never refused; CR3 of a protected guest is not KVM's to walk.
  ...both('KVM_TRANSLATE', OPEN, ['init', 'slot', 'vcpu'], 'u64@0=0x1234', 'ok', '=> u64@8=0x1234 u8@16=1 u8@17=1'),
  row(
    'KVM_TRANSLATE',
    ['sev-es-legacy', 'sev-es', 'snp'],
    ['init', 'slot', 'vcpu', 'seal'],
    'u64@0=0x1234',
    'ok',
    '=> u8@17=1',
    'never refused',
  ),
  row('KVM_TRANSLATE', ['tdx'], VCPU, 'u64@0=0x1234', 'ok', '=> u8@17=1', 'never refused'),
  row('KVM_TRANSLATE', ['tdx'], SEALED, 'u64@0=0x1234', 'ok', '=> u8@17=1', 'never refused'),
]

const VECTOR = 'u32@0=0x30'
const EVENTS: readonly Condition[] = [
  ...both('KVM_INTERRUPT', AMD, VCPU, VECTOR, 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u8@8=1 u8@9=0x30', 'ok with userspace irqchip'),
  ...both('KVM_INTERRUPT', AMD, SPLIT, VECTOR, 'ok', [], 'split: 0 then'),
  ...both('KVM_INTERRUPT', AMD, [...SPLIT, `KVM_INTERRUPT@vcpu ${VECTOR}`], VECTOR, 'EEXIST'),
  ...both('KVM_INTERRUPT', AMD, VCPU, 'u32@0=256', 'EINVAL'),
  ...both('KVM_INTERRUPT', AMD, LAPIC, VECTOR, 'ENXIO'),
  // vt_inject_irq does nothing for a TD: the vector is taken and lost.
  ...both('KVM_INTERRUPT', ['tdx'], VCPU, VECTOR, 'ok', [], 'accepted (0, then'),
  ...both('KVM_INTERRUPT', ['tdx'], [...VCPU, `KVM_INTERRUPT@vcpu ${VECTOR}`], VECTOR, 'EEXIST', [], 'accepted (0, then'),
  ...both('KVM_INTERRUPT', ['tdx'], VCPU, 'u32@0=256', 'EINVAL'),
  ...both('KVM_NMI', ALL, VCPU, 0, 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u8@13=1', 'PEND_NMI in the TD VPS'),
  // System management mode: never for a guest with encrypted state, from the init command on.
  row('KVM_SMI', ['sev-es-legacy', 'sev-es', 'snp', 'tdx'], VCPU, 0, 'ENOTTY'),
  row('KVM_SMI', ['sev-es-legacy', 'sev-es', 'snp', 'tdx'], SEALED, 0, 'ENOTTY'),
  row('KVM_SMI', ['sev-es', 'snp'], ['vcpu'], 0, 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u8@25=1', '-ENOTTY (ok before INIT2)'),
  ...both('KVM_SMI', NOT_ES, VCPU, 0, 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u8@25=1'),
  // Events.
  ...both('KVM_GET_VCPU_EVENTS', AMD, VCPU, '', 'ok', '=> u32@20=0xd'),
  ...both(
    'KVM_GET_VCPU_EVENTS',
    ['tdx'],
    [...VCPU, 'KVM_SET_VCPU_EVENTS@vcpu u8@11=3 u8@14=1 u32@20=4'],
    '',
    'ok',
    '=> u8@11=0 u8@14=0',
    'interrupt.shadow and nmi.masked always 0',
  ),
  ...both('KVM_SET_VCPU_EVENTS', AMD, VCPU, 'u8@13=1 u32@20=1', 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u8@13=1'),
  ...both('KVM_SET_VCPU_EVENTS', ALL, VCPU, 'u32@20=0x40', 'EINVAL'),
  ...both('KVM_SET_VCPU_EVENTS', ALL, VCPU, 'u8@0=1 u8@1=2', 'EINVAL'),
  ...both('KVM_SET_VCPU_EVENTS', ALL, VCPU, 'u8@0=1 u8@1=32', 'EINVAL'),
  ...both('KVM_SET_VCPU_EVENTS', ALL, VCPU, 'u32@20=0x10', 'EINVAL', [], 'PAYLOAD/TRIPLE_FAULT need their capability'),
  ...both('KVM_SET_VCPU_EVENTS', ALL, VCPU, 'u32@20=0x20', 'EINVAL', [], 'PAYLOAD/TRIPLE_FAULT need their capability'),
  ...both(
    'KVM_SET_VCPU_EVENTS',
    ALL,
    ['KVM_ENABLE_CAP u32@0=164 u64@8=1', ...VCPU],
    'u32@20=0x10',
    'ok',
    'KVM_GET_VCPU_EVENTS@vcpu => u32@20=0x1d',
    'PAYLOAD/TRIPLE_FAULT need their capability',
  ),
  ...both(
    'KVM_SET_VCPU_EVENTS',
    ALL,
    ['KVM_ENABLE_CAP u32@0=218 u64@8=1', ...VCPU],
    'u32@20=0x20',
    'ok',
    'KVM_GET_VCPU_EVENTS@vcpu => u32@20=0x2d',
    'PAYLOAD/TRIPLE_FAULT need their capability',
  ),
  ...both('KVM_SET_VCPU_EVENTS', ['tdx'], VCPU, 'u8@13=1 u32@20=0xd', 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u8@13=1', [
    'same flag mask as ordinary VM',
    'NMI pending honoured',
  ]),
  // MP states; without the local APIC in the kernel only RUNNABLE.
  ...both('KVM_SET_MP_STATE', AMD, VCPU, 'u32@0=0', 'ok', 'KVM_GET_MP_STATE@vcpu => u32@0=0', 'ok for 0,1,2,3,4,9'),
  ...([1, 2, 3, 4, 9] as const).flatMap((state) => both('KVM_SET_MP_STATE', AMD, VCPU, `u32@0=${state}`, 'EINVAL')),
  ...([0, 1, 2, 3, 4, 9] as const).flatMap((state) => [
    ...both(
      'KVM_SET_MP_STATE',
      AMD,
      LAPIC,
      `u32@0=${state}`,
      'ok',
      // kvm_apic_accept_events: the SIPI has started it by then.
      `KVM_GET_MP_STATE@vcpu => u32@0=${state === 4 ? 0 : state}`,
      'ok for 0,1,2,3,4,9',
    ),
    ...both(
      'KVM_SET_MP_STATE',
      ['tdx'],
      VCPU,
      `u32@0=${state}`,
      'ok',
      `KVM_GET_MP_STATE@vcpu => u32@0=${state === 4 ? 2 : state}`,
      'ok for 0,1,2,3,4,9',
    ),
  ]),
  ...both('KVM_SET_MP_STATE', AMD, LAPIC, 'u32@0=5', 'EINVAL'),
  ...both('KVM_SET_MP_STATE', ['tdx'], VCPU, 'u32@0=5', 'EINVAL'),
]

const MACHINE_CHECK = 'u64@0=0x8000000000000000 u64@8=0x1234'
const SETUP_MCE = 'KVM_X86_SETUP_MCE@vcpu u64@0=10'
const NO_PV = ['KVM_SET_CPUID2@vcpu u32@0=1 => ok', 'KVM_SET_MSRS@vcpu u32@0=1 u32@8=0x4b564d05 u64@16=1 => =0']
const PV_CLOCK = 'KVM_SET_MSRS@vcpu u32@0=1 u32@8=0x4b564d01 u64@16=0x801'
const REST: readonly Condition[] = [
  ...both('KVM_X86_SETUP_MCE', ALL, VCPU, 'u64@0=10', 'ok', 'KVM_GET_MSRS@vcpu u32@0=1 u32@8=0x179 => u64@16=10'),
  ...both('KVM_X86_SETUP_MCE', ALL, VCPU, 'u64@0=0', 'EINVAL'),
  ...both('KVM_X86_SETUP_MCE', ALL, VCPU, 'u64@0=33', 'EINVAL'),
  ...both('KVM_X86_SETUP_MCE', ALL, VCPU, 'u64@0=0x80000000000a', 'EINVAL', [], 'unsupported cap bits'),
  // MC0_STATUS and MC0_ADDR hold what was reported.
  ...both(
    'KVM_X86_SET_MCE',
    ALL,
    [...VCPU, SETUP_MCE],
    MACHINE_CHECK,
    'ok',
    ['KVM_GET_MSRS@vcpu u32@0=1 u32@8=0x401 => u64@16=0x8000000000000000', 'KVM_GET_MSRS@vcpu u32@0=1 u32@8=0x402 => u64@16=0x1234'],
    'not refused',
  ),
  ...both('KVM_X86_SET_MCE', ALL, [...VCPU, SETUP_MCE], 'u64@0=0x8000000000000000 u8@32=10', 'EINVAL', [], 'bad bank'),
  ...both('KVM_X86_SET_MCE', ALL, [...VCPU, SETUP_MCE], 'u64@0=1', 'EINVAL', [], 'no VAL bit'),
  ...both('KVM_GET_LAPIC', AMD, VCPU, '', 'EINVAL'),
  ...both('KVM_GET_LAPIC', AMD, LAPIC, '', 'ok', '=> u32@48!=0'),
  ...both('KVM_SET_LAPIC', AMD, VCPU, '', 'EINVAL'),
  ...both('KVM_SET_LAPIC', AMD, LAPIC, '<KVM_GET_LAPIC u32@128=0x20', 'ok', 'KVM_GET_LAPIC@vcpu => u32@128=0x20'),
  ...both('KVM_GET_LAPIC', ['tdx'], VCPU, '', 'EINVAL'),
  ...both('KVM_SET_LAPIC', ['tdx'], VCPU, '', 'EINVAL'),
  // CPUID.
  row('KVM_SET_CPUID2', AMD, VCPU, '<$cpuid', 'ok', 'KVM_GET_CPUID2@vcpu u32@0=256 => u32@0!=256', 'ok before first KVM_RUN'),
  row('KVM_SET_CPUID2', AMD, SEALED, '<$cpuid', 'ok', 'KVM_GET_CPUID2@vcpu u32@0=256 => u32@0!=256', 'ok before first KVM_RUN'),
  ...both('KVM_SET_CPUID2', OPEN, ['init', 'slot', 'vcpu', 'cpuid', 'run'], '<$cpuid', 'ok'),
  ...both('KVM_SET_CPUID2', OPEN, ['init', 'slot', 'vcpu', 'cpuid', 'run'], '', 'EINVAL'),
  row('KVM_SET_CPUID2', ['sev-es-legacy', 'sev-es', 'snp'], ['init', 'slot', 'vcpu', 'cpuid', 'run'], '', 'EINVAL'),
  row('KVM_SET_CPUID2', ES, ['init', 'slot', 'vcpu', 'cpuid', 'seal', 'run'], '', 'EINVAL'),
  ...both('KVM_SET_CPUID2', ALL, VCPU, 'u32@0=257', 'E2BIG'),
  row('KVM_SET_CPUID2', ['tdx'], VCPU, '<$cpuid', 'ok', 'KVM_GET_CPUID2@vcpu u32@0=256 => u32@0!=256', 'KVM copy only'),
  row('KVM_SET_CPUID2', ['tdx'], SEALED, '<$cpuid', 'ok', 'KVM_GET_CPUID2@vcpu u32@0=256 => u32@0!=256', 'KVM copy only'),
  ...[VCPU, SEALED].flatMap((setup) => [
    row(
      'KVM_GET_CPUID2',
      ALL,
      [...setup, 'cpuid'],
      'u32@0=256',
      'ok',
      ['=> u32@0!=256', '=> u32@0!=0'],
      'KVM copy, not the TDX module view',
    ),
    row('KVM_GET_CPUID2', ALL, [...setup, 'cpuid'], 'u32@0=1', 'E2BIG', '=> u32@0=1'),
  ]),
  // The vCPU's clocks.
  ...both('KVM_SET_TSC_KHZ@vcpu', AMD, VCPU, 1_000_000, 'ok', 'KVM_GET_TSC_KHZ@vcpu => =1000000'),
  ...both('KVM_SET_TSC_KHZ@vcpu', AMD, VCPU, 0xffffffff, 'EINVAL'),
  row('KVM_SET_TSC_KHZ@vcpu', ['snp'], ['secure-tsc', 'vcpu'], 1_000_000, 'EINVAL', 'KVM_GET_TSC_KHZ@vcpu => =2000000'),
  row('KVM_SET_TSC_KHZ@vcpu', ['snp'], ['secure-tsc', 'vcpu', 'seal'], 1_000_000, 'EINVAL', 'KVM_GET_TSC_KHZ@vcpu => =2000000'),
  ...both('KVM_SET_TSC_KHZ@vcpu', ['tdx'], VCPU, 1_000_000, 'EINVAL', 'KVM_GET_TSC_KHZ@vcpu => =2000000'),
  ...both('KVM_GET_TSC_KHZ@vcpu', ALL, VCPU, 0, '=2000000', [], 'returns kHz'),
  ...tscOffset(),
  ...both('KVM_TPR_ACCESS_REPORTING', ALL, VCPU, '', 'ok', '=> u32@0=0'),
  ...both('KVM_TPR_ACCESS_REPORTING', ALL, VCPU, 'u32@0=1', 'ok', '=> u32@0=1'),
  ...both('KVM_TPR_ACCESS_REPORTING', ALL, VCPU, 'u32@4=1', 'EINVAL'),
  ...both('KVM_SET_VAPIC_ADDR', AMD, VCPU, '', 'EINVAL'),
  ...both('KVM_SET_VAPIC_ADDR', AMD, LAPIC, '', 'ok'),
  ...both('KVM_SET_VAPIC_ADDR', AMD, ['init', 'irqchip', 'slot', 'vcpu'], 'u64@0=0x1000', 'ok'),
  ...both('KVM_SET_VAPIC_ADDR', AMD, ['init', 'irqchip', 'slot', 'vcpu'], 'u64@0=0x900000', 'EINVAL'),
  ...both('KVM_SET_VAPIC_ADDR', ['tdx'], VCPU, '', 'ok'),
  ...both('KVM_KVMCLOCK_CTRL', ALL, VCPU, 0, 'EINVAL'),
  // Bit 0 of MSR_KVM_SYSTEM_TIME_NEW makes the clock active; its MSRs are not among a TD's.
  ...both('KVM_KVMCLOCK_CTRL', AMD, ['init', 'slot', 'vcpu', PV_CLOCK], 0, 'ok'),
  // PVCLOCK_GUEST_STOPPED in the guest's page, once it has run.
  ...both('KVM_KVMCLOCK_CTRL', OPEN, ['init', 'slot', 'vcpu', PV_CLOCK], 0, 'ok', ['entered => u8@1=0', 'mem => u8@2077>=2']),
  ...(['KVM_GET_NESTED_STATE', 'KVM_SET_NESTED_STATE'] as const).flatMap((name) =>
    both(name, ALL, VCPU, 'u32@4=128', 'EINVAL', [], 'not filtered'),
  ),
  // The signal set follows the header: 8 bytes; NULL takes the mask away.
  ...both('KVM_SET_SIGNAL_MASK', ALL, VCPU, 'u32@0=8', 'ok'),
  ...both('KVM_SET_SIGNAL_MASK', ALL, VCPU, 'u32@0=4', 'EINVAL'),
  ...both('KVM_ENABLE_CAP@vcpu', ALL, VCPU, 'u32@0=9999', 'EINVAL', [], 'unknown'),
  // With it a register goes by CPUID: an empty table offers no MSR_KVM_POLL_CONTROL to set.
  ...both('KVM_ENABLE_CAP@vcpu', ALL, VCPU, 'u32@0=190 u64@8=1', 'ok', NO_PV, 'ok per capability'),
  ...both('KVM_ENABLE_CAP@vcpu', ALL, VCPU, 'u32@0=190 u32@4=1', 'EINVAL'),
  // Pre-faulting: only once a guest with private memory is built.
  ...both('KVM_PRE_FAULT_MEMORY', SHARED, ['init', 'slot', 'vcpu'], 'u64@8=0x1000', 'ok', '=> u64@0=0x1000 u64@8=0'),
  row('KVM_PRE_FAULT_MEMORY', ['snp', 'tdx'], ['init', 'slot', 'vcpu'], 'u64@8=0x1000', 'EOPNOTSUPP', '=> u64@0=0 u64@8=0x1000'),
  row('KVM_PRE_FAULT_MEMORY', ['snp', 'tdx'], ['init', 'slot', 'vcpu', 'seal'], 'u64@8=0x1000', 'ok', '=> u64@0=0x1000 u64@8=0'),
  row('KVM_PRE_FAULT_MEMORY', ['tdx'], ['init', 'slot', 'vcpu', 'seal'], 'u64@0=0x800000000000 u64@8=0x1000', 'EINVAL'),
  ...both('KVM_PRE_FAULT_MEMORY', SHARED, VCPU, 'u64@8=0x1000', 'ENOENT'),
  row('KVM_PRE_FAULT_MEMORY', ['snp', 'tdx'], SEALED, 'u64@8=0x1000', 'ENOENT'),
  ...both('KVM_PRE_FAULT_MEMORY', ALL, ['init', 'slot', 'vcpu'], 'u64@8=0x800', 'EINVAL'),
  ...both('KVM_PRE_FAULT_MEMORY', ALL, ['init', 'slot', 'vcpu'], 'u64@8=0', 'EINVAL'),
  ...both('KVM_PRE_FAULT_MEMORY', ALL, ['init', 'slot', 'vcpu'], 'u64@8=0x1000 u64@16=1', 'EINVAL'),
]

/** KVM_VCPU_TSC_CTRL / KVM_VCPU_TSC_OFFSET. */
function tscOffset(): readonly Condition[] {
  const SET = 'KVM_SET_DEVICE_ATTR (KVM_VCPU_TSC_CTRL/KVM_VCPU_TSC_OFFSET)'
  const GET = 'KVM_GET_DEVICE_ATTR (KVM_VCPU_TSC_CTRL/KVM_VCPU_TSC_OFFSET)'
  const kept = (value: string): readonly string[] => ['KVM_GET_DEVICE_ATTR@vcpu u64@16=$slot => ok', `slot => u64@0=${value}`]
  const write = 'buf u64@0=0x123456'
  return [
    ...both(SET, AMD, ['init', write, 'vcpu'], 'u64@16=$buf', 'ok', kept('0x123456')),
    ...both(SET, ALL, VCPU, 'u64@8=1 u64@16=$buf', 'ENXIO'),
    ...both(SET, ALL, VCPU, 'u32@4=1 u64@16=$buf', 'ENXIO'),
    ...both(SET, ALL, VCPU, 'u64@16=$wild', 'EFAULT'),
    // guest_tsc_protected: the write is taken and lost (A8).
    ...both(SET, ['tdx'], ['init', write, 'vcpu'], 'u64@16=$buf', 'ok', kept('0')),
    row(SET, ['snp'], ['secure-tsc', write, 'vcpu'], 'u64@16=$buf', 'ok', kept('0'), 'ignored with SECURE_TSC'),
    row(SET, ['snp'], ['secure-tsc', write, 'vcpu', 'seal'], 'u64@16=$buf', 'ok', kept('0'), 'ignored with SECURE_TSC'),
    ...both(GET, ALL, VCPU, 'u64@16=$buf', 'ok', 'buf => u64@0=0', 'TD TSC_OFFSET read from TDCS'),
    ...both(GET, ALL, VCPU, 'u64@8=1 u64@16=$buf', 'ENXIO'),
    ...both(GET, ALL, VCPU, 'u64@16=$wild', 'EFAULT'),
  ]
}

export const VCPU_CONDITIONS: readonly Condition[] = [...RUNNING, ...REGISTER_STATE, ...EVENTS, ...REST]
