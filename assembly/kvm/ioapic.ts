/**
 * 82093AA I/O APIC as KVM has it (Linux 7.3 arch/x86/kvm/ioapic.c; Intel 82093AA data sheet), version 0x11, 24 pins.
 * State: CHIP_IOAPIC_* of the VM's device block.
 */
import { eoiRouted, irqAcked, irqUnmasked } from './irq'
import { lapicDeliver } from './lapic'
import { chipOf } from './state'
import {
  CHIP_IOAPIC_BASE,
  CHIP_IOAPIC_ID,
  CHIP_IOAPIC_IRR,
  CHIP_IOAPIC_DELIVERED,
  CHIP_IOAPIC_PRESENT,
  CHIP_IOAPIC_SELECT,
  CHIP_IOAPIC_TABLE,
  CHIP_RESAMPLE_GSIS,
  VM_IRQCHIP,
} from '../generated/layout'

const PINS: u32 = 24
/** Redirection entry bits. */
const REMOTE_IRR: u64 = 0x4000
const LEVEL: u64 = 0x8000
const MASKED: u64 = 0x10000
const DELIVERY_STATUS: u64 = 0x1000

export function ioapicCreate(vm: usize): void {
  const chip = chipOf(vm)
  store<u32>(chip, 1, CHIP_IOAPIC_PRESENT)
  store<u64>(chip, 0xfec00000, CHIP_IOAPIC_BASE)
  store<u32>(chip, 0, CHIP_IOAPIC_SELECT)
  store<u32>(chip, 0, CHIP_IOAPIC_ID)
  store<u32>(chip, 0, CHIP_IOAPIC_IRR)
  store<u32>(chip, 0, CHIP_IOAPIC_DELIVERED)
  for (let i: usize = 0; i < PINS; i++) store<u64>(chip + CHIP_IOAPIC_TABLE + i * 8, MASKED)
}

function entryAt(chip: usize, pin: u32): usize {
  return chip + CHIP_IOAPIC_TABLE + ((<usize>pin) << 3)
}

/** ioapic_service: sends the entry's message. */
function service(vm: usize, chip: usize, pin: u32): i32 {
  const at = entryAt(chip, pin)
  const e = load<u64>(at)
  if (e & MASKED || ((e & LEVEL) != 0 && (e & REMOTE_IRR) != 0)) return -1
  const level = (e & LEVEL) != 0
  if (!level) store<u32>(chip, load<u32>(chip, CHIP_IOAPIC_DELIVERED) | (1 << pin), CHIP_IOAPIC_DELIVERED)
  const result = lapicDeliver(vm, 0, <u32>(e >> 8) & 7, <u32>e & 0xff, (e & 0x800) != 0, <u32>(e >> 56), level, true, false)
  if (level && result > 0) store<u64>(at, load<u64>(at) | REMOTE_IRR)
  return result
}

/** ioapic_set_irq: above 0 delivered, 0 coalesced, -1 masked or waiting for an EOI. */
export function ioapicSetLine(vm: usize, pin: u32, level: bool): i32 {
  const chip = chipOf(vm)
  if (!chip || load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0 || pin >= PINS) return -1
  const mask: u32 = 1 << pin
  const irr = load<u32>(chip, CHIP_IOAPIC_IRR)
  if (!level) {
    store<u32>(chip, irr & ~mask, CHIP_IOAPIC_IRR)
    return 1
  }
  store<u32>(chip, irr | mask, CHIP_IOAPIC_IRR)
  if ((load<u64>(entryAt(chip, pin)) & LEVEL) == 0) {
    store<u32>(chip, load<u32>(chip, CHIP_IOAPIC_DELIVERED) & ~mask, CHIP_IOAPIC_DELIVERED)
    if (irr & mask) return 0
  }
  return service(vm, chip, pin)
}

/** EOI of a vector, broadcast by a local APIC: kvm_ioapic_update_eoi_one. An edge is only acknowledged. */
export function ioapicEoi(vm: usize, vector: u32, level: bool): void {
  const chip = chipOf(vm)
  if (!chip || load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0) return
  for (let pin: u32 = 0; pin < PINS; pin++) {
    const at = entryAt(chip, pin)
    if ((<u32>load<u64>(at) & 0xff) != vector) continue
    irqAcked(vm, 2, pin)
    if (!level) continue
    const e = load<u64>(at) & ~REMOTE_IRR
    store<u64>(at, e)
    if ((e & MASKED) == 0 && (load<u32>(chip, CHIP_IOAPIC_IRR) & (1 << pin)) != 0) service(vm, chip, pin)
  }
}

/** ioapic_write_indirect. */
function writeRegister(vm: usize, chip: usize, value: u32): void {
  const select = load<u32>(chip, CHIP_IOAPIC_SELECT)
  if (select == 0) {
    store<u32>(chip, (value >> 24) & 15, CHIP_IOAPIC_ID)
    return
  }
  if (select < 0x10 || select >= 0x10 + 2 * PINS) return
  const pin = (select - 0x10) >> 1
  const at = entryAt(chip, pin)
  const old = load<u64>(at)
  let e: u64
  if (select & 1) {
    e = (old & 0xffffffff) | ((<u64>value) << 32)
  } else {
    // delivery status and remote IRR are read-only
    const readOnly = REMOTE_IRR | DELIVERY_STATUS
    e = (old & 0xffffffff00000000) | (<u64>value & ~readOnly) | (old & readOnly)
    // an edge entry cannot hold remote IRR: this is how guests clear it
    if ((e & LEVEL) == 0) e &= ~REMOTE_IRR
  }
  store<u64>(at, e)
  if ((old & MASKED) != 0 && (e & MASKED) == 0) irqUnmasked(vm, 2, pin)
  const irr = load<u32>(chip, CHIP_IOAPIC_IRR)
  if ((e & LEVEL) != 0 && (irr & (1 << pin)) != 0 && (e & (MASKED | REMOTE_IRR)) == 0) service(vm, chip, pin)
}

/** MMIO at base + offset: register select at 0x00, window at 0x10, EOI at 0x40 is absent in version 0x11. */
export function ioapicWrite(vm: usize, offset: u32, value: u32): void {
  const chip = chipOf(vm)
  if ((offset & 0xff) == 0) store<u32>(chip, value & 0xff, CHIP_IOAPIC_SELECT)
  else if ((offset & 0xff) == 0x10) writeRegister(vm, chip, value)
}

export function ioapicRead(vm: usize, offset: u32): u32 {
  const chip = chipOf(vm)
  const select = load<u32>(chip, CHIP_IOAPIC_SELECT)
  if ((offset & 0xff) == 0) return select
  if ((offset & 0xff) != 0x10) return 0
  if (select == 0 || select == 2) return (load<u32>(chip, CHIP_IOAPIC_ID) & 15) << 24
  if (select == 1) return 0x11 | ((PINS - 1) << 16)
  if (select < 0x10 || select >= 0x10 + 2 * PINS) return select < 0x10 ? 0 : 0xffffffff
  const e = load<u64>(entryAt(chip, (select - 0x10) >> 1))
  return <u32>((select & 1) != 0 ? e >> 32 : e)
}

/** True if gpa lies in the I/O APIC's 256 bytes. */
export function ioapicHas(vm: usize, gpa: u64): bool {
  const chip = chipOf(vm)
  return chip != 0 && load<u32>(chip, CHIP_IOAPIC_PRESENT) != 0 && gpa - load<u64>(chip, CHIP_IOAPIC_BASE) < 0x100
}

/** struct kvm_ioapic_state: base, ioregsel, id, irr, pad, 24 entries (216 bytes). */
export function ioapicGet(vm: usize, to: usize): void {
  const chip = chipOf(vm)
  store<u64>(to, load<u64>(chip, CHIP_IOAPIC_BASE))
  store<u32>(to + 8, load<u32>(chip, CHIP_IOAPIC_SELECT))
  store<u32>(to + 12, load<u32>(chip, CHIP_IOAPIC_ID))
  store<u32>(to + 16, load<u32>(chip, CHIP_IOAPIC_IRR) & ~load<u32>(chip, CHIP_IOAPIC_DELIVERED))
  store<u32>(to + 20, 0)
  memory.copy(to + 24, chip + CHIP_IOAPIC_TABLE, 192)
}

export function ioapicSet(vm: usize, from: usize): void {
  const chip = chipOf(vm)
  store<u64>(chip, load<u64>(from), CHIP_IOAPIC_BASE)
  store<u32>(chip, load<u32>(from + 8), CHIP_IOAPIC_SELECT)
  store<u32>(chip, load<u32>(from + 12), CHIP_IOAPIC_ID)
  memory.copy(chip + CHIP_IOAPIC_TABLE, from + 24, 192)
  store<u32>(chip, 0, CHIP_IOAPIC_IRR)
  store<u32>(chip, 0, CHIP_IOAPIC_DELIVERED)
  // kvm_ioapic_inject_all: pending requests are injected anew
  const irr = load<u32>(from + 16)
  for (let pin: u32 = 0; pin < PINS; pin++) if (irr & (1 << pin)) ioapicSetLine(vm, pin, true)
}

/** kvm_ioapic_handles_vector: its EOI concerns the IOAPIC (level-triggered, or the RTC's pin). */
export function ioapicHandles(vm: usize, vector: u32): bool {
  if (load<u32>(vm, VM_IRQCHIP) == 2) return eoiRouted(vm, vector)
  const chip = chipOf(vm)
  if (load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0) return false
  for (let pin: u32 = 0; pin < PINS; pin++) {
    const e = load<u64>(entryAt(chip, pin))
    if ((<u32>e & 0xff) == vector && ((e & LEVEL) != 0 || pin == 8)) return true
  }
  return load<u32>(chip, CHIP_RESAMPLE_GSIS) != 0
}
