/** `cloister policy`: the contract's columns, differences, explanations. */
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cloister, command, workFolder } from './cli.ts'

const test = suite('policy')

interface Line {
  ioctl: string
  type: string
  phase: string
  result: string
  errno: string | null
}

test('the table as JSON has the columns of the contract', () => {
  const { status, stdout } = cloister(['policy', '--json'])
  assert.is(status, 0)
  const lines = JSON.parse(stdout) as Line[]
  const columns = ['ioctl', 'request', 'type', 'phase', 'result', 'errno', 'conditional', 'detail', 'switch', 'source', 'scope']
  for (const line of lines) assert.equal(Object.keys(line), columns)
  const find = (ioctl: string, type: string, phase: string) => lines.find((l) => l.ioctl === ioctl && l.type === type && l.phase === phase)
  assert.is(find('KVM_GET_REGS', 'sev-es', 'after')?.errno, 'EINVAL')
  assert.is(find('KVM_GET_REGS', 'sev', 'after')?.result, 'ok')
  assert.is(find('KVM_GET_REGS', 'sev-es', 'before')?.result, 'ok')
})

test('--type and --phase narrow it', () => {
  const lines = JSON.parse(cloister(['policy', '--json', '--type', 'sev-es', '--phase', 'after']).stdout) as Line[]
  assert.ok(lines.length > 50)
  assert.ok(lines.every((l) => l.type === 'sev-es' && l.phase === 'after'))
})

test('--diff: 0 for the same, 1 for different', () => {
  assert.is(cloister(['policy', '--diff', 'upstream', 'upstream']).status, 0)
  const { status, stdout } = cloister(['policy', '--diff', 'upstream', 'rfc-2020'])
  assert.is(status, 1)
  assert.match(stdout, /KVM_GET_REGS {2}tdx|KVM_GET_FPU/)
  assert.is(cloister(['policy', '--diff', 'linux:6.12', 'linux:7.3']).status, 1)
})

test('--explain names the kernel function', () => {
  const { status, stdout } = cloister(['policy', '--explain', 'get_regs', '--type', 'sev-es'])
  assert.is(status, 0)
  assert.match(stdout, /kvm_arch_vcpu_ioctl_get_regs/)
  assert.match(stdout, /after.*EINVAL/)
  assert.match(stdout, /switch {2}kvm|switch {2}vcpu/)
  assert.match(stdout, /mail 001 .*rule B2/)
  assert.match(cloister(['policy', '--explain', 'KVM_GET_REGS', '--type', 'snp', '--profile', 'rfc-2020']).stdout, /inherits upstream/)
  assert.is(cloister(['policy', '--explain', 'nonsense']).status, 122)
})

test('all 98 rows, for 7 types in 2 phases', () => {
  const lines = JSON.parse(cloister(['policy', '--json']).stdout) as Line[]
  assert.is(lines.length, 98 * 7 * 2)
})

test('a profile of JSON is layered on its base', () => {
  const file = workFolder().put(
    'strict.json',
    JSON.stringify({
      name: 'strict',
      base: 'rfc-2020',
      overlays: [{ ioctls: ['KVM_GET_REGS'], types: ['sev'], phase: 'after', cell: 'error:EPERM; not here' }],
    }),
  )
  const { status, stdout } = cloister(['policy', '--diff', 'rfc-2020', file, '--json'])
  assert.is(status, 1)
  const differing = JSON.parse(stdout) as { ioctl: string; type: string; b: Line }[]
  assert.is(differing.length, 1)
  assert.is(differing[0]?.b.errno, 'EPERM')
  const wrong = workFolder().put('wrong.json', '{"name":"x"}')
  assert.is(cloister(['policy', '--profile', wrong]).status, 122)
})

test('a closed pipe ends silently', () => {
  const { status, stderr } = spawnSync('bash', ['-c', `set -o pipefail; "${process.execPath}" "${command}" policy --json | head -c 10`], {
    encoding: 'utf8',
  })
  assert.is(stderr, '')
  assert.is(status, 0)
})

test.run()
