/**
 * CPU models by QEMU's names: the features that the namesake has in CPUID (QEMU target/i386/cpu.c; APM vol 3, appendix E),
 * and the word and bit of each feature. What the engine has is spec/cpuid.ts; a guest gets what both have. No behaviour here.
 */

/** Leaf, sub-leaf and register of a word of feature bits. */
export const FEATURE_WORDS = {
  '1.ecx': [1, 0, 'ecx'],
  '1.edx': [1, 0, 'edx'],
  '6.eax': [6, 0, 'eax'],
  '7.ebx': [7, 0, 'ebx'],
  '7.ecx': [7, 0, 'ecx'],
  '7.edx': [7, 0, 'edx'],
  '7.1.eax': [7, 1, 'eax'],
  'd.1.eax': [0xd, 1, 'eax'],
  '80000001.ecx': [0x80000001, 0, 'ecx'],
  '80000001.edx': [0x80000001, 0, 'edx'],
  '80000007.ebx': [0x80000007, 0, 'ebx'],
  '80000008.ebx': [0x80000008, 0, 'ebx'],
  '8000000a.edx': [0x8000000a, 0, 'edx'],
  '80000021.eax': [0x80000021, 0, 'eax'],
  '80000022.eax': [0x80000022, 0, 'eax'],
} as const
export type FeatureWord = keyof typeof FEATURE_WORDS

/** Bit numbers by QEMU's feature names. */
export const FEATURE_BITS: Readonly<Record<FeatureWord, Readonly<Record<string, number>>>> = {
  '1.ecx': {
    sse3: 0,
    pclmulqdq: 1,
    monitor: 3,
    ssse3: 9,
    fma: 12,
    cx16: 13,
    pcid: 17,
    'sse4.1': 19,
    'sse4.2': 20,
    x2apic: 21,
    movbe: 22,
    popcnt: 23,
    'tsc-deadline': 24,
    aes: 25,
    xsave: 26,
    avx: 28,
    f16c: 29,
    rdrand: 30,
    hypervisor: 31,
  },
  '1.edx': {
    fpu: 0,
    vme: 1,
    de: 2,
    pse: 3,
    tsc: 4,
    msr: 5,
    pae: 6,
    mce: 7,
    cx8: 8,
    apic: 9,
    sep: 11,
    mtrr: 12,
    pge: 13,
    mca: 14,
    cmov: 15,
    pat: 16,
    pse36: 17,
    clflush: 19,
    mmx: 23,
    fxsr: 24,
    sse: 25,
    sse2: 26,
  },
  '6.eax': { arat: 2 },
  '7.ebx': {
    fsgsbase: 0,
    'tsc-adjust': 1,
    bmi1: 3,
    avx2: 5,
    smep: 7,
    bmi2: 8,
    erms: 9,
    invpcid: 10,
    avx512f: 16,
    avx512dq: 17,
    rdseed: 18,
    adx: 19,
    smap: 20,
    avx512ifma: 21,
    clflushopt: 23,
    clwb: 24,
    avx512cd: 28,
    'sha-ni': 29,
    avx512bw: 30,
    avx512vl: 31,
  },
  '7.ecx': {
    avx512vbmi: 1,
    umip: 2,
    pku: 3,
    avx512vbmi2: 6,
    gfni: 8,
    vaes: 9,
    vpclmulqdq: 10,
    avx512vnni: 11,
    avx512bitalg: 12,
    'avx512-vpopcntdq': 14,
    la57: 16,
    rdpid: 22,
    movdiri: 27,
    movdir64b: 28,
    pks: 31,
  },
  '7.edx': { fsrm: 4, 'avx512-vp2intersect': 8 },
  '7.1.eax': { 'avx-vnni': 4, 'avx512-bf16': 5 },
  'd.1.eax': { xsaveopt: 0, xsavec: 1, xgetbv1: 2, xsaves: 3 },
  '80000001.ecx': {
    'lahf-lm': 0,
    svm: 2,
    cr8legacy: 4,
    abm: 5,
    sse4a: 6,
    misalignsse: 7,
    '3dnowprefetch': 8,
    osvw: 9,
    topoext: 22,
    'perfctr-core': 23,
  },
  '80000001.edx': { syscall: 11, nx: 20, mmxext: 22, 'fxsr-opt': 25, pdpe1gb: 26, rdtscp: 27, lm: 29 },
  '80000007.ebx': { 'overflow-recov': 0, succor: 1 },
  '80000008.ebx': {
    clzero: 0,
    xsaveerptr: 2,
    wbnoinvd: 9,
    ibpb: 12,
    ibrs: 14,
    stibp: 15,
    'stibp-always-on': 17,
    'amd-ssbd': 24,
    'amd-psfd': 28,
  },
  '8000000a.edx': {
    npt: 0,
    lbrv: 1,
    'nrip-save': 3,
    'tsc-scale': 4,
    'vmcb-clean': 5,
    flushbyasid: 6,
    'pause-filter': 10,
    pfthreshold: 12,
    'v-vmsave-vmload': 15,
    vgif: 16,
    vnmi: 25,
    'svme-addr-chk': 28,
  },
  '80000021.eax': {
    'no-nested-data-bp': 0,
    'fs-gs-base-ns': 1,
    'lfence-always-serializing': 2,
    'null-sel-clr-base': 6,
    'auto-ibrs': 8,
    prefetchi: 20,
    sbpb: 27,
    'ibpb-brtype': 28,
    'srso-user-kernel-no': 30,
  },
  '80000022.eax': { 'perfmon-v2': 0 },
}

const NAPLES =
  'fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ' +
  'sse3 pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c rdrand ' +
  'syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm ' +
  'lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext ' +
  'fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha-ni xsaveopt xsavec xgetbv1 arat npt nrip-save'
/** RAS and nested SVM, which QEMU 10.1 added to its newest versions of each model. */
const RAS_SVM = 'overflow-recov succor lbrv tsc-scale vmcb-clean flushbyasid pause-filter pfthreshold v-vmsave-vmload vgif'
const ROME = `${NAPLES} perfctr-core clzero xsaveerptr wbnoinvd ibpb stibp clwb umip rdpid xsaves`
const MILAN = `${ROME} pcid ibrs amd-ssbd erms invpcid pku fsrm svme-addr-chk`
const MILAN_2 = `${MILAN} vaes vpclmulqdq stibp-always-on amd-psfd no-nested-data-bp lfence-always-serializing null-sel-clr-base`
const GENOA =
  `${MILAN_2} auto-ibrs avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512vbmi2 gfni avx512vnni ` +
  'avx512bitalg avx512-vpopcntdq la57 avx512-bf16 vnmi'
const GENOA_2 = `${GENOA} ${RAS_SVM} fs-gs-base-ns perfmon-v2`
const TURIN = `${GENOA_2} movdiri movdir64b avx512-vp2intersect avx-vnni prefetchi sbpb ibpb-brtype srso-user-kernel-no`

export interface CpuModel {
  family: number
  model: number
  stepping: number
  /** Brand string, CPUID 80000002-4 (QEMU's model_id). */
  brand: string
  /** Feature names, separated by spaces. */
  features: string
}

const naples = { family: 23, model: 1, stepping: 2, brand: 'AMD EPYC Processor' }
const rome = { family: 23, model: 49, stepping: 0, brand: 'AMD EPYC-Rome Processor' }
const milan = { family: 25, model: 1, stepping: 1, brand: 'AMD EPYC-Milan Processor' }
const genoa = { family: 25, model: 17, stepping: 0, brand: 'AMD EPYC-Genoa Processor' }
const turin = { family: 26, model: 0, stepping: 0, brand: 'AMD EPYC-Turin Processor' }
const without = (features: string, name: string): string =>
  features
    .split(' ')
    .filter((f) => f !== name)
    .join(' ')
const NAPLES_3 = `${NAPLES} ibpb perfctr-core clzero xsaveerptr xsaves`

export const CPU_MODELS: Readonly<Record<string, CpuModel>> = {
  EPYC: { ...naples, features: NAPLES },
  'EPYC-v1': { ...naples, features: NAPLES },
  'EPYC-v2': { ...naples, brand: 'AMD EPYC Processor (with IBPB)', features: `${NAPLES} ibpb` },
  'EPYC-IBPB': { ...naples, brand: 'AMD EPYC Processor (with IBPB)', features: `${NAPLES} ibpb` },
  'EPYC-v3': { ...naples, features: NAPLES_3 },
  'EPYC-v4': { ...naples, brand: 'AMD EPYC-v4 Processor', features: NAPLES_3 },
  'EPYC-v5': { ...naples, brand: 'AMD EPYC-v5 Processor', features: `${NAPLES_3} ${RAS_SVM}` },
  'EPYC-Rome': { ...rome, features: ROME },
  'EPYC-Rome-v1': { ...rome, features: ROME },
  'EPYC-Rome-v2': { ...rome, features: `${ROME} ibrs amd-ssbd` },
  'EPYC-Rome-v3': { ...rome, brand: 'AMD EPYC-Rome-v3 Processor', features: `${ROME} ibrs amd-ssbd` },
  'EPYC-Rome-v4': { ...rome, brand: 'AMD EPYC-Rome-v4 Processor (no XSAVES)', features: without(`${ROME} ibrs amd-ssbd`, 'xsaves') },
  'EPYC-Rome-v5': { ...rome, brand: 'AMD EPYC-Rome-v5 Processor', features: `${without(`${ROME} ibrs amd-ssbd`, 'xsaves')} ${RAS_SVM}` },
  'EPYC-Milan': { ...milan, features: MILAN },
  'EPYC-Milan-v1': { ...milan, features: MILAN },
  'EPYC-Milan-v2': { ...milan, brand: 'AMD EPYC-Milan-v2 Processor', features: MILAN_2 },
  'EPYC-Milan-v3': { ...milan, brand: 'AMD EPYC-Milan-v3 Processor', features: `${MILAN_2} ${RAS_SVM}` },
  'EPYC-Genoa': { ...genoa, features: GENOA },
  'EPYC-Genoa-v1': { ...genoa, features: GENOA },
  'EPYC-Genoa-v2': { ...genoa, brand: 'AMD EPYC-Genoa-v2 Processor', features: GENOA_2 },
  'EPYC-Turin': { ...turin, features: TURIN },
  'EPYC-Turin-v1': { ...turin, features: TURIN },
}

/** What KVM adds to any model: it emulates these itself. */
export const CPU_ADDED = 'x2apic tsc-deadline hypervisor'
/** What the engine has and KVM offers to nobody: in the model `default`, and for others on request. */
export const CPU_BEYOND_KVM = 'pks'
/** What the model `default` leaves out of what the engine has: kernels that find it build five-level page tables. */
export const CPU_DEFAULT_WITHOUT = 'la57 movdiri movdir64b'
