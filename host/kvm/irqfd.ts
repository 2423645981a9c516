/** KVM_IRQFD and KVM_IOEVENTFD (virt/kvm/eventfd.c), in the kernel's order of checks. Owns VmEvents. */
import { viewOf } from './dispatch.ts'
import { type Counted, EventFd } from './eventfd.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

const EVENTFD_C = 'virt/kvm/eventfd.c'

interface Irqfd {
  readonly file: EventFd
  readonly gsi: number
  readonly resample: EventFd | null
}

interface Ioeventfd extends Counted {
  readonly file: EventFd
  readonly index: number
  readonly address: bigint
  readonly length: number
  /** null = wildcard. */
  readonly match: bigint | null
  readonly bus: number
}

/** What a VM has bound to event file descriptors. */
export class VmEvents {
  readonly irqfds: Irqfd[] = []
  readonly ioeventfds: Ioeventfd[] = []

  /** What the core left for the host: EOIs of resampling lines, and writes to ioeventfds that somebody listens to. */
  work(vm: VmFd): void {
    const { call } = vm.kernel.core
    call.takeHostWork(vm.address)
    const acked = new Set(this.irqfds.filter((i) => i.resample !== null && call.takeAck(vm.address, i.gsi) !== 0).map((i) => i.gsi))
    for (const irqfd of [...this.irqfds]) if (acked.has(irqfd.gsi)) irqfd.resample?.signal()
    for (const event of this.ioeventfds) event.file.collect()
  }

  /** The VM is gone. */
  release(): void {
    for (const irqfd of this.irqfds) irqfd.file.listener = null
    for (const event of this.ioeventfds) event.file.detach(event)
    this.irqfds.length = 0
    this.ioeventfds.length = 0
  }
}

const DEASSIGN = 1
const RESAMPLE = 2

function eventFd(vm: VmFd, name: string, fd: number): EventFd | number {
  const file = vm.kernel.file(fd)
  if (file instanceof EventFd) return file
  return file === null
    ? vm.kernel.refuse('EBADF', name, `no file descriptor ${fd}`, `${EVENTFD_C} (eventfd_ctx_fdget)`)
    : vm.kernel.refuse('EINVAL', name, `file descriptor ${fd} is not an eventfd`, `${EVENTFD_C} (eventfd_ctx_fdget)`)
}

/** struct kvm_irqfd: fd, gsi, flags, resamplefd u32. */
function irqfd(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const name = 'KVM_IRQFD'
  const view = viewOf(bytes)
  const [fd, gsi, flags, resampleFd] = [0, 4, 8, 12].map((at) => view.getUint32(at, true)) as [number, number, number, number]
  const refuse = (reason: string, where: string): number => kernel.refuse('EINVAL', name, reason, `${EVENTFD_C} ${where}`)
  if ((flags & ~(DEASSIGN | RESAMPLE)) !== 0) return refuse(`flags 0x${flags.toString(16)}`, 'kvm_irqfd')
  if ((flags & DEASSIGN) !== 0) return deassignIrqfd(vm, fd, gsi)
  if (vm.irqchip === 'none') return refuse('no interrupt controller in the kernel', 'kvm_irqfd_assign')
  if ((flags & RESAMPLE) !== 0 && vm.irqchip !== 'full') {
    return kernel.refuse('EINVAL', name, 'RESAMPLE needs the IOAPIC in the kernel', 'arch/x86/kvm/irq.c kvm_arch_irqfd_allowed', {
      switch: vm.hasProtectedEoi ? 'has_protected_eoi' : null,
    })
  }
  const file = eventFd(vm, name, fd)
  if (typeof file === 'number') return file
  let resample: EventFd | null = null
  if ((flags & RESAMPLE) !== 0) {
    const other = eventFd(vm, name, resampleFd)
    if (typeof other === 'number') return other
    resample = other
  }
  if (file.listener !== null) return kernel.refuse('EBUSY', name, 'the eventfd is assigned already', `${EVENTFD_C} kvm_irqfd_assign`)
  const { call } = kernel.core
  if (resample !== null && call.resampleGsi(vm.address, gsi, 1) === 0)
    return kernel.refuse('ENOMEM', name, 'no memory left for the lines of GSIs from 32 on', 'cloister')
  vm.events.irqfds.push({ file, gsi, resample })
  file.listen(() => {
    if (vm.dead) return
    if (resample !== null) {
      call.irqResample(vm.address, gsi, 1)
      return
    }
    call.irqLine(vm.address, gsi, 1)
    call.irqLine(vm.address, gsi, 0)
  })
  return 0
}

/** kvm_irqfd_deassign: 0 even if nothing matched. */
function deassignIrqfd(vm: VmFd, fd: number, gsi: number): number {
  const file = eventFd(vm, 'KVM_IRQFD', fd)
  if (typeof file === 'number') return file
  const { irqfds } = vm.events
  for (let i = irqfds.length - 1; i >= 0; i--) {
    const entry = irqfds[i] as Irqfd
    if (entry.file !== file || entry.gsi !== gsi) continue
    irqfds.splice(i, 1)
    file.listener = null
    // irqfd_resampler_shutdown: the last one takes the line down.
    if (entry.resample !== null && !irqfds.some((e) => e.gsi === gsi && e.resample !== null)) {
      vm.kernel.core.call.irqResample(vm.address, gsi, 0)
      vm.kernel.core.call.resampleGsi(vm.address, gsi, 0)
    }
  }
  return 0
}

/** Bit 4 is KVM's own mark of the bus for writes of any length. */
const IOEVENT = { DATAMATCH: 1, PIO: 2, DEASSIGN: 4, CCW: 8, VALID: 31 } as const
/** Flags of the core's rows. */
const ROW = { PIO: 2, MATCH: 4, UNREACHED: 16 } as const
const LENGTHS: readonly number[] = [0, 1, 2, 4, 8]

/** struct kvm_ioeventfd: datamatch, addr u64, len u32, fd s32, flags u32. */
function ioeventfd(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const name = 'KVM_IOEVENTFD'
  const view = viewOf(bytes)
  const [data, address] = [view.getBigUint64(0, true), view.getBigUint64(8, true)]
  const [length, fd, flags] = [view.getUint32(16, true), view.getInt32(20, true), view.getUint32(24, true)]
  const bus = (flags & IOEVENT.PIO) !== 0 ? ROW.PIO : (flags & IOEVENT.CCW) !== 0 ? ROW.UNREACHED : 0
  const match = (flags & IOEVENT.DATAMATCH) !== 0 ? data : null
  const { ioeventfds } = vm.events
  if ((flags & IOEVENT.DEASSIGN) !== 0) {
    const file = eventFd(vm, name, fd)
    if (typeof file === 'number') return file
    const index = ioeventfds.findIndex(
      (e) => e.file === file && e.bus === bus && e.address === address && e.length === length && e.match === match,
    )
    if (index < 0) return kernel.refuse('ENOENT', name, 'no such ioeventfd', `${EVENTFD_C} kvm_deassign_ioeventfd_idx`)
    const [entry] = ioeventfds.splice(index, 1) as [Ioeventfd]
    file.detach(entry)
    kernel.core.call.ioeventRemove(vm.address, entry.index)
    return 0
  }
  const refuse = (reason: string): number => kernel.refuse('EINVAL', name, reason, `${EVENTFD_C} kvm_assign_ioeventfd`)
  if (!LENGTHS.includes(length)) return refuse(`length ${length} (0, 1, 2, 4 or 8)`)
  if (address + BigInt(length) >= 1n << 64n) return refuse('a wrapping range')
  if ((flags & ~IOEVENT.VALID) !== 0) return refuse(`flags 0x${flags.toString(16)}`)
  if (length === 0 && match !== null) return refuse('DATAMATCH needs a length')
  const file = eventFd(vm, name, fd)
  if (typeof file === 'number') return file
  const collides = ioeventfds.some(
    (e) =>
      e.bus === bus &&
      e.address === address &&
      (e.length === 0 || length === 0 || (e.length === length && (e.match === null || match === null || e.match === match))),
  )
  if (collides) return kernel.refuse('EEXIST', name, 'another ioeventfd covers that write', `${EVENTFD_C} ioeventfd_check_collision`)
  const { call } = kernel.core
  const index = call.ioeventAdd(
    vm.address,
    BigInt.asIntN(64, address),
    BigInt.asIntN(64, data),
    length,
    bus | (match === null ? 0 : ROW.MATCH),
  )
  if (index < 0)
    return kernel.refuse(index === -12 ? 'ENOMEM' : 'ENOSPC', name, 'the bus is full', 'virt/kvm/kvm_main.c kvm_io_bus_register_dev')
  const entry: Ioeventfd = {
    file,
    index,
    address,
    length,
    match,
    bus,
    take: () => BigInt.asUintN(64, call.ioeventTake(vm.address, index)),
    notify: (on) => call.ioeventNotify(vm.address, index, on ? 1 : 0),
  }
  ioeventfds.push(entry)
  file.attach(entry)
  return 0
}

export const eventFdHandlers: readonly VmRow[] = [
  ['KVM_IRQFD', irqfd],
  ['KVM_IOEVENTFD', ioeventfd],
]
