/**
 * A machine's memory: RAM and flash as slots of its VM, where the host sees them, and which ranges an encrypted launch measures.
 */
import { CloisterError } from '../errors.ts'
import type { Kvm, Vm } from '../index.ts'
import type { LoadedImage } from './loaders/flat.ts'
import type { Firmware } from './loaders/ovmf.ts'
import { AddressSpace, FOUR_GIB, type HostMemory, type RamRange, splitMemory } from './memory.ts'
import type { LaunchRange } from './sev-launch.ts'
import { ALL_RAM, SHADOW_END, ShadowMemory } from './shadow.ts'

const PAGE = 4096
const KVM_MEM_READONLY = 2
/** Last part of the firmware that also appears below 1 MiB (QEMU's isa-bios). */
const ALIAS = 0x20000

/** Shadow RAM as the chipset has it after reset. */
const NO_PAM = [0, 0, 0, 0, 0, 0, 0] as const

export class MemoryMap {
  readonly space = new AddressSpace()
  /** What an encrypted launch measures, in order. */
  readonly regions: LaunchRange[] = []
  /** The firmware's flash chip, null without firmware. */
  readonly flash: HostMemory | null
  /** 0xc0000 to 1 MiB, where the chipset chooses between RAM and ROM. */
  readonly shadow: ShadowMemory
  /** The chipset's registers for it (PAM0 to PAM6) at the start. */
  readonly pam: readonly number[]
  readonly #kvm: Kvm
  readonly #vm: Vm
  /** Slot numbers by what they map; a hole can be taken again. */
  readonly #slots: (RamRange | null)[] = []

  /** `readOnlySlots`: a ROM is a read-only slot. */
  constructor(kvm: Kvm, vm: Vm, length: number, firmware: Firmware | null, readOnlySlots: boolean) {
    this.#kvm = kvm
    this.#vm = vm
    const ram = this.#allocate(length)
    const { low, high } = splitMemory(length)
    const map = (guest: number, size: number, memory: HostMemory, offset: number, readOnly: boolean): void =>
      this.#map({ guest, size, memory, offset, readOnly })
    map(0, Math.min(low, 0xa0000), ram, 0, false)
    map(SHADOW_END, low - SHADOW_END, ram, SHADOW_END, false)
    map(FOUR_GIB, high, ram, low, false)
    const flash = firmware ? this.#allocate(firmware.image.length) : null
    this.flash = flash
    this.shadow = new ShadowMemory({
      ram,
      rom: flash && { image: flash, length: Math.min(ALIAS, flash.length) },
      readOnlySlots,
      map: (range) => this.#map(range),
      unmap: (range) => this.#unmap(range),
    })
    this.pam = firmware ? NO_PAM : ALL_RAM
    this.shadow.set(this.pam)
    if (!firmware || !flash) return
    flash.write(0, firmware.image)
    map(firmware.base, firmware.image.length, flash, 0, readOnlySlots)
    this.regions.push({ name: 'firmware', guest: firmware.base, address: flash.address, length: firmware.image.length })
  }

  #allocate(length: number): HostMemory {
    try {
      return this.#kvm.mmap(-1, length)
    } catch {
      throw new CloisterError('memory', `memory: ${length} bytes do not fit the emulator's 4 GiB`)
    }
  }

  #map(range: RamRange): void {
    const { guest, size, memory, offset, readOnly } = range
    if (size === 0) return
    const free = this.#slots.indexOf(null)
    const slot = free < 0 ? this.#slots.length : free
    this.#slots[slot] = range
    this.#vm.setUserMemoryRegion({
      slot,
      flags: readOnly ? KVM_MEM_READONLY : 0,
      guestPhysAddr: BigInt(guest),
      memorySize: BigInt(size),
      userspaceAddr: memory.address + BigInt(offset),
    })
    this.space.add(range)
  }

  #unmap(range: RamRange): void {
    const slot = this.#slots.indexOf(range)
    this.#slots[slot] = null
    this.#vm.setUserMemoryRegion({ slot, flags: 0, guestPhysAddr: BigInt(range.guest), memorySize: 0n, userspaceAddr: 0n })
    this.space.remove(range)
  }

  /** Writes an image into RAM; its pages are what an encrypted launch measures. */
  place(pieces: LoadedImage['pieces']): void {
    const pages = new Set<number>()
    for (const { address, bytes } of pieces) {
      this.space.write(address, bytes)
      for (let page = Math.floor(address / PAGE); page * PAGE < address + bytes.length; page++) pages.add(page)
    }
    const ranges: { from: number; to: number }[] = []
    for (const page of [...pages].toSorted((a, b) => a - b)) {
      const last = ranges.at(-1)
      // Low RAM is several slots, cut at 1 MiB.
      if (last && last.to === page && page * PAGE !== SHADOW_END) last.to++
      else ranges.push({ from: page, to: page + 1 })
    }
    for (const { from, to } of ranges) {
      const length = (to - from) * PAGE
      this.regions.push({ name: 'image', guest: from * PAGE, address: this.space.hostAddress(from * PAGE, length), length })
    }
  }
}

/** A range page by page. */
export function pagesOf(range: LaunchRange): LaunchRange[] {
  return Array.from({ length: range.length / PAGE }, (_, i) => ({
    ...range,
    guest: range.guest + i * PAGE,
    address: range.address + BigInt(i * PAGE),
    length: PAGE,
  }))
}
