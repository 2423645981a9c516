/**
 * Runs the benchmarks whose name contains one of the arguments (all without), prints one line each, and writes
 * bench/results/latest.json: {schema: 1, commit, cpu, runtime, results: [{name, opsPerSecond, rme, unit, note}]}.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import Benchmark from 'benchmark'
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

async function measure(one: Case): Promise<Result> {
  const { step, close, compare } = await one.start()
  try {
    // V8 swaps tiers at entry: warm up first.
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

const wanted = process.argv.slice(2)
const chosen = cases.filter((c) => wanted.length === 0 || wanted.some((w) => c.name.includes(w)))
if (chosen.length === 0) {
  process.stderr.write(`no benchmark matches ${wanted.join(' ')}: ${cases.map((c) => c.name).join(', ')}\n`)
  process.exit(1)
}
const results: Result[] = []
let failed = 0
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
mkdirSync(out, { recursive: true })
const report = { schema: 1, commit: commit(), cpu: cpus()[0]?.model ?? 'unknown', runtime: `node ${process.version}`, results }
writeFileSync(`${out}latest.json`, `${JSON.stringify(report, null, 2)}\n`)
process.exitCode = failed > 0 ? 1 : 0
