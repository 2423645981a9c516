/**
 * Messages to local APICs: who is named, who takes it, what it does there; IPIs and local vectors (KVM: Linux 7.3
 * arch/x86/kvm/lapic.c, __kvm_irq_delivery_to_apic, __apic_accept_irq; APM vol 2, 16.5, 16.6). Owns no state of its own.
 */
import { LVT_MASKED, apicId, clearBit, hardwareEnabled, reg, setBit, softwareEnabled, x2apic } from './lapic-state'
import { queueSmi } from './smm'
import { chipOf, lapicOf, signal, vkvm, vmOf } from './state'
import {
  APIC_DFR,
  APIC_IRR,
  APIC_LDR,
  APIC_LVT0,
  APIC_TMR,
  CHIP_RTC_TRACKING,
  CHIP_X2APIC_API,
  CPU_ID,
  CPU_NMI_BLOCKED,
  EVENT_INIT,
  EVENT_INTERRUPT,
  EVENT_NMI,
  EVENT_SIPI,
  LAPIC_ARBITRATION,
  LAPIC_PRESENT,
  VKVM_NMI_PENDING,
  VKVM_PV_UNHALTED,
  VKVM_RTC_VECTOR,
  VKVM_SIPI_VECTOR,
  VM_VCPUS,
  VM_VCPU_COUNT,
} from '../generated/layout'

/** Delivery modes of ICR, LVT, redirection entries and MSIs. */
const FIXED: u32 = 0
const LOWEST: u32 = 1
const SMI: u32 = 2
/** KVM's APIC_DM_REMRD: wakes a halted vCPU. */
const REMOTE_READ: u32 = 3
const NMI: u32 = 4
const INIT: u32 = 5
const SIPI: u32 = 6

/** __apic_accept_irq: 1 accepted, 0 not. */
function accept(s: usize, mode: u32, vector: u32, level: bool, assert: bool): i32 {
  const a = lapicOf(s)
  switch (mode) {
    case LOWEST:
      store<u32>(a, load<u32>(a, LAPIC_ARBITRATION) + 1, LAPIC_ARBITRATION)
    case FIXED: {
      if ((level && !assert) || !hardwareEnabled(s) || !softwareEnabled(a)) return 0
      if (level) setBit(a, APIC_TMR, vector)
      else clearBit(a, APIC_TMR, vector)
      setBit(a, APIC_IRR, vector)
      if (load<u32>(chipOf(vmOf(s)), CHIP_RTC_TRACKING) != 0) store<u32>(vkvm(s), 0x100 | vector, VKVM_RTC_VECTOR)
      signal(s, EVENT_INTERRUPT)
      return 1
    }
    case REMOTE_READ: {
      store<u32>(vkvm(s), 1, VKVM_PV_UNHALTED)
      return 1
    }
    case NMI: {
      queueNmi(s)
      return 1
    }
    case INIT: {
      if (level && !assert) return 0
      signal(s, EVENT_INIT)
      return 1
    }
    case SIPI: {
      store<u32>(vkvm(s), vector, VKVM_SIPI_VECTOR)
      signal(s, EVENT_SIPI)
      return 1
    }
    default:
      return mode == SMI && queueSmi(s) ? 1 : 0 // ExtINT reaches a vCPU through LVT0 only
  }
}

/** KVM_NMI, LVT and IPIs: at most two wait. */
export function queueNmi(s: usize): void {
  const k = vkvm(s)
  const waiting = load<u32>(k, VKVM_NMI_PENDING)
  // process_nmi: one beside a handler that runs, else two.
  const limit: u32 = load<u32>(s, CPU_NMI_BLOCKED) ? 1 : 2
  if (waiting < limit) store<u32>(k, waiting + 1, VKVM_NMI_PENDING)
  signal(s, EVENT_NMI)
}

/**
 * kvm_apic_match_dest. A message of a device to 0xff reaches x2APICs too, unless userspace disabled that quirk
 * (KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK); an IPI never.
 */
function matches(s: usize, ipi: bool, logical: bool, destination: u32): bool {
  const a = lapicOf(s)
  if (load<u32>(a, LAPIC_PRESENT) == 0) return false
  const wide = x2apic(s)
  if (wide && !ipi && destination == 0xff && (load<u32>(chipOf(vmOf(s)), CHIP_X2APIC_API) & 2) == 0) destination = 0xffffffff
  if (destination == (wide ? 0xffffffff : 0xff)) return true
  // An id beyond 8 bits is that of the vCPU, whatever mode its APIC is in.
  if (!logical) return destination == (wide || destination > 0xff ? load<u32>(s, CPU_ID) : apicId(s))
  const ldr = reg(a, APIC_LDR)
  if (wide) return ldr >> 16 == destination >> 16 && (ldr & destination & 0xffff) != 0
  const mine = ldr >> 24
  const format = reg(a, APIC_DFR)
  if (format == 0xffffffff) return (mine & destination) != 0
  return format == 0x0fffffff && mine >> 4 == destination >> 4 && (mine & destination & 15) != 0
}

/** A message of the I/O APIC with this destination reaches the vCPU. */
export function lapicNames(s: usize, logical: bool, destination: u32): bool {
  return matches(s, false, logical, destination)
}

/** kvm_vector_to_index: the vector chooses among the bits of `mask`. */
function hashed(vector: u32, mask: u32): u32 {
  let n = vector % popcnt<u32>(mask)
  let bit: u32 = 0
  for (; bit < 31; bit++) {
    if ((mask & (1 << bit)) == 0) continue
    if (n == 0) break
    n--
  }
  return bit
}

/** All local APICs take logical destinations in one way: 0 not so, 1 flat, 2 clusters, 3 x2APIC (kvm_apic_map.logical_mode). */
function logicalMode(vm: usize): u32 {
  let mode: u32 = 0
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (!s || !hardwareEnabled(s) || !softwareEnabled(lapicOf(s))) continue
    const own: u32 = x2apic(s) ? 3 : reg(lapicOf(s), APIC_DFR) == 0xffffffff ? 1 : 2
    if (mode != 0 && mode != own) return 0
    mode = own
  }
  return mode
}

/** The one vCPU that takes a lowest-priority message with this logical destination; 0 = nobody (KVM's vector_hashing). */
function lowestOf(vm: usize, ipi: bool, vector: u32, destination: u32, broadcast: bool): usize {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  const mode = broadcast ? 0 : logicalMode(vm)
  if (mode != 0) {
    // The bits of the destination are chosen from, whether or not there is a CPU for each.
    const mask = mode == 1 ? destination & 0xff : mode == 2 ? destination & 15 : destination & 0xffff
    if (mask == 0) return 0
    const only = (mode == 1 ? 0 : mode == 2 ? destination & 0xf0 : destination & 0xffff0000) | (1 << hashed(vector, mask))
    for (let i: u32 = 0; i < count; i++) {
      const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
      if (s && hardwareEnabled(s) && softwareEnabled(lapicOf(s)) && matches(s, true, true, only)) return s
    }
    return 0
  }
  let able: u32 = 0
  for (let round: u32 = 0; round < 2; round++) {
    let nth: u32 = able ? vector % able : 0
    for (let i: u32 = 0; i < count; i++) {
      const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
      if (!s || !hardwareEnabled(s) || !softwareEnabled(lapicOf(s)) || !matches(s, ipi, true, destination)) continue
      if (round == 0) {
        able++
        continue
      }
      if (nth == 0) return s
      nth--
    }
    if (able == 0) return 0
  }
  return 0
}

/**
 * Delivers a message to every vCPU it names (__kvm_irq_delivery_to_apic); `shorthand`-less form used by IOAPIC, MSI and ICR. `hint`:
 * the redirection hint of an MSI. Number of vCPUs that took it, -1 if a broadcast found none, or there is no
 * local APIC at all.
 */
export function lapicDeliver(
  vm: usize,
  source: usize,
  mode: u32,
  vector: u32,
  logical: bool,
  destination: u32,
  level: bool,
  assert: bool,
  hint: bool,
): i32 {
  const ipi = source != 0
  const broadcast = destination == (ipi && x2apic(source) ? 0xffffffff : 0xff)
  // "phys broadcast and lowest prio"
  if (!logical && broadcast && destination == 0xff && (mode == LOWEST || hint)) mode = FIXED
  if (logical && (mode == LOWEST || hint)) {
    const one = lowestOf(vm, ipi, vector, destination, broadcast)
    return one ? accept(one, mode, vector, level, assert) : broadcast ? -1 : 0
  }
  let result: i32 = -1
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (!s || load<u32>(lapicOf(s), LAPIC_PRESENT) == 0) continue
    // With a map of APICs at hand, a destination that names nobody has been dealt with.
    if (result < 0 && !broadcast) result = 0
    if (!hardwareEnabled(s) || !matches(s, ipi, logical, destination)) continue
    result = (result < 0 ? 0 : result) + accept(s, mode, vector, level, assert)
  }
  return result
}

/** Virtual wire (kvm_apic_nmi_wd_deliver): a tick of the PIT goes to every LVT0 once one of them is in NMI mode. */
export function lapicNmiWatchdog(vm: usize): void {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  let wanted = false
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (s && load<u32>(lapicOf(s), LAPIC_PRESENT) != 0 && (reg(lapicOf(s), APIC_LVT0) & (0x700 | LVT_MASKED)) == NMI << 8) wanted = true
  }
  for (let i: u32 = 0; wanted && i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (s && load<u32>(lapicOf(s), LAPIC_PRESENT) != 0) lapicLocal(s, APIC_LVT0)
  }
}

/** A local vector table entry fires. */
export function lapicLocal(s: usize, at: usize): bool {
  const entry = reg(lapicOf(s), at)
  if (!hardwareEnabled(s) || (entry & LVT_MASKED) != 0) return false
  return accept(s, (entry >> 8) & 7, entry & 0xff, (entry & 0x8000) != 0, true) > 0
}

export function sendIpi(s: usize, low: u32, high: u32): void {
  const vm = vmOf(s)
  const mode = (low >> 8) & 7
  const vector = low & 0xff
  const level = (low & 0x8000) != 0
  const assert = (low & 0x4000) != 0
  const shorthand = (low >> 18) & 3
  if (shorthand == 0) {
    lapicDeliver(vm, s, mode, vector, (low & 0x800) != 0, x2apic(s) ? high : high >> 24, level, assert, false)
    return
  }
  const count = load<u32>(vm, VM_VCPU_COUNT)
  // Lowest priority among all: the vector chooses, as without a map of destinations.
  const one = mode == LOWEST && shorthand != 1
  let able: u32 = 0
  for (let i: u32 = 0; one && i < count; i++) {
    const target: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (target && hardwareEnabled(target) && softwareEnabled(lapicOf(target)) && (shorthand == 2 || target != s)) able++
  }
  if (one && able == 0) return
  let nth: u32 = one ? vector % able : 0
  for (let i: u32 = 0; i < count; i++) {
    const target: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (!target || !hardwareEnabled(target) || (one && !softwareEnabled(lapicOf(target)))) continue
    if (shorthand == 1 ? target != s : shorthand != 2 && target == s) continue
    if (!one || nth == 0) accept(target, mode, vector, level, assert)
    if (one && nth-- == 0) return
  }
}
