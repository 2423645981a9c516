/**
 * MC146818 real-time clock with its battery-backed RAM at ports 0x70/0x71. Time is a fixed epoch plus virtual time, so
 * that runs repeat. Periodic, alarm and update-ended interrupts (data sheet, "Interrupts") drive IRQ 8; what is due next is a
 * deadline. The update-in-progress bit is up for the last 244 us of a second.
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
  irq: (level: boolean) => void
  /** The alarm went off: it also wakes the machine from S3. */
  onAlarm: () => void
}

// Register A: divider and rate; B: interrupt enables; C: flags, cleared by reading.
const UIP = 0x80
const PERIODIC = 0x40
const ALARM = 0x20
const UPDATE = 0x10
const IRQF = 0x80
const HALT = 0x80 // SET, in register B
const SECOND = 1e9
const UPDATE_TIME = 244_000

export class Cmos implements PortDevice {
  readonly #ram = new Uint8Array(128)
  readonly #options: CmosOptions
  #index = 0
  /** Seconds that the guest moved the clock by. */
  #offset = 0
  /** Virtual ns up to which flags have been raised. */
  #seen = 0
  deadline = Number.POSITIVE_INFINITY

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
    if (index === 0x0a) {
      const updating = ((this.#ram[0x0b] as number) & HALT) === 0 && this.#options.now() % SECOND >= SECOND - UPDATE_TIME
      return ((this.#ram[0x0a] as number) & 0x7f) | (updating ? UIP : 0)
    }
    if (index === 0x0c) {
      this.expire(this.#options.now())
      const flags = this.#ram[0x0c] as number
      this.#ram[0x0c] = 0
      this.#options.irq(false)
      return flags
    }
    return this.#ram[index] as number
  }

  writePort(port: number, _size: number, value: number): void {
    if ((port & 1) === 0) {
      this.#index = value & 0x7f
      return
    }
    const index = this.#index
    if (index <= 9 || index === 0x32) this.#setClock(index, value)
    else if (index !== 0x0c && index !== 0x0d) {
      // What has happened so far happened under the old rate.
      if (index <= 0x0b) this.expire(this.#options.now())
      this.#ram[index] = index === 0x0a ? value & 0x7f : value
    }
    this.#schedule()
  }

  /** Nanoseconds between periodic interrupts; 0: none (register A, rate selection with the 32 kHz time base). */
  #period(): number {
    const rate = (this.#ram[0x0a] as number) & 15
    return rate === 0 ? 0 : (SECOND / 32768) * 2 ** ((rate < 3 ? rate + 7 : rate) - 1)
  }

  #schedule(): void {
    const b = this.#ram[0x0b] as number
    const now = this.#seen
    let at = Number.POSITIVE_INFINITY
    const period = this.#period()
    if (b & PERIODIC && period > 0) at = (Math.floor(now / period) + 1) * period
    if (b & (UPDATE | ALARM) && (b & HALT) === 0) at = Math.min(at, (Math.floor(now / SECOND) + 1) * SECOND)
    this.deadline = Math.ceil(at)
  }

  /** Raises the flags of what happened since the last call, and the line if an enabled one is up. */
  expire(now: number): void {
    const since = this.#seen
    if (now <= since) return
    this.#seen = now
    const b = this.#ram[0x0b] as number
    let flags = 0
    const period = this.#period()
    if (period > 0 && Math.floor(now / period) > Math.floor(since / period)) flags |= PERIODIC
    if ((b & HALT) === 0 && Math.floor(now / SECOND) > Math.floor(since / SECOND)) {
      flags |= UPDATE
      // A deadline stands at each second while the alarm is on, so only the last one needs a look; else at most a day.
      const seconds = Math.min(Math.floor(now / SECOND) - Math.floor(since / SECOND), b & ALARM ? 86400 : 1)
      for (let i = 0; i < seconds && (flags & ALARM) === 0; i++) if (this.#alarmAt(now - i * SECOND)) flags |= ALARM
    }
    let c = (this.#ram[0x0c] as number) | flags
    if (c & b & (PERIODIC | ALARM | UPDATE)) c |= IRQF
    const rising = (c & ~(this.#ram[0x0c] as number) & IRQF) !== 0
    this.#ram[0x0c] = c
    if (rising) this.#options.irq(true)
    if (flags & b & ALARM) this.#options.onAlarm()
    this.#schedule()
  }

  /** Alarm bytes with the top two bits set match anything. */
  #alarmAt(now: number): boolean {
    const date = this.#date(now)
    return ([0, 2, 4] as const).every((index) => {
      const alarm = this.#ram[index + 1] as number
      return alarm >= 0xc0 || alarm === this.#field(index, date)
    })
  }

  #date(now = this.#options.now()): Date {
    return new Date((this.#options.epoch + this.#offset) * 1000 + Math.floor(now / 1e6))
  }

  /** Register B: bit 2 = binary, bit 1 = 24 hours. */
  #clock(index: number): number {
    return this.#field(index, this.#date())
  }

  #field(index: number, date: Date): number {
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
