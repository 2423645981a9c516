/**
 * Small hand-made kernels in each format: they print their command line on the serial port, then write the first byte of
 * their initrd (or module) to the debug-exit port.
 */

/** mov dx, 0x3f8; 1: lodsb; test al, al; jz 2f; out dx, al; jmp 1b; 2: */
const print = [0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]
/** mov esi, [ebx + n] */
const field = (n: number): number[] => [0x8b, 0x73, n]
/** mov esi, [esi]; movzx eax, byte [esi]; out 0xf4, eax; hlt */
const leave = [0x8b, 0x36, 0x0f, 0xb6, 0x06, 0xe7, 0xf4, 0xf4]

const LOAD = 0x100000
const HEADERS = 0x100
const CODE = 0x200

/** ELF32 with a Multiboot header; flags and address fields as asked. */
export function multiboot({ address = LOAD, entry, flags = 0 }: { address?: number; entry?: number; flags?: number } = {}): Uint8Array {
  const file = new Uint8Array(0x400)
  const view = new DataView(file.buffer)
  file.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1])
  view.setUint16(16, 2, true)
  view.setUint16(18, 3, true)
  view.setUint32(24, entry ?? address + CODE - HEADERS, true)
  view.setUint32(28, 52, true)
  view.setUint16(42, 32, true)
  view.setUint16(44, 1, true)
  for (const [i, word] of [1, HEADERS, address, address, 0x300, 0x2000, 7, 0].entries()) view.setUint32(52 + i * 4, word, true)
  for (const [i, word] of [0x1badb002, flags, -(0x1badb002 + flags) >>> 0].entries()) view.setUint32(HEADERS + i * 4, word, true)
  file.set([...field(16), ...print, ...field(24), ...leave], CODE)
  return file
}

/** Address fields of a Multiboot header. */
interface Addresses {
  load?: number
  header?: number
  end?: number
  bss?: number
  entry?: number
}

/** The same without ELF: the addresses are in the Multiboot header. */
export function multibootFlat({ load = LOAD, header, end = 0, bss = 0, entry }: Addresses = {}): Uint8Array {
  const file = new Uint8Array(0x200)
  const view = new DataView(file.buffer)
  const words = [0x1badb002, 0x10000, -(0x1badb002 + 0x10000) >>> 0, header ?? load, load, end, bss, entry ?? load + 0x20]
  for (const [i, word] of words.entries()) view.setUint32(i * 4, word >>> 0, true)
  file.set([...field(16), ...print, ...field(24), ...leave], 0x20)
  return file
}

/** ELF64 with a PVH note. */
export function pvh({ entry = LOAD, address = LOAD, noteSize = 4 } = {}): Uint8Array {
  const file = new Uint8Array(0x400)
  const view = new DataView(file.buffer)
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  view.setUint16(16, 2, true)
  view.setUint16(18, 62, true)
  view.setBigUint64(24, BigInt(address), true)
  view.setBigUint64(32, 64n, true)
  view.setUint16(54, 56, true)
  view.setUint16(56, 2, true)
  const header = (index: number, type: number, offset: number, at: number, size: number, memory: number): void => {
    const base = 64 + index * 56
    view.setUint32(base, type, true)
    for (const [i, v] of [offset, at, at, size, memory].entries()) view.setBigUint64(base + 8 + i * 8, BigInt(v), true)
  }
  header(0, 1, CODE, address, 0x200, 0x1000)
  header(1, 4, HEADERS, 0, 32, 32)
  for (const [i, word] of [4, noteSize, 18, 0x006e6558, entry].entries()) view.setUint32(HEADERS + i * 4, word >>> 0, true)
  file.set([...field(24), ...print, ...field(16), ...leave], CODE)
  return file
}

/** bzImage of boot protocol 2.15, entered in 64-bit mode, or in 32-bit mode with flags 0 (the code runs in both). */
export function bzImage({ initSize = 0x10000, version = 0x20f, flags = 1 } = {}): Uint8Array {
  const file = new Uint8Array(0x800)
  const view = new DataView(file.buffer)
  file[0x1f1] = 1
  view.setUint32(0x1f4, 0x40, true)
  view.setUint16(0x1fe, 0xaa55, true)
  file.set([0xeb, 0x66, 0x48, 0x64, 0x72, 0x53], 0x200)
  view.setUint16(0x206, version, true)
  view.setUint32(0x22c, 0x7fffffff, true)
  view.setUint16(0x236, flags, true)
  view.setBigUint64(0x258, BigInt(LOAD), true)
  view.setUint32(0x260, initSize, true)
  const code = [
    ...[0x8b, 0x9e, 0x28, 0x02, 0, 0], // mov ebx, [rsi + cmd_line_ptr]
    ...[0x8b, 0xbe, 0x18, 0x02, 0, 0], // mov edi, [rsi + ramdisk_image]
    ...[0x89, 0xde], // mov esi, ebx
    ...print,
    ...[0x0f, 0xb6, 0x07, 0xe7, 0xf4, 0xf4], // movzx eax, byte [rdi]; out 0xf4, eax; hlt
  ]
  file.set(code, 0x400 + (flags & 1 ? 0x200 : 0))
  return file
}
