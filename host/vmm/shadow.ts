/**
 * RAM under the firmware's ROM: 0xC0000-0xFFFFF in thirteen areas, for each of which the host bridge's attribute registers say
 * whether reads and whether writes go to DRAM or to PCI (PAM0-PAM6: Intel 440FX datasheet 3.2 at 0x59,
 * 3 Series datasheet 5.1 at 0x90). On PCI is the last part of the firmware below 1 MiB, and otherwise nothing. What a memory slot
 * can do is a slot; the rest (writes to what reads as ROM, reads of nothing) arrives here as MMIO. Owns which slots lie there.
 */
import type { MmioDevice } from './bus.ts'
import type { HostMemory, RamRange } from './memory.ts'

export const SHADOW = 0xc0000
export const SHADOW_END = 0x100000
/** Registers as a BIOS leaves them: everything is RAM. */
export const ALL_RAM = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33] as const

const READ = 1
const WRITE = 2
const AREA = 0x4000
/** The segment 0xF0000-0xFFFFF is one area, in the high half of PAM0. */
const F_SEGMENT = 0xf0000

export interface ShadowOptions {
  ram: HostMemory
  /** The firmware's image, whose last `length` bytes end at 1 MiB; null: no ROM. */
  rom: { image: HostMemory; length: number } | null
  /** Userspace may make slots read-only; without it a ROM is RAM that nobody protects. */
  readOnlySlots: boolean
  map: (range: RamRange) => void
  unmap: (range: RamRange) => void
}

const same = (a: RamRange, b: RamRange): boolean =>
  a.guest === b.guest && a.size === b.size && a.memory === b.memory && a.readOnly === b.readOnly

export class ShadowMemory implements MmioDevice {
  readonly #options: ShadowOptions
  readonly #registers = new Uint8Array(7)
  #mapped: RamRange[] = []

  constructor(options: ShadowOptions) {
    this.#options = options
  }

  /** Where reads and writes of an address go. */
  #attribute(address: number): number {
    if (address >= F_SEGMENT) return ((this.#registers[0] as number) >> 4) & 3
    const area = Math.floor((address - SHADOW) / AREA)
    return ((this.#registers[1 + (area >> 1)] as number) >> (area & 1 ? 4 : 0)) & 3
  }

  get #romStart(): number {
    return SHADOW_END - (this.#options.rom?.length ?? 0)
  }

  /** The part of an area that a slot can serve. */
  #range(guest: number, end: number): RamRange | null {
    const { ram, rom, readOnlySlots } = this.#options
    const attribute = this.#attribute(guest)
    if (attribute & READ) {
      const readOnly = (attribute & WRITE) === 0
      if (readOnly && !readOnlySlots) return null
      return { guest, size: end - guest, memory: ram, offset: guest, readOnly }
    }
    const from = Math.max(guest, this.#romStart)
    if (!rom || from >= end || (attribute & WRITE && !readOnlySlots)) return null
    return { guest: from, size: end - from, memory: rom.image, offset: rom.image.length - (SHADOW_END - from), readOnly: readOnlySlots }
  }

  /** The guest wrote the registers: slots that are no longer right go, and what is missing comes. */
  set(registers: ArrayLike<number>): void {
    this.#registers.set(registers)
    const wanted: RamRange[] = []
    for (let guest = SHADOW; guest < SHADOW_END; ) {
      const end = guest >= F_SEGMENT ? SHADOW_END : guest + AREA
      const range = this.#range(guest, end)
      const last = wanted.at(-1)
      if (range && last && last.guest + last.size === range.guest && last.memory === range.memory && last.readOnly === range.readOnly)
        last.size += range.size
      else if (range) wanted.push(range)
      guest = end
    }
    const { map, unmap } = this.#options
    const kept = this.#mapped.filter((old) => wanted.some((range) => same(old, range)))
    for (const old of this.#mapped) if (!kept.includes(old)) unmap(old)
    this.#mapped = wanted.map((range) => kept.find((old) => same(old, range)) ?? range)
    for (const range of this.#mapped) if (!kept.includes(range)) map(range)
  }

  readMmio(offset: number, data: Uint8Array): void {
    const { ram, rom } = this.#options
    const address = SHADOW + offset
    if (this.#attribute(address) & READ) data.set(ram.read(address, data.length))
    else if (rom && address >= this.#romStart) data.set(rom.image.read(rom.image.length - (SHADOW_END - address), data.length))
    else data.fill(0xff)
  }

  writeMmio(offset: number, data: Uint8Array): void {
    if (this.#attribute(SHADOW + offset) & WRITE) this.#options.ram.write(SHADOW + offset, data.slice())
  }
}
