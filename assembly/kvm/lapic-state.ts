/**
 * What the local APIC's registers say: modes, ids, priorities, what may be taken and is taken (KVM: Linux 7.3 arch/x86/kvm/lapic.c;
 * APM vol 2, chapter 16). State: struct LAPIC at s + VCPU_LAPIC; its first 1024 bytes are struct kvm_lapic_state.
 */
import { cpuidAnswer, cpuidEcx } from './cpuid'
import { chipOf, lapicOf, vmOf } from './state'
import {
  APIC_ID,
  APIC_IRR,
  APIC_ISR,
  APIC_LVT0,
  APIC_PPR,
  APIC_SVR,
  APIC_TPR,
  APIC_VERSION,
  CHIP_X2APIC_API,
  CPU_APIC_BASE,
  CPU_CR8,
  CPU_INDEX,
  LAPIC_LAST_VECTOR,
  LAPIC_PRESENT,
  VM_IRQCHIP,
} from '../generated/layout'

export const LVT_MASKED: u32 = 0x10000
export const BASE_ENABLE: u64 = 0x800
export const BASE_X2APIC: u64 = 0x400

export function reg(a: usize, at: usize): u32 {
  return load<u32>(a + at)
}

export function setReg(a: usize, at: usize, value: u32): void {
  store<u32>(a + at, value)
}

export function hardwareEnabled(s: usize): bool {
  return load<u32>(lapicOf(s), LAPIC_PRESENT) != 0 && (load<u64>(s, CPU_APIC_BASE) & BASE_ENABLE) != 0
}

export function x2apic(s: usize): bool {
  return (load<u64>(s, CPU_APIC_BASE) & (BASE_ENABLE | BASE_X2APIC)) == (BASE_ENABLE | BASE_X2APIC)
}

export function softwareEnabled(a: usize): bool {
  return (reg(a, APIC_SVR) & 0x100) != 0
}

/** The 32-bit APIC id. */
export function apicId(s: usize): u32 {
  const id = reg(lapicOf(s), APIC_ID)
  return x2apic(s) ? id : id >> 24
}

// 256-bit registers IRR, ISR, TMR: 8 words, 16 bytes apart.
export function testBit(a: usize, at: usize, vector: u32): bool {
  return (load<u32>(a + at + ((<usize>(vector >> 5)) << 4)) & (1 << (vector & 31))) != 0
}

export function setBit(a: usize, at: usize, vector: u32): void {
  const p = a + at + ((<usize>(vector >> 5)) << 4)
  store<u32>(p, load<u32>(p) | (1 << (vector & 31)))
}

export function clearBit(a: usize, at: usize, vector: u32): void {
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
export function currentTpr(s: usize): u32 {
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

export function updatePpr(s: usize): u32 {
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

/** kvm_apic_pending_eoi. */
export function lapicPendingEoi(s: usize, vector: u32): bool {
  return testBit(lapicOf(s), APIC_ISR, vector) || testBit(lapicOf(s), APIC_IRR, vector)
}

/** Suppression of EOI broadcasts: what userspace said of it (KVM_X2APIC_*_SUPPRESS_EOI_BROADCAST). */
export function suppression(s: usize): u32 {
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
