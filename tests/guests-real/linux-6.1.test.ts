/** Debian's 6.1 kernel: by bzImage, by PVH, through OVMF and SeaBIOS; a run repeats to the instruction. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { has, ovmfPath, seabiosPath } from '../support/needs.ts'
import { boot, when } from './boot.ts'

when(test, ['vmlinuz-6.1'], 'Linux 6.1, bzImage', async () => {
  const { output } = await boot('vmlinuz-6.1')
  assert.match(output, /^release 6\.1\./m)
})

when(test, ['vmlinux-6.1'], 'Linux 6.1 by PVH, two CPUs: two runs with one seed are the same', async () => {
  const first = await boot('vmlinux-6.1', { smp: 2, seed: 7 })
  const second = await boot('vmlinux-6.1', { smp: 2, seed: 7 })
  assert.is(first.instructions, second.instructions)
  assert.is(first.output, second.output)
})

const ovmf = ovmfPath()
if (ovmf !== null) {
  when(test, ['vmlinuz-6.1'], 'Linux 6.1 through OVMF', async () => {
    await boot('vmlinuz-6.1', { firmware: new Uint8Array(readFileSync(ovmf)) })
  })
}

if (has('seabios')) {
  when(test, ['vmlinuz-6.1'], 'Linux 6.1 through SeaBIOS, from its real-mode setup', async () => {
    const { output } = await boot('vmlinuz-6.1', { firmware: new Uint8Array(readFileSync(`${seabiosPath()}/bios-256k.bin`)) })
    assert.match(output, /Booting from ROM/)
  })
}

test.run()
