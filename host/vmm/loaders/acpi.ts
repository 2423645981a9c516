/**
 * ACPI tables of the board: RSDP, XSDT, FADT, FACS, DSDT, MADT, HPET. (ACPI 6.5, chapters 5 and 19; IA-PC HPET 1.0a, 3.2.4.)
 * The DSDT holds what a kernel needs to power off: \_S5 with SLP_TYP 0, as QEMU's q35 has it. Without firmware they are
 * placed in memory; firmware gets them as QEMU hands them over, through fw_cfg (docs/specs/acpi_bits of QEMU, hw/acpi/bios-linker-loader.c).
 */
import { HPET_BASE, HPET_ID } from '../devices/hpet.ts'

/** Where the board puts its power-management block when no firmware does (ICH9 PMBASE, as SeaBIOS sets it). */
export const PM_BASE = 0x600
/** Where OVMF puts it on an i440FX (OvmfPkg/Include/OvmfPlatforms.h, PIIX4_PMBA_VALUE). */
export const PM_BASE_440 = 0xb000
const LAPIC_BASE = 0xfee00000
const IOAPIC_BASE = 0xfec00000
const SCI = 9

export interface Table {
  name: string
  bytes: Uint8Array
  /** Offsets of pointers to other tables, and their width. */
  pointers: { at: number; size: 4 | 8; to: string }[]
}

function table(signature: string, revision: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(36 + body.length)
  const view = new DataView(bytes.buffer)
  const text = (at: number, s: string): void => bytes.set(new TextEncoder().encode(s), at)
  text(0, signature)
  view.setUint32(4, bytes.length, true)
  bytes[8] = revision
  text(10, 'CLOIST')
  text(16, 'CLOISTER')
  view.setUint32(24, 1, true)
  text(28, 'CLST')
  view.setUint32(32, 1, true)
  bytes.set(body, 36)
  return bytes
}

/** Name (_S5, Package (0x04) { Zero, Zero, Zero, Zero }) (ACPI 20.2.5.4). */
const AML_S5 = [0x08, 0x5f, 0x53, 0x35, 0x5f, 0x12, 0x06, 0x04, 0x00, 0x00, 0x00, 0x00]

function fadt(pmBase: number): Uint8Array {
  const body = new Uint8Array(276 - 36)
  const view = new DataView(body.buffer)
  const at = (offset: number): number => offset - 36
  view.setUint16(at(46), SCI, true)
  view.setUint32(at(56), pmBase, true) // PM1a event block
  view.setUint32(at(64), pmBase + 4, true) // PM1a control block
  view.setUint32(at(76), pmBase + 8, true) // PM timer
  body[at(88)] = 4
  body[at(89)] = 2
  body[at(91)] = 4
  view.setUint16(at(96), 0xfff, true) // no C2
  view.setUint16(at(98), 0xfff, true) // no C3
  body[at(108)] = 0x32 // century in CMOS
  view.setUint16(at(109), 1, true) // legacy devices, no 8042
  // WBINVD, C1, power and sleep button are control methods, reset register, headless
  view.setUint32(at(112), 1 | 4 | 0x10 | 0x20 | 0x400 | 0x1000, true)
  const gas = (offset: number, width: number, address: number): void => {
    body[at(offset)] = 1
    body[at(offset) + 1] = width
    view.setBigUint64(at(offset) + 4, BigInt(address), true)
  }
  gas(116, 8, 0xcf9)
  body[at(128)] = 6
  gas(148, 32, pmBase)
  gas(172, 16, pmBase + 4)
  gas(208, 32, pmBase + 8)
  return table('FACP', 6, body)
}

function madt(cpus: number): Uint8Array {
  const body: number[] = []
  const u32 = (v: number): number[] => [v & 255, (v >>> 8) & 255, (v >>> 16) & 255, v >>> 24]
  body.push(...u32(LAPIC_BASE), ...u32(1))
  for (let i = 0; i < cpus; i++) body.push(0, 8, i, i, ...u32(1))
  body.push(1, 12, 0, 0, ...u32(IOAPIC_BASE), ...u32(0))
  // The SCI is level-triggered, active high.
  body.push(2, 10, 0, SCI, ...u32(SCI), 0x0d, 0)
  body.push(4, 6, 0xff, 0, 0, 1)
  return table('APIC', 4, Uint8Array.from(body))
}

/** Firmware ACPI control structure: no checksum, aligned to 64 (ACPI 5.2.10). */
function facs(): Uint8Array {
  const bytes = new Uint8Array(64)
  bytes.set(new TextEncoder().encode('FACS'))
  new DataView(bytes.buffer).setUint32(4, 64, true)
  bytes[32] = 1
  return bytes
}

function hpet(): Uint8Array {
  const body = new Uint8Array(20)
  const view = new DataView(body.buffer)
  view.setUint32(0, HPET_ID, true)
  view.setUint16(4, 0x4000, true) // memory, 64 bits wide
  view.setBigUint64(8, BigInt(HPET_BASE), true)
  return table('HPET', 1, body)
}

/** Where FACS.firmware_waking_vector lies within FACS. */
export const WAKING_VECTOR = 12

/** All tables with their links; the RSDP first. */
function acpiTables(cpus: number, pmBase = PM_BASE): Table[] {
  const rsdp = new Uint8Array(36)
  rsdp.set(new TextEncoder().encode('RSD PTR '))
  rsdp.set(new TextEncoder().encode('CLOIST'), 9)
  rsdp[15] = 2
  new DataView(rsdp.buffer).setUint32(20, 36, true)
  const dsdt = table('DSDT', 2, Uint8Array.from(AML_S5))
  return [
    { name: 'RSDP', bytes: rsdp, pointers: [{ at: 24, size: 8, to: 'XSDT' }] },
    {
      name: 'XSDT',
      bytes: table('XSDT', 1, new Uint8Array(24)),
      pointers: [
        { at: 36, size: 8, to: 'FACP' },
        { at: 44, size: 8, to: 'APIC' },
        { at: 52, size: 8, to: 'HPET' },
      ],
    },
    {
      name: 'FACP',
      bytes: fadt(pmBase),
      pointers: [
        { at: 36, size: 4, to: 'FACS' },
        { at: 40, size: 4, to: 'DSDT' },
        { at: 140, size: 8, to: 'DSDT' },
      ],
    },
    { name: 'DSDT', bytes: dsdt, pointers: [] },
    { name: 'FACS', bytes: facs(), pointers: [] },
    { name: 'APIC', bytes: madt(cpus), pointers: [] },
    { name: 'HPET', bytes: hpet(), pointers: [] },
  ]
}

const sum = (bytes: Uint8Array): number => bytes.reduce((a, b) => (a + b) & 255, 0)

/** Offsets of tables laid out one after the other, and the size of all. */
function layOut(tables: readonly Table[]): { places: Map<string, number>; size: number } {
  const places = new Map<string, number>()
  let size = 0
  for (const { name, bytes } of tables) {
    places.set(name, size)
    size = (size + bytes.length + 63) & ~63
  }
  return { places, size }
}

function link({ bytes, pointers }: Table, place: (name: string) => number): void {
  const view = new DataView(bytes.buffer)
  for (const { at, size, to } of pointers) {
    if (size === 8) view.setBigUint64(at, BigInt(place(to)), true)
    else view.setUint32(at, place(to), true)
  }
}

/** The tables linked and checksummed, to be placed at `base`; the RSDP is at `base`. */
export function placeAcpi(cpus: number, base: number): Uint8Array {
  const tables = acpiTables(cpus)
  const { places, size } = layOut(tables)
  const out = new Uint8Array(size)
  for (const one of tables) {
    const { name, bytes } = one
    link(one, (to) => base + (places.get(to) ?? 0))
    if (name === 'RSDP') {
      bytes[8] = -sum(bytes.subarray(0, 20)) & 255
      bytes[32] = -sum(bytes) & 255
    } else if (name !== 'FACS') bytes[9] = -sum(bytes) & 255
    out.set(bytes, places.get(name))
  }
  return out
}

/** Address of the FACS among tables placed at `base`. */
export function facsAddress(cpus: number, base: number): number {
  return base + (layOut(acpiTables(cpus)).places.get('FACS') ?? 0)
}

const RSDP_FILE = 'etc/acpi/rsdp'
const TABLES_FILE = 'etc/acpi/tables'
const COMMAND = { ALLOCATE: 1, ADD_POINTER: 2, ADD_CHECKSUM: 3 } as const
const ZONE = { HIGH: 1, FSEG: 2 } as const
const COMMAND_SIZE = 128
const NAME_SIZE = 56

function command(kind: number, files: readonly string[], numbers: readonly number[], last?: number): Uint8Array {
  const bytes = new Uint8Array(COMMAND_SIZE)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, kind, true)
  for (const [i, file] of files.entries()) bytes.set(new TextEncoder().encode(file), 4 + i * NAME_SIZE)
  const at = 4 + files.length * NAME_SIZE
  for (const [i, n] of numbers.entries()) view.setUint32(at + i * 4, n, true)
  if (last !== undefined) bytes[at + numbers.length * 4] = last
  return bytes
}

/** The files by which firmware places, links and checksums the tables itself. */
export function acpiFiles(cpus: number, pmBase: number): { name: string; bytes: Uint8Array }[] {
  const [rsdp, ...tables] = acpiTables(cpus, pmBase) as [Table, ...Table[]]
  const { places, size } = layOut(tables)
  const out = new Uint8Array(size)
  const script = [command(COMMAND.ALLOCATE, [RSDP_FILE], [16], ZONE.FSEG), command(COMMAND.ALLOCATE, [TABLES_FILE], [64], ZONE.HIGH)]
  const place = (name: string): number => places.get(name) ?? 0
  for (const one of tables) {
    const { name, bytes, pointers } = one
    const start = place(name)
    // Pointers hold offsets into the file; firmware adds where it put the file.
    link(one, place)
    out.set(bytes, start)
    for (const { at, size: width } of pointers) script.push(command(COMMAND.ADD_POINTER, [TABLES_FILE, TABLES_FILE], [start + at], width))
  }
  for (const { name, bytes } of tables) {
    const start = place(name)
    if (name !== 'FACS') script.push(command(COMMAND.ADD_CHECKSUM, [TABLES_FILE], [start + 9, start, bytes.length]))
  }
  link(rsdp, place)
  for (const { at, size: width } of rsdp.pointers) script.push(command(COMMAND.ADD_POINTER, [RSDP_FILE, TABLES_FILE], [at], width))
  script.push(command(COMMAND.ADD_CHECKSUM, [RSDP_FILE], [8, 0, 20]), command(COMMAND.ADD_CHECKSUM, [RSDP_FILE], [32, 0, 36]))
  const loader = new Uint8Array(script.length * COMMAND_SIZE)
  for (const [i, bytes] of script.entries()) loader.set(bytes, i * COMMAND_SIZE)
  return [
    { name: RSDP_FILE, bytes: rsdp.bytes },
    { name: TABLES_FILE, bytes: out },
    { name: 'etc/table-loader', bytes: loader },
  ]
}
