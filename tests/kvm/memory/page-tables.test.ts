/** Guest page tables follow the attributes, faults on them are memory faults, and nothing is left behind by VMs that are gone. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { REQUEST } from 'cloister'
import { asm, Box, FLAG, PAGE, PRIVATE, SW_PROTECTED } from './harness.ts'

const TABLES = 0x10000

test('a page directory in memory that is not there', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(0x10000)
  const gmem = box.guestMemfd(PAGE)
  // 32-bit paging with 4 MiB pages: virtual 0 and 4 MiB are physical 0.
  const directory = new Uint8Array(PAGE)
  new DataView(directory.buffer).setUint32(0, 0x83, true)
  new DataView(directory.buffer).setUint32(4, 0x83, true)
  ram.write(0, directory)
  assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: TABLES, size: PAGE, hva: ram.address, gmem }), 0)
  const vcpu = box.guest([
    ...[0xc6, 0x05, 0, 0x40, 0x40, 0, 9], // mov byte [0x404000], 9
    ...asm.mark(1),
    ...[0xa0, 0, 0x40, 0, 0, 0xe6, 0x10], // mov al, [0x4000]; out
    ...[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8], // mov eax, cr3; mov cr3, eax
    ...asm.mark(2),
  ])
  const sregs = vcpu.getSregs()
  const flat = { ...sregs.cs, base: 0n, limit: 0xffffffff, g: 1, db: 1 }
  const data = { ...sregs.ds, base: 0n, limit: 0xffffffff, g: 1, db: 1 }
  vcpu.setSregs({ ...sregs, cr0: 0x80000011n, cr3: BigInt(TABLES), cr4: 0x10n, cs: { ...flat, type: 11 }, ds: data, ss: data, es: data })
  assert.is(box.out(vcpu), 1)
  assert.is(box.out(vcpu), 9)
  assert.is(box.attributes(TABLES, PAGE, PRIVATE), 0)
  // The private directory is empty: the fetch faults, the IDT is not there either, and so on to the shutdown.
  assert.is(vcpu.run().reason, 'KVM_EXIT_SHUTDOWN')
  box.done()
})

test('the same, without any memory behind the attribute', async () => {
  const box = await Box.create(SW_PROTECTED)
  const ram = box.memory(0x10000)
  const directory = new Uint8Array(PAGE)
  new DataView(directory.buffer).setUint32(0, 0x83, true)
  ram.write(0, directory)
  assert.is(box.region({ slot: 1, gpa: TABLES, size: PAGE, hva: ram.address }), 0)
  const vcpu = box.guest([...asm.mark(1), ...asm.mark(2)])
  const sregs = vcpu.getSregs()
  const flat = { ...sregs.cs, base: 0n, limit: 0xffffffff, g: 1, db: 1, type: 11 }
  vcpu.setSregs({ ...sregs, cr0: 0x80000011n, cr3: BigInt(TABLES), cr4: 0x10n, cs: flat })
  assert.is(box.out(vcpu), 1)
  assert.is(box.attributes(TABLES, PAGE, PRIVATE), 0)
  box.fault(vcpu, TABLES, PRIVATE)
  assert.is(box.attributes(TABLES, PAGE, 0n), 0)
  assert.is(box.out(vcpu), 2)
  box.done()
})

test('no memory growth', async () => {
  const box = await Box.create(SW_PROTECTED)
  const { kvm } = box
  const ram = box.memory(16 * PAGE)
  const { core } = kvm.kernel
  let before = 0
  for (let i = 0; i < 30; i++) {
    const fd = kvm.ioctl(box.system, REQUEST.KVM_CREATE_VM, SW_PROTECTED)
    assert.ok(fd > 0)
    const inner = Object.assign(Object.create(Object.getPrototypeOf(box)), { kvm, system: box.system, fd }) as Box
    const cap = new Uint8Array(104)
    new DataView(cap.buffer).setUint32(0, 192, true)
    new DataView(cap.buffer).setUint32(8, 65536, true)
    assert.is(inner.ioctl('KVM_ENABLE_CAP', cap), 0)
    const gmem = inner.guestMemfd(16 * PAGE)
    assert.is(kvm.fallocate(gmem, 1, 0, 16 * PAGE), 0)
    assert.is(inner.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: 0, size: 16 * PAGE, hva: ram.address, gmem }), 0)
    for (let page = 0; page < 2000; page += 2) assert.is(inner.attributes(page * PAGE, PAGE, PRIVATE), 0)
    for (let slot = 2; slot < 600; slot++) assert.is(inner.region({ slot, gpa: slot << 20, size: PAGE, hva: ram.address }), 0)
    assert.is(inner.ioctl('KVM_REGISTER_COALESCED_MMIO', new Uint8Array(16)), 0)
    const vcpu = inner.ioctl('KVM_CREATE_VCPU', 0)
    assert.ok(vcpu > 0)
    for (const file of i & 1 ? [vcpu, gmem, fd] : [fd, vcpu, gmem]) assert.is(kvm.close(file), 0)
    if (i === 4) before = core.memory.buffer.byteLength
  }
  assert.is(core.memory.buffer.byteLength, before)
  box.done()
})

test.run()
