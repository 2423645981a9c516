/**
 * Accesses to the local APIC: its page, the x2APIC MSRs, IA32_TSC_DEADLINE, EOI (KVM: Linux 7.3 arch/x86/kvm/lapic.c,
 * kvm_lapic_reg_read, kvm_lapic_reg_write; APM vol 2, 16.3, 16.9). State: struct LAPIC.
 */
import { cpuidAnswer, cpuidEcx } from './cpuid'
import { ioapicEoi } from './ioapic'
import { eoiRouted } from './irq'
import { sendIpi } from './lapic-delivery'
import {
  LVT_MASKED,
  clearBit,
  currentTpr,
  hardwareEnabled,
  highest,
  reg,
  setReg,
  setTpr,
  softwareEnabled,
  suppression,
  testBit,
  updatePpr,
  x2apic,
} from './lapic-state'
import { timerCount, timerDivided, timerModeChanged, timerStart } from './lapic-timer'
import { NEVER, lapicOf, quirk, runOf, signal, vkvm, vmOf } from './state'
import { RUN_TPR_IS_WRITE, RUN_TPR_RIP } from '../generated/kvm'
import {
  APIC_APR,
  APIC_DFR,
  APIC_EOI,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_ID,
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
  CPU_APIC_BASE,
  CPU_OP,
  CPU_RIP,
  CPU_RIP_MASK,
  EVENT_INTERRUPT,
  LAPIC_PRESENT,
  LAPIC_TSC_DEADLINE,
  OP_OFFSET,
  QUIRK_LAPIC_MMIO_HOLE,
  VKVM_EOI_EXIT,
  VKVM_TPR_REPORT,
  VM_IRQCHIP,
} from '../generated/layout'

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
