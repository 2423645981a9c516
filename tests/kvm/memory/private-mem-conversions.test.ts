/** private_mem_conversions_test of the kernel's selftests: explicit and implicit conversions with a KVM_X86_SW_PROTECTED_VM. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { asm, Box, FLAG, PAGE, PRIVATE, SW_PROTECTED } from './harness.ts'

const DATA = 0x10000

test('explicit conversion: hypercall, exit, attributes, and each backing keeps its bytes', async () => {
  const box = await Box.create(SW_PROTECTED)
  assert.is(box.vm.enableCap('KVM_CAP_EXIT_HYPERCALL', [0x1000]), 0)
  const shared = box.memory(8 * PAGE)
  const gmem = box.guestMemfd(8 * PAGE)
  assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: DATA, size: 8 * PAGE, hva: shared.address, gmem }), 0)
  const vcpu = box.guest([
    ...asm.ds(DATA >> 4),
    ...asm.store(0x0000, 0x11),
    ...asm.store(0x1000, 0x12),
    ...asm.map(DATA, 1, 0x10),
    ...asm.show(0x0000),
    ...asm.store(0x0000, 0x22),
    ...asm.show(0x1000),
    ...asm.map(DATA, 1, 0),
    ...asm.show(0x0000),
    ...asm.map(DATA, 1, 0x10),
    ...asm.show(0x0000),
  ])
  const convert = (attributes: bigint): void => {
    const exit = vcpu.run()
    if (exit.reason !== 'KVM_EXIT_HYPERCALL') return assert.unreachable(exit.reason)
    assert.is(exit.nr, 12n)
    assert.equal(exit.args.slice(0, 3), [BigInt(DATA), 1n, attributes === 0n ? 0n : 0x10n])
    assert.is(box.attributes(DATA, PAGE, attributes), 0)
    assert.is(box.out(vcpu), 0) // the hypercall's result
  }
  convert(PRIVATE)
  assert.is(box.out(vcpu), 0) // a private page nobody wrote
  assert.is(box.out(vcpu), 0x12) // its neighbour stays shared
  assert.is(shared.read(0, 1)[0], 0x11)
  convert(0n)
  assert.is(box.out(vcpu), 0x11)
  shared.write(0, new Uint8Array([0x33]))
  convert(PRIVATE)
  assert.is(box.out(vcpu), 0x22) // conversions do not clear the guest_memfd
  box.done()
})

test('implicit conversion: -EFAULT with KVM_EXIT_MEMORY_FAULT, a slot change, run again', async () => {
  const box = await Box.create(SW_PROTECTED)
  const shared = box.memory(2 * PAGE)
  assert.is(box.region({ slot: 1, gpa: DATA, size: 2 * PAGE, hva: shared.address }), 0)
  assert.is(box.attributes(DATA, PAGE, PRIVATE), 0)
  const vcpu = box.guest([...asm.ds(DATA >> 4), ...asm.store(5, 0x44), ...asm.show(5)])
  box.fault(vcpu, DATA, PRIVATE)
  box.fault(vcpu, DATA, PRIVATE) // nothing changed: the same again
  assert.is(box.attributes(DATA, PAGE, 0n), 0)
  assert.is(box.out(vcpu), 0x44)
  assert.is(shared.read(5, 1)[0], 0x44)
  box.done()
})

test('page tables and code follow the attributes too', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(0x10000)
  ram.write(0x1000, new Uint8Array(asm.mark(1)))
  const gmem = box.guestMemfd(0x10000)
  assert.is(box.region({ slot: 0, flags: FLAG.GUEST_MEMFD, gpa: 0, size: 0x10000, hva: ram.address, gmem }), 0)
  const vcpu = box.vcpu()
  assert.is(box.attributes(0x1000, PAGE, PRIVATE), 0)
  // The private page is zero: add [bx+si], al, 2048 times, then what follows in the shared page.
  ram.write(0x2000, new Uint8Array(asm.mark(2)))
  assert.is(box.out(vcpu), 2)
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n })
  assert.is(box.attributes(0x1000, PAGE, 0n), 0)
  assert.is(box.out(vcpu), 1)
  box.done()
})

test('PUNCH_HOLE takes the private bytes', async () => {
  const box = await Box.create(SW_PROTECTED)
  const gmem = box.guestMemfd(2 * PAGE)
  assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: DATA, size: 2 * PAGE, gmem }), 0)
  assert.is(box.attributes(DATA, 2 * PAGE, PRIVATE), 0)
  const vcpu = box.guest([
    ...asm.ds(DATA >> 4),
    ...asm.store(0, 1),
    ...asm.store(0x1000, 2),
    ...asm.show(0),
    ...asm.show(0),
    ...asm.show(0x1000),
  ])
  assert.is(box.out(vcpu), 1)
  assert.is(box.kvm.fallocate(gmem, 3, 0, PAGE), 0)
  assert.is(box.out(vcpu), 0)
  assert.is(box.out(vcpu), 2)
  box.done()
})

test('ranges of attributes against a model', async () => {
  const box = await Box.create(SW_PROTECTED)
  const model = new Uint8Array(64)
  const gmem = box.guestMemfd(32 * PAGE)
  assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: 0, size: 32 * PAGE, gmem }), 0) // no shared memory: shared = -EFAULT
  const vcpu = box.vm.createVcpu(0)
  let seed = 7
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
    return (seed >>> 8) % n
  }
  const range = new Uint8Array(64)
  const view = new DataView(range.buffer)
  for (let i = 0; i < 400; i++) {
    const first = random(64)
    const count = 1 + random(64 - first)
    const on = random(2)
    model.fill(on, first, first + count)
    assert.is(box.attributes(first * PAGE, count * PAGE, on ? PRIVATE : 0n), 0)
    for (let page = 0; page < 64; page++) {
      view.setBigUint64(0, BigInt(page * PAGE), true)
      view.setBigUint64(8, BigInt(PAGE), true)
      const expected = model[page] ? (page < 32 ? 0 : -14) : page < 32 ? -14 : -2
      assert.is(box.kvm.ioctl(vcpu.fd, 0xc040aed5, range), expected, `step ${i} page ${page}`)
    }
  }
  box.done()
})

test.run()
