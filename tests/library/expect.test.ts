/** `cloister/test`: failures name the switch and the kernel function. Also: the public names of the contract. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CloisterError, type Kvm, KvmError, openKvm, REQUEST, type Vcpu } from 'cloister'
import { expectedAnswer, expectRefused, expectServed } from 'cloister/test'
import { Machine } from 'cloister/vmm'

const test = suite('library')

async function sealed(): Promise<{ kvm: Kvm; vcpu: Vcpu }> {
  const kvm = await openKvm({ host: 'amd' })
  const vm = kvm.createVm('sev-es')
  const memory = kvm.mmap(-1, 0x1000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x1000, userspaceAddr: memory.address })
  vm.sevInit()
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid2(kvm.supportedCpuid())
  vm.launchStart({ policy: 5 })
  vm.launchUpdateData(memory.address, 0x1000)
  vm.launchUpdateVmsa()
  return { kvm, vcpu }
}

const message = (run: () => unknown): string => {
  try {
    run()
  } catch (error) {
    return String((error as Error).message)
  }
  return ''
}

test('a refusal that is expected comes back with its reason', async () => {
  const { kvm, vcpu } = await sealed()
  const raw = expectRefused(kvm, 'EINVAL', () => kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)))
  assert.match(raw.source, /get_regs/)
  const typed = expectRefused(kvm, 'EINVAL', () => vcpu.getRegs())
  assert.is(typed.ioctl, 'KVM_GET_REGS')
  assert.throws(
    () => vcpu.getRegs(),
    (e: unknown) => e instanceof KvmError && e instanceof CloisterError && e.code === 'EINVAL' && e.errno === -22,
  )
})

test('a failure names the protection switch and the kernel function', async () => {
  const { kvm, vcpu } = await sealed()
  const text = message(() => expectRefused(kvm, 'EPERM', () => vcpu.getRegs()))
  assert.match(text, /KVM_GET_REGS: expected EPERM, got EINVAL/)
  assert.match(text, /guest_state_protected/)
  assert.match(text, /kvm_arch_vcpu_ioctl_get_regs/)
  assert.match(
    message(() => expectServed(kvm, () => vcpu.getRegs())),
    /expected success: .*EINVAL.*guest_state_protected/,
  )
  assert.match(
    message(() => expectRefused(kvm, 'EINVAL', () => vcpu.getMpState(), 'KVM_GET_MP_STATE')),
    /expected EINVAL, got success/,
  )
})

test('expectedAnswer reads the policy table', () => {
  assert.is(expectedAnswer('KVM_GET_REGS', 'sev-es', 'after'), 'EINVAL')
  assert.is(expectedAnswer('KVM_GET_REGS', 'default', 'after'), 'ok')
})

test('raw calls return numbers; misuse throws a CloisterError', async () => {
  using kvm = await openKvm()
  assert.ok(kvm.open('/dev/kvm') >= 0)
  assert.ok(kvm.open('/dev/nothing') < 0)
  assert.is(kvm.ioctl(12345, 0xae00), -9)
  let thrown: unknown
  try {
    await Machine.create({})
  } catch (error) {
    thrown = error
  }
  assert.instance(thrown, CloisterError)
})

test.run()
