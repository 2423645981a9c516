/** What the host half needs to read and replace vCPU registers: lazy flags and derived mode state. Owns no state. */
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
