/**
 * Port and MMIO dispatch by table. A port belongs to one device; nothing there reads as all ones and swallows writes,
 * as on a PC. Devices that know bytes only have wider accesses split, lowest port first.
 */

export interface PortDevice {
  /** Value of `size` bytes (1, 2 or 4) at `port`, as an unsigned number. */
  readPort(port: number, size: number): number
  writePort(port: number, size: number, value: number): void
}

export interface MmioDevice {
  /** Little-endian bytes at `offset` from the start of the region are written into `data`. */
  readMmio(offset: number, data: Uint8Array): void
  writeMmio(offset: number, data: Uint8Array): void
}

interface Region {
  base: number
  end: number
  device: MmioDevice
}

const absent: PortDevice = {
  readPort: (_port, size) => (size === 1 ? 0xff : size === 2 ? 0xffff : 0xffffffff),
  writePort: () => {},
}

export class Bus {
  readonly #owner = new Uint8Array(0x10000)
  readonly #devices: PortDevice[] = [absent]
  readonly #bytewise: boolean[] = [false]
  readonly #regions: Region[] = []

  /** Gives `count` ports from `first` to a device; `bytewise`: it implements accesses of one byte only. */
  addPorts(device: PortDevice, first: number, count: number, bytewise = false): void {
    let index = this.#devices.indexOf(device)
    if (index < 0) {
      index = this.#devices.push(device) - 1
      this.#bytewise.push(bytewise)
    }
    this.#owner.fill(index, first, first + count)
  }

  removePorts(first: number, count: number): void {
    this.#owner.fill(0, first, first + count)
  }

  /** Maps a device at guest-physical addresses [base, base + length), below 2^53. */
  addMmio(device: MmioDevice, base: number, length: number): void {
    this.#regions.push({ base, end: base + length, device })
  }

  removeMmio(device: MmioDevice): void {
    const index = this.#regions.findIndex((r) => r.device === device)
    if (index >= 0) this.#regions.splice(index, 1)
  }

  readPort(port: number, size: number): number {
    const index = this.#owner[port] as number
    if (size === 1 || !this.#bytewise[index]) return (this.#devices[index] as PortDevice).readPort(port, size)
    let value = 0
    for (let i = 0; i < size; i++) value |= this.readPort((port + i) & 0xffff, 1) << (8 * i)
    return value >>> 0
  }

  writePort(port: number, size: number, value: number): void {
    const index = this.#owner[port] as number
    if (size === 1 || !this.#bytewise[index]) {
      ;(this.#devices[index] as PortDevice).writePort(port, size, value)
      return
    }
    for (let i = 0; i < size; i++) this.writePort((port + i) & 0xffff, 1, (value >>> (8 * i)) & 0xff)
  }

  #find(address: number): Region | undefined {
    for (const region of this.#regions) if (address >= region.base && address < region.end) return region
    return undefined
  }

  /** False when nothing is there (the bytes then read as ones). */
  readMmio(address: number, data: Uint8Array): boolean {
    const region = this.#find(address)
    if (!region) {
      data.fill(0xff)
      return false
    }
    region.device.readMmio(address - region.base, data)
    return true
  }

  writeMmio(address: number, data: Uint8Array): boolean {
    const region = this.#find(address)
    region?.device.writeMmio(address - region.base, data)
    return region !== undefined
  }
}
