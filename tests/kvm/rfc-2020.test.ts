/** Profile rfc-2020 by value: the deny list of mail 000, and A3, A4, A6, E3 for legacy SEV-ES; every other type inherits upstream. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  CAP,
  ERRNO,
  type Kvm,
  openKvm,
  policyLines,
  policyTable,
  POLICY_TYPES,
  REQUEST,
  RUN,
  type Vcpu,
  type Vm,
  type VmType,
} from 'cloister'
import { RawMachine } from './raw-machine.ts'

const DENIED = (
  'INTERRUPT SMI X86_SETUP_MCE X86_SET_MCE GET_DEBUGREGS SET_DEBUGREGS GET_XSAVE SET_XSAVE GET_XCRS SET_XCRS GET_REGS SET_REGS ' +
  'GET_SREGS SET_SREGS SET_GUEST_DEBUG GET_FPU SET_FPU GET_MP_STATE SET_MP_STATE'
)
  .split(' ')
  .map((name) => `KVM_${name}`)

async function sealed(type: VmType, profile: 'rfc-2020' | 'upstream', seal = true): Promise<{ kvm: Kvm; vm: Vm; vcpu: Vcpu }> {
  const kvm = await openKvm({ memory: 128 << 20, profile })
  const vm = kvm.createVm(type)
  vm.sevInit()
  const memory = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000, userspaceAddr: memory.address })
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid2(kvm.supportedCpuid())
  if (seal) {
    vm.launchStart({ policy: 5 })
    vm.launchUpdateVmsa()
    vm.launchMeasure()
    vm.launchFinish()
  }
  return { kvm, vm, vcpu }
}

test('A1, A2: the list of mail 000 is the TDX column', () => {
  const rfc = policyTable('rfc-2020')
  const tdx = POLICY_TYPES.indexOf('tdx')
  for (const name of DENIED) {
    for (const phase of [0, 1]) {
      const rule = rfc.get(name)?.rules[tdx]?.[phase]
      assert.is(`${rule?.result}:${rule?.errno}:${rule?.conditional}`, 'error:EINVAL:false', name)
      assert.match(rule?.source ?? '', /mail 000/)
    }
  }
  // Nothing beyond the list is newly denied.
  const upstream = policyLines('upstream')
  const newly = policyLines('rfc-2020').filter(
    (line, i) => line.type === 'tdx' && line.result === 'error' && upstream[i]?.result !== 'error',
  )
  assert.ok(newly.every((line) => DENIED.includes(line.ioctl)))
})

test('A3: kvm_run of a protected guest holds dummies', async () => {
  for (const profile of ['rfc-2020', 'upstream'] as const) {
    const { vcpu } = await sealed('sev-es-legacy', profile)
    vcpu.runView.setBigUint64(RUN.CR8, 5n, true)
    vcpu.runView.setUint8(RUN.REQUEST_INTERRUPT_WINDOW, 1)
    vcpu.runRaw(10)
    if (profile === 'rfc-2020') assert.is(vcpu.runView.getBigUint64(RUN.CR8, true), 0n)
    assert.is(vcpu.runView.getUint8(RUN.REQUEST_INTERRUPT_WINDOW), 1)
    if (profile === 'rfc-2020') {
      assert.is(vcpu.runView.getUint8(RUN.IF_FLAG), 0)
      assert.is(vcpu.runView.getUint8(RUN.READY_FOR_INTERRUPT_INJECTION), 0)
      assert.is(vcpu.runView.getBigUint64(RUN.APIC_BASE, true), 0n)
    } else assert.is(vcpu.runView.getBigUint64(RUN.APIC_BASE, true), 0xfee00900n)
  }
})

test("A3 on a real TD: every way out of KVM_RUN exports dummies, upstream KVM's copies", async () => {
  for (const profile of ['rfc-2020', 'upstream'] as const) {
    const kvm = await openKvm({ memory: 128 << 20, host: 'intel', profile })
    const machine = new RawMachine(kvm, 'tdx')
    for (const step of ['init', 'vcpu', 'cpuid']) machine.do(step)
    const bytes = kvm.mmap(machine.vcpu, 12288).bytes as Uint8Array
    const view = new DataView(bytes.buffer, bytes.byteOffset, 4096)
    const run = (immediate: number, want: number, base: bigint): void => {
      view.setUint8(RUN.IMMEDIATE_EXIT, immediate)
      view.setUint8(RUN.IF_FLAG, 1)
      view.setUint8(RUN.READY_FOR_INTERRUPT_INJECTION, 9)
      view.setBigUint64(RUN.CR8, 0x77n, true)
      view.setBigUint64(RUN.APIC_BASE, 0x77n, true)
      view.setUint8(RUN.REQUEST_INTERRUPT_WINDOW, 1)
      assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_RUN, 0), want)
      assert.is(view.getUint8(RUN.IF_FLAG), 0, profile)
      assert.is(view.getBigUint64(RUN.CR8, true), 0n, profile)
      assert.is(view.getBigUint64(RUN.APIC_BASE, true), profile === 'upstream' ? base : 0n, profile)
      assert.is.not(view.getUint8(RUN.READY_FOR_INTERRUPT_INJECTION), 9, profile)
      if (profile === 'rfc-2020') assert.is(view.getUint8(RUN.READY_FOR_INTERRUPT_INJECTION), 0)
      assert.is(view.getUint8(RUN.REQUEST_INTERRUPT_WINDOW), 1, 'userspace owns it')
    }
    run(0, -ERRNO.EINVAL, 0xfee00900n)
    run(1, -ERRNO.EINTR, 0xfee00900n)
    machine.do('td-vcpu')
    run(0, -ERRNO.EINVAL, 0xfee00d00n)
    assert.is(machine.command(4), 0)
    // From here on the module would run it, and its absence is named.
    run(0, -ERRNO.ENOSYS, 0xfee00d00n)
  }
})

test('A4: events report and accept NMI_PENDING alone, and round-trip', async () => {
  const events = (kvm: Kvm, vcpu: Vcpu): [Uint8Array, DataView] => {
    const bytes = new Uint8Array(64)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_VCPU_EVENTS, bytes), 0)
    return [bytes, new DataView(bytes.buffer)]
  }
  const { kvm, vcpu } = await sealed('sev-es-legacy', 'rfc-2020')
  const [bytes, view] = events(kvm, vcpu)
  assert.is(view.getUint32(20, true), 1)
  assert.is(view.getUint8(11), 0)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_VCPU_EVENTS, bytes), 0)
  for (const flag of [2, 4, 8]) {
    view.setUint32(20, 1 | flag, true)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_VCPU_EVENTS, bytes), -ERRNO.EINVAL, `flag ${flag}`)
  }
  // Unprotected, and types that the profile does not define: upstream.
  for (const [type, seal] of [
    ['sev-es-legacy', false],
    ['sev-es', true],
  ] as const) {
    const other = await sealed(type, 'rfc-2020', seal)
    assert.is(events(other.kvm, other.vcpu)[1].getUint32(20, true) & 0xd, 0xd, type)
  }
})

test('A6, D6: sync registers', async () => {
  const answers = async (type: VmType, profile: 'rfc-2020' | 'upstream', seal: boolean): Promise<number[]> => {
    const { kvm, vm, vcpu } = await sealed(type, profile, seal)
    const masks = [1, 2, 4].map((bit) => {
      vcpu.runView.setBigUint64(RUN.VALID_REGS, BigInt(bit), true)
      vcpu.runView.setUint8(RUN.IMMEDIATE_EXIT, 1)
      return vcpu.runRaw(0) === -ERRNO.EINVAL ? 0 : bit
    })
    assert.is(
      masks.reduce((a, b) => a | b, 0),
      vm.checkExtension('KVM_CAP_SYNC_REGS'),
      `${type} ${profile}`,
    )
    assert.ok(kvm)
    return masks
  }
  assert.equal(await answers('sev-es-legacy', 'rfc-2020', false), [1, 2, 4])
  assert.equal(await answers('sev-es-legacy', 'rfc-2020', true), [0, 0, 4])
  assert.equal(await answers('sev-es-legacy', 'upstream', true), [1, 2, 4])
  assert.equal(await answers('sev-es', 'rfc-2020', true), [0, 0, 0])
  assert.equal(await answers('sev-es', 'upstream', false), [0, 0, 0])
})

test('E3: FPU state is refused from time zero, upstream only after the seal', async () => {
  for (const name of ['KVM_GET_FPU', 'KVM_SET_FPU', 'KVM_GET_XSAVE', 'KVM_SET_XSAVE'] as const) {
    for (const seal of [false, true]) {
      const rfc = await sealed('sev-es-legacy', 'rfc-2020', seal)
      assert.is(rfc.kvm.ioctl(rfc.vcpu.fd, REQUEST[name], new Uint8Array(4096)), -ERRNO.EINVAL, name)
      assert.match(rfc.kvm.lastRefusal()?.source ?? '', /mail 004/)
      const up = await sealed('sev-es-legacy', 'upstream', seal)
      assert.is(up.kvm.ioctl(up.vcpu.fd, REQUEST[name], new Uint8Array(4096)), 0, name)
    }
  }
})

test('A1, A2, A4, A6 on a real TD, before and after it is sealed', async () => {
  for (const seal of [false, true]) {
    const kvm = await openKvm({ memory: 128 << 20, host: 'intel', profile: 'rfc-2020' })
    const machine = new RawMachine(kvm, 'tdx')
    machine.do('init')
    machine.do('vcpu')
    if (seal) machine.do('seal')
    for (const name of DENIED as readonly (keyof typeof REQUEST)[]) {
      assert.is(kvm.ioctl(machine.vcpu, REQUEST[name], new Uint8Array(4096)), -ERRNO.EINVAL, name)
      assert.match(kvm.lastRefusal()?.source ?? '', /mail 000/, name)
    }
    const events = new Uint8Array(64)
    assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_GET_VCPU_EVENTS, events), 0)
    assert.is(new DataView(events.buffer).getUint32(20, true), 1)
    assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_SET_VCPU_EVENTS, events), 0)
    assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_SET_VCPU_EVENTS, machine.struct(64, 'u32@20=5')), -ERRNO.EINVAL)
    // A7: no exception is injected.
    assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_SET_VCPU_EVENTS, machine.struct(64, 'u8@0=1 u8@1=13 u32@20=1')), -ERRNO.EINVAL)
    assert.is(kvm.ioctl(machine.vm, REQUEST.KVM_CHECK_EXTENSION, CAP.KVM_CAP_SYNC_REGS), 4)
    // A8: no EOI interception, no read-only slots.
    assert.is(
      kvm.ioctl(machine.vm, REQUEST.KVM_SET_USER_MEMORY_REGION, machine.struct(32, 'u32@4=2 u64@16=0x1000 u64@24=$mem')),
      -ERRNO.EINVAL,
    )
  }
})

test('a VM that is not SEV-ES yet is an ordinary one', async () => {
  const kvm = await openKvm({ memory: 64 << 20, profile: 'rfc-2020' })
  const vcpu = kvm.createVm('default').createVcpu(0)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_FPU, new Uint8Array(416)), 0)
})

/** The kernel's own object behind a vCPU's file descriptor. */
type Inside = { askGuestState(op: 'get_cpl' | 'get_interrupt_shadow' | 'cache_reg(CR4)'): number; preemptedInKernel: boolean }

test('A5: no request asks for the state of a protected guest; who asks from inside meets a named bug, and the VM is dead', async () => {
  for (const op of ['get_cpl', 'get_interrupt_shadow'] as const) {
    const { kvm, vcpu } = await sealed('sev-es-legacy', 'rfc-2020')
    const inside = kvm.kernel.file(vcpu.fd) as unknown as Inside
    // Every request of a vCPU, and being scheduled out.
    for (const row of policyTable('rfc-2020').values()) {
      const name = row.ioctl.split(/[@ ]/)[0] as keyof typeof REQUEST
      if (row.scope !== 'vcpu' || row.request === null || name === 'KVM_RUN') continue
      const size = (REQUEST[name] >>> 16) & 0x3fff
      kvm.ioctl(vcpu.fd, REQUEST[name], size === 0 ? 0 : new Uint8Array(Math.max(size, 64)))
    }
    assert.is(vcpu.runRaw(0), -ERRNO.EINTR)
    assert.is(inside.preemptedInKernel, true)
    assert.equal(kvm.kernel.internalErrors, [])
    assert.throws(() => inside.askGuestState(op), new RegExp(`KVM_BUG_ON: ${op} of a protected guest`))
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_MP_STATE, new Uint8Array(4)), -ERRNO.EIO)
    assert.match(kvm.lastRefusal()?.reason ?? '', new RegExp(`KVM_BUG_ON: ${op}`))
  }
  // Unprotected: an answer. Upstream, and types that the profile does not define: neutral values.
  const plain = await sealed('sev-es-legacy', 'rfc-2020', false)
  assert.is((plain.kvm.kernel.file(plain.vcpu.fd) as unknown as Inside).askGuestState('get_cpl'), 0)
  for (const [type, profile] of [
    ['sev-es-legacy', 'upstream'],
    ['sev-es', 'rfc-2020'],
  ] as const) {
    const { kvm, vcpu } = await sealed(type, profile)
    const inside = kvm.kernel.file(vcpu.fd) as unknown as Inside
    assert.is(inside.askGuestState('get_cpl'), 0)
    assert.is(inside.askGuestState('get_interrupt_shadow'), 0)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_MP_STATE, new Uint8Array(4)), 0)
  }
})

test('A5 on a real TD: KVM_X86_SET_MCE of upstream asks for CR4 and gets nothing, the proposal is never asked', async () => {
  for (const profile of ['upstream', 'rfc-2020'] as const) {
    const kvm = await openKvm({ memory: 128 << 20, host: 'intel', profile })
    const machine = new RawMachine(kvm, 'tdx')
    for (const step of ['init', 'vcpu', 'seal']) machine.do(step)
    const inside = kvm.kernel.file(machine.vcpu) as unknown as Inside
    const mce = machine.struct(64, 'u64@0=0xa000000000000000')
    kvm.ioctl(machine.vcpu, REQUEST.KVM_X86_SETUP_MCE, machine.struct(8, 'u64@0=10'))
    assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_X86_SET_MCE, mce), profile === 'upstream' ? 0 : -ERRNO.EINVAL)
    assert.equal(kvm.kernel.internalErrors, [])
    for (const op of ['get_cpl', 'get_interrupt_shadow', 'cache_reg(CR4)'] as const) {
      if (profile === 'upstream') assert.is(inside.askGuestState(op), 0, op)
      else assert.throws(() => inside.askGuestState(op), /KVM_BUG_ON/, op)
    }
    assert.is(kvm.ioctl(machine.vm, REQUEST.KVM_GET_CLOCK, new Uint8Array(48)), profile === 'upstream' ? 0 : -ERRNO.EIO)
  }
})

test.run()
