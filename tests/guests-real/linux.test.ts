/**
 * Debian's cloud kernels, unmodified, with a busybox initramfs: they reach user space and power off, and a run repeats to
 * the instruction. The files come from CLOISTER_KERNELS or .cache/guests (fetch.sh fills it): vmlinuz-6.1, vmlinuz-6.12,
 * vmlinux-6.1, vmlinux-6.12, busybox. Without them every test skips by name.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import { ovmfPath } from '../support/needs.ts'
import { initramfs } from './initramfs.ts'

const folder = process.env['CLOISTER_KERNELS'] ?? '.cache/guests'
const file = (name: string): string => join(folder, name)
const read = (name: string): Uint8Array => new Uint8Array(readFileSync(file(name)))
const APPEND = 'console=ttyS0 nokaslr quiet'
const MiB = 1024 * 1024

interface Boot {
  output: string
  instructions: number
}

async function boot(kernel: string, more: MachineOptions = {}): Promise<Boot> {
  let output = ''
  const machine = await Machine.create({
    kernel: read(kernel),
    initrd: initramfs(read('busybox')),
    append: APPEND,
    memory: 384 * MiB,
    maxInstructions: 6_000_000_000,
    timeoutSeconds: 400,
    onSerial: (bytes) => (output += new TextDecoder().decode(bytes)),
    ...more,
  })
  const { reason, status, detail, report } = await machine.run()
  machine[Symbol.dispose]()
  assert.is(reason, 'powered-off', `${detail}\n${output.slice(-1500)}`)
  assert.is(status, 0)
  assert.match(output, new RegExp(`^user space, ${more.smp ?? 1} CPUs?\\r?$`, 'm'))
  return { output, instructions: report.instructions }
}

function when(files: readonly string[], name: string, run: () => Promise<void>): void {
  if ([...files, 'busybox'].every((f) => existsSync(file(f)))) {
    test(name, run)
    return
  }
  process.stdout.write(`# skip: ${name} (needs real kernels)\n`)
  test.skip(name)
}

when(['vmlinuz-6.1'], 'Linux 6.1, bzImage', async () => {
  const { output } = await boot('vmlinuz-6.1')
  assert.match(output, /Linux version 6\.1\.|^release 6\.1\./m)
})

when(['vmlinuz-6.12'], 'Linux 6.12, bzImage, two CPUs', async () => {
  const { output } = await boot('vmlinuz-6.12', { smp: 2 })
  assert.match(output, /^release 6\.12\./m)
})

when(['vmlinux-6.12'], 'Linux 6.12, vmlinux by its PVH note', async () => {
  await boot('vmlinux-6.12')
})

when(['vmlinux-6.1'], 'Linux 6.1 by PVH, two CPUs: two runs with one seed are the same', async () => {
  const first = await boot('vmlinux-6.1', { smp: 2, seed: 7 })
  const second = await boot('vmlinux-6.1', { smp: 2, seed: 7 })
  assert.is(first.instructions, second.instructions)
  assert.is(first.output, second.output)
})

if (ovmfPath() !== null) {
  when(['vmlinuz-6.1'], 'Linux 6.1 through OVMF', async () => {
    await boot('vmlinuz-6.1', { firmware: new Uint8Array(readFileSync(ovmfPath() as string)) })
  })
}

test.run()
