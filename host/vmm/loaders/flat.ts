/**
 * Raw flat guests: bytes at a load address, entered directly in one of three modes. `long64` starts at CPL 0 with the
 * first 4 GiB mapped one to one; its page tables and GDT lie below 0x7000, the stack starts at the load address.
 */
import { CloisterError } from '../../errors.ts'
import type { FlatImage } from '../options.ts'

const GDT = 0x500
const PML4 = 0x1000
const PDPT = 0x2000
const PD = 0x3000
const TABLES_END = 0x7000
const FOUR_GIB = 0x100000000

export interface Segment {
  base: number
  limit: number
  selector: number
  type: number
  s: number
  db: number
  l: number
  g: number
}

/** What a vCPU starts with; segments not named keep their reset values. */
export interface EntryState {
  rip: number
  rsp: number
  rax?: number
  rbx?: number
  rsi?: number
  cr0: number
  cr3: number
  cr4: number
  efer: number
  code: Segment
  data: Segment
  /** Base and limit of the GDT, null = as after reset. */
  gdt: { base: number; limit: number } | null
}

export interface LoadedImage {
  /** Pieces of guest memory in ascending order (`size`: with the zeros behind them); an encrypted launch measures them page by page. */
  pieces: { address: number; bytes: Uint8Array; size?: number }[]
  entry: EntryState
}

const refuse = (message: string): never => {
  throw new CloisterError('image', `image: ${message}`)
}

/** Flat descriptors: null, code 64, data, code 32. */
const descriptors = [0n, 0x00af9b000000ffffn, 0x00cf93000000ffffn, 0x00cf9b000000ffffn]

/** Identity map of the first 4 GiB with 2 MiB pages; `cBit` marks entries whose memory is encrypted. */
export function pageTables(cBit: bigint): { address: number; bytes: Uint8Array }[] {
  const bytes = new Uint8Array(TABLES_END - PML4)
  const view = new DataView(bytes.buffer)
  const put = (address: number, value: bigint): void => view.setBigUint64(address - PML4, value, true)
  put(PML4, BigInt(PDPT | 3) | cBit)
  for (let i = 0; i < 4; i++) put(PDPT + i * 8, BigInt((PD + i * 0x1000) | 3) | cBit)
  for (let i = 0; i < 2048; i++) put(PD + i * 8, (BigInt(i) << 21n) | 0x83n | cBit)
  const gdt = new Uint8Array(descriptors.length * 8)
  for (const [i, d] of descriptors.entries()) new DataView(gdt.buffer).setBigUint64(i * 8, d, true)
  return [
    { address: GDT, bytes: gdt },
    { address: PML4, bytes },
  ]
}

export function loadFlat(image: FlatImage, memory: number, cBit: bigint): LoadedImage {
  const load = Number(image.load)
  const entry = Number(image.entry)
  const { bytes, mode } = image
  const end = load + bytes.length
  if (bytes.length === 0) refuse('empty')
  if (!Number.isSafeInteger(load) || load < 0) refuse(`load address ${String(image.load)}: must be a positive whole number`)
  if (end > memory || end > FOUR_GIB) refuse(`0x${load.toString(16)}-0x${end.toString(16)} does not fit the ${memory} bytes of memory`)
  if (load < 0x100000 && end > 0x100000) refuse(`0x${load.toString(16)}-0x${end.toString(16)} crosses the hole from 0xa0000 to 0x100000`)
  if (!Number.isSafeInteger(entry) || entry < 0 || entry >= FOUR_GIB) refuse(`entry ${String(image.entry)}: must lie below 4 GiB`)
  const piece = { address: load, bytes }
  if (mode === 'real16') {
    if (entry >= 0x100000) refuse(`entry 0x${entry.toString(16)}: real mode reaches the first MiB only`)
    const base = entry & 0xf0000
    const code = { base, limit: 0xffff, selector: base >> 4, type: 11, s: 1, db: 0, l: 0, g: 0 }
    const data = { ...code, base: 0, selector: 0, type: 3 }
    return {
      pieces: [piece],
      entry: { rip: entry & 0xffff, rsp: load & 0xffff, cr0: 0x10, cr3: 0, cr4: 0, efer: 0, code, data, gdt: null },
    }
  }
  const code = { base: 0, limit: 0xffffffff, selector: 24, type: 11, s: 1, db: 1, l: 0, g: 1 }
  const data = { ...code, selector: 16, type: 3 }
  const gdt = { base: GDT, limit: descriptors.length * 8 - 1 }
  const tables = pageTables(cBit)
  const common = { rip: entry, rsp: load, code, data, gdt }
  const overlap = (from: number, to: number): boolean => load < to && end > from
  if (mode === 'protected32') {
    const table = tables[0] as { address: number; bytes: Uint8Array }
    if (overlap(GDT, GDT + 32)) refuse(`overlaps the GDT at 0x${GDT.toString(16)}`)
    return { pieces: sort([table, piece]), entry: { ...common, cr0: 0x11, cr3: 0, cr4: 0, efer: 0 } }
  }
  if (overlap(GDT, TABLES_END)) refuse(`overlaps the GDT and page tables from 0x${GDT.toString(16)} to 0x${TABLES_END.toString(16)}`)
  return {
    pieces: sort([...tables, piece]),
    entry: { ...common, cr0: 0x80000011, cr3: PML4, cr4: 0x20, efer: 0x500, code: { ...code, selector: 8, db: 0, l: 1 } },
  }
}

const sort = (pieces: { address: number; bytes: Uint8Array; size?: number }[]): { address: number; bytes: Uint8Array }[] =>
  pieces.toSorted((a, b) => a.address - b.address)
