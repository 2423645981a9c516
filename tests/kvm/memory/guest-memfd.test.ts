/** guest_memfd_test of the kernel's selftests: creation, fallocate, mmap, binding. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type KvmError, REQUEST } from 'cloister'
import { asm, Box, FLAG, PAGE, SW_PROTECTED } from './harness.ts'

const KEEP = 1
const PUNCH = 2
const code = (f: () => unknown): number => {
  try {
    f()
    return 0
  } catch (error) {
    return (error as KvmError).errno
  }
}

test('sizes and flags', async () => {
  for (const [type, valid] of [
    [0, 3],
    [SW_PROTECTED, 1],
  ] as const) {
    const box = await Box.create(type)
    assert.is(box.ioctl('KVM_CHECK_EXTENSION', 244), valid)
    for (const size of [0, -PAGE, 1, PAGE - 1, PAGE + 1, 0x7fffffffffffffffn]) assert.is(box.guestMemfd(size), -ERRNO.EINVAL)
    for (let bit = 0n; bit < 64n; bit++) {
      const fd = box.guestMemfd(PAGE, 1n << bit)
      if (bit < 2n && (valid >> Number(bit)) & 1) assert.ok(fd > 0, `flag ${bit}`)
      else assert.is(fd, -ERRNO.EINVAL, `flag ${bit}`)
    }
    box.done()
  }
  const old = await Box.create(0, { linux: '6.12' })
  assert.is(old.guestMemfd(PAGE, 1), -ERRNO.EINVAL)
  assert.is(old.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: 0, size: PAGE, gmem: old.fd }), -ERRNO.EINVAL)
  old.done()
})

test('fallocate', async () => {
  const box = await Box.create(SW_PROTECTED)
  const { kvm } = box
  const fd = box.guestMemfd(4 * PAGE)
  assert.is(kvm.fallocate(fd, KEEP, 0, 4 * PAGE), 0)
  assert.is(kvm.fallocate(fd, KEEP | PUNCH, PAGE, PAGE), 0)
  assert.is(kvm.fallocate(fd, KEEP, 4 * PAGE, PAGE), -ERRNO.EINVAL)
  assert.is(kvm.fallocate(fd, KEEP, 3 * PAGE, 2 * PAGE), -ERRNO.EINVAL)
  assert.is(kvm.fallocate(fd, KEEP | PUNCH, 4 * PAGE, PAGE), 0)
  assert.is(kvm.fallocate(fd, KEEP | PUNCH, 2 * PAGE, 1000 * PAGE), 0)
  assert.is(kvm.fallocate(fd, KEEP, PAGE - 1, PAGE), -ERRNO.EINVAL)
  assert.is(kvm.fallocate(fd, KEEP | PUNCH, 0, PAGE - 1), -ERRNO.EINVAL)
  assert.is(kvm.fallocate(fd, KEEP, 0, 0), -ERRNO.EINVAL)
  assert.is(kvm.fallocate(fd, KEEP, -PAGE, PAGE), -ERRNO.EINVAL)
  assert.is(kvm.fallocate(fd, 0, 0, PAGE), -ERRNO.EOPNOTSUPP)
  assert.is(kvm.fallocate(fd, PUNCH, 0, PAGE), -ERRNO.EOPNOTSUPP)
  assert.is(kvm.fallocate(fd, KEEP | 0x10, 0, PAGE), -ERRNO.EOPNOTSUPP)
  assert.is(kvm.fallocate(fd, KEEP, 0x7ffffffffffff000n, PAGE), -ERRNO.EFBIG)
  assert.is(kvm.fallocate(box.fd, KEEP, 0, PAGE), -ERRNO.ENODEV)
  assert.is(kvm.fallocate(99, KEEP, 0, PAGE), -ERRNO.EBADF)
  assert.is(kvm.read(fd, new Uint8Array(8)), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_RUN, 0), -ERRNO.ENOTTY)
  box.done()
})

test('mmap', async () => {
  const box = await Box.create()
  const { kvm } = box
  assert.is(
    code(() => kvm.mmap(box.guestMemfd(PAGE), PAGE)),
    -ERRNO.ENODEV,
  )
  const hidden = kvm.mmap(box.guestMemfd(PAGE, 1), PAGE)
  assert.throws(() => hidden.read(0, 1), /SIGBUS/)
  assert.throws(() => hidden.write(0, new Uint8Array(1)))
  const fd = box.guestMemfd(2 * PAGE, 3)
  const shared = kvm.mmap(fd, 2 * PAGE)
  shared.write(PAGE, new Uint8Array([7]))
  // The guest uses the same pages, through a slot whose userspace_addr is the mapping or nothing at all.
  for (const hva of [shared.address, 0n]) {
    assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: 0x10000, size: 2 * PAGE, hva, gmem: fd }), 0)
    if (hva === 0n) break
    assert.is(box.region({ slot: 1, gpa: 0x10000, size: 0 }), 0)
  }
  const vcpu = box.guest([...asm.ds(0x1000), ...asm.show(0x1000), ...asm.store(3, 9), ...asm.mark(1)])
  assert.is(box.out(vcpu), 7)
  assert.is(box.out(vcpu), 1)
  assert.is(shared.read(3, 1)[0], 9)
  assert.is(kvm.fallocate(fd, KEEP | PUNCH, 0, PAGE), 0)
  assert.is(shared.read(3, 1)[0], 0)
  assert.is(kvm.close(fd), 0)
  assert.is(shared.read(PAGE, 1)[0], 7) // the mapping holds the file
  kvm.munmap(shared)
  box.done()
})

test('binding', async () => {
  const box = await Box.create(SW_PROTECTED)
  const other = box.kvm.ioctl(box.system, REQUEST.KVM_CREATE_VM, SW_PROTECTED)
  const gmem = box.guestMemfd(4 * PAGE)
  const bind = (more: object): number => box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: 0x10000, size: 2 * PAGE, gmem, ...more })
  assert.is(bind({ gmem: 99 }), -ERRNO.EBADF)
  assert.is(bind({ gmem: box.fd }), -ERRNO.EINVAL)
  const request = new Uint8Array(64)
  new DataView(request.buffer).setBigUint64(0, 4096n, true)
  assert.is(bind({ gmem: box.kvm.ioctl(other, REQUEST.KVM_CREATE_GUEST_MEMFD, request) }), -ERRNO.EINVAL)
  assert.is(bind({ offset: 1 }), -ERRNO.EINVAL)
  assert.is(bind({ offset: -PAGE }), -ERRNO.EINVAL)
  assert.is(bind({ offset: 3 * PAGE }), -ERRNO.EINVAL)
  for (const flags of [FLAG.LOG_DIRTY, FLAG.READONLY]) assert.is(bind({ flags: FLAG.GUEST_MEMFD | flags }), -ERRNO.EINVAL)
  assert.is(bind({}), 0)
  assert.is(bind({}), -ERRNO.EINVAL) // immutable
  assert.is(bind({ gpa: 0x20000 }), -ERRNO.EINVAL)
  assert.is(bind({ flags: 0 }), -ERRNO.EINVAL)
  assert.is(bind({ slot: 2, gpa: 0x20000, offset: PAGE }), -ERRNO.EEXIST)
  assert.is(bind({ slot: 2, gpa: 0x20000, offset: 2 * PAGE }), 0)
  assert.is(bind({ slot: 2, size: 0 }), 0)
  assert.is(bind({ slot: 2, gpa: 0x20000, offset: 2 * PAGE }), 0)
  assert.is(box.region({ slot: 3, flags: FLAG.GUEST_MEMFD, gpa: 0x30000, size: PAGE, gmem }, false), -ERRNO.EINVAL)
  box.done()
})

test('it outlives its VM, and frees what it held', async () => {
  const box = await Box.create(SW_PROTECTED)
  const gmem = box.guestMemfd(4 * PAGE)
  assert.is(box.region({ slot: 1, flags: FLAG.GUEST_MEMFD, gpa: 0, size: 4 * PAGE, gmem }), 0)
  assert.is(box.kvm.close(box.fd), 0)
  assert.is(box.kvm.fallocate(gmem, KEEP, 0, PAGE), 0)
  assert.is(box.kvm.close(gmem), 0)
  box.done()
})

test.run()
