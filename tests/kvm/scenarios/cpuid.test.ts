/** In the manner of selftests x86/cpuid_test: KVM_SET_CPUID2 and GET_CPUID2, the guest's CPUID, no change after the first run. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { REQUEST } from 'cloister'
import { realModeGuest, refuses } from './guest.ts'

// mov eax, 1; xor ecx, ecx; cpuid; mov [0x2000], eax; mov [0x2004], ebx; mov [0x2008], ecx; mov [0x200c], edx; hlt (32-bit operands in real mode)
const CPUID = [
  ...[0x66, 0xb8, 1, 0, 0, 0, 0x66, 0x31, 0xc9, 0x0f, 0xa2],
  ...[0x66, 0xa3, 0x00, 0x20, 0x66, 0x89, 0x1e, 0x04, 0x20, 0x66, 0x89, 0x0e, 0x08, 0x20, 0x66, 0x89, 0x16, 0x0c, 0x20, 0xf4],
]

test('the guest sees what was set', async () => {
  const { kvm, vcpu, memory } = await realModeGuest(CPUID)
  const entries = kvm.supportedCpuid().map((e) => (e.function === 1 ? { ...e, eax: 0x123456 } : e))
  vcpu.setCpuid2(entries)
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  const view = new DataView(memory.read(0x2000, 16).buffer)
  const want = entries.find((e) => e.function === 1)
  assert.is(view.getUint32(0, true), 0x123456)
  // ECX bit 27 (OSXSAVE) follows CR4.
  assert.is(view.getUint32(8, true) & ~(1 << 27), (want?.ecx ?? 0) & ~(1 << 27))
  assert.is(view.getUint32(12, true), (want?.edx ?? 0) >>> 0)
})

test('after the first KVM_RUN only the same table is taken', async () => {
  const { kvm, vcpu } = await realModeGuest(CPUID)
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  vcpu.setCpuid2(kvm.supportedCpuid())
  refuses('EINVAL', () => vcpu.setCpuid2(kvm.supportedCpuid().map((e) => (e.function === 1 ? { ...e, eax: 1 } : e))), 'changed')
  refuses('EINVAL', () => vcpu.setCpuid2([]), 'emptied')
})

test('KVM_GET_CPUID2: too small is -E2BIG, exact is enough', async () => {
  const { kvm, vcpu } = await realModeGuest(CPUID)
  const n = kvm.supportedCpuid().length
  const get = (nent: number): number => {
    const bytes = new Uint8Array(8 + 40 * 256)
    new DataView(bytes.buffer).setUint32(0, nent, true)
    return kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_CPUID2, bytes)
  }
  assert.is(get(n - 1), -7)
  assert.is(get(n), 0)
  const big = new Uint8Array(8)
  new DataView(big.buffer).setUint32(0, 257, true)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_CPUID2, big), -7)
})

test.run()
