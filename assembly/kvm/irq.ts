/** GSI routing and message-signalled interrupts (Linux 7.3 arch/x86/kvm/irq.c: default routing, kvm_set_irq, kvm_set_msi). */
import { ioapicSetLine } from './ioapic'
import { lapicDeliver } from './lapic'
import { picSetLine } from './pic'
import { chipOf } from './state'
import { CHIP_ROUTE_COUNT, CHIP_ROUTE_CUSTOM, CHIP_ROUTES, VM_IRQCHIP, VM_KVM_STATE } from '../generated/layout'

const ROUTE: usize = 24
export const MAX_ROUTES: u32 = 100

/** KVM_IRQ_LINE. 1 delivered, 0 coalesced or masked, -1 ignored. */
export function irqLine(vm: usize, gsi: u32, level: i32): i32 {
  const chip: usize = load<u32>(vm, VM_KVM_STATE)
  if (!chip) return -1
  const on = level != 0
  if (load<u32>(chip, CHIP_ROUTE_CUSTOM) == 0) {
    if (load<u32>(vm, VM_IRQCHIP) != 1) return -1
    // default_routing: GSI 0..15 to PIC and IOAPIC, 16..23 to the IOAPIC, pin = GSI (a PC's timer on pin 2 is the VMM's wish)
    if (gsi < 16) picSetLine(vm, gsi, on)
    if (gsi < 24) return ioapicSetLine(vm, gsi, on)
    return -1
  }
  let result: i32 = -1
  let r: usize = chip + CHIP_ROUTES
  for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
    if (load<u32>(r) != gsi) continue
    if (load<u32>(r, 4) == 2) {
      if (on) result = signalMsi(load<u32>(r, 8), load<u32>(r, 12), load<u32>(r, 16), vm)
      continue
    }
    const pin = load<u32>(r, 12)
    if (load<u32>(r, 8) == 2) {
      result = ioapicSetLine(vm, pin, on)
    } else {
      picSetLine(vm, pin + (load<u32>(r, 8) << 3), on)
      result = 1
    }
  }
  return result
}

/** Split irqchip: a level-triggered message of the 24 IOAPIC routes has this vector (kvm_scan_ioapic_routes). */
export function eoiRouted(vm: usize, vector: u32): bool {
  const chip = chipOf(vm)
  let r: usize = chip + CHIP_ROUTES
  for (let n = load<u32>(chip, CHIP_ROUTE_COUNT); n > 0; n--, r += ROUTE) {
    const data = load<u32>(r, 16)
    if (load<u32>(r, 4) == 2 && load<u32>(r) < 24 && (data & 0x8000) != 0 && (data & 0xff) == vector) return true
  }
  return false
}

/** Replaces the routing table; `from` holds `count` rows of 24 bytes (gsi, type, chip|address, pin|high, data, 0). */
export function setRouting(vm: usize, from: usize, count: u32): i32 {
  if (count > MAX_ROUTES) return -22
  const chip = chipOf(vm)
  memory.copy(chip + CHIP_ROUTES, from, <usize>count * ROUTE)
  store<u32>(chip, count, CHIP_ROUTE_COUNT)
  store<u32>(chip, 1, CHIP_ROUTE_CUSTOM)
  return 0
}

/** An MSI message (SDM vol 3, 11.11): 1 delivered, 0 no destination. */
export function signalMsi(low: u32, high: u32, data: u32, vm: usize): i32 {
  const destination = ((low >> 12) & 0xff) | (high & 0xffffff00)
  return lapicDeliver(vm, 0, (data >> 8) & 7, data & 0xff, (low & 4) != 0, destination, (data & 0x8000) != 0, true)
}
