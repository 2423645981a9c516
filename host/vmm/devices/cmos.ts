/**
 * MC146818 real-time clock with its battery-backed RAM at ports 0x70/0x71. Time is a fixed epoch plus virtual time, so
 * that runs repeat. Alarm and periodic interrupts are not modelled: nothing in firmware waits for them.
 * Memory sizes in the RAM follow QEMU's PC machines, which is where OVMF looks.
 */
import type { PortDevice } from '../bus.ts'

const MiB = 1024 * 1024

const bcd = (value: number): number => Math.floor(value / 10) * 16 + (value % 10)

export interface CmosOptions {
  /** Seconds since 1970 at virtual time 0. */
  epoch: number
  /** Virtual time in nanoseconds. */
  now: () => number
  lowMemory: number
  highMemory: number
  cpus: number
}

export class Cmos implements PortDevice {
  readonly #ram = new Uint8Array(128)
  readonly #options: CmosOptions
  #index = 0
  /** Seconds that the guest moved the clock by. */
  #offset = 0

  constructor(options: CmosOptions) {
    this.#options = options
    const ram = this.#ram
    const put16 = (index: number, value: number): void => {
      ram[index] = value & 0xff
      ram[index + 1] = (value >> 8) & 0xff
    }
    ram[0x0a] = 0x26
    ram[0x0b] = 0x02
    ram[0x0d] = 0x80
    put16(0x15, 640)
    const extended = Math.min(Math.max(options.lowMemory - MiB, 0) / 1024, 0xffff)
    put16(0x17, extended)
    put16(0x30, extended)
    put16(0x34, Math.max(options.lowMemory - 16 * MiB, 0) / 65536)
    const high = Math.floor(options.highMemory / 65536)
    put16(0x5b, high & 0xffff)
    ram[0x5d] = high >> 16
    ram[0x5f] = options.cpus - 1
  }

  readPort(port: number, _size: number): number {
    if ((port & 1) === 0) return 0xff
    const index = this.#index
    if (index <= 9 || index === 0x32) return this.#clock(index)
    if (index === 0x0a) return (this.#ram[0x0a] as number) & 0x7f
    if (index === 0x0c) return 0
    return this.#ram[index] as number
  }

  writePort(port: number, _size: number, value: number): void {
    if ((port & 1) === 0) {
      this.#index = value & 0x7f
      return
    }
    const index = this.#index
    if (index <= 9 || index === 0x32) this.#setClock(index, value)
    else if (index !== 0x0c && index !== 0x0d) this.#ram[index] = value
  }

  #date(): Date {
    return new Date((this.#options.epoch + this.#offset) * 1000 + Math.floor(this.#options.now() / 1e6))
  }

  /** Register B: bit 2 = binary, bit 1 = 24 hours. */
  #clock(index: number): number {
    const date = this.#date()
    const b = this.#ram[0x0b] as number
    const code = b & 4 ? (n: number): number => n : bcd
    switch (index) {
      case 0:
        return code(date.getUTCSeconds())
      case 2:
        return code(date.getUTCMinutes())
      case 4: {
        const hours = date.getUTCHours()
        if (b & 2) return code(hours)
        return code(hours % 12 || 12) | (hours >= 12 ? 0x80 : 0)
      }
      case 6:
        return code(date.getUTCDay() + 1)
      case 7:
        return code(date.getUTCDate())
      case 8:
        return code(date.getUTCMonth() + 1)
      case 9:
        return code(date.getUTCFullYear() % 100)
      case 0x32:
        return code(Math.floor(date.getUTCFullYear() / 100))
      default:
        return this.#ram[index] as number // alarm registers
    }
  }

  #setClock(index: number, value: number): void {
    const b = this.#ram[0x0b] as number
    const n = b & 4 ? value : (value >> 4) * 10 + (value & 15)
    const before = this.#date()
    const date = new Date(before)
    switch (index) {
      case 0:
        date.setUTCSeconds(n)
        break
      case 2:
        date.setUTCMinutes(n)
        break
      case 4:
        date.setUTCHours(b & 2 ? n : ((b & 4 ? value & 0x7f : ((value & 0x70) >> 4) * 10 + (value & 15)) % 12) + (value & 0x80 ? 12 : 0))
        break
      case 7:
        date.setUTCDate(n)
        break
      case 8:
        date.setUTCMonth(n - 1)
        break
      case 9:
        date.setUTCFullYear(Math.floor(date.getUTCFullYear() / 100) * 100 + n)
        break
      case 0x32:
        date.setUTCFullYear(n * 100 + (date.getUTCFullYear() % 100))
        break
      default:
        this.#ram[index] = value
        return
    }
    this.#offset += Math.round((date.getTime() - before.getTime()) / 1000)
  }
}
