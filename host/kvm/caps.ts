/** KVM_CHECK_EXTENSION (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c): answers of the system, and those that depend on the VM (facts/kvm.md 2.3). */
import { CAP } from '../generated/kvm-abi.ts'
import { COALESCED_PAGE } from './coalesced.ts'
import { guestMemfdFlags } from './guest-memfd.ts'
import type { Kernel } from './kernel.ts'
import { supportedVmTypes } from './vm-types.ts'
import type { VmFd } from './vm.ts'

/** 1 << KVM_HC_MAP_GPA_RANGE. */
export const EXIT_HYPERCALL_MASK = 0x1000
export const MAX_VCPUS = 1024
export const MAX_IRQ_ROUTES = 4096

/** Fixed answers. What Linux has and Cloister does not serve (ioeventfd, kvmclock, disabling quirks and exits, ...) answers 0. */
const PLAIN: Readonly<Record<number, number>> = {
  [CAP.KVM_CAP_IRQCHIP]: 1,
  [CAP.KVM_CAP_HLT]: 1,
  [CAP.KVM_CAP_USER_MEMORY]: 1,
  [CAP.KVM_CAP_SET_TSS_ADDR]: 1,
  [CAP.KVM_CAP_EXT_CPUID]: 1,
  [CAP.KVM_CAP_NR_VCPUS]: 4,
  [CAP.KVM_CAP_NR_MEMSLOTS]: 32764,
  [CAP.KVM_CAP_PIT]: 1,
  [CAP.KVM_CAP_MP_STATE]: 1,
  [CAP.KVM_CAP_IRQ_ROUTING]: MAX_IRQ_ROUTES,
  [CAP.KVM_CAP_IRQFD]: 1,
  [CAP.KVM_CAP_IOEVENTFD]: 1,
  [CAP.KVM_CAP_IOEVENTFD_ANY_LENGTH]: 1,
  [CAP.KVM_CAP_IOEVENTFD_NO_LENGTH]: 1,
  [CAP.KVM_CAP_X2APIC_API]: 3,
  [CAP.KVM_CAP_PIT2]: 1,
  [CAP.KVM_CAP_SET_BOOT_CPU_ID]: 1,
  [CAP.KVM_CAP_SET_IDENTITY_MAP_ADDR]: 1,
  [CAP.KVM_CAP_ADJUST_CLOCK]: 2,
  [CAP.KVM_CAP_VCPU_EVENTS]: 1,
  [CAP.KVM_CAP_INTR_SHADOW]: 3,
  [CAP.KVM_CAP_DEBUGREGS]: 1,
  [CAP.KVM_CAP_ENABLE_CAP]: 1,
  [CAP.KVM_CAP_XSAVE]: 1,
  [CAP.KVM_CAP_XCRS]: 1,
  [CAP.KVM_CAP_PIT_STATE2]: 1,
  [CAP.KVM_CAP_GET_TSC_KHZ]: 1,
  [CAP.KVM_CAP_TSC_CONTROL]: 1,
  [CAP.KVM_CAP_BINARY_STATS_FD]: 1,
  [CAP.KVM_CAP_X86_MSR_FILTER]: 1,
  [CAP.KVM_CAP_HALT_POLL]: 1,
  [CAP.KVM_CAP_MAX_VCPUS]: MAX_VCPUS,
  [CAP.KVM_CAP_TSC_DEADLINE_TIMER]: 1,
  [CAP.KVM_CAP_SIGNAL_MSI]: 1,
  [CAP.KVM_CAP_KVMCLOCK_CTRL]: 1,
  [CAP.KVM_CAP_SET_GUEST_DEBUG]: 1,
  [CAP.KVM_CAP_IRQ_INJECT_STATUS]: 1,
  [CAP.KVM_CAP_DESTROY_MEMORY_REGION_WORKS]: 1,
  [CAP.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS]: 1,
  [CAP.KVM_CAP_MCE]: 32,
  [CAP.KVM_CAP_INTERNAL_ERROR_DATA]: 1,
  [CAP.KVM_CAP_ONE_REG]: 1,
  [CAP.KVM_CAP_IRQFD_RESAMPLE]: 1,
  [CAP.KVM_CAP_CHECK_EXTENSION_VM]: 1,
  [CAP.KVM_CAP_ENABLE_CAP_VM]: 1,
  [CAP.KVM_CAP_DEVICE_CTRL]: 1,
  [CAP.KVM_CAP_SPLIT_IRQCHIP]: 1,
  [CAP.KVM_CAP_MAX_VCPU_ID]: 4096,
  [CAP.KVM_CAP_IMMEDIATE_EXIT]: 1,
  [CAP.KVM_CAP_GET_MSR_FEATURES]: 1,
  [CAP.KVM_CAP_MSR_PLATFORM_INFO]: 1,
  [CAP.KVM_CAP_EXCEPTION_PAYLOAD]: 1,
  [CAP.KVM_CAP_X86_USER_SPACE_MSR]: 1,
  [CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM]: 1,
  [CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM]: 1,
  [CAP.KVM_CAP_EXIT_HYPERCALL]: EXIT_HYPERCALL_MASK,
  [CAP.KVM_CAP_SREGS2]: 1,
  [CAP.KVM_CAP_XSAVE2]: 4096,
  [CAP.KVM_CAP_SYS_ATTRIBUTES]: 1,
  [CAP.KVM_CAP_VM_TSC_CONTROL]: 1,
  [CAP.KVM_CAP_X86_TRIPLE_FAULT_EVENT]: 1,
  [CAP.KVM_CAP_MEMORY_FAULT_INFO]: 1,
  [CAP.KVM_CAP_USER_MEMORY2]: 1,
  [CAP.KVM_CAP_PRE_FAULT_MEMORY]: 1,
  [CAP.KVM_CAP_COALESCED_MMIO]: COALESCED_PAGE,
  [CAP.KVM_CAP_COALESCED_PIO]: 1,
  [CAP.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2]: 3,
  [CAP.KVM_CAP_DIRTY_LOG_RING]: 65536 * 16,
  [CAP.KVM_CAP_DIRTY_LOG_RING_ACQ_REL]: 65536 * 16,
  [CAP.KVM_CAP_SET_GUEST_DEBUG2]: 0x1f0003,
}

/** `vm` null: asked on /dev/kvm. */
export function checkExtension(kernel: Kernel, vm: VmFd | null, cap: number): number {
  const { host, linux } = kernel.options
  const old = linux === '6.12'
  switch (cap) {
    case CAP.KVM_CAP_VM_TYPES:
      return supportedVmTypes(kernel)
    case CAP.KVM_CAP_X86_SMM:
      // has_emulated_msr(kvm, MSR_IA32_SMBASE): per VM, and asked with none at module start.
      return vm !== null && (vm.sevEs || vm.hasProtectedEoi) ? 0 : 1
    case CAP.KVM_CAP_READONLY_MEM:
      return vm?.hasProtectedState ? 0 : 1
    case CAP.KVM_CAP_SYNC_REGS:
      return vm === null ? 7 : vm.syncMask
    case CAP.KVM_CAP_MEMORY_ATTRIBUTES:
      return vm === null || vm.hasPrivateMem ? 8 : 0
    case CAP.KVM_CAP_GUEST_MEMFD:
      return old && vm !== null && !vm.hasPrivateMem ? 0 : 1
    case CAP.KVM_CAP_GUEST_MEMFD_FLAGS:
      return guestMemfdFlags(kernel, vm)
    case CAP.KVM_CAP_MULTI_ADDRESS_SPACE:
      return vm?.hasPrivateMem ? 1 : 2
    case CAP.KVM_CAP_MAX_VCPUS:
      return vm?.hasProtectedEoi ? Math.min(MAX_VCPUS, PLAIN[CAP.KVM_CAP_NR_VCPUS] as number) : MAX_VCPUS
    case CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
    case CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM:
      return host === 'amd' ? 1 : 0
    case CAP.KVM_CAP_ONE_REG:
      return old ? 0 : 1
    default:
      return PLAIN[cap] ?? 0
  }
}
