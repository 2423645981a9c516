/** coalesced_io_test of the kernel's selftests: writes to zones go to the ring at page 2, a full ring exits. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, type Vcpu } from 'cloister'
import { asm, Box } from './harness.ts'

const MOST = 170
const MMIO = 0x10000
const PORT = 0x80

const zone = (
  box: Box,
  name: 'KVM_REGISTER_COALESCED_MMIO' | 'KVM_UNREGISTER_COALESCED_MMIO',
  address: number,
  size: number,
  pio: number,
): number => {
  const bytes = new Uint8Array(16)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, BigInt(address), true)
  view.setUint32(8, size, true)
  view.setUint32(12, pio, true)
  return box.ioctl(name, bytes)
}

class Ring {
  readonly view: DataView
  constructor(vcpu: Vcpu) {
    this.view = new DataView(vcpu.runView.buffer, vcpu.runView.byteOffset + 8192, 4096)
  }
  take(): { address: bigint; length: number; pio: number; data: bigint }[] {
    const out = []
    let first = this.view.getUint32(0, true)
    while (first !== this.view.getUint32(4, true)) {
      const at = 8 + first * 24
      out.push({
        address: this.view.getBigUint64(at, true),
        length: this.view.getUint32(at + 8, true),
        pio: this.view.getUint32(at + 12, true),
        data: this.view.getBigUint64(at + 16, true),
      })
      first = (first + 1) % MOST
      this.view.setUint32(0, first, true)
    }
    return out
  }
}

test('capabilities, errors', async () => {
  const box = await Box.create()
  assert.is(box.ioctl('KVM_CHECK_EXTENSION', CAP.KVM_CAP_COALESCED_MMIO), 2)
  assert.is(box.ioctl('KVM_CHECK_EXTENSION', CAP.KVM_CAP_COALESCED_PIO), 1)
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', MMIO, 8, 2), -ERRNO.EINVAL)
  assert.is(zone(box, 'KVM_UNREGISTER_COALESCED_MMIO', MMIO, 8, 2), -ERRNO.EINVAL)
  assert.is(zone(box, 'KVM_UNREGISTER_COALESCED_MMIO', MMIO, 8, 0), 0) // nothing there: not an error
  for (let i = 0; i < 1000; i++) assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', MMIO + i * 8, 8, 0), 0)
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', 0, 8, 0), -ERRNO.ENOSPC)
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', PORT, 8, 1), 0)
  box.done()
})

test('memory and ports, in order; what lies across the end of a zone exits', async () => {
  const box = await Box.create()
  const vcpu = box.guest([
    ...asm.ds(MMIO >> 4),
    ...asm.store(0, 0x11),
    ...[0xc7, 0x06, 0x04, 0x00, 0x34, 0x12], // mov word [4], 0x1234
    ...[0xb8, 0x55, 0xaa, 0xe7, PORT], // mov ax, 0xaa55; out 0x80, ax
    ...asm.mark(1),
    ...[0xc7, 0x06, 0x07, 0x00, 0x34, 0x12], // mov word [7]: half of it is outside
    ...asm.mark(2),
    ...asm.store(0, 0x22),
  ])
  const ring = new Ring(vcpu)
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', MMIO, 8, 0), 0)
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', PORT, 2, 1), 0)
  assert.is(box.out(vcpu), 1)
  assert.equal(ring.take(), [
    { address: BigInt(MMIO), length: 1, pio: 0, data: 0x11n },
    { address: BigInt(MMIO + 4), length: 2, pio: 0, data: 0x1234n },
    { address: BigInt(PORT), length: 2, pio: 1, data: 0xaa55n },
  ])
  assert.is(vcpu.run().reason, 'KVM_EXIT_MMIO')
  assert.is(box.out(vcpu), 2)
  assert.equal(ring.take(), [])
  assert.is(zone(box, 'KVM_UNREGISTER_COALESCED_MMIO', MMIO, 8, 0), 0)
  assert.is(vcpu.run().reason, 'KVM_EXIT_MMIO')
  box.done()
})

test('169 entries fit; the next write is an exit, until the ring is emptied through any vCPU', async () => {
  const box = await Box.create()
  const loop = [...asm.ds(MMIO >> 4), 0xb9, 200, 0, 0x88, 0x0e, 0, 0, 0xe2, 0xfa, ...asm.mark(1)] // mov cx, 200; mov [0], cl; loop
  const vcpu = box.guest(loop)
  const other = box.vcpu(1)
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', MMIO, 8, 0), 0)
  const exit = vcpu.run()
  if (exit.reason !== 'KVM_EXIT_MMIO') return assert.unreachable(exit.reason)
  assert.is(exit.data[0], 200 - 169)
  const taken = new Ring(other).take()
  assert.is(taken.length, 169)
  assert.equal(
    taken.map((e) => Number(e.data)),
    Array.from({ length: 169 }, (_, i) => 200 - i),
  )
  assert.is(box.out(vcpu), 1)
  assert.is(new Ring(vcpu).take().length, 30)
  box.done()
})

test('userspace may set both indices', async () => {
  const box = await Box.create()
  const vcpu = box.guest([...asm.ds(MMIO >> 4), ...asm.store(0, 1), ...asm.store(0, 2), ...asm.mark(1)])
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', MMIO, 8, 0), 0)
  const ring = new DataView(vcpu.runBytes.buffer, vcpu.runBytes.byteOffset + 8192, 8)
  ring.setUint32(0, 169, true)
  ring.setUint32(4, 169, true)
  assert.is(box.out(vcpu), 1)
  assert.is(ring.getUint32(4, true), 1)
  assert.is(new Ring(vcpu).take().length, 2)
  box.done()
})

test('a ring that userspace fills with nonsense', async () => {
  const box = await Box.create()
  const vcpu = box.guest([...asm.ds(MMIO >> 4), ...asm.store(0, 1), ...asm.store(0, 2), ...asm.mark(1)])
  assert.is(zone(box, 'KVM_REGISTER_COALESCED_MMIO', MMIO, 8, 0), 0)
  vcpu.runBytes.fill(0xff, 8192, 12288)
  // `last` outside of the ring: every write is an exit (coalesced_mmio_write).
  for (const value of [1, 2]) {
    const exit = vcpu.run()
    assert.is(exit.reason === 'KVM_EXIT_MMIO' && exit.data[0], value)
  }
  assert.is(box.out(vcpu), 1)
  box.done()
})

test.run()
