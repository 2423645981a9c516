/** Behaviour that Linux's own KVM selftests found wrong (tests/suites/selftests runs them); a small guest for each. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, EXIT, RUN, REQUEST } from 'cloister'
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

test.run()
