/** Mirrors and moves of SEV contexts (selftest sev_migrate_tests), statistics, kicks by handle. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, kickVcpu, type Kvm, openKvm, REQUEST, type Vcpu, type Vm } from 'cloister'
import { Machine } from 'cloister/vmm'

const open = (): Promise<Kvm> => openKvm({ memory: 256 << 20 })
const COPY = 197
const MOVE = 206

function cap(kvm: Kvm, vm: Vm, which: number, fd: number): number {
  const bytes = new Uint8Array(104)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, which, true)
  view.setBigUint64(8, BigInt(fd), true)
  return kvm.ioctl(vm.fd, REQUEST.KVM_ENABLE_CAP, bytes)
}

/** Where the VMM has this guest-physical address. */
function hva(vm: Vm, gpa: number): bigint {
  const at = BigInt(gpa)
  for (const slot of vm.file.slots.values()) if (at >= slot.gpa && at < slot.gpa + slot.size) return slot.userspaceAddr + at - slot.gpa
  throw new RangeError(`no memory at 0x${gpa.toString(16)}`)
}

function guest(kvm: Kvm, type: 'sev' | 'sev-es', vcpus = 0): Vm {
  const vm = kvm.createVm(type)
  vm.sevInit()
  for (let i = 0; i < vcpus; i++) vm.createVcpu(i)
  vm.launchStart({ policy: type === 'sev' ? 1 : 5 })
  return vm
}

test('mirrors: rules, few commands, and the source outlives its descriptor', async () => {
  const kvm = await open()
  const source = guest(kvm, 'sev')
  const mirror = kvm.createVm('sev')
  assert.is(cap(kvm, mirror, COPY, 99), -ERRNO.EBADF)
  assert.is(cap(kvm, mirror, COPY, kvm.eventfd()), -ERRNO.EBADF)
  assert.is(cap(kvm, mirror, COPY, mirror.fd), -ERRNO.EINVAL)
  assert.is(cap(kvm, mirror, COPY, kvm.createVm('default').fd), -ERRNO.EINVAL)
  const busy = kvm.createVm('sev')
  busy.createVcpu(0)
  assert.is(cap(kvm, busy, COPY, source.fd), -ERRNO.EINVAL)
  assert.is(cap(kvm, mirror, COPY, source.fd), 0)
  assert.is(cap(kvm, mirror, COPY, source.fd), -ERRNO.EINVAL)
  const third = kvm.createVm('sev')
  assert.is(cap(kvm, third, COPY, mirror.fd), -ERRNO.EINVAL)
  assert.is(mirror.guestStatus().handle, source.guestStatus().handle)
  assert.is(mirror.memoryEncrypt('KVM_SEV_LAUNCH_FINISH').errno, -ERRNO.EINVAL)
  assert.is(kvm.ioctl(mirror.fd, REQUEST.KVM_MEMORY_ENCRYPT_REG_REGION, new Uint8Array(16)), -ERRNO.EINVAL)
  kvm.close(source.fd)
  assert.is(mirror.guestStatus().state, 1)
  kvm.close(mirror.fd)
  assert.is(kvm.kernel.asids.size, 0)
  assert.is(kvm.kernel.psp.guests.size, 0)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('moves: rules, the source is dead, mirrors follow', async () => {
  const kvm = await open()
  const source = guest(kvm, 'sev')
  const mirror = kvm.createVm('sev')
  assert.is(cap(kvm, mirror, COPY, source.fd), 0)
  assert.is(cap(kvm, kvm.createVm('sev-es'), MOVE, source.fd), -ERRNO.EINVAL, 'types')
  assert.is(cap(kvm, guest(kvm, 'sev'), MOVE, source.fd), -ERRNO.EINVAL, 'a SEV guest already')
  const target = kvm.createVm('sev')
  const { handle } = source.guestStatus()
  assert.is(cap(kvm, target, MOVE, source.fd), 0)
  // The context is there, but sev->fd did not come along.
  assert.is(target.file.sev?.guest?.handle, handle)
  assert.is(target.memoryEncrypt('KVM_SEV_GUEST_STATUS', new Uint8Array(12)).errno, -ERRNO.EBADF)
  assert.is(mirror.guestStatus().handle, handle)
  assert.is(source.memoryEncrypt('KVM_SEV_GUEST_STATUS', new Uint8Array(12)).errno, -ERRNO.EIO)
  const es = guest(kvm, 'sev-es', 2)
  const other = kvm.createVm('sev-es')
  other.createVcpu(0)
  assert.is(cap(kvm, other, MOVE, es.fd), -ERRNO.EINVAL, 'numbers of vCPUs')
  other.createVcpu(1)
  assert.is(cap(kvm, other, MOVE, es.fd), -ERRNO.EINVAL, 'not protected')
  es.launchUpdateVmsa()
  assert.is(cap(kvm, other, MOVE, es.fd), 0)
  assert.is(kvm.ioctl(other.vcpus[1]?.fd ?? -1, REQUEST.KVM_GET_REGS, new Uint8Array(144)), -ERRNO.EINVAL)
  for (const vm of [source, mirror, target, es, other]) kvm.close(vm.fd)
  assert.equal(kvm.kernel.internalErrors, [])
})

for (const type of ['sev-es-legacy', 'sev-es'] as const) {
  test(`${type}: a running guest is moved to another VM`, async () => {
    const image = new Uint8Array(readFileSync(new URL('../../../tests/guests/sev-es.bin', import.meta.url)))
    const create = async (): Promise<Machine> => {
      const machine = await Machine.create({
        type,
        image: { bytes: image, load: 0x200000, entry: 0x200000, mode: 'long64' },
        memory: 16 << 20,
      })
      machine.launch()
      return machine
    }
    const read = (vcpu: Vcpu, exits: number): string => {
      let text = ''
      for (; exits > 0; exits--) {
        const exit = vcpu.run({ maxInstructions: 1_000_000 })
        if (exit.reason !== 'KVM_EXIT_IO' || exit.direction !== 'out') break
        text += new TextDecoder().decode(exit.data)
      }
      return text
    }
    const machine = await create()
    const { kvm } = machine
    const before = read(machine.vcpus[0] as Vcpu, 5)
    const target = kvm.createVm(type)
    if (machine.vm.file.irqchip === 'full') target.createIrqchip()
    for (const slot of machine.vm.file.slots.values())
      target.setUserMemoryRegion({
        slot: slot.id,
        flags: slot.flags,
        guestPhysAddr: slot.gpa,
        memorySize: slot.size,
        userspaceAddr: slot.userspaceAddr,
      })
    const moved = target.createVcpu(0)
    moved.setCpuid2((machine.vcpus[0] as Vcpu).getCpuid2())
    const own = moved.getRegs()
    const xsave = moved.get('KVM_GET_XSAVE')
    assert.is(cap(kvm, target, MOVE, machine.vm.fd), 0)
    assert.is(machine.vcpus[0]?.runRaw(10), -ERRNO.EIO)
    // Floating-point state is not marked confidential by a move: KVM shows its own.
    assert.equal(moved.get('KVM_GET_XSAVE'), xsave)
    if (type === 'sev-es') {
      // Linux never clears need_init there, and the registers are out of reach.
      assert.is(moved.runRaw(1000), -ERRNO.EINVAL)
      assert.match(kvm.lastRefusal()?.reason ?? '', /need_init/)
      assert.is(kvm.ioctl(moved.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)), -ERRNO.EINVAL)
      return
    }
    assert.equal(moved.getRegs(), own, 'the copies of the legacy type are the destination\u2019s own')
    const text = before + read(moved, 50)
    assert.ok(text.length > before.length + 5, text)
    const whole = await create()
    assert.is(text, read(whole.vcpus[0] as Vcpu, 55).slice(0, text.length))
    assert.equal(kvm.kernel.internalErrors, [])
  })
}

test('a mirror runs in the encrypted memory of its owner, with a vCPU of its own', async () => {
  const image = new Uint8Array(readFileSync(new URL('../../../tests/guests/sev.bin', import.meta.url)))
  const machine = await Machine.create({
    type: 'sev-legacy',
    policy: 1n,
    image: { bytes: image, load: 0x200000, entry: 0x200000, mode: 'long64' },
    memory: 6 << 20,
  })
  machine.launch()
  const { kvm, vm } = machine
  const mirror = kvm.createVm('sev-legacy')
  assert.is(cap(kvm, mirror, COPY, vm.fd), 0)
  for (const { id, gpa, size, userspaceAddr } of vm.file.slots.values())
    mirror.setUserMemoryRegion({ slot: id, guestPhysAddr: gpa, memorySize: size, userspaceAddr })
  const [own, other] = [machine.vcpus[0] as Vcpu, mirror.createVcpu(0)]
  other.setCpuid2(own.getCpuid2())
  other.set('KVM_SET_SREGS', own.get('KVM_GET_SREGS'))
  other.set('KVM_SET_REGS', own.get('KVM_GET_REGS'))
  const line = (vcpu: Vcpu): string => {
    let text = ''
    while (!text.endsWith('\n')) {
      const exit = vcpu.run({ maxInstructions: 1_000_000 })
      if (exit.reason !== 'KVM_EXIT_IO') throw new Error(exit.reason)
      text += new TextDecoder().decode(exit.data)
    }
    return text
  }
  // The code is ciphertext to the host and runs for both; the program begins anew, in the same memory.
  assert.is.not(Buffer.compare(kvm.kernel.memory.copyIn(hva(vm, 0x200000), 64) as Uint8Array, image.subarray(0, 64)), 0)
  const first = line(other)
  assert.is(line(own), first)
  assert.is.not(line(other), first)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('statistics as Linux lays them out', async () => {
  const kvm = await open()
  const vm = kvm.createVm('default')
  const memory = kvm.mmap(-1, 0x1000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0xfffff000, memorySize: 0x1000, userspaceAddr: memory.address })
  memory.write(0xff0, new Uint8Array([0xe6, 0x55, 0xf4]))
  const vcpu = vm.createVcpu(0)
  vcpu.run({ maxInstructions: 10 })
  vcpu.run({ maxInstructions: 10 })
  const fd = kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_STATS_FD, 0)
  const bytes = new Uint8Array(8192)
  const n = kvm.read(fd, bytes)
  const view = new DataView(bytes.buffer)
  const [flags, name, entries, id, descriptors, data] = [0, 4, 8, 12, 16, 20].map((at) => view.getUint32(at, true)) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ]
  assert.equal([flags, name, id, descriptors], [0, 48, 24, 72])
  assert.is(data, 72 + entries * 64)
  const text = (at: number): string => new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)))
  assert.match(text(id), /^kvm-\d+\/vcpu-0$/)
  const values = new Map<string, bigint>()
  let end = 0
  for (let i = 0; i < entries; i++) {
    const at = descriptors + i * 64
    const offset = view.getUint32(at + 8, true)
    assert.is(offset, end)
    end += view.getUint16(at + 6, true) * 8
    values.set(text(at + 16), view.getBigUint64(data + offset, true))
  }
  assert.is(n, data + end)
  assert.is(values.get('io_exits'), 1n)
  assert.is(values.get('halt_exits'), 1n)
  assert.is(kvm.read(fd, bytes), 0)
})

test('KVM_SET_LAPIC: the timer goes on from the current count', async () => {
  const kvm = await open()
  const [PERIODIC, TMICT, TMCCT, TDCR] = [0x20000, 0x380, 0x390, 0x3e0] as const
  const restored = (mode: number, initial: number, current: number): number => {
    const vm = kvm.createVm('default')
    vm.createIrqchip()
    const vcpu = vm.createVcpu(0)
    const lapic = vcpu.get('KVM_GET_LAPIC')
    const view = new DataView(lapic.buffer)
    view.setUint32(0x320, mode | 0x10030, true)
    view.setUint32(TMICT, initial, true)
    view.setUint32(TMCCT, current, true)
    view.setUint32(TDCR, 0xb, true)
    vcpu.set('KVM_SET_LAPIC', lapic)
    return new DataView(vcpu.get('KVM_GET_LAPIC').buffer).getUint32(TMCCT, true)
  }
  assert.is(restored(0, 0xffff_ffff, 0xf70f_860a), 0xf70f_860a)
  assert.is(restored(PERIODIC, 1_000_000, 999), 999)
  // set_target_expiration: a periodic timer at 0 begins anew, a one-shot has run down, more than the initial count is cut.
  assert.is(restored(PERIODIC, 1_000_000, 0), 1_000_000)
  assert.is(restored(0, 1_000_000, 0), 0)
  assert.is(restored(0, 1_000_000, 2_000_000), 1_000_000)
  assert.is(restored(0, 0, 5), 0)
})

test('kickVcpu by handle', async () => {
  const kvm = await open()
  const vm = kvm.createVm('default')
  const memory = kvm.mmap(-1, 0x1000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0xfffff000, memorySize: 0x1000, userspaceAddr: memory.address })
  memory.write(0xff0, new Uint8Array([0xeb, 0xfe]))
  const vcpu = vm.createVcpu(0)
  kickVcpu(vcpu.kickHandle)
  assert.is(vcpu.runRaw(Number.POSITIVE_INFINITY), -ERRNO.EINTR)
})

test.run()
