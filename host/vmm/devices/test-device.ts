/**
 * QEMU's pc-testdev, for kvm-unit-tests: a port that keeps what is written (0xe0-0xe3), interrupt lines as ports
 * (0x2000 + GSI), a scratch MMIO region at 0xff000000, and port 0xe4, which asks for a page to be unmapped and mapped
 * again (nothing to do here: the page keeps its contents and the core's TLB is not the guest's business).
 */
import type { Bus, MmioDevice, PortDevice } from '../bus.ts'

const ECHO = 0xe0
const FLUSH = 0xe4
const LINES = 0x2000
const LINE_COUNT = 24
const IO_RAM = 0xff000000
const IO_RAM_SIZE = 0x10000

export class TestDevice implements PortDevice, MmioDevice {
  readonly #echo = new Uint8Array(4)
  readonly #ram = new Uint8Array(IO_RAM_SIZE)
  readonly #irqLine: (gsi: number, level: boolean) => void

  constructor(irqLine: (gsi: number, level: boolean) => void) {
    this.#irqLine = irqLine
  }

  static attach(bus: Bus, irqLine: (gsi: number, level: boolean) => void): void {
    const device = new TestDevice(irqLine)
    bus.addPorts(device, ECHO, 4)
    bus.addPorts(device, FLUSH, 4)
    bus.addPorts(device, LINES, LINE_COUNT)
    bus.addMmio(device, IO_RAM, IO_RAM_SIZE)
  }

  readPort(port: number, size: number): number {
    if (port >= FLUSH) return 0
    let value = 0
    for (let i = 0; i < size; i++) value |= (this.#echo[port - ECHO + i] ?? 0) << (8 * i)
    return value >>> 0
  }

  writePort(port: number, size: number, value: number): void {
    if (port >= LINES) this.#irqLine(port - LINES, value !== 0)
    else if (port < FLUSH) for (let i = 0; i < size; i++) this.#echo[port - ECHO + i] = value >>> (8 * i)
  }

  readMmio(offset: number, data: Uint8Array): void {
    data.set(this.#ram.subarray(offset, offset + data.length))
  }

  writeMmio(offset: number, data: Uint8Array): void {
    this.#ram.set(data.subarray(0, IO_RAM_SIZE - offset), offset)
  }
}
