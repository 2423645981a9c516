/**
 * Conditions of the policy table, each reached through real state transitions by raw request codes and with its effect seen;
 * and the inventory: no words of the table without a case that shows them.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { existsSync, readFileSync } from 'node:fs'
import { openKvm, policyLines, policyTable, POLICY_TYPES, REQUEST, type VmType } from 'cloister'
import { CONDITIONS, phaseOf, UNSHOWN } from '../../host/generated/kvm-conditions.ts'
import { hostOf, NotReached, RawMachine } from './raw-machine.ts'
import { Script } from './script.ts'

/** Served by Linux, named as unimplemented by Cloister. */
const GAPS: readonly string[] = []

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`conditions for ${type}`, async () => {
    const host = hostOf(type)
    const hosts = await Promise.all(
      [host, host === 'amd' ? 'intel' : 'amd'].map((one) => openKvm({ memory: 256 << 20, host: one as 'amd' })),
    )
    const shared = hosts.map((kvm) => ({ memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }))
    const wrong: string[] = []
    const gaps = new Set<string>()
    let held = 0
    for (const one of CONDITIONS) {
      if (!one.types.includes(type)) continue
      assert.ok(policyTable().has(one.ioctl), one.ioctl)
      const at = one.otherHost ? 1 : 0
      const kvm = hosts[at] as (typeof hosts)[0]
      kvm.kernel.refusal = null
      const what = `${one.ioctl} [${one.setup.join(', ')}] ${one.call}`
      const machine = new RawMachine(kvm, one.otherHost ? 'default' : type, shared[at])
      if (one.otherHost) machine.asked = type
      machine.scratch.write(0x5000, new Uint8Array(0x2000))
      const script = new Script(machine)
      try {
        const failed = script.run(one)
        // No refusal may cost the VM: it and its vCPU still answer.
        const lost =
          kvm.ioctl(machine.vm, REQUEST.KVM_CHECK_EXTENSION, 235) < 0 ||
          (machine.vcpu >= 0 && kvm.ioctl(machine.vcpu, REQUEST.KVM_GET_MP_STATE, new Uint8Array(4)) < 0)
        if (lost) wrong.push(`${what}: the VM does not answer any more (${kvm.lastRefusal()?.reason})`)
        else if (failed === null) held++
        else if (kvm.lastRefusal()?.unimplemented) gaps.add(one.ioctl)
        else wrong.push(`${what}: ${failed}`)
      } catch (error) {
        if (!(error instanceof NotReached)) throw error
        if (kvm.lastRefusal()?.unimplemented) gaps.add(`${one.ioctl} (reaching it)`)
        else wrong.push(`${what}: not reached: ${error.message}`)
      }
      script.close()
    }
    assert.is(wrong.join('\n'), '')
    for (const kvm of hosts) assert.equal(kvm.kernel.internalErrors, [])
    assert.equal(
      [...gaps].filter((gap) => !GAPS.includes(gap)),
      [],
    )
    assert.ok(held >= (type === 'tdx' ? 200 : 300), `${held} held`)
    process.stdout.write(`  ${type}: ${held} conditions held${gaps.size > 0 ? `; not implemented yet: ${[...gaps].join(', ')}` : ''}\n`)
  })
}

/** Words of a detail that say something: the bare answer in front says nothing more than the cell. */
function clauses(detail: string): string[] {
  const bare = /^(ok(-\w+)?|special|-E[A-Z0-9]+)( for TDX)?$/
  return detail
    .split(/;(?![^(]*\))/)
    .map((clause) => clause.trim().replace(/^special: /, ''))
    .filter((clause) => clause !== '' && !bare.test(clause))
}

/** A case's words are of its own row, or of the one they name. */
function shows(own: string, words: string, ioctl: string, clause: string): boolean {
  const cut = words.indexOf(': ')
  const named = cut > 0 && policyTable().has(words.slice(0, cut))
  return (named ? words.slice(0, cut) : own) === ioctl && clause.includes(named ? words.slice(cut + 2) : words)
}

test('the inventory: every detail of the table is shown by a case, in its phase', () => {
  const missing: string[] = []
  const used = new Set<object>()
  let cells = 0
  for (const line of policyLines()) {
    if (!line.conditional && line.detail === '') continue
    // Requests of /dev/kvm have no phase.
    if (line.scope === 'system' && line.phase === 'after') continue
    cells++
    const here = CONDITIONS.filter((c) => c.types.includes(line.type) && (line.scope === 'system' || phaseOf(c) === line.phase))
    const own = here.filter((c) => c.ioctl === line.ioctl)
    const where = `${line.ioctl} ${line.type} ${line.phase}`
    const unshown = (words: string): boolean => {
      const entry = UNSHOWN.find(
        (u) => u.ioctl === line.ioctl && u.types.includes(line.type) && (u.phase ?? line.phase) === line.phase && words.includes(u.words),
      )
      if (entry !== undefined) used.add(entry)
      return entry !== undefined
    }
    const expects = (what: string): boolean => own.some((c) => c.expect === what || c.sees.some((s) => s.split('=>')[1]?.trim() === what))
    if (line.result.startsWith('ok') && !own.some((c) => c.expect === 'ok' || c.expect.startsWith('=')) && !unshown('ok'))
      missing.push(`${where}: ok`)
    if (line.result === 'error' && !expects(line.errno as string) && !unshown(`-${line.errno}`)) missing.push(`${where}: ${line.errno}`)
    for (const clause of clauses(line.detail)) {
      if (unshown(clause)) continue
      const shown = here.filter((c) => c.shows.some((words) => shows(c.ioctl, words, line.ioctl, clause)))
      // An errno in brackets inside the kernel is no answer to anybody.
      const errnos = clause.replace(/ \(svm_get_msr[^)]*\)/, '').match(/-E[A-Z0-9]+/g) ?? []
      for (const errno of errnos) {
        const name = errno.slice(1)
        if (!expects(name) && !shown.some((c) => c.expect === name)) missing.push(`${where}: ${errno} of "${clause}"`)
      }
      if (errnos.length === 0 && shown.length === 0) missing.push(`${where}: "${clause}"`)
    }
  }
  assert.is(missing.join('\n'), '')
  assert.ok(cells > 500, String(cells))
  // An exception that nothing needs any more goes; one that names a test names one that is there.
  assert.equal(
    UNSHOWN.filter((entry) => !used.has(entry)),
    [],
  )
  for (const { held } of UNSHOWN) {
    if (held === undefined) continue
    const [file, title] = held.split(': ') as [string, string]
    const path = `tests/kvm/${file}`
    assert.ok(existsSync(path) && readFileSync(path, 'utf8').includes(title), held)
  }
})

test.run()
