/**
 * Debian's OVMF, unmodified, is migrated between two platforms in the middle of its boot: RAM and firmware travel encrypted,
 * page by page, and the boot goes on to the shell on the other chip, under the same devices of the VMM.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { exitName, type Mapping, openKvm, type Vcpu, type Vm } from '../../host/index.ts'
import { variableStoreLength } from '../../host/vmm/devices/flash.ts'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import { RunLoop } from '../../host/vmm/run-loop.ts'
import { needs } from '../support/needs.ts'
import { copyVcpu, movePages, PAGE } from '../support/migration.ts'
import { ovmf } from './helpers.ts'

const FOUR_GIB = 2 ** 32
function loop(machine: Machine, vm: Vm, cpu: Vcpu, maxInstructions: number): RunLoop {
  return new RunLoop({
    cpus: [cpu],
    board: machine.board,
    maxInstructions,
    deadline: performance.now() + 300_000,
    now: () => vm.clock,
    arm: (ns) => vm.setDeadline(ns),
    resume: () => false,
    exitName,
    refusal: () => vm.kvm.lastRefusal()?.reason ?? '',
    trace: null,
    traceExits: false,
    traceGhcb: false,
    tracePorts: false,
    traceMmio: false,
  })
}

/** In-kernel interrupt controllers, timer and clock. */
function copyChips(from: Vm, to: Vm): void {
  to.sleepUntil(from.clock)
  for (const chip of [0, 1, 2]) {
    const bytes = new Uint8Array(520)
    new DataView(bytes.buffer).setUint32(0, chip, true)
    from.ioctl('KVM_GET_IRQCHIP', bytes)
    to.ioctl('KVM_SET_IRQCHIP', bytes)
  }
  const pit = new Uint8Array(112)
  from.ioctl('KVM_GET_PIT2', pit)
  to.ioctl('KVM_SET_PIT2', pit)
}

/** A machine in the middle of OVMF's DXE phase: devices, timer and DMA buffers are in use, and nothing has been printed. */
async function halfBooted(options: Pick<MachineOptions, 'type' | 'policy' | 'seed'>, image: Uint8Array): Promise<HalfBooted> {
  let output = ''
  const machine = await Machine.create({
    ...options,
    firmware: image,
    memory: 64 << 20,
    onSerial: (bytes) => {
      output += new TextDecoder().decode(bytes)
    },
  })
  const source = machine.vcpus[0] as Vcpu
  machine.launch()
  const first = loop(machine, machine.vm, source, 540_000_000).run(300_000)
  assert.is(first?.reason, 'budget-instructions', String(first?.detail))
  assert.is(output, '')
  return { machine, source, output: () => output }
}

interface HalfBooted {
  readonly machine: Machine
  readonly source: Vcpu
  readonly output: () => string
}

/** The devices are the VMM's: they see the other VM from here on, and the firmware reaches its shell there. */
function reachesShell({ machine, output }: HalfBooted, target: Vm, arrived: Vcpu, budget: number): void {
  const { vm } = machine
  const file = target.file
  Object.defineProperty(vm, 'file', { get: () => file })
  vm.irqLine = (gsi, level) => target.irqLine(gsi, level)
  const second = loop(machine, target, arrived, budget)
  let outcome = null
  while (outcome === null && !output().includes('UEFI Interactive Shell')) outcome = second.run(100)
  assert.is(outcome, null, `${JSON.stringify(outcome)} ${output().slice(-400)}`)
}

needs(test, 'ovmf', 'OVMF goes to another platform in the middle of its boot and reaches the shell there', async () => {
  const image = ovmf()
  const half = await halfBooted({ type: 'sev', policy: 0n, seed: 1 }, image)
  const { machine, source } = half
  const { kvm, vm } = machine

  // The variable store is the VMM's own device, and the guest maps it shared; no DMA is under way.
  const store = FOUR_GIB - image.length
  const isShared = (gpa: number): boolean => gpa >= store && gpa < store + variableStoreLength(image)
  const there = await openKvm({ memory: 512 << 20, seed: 2n })
  const target = there.createVm('sev')
  target.sevInit()
  target.createIrqchip()
  target.createPit2()
  // Slots may share a mapping: RAM is one, the firmware is seen twice.
  const copies = new Map<Mapping, Mapping>()
  const pages: { source: { mapping: Mapping; offset: number }; target: Mapping; at: number; shared: boolean }[] = []
  const seen = new Set<string>()
  for (const slot of vm.file.slots.values()) {
    const place = kvm.kernel.memory.find(slot.userspaceAddr, Number(slot.size))
    assert.ok(place)
    const copy = copies.get(place.mapping) ?? there.mmap(-1, place.mapping.length)
    copies.set(place.mapping, copy)
    target.setUserMemoryRegion({
      slot: slot.id,
      flags: slot.flags,
      guestPhysAddr: slot.gpa,
      memorySize: slot.size,
      userspaceAddr: copy.address + BigInt(place.offset),
    })
    for (let at = 0; at < Number(slot.size); at += PAGE) {
      const key = `${place.mapping.address} ${place.offset + at}`
      if (seen.has(key)) continue
      seen.add(key)
      pages.push({
        source: { mapping: place.mapping, offset: 0 },
        target: copy,
        at: place.offset + at,
        shared: isShared(Number(slot.gpa) + at),
      })
    }
  }
  target.receiveStart({ policy: 0, pdh: kvm.sevCertificates().pdh, session: vm.sendStart(there.sevCertificates()) })
  movePages(vm as never, target as never, pages as never)
  const arrived = target.createVcpu(0)
  copyChips(vm, target)
  copyVcpu(source as never, arrived as never)
  vm.sendFinish()
  target.receiveFinish()
  // The devices are the VMM's: they see the other VM's memory from here on.
  for (const [from, to] of copies) {
    from.read = (offset, n) => to.read(offset, n)
    from.write = (offset, bytes) => to.write(offset, bytes)
  }
  reachesShell(half, target, arrived, 400_000_000)
  assert.equal(there.kernel.internalErrors, [])
})

needs(
  test,
  'ovmf',
  'OVMF under SEV-ES is moved to another VM of the host in the middle of its boot: sealed registers and all',
  async () => {
    const half = await halfBooted({ type: 'sev-es-legacy' }, ovmf())
    const { machine, source } = half
    const { kvm, vm } = machine

    const target = kvm.createVm('sev-es-legacy')
    target.createIrqchip()
    target.createPit2()
    for (const { id, flags, gpa, size, userspaceAddr } of vm.file.slots.values())
      target.setUserMemoryRegion({ slot: id, flags, guestPhysAddr: gpa, memorySize: size, userspaceAddr })
    const arrived = target.createVcpu(0)
    // What KVM still knows of a sealed vCPU goes by ioctls, and has to before the source is dead.
    copyChips(vm, target)
    arrived.setCpuid2(source.getCpuid2())
    for (const index of [0x10, 0x1b, 0x2ff]) arrived.setMsrs(source.getMsrs([index]))
    arrived.set('KVM_SET_LAPIC', source.get('KVM_GET_LAPIC'))
    arrived.set('KVM_SET_VCPU_EVENTS', source.get('KVM_GET_VCPU_EVENTS'))
    assert.is(target.enableCap('KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM', [vm.fd]), 0)
    assert.is(source.runRaw(1), -5)
    reachesShell(half, target, arrived, 600_000_000)
    assert.equal(kvm.kernel.internalErrors, [])
  },
)

test.run()
