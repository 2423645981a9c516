/** In the manner of selftests set_memory_region_test: overlap, flags, deleting, moving, many slots; MMIO where no slot is. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm } from 'cloister'
import { realModeGuest, refuses } from './guest.ts'

test('overlaps, flags, alignment', async () => {
  const kvm = await openKvm({ memory: 128 << 20 })
  const vm = kvm.createVm('default')
  const memory = kvm.mmap(-1, 0x40000)
  const set = (slot: number, gpa: number, size: number, flags = 0, offset = 0): void =>
    vm.setUserMemoryRegion({ slot, flags, guestPhysAddr: gpa, memorySize: size, userspaceAddr: memory.address + BigInt(offset) })
  set(0, 0x100000, 0x10000)
  set(1, 0x110000, 0x10000, 0, 0x10000)
  for (const [gpa, size] of [
    [0x100000, 0x1000],
    [0xff000, 0x2000],
    [0x10f000, 0x2000],
    [0x0, 0x200000],
  ] as const)
    refuses('EEXIST', () => set(2, gpa, size), `${gpa.toString(16)}+${size.toString(16)}`)
  refuses('EINVAL', () => set(2, 0x200001, 0x1000), 'address')
  refuses('EINVAL', () => set(2, 0x200000, 0x1001), 'size')
  refuses('EINVAL', () => set(2, 0x200000, 0x1000, 8), 'flag')
  refuses('EINVAL', () => set(0, 0x100000, 0x20000), 'a slot cannot change its size')
  // Moving, deleting, taking the place.
  set(0, 0x300000, 0x10000)
  set(2, 0x100000, 0x1000)
  set(2, 0, 0)
  refuses('EINVAL', () => set(2, 0, 0), 'deleted already')
})

test('two pages of one guest at two places; a hole is MMIO; read-only writes exit', async () => {
  // mov byte [0x3000], 0x5a; mov al, [0x4000]; mov [0x9000], al; hlt
  const { kvm, vm, vcpu, memory } = await realModeGuest([0xc6, 0x06, 0x00, 0x30, 0x5a, 0xa0, 0x00, 0x40, 0xa2, 0x00, 0x90, 0xf4], {
    bytes: 0x3000,
  })
  const page = kvm.mmap(-1, 0x1000)
  // 0x3000 and 0x4000 are the same page; 0x9000 is a hole.
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x3000, memorySize: 0x1000, userspaceAddr: page.address })
  vm.setUserMemoryRegion({ slot: 2, flags: 2, guestPhysAddr: 0x4000, memorySize: 0x1000, userspaceAddr: page.address })
  const exit = vcpu.run()
  assert.is(exit.reason, 'KVM_EXIT_MMIO')
  if (exit.reason !== 'KVM_EXIT_MMIO') return
  assert.equal([exit.physAddr, exit.len, exit.isWrite, exit.data[0]], [0x9000n, 1, true, 0x5a])
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  assert.is(memory.length, 0x3000)
  // A write to a read-only slot.
  page.write(0, Uint8Array.from([0]))
  const sregs = vcpu.getSregs()
  memory.write(0x1000, Uint8Array.from([0xc6, 0x06, 0x00, 0x40, 0x77, 0xf4]))
  vcpu.setSregs(sregs)
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n })
  const write = vcpu.run()
  assert.is(write.reason, 'KVM_EXIT_MMIO')
  assert.is(page.read(0, 1)[0], 0)
})

test('a slot goes away under a running guest', async () => {
  // again: mov al, [0x3000]; out 0x80, al; jmp again
  const { kvm, vm, vcpu } = await realModeGuest([0xa0, 0x00, 0x30, 0xe6, 0x80, 0xeb, 0xf9], { bytes: 0x3000 })
  const page = kvm.mmap(-1, 0x1000)
  page.write(0, Uint8Array.from([0x21]))
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x3000, memorySize: 0x1000, userspaceAddr: page.address })
  const first = vcpu.run()
  assert.ok(first.reason === 'KVM_EXIT_IO' && first.data[0] === 0x21)
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 })
  const gone = vcpu.run()
  assert.ok(gone.reason === 'KVM_EXIT_MMIO' && gone.physAddr === 0x3000n && !gone.isWrite)
})

test.run()
