/** `npm run fuzz:ioctl [-- CALLS [SEED]]`: the long form, 10 million calls by default; status 1 if anything is wrong. */
import { fuzz } from './fuzzer.ts'

// A few are passed over (no fourth vCPU), hence some more.
const calls = Number(process.argv[2] ?? 10_100_000)
const seed = Number(process.argv[3] ?? 1)
const started = performance.now()
const report = await fuzz(calls, seed)
const seconds = (performance.now() - started) / 1000
for (const line of report.wrong.slice(0, 50)) process.stdout.write(`${line}\n`)
// The core grows in steps of 16 MiB; one more per VM type is a later high-water mark, not a leak.
const STEP = 16 << 20
const grew = report.memory.after > report.memory.before + 7 * STEP || report.descriptors.after !== report.descriptors.before
process.stdout.write(
  `${report.calls} calls in ${seconds.toFixed(0)} s, ${((100 * report.deep) / report.calls).toFixed(0)} % past the first check, ${report.cells} cells, ` +
    `${report.wrong.length} wrong, memory ${report.memory.before} -> ${report.memory.after}, descriptors ${report.descriptors.before} -> ${report.descriptors.after}\n`,
)
process.exitCode = report.wrong.length > 0 || grew ? 1 : 0
