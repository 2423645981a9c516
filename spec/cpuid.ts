/**
 * What KVM_GET_SUPPORTED_CPUID answers, as data: [leaf, subleaf or null, eax, ebx, ecx, edx]. Layout: APM vol 3,
 * appendix E; KVM's choices: Linux 7.3 arch/x86/kvm/cpuid.c __do_cpuid_func. Only features that the engine
 * executes are offered: no AVX yet. No behaviour here.
 */
export type CpuidRow = readonly [leaf: number, subleaf: number | null, eax: number, ebx: number, ecx: number, edx: number]

/** CPUID(1).EAX of the CPU models by QEMU's names (target/i386/cpu.c). */
export const CPUID_SIGNATURE = {
  EPYC: 0x800f12,
  'EPYC-v4': 0x800f12,
  'EPYC-Rome': 0x830f10,
  'EPYC-Milan': 0xa00f11,
  'EPYC-Genoa': 0xa10f10,
} as const

/** SSE3, PCLMULQDQ, SSSE3, CX16, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC deadline, AES, XSAVE, RDRAND, hypervisor. */
const LEAF_1_ECX = 0xc7fa2203
/** FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2. */
const LEAF_1_EDX = 0x078bfbff
/** FSGSBASE TSC_ADJUST BMI1 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA. */
const LEAF_7_EBX = 0x219c078b
/** UMIP, PKU, LA57, RDPID, MOVDIRI, MOVDIR64B. */
const LEAF_7_ECX = 0x1841000c
/** FSRM. */
const LEAF_7_EDX = 0x00000010

/** x87 and SSE: the legacy area and the header; PKRU; XSAVEOPT, XSAVEC. */
const XSTATE: readonly CpuidRow[] = [
  [0xd, 0, 0x203, 576, 2440, 0],
  [0xd, 1, 3, 0, 0, 0],
  [0xd, 9, 8, 2432, 0, 0],
]

const KVM_SIGNATURE: readonly CpuidRow[] = [
  // "KVMKVMKVM"; CLOCKSOURCE NOP_IO_DELAY CLOCKSOURCE2 ASYNC_PF STEAL_TIME PV_EOI PV_UNHALT PV_TLB_FLUSH ASYNC_PF_VMEXIT
  // PV_SEND_IPI POLL_CONTROL PV_SCHED_YIELD ASYNC_PF_INT CLOCKSOURCE_STABLE (assembly/kvm/pv.ts).
  [0x40000000, null, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d],
  [0x40000001, null, 0x01007efb, 0, 0, 0],
]

/** An AMD host that calls itself Milan (and has what Turin added as far as it is implemented): SEV, SEV-ES and SNP with C-bit 51, ASIDs 1..99 for SEV-ES and SNP, 100..509 for SEV. */
export const CPUID_AMD: readonly CpuidRow[] = [
  [0, null, 0xd, 0x68747541, 0x444d4163, 0x69746e65],
  [1, null, 0xa00f11, 0x00010800, LEAF_1_ECX, LEAF_1_EDX],
  [2, null, 0, 0, 0, 0],
  [3, null, 0, 0, 0, 0],
  [5, null, 0, 0, 0, 0],
  [6, null, 4, 0, 0, 0],
  [7, 0, 0, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX],
  [0xa, null, 0, 0, 0, 0],
  [0xb, 0, 0, 1, 0x100, 0],
  [0xb, 1, 0, 1, 0x201, 0],
  ...XSTATE,
  ...KVM_SIGNATURE,
  [0x80000000, null, 0x80000021, 0x68747541, 0x444d4163, 0x69746e65],
  // LAHF, CR8 legacy, LZCNT, SSE4A, 3DNow prefetch, TOPOEXT; SYSCALL NX MMXEXT FXSR_OPT 1 GiB pages RDTSCP LM.
  [0x80000001, null, 0xa00f11, 0x40000000, 0x00400171, 0x2fd3fbff],
  // "AMD EPYC-Milan Processor".
  [0x80000002, null, 0x20444d41, 0x43595045, 0x6c694d2d, 0x50206e61],
  [0x80000003, null, 0x65636f72, 0x726f7373, 0, 0],
  [0x80000004, null, 0, 0, 0, 0],
  [0x80000005, null, 0xff40ff40, 0xff40ff40, 0x20080140, 0x20080140],
  [0x80000006, null, 0x48006400, 0x68006400, 0x02006140, 0x01009140],
  [0x80000007, null, 0, 0, 0, 0x100],
  // 48 physical and, with LA57, 57 linear address bits.
  [0x80000008, null, 0x3930, 0, 0, 0],
  [0x80000019, null, 0, 0, 0, 0],
  [0x8000001a, null, 0, 0, 0, 0],
  [0x8000001d, 0, 0x00000121, 0x01c0003f, 0x3f, 0],
  [0x8000001d, 1, 0x00000122, 0x01c0003f, 0x3f, 0],
  [0x8000001d, 2, 0x00000143, 0x01c0003f, 0x3ff, 2],
  [0x8000001d, 3, 0x00000163, 0x03c0003f, 0x7fff, 1],
  [0x8000001d, 4, 0, 0, 0, 0],
  [0x8000001e, null, 0, 0, 0, 0],
  // SEV (1), SEV-ES (3), SEV-SNP (4); C-bit 51; ASIDs; smallest ASID of a plain SEV guest.
  [0x8000001f, null, 0x1a, 51, 509, 100],
  // LFENCE is serialising; null selectors clear the base.
  [0x80000021, null, 0x44, 0, 0, 0],
]

/** An Intel host with TDX (Sapphire Rapids signature). */
export const CPUID_INTEL: readonly CpuidRow[] = [
  [0, null, 0xd, 0x756e6547, 0x6c65746e, 0x49656e69],
  [1, null, 0x000806f8, 0x00010800, LEAF_1_ECX, LEAF_1_EDX | 0x08000000],
  [2, null, 0x00feff01, 0xf0, 0, 0],
  [4, 0, 0x00000121, 0x02c0003f, 0x3f, 0],
  [4, 1, 0x00000122, 0x01c0003f, 0x3f, 0],
  [4, 2, 0x00000143, 0x03c0003f, 0x7ff, 0],
  [4, 3, 0, 0, 0, 0],
  [6, null, 4, 0, 0, 0],
  [7, 0, 0, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX],
  [0xa, null, 0, 0, 0, 0],
  [0xb, 0, 0, 1, 0x100, 0],
  [0xb, 1, 0, 1, 0x201, 0],
  ...XSTATE,
  ...KVM_SIGNATURE,
  [0x80000000, null, 0x80000008, 0, 0, 0],
  // LAHF, LZCNT, prefetch; SYSCALL NX 1 GiB pages RDTSCP LM.
  [0x80000001, null, 0, 0, 0x121, 0x2c100800],
  // "Intel Xeon Processor (SapphireRapids)".
  [0x80000002, null, 0x65746e49, 0x6558206c, 0x50206e6f, 0x65636f72],
  [0x80000003, null, 0x726f7373, 0x61532820, 0x69687070, 0x61526572],
  [0x80000004, null, 0x73646970, 0x29, 0, 0],
  [0x80000006, null, 0, 0, 0x01006040, 0],
  [0x80000007, null, 0, 0, 0, 0x100],
  [0x80000008, null, 0x3934, 0, 0, 0],
]
