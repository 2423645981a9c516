/**
 * The write side of the firmware's NOR flash (Intel CFI command set 0001, as QEMU's pflash_cfi01 has it): reads come straight
 * from the memory slot, writes arrive as MMIO. OVMF programs its variable store so under SEV-ES, by VMGEXIT; it takes the flash
 * for granted there. In an ordinary guest its probe sees no status register and it falls back to variables in RAM.
 */
import type { MmioDevice } from '../bus.ts'
import type { HostMemory } from '../memory.ts'

/** Sector size of QEMU's PC flash. */
const SECTOR = 4096

export class Flash implements MmioDevice {
  readonly #memory: HostMemory
  #command = 0xff

  constructor(memory: HostMemory) {
    this.#memory = memory
  }

  readMmio(offset: number, data: Uint8Array): void {
    data.set(this.#memory.read(offset, data.length))
  }

  writeMmio(offset: number, data: Uint8Array): void {
    const value = data[0] as number
    switch (this.#command) {
      case 0x10: // program
      case 0x40:
        this.#memory.write(offset, data.slice())
        this.#command = 0xff
        break
      case 0x20: // erase, confirmed by 0xd0
        if (value === 0xd0) this.#memory.write(offset - (offset % SECTOR), new Uint8Array(SECTOR).fill(0xff))
        this.#command = 0xff
        break
      default:
        // clear status 0x50, read status 0x70, read array 0xff: the array is all that can be read
        this.#command = value
    }
  }
}

/** EFI_SYSTEM_NV_DATA_FV_GUID fff12b8d-7696-4c8b-a985-2747075b4f50 (UEFI PI vol 3, 3.2.1: GUID at 16, length at 32, signature at 40). */
const NV_DATA = [0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50]

/** Bytes of the variable store that an image begins with, 0 if it has none. */
export function variableStoreLength(image: Uint8Array): number {
  if (image.length < 0x48 || NV_DATA.some((byte, i) => image[16 + i] !== byte)) return 0
  const length = new DataView(image.buffer, image.byteOffset, image.length).getUint32(32, true)
  return length <= image.length ? length : 0
}
