/** irqfd, ioeventfd, split irqchip and routing, seen by a guest (virt/kvm/eventfd.c, arch/x86/kvm/irq.c). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, type Kvm, openKvm, REQUEST, type Vcpu, type Vm } from 'cloister'

/** A real-mode guest at 0x1000 with one page of vectors, memory of 64 KiB. */
async function boot(code: readonly number[], chip: 'none' | 'full' | 'split', handlers: Record<number, readonly number[]> = {}) {
  const kvm = await openKvm({ memory: 128 << 20 })
  const vm = kvm.createVm('default')
  if (chip === 'full') vm.createIrqchip()
  if (chip === 'split') vm.enableCap('KVM_CAP_SPLIT_IRQCHIP', [24])
  const memory = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000, userspaceAddr: memory.address })
  memory.write(0x1000, new Uint8Array(code))
  let at = 0x3000
  for (const [vector, handler] of Object.entries(handlers)) {
    memory.write(Number(vector) * 4, new Uint8Array([at & 0xff, at >> 8, 0, 0]))
    memory.write(at, new Uint8Array(handler))
    at += 0x100
  }
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid2(kvm.supportedCpuid())
  const sregs = vcpu.getSregs()
  sregs.cs.base = 0n
  sregs.cs.selector = 0
  vcpu.setSregs(sregs)
  const regs = vcpu.getRegs()
  regs.rip = 0x1000n
  regs.rsp = 0x8000n
  regs.rflags = 2n
  vcpu.setRegs(regs)
  return { kvm, vm, vcpu, memory }
}

function ioeventfd(
  kvm: Kvm,
  vm: Vm,
  o: { fd: number; address: bigint; length: number; data?: bigint; flags?: number; deassign?: boolean },
): number {
  const bytes = new Uint8Array(64)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, o.data ?? 0n, true)
  view.setBigUint64(8, o.address, true)
  view.setUint32(16, o.length, true)
  view.setInt32(20, o.fd, true)
  view.setUint32(24, (o.flags ?? 0) | (o.data === undefined ? 0 : 1) | (o.deassign ? 4 : 0), true)
  return kvm.ioctl(vm.fd, REQUEST.KVM_IOEVENTFD, bytes)
}

function irqfd(kvm: Kvm, vm: Vm, fd: number, gsi: number, flags = 0, resample = 0): number {
  const bytes = new Uint8Array(32)
  const view = new DataView(bytes.buffer)
  for (const [i, value] of [fd, gsi, flags, resample].entries()) view.setUint32(i * 4, value, true)
  return kvm.ioctl(vm.fd, REQUEST.KVM_IRQFD, bytes)
}

function take(kvm: Kvm, fd: number): bigint | null {
  const bytes = new Uint8Array(8)
  return kvm.read(fd, bytes) === 8 ? new DataView(bytes.buffer).getBigUint64(0, true) : null
}

function put(kvm: Kvm, fd: number, n = 1n): void {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, n, true)
  assert.is(kvm.write(fd, bytes), 8)
}

/** out 0x50, al=7; out 0x50, ax; mov [0x9...]; hlt. Without slots above 64 KiB real mode reaches MMIO at 0x100010 by ffff:20. */
const DOORBELLS = [
  ...[0xb8, 0x07, 0x00], // mov ax, 7
  ...[0xe6, 0x50], // out 0x50, al
  ...[0xe7, 0x50], // out 0x50, ax
  ...[0xb0, 0x08, 0xe6, 0x50], // mov al, 8; out 0x50, al
  ...[0xb9, 0xff, 0xff, 0x8e, 0xd9], // mov cx, 0xffff; mov ds, cx
  ...[0xa3, 0x20, 0x00], // mov [0x20], ax -> GPA 0x100010
  ...[0xa2, 0x20, 0x00], // mov [0x20], al
  ...[0xf4],
]

test('ioeventfd: datamatch, lengths and MMIO without an exit', async () => {
  const { kvm, vm, vcpu } = await boot(DOORBELLS, 'none')
  const [match, word, wild] = [kvm.eventfd(), kvm.eventfd(), kvm.eventfd()] as [number, number, number]
  const PIO = 2
  assert.is(ioeventfd(kvm, vm, { fd: match, address: 0x50n, length: 1, data: 7n, flags: PIO }), 0)
  assert.is(ioeventfd(kvm, vm, { fd: word, address: 0x50n, length: 2, flags: PIO }), 0)
  assert.is(ioeventfd(kvm, vm, { fd: wild, address: 0x100010n, length: 0 }), 0)
  const exit = vcpu.run({ maxInstructions: 1000 })
  // Only the byte that matches nothing leaves.
  assert.is(exit.reason, 'KVM_EXIT_IO')
  if (exit.reason === 'KVM_EXIT_IO') assert.equal([exit.port, exit.size, exit.data[0]], [0x50, 1, 8])
  assert.is(vcpu.run({ maxInstructions: 1000 }).reason, 'KVM_EXIT_HLT')
  assert.equal([take(kvm, match), take(kvm, word), take(kvm, wild)], [1n, 1n, 2n])
  assert.is(take(kvm, wild), null)
  assert.is(vm.checkExtension(CAP.KVM_CAP_IOEVENTFD), 1)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('ioeventfd: errnos', async () => {
  const { kvm, vm } = await boot([0xf4], 'none')
  const fd = kvm.eventfd()
  const one = (o: Partial<Parameters<typeof ioeventfd>[2]>): number => ioeventfd(kvm, vm, { fd, address: 0x1000n, length: 4, ...o })
  assert.is(one({ length: 3 }), -ERRNO.EINVAL)
  assert.is(one({ flags: 32 }), -ERRNO.EINVAL)
  assert.is(one({ length: 0, data: 1n }), -ERRNO.EINVAL)
  assert.is(one({ address: (1n << 64n) - 1n }), -ERRNO.EINVAL)
  assert.is(one({ fd: 99 }), -ERRNO.EBADF)
  assert.is(one({ fd: vm.fd }), -ERRNO.EINVAL)
  assert.is(one({ data: 5n }), 0)
  assert.is(one({ data: 5n }), -ERRNO.EEXIST)
  assert.is(one({}), -ERRNO.EEXIST)
  assert.is(one({ length: 0 }), -ERRNO.EEXIST)
  assert.is(one({ data: 6n }), 0)
  assert.is(one({ length: 2 }), 0)
  assert.is(one({ data: 7n, deassign: true }), -ERRNO.ENOENT)
  assert.is(one({ data: 5n, deassign: true }), 0)
  assert.is(one({ data: 5n, deassign: true }), -ERRNO.ENOENT)
  assert.is(one({ data: 5n }), 0)
})

/** sti; hlt; jmp $-1 */
const IDLE = [0xfb, 0xf4, 0xeb, 0xfd]

test('irqfd raises an edge, and an ioeventfd may drive it', async () => {
  // out 0x60 rings, the interrupt of the PIC (vector 8 + 4) reports by port 0x61.
  const pic = [0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, 0xb0, 0x00, 0xe6, 0x21]
  const handler = [0xb0, 0x20, 0xe6, 0x20, 0xe6, 0x62, 0xcf]
  const { kvm, vm, vcpu } = await boot([...pic, 0xe6, 0x60, ...IDLE], 'full', { 12: handler })
  const fd = kvm.eventfd()
  assert.is(ioeventfd(kvm, vm, { fd, address: 0x60n, length: 1, flags: 2 }), 0)
  assert.is(irqfd(kvm, vm, fd, 4), 0)
  assert.is(irqfd(kvm, vm, fd, 5), -ERRNO.EBUSY)
  const exit = vcpu.run({ maxInstructions: 10000 })
  assert.is(exit.reason, 'KVM_EXIT_IO')
  if (exit.reason === 'KVM_EXIT_IO') assert.is(exit.port, 0x62)
  put(kvm, fd)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_IO')
  assert.is(irqfd(kvm, vm, fd, 4, 1), 0)
  put(kvm, fd)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_INTR')
  assert.is(take(kvm, fd), 1n)
  assert.is(irqfd(kvm, vm, fd, 4, 8), -ERRNO.EINVAL)
  assert.is(irqfd(kvm, vm, 77, 4), -ERRNO.EBADF)
  assert.equal(kvm.kernel.internalErrors, [])
})

/** Real-mode access to 0xfec00000 and 0xfee00000 needs 32-bit addresses beyond 64 KiB: unreal limits are set by SET_SREGS. */
function flat(vcpu: Vcpu): void {
  const sregs = vcpu.getSregs()
  for (const name of ['ds', 'es', 'ss'] as const) {
    sregs[name].limit = 0xffffffff
    sregs[name].g = 1
  }
  vcpu.setSregs(sregs)
}

/** mov dword [addr], value with 32-bit address and operand. */
const store = (address: number, value: number): number[] => {
  const le = (n: number): number[] => [n & 0xff, (n >>> 8) & 0xff, (n >>> 16) & 0xff, n >>> 24]
  return [0x66, 0x67, 0xc7, 0x05, ...le(address), ...le(value)]
}
const IOAPIC = 0xfec00000
const LAPIC = 0xfee00000
const EOI = store(LAPIC + 0xb0, 0)

test('a resampling irqfd stays high until the EOI, which tells resamplefd', async () => {
  // Pin 20: vector 0x40, level-triggered.
  const setup = [...store(LAPIC + 0xf0, 0x1ff), ...store(IOAPIC, 0x10 + 40), ...store(IOAPIC + 0x10, 0x8040)]
  const { kvm, vm, vcpu } = await boot([...setup, ...IDLE], 'full', { 0x40: [0xe6, 0x62, ...EOI, 0xcf] })
  flat(vcpu)
  const [fd, resample] = [kvm.eventfd(), kvm.eventfd()] as [number, number]
  assert.is(irqfd(kvm, vm, fd, 20, 2, 99), -ERRNO.EBADF)
  assert.is(irqfd(kvm, vm, fd, 20, 2, resample), 0)
  // Raised while the pin is masked: unmasking does not deliver, it asks the owner (ioapic.c, kvm_notify_irqfd_resampler).
  put(kvm, fd)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_INTR')
  assert.is(take(kvm, resample), 1n)
  put(kvm, fd)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_IO')
  assert.is(take(kvm, resample), null, 'not before the EOI')
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_INTR')
  assert.is(take(kvm, resample), 1n)
  put(kvm, fd)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_IO')
  assert.equal(kvm.kernel.internalErrors, [])
})

test('split irqchip: routes to chips refused, MSI routes delivered, EOI of a reserved level route exits', async () => {
  const { kvm, vm, vcpu } = await boot([...store(LAPIC + 0xf0, 0x1ff), ...IDLE], 'split', { 0x41: [0xe6, 0x62, ...EOI, 0xcf] })
  flat(vcpu)
  const routing = (entries: readonly (readonly number[])[]): number => {
    const bytes = new Uint8Array(8 + entries.length * 48)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, entries.length, true)
    entries.forEach((entry, i) => {
      entry.forEach((value, j) => view.setUint32(8 + i * 48 + [0, 4, 8, 16, 20, 24][j]!, value, true))
    })
    return kvm.ioctl(vm.fd, REQUEST.KVM_SET_GSI_ROUTING, bytes)
  }
  assert.is(routing([[5, 1, 0, 2, 5]]), -ERRNO.EINVAL)
  assert.is(routing([[5, 2, 2, LAPIC, 0, 0x41]]), -ERRNO.EINVAL, 'flags')
  assert.is(routing([[4096, 2, 0, LAPIC, 0, 0x41]]), -ERRNO.EINVAL, 'GSI')
  assert.is(
    routing([
      [5, 2, 0, LAPIC, 0, 0x41],
      [5, 2, 0, LAPIC, 0, 0x42],
    ]),
    -ERRNO.EINVAL,
    'twice',
  )
  const many = Array.from({ length: 3000 }, (_, i) => [i + 40, 2, 0, LAPIC, 0, 0x41])
  assert.is(routing([[5, 2, 0, LAPIC, 0, 0x8041], ...many]), 0)
  const fd = kvm.eventfd()
  assert.is(irqfd(kvm, vm, fd, 5, 2, fd), -ERRNO.EINVAL, 'RESAMPLE needs the full irqchip')
  assert.is(irqfd(kvm, vm, fd, 3000), 0)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_INTR', 'halted with its APIC on')
  put(kvm, fd)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_IO')
  // The vector belongs to the level route of GSI 5 as well, so the EOI is userspace's business.
  const eoi = vcpu.run({ maxInstructions: 10000 })
  assert.is(eoi.reason, 'KVM_EXIT_IOAPIC_EOI')
  if (eoi.reason === 'KVM_EXIT_IOAPIC_EOI') assert.is(eoi.vector, 0x41)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_INTR')
  vm.irqLine(5, 1)
  assert.is(vcpu.run({ maxInstructions: 10000 }).reason, 'KVM_EXIT_IO')
  assert.equal(kvm.kernel.internalErrors, [])
})

test.run()
