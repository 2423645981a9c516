/** A VMM's side of migration: vCPU state by ioctls (QEMU's order), memory page by page under the firmwares' transport keys. */
import { type Kvm, type Mapping, type MigrationPacket, REQUEST, type Vcpu, type Vm } from 'cloister'

interface Slot {
  readonly id: number
  readonly size: bigint
  readonly userspaceAddr: bigint
}

export const PAGE = 4096

/** The mapping that holds a slot's memory, and where. */
function slotMemory(kvm: Kvm, slot: Slot): { mapping: Mapping; offset: number } {
  const place = kvm.kernel.memory.find(slot.userspaceAddr, Number(slot.size))
  if (place === null) throw new Error(`slot ${slot.id} has no mapping`)
  return place
}

/** The same slots over fresh memory; returns the mappings by slot. */
export function sameSlots(from: Vm, to: Vm): Map<number, Mapping> {
  const mappings = new Map<number, Mapping>()
  for (const slot of from.file.slots.values()) {
    const mapping = to.kvm.mmap(-1, Number(slot.size))
    mappings.set(slot.id, mapping)
    to.setUserMemoryRegion({ slot: slot.id, guestPhysAddr: slot.gpa, memorySize: slot.size, userspaceAddr: mapping.address })
  }
  return mappings
}

function savedMsrs(kvm: Kvm): number[] {
  const bytes = new Uint8Array(4 + 1024 * 4)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, 1024, true)
  const fd = kvm.open('/dev/kvm')
  kvm.check(kvm.ioctl(fd, REQUEST.KVM_GET_MSR_INDEX_LIST, bytes))
  kvm.close(fd)
  return Array.from({ length: view.getUint32(0, true) }, (_, i) => view.getUint32(4 + i * 4, true))
}

/** Everything that KVM tells about an unprotected vCPU; pending exits are completed first. */
export function copyVcpu(from: Vcpu, to: Vcpu): void {
  from.runView.setUint8(1, 1) // immediate_exit
  from.runRaw(1)
  from.runView.setUint8(1, 0)
  to.setCpuid2(from.getCpuid2())
  to.set('KVM_SET_SREGS', from.get('KVM_GET_SREGS'))
  to.set('KVM_SET_REGS', from.get('KVM_GET_REGS'))
  to.set('KVM_SET_XSAVE', from.get('KVM_GET_XSAVE'))
  to.set('KVM_SET_XCRS', from.get('KVM_GET_XCRS'))
  to.set('KVM_SET_DEBUGREGS', from.get('KVM_GET_DEBUGREGS'))
  const values = savedMsrs(from.kvm).flatMap((index) => from.getMsrs([index]))
  for (const value of values) to.setMsrs([value])
  if (from.vm.file.irqchip !== 'none') to.set('KVM_SET_LAPIC', from.get('KVM_GET_LAPIC'))
  to.setMpState(from.getMpState())
  to.set('KVM_SET_VCPU_EVENTS', from.get('KVM_GET_VCPU_EVENTS'))
}

/** Sends what a slot holds at these pages: private ones as packets, shared ones as they are. */
export function movePages(
  from: Vm,
  to: Vm,
  pages: Iterable<{
    readonly source: { mapping: Mapping; offset: number }
    readonly target: Mapping
    readonly at: number
    readonly shared: boolean
  }>,
): number {
  let sent = 0
  for (const { source, target, at, shared } of pages) {
    if (shared) target.write(at, source.mapping.read(source.offset + at, PAGE))
    else {
      const packet: MigrationPacket = from.sendUpdateData(source.mapping.address + BigInt(source.offset + at), PAGE)
      to.receiveUpdateData(packet, target.address + BigInt(at))
      sent++
    }
  }
  return sent
}

/** Every page of every slot; `shared` says which guest-physical pages are not encrypted. */
export function* allPages(
  from: Vm,
  mappings: ReadonlyMap<number, Mapping>,
  shared: (gpa: number) => boolean,
): Generator<{ source: { mapping: Mapping; offset: number }; target: Mapping; at: number; shared: boolean; gpa: number }> {
  for (const slot of from.file.slots.values()) {
    const source = slotMemory(from.kvm, slot)
    for (let at = 0; at < Number(slot.size); at += PAGE) {
      const gpa = Number(slot.gpa) + at
      yield { source, target: mappings.get(slot.id) as Mapping, at, shared: shared(gpa), gpa }
    }
  }
}
