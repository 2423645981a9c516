/**
 * kvm_regs, kvm_sregs and kvm_sregs2 as views on the vCPU structure (uapi/asm/kvm.h). The lazy flags
 * and the derived mode state belong to the core, which is called for them.
 */
import {
  CPU_APIC_BASE,
  CPU_CPL,
  CPU_CR0,
  CPU_CR2,
  CPU_CR3,
  CPU_CR4,
  CPU_CR8,
  CPU_EFER,
  CPU_GPR,
  CPU_RIP,
  CPU_SEGMENTS,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GDTR,
  SEG_GS,
  SEG_IDTR,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
  SIZEOF_SEG,
} from '../generated/layout.ts'
import type { CoreExports } from '../engine/exports.ts'

/** General registers as KVM orders them: rax rbx rcx rdx rsi rdi rsp rbp r8..r15; values are x86 numbers. */
const ORDER = [0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15] as const

/** Offsets in struct kvm_regs. */
export const REGS_RIP = 128
export const REGS_RFLAGS = 136

/** Names of struct kvm_regs, in order. */
export const REG_NAMES = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rflags',
] as const
/** struct kvm_regs: the general registers, `rip` and `rflags`. */
export type Regs = { [K in (typeof REG_NAMES)[number]]: bigint }

/** Two halves: a bigint in between costs four times as much. */
function copy64(from: DataView, at: number, to: DataView, position: number): void {
  to.setUint32(position, from.getUint32(at, true), true)
  to.setUint32(position + 4, from.getUint32(at + 4, true), true)
}

export function getRegs(call: CoreExports, s: number, cpu: DataView, out: DataView): void {
  for (let i = 0; i < 16; i++) copy64(cpu, CPU_GPR + (ORDER[i] as number) * 8, out, i * 8)
  copy64(cpu, CPU_RIP, out, REGS_RIP)
  out.setBigUint64(REGS_RFLAGS, BigInt.asUintN(64, call.cpuGetFlags(s)), true)
}

export function setRegs(call: CoreExports, s: number, cpu: DataView, from: DataView): void {
  for (let i = 0; i < 16; i++) copy64(from, i * 8, cpu, CPU_GPR + (ORDER[i] as number) * 8)
  copy64(from, REGS_RIP, cpu, CPU_RIP)
  call.cpuSetFlags(s, from.getBigUint64(REGS_RFLAGS, true) | 2n)
}

/** One segment: struct kvm_segment. `limit` in bytes; single bits are 0 or 1 (APM vol 2, 4.7: the descriptor). */
export interface Segment {
  base: bigint
  limit: number
  selector: number
  type: number
  present: number
  dpl: number
  db: number
  s: number
  l: number
  g: number
  avl: number
  unusable: number
}
/** GDTR or IDTR: struct kvm_dtable. */
export interface TableRegister {
  /** Linear address. */
  base: bigint
  /** Bytes less one. */
  limit: number
}

/** Segments in the order of struct kvm_sregs. */
const SEGMENT_ORDER = [
  ['cs', SEG_CS],
  ['ds', SEG_DS],
  ['es', SEG_ES],
  ['fs', SEG_FS],
  ['gs', SEG_GS],
  ['ss', SEG_SS],
  ['tr', SEG_TR],
  ['ldt', SEG_LDTR],
] as const
const KVM_SEGMENT = 24
/** Offsets in struct kvm_sregs; sregs2 has flags and pdptrs from INTERRUPT_BITMAP on. */
export const SREGS = {
  CS: 0,
  GDT: 192,
  IDT: 208,
  CR0: 224,
  CR2: 232,
  CR3: 240,
  CR4: 248,
  CR8: 256,
  EFER: 264,
  APIC_BASE: 272,
  INTERRUPT_BITMAP: 280,
  FLAGS: 280,
  PDPTRS: 288,
} as const
const UNUSABLE = 0x8000

function getSegment(cpu: DataView, index: number, out: DataView, at: number): void {
  const from = CPU_SEGMENTS + index * SIZEOF_SEG
  const attrib = cpu.getUint16(from + SEG_ATTRIB, true)
  out.setBigUint64(at, cpu.getBigUint64(from + SEG_BASE, true), true)
  out.setUint32(at + 8, cpu.getUint32(from + SEG_LIMIT, true), true)
  out.setUint16(at + 12, cpu.getUint16(from + SEG_SELECTOR, true), true)
  const present = (attrib >> 7) & 1
  out.setUint8(at + 14, attrib & 15)
  out.setUint8(at + 15, present)
  out.setUint8(at + 16, (attrib >> 5) & 3)
  out.setUint8(at + 17, (attrib >> 10) & 1)
  out.setUint8(at + 18, (attrib >> 4) & 1)
  out.setUint8(at + 19, (attrib >> 9) & 1)
  out.setUint8(at + 20, (attrib >> 11) & 1)
  out.setUint8(at + 21, (attrib >> 8) & 1)
  out.setUint8(at + 22, (attrib & UNUSABLE) !== 0 || present === 0 ? 1 : 0)
  out.setUint8(at + 23, 0)
}

function setSegment(cpu: DataView, index: number, from: DataView, at: number): void {
  const to = CPU_SEGMENTS + index * SIZEOF_SEG
  const bit = (offset: number): number => from.getUint8(at + offset) & 1
  const unusable = from.getUint8(at + 22) !== 0
  cpu.setBigUint64(to + SEG_BASE, from.getBigUint64(at, true), true)
  cpu.setUint32(to + SEG_LIMIT, from.getUint32(at + 8, true), true)
  cpu.setUint16(to + SEG_SELECTOR, from.getUint16(at + 12, true), true)
  // svm_set_segment: an unusable segment is stored with its type bits and P clear.
  const attrib =
    (from.getUint8(at + 14) & 15) |
    (bit(18) << 4) |
    ((from.getUint8(at + 16) & 3) << 5) |
    ((unusable ? 0 : bit(15)) << 7) |
    (bit(21) << 8) |
    (bit(19) << 9) |
    (bit(17) << 10) |
    (bit(20) << 11) |
    (unusable ? UNUSABLE : 0)
  cpu.setUint16(to + SEG_ATTRIB, attrib, true)
}

/** Fills the part that sregs and sregs2 share. */
export function getSregs(cpu: DataView, out: DataView): void {
  SEGMENT_ORDER.forEach(([, index], i) => {
    getSegment(cpu, index, out, i * KVM_SEGMENT)
  })
  for (const [index, at] of [
    [SEG_GDTR, SREGS.GDT],
    [SEG_IDTR, SREGS.IDT],
  ] as const) {
    const from = CPU_SEGMENTS + index * SIZEOF_SEG
    out.setBigUint64(at, cpu.getBigUint64(from + SEG_BASE, true), true)
    out.setUint16(at + 8, cpu.getUint32(from + SEG_LIMIT, true), true)
    out.setUint16(at + 10, 0, true)
    out.setUint32(at + 12, 0, true)
  }
  for (const [from, at] of CONTROL) out.setBigUint64(at, cpu.getBigUint64(from, true), true)
}

const CONTROL = [
  [CPU_CR0, SREGS.CR0],
  [CPU_CR2, SREGS.CR2],
  [CPU_CR3, SREGS.CR3],
  [CPU_CR4, SREGS.CR4],
  [CPU_CR8, SREGS.CR8],
  [CPU_EFER, SREGS.EFER],
  [CPU_APIC_BASE, SREGS.APIC_BASE],
] as const

const CR0_PE = 1n
export const CR0_PG = 1n << 31n
export const CR4_PAE = 1n << 5n
const EFER_LME = 1n << 8n
export const EFER_LMA = 1n << 10n
const CR0_RESERVED_HIGH = 0xffffffff00000000n
/** CR4 bits that the modelled CPU has: VME..UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE. */
const CR4_KNOWN = 0x771fffn

/** kvm_is_valid_sregs (regs.c): false is -EINVAL. */
export function validSregs(from: DataView, physMask: bigint): boolean {
  const cr0 = from.getBigUint64(SREGS.CR0, true)
  const cr3 = from.getBigUint64(SREGS.CR3, true)
  const cr4 = from.getBigUint64(SREGS.CR4, true)
  const efer = from.getBigUint64(SREGS.EFER, true)
  const csL = from.getUint8(19)
  const csDb = from.getUint8(17)
  if ((efer & EFER_LME) !== 0n && (cr0 & CR0_PG) !== 0n) {
    // Long mode: PAE paging, LMA set, CR3 within MAXPHYADDR.
    if ((cr4 & CR4_PAE) === 0n || (efer & EFER_LMA) === 0n) return false
    if ((cr3 & 0xfffffffffffffn & ~physMask & ~0xfffn) !== 0n || cr3 >> 52n !== 0n) return false
  } else if ((efer & EFER_LMA) !== 0n || csL !== 0) {
    // Not in long mode: LMA and CS.L must be clear.
    return false
  }
  if (csL !== 0 && csDb !== 0) return false
  if ((cr4 & ~CR4_KNOWN) !== 0n || (cr0 & CR0_RESERVED_HIGH) !== 0n) return false
  // kvm_is_valid_cr0: NW needs CD, PG needs PE.
  if ((cr0 & (1n << 29n)) !== 0n && (cr0 & (1n << 30n)) === 0n) return false
  return (cr0 & CR0_PG) === 0n || (cr0 & CR0_PE) !== 0n
}

/** Stores the shared part; APIC base and interrupts are the caller's, then cpuModeChanged. */
export function setSregs(cpu: DataView, from: DataView): void {
  SEGMENT_ORDER.forEach(([, index], i) => {
    setSegment(cpu, index, from, i * KVM_SEGMENT)
  })
  for (const [index, at] of [
    [SEG_GDTR, SREGS.GDT],
    [SEG_IDTR, SREGS.IDT],
  ] as const) {
    const to = CPU_SEGMENTS + index * SIZEOF_SEG
    cpu.setBigUint64(to + SEG_BASE, from.getBigUint64(at, true), true)
    cpu.setUint32(to + SEG_LIMIT, from.getUint16(at + 8, true), true)
  }
  for (const [to, at] of CONTROL) {
    const value = from.getBigUint64(at, true)
    // The APIC base is the caller's; kvm_set_cr8 does not take more than four bits.
    if (to !== CPU_APIC_BASE && (to !== CPU_CR8 || value < 16n)) cpu.setBigUint64(to, value, true)
  }
  // The privilege level is SS.DPL (svm_set_segment).
  cpu.setUint32(CPU_CPL, (cpu.getUint16(CPU_SEGMENTS + SEG_SS * SIZEOF_SEG + SEG_ATTRIB, true) >> 5) & 3, true)
}

/** kvm_sregs as an object, for the typed wrappers. */
export interface Sregs {
  cs: Segment
  ds: Segment
  es: Segment
  fs: Segment
  gs: Segment
  ss: Segment
  tr: Segment
  ldt: Segment
  gdt: TableRegister
  idt: TableRegister
  cr0: bigint
  cr2: bigint
  cr3: bigint
  cr4: bigint
  cr8: bigint
  efer: bigint
  apicBase: bigint
  interruptBitmap: bigint[]
}

const CONTROL_NAMES = [
  ['cr0', SREGS.CR0],
  ['cr2', SREGS.CR2],
  ['cr3', SREGS.CR3],
  ['cr4', SREGS.CR4],
  ['cr8', SREGS.CR8],
  ['efer', SREGS.EFER],
  ['apicBase', SREGS.APIC_BASE],
] as const

export function decodeSregs(view: DataView): Sregs {
  const segment = (at: number): Segment => ({
    base: view.getBigUint64(at, true),
    limit: view.getUint32(at + 8, true),
    selector: view.getUint16(at + 12, true),
    type: view.getUint8(at + 14),
    present: view.getUint8(at + 15),
    dpl: view.getUint8(at + 16),
    db: view.getUint8(at + 17),
    s: view.getUint8(at + 18),
    l: view.getUint8(at + 19),
    g: view.getUint8(at + 20),
    avl: view.getUint8(at + 21),
    unusable: view.getUint8(at + 22),
  })
  const table = (at: number): TableRegister => ({ base: view.getBigUint64(at, true), limit: view.getUint16(at + 8, true) })
  const segments = Object.fromEntries(SEGMENT_ORDER.map(([name], i) => [name, segment(i * KVM_SEGMENT)]))
  const control = Object.fromEntries(CONTROL_NAMES.map(([name, at]) => [name, view.getBigUint64(at, true)]))
  const interruptBitmap = [0, 1, 2, 3].map((i) => view.getBigUint64(SREGS.INTERRUPT_BITMAP + i * 8, true))
  return { ...segments, gdt: table(SREGS.GDT), idt: table(SREGS.IDT), ...control, interruptBitmap } as unknown as Sregs
}

/** Accepts numbers where the kernel has u64. */
export function encodeSregs(sregs: Sregs, view: DataView): void {
  SEGMENT_ORDER.forEach(([name], i) => {
    const at = i * KVM_SEGMENT
    const g = sregs[name]
    view.setBigUint64(at, BigInt(g.base), true)
    view.setUint32(at + 8, g.limit, true)
    view.setUint16(at + 12, g.selector, true)
    const bytes = [g.type, g.present, g.dpl, g.db, g.s, g.l, g.g, g.avl, g.unusable, 0]
    bytes.forEach((b, j) => {
      view.setUint8(at + 14 + j, b)
    })
  })
  for (const [table, at] of [
    [sregs.gdt, SREGS.GDT],
    [sregs.idt, SREGS.IDT],
  ] as const) {
    view.setBigUint64(at, BigInt(table.base), true)
    view.setUint16(at + 8, table.limit, true)
  }
  for (const [name, at] of CONTROL_NAMES) view.setBigUint64(at, BigInt(sregs[name]), true)
  sregs.interruptBitmap.forEach((word, i) => {
    view.setBigUint64(SREGS.INTERRUPT_BITMAP + i * 8, BigInt(word), true)
  })
}
