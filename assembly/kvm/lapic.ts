/**
 * Local APIC and x2APIC as KVM has them (Linux 7.3 arch/x86/kvm/lapic.c; APM vol 2, chapter 16).
 * State: struct LAPIC at s + VCPU_LAPIC; its first 1024 bytes are struct kvm_lapic_state.
 */
import { queueSmi } from './smm'
import { flushTlb } from '../memory/tlb'
import { ioapicEoi, ioapicRestoreRtc } from './ioapic'
import { eoiRouted } from './irq'
import { chipOf, lapicOf, NEVER, signal, vmOf, quirk } from './state'
import { timerCancel, timerCount, timerDivided, timerModeChanged, timerRestore, timerStart } from './lapic-timer'
import {
  APIC_APR,
  APIC_DFR,
  APIC_EOI,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_ID,
  APIC_IRR,
  APIC_ISR,
  APIC_LDR,
  APIC_LVT0,
  APIC_LVT1,
  APIC_LVTERR,
  APIC_LVTPC,
  APIC_LVTT,
  APIC_LVTTHMR,
  APIC_PPR,
  APIC_SELF_IPI,
  APIC_SVR,
  APIC_TDCR,
  APIC_TMCCT,
  APIC_TMICT,
  APIC_TMR,
  APIC_TPR,
  APIC_VERSION,
  CHIP_RTC_TRACKING,
  CHIP_X2APIC_API,
  CPU_APIC_BASE,
  CPU_CR8,
  CPU_ID,
  CPU_INDEX,
  CPU_NMI_BLOCKED,
  EVENT_INIT,
  EVENT_INTERRUPT,
  EVENT_NMI,
  EVENT_SIPI,
  LAPIC_ARBITRATION,
  LAPIC_LAST_VECTOR,
  LAPIC_PRESENT,
  LAPIC_TSC_DEADLINE,
  QUIRK_LAPIC_MMIO_HOLE,
  QUIRK_LINT0_REENABLED,
  CPU_OP,
  CPU_RIP,
  CPU_RIP_MASK,
  OP_OFFSET,
  VKVM_EOI_EXIT,
  VKVM_TPR_REPORT,
  VKVM_NMI_PENDING,
  VKVM_PV_UNHALTED,
  VKVM_RTC_VECTOR,
  VKVM_SIPI_VECTOR,
  VM_BSP_ID,
  VM_IRQCHIP,
  VM_VCPU_COUNT,
  VM_VCPUS,
} from '../generated/layout'
import { runOf, vkvm } from './state'
import { RUN_TPR_IS_WRITE, RUN_TPR_RIP } from '../generated/kvm'
import { reservedGpaBits } from '../cpu/features'
import { cpuidAnswer, cpuidEcx } from './cpuid'

const LVT_MASKED: u32 = 0x10000
const BASE_ENABLE: u64 = 0x800
const BASE_X2APIC: u64 = 0x400
const BASE_BSP: u64 = 0x100

/** Delivery modes of ICR, LVT, redirection entries and MSIs. */
const FIXED: u32 = 0
const LOWEST: u32 = 1
const SMI: u32 = 2
/** KVM's APIC_DM_REMRD: wakes a halted vCPU. */
const REMOTE_READ: u32 = 3
const NMI: u32 = 4
const INIT: u32 = 5
const SIPI: u32 = 6
const EXTINT: u32 = 7

export function reg(a: usize, at: usize): u32 {
  return load<u32>(a + at)
}
export function setReg(a: usize, at: usize, value: u32): void {
  store<u32>(a + at, value)
}

function hardwareEnabled(s: usize): bool {
  return load<u32>(lapicOf(s), LAPIC_PRESENT) != 0 && (load<u64>(s, CPU_APIC_BASE) & BASE_ENABLE) != 0
}
function x2apic(s: usize): bool {
  return (load<u64>(s, CPU_APIC_BASE) & (BASE_ENABLE | BASE_X2APIC)) == (BASE_ENABLE | BASE_X2APIC)
}
function softwareEnabled(a: usize): bool {
  return (reg(a, APIC_SVR) & 0x100) != 0
}
/** The 32-bit APIC id. */
export function apicId(s: usize): u32 {
  const id = reg(lapicOf(s), APIC_ID)
  return x2apic(s) ? id : id >> 24
}

// 256-bit registers IRR, ISR, TMR: 8 words, 16 bytes apart.
function testBit(a: usize, at: usize, vector: u32): bool {
  return (load<u32>(a + at + ((<usize>(vector >> 5)) << 4)) & (1 << (vector & 31))) != 0
}
function setBit(a: usize, at: usize, vector: u32): void {
  const p = a + at + ((<usize>(vector >> 5)) << 4)
  store<u32>(p, load<u32>(p) | (1 << (vector & 31)))
}
function clearBit(a: usize, at: usize, vector: u32): void {
  const p = a + at + ((<usize>(vector >> 5)) << 4)
  store<u32>(p, load<u32>(p) & ~(1 << (vector & 31)))
}
export function highest(a: usize, at: usize): i32 {
  for (let i: i32 = 7; i >= 0; i--) {
    const word = load<u32>(a + at + ((<usize>i) << 4))
    if (word) return (i << 5) + 31 - clz<u32>(word)
  }
  return -1
}

/** TPR and CR8 are one register; MOV CR8 stores only CPU_CR8. */
function currentTpr(s: usize): u32 {
  const a = lapicOf(s)
  const tpr = reg(a, APIC_TPR)
  const cr8 = <u32>load<u64>(s, CPU_CR8)
  if (cr8 == ((tpr >> 4) & 15)) return tpr
  setReg(a, APIC_TPR, cr8 << 4)
  return cr8 << 4
}

/** apic_set_tpr. */
export function setTpr(s: usize, value: u32): void {
  setReg(lapicOf(s), APIC_TPR, value)
  store<u64>(s, <u64>((value >> 4) & 15), CPU_CR8)
}

/** KVM_TPR_ACCESS_REPORTING: the exit is due at the next boundary. */
function reportTpr(s: usize, write: bool): void {
  const k = vkvm(s)
  const op: usize = load<u32>(s, CPU_OP)
  if (load<u32>(k, VKVM_TPR_REPORT) == 0 || !op) return
  store<u64>(runOf(s), (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)) & load<u64>(s, CPU_RIP_MASK), RUN_TPR_RIP)
  store<u32>(runOf(s), write ? 1 : 0, RUN_TPR_IS_WRITE)
  store<u32>(k, 3, VKVM_TPR_REPORT)
  signal(s, 0)
}

function updatePpr(s: usize): u32 {
  const a = lapicOf(s)
  const tpr = currentTpr(s)
  const isr = highest(a, APIC_ISR)
  const inService: u32 = isr < 0 ? 0 : <u32>isr
  const ppr = (tpr & 0xf0) >= (inService & 0xf0) ? tpr & 0xff : inService & 0xf0
  setReg(a, APIC_PPR, ppr)
  return ppr
}

/** The vector that may be injected now, or -1. */
export function lapicHasInterrupt(s: usize): i32 {
  if (!hardwareEnabled(s)) return -1
  const vector = highest(lapicOf(s), APIC_IRR)
  if (vector < 0) return -1
  return (<u32>vector & 0xf0) <= updatePpr(s) ? -1 : vector
}

/** Moves it from IRR to ISR. */
export function lapicAccept(s: usize, vector: u32): void {
  const a = lapicOf(s)
  clearBit(a, APIC_IRR, vector)
  setBit(a, APIC_ISR, vector)
  store<u32>(a, vector, LAPIC_LAST_VECTOR)
  updatePpr(s)
}

/** ExtINT from the PIC pair reaches this vCPU (kvm_apic_accept_pic_intr). */
export function lapicAcceptsPic(s: usize): bool {
  if (load<u32>(lapicOf(s), LAPIC_PRESENT) == 0) return load<u32>(s, CPU_INDEX) == 0
  if (!hardwareEnabled(s)) return true
  const lvt0 = reg(lapicOf(s), APIC_LVT0)
  return (lvt0 & LVT_MASKED) == 0 && (lvt0 & 0x700) == 0x700
}

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

/** kvm_apic_pending_eoi. */
export function lapicPendingEoi(s: usize, vector: u32): bool {
  return testBit(lapicOf(s), APIC_ISR, vector) || testBit(lapicOf(s), APIC_IRR, vector)
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

function sendIpi(s: usize, low: u32, high: u32): void {
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

/** apic_set_eoi. */
export function lapicEoi(s: usize): void {
  const a = lapicOf(s)
  const vector = highest(a, APIC_ISR)
  if (vector < 0) return
  clearBit(a, APIC_ISR, vector)
  const vm = vmOf(s)
  // kvm_lapic_suppress_eoi_broadcast
  const directed = (reg(a, APIC_SVR) & 0x1000) != 0
  if (load<u32>(vm, VM_IRQCHIP) == 2) {
    if (!(directed && suppression(s) == 4) && eoiRouted(vm, vector)) store<u32>(vkvm(s), 0x100 | vector, VKVM_EOI_EXIT)
  } else {
    ioapicEoi(s, vm, vector, testBit(a, APIC_TMR, vector) && !(directed && suppression(s) != 8))
  }
  signal(s, EVENT_INTERRUPT)
}

/** LVT timer mode bits the guest may set: TSC-deadline only if CPUID offers it. */
function timerModes(s: usize): u32 {
  cpuidAnswer(s, 1, 0)
  return (cpuidEcx(s) & (1 << 24)) != 0 ? 0x60000 : 0x20000
}

/** kvm_lapic_reg_write: 0, or 1 = #GP for the MSR form. */
function writeRegister(s: usize, at: u32, given: u32): u32 {
  const a = lapicOf(s)
  const wide = x2apic(s)
  let value = given
  switch (at) {
    case APIC_ID:
      if (wide) return 1
      setReg(a, APIC_ID, value & 0xff000000)
      break
    case APIC_TPR:
      reportTpr(s, true)
      setTpr(s, value & 0xff)
      signal(s, EVENT_INTERRUPT)
      break
    case APIC_EOI:
      lapicEoi(s)
      break
    case APIC_LDR:
      if (wide) return 1
      setReg(a, APIC_LDR, value & 0xff000000)
      break
    case APIC_DFR:
      if (wide) return 1
      setReg(a, APIC_DFR, value | 0x0fffffff)
      break
    case APIC_SVR:
      setReg(a, APIC_SVR, value & ((reg(a, APIC_VERSION) & (1 << 24)) != 0 ? 0x13ff : 0x3ff))
      if ((value & 0x100) == 0) {
        for (let lvt: usize = APIC_LVTT; lvt <= APIC_LVTERR; lvt += 16) setReg(a, lvt, reg(a, lvt) | LVT_MASKED)
      }
      break
    case APIC_ICR:
      value &= ~(1 << 12)
      setReg(a, APIC_ICR, value)
      sendIpi(s, value, reg(a, APIC_ICR2))
      break
    case APIC_ICR2:
      if (wide) return 1
      setReg(a, APIC_ICR2, value & 0xff000000)
      break
    case APIC_LVTTHMR:
    case APIC_LVTPC:
      setReg(a, at, (value & 0x117ff) | (softwareEnabled(a) ? 0 : LVT_MASKED))
      break
    case APIC_LVT0:
    case APIC_LVT1:
      setReg(a, at, (value & 0x1f7ff) | (softwareEnabled(a) ? 0 : LVT_MASKED))
      signal(s, EVENT_INTERRUPT)
      break
    case APIC_LVTERR:
      setReg(a, at, (value & 0x110ff) | (softwareEnabled(a) ? 0 : LVT_MASKED))
      break
    case APIC_LVTT: {
      const old = reg(a, APIC_LVTT)
      value = (value & (0x110ff | timerModes(s))) | (softwareEnabled(a) ? 0 : LVT_MASKED)
      setReg(a, APIC_LVTT, value)
      timerModeChanged(s, old, value)
      break
    }
    case APIC_TMICT:
      if ((reg(a, APIC_LVTT) & 0x60000) == 0x40000) break
      setReg(a, APIC_TMICT, value)
      timerStart(s)
      break
    case APIC_TDCR: {
      const old = reg(a, APIC_TDCR)
      setReg(a, APIC_TDCR, value & 0xb)
      timerDivided(s, old)
      break
    }
    case APIC_ESR:
      return wide && value != 0 ? 1 : 0
    case APIC_SELF_IPI:
      if (!wide || (value & ~(<u32>0xff)) != 0) return 1
      sendIpi(s, (1 << 18) | (value & 0xff), 0)
      break
    default:
      return 1
  }
  return 0
}

/** Registers that exist: one bit per 16 bytes (kvm_lapic_readable_reg_mask). */
function readable(s: usize, at: u32): bool {
  switch (at) {
    case APIC_ID:
    case APIC_VERSION:
    case APIC_TPR:
    case APIC_PPR:
    case APIC_LDR:
    case APIC_SVR:
    case APIC_ESR:
    case APIC_ICR:
    case APIC_LVTT:
    case APIC_LVTTHMR:
    case APIC_LVTPC:
    case APIC_LVT0:
    case APIC_LVT1:
    case APIC_LVTERR:
    case APIC_TMICT:
    case APIC_TMCCT:
    case APIC_TDCR:
      return true
    case APIC_DFR:
    case APIC_ICR2:
    case APIC_APR:
      return !x2apic(s)
    default:
      return at >= APIC_ISR && at < APIC_ESR
  }
}

function readRegister(s: usize, at: u32): u32 {
  const a = lapicOf(s)
  if (at == APIC_TMCCT) return timerCount(s)
  if (at == APIC_PPR) return updatePpr(s)
  if (at == APIC_APR) return 0
  if (at == APIC_TPR) {
    reportTpr(s, false)
    return currentTpr(s)
  }
  return reg(a, at)
}

/** True if gpa lies in this vCPU's APIC page. */
export function lapicHas(s: usize, gpa: u64): bool {
  if (load<u32>(lapicOf(s), LAPIC_PRESENT) == 0 || ((gpa ^ load<u64>(s, CPU_APIC_BASE)) & 0xffffffffff000) != 0) return false
  // A disabled page reads as ones and drops writes, unless userspace wants to see them.
  return (hardwareEnabled(s) && !x2apic(s)) || quirk(s, QUIRK_LAPIC_MMIO_HOLE)
}

export function lapicMmioRead(s: usize, offset: u32, size: u32): u64 {
  const ones: u64 = size == 8 ? NEVER : ((1 as u64) << ((size * 8) as u64)) - 1
  if (!hardwareEnabled(s) || x2apic(s)) return ones
  const alignment = offset & 15
  if (alignment + size > 4 || !readable(s, offset & 0xff0)) return 0
  return <u64>(readRegister(s, offset & 0xff0) >> (alignment << 3)) & ones
}

export function lapicMmioWrite(s: usize, offset: u32, size: u32, value: u32): void {
  if (!hardwareEnabled(s) || x2apic(s) || size != 4 || (offset & 15) != 0) return
  writeRegister(s, offset & 0xff0, value)
}

/** x2APIC MSRs 0x800..0x8ff. False = #GP. */
export function x2apicRead(s: usize, msr: u32, to: usize): bool {
  if (!x2apic(s) || load<u32>(lapicOf(s), LAPIC_PRESENT) == 0) return false
  const at = (msr - 0x800) << 4
  if (at == APIC_ICR) {
    store<u64>(to, ((<u64>reg(lapicOf(s), APIC_ICR2)) << 32) | <u64>reg(lapicOf(s), APIC_ICR))
    return true
  }
  if (!readable(s, at)) return false
  store<u64>(to, <u64>readRegister(s, at))
  return true
}

export function x2apicWrite(s: usize, msr: u32, value: u64): bool {
  if (!x2apic(s) || load<u32>(lapicOf(s), LAPIC_PRESENT) == 0) return false
  const at = (msr - 0x800) << 4
  if (at == APIC_ICR) {
    if (value & 0xfff33000) return false
    setReg(lapicOf(s), APIC_ICR2, <u32>(value >> 32))
    return writeRegister(s, APIC_ICR, <u32>value) == 0
  }
  if (value >> 32) return false
  return writeRegister(s, at, <u32>value) == 0
}

/** IA32_TSC_DEADLINE. */
export function tscDeadlineRead(s: usize): u64 {
  if (!hardwareEnabled(s) || (reg(lapicOf(s), APIC_LVTT) & 0x60000) != 0x40000) return 0
  return load<u64>(lapicOf(s), LAPIC_TSC_DEADLINE)
}
export function tscDeadlineWrite(s: usize, value: u64): void {
  if (!hardwareEnabled(s) || (reg(lapicOf(s), APIC_LVTT) & 0x60000) != 0x40000) return
  store<u64>(lapicOf(s), value, LAPIC_TSC_DEADLINE)
  timerStart(s)
}

/** IA32_APIC_BASE: false = #GP (invalid transition or reserved bit). Stores CPU_APIC_BASE. */
export function apicBaseWrite(s: usize, value: u64, host: bool): bool {
  cpuidAnswer(s, 1, 0)
  const offersX2 = (cpuidEcx(s) & (1 << 21)) != 0
  const reserved: u64 = reservedGpaBits(s) | 0x2ff | (offersX2 ? 0 : BASE_X2APIC)
  const old = load<u64>(s, CPU_APIC_BASE)
  if (value == old) return true
  if (value & reserved) return false
  const from = old & (BASE_ENABLE | BASE_X2APIC)
  const to = value & (BASE_ENABLE | BASE_X2APIC)
  if (to == BASE_X2APIC) return false
  if (!host) {
    if (from == (BASE_ENABLE | BASE_X2APIC) && to == BASE_ENABLE) return false
    if (from == 0 && to == (BASE_ENABLE | BASE_X2APIC)) return false
  }
  store<u64>(s, value, CPU_APIC_BASE)
  flushTlb(s) // the page lies over whatever slot is there
  const a = lapicOf(s)
  if (load<u32>(a, LAPIC_PRESENT) == 0 || from == to) return true
  // Userspace may also go back from x2APIC (__kvm_apic_set_base).
  if (to == BASE_ENABLE) setReg(a, APIC_ID, load<u32>(s, CPU_ID) << 24)
  if ((to & BASE_X2APIC) != 0) setX2apicId(s)
  signal(s, EVENT_INTERRUPT)
  return true
}

function setX2apicId(s: usize): void {
  const a = lapicOf(s)
  const id = load<u32>(s, CPU_ID)
  setReg(a, APIC_ID, id)
  setReg(a, APIC_LDR, ((id >> 4) << 16) | (1 << (id & 15)))
}

/** Suppression of EOI broadcasts: what userspace said of it (KVM_X2APIC_*_SUPPRESS_EOI_BROADCAST). */
function suppression(s: usize): u32 {
  return load<u32>(chipOf(vmOf(s)), CHIP_X2APIC_API) & 12
}

/** kvm_apic_set_version: offered with an IOAPIC in userspace unless that was switched off. */
export function lapicVersion(s: usize): void {
  if (load<u32>(lapicOf(s), LAPIC_PRESENT) == 0) return
  cpuidAnswer(s, 1, 0)
  const split = load<u32>(vmOf(s), VM_IRQCHIP) == 2
  const directed = (cpuidEcx(s) & (1 << 21)) != 0 && split && suppression(s) != 8
  setReg(lapicOf(s), APIC_VERSION, 0x50014 | (directed ? 1 << 24 : 0))
}

/** kvm_lapic_reset. */
export function lapicReset(s: usize, init: bool): void {
  const a = lapicOf(s)
  const id = load<u32>(s, CPU_ID)
  const bsp = load<u32>(vmOf(s), VM_BSP_ID) == id
  timerCancel(s)
  if (!init) {
    memory.fill(a, 0, 1024)
    store<u64>(s, 0xfee00000 | BASE_ENABLE | (bsp ? BASE_BSP : 0), CPU_APIC_BASE)
    setReg(a, APIC_ID, id << 24)
  }
  lapicVersion(s)
  for (let lvt: usize = APIC_LVTT; lvt <= APIC_LVTERR; lvt += 16) setReg(a, lvt, LVT_MASKED)
  if (bsp && quirk(s, QUIRK_LINT0_REENABLED)) setReg(a, APIC_LVT0, EXTINT << 8)
  setReg(a, APIC_DFR, 0xffffffff)
  setReg(a, APIC_SVR, 0xff)
  setReg(a, APIC_TPR, 0)
  store<u64>(s, 0, CPU_CR8)
  if (!x2apic(s)) setReg(a, APIC_LDR, 0)
  setReg(a, APIC_ESR, 0)
  setReg(a, APIC_ICR, 0)
  setReg(a, APIC_ICR2, 0)
  setReg(a, APIC_TDCR, 0)
  setReg(a, APIC_TMICT, 0)
  for (let i: u32 = 0; i < 8; i++) {
    setReg(a, APIC_IRR + i * 16, 0)
    setReg(a, APIC_ISR + i * 16, 0)
    setReg(a, APIC_TMR + i * 16, 0)
  }
  store<u64>(a, 0, LAPIC_TSC_DEADLINE)
  updatePpr(s)
}

/** KVM_X2APIC_API_USE_32BIT_IDS. */
function wideIds(s: usize): bool {
  return (load<u32>(chipOf(vmOf(s)), CHIP_X2APIC_API) & 1) != 0
}

/** KVM_GET_LAPIC / KVM_SET_LAPIC: 1024 bytes. In x2APIC mode userspace sees the id in bits 31:24, unless it asked for 32-bit ids. */
export function lapicGet(s: usize, to: usize): void {
  const a = lapicOf(s)
  updatePpr(s)
  memory.copy(to, a, 1024)
  store<u32>(to + APIC_TMCCT, timerCount(s))
  if (x2apic(s)) store<u32>(to + APIC_ID, wideIds(s) ? reg(a, APIC_ID) : reg(a, APIC_ID) << 24)
}

export function lapicSet(s: usize, from: usize): void {
  const a = lapicOf(s)
  timerCancel(s)
  memory.copy(a, from, 1024)
  lapicVersion(s)
  if (x2apic(s)) setX2apicId(s)
  store<u64>(s, <u64>((reg(a, APIC_TPR) >> 4) & 15), CPU_CR8)
  timerRestore(s)
  ioapicRestoreRtc(vmOf(s), s)
  signal(s, EVENT_INTERRUPT)
}
