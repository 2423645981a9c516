/**
 * MC146818 real-time clock with its battery-backed RAM at ports 0x70/0x71. Time is a fixed epoch plus virtual time, so
 * that runs repeat. Periodic, alarm and update-ended interrupts (data sheet, "Interrupts") drive IRQ 8; what is due next is a
 * deadline. The update-in-progress bit is up for the last 244 us of a second. While SET or a reset of the divider stops the
 * clock, its registers are plain bytes; what they say is the time when it goes on.
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
/** Seconds, minutes, hours, day of the week, of the month, month, year, century. */
const CLOCK = [0, 2, 4, 6, 7, 8, 9, 0x32] as const

export class Cmos implements PortDevice {
  readonly #ram = new Uint8Array(128)
  readonly #options: CmosOptions
  #index = 0
  /** Seconds that the guest moved the clock by, days of the week likewise, and ns by which its seconds begin earlier. */
  #offset = 0
  #weekdays = 0
  #phase = 0
  /** The registers of a clock that stands still. */
  #held: Map<number, number> | null = null
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
    if (index <= 9 || index === 0x32) return this.#held?.get(index) ?? this.#field(index, this.#date())
    if (index === 0x0a) {
      const updating = !this.#stopped() && (this.#options.now() + this.#phase) % SECOND >= SECOND - UPDATE_TIME
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
    if (CLOCK.includes(index as 0)) {
      const running = this.#held === null
      this.#held ??= this.#registers()
      this.#held.set(index, value)
      if (running) this.#resume()
    } else if (index === 0x0a || index === 0x0b) this.#control(index, value)
    else if (index !== 0x0c && index !== 0x0d) this.#ram[index] = value
    this.#schedule()
  }

  /** Registers A and B. */
  #control(index: number, value: number): void {
    // What has happened so far happened under the old rate.
    this.expire(this.#options.now())
    const ram = this.#ram
    const reset = this.#reset()
    const was = this.#stopped()
    const registers = was ? null : this.#registers()
    // SET going up clears UIE (data sheet, "Register B").
    ram[index] = index === 0x0a ? value & 0x7f : value & HALT ? value & ~UPDATE : value
    if (!was && this.#stopped()) this.#held = registers
    // The first update comes half a second after the divider is released (data sheet, "Divider Control").
    if (reset && !this.#reset()) this.#phase = (SECOND / 2 - (this.#options.now() % SECOND) + SECOND) % SECOND
    if (was && !this.#stopped()) this.#resume()
    // IRQF = PF and PIE, or AF and AIE, or UF and UIE.
    const c = ram[0x0c] as number
    const up = (c & (ram[0x0b] as number) & (PERIODIC | ALARM | UPDATE)) !== 0
    ram[0x0c] = up ? c | IRQF : c & ~IRQF
    if (up !== ((c & IRQF) !== 0)) this.#options.irq(up)
  }

  #reset(): boolean {
    return ((this.#ram[0x0a] as number) & 0x60) === 0x60
  }

  #stopped(): boolean {
    return ((this.#ram[0x0b] as number) & HALT) !== 0 || this.#reset()
  }

  /** The clock's registers as they read now. */
  #registers(): Map<number, number> {
    const date = this.#date()
    return new Map(CLOCK.map((index) => [index, this.#field(index, date)]))
  }

  /** Whole seconds of the divider. */
  #seconds(now: number): number {
    return Math.floor((now + this.#phase) / SECOND)
  }

  /** Nanoseconds between periodic interrupts; 0: none (register A, rate selection with the 32 kHz time base). */
  #period(): number {
    const rate = (this.#ram[0x0a] as number) & 15
    return rate === 0 || this.#reset() ? 0 : (SECOND / 32768) * 2 ** ((rate < 3 ? rate + 7 : rate) - 1)
  }

  #schedule(): void {
    const b = this.#ram[0x0b] as number
    const now = this.#seen
    let at = Number.POSITIVE_INFINITY
    const period = this.#period()
    if (b & PERIODIC && period > 0) at = (Math.floor(now / period) + 1) * period
    if (b & (UPDATE | ALARM) && !this.#stopped()) at = Math.min(at, (this.#seconds(now) + 1) * SECOND - this.#phase)
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
    const passed = this.#seconds(now) - this.#seconds(since)
    if (!this.#stopped() && passed > 0) {
      flags |= UPDATE
      // A deadline stands at each second while the alarm is on, so only the last one needs a look; else at most a day.
      const seconds = Math.min(passed, b & ALARM ? 86400 : 1)
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
    return new Date((this.#options.epoch + this.#offset + this.#seconds(now)) * 1000)
  }

  /** Register B: bit 2 = binary, bit 1 = 24 hours. */
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
        return code(((date.getUTCDay() + this.#weekdays) % 7) + 1)
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

  /** The clock goes on from what its registers say. */
  #resume(): void {
    const b = this.#ram[0x0b] as number
    const held = this.#held ?? this.#registers()
    const number = (value: number): number => (b & 4 ? value : (value >> 4) * 10 + (value & 15))
    const at = (index: number): number => number(held.get(index) ?? 0)
    const hours = held.get(4) ?? 0
    const hour = b & 2 ? number(hours) : (number(hours & 0x7f) % 12) + (hours & 0x80 ? 12 : 0)
    const date = new Date(0)
    // Not Date.UTC: it takes years below 100 for those of the twentieth century.
    date.setUTCFullYear(at(0x32) * 100 + at(9), at(8) - 1, at(7))
    date.setUTCHours(hour, at(2), at(0))
    this.#held = null
    this.#offset = Math.round(date.getTime() / 1000) - this.#options.epoch - this.#seconds(this.#options.now())
    this.#weekdays = (at(6) - 1 - date.getUTCDay() + 14) % 7
  }
}
