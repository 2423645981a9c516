/**
 * PCI configuration space of a q35 or i440FX machine: mechanism 1 at 0xcf8/0xcfc (PCI 3.0, 3.2.2.3.2) and the memory-mapped one
 * (PCI Express base 7.2.2) where register PCIEXBAR of the host bridge puts it. Bus 0 holds the host bridge and the LPC
 * bridge; firmware tells the chipset by the host bridge's device id.
 */
import type { Bus, MmioDevice, PortDevice } from '../bus.ts'

/** One function: its configuration bytes and which bits of them are writable. */
class PciFunction {
  readonly config = new Uint8Array(4096)
  readonly writable = new Uint8Array(4096)
  /** Called after configuration bytes [offset, offset + size) were written. */
  onWrite: (offset: number, size: number) => void = () => {}

  constructor(vendor: number, device: number, classCode: number, revision: number) {
    this.put(0x00, 2, vendor)
    this.put(0x02, 2, device)
    this.put(0x08, 4, ((classCode << 8) | revision) >>> 0)
    this.put(0x2c, 4, 0x11001af4) // QEMU's subsystem id, which guest drivers know
    this.allow(0x04, 2, 0x0547) // I/O, memory, bus master, parity, SERR, INTx off
    this.allow(0x3c, 1, 0xff)
  }

  put(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) this.config[offset + i] = (value >>> (8 * i)) & 0xff
  }

  get(offset: number, size: number): number {
    let value = 0
    for (let i = 0; i < size; i++) value |= (this.config[offset + i] as number) << (8 * i)
    return value >>> 0
  }

  allow(offset: number, size: number, mask: number): void {
    for (let i = 0; i < size; i++) this.writable[offset + i] = (mask >>> (8 * i)) & 0xff
  }

  write(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) {
      const mask = this.writable[offset + i] as number
      this.config[offset + i] = ((this.config[offset + i] as number) & ~mask) | ((value >>> (8 * i)) & mask)
    }
    this.onWrite(offset, size)
  }
}

export class PciBus implements PortDevice {
  readonly #functions = new Map<number, PciFunction>()
  #address = 0

  add(device: number, fn: number, what: PciFunction): void {
    this.#functions.set((device << 3) | fn, what)
  }

  /** `devfn` with the bus number above it (bits 15:8). */
  readConfig(devfn: number, offset: number, size: number): number {
    const found = this.#functions.get(devfn)
    if (!found) return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffffffff
    return found.get(offset, size)
  }

  writeConfig(devfn: number, offset: number, size: number, value: number): void {
    this.#functions.get(devfn)?.write(offset, size, value)
  }

  readPort(port: number, size: number): number {
    if (port < 0xcfc) return port === 0xcf8 && size === 4 ? this.#address >>> 0 : size === 1 ? 0xff : 0xffff
    if (this.#address >= 0) return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffffffff // enable bit clear
    return this.readConfig((this.#address >>> 8) & 0xffff, (this.#address & 0xfc) | (port & 3), size)
  }

  writePort(port: number, size: number, value: number): void {
    if (port < 0xcfc) {
      if (port === 0xcf8 && size === 4) this.#address = value | 0
      return
    }
    if (this.#address >= 0) return
    this.writeConfig((this.#address >>> 8) & 0xffff, (this.#address & 0xfc) | (port & 3), size, value)
  }
}

/** The memory-mapped window: 1 MiB per bus, 32 KiB per device, 4 KiB per function. */
class ConfigWindow implements MmioDevice {
  readonly #pci: PciBus

  constructor(pci: PciBus) {
    this.#pci = pci
  }

  readMmio(offset: number, data: Uint8Array): void {
    const size = data.length > 4 ? 4 : data.length
    for (let at = 0; at < data.length; at += size) {
      const value = this.#pci.readConfig(((offset + at) >>> 12) & 0xffff, (offset + at) & 0xfff, size)
      for (let i = 0; i < size; i++) data[at + i] = (value >>> (8 * i)) & 0xff
    }
  }

  writeMmio(offset: number, data: Uint8Array): void {
    const size = data.length > 4 ? 4 : data.length
    for (let at = 0; at < data.length; at += size) {
      let value = 0
      for (let i = 0; i < size; i++) value |= (data[at + i] as number) << (8 * i)
      this.#pci.writeConfig(((offset + at) >>> 12) & 0xffff, (offset + at) & 0xfff, size, value >>> 0)
    }
  }
}

const PCIEXBAR = 0x60 // MCH, Intel 3 Series datasheet 5.1.16

/** The seven attribute registers of 0xC0000-0xFFFFF (82441FX: 0x59, 82G33: 0x90); `onShadow` hears what they hold. */
function attributeMap(
  bridge: PciFunction,
  at: number,
  initial: readonly number[],
  onShadow: (registers: Uint8Array) => void,
): PciFunction['onWrite'] {
  for (let i = 0; i < 7; i++) {
    bridge.put(at + i, 1, initial[i] ?? 0)
    bridge.allow(at + i, 1, i === 0 ? 0x30 : 0x33)
  }
  return (offset, size) => {
    if (offset < at + 7 && offset + size > at) onShadow(bridge.config.subarray(at, at + 7))
  }
}

/** What the chipset decides about 0xC0000-0xFFFFF. */
export interface Shadowing {
  /** PAM0-PAM6 at reset; none: zeros. */
  initial: readonly number[]
  onShadow: (registers: Uint8Array) => void
}
const noShadowing: Shadowing = { initial: [], onShadow: () => {} }

/** 82G33 host bridge (device 0x29c0); moving PCIEXBAR moves the window on the bus. */
export function createHostBridge(pci: PciBus, bus: Bus, { initial, onShadow }: Shadowing = noShadowing): PciFunction {
  const mch = new PciFunction(0x8086, 0x29c0, 0x060000, 2)
  const window = new ConfigWindow(pci)
  mch.allow(PCIEXBAR, 8, 0xf0000007)
  mch.allow(PCIEXBAR + 4, 4, 0xf)
  const shadow = attributeMap(mch, 0x90, initial, onShadow)
  mch.put(0x9d, 1, 0x02) // SMRAM: closed, compatible segment
  mch.allow(0x9d, 1, 0x78)
  mch.onWrite = (offset, size) => {
    shadow(offset, size)
    if (offset + size <= PCIEXBAR || offset >= PCIEXBAR + 8) return
    bus.removeMmio(window)
    const low = mch.get(PCIEXBAR, 4)
    if ((low & 1) === 0) return
    const length = (256 >> ((low >> 1) & 3)) * 0x100000
    bus.addMmio(window, mch.get(PCIEXBAR + 4, 4) * 0x100000000 + ((low & 0xf0000000) >>> 0), length)
  }
  pci.add(0, 0, mch)
  return mch
}

const PMBASE = 0x40 // LPC, Intel ICH9 datasheet 13.1.13
const ACPI_CNTL = 0x44

/** ICH9 LPC bridge (device 0x2918) at 00:1f.0; `onPowerBase` hears where the ACPI block is, null = off. */
export function createLpcBridge(pci: PciBus, onPowerBase: (base: number | null) => void): PciFunction {
  const lpc = new PciFunction(0x8086, 0x2918, 0x060100, 2)
  lpc.put(0x04, 2, 0x0007)
  lpc.put(PMBASE, 4, 1)
  lpc.allow(PMBASE, 4, 0xff80)
  lpc.allow(ACPI_CNTL, 1, 0x87)
  for (const offset of [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b]) {
    lpc.put(offset, 1, 0x80)
    lpc.allow(offset, 1, 0x8f)
  }
  lpc.allow(0xf0, 4, 0xffffc001) // RCBA
  lpc.onWrite = (offset, size) => {
    if (offset + size <= PMBASE || offset > ACPI_CNTL) return
    onPowerBase(lpc.get(ACPI_CNTL, 1) & 0x80 ? lpc.get(PMBASE, 2) & 0xff80 : null)
  }
  pci.add(0x1f, 0, lpc)
  return lpc
}

/** 82441FX host bridge (device 0x1237) at 00:00.0: no memory-mapped configuration space. Intel 440FX datasheet 3.2. */
export function createHostBridge440(pci: PciBus, { initial, onShadow }: Shadowing = noShadowing): PciFunction {
  const pmc = new PciFunction(0x8086, 0x1237, 0x060000, 2)
  pmc.onWrite = attributeMap(pmc, 0x59, initial, onShadow)
  pmc.put(0x72, 1, 0x02) // SMRAM: closed, compatible segment
  pmc.allow(0x72, 1, 0x78)
  pci.add(0, 0, pmc)
  return pmc
}

const PMREGMISC = 0x80 // PIIX4, Intel 82371AB datasheet 7.1.19

/** PIIX3 ISA bridge (device 0x7000) at 00:01.0 and PIIX4 power management (device 0x7113) at 00:01.3, as QEMU's "pc" has them. */
export function createIsaBridge440(pci: PciBus, onPowerBase: (base: number | null) => void): PciFunction {
  const isa = new PciFunction(0x8086, 0x7000, 0x060100, 0)
  isa.put(0x04, 2, 0x0007)
  isa.put(0x0e, 1, 0x80) // multi-function
  for (let i = 0x60; i < 0x64; i++) {
    isa.put(i, 1, 0x80)
    isa.allow(i, 1, 0x8f)
  }
  pci.add(1, 0, isa)
  const power = new PciFunction(0x8086, 0x7113, 0x068000, 3)
  power.put(0x3d, 1, 1)
  power.put(0x5b, 1, 0x02) // DEVACTB.APMC_EN: as for the q35's SMI_EN, no SMM to set up
  power.put(PMBASE, 4, 1)
  power.allow(PMBASE, 4, 0xffc0)
  power.allow(PMREGMISC, 1, 1)
  power.onWrite = (offset, size) => {
    if (offset + size <= PMBASE || offset > PMREGMISC) return
    onPowerBase(power.get(PMREGMISC, 1) & 1 ? power.get(PMBASE, 2) & 0xffc0 : null)
  }
  pci.add(1, 3, power)
  return isa
}
