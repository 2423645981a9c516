/**
 * QEMU's firmware configuration device (docs/specs/fw_cfg of QEMU): selector and data ports 0x510/0x511 and the DMA
 * interface at 0x514. DMA goes through the host's view of guest memory: in an encrypted guest it reaches shared pages
 * and sees ciphertext in private ones. Owns the items and the reading position.
 */
import type { PortDevice } from '../bus.ts'

export const FW_CFG = {
  SIGNATURE: 0x00,
  ID: 0x01,
  UUID: 0x02,
  RAM_SIZE: 0x03,
  NOGRAPHIC: 0x04,
  NB_CPUS: 0x05,
  KERNEL_SIZE: 0x08,
  INITRD_SIZE: 0x0b,
  BOOT_MENU: 0x0e,
  MAX_CPUS: 0x0f,
  KERNEL_DATA: 0x11,
  INITRD_DATA: 0x12,
  CMDLINE_SIZE: 0x14,
  CMDLINE_DATA: 0x15,
  SETUP_SIZE: 0x17,
  SETUP_DATA: 0x18,
  FILE_DIR: 0x19,
  FILE_FIRST: 0x20,
} as const

const DMA_ERROR = 1
const DMA_READ = 2
const DMA_SKIP = 4
const DMA_SELECT = 8
const DMA_WRITE = 16

/** Guest memory as the host sees it; false when the range is not RAM. */
export interface GuestMemory {
  read(address: number, bytes: Uint8Array): boolean
  write(address: number, bytes: Uint8Array): boolean
}

const little = (value: number | bigint, size: number): Uint8Array => {
  const out = new Uint8Array(size)
  let v = BigInt(value)
  for (let i = 0; i < size; i++, v >>= 8n) out[i] = Number(v & 0xffn)
  return out
}

export class FwCfg implements PortDevice {
  readonly #items = new Map<number, Uint8Array>()
  readonly #files: { name: string; bytes: Uint8Array }[] = []
  readonly #memory: GuestMemory
  #selected = 0
  #position = 0
  #addressHigh = 0
  #sealed = false

  constructor(memory: GuestMemory) {
    this.#memory = memory
    this.#items.set(FW_CFG.SIGNATURE, new TextEncoder().encode('QEMU'))
    this.#items.set(FW_CFG.ID, little(3, 4)) // bit 0 traditional interface, bit 1 DMA
  }

  setNumber(item: number, value: number | bigint, size: number): void {
    this.#items.set(item, little(value, size))
  }

  /** The kernel, initrd and command line that firmware boots (QEMU -kernel): the setup sectors and the rest apart. */
  setKernel(kernel: Uint8Array, initrd: Uint8Array = new Uint8Array(0), append = ''): void {
    const setup = Math.min(((kernel[0x1f1] || 4) + 1) * 512, kernel.length)
    const line = new TextEncoder().encode(`${append}\0`)
    const parts: [size: number, data: number, bytes: Uint8Array][] = [
      [FW_CFG.SETUP_SIZE, FW_CFG.SETUP_DATA, kernel.subarray(0, setup)],
      [FW_CFG.KERNEL_SIZE, FW_CFG.KERNEL_DATA, kernel.subarray(setup)],
      [FW_CFG.INITRD_SIZE, FW_CFG.INITRD_DATA, initrd],
      [FW_CFG.CMDLINE_SIZE, FW_CFG.CMDLINE_DATA, line],
    ]
    for (const [size, data, bytes] of parts) {
      this.setNumber(size, bytes.length, 4)
      this.#items.set(data, bytes)
    }
  }

  /** Files appear in the directory sorted by name, as current QEMU machines list them. */
  addFile(name: string, bytes: Uint8Array): void {
    if (name.length > 55) throw new RangeError(`fw_cfg file name '${name}' is longer than 55 characters`)
    this.#files.push({ name, bytes })
    this.#sealed = false
  }

  #seal(): void {
    this.#sealed = true
    const files = this.#files.toSorted((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
    const directory = new Uint8Array(4 + files.length * 64)
    const view = new DataView(directory.buffer)
    view.setUint32(0, files.length)
    for (const [i, file] of files.entries()) {
      view.setUint32(4 + i * 64, file.bytes.length)
      view.setUint16(8 + i * 64, FW_CFG.FILE_FIRST + i)
      directory.set(new TextEncoder().encode(file.name), 12 + i * 64)
      this.#items.set(FW_CFG.FILE_FIRST + i, file.bytes)
    }
    this.#items.set(FW_CFG.FILE_DIR, directory)
  }

  #select(key: number): void {
    if (!this.#sealed) this.#seal()
    this.#selected = key
    this.#position = 0
  }

  readPort(port: number, size: number): number {
    if (port === 0x510) return this.#selected
    if (port === 0x511) return this.#nextByte()
    // Reading the DMA register gives the signature "QEMU CFG", big-endian.
    if (port >= 0x514 && size <= 0x51c - port) {
      const signature = [0x51, 0x45, 0x4d, 0x55, 0x20, 0x43, 0x46, 0x47]
      let value = 0
      for (let i = 0; i < size; i++) value |= (signature[port - 0x514 + i] as number) << (8 * i)
      return value >>> 0
    }
    return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffffffff
  }

  writePort(port: number, size: number, value: number): void {
    if (port === 0x510 && size === 2) this.#select(value)
    else if (port === 0x514 && size === 4) this.#addressHigh = swap32(value)
    else if (port === 0x518 && size === 4) {
      const address = this.#addressHigh * 0x100000000 + swap32(value)
      this.#addressHigh = 0
      this.#dma(address)
    }
  }

  #nextByte(): number {
    return this.#items.get(this.#selected)?.[this.#position++] ?? 0
  }

  /** struct FWCfgDmaAccess { control u32, length u32, address u64 }, big-endian; control is written back when done. */
  #dma(address: number): void {
    const command = new Uint8Array(16)
    if (!this.#memory.read(address, command)) return
    const view = new DataView(command.buffer)
    const control = view.getUint32(0)
    let length = view.getUint32(4)
    let target = Number(view.getBigUint64(8))
    let failed = false
    if (control & DMA_SELECT) this.#select(control >>> 16)
    if (control & DMA_READ) {
      const item = this.#items.get(this.#selected)
      // In pieces, so that a huge length in a broken command cannot exhaust the host.
      const chunk = new Uint8Array(4096)
      while (length > 0 && !failed) {
        const n = Math.min(length, 4096)
        const piece = chunk.subarray(0, n).fill(0)
        const available = item?.subarray(this.#position, this.#position + n)
        if (available) piece.set(available)
        this.#position += n
        failed = !this.#memory.write(target, piece)
        target += n
        length -= n
      }
    } else if (control & DMA_WRITE)
      failed = true // no writable item exists
    else if (control & DMA_SKIP) this.#position += length
    this.#memory.write(address, new Uint8Array([0, 0, 0, failed ? DMA_ERROR : 0]))
  }
}

const swap32 = (v: number): number => (((v & 0xff) << 24) | ((v & 0xff00) << 8) | ((v >>> 8) & 0xff00) | (v >>> 24)) >>> 0
