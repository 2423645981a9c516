/** Debian's 6.12 kernel: by bzImage with two CPUs, and by PVH. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { boot, when } from './boot.ts'

when(test, ['vmlinuz-6.12'], 'Linux 6.12, bzImage, two CPUs', async () => {
  const { output } = await boot('vmlinuz-6.12', { smp: 2 })
  assert.match(output, /^release 6\.12\./m)
})

when(test, ['vmlinuz-6.12'], 'Linux 6.12, bzImage, five levels of page tables', async () => {
  const { output } = await boot('vmlinuz-6.12', { cpu: 'EPYC-Genoa', append: 'console=ttyS0 nokaslr cryptomgr.notests' })
  assert.match(output, /^exe \/bin\/busybox\r?$/m)
})

when(test, ['vmlinux-6.12'], 'Linux 6.12, vmlinux by its PVH note', async () => {
  await boot('vmlinux-6.12')
})

test.run()
