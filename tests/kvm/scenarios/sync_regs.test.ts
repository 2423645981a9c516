/** In the manner of selftests x86/sync_regs_test: kvm_valid_regs and kvm_dirty_regs. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, RUN } from 'cloister'
import { realModeGuest, refuses } from './guest.ts'

// inc bx; out 0x80, al; jmp back
const LOOP = [0x43, 0xe6, 0x80, 0xeb, 0xfb]
const RBX = RUN.SYNC_REGS + 8

test('the capability names three sets; others are refused', async () => {
  const { vm, vcpu } = await realModeGuest(LOOP)
  assert.is(vm.checkExtension('KVM_CAP_SYNC_REGS'), 7)
  for (const at of [RUN.VALID_REGS, RUN.DIRTY_REGS]) {
    for (const bit of [8, 16, 1 << 30]) {
      vcpu.runView.setBigUint64(at, BigInt(bit), true)
      refuses('EINVAL', () => vcpu.runRaw(1000), `${bit}`)
      vcpu.runView.setBigUint64(at, 0n, true)
    }
  }
})

test('valid: what KVM_GET_* gives', async () => {
  const { vcpu } = await realModeGuest(LOOP)
  vcpu.runView.setBigUint64(RUN.VALID_REGS, 7n, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  assert.is(vcpu.runView.getBigUint64(RBX, true), 1n)
  assert.is(vcpu.runView.getBigUint64(RBX, true), vcpu.getRegs().rbx)
  assert.is(vcpu.runView.getBigUint64(RUN.SYNC_SREGS + 304 - 304 + 224, true), vcpu.getSregs().cr0)
  // Not valid: not written.
  vcpu.runView.setBigUint64(RUN.VALID_REGS, 0n, true)
  vcpu.runView.setBigUint64(RBX, 0xdeadn, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  assert.is(vcpu.runView.getBigUint64(RBX, true), 0xdeadn)
})

test('dirty: taken once, then cleared', async () => {
  const { vcpu } = await realModeGuest(LOOP)
  vcpu.runView.setBigUint64(RUN.VALID_REGS, 1n, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  vcpu.runView.setBigUint64(RBX, 0xbac0n, true)
  vcpu.runView.setBigUint64(RUN.DIRTY_REGS, 1n, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  assert.is(vcpu.getRegs().rbx, 0xbac1n)
  assert.is(vcpu.runView.getBigUint64(RUN.DIRTY_REGS, true), 0n)
  // Without dirty the bytes count for nothing.
  vcpu.runView.setBigUint64(RBX, 0n, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  assert.is(vcpu.getRegs().rbx, 0xbac2n)
})

test('impossible SREGS in kvm_run: -EINVAL, and the vCPU runs on', async () => {
  const { vcpu } = await realModeGuest(LOOP)
  vcpu.runView.setBigUint64(RUN.VALID_REGS, 2n, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
  const cr4 = RUN.SYNC_SREGS + 248
  vcpu.runView.setBigUint64(cr4, 1n << 63n, true)
  vcpu.runView.setBigUint64(RUN.DIRTY_REGS, 2n, true)
  assert.is(vcpu.runRaw(1000), -ERRNO.EINVAL)
  vcpu.runView.setBigUint64(RUN.DIRTY_REGS, 0n, true)
  assert.is(vcpu.run().reason, 'KVM_EXIT_IO')
})

test.run()
