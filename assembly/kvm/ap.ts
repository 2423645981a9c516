/** INIT, SIPI and the AP states (kvm_apic_accept_events, sev_vcpu_deliver_sipi_vector of Linux 7.3). */
import { updateMode } from '../cpu/mode'
import { resetCpu } from '../cpu/reset'
import {
  CPU_HALTED,
  CPU_ID,
  CPU_INTERRUPT_SHADOW,
  CPU_NMI_BLOCKED,
  CPU_RIP,
  CPU_SEGMENTS,
  CPU_SMI_COUNT,
  SEG_BASE,
  SEG_CS,
  SEG_SELECTOR,
  HELD_TRIPLE_FAULT,
  VKVM_APF_ENABLE,
  VKVM_APF_VECTOR,
  VKVM_FIRST_SIPI,
  VKVM_HELD,
  VKVM_INTERRUPT,
  VKVM_NMI_PENDING,
  VKVM_PROTECTED,
  VKVM_PV_CLOCK,
  VKVM_PV_EOI,
  VKVM_PV_EOI_PENDING,
  VKVM_STEAL,
  VKVM_SMI_PENDING,
  VM_BSP_ID,
} from '../generated/layout'
import { releaseAp } from './ghcb'
import { lapicReset } from './lapic'
import { INJECTED, kernelApic, vkvm, vmOf } from './state'

export function isBsp(s: usize): bool {
  return load<u32>(vmOf(s), VM_BSP_ID) == load<u32>(s, CPU_ID)
}

/** What waits to be injected, and the paravirtual services that write memory (kvm_vcpu_reset, kvmclock_reset, kvm_lapic_reset). */
function forget(s: usize): void {
  const k = vkvm(s)
  store<u32>(k, 0, VKVM_SMI_PENDING)
  store<u32>(k, 0, VKVM_NMI_PENDING)
  store<u32>(k, load<u32>(k, VKVM_HELD) & HELD_TRIPLE_FAULT, VKVM_HELD)
  // Userspace's vector for a split interrupt controller is not in the queue yet.
  if (load<u32>(k, VKVM_INTERRUPT) & INJECTED) store<u32>(k, 0, VKVM_INTERRUPT)
  store<u64>(k, 0, VKVM_PV_CLOCK)
  store<u64>(k, 0, VKVM_STEAL)
  store<u64>(k, 0, VKVM_APF_ENABLE)
  store<u64>(k, 0, VKVM_APF_VECTOR)
  store<u64>(k, 0, VKVM_PV_EOI)
  store<u32>(k, 0, VKVM_PV_EOI_PENDING)
}

/** INIT: registers as after INIT (a sealed VMSA is out of reach), then the BSP runs and an AP waits for SIPI. */
export function apReset(s: usize): void {
  if (kernelApic(s)) lapicReset(s, true)
  if (load<u32>(vkvm(s), VKVM_PROTECTED) == 0) {
    resetCpu(s, true)
    updateMode(s)
    store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
    store<u32>(s, 0, CPU_NMI_BLOCKED)
    store<u64>(s, 0, CPU_SMI_COUNT)
    forget(s)
  }
  store<u32>(s, isBsp(s) ? 0 : 2, CPU_HALTED)
}

/** SIPI while in INIT_RECEIVED: CS:IP from the vector, or for SEV-ES the release of a held AP. */
export function apSipi(s: usize, vector: u32): void {
  const k = vkvm(s)
  store<u32>(s, 0, CPU_HALTED)
  if (load<u32>(k, VKVM_PROTECTED)) {
    if (load<u32>(k, VKVM_FIRST_SIPI) == 0) {
      store<u32>(k, 1, VKVM_FIRST_SIPI)
      return
    }
    releaseAp(s)
    return
  }
  const cs = s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4)
  store<u16>(cs, <u16>(vector << 8), SEG_SELECTOR)
  store<u64>(cs, (<u64>vector) << 12, SEG_BASE)
  store<u64>(s, 0, CPU_RIP)
  updateMode(s)
}
