/** A device's DMA writes into code that has run: the next execution runs the new bytes. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine } from '../../host/vmm/index.ts'

const LOAD = 0x200000
const DESCRIPTOR = LOAD + 0x1800

const bytesOf = (value: number, shifts: readonly number[]): number[] => shifts.map((shift) => (value >>> shift) & 0xff)
const le32 = (value: number): number[] => bytesOf(value, [0, 8, 16, 24])
const be32 = (value: number): number[] => bytesOf(value, [24, 16, 8, 0])

/**
 * Calls `mov al, 0x11; ret` at `where` five times, lets fw_cfg copy the first byte of its signature ("QEMU") over the
 * immediate, calls it again and gives AL to the debug-exit port.
 */
function image(where: number): Uint8Array {
  const bytes = new Uint8Array(0x2000)
  bytes.set([
    ...[0x48, 0xc7, 0xc3, ...le32(where)], // mov rbx, where
    ...[0xb9, ...le32(5)], // mov ecx, 5
    ...[0xff, 0xd3, 0xe2, 0xfc], // call rbx; loop
    ...[0x66, 0xba, 0x18, 0x05, 0xb8, ...be32(DESCRIPTOR), 0xef], // fw_cfg's DMA address, low half: starts the transfer
    ...[0xff, 0xd3, 0x0f, 0xb6, 0xc0], // call rbx; movzx eax, al
    ...[0x66, 0xba, 0xf4, 0x00, 0xef, 0xf4], // out 0xf4, eax; hlt
  ])
  bytes.set([0xb0, 0x11, 0xc3], where - LOAD)
  // FWCfgDmaAccess: control (select item 0, read), length, address; big-endian.
  bytes.set([...be32(0x0000000a), ...be32(1), ...be32(0), ...be32(where + 1)], DESCRIPTOR - LOAD)
  return bytes
}

for (const [name, where] of [
  ['another page', LOAD + 0x1000],
  ['the same page', LOAD + 0x100],
  ['the line of the running loop', LOAD + 0x40],
] as const) {
  test(`fw_cfg's DMA into a function in ${name}`, async () => {
    using machine = await Machine.create({
      memory: 16 << 20,
      image: { bytes: image(where), load: LOAD, entry: LOAD, mode: 'long64' },
      maxInstructions: 10_000,
    })
    machine.launch()
    const result = await machine.run()
    assert.is(result.reason, 'debug-exit', String(result.detail))
    assert.is(result.debugExit, 'Q'.charCodeAt(0))
  })
}

test.run()
