/**
 * High Precision Event Timers (Intel IA-PC HPET specification 1.0a, chapter 2): a 100 MHz main counter of 64 bits and
 * three timers, edge or level, periodic, with the legacy replacement route (timer 0 = IRQ 0, timer 1 = IRQ 8). No FSB
 * delivery. The counter is virtual time; a running timer with its interrupt on is a deadline. Owns the register file.
 */
import type { MmioDevice } from '../bus.ts'

export const HPET_BASE = 0xfed00000
export const HPET_SIZE = 0x400
/** Revision 1, three timers, 64-bit counter, legacy replacement, vendor 8086. */
export const HPET_ID = 0x8086a201
const PERIOD_FS = 10_000_000
const NS_PER_TICK = 10n
const TIMERS = 3
/** Lines of the I/O APIC a timer may be routed to: 16-23. */
const ROUTES = 0x00ff0000
const MASK32 = 0xffffffffn
const MASK64 = 0xffffffffffffffffn

// Registers (2.3.3)
const CAPABILITIES = 0x00
const CONFIGURATION = 0x10
const STATUS = 0x20
const COUNTER = 0xf0
const FIRST_TIMER = 0x100
// Bits of the timer configuration (2.3.8)
const LEVEL = 0x02n
const ENABLE = 0x04n
const PERIODIC = 0x08n
const SET_ACCUMULATOR = 0x40n
const MODE_32 = 0x100n
const WRITABLE = 0x3f4en
const FIXED = (BigInt(ROUTES) << 32n) | 0x30n

interface Timer {
  configuration: bigint
  comparator: bigint
  period: bigint
  /** Virtual ns of the next match; Infinity: none. */
  due: number
}

export interface HpetOptions {
  now: () => number
  irqLine: (gsi: number, level: boolean) => void
  /** Legacy replacement was switched: the 8254 loses or regains IRQ 0. */
  legacy: (on: boolean) => void
}

export class Hpet implements MmioDevice {
  readonly #options: HpetOptions
  readonly #timers: Timer[]
  #configuration = 0n
  #status = 0n
  /** The counter at virtual time 0 if it had always run; its value while it stands still. */
  #offset = 0n
  #stopped = 0n
  deadline = Number.POSITIVE_INFINITY

  constructor(options: HpetOptions) {
    this.#options = options
    this.#timers = Array.from({ length: TIMERS }, () => ({
      configuration: FIXED,
      comparator: MASK64,
      period: 0n,
      due: Number.POSITIVE_INFINITY,
    }))
  }

  get #running(): boolean {
    return (this.#configuration & 1n) !== 0n
  }

  #ticks(): bigint {
    return BigInt(Math.floor(this.#options.now())) / NS_PER_TICK
  }

  #counter(): bigint {
    return this.#running ? (this.#ticks() + this.#offset) & MASK64 : this.#stopped
  }

  #route(index: number): number {
    if ((this.#configuration & 2n) !== 0n && index < 2) return index === 0 ? 0 : 8
    return Number(((this.#timers[index] as Timer).configuration >> 9n) & 31n)
  }

  #schedule(): void {
    const counter = this.#counter()
    this.deadline = Number.POSITIVE_INFINITY
    for (const timer of this.#timers) {
      timer.due = Number.POSITIVE_INFINITY
      if (!this.#running || (timer.configuration & ENABLE) === 0n) continue
      const mask = timer.configuration & MODE_32 ? MASK32 : MASK64
      let wait = (timer.comparator - counter) & mask
      if (wait === 0n) wait = mask
      const due = (this.#ticks() + wait) * NS_PER_TICK
      if (due < BigInt(Number.MAX_SAFE_INTEGER)) timer.due = Number(due)
      this.deadline = Math.min(this.deadline, timer.due)
    }
  }

  expire(now: number): void {
    for (const [index, timer] of this.#timers.entries()) {
      if (timer.due > now) continue
      if (timer.configuration & PERIODIC && timer.period > 0n) {
        const mask = timer.configuration & MODE_32 ? MASK32 : MASK64
        const late = BigInt(Math.floor(now - timer.due)) / NS_PER_TICK
        timer.comparator = (timer.comparator + timer.period * (late / timer.period + 1n)) & mask
      }
      const line = this.#route(index)
      if (timer.configuration & LEVEL) {
        this.#status |= 1n << BigInt(index)
        this.#options.irqLine(line, true)
      } else {
        this.#options.irqLine(line, true)
        this.#options.irqLine(line, false)
      }
    }
    this.#schedule()
  }

  #read(offset: number): bigint {
    switch (offset) {
      case CAPABILITIES:
        return (BigInt(PERIOD_FS) << 32n) | BigInt(HPET_ID)
      case CONFIGURATION:
        return this.#configuration
      case STATUS:
        return this.#status
      case COUNTER:
        return this.#counter()
      default: {
        const timer = this.#timers[(offset - FIRST_TIMER) >> 5]
        if (offset < FIRST_TIMER || !timer) return 0n
        return (offset & 0x1f) === 0 ? timer.configuration : (offset & 0x1f) === 8 ? timer.comparator : 0n
      }
    }
  }

  readMmio(offset: number, data: Uint8Array): void {
    const value = this.#read(offset & ~7)
    for (let i = 0; i < data.length; i++) data[i] = Number((value >> BigInt(8 * ((offset & 7) + i))) & 0xffn)
  }

  writeMmio(offset: number, data: Uint8Array): void {
    let value = 0n
    let mask = 0n
    for (const [i, byte] of data.entries()) {
      const shift = BigInt(8 * ((offset & 7) + i))
      value |= BigInt(byte) << shift
      mask |= 0xffn << shift
    }
    this.#write(offset & ~7, value & MASK64, mask & MASK64)
  }

  #write(offset: number, value: bigint, mask: bigint): void {
    const merge = (old: bigint): bigint => (old & ~mask) | value
    switch (offset) {
      case CONFIGURATION:
        this.#configure(merge(this.#configuration) & 3n)
        break
      case STATUS:
        for (let i = 0; i < TIMERS; i++) if (value & this.#status & (1n << BigInt(i))) this.#options.irqLine(this.#route(i), false)
        this.#status &= ~value
        return
      case COUNTER: {
        const counter = merge(this.#counter())
        this.#stopped = counter
        this.#offset = (counter - this.#ticks()) & MASK64
        break
      }
      default: {
        const timer = this.#timers[(offset - FIRST_TIMER) >> 5]
        if (offset < FIRST_TIMER || !timer) return
        if ((offset & 0x1f) === 0) timer.configuration = FIXED | (merge(timer.configuration) & WRITABLE)
        else if ((offset & 0x1f) === 8) this.#compare(timer, value, mask)
      }
    }
    this.#schedule()
  }

  #configure(configuration: bigint): void {
    const was = this.#configuration
    const counter = this.#counter()
    this.#configuration = configuration
    this.#stopped = counter
    this.#offset = (counter - this.#ticks()) & MASK64
    if ((was ^ configuration) & 2n) this.#options.legacy((configuration & 2n) !== 0n)
  }

  /** A periodic timer takes the write as its period, and as its next match too only after bit 6 was set (2.3.9.2.2). */
  #compare(timer: Timer, value: bigint, mask: bigint): void {
    const merged = (old: bigint): bigint => (old & ~mask) | value
    if ((timer.configuration & PERIODIC) === 0n || timer.configuration & SET_ACCUMULATOR) timer.comparator = merged(timer.comparator)
    if (timer.configuration & PERIODIC) timer.period = merged(timer.period)
    if (timer.configuration & MODE_32) {
      timer.comparator &= MASK32
      timer.period &= MASK32
    }
    timer.configuration &= ~SET_ACCUMULATOR
  }
}
