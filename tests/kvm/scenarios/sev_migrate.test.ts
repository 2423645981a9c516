/** In the manner of selftests x86/sev_migrate_tests: KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM and VM_COPY_ENC_CONTEXT_FROM (mirrors). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Kvm, openKvm, REQUEST, SEV_COMMAND, type Vm, type VmType } from 'cloister'
import { capability, refuses, sevVm } from './guest.ts'

const move = (to: Vm, from: number): number => capability(to, 'KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM', from)
const mirror = (to: Vm, from: number): number => capability(to, 'KVM_CAP_VM_COPY_ENC_CONTEXT_FROM', from)

const CPUS = 4

/** A guest of the selftest: 4 vCPUs, launched. */
function launched(kvm: Kvm, type: VmType): Vm {
  const { vm, memory } = sevVm(kvm, type, CPUS)
  const es = type.startsWith('sev-es')
  vm.launchStart({ policy: es ? 4 : 0 })
  vm.launchUpdateData(memory.address, 0x10000)
  if (es) vm.launchUpdateVmsa()
  vm.launchMeasure()
  vm.launchFinish()
  return vm
}

/** aux_vm_create: a VM of the same type that is no SEV guest. */
function aux(kvm: Kvm, type: VmType, cpus = CPUS): Vm {
  const vm = kvm.createVm(type)
  for (let i = 0; i < cpus; i++) vm.createVcpu(i)
  return vm
}

const handleOf = (vm: Vm): number | undefined => vm.file.sev?.guest?.handle

for (const type of ['sev', 'sev-legacy', 'sev-es', 'sev-es-legacy'] as const) {
  test(`test_sev_migrate_from ${type}: on and on, never back; the VM that it left is dead`, async () => {
    const kvm = await openKvm({ memory: 256 << 20 })
    const source = launched(kvm, type)
    const handle = source.guestStatus().handle
    const targets = [aux(kvm, type), aux(kvm, type), aux(kvm, type)] as const
    let from = source
    for (const to of targets) {
      assert.is(move(to, from.fd), 0)
      assert.is(handleOf(to), handle)
      refuses('EIO', () => from.ioctl('KVM_CHECK_EXTENSION', 0))
      refuses('EIO', () => from.createVcpu(9))
      for (const vcpu of from.vcpus) assert.is(vcpu.runRaw(1), -5)
      from = to
    }
    refuses('EIO', () => move(source, from.fd), 'a dead VM takes nothing')
    refuses('EINVAL', () => move(aux(kvm, type), source.fd), 'a VM that was left is not a SEV guest')
    // The stored /dev/sev did not come along (sev_migrate_from), so no command of the stored descriptor works.
    assert.is(from.memoryEncrypt('KVM_SEV_GUEST_STATUS', new Uint8Array(12)).errno, -9)
    assert.is(from.memoryEncrypt('KVM_SEV_SEND_FINISH').errno, -9)
    // And a second context for the same ASID is refused by the firmware.
    assert.is(from.memoryEncrypt('KVM_SEV_LAUNCH_START', new Uint8Array(40)).errno, -5)
    assert.is(kvm.kernel.psp.guests.size, 1)
    for (const vm of [source, ...targets]) vm[Symbol.dispose]()
    assert.is(kvm.kernel.psp.guests.size, 0)
    assert.is(kvm.kernel.asids.size, 0)
    assert.equal(kvm.kernel.internalErrors, [])
  })
}

test('test_sev_move_copy: mirrors and owners move independently, and go in any order', async () => {
  for (const order of ['owners first', 'mirrors first']) {
    const kvm = await openKvm({ memory: 256 << 20 })
    const vm = launched(kvm, 'sev-legacy')
    const owners = [vm, aux(kvm, 'sev-legacy'), aux(kvm, 'sev-legacy'), aux(kvm, 'sev-legacy')]
    const mirrors = [0, 1, 2, 3].map(() => aux(kvm, 'sev-legacy', 0))
    const at = (vms: Vm[], i: number): Vm => vms[i] as Vm
    assert.is(mirror(at(mirrors, 0), vm.fd), 0)
    assert.is(move(at(mirrors, 1), at(mirrors, 0).fd), 0)
    assert.is(move(at(owners, 1), vm.fd), 0)
    assert.is(move(at(owners, 2), at(owners, 1).fd), 0)
    assert.is(move(at(mirrors, 2), at(mirrors, 1).fd), 0)
    assert.is(move(at(mirrors, 3), at(mirrors, 2).fd), 0)
    assert.is(move(at(owners, 3), at(owners, 2).fd), 0)
    assert.is(at(mirrors, 3).file.sev?.owner, at(owners, 3).file)
    assert.is(handleOf(at(mirrors, 3)), handleOf(at(owners, 3)))
    for (const gone of order === 'owners first' ? [...owners, ...mirrors] : [...mirrors, ...owners]) gone[Symbol.dispose]()
    assert.is(kvm.kernel.psp.guests.size, 0, order)
    assert.is(kvm.kernel.asids.size, 0, order)
    assert.equal(kvm.kernel.internalErrors, [])
  }
})

for (const type of ['sev-legacy', 'sev-es-legacy'] as const) {
  test(`test_sev_mirror ${type}: vCPUs are added and, for SEV-ES, measured`, async () => {
    const kvm = await openKvm({ memory: 256 << 20 })
    const es = type === 'sev-es-legacy'
    const source = kvm.createVm(type)
    source.sevInit()
    source.launchStart({ policy: es ? 4 : 0 })
    const copy = kvm.createVm(type)
    assert.is(mirror(copy, source.fd), 0)
    for (let i = 0; i < CPUS; i++) copy.createVcpu(i)
    if (es) copy.launchUpdateVmsa()
    assert.is(copy.guestStatus().handle, source.guestStatus().handle)
    // Neither features nor GHCB version are copied.
    assert.equal([copy.file.sev?.vmsaFeatures, copy.file.sev?.ghcbVersion], [0n, 0])
  })
}

test('moves that are refused', async () => {
  const kvm = await openKvm({ memory: 256 << 20 })
  const types: readonly VmType[] = ['sev', 'sev-es']
  for (const type of types) {
    const { vm: source } = sevVm(kvm, type)
    refuses('EINVAL', () => move(source, source.fd), 'onto itself')
    refuses('EINVAL', () => move(kvm.createVm('default'), source.fd), 'another type')
    refuses('EINVAL', () => move(sevVm(kvm, type).vm, source.fd), 'a SEV guest already')
    refuses('EINVAL', () => move(kvm.createVm(type), kvm.createVm(type).fd), 'no SEV guest')
    refuses('EBADF', () => move(kvm.createVm(type), kvm.open('/dev/sev')))
    refuses('EBADF', () => move(kvm.createVm(type), 999))
  }
  const { vm: es } = sevVm(kvm, 'sev-es', 2)
  const few = kvm.createVm('sev-es')
  few.createVcpu(0)
  refuses('EINVAL', () => move(few, es.fd), 'other number of vCPUs')
  const same = kvm.createVm('sev-es')
  same.createVcpu(0)
  same.createVcpu(1)
  refuses('EINVAL', () => move(same, es.fd), 'LAUNCH_UPDATE_VMSA is missing')
  refuses('EINVAL', () => move(kvm.createVm('snp'), sevVm(kvm, 'snp').vm.fd), 'SNP')
  // All of them refused, nothing broken.
  es.launchStart({ policy: 5 })
  es.launchUpdateVmsa()
  assert.is(kvm.kernel.internalErrors.length, 0)
})

test('mirrors: what they may ask, and who may be one', async () => {
  const kvm = await openKvm({ memory: 256 << 20 })
  const { vm: source } = sevVm(kvm, 'sev')
  source.launchStart({ policy: 0 })
  const copy = kvm.createVm('sev')
  assert.is(mirror(copy, source.fd), 0)
  assert.is(copy.guestStatus().handle, source.guestStatus().handle)
  const { KVM_SEV_LAUNCH_UPDATE_VMSA, KVM_SEV_GUEST_STATUS, KVM_SEV_DBG_DECRYPT, KVM_SEV_DBG_ENCRYPT } = SEV_COMMAND
  const allowed: readonly number[] = [KVM_SEV_LAUNCH_UPDATE_VMSA, KVM_SEV_GUEST_STATUS, KVM_SEV_DBG_DECRYPT, KVM_SEV_DBG_ENCRYPT]
  for (let id = 0; id < 104; id++) {
    if (allowed.includes(id)) continue
    assert.is(copy.memoryEncrypt(id).errno, -22, `command ${id}`)
  }
  refuses('EINVAL', () => copy.ioctl('KVM_MEMORY_ENCRYPT_REG_REGION', new Uint8Array(16)), 'regions')
  refuses('EINVAL', () => mirror(source, source.fd), 'itself')
  refuses('EINVAL', () => mirror(sevVm(kvm, 'sev').vm, source.fd), 'SEV already')
  refuses('EINVAL', () => mirror(kvm.createVm('sev'), copy.fd), 'a mirror of a mirror')
  refuses('EINVAL', () => mirror(kvm.createVm('sev'), kvm.createVm('sev').fd), 'not a SEV guest')
  const running = kvm.createVm('sev')
  running.createVcpu(0)
  refuses('EINVAL', () => mirror(running, source.fd), 'has vCPUs')
  refuses('EINVAL', () => mirror(kvm.createVm('snp'), sevVm(kvm, 'snp').vm.fd), 'SNP')
  // The mirror holds its owner: the context outlives the owner's descriptor.
  kvm.close(source.fd)
  assert.ok(copy.guestStatus().handle > 0)
  kvm.close(copy.fd)
  assert.is(kvm.kernel.psp.guests.size, 0)
})

test('a thousand moves keep the ASID and leak nothing', async () => {
  const kvm = await openKvm({ memory: 256 << 20 })
  let { vm } = sevVm(kvm, 'sev')
  vm.launchStart({ policy: 0 })
  const { handle } = vm.guestStatus()
  for (let i = 0; i < 1000; i++) {
    const next = kvm.createVm('sev')
    assert.is(move(next, vm.fd), 0)
    kvm.close(vm.fd)
    vm = next
  }
  assert.is(handleOf(vm), handle)
  assert.is(kvm.kernel.asids.size, 1)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 0) >= 0, true)
})

test.run()
