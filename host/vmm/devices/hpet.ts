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
const ROUTE = 0x3e00n
const WRITABLE = 0x3f4en
const FIXED = (BigInt(ROUTES) << 32n) | 0x30n

interface Timer {
  configuration: bigint
  comparator: bigint
  period: bigint
  /** The counter up to which matches have been looked for. */
  seen: bigint
  /** The line that its status bit holds high. */
  raised: number | null
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
      seen: 0n,
      raised: null,
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

  /** The next match of a timer that may interrupt. */
  #schedule(): void {
    const counter = this.#counter()
    this.deadline = Number.POSITIVE_INFINITY
    for (const timer of this.#timers) {
      timer.seen = counter
      if (!this.#running || (timer.configuration & ENABLE) === 0n) continue
      const mask = timer.configuration & MODE_32 ? MASK32 : MASK64
      const due = (this.#ticks() + ((timer.comparator - counter - 1n) & mask) + 1n) * NS_PER_TICK
      if (due < BigInt(Number.MAX_SAFE_INTEGER)) this.deadline = Math.min(this.deadline, Number(due))
    }
  }

  expire(_now: number): void {
    this.#matches()
    this.#schedule()
  }

  /**
   * What the counter has passed since the last look. A timer whose interrupt is off matches all the same (2.3.8): a periodic one
   * moves on, a level-triggered one shows its status.
   */
  #matches(): void {
    if (!this.#running) return
    const counter = this.#counter()
    for (const [index, timer] of this.#timers.entries()) {
      const mask = timer.configuration & MODE_32 ? MASK32 : MASK64
      const first = ((timer.comparator - timer.seen - 1n) & mask) + 1n
      const passed = (counter - timer.seen) & MASK64
      timer.seen = counter
      if (passed < first) continue
      if (timer.configuration & PERIODIC && timer.period > 0n)
        timer.comparator = (timer.comparator + timer.period * ((passed - first) / timer.period + 1n)) & mask
      if (timer.configuration & LEVEL) this.#status |= 1n << BigInt(index)
      else if (timer.configuration & ENABLE) {
        this.#options.irqLine(this.#route(index), true)
        this.#options.irqLine(this.#route(index), false)
      }
    }
    this.#lines()
  }

  /** A level is up while its status bit is, its interrupt is on and the HPET runs (2.3.4, 2.3.5). */
  #lines(): void {
    for (const [index, timer] of this.#timers.entries()) {
      const up = this.#running && (timer.configuration & (LEVEL | ENABLE)) === (LEVEL | ENABLE) && (this.#status >> BigInt(index)) & 1n
      const line = up ? this.#route(index) : null
      if (line === timer.raised) continue
      if (timer.raised !== null) this.#options.irqLine(timer.raised, false)
      if (line !== null) this.#options.irqLine(line, true)
      timer.raised = line
    }
  }

  #read(offset: number): bigint {
    this.#matches()
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
    this.#matches()
    switch (offset) {
      case CONFIGURATION:
        this.#configure(merge(this.#configuration) & 3n)
        break
      case STATUS:
        this.#status &= ~value
        this.#lines()
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
        if ((offset & 0x1f) === 0) this.#setup(timer, merge(timer.configuration) & WRITABLE)
        else if ((offset & 0x1f) === 8) this.#compare(timer, value, mask)
      }
    }
    this.#lines()
    this.#schedule()
  }

  /** A route that the timer does not have is not taken (2.3.8, Tn_INT_ROUTE_CNF); 32-bit mode drops the upper halves. */
  #setup(timer: Timer, written: bigint): void {
    const route = (ROUTES >> Number((written >> 9n) & 31n)) & 1 ? written & ROUTE : timer.configuration & ROUTE
    timer.configuration = FIXED | (written & ~ROUTE) | route
    if (timer.configuration & MODE_32) {
      timer.comparator &= MASK32
      timer.period &= MASK32
    }
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
