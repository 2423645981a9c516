/**
 * The pair of 8259A interrupt controllers as KVM has it (Linux 7.3 arch/x86/kvm/i8259.c; Intel 8259A data sheet).
 * State: CHIP_PICS (struct PIC) of the VM's device block.
 */
import { irqAcked, irqUnmasked } from './irq'
import {
  CHIP_PIC_OUTPUT,
  CHIP_PIC_PRESENT,
  CHIP_PICS,
  EVENT_INTERRUPT,
  PIC_AUTO_EOI,
  PIC_ELCR,
  PIC_ELCR_MASK,
  PIC_IMR,
  PIC_INIT4,
  PIC_INIT_STATE,
  PIC_IRQ_BASE,
  PIC_IRR,
  PIC_ISR,
  PIC_LAST_IRR,
  PIC_POLL,
  PIC_PRIORITY_ADD,
  PIC_READ_REG_SELECT,
  PIC_ROTATE_ON_AUTO_EOI,
  PIC_SPECIAL_FULLY_NESTED,
  PIC_SPECIAL_MASK,
  VM_BSP_ID,
  VM_VCPU_COUNT,
  VM_VCPUS,
  CPU_ID,
} from '../generated/layout'
import { lapicAcceptsPic } from './lapic-state'
import { chipOf, signal, vmOf } from './state'

const SIZE: usize = 16

export function picHasPort(port: u32): bool {
  return port == 0x20 || port == 0x21 || port == 0xa0 || port == 0xa1 || port == 0x4d0 || port == 0x4d1
}

export function picCreate(chip: usize): void {
  memory.fill(chip + CHIP_PICS, 0, SIZE * 2)
  store<u8>(chip + CHIP_PICS, 0xf8, PIC_ELCR_MASK)
  store<u8>(chip + CHIP_PICS + SIZE, 0xde, PIC_ELCR_MASK)
  store<u32>(chip, 0, CHIP_PIC_OUTPUT)
  store<u32>(chip, 1, CHIP_PIC_PRESENT)
}

/** pic_set_irq1, edge and level: 1 taken, 0 coalesced, -1 masked. */
function setInput(p: usize, irq: u32, level: bool): i32 {
  const mask = <u8>((<u32>1) << irq)
  let result: i32 = 1
  if (load<u8>(p, PIC_ELCR) & mask) {
    if (level) {
      if (load<u8>(p, PIC_IRR) & mask) result = 0
      store<u8>(p, load<u8>(p, PIC_IRR) | mask, PIC_IRR)
      store<u8>(p, load<u8>(p, PIC_LAST_IRR) | mask, PIC_LAST_IRR)
    } else {
      store<u8>(p, load<u8>(p, PIC_IRR) & ~mask, PIC_IRR)
      store<u8>(p, load<u8>(p, PIC_LAST_IRR) & ~mask, PIC_LAST_IRR)
    }
  } else if (level) {
    if ((load<u8>(p, PIC_LAST_IRR) & mask) == 0) {
      if (load<u8>(p, PIC_IRR) & mask) result = 0
      store<u8>(p, load<u8>(p, PIC_IRR) | mask, PIC_IRR)
    }
    store<u8>(p, load<u8>(p, PIC_LAST_IRR) | mask, PIC_LAST_IRR)
  } else {
    store<u8>(p, load<u8>(p, PIC_LAST_IRR) & ~mask, PIC_LAST_IRR)
  }
  return load<u8>(p, PIC_IMR) & mask ? -1 : result
}

/** Position of the highest priority in `mask`, 8 if none. */
function priority(p: usize, mask: u32): u32 {
  if (mask == 0) return 8
  const add = <u32>load<u8>(p, PIC_PRIORITY_ADD)
  let n: u32 = 0
  while ((mask & (1 << ((n + add) & 7))) == 0) n++
  return n
}

/** The interrupt this chip would deliver, or -1. Special mask mode is kept but has no effect, as in KVM. */
function pending(chip: usize, p: usize): i32 {
  let n = priority(p, <u32>(load<u8>(p, PIC_IRR) & ~load<u8>(p, PIC_IMR)))
  if (n == 8) return -1
  let mask = <u32>load<u8>(p, PIC_ISR)
  if (load<u8>(p, PIC_SPECIAL_FULLY_NESTED) && p == chip + CHIP_PICS) mask &= ~(<u32>4)
  return n < priority(p, mask) ? <i32>((n + <u32>load<u8>(p, PIC_PRIORITY_ADD)) & 7) : -1
}

/** Recomputes INTR and tells the boot processor when it rises. */
function update(vm: usize, chip: usize): void {
  const master = chip + CHIP_PICS
  if (pending(chip, master + SIZE) >= 0) {
    setInput(master, 2, true)
    setInput(master, 2, false)
  }
  const out = pending(chip, master) >= 0
  store<u32>(chip, out ? 1 : 0, CHIP_PIC_OUTPUT)
  if (out) notify(vm)
}

/** Wakes the vCPUs; whether LINT0 accepts ExtINT is decided at injection. */
function notify(vm: usize): void {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (s && (load<u32>(s, CPU_ID) == load<u32>(vm, VM_BSP_ID) || i == 0 || lapicAcceptsPic(s))) signal(s, EVENT_INTERRUPT)
  }
}

/** An input line of the pair. */
export function picSetLine(vm: usize, irq: u32, level: bool): i32 {
  const chip = chipOf(vm)
  if (!chip || load<u32>(chip, CHIP_PIC_PRESENT) == 0 || irq > 15) return -1
  const result = setInput(chip + CHIP_PICS + <usize>(irq >> 3) * SIZE, irq & 7, level)
  update(vm, chip)
  return result
}

/** INTR is asserted. */
export function picOutput(vm: usize): bool {
  const chip = chipOf(vm)
  return chip != 0 && load<u32>(chip, CHIP_PIC_PRESENT) != 0 && load<u32>(chip, CHIP_PIC_OUTPUT) != 0
}

function acknowledge(vm: usize, p: usize, irq: u32, slave: bool): void {
  const mask = <u8>((<u32>1) << irq)
  store<u8>(p, load<u8>(p, PIC_ISR) | mask, PIC_ISR)
  if ((load<u8>(p, PIC_ELCR) & mask) == 0) store<u8>(p, load<u8>(p, PIC_IRR) & ~mask, PIC_IRR)
  if (load<u8>(p, PIC_AUTO_EOI)) {
    if (load<u8>(p, PIC_ROTATE_ON_AUTO_EOI)) store<u8>(p, <u8>((irq + 1) & 7), PIC_PRIORITY_ADD)
    clearIsr(vm, p, irq, slave)
  }
}

function clearIsr(vm: usize, p: usize, irq: u32, slave: bool): void {
  store<u8>(p, load<u8>(p, PIC_ISR) & ~(<u8>((<u32>1) << irq)), PIC_ISR)
  irqAcked(vm, slave ? 1 : 0, irq)
}

/** INTA: the vector (spurious 7 or 15 included). */
export function picRead(vm: usize): u32 {
  const chip = chipOf(vm)
  const master = chip + CHIP_PICS
  const slave = master + SIZE
  let vector: u32
  const irq = pending(chip, master)
  if (irq >= 0) {
    acknowledge(vm, master, irq, false)
    if (irq == 2) {
      let irq2 = pending(chip, slave)
      if (irq2 >= 0) acknowledge(vm, slave, irq2, true)
      else irq2 = 7
      vector = <u32>load<u8>(slave, PIC_IRQ_BASE) + irq2
    } else {
      vector = <u32>load<u8>(master, PIC_IRQ_BASE) + irq
    }
  } else {
    vector = <u32>load<u8>(master, PIC_IRQ_BASE) + 7
  }
  update(vm, chip)
  return vector
}

/** Some vCPU takes ExtINT. */
function accepted(vm: usize): bool {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (s && lapicAcceptsPic(s)) return true
  }
  return false
}

/** kvm_pic_reset (ICW1): keeps ELCR and ISR; edges that waited count as acknowledged. */
function reset(vm: usize, p: usize, slave: bool): void {
  const old = <u32>(load<u8>(p, PIC_IRR) & ~load<u8>(p, PIC_ELCR))
  store<u8>(p, 0, PIC_LAST_IRR)
  store<u8>(p, load<u8>(p, PIC_IRR) & load<u8>(p, PIC_ELCR), PIC_IRR)
  store<u8>(p, 0, PIC_IMR)
  store<u8>(p, 0, PIC_PRIORITY_ADD)
  store<u8>(p, 0, PIC_SPECIAL_MASK)
  store<u8>(p, 0, PIC_READ_REG_SELECT)
  if (load<u8>(p, PIC_INIT4) == 0) {
    store<u8>(p, 0, PIC_SPECIAL_FULLY_NESTED)
    store<u8>(p, 0, PIC_AUTO_EOI)
  }
  store<u8>(p, 1, PIC_INIT_STATE)
  if (!accepted(vm)) return
  for (let irq: u32 = 0; irq < 8; irq++) if (old & (1 << irq)) clearIsr(vm, p, irq, slave)
}

function command(vm: usize, chip: usize, p: usize, slave: bool, value: u32): void {
  if (value & 0x10) {
    store<u8>(p, <u8>(value & 1), PIC_INIT4)
    reset(vm, p, slave)
    return
  }
  if (value & 8) {
    if (value & 4) store<u8>(p, 1, PIC_POLL)
    if (value & 2) store<u8>(p, <u8>(value & 1), PIC_READ_REG_SELECT)
    if (value & 0x40) store<u8>(p, <u8>((value >> 5) & 1), PIC_SPECIAL_MASK)
    return
  }
  const cmd = value >> 5
  switch (cmd) {
    case 0:
    case 4:
      store<u8>(p, <u8>(cmd >> 2), PIC_ROTATE_ON_AUTO_EOI)
      break
    case 1:
    case 5: {
      const n = priority(p, <u32>load<u8>(p, PIC_ISR))
      if (n != 8) {
        const irq = (n + <u32>load<u8>(p, PIC_PRIORITY_ADD)) & 7
        if (cmd == 5) store<u8>(p, <u8>((irq + 1) & 7), PIC_PRIORITY_ADD)
        clearIsr(vm, p, irq, slave)
        update(vm, chip)
      }
      break
    }
    case 3:
      clearIsr(vm, p, value & 7, slave)
      update(vm, chip)
      break
    case 6:
      store<u8>(p, <u8>((value + 1) & 7), PIC_PRIORITY_ADD)
      update(vm, chip)
      break
    case 7:
      store<u8>(p, <u8>((value + 1) & 7), PIC_PRIORITY_ADD)
      clearIsr(vm, p, value & 7, slave)
      update(vm, chip)
      break
    default:
      break
  }
}

function data(vm: usize, chip: usize, p: usize, slave: bool, value: u32): void {
  switch (load<u8>(p, PIC_INIT_STATE)) {
    case 0:
      const unmasked = <u32>load<u8>(p, PIC_IMR) & ~value
      store<u8>(p, <u8>value, PIC_IMR)
      for (let irq: u32 = 0; irq < 8; irq++) if (unmasked & (1 << irq)) irqUnmasked(vm, slave ? 1 : 0, irq)
      update(vm, chip)
      break
    case 1:
      store<u8>(p, <u8>(value & 0xf8), PIC_IRQ_BASE)
      store<u8>(p, 2, PIC_INIT_STATE)
      break
    case 2:
      store<u8>(p, load<u8>(p, PIC_INIT4) ? 3 : 0, PIC_INIT_STATE)
      break
    default:
      store<u8>(p, <u8>((value >> 4) & 1), PIC_SPECIAL_FULLY_NESTED)
      store<u8>(p, <u8>((value >> 1) & 1), PIC_AUTO_EOI)
      store<u8>(p, 0, PIC_INIT_STATE)
      break
  }
}

function picWrite(vm: usize, port: u32, value: u32): void {
  const chip = chipOf(vm)
  if (port >= 0x4d0) {
    const p = chip + CHIP_PICS + <usize>(port & 1) * SIZE
    store<u8>(p, <u8>value & load<u8>(p, PIC_ELCR_MASK), PIC_ELCR)
    return
  }
  const slave = (port & 0x80) != 0
  const p = chip + CHIP_PICS + (slave ? SIZE : 0)
  if (port & 1) data(vm, chip, p, slave, value)
  else command(vm, chip, p, slave, value)
}

function pollRead(vm: usize, chip: usize, p: usize, slave: bool): u32 {
  const n = pending(chip, p)
  if (n < 0) {
    update(vm, chip)
    return 7
  }
  if (slave) {
    const master = chip + CHIP_PICS
    store<u8>(master, load<u8>(master, PIC_ISR) & ~(<u8>4), PIC_ISR)
    store<u8>(master, load<u8>(master, PIC_IRR) & ~(<u8>4), PIC_IRR)
  }
  store<u8>(p, load<u8>(p, PIC_IRR) & ~(<u8>((<u32>1) << (<u32>n))), PIC_IRR)
  clearIsr(vm, p, n, slave)
  if (slave || n != 2) update(vm, chip)
  return n | 0x80
}

function picReadPort(vm: usize, port: u32): u32 {
  const chip = chipOf(vm)
  if (port >= 0x4d0) return <u32>load<u8>(chip + CHIP_PICS + <usize>(port & 1) * SIZE, PIC_ELCR)
  const slave = (port & 0x80) != 0
  const p = chip + CHIP_PICS + (slave ? SIZE : 0)
  if (load<u8>(p, PIC_POLL)) {
    store<u8>(p, 0, PIC_POLL)
    return pollRead(vm, chip, p, slave)
  }
  if (port & 1) return <u32>load<u8>(p, PIC_IMR)
  return <u32>(load<u8>(p, PIC_READ_REG_SELECT) ? load<u8>(p, PIC_ISR) : load<u8>(p, PIC_IRR))
}

export function picBusRead(s: usize, port: u32): u32 {
  return picReadPort(vmOf(s), port)
}
export function picBusWrite(s: usize, port: u32, value: u32): void {
  picWrite(vmOf(s), port, value)
}

/** kvm_pic_state (16 bytes) has PIC's layout: copies of the chip's first 16 bytes. */
export function picGet(vm: usize, slave: bool, to: usize): void {
  memory.copy(to, chipOf(vm) + CHIP_PICS + (slave ? SIZE : 0), SIZE)
}
export function picSet(vm: usize, slave: bool, from: usize): void {
  const chip = chipOf(vm)
  memory.copy(chip + CHIP_PICS + (slave ? SIZE : 0), from, SIZE)
  update(vm, chip)
}
