/**
 * KVM_SET_GUEST_DEBUG: single steps and software breakpoints as KVM_EXIT_DEBUG (kvm_vcpu_do_singlestep of Linux 7.3
 * arch/x86/kvm/x86.c, bp_interception of svm.c). The host writes VKVM_GUEST_DEBUG.
 */
import {
  EXC_DB,
  VKVM_DEBUG_DR7,
  EXC_BP,
  CPU_DR7,
  CPU_RIP,
  LEAVE_EXIT_RETRY,
  SEG_BASE,
  SEG_CS,
  CPU_SEGMENTS,
  VKVM_GUEST_DEBUG,
} from '../generated/layout'
import { KVM_EXIT_DEBUG, RUN_DEBUG_DR6, RUN_DEBUG_DR7, RUN_DEBUG_EXCEPTION, RUN_DEBUG_PC } from '../generated/kvm'
import { code64 } from '../cpu/mode'
import { stopForExit } from './exits'
import { runOf, vkvm } from './state'

const SINGLESTEP: u32 = 2
const USE_SW_BP: u32 = 0x10000
const BLOCKIRQ: u32 = 0x100000
/** DR6_BS with the bits that always read as one. */
const DR6_STEP: u64 = 0xffff4ff0
const DR6_FIXED: u64 = 0xffff0ff0

export function singleStepping(s: usize): bool {
  return (load<u32>(vkvm(s), VKVM_GUEST_DEBUG) & SINGLESTEP) != 0
}

/** SMI, NMI and interrupts wait (kvm_check_and_inject_events). */
export function eventsBlocked(s: usize): bool {
  return (load<u32>(vkvm(s), VKVM_GUEST_DEBUG) & BLOCKIRQ) != 0
}

/** kvm_get_linear_rip. */
function linear(s: usize, rip: u64): u64 {
  return code64(s) ? rip : <u64>(<u32>(rip + load<u64>(s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4), SEG_BASE)))
}

/** The step is done; `emulated`: by KVM itself, which leaves dr7 alone (kvm_inject_emulated_db), not seen by db_interception. */
export function exitStep(s: usize, emulated: bool): void {
  const run = runOf(s)
  store<u32>(run, 1, RUN_DEBUG_EXCEPTION)
  store<u64>(run, linear(s, load<u64>(s, CPU_RIP)), RUN_DEBUG_PC)
  store<u64>(run, DR6_STEP, RUN_DEBUG_DR6)
  if (!emulated) store<u64>(run, load<u64>(s, CPU_DR7), RUN_DEBUG_DR7)
  stopForExit(s, KVM_EXIT_DEBUG)
}

/** A breakpoint of KVM_GUESTDBG_USE_HW_BP was hit: `bits` are B0..B3 (and BS). */
export function exitBreakpoint(s: usize, bits: u32): void {
  exitBreakpointAt(s, load<u64>(s, CPU_RIP), bits)
}

export function exitBreakpointAt(s: usize, rip: u64, bits: u32): void {
  const run = runOf(s)
  store<u32>(run, EXC_DB, RUN_DEBUG_EXCEPTION)
  store<u64>(run, linear(s, rip), RUN_DEBUG_PC)
  store<u64>(run, DR6_FIXED | <u64>bits, RUN_DEBUG_DR6)
  store<u64>(run, load<u64>(vkvm(s), VKVM_DEBUG_DR7), RUN_DEBUG_DR7)
  stopForExit(s, KVM_EXIT_DEBUG)
}

/** INT3 at `rip`: 0 = the guest's own, else LEAVE_EXIT_RETRY with the exit filled in (RIP stays on it). */
export function breakpoint(s: usize, rip: u64): u32 {
  if ((load<u32>(vkvm(s), VKVM_GUEST_DEBUG) & USE_SW_BP) == 0) return 0
  store<u32>(runOf(s), EXC_BP, RUN_DEBUG_EXCEPTION)
  store<u64>(runOf(s), linear(s, rip), RUN_DEBUG_PC)
  stopForExit(s, KVM_EXIT_DEBUG)
  return LEAVE_EXIT_RETRY
}
