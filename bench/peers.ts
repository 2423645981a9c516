/**
 * The same bare integer loops in Debian's Bochs and in Cloister, in one run: `node build/bench/peers.js [NAME…]`.
 * Both are measured as whole processes in CPU time, with that of an empty run (scale 0) subtracted; instructions are
 * Cloister's exact count, which is also what Bochs executes. Prints one line per loop and the ratio.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { guestFile, LOAD_ADDRESS, loopImage, loops } from './loops.ts'

const work = mkdtempSync(join(tmpdir(), 'cloister-peers-'))
const cli = fileURLToPath(new URL('../../dist/cli.js', import.meta.url))

const configuration = `
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
megs: 32
cpu: model=corei7_sandy_bridge_2600k, count=1, ips=100000000, reset_on_triple_fault=0
floppya: 1_44=floppy.img, status=inserted
boot: floppy
display_library: term
clock: sync=none
log: bochs.log
speaker: enabled=0
panic: action=fatal
error: action=ignore
info: action=report
`

/** CPU seconds (user and system) of a command in the work folder: steadier than wall time on a machine that is shared. */
function cpuSeconds(command: readonly string[]): { time: number; status: number | null } {
  const script = 'TIMEFORMAT="%U %S"; time "$@" >/dev/null 2>errors'
  const r = spawnSync('bash', ['-c', script, 'bash', ...command], {
    cwd: work,
    env: { ...process.env, TERM: 'vt100' },
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: 300_000,
  })
  if (r.error) throw r.error
  const [user = 0, system = 0] = r.stderr.trim().split(/\s+/).map(Number)
  return { time: user + system, status: r.status }
}

function bochs(which: number, scale: number): number {
  const floppy = new Uint8Array(1440 * 1024)
  floppy.set(guestFile('boot.bin'), 0)
  floppy.set(loopImage(which, scale), 512)
  writeFileSync(join(work, 'floppy.img'), floppy)
  writeFileSync(join(work, 'bochsrc'), configuration)
  writeFileSync(join(work, 'commands'), 'c\n')
  const { time } = cpuSeconds(['bochs', '-q', '-f', 'bochsrc', '-rc', 'commands'])
  if (!readFileSync(join(work, 'bochs.log'), 'utf8').includes('quit_sim')) throw new Error('Bochs did not reach the end of the loop')
  return time
}

function cloister(which: number, scale: number): { time: number; instructions: number } {
  const image = join(work, 'loops.bin')
  const report = join(work, 'report.json')
  writeFileSync(image, loopImage(which, scale))
  const address = `0x${LOAD_ADDRESS.toString(16)}`
  const run = ['run', '--image', image, '--load', address, '--entry', address, '--mode', 'long64', '--memory', '32M', '--report', report]
  const { time, status } = cpuSeconds([process.execPath, cli, ...run])
  if (status !== 0) throw new Error(`cloister run ended with status ${status}: ${readFileSync(join(work, 'errors'), 'utf8')}`)
  return { time, instructions: Number(JSON.parse(readFileSync(report, 'utf8')).instructions) }
}

const median = (values: number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN
const column = (text: string | number, width: number): string => String(text).padStart(width)

try {
  if (spawnSync('bochs', ['--help'], { stdio: 'ignore' }).error) {
    process.stdout.write('Bochs is not installed (Debian: bochs bochs-term bochsbios vgabios)\n')
    process.exit(0)
  }
  const rounds = 3
  const repeat = (run: () => number): number => median(Array.from({ length: rounds }, run))
  const bochsEmpty = repeat(() => bochs(0, 0))
  const emptyRun = cloister(0, 0)
  const cloisterEmpty = repeat(() => cloister(0, 0).time)
  process.stdout.write(
    `start-up subtracted: Bochs ${bochsEmpty.toFixed(2)} s, Cloister ${cloisterEmpty.toFixed(2)} s; median of ${rounds}\n`,
  )
  process.stdout.write(
    `${'loop'.padEnd(10)}${column('Minstr', 9)}${column('Bochs s', 9)}${column('MIPS', 8)}${column('Cloister s', 12)}${column('MIPS', 8)}${column('ratio', 8)}\n`,
  )
  const wanted = process.argv.slice(2)
  const ratios: number[] = []
  loops.forEach(({ name, scale }, which) => {
    if (wanted.length > 0 && !wanted.includes(name)) return
    let instructions = 0
    const ours = repeat(() => {
      const run = cloister(which, scale)
      instructions = run.instructions - emptyRun.instructions
      return run.time - cloisterEmpty
    })
    const theirs = repeat(() => bochs(which, scale) - bochsEmpty)
    const mips = (time: number) => (instructions / time / 1e6).toFixed(0)
    ratios.push(theirs / ours)
    process.stdout.write(
      `${name.padEnd(10)}${column((instructions / 1e6).toFixed(1), 9)}${column(theirs.toFixed(2), 9)}${column(mips(theirs), 8)}` +
        `${column(ours.toFixed(2), 12)}${column(mips(ours), 8)}${column((theirs / ours).toFixed(2), 8)}\n`,
    )
  })
  const mean = Math.exp(ratios.reduce((sum, r) => sum + Math.log(r), 0) / ratios.length)
  process.stdout.write(`geometric mean of the ratios: ${mean.toFixed(2)} (smallest ${Math.min(...ratios).toFixed(2)})\n`)
} finally {
  rmSync(work, { recursive: true, force: true })
}
