/** In the manner of selftests x86/sev_smoke_test and lib/x86/sev.c: launch states, policy echoed, a guest that runs and terminates itself. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { GUEST_STATE, openKvm, type VmType } from 'cloister'
import { Machine } from 'cloister/vmm'
import { sevVm } from './guest.ts'

for (const [type, policies] of [
  ['sev', [0, 1]],
  ['sev-legacy', [0, 1]],
  ['sev-es', [4, 5]],
  ['sev-es-legacy', [4, 5]],
] as readonly (readonly [VmType, readonly number[]])[]) {
  test(`${type}: UNINIT, LAUNCH_UPDATE, LAUNCH_SECRET, RUNNING`, async () => {
    for (const policy of policies) {
      const kvm = await openKvm({ memory: 128 << 20 })
      const { vm, memory } = sevVm(kvm, type, 2)
      vm.launchStart({ policy })
      assert.is(vm.guestStatus().policy, policy)
      assert.is(vm.guestStatus().state, GUEST_STATE.LAUNCH_UPDATE)
      vm.launchUpdateData(memory.address, 0x10000)
      if (policy & 4) vm.launchUpdateVmsa()
      vm.launchMeasure()
      assert.is(vm.guestStatus().state, GUEST_STATE.LAUNCH_SECRET)
      vm.launchFinish()
      assert.is(vm.guestStatus().state, GUEST_STATE.RUNNING)
      // Nothing of the launch works any more, and the guest is still there.
      assert.is(vm.memoryEncrypt('KVM_SEV_LAUNCH_FINISH').errno, -5)
      assert.is(vm.guestStatus().state, GUEST_STATE.RUNNING)
    }
  })
}

test('FINISH straight from LAUNCH_UPDATE', async () => {
  const kvm = await openKvm({ memory: 128 << 20 })
  const { vm } = sevVm(kvm, 'sev')
  vm.launchStart({ policy: 0 })
  vm.launchFinish()
  assert.is(vm.guestStatus().state, GUEST_STATE.RUNNING)
})

for (const type of ['sev-es', 'sev-es-legacy'] as const) {
  test(`${type}: the sample guest runs through #VC and GHCB to its end`, async () => {
    const bytes = new Uint8Array(readFileSync(new URL('../../../../tests/guests/sev-es.bin', import.meta.url)))
    const machine = await Machine.create({ type, image: { bytes, load: 0x200000, entry: 0x200000, mode: 'long64' }, memory: 16 << 20 })
    await machine.launch()
    const vcpu = machine.vcpus[0]
    let exits = 0
    let last = ''
    for (; exits < 2000; exits++) {
      last = vcpu?.run({ maxInstructions: 10_000_000 }).reason ?? ''
      if (last !== 'KVM_EXIT_IO') break
    }
    assert.ok(exits > 10, `${exits} exits`)
    assert.ok(['KVM_EXIT_HLT', 'KVM_EXIT_SYSTEM_EVENT', 'KVM_EXIT_SHUTDOWN', 'KVM_EXIT_INTR', 'KVM_EXIT_MMIO'].includes(last), last)
    machine[Symbol.dispose]()
  })
}

test.run()
