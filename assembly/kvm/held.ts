/**
 * Events that userspace left for the next entry (KVM_SET_VCPU_EVENTS, KVM_SET_GUEST_DEBUG, KVM_X86_SET_MCE): an exception, an NMI
 * that is injected again whatever masks it, a triple fault. kvm_check_and_inject_events of Linux 7.3 arch/x86/kvm/x86.c.
 * Owns VKVM_HELD*.
 */
import { deliverException, deliverNmi } from '../cpu/delivery'
import {
  CPU_CR2,
  CPU_DR6,
  CPU_STOP_REASON,
  CPU_TRIPLE_FAULT,
  EXC_DB,
  EXC_PF,
  HELD_ERROR,
  HELD_EXCEPTION,
  HELD_NMI,
  HELD_PAYLOAD,
  HELD_PENDING,
  HELD_TRIPLE_FAULT,
  STOP_SHUTDOWN,
  VKVM_HELD,
  VKVM_HELD_ERROR,
  VKVM_HELD_PAYLOAD,
  VKVM_HELD_VECTOR,
} from '../generated/layout'
import { vkvm } from './state'

const DR6_ACTIVE_LOW: u64 = 0xffff0ff0
const DR6_BUS_LOCK_AND_12: u64 = 0x1000

/** kvm_deliver_exception_payload. */
function deliverPayload(s: usize, vector: u32, payload: u64): void {
  if (vector == EXC_PF) store<u64>(s, payload, CPU_CR2)
  if (vector != EXC_DB) return
  // The payload has RTM inverted: its active-low bits are flipped.
  let dr6 = (load<u64>(s, CPU_DR6) & ~(<u64>15)) | DR6_ACTIVE_LOW | payload
  dr6 ^= payload & DR6_ACTIVE_LOW
  store<u64>(s, dr6 & ~DR6_BUS_LOCK_AND_12, CPU_DR6)
}

/** 1 = nothing more may be injected at this entry, 0 = nothing was held, else what deliver*() returned plus 2. */
export function injectHeld(s: usize): u32 {
  const k = vkvm(s)
  const held = load<u32>(k, VKVM_HELD)
  if (held == 0) return 0
  if (held & HELD_TRIPLE_FAULT) {
    store<u32>(k, held & ~HELD_TRIPLE_FAULT, VKVM_HELD)
    store<u32>(s, 2, CPU_TRIPLE_FAULT)
    store<u32>(s, STOP_SHUTDOWN, CPU_STOP_REASON)
    return 2 + STOP_SHUTDOWN
  }
  let stop: u32 = 0
  if (held & HELD_EXCEPTION) {
    const vector = load<u32>(k, VKVM_HELD_VECTOR)
    store<u32>(k, held & HELD_NMI, VKVM_HELD)
    if (held & HELD_PAYLOAD) deliverPayload(s, vector, load<u64>(k, VKVM_HELD_PAYLOAD))
    stop = deliverException(s, vector, (held & HELD_ERROR) != 0, load<u32>(k, VKVM_HELD_ERROR))
  } else {
    store<u32>(k, 0, VKVM_HELD)
    if (held & HELD_NMI) stop = deliverNmi(s)
  }
  return stop == 0 ? 1 : 2 + stop
}

/** Something is held that wakes a halted vCPU (kvm_vcpu_has_events). */
export function heldWakes(s: usize): bool {
  return (load<u32>(vkvm(s), VKVM_HELD) & (HELD_PENDING | HELD_TRIPLE_FAULT)) != 0
}
