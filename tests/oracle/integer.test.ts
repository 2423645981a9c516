/**
 * Every integer row of the opcode map against the physical CPU. `CLOISTER_ORACLE_CASES` and `CLOISTER_ORACLE_SEED` for
 * longer runs and other seeds, `CLOISTER_ORACLE_ONLY` (regular expression on rows) to look at a few.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { integerCold } from '../../spec/opcodes/integer-cold.ts'
import { integer } from '../../spec/opcodes/integer.ts'
import { compare } from './compare.ts'
import { needs } from '../support/needs.ts'

const cases = Number(process.env['CLOISTER_ORACLE_CASES'] ?? 60000)
const seed = Number(process.env['CLOISTER_ORACLE_SEED'] ?? 1)
const only = new RegExp(process.env['CLOISTER_ORACLE_ONLY'] ?? '')

/** Not comparable: random by design, or not on this CPU. */
const left = new Set(['RDRAND', 'RDSEED', 'MOVDIRI', 'MOVDIR64B'])

needs(test, 'gcc', 'integer instructions against the physical CPU', async () => {
  const texts = new Set([...integer, ...integerCold])
  const rows = opcodes.filter((o) => texts.has(o.text) && !o.flags.has('no64') && !left.has(o.mnemonic) && only.test(o.text))
  const report = await compare({ rows, all: opcodes, cases, seed, ...(process.env['CLOISTER_ORACLE_ALL'] ? { perKind: 100, perMnemonic: 100 } : {}) })
  console.log(`oracle: ${report.cases} cases over ${rows.length} rows, ${report.faults} faults, seed ${seed}`)
  if (report.bad > 0) {
    console.log(report.texts.join('\n  '))
    console.log([...report.counts].map(([m, n]) => `${m} ${n}`).join(', '))
  }
  assert.is(report.bad, 0, `${report.bad} of ${report.cases} cases differ (seed ${seed})`)
})

test.run()
