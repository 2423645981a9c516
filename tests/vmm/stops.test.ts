/**
 * OVMF stopped anywhere shows what single-stepping shows: from the reset vector, through its memory set-up, with two CPUs that
 * send each other IPIs, and as a SEV-ES guest with its #VC handler. (tests/guests-real/stops.ts has more guests and deeper places.)
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { compareStops } from '../support/stops.ts'
import { needs } from '../support/needs.ts'
import { Random } from '../oracle/random.ts'
import { ovmf } from './helpers.ts'

const MiB = 1024 * 1024
const at = (...from: number[]): { from: number; steps: number }[] => from.map((n) => ({ from: n, steps: 5000 }))
const random = (): (() => number) => {
  const seed = Number(process.env['CLOISTER_STOPS_SEED'] ?? 20260)
  process.stdout.write(`  seed ${seed}\n`)
  const r = new Random(seed)
  return () => r.below(1 << 24) / (1 << 24)
}

needs(test, 'ovmf', 'an ordinary guest with two CPUs', async () => {
  const { boundaries, stops } = await compareStops({ firmware: ovmf(), memory: 64 * MiB, smp: 2 }, at(0, 12_000_000), random(), [4, 80])
  assert.is(boundaries, 10_000)
  assert.ok(stops > 3000, `${stops}`)
})

needs(test, 'ovmf', 'a SEV-ES guest', async () => {
  const { boundaries } = await compareStops(
    { firmware: ovmf(), memory: 64 * MiB, type: 'sev-es' },
    at(20_000, 3_000_000),
    random(),
    [4, 80],
  )
  assert.is(boundaries, 10_000)
})

test.run()
