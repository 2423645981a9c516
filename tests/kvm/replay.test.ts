/** `cloister replay`: strace's notations, ordinary and SEV-ES logs, the first difference and its reason. */
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isStruct, parseLog, requestOf } from '../../host/replay/log.ts'
import { replay } from '../../host/replay/replay.ts'
import { cloister } from '../cli/cli.ts'

const test = suite('replay')
const path = (name: string): string => new URL(`../../../tests/vectors/strace/${name}.strace`, import.meta.url).pathname
const log = (name: string): string => readFileSync(path(name), 'utf8')

test('notations of strace', () => {
  const calls = parseLog(log('ordinary'))
  const run = calls.filter((c) => requestOf(c.args[1]).name === 'KVM_RUN')
  assert.is(run.length, 4)
  // An unfinished call stands where it began, and returns after what came between.
  assert.is(run[0]?.line, 21)
  assert.is(run[0]?.result, 0n)
  assert.is(run[3]?.errno, 'EINTR')
  const slot = calls.find((c) => requestOf(c.args[1]).name === 'KVM_SET_USER_MEMORY_REGION')?.args[2]
  assert.ok(isStruct(slot) && slot.fields.get('userspace_addr') === 0x7f5a39c00000n && !slot.partial)
  const sregs = calls.find((c) => requestOf(c.args[1]).name === 'KVM_GET_SREGS')?.args[2]
  assert.ok(isStruct(sregs) && sregs.partial && isStruct(sregs.fields.get('cs')))
  const es = parseLog(log('sev-es'))
  assert.is(es.filter((c) => requestOf(c.args[1]).name === 'KVM_MEMORY_ENCRYPT_OP').length, 7)
  assert.is(es.find((c) => c.note !== '' && c.errno === null && c.name === 'ioctl')?.note, 'KVM_EXIT_IO')
  assert.is(requestOf('_IO(0xae, 0x1)').name, 'KVM_CREATE_VM')
  assert.is(requestOf('TCGETS').code, null)
  assert.equal(
    parseLog('ioctl(3, KVM_RUN\nnonsense {{{ [\nioctl(\n1 <... ioctl resumed>) = 0\nioctl(3, {a=[{b=1'),
    parseLog('ioctl(3, KVM_RUN\nioctl(\nioctl(3, {a=[{b=1').map((c, i) => ({ ...c, line: [1, 3, 5][i] as number })),
  )
})

test('an ordinary VMM: every call answered alike', async () => {
  const report = await replay(log('ordinary'))
  assert.is(report.type, 'default')
  assert.is(report.firstDifference, null, JSON.stringify(report.calls.filter((c) => c.verdict === 'differs')))
  assert.is(report.summary.unknown, 0)
  assert.ok(report.summary.same > 20)
})

test('the same VMM as an SEV-ES guest: KVM_RUN before INIT2, then, launched, the registers', async () => {
  const bare = await replay(log('ordinary'), { type: 'sev-es' })
  const first = bare.calls[bare.firstDifference ?? -1]
  assert.is(first?.ioctl, 'KVM_SET_USER_MEMORY_REGION')
  assert.is(first?.line, 12)
  assert.is(first?.switch, 'has_protected_state')
  assert.is(bare.calls.find((c) => c.ioctl === 'KVM_RUN')?.switch, 'need_init')
  const launched = await replay(log('ordinary'), { type: 'sev-es', launch: true })
  assert.is(launched.summary.injected, 6)
  const regs = launched.calls.find((c) => c.ioctl === 'KVM_GET_REGS')
  assert.is(regs?.verdict, 'differs')
  assert.is(regs?.answer, '-EINVAL')
  assert.is(regs?.switch, 'guest_state_protected')
  const run = launched.calls.find((c) => c.ioctl === 'KVM_RUN')
  assert.is(run?.answer, 'enters')
})

test('an SEV-ES launch: commands by their place, the first difference', async () => {
  const report = await replay(log('sev-es'))
  assert.is(report.type, 'sev-es')
  const commands = report.calls.filter((c) => c.ioctl.startsWith('KVM_MEMORY_ENCRYPT_OP'))
  assert.equal(
    commands.map((c) => c.ioctl.split(' ')[1]),
    ['INIT2', 'LAUNCH_START', 'LAUNCH_UPDATE_DATA', 'LAUNCH_UPDATE_VMSA', 'LAUNCH_MEASURE', 'LAUNCH_MEASURE', 'LAUNCH_FINISH'].map(
      (n) => `KVM_SEV_${n}`,
    ),
  )
  assert.ok(
    commands.every((c) => c.verdict === 'same'),
    JSON.stringify(commands),
  )
  const first = report.calls[report.firstDifference ?? -1]
  assert.is(first?.ioctl, 'KVM_SET_GUEST_DEBUG')
  assert.is(first?.line, 21)
})

test('the command: status, --json, bad input', () => {
  assert.is(cloister(['replay', path('ordinary')]).status, 0)
  const { status, stdout } = cloister(['replay', path('sev-es'), '--differences'])
  assert.is(status, 1)
  assert.match(stdout, /first difference: line 21: KVM_SET_GUEST_DEBUG .*guest_state_protected/)
  const json = cloister(['replay', path('ordinary'), '--type', 'sev-es', '--launch', '--json'])
  assert.is(json.status, 1)
  assert.is((JSON.parse(json.stdout) as { schema: number }).schema, 1)
  assert.is(cloister(['replay']).status, 122)
  assert.is(cloister(['replay', 'package.json']).status, 122)
})

test.run()
