/**
 * Wild instructions (generate.ts), and several in a row (sequence.ts), on the emulated and the physical CPU. `CLOISTER_WILD_CASES`,
 * `CLOISTER_WILD_SEED` for longer runs and other seeds, `CLOISTER_WILD_ONLY` (regular expression on rows of the opcode map) to look at a few.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm } from '../../../host/index.ts'
import { cpuidFor } from '../../../host/vmm/cpu-types.ts'
import { needs } from '../../support/needs.ts'
import { describe, differences, normalise } from './compare.ts'
import { Emulated } from './emulated.ts'
import { Generator } from './generate.ts'
import type { Wild } from './generate.ts'
import { Native } from './native.ts'
import { sequence } from './sequence.ts'
import type { Outcome } from './place.ts'
import { Tally } from './tally.ts'

const cases = Number(process.env['CLOISTER_WILD_CASES'] ?? 40000)
const seed = Number(process.env['CLOISTER_WILD_SEED'] ?? 1)
const only = new RegExp(process.env['CLOISTER_WILD_ONLY'] ?? '.')
const show = Number(process.env['CLOISTER_WILD_SHOW'] ?? 1)
/** Percent of the cases that are several instructions (sequence.ts). */
const sequences = Number(process.env['CLOISTER_WILD_SEQUENCES'] ?? 25)
const BATCH = 1000

needs(test, 'amdOracle', 'wild instructions against the physical CPU', async () => {
  const native = new Native()
  const kvm = await openKvm({ host: 'amd' })
  const emulated = new Emulated(cpuidFor(kvm.supportedCpuid(), 0, 1, undefined).entries)
  kvm[Symbol.dispose]()
  const generator = new Generator(seed, only)
  const { r } = generator
  const tally = new Tally(show)
  let faults = 0
  /** Cases that the machine itself does not come back from. */
  let hung = 0
  let done = 0
  try {
    while (done < cases) {
      const batch = generator.begin()
      const wild: Wild[] = []
      while (wild.length < Math.min(BATCH, cases - done)) {
        const w = r.chance(sequences) ? sequence(generator, batch) : generator.make(batch)
        if (w) wild.push(w)
      }
      batch.states = wild.map((w) => w.state)
      const pending = native.run(batch)
      emulated.begin(batch)
      const got = wild.map((w) => emulated.run(w.state, w.step))
      const want = await pending
      wild.forEach((w, i) => {
        const n = normalise(w, want[i] as Outcome)
        if (n.vector === 999) {
          hung++
          if (hung < 5) console.log(`hung natively: ${describe(w, batch)}`)
          return
        }
        if (n.vector !== 1) faults++
        tally.add(process.env['CLOISTER_WILD_KINDS'] ? '' : w.mnemonic, differences(w, batch, n, normalise(w, got[i] as Outcome)), () =>
          describe(w, batch),
        )
      })
      done += wild.length
    }
  } finally {
    native.close()
  }
  console.log(`oracle: ${done} cases of wild code, ${generator.covered.size} rows, ${faults} faults, ${hung} hung natively, seed ${seed}`)
  tally.print()
  assert.is(tally.bad, 0, `${tally.bad} of ${done} cases differ (seed ${seed})`)
})

test.run()
