/** The dirty ring (KVM_CAP_DIRTY_LOG_RING): entries, KVM_RESET_DIRTY_RINGS, KVM_EXIT_DIRTY_RING_FULL. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type KvmError } from 'cloister'
import { asm, Box, FLAG, PAGE } from './harness.ts'

const DATA = 0x100000
const RING = 64 * PAGE
const cap = (box: Box, number: number, size: number): number => {
  const bytes = new Uint8Array(104)
  new DataView(bytes.buffer).setUint32(0, number, true)
  new DataView(bytes.buffer).setBigUint64(8, BigInt(size), true)
  return box.ioctl('KVM_ENABLE_CAP', bytes)
}

test('sizes', async () => {
  const box = await Box.create()
  for (const number of [192, 223]) assert.is(box.ioctl('KVM_CHECK_EXTENSION', number), 1 << 20)
  assert.is(box.ioctl('KVM_CHECK_EXTENSION', 225), 0)
  for (const size of [0, 3000, 2048, 512]) assert.is(cap(box, 192, size), -ERRNO.EINVAL)
  assert.is(cap(box, 192, 1 << 21), -ERRNO.E2BIG)
  assert.is(box.ioctl('KVM_RESET_DIRTY_RINGS', 0), -ERRNO.EINVAL)
  assert.is(cap(box, 223, 4096), 0)
  assert.is(cap(box, 223, 4096), -ERRNO.EINVAL)
  const log = new Uint8Array(24)
  assert.is(box.ioctl('KVM_GET_DIRTY_LOG', log), -ERRNO.ENXIO)
  assert.is(box.ioctl('KVM_CLEAR_DIRTY_LOG', log), -ERRNO.ENXIO)
  assert.is(box.ioctl('KVM_RESET_DIRTY_RINGS', 0), 0)
  box.done()
  const late = await Box.create()
  const vcpu = late.vm.createVcpu(0)
  assert.is(cap(late, 192, 4096), -ERRNO.EINVAL)
  try {
    late.kvm.mmap(vcpu.fd, 4096, RING)
    assert.unreachable()
  } catch (error) {
    assert.is((error as KvmError).errno, -ERRNO.EINVAL)
  }
  late.done()
  const intel = await Box.create(0, { host: 'intel' })
  assert.is(cap(intel, 192, 4096), -ERRNO.EINVAL) // page-modification logging needs 512 entries more
  assert.is(cap(intel, 192, 16384), 0)
  intel.done()
})

for (const flat of [false, true])
  test(`collect, reset, full${flat ? ', by the fast loop' : ''}`, async () => {
    const box = await Box.create()
    assert.is(cap(box, 192, 4096), 0) // 256 entries, 192 of them until KVM_RUN leaves
    const pages = 600
    const ram = box.memory(pages * PAGE)
    assert.is(box.region({ slot: 3, flags: FLAG.LOG_DIRTY, gpa: DATA, size: pages * PAGE, hva: ram.address }), 0)
    const flatCode = [
      ...asm.mark(1),
      ...[0xb0, 1], // mov al, 1
      ...[0xb9, 0x58, 0x02, 0, 0], // mov ecx, 600
      ...[0xbf, 0, 0, 0x10, 0], // mov edi, DATA
      ...[0x88, 0x07], // mov [edi], al
      ...[0x81, 0xc7, 0x00, 0x10, 0, 0], // add edi, 4096
      ...[0x49, 0x75, 0xf5], // dec ecx; jnz
      ...asm.mark(2),
    ]
    const realCode = [
      ...asm.mark(1),
      ...[0x66, 0xb9, 0x58, 0x02, 0, 0], // mov ecx, 600
      ...[0x26, 0x67, 0xfe, 0x07], // inc byte es:[edi]
      ...[0x66, 0x81, 0xc7, 0x00, 0x10, 0, 0], // add edi, 4096
      ...[0x66, 0x49, 0x75, 0xf1], // dec ecx; jnz
      ...asm.mark(2),
    ]
    const vcpu = box.guest(flat ? flatCode : realCode)
    // Flat data segment: base 1 MiB, limit 4 GiB.
    const sregs = vcpu.getSregs()
    if (flat) {
      // 32-bit protected mode, every segment from 0 to 4 GiB.
      vcpu.setRegs({ ...vcpu.getRegs(), rip: vcpu.getRegs().rip + sregs.cs.base })
      const data = { ...sregs.ds, base: 0n, limit: 0xffffffff, g: 1, db: 1, type: 3, s: 1, present: 1, selector: 16 }
      const cs = { ...data, type: 11, selector: 8 }
      vcpu.setSregs({ ...sregs, cr0: 0x11n, cs, ds: data, es: data, ss: data })
    } else vcpu.setSregs({ ...sregs, es: { ...sregs.es, base: BigInt(DATA), limit: 0xffffffff, g: 1 } })
    const ring = box.kvm.mmap(vcpu.fd, 4096, RING).bytes as Uint8Array
    const view = new DataView(ring.buffer, ring.byteOffset, ring.length)
    assert.is(box.out(vcpu), 1)
    let next = 0
    let page = 0
    let full = 0
    const collect = (): number => {
      let n = 0
      for (; ; n++) {
        const at = (next & 255) * 16
        if ((view.getUint32(at, true) & 1) === 0) break
        assert.is(view.getUint32(at + 4, true), 3)
        assert.is(view.getBigUint64(at + 8, true), BigInt(page++))
        view.setUint32(at, 2, true)
        next++
      }
      assert.is(box.ioctl('KVM_RESET_DIRTY_RINGS', 0), n)
      page-- // its store was about to be made when the ring was full, and is protected again: it comes twice
      return n
    }
    for (;;) {
      const exit = vcpu.run({ maxInstructions: 100_000 })
      if (exit.reason !== 'KVM_EXIT_DIRTY_RING_FULL') {
        assert.is(exit.reason, 'KVM_EXIT_IO')
        break
      }
      full++
      assert.is(vcpu.run().reason, 'KVM_EXIT_DIRTY_RING_FULL') // until it is emptied
      assert.is(collect(), 192)
    }
    assert.is(full, 3)
    assert.is(collect(), 600 - 3 * 191)
    for (let i = 0; i < pages; i++) assert.is(ram.read(i * PAGE, 1)[0], 1, `page ${i}`)
    assert.is(collect(), 0)
    box.done()
  })

test('a ring that userspace fills with nonsense', async () => {
  const box = await Box.create()
  assert.is(cap(box, 192, 4096), 0)
  const ram = box.memory(PAGE)
  assert.is(box.region({ slot: 1, flags: FLAG.LOG_DIRTY, gpa: 0x10000, size: PAGE, hva: ram.address }), 0)
  const vcpu = box.guest([...asm.ds(0x1000), ...asm.store(0, 1), ...asm.mark(1), ...asm.store(0, 2), ...asm.mark(2)])
  const ring = box.kvm.mmap(vcpu.fd, 4096, RING).bytes as Uint8Array
  ring.fill(0xff)
  assert.is(box.ioctl('KVM_RESET_DIRTY_RINGS', 0), 256)
  assert.is(vcpu.run().reason, 'KVM_EXIT_DIRTY_RING_FULL')
  box.done()
})

test.run()
