/**
 * Every integer row of the opcode map against the physical CPU. `CLOISTER_ORACLE_CASES` and `CLOISTER_ORACLE_SEED` for
 * longer runs and other seeds, `CLOISTER_ORACLE_ONLY` (regular expression on rows) to look at a few.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import type { Opcode } from '../../spec/opcodes/index.ts'
import { bmi } from '../../spec/opcodes/bmi.ts'
import { integerCold } from '../../spec/opcodes/integer-cold.ts'
import { integer } from '../../spec/opcodes/integer.ts'
import { io } from '../../spec/opcodes/io.ts'
import { system } from '../../spec/opcodes/system.ts'
import { compare } from './compare.ts'
import { sequential } from './generate.ts'
import { needs } from '../support/needs.ts'

/** For each code size. */
const cases = Number(process.env['CLOISTER_ORACLE_CASES'] ?? 25000)
const seed = Number(process.env['CLOISTER_ORACLE_SEED'] ?? 1)
const only = new RegExp(process.env['CLOISTER_ORACLE_ONLY'] ?? '')

/** System instructions that say something at CPL 3: flags, stack frames, and those that must be refused. */
const atRing3 =
  /^(PUSH|PUSHA|POPA|ENTER|LEAVE|BOUND|PUSHF|POPF|SAHF|LAHF|CMC|CLC|STC|CLD|STD|CLI|STI|HLT|IN|OUT|INS|OUTS|LLDT|LTR|LGDT|LIDT|LMSW|CLTS|INVLPG|WRMSR|RDMSR|INVD|WBINVD)$/
const texts = new Set([
  ...integer,
  ...bmi,
  ...integerCold,
  ...[...system, ...io].filter((text) => atRing3.test(text.split(' ')[1] ?? '') || text.startsWith('8C ')),
])

/** Not comparable: random by design, or not on this CPU. */
const left = new Set(['RDRAND', 'RDSEED', 'MOVDIRI', 'MOVDIR64B'])

for (const bits of [64, 32, 16] as const) {
  if (!new RegExp(process.env['CLOISTER_ORACLE_BITS'] ?? '').test(String(bits))) continue
  const name = `integer instructions against the physical CPU, ${bits}-bit code`
  needs(test, 'gcc', name, async () => {
    const legal = (o: Opcode): boolean => !o.flags.has(bits === 64 ? 'no64' : 'only64')
    const rows = opcodes.filter((o) => texts.has(o.text) && legal(o) && !left.has(o.mnemonic) && only.test(o.text))
    const report = await compare({
      rows,
      all: opcodes,
      cases,
      seed,
      bits,
      again: true,
      ...(process.env['CLOISTER_ORACLE_ALL'] ? { perKind: 100, perMnemonic: 100 } : {}),
    })
    console.log(`oracle: ${report.cases} cases of ${bits}-bit code over ${rows.length} rows, ${report.faults} faults, seed ${seed}`)
    if (report.bad > 0) {
      console.log(report.texts.join('\n  '))
      console.log([...report.counts].map(([m, n]) => `${m} ${n}`).join(', '))
    }
    assert.is(report.bad, 0, `${report.bad} of ${report.cases} cases differ (seed ${seed})`)
  })
}

for (const bits of [64, 32, 16] as const) {
  if (!new RegExp(process.env['CLOISTER_ORACLE_BITS'] ?? '').test(String(bits))) continue
  needs(test, 'gcc', `sequences of integer instructions against the physical CPU, ${bits}-bit code`, async () => {
    const legal = (o: Opcode): boolean => !o.flags.has(bits === 64 ? 'no64' : 'only64')
    const rows = opcodes.filter((o) => texts.has(o.text) && legal(o) && !left.has(o.mnemonic) && sequential(o) && only.test(o.text))
    if (rows.length === 0) return
    const report = await compare({ rows, all: opcodes, cases, seed, bits, sequences: true, again: true })
    console.log(`oracle: ${report.cases} sequences of ${bits}-bit code, ${report.faults} faults, seed ${seed}`)
    if (report.bad > 0) console.log(report.texts.join('\n  '))
    assert.is(report.bad, 0, `${report.bad} of ${report.cases} sequences differ (seed ${seed})`)
  })
}

test.run()
