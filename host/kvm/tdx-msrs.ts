/**
 * MSRs that KVM emulates for a TD (arch/x86/kvm/vmx/tdx.c tdx_has_emulated_msr, tdx_get_msr, tdx_set_msr): every other one,
 * and a write of those that are read-only, ends KVM_GET_MSRS and KVM_SET_MSRS.
 */
import { CPU_MCG_CAP } from '../generated/layout.ts'
import type { VcpuFd } from './vcpu.ts'

const FEAT_CTL = 0x3a
const FEAT_CTL_LOCKED = 1n
const FEAT_CTL_LMCE = 1n << 20n
const MCG_LMCE_P = 1n << 27n
const APIC_BASE = 0x1b
const EFER = 0xc0000080
/** SCE, LME, LMA, NX: what tdx_vcpu_create gives. */
const TD_EFER = 0xd01n
const MCG_EXT_CTL = 0x4d0
const ARCH_CAPABILITIES = 0x10a
const POLL_CONTROL = 0x4b564d05

/** First and last number of each run. */
const RANGES: readonly (readonly [number, number])[] = [
  [APIC_BASE, APIC_BASE],
  [FEAT_CTL, FEAT_CTL],
  [0x8b, 0x8b],
  [0xce, 0xce],
  [0xfe, 0xfe],
  [ARCH_CAPABILITIES, ARCH_CAPABILITIES],
  [0x140, 0x140],
  [0x179, 0x17b],
  [0x1a0, 0x1a0],
  [0x1fc, 0x1fc],
  [0x200, 0x26f],
  [0x277, 0x277],
  [0x280, 0x29f],
  [0x2ff, 0x2ff],
  [0x400, 0x47f],
  [MCG_EXT_CTL, MCG_EXT_CTL],
  [0x6e0, 0x6e0],
  // x2APIC: ID, version, LDR, SPIV, ESR, LVT, ICR, timer; the others are the virtual APIC page's.
  [0x802, 0x803],
  [0x80d, 0x80d],
  [0x80f, 0x80f],
  [0x828, 0x828],
  [0x82f, 0x830],
  [0x832, 0x839],
  [0x83e, 0x83e],
  [POLL_CONTROL, POLL_CONTROL],
  [EFER, EFER],
]

export function tdHasMsr(index: number): boolean {
  return RANGES.some(([first, last]) => index >= first && index <= last)
}

export function tdMsrReadOnly(index: number): boolean {
  return index === APIC_BASE || index === EFER || index === FEAT_CTL
}

/** The value of an MSR that only KVM's copy for a TD has; null: as for other guests. */
export function tdMsr(vcpu: VcpuFd, index: number): bigint | null {
  switch (index) {
    case FEAT_CTL:
      return FEAT_CTL_LOCKED | ((vcpu.cpu.getBigUint64(CPU_MCG_CAP, true) & MCG_LMCE_P) !== 0n ? FEAT_CTL_LMCE : 0n)
    case EFER:
      return TD_EFER
    case MCG_EXT_CTL:
      return vcpu.mcgExtCtl
    case ARCH_CAPABILITIES:
      // Advertised and not in the guest's CPUID: userspace reads 0.
      return 0n
    default:
      return null
  }
}

/** Writes one of those; null: as for other guests. */
export function setTdMsr(vcpu: VcpuFd, index: number, value: bigint): boolean | null {
  switch (index) {
    case MCG_EXT_CTL:
      if ((value & ~1n) !== 0n) return false
      vcpu.mcgExtCtl = value
      return true
    case ARCH_CAPABILITIES:
      return value === 0n
    default:
      return null
  }
}
