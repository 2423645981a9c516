/** Bad usage and bad input: one clear line on stderr, status 122, no stack trace, nothing on stdout. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cloister, guest, root, workFolder } from './cli.ts'

const test = suite('usage')
const work = workFolder()
const text = work.put('notes.txt', 'this is not firmware\n'.repeat(600))
const empty = work.put('empty.bin', '')
const truncated = work.put('truncated.fd', new Uint8Array(12345).fill(0x90))
const flat = ['--image', guest('flat.bin'), '--load', '0x100000', '--mode', 'long64']

const cases: readonly (readonly [string, readonly string[], RegExp])[] = [
  ['unknown command', ['rnu'], /unknown command 'rnu'.*'run'/],
  ['unknown option before a command', ['--foo'], /unknown option '--foo'/],
  ['unknown option', ['run', '--firmwar', text], /unknown option '--firmwar'.*--firmware/],
  ['unknown type', ['run', '--type', 'sev-se', ...flat], /unknown value 'sev-se'.*default.*sev-es/],
  ['option without value', ['run', '--type'], /--type.*wants a value/],
  ['option as a value', ['run', '--firmware', '--type', 'sev'], /--firmware.*wants a value/],
  ['nothing to run', ['run'], /firmware|image/],
  ['missing file', ['run', '--firmware', work.path('absent')], /no such file/],
  ['a directory', ['run', '--firmware', root], /directory/],
  ['an empty file', ['run', '--firmware', empty], /empty/],
  ['a text file', ['run', '--firmware', text], /firmware/],
  ['a truncated file', ['run', '--firmware', truncated], /firmware/],
  ['memory 0', ['run', ...flat, '--memory', '0'], /memory/],
  ['memory 1T', ['run', ...flat, '--memory', '1T'], /memory/],
  ['memory nonsense', ['run', ...flat, '--memory', 'lots'], /--memory.*'lots'/],
  ['smp 0', ['run', ...flat, '--smp', '0'], /smp/],
  ['smp -1', ['run', ...flat, '--smp', '-1'], /smp/],
  ['smp 1.5', ['run', ...flat, '--smp', '1.5'], /smp/],
  ['max-instructions 0', ['run', ...flat, '--max-instructions', '0'], /instructions/],
  ['timeout 0', ['run', ...flat, '--timeout', '0'], /timeout/],
  ['timeout nonsense', ['run', ...flat, '--timeout', 'soon'], /timeout/],
  ['policy nonsense', ['run', ...flat, '--policy', 'xyz'], /policy/],
  ['policy of more than 64 bits', ['run', '--type', 'sev', ...flat, '--policy', '0x10000000000000000'], /--policy.*64 bits/],
  ['policy of an ordinary VM', ['run', ...flat, '--policy', '0x5'], /--policy.*confidential/],
  ['unknown mode', ['run', '--image', guest('flat.bin'), '--load', '0x100000', '--mode', 'long46'], /mode/],
  ['image without load', ['run', '--image', guest('flat.bin'), '--mode', 'long64'], /--load/],
  ['load without image', ['run', '--firmware', text, '--load', '0x1000'], /--load/],
  ['image outside memory', ['run', '--image', guest('flat.bin'), '--load', '0x40000000', '--mode', 'long64', '--memory', '16M'], /memory/],
  ['unknown kernel version', ['run', ...flat, '--linux', '5.4'], /6\.12.*7\.3/],
  ['unknown cpu model', ['run', ...flat, '--cpu', 'pentium-9'], /pentium-9/],
  ['unknown trace kind', ['run', ...flat, '--trace', 'exits,ghbc'], /'ghbc'.*ghcb/],
  ['report into a missing folder', ['run', ...flat, '--report', work.path('no/such/report.json')], /--report/],
  [
    'trace into a missing folder',
    ['run', ...flat, '--trace', 'exits', '--trace-file', work.path('no/such')],
    /--trace-file.*no such directory/,
  ],
  ['a text file as kernel', ['run', '--kernel', text], /kernel: neither a bzImage/],
  ['firmware-less, not there yet', ['run', '--firmware-less'], /not there yet/],
  ['snp, not there yet', ['run', '--type', 'snp', ...flat], /snp/],
  ['a command to come', ['attest', 'show', text], /not there yet/],
  ['stray argument', ['run', ...flat, 'stray'], /unexpected argument 'stray'/],
  ['measure of an ordinary VM', ['measure', '--firmware', text], /type/],
  ['measure against nonsense', ['measure', '--type', 'sev', '--firmware', truncated, '--against', 'abc'], /--against|firmware/],
  ['measure of no vCPU', ['measure', '--type', 'sev-es', '--firmware', truncated, '--vcpus', '0'], /--vcpus/],
  ['replay of a missing log', ['replay', work.path('absent')], /^cloister: LOG .*no such file/],
  ['diff with an unknown profile', ['policy', '--diff', 'upstream', 'rfc-2021'], /--diff.*rfc-2021/],
  ['diff and explain', ['policy', '--diff', 'upstream', 'rfc-2020', '--explain', 'KVM_RUN'], /exclude each other/],
  ['policy of an unknown type', ['policy', '--type', 'vms'], /unknown value 'vms'/],
  ['policy of an unknown profile', ['policy', '--profile', 'rfc-2021'], /rfc-2021.*rfc-2020/],
  ['policy of an unknown ioctl', ['policy', '--explain', 'KVM_GET_REG'], /KVM_GET_REG.*KVM_GET_REGS/],
]

for (const [name, args, pattern] of cases) {
  test(name, () => {
    const { status, stdout, stderr } = cloister(args)
    assert.is(status, 122, stderr)
    assert.match(stderr, pattern)
    assert.is(stderr.trimEnd().split('\n').length, 1, stderr)
    assert.is(stdout, '')
  })
}

test('help and version', () => {
  assert.match(cloister(['--version']).stdout, /^\d+\.\d+\.\d+\n$/)
  for (const args of [['--help'], ['run', '--help'], ['measure', '--help'], ['policy', '--help'], ['demo', '--help']]) {
    const { status, stdout, stderr } = cloister(args)
    assert.is(status, 0, stderr)
    assert.match(stdout, /usage: cloister/)
  }
  assert.is(cloister([]).status, 122)
})

test.run()
