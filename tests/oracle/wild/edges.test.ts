/** Edges (edges.ts) on the emulated and the physical CPU. `CLOISTER_WILD_SEED`, `CLOISTER_WILD_ONLY` (regular expression on forms), `CLOISTER_WILD_EDGES` (percent). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm } from '../../../host/index.ts'
import { cpuidFor } from '../../../host/vmm/cpu-types.ts'
import { needs } from '../../support/needs.ts'
import { describe, differences } from './compare.ts'
import { edgeCases } from './edges.ts'
import { Emulated } from './emulated.ts'
import { Native } from './native.ts'
import type { Outcome } from './place.ts'
import { Tally } from './tally.ts'

const seed = Number(process.env['CLOISTER_WILD_SEED'] ?? 1)
const only = new RegExp(process.env['CLOISTER_WILD_ONLY'] ?? '.')
const percent = Number(process.env['CLOISTER_WILD_EDGES'] ?? 7)
const show = Number(process.env['CLOISTER_WILD_SHOW'] ?? 2)

needs(test, 'amdOracle', 'edges of pages, segments and the address space against the physical CPU', async () => {
  const native = new Native()
  const kvm = await openKvm({ host: 'amd' })
  const emulated = new Emulated(cpuidFor(kvm.supportedCpuid(), 0, 1, undefined).entries)
  kvm[Symbol.dispose]()
  const tally = new Tally(show)
  let done = 0
  let hung = 0
  try {
    for (const { batch, cases } of edgeCases(seed, only, percent)) {
      const pending = native.run(batch)
      emulated.begin(batch)
      const got = cases.map((c) => emulated.run(c.state, c.step))
      const want = await pending
      cases.forEach((c, i) => {
        const n = want[i] as Outcome
        if (n.vector === 999) {
          hung++
          return
        }
        tally.add(`${c.text} ${c.bits}`, differences(c, batch, n, got[i] as Outcome), () => describe(c, batch))
      })
      done += cases.length
    }
  } finally {
    native.close()
  }
  console.log(`oracle: ${done} cases at edges, ${hung} hung natively, seed ${seed}`)
  tally.print()
  assert.is(tally.bad, 0, `${tally.bad} of ${done} cases differ (seed ${seed})`)
})

test.run()
