/**
 * `npm run oracle:long [CASES [SEED]]`: the integer, wild and SIMD comparisons with the physical CPU, in rounds with a new seed each,
 * until CASES (10 million) were compared. Every seed is printed; a round that fails is shown whole and ends the run with status 1.
 */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const wanted = Number(process.argv[2] ?? 10_000_000)
let seed = Number(process.argv[3] ?? Date.now() % 1_000_000_000)
let done = 0
/** Counts in lines like `oracle: 25000 cases of 64-bit code` and `simd: 12345 cases`. */
const counted = (text: string): number =>
  [...text.matchAll(/(?:oracle|simd): (\d+) (?:cases|sequences)/g)].reduce((sum, m) => sum + Number(m[1]), 0)

const suites = [
  { file: 'oracle/integer.test.js', env: { CLOISTER_ORACLE_CASES: '200000' }, seed: 'CLOISTER_ORACLE_SEED' },
  { file: 'oracle/pairs.test.js', env: { CLOISTER_PAIRS_SHARE: '1' }, seed: 'CLOISTER_ORACLE_SEED' },
  { file: 'oracle/wild/wild.test.js', env: { CLOISTER_WILD_CASES: '200000' }, seed: 'CLOISTER_WILD_SEED' },
  { file: 'oracle/wild/edges.test.js', env: { CLOISTER_WILD_EDGES: '70' }, seed: 'CLOISTER_WILD_SEED' },
  { file: 'simd/oracle.test.js', env: { CLOISTER_SIMD_CASES: '200' }, seed: 'CLOISTER_SIMD_SEED' },
]

while (done < wanted)
  for (const s of suites) {
    seed++
    const path = fileURLToPath(new URL(`../${s.file}`, import.meta.url))
    const start = performance.now()
    const r = spawnSync(process.execPath, [path], {
      env: { ...process.env, ...s.env, [s.seed]: String(seed) },
      encoding: 'utf8',
      maxBuffer: 1 << 28,
    })
    const n = counted(r.stdout)
    done += n
    process.stdout.write(
      `${s.file} seed ${seed}: ${n} cases, status ${r.status}, ${((performance.now() - start) / 1000).toFixed(0)} s; ${done} of ${wanted}\n`,
    )
    if (r.status !== 0 || n === 0) {
      process.stdout.write(
        `${r.stdout}${r.stderr}${n === 0 ? 'nothing was compared: gcc and the CPU of tests/support/needs.ts are needed\n' : ''}`,
      )
      process.exit(1)
    }
  }
