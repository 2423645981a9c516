/**
 * KVM_CREATE_DEVICE and the one device type of x86, KVM_DEV_TYPE_VFIO (virt/kvm/vfio.c): a VM's list of VFIO files. The
 * modelled host has no VFIO, so no file descriptor is one.
 */
import { REQUEST } from '../generated/kvm-abi.ts'
import { viewOf } from './dispatch.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

const VFIO_C = 'virt/kvm/vfio.c'
const MAIN = 'virt/kvm/kvm_main.c'
const KVM_DEV_TYPE_VFIO = 4
/** KVM_CREATE_DEVICE_TEST. */
const TEST = 1
/** KVM_DEV_VFIO_FILE: ADD 1, DEL 2. */
const FILE = { GROUP: 1, ADD: 1n, DEL: 2n } as const

class VfioDevice implements FileDescriptor {
  readonly kind = 'device'
  readonly kernel: Kernel
  readonly #vm: VmFd

  constructor(vm: VmFd) {
    this.kernel = vm.kernel
    this.#vm = vm
    vm.retain()
    vm.vfio = true
  }

  ioctl(request: number, argument: IoctlArgument): number {
    const { kernel } = this
    if (this.#vm.dead) return this.#vm.refuseDead()
    const name = (['KVM_SET_DEVICE_ATTR', 'KVM_GET_DEVICE_ATTR', 'KVM_HAS_DEVICE_ATTR'] as const).find(
      (one) => REQUEST[one] === request >>> 0,
    )
    if (name === undefined)
      return kernel.refuse('ENOTTY', `0x${(request >>> 0).toString(16)}`, 'not a request of a device', `${MAIN} kvm_device_ioctl`)
    if (name === 'KVM_GET_DEVICE_ATTR')
      return kernel.refuse('EPERM', name, 'a VFIO device has nothing to read', `${MAIN} kvm_device_ioctl_attr`)
    const bytes = argument instanceof Uint8Array ? (argument.length >= 24 ? argument : null) : kernel.memory.copyIn(argument ?? 0, 24)
    if (bytes === null) return kernel.badPointer(name)
    const view = viewOf(bytes)
    const [group, attr] = [view.getUint32(4, true), view.getBigUint64(8, true)]
    if (group !== FILE.GROUP || (attr !== FILE.ADD && attr !== FILE.DEL))
      return kernel.refuse('ENXIO', name, `no attribute ${group}/${attr}`, `${VFIO_C} kvm_vfio_has_attr`)
    if (name === 'KVM_HAS_DEVICE_ATTR') return 0
    const pointed = kernel.memory.copyIn(view.getBigUint64(16, true), 4)
    if (pointed === null) return kernel.badPointer(name)
    const fd = viewOf(pointed).getInt32(0, true)
    if (kernel.file(fd) === null) return kernel.refuse('EBADF', name, `no file descriptor ${fd}`, `${VFIO_C} kvm_vfio_set_file`)
    return attr === FILE.ADD
      ? kernel.refuse('EINVAL', name, `file descriptor ${fd} is not a VFIO file`, `${VFIO_C} kvm_vfio_file_add`)
      : kernel.refuse('ENOENT', name, `file descriptor ${fd} was not added`, `${VFIO_C} kvm_vfio_file_del`)
  }

  close(): void {
    this.#vm.vfio = false
    this.#vm.release()
  }
}

/** struct kvm_create_device: type, fd, flags u32. */
function createDevice(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const view = viewOf(bytes)
  const [type, flags] = [view.getUint32(0, true), view.getUint32(8, true)]
  const name = 'KVM_CREATE_DEVICE'
  if (type !== KVM_DEV_TYPE_VFIO) return kernel.refuse('ENODEV', name, `device type ${type}`, `${MAIN} kvm_ioctl_create_device`)
  if ((flags & TEST) !== 0) return 0
  if (vm.vfio) return kernel.refuse('EBUSY', name, 'a VM has one VFIO device', `${VFIO_C} kvm_vfio_create`)
  view.setUint32(4, kernel.install(new VfioDevice(vm)), true)
  return 0
}

export const deviceHandlers: readonly VmRow[] = [['KVM_CREATE_DEVICE', createDevice]]
