/** private_mem_kvm_exits_test of the kernel's selftests, and KVM_PRE_FAULT_MEMORY. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, REQUEST } from 'cloister'
import { asm, Box, FLAG, PAGE, PRIVATE, SW_PROTECTED } from './harness.ts'

const DATA = 0x10000

test('a private access after its slot is gone', async () => {
  const box = await Box.create(SW_PROTECTED)
  const gmem = box.guestMemfd(PAGE)
  const region = { slot: 1, flags: FLAG.GUEST_MEMFD, gpa: DATA, size: PAGE, gmem }
  assert.is(box.region(region), 0)
  assert.is(box.attributes(DATA, PAGE, PRIVATE), 0)
  const vcpu = box.guest([...asm.ds(DATA >> 4), ...asm.show(0), ...asm.show(0)])
  assert.is(box.out(vcpu), 0)
  assert.is(box.region({ ...region, size: 0 }), 0)
  box.fault(vcpu, DATA, PRIVATE)
  assert.is(box.region(region), 0)
  assert.is(box.out(vcpu), 0)
  box.done()
})

test('a private access in a slot without guest_memfd', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(PAGE)
  assert.is(box.region({ slot: 1, gpa: DATA, size: PAGE, hva: ram.address }), 0)
  assert.is(box.attributes(DATA, PAGE, PRIVATE), 0)
  const vcpu = box.guest([...asm.ds(DATA >> 4), ...asm.show(0)])
  box.fault(vcpu, DATA, PRIVATE)
  box.done()
})

test('a shared access where the VMM mapped nothing, and one after the guest_memfd is closed', async () => {
  const box = await Box.create(SW_PROTECTED)
  const gmem = box.guestMemfd(PAGE)
  assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: DATA, size: PAGE, gmem }), 0)
  const vcpu = box.guest([...asm.ds(DATA >> 4), ...asm.show(0), ...asm.show(0)])
  box.fault(vcpu, DATA, 0n)
  assert.is(box.attributes(DATA, PAGE, PRIVATE), 0)
  assert.is(box.out(vcpu), 0)
  assert.is(box.kvm.close(gmem), 0)
  box.fault(vcpu, DATA, PRIVATE)
  box.done()
})

test('an interrupt frame that finds no memory is pushed when there is some', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(PAGE)
  assert.is(box.region({ slot: 1, gpa: DATA, size: PAGE, hva: ram.address }), 0)
  const vcpu = box.guest([
    ...[0xb8, 0x00, 0x10, 0x8e, 0xd0, 0xbc, 0x00, 0x10], // mov ax, 0x1000; mov ss, ax; mov sp, 0x1000
    ...[0xc7, 0x06, 0x18, 0x00, 0x40, 0x10], // mov word [6 * 4], CODE + 0x40
    ...asm.mark(1),
    ...[0x0f, 0x0b], // ud2
  ])
  const handler =
    (box.kvm.kernel.file(box.fd) as unknown as { slots: Map<number, { userspaceAddr: bigint }> }).slots.get(0)?.userspaceAddr ?? 0n
  assert.ok(box.kvm.kernel.memory.copyOut(handler + 0x1040n, new Uint8Array([...asm.mark(2)])))
  assert.is(box.out(vcpu), 1)
  assert.is(box.attributes(DATA, PAGE, PRIVATE), 0)
  box.fault(vcpu, DATA, PRIVATE)
  assert.is(box.attributes(DATA, PAGE, 0n), 0)
  assert.is(box.out(vcpu), 2)
  assert.is(vcpu.getRegs().rsp, 0xffan)
  box.done()
})

test('KVM_PRE_FAULT_MEMORY', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(4 * PAGE)
  const vcpu = box.guest(asm.hlt)
  assert.is(box.region({ slot: 1, gpa: DATA, size: 4 * PAGE, hva: ram.address }), 0)
  const call = (gpa: bigint, size: bigint, flags = 0n): [number, bigint, bigint] => {
    const bytes = new Uint8Array(new BigUint64Array([gpa, size, flags, 0n, 0n, 0n, 0n, 0n]).buffer)
    const result = box.kvm.ioctl(vcpu.fd, REQUEST.KVM_PRE_FAULT_MEMORY, bytes)
    const view = new DataView(bytes.buffer)
    return [result, view.getBigUint64(0, true), view.getBigUint64(8, true)]
  }
  assert.equal(call(0x10000n, 0x4000n), [0, 0x14000n, 0n])
  assert.equal(call(0x10000n, 0x5000n), [0, 0x14000n, 0x1000n])
  assert.equal(call(0x14000n, 0x1000n), [-ERRNO.ENOENT, 0x14000n, 0x1000n])
  for (const bad of [
    [0x10000n, 0x1000n, 1n],
    [0x10001n, 0x1000n],
    [0x10000n, 0x800n],
    [0x10000n, 0n],
    [0xfffffffffffff000n, 0x1000n],
  ])
    assert.is(call(...(bad as [bigint, bigint]))[0], -ERRNO.EINVAL)
  assert.is(box.attributes(DATA + 2 * PAGE, PAGE, PRIVATE), 0)
  assert.equal(call(0x10000n, 0x4000n), [0, 0x12000n, 0x2000n])
  assert.is(call(0x12000n, 0x1000n)[0], -ERRNO.EFAULT)
  box.done()
})

test.run()
