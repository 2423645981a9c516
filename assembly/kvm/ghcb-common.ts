/** What the GHCB page protocol and the GHCB MSR protocol share. */
import {
  CPU_HALTED,
  CPU_ICOUNT,
  CPU_STOP_REASON,
  STOP_EVENT,
  VKVM_COUNT_LOST,
  VKVM_COUNT_USED,
  VKVM_COUNTS,
  VKVM_TRACE,
  VKVM_TRACE_HEAD,
} from '../generated/layout'
import { KVM_EXIT_AP_RESET_HOLD } from '../generated/kvm'
import { stopForExit } from './exits'
import { kernelApic, vkvm } from './state'

/** Result of handling a VMGEXIT: resume the guest, or leave the loop (exit, error or sleep). */
export const DONE: u32 = 0
export const LEFT: u32 = 1

/** GHCB_HV_FT_SUPPORTED: SNP and AP creation, answered to SEV-ES guests as well. */
export const HV_FEATURES: u64 = 3

const ROWS: u32 = 125

/** One more event of this code; the host reads VKVM_COUNTS for its report, VKVM_TRACE for a trace. */
export function countEvent(s: usize, code: u64, info1: u64, info2: u64): void {
  const k = vkvm(s)
  const head = load<u32>(k, VKVM_TRACE_HEAD)
  store<u32>(k, head + 1, VKVM_TRACE_HEAD)
  const entry = k + VKVM_TRACE + ((<usize>head & 31) << 5)
  store<u64>(entry, code)
  store<u64>(entry, info1, 8)
  store<u64>(entry, info2, 16)
  store<u64>(entry, load<u64>(s, CPU_ICOUNT), 24)
  const used = load<u32>(k, VKVM_COUNT_USED)
  let at = k + VKVM_COUNTS
  for (let i: u32 = 0; i < used; i++, at += 16) {
    if (load<u64>(at) == code) {
      store<u64>(at, load<u64>(at, 8) + 1, 8)
      return
    }
  }
  if (used == ROWS) {
    store<u32>(k, load<u32>(k, VKVM_COUNT_LOST) + 1, VKVM_COUNT_LOST)
    return
  }
  store<u64>(at, code)
  store<u64>(at, 1, 8)
  store<u32>(k, used + 1, VKVM_COUNT_USED)
}

/** kvm_emulate_ap_reset_hold. */
export function holdAp(s: usize): u32 {
  if (kernelApic(s)) {
    store<u32>(s, 9, CPU_HALTED)
    store<u32>(s, STOP_EVENT, CPU_STOP_REASON)
  } else {
    stopForExit(s, KVM_EXIT_AP_RESET_HOLD)
  }
  return LEFT
}
