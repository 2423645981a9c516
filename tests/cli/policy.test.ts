/** `cloister policy`: the contract's columns, differences, explanations. */
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cloister, command } from './cli.ts'

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
  const columns = ['ioctl', 'request', 'type', 'phase', 'result', 'errno', 'conditional', 'detail', 'switch', 'source']
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
})

test('a closed pipe ends silently', () => {
  const { status, stderr } = spawnSync('bash', ['-c', `set -o pipefail; "${process.execPath}" "${command}" policy --json | head -c 10`], { encoding: 'utf8' })
  assert.is(stderr, '')
  assert.is(status, 0)
})

test.run()
