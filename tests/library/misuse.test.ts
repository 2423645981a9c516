/** Misuse of the library: a CloisterError with a stable code whose message names what was given; never a guess, never a bare TypeError. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CloisterError, openKvm, policyTable, type REQUEST } from '../../host/index.ts'
import { Machine } from '../../host/vmm/index.ts'

/** What JavaScript callers can pass and TypeScript would refuse. */
type Any = never

async function refused(call: () => unknown, code: string, message: RegExp): Promise<void> {
  let error: unknown
  try {
    await call()
  } catch (thrown) {
    error = thrown
  }
  assert.instance(error, CloisterError, String(message))
  assert.is((error as CloisterError).code, code)
  assert.match((error as CloisterError).message, message)
}

test('openKvm', async () => {
  await refused(() => openKvm({ host: 'arm' as Any }), 'ERR_ARGUMENT', /host.*arm/)
  await refused(() => openKvm({ linux: '5.4' as Any }), 'ERR_ARGUMENT', /linux.*5\.4/)
  await refused(() => openKvm({ profile: 'mine' as Any }), 'ERR_ARGUMENT', /profile.*mine/)
  await refused(() => openKvm({ seed: 1.5 }), 'ERR_ARGUMENT', /seed.*1\.5/)
  await refused(() => openKvm({ seed: 'x' as Any }), 'ERR_ARGUMENT', /seed.*x/)
  for (const memory of [1, -1, Number.NaN, 2 ** 33, '1G' as Any])
    await refused(() => openKvm({ memory }), 'ERR_MEMORY', new RegExp(`memory ${memory}`))
  await refused(() => openKvm({ wasm: new Uint8Array(8) }), 'ERR_WASM', /magic word/)
  await refused(() => openKvm({ wasm: new URL('file:///absent.wasm') }), 'ERR_WASM', /absent\.wasm/)
})

test('names and counts', async () => {
  using kvm = await openKvm()
  const vm = kvm.createVm()
  const vcpu = vm.createVcpu(0)
  await refused(() => kvm.createVm('vms' as Any), 'ERR_ARGUMENT', /vms/)
  await refused(() => kvm.checkExtension('KVM_CAP_NONE' as Any), 'ERR_ARGUMENT', /capability.*KVM_CAP_NONE/)
  await refused(() => vm.checkExtension('KVM_CAP_NONE' as Any), 'ERR_ARGUMENT', /capability.*KVM_CAP_NONE/)
  await refused(() => vm.ioctl('KVM_NONE' as Any as keyof typeof REQUEST), 'ERR_ARGUMENT', /request.*KVM_NONE/)
  await refused(() => vcpu.ioctl('KVM_NONE' as Any as keyof typeof REQUEST), 'ERR_ARGUMENT', /request.*KVM_NONE/)
  await refused(() => vcpu.run({ maxInstructions: Number.NaN }), 'ERR_ARGUMENT', /maxInstructions NaN/)
  await refused(() => vcpu.run({ maxInstructions: -1 }), 'ERR_ARGUMENT', /maxInstructions -1/)
})

test('Machine', async () => {
  const image = { bytes: Uint8Array.of(0xf4), load: 0x100000, entry: 0x100000, mode: 'long64' } as const
  const create = (options: object) => async (): Promise<void> => (await Machine.create(options as Any))[Symbol.dispose]()
  await refused(create({}), 'guest', /nothing to run/)
  await refused(create({ type: 'vms', image }), 'type', /vms/)
  await refused(create({ memory: '1G', image }), 'memory', /1G/)
  await refused(create({ smp: 1.5, image }), 'smp', /1\.5/)
  await refused(create({ cpu: 5, image }), 'cpu', /cpu 5/)
  await refused(create({ seed: 'x', image }), 'seed', /seed x/)
  await refused(create({ image: { ...image, bytes: 'f4' } }), 'image', /Uint8Array/)
  await refused(create({ image: { ...image, mode: 'long46' } }), 'mode', /long46/)
  await refused(create({ image: { ...image, load: -1 } }), 'image', /-1/)
  await refused(create({ kernel: 'vmlinuz' }), 'kernel', /Uint8Array/)
  await refused(create({ firmware: 'OVMF.fd' }), 'firmware', /Uint8Array/)
  await refused(create({ traceKinds: ['exit'], image }), 'trace', /'exit'.*exits/)
  await refused(create({ maxInstructions: 0, image }), 'max-instructions', /0/)
  await refused(create({ timeoutSeconds: -1, image }), 'timeout', /-1/)
})

test('sizes, addresses and policies are taken as number and as bigint', async () => {
  using kvm = await openKvm({ memory: 256n << 20n })
  const memory = kvm.mmap(-1, 0x4000n)
  assert.is(memory.length, 0x4000)
  const vm = kvm.createVm('sev')
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x4000n, userspaceAddr: memory.address })
  vm.sevInit()
  assert.is(vm.createVcpu(0n).id, 0)
  vm.launchStart({ policy: 1n })
  assert.is(vm.guestStatus().policy, 1)
  const image = { bytes: Uint8Array.of(0xeb, 0xfe), load: 0x100000n, entry: 0x100000, mode: 'long64' } as const
  using machine = await Machine.create({ image, memory: 16n << 20n, maxInstructions: 1000n, timeoutSeconds: 60 })
  const { reason, report } = await machine.run()
  assert.equal([reason, report.instructions], ['budget-instructions', 1000])
})

test('ranges and names that do not exist', async () => {
  using kvm = await openKvm()
  const memory = kvm.mmap(-1, 0x1000)
  await refused(() => memory.read(0x1000, 1), 'ERR_RANGE', /1 bytes at 4096/)
  await refused(() => memory.write(-1, new Uint8Array(1)), 'ERR_RANGE', /1 bytes at -1/)
  await refused(() => policyTable('mine'), 'ERR_ARGUMENT', /profile.*mine/)
  await refused(() => policyTable('upstream', '5.4' as Any), 'ERR_ARGUMENT', /linux.*5\.4/)
  await refused(() => kvm.createVm().enableCap('KVM_CAP_NONE' as Any), 'ERR_ARGUMENT', /capability.*KVM_CAP_NONE/)
})

test.run()
