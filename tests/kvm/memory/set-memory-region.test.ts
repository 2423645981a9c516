/** set_memory_region_test of the kernel's selftests, and the errno table of KVM_SET_USER_MEMORY_REGION. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO } from 'cloister'
import { asm, Box, FLAG, PAGE, PRIVATE, SW_PROTECTED } from './harness.ts'

const MiB = 1 << 20

test('flags, alignment, limits', async () => {
  const box = await Box.create()
  const ram = box.memory(4 * PAGE)
  const set = (more: object, two = true): number => box.region({ slot: 1, gpa: 0x10000, size: 4 * PAGE, hva: ram.address, ...more }, two)
  for (let bit = 2; bit < 32; bit++) {
    if (bit !== 2) assert.is(set({ flags: (1 << bit) >>> 0 }), -ERRNO.EINVAL, `flag ${bit}`)
    assert.is(set({ flags: (1 << bit) >>> 0 }, false), -ERRNO.EINVAL, `flag ${bit}`)
  }
  assert.is(set({ gpa: 0x10001 }), -ERRNO.EINVAL)
  assert.is(set({ size: PAGE + 1 }), -ERRNO.EINVAL)
  assert.is(set({ hva: ram.address + 1n }), -ERRNO.EINVAL)
  assert.is(set({ hva: 1n << 63n }), -ERRNO.EINVAL)
  assert.is(set({ slot: 32764 }), -ERRNO.EINVAL)
  assert.is(set({ slot: 0x20001 }), -ERRNO.EINVAL)
  assert.is(set({ gpa: (1n << 64n) - 4096n, size: PAGE }), -ERRNO.EINVAL)
  assert.is(set({ gpa: 1n << 48n }), -ERRNO.EINVAL) // above the host's physical addresses
  assert.is(set({ size: 1n << 43n, hva: 0n }), -ERRNO.EINVAL) // KVM_MEM_MAX_NR_PAGES
  assert.is(set({ size: 0 }), -ERRNO.EINVAL) // nothing to delete
  assert.is(set({ slot: 0x10001 }), 0) // SMM's address space
  assert.is(set({ slot: 32763 }), 0)
  assert.is(set({}), -ERRNO.EEXIST)
  box.done()
})

test('overlap, move, flags, delete', async () => {
  const box = await Box.create()
  const ram = box.memory(8 * PAGE)
  const one = { slot: 1, gpa: 0x10000, size: 4 * PAGE, hva: ram.address }
  const two = { slot: 2, gpa: 0x14000, size: 4 * PAGE, hva: ram.address + BigInt(4 * PAGE) }
  assert.is(box.region(one), 0)
  assert.is(box.region(two), 0)
  assert.is(box.region(one), 0) // no change
  for (const gpa of [0x11000, 0x13000, 0x17000]) assert.is(box.region({ ...one, gpa }), -ERRNO.EEXIST)
  assert.is(box.region({ ...one, slot: 3, gpa: 0xf000, size: 2 * PAGE }), -ERRNO.EEXIST)
  assert.is(box.region({ ...one, size: 2 * PAGE }), -ERRNO.EINVAL)
  assert.is(box.region({ ...one, hva: two.hva }), -ERRNO.EINVAL)
  assert.is(box.region({ ...one, flags: FLAG.READONLY }), -ERRNO.EINVAL)
  assert.is(box.region({ ...one, flags: FLAG.LOG_DIRTY }), 0)
  assert.is(box.region({ ...one, flags: 0 }), 0)
  ram.write(0, new Uint8Array([5]))
  const vcpu = box.guest([...asm.ds(0x1000), ...asm.show(0), ...asm.ds(0x1800), ...asm.show(0), ...asm.ds(0x1000), ...asm.show(0)])
  assert.is(box.out(vcpu), 5)
  assert.is(box.region({ ...one, gpa: 0x18000 }), 0) // moved while it is in the TLB
  assert.is(box.out(vcpu), 5)
  const exit = vcpu.run() // where it was is MMIO now
  assert.is(exit.reason, 'KVM_EXIT_MMIO')
  assert.is(box.region({ ...one, size: 0, gpa: 0 }), 0)
  assert.is(box.region({ ...one, size: 0, gpa: 0 }), -ERRNO.EINVAL)
  box.done()
})

test('read-only slots give MMIO exits for writes and read as memory', async () => {
  const box = await Box.create()
  const ram = box.memory(PAGE)
  ram.write(0, new Uint8Array([0x5a]))
  assert.is(box.region({ slot: 1, flags: FLAG.READONLY, gpa: 0x10000, size: PAGE, hva: ram.address }), 0)
  const vcpu = box.guest([...asm.ds(0x1000), ...asm.store(0, 1), ...asm.show(0)])
  const exit = vcpu.run()
  assert.is(exit.reason, 'KVM_EXIT_MMIO')
  assert.is(box.out(vcpu), 0x5a)
  box.done()
  const protectedBox = await Box.create(3)
  const more = protectedBox.memory(PAGE)
  assert.is(protectedBox.region({ slot: 1, flags: FLAG.READONLY, gpa: 0, size: PAGE, hva: more.address }), -ERRNO.EINVAL)
  assert.is(protectedBox.kvm.lastRefusal()?.switch, 'has_protected_state')
  protectedBox.done()
})

test('as many slots as KVM_CAP_NR_MEMSLOTS says, of one page each', async () => {
  const box = await Box.create()
  const most = box.ioctl('KVM_CHECK_EXTENSION', CAP.KVM_CAP_NR_MEMSLOTS)
  assert.is(most, 32764)
  const ram = box.memory(2 * MiB)
  const count = 4000 // the search for overlaps is linear
  for (let slot = 0; slot < count; slot++) {
    const r = box.region({
      slot: (slot * 7) % most,
      gpa: 0x100000 + slot * PAGE,
      size: PAGE,
      hva: ram.address + BigInt((slot % 512) * PAGE),
    })
    if (r !== 0) assert.unreachable(`slot ${slot}: ${r}`)
  }
  assert.is(box.region({ slot: 32763, gpa: 0x100000, size: PAGE, hva: ram.address }), -ERRNO.EEXIST)
  for (let slot = 0; slot < count; slot += 100) assert.is(box.region({ slot: (slot * 7) % most, gpa: 0, size: 0 }), 0)
  box.done()
})

test('address spaces: a VM with private memory has one', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(PAGE)
  assert.is(box.region({ slot: 0x10001, gpa: 0, size: PAGE, hva: ram.address }), -ERRNO.EINVAL)
  box.done()
})

test('KVM_SET_MEMORY_ATTRIBUTES: the order of its checks, and types without private memory', async () => {
  const box = await Box.create(SW_PROTECTED)
  const why = (expected: string, ...args: [bigint, bigint, bigint, bigint?]): void => {
    assert.is(box.attributes(...args), -ERRNO.EINVAL)
    assert.match(box.kvm.lastRefusal()?.reason ?? '', expected)
  }
  why('flags', 1n, 1n, 1n, 1n)
  why('attributes', 1n, 1n, 1n)
  why('attributes', 0n, 0x1000n, 16n)
  why('size 0', 1n, 0n, PRIVATE)
  why('wrapping', 0xfffffffffffff000n, 0x1000n, PRIVATE)
  why('aligned', 1n, 0x1000n, PRIVATE)
  why('aligned', 0n, 0x1001n, PRIVATE)
  for (let i = 0; i < 2; i++) assert.is(box.attributes(1n << 51n, 1n << 50n, PRIVATE), 0)
  box.done()
  for (const type of [0, 2, 3]) {
    const plain = await Box.create(type)
    assert.is(plain.attributes(0, PAGE, PRIVATE), -ERRNO.EINVAL)
    assert.is(plain.attributes(0, PAGE, 0n), 0)
    plain.done()
  }
})

test.run()
