/** `cloister measure` against digests of virtee/sev-snp-measure for Debian 12's OVMF.fd (tests/vectors/sev-es-digests.json). */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { needs, ovmfPath } from '../support/needs.ts'
import { cloister, guest, root } from './cli.ts'

const test = suite('measure')

interface Vectors {
  sha256: string
  initTwo: Record<string, string>
  legacy: Record<string, string>
}
const vectors = JSON.parse(readFileSync(`${root}tests/vectors/sev-es-digests.json`, 'utf8')) as Vectors
const path = ovmfPath() ?? ''
const known = path !== '' && createHash('sha256').update(readFileSync(path)).digest('hex') === vectors.sha256

function check(args: readonly string[], expected: string): void {
  const { status, stdout, stderr } = cloister(['measure', '--firmware', path, ...args])
  assert.is(status, 0, stderr)
  assert.is(stdout.trim(), expected)
}

needs(test, 'ovmf', 'sev-es digests of OVMF.fd', () => {
  assert.ok(known, `${path} is another image`)
  for (const [key, digest] of Object.entries(vectors.initTwo)) {
    const [vcpuType = '', vcpus = '1'] = key.split('/')
    check(['--type', 'sev-es', '--vcpu-type', vcpuType, '--vcpus', vcpus], digest)
  }
})

needs(test, 'ovmf', '--legacy digests of OVMF.fd', () => {
  for (const [key, digest] of Object.entries(vectors.legacy)) {
    const [vcpuType = '', vcpus = '1'] = key.split('/')
    check(['--type', 'sev-es', '--legacy', '--vcpu-type', vcpuType, '--vcpus', vcpus], digest)
  }
})

needs(test, 'ovmf', 'sev measures the image alone', () => {
  check(['--type', 'sev'], createHash('sha256').update(readFileSync(path)).digest('hex'))
})

needs(test, 'ovmf', '--against finds the variation, or says no', () => {
  const digest = vectors.initTwo['EPYC-Milan/2'] ?? Object.values(vectors.initTwo)[0] ?? ''
  const found = cloister(['measure', '--firmware', path, '--type', 'sev-es', '--against', digest])
  assert.is(found.status, 0, found.stderr)
})

const flat = ['--image', guest('sev-es.bin'), '--load', '0x200000', '--mode', 'long64']

test('an image without firmware is measured too; policy does not enter the digest', () => {
  const a = cloister(['measure', '--type', 'sev-es', ...flat])
  assert.is(a.status, 0, a.stderr)
  assert.match(a.stdout, /^[0-9a-f]{64}\n$/)
  assert.is(cloister(['measure', '--type', 'sev-es', ...flat, '--policy', '0x4']).stdout, a.stdout)
  assert.is.not(cloister(['measure', '--type', 'sev-es', ...flat, '--vcpus', '2']).stdout, a.stdout)
  assert.is.not(cloister(['measure', '--type', 'sev-es', '--legacy', ...flat]).stdout, a.stdout)
})

test('--explain ends with the digest', () => {
  const { status, stdout, stderr } = cloister(['measure', '--type', 'sev-es', ...flat, '--explain'])
  assert.is(status, 0, stderr)
  const lines = stdout.trimEnd().split('\n')
  assert.ok(lines.length > 2)
  assert.ok(lines.at(-2)?.endsWith(lines.at(-1) ?? '?'))
})

test.run()
