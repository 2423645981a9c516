/**
 * The machine's address space: which guest-physical ranges are RAM, and access to them through the host's view (in an
 * encrypted guest that is ciphertext). RAM below 4 GiB ends where q35 puts its PCI hole; the rest follows at 4 GiB.
 */
import type { GuestMemory } from './devices/fw-cfg.ts'

const MiB = 1024 * 1024
const FOUR_GIB = 0x100000000
/** q35: with more than 2.75 GiB the low part is cut to 2 GiB, so that the hole is aligned (QEMU hw/i386/pc_q35.c). */
const LOW_LIMIT = 0xb0000000
const LOW_CUT = 0x80000000

export interface HostMemory {
  readonly address: bigint
  readonly length: number
  read(offset: number, n: number): Uint8Array
  write(offset: number, bytes: Uint8Array): void
}

export interface RamRange {
  guest: number
  size: number
  memory: HostMemory
  offset: number
  /** The guest cannot write: writes exit as MMIO and are dropped. */
  readOnly: boolean
}

export interface E820Entry {
  base: number
  size: number
  type: number
}

/** Sizes of RAM below and above 4 GiB. */
export function splitMemory(memory: number): { low: number; high: number } {
  if (memory < LOW_LIMIT) return { low: memory, high: 0 }
  return { low: LOW_CUT, high: memory - LOW_CUT }
}

export class AddressSpace implements GuestMemory {
  readonly ranges: RamRange[] = []

  add(range: RamRange): void {
    this.ranges.push(range)
  }

  remove(range: RamRange): void {
    this.ranges.splice(this.ranges.indexOf(range), 1)
  }

  #walk(address: number, length: number, each: (range: RamRange, offset: number, done: number, n: number) => void): boolean {
    let done = 0
    while (done < length) {
      const at = address + done
      const range = this.ranges.find((r) => at >= r.guest && at < r.guest + r.size)
      if (!range) return false
      const n = Math.min(length - done, range.guest + range.size - at)
      each(range, range.offset + at - range.guest, done, n)
      done += n
    }
    return true
  }

  read(address: number, bytes: Uint8Array): boolean {
    return this.#walk(address, bytes.length, (range, offset, done, n) => bytes.set(range.memory.read(offset, n), done))
  }

  write(address: number, bytes: Uint8Array): boolean {
    return this.#walk(address, bytes.length, (range, offset, done, n) => {
      if (!range.readOnly) range.memory.write(offset, bytes.subarray(done, done + n))
    })
  }

  /** Host address of a guest range that lies in one piece, for LAUNCH_UPDATE_DATA. */
  hostAddress(guest: number, length: number): bigint {
    const range = this.ranges.find((r) => guest >= r.guest && guest + length <= r.guest + r.size)
    if (!range) throw new RangeError(`no RAM at 0x${guest.toString(16)}`)
    return range.memory.address + BigInt(range.offset + guest - range.guest)
  }
}

/** Contents of etc/e820: RAM only, as QEMU gives it (the firmware knows the rest). */
export function e820File(memory: number): Uint8Array {
  const { low, high } = splitMemory(memory)
  const entries: E820Entry[] = [{ base: 0, size: low, type: 1 }]
  if (high) entries.push({ base: FOUR_GIB, size: high, type: 1 })
  const out = new Uint8Array(entries.length * 20)
  const view = new DataView(out.buffer)
  for (const [i, e] of entries.entries()) {
    view.setBigUint64(i * 20, BigInt(e.base), true)
    view.setBigUint64(i * 20 + 8, BigInt(e.size), true)
    view.setUint32(i * 20 + 16, e.type, true)
  }
  return out
}

export { FOUR_GIB, MiB }
