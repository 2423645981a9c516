/** Behaviour that Linux's own KVM selftests found wrong (tests/suites/selftests runs them); a small guest for each. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, EXIT, openKvm, REQUEST, RUN } from 'cloister'
import { realModeGuest } from './guest.ts'

test('immediate_exit completes the access and leaves exit_reason', async () => {
  // in al, 0x80; hlt
  const { vcpu } = await realModeGuest([0xe4, 0x80, 0xf4])
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  vcpu.runView.setUint8(RUN.IMMEDIATE_EXIT, 1)
  assert.is(vcpu.runRaw(1000), -ERRNO.EINTR)
  assert.is(vcpu.runView.getUint32(RUN.EXIT_REASON, true), EXIT.KVM_EXIT_IO)
  vcpu.runView.setUint8(RUN.IMMEDIATE_EXIT, 0)
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
})

function xcr0(value: bigint): Uint8Array {
  const bytes = new Uint8Array(392)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, 1, true)
  view.setBigUint64(16, value, true)
  return bytes
}

test('XCR0: what leaf 0xD of the guest offers, PKRU included, and no more', async () => {
  const { kvm, vcpu } = await realModeGuest([0xf4])
  const offered = kvm.supportedCpuid().find((e) => e.function === 0xd && e.index === 0)?.eax ?? 0
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_XCRS, xcr0(BigInt(offered))), 0)
  for (let bit = 1n; bit < 64n; bit++) {
    const value = (1n << bit) | 1n
    const possible = (BigInt(offered) & (1n << bit)) !== 0n
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_XCRS, xcr0(value)), possible ? 0 : -ERRNO.EINVAL, `bit ${bit}`)
  }
})

test('PKRU travels in KVM_GET_XSAVE and KVM_SET_XSAVE', async () => {
  const { kvm, vcpu } = await realModeGuest([0xf4])
  const bytes = new Uint8Array(4096)
  const view = new DataView(bytes.buffer)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_XSAVE, bytes), 0)
  view.setUint32(2432, 0x55555554, true)
  view.setBigUint64(512, view.getBigUint64(512, true) | 0x200n, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_XSAVE, bytes), 0)
  const back = new Uint8Array(4096)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_XSAVE, back), 0)
  assert.is(new DataView(back.buffer).getUint32(2432, true), 0x55555554)
  assert.is(new DataView(back.buffer).getUint32(512, true) & 0x200, 0x200)
})

test('KVM_GET_CPUID2 shows OSXSAVE and OSPKE as CR4 has them', async () => {
  const { vcpu } = await realModeGuest([0xf4])
  const bits = (): [osxsave: number, ospke: number] => {
    const entries = vcpu.getCpuid2()
    const word = (leaf: number): number => entries.find((e) => e.function === leaf)?.ecx ?? 0
    return [(word(1) >>> 27) & 1, (word(7) >>> 4) & 1]
  }
  assert.equal(bits(), [0, 0])
  const sregs = vcpu.getSregs()
  vcpu.setSregs({ ...sregs, cr4: sregs.cr4 | (1n << 18n) | (1n << 22n) })
  assert.equal(bits(), [1, 1])
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  vcpu.setCpuid2(vcpu.getCpuid2())
})

test('REP INSB: what a smaller count leaves over is not for the next string', async () => {
  // mov dx, 0x80; mov di, 0x2000; again: mov cx, 3; rep insb; jmp again
  const { vcpu, memory } = await realModeGuest([0xba, 0x80, 0, 0xbf, 0, 0x20, 0xb9, 3, 0, 0xf3, 0x6c, 0xeb, 0xf9])
  const first = vcpu.run()
  assert.is(first.reason === 'KVM_EXIT_IO' && first.count, 3)
  if (first.reason === 'KVM_EXIT_IO') first.data.set([1, 2, 3])
  vcpu.setRegs({ ...vcpu.getRegs(), rcx: 1n })
  const second = vcpu.run()
  assert.is(second.reason === 'KVM_EXIT_IO' && second.count, 3)
  assert.is(vcpu.getRegs().rcx, 3n)
  if (second.reason === 'KVM_EXIT_IO') second.data.set([4, 5, 6])
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  assert.equal([...memory.read(0x2000, 5)], [1, 4, 5, 6, 0])
})

test('CR0.ET reads as 1, whatever KVM_SET_SREGS left', async () => {
  // smsw ax; mov [0x2000], ax; mov eax, cr0; mov [0x2002], eax; hlt
  const { vcpu, memory } = await realModeGuest([0x0f, 0x01, 0xe0, 0xa3, 0, 0x20, 0x0f, 0x20, 0xc0, 0x66, 0xa3, 2, 0x20, 0xf4])
  const sregs = vcpu.getSregs()
  vcpu.setSregs({ ...sregs, cr0: 0n })
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  assert.equal([...memory.read(0x2000, 6)], [0x10, 0, 0x10, 0, 0, 0])
})

const setMsr = (index: number, value: bigint): Uint8Array => {
  const bytes = new Uint8Array(24)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, 1, true)
  view.setUint32(8, index, true)
  view.setBigUint64(16, value, true)
  return bytes
}

test('userspace takes the local APIC to x2APIC mode and back: the id changes its format', async () => {
  const { kvm, vm } = await realModeGuest([0xf4], { irqchip: true })
  vm.enableCap('KVM_CAP_X2APIC_API', [1])
  const vcpu = vm.createVcpu(1)
  vcpu.setCpuid2(kvm.supportedCpuid())
  const id = (): number => {
    const state = new Uint8Array(1024)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_LAPIC, state), 0)
    return new DataView(state.buffer).getUint32(0x20, true)
  }
  assert.is(id(), 1 << 24)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_MSRS, setMsr(0x1b, 0xfee00c00n)), 1)
  assert.is(id(), 1)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_MSRS, setMsr(0x1b, 0xfee00800n)), 1)
  assert.is(id(), 1 << 24)
})

test('KVM_GUESTDBG_BLOCKIRQ holds interrupts back while userspace steps', async () => {
  // sti; nop; nop; hlt; the handler of vector 0x20: inc ax; hlt
  const { kvm, vcpu, memory } = await realModeGuest([0xfb, 0x90, 0x90, 0xf4])
  memory.write(0x80, Uint8Array.from([0, 0x11, 0, 0]))
  memory.write(0x1100, Uint8Array.from([0x40, 0xf4]))
  const interrupt = new Uint8Array(4)
  interrupt[0] = 0x20
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_INTERRUPT, interrupt), 0)
  const debug = new Uint8Array(72)
  new DataView(debug.buffer).setUint32(0, 0x100003, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_GUEST_DEBUG, debug), 0)
  for (const rip of [0x1001n, 0x1002n, 0x1003n]) {
    assert.is(vcpu.run().reason, 'KVM_EXIT_DEBUG')
    assert.is(vcpu.getRegs().rip, rip)
  }
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_GUEST_DEBUG, new Uint8Array(72)), 0)
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  assert.is(vcpu.getRegs().rip, 0x1102n)
})

test('KVM_SET_NR_MMU_PAGES takes 64 pages and more', async () => {
  const { kvm, vm } = await realModeGuest([0xf4])
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_SET_NR_MMU_PAGES, 63), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_SET_NR_MMU_PAGES, 64), 0)
})

test('KVM_SET_SREGS: CR4 and EFER need the feature in CPUID, in 7.3 also before KVM_SET_CPUID2', async () => {
  for (const linux of ['6.12', '7.3'] as const) {
    const kvm = await openKvm({ memory: 64 << 20, linux })
    const vcpu = kvm.createVm('default').createVcpu(0)
    const refused = (change: { cr4?: bigint; efer?: bigint }): boolean => {
      try {
        vcpu.setSregs({ ...vcpu.getSregs(), ...change })
        return false
      } catch {
        return true
      }
    }
    const SMEP = 1n << 20n
    const LME = 1n << 8n
    const SVME = 1n << 12n
    assert.equal([refused({ cr4: SMEP }), refused({ efer: LME })], linux === '6.12' ? [false, false] : [true, true], linux)
    assert.is(refused({ cr4: 0n, efer: 0n }), false)
    vcpu.setCpuid2(kvm.supportedCpuid())
    assert.equal([refused({ cr4: SMEP }), refused({ efer: LME })], [false, false], linux)
    assert.is(refused({ efer: SVME }), linux === '7.3', 'not offered')
  }
})

const featureMsrs = (...indices: number[]): Uint8Array => {
  const bytes = new Uint8Array(8 + indices.length * 16)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, indices.length, true)
  for (const [i, index] of indices.entries()) view.setUint32(8 + i * 16, index, true)
  return bytes
}

test('KVM_GET_MSRS on /dev/kvm reads feature MSRs and stops at any other', async () => {
  const kvm = await openKvm({ memory: 64 << 20 })
  const fd = kvm.open('/dev/kvm')
  const bytes = featureMsrs(0xc0011029, 0x8b, 0x10)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_MSRS, bytes), 2)
  assert.is(new DataView(bytes.buffer).getBigUint64(16, true), 2n)
  assert.is(kvm.ioctl(fd, REQUEST.KVM_GET_MSRS, bytes.subarray(0, 39)), -ERRNO.EFAULT)
})

test('DR7.GD of the debugger stops at the access to a debug register', async () => {
  // nop; mov eax, dr0; hlt
  const { kvm, vcpu } = await realModeGuest([0x90, 0x0f, 0x21, 0xc0, 0xf4])
  const debug = new Uint8Array(72)
  new DataView(debug.buffer).setUint32(0, 0x20001, true)
  new DataView(debug.buffer).setBigUint64(64, 0x2400n, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_GUEST_DEBUG, debug), 0)
  const exit = vcpu.run()
  assert.is(exit.reason, 'KVM_EXIT_DEBUG')
  if (exit.reason === 'KVM_EXIT_DEBUG') assert.equal([exit.pc, exit.dr6], [0x1001n, 0xffff2ff0n])
})

test('AMD guests: SYSENTER_ESP, SYSENTER_EIP and TSC_AUX lose their upper halves', async () => {
  const { kvm, vcpu } = await realModeGuest([0xf4])
  for (const index of [0x175, 0x176, 0xc0000103]) {
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_MSRS, setMsr(index, 0xaaaa5555aaaa5555n)), 1, index.toString(16))
    const bytes = featureMsrs(index)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_MSRS, bytes), 1)
    assert.is(new DataView(bytes.buffer).getBigUint64(16, true), 0xaaaa5555n, index.toString(16))
  }
})

test('KVM_GET_REG_LIST: nothing without shadow stacks, and no such request in 6.12', async () => {
  const { kvm, vcpu } = await realModeGuest([0xf4])
  const list = new Uint8Array(8).fill(1)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REG_LIST, list), 0)
  assert.equal([...list], [0, 0, 0, 0, 0, 0, 0, 0])
  const old = await openKvm({ memory: 64 << 20, linux: '6.12' })
  assert.is(old.ioctl(old.createVm('default').createVcpu(0).fd, REQUEST.KVM_GET_REG_LIST, list), -ERRNO.EINVAL)
})

test('halt_exits counts HLT with the local APIC in the kernel too', async () => {
  const { kvm, vcpu } = await realModeGuest([0xf4], { irqchip: true })
  assert.is(vcpu.run().reason, 'KVM_EXIT_INTR')
  const fd = kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_STATS_FD, 0)
  const bytes = new Uint8Array(0x4000)
  const n = kvm.read(fd, bytes)
  const view = new DataView(bytes.buffer)
  const [entries, descriptors, data] = [8, 16, 20].map((at) => view.getUint32(at, true)) as [number, number, number]
  const text = (at: number): string => new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)))
  const at = Array.from({ length: entries }, (_, i) => descriptors + i * 64).find((d) => text(d + 16) === 'halt_exits') as number
  assert.is(view.getBigUint64(data + view.getUint32(at + 8, true), true), 1n)
  assert.ok(n > data)
})

test('the microcode revision of a new vCPU is that of the host vendor', async () => {
  for (const [host, revision] of [
    ['amd', 0x1000065n],
    ['intel', 0x100000000n],
  ] as const) {
    const kvm = await openKvm({ memory: 64 << 20, host })
    const bytes = featureMsrs(0x8b)
    assert.is(kvm.ioctl(kvm.createVm('default').createVcpu(0).fd, REQUEST.KVM_GET_MSRS, bytes), 1)
    assert.is(new DataView(bytes.buffer).getBigUint64(16, true), revision, host)
  }
})

test.run()
