/** Bad usage and bad input: one clear line on stderr, status 122, no stack trace, nothing on stdout. */
import { availableParallelism } from 'node:os'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cloister, cloisterAsync, guest, type Outcome, root, workFolder } from './cli.ts'

const test = suite('usage')
const work = workFolder()
const text = work.put('notes.txt', 'this is not firmware\n'.repeat(600))
const empty = work.put('empty.bin', '')
const truncated = work.put('truncated.fd', new Uint8Array(12345).fill(0x90))
const kernel = work.put('kernel.elf', Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, ...new Uint8Array(4096)))
const log = work.put('vmm.log', 'openat(AT_FDCWD, "/dev/kvm", O_RDWR) = 3\nioctl(3, KVM_CREATE_VM, 0) = 4\n')
const profile = (name: string, value: unknown): string => work.put(name, JSON.stringify(value))
/** Passes every check of a firmware image: a reset vector that jumps. */
const firmware = work.put('firmware.fd', Uint8Array.of(...new Uint8Array(65520).fill(0x90), 0xeb, 0xfe, ...new Uint8Array(14).fill(0x90)))
/** The refusal of a file names the option and the path. */
const named = (option: string, path: string, rule: string): RegExp =>
  new RegExp(`--${option} ${path.replaceAll(/[.*+?^$()[\]{}|\\]/g, '\\$&')}: ${rule}`)
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
  ['a text file', ['run', '--firmware', text], named('firmware', text, 'no reset vector')],
  ['a truncated file', ['run', '--firmware', truncated], named('firmware', truncated, '12345 bytes')],
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
  ['a text file as kernel', ['run', '--kernel', text], named('kernel', text, 'neither a bzImage')],
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
  ['an empty value', ['run', ...flat, '--memory', ''], /--memory: ''/],
  ['memory that is not whole', ['run', ...flat, '--memory', '1.5G'], /--memory: '1.5G'/],
  ['memory that is too much', ['run', ...flat, '--memory', '4G'], /memory 4294967296.*MiB/],
  ['memory of half a page', ['run', ...flat, '--memory', '1050000'], /memory 1050000.*multiple of 4096/],
  ['smp 256', ['run', ...flat, '--smp', '256'], /smp 256.*255/],
  ['a CPU feature without sign', ['run', ...flat, '--cpu', 'EPYC-Milan,xsave'], /'xsave'.*\+xsave/],
  ['an unknown CPU feature', ['run', ...flat, '--cpu', 'EPYC-Milan,+foo'], /unknown CPU feature 'foo'/],
  ['a CPU feature that is not implemented', ['run', ...flat, '--cpu', 'default,+avx'], /'avx' is not implemented/],
  ["a vCPU type by a name of JavaScript's", ['run', ...flat, '--vcpu-type', 'toString'], /unknown vCPU type 'toString'/],
  ['features of an ordinary VM', ['run', ...flat, '--guest-features', '1'], /--guest-features.*confidential/],
  ['features that KVM does not have', ['run', '--type', 'sev-es', ...flat, '--guest-features', '2'], /KVM_SEV_INIT2.*vmsa_features 0x2/],
  ['an SEV-ES policy without ES', ['run', '--type', 'sev-es', ...flat, '--policy', '1'], /policy 0x1: bit 2 \(ES\) must be set/],
  ['an SEV policy with ES', ['run', '--type', 'sev', ...flat, '--policy', '5'], /policy 0x5: bit 2 \(ES\) must be clear/],
  ['a policy of 33 bits', ['run', '--type', 'sev-es', ...flat, '--policy', '0x100000005'], /policy 0x100000005.*32 bits/],
  ['max-instructions beyond numbers', ['run', ...flat, '--max-instructions', '1e400'], /--max-instructions: '1e400'/],
  ['seed below 0', ['run', ...flat, '--seed', '-1'], /--seed: '-1'/],
  ['seed of 65 bits', ['run', ...flat, '--seed', '0x10000000000000000'], /--seed: .*64 bits/],
  ['jit of another kind', ['run', ...flat, '--jit', 'maybe'], /--jit.*'maybe'.*on, off/],
  ['real time, not there yet', ['run', ...flat, '--real-time'], /'--real-time' is not there yet/],
  ['a value of a switch', ['run', ...flat, '--real-time=yes'], /--real-time.*no value/],
  ['no file name', ['run', '--firmware', ''], /--firmware: no file is named/],
  ['no report name', ['run', ...flat, '--report', ''], /--report: no file is named/],
  [
    'trace into a full device',
    ['run', ...flat, '--trace', 'exits', '--trace-file', '/dev/full'],
    /--trace-file \/dev\/full: no space left/,
  ],
  ['a device as firmware', ['run', '--firmware', '/dev/zero'], /\/dev\/zero: is not a file/],
  ['trace-file without trace', ['run', ...flat, '--trace-file', work.path('t')], /--trace-file wants --trace/],
  ['an address that is none', ['run', '--image', guest('flat.bin'), '--load', '1M', '--mode', 'long64'], /--load: '1M'.*0x100000/],
  ['an image where the page tables are', ['run', '--image', guest('flat.bin'), '--load', '0x1000', '--mode', 'long64'], /overlaps/],
  ['an entry that real mode does not reach', ['run', '--image', guest('flat.bin'), '--load', '0x100000', '--mode', 'real16'], /first MiB/],
  ['entry without image', ['run', '--entry', '0'], /--entry belongs to --image/],
  ['firmware and image', ['run', '--firmware', firmware, ...flat], /exclude each other/],
  ['kernel and image', ['run', '--kernel', text, ...flat], /exclude each other/],
  ['an initrd without kernel', ['run', ...flat, '--initrd', text], /needs a kernel/],
  ['a kernel without an entry', ['run', '--kernel', kernel], named('kernel', kernel, 'ELF without a PVH note')],
  [
    'a text file as kernel through firmware',
    ['run', '--firmware', firmware, '--kernel', text],
    named('kernel', text, 'neither a bzImage.*EFI'),
  ],
  ['a kernel of an SEV guest without firmware', ['run', '--type', 'sev', '--kernel', text], /through firmware only/],
  ['the last of two types counts', ['run', ...flat, '--type', 'sev', '--type', 'vms'], /unknown value 'vms'/],
  ['measure of 300 vCPUs', ['measure', '--type', 'sev-es', '--firmware', firmware, '--vcpus', '300'], /--vcpus 300.*255/],
  ['measure of snp, not there yet', ['measure', '--type', 'snp', '--firmware', firmware], /'snp' cannot be launched yet/],
  ['measure of nothing', ['measure', '--type', 'sev'], /give firmware/],
  [
    'measure, a text file as kernel',
    ['measure', '--type', 'sev', '--firmware', firmware, '--kernel', text],
    named('kernel', text, 'neither'),
  ],
  [
    'measure, explain and against',
    ['measure', '--type', 'sev', '--firmware', firmware, '--explain', '--against', 'a'.repeat(64)],
    /exclude/,
  ],
  [
    'measure, legacy type with features',
    ['measure', '--type', 'sev-es', '--legacy', '--firmware', firmware, '--guest-features', '1'],
    /0x1/,
  ],
  ['measure with an option of run', ['measure', '--type', 'sev', '--firmware', firmware, '--memory', '1G'], /unknown option '--memory'/],
  ['help of an unknown command', ['help', 'rnu'], /unknown command 'rnu'/],
  ['demo with an argument', ['demo', 'sev'], /unexpected argument 'sev'/],
  ['replay of nothing', ['replay'], /wants a log file/],
  ['replay of a text', ['replay', text], /no KVM ioctl in this log/],
  ['replay of two logs', ['replay', log, log], /unexpected argument/],
  ['replay with launch but no type', ['replay', log, '--launch'], /--launch wants --type/],
  ['replay, differences as JSON', ['replay', log, '--differences', '--json'], /exclude each other/],
  ['replay as an unknown type', ['replay', log, '--type', 'vms'], /unknown value 'vms'/],
  ['a phase that is none', ['policy', '--phase', 'during'], /'during'.*before, after/],
  ['diff of one', ['policy', '--diff', 'upstream'], /--diff wants two/],
  ['diff of an unknown kernel', ['policy', '--diff', 'linux:5', 'linux:7.3'], /'5'.*6\.12/],
  ['a profile file that is not there', ['policy', '--profile', './absent.json'], /absent\.json: no such file/],
  ['a profile that is no JSON', ['policy', '--profile', text], /notes\.txt: profile: not JSON/],
  ['a profile without overlays', ['policy', '--profile', profile('p1.json', { name: 'x' })], /needs name and overlays/],
  ['an overlay that is nothing', ['policy', '--profile', profile('p2.json', { name: 'x', overlays: [null] })], /overlay 0 needs/],
  ['policy of an unknown ioctl', ['policy', '--explain', 'KVM_GET_REG'], /KVM_GET_REG.*KVM_GET_REGS/],
]

/** All of them before the first test, as many at a time as there are processors: most of a case is the start of a process. */
const outcomes = new Map<string, Outcome>()
test.before(async () => {
  const waiting = [...cases]
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) outcomes.set(next[0], await cloisterAsync(next[1]))
  }
  await Promise.all(Array.from({ length: availableParallelism() }, worker))
})

for (const [name, , pattern] of cases) {
  test(name, () => {
    const { status, stdout, stderr } = outcomes.get(name) as Outcome
    assert.is(status, 122, stderr)
    assert.match(stderr, pattern)
    assert.is(stderr.trimEnd().split('\n').length, 1, stderr)
    assert.is(name === 'trace into a full device' ? '' : stdout, '')
  })
}

test('the names of the cases differ', () => {
  assert.is(outcomes.size, cases.length)
})

test('help and version', () => {
  assert.match(cloister(['--version']).stdout, /^\d+\.\d+\.\d+\n$/)
  for (const args of [
    ['--help'],
    ['run', '--help'],
    ['measure', '--help'],
    ['policy', '--help'],
    ['replay', '--help'],
    ['demo', '--help'],
    ['help', 'run'],
  ]) {
    const { status, stdout, stderr } = cloister(args)
    assert.is(status, 0, stderr)
    assert.match(stdout, /usage: cloister/)
  }
  assert.is(cloister([]).status, 122)
})

test.run()
