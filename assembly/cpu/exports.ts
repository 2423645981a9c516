/** Exports of the privileged architecture for the host half. Values travel through STAGING. */
import { CPU_MSR_VALUE, STAGING } from '../generated/layout'
import { flushBlocks } from '../decode/cache'
import { updateFeatures } from './features'
import { lapicVersion } from '../kvm/lapic'
import { msrRead, msrWrite } from './msr'

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
