/** ELF executables as kernels come in: loadable segments by physical address, notes. (System V gABI, chapter 4-5.) */
import { CloisterError } from '../../errors.ts'

export interface ElfSegment {
  /** Physical address. */
  address: number
  bytes: Uint8Array
  /** Size in memory; what lies beyond the bytes is zero. */
  size: number
}

export interface Elf {
  entry: number
  bits: 32 | 64
  segments: ElfSegment[]
  notes: { name: string; type: number; description: Uint8Array }[]
}

const ELF_MAGIC = 0x7f454c46
const PT_LOAD = 1
const PT_NOTE = 4
const refuse = (message: string): never => {
  throw new CloisterError('kernel', `kernel: ${message}`)
}

export function parseElf(file: Uint8Array): Elf {
  const view = new DataView(file.buffer, file.byteOffset, file.length)
  if (file.length < 64) refuse(`truncated: ${file.length} bytes are too short for an ELF header`)
  if (view.getUint32(0, false) !== ELF_MAGIC) refuse('not an ELF file')
  const bits = file[4] === 2 ? 64 : 32
  const word = (at: number): number => {
    if (bits === 32) return view.getUint32(at, true)
    const v = view.getBigUint64(at, true)
    return v > 0xffffffffffffn ? refuse(`ELF address or size 0x${v.toString(16)} is absurd`) : Number(v)
  }
  const entry = bits === 64 ? Number(view.getBigUint64(24, true) & 0xffffffffn) : view.getUint32(24, true)
  const table = bits === 64 ? word(32) : view.getUint32(28, true)
  const entrySize = view.getUint16(bits === 64 ? 54 : 42, true)
  const count = view.getUint16(bits === 64 ? 56 : 44, true)
  if (count > 0 && entrySize < (bits === 64 ? 56 : 32)) refuse(`program headers of ${entrySize} bytes: too short`)
  if (table + count * entrySize > file.length)
    refuse(`truncated: the program headers end at 0x${(table + count * entrySize).toString(16)}, the file at 0x${file.length.toString(16)}`)
  const segments: ElfSegment[] = []
  const notes: Elf['notes'] = []
  for (let i = 0; i < count; i++) {
    const at = table + i * entrySize
    const type = view.getUint32(at, true)
    if (type !== PT_LOAD && type !== PT_NOTE) continue
    const [offset, address, fileSize, size] =
      bits === 64
        ? [word(at + 8), word(at + 24), word(at + 32), word(at + 40)]
        : [word(at + 4), word(at + 12), word(at + 16), word(at + 20)]
    if (offset + fileSize > file.length)
      refuse(`truncated: a segment ends at 0x${(offset + fileSize).toString(16)}, the file at 0x${file.length.toString(16)}`)
    const bytes = file.subarray(offset, offset + fileSize)
    if (type === PT_LOAD && size < fileSize) refuse(`a segment has ${fileSize} bytes in the file and ${size} in memory`)
    if (type === PT_LOAD) segments.push({ address, bytes, size })
    else notes.push(...parseNotes(bytes))
  }
  return { entry, bits, segments, notes }
}

function parseNotes(bytes: Uint8Array): Elf['notes'] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const notes: Elf['notes'] = []
  const align = (n: number): number => Math.ceil(n / 4) * 4
  for (let at = 0; at + 12 <= bytes.length; ) {
    const nameSize = view.getUint32(at, true)
    const size = view.getUint32(at + 4, true)
    const start = at + 12 + align(nameSize)
    if (start + size > bytes.length) break
    const name = new TextDecoder().decode(bytes.subarray(at + 12, at + 12 + nameSize)).replace(/\0+$/, '')
    notes.push({ name, type: view.getUint32(at + 8, true), description: bytes.subarray(start, start + size) })
    at = start + align(size)
  }
  return notes
}
