/** In-kernel interrupt controllers, routing and timers of a VM (arch/x86/kvm/{x86,irq}.c, virt/kvm/eventfd.c). */
import { STAGING } from '../generated/layout.ts'
import { MAX_IRQ_ROUTES } from './caps.ts'
import { viewOf } from './dispatch.ts'
import { eventFdHandlers } from './irqfd.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

const X86 = 'arch/x86/kvm/x86.c'
const IRQ = 'arch/x86/kvm/irq.c'
const ROUTE_IRQCHIP = 1
const ROUTE_MSI = 2

function createIrqchip(vm: VmFd): number {
  const { kernel } = vm
  if (vm.irqchip !== 'none') return kernel.refuse('EEXIST', 'KVM_CREATE_IRQCHIP', 'there is one already', `${X86} kvm_arch_vm_ioctl`)
  if (vm.hasProtectedEoi) {
    return kernel.refuse(
      'ENOTTY',
      'KVM_CREATE_IRQCHIP',
      'EOIs of a TD cannot be intercepted: split irqchip only',
      `${X86} kvm_arch_vm_ioctl (has_protected_eoi)`,
      {
        switch: 'has_protected_eoi',
      },
    )
  }
  if (vm.vcpus.size > 0) return kernel.refuse('EINVAL', 'KVM_CREATE_IRQCHIP', 'vCPUs exist already', `${X86} kvm_arch_vm_ioctl`)
  kernel.core.call.createIrqchip(vm.address, 0)
  vm.irqchip = 'full'
  return 0
}

function chipState(vm: VmFd, name: string, bytes: Uint8Array, set: boolean): number {
  const { kernel } = vm
  const { call, staging } = kernel.core
  if (vm.irqchip !== 'full')
    return kernel.refuse('ENXIO', name, 'the interrupt controllers are not (all) in the kernel', `${X86} kvm_arch_vm_ioctl`)
  const id = viewOf(bytes).getUint32(0, true)
  if (id > 2) return kernel.refuse('EINVAL', name, `chip ${id}`, `${IRQ} kvm_vm_ioctl_get_irqchip`)
  // chip_id, pad, then the state: 16 bytes of a PIC or 216 of the IOAPIC.
  const size = id === 2 ? 216 : 16
  if (set) {
    staging.set(bytes.subarray(8, 8 + size))
    if (id === 2) call.ioapicSet(vm.address, STAGING)
    else call.picSet(vm.address, id, STAGING)
  } else {
    bytes.fill(0, 8, 520)
    if (id === 2) call.ioapicGet(vm.address, STAGING)
    else call.picGet(vm.address, id, STAGING)
    bytes.set(staging.subarray(0, size), 8)
  }
  return 0
}

function createPit(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const flags = viewOf(bytes).getUint32(0, true)
  if (vm.pit) return kernel.refuse('EEXIST', 'KVM_CREATE_PIT2', 'there is one already', `${X86} kvm_arch_vm_ioctl`)
  if (vm.irqchip !== 'full')
    return kernel.refuse('ENOENT', 'KVM_CREATE_PIT2', 'it needs the PIC in the kernel', `${X86} kvm_arch_vm_ioctl (pic_in_kernel)`)
  kernel.core.call.createPit(vm.address, flags)
  vm.pit = true
  return 0
}

function pitState(vm: VmFd, name: string, bytes: Uint8Array, set: boolean): number {
  const { call, staging } = vm.kernel.core
  if (!vm.pit) return vm.kernel.refuse('ENXIO', name, 'there is no PIT', `${X86} kvm_arch_vm_ioctl`)
  if (set) {
    staging.set(bytes.subarray(0, 112))
    call.pitSet(vm.address, STAGING)
  } else {
    call.pitGet(vm.address, STAGING)
    bytes.set(staging.subarray(0, 112))
  }
  return 0
}

function irqLine(vm: VmFd, name: string, bytes: Uint8Array, status: boolean): number {
  const view = viewOf(bytes)
  if (vm.irqchip === 'none') return vm.kernel.refuse('ENXIO', name, 'no interrupt controller in the kernel', `${IRQ} kvm_vm_ioctl_irq_line`)
  const { call } = vm.kernel.core
  const result = (status ? call.irqLineStatus : call.irqLine)(vm.address, view.getUint32(0, true), view.getUint32(4, true))
  if (status) view.setUint32(0, result, true)
  return 0
}

/** Rows that fit through the staging area at once. */
const ROUTE_CHUNK = 2048

/** struct kvm_irq_routing: nr, flags u32, entries of 48 bytes {gsi, type, flags, pad, u}. */
function setRouting(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const name = 'KVM_SET_GSI_ROUTING'
  const view = viewOf(bytes)
  const count = view.getUint32(0, true)
  const refuse = (reason: string): number => kernel.refuse('EINVAL', name, reason, 'virt/kvm/irqchip.c kvm_set_irq_routing')
  if (vm.irqchip === 'none') return refuse('no interrupt controller in the kernel')
  if (count > MAX_IRQ_ROUTES || view.getUint32(4, true) !== 0) return refuse('too many routes, or flags')
  if (bytes.length < 8 + count * 48) return kernel.badPointer(name, 'the entries run over the end of the buffer')
  /** Chips that a GSI has routes to; -1 stands for a message. */
  const chips = new Map<number, number[]>()
  const rows: number[][] = []
  for (let i = 0; i < count; i++) {
    const at = 8 + i * 48
    const u32 = (offset: number): number => view.getUint32(at + offset, true)
    const [gsi, type, flags] = [u32(0), u32(4), u32(8)]
    if (gsi >= MAX_IRQ_ROUTES) return refuse(`GSI ${gsi}`)
    // An MSI may say that its device id is valid.
    if ((flags & ~(type === ROUTE_MSI ? 1 : 0)) !== 0) return refuse(`flags of entry ${i}`)
    if (type === ROUTE_IRQCHIP) {
      if (vm.irqchip === 'split') return refuse('routes to interrupt controllers that are in userspace')
      if (u32(16) > 2 || u32(20) >= (u32(16) === 2 ? 24 : 8)) return refuse(`chip ${u32(16)} pin ${u32(20)}`)
    } else if (type === ROUTE_MSI) {
      if ((vm.x2apicApi & 1) !== 0 && (u32(20) & 0xff) !== 0) return refuse('address_hi bits 7:0 with 32-bit APIC ids')
    } else {
      // HV_SINT 4 and XEN_EVTCHN 5 as in a kernel without CONFIG_KVM_HYPERV and CONFIG_KVM_XEN.
      return refuse(`route type ${type}`)
    }
    const chip = type === ROUTE_IRQCHIP ? u32(16) : -1
    const others = chips.get(gsi)
    if (others?.some((other) => other === -1 || chip === -1 || other === chip)) return refuse(`GSI ${gsi} is routed twice`)
    chips.set(gsi, [...(others ?? []), chip])
    // The core's row: gsi, type, chip or address low, pin or address high, data.
    rows.push([gsi, type, u32(16), u32(20), type === ROUTE_MSI ? u32(24) : 0, 0])
  }
  const { call } = kernel.core
  let result = call.setRouting(vm.address, STAGING, 0)
  for (let from = 0; from < count && result === 0; from += ROUTE_CHUNK) {
    const part = rows.slice(from, from + ROUTE_CHUNK)
    const out = kernel.core.stagingView
    part.forEach((row, i) => {
      row.forEach((value, j) => {
        out.setUint32(i * 24 + j * 4, value, true)
      })
    })
    result = call.addRouting(vm.address, STAGING, part.length)
  }
  return result < 0 ? kernel.refuse('ENOMEM', name, 'no memory left for the routing table', 'cloister') : 0
}

function signalMsi(vm: VmFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const refuse = (reason: string): number =>
    vm.kernel.refuse('EINVAL', 'KVM_SIGNAL_MSI', reason, 'virt/kvm/irqchip.c kvm_send_userspace_msi')
  if (vm.irqchip === 'none') return refuse('no interrupt controller in the kernel')
  if ((view.getUint32(12, true) & ~1) !== 0) return refuse('flags other than KVM_MSI_VALID_DEVID')
  if ((vm.x2apicApi & 1) !== 0 && (view.getUint32(4, true) & 0xff) !== 0) return refuse('address_hi bits 7:0 with 32-bit APIC ids')
  const result = vm.kernel.core.call.signalMsi(view.getUint32(0, true), view.getUint32(4, true), view.getUint32(8, true), vm.address)
  return result >= 0
    ? result
    : vm.kernel.refuse(
        'EPERM',
        'KVM_SIGNAL_MSI',
        'no vCPU has a local APIC that could take the message',
        'arch/x86/kvm/lapic.c kvm_irq_delivery_to_apic',
      )
}

export const irqHandlers: readonly VmRow[] = [
  ['KVM_CREATE_IRQCHIP', createIrqchip],
  ['KVM_GET_IRQCHIP', (vm, bytes) => chipState(vm, 'KVM_GET_IRQCHIP', bytes, false)],
  ['KVM_SET_IRQCHIP', (vm, bytes) => chipState(vm, 'KVM_SET_IRQCHIP', bytes, true), { copiesIn: true }],
  ['KVM_CREATE_PIT2', createPit],
  ['KVM_GET_PIT2', (vm, bytes) => pitState(vm, 'KVM_GET_PIT2', bytes, false)],
  ['KVM_SET_PIT2', (vm, bytes) => pitState(vm, 'KVM_SET_PIT2', bytes, true)],
  ['KVM_IRQ_LINE', (vm, bytes) => irqLine(vm, 'KVM_IRQ_LINE', bytes, false)],
  ['KVM_IRQ_LINE_STATUS', (vm, bytes) => irqLine(vm, 'KVM_IRQ_LINE_STATUS', bytes, true)],
  ['KVM_SET_GSI_ROUTING', setRouting, { tail: (header) => 8 + header.getUint32(0, true) * 48 }],
  ['KVM_SIGNAL_MSI', signalMsi],
  ...eventFdHandlers,
]
