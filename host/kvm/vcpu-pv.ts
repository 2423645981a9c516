/**
 * Paravirtual services of a vCPU as userspace sets them up (arch/x86/kvm/{x86,lapic,cpuid}.c): which are offered, kvmclock's
 * "stopped" flag, the virtual APIC page and reports of TPR accesses. What they do to a guest is assembly/kvm/pv.ts.
 */
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import { CAP } from '../generated/kvm-abi.ts'
import {
  EXITS_HLT,
  VKVM_PV_CLOCK,
  VKVM_PV_CLOCK_STALE,
  VKVM_PV_ENFORCE,
  VKVM_PV_FEATURES,
  VKVM_PV_STOPPED,
  VKVM_TPR_REPORT,
  VKVM_VAPIC,
  VM_DISABLED_EXITS,
} from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'
import { KVM_MEM_READONLY } from './vm-memory.ts'

const X86 = 'arch/x86/kvm/x86.c'
/** "KVMKVMKVM\\0\\0\\0" in EBX, ECX, EDX of one of 0x40000000, 0x40000100, ... */
const SIGNATURE = [0x4b4d564b, 0x564b4d56, 0x4d] as const
const FEATURE_PV_UNHALT = 1 << 7

/** Offset of the entry of KVM's features in a table of kvm_cpuid_entry2, -1 = none. */
function featuresAt(view: DataView): number {
  const find = (leaf: number): number => {
    for (let at = 0; at < view.byteLength; at += CPUID_ENTRY_SIZE) if (view.getUint32(at, true) === leaf) return at
    return -1
  }
  for (let base = 0x40000000; base < 0x40010000; base += 0x100) {
    const at = find(base)
    if (at >= 0 && SIGNATURE.every((word, i) => view.getUint32(at + 16 + i * 4, true) === word)) return find(base + 1)
  }
  return -1
}

/** kvm_vcpu_after_set_cpuid: what KVM_CAP_ENFORCE_PV_FEATURE_CPUID goes by. A HLT that is not intercepted cannot be ended by a kick. */
export function takePvFeatures(vcpu: VcpuFd, entries: Uint8Array): void {
  const view = viewOf(entries)
  const at = featuresAt(view)
  if (at >= 0 && (vcpu.vm.view.getUint32(VM_DISABLED_EXITS, true) & EXITS_HLT) !== 0)
    view.setUint32(at + 12, view.getUint32(at + 12, true) & ~FEATURE_PV_UNHALT, true)
  vcpu.kvm.setUint32(VKVM_PV_FEATURES, at < 0 ? 0 : view.getUint32(at + 12, true), true)
}

/** struct kvm_enable_cap of a vCPU. */
function enableCap(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const cap = view.getUint32(0, true)
  const refuse = (why: string): number => vcpu.kernel.refuse('EINVAL', 'KVM_ENABLE_CAP', why, `${X86} kvm_vcpu_ioctl_enable_cap`)
  if (view.getUint32(4, true) !== 0) return refuse('flags must be 0')
  if (cap !== CAP.KVM_CAP_ENFORCE_PV_FEATURE_CPUID) return refuse(`capability ${cap} is not for vCPUs`)
  vcpu.kvm.setUint32(VKVM_PV_ENFORCE, view.getBigUint64(8, true) !== 0n ? 1 : 0, true)
  return 0
}

/** kvm_set_guest_paused: the guest's watchdogs learn that time passed without it. */
function kvmclockCtrl(vcpu: VcpuFd): number {
  const msr = vcpu.kvm.getBigUint64(VKVM_PV_CLOCK, true)
  // kvm_gpc_activate refuses a structure of 32 bytes that crosses its page.
  if ((msr & 1n) === 0n || (msr & 0xffen) > 0x1000n - 32n)
    return vcpu.kernel.refuse('EINVAL', 'KVM_KVMCLOCK_CTRL', 'the guest has no kvmclock active', `${X86} kvm_set_guest_paused`)
  vcpu.kvm.setUint32(VKVM_PV_STOPPED, 1, true)
  vcpu.kvm.setUint32(VKVM_PV_CLOCK_STALE, 1, true)
  return 0
}

/** struct kvm_tpr_access_ctl: enabled, flags u32. Without a local APIC in the kernel nothing is ever reported. */
function tprAccessReporting(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  if (view.getUint32(4, true) !== 0)
    return vcpu.kernel.refuse('EINVAL', 'KVM_TPR_ACCESS_REPORTING', 'flags must be 0', `${X86} vcpu_ioctl_tpr_access_reporting`)
  vcpu.kvm.setUint32(VKVM_TPR_REPORT, view.getUint32(0, true) !== 0 ? 1 : 0, true)
  return 0
}

/** struct kvm_vapic_addr: where the guest keeps its task priority; 0 = nowhere. */
function setVapicAddr(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, vm } = vcpu
  const name = 'KVM_SET_VAPIC_ADDR'
  const address = viewOf(bytes).getBigUint64(0, true)
  const lies = [...vm.slots.values()].some(
    (slot) => slot.id >>> 16 === 0 && (slot.flags & KVM_MEM_READONLY) === 0 && slot.gpa <= address && address + 4n <= slot.gpa + slot.size,
  )
  if (address !== 0n && !lies)
    return kernel.refuse('EINVAL', name, 'the address is not in writable memory', 'arch/x86/kvm/lapic.c kvm_lapic_set_vapic_addr')
  vcpu.kvm.setBigUint64(VKVM_VAPIC, address, true)
  return 0
}

export const pvHandlers: readonly VcpuRow[] = [
  ['KVM_ENABLE_CAP', enableCap, { row: 'KVM_ENABLE_CAP@vcpu' }],
  ['KVM_KVMCLOCK_CTRL', kvmclockCtrl],
  ['KVM_TPR_ACCESS_REPORTING', tprAccessReporting],
  // lapic_in_kernel is asked before the address is copied in.
  [
    'KVM_SET_VAPIC_ADDR',
    setVapicAddr,
    {
      first: ({ vm, kernel }: VcpuFd) =>
        vm.irqchip === 'none'
          ? kernel.refuse('EINVAL', 'KVM_SET_VAPIC_ADDR', 'the local APIC is not in the kernel', `${X86} kvm_arch_vcpu_ioctl`)
          : 0,
    },
  ],
]
