/**
 * Every refusal explains itself: each refusing cell of every table, and each refusal that random calls meet (tests/kvm/fuzzer),
 * has a reason, and a source that names a kernel function or a mail; `policy --explain` shows it for every row.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm, POLICY_TYPES, policyLines, policyTable, REQUEST, type VmType } from 'cloister'
import { expectRefused, ExpectationError } from 'cloister/test'
import { cloister } from '../cli/cli.ts'
import { explained } from './model/judge.ts'
import { hostOf, RawMachine } from './raw-machine.ts'

const FUNCTION = /[\w-]+\.[ch] .*[a-z_]{4}/

test('every refusing cell names its switch or its reason, and the kernel function or the mail', () => {
  const wrong: string[] = []
  let cells = 0
  for (const profile of ['upstream', 'rfc-2020']) {
    for (const linux of ['6.12', '7.3'] as const) {
      for (const line of policyLines(profile, linux)) {
        if (!FUNCTION.test(line.source)) wrong.push(`${line.ioctl}: ${line.source}`)
        if (line.result !== 'error') continue
        cells++
        // The last rows are their own reason: unknown requests, dead VMs.
        if (line.switch === null && line.detail === '' && line.ioctl.startsWith('KVM_'))
          wrong.push(`${profile} ${linux} ${line.ioctl} ${line.type} ${line.phase}: no reason`)
      }
    }
  }
  assert.equal([...new Set(wrong)], [])
  assert.ok(cells > 700, String(cells))
})

test('policy --explain: switch, kernel function and mail of each row', () => {
  const noted = new Set(['KVM_INTERRUPT', 'KVM_GET_REGS', 'KVM_RUN', 'KVM_SET_GUEST_DEBUG', 'KVM_GET_MP_STATE', 'KVM_X86_SETUP_MCE'])
  const { status, stdout } = cloister(['policy', '--json'])
  assert.is(status, 0)
  assert.is((JSON.parse(stdout) as unknown[]).length, policyLines().length)
  for (const name of noted) {
    const text = cloister(['policy', '--explain', name, '--type', 'tdx', '--phase', 'after']).stdout
    assert.match(text, /^ {2}source {2}.*\.c \w+/m, name)
    assert.match(text, /^ {2}switch {2}/m, name)
    assert.match(text, /mail 00\d .*rule [A-E]\d/, name)
  }
})

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`${type}: refusals of every row, by table and by argument, explain themselves`, async () => {
    const kvm = await openKvm({ memory: 256 << 20, host: hostOf(type) })
    let refusals = 0
    const wrong: string[] = []
    const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
    for (const setup of [[], ['init', 'vcpu'], ['init', 'slot', 'vcpu', 'cpuid', 'seal']] as const) {
      const machine = new RawMachine(kvm, type, shared)
      for (const step of setup) machine.do(step)
      for (const row of policyTable().values()) {
        const name = row.ioctl.split(/[@ ]/)[0] as keyof typeof REQUEST
        if (row.request === null || !(name in REQUEST) || name === 'KVM_RUN' || name === 'KVM_CREATE_VM' || name === 'KVM_CREATE_VCPU')
          continue
        const onVcpu = row.scope === 'vcpu'
        if (onVcpu && machine.vcpu < 0) continue
        const fd = row.scope.startsWith('system') ? machine.system : onVcpu ? machine.vcpu : machine.vm
        const size = (REQUEST[name] >>> 16) & 0x3fff
        for (const argument of [new Uint8Array(Math.max(size, 32)), new Uint8Array(Math.max(size, 32)).fill(255), 5n] as const) {
          const result = kvm.ioctl(fd, REQUEST[name], size === 0 ? -1 : argument)
          if (result >= 0) continue
          refusals++
          const refusal = kvm.lastRefusal()
          if (refusal === null || refusal.errno !== result || !explained(refusal))
            wrong.push(`${row.ioctl}: ${result} ${JSON.stringify(refusal)}`)
        }
      }
      machine.close()
    }
    assert.equal([...new Set(wrong)], [])
    assert.ok(refusals > 150, String(refusals))
  })
}

test('a failed expectation names the switch and the kernel function of every row', async () => {
  const kvm = await openKvm({ memory: 64 << 20 })
  for (const row of policyTable().values()) {
    const name = row.ioctl as keyof typeof REQUEST
    if (!(name in REQUEST)) continue
    try {
      expectRefused(kvm, 'EPERM', () => 0, name)
      assert.unreachable()
    } catch (error) {
      assert.instance(error, ExpectationError, String(error))
      const text = (error as Error).message
      assert.ok(text.includes(row.source) && text.includes(row.switch ?? 'no protection switch'), text)
    }
  }
})

test.run()
