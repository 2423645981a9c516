/**
 * Real guests stopped at every boundary (tests/support/stops.ts): node build/tests/guests-real/stops.js [SEED [NAME]].
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { MachineOptions } from '../../host/vmm/index.ts'
import { compareStops, type Window } from '../support/stops.ts'
import { ovmfPath } from '../support/needs.ts'
import { read } from './boot.ts'
import { initramfs } from './initramfs.ts'

const MiB = 1024 * 1024
const seed = Number(process.argv[2] ?? Date.now() & 0xffffff)
const only = process.argv[3] ?? ''
process.stdout.write(`seed ${seed}\n`)
let x = seed | 1
const random = (): number => {
  x ^= x << 13
  x ^= x >>> 17
  x ^= x << 5
  return (x >>> 0) / 0x100000000
}
const at = (...from: number[]): Window[] => from.map((n) => ({ from: n, steps: 5000 }))
const folder = process.env['CLOISTER_KUT'] ?? ''
const folder32 = process.env['CLOISTER_KUT32'] ?? ''
const image = (name: string, base = folder): Uint8Array => new Uint8Array(readFileSync(join(base, 'x86', `${name}.flat`)))
const linux = (kernel: string, more: MachineOptions = {}): MachineOptions => ({
  kernel: read(kernel),
  initrd: initramfs(read('busybox')),
  append: 'console=ttyS0 nokaslr quiet',
  memory: 192 * MiB,
  ...more,
})
const firmware = (): Uint8Array => new Uint8Array(readFileSync(ovmfPath() as string))
const kut = (name: string, base = folder, more: MachineOptions = {}): MachineOptions => ({
  kernel: image(name, base),
  memory: 128 * MiB,
  ...more,
})

const guests: [string, () => MachineOptions, Window[]][] = [
  ['ovmf', () => ({ firmware: firmware(), memory: 128 * MiB }), at(0, 10_000, 2_000_000, 40_000_000, 90_000_000)],
  ['ovmf smp', () => ({ firmware: firmware(), memory: 128 * MiB, smp: 2 }), at(0, 12_000_000, 60_000_000)],
  ['ovmf sev-es', () => ({ firmware: firmware(), memory: 64 * MiB, type: 'sev-es' }), at(0, 20_000, 3_000_000, 40_000_000)],
  ['ovmf sev-es smp', () => ({ firmware: firmware(), memory: 64 * MiB, type: 'sev-es-legacy', smp: 2 }), at(5_000, 30_000_000)],
  ['linux 6.12', () => linux('vmlinuz-6.12'), at(0, 1_000_000, 150_000_000, 400_000_000)],
  ['linux 6.1 smp', () => linux('vmlinuz-6.1', { smp: 2 }), at(200_000_000, 450_000_000)],
  ['linux 6.12 pvh', () => linux('vmlinux-6.12'), at(0, 30_000_000)],
]
for (const name of ['realmode', 'eventinj', 'debug', 'emulator', 'smap', 'syscall', 'xsave', 'umip', 'msr', 'idt_test', 's3'])
  guests.push([`kut ${name}`, () => kut(name), at(0, 30_000, 45_000, 500_000)])
for (const name of ['apic', 'smptest', 'vmexit', 'ioapic'])
  guests.push([
    `kut ${name} smp`,
    () => kut(name, folder, { smp: 2, ...(name === 'vmexit' ? { append: 'ipi' } : {}) }),
    at(0, 60_000, 500_000, 3_000_000),
  ])
for (const name of ['taskswitch2', 'realmode', 'cmpxchg8b', 'emulator', 'eventinj'])
  guests.push([`kut32 ${name}`, () => kut(name, folder32), at(0, 30_000, 60_000, 200_000)])

let failures = 0
for (const [name, options, windows] of guests) {
  if (!name.includes(only)) continue
  const start = performance.now()
  try {
    const { boundaries, stops } = await compareStops(options(), windows, random, name.startsWith('linux') ? [9, 300] : undefined)
    process.stdout.write(`ok   ${name}: ${boundaries} boundaries, ${stops} stops (${((performance.now() - start) / 1000).toFixed(1)} s)\n`)
  } catch (error) {
    failures++
    process.stdout.write(`FAIL ${name}: ${error instanceof Error ? error.message : error}\n`)
  }
}
process.exit(failures ? 1 : 0)
