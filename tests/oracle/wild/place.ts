/** Addresses, records and descriptors that both sides of the wild oracle agree on; wild.c has the same figures. */
import { CODE, CODE_SIZE, DATA } from '../place.ts'

export { CODE, CODE_SIZE, DATA }
/** Two writable pages, one read-only, then nothing. */
export const WRITABLE = 0x2000
export const DATA_SIZE = 0x3000
export const CODE_END = CODE + CODE_SIZE
export const patternByte = (offset: number): number => (offset * 167 + (offset >> 8) * 13 + 5) & 0xff

/** Longest code of a case. */
export const CODE_BYTES = 96
export const IN_SIZE = 704
export const OUT_SIZE = 608
export const FX_SIZE = 416
export const ES = 0
export const CS = 1
export const SS = 2
export const FS = 4
export const GS = 5

export interface Descriptor {
  base: number
  /** In bytes. */
  limit: number
  /** As in the core's layout (SEG_ATTRIB): type, S, DPL, P in bits 7:0, AVL L D/B G in bits 11:8. */
  attrib: number
}

/** What a process of 64-bit Linux sees of its GDT (by LAR and LSL): 32-bit code, data, 64-bit code, and the CPU number's segment. */
export const gdt = new Map<number, Descriptor>([
  [0x20, { base: 0, limit: 0xffffffff, attrib: 0xcfb }],
  [0x28, { base: 0, limit: 0xffffffff, attrib: 0xcf3 }],
  [0x30, { base: 0, limit: 0xffffffff, attrib: 0xafb }],
  [0x78, { base: 0, limit: 0, attrib: 0x4f5 }],
])

export const LDT_ENTRIES = 32

/** One case as both sides get it. */
export interface State {
  code: Uint8Array
  /** Without TF, up to the INT3 behind the code. */
  free?: boolean
  slot: number
  segment: number[]
  rip: bigint
  gpr: BigUint64Array
  rflags: bigint
  /** Of FS and GS where the selector is null. */
  base: [bigint, bigint]
  fx: Uint8Array
}

export interface Outcome {
  /** Exception vector; 1 (#DB by TF) is the regular end. */
  vector: number
  error: number
  cr2: bigint
  rip: bigint
  gpr: BigUint64Array
  rflags: bigint
  base: [bigint, bigint]
  segment: number[]
  fx: Uint8Array
  /** Changed data, from this offset. */
  first: number
  data: Uint8Array
}

export interface Batch {
  ldt: (Descriptor | null)[]
  data: Uint8Array
  states: State[]
}

/** The two words of a descriptor. */
export function encode(d: Descriptor): bigint {
  const granular = (d.attrib & 0x800) !== 0
  const l = BigInt(granular ? d.limit >>> 12 : d.limit)
  const b = BigInt(d.base >>> 0)
  return (
    (l & 0xffffn) |
    ((b & 0xffffffn) << 16n) |
    (BigInt(d.attrib & 0xff) << 40n) |
    ((l & 0xf0000n) << 32n) |
    (BigInt(d.attrib & 0xf00) << 44n) |
    ((b & 0xff000000n) << 32n)
  )
}

export function find(selector: number, ldt: readonly (Descriptor | null)[]): Descriptor | null {
  if ((selector & 0xfffc) === 0) return null
  return (selector & 4) !== 0 ? (ldt[selector >> 3] ?? null) : (gdt.get(selector & 0xfff8) ?? null)
}
