/**
 * A bzImage that a PC BIOS boots (QEMU -kernel without UEFI): an option ROM with a bootstrap entry vector (BIOS Boot Specification
 * 1.01, 3.1; Plug and Play BIOS 1.0A, 3.2) fetches setup sectors, kernel, command line and initrd through fw_cfg's DMA and enters
 * the real-mode setup (Linux Documentation/arch/x86/boot.rst, "Running the kernel"). SeaBIOS takes the ROM from the file genroms/.
 */
import { CloisterError } from '../../errors.ts'
import { FW_CFG } from '../devices/fw-cfg.ts'
import { splitMemory } from '../memory.ts'
import { detect } from './detect.ts'
import { loadKernel, type KernelOptions } from './kernel.ts'

const SETUP = 0x10000
const CMDLINE = 0x20000
const PROTECTED = 0x100000
/** Below the end of memory: what the BIOS keeps there for tables. */
const BIOS_TOP = 0x28000
const ROM_SIZE = 512
const PNP = 0x20
const ENTRY = 0x48
const COMMANDS = 0xa0
const DMA_READ_SELECTED = 0x0a

/** 16-bit code at ENTRY; it works on its stack at 1000:fff0, because the ROM's own copy can be write-protected. */
const CODE = Uint8Array.of(
  ...[0xfa, 0xfc], // cli; cld
  ...[0xb8, 0x00, 0x10, 0x8e, 0xd0, 0xbc, 0xe0, 0xff], // mov ax, 0x1000; mov ss, ax; mov sp, 0xffe0
  ...[0x8e, 0xc0, 0x0e, 0x1f], // mov es, ax; push cs; pop ds
  ...[0xbe, COMMANDS + 2, 0x00, 0x8b, 0x1e, COMMANDS, 0x00], // mov si, COMMANDS + 2; mov bx, [COMMANDS]
  ...[0xbf, 0xf0, 0xff, 0xb9, 0x08, 0x00, 0xf3, 0xa5], // next: mov di, 0xfff0; mov cx, 8; rep movsw
  ...[0xba, 0x14, 0x05, 0x66, 0x31, 0xc0, 0x66, 0xef], // mov dx, 0x514; xor eax, eax; out dx, eax
  ...[0x66, 0xb8, 0x00, 0x01, 0xff, 0xf0, 0xb2, 0x18, 0x66, 0xef], // mov eax, bswap(0x1fff0); mov dl, 0x18; out dx, eax
  ...[0x26, 0x66, 0xa1, 0xf0, 0xff, 0x66, 0x25, 0xff, 0xff, 0xff, 0xfe, 0x75, 0xf3], // wait: mov eax, es:[0xfff0]; and eax, ~error; jnz wait
  ...[0x26, 0xf6, 0x06, 0xf3, 0xff, 0x01, 0x75, 0x10], // test byte es:[0xfff3], 1; jnz failed
  ...[0x4b, 0x75, 0xce], // dec bx; jnz next
  ...[0x8c, 0xd0, 0x8e, 0xd8, 0x8e, 0xe0, 0x8e, 0xe8], // mov ax, ss; mov ds, ax; mov fs, ax; mov gs, ax
  ...[0xea, 0x00, 0x00, 0x20, 0x10], // jmp 1020:0000, the setup's entry
  ...[0xcd, 0x18], // failed: int 0x18, no boot here
)

function optionRom(commands: readonly { item: number; length: number; address: number }[]): Uint8Array {
  const rom = new Uint8Array(ROM_SIZE)
  const view = new DataView(rom.buffer)
  rom.set([0x55, 0xaa, ROM_SIZE / 512, 0xcb]) // the initialisation only returns
  view.setUint16(0x1a, PNP, true)
  rom.set(new TextEncoder().encode('$PnP'), PNP)
  rom.set([1, 2], PNP + 4)
  view.setUint16(PNP + 16, ENTRY - 8, true) // product name
  view.setUint16(PNP + 26, ENTRY, true)
  rom.set(new TextEncoder().encode('Linux'), ENTRY - 8)
  rom.set(CODE, ENTRY)
  view.setUint16(COMMANDS, commands.length, true)
  for (const [i, { item, length, address }] of commands.entries()) {
    const at = COMMANDS + 2 + i * 16
    view.setUint32(at, ((item << 16) | DMA_READ_SELECTED) >>> 0)
    view.setUint32(at + 4, length)
    view.setBigUint64(at + 8, BigInt(address))
  }
  rom[ROM_SIZE - 1] = -rom.reduce((a, b) => a + b, 0) & 255
  return rom
}

/** The kernel with its header filled in as a boot loader does, and the files that make SeaBIOS start it. */
export function biosBoot(options: KernelOptions): { kernel: Uint8Array; files: { name: string; bytes: Uint8Array }[] } {
  if (detect(options.kernel) !== 'bzImage')
    throw new CloisterError('kernel', 'kernel: a firmware that is not UEFI boots a bzImage only; others start without firmware')
  // Every rule of the file and of where its parts go.
  loadKernel(options)
  const { initrd, append = '', memory } = options
  const kernel = options.kernel.slice()
  const view = new DataView(kernel.buffer)
  const setup = ((kernel[0x1f1] || 4) + 1) * 512
  const text = (s: string): Uint8Array => new TextEncoder().encode(`${s}\0`)
  kernel[0x210] = 0xff // type_of_loader: none of the registered ones
  kernel[0x211] = (kernel[0x211] ?? 0) | 0x80 // CAN_USE_HEAP
  view.setUint16(0x224, CMDLINE - SETUP - 0x200, true)
  view.setUint32(0x228, CMDLINE, true)
  const commands: { item: number; length: number; address: number }[] = [
    { item: FW_CFG.SETUP_DATA, length: setup, address: SETUP },
    { item: FW_CFG.KERNEL_DATA, length: kernel.length - setup, address: PROTECTED },
    { item: FW_CFG.CMDLINE_DATA, length: text(append).length, address: CMDLINE },
  ]
  if (initrd) {
    const limit = Math.min(splitMemory(memory).low - BIOS_TOP, view.getUint32(0x22c, true) + 1)
    const address = Math.floor((limit - initrd.length) / 4096) * 4096
    view.setUint32(0x218, address, true)
    view.setUint32(0x21c, initrd.length, true)
    commands.push({ item: FW_CFG.INITRD_DATA, length: initrd.length, address })
  }
  return {
    kernel,
    files: [
      { name: 'bootorder', bytes: text('/rom@genroms/kernel.rom') },
      { name: 'genroms/kernel.rom', bytes: optionRom(commands) },
    ],
  }
}
