/**
 * 82093AA I/O APIC as KVM has it (Linux 7.3 arch/x86/kvm/ioapic.c; Intel 82093AA data sheet), version 0x11, 24 pins.
 * State: CHIP_IOAPIC_* of the VM's device block.
 */
import { eoiRouted, irqAcked, irqResampled, irqUnmasked } from './irq'
import { lapicDeliver, lapicNames } from './lapic-delivery'
import { lapicPendingEoi } from './lapic-state'
import { chipOf, vkvm } from './state'
import {
  CHIP_IOAPIC_BASE,
  CHIP_IOAPIC_ID,
  CHIP_IOAPIC_IRR,
  CHIP_IOAPIC_DELIVERED,
  CHIP_IOAPIC_PRESENT,
  CHIP_IOAPIC_SELECT,
  CHIP_IOAPIC_TABLE,
  CHIP_RESAMPLE_GSIS,
  CHIP_RTC_PENDING,
  CHIP_RTC_TRACKING,
  VKVM_RTC_VECTOR,
  VM_IRQCHIP,
  VM_VCPU_COUNT,
  VM_VCPUS,
} from '../generated/layout'

const PINS: u32 = 24
/** The RTC's pin: userspace learns whether its last interrupt was ended (KVM_IRQ_LINE_STATUS). */
const RTC_PIN: u32 = 8
/** Where the bus has it, whatever KVM_SET_IRQCHIP says of its base. */
const BASE: u64 = 0xfec00000
/** Redirection entry bits. */
const REMOTE_IRR: u64 = 0x4000
const LEVEL: u64 = 0x8000
const MASKED: u64 = 0x10000
const DELIVERY_STATUS: u64 = 0x1000

export function ioapicCreate(vm: usize): void {
  const chip = chipOf(vm)
  store<u32>(chip, 1, CHIP_IOAPIC_PRESENT)
  store<u64>(chip, BASE, CHIP_IOAPIC_BASE)
  store<u32>(chip, 0, CHIP_IOAPIC_SELECT)
  store<u32>(chip, 0, CHIP_IOAPIC_ID)
  store<u32>(chip, 0, CHIP_IOAPIC_IRR)
  store<u32>(chip, 0, CHIP_IOAPIC_DELIVERED)
  for (let i: usize = 0; i < PINS; i++) store<u64>(chip + CHIP_IOAPIC_TABLE + i * 8, MASKED)
}

function entryAt(chip: usize, pin: u32): usize {
  return chip + CHIP_IOAPIC_TABLE + ((<usize>pin) << 3)
}

/** The vCPU has the vector of pin 8 in service or requested: true if that is news. */
function trackRtc(s: usize, chip: usize): bool {
  const e = load<u64>(entryAt(chip, RTC_PIN))
  const vector = <u32>e & 0xff
  if (load<u32>(vkvm(s), VKVM_RTC_VECTOR) != 0) return false
  if (!lapicNames(s, (e & 0x800) != 0, <u32>(e >> 56)) || !lapicPendingEoi(s, vector)) return false
  store<u32>(vkvm(s), 0x100 | vector, VKVM_RTC_VECTOR)
  return true
}

/** kvm_rtc_eoi_tracking_restore_one: the local APIC's state was set. */
export function ioapicRestoreRtc(vm: usize, s: usize): void {
  const chip = chipOf(vm)
  if (!chip || load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0) return
  const pending = load<u32>(chip, CHIP_RTC_PENDING)
  if (trackRtc(s, chip)) store<u32>(chip, pending + 1, CHIP_RTC_PENDING)
  else if (load<u32>(vkvm(s), VKVM_RTC_VECTOR) != 0 && !lapicPendingEoi(s, load<u32>(vkvm(s), VKVM_RTC_VECTOR) & 0xff)) endRtc(s, chip)
}

function endRtc(s: usize, chip: usize): void {
  store<u32>(vkvm(s), 0, VKVM_RTC_VECTOR)
  const pending = load<u32>(chip, CHIP_RTC_PENDING)
  if (pending) store<u32>(chip, pending - 1, CHIP_RTC_PENDING)
}

/** rtc_irq_eoi_tracking_reset, and kvm_rtc_eoi_tracking_restore_all. */
function resetRtc(vm: usize, chip: usize, restore: bool): void {
  let pending: u32 = 0
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (!s) continue
    store<u32>(vkvm(s), 0, VKVM_RTC_VECTOR)
    if (restore && trackRtc(s, chip)) pending++
  }
  store<u32>(chip, pending, CHIP_RTC_PENDING)
}

/** ioapic_service: sends the entry's message. */
function service(vm: usize, chip: usize, pin: u32, status: bool): i32 {
  const at = entryAt(chip, pin)
  const e = load<u64>(at)
  if (e & MASKED || ((e & LEVEL) != 0 && (e & REMOTE_IRR) != 0)) return -1
  const level = (e & LEVEL) != 0
  if (!level) store<u32>(chip, load<u32>(chip, CHIP_IOAPIC_DELIVERED) | (1 << pin), CHIP_IOAPIC_DELIVERED)
  const rtc = status && pin == RTC_PIN
  if (rtc) store<u32>(chip, 1, CHIP_RTC_TRACKING)
  const result = lapicDeliver(vm, 0, <u32>(e >> 8) & 7, <u32>e & 0xff, (e & 0x800) != 0, <u32>(e >> 56), level, true, false)
  if (rtc) {
    store<u32>(chip, 0, CHIP_RTC_TRACKING)
    store<u32>(chip, result < 0 ? 0 : <u32>result, CHIP_RTC_PENDING)
  }
  if (level && result != 0) store<u64>(at, load<u64>(at) | REMOTE_IRR)
  return result
}

/** ioapic_set_irq: above 0 delivered, 0 coalesced, -1 masked or waiting for an EOI. `status`: by KVM_IRQ_LINE_STATUS. */
export function ioapicSetLine(vm: usize, pin: u32, level: bool, status: bool): i32 {
  const chip = chipOf(vm)
  if (!chip || load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0 || pin >= PINS) return -1
  const mask: u32 = 1 << pin
  const irr = load<u32>(chip, CHIP_IOAPIC_IRR)
  if (!level) {
    store<u32>(chip, irr & ~mask, CHIP_IOAPIC_IRR)
    return 1
  }
  if (status && pin == RTC_PIN && load<u32>(chip, CHIP_RTC_PENDING) != 0) return 0
  store<u32>(chip, irr | mask, CHIP_IOAPIC_IRR)
  if ((load<u64>(entryAt(chip, pin)) & LEVEL) == 0) {
    store<u32>(chip, load<u32>(chip, CHIP_IOAPIC_DELIVERED) & ~mask, CHIP_IOAPIC_DELIVERED)
    if (irr & mask) return 0
  }
  return service(vm, chip, pin, status)
}

/** EOI of a vector, broadcast by a local APIC: kvm_ioapic_update_eoi. An edge, or with suppressed broadcasts a level, is only acknowledged. */
export function ioapicEoi(s: usize, vm: usize, vector: u32, level: bool): void {
  const chip = chipOf(vm)
  if (!chip || load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0) return
  if (load<u32>(vkvm(s), VKVM_RTC_VECTOR) == (0x100 | vector)) endRtc(s, chip)
  for (let pin: u32 = 0; pin < PINS; pin++) {
    const at = entryAt(chip, pin)
    if ((<u32>load<u64>(at) & 0xff) != vector) continue
    irqAcked(vm, 2, pin)
    if (!level) continue
    const e = load<u64>(at) & ~REMOTE_IRR
    store<u64>(at, e)
    if ((e & MASKED) == 0 && (load<u32>(chip, CHIP_IOAPIC_IRR) & (1 << pin)) != 0) service(vm, chip, pin, false)
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
  if ((e & LEVEL) == 0 || (irr & (1 << pin)) == 0 || (e & (MASKED | REMOTE_IRR)) != 0) return
  // Its device may have let go of the line meanwhile: who can be asked is asked, and raises it again.
  if (irqResampled(vm, 2, pin)) store<u32>(chip, irr & ~((1 as u32) << pin), CHIP_IOAPIC_IRR)
  else service(vm, chip, pin, false)
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
  if (select < 0x10 || select >= 0x10 + 2 * PINS) return 0xffffffff
  const e = load<u64>(entryAt(chip, (select - 0x10) >> 1))
  return <u32>((select & 1) != 0 ? e >> 32 : e)
}

/** True if gpa lies in the I/O APIC's 256 bytes. */
export function ioapicHas(vm: usize, gpa: u64): bool {
  const chip = chipOf(vm)
  return chip != 0 && load<u32>(chip, CHIP_IOAPIC_PRESENT) != 0 && gpa - BASE < 0x100 && gpa - load<u64>(chip, CHIP_IOAPIC_BASE) < 0x100
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
  resetRtc(vm, chip, false)
  for (let pin: u32 = 0; pin < PINS; pin++) if (irr & (1 << pin)) ioapicSetLine(vm, pin, true, true)
  resetRtc(vm, chip, true)
}

/** kvm_ioapic_handles_vector: its EOI concerns the IOAPIC (level-triggered, or the RTC's pin). */
export function ioapicHandles(vm: usize, vector: u32): bool {
  if (load<u32>(vm, VM_IRQCHIP) == 2) return eoiRouted(vm, vector)
  const chip = chipOf(vm)
  if (load<u32>(chip, CHIP_IOAPIC_PRESENT) == 0) return false
  for (let pin: u32 = 0; pin < PINS; pin++) {
    const e = load<u64>(entryAt(chip, pin))
    if ((<u32>e & 0xff) == vector && ((e & LEVEL) != 0 || pin == RTC_PIN)) return true
  }
  return load<u32>(chip, CHIP_RESAMPLE_GSIS) != 0
}
