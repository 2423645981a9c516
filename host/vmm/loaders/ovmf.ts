/**
 * OVMF-style firmware: one image that ends at 4 GiB, its reset vector in the last 16 bytes. Above the reset vector's
 * page end lies a table of GUID-identified blocks, walked backwards from 4 GiB - 0x20 (edk2 OvmfPkg/ResetVector); the
 * SEV-ES block names the first CS:IP of application processors.
 */
import { CloisterError } from '../../errors.ts'

const PAGE = 4096
const maximumFirmware = 16 * 1024 * 1024

/** GUIDs of the table, in text form. */
export const GUID = {
  FOOTER: '96b582de-1fb2-45f7-baea-a366c55a082d',
  SEV_ES_RESET: '00f771de-1a7e-4fcb-890e-68c77e2fb44e',
  SEV_SECRET: '4c2eb361-7d9b-4cc3-8081-127c90d3d294',
  SEV_HASHES: '7255371f-3a3b-4b04-927b-1da6efa8d454',
  SEV_METADATA: 'dc886566-984a-4798-a75e-5585a7bf67cc',
  TDX_METADATA: 'e47a6535-984a-4798-865e-4685a7bf8ec2',
} as const

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0')

/** GUIDs are stored with their first three fields little-endian. */
function guidText(bytes: Uint8Array, at: number): string {
  const v = new DataView(bytes.buffer, bytes.byteOffset + at, 16)
  const tail = [...bytes.subarray(at + 8, at + 16)].map((b) => hex(b, 2)).join('')
  return `${hex(v.getUint32(0, true), 8)}-${hex(v.getUint16(4, true), 4)}-${hex(v.getUint16(6, true), 4)}-${tail.slice(0, 4)}-${tail.slice(4)}`
}

/** The blocks of the GUID table; empty when the image has none or its lengths do not add up. */
export function guidTable(image: Uint8Array): Map<string, Uint8Array> {
  const blocks = new Map<string, Uint8Array>()
  const footer = image.length - 0x20 - 18
  if (footer < 0 || guidText(image, footer + 2) !== GUID.FOOTER) return blocks
  const view = new DataView(image.buffer, image.byteOffset, image.length)
  const start = footer + 18 - view.getUint16(footer, true)
  if (start < 0) return blocks
  for (let end = footer; end - start >= 18; ) {
    const length = view.getUint16(end - 18, true)
    if (length < 18 || end - length < start) break
    blocks.set(guidText(image, end - 16), image.slice(end - length, end - 18))
    end -= length
  }
  return blocks
}

export interface Firmware {
  image: Uint8Array
  /** Guest-physical address of its first byte. */
  base: number
  /** First CS:IP of SEV-ES application processors, as one linear address; null without the block. */
  apReset: number | null
}

const refuse = (message: string): never => {
  throw new CloisterError('firmware', `firmware: ${message}`)
}

/** Firmware volumes that follow one another from the start must lie inside the file (PI 1.7 vol 3, 3.2.1). */
function checkVolumes(image: Uint8Array): void {
  const view = new DataView(image.buffer, image.byteOffset, image.length)
  for (let at = 0; at + 0x38 <= image.length && view.getUint32(at + 0x28, true) === 0x4856465f; ) {
    const length = Number(view.getBigUint64(at + 0x20, true))
    if (length < 0x48 || at + length > image.length) {
      refuse(
        `truncated: the volume at 0x${at.toString(16)} has 0x${length.toString(16)} bytes, the file ends after 0x${(image.length - at).toString(16)}`,
      )
    }
    at += length
  }
}

export function loadFirmware(image: Uint8Array): Firmware {
  if (image.length < PAGE) refuse(`${image.length} bytes: an image has at least 4096`)
  if (image.length > maximumFirmware) refuse(`${image.length} bytes: an image has at most ${maximumFirmware} (16 MiB)`)
  const reset = image.subarray(image.length - 16)
  if (reset.every((b) => b === 9 || b === 10 || b === 13 || (b >= 32 && b < 127)))
    refuse('no reset vector in the last 16 bytes (a text file?)')
  if (image.length % PAGE !== 0) refuse(`${image.length} bytes: not a multiple of 4096 (truncated?)`)
  if (reset.every((b) => b === reset[0])) refuse('no reset vector in the last 16 bytes')
  checkVolumes(image)
  const block = guidTable(image).get(GUID.SEV_ES_RESET)
  const apReset = block && block.length >= 4 ? new DataView(block.buffer, block.byteOffset).getUint32(0, true) : null
  return { image, base: 0x100000000 - image.length, apReset }
}
