/**
 * The shim that runs KVM clients against the emulated /dev/kvm (selftests/shim.c), by a small client: calls, shared memory,
 * threads, signals, fork. Linux's own selftests are run by hand: `npm run suites:selftests`.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { needs } from '../support/needs.ts'

const test = suite('selftests shim')
const source = fileURLToPath(new URL('../../../tests/suites/selftests/', import.meta.url))
const server = fileURLToPath(new URL('./selftests/server.js', import.meta.url))

needs(test, 'shimHost', 'a client program on the emulated /dev/kvm', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'cloister-client-'))
  try {
    const build = (name: string, ...flags: string[]): string => {
      const out = join(scratch, name)
      const gcc = spawnSync('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', ...flags, '-o', out, join(source, `${name}.c`)], {
        encoding: 'utf8',
      })
      assert.is(gcc.status, 0, gcc.stderr)
      return out
    }
    const [shim, share, client] = [
      build('shim', '-shared', '-fPIC'),
      build('share', '-shared', '-fPIC'),
      build('client', '-pthread', '-no-pie'),
    ]
    for (const linux of ['6.12', '7.3']) {
      const run = spawnSync(process.execPath, [server, shim, 'amd', linux, client], {
        encoding: 'utf8',
        timeout: 60_000,
        killSignal: 'SIGKILL',
        env: { ...process.env, LD_PRELOAD: share },
      })
      assert.is(run.stdout, 'ok\n', run.stderr)
      assert.is(run.status, 0, run.stderr)
      assert.is(run.stderr, '')
    }
  } finally {
    rmSync(scratch, { recursive: true })
  }
})

assert.ok(existsSync(source))
test.run()
