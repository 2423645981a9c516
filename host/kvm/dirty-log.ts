/**
 * Dirty tracking: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG and the dirty rings (virt/kvm/kvm_main.c, virt/kvm/dirty_ring.c).
 * Bitmaps and rings live in the core.
 */
import { STAGING, STAGING_SIZE, VM_MANUAL_PROTECT, VM_RING_ENTRIES, VM_RING_SOFT } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import type { VmRow } from './vm-ioctls.ts'
import { KVM_MEM_LOG_DIRTY_PAGES, type Slot, USER_SLOTS } from './vm-memory.ts'
import type { VmFd } from './vm.ts'

const MAIN = 'virt/kvm/kvm_main.c'
/** sizeof(struct kvm_dirty_gfn) and KVM_DIRTY_RING_MAX_ENTRIES. */
const ENTRY = 16
const RING_MOST = 65536 * ENTRY
/** KVM_DIRTY_RING_RSVD_ENTRIES, and what page-modification logging may still push (vmx). */
const RESERVED = 64
const PML = 512
/** KVM_DIRTY_LOG_PAGE_OFFSET. */
export const RING_PAGE = 64

/** The slot that a dirty-log request names, or a negative errno. */
function logged(vm: VmFd, name: string, number: number, firstPage: bigint): Slot | number {
  const { kernel } = vm
  const source = `${MAIN} ${name === 'KVM_GET_DIRTY_LOG' ? 'kvm_get_dirty_log_protect' : 'kvm_clear_dirty_log_protect'}`
  if (vm.view.getUint32(VM_RING_ENTRIES, true) !== 0) return kernel.refuse('ENXIO', name, 'the VM uses dirty rings', source)
  if (number >>> 16 >= (vm.hasPrivateMem ? 1 : 2) || (number & 0xffff) >= USER_SLOTS)
    return kernel.refuse('EINVAL', name, `no slot 0x${number.toString(16)}`, source)
  if ((firstPage & 63n) !== 0n) return kernel.refuse('EINVAL', name, 'first_page is not a multiple of 64', source)
  const slot = vm.slots.get(number)
  if (slot === undefined || (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) === 0)
    return kernel.refuse('ENOENT', name, 'the slot does not log', source)
  return slot
}

/** struct kvm_dirty_log: slot, padding u32, bitmap pointer u64. */
function getDirtyLog(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const { call, staging } = kernel.core
  const view = viewOf(bytes)
  const number = view.getUint32(0, true)
  const target = view.getBigUint64(8, true)
  const slot = logged(vm, 'KVM_GET_DIRTY_LOG', number, 0n)
  if (typeof slot === 'number') return slot
  const size = Number((((slot.size >> 12n) + 63n) / 64n) * 8n)
  if (kernel.memory.find(target, size) === null)
    return kernel.badPointer('KVM_GET_DIRTY_LOG', 'the bitmap is not (wholly) inside a mapping')
  for (let done = 0; done < size; ) {
    const n = call.dirtyLog(vm.address, number, STAGING, done, Math.min(STAGING_SIZE, size - done))
    if (n <= 0) break
    if (!kernel.memory.copyOut(target + BigInt(done), staging.slice(0, n))) return kernel.badPointer('KVM_GET_DIRTY_LOG')
    done += n
  }
  return 0
}

/** struct kvm_clear_dirty_log: slot, num_pages u32, first_page, bitmap pointer u64. */
function clearDirtyLog(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const { call, staging } = kernel.core
  const view = viewOf(bytes)
  const number = view.getUint32(0, true)
  const count = BigInt(view.getUint32(4, true))
  const first = view.getBigUint64(8, true)
  const slot = logged(vm, 'KVM_CLEAR_DIRTY_LOG', number, first)
  if (typeof slot === 'number') return slot
  const pages = slot.size >> 12n
  if (first > pages || count > pages - first || (count < pages - first && (count & 63n) !== 0n)) {
    return kernel.refuse(
      'EINVAL',
      'KVM_CLEAR_DIRTY_LOG',
      'the pages run over the end of the slot, or do not end at a multiple of 64',
      `${MAIN} kvm_clear_dirty_log_protect`,
    )
  }
  const size = Number(((count + 63n) / 64n) * 8n)
  const bits = kernel.memory.copyIn(view.getBigUint64(16, true), size)
  if (bits === null) return kernel.badPointer('KVM_CLEAR_DIRTY_LOG', 'the bitmap is not (wholly) inside a mapping')
  for (let done = 0; done < size; done += STAGING_SIZE) {
    const part = bits.subarray(done, done + STAGING_SIZE)
    staging.set(part)
    call.dirtyClear(vm.address, number, STAGING, Number(first >> 3n) + done, part.length)
  }
  return 0
}

/** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: MANUAL_PROTECT_ENABLE 1, INITIALLY_SET 2 only with it. */
export function enableManualProtect(vm: VmFd, value: bigint): number {
  if ((value & ~((value & 1n) !== 0n ? 3n : 1n)) !== 0n) {
    return vm.kernel.refuse(
      'EINVAL',
      'KVM_ENABLE_CAP',
      'KVM_DIRTY_LOG_INITIALLY_SET needs KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, and there is nothing else',
      `${MAIN} kvm_vm_ioctl_enable_cap_generic`,
    )
  }
  vm.view.setUint32(VM_MANUAL_PROTECT, Number(value), true)
  return 0
}

/** KVM_CAP_DIRTY_LOG_RING: bytes of the ring of each vCPU. */
export function enableDirtyRing(vm: VmFd, size: number): number {
  const { kernel } = vm
  const refuse = (code: 'EINVAL' | 'E2BIG', why: string): number =>
    kernel.refuse(code, 'KVM_ENABLE_CAP', why, `${MAIN} kvm_vm_ioctl_enable_dirty_log_ring`)
  const reserved = RESERVED + (kernel.options.host === 'intel' ? PML : 0)
  if (size === 0 || (size & (size - 1)) !== 0) return refuse('EINVAL', 'the size of a dirty ring is a power of two')
  if (size < reserved * ENTRY || size < 4096) return refuse('EINVAL', `a dirty ring has more than ${reserved} entries and at least a page`)
  if (size > RING_MOST) return refuse('E2BIG', `a dirty ring has at most ${RING_MOST} bytes`)
  if (vm.view.getUint32(VM_RING_ENTRIES, true) !== 0) return refuse('EINVAL', 'the dirty rings have their size already')
  if (vm.vcpus.size > 0) return refuse('EINVAL', 'vCPUs exist already')
  vm.view.setUint32(VM_RING_ENTRIES, size / ENTRY, true)
  vm.view.setUint32(VM_RING_SOFT, size / ENTRY - reserved, true)
  return 0
}

export const dirtyHandlers: readonly VmRow[] = [
  ['KVM_GET_DIRTY_LOG', getDirtyLog],
  ['KVM_CLEAR_DIRTY_LOG', clearDirtyLog],
  [
    'KVM_RESET_DIRTY_RINGS',
    (vm) =>
      vm.view.getUint32(VM_RING_ENTRIES, true) === 0
        ? vm.kernel.refuse(
            'EINVAL',
            'KVM_RESET_DIRTY_RINGS',
            'KVM_CAP_DIRTY_LOG_RING is not enabled',
            `${MAIN} kvm_vm_ioctl_reset_dirty_pages`,
          )
        : vm.kernel.core.call.ringReset(vm.address),
  ],
]
