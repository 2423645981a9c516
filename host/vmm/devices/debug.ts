/** The two debugging ports that every machine has: OVMF's output port 0x402 and QEMU's isa-debug-exit at 0xf4. */
import type { PortDevice } from '../bus.ts'

/** OvmfPkg/Library/PlatformDebugLibIoPort: reading 0xe9 tells the firmware that somebody listens. */
export class DebugPort implements PortDevice {
  readonly #output: (byte: number) => void

  constructor(output: (byte: number) => void) {
    this.#output = output
  }

  readPort(_port: number, _size: number): number {
    return 0xe9
  }

  writePort(_port: number, _size: number, value: number): void {
    this.#output(value & 0xff)
  }
}

export class DebugExit implements PortDevice {
  readonly #exit: (value: number) => void

  constructor(exit: (value: number) => void) {
    this.#exit = exit
  }

  readPort(_port: number, _size: number): number {
    return 0
  }

  writePort(_port: number, _size: number, value: number): void {
    this.#exit(value)
  }
}
