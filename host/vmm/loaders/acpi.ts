/**
 * ACPI tables of the board: RSDP, XSDT, FADT, DSDT, MADT. (ACPI 6.5, chapters 5 and 19.) The DSDT holds what a kernel
 * needs to power off: \_S5 with SLP_TYP 0, as QEMU's q35 has it.
 */
/** Where the board puts its power-management block when no firmware does (ICH9 PMBASE, as SeaBIOS sets it). */
export const PM_BASE = 0x600
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

function fadt(): Uint8Array {
  const body = new Uint8Array(276 - 36)
  const view = new DataView(body.buffer)
  const at = (offset: number): number => offset - 36
  view.setUint16(at(46), SCI, true)
  view.setUint32(at(56), PM_BASE, true) // PM1a event block
  view.setUint32(at(64), PM_BASE + 4, true) // PM1a control block
  view.setUint32(at(76), PM_BASE + 8, true) // PM timer
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
  gas(148, 32, PM_BASE)
  gas(172, 16, PM_BASE + 4)
  gas(208, 32, PM_BASE + 8)
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

/** All tables with their links; the RSDP first. */
export function acpiTables(cpus: number): Table[] {
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
      bytes: table('XSDT', 1, new Uint8Array(16)),
      pointers: [
        { at: 36, size: 8, to: 'FACP' },
        { at: 44, size: 8, to: 'APIC' },
      ],
    },
    {
      name: 'FACP',
      bytes: fadt(),
      pointers: [
        { at: 40, size: 4, to: 'DSDT' },
        { at: 140, size: 8, to: 'DSDT' },
      ],
    },
    { name: 'DSDT', bytes: dsdt, pointers: [] },
    { name: 'APIC', bytes: madt(cpus), pointers: [] },
  ]
}

const sum = (bytes: Uint8Array): number => bytes.reduce((a, b) => (a + b) & 255, 0)

/** The tables linked and checksummed, to be placed at `base`; the RSDP is at `base`. */
export function placeAcpi(cpus: number, base: number): Uint8Array {
  const tables = acpiTables(cpus)
  const places = new Map<string, number>()
  let size = 0
  for (const { name, bytes } of tables) {
    places.set(name, size)
    size = (size + bytes.length + 15) & ~15
  }
  const out = new Uint8Array(size)
  for (const { name, bytes, pointers } of tables) {
    const view = new DataView(bytes.buffer)
    for (const { at, size: width, to } of pointers) {
      const target = base + (places.get(to) ?? 0)
      if (width === 8) view.setBigUint64(at, BigInt(target), true)
      else view.setUint32(at, target, true)
    }
    if (name === 'RSDP') {
      bytes[8] = -sum(bytes.subarray(0, 20)) & 255
      bytes[32] = -sum(bytes) & 255
    } else bytes[9] = -sum(bytes) & 255
    out.set(bytes, places.get(name))
  }
  return out
}
