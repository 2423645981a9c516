/**
 * 16550A UART (National Semiconductor PC16550D data sheet) with 16-byte receive FIFO. The line is infinitely fast
 * outwards: THR is empty again before the next instruction. Owns the register file and the queue of host input.
 */
import type { PortDevice } from '../bus.ts'

// Registers, section 8 of the data sheet
const RBR = 0
const IER = 1
const IIR = 2
const LCR = 3
const MCR = 4
const LSR = 5
const MSR = 6
const SCR = 7

const IER_RX = 1
const IER_THRE = 2
const IER_LINE = 4
const LSR_DATA = 1
const LSR_OVERRUN = 2
const LSR_THRE = 0x20
const LSR_TEMT = 0x40
const LCR_DLAB = 0x80
const MCR_LOOP = 0x10
const FIFO = 16

export class Serial implements PortDevice {
  readonly #base: number
  readonly #output: (byte: number) => void
  readonly #irq: (level: boolean) => void
  readonly #fifo: number[] = []
  #input: number[] = []
  #divisor = 12
  #ier = 0
  #lcr = 0
  #mcr = 0
  #fcr = 0
  #scratch = 0
  #overrun = false
  #thrPending = false
  #level = false

  constructor(base: number, output: (byte: number) => void, irq: (level: boolean) => void) {
    this.#base = base
    this.#output = output
    this.#irq = irq
  }

  /** Bytes typed by the host; those that do not fit the FIFO wait outside, so nothing is lost. */
  input(bytes: Uint8Array): void {
    for (const byte of bytes) this.#input.push(byte)
    this.#refill()
  }

  #refill(): void {
    // In loopback the receiver's input is disconnected (8.6).
    const depth = this.#mcr & MCR_LOOP ? 0 : this.#fcr & 1 ? FIFO : 1
    let taken = 0
    while (this.#fifo.length < depth && taken < this.#input.length) this.#fifo.push(this.#input[taken++] as number)
    if (taken) this.#input = this.#input.slice(taken)
    this.#update()
  }

  /** Interrupt identification by priority: line status, received data, THR empty. 1 = none. */
  #cause(): number {
    if (this.#ier & IER_LINE && this.#overrun) return 6
    if (this.#ier & IER_RX && this.#fifo.length > 0) return 4
    if (this.#ier & IER_THRE && this.#thrPending) return 2
    return 1
  }

  #update(): void {
    const level = this.#cause() !== 1
    if (level === this.#level) return
    this.#level = level
    this.#irq(level)
  }

  readPort(port: number, _size: number): number {
    switch (port - this.#base) {
      case RBR: {
        if (this.#lcr & LCR_DLAB) return this.#divisor & 0xff
        const byte = this.#fifo.shift() ?? 0
        this.#refill()
        return byte
      }
      case IER:
        return this.#lcr & LCR_DLAB ? this.#divisor >> 8 : this.#ier
      case IIR: {
        const cause = this.#cause()
        if (cause === 2) {
          this.#thrPending = false
          this.#update()
        }
        return cause | (this.#fcr & 1 ? 0xc0 : 0)
      }
      case LCR:
        return this.#lcr
      case MCR:
        return this.#mcr
      case LSR: {
        const status = LSR_THRE | LSR_TEMT | (this.#fifo.length ? LSR_DATA : 0) | (this.#overrun ? LSR_OVERRUN : 0)
        if (this.#overrun) {
          this.#overrun = false
          this.#update()
        }
        return status
      }
      case MSR:
        // Loopback: DTR RTS OUT1 OUT2 appear as DSR CTS RI DCD; otherwise a terminal is attached.
        if (this.#mcr & MCR_LOOP) {
          return ((this.#mcr & 1) << 5) | ((this.#mcr & 2) << 3) | ((this.#mcr & 4) << 4) | ((this.#mcr & 8) << 4)
        }
        return 0xb0
      case SCR:
        return this.#scratch
      default:
        return 0xff
    }
  }

  writePort(port: number, _size: number, value: number): void {
    switch (port - this.#base) {
      case RBR:
        if (this.#lcr & LCR_DLAB) {
          this.#divisor = (this.#divisor & 0xff00) | value
          return
        }
        if (this.#mcr & MCR_LOOP) this.#loop(value)
        else this.#output(value)
        this.#thrPending = true
        // The line drops while THR is full; as it empties at once, a pending request is renewed.
        this.#update()
        return
      case IER: {
        if (this.#lcr & LCR_DLAB) {
          this.#divisor = (this.#divisor & 0xff) | (value << 8)
          return
        }
        const rising = ~this.#ier & value & IER_THRE
        this.#ier = value & 0x0f
        if (rising) this.#thrPending = true
        this.#update()
        return
      }
      case IIR:
        // FCR. Enabling or disabling the FIFOs clears them.
        if ((value ^ this.#fcr) & 1 || value & 2) this.#fifo.length = 0
        this.#fcr = value & 0xc9
        this.#refill()
        return
      case LCR:
        this.#lcr = value
        return
      case MCR:
        this.#mcr = value & 0x1f
        this.#refill()
        return
      case SCR:
        this.#scratch = value
    }
  }

  #loop(byte: number): void {
    // 8.4, LSR 1: the receiver buffer's old character is destroyed, a full FIFO keeps what it has.
    this.#overrun ||= this.#fifo.length >= (this.#fcr & 1 ? FIFO : 1)
    if ((this.#fcr & 1) === 0) this.#fifo.length = 0
    if (this.#fifo.length < FIFO) this.#fifo.push(byte)
    this.#update()
  }
}
