/** KVM_ENABLE_CAP of a VM (virt/kvm/kvm_main.c kvm_vm_ioctl_enable_cap_generic, arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap). */
import { CAP } from '../generated/kvm-abi.ts'
import {
  VM_APIC_BUS_NS,
  VM_DISABLED_EXITS,
  VM_DISABLED_QUIRKS,
  VM_EMULATION_EXITS,
  VM_HYPERCALL_EXITS,
  VM_NO_PLATFORM_INFO,
  VM_USER_MSR_MASK,
} from '../generated/layout.ts'
import { disableExits, EXIT_HYPERCALL_MASK, MAX_IRQ_ROUTES, MAX_VCPU_IDS, validQuirks } from './caps.ts'
import { enableDirtyRing, enableManualProtect } from './dirty-log.ts'
import { viewOf } from './dispatch.ts'
import { copyContext, moveContext } from './sev-move.ts'
import type { VmFd } from './vm.ts'

const SOURCE = 'arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap'
/** KVM_X2APIC_*: 32-bit ids, no broadcast quirk; since 7.0 enable and disable the suppression of EOI broadcasts. */
const X2APIC = { ENABLE_SUPPRESS: 4n, DISABLE_SUPPRESS: 8n }
/** U32_MAX * 128, the longest period of the local APIC timer in bus cycles. */
const LONGEST_TIMER = 0xffffffffn * 128n

type Refuse = (reason: string) => number

function splitIrqchip(vm: VmFd, routes: bigint, refuse: Refuse): number {
  const { kernel } = vm
  if (routes > BigInt(MAX_IRQ_ROUTES)) return refuse(`${routes} routes (at most ${MAX_IRQ_ROUTES})`)
  if (vm.irqchip !== 'none' || vm.vcpus.size > 0)
    return kernel.refuse('EEXIST', 'KVM_ENABLE_CAP', 'an irqchip or vCPUs exist already', `${SOURCE} (SPLIT_IRQCHIP)`)
  kernel.core.call.createIrqchip(vm.address, 1)
  kernel.core.call.reserveRoutes(vm.address, Number(routes))
  vm.irqchip = 'split'
  return 0
}

function x2apicApi(vm: VmFd, flags: bigint, refuse: Refuse): number {
  const valid = vm.kernel.options.linux === '6.12' ? 3n : 15n
  if ((flags & ~valid) !== 0n) return refuse(`flags above ${valid}`)
  const enable = (flags & X2APIC.ENABLE_SUPPRESS) !== 0n
  const disable = (flags & X2APIC.DISABLE_SUPPRESS) !== 0n
  if (enable && disable) return refuse('EOI broadcasts cannot be both suppressed and not')
  if (enable && vm.irqchip !== 'split') return refuse('suppressing EOI broadcasts needs the IOAPIC in userspace')
  // The last word about EOI broadcasts counts; the other flags only accumulate.
  if (enable || disable) vm.x2apicApi &= ~12
  vm.x2apicApi |= Number(flags)
  vm.kernel.core.call.x2apicApi(vm.address, vm.x2apicApi)
  return 0
}

function maxVcpuId(vm: VmFd, value: bigint, refuse: Refuse): number {
  if (value > BigInt(MAX_VCPU_IDS)) return refuse(`${value} ids (at most ${MAX_VCPU_IDS})`)
  if (BigInt(vm.bspId) > value) return refuse('KVM_SET_BOOT_CPU_ID has named a higher id')
  const now = vm.maxVcpuIds
  if (now !== 0 && BigInt(now) !== value) return refuse(`the number of ids is ${now} already`)
  vm.maxVcpuIds = Number(value)
  return 0
}

function apicBus(vm: VmFd, ns: bigint, refuse: Refuse): number {
  if (ns === 0n || LONGEST_TIMER * ns >= 1n << 64n) return refuse(`a bus cycle of ${ns} ns`)
  if (vm.irqchip === 'none') return vm.kernel.refuse('ENXIO', 'KVM_ENABLE_CAP', 'no local APIC in the kernel', SOURCE)
  if (vm.vcpus.size > 0) return refuse('vCPUs exist already')
  vm.view.setBigUint64(VM_APIC_BUS_NS, ns, true)
  return 0
}

/** struct kvm_enable_cap: cap, flags u32, args u64[4]. */
export function enableCap(vm: VmFd, bytes: Uint8Array): number {
  const { kernel, view } = vm
  const given = viewOf(bytes)
  const cap = given.getUint32(0, true)
  const value = given.getBigUint64(8, true)
  const refuse: Refuse = (reason) => kernel.refuse('EINVAL', 'KVM_ENABLE_CAP', reason, SOURCE)
  // kvm_vm_ioctl_enable_cap_generic does not look at the flags of the dirty rings.
  const ring = given.getUint32(0, true) === CAP.KVM_CAP_DIRTY_LOG_RING || given.getUint32(0, true) === CAP.KVM_CAP_DIRTY_LOG_RING_ACQ_REL
  if (given.getUint32(4, true) !== 0 && !ring) return refuse('flags must be 0')
  const on = value !== 0n ? 1 : 0
  switch (cap) {
    case CAP.KVM_CAP_SPLIT_IRQCHIP:
      return splitIrqchip(vm, value, refuse)
    case CAP.KVM_CAP_EXIT_HYPERCALL:
      if ((value & ~BigInt(EXIT_HYPERCALL_MASK)) !== 0n) return refuse('only KVM_HC_MAP_GPA_RANGE can exit')
      view.setUint32(VM_HYPERCALL_EXITS, Number(value), true)
      return 0
    case CAP.KVM_CAP_X86_USER_SPACE_MSR:
      if ((value & ~7n) !== 0n) return refuse('reason bits above 7')
      view.setUint32(VM_USER_MSR_MASK, Number(value), true)
      return 0
    case CAP.KVM_CAP_EXCEPTION_PAYLOAD:
      vm.exceptionPayload = value !== 0n
      return 0
    case CAP.KVM_CAP_X86_TRIPLE_FAULT_EVENT:
      vm.tripleFaultEvent = value !== 0n
      return 0
    case CAP.KVM_CAP_X2APIC_API:
      return x2apicApi(vm, value, refuse)
    case CAP.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
      return enableManualProtect(vm, value)
    case CAP.KVM_CAP_DIRTY_LOG_RING:
    case CAP.KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
      return enableDirtyRing(vm, Number(value & 0xffffffffn))
    case CAP.KVM_CAP_X86_BUS_LOCK_EXIT:
      // OFF 1 or EXIT 2. The modelled processors do not detect bus locks: accepted, without effect.
      if ((value & ~3n) !== 0n || value === 3n) return refuse('OFF 1 or EXIT 2')
      return 0
    case CAP.KVM_CAP_X86_NOTIFY_VMEXIT:
      return refuse('the processor has no notify exits')
    case CAP.KVM_CAP_HALT_POLL:
      // How long the host polls before it schedules: nothing in virtual time.
      return value >> 32n === 0n ? 0 : refuse('more nanoseconds than 32 bits hold')
    case CAP.KVM_CAP_MSR_PLATFORM_INFO:
      view.setUint32(VM_NO_PLATFORM_INFO, 1 - on, true)
      return 0
    case CAP.KVM_CAP_EXIT_ON_EMULATION_FAILURE:
      if ((value & ~1n) !== 0n) return refuse('0 or 1')
      view.setUint32(VM_EMULATION_EXITS, on, true)
      return 0
    case CAP.KVM_CAP_DISABLE_QUIRKS:
    case CAP.KVM_CAP_DISABLE_QUIRKS2: {
      const valid = BigInt(validQuirks(kernel))
      if (cap === CAP.KVM_CAP_DISABLE_QUIRKS2 && (value & ~valid) !== 0n) return refuse('unknown quirks')
      view.setUint32(VM_DISABLED_QUIRKS, view.getUint32(VM_DISABLED_QUIRKS, true) | Number(value & valid), true)
      return 0
    }
    case CAP.KVM_CAP_X86_DISABLE_EXITS:
      if ((value & ~BigInt(disableExits(kernel))) !== 0n) return refuse(`exits above 0x${disableExits(kernel).toString(16)}`)
      // 6.12 does not look.
      if (vm.vcpus.size > 0 && kernel.options.linux !== '6.12') return refuse('vCPUs exist already')
      view.setUint32(VM_DISABLED_EXITS, view.getUint32(VM_DISABLED_EXITS, true) | Number(value), true)
      return 0
    case CAP.KVM_CAP_MAX_VCPU_ID:
      return maxVcpuId(vm, value, refuse)
    case CAP.KVM_CAP_VM_DISABLE_NX_HUGE_PAGES:
      // The caller counts as root. Nothing here splits huge pages.
      if (value !== 0n) return refuse('the argument must be 0')
      return vm.vcpus.size > 0 ? refuse('vCPUs exist already') : 0
    case CAP.KVM_CAP_PMU_CAPABILITY:
      return refuse('the PMU is off (kvm.enable_pmu=0)')
    case CAP.KVM_CAP_X86_APIC_BUS_CYCLES_NS:
      return apicBus(vm, value, refuse)
    case CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
    case CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM:
      if (kernel.options.host !== 'amd') return refuse('not on this host')
      return cap === CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM ? moveContext(vm, value) : copyContext(vm, value)
    default:
      return refuse(`capability ${cap} cannot be enabled`)
  }
}
