/** Capabilities, clock, TSC and the small rest of VM requests (arch/x86/kvm/x86.c, virt/kvm/kvm_main.c). */
import { STAGING, VM_BSP_ID, VM_CLOCK_OFFSET, VM_TSC_KHZ, VM_WALL_EPOCH } from '../generated/layout.ts'
import { checkExtension, MAX_VCPU_IDS } from './caps.ts'
import { viewOf } from './dispatch.ts'
import { sevCommand } from './sev-commands.ts'
import { enableCap } from './enable-cap.ts'
import { pmuFilterHandlers } from './pmu-filter.ts'
import { tdxVmCommand } from './tdx.ts'
import { deviceHandlers } from './vfio.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

const X86 = 'arch/x86/kvm/x86.c'

/** kvm_clock_data.flags. */
const CLOCK = { TSC_STABLE: 2, REALTIME: 4, HOST_TSC: 8, VALID: 14 } as const

/** struct kvm_clock_data: clock u64, flags, pad u32, realtime, host_tsc u64 (kvm_main.c __get_kvmclock). */
function getClock(vm: VmFd, bytes: Uint8Array): number {
  const { call } = vm.kernel.core
  bytes.fill(0, 0, 48)
  const view = viewOf(bytes)
  const time = BigInt.asUintN(64, call.vmClock(vm.address))
  view.setBigUint64(0, BigInt.asUintN(64, time + vm.view.getBigUint64(VM_CLOCK_OFFSET, true)), true)
  if (call.masterClock(vm.address) === 0) return 0
  view.setUint32(8, CLOCK.VALID, true)
  view.setBigUint64(16, vm.view.getBigUint64(VM_WALL_EPOCH, true) + time, true)
  view.setBigUint64(24, (time * BigInt(HOST_TSC_KHZ)) / 1_000_000n, true)
  return 0
}

/** With REALTIME the clock goes on from what it was then, never back. */
function setClock(vm: VmFd, bytes: Uint8Array): number {
  const { call } = vm.kernel.core
  const view = viewOf(bytes)
  const flags = view.getUint32(8, true)
  if ((flags & ~CLOCK.VALID) !== 0) return vm.kernel.refuse('EINVAL', 'KVM_SET_CLOCK', 'unknown flags', `${X86} kvm_vm_ioctl_set_clock`)
  call.masterUpdate(vm.address)
  const time = BigInt.asUintN(64, call.vmClock(vm.address))
  let clock = view.getBigUint64(0, true)
  if ((flags & CLOCK.REALTIME) !== 0) {
    const passed = vm.view.getBigUint64(VM_WALL_EPOCH, true) + time - view.getBigUint64(16, true)
    if (passed > 0n) clock += passed
  }
  vm.view.setBigUint64(VM_CLOCK_OFFSET, BigInt.asUintN(64, clock - time), true)
  call.clockStale(vm.address)
  return 0
}

/** The host's TSC frequency (assembly/kvm/time.ts). */
const HOST_TSC_KHZ = 2_000_000

function setTscKhz(vm: VmFd, _bytes: Uint8Array, khz: number): number {
  const { kernel } = vm
  if (!(khz >= 0 && khz < 0x7fffffff))
    return kernel.refuse('EINVAL', 'KVM_SET_TSC_KHZ', `${khz} kHz is above the maximum`, `${X86} kvm_arch_vm_ioctl`)
  if (vm.vcpus.size > 0) return kernel.refuse('EINVAL', 'KVM_SET_TSC_KHZ', 'vCPUs exist already', `${X86} kvm_arch_vm_ioctl`)
  vm.view.setBigUint64(VM_TSC_KHZ, BigInt(khz === 0 ? HOST_TSC_KHZ : khz), true)
  return 0
}

function encRegion(vm: VmFd, name: string, bytes: Uint8Array, register: boolean): number {
  const { kernel } = vm
  const view = viewOf(bytes)
  const address = view.getBigUint64(0, true)
  const size = view.getBigUint64(8, true)
  const source = `arch/x86/kvm/svm/sev.c sev_mem_enc_${register ? '' : 'un'}register_region`
  if (vm.sev === null) return kernel.refuse('ENOTTY', name, 'not a SEV guest', source)
  if (vm.sev.owner !== null) return kernel.refuse('EINVAL', name, 'a mirror VM has no regions of its own', source)
  const { regions } = vm.sev
  if (register) {
    if (size === 0n || address + size > 1n << 64n) return kernel.refuse('EINVAL', name, 'size 0 or a wrapping range', source)
    if (kernel.memory.find(address, Number(size)) === null) return kernel.refuse('ENOMEM', name, 'the range cannot be pinned', source)
    regions.push({ address, size })
    return 0
  }
  const index = regions.findIndex((region) => region.address === address && region.size === size)
  if (index < 0) return kernel.refuse('EINVAL', name, 'no such region is registered', source)
  regions.splice(index, 1)
  return 0
}

export const miscVmHandlers: readonly VmRow[] = [
  ['KVM_CHECK_EXTENSION', (vm, _bytes, cap) => checkExtension(vm.kernel, vm, cap)],
  ['KVM_ENABLE_CAP', enableCap],
  ['KVM_GET_CLOCK', getClock],
  ['KVM_SET_CLOCK', setClock],
  ['KVM_SET_TSC_KHZ', setTscKhz],
  ['KVM_GET_TSC_KHZ', (vm) => Number(vm.view.getBigUint64(VM_TSC_KHZ, true))],
  [
    'KVM_SET_BOOT_CPU_ID',
    (vm, _bytes, id) => {
      if (vm.vcpus.size > 0) return vm.kernel.refuse('EBUSY', 'KVM_SET_BOOT_CPU_ID', 'vCPUs exist already', `${X86} kvm_arch_vm_ioctl`)
      // Greater is refused, equal is not: as Linux has it.
      if (!(id >= 0 && id <= MAX_VCPU_IDS && (vm.maxVcpuIds === 0 || id <= vm.maxVcpuIds)))
        return vm.kernel.refuse('EINVAL', 'KVM_SET_BOOT_CPU_ID', `vCPU id ${id}`, `${X86} kvm_arch_vm_ioctl`)
      vm.view.setUint32(VM_BSP_ID, id, true)
      return 0
    },
  ],
  [
    'KVM_SET_TSS_ADDR',
    (vm, _bytes, address) =>
      address > 0xffffd000
        ? vm.kernel.refuse('EINVAL', 'KVM_SET_TSS_ADDR', 'three pages do not fit below 4 GiB', `${X86} kvm_vm_ioctl_set_tss_addr`)
        : 0,
  ],
  [
    'KVM_SET_IDENTITY_MAP_ADDR',
    () => 0,
    {
      first: (vm: VmFd) =>
        vm.vcpus.size > 0 ? vm.kernel.refuse('EINVAL', 'KVM_SET_IDENTITY_MAP_ADDR', 'vCPUs exist already', `${X86} kvm_arch_vm_ioctl`) : 0,
    },
  ],
  [
    'KVM_SET_NR_MMU_PAGES',
    (vm, _bytes, pages) => {
      // KVM_MIN_ALLOC_MMU_PAGES; there are no shadow pages to limit.
      if (pages < 64)
        return vm.kernel.refuse('EINVAL', 'KVM_SET_NR_MMU_PAGES', 'fewer than 64 pages', `${X86} kvm_vm_ioctl_set_nr_mmu_pages`)
      return 0
    },
  ],
  ...deviceHandlers,
  ['KVM_X86_SET_MSR_FILTER', setMsrFilter],
  ...pmuFilterHandlers,
  [
    'KVM_REINJECT_CONTROL',
    (vm, bytes) => {
      if (!vm.pit) return vm.kernel.refuse('ENXIO', 'KVM_REINJECT_CONTROL', 'there is no PIT', `${X86} kvm_arch_vm_ioctl`)
      vm.kernel.core.call.pitSetReinject(vm.address, bytes[0] === 0 ? 0 : 1)
      return 0
    },
    // struct kvm_reinject_control: pit_reinject u8, reserved 31; the request encodes no size.
    { size: 32, copiesIn: true },
  ],
  ['KVM_MEMORY_ENCRYPT_OP', encryptOp, { size: 24, nullable: true, first: neitherSevNorTd }],
  ['KVM_MEMORY_ENCRYPT_REG_REGION', (vm, bytes) => encRegion(vm, 'KVM_MEMORY_ENCRYPT_REG_REGION', bytes, true), { copiesIn: true }],
  ['KVM_MEMORY_ENCRYPT_UNREG_REGION', (vm, bytes) => encRegion(vm, 'KVM_MEMORY_ENCRYPT_UNREG_REGION', bytes, false), { copiesIn: true }],
]

const MSR_FILTER_RANGES = 16
/** KVM_MSR_FILTER_MAX_BITMAP_SIZE, in bits. */
const MSR_FILTER_BITS = 0x600 * 8

/** struct kvm_msr_filter: flags u32, then ranges of flags, nmsrs, base u32, bitmap u64 (arch/x86/kvm/msrs.c kvm_vm_ioctl_set_msr_filter). */
function setMsrFilter(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const { call, staging } = kernel.core
  const view = viewOf(bytes)
  const source = 'arch/x86/kvm/msrs.c kvm_vm_ioctl_set_msr_filter'
  const refuse = (why: string): number => kernel.refuse('EINVAL', 'KVM_X86_SET_MSR_FILTER', why, source)
  const flags = view.getUint32(0, true)
  if ((flags & ~1) !== 0) return refuse(`flags 0x${flags.toString(16)}`)
  const ranges = Array.from({ length: MSR_FILTER_RANGES }, (_, i) => 8 + i * 24)
    .map((at) => ({
      flags: view.getUint32(at, true),
      count: view.getUint32(at + 4, true),
      base: view.getUint32(at + 8, true),
      bitmap: view.getBigUint64(at + 16, true),
    }))
    .filter((r) => r.count !== 0)
  if (ranges.length === 0 && flags === 1) return refuse('denies everything without a range')
  for (const range of ranges) {
    if (range.flags === 0 || (range.flags & ~3) !== 0) return refuse(`range flags 0x${range.flags.toString(16)}`)
    if (range.count > MSR_FILTER_BITS) return refuse(`a range of ${range.count} MSRs`)
  }
  const bitmaps = ranges.map((r) => kernel.memory.copyIn(r.bitmap, Math.ceil(r.count / 64) * 8))
  if (bitmaps.includes(null)) return kernel.badPointer('KVM_X86_SET_MSR_FILTER', 'a bitmap does not lie in a mapping')
  if (ranges.length === 0) {
    call.msrFilterFree(vm.address)
    return 0
  }
  if (call.msrFilterBegin(vm.address, flags) < 0) return kernel.refuse('ENOMEM', 'KVM_X86_SET_MSR_FILTER', 'no memory left', source)
  for (const [i, range] of ranges.entries()) {
    staging.set(bitmaps[i] as Uint8Array)
    call.msrFilterRange(vm.address, range.flags, range.count, range.base, STAGING)
  }
  return 0
}

/** vt_mem_enc_ioctl asks for a TD before it copies; the SVM code copies first. */
function neitherSevNorTd({ kernel, td }: VmFd): number {
  return kernel.options.host === 'intel' && td === null
    ? kernel.refuse('ENOTTY', 'KVM_MEMORY_ENCRYPT_OP', 'not a TD', 'arch/x86/kvm/vmx/main.c vt_mem_enc_ioctl')
    : 0
}

function encryptOp(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  if (kernel.options.host === 'amd') return sevCommand(vm, bytes)
  return tdxVmCommand(vm, bytes)
}
