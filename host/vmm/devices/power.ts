/**
 * ICH9 power management block (Intel ICH9 datasheet 13.8) at PMBASE and the ways a PC is reset: port 0xcf9, port 0x92,
 * the keyboard controller's pulse. The PM timer counts 3.579545 MHz of virtual time in 24 bits; TMR_STS goes up with each change
 * of its top bit. No SCI sources exist; SMI_EN is stored and does nothing, because the machine has no SMM: its APMC_EN is set from the start,
 * which is how QEMU tells SeaBIOS so (it takes SMM for set up and does not wait for an SMI).
 */
import type { Bus, PortDevice } from '../bus.ts'

const SIZE = 0x80
const PM1_STS = 0x00
const PM1_EN = 0x02
const PM1_CNT = 0x04
const PM_TMR = 0x08
const SLP_EN = 0x2000
const SMI_EN = 0x30
const APMC_EN = 0x20
/** Bit 10, in the high byte. */
const RTC_STS = 4
const TIMER_HZ = 3579545
/** Bit 0 of the status: bit 23 of the timer changed (ACPI 4.8.3.1.1). */
const TMR_STS = 1
const HALF = 0x800000

export class PowerManagement implements PortDevice {
  readonly #bus: Bus
  readonly #now: () => number
  readonly #powerOff: (state: number) => void
  readonly #registers = new Uint8Array(SIZE)
  #base: number | null = null
  /** Changes of the timer's top bit that TMR_STS was cleared after. */
  #turns = 0

  /** `powerOff` receives the sleep type written with SLP_EN (q35's S5 is type 0). */
  constructor(bus: Bus, now: () => number, powerOff: (state: number) => void) {
    this.#bus = bus
    this.#now = now
    this.#powerOff = powerOff
    this.#registers[SMI_EN] = APMC_EN
  }

  get base(): number | null {
    return this.#base
  }

  move(base: number | null): void {
    if (base === this.#base) return
    if (this.#base !== null) this.#bus.removePorts(this.#base, SIZE)
    this.#base = base
    if (base !== null) this.#bus.addPorts(this, base, SIZE)
  }

  readPort(port: number, size: number): number {
    const offset = port - (this.#base ?? 0)
    if (offset >= PM_TMR && offset < PM_TMR + 4) return slice((this.#ticks() % (2 * HALF)) >>> (8 * (offset - PM_TMR)), size)
    if (Math.floor(this.#ticks() / HALF) !== this.#turns) this.#registers[PM1_STS] = (this.#registers[PM1_STS] as number) | TMR_STS
    let value = 0
    for (let i = 0; i < size; i++) value |= (this.#registers[offset + i] ?? 0xff) << (8 * i)
    return value >>> 0
  }

  #ticks(): number {
    return Math.floor((this.#now() * TIMER_HZ) / 1e9)
  }

  writePort(port: number, size: number, value: number): void {
    const offset = port - (this.#base ?? 0)
    if (offset === PM1_STS && value & TMR_STS) this.#turns = Math.floor(this.#ticks() / HALF)
    for (let i = 0; i < size && offset + i < SIZE; i++) {
      const at = offset + i
      const byte = (value >>> (8 * i)) & 0xff
      // Status bits are cleared by writing ones; the timer is read-only.
      if (at < PM1_EN || (at >= 0x20 && at < 0x28)) this.#registers[at] = (this.#registers[at] as number) & ~byte
      else if (at < PM_TMR || at >= PM_TMR + 4) this.#registers[at] = byte
    }
    if (offset <= PM1_CNT + 1 && offset + size > PM1_CNT) {
      const control = (this.#registers[PM1_CNT] as number) | ((this.#registers[PM1_CNT + 1] as number) << 8)
      if (control & SLP_EN) {
        this.#registers[PM1_CNT + 1] = (control & ~SLP_EN) >> 8
        this.#powerOff((control >> 10) & 7)
      }
    }
  }

  /** The real-time clock's alarm: RTC_STS (ACPI 4.8.3.1.1). */
  alarm(): void {
    this.#registers[PM1_STS + 1] = (this.#registers[PM1_STS + 1] as number) | RTC_STS
  }

  /** RTC_STS and RTC_EN are both set: the machine wakes. */
  get woken(): boolean {
    return ((this.#registers[PM1_STS + 1] as number) & (this.#registers[PM1_EN + 1] as number) & RTC_STS) !== 0
  }

  /** PM1 status, for tests. */
  get status(): number {
    return (this.#registers[PM1_STS] as number) | ((this.#registers[PM1_STS + 1] as number) << 8)
  }
}

const slice = (value: number, size: number): number => (size === 4 ? value >>> 0 : value & (size === 1 ? 0xff : 0xffff))

/** Reset by port 0xcf9 (bit 2 rising), port 0x92 (bit 0) and command 0xfe of the keyboard controller. */
export class ResetPorts implements PortDevice {
  readonly #reset: (what: string) => void
  #control = 0
  #fast = 2 // A20 is always open

  constructor(reset: (what: string) => void) {
    this.#reset = reset
  }

  readPort(port: number, size: number): number {
    if (port === 0xcf9) return this.#control
    if (port === 0x92) return this.#fast
    // No keyboard controller: ones, which drivers take for "absent".
    return size === 1 ? 0xff : 0xffff
  }

  writePort(port: number, _size: number, value: number): void {
    if (port === 0xcf9) {
      const rising = value & ~this.#control & 4
      this.#control = value & 0x0e & ~4
      if (rising) this.#reset('port 0xcf9')
    } else if (port === 0x92) {
      if (value & 1) this.#reset('port 0x92')
      this.#fast = (value & 0xfe) | 2
    } else if (port === 0x64 && (value & 0xff) === 0xfe) this.#reset('keyboard controller')
  }
}
