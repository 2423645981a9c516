/** Conditions of the policy table, each reached through real state transitions by raw request codes. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, openKvm, policyTable, POLICY_TYPES, REQUEST, type VmType } from 'cloister'
import { CONDITIONS } from '../../host/generated/kvm-conditions.ts'
import { hostOf, NotReached, RawMachine } from './raw-machine.ts'

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`conditions for ${type}`, async () => {
    const kvm = await openKvm({ memory: 256 << 20, host: hostOf(type) })
    const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
    const wrong: string[] = []
    const gaps = new Set<string>()
    let held = 0
    for (const { ioctl, types, setup, call, expect } of CONDITIONS) {
      if (!types.includes(type)) continue
      const name = ioctl.split('@')[0] as keyof typeof REQUEST
      assert.ok(policyTable().has(ioctl), ioctl)
      // Ciphertext of the last launch is not what the next one starts from.
      const machine = new RawMachine(kvm, type, shared)
      try {
        for (const step of setup) machine.do(step)
        const scope = policyTable().get(ioctl)?.scope
        const fd = scope === 'vcpu' ? machine.vcpu : machine.vm
        const size = name === 'KVM_MEMORY_ENCRYPT_OP' ? 24 : name === 'KVM_SET_GSI_ROUTING' ? 64 : (REQUEST[name] >>> 16) & 0x3fff
        const result = kvm.ioctl(fd, REQUEST[name], typeof call === 'number' ? call : machine.struct(size, call))
        const want = expect === 'ok' ? result >= 0 : result === -ERRNO[expect as keyof typeof ERRNO]
        if (want) held++
        else if (kvm.lastRefusal()?.unimplemented && result < 0) gaps.add(ioctl)
        else wrong.push(`${ioctl} [${setup.join(' ')}] ${call}: expected ${expect}, got ${result} (${kvm.lastRefusal()?.reason})`)
      } catch (error) {
        if (!(error instanceof NotReached)) throw error
        if (kvm.lastRefusal()?.unimplemented) gaps.add(`reaching [${setup.join(' ')}]`)
        else wrong.push(`${ioctl} [${setup.join(' ')}]: ${error.message}`)
      }
      machine.close()
    }
    assert.equal(wrong, [])
    assert.equal(kvm.kernel.internalErrors, [])
    assert.ok(held >= (type === 'tdx' ? 30 : 60), `${held} held`)
    if (gaps.size > 0) process.stdout.write(`  not implemented yet for ${type}: ${[...gaps].join(', ')}\n`)
  })
}

test.run()
