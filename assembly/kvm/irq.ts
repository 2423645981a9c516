/**
 * GSI routing, resampling lines and message-signalled interrupts (Linux 7.3 arch/x86/kvm/irq.c, virt/kvm/{irqchip,eventfd}.c).
 * Owns CHIP_ROUTE_*, CHIP_IRQ_SOURCES, CHIP_RESAMPLE_GSIS, CHIP_MORE_SOURCES.
 */
import { allocPages, freePages, pagesFor } from '../memory/frames'
import { hostWorkFor } from './ioevent'
import { ioapicSetLine } from './ioapic'
import { lapicDeliver } from './lapic-delivery'
import { picSetLine } from './pic'
import { pitAcknowledge, pitResetReinject } from './pit'
import { chipOf } from './state'
import {
  CHIP_MORE_SOURCES,
  GSI_ACKED,
  GSI_RESAMPLE,
  CHIP_HOST_WORK,
  CHIP_IRQ_SOURCES,
  CHIP_PIT_REINJECT,
  CHIP_RESAMPLE_GSIS,
  CHIP_RESERVED_ROUTES,
  CHIP_ROUTE_COUNT,
  CHIP_ROUTE_CUSTOM,
  CHIP_ROUTE_TABLE,
  CHIP_ROUTES,
  CHIP_RUNNING,
  CHIP_X2APIC_API,
  VM_IRQCHIP,
  VM_KVM_STATE,
} from '../generated/layout'

const ROUTE: usize = 24
/** Rows that fit into the device block; larger tables get pages of their own. */
const FEW_ROUTES: u32 = 100
/** KVM_MAX_IRQ_ROUTES. */
const MAX_ROUTES: u32 = 4096
/** KVM_USERSPACE_IRQ_SOURCE_ID and KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID as bits. */
const SOURCE_USER: u32 = 1
const SOURCE_RESAMPLE: u32 = 2
/** KVM_PIT_IRQ_SOURCE_ID. */
const SOURCE_PIT: u32 = 4

function routesOf(chip: usize): usize {
  const table: usize = load<u32>(chip, CHIP_ROUTE_TABLE)
  return table ? table : chip + CHIP_ROUTES
}

/** KVM_IRQ_LINE. Above 0 delivered, 0 coalesced, -1 ignored (masked). */
export function irqLine(vm: usize, gsi: u32, level: i32): i32 {
  return setLine(vm, gsi, level != 0, SOURCE_USER, false)
}

/** KVM_IRQ_LINE_STATUS: the RTC's interrupt counts as coalesced until it is ended. */
export function irqLineStatus(vm: usize, gsi: u32, level: i32): i32 {
  return setLine(vm, gsi, level != 0, SOURCE_USER, true)
}

/** A line of an irqfd with KVM_IRQFD_FLAG_RESAMPLE: stays high until the guest's EOI. */
export function irqResample(vm: usize, gsi: u32, level: i32): i32 {
  return setLine(vm, gsi, level != 0, SOURCE_RESAMPLE, false)
}

/** The PIT's own line. */
export function pitLine(vm: usize, level: bool): void {
  setLine(vm, 0, level, SOURCE_PIT, false)
}

/** kvm_set_irq adds up what the routes say; -1 is none. */
function sum(result: i32, more: i32): i32 {
  return more < 0 ? result : more + (result < 0 ? 0 : result)
}

/** The word of a GSI, 0 = it has none (yet). */
function stateOf(chip: usize, gsi: u32, create: bool): usize {
  if (gsi < 32) return chip + CHIP_IRQ_SOURCES + ((<usize>gsi) << 2)
  if (gsi >= MAX_ROUTES) return 0
  let table: usize = load<u32>(chip, CHIP_MORE_SOURCES)
  if (table == 0) {
    if (!create) return 0
    table = allocPages(pagesFor((<u64>MAX_ROUTES) << 2))
    if (table == 0) return 0
    store<u32>(chip, <u32>table, CHIP_MORE_SOURCES)
  }
  return table + ((<usize>gsi) << 2)
}

/** kvm_set_irq: a pin is high while any source holds it. */
function setLine(vm: usize, gsi: u32, level: bool, source: u32, status: bool): i32 {
  const chip: usize = load<u32>(vm, VM_KVM_STATE)
  if (!chip) return -1
  let on = level
  const at = stateOf(chip, gsi, false)
  if (at) {
    const word = level ? load<u32>(at) | source : load<u32>(at) & ~source
    store<u32>(at, word)
    on = (word & (SOURCE_USER | SOURCE_RESAMPLE | SOURCE_PIT)) != 0
  }
  if (load<u32>(chip, CHIP_ROUTE_CUSTOM) == 0) {
    if (load<u32>(vm, VM_IRQCHIP) != 1) return -1
    // default_routing: GSI 0..15 to PIC and IOAPIC, 16..23 to the IOAPIC, pin = GSI (a PC's timer on pin 2 is the VMM's wish)
    let result: i32 = gsi < 16 ? picSetLine(vm, gsi, on) : -1
    if (gsi < 24) result = sum(result, ioapicSetLine(vm, gsi, on, status))
    return result
  }
  let result: i32 = -1
  let r = routesOf(chip)
  for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
    if (load<u32>(r) != gsi) continue
    if (load<u32>(r, 4) == 2) {
      if (level) result = sum(result, signalMsi(load<u32>(r, 8), load<u32>(r, 12), load<u32>(r, 16), vm))
      continue
    }
    if (load<u32>(r, 4) != 1) continue
    const pin = load<u32>(r, 12)
    const kind = load<u32>(r, 8)
    result = sum(result, kind == 2 ? ioapicSetLine(vm, pin, on, status) : picSetLine(vm, pin + (kind << 3), on))
  }
  return result
}

/** kvm_notify_acked_irq of a pin (chip 0, 1 the PICs, 2 the IOAPIC): a resampling line falls and its owner is told; the PIT counts. */
export function irqAcked(vm: usize, which: u32, pin: u32): void {
  const chip = chipOf(vm)
  if (load<u32>(chip, CHIP_RESAMPLE_GSIS) == 0 && load<u32>(chip, CHIP_PIT_REINJECT) == 0) return
  if (load<u32>(chip, CHIP_ROUTE_CUSTOM) == 0) {
    ackGsi(vm, chip, which == 1 ? pin + 8 : pin)
    return
  }
  let r = routesOf(chip)
  for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
    if (load<u32>(r, 4) == 1 && load<u32>(r, 8) == which && load<u32>(r, 12) == pin) ackGsi(vm, chip, load<u32>(r))
  }
}

/** kvm_fire_mask_notifiers: the PIT forgets what it owes when GSI 0 is unmasked. */
export function irqUnmasked(vm: usize, which: u32, pin: u32): void {
  const chip = chipOf(vm)
  if (load<u32>(chip, CHIP_PIT_REINJECT) == 0) return
  if (load<u32>(chip, CHIP_ROUTE_CUSTOM) == 0) {
    if (which != 1 && pin == 0) pitResetReinject(vm)
    return
  }
  let r = routesOf(chip)
  for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
    if (load<u32>(r) == 0 && load<u32>(r, 4) == 1 && load<u32>(r, 8) == which && load<u32>(r, 12) == pin) pitResetReinject(vm)
  }
}

/** kvm_notify_irqfd_resampler: the owner of the pin's GSI is asked for its line; false if nobody can be. */
export function irqResampled(vm: usize, which: u32, pin: u32): bool {
  const chip = chipOf(vm)
  if (load<u32>(chip, CHIP_RESAMPLE_GSIS) == 0) return false
  let gsi: u32 = which == 1 ? pin + 8 : pin
  if (load<u32>(chip, CHIP_ROUTE_CUSTOM) != 0) {
    gsi = MAX_ROUTES
    let r = routesOf(chip)
    for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
      if (load<u32>(r, 4) == 1 && load<u32>(r, 8) == which && load<u32>(r, 12) == pin) gsi = load<u32>(r)
    }
  }
  const at = stateOf(chip, gsi, false)
  if (!at || (load<u32>(at) & GSI_RESAMPLE) == 0) return false
  notifyResampler(chip, at)
  return true
}

/** irqfd_resampler_ack. */
function ackGsi(vm: usize, chip: usize, gsi: u32): void {
  if (gsi == 0 && load<u32>(chip, CHIP_PIT_REINJECT) != 0) pitAcknowledge(vm)
  const at = stateOf(chip, gsi, false)
  if (!at || (load<u32>(at) & GSI_RESAMPLE) == 0) return
  setLine(vm, gsi, false, SOURCE_RESAMPLE, false)
  notifyResampler(chip, at)
}

/** irqfd_resampler_notify: the host signals the eventfds. */
function notifyResampler(chip: usize, at: usize): void {
  store<u32>(at, load<u32>(at) | GSI_ACKED)
  const s: usize = load<u32>(chip, CHIP_RUNNING)
  if (s) hostWorkFor(s)
  else store<u32>(chip, 1, CHIP_HOST_WORK)
}

/** A GSI has, or no longer has, resampling irqfds. False: out of memory. */
export function resampleGsi(vm: usize, gsi: u32, on: bool): bool {
  const chip = chipOf(vm)
  const at = stateOf(chip, gsi, true)
  if (!at) return gsi >= MAX_ROUTES // no route leads there
  const word = load<u32>(at)
  if (((word & GSI_RESAMPLE) != 0) == on) return true
  store<u32>(at, on ? word | GSI_RESAMPLE : word & ~(GSI_RESAMPLE | GSI_ACKED))
  store<u32>(chip, load<u32>(chip, CHIP_RESAMPLE_GSIS) + (on ? 1 : <u32>-1), CHIP_RESAMPLE_GSIS)
  return true
}

/** The host looks after what waits for it. */
export function takeHostWork(vm: usize): void {
  store<u32>(chipOf(vm), 0, CHIP_HOST_WORK)
}

/** True once after the guest has acknowledged a GSI. */
export function takeAck(vm: usize, gsi: u32): bool {
  const at = stateOf(chipOf(vm), gsi, false)
  if (!at || (load<u32>(at) & GSI_ACKED) == 0) return false
  store<u32>(at, load<u32>(at) & ~GSI_ACKED)
  return true
}

/** Split irqchip: a level-triggered message of the reserved IOAPIC routes has this vector (kvm_scan_ioapic_routes). */
export function eoiRouted(vm: usize, vector: u32): bool {
  const chip = chipOf(vm)
  const reserved = load<u32>(chip, CHIP_RESERVED_ROUTES)
  let r = routesOf(chip)
  for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
    const data = load<u32>(r, 16)
    if (load<u32>(r, 4) == 2 && load<u32>(r) < reserved && (data & 0x8000) != 0 && (data & 0xff) == vector) return true
  }
  return false
}

/** args[0] of KVM_CAP_SPLIT_IRQCHIP. */
export function reserveRoutes(vm: usize, count: u32): void {
  store<u32>(chipOf(vm), count, CHIP_RESERVED_ROUTES)
}

/** KVM_CAP_X2APIC_API flags. */
export function x2apicApi(vm: usize, flags: u32): void {
  store<u32>(chipOf(vm), flags, CHIP_X2APIC_API)
}

/** Replaces the routing table; `from` holds `count` rows of 24 bytes (gsi, type, chip|address, pin|high, data, 0). */
export function setRouting(vm: usize, from: usize, count: u32): i32 {
  const chip = chipOf(vm)
  store<u32>(chip, 0, CHIP_ROUTE_COUNT)
  store<u32>(chip, 1, CHIP_ROUTE_CUSTOM)
  return addRouting(vm, from, count)
}

/** More rows. 0, -22 or -12. */
export function addRouting(vm: usize, from: usize, count: u32): i32 {
  const chip = chipOf(vm)
  const old = load<u32>(chip, CHIP_ROUTE_COUNT)
  if (count > MAX_ROUTES || old + count > MAX_ROUTES) return -22
  if (old + count > FEW_ROUTES && load<u32>(chip, CHIP_ROUTE_TABLE) == 0) {
    const table = allocPages(pagesFor(<u64>MAX_ROUTES * <u64>ROUTE))
    if (!table) return -12
    memory.copy(table, chip + CHIP_ROUTES, <usize>old * ROUTE)
    store<u32>(chip, <u32>table, CHIP_ROUTE_TABLE)
  }
  memory.copy(routesOf(chip) + <usize>old * ROUTE, from, <usize>count * ROUTE)
  store<u32>(chip, old + count, CHIP_ROUTE_COUNT)
  return 0
}

export function routingFree(vm: usize): void {
  const table: usize = load<u32>(chipOf(vm), CHIP_ROUTE_TABLE)
  if (table) freePages(table, pagesFor(<u64>MAX_ROUTES * <u64>ROUTE))
  const more: usize = load<u32>(chipOf(vm), CHIP_MORE_SOURCES)
  if (more) freePages(more, pagesFor((<u64>MAX_ROUTES) << 2))
}

/** An MSI message (SDM vol 3, 11.11; address bits 63:40 extend the destination with KVM_X2APIC_API_USE_32BIT_IDS). */
export function signalMsi(low: u32, high: u32, data: u32, vm: usize): i32 {
  const wide = (load<u32>(chipOf(vm), CHIP_X2APIC_API) & 1) != 0
  const destination = ((low >> 12) & 0xff) | (wide ? high & 0xffffff00 : 0)
  return lapicDeliver(vm, 0, (data >> 8) & 7, data & 0xff, (low & 4) != 0, destination, (data & 0x8000) != 0, true, (low & 8) != 0)
}
