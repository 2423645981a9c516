/**
 * Runs every `*.test.js` under build/tests, each in a process of its own with a time limit, so that neither a leaked
 * handle nor an endless loop can hang the run. Arguments are substrings of file names. Ends with the line
 * `N passed, N failed[, N skipped]`; status 1 on a failure or, with CLOISTER_CI set, on a skip that
 * tests/allowed-skips.txt does not list.
 */
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const root = join(here, '../..')
const limit = Number(process.env['CLOISTER_TEST_SECONDS'] ?? 600) * 1000
/** How long a file may keep its process alive after its last result. */
const grace = 5000

interface Outcome {
  file: string
  passed: number
  failed: number
  skips: string[]
  seconds: number
  note: string
  output: string
}

function findTests(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true })
    .flatMap((entry) => {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) return findTests(path)
      return entry.name.endsWith('.test.js') ? [path] : []
    })
    .toSorted()
}

/** uvu prints one summary per process; colours are off because its output is a pipe. */
function summarise(file: string, output: string, code: number | null, note: string, seconds: number): Outcome {
  const count = (label: string) => [...output.matchAll(new RegExp(`${label}:\\s+(\\d+)`, 'g'))].reduce((sum, m) => sum + Number(m[1]), 0)
  const total = count('Total')
  const passed = count('Passed')
  const skipped = count('Skipped')
  const skips = [...output.matchAll(/^# skip: (.*)$/gm)].map((m) => m[1] ?? '')
  while (skips.length < skipped) skips.push(`${file}: a skip without a name`)
  let failed = Math.max(0, total - passed)
  if (note === '' && total === 0 && skipped === 0) note = 'ran no test'
  if (note === '' && code !== 0 && failed === 0) note = `exit status ${code}`
  if (note !== '' && failed === 0) failed = 1
  return { file, passed, failed, skips, seconds, note, output }
}

function runFile(path: string): Promise<Outcome> {
  const file = relative(here, path).replace(/\.js$/, '.ts')
  const start = performance.now()
  return new Promise((resolve) => {
    let output = ''
    let note = ''
    let lingering: NodeJS.Timeout | undefined
    const child = spawn(process.execPath, ['--enable-source-maps', path], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, FORCE_COLOR: '0', NO_COLOR: '1' },
    })
    const end = (why: string) => {
      note ||= why
      child.kill('SIGKILL')
    }
    const deadline = setTimeout(() => end(`no result within ${limit / 1000} s`), limit)
    const listen = (chunk: Buffer) => {
      output += chunk.toString()
      if (/^ {2}Skipped:/m.test(output)) lingering ??= setTimeout(() => end('finished but left something open'), grace)
    }
    child.stdout.on('data', listen)
    child.stderr.on('data', listen)
    child.on('close', (code) => {
      clearTimeout(deadline)
      clearTimeout(lingering)
      resolve(summarise(file, output, code, note, (performance.now() - start) / 1000))
    })
  })
}

function show(result: Outcome): void {
  const skipped = result.skips.length > 0 ? `, ${result.skips.length} skipped` : ''
  const mark = result.failed > 0 ? 'FAIL' : 'ok  '
  process.stdout.write(`${mark} ${result.file}: ${result.passed} passed${skipped} (${result.seconds.toFixed(1)} s)\n`)
  if (result.failed > 0) process.stdout.write(`${result.output.trimEnd()}\n${result.note === '' ? '' : `  ${result.note}\n`}`)
}

function unexpected(skips: string[]): string[] {
  const allowed = new Set(
    readFileSync(join(root, 'tests/allowed-skips.txt'), 'utf8')
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '' && !line.startsWith('#')),
  )
  return skips.filter((skip) => {
    const need = /\((needs [^)]*)\)$/.exec(skip)?.[1]
    const name = skip.replace(/ \(needs [^)]*\)$/, '')
    return !allowed.has(name) && !(need !== undefined && allowed.has(need))
  })
}

const wanted = process.argv.slice(2)
const files = findTests(here).filter((f) => wanted.length === 0 || wanted.some((w) => relative(here, f).includes(w)))
const results: Outcome[] = []
let next = 0
async function worker(): Promise<void> {
  for (let path = files[next++]; path !== undefined; path = files[next++]) {
    const result = await runFile(path)
    show(result)
    results.push(result)
  }
}
await Promise.all(Array.from({ length: Math.max(1, Math.min(4, availableParallelism())) }, worker))

const passed = results.reduce((sum, r) => sum + r.passed, 0)
let failed = results.reduce((sum, r) => sum + r.failed, 0)
const skips = results.flatMap((r) => r.skips)
for (const skip of skips) process.stdout.write(`skipped: ${skip}\n`)
if (process.env['CLOISTER_CI']) {
  const bad = unexpected(skips)
  for (const skip of bad) process.stdout.write(`FAIL unexpected skip: ${skip}\n`)
  failed += bad.length
}
if (files.length === 0) {
  process.stdout.write(`no test file matches ${wanted.join(' ')}\n`)
  failed += 1
}
process.stdout.write(`${passed} passed, ${failed} failed${skips.length > 0 ? `, ${skips.length} skipped` : ''}\n`)
process.exitCode = failed > 0 ? 1 : 0
