/** Tells guest files apart by content, so that a file given for the wrong purpose is refused by its right name. */

export type FileKind = 'bzImage' | 'elf-pvh' | 'elf' | 'multiboot' | 'firmware' | 'gzip' | 'unknown'

const at32 = (bytes: Uint8Array, offset: number): number =>
  offset + 4 <= bytes.length ? new DataView(bytes.buffer, bytes.byteOffset + offset, 4).getUint32(0, true) : 0

/** A PVH kernel has an ELF note of type 18 (XEN_ELFNOTE_PHYS32_ENTRY) by "Xen". */
function hasPvhNote(bytes: Uint8Array): boolean {
  const end = Math.min(bytes.length, 0x4000000) - 16
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  for (let i = 0; i <= end; i += 4) {
    if (view.getUint32(i, true) === 4 && view.getUint32(i + 8, true) === 18 && view.getUint32(i + 12, true) === 0x006e6558) return true
  }
  return false
}

/** Offset of the Multiboot 1 header: in the first 8 KiB, aligned to 4; magic, flags and checksum add up to 0. */
export function multibootHeader(bytes: Uint8Array): number | null {
  for (let i = 0; i + 12 <= Math.min(bytes.length, 8192); i += 4) {
    if (at32(bytes, i) === 0x1badb002 && ((at32(bytes, i) + at32(bytes, i + 4) + at32(bytes, i + 8)) & 0xffffffff) === 0) return i
  }
  return null
}

export function detect(bytes: Uint8Array): FileKind {
  if (at32(bytes, 0x202) === 0x53726448) return 'bzImage' // "HdrS", Linux boot protocol
  if (multibootHeader(bytes) !== null) return 'multiboot'
  if (at32(bytes, 0) === 0x464c457f) return hasPvhNote(bytes) ? 'elf-pvh' : 'elf'
  if (at32(bytes, 0x28) === 0x4856465f) return 'firmware' // "_FVH"
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) return 'gzip'
  return 'unknown'
}
