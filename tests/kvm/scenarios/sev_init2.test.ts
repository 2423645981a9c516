/** In the manner of selftests x86/sev_init2_tests: which VM types, flags, features and GHCB versions KVM_SEV_INIT2 takes. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm, REQUEST, SEV_COMMAND, type VmType } from 'cloister'
import { RawMachine } from '../raw-machine.ts'

const KVM_X86_GRP_SEV = 1
const KVM_X86_SEV_VMSA_FEATURES = 0
const init = (machine: RawMachine, vmsa = 0n, flags = 0, version = 0): number =>
  machine.command(SEV_COMMAND.KVM_SEV_INIT2, machine.struct(48, `u64@0=${vmsa} u32@8=${flags} u16@12=${version}`))

async function each(type: VmType, run: (make: () => RawMachine) => void): Promise<void> {
  const kvm = await openKvm({ memory: 256 << 20 })
  const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
  let last: RawMachine | null = null
  run(() => {
    last?.close()
    last = new RawMachine(kvm, type, shared)
    return last
  })
}

async function features(): Promise<bigint> {
  const kvm = await openKvm({ memory: 64 << 20 })
  const system = kvm.open('/dev/kvm')
  const out = kvm.mmap(-1, 4096)
  const attr = new Uint8Array(24)
  const view = new DataView(attr.buffer)
  view.setUint32(4, KVM_X86_GRP_SEV, true)
  view.setBigUint64(8, BigInt(KVM_X86_SEV_VMSA_FEATURES), true)
  view.setBigUint64(16, out.address, true)
  assert.is(kvm.ioctl(system, REQUEST.KVM_HAS_DEVICE_ATTR, attr), 0)
  assert.is(kvm.ioctl(system, REQUEST.KVM_GET_DEVICE_ATTR, attr), 0)
  return new DataView(out.read(0, 8).buffer).getBigUint64(0, true)
}

test('types that have INIT2, and those that have not', async () => {
  for (const [type, want] of [
    ['sev', 0],
    ['sev-es', 0],
    ['snp', 0],
    ['default', -22],
  ] as const) {
    await each(type, (make) => assert.is(init(make()), want, type))
  }
})

test('every flag bit is refused', async () => {
  for (const type of ['sev', 'sev-es', 'snp'] as const) {
    await each(type, (make) => {
      for (let bit = 0; bit < 32; bit++) assert.is(init(make(), 0n, (2 ** bit) | 0), -22, `${type} flag ${bit}`)
    })
  }
})

test('VMSA features: none for SEV, the advertised ones for SEV-ES', async () => {
  const supported = await features()
  await each('sev', (make) => {
    for (let bit = 0n; bit < 64n; bit++) assert.is(init(make(), 1n << bit), -22, `feature ${bit}`)
  })
  await each('sev-es', (make) => {
    for (let bit = 0n; bit < 64n; bit++) {
      const secureTsc = bit === 9n
      const want = (supported & (1n << bit)) !== 0n && !secureTsc ? 0 : -22
      assert.is(init(make(), 1n << bit), want, `feature ${bit}`)
    }
  })
})

test('GHCB versions, and a second time', async () => {
  await each('sev', (make) => assert.is(init(make(), 0n, 0, 1), -22))
  await each('sev-es', (make) => {
    for (const [version, want] of [
      [0, 0],
      [1, 0],
      [2, 0],
      [3, -22],
    ] as const)
      assert.is(init(make(), 0n, 0, version), want, `version ${version}`)
    const machine = make()
    assert.is(init(machine), 0)
    assert.is(init(machine), -22)
    // Refused, and the VM is still usable.
    assert.ok(machine.ioctl('KVM_CREATE_VCPU', 0) >= 0)
  })
  await each('snp', (make) => assert.is(init(make(), 0n, 0, 1), -22))
})

test('a vCPU before INIT2 makes INIT2 impossible', async () => {
  await each('sev-es', (make) => {
    const machine = make()
    assert.ok(machine.ioctl('KVM_CREATE_VCPU', 0) >= 0)
    assert.is(init(machine), -22)
    assert.match(machine.kvm.lastRefusal()?.reason ?? '', /vCPUs exist/)
  })
})

test.run()
