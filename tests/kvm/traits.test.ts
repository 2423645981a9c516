/** A8: what a VM type's traits (spec/kvm-traits.ts) do to each request that meets them, before and after the seal, in both profiles. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type Kvm, openKvm, POLICY_TYPES, REQUEST } from 'cloister'
import { TRAITS, type Traits } from '../../host/generated/kvm-traits.ts'
import { hostOf, RawMachine } from './raw-machine.ts'

const TSC = 0x10
const FUTURE = 1n << 40n
const OFFSET = 0x123456789n
const KHZ = 1_000_000
const HOST_KHZ = 2_000_000

function bring(kvm: Kvm, { type, secureTsc }: Traits, seal: boolean): RawMachine {
  const machine = new RawMachine(kvm, type)
  for (const step of [secureTsc ? 'secure-tsc' : 'init', 'vcpu', 'cpuid']) machine.do(step)
  if (type === 'tdx') machine.do('td-vcpu')
  if (seal) {
    if (type === 'tdx') assert.is(machine.command(4), 0)
    else machine.do('seal')
  }
  return machine
}

function msr(machine: RawMachine, name: 'KVM_GET_MSRS' | 'KVM_SET_MSRS', value = 0n): { done: number; value: bigint } {
  const bytes = machine.struct(24, `u32@0=1 u32@8=${TSC} u64@16=${value}`)
  const done = machine.ioctl(name, bytes, machine.vcpu)
  return { done, value: new DataView(bytes.buffer).getBigUint64(16, true) }
}

function offset(machine: RawMachine): bigint {
  assert.is(machine.ioctl('KVM_GET_DEVICE_ATTR', machine.struct(24, 'u64@16=$buf'), machine.vcpu), 0)
  return new DataView(machine.scratch.read(Number(machine.buf - machine.scratch.address), 8).buffer).getBigUint64(0, true)
}

function tsc(machine: RawMachine, traits: Traits, what: string): void {
  const { kvm } = machine
  const before = offset(machine)
  // Scaling.
  const scaled = kvm.ioctl(machine.vcpu, REQUEST.KVM_SET_TSC_KHZ, KHZ)
  assert.is(scaled, traits.tscImmutable ? -ERRNO.EINVAL : 0, `${what}: KVM_SET_TSC_KHZ`)
  assert.is(kvm.ioctl(machine.vcpu, REQUEST.KVM_GET_TSC_KHZ, 0), traits.tscImmutable ? HOST_KHZ : KHZ, what)
  // The offset: always taken, and lost where it cannot be applied.
  machine.scratch.write(Number(machine.buf - machine.scratch.address), machine.struct(8, `u64@0=${OFFSET}`))
  assert.is(machine.ioctl('KVM_SET_DEVICE_ATTR', machine.struct(24, 'u64@16=$buf'), machine.vcpu), 0, `${what}: TSC_OFFSET`)
  machine.scratch.write(Number(machine.buf - machine.scratch.address), new Uint8Array(8))
  assert.is(offset(machine), traits.tscImmutable ? before : OFFSET, `${what}: TSC_OFFSET`)
  // IA32_TSC: no register of a TD's, counted and lost with Secure TSC.
  const written = msr(machine, 'KVM_SET_MSRS', FUTURE)
  assert.is(written.done, traits.type === 'tdx' ? 0 : 1, `${what}: IA32_TSC`)
  const read = msr(machine, 'KVM_GET_MSRS')
  assert.is(read.done, traits.type === 'tdx' ? 0 : 1, `${what}: IA32_TSC`)
  if (read.done === 1) assert.is(read.value >= FUTURE, !traits.tscImmutable, `${what}: IA32_TSC is 0x${read.value.toString(16)}`)
}

function eoi(kvm: Kvm, traits: Traits, what: string): void {
  const machine = new RawMachine(kvm, traits.type)
  const resample = (): number => machine.ioctl('KVM_IRQFD', machine.struct(32, 'u32@0=$eventfd u32@4=5 u32@8=2 u32@12=$eventfd'))
  assert.is(machine.ioctl('KVM_CREATE_IRQCHIP'), traits.eoiUnsupported ? -ERRNO.ENOTTY : 0, `${what}: KVM_CREATE_IRQCHIP`)
  if (traits.eoiUnsupported) machine.do('split')
  assert.is(resample(), traits.eoiUnsupported ? -ERRNO.EINVAL : 0, `${what}: a resampling irqfd`)
  // An ordinary one goes in either case, and the capability does not tell them apart.
  assert.is(machine.ioctl('KVM_IRQFD', machine.struct(32, 'u32@0=$eventfd u32@4=6')), 0, what)
  assert.is(machine.ioctl('KVM_CHECK_EXTENSION', 82), 1, what)
  machine.close()
}

function readonlySlot(machine: RawMachine, traits: Traits, what: string): void {
  const want = traits.readonlyUnsupported ? -ERRNO.EINVAL : 0
  for (const [name, size] of [
    ['KVM_SET_USER_MEMORY_REGION', 32],
    ['KVM_SET_USER_MEMORY_REGION2', 160],
  ] as const) {
    const slot = size === 32 ? 20 : 21
    const fields = `u32@0=${slot} u32@4=2 u64@8=0x${slot}00000 u64@16=0x1000 u64@24=$mem`
    assert.is(machine.ioctl(name, machine.struct(size, fields)), want, `${what}: ${name}`)
    if (want !== 0) assert.is(machine.kvm.lastRefusal()?.switch, 'has_protected_state', what)
  }
  assert.is(machine.ioctl('KVM_CHECK_EXTENSION', 81), traits.readonlyUnsupported ? 0 : 1, `${what}: KVM_CAP_READONLY_MEM`)
}

for (const profile of ['upstream', 'rfc-2020'] as const) {
  test(`traits of every VM type, ${profile}`, async () => {
    for (const host of ['amd', 'intel'] as const) {
      const kvm = await openKvm({ memory: 256 << 20, host, profile })
      for (const traits of TRAITS) {
        if (hostOf(traits.type) !== host) continue
        for (const seal of [false, true]) {
          const what = `${traits.type}${traits.secureTsc ? ' with Secure TSC' : ''}${seal ? ', sealed' : ''}`
          const machine = bring(kvm, traits, seal)
          tsc(machine, traits, what)
          readonlySlot(machine, traits, what)
          machine.close()
        }
        eoi(kvm, traits, traits.type)
      }
      assert.equal(kvm.kernel.internalErrors, [])
    }
  })
}

test('every VM type has its traits', () => {
  assert.equal([...new Set(TRAITS.map((t) => t.type))], [...POLICY_TYPES])
})

test.run()
