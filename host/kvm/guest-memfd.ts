/**
 * guest_memfd (Linux 7.3 virt/kvm/guest_memfd.c): memory of a VM that its VMM can reach only if it was made mappable and
 * shared. The pages are a BACKING of the core; slots that are bound to it hold references.
 */
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import type { Mapping } from './mapping.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'
import { viewOf } from './dispatch.ts'

const GUEST_MEMFD_FLAG_MMAP = 1
const GUEST_MEMFD_FLAG_INIT_SHARED = 2
const SOURCE = 'virt/kvm/guest_memfd.c'
const FALLOC_FL_KEEP_SIZE = 1
const FALLOC_FL_PUNCH_HOLE = 2
/** Pages that a file here can have (16 TiB); memory is taken when they are touched. */
const MOST_PAGES = 0x100000000n

/** kvm_gmem_get_supported_flags. */
export function guestMemfdFlags(kernel: Kernel, vm: VmFd | null): number {
  if (kernel.options.linux === '6.12') return 0
  return vm?.hasPrivateMem ? GUEST_MEMFD_FLAG_MMAP : GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
}

export class GuestMemfd implements FileDescriptor {
  readonly kind = 'guest-memfd'
  readonly kernel: Kernel
  readonly vm: VmFd
  readonly size: bigint
  readonly flags: number
  /** Address of the core's BACKING. */
  readonly backing: number
  /** Byte ranges that slots use, by slot number. */
  readonly bindings = new Map<number, { readonly start: bigint; readonly end: bigint }>()

  constructor(vm: VmFd, size: bigint, flags: number, backing: number) {
    this.kernel = vm.kernel
    this.vm = vm
    this.size = size
    this.flags = flags
    this.backing = backing
    vm.retain()
  }

  get mappable(): boolean {
    return (this.flags & GUEST_MEMFD_FLAG_MMAP) !== 0
  }

  ioctl(request: number, _argument: IoctlArgument): number {
    return this.kernel.refuse('ENOTTY', `0x${(request >>> 0).toString(16)}`, 'a guest_memfd has no requests', 'fs/ioctl.c')
  }

  /** kvm_gmem_mmap: a negative errno, or the mapping. Pages that are not shared give SIGBUS: here every access fails. */
  mmap(length: number): Mapping | number {
    if (!this.mappable)
      return this.kernel.refuse('ENODEV', 'mmap', 'the guest_memfd was made without GUEST_MEMFD_FLAG_MMAP', `${SOURCE} kvm_gmem_mmap`)
    const shared = (this.flags & GUEST_MEMFD_FLAG_INIT_SHARED) !== 0
    return this.kernel.memory.file(length, shared ? this.backing : 0)
  }

  /** vfs_fallocate and kvm_gmem_fallocate. */
  fallocate(mode: number, offset: bigint, length: bigint): number {
    const { kernel } = this
    const refuse = (code: 'EINVAL' | 'EOPNOTSUPP' | 'EFBIG' | 'ENOMEM', why: string, where = 'kvm_gmem_fallocate'): number =>
      kernel.refuse(code, 'fallocate', why, `${SOURCE} ${where}`)
    if (offset < 0n || length <= 0n)
      return kernel.refuse('EINVAL', 'fallocate', 'a negative offset or no length', 'fs/open.c vfs_fallocate')
    if (offset + length >= 1n << 63n) return kernel.refuse('EFBIG', 'fallocate', 'the range wraps around', 'fs/open.c vfs_fallocate')
    if ((mode & FALLOC_FL_KEEP_SIZE) === 0) return refuse('EOPNOTSUPP', 'the size of a guest_memfd is fixed: FALLOC_FL_KEEP_SIZE is needed')
    if ((mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)) !== 0) return refuse('EOPNOTSUPP', `mode 0x${mode.toString(16)}`)
    if ((offset & 0xfffn) !== 0n || (length & 0xfffn) !== 0n) return refuse('EINVAL', 'offset and length must be page aligned')
    if ((mode & FALLOC_FL_PUNCH_HOLE) !== 0) {
      if (offset < this.size) {
        const end = offset + length < this.size ? offset + length : this.size
        kernel.core.call.backingPunch(this.backing, Number(offset >> 12n), Number((end - offset) >> 12n))
      }
      return 0
    }
    if (offset + length > this.size) return refuse('EINVAL', 'the range ends behind the file', 'kvm_gmem_allocate')
    return kernel.core.call.backingFill(this.backing, Number(offset >> 12n), Number(length >> 12n))
      ? 0
      : refuse('ENOMEM', 'the memory budget of this device (openKvm) is spent', 'kvm_gmem_allocate')
  }

  /** kvm_gmem_bind's checks: 0 or a negative errno. */
  admits(vm: VmFd, name: string, offset: bigint, size: bigint): number {
    const { kernel } = this
    if (this.vm !== vm) return kernel.refuse('EINVAL', name, 'the guest_memfd belongs to another VM', `${SOURCE} kvm_gmem_bind`)
    if (offset + size > this.size) return kernel.refuse('EINVAL', name, 'the slot ends behind the guest_memfd', `${SOURCE} kvm_gmem_bind`)
    for (const [slot, bound] of this.bindings) {
      if (bound.start < offset + size && offset < bound.end)
        return kernel.refuse('EEXIST', name, `slot ${slot} uses this part of the guest_memfd`, `${SOURCE} kvm_gmem_bind`)
    }
    return 0
  }

  /** kvm_gmem_release: its slots lose their memory. */
  close(): void {
    const { call } = this.kernel.core
    if (!this.vm.released) for (const slot of this.bindings.keys()) call.slotUnbind(this.vm.address, slot)
    this.bindings.clear()
    call.backingFree(this.backing)
    this.vm.release()
  }
}

/** struct kvm_create_guest_memfd: size, flags u64. */
export const createGuestMemfd: VmRow = [
  'KVM_CREATE_GUEST_MEMFD',
  (vm, bytes) => {
    const { kernel } = vm
    const view = viewOf(bytes)
    const size = view.getBigInt64(0, true)
    const flags = view.getBigUint64(8, true)
    const refuse = (reason: string): number =>
      kernel.refuse('EINVAL', 'KVM_CREATE_GUEST_MEMFD', reason, `${SOURCE} kvm_gmem_create`, { switch: 'has_private_mem' })
    if ((flags & ~BigInt(guestMemfdFlags(kernel, vm))) !== 0n) return refuse(`flags 0x${flags.toString(16)}`)
    if (size <= 0n || (size & 0xfffn) !== 0n) return refuse('size must be a positive multiple of the page size')
    const backing = size >> 12n < MOST_PAGES ? kernel.core.call.backingCreate(Number(size >> 12n)) >>> 0 : 0
    if (backing === 0) return kernel.refuse('ENOMEM', 'KVM_CREATE_GUEST_MEMFD', `no room for ${size} bytes`, 'cloister')
    return kernel.install(new GuestMemfd(vm, size, Number(flags), backing))
  },
]
