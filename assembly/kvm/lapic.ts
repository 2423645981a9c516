/**
 * A local APIC as a whole: base address and mode, reset, its state for userspace (KVM: Linux 7.3 arch/x86/kvm/lapic.c; APM vol 2,
 * chapter 16). State: struct LAPIC at s + VCPU_LAPIC.
 */
import { reservedGpaBits } from '../cpu/features'
import { flushTlb } from '../memory/tlb'
import { cpuidAnswer, cpuidEcx } from './cpuid'
import { ioapicRestoreRtc } from './ioapic'
import { BASE_ENABLE, BASE_X2APIC, LVT_MASKED, lapicVersion, reg, setReg, updatePpr, x2apic } from './lapic-state'
import { timerCancel, timerCount, timerRestore } from './lapic-timer'
import { chipOf, lapicOf, quirk, signal, vmOf } from './state'
import {
  APIC_DFR,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_ID,
  APIC_IRR,
  APIC_ISR,
  APIC_LDR,
  APIC_LVT0,
  APIC_LVTERR,
  APIC_LVTT,
  APIC_SVR,
  APIC_TDCR,
  APIC_TMCCT,
  APIC_TMICT,
  APIC_TMR,
  APIC_TPR,
  CHIP_X2APIC_API,
  CPU_APIC_BASE,
  CPU_CR8,
  CPU_ID,
  EVENT_INTERRUPT,
  LAPIC_PRESENT,
  LAPIC_TSC_DEADLINE,
  QUIRK_LINT0_REENABLED,
  VM_BSP_ID,
} from '../generated/layout'

const BASE_BSP: u64 = 0x100
/** Delivery mode of ICR, LVT, redirection entries and MSIs. */
const EXTINT: u32 = 7

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
