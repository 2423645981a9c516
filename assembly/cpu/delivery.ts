/**
 * Delivering exceptions and interrupts: classification, double and triple fault, what a second event does to the first
 * (SDM vol 3, chapter 6; APM vol 2, chapter 8). The way through the table is gates.ts.
 * Owns CPU_PENDING_DB, CPU_TRIPLE_FAULT, CPU_NMI_BLOCKED.
 */
import {
  CPU_DR6,
  CPU_EFLAGS,
  CPU_EXC_ERROR,
  CPU_EXC_FLAGS,
  CPU_EXC_VECTOR,
  CPU_HALTED,
  CPU_INTERRUPT_SHADOW,
  CPU_LEAVE,
  CPU_NMI_BLOCKED,
  CPU_PENDING_DB,
  CPU_RIP,
  CPU_STEP_CANCEL,
  CPU_STOP_REASON,
  CPU_TRIPLE_FAULT,
  EXCF_ERROR,
  EXCF_EXTERNAL,
  EXCF_INT3,
  EXCF_NMI,
  EXCF_SOFT,
  EXCF_TRAP,
  EXC_AC,
  EXC_DB,
  EXC_DE,
  EXC_DF,
  EXC_GP,
  EXC_NMI,
  EXC_PF,
  EXC_TS,
  EXC_VC,
  LEAVE_FAULT,
  STOP_EXIT,
  STOP_MEMORY_FAULT,
  STOP_RING_FULL,
  STOP_SHUTDOWN,
  UNIMPLEMENTED_DELIVERY_MMIO,
  VCPU_KVM,
  VKVM_AGAIN,
  VKVM_AGAIN_ERROR,
  VKVM_AGAIN_FLAGS,
  VKVM_AGAIN_VECTOR,
} from '../generated/layout'
import { TF } from './flags'
import { sevEs } from './mode'
import { DR6_BT } from './task'
import { unimplementedFeature } from './exceptions'
import { switched, throughIdt } from './gates'

/** Contributory exceptions (SDM vol 3, table 6-4; #VC is contributory: APM vol 2, 8.2.9). */
function contributory(vector: u32): bool {
  return vector == EXC_DE || (vector >= EXC_TS && vector <= EXC_GP) || vector == 21 || vector == EXC_VC || vector == 30
}

/**
 * Delivers what EXC_* describes (double and triple faults included). RIP is that of the faulting
 * instruction, or past it for traps. 0, or STOP_*.
 */
export function deliver(s: usize): u32 {
  const flags = load<u32>(s, CPU_EXC_FLAGS)
  const ret = load<u64>(s, CPU_RIP)
  return deliverEvent(s, load<u32>(s, CPU_EXC_VECTOR), load<u32>(s, CPU_EXC_ERROR), flags, ret)
}

/** Delivers an external interrupt or NMI at an instruction boundary. 0, or STOP_*. */
export function deliverInterrupt(s: usize, vector: u32): u32 {
  return deliverEvent(s, vector, 0, EXCF_EXTERNAL, load<u64>(s, CPU_RIP))
}

export function deliverNmi(s: usize): u32 {
  store<u32>(s, 1, CPU_NMI_BLOCKED)
  return deliverEvent(s, EXC_NMI, 0, EXCF_EXTERNAL | EXCF_NMI, load<u64>(s, CPU_RIP))
}

/** Injection by the host (KVM_SET_VCPU_EVENTS, event injection of VMRUN). */
export function deliverException(s: usize, vector: u32, hasError: bool, error: u32): u32 {
  // RF is set for faults, and KVM takes no #DB for one (kvm_check_and_inject_events).
  return deliverEvent(s, vector, error, hasError ? EXCF_ERROR : vector == EXC_DB ? EXCF_TRAP : 0, load<u64>(s, CPU_RIP))
}

/** The trap-class #DB (single step, data breakpoints), adding `bits` to DR6. 0, or STOP_*. */
export function deliverTrap(s: usize, bits: u32): u32 {
  store<u64>(s, load<u64>(s, CPU_DR6) | <u64>bits, CPU_DR6)
  return deliverEvent(s, EXC_DB, 0, EXCF_TRAP, load<u64>(s, CPU_RIP))
}

/** Delivers the event that a memory fault or a full dirty ring kept from being delivered. 0, or STOP_*. */
export function deliverAgain(s: usize): u32 {
  const k = s + VCPU_KVM
  store<u32>(k, 0, VKVM_AGAIN)
  store<u32>(s, 0, CPU_LEAVE)
  store<u32>(s, 0, CPU_STOP_REASON)
  return deliverEvent(
    s,
    load<u32>(k, VKVM_AGAIN_VECTOR),
    load<u32>(k, VKVM_AGAIN_ERROR),
    load<u32>(k, VKVM_AGAIN_FLAGS),
    load<u64>(s, CPU_RIP),
  )
}

function deliverEvent(s: usize, vector: u32, error: u32, flags: u32, ret: u64): u32 {
  store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
  store<u32>(s, 0, CPU_PENDING_DB)
  store<u32>(s, 0, CPU_HALTED)
  store<u32>(s, 0, CPU_LEAVE)
  let shutdown: bool = false
  while (!shutdown) {
    const processor = (flags & (EXCF_EXTERNAL | EXCF_SOFT | EXCF_INT3)) == 0
    // KVM intercepts #DB and #AC of SEV-ES guests, so that the guest gets #VC instead.
    if (processor && (vector == EXC_DB || vector == EXC_AC) && sevEs(s)) {
      error = 0x40 + vector
      vector = EXC_VC
      flags = EXCF_ERROR | (flags & EXCF_TRAP)
    }
    if (throughIdt(s, vector, error, flags, ret, 0)) return 0
    if (load<u32>(s, CPU_LEAVE) != LEAVE_FAULT) {
      // Out of memory, a named stop, or a descriptor or stack in MMIO (KVM_INTERNAL_ERROR_DELIVERY_EV).
      const why = load<u32>(s, CPU_STOP_REASON)
      if (why == STOP_MEMORY_FAULT || why == STOP_RING_FULL) {
        // As KVM injects again what the exit interrupted (svm_complete_interrupts).
        const k = s + VCPU_KVM
        store<u32>(k, 1, VKVM_AGAIN)
        store<u32>(k, vector, VKVM_AGAIN_VECTOR)
        store<u32>(k, error, VKVM_AGAIN_ERROR)
        store<u32>(k, flags, VKVM_AGAIN_FLAGS)
      }
      if (why == 0 || why == STOP_EXIT) unimplementedFeature(s, 0, UNIMPLEMENTED_DELIVERY_MMIO)
      return load<u32>(s, CPU_STOP_REASON)
    }
    const second = load<u32>(s, CPU_EXC_VECTOR)
    if (switched) ret = load<u64>(s, CPU_RIP)
    store<u32>(s, 0, CPU_LEAVE)
    shutdown = processor && vector == EXC_DF && (contributory(second) || second == EXC_PF)
    const double =
      processor && ((contributory(vector) && contributory(second)) || (vector == EXC_PF && (contributory(second) || second == EXC_PF)))
    vector = double ? EXC_DF : second
    error = double ? 0 : load<u32>(s, CPU_EXC_ERROR)
    flags = double ? EXCF_ERROR : load<u32>(s, CPU_EXC_FLAGS)
  }
  store<u32>(s, 1, CPU_TRIPLE_FAULT)
  store<u32>(s, STOP_SHUTDOWN, CPU_STOP_REASON)
  return STOP_SHUTDOWN
}

/** INT n, INT3, INTO, INT1 from a handler: true if CPU_RIP is the handler's; false with the exception pending. */
export function softwareInterrupt(s: usize, op: usize, vector: u32, flags: u32, next: u64): bool {
  const step = (<u32>load<u64>(s, CPU_EFLAGS) & TF) != 0
  if (!throughIdt(s, vector, 0, flags, next, op)) {
    if (!switched) return false
    // The exception belongs to the new task.
    if (deliver(s)) return false
  }
  // TF of the interrupted code traps no more. A data breakpoint that MOV SS held back is taken in the handler (ICEBP: merged), and
  // the T bit of a task behind a gate traps there.
  const keep: u32 = vector == EXC_DB && (flags & EXCF_TRAP) != 0 ? DR6_BT : DR6_BT | 15
  store<u32>(s, load<u32>(s, CPU_PENDING_DB) & keep, CPU_PENDING_DB)
  if (step) store<u32>(s, 1, CPU_STEP_CANCEL)
  return true
}
