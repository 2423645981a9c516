/**
 * Model-specific registers as data: where each lives, what a guest may write, its reset value, whether
 * KVM_GET_MSR_INDEX_LIST names it, and whether KVM passes it through to an SEV-ES guest (Linux 7.3
 * arch/x86/kvm/{x86.c,svm/svm.c,mtrr.c}; APM vol 2, appendix A; SDM vol 4). Ranges that need code
 * (MC banks, x2APIC) and registers with side effects are `special`: assembly/cpu/msr.ts.
 */
export interface Msr {
  readonly index: number
  readonly name: string
  /** `field`: CPU_<field>; `store`: a slot of CPU_MSR_STORE; `constant`: reads `reset`; `special`: code. */
  readonly kind: 'field' | 'store' | 'constant' | 'special'
  readonly field?: string
  /** Bits a guest may set; a write of another bit is #GP. Default all. */
  readonly mask?: bigint
  readonly reset?: bigint
  /** canonical: value must be canonical; ro: guest writes are #GP; ignore: guest writes are accepted and dropped; wo: reads are #GP. */
  readonly access?: 'rw' | 'canonical' | 'ro' | 'ignore' | 'wo'
  /** In KVM_GET_MSR_INDEX_LIST on an AMD host. */
  readonly save?: boolean
  /** Not intercepted for SEV-ES guests (kvm.md 2.2, sev.md 1.9). */
  readonly pass?: boolean
}

const field = (index: number, name: string, cpuField: string, rest: Partial<Msr> = {}): Msr => ({
  index,
  name,
  kind: 'field',
  field: cpuField,
  ...rest,
})
const stored = (index: number, name: string, rest: Partial<Msr> = {}): Msr => ({ index, name, kind: 'store', ...rest })
const constant = (index: number, name: string, reset = 0n, access: Msr['access'] = 'ro'): Msr => ({
  index,
  name,
  kind: 'constant',
  reset,
  access,
})
const special = (index: number, name: string, rest: Partial<Msr> = {}): Msr => ({ index, name, kind: 'special', ...rest })

const fixedMtrr: readonly (readonly [number, string])[] = [
  [0x250, '64K_00000'],
  [0x258, '16K_80000'],
  [0x259, '16K_A0000'],
  ...Array.from({ length: 8 }, (_, i) => [0x268 + i, `4K_${(0xc0000 + i * 0x8000).toString(16).toUpperCase()}`] as const),
]

const list: readonly Msr[] = [
  special(0x10, 'IA32_TSC', { save: true }),
  constant(0x17, 'IA32_PLATFORM_ID'),
  special(0x11, 'KVM_WALL_CLOCK', { save: true }),
  special(0x12, 'KVM_SYSTEM_TIME', { save: true }),
  special(0x1b, 'IA32_APIC_BASE'),
  constant(0x2a, 'EBL_CR_POWERON'),
  constant(0x2c, 'EBC_FREQUENCY_ID', 1n << 24n),
  field(0x34, 'SMI_COUNT', 'SMI_COUNT', { access: 'ro', save: true }),
  special(0x3b, 'IA32_TSC_ADJUST', { save: true }),
  field(0x48, 'IA32_SPEC_CTRL', 'SPEC_CTRL', { mask: 0x487n, save: true, pass: true }),
  special(0x49, 'IA32_PRED_CMD', { access: 'wo', pass: true }),
  constant(0x79, 'IA32_UCODE_WRITE', 0n, 'ignore'),
  stored(0x8b, 'IA32_UCODE_REV', { access: 'ignore', reset: 0x1000065n, save: true }),
  special(0x9e, 'IA32_SMBASE', { save: true }), // of the host only
  constant(0xcd, 'FSB_FREQ', 3n),
  stored(0xce, 'PLATFORM_INFO', { access: 'ro', reset: 1n << 31n, save: true }),
  constant(0xfe, 'IA32_MTRRCAP', 0x508n),
  special(0x10b, 'IA32_FLUSH_CMD', { access: 'wo', pass: true }),
  stored(0x140, 'MISC_FEATURES_ENABLES', { mask: 1n, save: true }),
  field(0x174, 'IA32_SYSENTER_CS', 'SYSENTER_CS', { save: true, pass: true }),
  field(0x175, 'IA32_SYSENTER_ESP', 'SYSENTER_ESP', { access: 'canonical', save: true, pass: true }),
  field(0x176, 'IA32_SYSENTER_EIP', 'SYSENTER_EIP', { access: 'canonical', save: true, pass: true }),
  field(0x179, 'IA32_MCG_CAP', 'MCG_CAP', { access: 'ro', reset: 32n }),
  field(0x17a, 'IA32_MCG_STATUS', 'MCG_STATUS', { save: true }),
  special(0x17b, 'IA32_MCG_CTL', { save: true }),
  constant(0x198, 'IA32_PERF_STATUS', 1000n | (4n << 40n)),
  constant(0x199, 'IA32_PERF_CTL', 0n, 'ro'),
  special(0x1a0, 'IA32_MISC_ENABLE', { save: true }),
  field(0x1d9, 'IA32_DEBUGCTL', 'DEBUGCTL', { mask: 0x3n, save: true, pass: true }),
  stored(0x1db, 'LASTBRANCHFROMIP', { access: 'ignore', pass: true }),
  stored(0x1dc, 'LASTBRANCHTOIP', { access: 'ignore', pass: true }),
  stored(0x1dd, 'LASTINTFROMIP', { access: 'ignore', pass: true }),
  stored(0x1de, 'LASTINTTOIP', { access: 'ignore', pass: true }),
  stored(0x1fc, 'POWER_CTL', { save: true }),
  ...Array.from({ length: 16 }, (_, i) => special(0x200 + i, `IA32_MTRR_PHYS${i & 1 ? 'MASK' : 'BASE'}${i >> 1}`, { save: true })),
  ...fixedMtrr.map(([index, name]) => special(index, `IA32_MTRR_FIX${name}`, { save: true })),
  special(0x277, 'IA32_PAT', { reset: 0x0007040600070406n, save: true, pass: true }),
  special(0x2ff, 'IA32_MTRR_DEF_TYPE', { save: true }),
  special(0x6e0, 'IA32_TSC_DEADLINE', { save: true }),
  special(0x6e1, 'IA32_PKRS'),
  special(0xda0, 'IA32_XSS', { save: true, pass: true }),
  // RAPL: KVM answers zero.
  ...[0x606, 0x611, 0x619, 0x639, 0x641].map((index) => constant(index, `RAPL_${index.toString(16)}`)),
  ...['WALL_CLOCK_NEW', 'SYSTEM_TIME_NEW', 'ASYNC_PF_EN', 'STEAL_TIME', 'PV_EOI_EN', 'POLL_CONTROL', 'ASYNC_PF_INT', 'ASYNC_PF_ACK'].map(
    (name, i) => special(0x4b564d00 + i, `KVM_${name}`, { save: true }),
  ),
  special(0xc0000080, 'EFER', { pass: true }),
  field(0xc0000081, 'STAR', 'STAR', { save: true, pass: true }),
  field(0xc0000082, 'LSTAR', 'LSTAR', { access: 'canonical', save: true, pass: true }),
  field(0xc0000083, 'CSTAR', 'CSTAR', { access: 'canonical', save: true, pass: true }),
  field(0xc0000084, 'SYSCALL_MASK', 'SFMASK', { mask: 0xffffffffn, save: true, pass: true }),
  special(0xc0000100, 'FS_BASE', { pass: true }),
  special(0xc0000101, 'GS_BASE', { pass: true }),
  field(0xc0000102, 'KERNEL_GS_BASE', 'KERNEL_GS_BASE', { access: 'canonical', save: true, pass: true }),
  special(0xc0000103, 'TSC_AUX', { save: true, pass: true }),
  stored(0xc0000104, 'AMD64_TSC_RATIO', { reset: 1n << 32n, access: 'ro', save: true }),
  // AMD performance counters: no PMU is offered, KVM accepts and reads back zero.
  ...Array.from({ length: 4 }, (_, i) => constant(0xc0010000 + i, `K7_EVNTSEL${i}`, 0n, 'ignore')),
  ...Array.from({ length: 4 }, (_, i) => constant(0xc0010004 + i, `K7_PERFCTR${i}`, 0n, 'ignore')),
  constant(0xc0010010, 'SYSCFG', 0n, 'ignore'),
  special(0xc0010015, 'HWCR', { save: true }),
  constant(0xc001001b, 'K7_CLK_CTL', 0x20000000n),
  constant(0xc001001f, 'AMD64_NB_CFG', 0n, 'ignore'),
  constant(0xc0010020, 'AMD64_PATCH_LOADER', 0n, 'ignore'),
  constant(0xc0010055, 'K8_INT_PENDING_MSG'),
  constant(0xc0010058, 'FAM10H_MMIO_CONF_BASE'),
  constant(0xc0010112, 'K8_TSEG_ADDR'),
  constant(0xc0010113, 'K8_TSEG_MASK'),
  stored(0xc0010114, 'VM_CR', { mask: 0x1fn }),
  stored(0xc0010117, 'VM_HSAVE_PA', { save: true }),
  stored(0xc001011f, 'AMD64_VIRT_SPEC_CTRL', { mask: 4n, save: true }),
  special(0xc0010130, 'SEV_ES_GHCB', { pass: true }),
  special(0xc0010131, 'SEV_STATUS', { access: 'ro', pass: true }),
  constant(0xc0011021, 'F15H_IC_CFG', 0n, 'ignore'),
  constant(0xc0011022, 'AMD64_DC_CFG', 0n, 'ignore'),
  stored(0xc0011029, 'AMD64_DE_CFG', { mask: 2n, save: true }),
  constant(0xc001102a, 'AMD64_BU_CFG2', 0n, 'ignore'),
]

export const msrs: readonly Msr[] = [...list].sort((a, b) => a.index - b.index)
