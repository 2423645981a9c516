/** What the host half needs to read and replace vCPU registers: lazy flags and derived mode state. Owns no state. */
import { deliverException, deliverNmi } from '../cpu/exceptions'
import { getFlags, setFlags } from '../cpu/flags'
import { updateDebug } from '../cpu/debug'
import { updateMode } from '../cpu/mode'
import { flushTlb } from '../memory/tlb'

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
