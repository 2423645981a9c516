/**
 * What a PC BIOS leaves behind for a Multiboot guest that goes back to real mode (kvm-unit-tests' realmode): interrupt
 * vectors that return, its data area (Xen looks there for the end of low memory), the 8259s at 0x08 and 0x70 with SeaBIOS's masks, the 8254 ticking at 18.2 Hz.
 */
import type { Vm } from '../index.ts'
import type { LoadedImage } from './loaders/flat.ts'

/** The traditional dummy handler and timer interrupt of a PC BIOS. */
const DUMMY = 0xff53
const TIMER = 0xfea5
const BIOS = 0xf0000
const SELECTOR = 0xf000
const TIMER_VECTOR = 8
/** Extended BIOS data area: the last KiB below 640 KiB. */
export const EBDA = 0x9fc00

export function biosVectors(): LoadedImage['pieces'] {
  const table = new Uint8Array(0x400)
  const view = new DataView(table.buffer)
  for (let v = 0; v < 256; v++) {
    view.setUint16(v * 4, v === TIMER_VECTOR ? TIMER : DUMMY, true)
    view.setUint16(v * 4 + 2, SELECTOR, true)
  }
  // BIOS data area: COM1, EBDA segment, KiB of base memory. The EBDA begins with its size in KiB.
  const area = new Uint8Array(0x100)
  const words = new DataView(area.buffer)
  words.setUint16(0x00, 0x3f8, true)
  words.setUint16(0x0e, EBDA >> 4, true)
  words.setUint16(0x13, EBDA >> 10, true)
  return [
    { address: 0, bytes: table },
    { address: 0x400, bytes: area },
    { address: EBDA, bytes: Uint8Array.of(1) },
    // push ax; mov al, 0x20; out 0x20, al; pop ax; iret
    { address: BIOS + TIMER, bytes: Uint8Array.of(0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf) },
    { address: BIOS + DUMMY, bytes: Uint8Array.of(0xcf) },
  ]
}

/** What a BIOS has at F000:FFF0 for who jumps there (Linux with `reboot=b`): a reset. mov dx, 0xcf9; mov al, 6; out dx, al; hlt */
export const resetVector = { address: 0xffff0, bytes: Uint8Array.of(0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4) } as const

/** struct kvm_pic_state, the fields that are not zero after initialisation. */
function pic(chip: 0 | 1, mask: number, base: number, elcrMask: number): Uint8Array {
  const bytes = new Uint8Array(520)
  bytes[0] = chip
  const state = bytes.subarray(8)
  state[2] = mask
  state[5] = base
  state[13] = 1 // init4
  state[15] = elcrMask
  return bytes
}

/** Programs the in-kernel interrupt controllers and timer through their ioctls. */
export function applyBiosState(vm: Vm): void {
  vm.ioctl('KVM_SET_IRQCHIP', pic(0, 0xb8, 0x08, 0xf8))
  vm.ioctl('KVM_SET_IRQCHIP', pic(1, 0x8e, 0x70, 0xde))
  const pit = new Uint8Array(112)
  vm.ioctl('KVM_GET_PIT2', pit)
  new DataView(pit.buffer).setUint32(0, 0x10000, true)
  pit[12] = 3 // low then high byte
  pit[13] = 2 // rate generator
  pit[15] = 1 // gate
  vm.ioctl('KVM_SET_PIT2', pit)
}
