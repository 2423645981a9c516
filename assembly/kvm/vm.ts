/** VMs and vCPUs as objects in linear memory: creation, destruction, in-kernel interrupt controllers. */
import { updateMode } from '../cpu/mode'
import { resetCpu } from '../cpu/reset'
import {
  CHIP_PIC_PRESENT,
  CHIP_PIT_DEADLINE,
  CHIP_PIT_PRESENT,
  CHIP_RESERVED_ROUTES,
  CHIP_USER_DEADLINE,
  CPU_APIC_BASE,
  CPU_HALTED,
  CPU_ID,
  CPU_INDEX,
  CPU_VM,
  LAPIC_PRESENT,
  LAPIC_TIMER_DEADLINE,
  SIZEOF_CHIP,
  SIZEOF_VM,
  VM_APIC_BUS_NS,
  VM_GHCB_VERSION,
  VM_IRQCHIP,
  VM_KVM_STATE,
  VM_LINUX,
  VM_PHYS_MASK,
  VM_TSC_KHZ,
  VM_VCPU_COUNT,
  VM_WALL_EPOCH,
  VKVM_POLL_CONTROL,
  VM_VCPUS,
} from '../generated/layout'
import { allocArena, allocPages, freeArena, freePages, pagesFor } from '../memory/frames'
import { ringCreate, ringFree } from '../memory/dirty-ring'
import { slotsFree } from '../memory/slots'
import { vcpuRegister, vcpuUnregister } from '../memory/vcpus'
import { isBsp } from './ap'
import { ioapicCreate } from './ioapic'
import { ringJoin, zonesFree } from './coalesced'
import { ioeventFree } from './ioevent'
import { routingFree } from './irq'
import { lapicReset } from './lapic'
import { msrFilterFree } from './msr-exit'
import { picCreate } from './pic'
import { pitCreate } from './pit'
import { vmsaFree } from './vmsa'
import { clockStale } from './pv'
import { chipOf, lapicOf, NEVER, vkvm, vmOf } from './state'

/** 0 = out of memory. */
export function vmCreate(): usize {
  const vm = allocPages(pagesFor(<u64>SIZEOF_VM))
  if (!vm) return 0
  const chip = allocPages(pagesFor(<u64>SIZEOF_CHIP))
  if (!chip) {
    freePages(vm, pagesFor(<u64>SIZEOF_VM))
    return 0
  }
  store<u32>(vm, <u32>chip, VM_KVM_STATE)
  store<u32>(vm, 703, VM_LINUX)
  store<u32>(vm, 1, VM_GHCB_VERSION)
  store<u64>(vm, 2000000, VM_TSC_KHZ)
  store<u64>(vm, 1, VM_APIC_BUS_NS)
  store<u64>(vm, 1767225600000000000, VM_WALL_EPOCH) // 2026-01-01
  // 48 bits, as the AMD models report in CPUID 0x80000008
  store<u64>(vm, 0x0000fffffffff000, VM_PHYS_MASK)
  store<u64>(chip, NEVER, CHIP_PIT_DEADLINE)
  store<u64>(chip, NEVER, CHIP_USER_DEADLINE)
  return vm
}

/** Its vCPUs are destroyed before it. */
export function vmDestroy(vm: usize): void {
  msrFilterFree(vm)
  ioeventFree(vm)
  zonesFree(vm)
  routingFree(vm)
  slotsFree(vm)
  freePages(chipOf(vm), pagesFor(<u64>SIZEOF_CHIP))
  freePages(vm, pagesFor(<u64>SIZEOF_VM))
}

/** KVM_CREATE_VCPU: the address of the vCPU, 0 = out of memory or too many. */
export function vcpuCreate(vm: usize, id: u32): usize {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  if (count >= 1024) return 0
  const s = allocArena()
  if (!s) return 0
  store<u32>(s, <u32>vm, CPU_VM)
  store<u32>(s, id, CPU_ID)
  store<u32>(s, count, CPU_INDEX)
  if (!ringCreate(vm, s) || !vcpuRegister(s)) {
    ringFree(vm, s)
    freeArena(s)
    return 0
  }
  store<u32>(vm + VM_VCPUS + ((<usize>count) << 2), <u32>s)
  store<u32>(vm, count + 1, VM_VCPU_COUNT)
  ringJoin(vm, s)
  const kernel = load<u32>(vm, VM_IRQCHIP) != 0
  store<u64>(lapicOf(s), NEVER, LAPIC_TIMER_DEADLINE)
  store<u32>(lapicOf(s), kernel ? 1 : 0, LAPIC_PRESENT)
  resetCpu(s, false)
  store<u64>(vkvm(s), 1, VKVM_POLL_CONTROL)
  clockStale(vm)
  if (kernel) lapicReset(s, false)
  else store<u64>(s, 0xfee00800 | (isBsp(s) ? 0x100 : 0), CPU_APIC_BASE)
  updateMode(s)
  // without an APIC in the kernel every vCPU is runnable (kvm_arch_vcpu_create)
  store<u32>(s, kernel && !isBsp(s) ? 1 : 0, CPU_HALTED)
  return s
}

export function vcpuDestroy(s: usize): void {
  const vm = vmOf(s)
  store<u32>(vm + VM_VCPUS + ((<usize>load<u32>(s, CPU_INDEX)) << 2), 0)
  vmsaFree(s)
  ringFree(vm, s)
  vcpuUnregister(s)
  freeArena(s)
}

/** KVM_CREATE_IRQCHIP, or (split) KVM_CAP_SPLIT_IRQCHIP. */
export function createIrqchip(vm: usize, split: bool): void {
  store<u32>(vm, split ? 2 : 1, VM_IRQCHIP)
  // until reserveRoutes() says otherwise
  store<u32>(chipOf(vm), 24, CHIP_RESERVED_ROUTES)
  if (split) return
  picCreate(chipOf(vm))
  ioapicCreate(vm)
}

/** KVM_CREATE_PIT2 with its flags. */
export function createPit(vm: usize, flags: u32): void {
  pitCreate(vm, flags)
}

/** KVM_SET_BOOT_CPU_ID and creation order decide who is the boot processor. */
export function hasPit(vm: usize): bool {
  return load<u32>(chipOf(vm), CHIP_PIT_PRESENT) != 0
}
export function hasPic(vm: usize): bool {
  return load<u32>(chipOf(vm), CHIP_PIC_PRESENT) != 0
}
