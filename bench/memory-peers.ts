/**
 * Memory loops (bench/guests/memory-loops.S) in QEMU TCG and in Cloister, in one run: `node build/bench/memory-peers.js [NAME…]`.
 * CPU time of whole processes; a run with scale 1 is subtracted. The walk is also timed in C (bench/walk.c). With CLOISTER_KERNEL
 * and CLOISTER_INITRD, the boot of that bzImage to its power-off is compared as well (name `boot`).
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { guestFile, LOAD_ADDRESS } from './loops.ts'

/** In the order of the table `works`; the mark is the greatest ratio Cloister / TCG we want to see. */
const works = [
  { name: 'smc', scale: 20, mark: 0.3 },
  { name: 'movs', scale: 400, mark: null },
  { name: 'stos', scale: 400, mark: null },
  { name: 'apart', scale: 1000, mark: null },
  { name: 'aliased', scale: 1000, mark: null },
  { name: 'walk', scale: 30, mark: 1 },
] as const

const work = mkdtempSync(join(tmpdir(), 'cloister-memory-'))
const cli = fileURLToPath(new URL('../../dist/cli.js', import.meta.url))

function cpuSeconds(command: readonly string[], statuses: readonly number[]): number {
  const script = 'TIMEFORMAT="%U %S"; time "$@" >output 2>errors'
  const r = spawnSync('bash', ['-c', script, 'bash', ...command], { cwd: work, encoding: 'utf8', timeout: 600_000 })
  if (r.error) throw r.error
  if (!statuses.includes(r.status ?? -1)) {
    throw new Error(`${command[0]} ended with status ${r.status}: ${readFileSync(join(work, 'errors'), 'utf8').slice(0, 500)}`)
  }
  const [user = 0, system = 0] = r.stderr.trim().split(/\s+/).map(Number)
  return user + system
}

function image(which: number, scale: number): Uint8Array {
  const bytes = guestFile('memory-loops.bin')
  const view = new DataView(bytes.buffer)
  view.setBigUint64(8, BigInt(scale), true)
  view.setBigUint64(16, BigInt(which), true)
  return bytes
}

function qemu(which: number, scale: number, wrapper: readonly string[] = []): number {
  const floppy = new Uint8Array(1440 * 1024)
  floppy.set(guestFile('boot.bin'), 0)
  floppy.set(image(which, scale), 512)
  writeFileSync(join(work, 'floppy.img'), floppy)
  const options = '-accel tcg -cpu max -m 576 -display none -nodefaults -no-reboot -boot a -device isa-debug-exit,iobase=0x8900'
  // The first letter of "Shutdown" ends it.
  const command = ['qemu-system-x86_64', ...options.split(' '), '-drive', 'if=floppy,format=raw,file=floppy.img']
  return cpuSeconds([...wrapper, ...command], [(0x53 << 1) | 1])
}

function cloister(which: number, scale: number): number {
  writeFileSync(join(work, 'loops.bin'), image(which, scale))
  const address = `0x${LOAD_ADDRESS.toString(16)}`
  const run = `run --image loops.bin --load ${address} --entry ${address} --mode long64 --memory 576M`
  return cpuSeconds([process.execPath, cli, ...run.split(' ')], [0])
}

const rounds = Number(process.env['CLOISTER_BENCH_ROUNDS'] ?? 3)
const median = (run: () => number): number => {
  const values = Array.from({ length: rounds }, run).toSorted((a, b) => a - b)
  return values[values.length >> 1] ?? Number.NaN
}

try {
  const wanted = process.argv.slice(2)
  const chosen = (name: string): boolean => wanted.length === 0 || wanted.includes(name)
  process.stdout.write(`CPU seconds, median of ${rounds}, start-up subtracted\n`)
  works.forEach(({ name, scale, mark }, which) => {
    if (!chosen(name)) return
    const of = (run: (which: number, scale: number) => number): number => median(() => run(which, scale + 1) - run(which, 1))
    const ours = of(cloister)
    const theirs = of(qemu)
    const ratio = ours / theirs
    const verdict = mark === null ? '' : ratio <= mark ? `  (mark ${mark}: met)` : `  (mark ${mark}: MISSED)`
    process.stdout.write(`${name.padEnd(8)} Cloister ${ours.toFixed(2)}  TCG ${theirs.toFixed(2)}  ratio ${ratio.toFixed(2)}${verdict}\n`)
    if (name !== 'walk') return
    cpuSeconds(['gcc', '-O2', '-o', 'small-pages', fileURLToPath(new URL('../../bench/small-pages.c', import.meta.url))], [0])
    const small = of((w, n) => qemu(w, n, ['./small-pages']))
    process.stdout.write(`walk, TCG on 4 KiB host pages as we are ${small.toFixed(2)}  ratio ${(ours / small).toFixed(2)}\n`)
    const source = fileURLToPath(new URL('../../bench/walk.c', import.meta.url))
    cpuSeconds(['gcc', '-O2', '-o', 'walk', source], [0])
    const c = median(() => cpuSeconds(['./walk', String(scale + 1)], [0]) - cpuSeconds(['./walk', '1'], [0]))
    process.stdout.write(
      `walk, native loads in C ${c.toFixed(2)}  ratio ${(ours / c).toFixed(1)} (the translation path alone: npm run bench -- memory-walk)\n`,
    )
  })
  const kernel = process.env['CLOISTER_KERNEL']
  const initrd = process.env['CLOISTER_INITRD']
  if (kernel && initrd && chosen('boot')) {
    const append = 'console=ttyS0 panic=-1'
    const ours = median(() =>
      cpuSeconds([process.execPath, cli, 'run', '--kernel', kernel, '--initrd', initrd, '--append', append, '--memory', '512M'], [0]),
    )
    const tcg = '-accel tcg -cpu max -m 512 -display none -no-reboot -serial stdio'
    const theirs = median(() =>
      cpuSeconds(['qemu-system-x86_64', ...tcg.split(' '), '-kernel', kernel, '-initrd', initrd, '-append', append], [0]),
    )
    const ratio = ours / theirs
    process.stdout.write(
      `boot     Cloister ${ours.toFixed(2)}  TCG ${theirs.toFixed(2)}  ratio ${ratio.toFixed(2)}  (mark 6: ${ratio <= 6 ? 'met' : 'MISSED'})\n`,
    )
  }
} finally {
  rmSync(work, { recursive: true, force: true })
}
