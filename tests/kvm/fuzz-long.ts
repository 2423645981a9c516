/** `npm run fuzz:ioctl [-- CALLS [SEED]]`: the long form, 10 million calls by default; status 1 if anything is wrong. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { fuzz } from './fuzzer.ts'

// A few are passed over (no fourth vCPU), hence some more.
const calls = Number(process.argv[2] ?? 10_200_000)
const seed = Number(process.argv[3] ?? 1)
setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void
const heap = (): number => {
  collect()
  return process.memoryUsage().heapUsed
}
// What is compiled and cached by now is no growth; 4 MiB is less than half a byte per call.
await fuzz(500_000, seed + 1)
const before = heap()
const started = performance.now()
const report = await fuzz(calls, seed)
const seconds = (performance.now() - started) / 1000
const grown = heap() - before
for (const line of report.wrong.slice(0, 50)) process.stdout.write(`${line}\n`)
const percent = (n: number): string => `${((100 * n) / report.calls).toFixed(0)} %`
process.stdout.write(
  `${report.calls} calls in ${seconds.toFixed(0)} s (seed ${seed}), ${percent(report.deep)} past the first check, ${percent(report.judged)} foretold by the model, ` +
    `${report.cells} cells, ${report.wrong.length} wrong, ${report.leaked} bytes left behind by VMs, core memory ${report.memory.before} -> ${report.memory.after}, ` +
    `descriptors ${report.descriptors.before} -> ${report.descriptors.after}, JavaScript heap ${grown >= 0 ? '+' : ''}${(grown / 1024).toFixed(0)} KiB\n`,
)
const grew =
  report.leaked > 0 ||
  report.memory.after !== report.memory.before ||
  report.descriptors.after !== report.descriptors.before ||
  grown > 4 << 20
process.exitCode = report.wrong.length > 0 || grew ? 1 : 0
