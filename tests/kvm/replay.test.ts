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

// Recorded on this project's build host with strace 6.1 and QEMU 7.2, shortened to the calls on KVM.
for (const [name, least] of [
  ['qemu-q35-split-smp2', 200],
  ['qemu-q35-Xraw', 50],
  ['qemu-pc-ttt-i', 170],
  ['qemu-pc-smp2-v-yy-tt', 220],
  ['qemu-pc-user-irqchip', 130],
] as const) {
  test(`a real QEMU: ${name}`, async () => {
    const report = await replay(log(name))
    assert.is(report.firstDifference, null, JSON.stringify(report.calls[report.firstDifference ?? -1]))
    assert.ok(report.summary.same >= least, JSON.stringify(report.summary))
    assert.ok(report.summary.unknown <= 2 && report.summary.unimplemented === 0, JSON.stringify(report.summary))
  })
}

test('a real QEMU as a protected guest: what it would have to change first', async () => {
  const first = async (name: string, type: 'sev-es' | 'tdx'): Promise<string> => {
    const report = await replay(log(name), { type, launch: true })
    const call = report.calls[report.firstDifference ?? -1]
    return `${call?.ioctl} ${call?.answer} ${call?.switch}`
  }
  assert.is(await first('qemu-q35-split-smp2', 'sev-es'), 'KVM_SET_USER_MEMORY_REGION -EINVAL has_protected_state')
  assert.is(await first('qemu-pc-ttt-i', 'tdx'), 'KVM_CREATE_IRQCHIP -ENOTTY has_protected_eoi')
})

test('damaged logs: a report or one clear error, nothing else', async () => {
  let seed = 20201120
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
    return Math.floor((seed / 2 ** 32) * n)
  }
  const words = ['{', '}', '[', '"', '...', '=', ', ', '<unfinished ...>', '0x', 'KVM_RUN', '(', ')', '-1 E', '99999999999999999999', '\0']
  for (let round = 0; round < 60; round++) {
    const lines = log(['ordinary', 'sev-es', 'qemu-q35-Xraw', 'qemu-pc-ttt-i'][random(4)] as string).split('\n')
    for (let n = 1 + random(12); n > 0; n--) {
      const i = random(lines.length)
      const line = lines[i] as string
      const at = random(line.length + 1)
      const kind = random(4)
      if (kind === 0) lines[i] = line.slice(0, at)
      else if (kind === 1) lines[i] = line.slice(0, at) + (words[random(words.length)] as string) + line.slice(at + random(3))
      else if (kind === 2) lines.splice(i, 1)
      else lines.splice(random(lines.length), 0, line)
    }
    try {
      const report = await replay(lines.join('\n'), random(2) ? { type: 'sev-es', launch: true } : {})
      assert.ok(report.calls.length > 0)
    } catch (error) {
      assert.is((error as { code?: string }).code, 'log', `round ${round}: ${(error as Error).stack}`)
    }
  }
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
