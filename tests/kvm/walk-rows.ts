/**
 * A correct call for every row of the policy table and what is seen after it, in the words of spec/kvm-condition.ts. What the
 * answer is says the table; what a row needs, and what it leaves behind, is here.
 */
import type { VmType } from 'cloister'

export const PHASES = ['created', 'initialised', 'vcpus', 'sealed', 'dead'] as const
export type Phase = (typeof PHASES)[number]
/** What the table says about the effect. */
export type Effect = 'ok' | 'ok-zeros' | 'ok-partial' | 'ok-ignored' | 'ok-dropped'

export interface Where {
  readonly type: VmType
  readonly phase: Phase
  readonly effect: Effect
  /** The profile of seed mail 000 decides. */
  readonly rfc2020: boolean
  readonly linux: '6.12' | '7.3'
}

export interface Walk {
  /** Before the vCPU: controllers, slots. */
  readonly needs?: readonly string[]
  /** On the vCPU before the seal. */
  readonly early?: readonly string[]
  /** Last, in every phase. */
  readonly ready?: readonly string[]
  readonly call: string | number | ((where: Where) => string | number)
  /** Empty: nothing can be seen, and NO_EFFECT says why. */
  readonly sees: readonly string[] | ((where: Where) => readonly string[])
}

const SLOT9 = 'u32@0=9 u64@8=0x200000 u64@16=0x1000 u64@24=$mem'
const TAKEN = ['KVM_SET_USER_MEMORY_REGION u32@0=8 u64@8=0x200000 u64@16=0x1000 u64@24=$mem => EEXIST']
const free = (gpa: string): readonly string[] => [`KVM_SET_USER_MEMORY_REGION u32@0=9 u64@8=${gpa} u64@16=0x1000 u64@24=$mem => ok`]
const IOAPIC = 'KVM_GET_IRQCHIP u32@0=2 =>'
const INITIALLY_SET = 'KVM_ENABLE_CAP u32@0=168 u64@8=3'
const get = (name: string, checks: string): readonly string[] => [`KVM_GET_${name}@vcpu => ${checks}`]
/** One register set: written before the seal and read; written and read back. */
const FIRST: Readonly<Record<string, readonly [set: string, checks: string]>> = {
  REGS: ['u64@0=0x11 u64@128=0x1234 u64@136=2', 'u64@0=0x11 u64@128=0x1234'],
  SREGS: ['<KVM_GET_SREGS u64@232=0x5000', 'u64@232=0x5000'],
  SREGS2: ['<KVM_GET_SREGS2 u64@232=0x5000', 'u64@232=0x5000'],
  FPU: ['<KVM_GET_FPU u64@152=7', 'u64@152=7'],
  XSAVE: ['<KVM_GET_XSAVE u64@160=7 u64@512=3', 'u64@160=7'],
  XCRS: ['u32@0=1 u64@16=3', 'u64@16=3'],
  DEBUGREGS: ['u64@0=0x5678 u64@40=0x400', 'u64@0=0x5678'],
}
const SECOND: Readonly<Record<string, readonly [set: string, checks: string]>> = {
  REGS: ['u64@8=0x22 u64@136=2', 'u64@8=0x22'],
  SREGS: ['<KVM_GET_SREGS u64@232=0x6000 u64@272=0xfee00100', 'u64@232=0x6000 u64@272=0xfee00100'],
  SREGS2: ['<KVM_GET_SREGS2 u64@232=0x6000 u64@272=0xfee00100', 'u64@232=0x6000 u64@272=0xfee00100'],
  FPU: ['<KVM_GET_FPU u64@152=8', 'u64@152=8'],
  XSAVE: ['<KVM_GET_XSAVE u64@160=8 u64@512=3', 'u64@160=8'],
  XCRS: ['u32@0=1 u64@16=3', 'u64@16=3'],
  DEBUGREGS: ['u64@8=0x99 u64@40=0x400', 'u64@8=0x99'],
}
/** Legacy SEV-ES after the seal: CR2 and the segments read 0, apic_base is real; FPU state reads 0. */
const PARTIAL_READ: Readonly<Record<string, string>> = {
  REGS: 'u64@0=0x11 u64@128=0x1234',
  SREGS: 'zero@0+224 u64@232=0 u64@272!=0',
  SREGS2: 'zero@0+224 u64@232=0 u64@272!=0',
}
const PARTIAL_WRITE = 'u64@232=0 u64@272=0xfee00100'

function registers(name: string, size: number): Readonly<Record<string, Walk>> {
  const [first, read] = FIRST[name] as [string, string]
  const [second, written] = SECOND[name] as [string, string]
  const zeros = `zero@0+${size}`
  return {
    [`KVM_GET_${name}`]: {
      early: [`KVM_SET_${name}@vcpu ${first}`],
      call: '',
      sees: ({ effect }) => [`=> ${effect === 'ok-zeros' ? zeros : effect === 'ok-partial' ? PARTIAL_READ[name] : read}`],
    },
    [`KVM_SET_${name}`]: {
      call: ({ phase, type }) =>
        phase === 'sealed' && (type === 'sev-es' || type === 'snp') && !/FPU|XSAVE/.test(name)
          ? ''
          : type === 'tdx' || (phase === 'sealed' && type === 'sev-es')
            ? ''
            : second,
      // KVM_SET_DEBUGREGS of legacy SEV-ES is stored, and read back; it never reaches the VMSA.
      sees: ({ effect }) =>
        get(name, effect === 'ok-partial' ? PARTIAL_WRITE : effect === 'ok-ignored' && name !== 'DEBUGREGS' ? zeros : written),
    },
  }
}

/** Their memory and state stay readable. */
const OPEN: readonly VmType[] = ['default', 'sev-legacy', 'sev']

const REGISTERS: Readonly<Record<string, Walk>> = {
  ...registers('REGS', 144),
  ...registers('SREGS', 312),
  ...registers('SREGS2', 320),
  ...registers('FPU', 416),
  ...registers('XSAVE', 4096),
  ...registers('XCRS', 392),
  ...registers('DEBUGREGS', 128),
  KVM_GET_XSAVE2: {
    early: [`KVM_SET_XSAVE@vcpu ${FIRST.XSAVE?.[0]}`],
    call: '',
    sees: ({ effect }) => [effect === 'ok-zeros' ? '=> zero@0+4096' : '=> u64@160=7'],
  },
}

const SYSTEM: Readonly<Record<string, Walk>> = {
  KVM_GET_API_VERSION: { call: 0, sees: ['=> =12'] },
  KVM_GET_VCPU_MMAP_SIZE: { call: 0, sees: ['=> =12288'] },
  KVM_GET_MSR_INDEX_LIST: { call: 'u32@0=512', sees: ['=> u32@0>=50 u32@4=0x10'] },
  KVM_GET_MSR_FEATURE_INDEX_LIST: { call: 'u32@0=512', sees: ['=> u32@0!=512', '=> u32@0!=0'] },
  KVM_GET_SUPPORTED_CPUID: { call: 'u32@0=256', sees: ['=> u32@0>=20 u32@0!=256'] },
  KVM_GET_EMULATED_CPUID: { call: 'u32@0=256', sees: ['=> u32@0!=256'] },
  KVM_X86_GET_MCE_CAP_SUPPORTED: { call: '', sees: ['=> u64@0!=0'] },
  KVM_CREATE_VM: { call: '$type', sees: ['KVM_CHECK_EXTENSION@new 235 => ok', 'KVM_GET_TSC_KHZ@new 0 => =2000000'] },
  KVM_CHECK_EXTENSION: { call: 235, sees: ({ type }) => [`=> =${type === 'tdx' ? 35 : 31}`] },
  KVM_HAS_DEVICE_ATTR: { call: 'u64@16=$buf', sees: ['KVM_HAS_DEVICE_ATTR@system u32@4=9 u64@16=$buf => ENXIO'] },
  KVM_GET_DEVICE_ATTR: { call: 'u64@16=$buf', sees: ['buf => u64@0=0x207'] },
}

/** KVM_MEMORY_ENCRYPT_OP: a command that is correct in the phase. */
function launchCommand({ type, phase }: Where): { call: string; sees: readonly string[] } {
  const cmd = (id: number, data = '$buf'): string => `u32@0=${id} u64@8=${data} u32@20=$sev`
  if (type === 'tdx') return { call: 'u32@0=0 u64@8=$buf', sees: ['buf => u64@0=0x10000000 u32@2048>=10'] }
  if (type === 'default') return { call: cmd(1), sees: [`KVM_MEMORY_ENCRYPT_OP ${cmd(1)} => EINVAL`] }
  if (type === 'snp') {
    if (phase === 'created') return { call: cmd(22, '$zero'), sees: [`KVM_MEMORY_ENCRYPT_OP ${cmd(16)} => EPERM`] }
    return phase === 'sealed'
      ? { call: cmd(16), sees: [] }
      : { call: cmd(100, '$snp-start'), sees: [`KVM_MEMORY_ENCRYPT_OP ${cmd(100, '$snp-start')} => EINVAL`] }
  }
  if (phase === 'sealed') return { call: cmd(16), sees: ['buf => u32@8=3'] }
  if (phase !== 'created') return { call: cmd(2, '$start'), sees: [`KVM_MEMORY_ENCRYPT_OP ${cmd(16)} => ok`, 'buf => u32@8=1'] }
  const id = type === 'sev-legacy' ? 0 : type === 'sev-es-legacy' ? 1 : 22
  return {
    call: cmd(id, '$zero'),
    sees: [`KVM_MEMORY_ENCRYPT_OP ${cmd(id, '$zero')} => EINVAL`, `KVM_MEMORY_ENCRYPT_OP ${cmd(16)} => EBADF`],
  }
}

const VM: Readonly<Record<string, Walk>> = {
  KVM_CREATE_VCPU: { call: 5, sees: ['KVM_GET_TSC_KHZ@new 0 => =2000000', 'KVM_CREATE_VCPU 5 => EEXIST'] },
  KVM_SET_USER_MEMORY_REGION: { call: SLOT9, sees: TAKEN },
  KVM_SET_USER_MEMORY_REGION2: { call: SLOT9, sees: TAKEN },
  KVM_CREATE_GUEST_MEMFD: {
    call: 'u64@0=0x10000',
    // 6.12 makes one for any VM, but only slots of guests with private memory take it.
    sees: ({ type, linux }) => [
      `KVM_SET_USER_MEMORY_REGION2 u32@0=8 u32@4=4 u64@8=0x300000 u64@16=0x10000 u64@24=$mem u32@40=$new => ${linux === '6.12' && type !== 'snp' && type !== 'tdx' ? 'EINVAL' : 'ok'}`,
    ],
  },
  KVM_SET_MEMORY_ATTRIBUTES: { call: 'u64@0=0x5000 u64@8=0x1000 u64@16=8', sees: ['attribute 0x5000 => =1', 'attribute 0x6000 => =0'] },
  KVM_GET_DIRTY_LOG: { needs: [INITIALLY_SET, 'log-slot'], call: 'u64@8=$buf', sees: ['buf => u64@0=0xffff'] },
  KVM_CLEAR_DIRTY_LOG: {
    needs: [INITIALLY_SET, 'log-slot'],
    ready: ['buf u64@0=0x0ff0'],
    call: 'u32@4=16 u64@16=$buf',
    sees: ['KVM_GET_DIRTY_LOG u64@8=$buf => ok', 'buf => u64@0=0xf00f'],
  },
  // Neither svm.c nor a TD keeps the address: its place stays free.
  KVM_SET_TSS_ADDR: { call: 0xfffbd000, sees: free('0xfffbd000') },
  KVM_SET_IDENTITY_MAP_ADDR: { call: 'u64@0=0xfffbc000', sees: free('0xfffbc000') },
  KVM_CREATE_IRQCHIP: { call: 0, sees: [`${IOAPIC} u64@8=0xfec00000`] },
  KVM_GET_IRQCHIP: { needs: ['irqchip'], call: 'u32@0=2', sees: ['=> u64@8=0xfec00000'] },
  KVM_SET_IRQCHIP: {
    needs: ['irqchip'],
    call: ({ type }) => (type === 'tdx' ? '' : '<KVM_GET_IRQCHIP u32@0=2 u64@40=0x10031'),
    sees: [`${IOAPIC} u64@40=0x10031`],
  },
  KVM_CREATE_PIT2: { needs: ['irqchip'], call: '', sees: ['KVM_GET_PIT2 => u32@0=0x10000'] },
  KVM_GET_PIT2: { needs: ['irqchip', 'pit'], call: '', sees: ['=> u32@0=0x10000'] },
  KVM_SET_PIT2: {
    needs: ['irqchip', 'pit'],
    call: ({ type }) => (type === 'tdx' ? '' : '<KVM_GET_PIT2 u32@24=0x1234 u8@38=3'),
    sees: ['KVM_GET_PIT2 => u32@24=0x1234'],
  },
  KVM_IRQ_LINE: {
    needs: ['irqchip'],
    call: 'u32@0=9 u32@4=1',
    sees: ({ type }) => [type === 'tdx' ? 'KVM_IRQ_LINE_STATUS u32@0=9 u32@4=1 => u32@0=0xffffffff' : `${IOAPIC} u32@24=0x200`],
  },
  KVM_IRQ_LINE_STATUS: {
    needs: ['irqchip'],
    call: 'u32@0=9 u32@4=1',
    sees: ({ type }) => (type === 'tdx' ? ['=> u32@0=0xffffffff'] : ['=> u32@0!=9', `${IOAPIC} u32@24=0x200`]),
  },
  KVM_SET_GSI_ROUTING: { needs: ['irqchip'], call: '', sees: ['KVM_IRQ_LINE_STATUS u32@0=9 u32@4=1 => u32@0=0xffffffff'] },
  KVM_SIGNAL_MSI: {
    needs: ['irqchip'],
    early: ['KVM_SET_LAPIC@vcpu <KVM_GET_LAPIC u32@240=0x1ff'],
    call: 'u32@0=0xfee00000 u32@8=0x31',
    sees: ({ type }) => (type === 'tdx' ? [] : ['KVM_GET_LAPIC@vcpu => u32@528=0x20000']),
  },
  KVM_IRQFD: { needs: ['irqchip'], call: 'u32@0=$fd u32@4=1', sees: ['KVM_IRQFD u32@0=$fd u32@4=2 => EBUSY'] },
  KVM_IOEVENTFD: {
    call: 'u64@8=0x3000 u32@16=1 u32@20=$fd u32@24=2',
    sees: ['KVM_IOEVENTFD u64@8=0x3000 u32@16=1 u32@20=$fd u32@24=2 => EEXIST'],
  },
  KVM_SET_BOOT_CPU_ID: {
    call: 1,
    // A vCPU that is not the boot CPU has no BSP bit in its APIC base.
    sees: ({ type, phase }) =>
      type === 'tdx' && phase === 'created' ? [] : ['KVM_CREATE_VCPU 0 => ok', 'KVM_GET_MSRS@new u32@0=1 u32@8=0x1b => u64@16=0xfee00800'],
  },
  KVM_SET_CLOCK: { call: 'u64@0=0x100000000', sees: ['KVM_GET_CLOCK => u64@0>=0x100000000'] },
  KVM_GET_CLOCK: { ready: ['KVM_SET_CLOCK u64@0=0x200000000'], call: '', sees: ['=> u64@0>=0x200000000'] },
  KVM_SET_TSC_KHZ: { call: 1_000_000, sees: ['KVM_GET_TSC_KHZ => =1000000'] },
  KVM_GET_TSC_KHZ: { call: 0, sees: ['=> =2000000'] },
  KVM_ENABLE_CAP: {
    call: 'u32@0=168 u64@8=3',
    sees: [
      'KVM_SET_USER_MEMORY_REGION u32@0=9 u32@4=1 u64@8=0x200000 u64@16=0x1000 u64@24=$mem => ok',
      'KVM_GET_DIRTY_LOG u32@0=9 u64@8=$buf => ok',
      'buf => u64@0=1',
    ],
  },
  KVM_X86_SET_MSR_FILTER: { call: 'u32@8=1 u32@12=8 u32@16=0x2f8 u64@24=$buf', sees: [] },
  KVM_SET_PMU_EVENT_FILTER: { call: 'u32@4=1', sees: [] },
  KVM_CREATE_DEVICE: { call: 'u32@0=4', sees: ['=> u32@4!=0', 'KVM_CREATE_DEVICE u32@0=4 => EBUSY'] },
  KVM_MEMORY_ENCRYPT_OP: {
    ready: ['buf u32@2048=40'],
    call: (where) => launchCommand(where).call,
    sees: (where) => launchCommand(where).sees,
  },
  KVM_MEMORY_ENCRYPT_REG_REGION: {
    call: 'u64@0=$mem u64@8=0x1000',
    sees: ['KVM_MEMORY_ENCRYPT_UNREG_REGION u64@0=$mem u64@8=0x1000 => ok'],
  },
  KVM_MEMORY_ENCRYPT_UNREG_REGION: {
    needs: ['region'],
    call: 'u64@0=$mem u64@8=0x1000',
    sees: ['KVM_MEMORY_ENCRYPT_UNREG_REGION u64@0=$mem u64@8=0x1000 => EINVAL'],
  },
  KVM_GET_STATS_FD: { call: 0, sees: ['stats => u32@4=48 u32@8>=1'] },
}

const MSR = 'u32@0=1 u32@8=0x2ff'
const ONE_REG = 'u64@0=0x20300002000002ff u64@8=$buf'
const TSC_ATTR = (name: string): string => `KVM_${name}_DEVICE_ATTR (KVM_VCPU_TSC_CTRL/KVM_VCPU_TSC_OFFSET)`
const OFFSET = 'KVM_GET_DEVICE_ATTR@vcpu u64@16=$slot => ok'
/** Real mode at 0, where the slot has zeros: ADD [BX+SI], AL. */
const AT_ZERO = ['KVM_SET_SREGS@vcpu <KVM_GET_SREGS u64@0=0 u16@12=0', 'KVM_SET_REGS@vcpu u64@136=2']

/** A guest that rfc-2020 protects: KVM_SYNC_X86_EVENTS and NMI_PENDING alone (A4, A6). */
const eventsAlone = ({ type, phase, rfc2020 }: Where): boolean =>
  rfc2020 && (type === 'tdx' || (type === 'sev-es-legacy' && phase === 'sealed'))

const VCPU: Readonly<Record<string, Walk>> = {
  KVM_RUN: {
    needs: ['slot'],
    early: AT_ZERO,
    call: 0,
    sees: ({ type, phase }) =>
      phase === 'vcpus' && (type.startsWith('sev-es') || type === 'snp') ? ['run => u32@8=9'] : ['retired => u64@0>=1'],
  },
  'KVM_RUN kvm_valid_regs/kvm_dirty_regs != 0': {
    needs: ['slot'],
    early: AT_ZERO,
    // The proposal leaves the events of a protected guest: nmi.pending at 760 + 13, flags at 760 + 20.
    call: (where) => (eventsAlone(where) ? 'u8@1=1 u64@296=4 u8@773=1 u32@780=1' : 'u8@1=1 u64@288=1 u64@296=1 u64@304=0x77 u64@440=2'),
    sees: (where) => ['run => u64@296=0', eventsAlone(where) ? 'KVM_GET_VCPU_EVENTS@vcpu => u8@13=1' : 'KVM_GET_REGS@vcpu => u64@0=0x77'],
  },
  KVM_SET_GUEST_DEBUG: {
    needs: ['slot'],
    early: AT_ZERO,
    call: 'u32@0=3',
    // A single step exits; a guest that is to be sealed may not be debugged.
    sees: ({ type }) =>
      type.startsWith('sev-es')
        ? ['KVM_MEMORY_ENCRYPT_OP u32@0=4 u32@20=$sev => EINVAL']
        : type === 'snp'
          ? [
              'KVM_MEMORY_ENCRYPT_OP u32@0=100 u64@8=$snp-start u32@20=$sev => ok',
              'KVM_MEMORY_ENCRYPT_OP u32@0=102 u64@8=$zero u32@20=$sev => EINVAL',
            ]
          : ['entered => u32@8=4'],
  },
  KVM_GET_MSRS: { ready: [`KVM_SET_MSRS@vcpu ${MSR} u64@16=0xc06`], call: MSR, sees: ['=> u64@16=0xc06'] },
  KVM_SET_MSRS: { call: `${MSR} u64@16=0xc00`, sees: [`KVM_GET_MSRS@vcpu ${MSR} => u64@16=0xc00`] },
  KVM_GET_ONE_REG: { ready: [`KVM_SET_MSRS@vcpu ${MSR} u64@16=0xc06`], call: ONE_REG, sees: ['buf => u64@0=0xc06'] },
  KVM_SET_ONE_REG: { ready: ['buf u64@0=0xc00'], call: ONE_REG, sees: [`KVM_GET_MSRS@vcpu ${MSR} => u64@16=0xc00`] },
  KVM_TRANSLATE: { needs: ['slot'], call: 'u64@0=0x1234', sees: ['=> u8@17=1 u8@18=0 u64@8!=0'] },
  KVM_INTERRUPT: {
    call: 'u32@0=0x30',
    sees: ({ effect }) =>
      effect === 'ok-dropped'
        ? ['KVM_GET_VCPU_EVENTS@vcpu => u8@8=0', 'KVM_INTERRUPT@vcpu u32@0=0x31 => EEXIST']
        : get('VCPU_EVENTS', 'u8@8=1 u8@9=0x30'),
  },
  KVM_NMI: { call: 0, sees: get('VCPU_EVENTS', 'u8@13=1') },
  KVM_SMI: { call: 0, sees: get('VCPU_EVENTS', 'u8@25=1') },
  KVM_GET_VCPU_EVENTS: { ready: ['KVM_NMI@vcpu'], call: '', sees: (where) => [`=> u8@13=1 u32@20=${eventsAlone(where) ? 1 : 0xd}`] },
  KVM_SET_VCPU_EVENTS: { call: 'u8@13=1 u32@20=1', sees: get('VCPU_EVENTS', 'u8@13=1') },
  KVM_GET_MP_STATE: { needs: ['irqchip'], ready: ['KVM_SET_MP_STATE@vcpu u32@0=3'], call: 'u32@0=7', sees: ['=> u32@0=3'] },
  KVM_SET_MP_STATE: { needs: ['irqchip'], call: 'u32@0=3', sees: get('MP_STATE', 'u32@0=3') },
  KVM_X86_SETUP_MCE: { call: 'u64@0=10', sees: ['KVM_GET_MSRS@vcpu u32@0=1 u32@8=0x179 => u64@16=10'] },
  KVM_X86_SET_MCE: {
    ready: ['KVM_X86_SETUP_MCE@vcpu u64@0=10'],
    call: 'u64@0=0x8000000000000000 u64@8=0x1234',
    sees: ['KVM_GET_MSRS@vcpu u32@0=1 u32@8=0x402 => u64@16=0x1234'],
  },
  KVM_GET_LAPIC: { needs: ['irqchip'], call: '', sees: ['=> u32@48!=0'] },
  KVM_SET_LAPIC: {
    needs: ['irqchip'],
    call: ({ type }) => (type === 'tdx' ? '' : '<KVM_GET_LAPIC u32@128=0x20'),
    sees: get('LAPIC', 'u32@128=0x20'),
  },
  KVM_SET_CPUID2: { call: '<$cpuid', sees: ['KVM_GET_CPUID2@vcpu u32@0=256 => u32@0!=256', 'KVM_GET_CPUID2@vcpu u32@0=0 => E2BIG'] },
  KVM_GET_CPUID2: { call: 'u32@0=256', sees: ['=> u32@0>=20 u32@0!=256'] },
  'KVM_SET_TSC_KHZ@vcpu': { call: 1_000_000, sees: ['KVM_GET_TSC_KHZ@vcpu => =1000000'] },
  'KVM_GET_TSC_KHZ@vcpu': { call: 0, sees: ['=> =2000000'] },
  [TSC_ATTR('SET')]: {
    ready: ['buf u64@0=0x123456'],
    call: 'u64@16=$buf',
    sees: ({ effect }) => [OFFSET, `slot => u64@0=${effect === 'ok-ignored' ? '0' : '0x123456'}`],
  },
  [TSC_ATTR('GET')]: { ready: ['buf u64@0=1'], call: 'u64@16=$buf', sees: ['buf => u64@0=0'] },
  KVM_PRE_FAULT_MEMORY: { needs: ['slot'], call: 'u64@8=0x1000', sees: ['=> u64@0=0x1000 u64@8=0'] },
  'KVM_MEMORY_ENCRYPT_OP@vcpu': {
    call: 'u32@0=2',
    sees: ['KVM_MEMORY_ENCRYPT_OP@vcpu u32@0=2 => EINVAL', 'KVM_GET_MSRS@vcpu u32@0=1 u32@8=0x1b => u64@16=0xfee00d00'],
  },
  KVM_GET_NESTED_STATE: {
    call: 'u32@4=4224',
    sees: ({ linux }) => (linux === '6.12' ? ['=> u16@0=0x100 u16@2=1 u32@4=128'] : []),
  },
  KVM_SET_NESTED_STATE: { call: 'u32@4=128', sees: [] },
  KVM_TPR_ACCESS_REPORTING: { needs: ['irqchip'], call: 'u32@0=1', sees: [] },
  // KVM writes the task priority there before each entry.
  KVM_SET_VAPIC_ADDR: {
    needs: ['irqchip', 'slot'],
    early: [...AT_ZERO, 'KVM_SET_LAPIC@vcpu <KVM_GET_LAPIC u32@128=0x20'],
    call: 'u64@0=0x800',
    sees: ({ type }) => (OPEN.includes(type) ? ['entered => u8@1=0', 'mem => u8@2048=0x20'] : []),
  },
  // PVCLOCK_GUEST_STOPPED in the flags of the guest's clock page.
  KVM_KVMCLOCK_CTRL: {
    needs: ['slot'],
    early: AT_ZERO,
    ready: ['KVM_SET_MSRS@vcpu u32@0=1 u32@8=0x4b564d01 u64@16=0x801'],
    call: 0,
    sees: ({ type }) => (OPEN.includes(type) ? ['entered => u8@1=0', 'mem => u8@2077>=2'] : []),
  },
  KVM_SET_SIGNAL_MASK: { call: 'u32@0=8', sees: [] },
  'KVM_ENABLE_CAP@vcpu': { call: 'u32@0=190 u64@8=1', sees: [] },
}

export const WALK: Readonly<Record<string, Walk>> = { ...SYSTEM, ...VM, ...REGISTERS, ...VCPU }

/** Rows whose "ok" leaves nothing that a VMM can read; where a guest shows it, the test that has the guest. */
export const NO_EFFECT: Readonly<Record<string, string>> = {
  KVM_X86_SET_MSR_FILTER: 'decides what a guest reads and writes: tests/kvm/api/msr-filter.test.ts',
  KVM_SET_PMU_EVENT_FILTER: 'decides what the counters of a guest count, and the PMU is off',
  KVM_TPR_ACCESS_REPORTING: 'decides which accesses of a guest exit: tests/kvm/api/pv.test.ts',
  KVM_SET_VAPIC_ADDR: 'a guest that is not run here, or whose memory reads as ciphertext',
  KVM_KVMCLOCK_CTRL: 'a guest that is not run here, or whose memory reads as ciphertext',
  KVM_SET_SIGNAL_MASK: 'there are no signals but kick()',
  'KVM_ENABLE_CAP@vcpu': 'decides what a guest may use: tests/kvm/api/pv.test.ts',
  KVM_SIGNAL_MSI: "a TD's virtual APIC page is the module's",
  KVM_SET_BOOT_CPU_ID: 'before KVM_TDX_INIT_VM no vCPU can be made that would show it',
}
