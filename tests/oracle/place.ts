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
export const IN_SIZE = 160
export const OUT_SIZE = 168
/** Vector of a case that ran through. */
export const RAN = 0xff

/** What the data pages hold outside the windows. */
export const patternByte = (offset: number): number => (offset * 167 + (offset >> 8) * 13 + 5) & 0xff
