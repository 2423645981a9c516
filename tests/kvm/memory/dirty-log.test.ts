/** dirty_log_test of the kernel's selftests: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, manual protection. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO } from 'cloister'
import { asm, Box, FLAG, PAGE } from './harness.ts'

const DATA = 0x10000

async function prepare(pages: number, code: readonly number[], manual = 0n) {
  const box = await Box.create()
  if (manual !== 0n) assert.is(box.vm.enableCap('KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2', [manual]), 0)
  const ram = box.memory(pages * PAGE)
  const slot = { slot: 1, flags: FLAG.LOG_DIRTY, gpa: DATA, size: pages * PAGE, hva: ram.address }
  assert.is(box.region(slot), 0)
  const bits = box.memory(PAGE)
  const get = (number = 1): number => {
    const bytes = new Uint8Array(16)
    new DataView(bytes.buffer).setUint32(0, number, true)
    new DataView(bytes.buffer).setBigUint64(8, bits.address, true)
    return box.ioctl('KVM_GET_DIRTY_LOG', bytes)
  }
  const word = (at = 0): bigint => new DataView(bits.read(at * 8, 8).buffer).getBigUint64(0, true)
  const clear = (first: bigint, count: number, value: bigint, number = 1): number => {
    bits.write(0, new Uint8Array(new BigUint64Array([value]).buffer))
    const bytes = new Uint8Array(24)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, number, true)
    view.setUint32(4, count, true)
    view.setBigUint64(8, first, true)
    view.setBigUint64(16, bits.address, true)
    return box.ioctl('KVM_CLEAR_DIRTY_LOG', bytes)
  }
  return { box, ram, slot, bits, get, word, clear, vcpu: box.guest(code) }
}

const touches = [
  ...asm.ds(0x1000),
  ...asm.store(0x1000, 1),
  ...asm.store(0x3000, 1),
  ...asm.mark(1),
  ...asm.store(0x1000, 2),
  ...asm.mark(2),
]

test('GET reads and clears; a page written again is dirty again', async () => {
  const { box, get, word, vcpu } = await prepare(16, touches)
  assert.is(get(), 0)
  assert.is(word(), 0n)
  assert.is(box.out(vcpu), 1)
  assert.is(get(), 0)
  assert.is(word(), 0b1010n)
  assert.is(get(), 0)
  assert.is(word(), 0n)
  assert.is(box.out(vcpu), 2)
  assert.is(get(), 0)
  assert.is(word(), 0b10n)
  box.done()
})

test('manual protection: GET clears nothing, CLEAR what it is told', async () => {
  const { box, get, word, clear, vcpu } = await prepare(16, touches, 1n)
  assert.is(box.out(vcpu), 1)
  for (let i = 0; i < 2; i++) {
    assert.is(get(), 0)
    assert.is(word(), 0b1010n)
  }
  assert.is(clear(0n, 16, 0b0010n), 0)
  assert.is(get(), 0)
  assert.is(word(), 0b1000n)
  assert.is(box.out(vcpu), 2)
  assert.is(get(), 0)
  assert.is(word(), 0b1010n)
  box.done()
})

test('initially set: all pages of the slot, no bit beyond', async () => {
  const { box, get, word, clear, vcpu } = await prepare(11, touches, 3n)
  assert.is(get(), 0)
  assert.is(word(), 0x7ffn)
  assert.is(clear(0n, 11, 0x7ffn), 0)
  assert.is(box.out(vcpu), 1)
  assert.is(get(), 0)
  assert.is(word(), 0b1010n)
  box.done()
})

test('CLEAR works without manual protection, and its checks come in order', async () => {
  const { box, get, word, clear, vcpu } = await prepare(200, touches)
  assert.is(box.out(vcpu), 1)
  assert.is(clear(0n, 64, 2n), 0)
  assert.is(get(), 0)
  assert.is(word(), 0b1000n)
  assert.is(clear(1n, 64, 0n), -ERRNO.EINVAL)
  assert.is(clear(256n, 0, 0n), -ERRNO.EINVAL)
  assert.is(clear(192n, 9, 0n), -ERRNO.EINVAL)
  assert.is(clear(128n, 63, 0n), -ERRNO.EINVAL)
  assert.is(clear(192n, 8, 0n), 0)
  assert.is(clear(0n, 0, 0n), 0)
  assert.is(clear(0n, 64, 0n, 0), -ERRNO.ENOENT) // does not log
  assert.is(clear(0n, 64, 0n, 9), -ERRNO.ENOENT)
  assert.is(clear(1n, 64, 0n, 9), -ERRNO.EINVAL)
  assert.is(clear(0n, 64, 0n, 0x20000), -ERRNO.EINVAL)
  assert.is(get(0), -ERRNO.ENOENT)
  assert.is(get(40000), -ERRNO.EINVAL)
  box.done()
})

test('the log survives a move, and ends with the flag', async () => {
  const { box, slot, get, word, vcpu } = await prepare(16, touches)
  assert.is(box.out(vcpu), 1)
  assert.is(box.region({ ...slot, gpa: 0x100000 }), 0)
  assert.is(get(), 0)
  assert.is(word(), 0b1010n)
  assert.is(box.region({ ...slot, gpa: 0x100000, flags: 0 }), 0)
  assert.is(get(), -ERRNO.ENOENT)
  assert.is(box.region({ ...slot, gpa: 0x100000 }), 0)
  assert.is(get(), 0)
  assert.is(word(), 0n)
  box.done()
})

test('the options of the capability', async () => {
  const box = await Box.create()
  const set = (value: bigint): number => {
    const bytes = new Uint8Array(104)
    new DataView(bytes.buffer).setUint32(0, 168, true)
    new DataView(bytes.buffer).setBigUint64(8, value, true)
    return box.ioctl('KVM_ENABLE_CAP', bytes)
  }
  assert.is(box.ioctl('KVM_CHECK_EXTENSION', 168), 3)
  for (const good of [0n, 1n, 3n]) assert.is(set(good), 0)
  for (const bad of [2n, 4n, 5n, 1n << 63n]) assert.is(set(bad), -ERRNO.EINVAL)
  box.done()
})

test.run()
