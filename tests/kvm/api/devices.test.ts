/** Devices and queues around a VM: KVM_CREATE_DEVICE, routes that a configuration lacks, ioeventfd in replayed instructions, big files. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, REQUEST } from 'cloister'
import { RawGuest } from './raw-guest.ts'

const u32 = (...values: number[]): Uint8Array => new Uint8Array(new Uint32Array(values).buffer)

test('KVM_CREATE_DEVICE: the VFIO device of a VM and its attributes', async () => {
  const guest = await RawGuest.create([0xf4])
  const { kvm } = guest
  const make = (type: number, flags = 0): [number, number] => {
    const bytes = u32(type, 0xffffffff, flags)
    return [guest.vmCall('KVM_CREATE_DEVICE', bytes), new DataView(bytes.buffer).getInt32(4, true)]
  }
  assert.is(make(1)[0], -ERRNO.ENODEV)
  assert.is(make(99)[0], -ERRNO.ENODEV)
  assert.equal(make(4, 1), [0, -1], 'KVM_CREATE_DEVICE_TEST makes nothing')
  const [result, fd] = make(4)
  assert.is(result, 0)
  assert.is(make(4)[0], -ERRNO.EBUSY)
  const memory = kvm.mmap(-1, 4096)
  const attr = (
    request: 'KVM_SET_DEVICE_ATTR' | 'KVM_HAS_DEVICE_ATTR' | 'KVM_GET_DEVICE_ATTR',
    group: number,
    number: bigint,
    to: bigint,
  ) => {
    const bytes = new Uint8Array(24)
    const view = new DataView(bytes.buffer)
    view.setUint32(4, group, true)
    view.setBigUint64(8, number, true)
    view.setBigUint64(16, to, true)
    return kvm.ioctl(fd, REQUEST[request], bytes)
  }
  assert.is(attr('KVM_HAS_DEVICE_ATTR', 1, 1n, 0n), 0)
  assert.is(attr('KVM_HAS_DEVICE_ATTR', 1, 3n, 0n), -ERRNO.ENXIO)
  assert.is(attr('KVM_HAS_DEVICE_ATTR', 2, 1n, 0n), -ERRNO.ENXIO)
  assert.is(attr('KVM_GET_DEVICE_ATTR', 1, 1n, 0n), -ERRNO.EPERM)
  assert.is(attr('KVM_SET_DEVICE_ATTR', 1, 1n, 8n), -ERRNO.EFAULT)
  memory.write(0, u32(999))
  assert.is(attr('KVM_SET_DEVICE_ATTR', 1, 1n, memory.address), -ERRNO.EBADF)
  memory.write(0, u32(guest.vm))
  assert.is(attr('KVM_SET_DEVICE_ATTR', 1, 1n, memory.address), -ERRNO.EINVAL)
  assert.is(attr('KVM_SET_DEVICE_ATTR', 1, 2n, memory.address), -ERRNO.ENOENT)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_RUN, 0), -ERRNO.ENOTTY)
  kvm.close(fd)
  assert.is(make(4)[0], 0, 'after its release the VM may have another')
})

test('routes to Hyper-V and Xen as a kernel without either', async () => {
  const guest = await RawGuest.create([0xf4], { irqchip: 'full' })
  for (const type of [4, 5, 3, 0]) {
    const bytes = new Uint8Array(8 + 48)
    bytes.set(u32(1, 0, 5, type))
    assert.is(guest.vmCall('KVM_SET_GSI_ROUTING', bytes), -ERRNO.EINVAL, `type ${type}`)
  }
})

test('RESAMPLE on a GSI from 32 on: high until the EOI of the pin it is routed to', async () => {
  // Vector 0x40: mov al, 9; out 1, al; EOI to the APIC; iret. The guest waits.
  const guest = await RawGuest.create([0xfb, 0xf4, 0xeb, 0xfd], { irqchip: 'full', mode: 'real' })
  const { kvm } = guest
  guest.memory.write(0x40 * 4, Uint8Array.of(0x00, 0x30, 0, 0))

  guest.memory.write(
    0x3000,
    Uint8Array.of(0xb0, 0x09, 0xe6, 0x01, 0x67, 0x66, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0, 0xb0, 0x0a, 0xe6, 0x01, 0xcf),
  )
  const sregs = guest.get('KVM_GET_SREGS', 312)
  sregs.setUint32(24 + 8, 0xffffffff, true) // DS limit: unreal mode
  guest.set('KVM_SET_SREGS', sregs)
  const lapic = guest.get('KVM_GET_LAPIC', 1024)
  lapic.setUint32(0xf0, 0x1ff, true)
  guest.set('KVM_SET_LAPIC', lapic)
  // GSI 40 -> IOAPIC pin 5; pin 5: level, vector 0x40.
  const route = new Uint8Array(8 + 48)
  route.set(u32(1, 0, 40, 1, 0, 0, 2, 5))
  assert.is(guest.vmCall('KVM_SET_GSI_ROUTING', route), 0)
  const chip = new Uint8Array(520)
  chip.set(u32(2))
  guest.must(guest.vmCall('KVM_GET_IRQCHIP', chip), 'KVM_GET_IRQCHIP')
  new DataView(chip.buffer).setBigUint64(8 + 24 + 5 * 8, 0x8040n, true)
  guest.must(guest.vmCall('KVM_SET_IRQCHIP', chip), 'KVM_SET_IRQCHIP')
  const [fd, resample] = [kvm.eventfd(), kvm.eventfd()]
  const irqfd = new Uint8Array(32)
  irqfd.set(u32(fd, 40, 2, resample))
  assert.is(guest.vmCall('KVM_IRQFD', irqfd), 0)
  const count = (): number => {
    const bytes = new Uint8Array(8)
    return kvm.read(resample, bytes) === 8 ? (bytes[0] as number) : 0
  }
  assert.is(guest.run(), -ERRNO.EINTR, 'the guest halts')
  assert.is(kvm.write(fd, new Uint8Array(new BigUint64Array([1n]).buffer)), 8)
  assert.is(guest.port(1), 9)
  assert.is(count(), 0)
  assert.is(guest.port(1), 10, 'after the EOI')
  assert.is(count(), 1, 'resamplefd was told')
  assert.is(guest.run(), -ERRNO.EINTR, 'and the line is low')
})

test('an ioeventfd inside an instruction that leaves is counted once', async () => {
  // A page-crossing store of 8 bytes: 4 hit an ioeventfd at the end of a page, 4 are MMIO behind it.
  // mov [0xd0000ffc], rax (movabs); out 1, al
  const code = [0x48, 0xa3, 0xfc, 0x0f, 0x00, 0xd0, 0, 0, 0, 0, 0xe6, 0x01]
  const guest = await RawGuest.create(code, { mode: 'long' })
  const fd = guest.kvm.eventfd()
  const bytes = new Uint8Array(64)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(8, 0xd0000ffcn, true)
  view.setUint32(16, 4, true)
  view.setInt32(20, fd, true)
  assert.is(guest.vmCall('KVM_IOEVENTFD', bytes), 0)
  const count = (): number => {
    const counter = new Uint8Array(8)
    return guest.kvm.read(fd, counter) === 8 ? (counter[0] as number) : 0
  }
  assert.is(guest.to('KVM_EXIT_MMIO').getBigUint64(32, true), 0xd0001000n)
  assert.is(count(), 1)
  guest.port(1)
  assert.is(count(), 0, 'not again when the instruction is completed')
  // In a loop every execution counts.
  guest.setRegs({ RIP: 0x1000 })
  guest.to('KVM_EXIT_MMIO')
  guest.port(1)
  assert.is(count(), 1)
})

test('a guest_memfd of a terabyte takes memory when it is touched', async () => {
  const guest = await RawGuest.create([0xf4], { type: 1 })
  const file = new Uint8Array(64)
  new DataView(file.buffer).setBigUint64(0, 1n << 40n, true)
  const fd = guest.vmCall('KVM_CREATE_GUEST_MEMFD', file)
  assert.ok(fd >= 0, `${fd} ${guest.kvm.lastRefusal()?.reason}`)
  // The last page of it as a slot, private.
  const region = new Uint8Array(160)
  const view = new DataView(region.buffer)
  view.setUint32(0, 5, true)
  view.setUint32(4, 4, true)
  view.setBigUint64(8, 0x200000n, true)
  view.setBigUint64(16, 0x1000n, true)
  view.setBigUint64(24, guest.memory.address, true)
  view.setBigUint64(32, (1n << 40n) - 4096n, true)
  view.setInt32(40, fd, true)
  assert.is(guest.vmCall('KVM_SET_USER_MEMORY_REGION2', region), 0)
  assert.is(guest.vmCall('KVM_SET_MEMORY_ATTRIBUTES', new Uint8Array(new BigUint64Array([0x200000n, 0x1000n, 8n, 0n]).buffer)), 0)
  assert.is(guest.kvm.fallocate(fd, 3, 0n, 1n << 40n), 0, 'punching all of it')
  assert.is(guest.kvm.fallocate(fd, 1, (1n << 40n) - 4096n, 4096n), 0)
  const prefault = new Uint8Array(64)
  new DataView(prefault.buffer).setBigUint64(0, 0x200000n, true)
  new DataView(prefault.buffer).setBigUint64(8, 0x1000n, true)
  assert.is(guest.call('KVM_PRE_FAULT_MEMORY', prefault), 0)
  guest.close()
  guest.kvm.close(fd)
})

test("KVM's own writes push an entry to the dirty ring each time", async () => {
  const guest = await RawGuest.create([0xb0, 0x01, 0xe6, 0x0e, 0xb0, 0x02, 0xe6, 0x0e], {
    before: (g) => {
      assert.is(g.enable(CAP.KVM_CAP_DIRTY_LOG_RING, [65536]), 0)
    },
  })
  const smram = guest.kvm.mmap(-1, 0x10000)
  smram.write(0x8000, Uint8Array.of(0x0f, 0xaa))
  guest.must(guest.slot((1 << 16) | 1, 0x40000, smram, 1), 'SMRAM, logged')
  guest.msr(0x9e, 0x40000)
  guest.port(0xe)
  const ring = guest.kvm.mmap(guest.vcpu, 65536, 64 * 4096)
  const entries = (): string[] => {
    const bytes = ring.read(0, 256)
    const view = new DataView(bytes.buffer, bytes.byteOffset)
    return [0, 1, 2, 3].map(
      (i) => `${view.getUint32(i * 16, true)}:${view.getUint32(i * 16 + 4, true).toString(16)}:${view.getBigUint64(i * 16 + 8, true)}`,
    )
  }
  guest.call('KVM_SMI')
  guest.port(0xe)
  assert.equal(entries().slice(0, 2), ['1:10001:15', '0:0:0'], 'the save area, in address space 1')
  guest.setRegs({ RIP: 0x1000 })
  guest.call('KVM_SMI')
  guest.port(0xe)
  assert.equal(entries().slice(0, 2), ['1:10001:15', '1:10001:15'])
})

test.run()
