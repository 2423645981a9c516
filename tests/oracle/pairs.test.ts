/**
 * What an instruction leaves in the flags and what the next one makes of it (pairs.ts), against the physical CPU, whole, one
 * instruction at a time, and by the slow twins of the handlers: each pair at least once in 64-bit code, a share of them in 32- and 16-bit code. `CLOISTER_ORACLE_SEED`.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { compare } from './compare.ts'
import { pairCases, readersOf, settersOf } from './pairs.ts'
import { needs } from '../support/needs.ts'

const seed = Number(process.env['CLOISTER_ORACLE_SEED'] ?? 1)
const share = Number(process.env['CLOISTER_PAIRS_SHARE'] ?? 0.1)

for (const bits of [64, 32, 16] as const)
  needs(test, 'gcc', `pairs of integer instructions against the physical CPU, ${bits}-bit code`, async () => {
    const part = bits === 64 ? 1 : share
    let pairs = 0
    const report = await compare({
      rows: [],
      all: opcodes,
      cases: Number.POSITIVE_INFINITY,
      seed,
      bits,
      again: true,
      from: (r) => pairCases(r, opcodes, bits, part),
      prepare: (_, c) => void (pairs += c.parts.length),
    })
    const all = settersOf(opcodes, bits).length * readersOf(opcodes, bits).length
    console.log(`oracle: ${report.cases} sequences of ${bits}-bit code with ${pairs} of ${all} pairs, seed ${seed}`)
    if (report.bad > 0) console.log(report.texts.join('\n  '))
    assert.is(report.bad, 0, `${report.bad} of ${report.cases} cases differ (seed ${seed})`)
    assert.is(report.faults, 0, 'no pair faults')
    // Left out is only what reads an undefined flag.
    assert.ok(pairs > all * part * 0.8, `${pairs} of ${all} pairs`)
  })

test.run()
