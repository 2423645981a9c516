/**
 * A timer's interrupt at every boundary of a loop with REP MOVS, page-crossing stores, MOV SS, CLI, STI, CALL and POPF, by each
 * source that a PC has (tests/guests/timers.S): the loop's result is that of an undisturbed run, one interrupt comes at most,
 * before every instruction but those in a shadow or with IF clear.
 */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine } from '../../host/vmm/machine.ts'

const LOAD = 0x100000
const image = new Uint8Array(readFileSync(new URL('../../../tests/guests/timers.bin', import.meta.url)))
const view = new DataView(image.buffer)
const [, table = 0, tableEnd = 0] = [16, 20, 24].map((at) => view.getUint32(at, true))

/** Offsets from the loop's beginning: before which an interrupt must come, and must not. */
const may = new Set<number>()
const mustNot = new Set<number>()
for (let at = table - LOAD; at < tableEnd - LOAD; at += 8)
  (view.getUint32(at + 4, true) === 1 ? may : mustNot).add(view.getUint32(at, true))

for (const [source, name] of [
  'the local APIC',
  'its TSC deadline',
  'the PIT by the PIC',
  'the PIT by the I/O APIC',
  'the HPET',
].entries()) {
  test(`interrupts of ${name} at every boundary`, async () => {
    assert.ok(may.size > 20 && mustNot.size === 4, 'the table of instructions')
    const bytes = image.slice()
    new DataView(bytes.buffer).setUint32(8, source, true)
    let output = ''
    const machine = await Machine.create({
      image: { bytes, load: LOAD, entry: LOAD, mode: 'long64' },
      memory: 16 * 1024 * 1024,
      maxInstructions: 150_000_000,
      timeoutSeconds: 120,
      onSerial: (chunk) => (output += new TextDecoder().decode(chunk)),
    })
    const { reason, detail } = await machine.run()
    machine[Symbol.dispose]()
    assert.is(reason, 'debug-exit', `${detail} ${output}`)
    const [interrupts = 0, most, wrong, ...met] = output
      .trim()
      .split('\n')
      .map((line) => Number.parseInt(line, 16))
    assert.is(wrong, 0, `${wrong} results differ`)
    assert.is(most, 1, 'interrupts in one run')
    assert.ok(interrupts >= may.size, `${interrupts} interrupts`)
    const where = (offsets: Iterable<number>): string => [...offsets].map((o) => `+0x${o.toString(16)}`).join(' ')
    assert.is(where(met.filter((o) => !may.has(o))), '', 'interrupted in a shadow or with IF clear')
    assert.is(where([...may].filter((o) => !met.includes(o))), '', 'never interrupted')
  })
}

test.run()
