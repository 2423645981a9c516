/** First mistakes of every VMM author: the errno, a reason that helps, where Linux decides it, and the VM still usable. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, KvmError, openKvm, REQUEST, SEV_COMMAND, TDX_COMMAND, type VmType } from 'cloister'
import { expectRefused } from 'cloister/test'
import { hostOf, RawMachine } from './raw-machine.ts'

async function machine(type: VmType): Promise<RawMachine> {
  return new RawMachine(await openKvm({ memory: 256 << 20, host: hostOf(type) }), type)
}

function refused(m: RawMachine, errno: keyof typeof ERRNO, reason: RegExp, call: () => number): void {
  const refusal = expectRefused(m.kvm, errno, call)
  assert.match(refusal.reason, reason)
  assert.match(refusal.source, /\.[ch]/)
}

test('a vCPU before INIT2', async () => {
  const m = await machine('sev-es')
  m.do('vcpu')
  refused(m, 'EINVAL', /vCPUs exist/, () => m.command(SEV_COMMAND.KVM_SEV_INIT2, new Uint8Array(48)))
  refused(m, 'EINVAL', /INIT2/, () => (m.kvm.kernel.file(m.vcpu) as unknown as { run(n: number): number }).run(0))
})

test('pages that are not private before SNP_LAUNCH_UPDATE', async () => {
  const m = await machine('snp')
  m.do('init')
  const fd = m.ioctl('KVM_CREATE_GUEST_MEMFD', m.struct(64, 'u64@0=0x10000'))
  assert.is(m.ioctl('KVM_SET_USER_MEMORY_REGION2', m.struct(160, `u32@4=4 u64@16=0x10000 u64@24=$mem u32@40=${fd}`)), 0)
  assert.is(m.command(SEV_COMMAND.KVM_SEV_SNP_LAUNCH_START, m.struct(64, 'u64@0=0x30000')), 0)
  const update = () => m.command(SEV_COMMAND.KVM_SEV_SNP_LAUNCH_UPDATE, m.struct(64, 'u64@8=$mem u64@16=0x1000 u8@24=1'))
  refused(m, 'EIO', /private attribute/, update)
  assert.is(m.ioctl('KVM_SET_MEMORY_ATTRIBUTES', m.struct(32, 'u64@8=0x10000 u64@16=8')), 0)
  assert.is(update(), 0, m.kvm.lastRefusal()?.reason)
})

test('a TD without the split irqchip', async () => {
  const m = await machine('tdx')
  const params = m.struct(304, `u64@0=${1 << 28} u64@8=7 u32@256=1 u32@264=0x80000008 u32@276=${48 << 16}`)
  assert.is(m.command(TDX_COMMAND.KVM_TDX_INIT_VM, params), 0)
  refused(m, 'EINVAL', /SPLIT_IRQCHIP/, () => m.ioctl('KVM_CREATE_VCPU', 0))
  m.do('split')
  m.do('vcpu')
})

test('INIT_VCPU before a CPUID table with x2APIC; a run before FINALIZE', async () => {
  const m = await machine('tdx')
  m.do('init')
  m.do('vcpu')
  refused(m, 'EINVAL', /x2APIC.*KVM_SET_CPUID2/, () => m.command(TDX_COMMAND.KVM_TDX_INIT_VCPU, null, m.vcpu))
  refused(m, 'EINVAL', /not (initialised|finalised)/, () => (m.kvm.kernel.file(m.vcpu) as unknown as { run(n: number): number }).run(0))
  m.do('cpuid')
  assert.is(m.command(TDX_COMMAND.KVM_TDX_INIT_VCPU, null, m.vcpu), 0)
  refused(m, 'EINVAL', /not finalised/, () => (m.kvm.kernel.file(m.vcpu) as unknown as { run(n: number): number }).run(0))
})

test('a vCPU before KVM_TDX_INIT_VM', async () => {
  const m = await machine('tdx')
  m.do('split')
  refused(m, 'EIO', /KVM_TDX_INIT_VM/, () => m.ioctl('KVM_CREATE_VCPU', 0))
})

test('ASIDs exhausted', async () => {
  const kvm = await openKvm({ memory: 1 << 30 })
  const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
  let made = 0
  for (; made < 200; made++) {
    const m = new RawMachine(kvm, 'sev-es', shared)
    const result = m.command(SEV_COMMAND.KVM_SEV_INIT2, new Uint8Array(48))
    if (result === 0) continue
    assert.is(result, -ERRNO.EBUSY)
    assert.match(kvm.lastRefusal()?.reason ?? '', /no ASID is free/)
    // One goes, one comes.
    const first = kvm.kernel.files.findIndex((f) => f?.kind === 'vm')
    kvm.close(first)
    assert.is(m.command(SEV_COMMAND.KVM_SEV_INIT2, new Uint8Array(48)), 0)
    break
  }
  assert.is(made, 99)
})

test('EXIT_HYPERCALL: what may be asked for', async () => {
  const m = await machine('snp')
  refused(m, 'EINVAL', /KVM_HC_MAP_GPA_RANGE/, () => m.ioctl('KVM_ENABLE_CAP', m.struct(104, 'u32@0=201 u64@8=1')))
})

test('typed wrappers: KvmError with errno, ioctl, reason, source', async () => {
  const kvm = await openKvm({ memory: 64 << 20 })
  const vm = kvm.createVm('sev')
  try {
    vm.launchStart({ policy: 1 })
    assert.unreachable()
  } catch (error) {
    assert.instance(error, KvmError)
    const { errno, code, ioctl, reason, source } = error as KvmError
    assert.equal([errno, code, ioctl], [-25, 'ENOTTY', 'KVM_SEV_LAUNCH_START'])
    assert.match(reason, /not a SEV guest/)
    assert.match(source, /sev_launch_start/)
  }
  // The failure text of an expectation names the switch and the kernel function.
  const vcpu = kvm.createVm('default').createVcpu(0)
  assert.throws(
    () => expectRefused(kvm, 'EINVAL', () => kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)), 'KVM_GET_REGS'),
    /guest_state_protected.*kvm_arch_vcpu_ioctl_get_regs/,
  )
})

test.run()
