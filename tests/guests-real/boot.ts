/**
 * Boots Debian's cloud kernels, unmodified, with a busybox initramfs, until they power off. The files come from CLOISTER_KERNELS
 * or .cache/guests (fetch.sh fills it): vmlinuz-6.1, vmlinuz-6.12, vmlinux-6.1, vmlinux-6.12, busybox. Without them every test
 * skips by name.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import { initramfs } from './initramfs.ts'

const folder = process.env['CLOISTER_KERNELS'] ?? '.cache/guests'
const file = (name: string): string => join(folder, name)
export const read = (name: string): Uint8Array => new Uint8Array(readFileSync(file(name)))
const APPEND = 'console=ttyS0 nokaslr quiet'
const MiB = 1024 * 1024

export interface Boot {
  output: string
  instructions: number
}

export async function boot(kernel: string, more: MachineOptions = {}): Promise<Boot> {
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

/** Registers a test, or skips it by name when a file is missing. */
export function when(test: Test, files: readonly string[], name: string, run: () => Promise<void>): void {
  if ([...files, 'busybox'].every((f) => existsSync(file(f)))) {
    test(name, run)
    return
  }
  process.stdout.write(`# skip: ${name} (needs real kernels)\n`)
  test.skip(name)
}
