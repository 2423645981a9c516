/**
 * Runs the benchmarks whose name contains one of the arguments (all without) with the V8 option of the command line, prints one
 * line each, and writes
 * bench/results/latest.json: {schema: 1, commit, cpu, runtime, results: [{name, opsPerSecond, rme, unit, note}]}.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import Benchmark from 'benchmark'
import { tellV8 } from '../host/cli/v8.ts'
import { type Case, cases } from './cases.ts'

interface Result {
  name: string
  opsPerSecond: number
  rme: number
  unit: string
  note: string
}

const out = fileURLToPath(new URL('../../bench/results/', import.meta.url))

function commit(): string {
  try {
    return execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return 'unknown'
  }
}

/** Milliseconds of one look at the rate, and how long the warm-up may take: with other work beside it, V8 needs seconds. */
const WINDOW = 500
const WARM_UP = { least: 3000, most: 20_000 }

/**
 * Lets V8 compile the execution loop before anything is measured. Devices of one process share the compiled core as long as one
 * of them lives: the guest stays until the end.
 */
async function warmUp(): Promise<() => void> {
  const { step, close } = await (cases.find((c) => c.name === 'loop-alu') ?? (cases[0] as Case)).start()
  const start = performance.now()
  let best = 0
  for (let steady = 0; steady < 3 || performance.now() - start < WARM_UP.least; ) {
    if (performance.now() - start > WARM_UP.most) break
    const from = performance.now()
    let n = 0
    while (performance.now() - from < WINDOW) {
      step()
      n++
    }
    const rate = n / (performance.now() - from)
    steady = rate > best * 1.1 ? 0 : steady + 1
    best = Math.max(best, rate)
  }
  return close
}

async function measure(one: Case): Promise<Result> {
  const { step, close, compare } = await one.start()
  try {
    // The case's own part.
    const warm = performance.now() + 300
    while (performance.now() < warm) step()
    const bench = new Benchmark(one.name, step, { maxTime: 1.5, minSamples: 10 })
    bench.run()
    if (bench.error) throw bench.error
    const note = compare ? `${one.note}; ${compare()}` : one.note
    return { name: one.name, opsPerSecond: bench.hz * one.units, rme: bench.stats.rme, unit: one.unit, note }
  } finally {
    close()
  }
}

function rate(n: number): string {
  for (const [factor, letter] of [
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k'],
  ] as const)
    if (n >= factor) return `${(n / factor).toFixed(2)} ${letter}`
  return `${n.toFixed(2)} `
}

const option = tellV8()
const runtime = `node ${process.version}${option === null ? '' : ` ${option}`}`
const processor = cpus()[0]?.model ?? 'unknown'
const wanted = process.argv.slice(2)
const chosen = cases.filter((c) => wanted.length === 0 || wanted.some((w) => c.name.includes(w)))
if (chosen.length === 0) {
  process.stderr.write(`no benchmark matches ${wanted.join(' ')}: ${cases.map((c) => c.name).join(', ')}\n`)
  process.exit(1)
}
process.stdout.write(`${processor}, ${runtime}\n`)
const load = loadavg()[0] ?? 0
if (load > availableParallelism() / 2)
  process.stdout.write(`load average ${load.toFixed(1)}: the machine has other work, and the figures show it\n`)
const results: Result[] = []
let failed = 0
const cool = await warmUp()
for (const one of chosen) {
  try {
    const result = await measure(one)
    results.push(result)
    const each = 1e9 / result.opsPerSecond
    process.stdout.write(
      `${one.name.padEnd(18)}${`${rate(result.opsPerSecond)}${one.unit}/s`.padStart(26)}  ±${result.rme.toFixed(1)} %  ${each.toFixed(each < 10 ? 2 : 0)} ns each  (${result.note})\n`,
    )
  } catch (error) {
    failed++
    process.stdout.write(`${one.name.padEnd(18)}  FAILED: ${error instanceof Error ? error.message : String(error)}\n`)
  }
}
cool()
mkdirSync(out, { recursive: true })
const report = { schema: 1, commit: commit(), cpu: processor, runtime, results }
writeFileSync(`${out}latest.json`, `${JSON.stringify(report, null, 2)}\n`)
process.stdout.write('written to bench/results/latest.json\n')
process.exitCode = failed > 0 ? 1 : 0
