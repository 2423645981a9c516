/** Addresses both sides of the oracle agree on; native.c has the same figures. */
export const CODE = 0x10000000
export const SLOT = 0x10010000
export const CODE_SIZE = 0x20000
export const DATA = 0x20000000
export const DATA_SIZE = 0x3000
/** GS base while a case runs. */
export const GS_BASE = DATA
/** The bytes that a case may change: across two writable pages, and the last before the read-only page. */
export const WINDOWS = [
  { at: 0x20000f00, size: 512, from: 0 },
  { at: 0x20001f80, size: 128, from: 512 },
] as const
export const WINDOW = 640
export const READ_ONLY = 0x20002000
export const UNMAPPED = 0x20003000
export const FX = 1
export const MEM = 2
export const IN_SIZE = 248
export const OUT_SIZE = 168
/** Vector of a case that ran through. */
export const RAN = 0xff

/** What the data pages hold outside the windows. */
export const patternByte = (offset: number): number => (offset * 167 + (offset >> 8) * 13 + 5) & 0xff

/** Code sizes: 64-bit, flat 32-bit, and 16-bit protected mode with segments of its own (an LDT on the physical side). */
export type Bits = 64 | 32 | 16
export const COMPAT32 = 4
export const COMPAT16 = 8

export interface Segment {
  selector: number
  base: number
  limit: number
  /** As in the core's layout (SEG_ATTRIB). */
  attrib: number
}

const SMALL = 0x1fff8000
const ldt = (n: number, base: number, limit: number, attrib: number): Segment => ({ selector: n * 8 + 7, base, limit, attrib })
const flat: Segment = { selector: 0x2b, base: 0, limit: 0xffffffff, attrib: 0xcf3 }
const code16 = ldt(0, 0x10008000, 0xffff, 0xfb)
const data16 = ldt(1, SMALL, 0xffff, 0xf3)
/** Ends four bytes before the read-only page. */
const short16 = ldt(2, SMALL, 0x9ffb, 0xf3)
/** Expand-down: offsets 0x8f80 to 0xffff. */
const down16 = ldt(3, SMALL, 0x8f7f, 0xf7)
const readOnly16 = ldt(4, SMALL, 0xffff, 0xf1)

/** ES CS SS DS FS GS of each code size; native.c makes the same LDT. */
export const SEGMENTS: Record<32 | 16, readonly Segment[]> = {
  32: [flat, { selector: 0x23, base: 0, limit: 0xffffffff, attrib: 0xcfb }, flat, flat, down16, readOnly16],
  16: [short16, code16, data16, data16, down16, readOnly16],
}
export const codeBase = (bits: Bits): number => (bits === 16 ? code16.base : 0)
