/**
 * Kernels entered without firmware, told apart by content: bzImage at its 64-bit or 32-bit entry (Linux Documentation/arch/x86/boot.rst),
 * ELF with a PVH note (Xen docs/misc/pvh.pandoc) and Multiboot 1 ELF32 (Multiboot specification 0.6.96).
 */
import { CloisterError } from '../../errors.ts'
import { biosVectors, EBDA, resetVector } from '../bios-state.ts'
import { FOUR_GIB, splitMemory } from '../memory.ts'
import { placeAcpi } from './acpi.ts'
import { detect, multibootHeader } from './detect.ts'
import { parseElf, type Elf } from './elf.ts'
import { pageTables, type EntryState, type LoadedImage } from './flat.ts'

export interface KernelOptions {
  kernel: Uint8Array
  initrd?: Uint8Array | undefined
  append?: string | undefined
  memory: number
  cpus: number
}

/** Where the loader puts its own structures: right below the EBDA, out of the way of what loads at 0x8000. */
const ZERO_PAGE = 0x90000
const START_INFO = 0x91000
const MAP = 0x91100
const MODULES = 0x91800
const CMDLINE = 0x92000
const CMDLINE_MAX = 0x1000
const GDT = 0x500
/** The RSDP and the tables after it. */
export const ACPI_PLACE = 0xe0000
const ACPI = ACPI_PLACE
const MIB = 0x100000

type Piece = LoadedImage['pieces'][number]
/** `code`: the option whose value is refused. */
const refuse = (message: string, code: 'kernel' | 'initrd' | 'append' = 'kernel'): never => {
  throw new CloisterError(code, `${code}: ${message}`)
}

interface Range {
  base: number
  size: number
  type: 1 | 2
}

function memoryMap(memory: number): Range[] {
  const { low, high } = splitMemory(memory)
  const map: Range[] = [
    { base: 0, size: EBDA, type: 1 },
    { base: EBDA, size: MIB - EBDA, type: 2 },
    { base: MIB, size: low - MIB, type: 1 },
  ]
  if (high) map.push({ base: FOUR_GIB, size: high, type: 1 })
  return map
}

const flat = { base: 0, limit: 0xffffffff, s: 1, db: 1, l: 0, g: 1 }
const data = (selector: number): EntryState['data'] => ({ ...flat, selector, type: 3 })
const code32 = (selector: number): EntryState['code'] => ({ ...flat, selector, type: 11 })
const code64 = (selector: number): EntryState['code'] => ({ ...flat, selector, type: 11, db: 0, l: 1 })

/** Linux wants __BOOT_CS 0x10 and __BOOT_DS 0x18; 0x08 is a 32-bit code segment. */
const descriptors = [0n, 0x00cf9b000000ffffn, 0x00af9b000000ffffn, 0x00cf93000000ffffn]
const descriptors32 = [0n, 0n, 0x00cf9b000000ffffn, 0x00cf93000000ffffn]
function gdtPiece(table: readonly bigint[] = descriptors): Piece {
  const bytes = new Uint8Array(table.length * 8)
  for (const [i, d] of table.entries()) new DataView(bytes.buffer).setBigUint64(i * 8, d, true)
  return { address: GDT, bytes }
}
const gdt = { base: GDT, limit: descriptors.length * 8 - 1 }

function commandLine(append: string, most = CMDLINE_MAX - 1): Piece {
  const bytes = new TextEncoder().encode(`${append}\0`)
  if (bytes.length - 1 > most) refuse(`command line of ${bytes.length - 1} bytes: at most ${most}`, 'append')
  if (bytes.indexOf(0) !== bytes.length - 1) refuse('command line with a NUL character', 'append')
  return { address: CMDLINE, bytes }
}

/** Highest page-aligned place for the initrd below `limit`. */
function placeInitrd(initrd: Uint8Array, limit: number, floor: number): Piece {
  const address = Math.floor((limit - initrd.length) / 4096) * 4096
  if (address < floor)
    refuse(`${initrd.length} bytes do not fit between the kernel's end at 0x${floor.toString(16)} and 0x${limit.toString(16)}`, 'initrd')
  return { address, bytes: initrd }
}

/** Bytes of the setup sectors; a file that has fewer than its header says is refused. */
function setupBytes(kernel: Uint8Array): number {
  if (kernel.length < 0x268) refuse(`truncated: ${kernel.length} bytes are too short for a bzImage's header`)
  const setup = ((kernel[0x1f1] || 4) + 1) * 512
  const size = new DataView(kernel.buffer, kernel.byteOffset, kernel.length).getUint32(0x1f4, true) * 16
  // syssize counts paragraphs: the last one may be cut short (memtest86+).
  if (setup + size > kernel.length + 15) refuse(`truncated: the header says ${setup + size} bytes, the file has ${kernel.length}`)
  return setup
}

/** What UEFI firmware gets by fw_cfg: it would crash on half a kernel and fall silent about the rest. */
export function checkForUefi({ kernel, initrd, memory }: Pick<KernelOptions, 'kernel' | 'initrd' | 'memory'>): void {
  const kind = detect(kernel)
  if (kind === 'bzImage') setupBytes(kernel)
  else if (kind !== 'unknown') refuse('UEFI firmware starts a bzImage or an EFI application; an ELF kernel starts without firmware')
  if (kernel.length > memory) refuse(`${kernel.length} bytes do not fit the ${memory} bytes of memory`)
  if (initrd && kernel.length + initrd.length > memory)
    refuse(`${initrd.length} bytes do not fit the ${memory} bytes of memory beside the kernel's ${kernel.length}`, 'initrd')
}

function loadBzImage({ kernel, initrd, append = '', memory, cpus }: KernelOptions): LoadedImage {
  const setup = setupBytes(kernel)
  const view = new DataView(kernel.buffer, kernel.byteOffset, kernel.length)
  const version = view.getUint16(0x206, true)
  if (version < 0x20c) refuse(`boot protocol ${version >> 8}.${version & 255}: 2.12 is the oldest that can be entered`)
  // A 64-bit kernel says so in xloadflags; a 32-bit one is entered in flat protected mode ("32-bit boot protocol").
  const long = (view.getUint16(0x236, true) & 1) !== 0
  const address = Number(view.getBigUint64(0x258, true))
  const initSize = view.getUint32(0x260, true)
  const { low } = splitMemory(memory)
  if (address < MIB) refuse(`preferred address 0x${address.toString(16)} lies below 1 MiB`)
  if (address + initSize > low)
    refuse(`needs memory to 0x${(address + initSize).toString(16)}, there are 0x${low.toString(16)} bytes below 4 GiB`)
  const zero = new Uint8Array(4096)
  const params = new DataView(zero.buffer)
  zero.set(kernel.subarray(0x1f1, 0x202 + (kernel[0x201] ?? 0)), 0x1f1)
  zero[0x210] = 0xff
  zero[0x211] = (zero[0x211] ?? 0) | 0x80
  params.setUint16(0x224, 0xfe00, true)
  params.setUint32(0x228, CMDLINE, true)
  params.setBigUint64(0x70, BigInt(ACPI), true)
  // cmdline_size, without the terminating zero; a kernel silently drops what is longer.
  const most = Math.min(CMDLINE_MAX - 1, view.getUint32(0x238, true) || 255)
  const tables = long ? [gdtPiece(), ...pageTables(0n).slice(1)] : [gdtPiece(descriptors32)]
  const pieces: Piece[] = [...tables, commandLine(append, most), { address, bytes: kernel.subarray(setup) }]
  if (!long) params.setUint32(0x214, address, true)
  if (initrd) {
    const limit = Math.min(low, view.getUint32(0x22c, true) + 1)
    const piece = placeInitrd(initrd, limit, address + initSize)
    params.setUint32(0x218, piece.address, true)
    params.setUint32(0x21c, initrd.length, true)
    pieces.push(piece)
  }
  const map = memoryMap(memory)
  zero[0x1e8] = map.length
  for (const [i, r] of map.entries()) {
    params.setBigUint64(0x2d0 + i * 20, BigInt(r.base), true)
    params.setBigUint64(0x2d8 + i * 20, BigInt(r.size), true)
    params.setUint32(0x2e0 + i * 20, r.type, true)
  }
  pieces.push({ address: ZERO_PAGE, bytes: zero }, { address: ACPI, bytes: placeAcpi(cpus, ACPI) })
  const start = { rsp: ZERO_PAGE, rsi: ZERO_PAGE, data: data(0x18), gdt }
  const entry: EntryState = long
    ? { ...start, rip: address + 0x200, cr0: 0x80000011, cr3: 0x1000, cr4: 0x20, efer: 0x500, code: code64(0x10) }
    : { ...start, rip: address, cr0: 0x11, cr3: 0, cr4: 0, efer: 0, code: code32(0x10) }
  return { pieces: arrange(pieces, memory), entry }
}

/** Pieces of the ELF's segments, zero-filled to their memory size, inside RAM below 4 GiB. */
function elfPieces(elf: Elf, memory: number): { pieces: Piece[]; end: number } {
  const { low } = splitMemory(memory)
  let end = 0
  const pieces = elf.segments
    .filter((s) => s.size > 0)
    .map(({ address, bytes, size }) => {
      const inLow = address + size <= EBDA
      if (address + size > low || (address < MIB && !inLow)) {
        refuse(
          `segment 0x${address.toString(16)}-0x${(address + size).toString(16)} does not fit the memory (0x${low.toString(16)} bytes below 4 GiB)`,
        )
      }
      end = Math.max(end, address + size)
      return { address, bytes, size }
    })
  if (pieces.length === 0) refuse('no loadable segment')
  return { pieces, end }
}

function checkEntry(entry: number, elf: Elf, what: string): void {
  if (!elf.segments.some((s) => entry >= s.address && entry < s.address + s.size))
    refuse(`${what} 0x${entry.toString(16)} points outside the kernel's segments`)
}

function loadPvh({ kernel, initrd, append = '', memory, cpus }: KernelOptions): LoadedImage {
  const elf = parseElf(kernel)
  const note = elf.notes.find((n) => n.name === 'Xen' && n.type === 18)
  if (!note) return refuse('ELF without a PVH note (XEN_ELFNOTE_PHYS32_ENTRY)')
  if (note.description.length < 4) refuse(`PVH note of ${note.description.length} bytes: wants 4 or 8`)
  const words = new DataView(note.description.buffer, note.description.byteOffset, note.description.length)
  const rip = words.getUint32(0, true)
  if (words.byteLength >= 8 && words.getUint32(4, true) !== 0) refuse('PVH entry lies above 4 GiB: it is entered in 32-bit mode')
  const { pieces, end } = elfPieces(elf, memory)
  checkEntry(rip, elf, 'PVH entry')
  const map = memoryMap(memory)
  const info = new Uint8Array(0x1000)
  const view = new DataView(info.buffer)
  const at = (address: number): number => address - START_INFO
  view.setUint32(0, 0x336ec578, true)
  view.setUint32(4, 1, true)
  view.setBigUint64(24, BigInt(CMDLINE), true)
  view.setBigUint64(32, BigInt(ACPI), true)
  view.setBigUint64(40, BigInt(MAP), true)
  view.setUint32(48, map.length, true)
  for (const [i, r] of map.entries()) {
    view.setBigUint64(at(MAP) + i * 24, BigInt(r.base), true)
    view.setBigUint64(at(MAP) + i * 24 + 8, BigInt(r.size), true)
    view.setUint32(at(MAP) + i * 24 + 16, r.type, true)
  }
  if (initrd) {
    const piece = placeInitrd(initrd, splitMemory(memory).low, end)
    view.setUint32(12, 1, true)
    view.setBigUint64(16, BigInt(MODULES), true)
    view.setBigUint64(at(MODULES), BigInt(piece.address), true)
    view.setBigUint64(at(MODULES) + 8, BigInt(initrd.length), true)
    pieces.push(piece)
  }
  pieces.push(gdtPiece(), commandLine(append), { address: START_INFO, bytes: info }, { address: ACPI, bytes: placeAcpi(cpus, ACPI) })
  return {
    pieces: arrange(pieces, memory),
    entry: { rip, rsp: ZERO_PAGE, rbx: START_INFO, cr0: 0x11, cr3: 0, cr4: 0, efer: 0, code: code32(8), data: data(0x18), gdt },
  }
}

/** Address fields of the header (3.1.3), which take precedence over ELF; in the same terms as an ELF file's. */
function multibootImage(file: Uint8Array): Elf {
  const header = multibootHeader(file) ?? 0
  const view = new DataView(file.buffer, file.byteOffset, file.length)
  const flags = view.getUint32(header + 4, true)
  if (flags & 0xfff8) refuse(`Multiboot header asks for features 0x${(flags & 0xfff8).toString(16)}, which do not exist`)
  if ((flags & 0x10000) === 0) {
    if (view.getUint32(0, false) !== 0x7f454c46) refuse('Multiboot header without addresses in a file that is no ELF')
    return parseElf(file)
  }
  if (header + 32 > file.length) refuse('truncated: the Multiboot header is cut off')
  const [headerAt, start, end, bssEnd, entry] = [12, 16, 20, 24, 28].map((o) => view.getUint32(header + o, true)) as [
    number,
    number,
    number,
    number,
    number,
  ]
  const hex = (n: number): string => `0x${n.toString(16)}`
  const offset = header - (headerAt - start)
  if (start > headerAt || offset < 0) refuse(`Multiboot header at ${hex(headerAt)}, load address ${hex(start)}: they do not fit the file`)
  if (end !== 0 && end < start) refuse(`Multiboot load address ${hex(start)} lies behind its end ${hex(end)}`)
  const length = end === 0 ? file.length - offset : end - start
  if (offset + length > file.length) refuse(`truncated: the Multiboot header says ${offset + length} bytes, the file has ${file.length}`)
  const size = bssEnd === 0 ? length : bssEnd - start
  if (size < length) refuse(`Multiboot bss end ${hex(bssEnd)} lies before the end of the data`)
  return { entry, bits: 32, segments: [{ address: start, bytes: file.subarray(offset, offset + length), size }], notes: [] }
}

function loadMultiboot({ kernel, initrd, append = '', memory, cpus }: KernelOptions): LoadedImage {
  const elf = multibootImage(kernel)
  const { pieces, end } = elfPieces(elf, memory)
  checkEntry(elf.entry, elf, 'entry')
  const { low } = splitMemory(memory)
  const info = new Uint8Array(0x1000)
  const view = new DataView(info.buffer)
  const at = (address: number): number => address - START_INFO
  // Flags: memory, command line, modules, memory map.
  view.setUint32(0, 1 | 4 | 8 | 0x40, true)
  view.setUint32(4, EBDA / 1024, true)
  view.setUint32(8, (low - MIB) / 1024, true)
  view.setUint32(16, CMDLINE, true)
  if (initrd) {
    const piece = { address: Math.ceil(Math.max(end, MIB) / 4096) * 4096, bytes: initrd }
    if (piece.address + initrd.length > low)
      refuse(`a module of ${initrd.length} bytes does not fit above 0x${piece.address.toString(16)}`, 'initrd')
    view.setUint32(20, 1, true)
    view.setUint32(24, MODULES, true)
    view.setUint32(at(MODULES), piece.address, true)
    view.setUint32(at(MODULES) + 4, piece.address + initrd.length, true)
    view.setUint32(at(MODULES) + 8, CMDLINE, true)
    pieces.push(piece)
  }
  const map = memoryMap(memory)
  view.setUint32(44, map.length * 24, true)
  view.setUint32(48, MAP, true)
  for (const [i, r] of map.entries()) {
    view.setUint32(at(MAP) + i * 24, 20, true)
    view.setBigUint64(at(MAP) + i * 24 + 4, BigInt(r.base), true)
    view.setBigUint64(at(MAP) + i * 24 + 12, BigInt(r.size), true)
    view.setUint32(at(MAP) + i * 24 + 20, r.type, true)
  }
  // The command line begins with the kernel's name, as a boot loader writes it.
  pieces.push(
    ...biosVectors(),
    gdtPiece(),
    commandLine(`kernel ${append}`.trimEnd()),
    { address: START_INFO, bytes: info },
    { address: ACPI, bytes: placeAcpi(cpus, ACPI) },
  )
  return {
    pieces: arrange(pieces, memory),
    entry: {
      rip: elf.entry,
      rsp: ZERO_PAGE,
      rax: 0x2badb002,
      rbx: START_INFO,
      cr0: 0x11,
      cr3: 0,
      cr4: 0,
      efer: 0,
      code: code32(8),
      data: data(0x18),
      gdt,
    },
  }
}

/** In the order of addresses; each in low memory, none on another (segments on each other, or on what the loader itself puts there). */
function arrange(pieces: readonly Piece[], memory: number): Piece[] {
  const sizeOf = ({ bytes, size = bytes.length }: Piece): number => size
  const sorted = [...pieces, resetVector].filter((p) => sizeOf(p) > 0).toSorted((a, b) => a.address - b.address)
  const hex = (n: number): string => `0x${n.toString(16)}`
  const { low } = splitMemory(memory)
  for (const [i, piece] of sorted.entries()) {
    const { address } = piece
    const end = address + sizeOf(piece)
    const next = sorted[i + 1]
    if (end > low) refuse(`what is loaded at ${hex(address)} ends at ${hex(end)}, there are ${hex(low)} bytes below 4 GiB`)
    if (next && end > next.address)
      refuse(
        `what is loaded at ${hex(address)} ends at ${hex(end)}, on what is loaded at ${hex(next.address)} (segments, or tables of the loader)`,
      )
  }
  return sorted.filter((p) => p.bytes.length > 0)
}

/** A kernel ready to be entered. Throws CloisterError('kernel') with the rule that the file breaks. */
export function loadKernel(options: KernelOptions): LoadedImage {
  const { low } = splitMemory(options.memory)
  if (low <= 2 * MIB) refuse(`memory of ${options.memory} bytes is too small to boot a kernel`)
  const kind = detect(options.kernel)
  switch (kind) {
    case 'bzImage':
      return loadBzImage(options)
    case 'elf-pvh':
      return loadPvh(options)
    case 'multiboot':
      return loadMultiboot(options)
    case 'elf':
      // The note may lie where the file is cut off: then that is what is wrong.
      parseElf(options.kernel)
      return refuse('ELF without a PVH note (XEN_ELFNOTE_PHYS32_ENTRY) or Multiboot header')
    case 'gzip':
      return refuse('a gzip file; unpack it first')
    case 'firmware':
      return refuse('a firmware image; use --firmware')
    default:
      return refuse('neither a bzImage, nor ELF with a PVH note, nor Multiboot 1')
  }
}
