/**
 * Linux's KVM selftests against the emulated /dev/kvm, one by one, with the outcome expected of each (expected.ts). The
 * tests are not part of this package: docs/selftests.md says how they are built beside it. Then
 *   npm run suites:selftests -- DIR [--linux 6.12|7.3] [--host amd|intel] [--timeout SECONDS] [--jobs N] [NAME...]
 * DIR holds the built programs (and its x86/ or x86_64/); NAMEs choose those that contain them. Prints a line per test and
 * a summary; status 1 if an outcome is not the expected one. Wants gcc, binutils and Linux.
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { has } from '../../support/needs.ts'
import { type Expectation, expectations, type Outcome } from './expected.ts'

const words = process.argv.slice(2)
function take(flag: string, otherwise: string): string {
  const at = words.indexOf(flag)
  return at < 0 ? otherwise : (words.splice(at, 2)[1] ?? otherwise)
}
const linux = take('--linux', '7.3')
const host = take('--host', 'amd')
const timeout = Number(take('--timeout', '120'))
const jobs = Number(take('--jobs', '2'))
const [folder, ...names] = words
if (folder === undefined || !existsSync(folder) || (linux !== '6.12' && linux !== '7.3') || (host !== 'amd' && host !== 'intel')) {
  process.stderr.write('usage: run.js DIR [--linux 6.12|7.3] [--host amd|intel] [--timeout SECONDS] [--jobs N] [NAME...]\n')
  process.exit(122)
}
if (!has('gcc') || !has('binutils') || process.platform !== 'linux') {
  process.stdout.write("# skip: Linux's KVM selftests (needs gcc, binutils and Linux)\n")
  process.exit(0)
}

/** The C files are compiled at each run: they are a few hundred lines. */
const source = fileURLToPath(new URL('../../../../tests/suites/selftests/', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'cloister-selftests-'))
function compile(name: string): string {
  const out = join(scratch, `${name}.so`)
  const result = spawnSync('gcc', ['-O2', '-shared', '-fPIC', '-o', out, join(source, `${name}.c`)], { encoding: 'utf8' })
  if (result.status !== 0) throw new Error(result.stderr)
  return out
}
const [shim, share] = [compile('shim'), compile('share')]
const server = fileURLToPath(new URL('./server.js', import.meta.url))

function programs(path: string, prefix = ''): string[] {
  return readdirSync(join(path, prefix)).flatMap((entry) => {
    const name = join(prefix, entry)
    const status = statSync(join(path, name))
    if (status.isDirectory()) return entry === 'lib' ? [] : programs(path, name)
    return (status.mode & 0o111) !== 0 && !entry.includes('.') ? [name] : []
  })
}

interface Result {
  readonly outcome: Outcome
  readonly seconds: number
  readonly output: string
}

/** KSFT exit codes: 0 pass, 4 skip. */
function outcomeOf(status: number | null): Outcome {
  return status === 0 ? 'pass' : status === 4 ? 'skip' : 'fail'
}

function run(program: string, { args = [], seconds = timeout }: Expectation): Promise<Result> {
  const start = performance.now()
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [server, shim, host, linux, join(folder as string, program), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      env: { ...process.env, LD_PRELOAD: share },
    })
    let output = ''
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()))
    let late = false
    const timer = setTimeout(() => {
      late = true
      process.kill(-(child.pid as number), 'SIGKILL')
    }, seconds * 1000)
    child.on('close', (status) => {
      clearTimeout(timer)
      resolve({ outcome: late ? 'timeout' : outcomeOf(status), seconds: (performance.now() - start) / 1000, output })
    })
  })
}

const list = programs(folder)
  .sort()
  .map((program) => ({ program, name: program.replace(/^x86(_64)?\//, '') }))
  .filter(({ name }) => names.length === 0 || names.some((n) => name.includes(n)))
const counts = new Map<string, number>()
let unexpected = 0
async function worker(): Promise<void> {
  for (let job = list.shift(); job !== undefined; job = list.shift()) {
    const { program, name } = job
    const expectation = expectations(host as 'amd' | 'intel', linux as '6.12' | '7.3')[name] ?? {}
    const { outcome: wanted = 'pass', why = '' } = expectation
    if (wanted === 'left-out') {
      counts.set(wanted, (counts.get(wanted) ?? 0) + 1)
      process.stdout.write(`--   ${name}: ${why}\n`)
      continue
    }
    const { outcome, seconds, output } = await run(program, expectation)
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1)
    const good = outcome === wanted
    if (!good) unexpected++
    const reason = why === '' ? '' : ` - ${why}`
    process.stdout.write(
      `${good ? 'ok  ' : 'BAD '} ${name}: ${outcome}${good ? reason : `, expected ${wanted}${reason}`} (${seconds.toFixed(1)} s)\n`,
    )
    if (!good)
      process.stdout.write(
        `${output
          .split('\n')
          .filter((l) => !l.includes('\t0x'))
          .slice(-14)
          .join('\n')}\n`,
      )
  }
}
await Promise.all(Array.from({ length: jobs }, worker))
rmSync(scratch, { recursive: true })
process.stdout.write(`${[...counts].map(([outcome, n]) => `${n} ${outcome}`).join(', ')}; ${unexpected} not as expected\n`)
process.exitCode = unexpected > 0 ? 1 : 0
