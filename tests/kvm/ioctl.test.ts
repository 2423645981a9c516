/** The raw ioctl layer: file descriptors, dispatch, order of errors, memory slots, register sets. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, type Kvm, KvmError, openKvm, REQUEST } from 'cloister'
import { changedStructs, enabledCaps } from '../vectors/kvm-ordinary.ts'

const open = (options: Parameters<typeof openKvm>[0] = {}): Promise<Kvm> => openKvm({ memory: 256 << 20, ...options })

function region(slot: number, flags: number, gpa: bigint, size: bigint, address: bigint): Uint8Array {
  const bytes = new Uint8Array(32)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, slot, true)
  view.setUint32(4, flags, true)
  view.setBigUint64(8, gpa, true)
  view.setBigUint64(16, size, true)
  view.setBigUint64(24, address, true)
  return bytes
}

test('system file descriptor', async () => {
  const kvm = await open()
  const fd = kvm.open('/dev/kvm')
  assert.ok(fd >= 3)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_API_VERSION, 0), 12)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_API_VERSION, 1), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_VCPU_MMAP_SIZE, 0), 12288)
  assert.is(kvm.ioctl(fd, 0xae99, 0), -ERRNO.EINVAL)
  for (const type of [5, 6, 99, -1]) assert.is(kvm.ioctl(fd, REQUEST.KVM_CREATE_VM, type), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_CHECK_EXTENSION, CAP.KVM_CAP_VM_TYPES), 0b11111)
  assert.is(kvm.ioctl(99, REQUEST.KVM_GET_API_VERSION, 0), -ERRNO.EBADF)
  assert.is(kvm.close(fd), 0)
  assert.is(kvm.close(fd), -ERRNO.EBADF)
  assert.is(kvm.open('/dev/null'), -ERRNO.ENOENT)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('hosts offer their own VM types', async () => {
  const intel = await open({ host: 'intel' })
  assert.is(intel.checkExtension('KVM_CAP_VM_TYPES'), 0b100011)
  assert.is(intel.open('/dev/sev'), -ERRNO.ENOENT)
  const old = await open({ host: 'intel', linux: '6.12' })
  assert.is(old.checkExtension('KVM_CAP_VM_TYPES'), 3)
})

test('supported CPUID: room, content', async () => {
  const kvm = await open()
  const fd = kvm.open('/dev/kvm')
  const small = new Uint8Array(8 + 40)
  new DataView(small.buffer).setUint32(0, 1, true)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_SUPPORTED_CPUID, small), -ERRNO.E2BIG)
  const lie = new Uint8Array(8)
  new DataView(lie.buffer).setUint32(0, 200, true)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_SUPPORTED_CPUID, lie), -ERRNO.EFAULT)
  const leaf = kvm.supportedCpuid().find((e) => e.function === 0x8000001f)
  assert.is((leaf?.ebx ?? 0) & 63, 51)
})

test("memory slots: checks in the kernel's order", async () => {
  const kvm = await open()
  const vm = kvm.createVm('default')
  const memory = kvm.mmap(-1, 1 << 20)
  const set = (slot: number, flags: number, gpa: bigint, size: bigint, address: bigint): number =>
    kvm.ioctl(vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, region(slot, flags, gpa, size, address))
  assert.is(set(0, 4, 0n, 0x1000n, memory.address), -ERRNO.EINVAL)
  assert.is(set(0, 0, 0n, 0x1001n, memory.address), -ERRNO.EINVAL)
  assert.is(set(0, 0, 1n, 0x1000n, memory.address), -ERRNO.EINVAL)
  assert.is(set(0, 0, 0n, 0x1000n, memory.address + 1n), -ERRNO.EINVAL)
  assert.is(set(0x7fff, 0, 0n, 0x1000n, memory.address), -ERRNO.EINVAL)
  assert.is(set(0, 0, 0n, 0x1000n, 0x1000n), -ERRNO.EFAULT)
  assert.is(set(0, 0, 0n, 0x200000n, memory.address), -ERRNO.EFAULT)
  assert.is(set(0, 0, 0n, 0n, memory.address), -ERRNO.EINVAL)
  assert.is(set(0, 0, 0n, 0x10000n, memory.address), 0)
  assert.is(set(0, 0, 0n, 0x10000n, memory.address), 0)
  assert.is(set(1, 0, 0xf000n, 0x10000n, memory.address), -ERRNO.EEXIST)
  assert.is(set(0, 0, 0n, 0x8000n, memory.address), -ERRNO.EINVAL)
  assert.is(set(0, 0, 0x100000n, 0x10000n, memory.address), 0)
  assert.is(set(0, 0, 0n, 0n, 0n), 0)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, new Uint8Array(31)), -ERRNO.EFAULT)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, 0), -ERRNO.EFAULT)
  assert.is(kvm.ioctl(vm.fd, 0xae99), -ERRNO.ENOTTY)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('read-only slots are refused for types with protected state', async () => {
  const kvm = await open()
  const memory = kvm.mmap(-1, 0x1000)
  for (const [type, want] of [
    ['default', 0],
    ['sev', 0],
    ['sev-es', -ERRNO.EINVAL],
    ['snp', -ERRNO.EINVAL],
    ['sev-es-legacy', 0],
  ] as const) {
    const vm = kvm.createVm(type)
    if (type === 'sev-es-legacy') vm.sevInit()
    assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, region(0, 2, 0n, 0x1000n, memory.address)), want, type)
    if (want < 0) assert.is(kvm.lastRefusal()?.switch, 'has_protected_state')
    assert.is(vm.checkExtension('KVM_CAP_READONLY_MEM'), want === 0 ? 1 : 0)
  }
  assert.equal(kvm.kernel.internalErrors, [])
})

test('vCPUs: ids, registers, mapping', async () => {
  const kvm = await open()
  const vm = kvm.createVm('default')
  const vcpu = vm.createVcpu(0)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 0), -ERRNO.EEXIST)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 4096), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_IRQCHIP, 0), -ERRNO.EINVAL)
  const regs = vcpu.getRegs()
  assert.is(regs.rip, 0xfff0n)
  assert.is(regs.rflags, 2n)
  vcpu.setRegs({ ...regs, rax: 0x1122334455667788n, r15: 15n, rflags: 0x246n })
  const again = vcpu.getRegs()
  assert.is(again.rax, 0x1122334455667788n)
  assert.is(again.r15, 15n)
  assert.is(again.rflags, 0x246n)
  const sregs = vcpu.getSregs()
  assert.is(sregs.cs.selector, 0xf000)
  assert.is(sregs.cs.base, 0xffff0000n)
  assert.is(sregs.cr0, 0x60000010n)
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0x1000n, selector: 0x100 } })
  assert.is(vcpu.getSregs().cs.base, 0x1000n)
  assert.throws(
    () => vcpu.setSregs({ ...sregs, cr0: 0x80000000n }),
    (e: unknown) => e instanceof KvmError && e.code === 'EINVAL',
  )
  const mapping = kvm.mmap(vcpu.fd, 12288)
  assert.is(mapping.length, 12288)
  assert.ok(mapping.bytes)
  assert.is(kvm.ioctl(vcpu.fd, 0xae99), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_RUN, 1), -ERRNO.EINVAL)
  // Pointers into mappings serve as struct arguments.
  const memory = kvm.mmap(-1, 4096)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, memory.address + 8n), 0)
  assert.is(new DataView(memory.read(8, 8).buffer).getBigUint64(0, true), 0x1122334455667788n)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, memory.address + 4000n), -ERRNO.EFAULT)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('FPU, XSAVE, debug registers, XCRs and events round trip', async () => {
  const kvm = await open()
  const vcpu = kvm.createVm('default').createVcpu(0)
  const xsave = vcpu.get('KVM_GET_XSAVE')
  const view = new DataView(xsave.buffer)
  assert.is(view.getUint16(0, true), 0x37f)
  assert.is(view.getUint32(24, true), 0x1f80)
  view.setUint16(0, 0x27f, true)
  xsave[160] = 0xab
  view.setBigUint64(512, 3n, true)
  vcpu.set('KVM_SET_XSAVE', xsave)
  const fpu = vcpu.get('KVM_GET_FPU')
  assert.is(new DataView(fpu.buffer).getUint16(128, true), 0x27f)
  assert.is(fpu[152], 0xab)
  view.setUint32(24, 0xffffffff, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_XSAVE, xsave), -ERRNO.EINVAL)
  const debug = vcpu.get('KVM_GET_DEBUGREGS')
  assert.is(new DataView(debug.buffer).getBigUint64(40, true), 0x400n)
  new DataView(debug.buffer).setBigUint64(40, 1n << 32n, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_DEBUGREGS, debug), -ERRNO.EINVAL)
  const xcrs = vcpu.get('KVM_GET_XCRS')
  assert.is(new DataView(xcrs.buffer).getBigUint64(16, true), 1n)
  vcpu.set('KVM_SET_XCRS', xcrs)
  const events = vcpu.get('KVM_GET_VCPU_EVENTS')
  assert.is(new DataView(events.buffer).getUint32(20, true), 13)
  vcpu.set('KVM_SET_VCPU_EVENTS', events)
  new DataView(events.buffer).setUint32(20, 0x40, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_VCPU_EVENTS, events), -ERRNO.EINVAL)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('interrupt requests depend on the irqchip', async () => {
  const kvm = await open()
  const bare = kvm.createVm('default').createVcpu(0)
  const irq = new Uint8Array(4)
  assert.is(kvm.ioctl(bare.fd, REQUEST.KVM_INTERRUPT, irq), 0)
  assert.is(kvm.ioctl(bare.fd, REQUEST.KVM_INTERRUPT, Uint8Array.of(0, 1, 0, 0)), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(bare.fd, REQUEST.KVM_GET_LAPIC, new Uint8Array(1024)), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(bare.fd, REQUEST.KVM_SET_MP_STATE, Uint8Array.of(3, 0, 0, 0)), -ERRNO.EINVAL)
  const vm = kvm.createVm('default')
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_IRQ_LINE, new Uint8Array(8)), -ERRNO.ENXIO)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_PIT2, new Uint8Array(64)), -ERRNO.ENOENT)
  vm.createIrqchip()
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_IRQCHIP, 0), -ERRNO.EEXIST)
  vm.createPit2()
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_PIT2, new Uint8Array(64)), -ERRNO.EEXIST)
  const full = vm.createVcpu(0)
  assert.is(kvm.ioctl(full.fd, REQUEST.KVM_INTERRUPT, irq), -ERRNO.ENXIO)
  assert.is(full.get('KVM_GET_LAPIC').length, 1024)
  assert.is(full.getMpState(), 0)
  const split = kvm.createVm('default')
  split.enableCap('KVM_CAP_SPLIT_IRQCHIP', [24])
  assert.is(kvm.ioctl(split.fd, REQUEST.KVM_CREATE_IRQCHIP, 0), -ERRNO.EEXIST)
  const half = split.createVcpu(0)
  assert.is(kvm.ioctl(half.fd, REQUEST.KVM_INTERRUPT, Uint8Array.of(33, 0, 0, 0)), 0)
  assert.is(kvm.ioctl(half.fd, REQUEST.KVM_INTERRUPT, Uint8Array.of(34, 0, 0, 0)), -ERRNO.EEXIST)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('MSRs stop at the first unknown one', async () => {
  const kvm = await open()
  const vcpu = kvm.createVm('default').createVcpu(0)
  assert.is(vcpu.getMsrs([0xc0000080, 0x10]).length, 2)
  assert.is(vcpu.getMsrs([0xc0000080, 0xdead, 0x10]).length, 1)
  assert.is(vcpu.setMsrs([{ index: 0xc0000081, value: 5n }]), 1)
  assert.is(vcpu.getMsrs([0xc0000081])[0]?.value, 5n)
  const many = new Uint8Array(8)
  new DataView(many.buffer).setUint32(0, 256, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_MSRS, many), -ERRNO.E2BIG)
  new DataView(many.buffer).setUint32(0, 2, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_MSRS, many), -ERRNO.EFAULT)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('changed register structures are answered as a real KVM answers them', async () => {
  // The recorded one did not yet hold CR4 and EFER against CPUID before KVM_SET_CPUID2, as 7.3 does.
  const kvm = await open({ linux: '6.12' })
  const vm = kvm.createVm('default')
  vm.createIrqchip()
  const vcpu = vm.createVcpu(0)
  const fresh = new Map<string, Uint8Array>()
  for (const [name, changes, result] of changedStructs) {
    const set = name as keyof typeof REQUEST
    const get = name.replace('SET', 'GET') as keyof typeof REQUEST
    const size = (REQUEST[get] >>> 16) & 0x3fff
    const original = fresh.get(name) ?? new Uint8Array(size)
    if (!fresh.has(name)) assert.is(kvm.ioctl(vcpu.fd, REQUEST[get], original), 0)
    // The recorded CPU reported every component in its initial state; here x87 and SSE always count as in use.
    if (name === 'KVM_SET_XSAVE') original.fill(0, 512, 520)
    fresh.set(name, original)
    const bytes = Uint8Array.from(original)
    for (const [offset, hex] of changes) bytes.set(Buffer.from(hex, 'hex'), offset)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST[set], bytes), result, `${name} ${JSON.stringify(changes)}: ${kvm.lastRefusal()?.reason}`)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST[set], original), 0, name)
  }
  for (const [cap, argument] of enabledCaps) {
    const bytes = new Uint8Array(104)
    new DataView(bytes.buffer).setUint32(0, cap, true)
    new DataView(bytes.buffer).setBigUint64(8, BigInt(argument), true)
    assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_ENABLE_CAP, bytes), 0, String(cap))
  }
  assert.equal(kvm.kernel.internalErrors, [])
})

test('injected exceptions and NMIs reach the guest; an SMI without memory for its save area kills the VM', async () => {
  const kvm = await open()
  const vm = kvm.createVm('default')
  const memory = kvm.mmap(-1, 0x10000)
  // Vectors 2 and 6 of the real-mode table lead to OUT 0x80 of their number; the main program spins.
  for (const vector of [2, 6]) {
    const handler = 0x2000 + vector * 16
    memory.write(vector * 4, Uint8Array.of(handler & 255, handler >> 8, 0, 0))
    memory.write(handler, Uint8Array.of(0xb0, vector, 0xe6, 0x80, 0xcf))
  }
  memory.write(0x1000, Uint8Array.of(0xeb, 0xfe))
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000, userspaceAddr: memory.address })
  const vcpu = vm.createVcpu(0)
  const sregs = vcpu.getSregs()
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })
  vcpu.setRegs({ rip: 0x1000, rsp: 0x8000 })
  const inject = (change: (view: DataView) => void): unknown => {
    const events = vcpu.get('KVM_GET_VCPU_EVENTS')
    change(new DataView(events.buffer))
    vcpu.set('KVM_SET_VCPU_EVENTS', events)
    assert.equal(vcpu.get('KVM_GET_VCPU_EVENTS'), events)
    const exit = vcpu.run({ maxInstructions: 1000 })
    return exit.reason === 'KVM_EXIT_IO' ? exit.data[0] : exit.reason
  }
  assert.is(vcpu.run({ maxInstructions: 10 }).reason, 'KVM_EXIT_INTR')
  assert.is(
    inject((view) => {
      view.setUint8(0, 1)
      view.setUint8(1, 6)
    }),
    6,
  )
  // The OUT is complete before the NMI comes.
  assert.is(
    inject((view) => view.setUint8(12, 1)),
    2,
  )
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SMI, 0), 0)
  assert.is(vcpu.get('KVM_GET_VCPU_EVENTS')[25], 1)
  assert.is(vcpu.runRaw(10), -ERRNO.EIO)
  assert.match(kvm.lastRefusal()?.reason ?? '', /state-save area/)
  assert.equal(kvm.kernel.internalErrors, [])
})

test.run()
