/** KVM_CHECK_EXTENSION (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c): answers of the system, and those that depend on the VM. */
import { CAP } from '../generated/kvm-abi.ts'
import { VM_APIC_BUS_NS } from '../generated/layout.ts'
import { COALESCED_PAGE } from './coalesced.ts'
import { guestMemfdFlags } from './guest-memfd.ts'
import type { Kernel } from './kernel.ts'
import { supportedVmTypes } from './vm-types.ts'
import type { VmFd } from './vm.ts'

/** 1 << KVM_HC_MAP_GPA_RANGE. */
export const EXIT_HYPERCALL_MASK = 0x1000
export const MAX_VCPUS = 1024
/** KVM_MAX_VCPU_IDS. */
export const MAX_VCPU_IDS = 4096
/** struct kvm_nested_state with a VMCB. */
const NESTED_SIZE = 128 + 4096
export const MAX_IRQ_ROUTES = 4096

/** What answers 1 on every VM type. */
const PRESENT: readonly (keyof typeof CAP)[] = [
  'KVM_CAP_IRQCHIP',
  'KVM_CAP_HLT',
  'KVM_CAP_MMU_SHADOW_CACHE_CONTROL',
  'KVM_CAP_USER_MEMORY',
  'KVM_CAP_SET_TSS_ADDR',
  'KVM_CAP_VAPIC',
  'KVM_CAP_EXT_CPUID',
  'KVM_CAP_CLOCKSOURCE',
  'KVM_CAP_PIT',
  'KVM_CAP_NOP_IO_DELAY',
  'KVM_CAP_MP_STATE',
  'KVM_CAP_SYNC_MMU',
  'KVM_CAP_DESTROY_MEMORY_REGION_WORKS',
  'KVM_CAP_USER_NMI',
  'KVM_CAP_SET_GUEST_DEBUG',
  'KVM_CAP_REINJECT_CONTROL',
  'KVM_CAP_IRQ_INJECT_STATUS',
  'KVM_CAP_JOIN_MEMORY_REGIONS_WORKS',
  'KVM_CAP_IRQFD',
  'KVM_CAP_PIT2',
  'KVM_CAP_SET_BOOT_CPU_ID',
  'KVM_CAP_PIT_STATE2',
  'KVM_CAP_IOEVENTFD',
  'KVM_CAP_SET_IDENTITY_MAP_ADDR',
  'KVM_CAP_INTERNAL_ERROR_DATA',
  'KVM_CAP_VCPU_EVENTS',
  'KVM_CAP_PCI_SEGMENT',
  'KVM_CAP_DEBUGREGS',
  'KVM_CAP_X86_ROBUST_SINGLESTEP',
  'KVM_CAP_ENABLE_CAP',
  'KVM_CAP_XSAVE',
  'KVM_CAP_XCRS',
  'KVM_CAP_ASYNC_PF',
  'KVM_CAP_TSC_CONTROL',
  'KVM_CAP_GET_TSC_KHZ',
  'KVM_CAP_TSC_DEADLINE_TIMER',
  'KVM_CAP_KVMCLOCK_CTRL',
  'KVM_CAP_SIGNAL_MSI',
  'KVM_CAP_IRQFD_RESAMPLE',
  'KVM_CAP_DEVICE_CTRL',
  'KVM_CAP_EXT_EMUL_CPUID',
  'KVM_CAP_IOAPIC_POLARITY_IGNORED',
  'KVM_CAP_ENABLE_CAP_VM',
  'KVM_CAP_IOEVENTFD_NO_LENGTH',
  'KVM_CAP_CHECK_EXTENSION_VM',
  'KVM_CAP_DISABLE_QUIRKS',
  'KVM_CAP_SPLIT_IRQCHIP',
  'KVM_CAP_IOEVENTFD_ANY_LENGTH',
  'KVM_CAP_VCPU_ATTRIBUTES',
  'KVM_CAP_IMMEDIATE_EXIT',
  'KVM_CAP_GET_MSR_FEATURES',
  'KVM_CAP_MSR_PLATFORM_INFO',
  'KVM_CAP_COALESCED_PIO',
  'KVM_CAP_EXCEPTION_PAYLOAD',
  'KVM_CAP_PMU_EVENT_FILTER',
  'KVM_CAP_HALT_POLL',
  'KVM_CAP_ASYNC_PF_INT',
  'KVM_CAP_LAST_CPU',
  'KVM_CAP_STEAL_TIME',
  'KVM_CAP_X86_USER_SPACE_MSR',
  'KVM_CAP_X86_MSR_FILTER',
  'KVM_CAP_ENFORCE_PV_FEATURE_CPUID',
  'KVM_CAP_SREGS2',
  'KVM_CAP_BINARY_STATS_FD',
  'KVM_CAP_EXIT_ON_EMULATION_FAILURE',
  'KVM_CAP_SYS_ATTRIBUTES',
  'KVM_CAP_VM_TSC_CONTROL',
  'KVM_CAP_SYSTEM_EVENT_DATA',
  'KVM_CAP_X86_TRIPLE_FAULT_EVENT',
  'KVM_CAP_VM_DISABLE_NX_HUGE_PAGES',
  'KVM_CAP_PMU_EVENT_MASKED_EVENTS',
  'KVM_CAP_USER_MEMORY2',
  'KVM_CAP_MEMORY_FAULT_INFO',
  'KVM_CAP_PRE_FAULT_MEMORY',
  'KVM_CAP_X86_GUEST_MODE',
]

/** KVM_X86_DISABLE_EXITS_*: MWAIT HLT PAUSE CSTATE, since 6.17 APERFMPERF. */
export const disableExits = (kernel: Kernel): number => (kernel.options.linux === '6.12' ? 0xf : 0x1f)
/** KVM_X86_VALID_QUIRKS. */
export const validQuirks = (kernel: Kernel): number => (kernel.options.linux === '6.12' ? 0x7ff : 0xfff)

/**
 * Fixed answers. What is missing answers 0, as in a kernel built without CONFIG_KVM_HYPERV, CONFIG_KVM_XEN and
 * CONFIG_X86_SGX_KVM, on a processor without bus-lock and notify exits, with kvm.enable_pmu=0 and nested=0.
 */
const PLAIN: Readonly<Record<number, number>> = {
  ...Object.fromEntries(PRESENT.map((name) => [CAP[name], 1])),
  [CAP.KVM_CAP_NR_VCPUS]: 4,
  [CAP.KVM_CAP_NR_MEMSLOTS]: 32764,
  [CAP.KVM_CAP_COALESCED_MMIO]: COALESCED_PAGE,
  [CAP.KVM_CAP_IRQ_ROUTING]: MAX_IRQ_ROUTES,
  [CAP.KVM_CAP_MCE]: 32,
  // KVM_CLOCK_VALID_FLAGS: TSC_STABLE, REALTIME, HOST_TSC
  [CAP.KVM_CAP_ADJUST_CLOCK]: 0xe,
  [CAP.KVM_CAP_MAX_VCPU_ID]: 4096,
  [CAP.KVM_CAP_EXIT_HYPERCALL]: EXIT_HYPERCALL_MASK,
  [CAP.KVM_CAP_XSAVE2]: 4096,
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
    case CAP.KVM_CAP_X2APIC_API:
      // KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST needs the IOAPIC in userspace.
      return old ? 3 : vm === null || vm.irqchip === 'split' ? 15 : 11
    case CAP.KVM_CAP_X86_DISABLE_EXITS:
      return disableExits(kernel)
    case CAP.KVM_CAP_DISABLE_QUIRKS2:
      return validQuirks(kernel)
    case CAP.KVM_CAP_X86_APIC_BUS_CYCLES_NS:
      return vm === null || old ? 1 : Number(vm.view.getBigUint64(VM_APIC_BUS_NS, true) & 0x7fffffffn)
    case CAP.KVM_CAP_NESTED_STATE:
      // 6.12 asks the SVM code for its size whether or not nested guests are on.
      return old && host === 'amd' ? NESTED_SIZE : 0
    default:
      return PLAIN[cap] ?? 0
  }
}
