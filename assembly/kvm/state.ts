/** Addresses of the kernel's state, and the event word's protocol. */
import {
  CPU_BUDGET,
  CPU_EVENT,
  CPU_VM,
  VCPU_KVM,
  VCPU_LAPIC,
  VCPU_RUN,
  VM_DISABLED_EXITS,
  VM_DISABLED_QUIRKS,
  VM_IRQCHIP,
  VM_KVM_STATE,
  VM_SEV,
} from '../generated/layout'

export const NEVER: u64 = ~(<u64>0)

/** VKVM_INTERRUPT: vcpu->arch.interrupt is injected whatever IF says (host/kvm/vcpu-events.ts). */
export const INJECTED: u32 = 0x200

export function vkvm(s: usize): usize {
  return s + VCPU_KVM
}
export function lapicOf(s: usize): usize {
  return s + VCPU_LAPIC
}
export function runOf(s: usize): usize {
  return s + VCPU_RUN
}
export function vmOf(s: usize): usize {
  return load<u32>(s, CPU_VM)
}
export function chipOf(vm: usize): usize {
  return load<u32>(vm, VM_KVM_STATE)
}
/** The local APIC (and with it HLT) is in the kernel: full or split irqchip. */
export function kernelApic(s: usize): bool {
  return load<u32>(vmOf(s), VM_IRQCHIP) != 0
}
export function isSevEs(s: usize): bool {
  return load<u32>(vmOf(s), VM_SEV) >= 2
}

/** Asks a vCPU for attention: OR into the event word, then lower the budget (design: event protocol). */
export function signal(s: usize, event: u32): void {
  atomic.or<u32>(s + CPU_EVENT, event)
  atomic.store<u64>(s + CPU_BUDGET, 0)
}
export function clearEvent(s: usize, event: u32): void {
  atomic.and<u32>(s + CPU_EVENT, ~event)
}

/** kvm_check_has_quirk. */
export function quirk(s: usize, bit: u32): bool {
  return (load<u32>(vmOf(s), VM_DISABLED_QUIRKS) & bit) == 0
}
/** KVM_CAP_X86_DISABLE_EXITS has this one. */
export function exitsDisabled(s: usize, bit: u32): bool {
  return (load<u32>(vmOf(s), VM_DISABLED_EXITS) & bit) != 0
}
