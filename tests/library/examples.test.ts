/** The programs in examples/ run and show what they say. */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

const test = suite('examples')
const run = (name: string): string => {
  const path = fileURLToPath(new URL(`../../examples/${name}.js`, import.meta.url))
  const { status, stdout, stderr } = spawnSync(process.execPath, [path], { encoding: 'utf8', timeout: 60_000 })
  assert.is(status, 0, stderr)
  return stdout
}

test('01: hello', () => {
  assert.is(run('01-hello'), 'A\nhalted after 7 instructions\n')
})

test('02: what is refused', () => {
  const text = run('02-refused')
  assert.match(text, /default +after : memory "a secret of the guest", rip 65520/)
  assert.match(text, /sev +before: memory "a secret of the guest"/)
  assert.not.match(text, /sev(-es)? +after : memory "a secret/)
  assert.match(text, /sev-es +after .*EINVAL/)
})

test('03: a hostile host', () => {
  const text = run('03-hostile-host')
  assert.match(text, /untouched: halted/)
  assert.match(text, /flipped: (?!halted)/)
})

test.run()
