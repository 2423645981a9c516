/** In the manner of selftests x86/sev_migrate_tests: KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM and VM_COPY_ENC_CONTEXT_FROM (mirrors). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm, REQUEST, SEV_COMMAND, type Vm, type VmType } from 'cloister'
import { capability, refuses, sevVm } from './guest.ts'

const move = (to: Vm, from: number): number => capability(to, 'KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM', from)
const mirror = (to: Vm, from: number): number => capability(to, 'KVM_CAP_VM_COPY_ENC_CONTEXT_FROM', from)

test('a guest moves; the VM that it left is dead', async () => {
  const kvm = await openKvm({ memory: 256 << 20 })
  for (const type of ['sev', 'sev-legacy'] as const) {
    const { vm: source } = sevVm(kvm, type)
    source.launchStart({ policy: 0 })
    const handle = source.guestStatus().handle
    const first = kvm.createVm(type)
    assert.is(move(first, source.fd), 0)
    assert.is(first.guestStatus().handle, handle)
    refuses('EIO', () => source.ioctl('KVM_CHECK_EXTENSION', 0))
    refuses('EIO', () => source.createVcpu(0))
    // And on.
    const second = kvm.createVm(type)
    assert.is(move(second, first.fd), 0)
    assert.is(second.guestStatus().handle, handle)
    refuses('EIO', () => move(source, second.fd), 'a dead VM takes nothing')
    refuses('EINVAL', () => move(kvm.createVm(type), source.fd), 'a VM that was left is not a SEV guest')
  }
})

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
  assert.is(vm.guestStatus().handle, handle)
  assert.is(kvm.kernel.asids.size, 1)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 0) >= 0, true)
})

test.run()
