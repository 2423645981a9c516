/**
 * What the host half needs to read and replace vCPU registers: lazy flags, derived mode state, MSRs and what hangs on the
 * CPUID table. MSR values travel through STAGING. Owns no state.
 */
import { CPU_MSR_VALUE, STAGING } from '../generated/layout'
import { deliverException, deliverNmi } from '../cpu/delivery'
import { getFlags, setFlags } from '../cpu/flags'
import { updateDebug } from '../cpu/debug'
import { updateFeatures } from '../cpu/features'
import { updateMode } from '../cpu/mode'
import { msrRead, msrWrite } from '../cpu/msr'
import { flushBlocks } from '../decode/cache'
import { flushTlb } from '../memory/tlb'
import { lapicVersion } from './lapic-state'

/** RFLAGS with the lazy bits computed. */
export function cpuGetFlags(s: usize): u64 {
  return getFlags(s)
}

/** Replaces RFLAGS whole. */
export function cpuSetFlags(s: usize, value: u64): void {
  setFlags(s, value)
  updateMode(s)
}

/** After the host changed control registers, EFER or segments. */
export function cpuModeChanged(s: usize): void {
  updateMode(s)
  updateDebug(s)
  flushTlb(s)
}

/** Event injection (KVM_SET_VCPU_EVENTS): delivers an exception, or with `nmi` an NMI, at the present boundary. 0, or a STOP_*. */
export function cpuInject(s: usize, vector: u32, hasError: bool, error: u32, nmi: bool): u32 {
  return nmi ? deliverNmi(s) : deliverException(s, vector, hasError, error)
}

/** KVM_GET_MSRS, one entry: the value at STAGING; false = refused. */
export function msrGet(s: usize, index: u32): bool {
  if (!msrRead(s, index, true)) return false
  store<u64>(STAGING, load<u64>(s, CPU_MSR_VALUE))
  return true
}

/** KVM_SET_MSRS, one entry: the value from STAGING; false = refused. */
export function msrSet(s: usize, index: u32): bool {
  return msrWrite(s, index, load<u64>(STAGING), true)
}

/** After the table in VCPU_CPUID changed (KVM_SET_CPUID2). */
export function cpuidChanged(s: usize): void {
  updateFeatures(s)
  // What is decoded depends on it.
  flushBlocks(s)
  lapicVersion(s)
}
