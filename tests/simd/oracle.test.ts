/** Every SSE and x87 row against the physical CPU, bit for bit: registers, flags, memory, exceptions. */
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import { opcodes } from '../../spec/opcodes/index.ts'
import type { Opcode } from '../../spec/opcodes/index.ts'
import { sse } from '../../spec/opcodes/sse.ts'
import { x87 } from '../../spec/opcodes/x87.ts'
import { needs } from '../support/needs.ts'
import { makeCase, Random } from './cases.ts'
import type { Case, Style } from './cases.ts'
import { Emulated } from './emulated.ts'
import { runNative } from './native.ts'
import type { Outcome } from './native.ts'
import { estimates, oneUlp, skipped } from './tolerances.ts'

const perRow = Number(process.env['CLOISTER_SIMD_CASES'] ?? 30)
const only = new RegExp(process.env['CLOISTER_SIMD_ONLY'] ?? '.')
const seed = Number(process.env['CLOISTER_SIMD_SEED'] ?? 20260)
const styles = ['masked', 'unmasked', 'sticky', 'pending'] as const satisfies readonly Style[]
const vectors = fileURLToPath(new URL('../../../tests/vectors/simd-digests.json', import.meta.url))
const texts = new Set([...sse, ...x87])
const rows = opcodes.filter((o) => texts.has(o.text) && !skipped(o) && only.test(o.text))

/** Little-endian bytes as one number. */
const hex = (b: Uint8Array): string => Buffer.from(b.toReversed()).toString('hex')
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0
const word = (b: Uint8Array, at: number): number => new DataView(b.buffer, b.byteOffset).getUint16(at, true)

/** At most one unit apart: the integer bit is dropped, so that neighbours across a power of two are one apart too. */
function near(a: Uint8Array, b: Uint8Array): boolean {
  const [x, y] = [a, b].map((n) => (BigInt(word(n, 8)) << 63n) | (BigInt(`0x${hex(n.subarray(0, 8))}`) & 0x7fffffffffffffffn)) as [
    bigint,
    bigint,
  ]
  return x - y <= 1n && y - x <= 1n
}
function closeEstimate(a: Uint8Array, b: Uint8Array): boolean {
  const x = new DataView(a.buffer, a.byteOffset, 16)
  const y = new DataView(b.buffer, b.byteOffset, 16)
  return [0, 4, 8, 12].every((i) => {
    const p = x.getFloat32(i, true)
    const q = y.getFloat32(i, true)
    return (
      x.getUint32(i, true) === y.getUint32(i, true) ||
      Math.abs(p / q - 1) < 3 / 4096 ||
      (Math.abs(p) < 2 ** -125 && Math.abs(q) < 2 ** -125)
    )
  })
}

/** What differs between hardware and the core, in words; empty when nothing does. */
function differences(c: Case, native: Outcome, mine: Outcome): string[] {
  const found: string[] = []
  const check = (what: string, a: string, b: string): void => {
    if (a !== b) found.push(`${what}: CPU ${a}, core ${b}`)
  }
  check('vector', String(native.vector), String(mine.vector))
  if (native.vector !== mine.vector) return found
  check('FCW', word(native.fx, 0).toString(16), word(mine.fx, 0).toString(16))
  // C1 says which way a result was rounded, which one unit decides.
  const relevant = oneUlp.test(c.row.mnemonic) ? 0xfdff : 0xffff
  check('FSW', (word(native.fx, 2) & relevant).toString(16), (word(mine.fx, 2) & relevant).toString(16))
  check('FTW', String(native.fx[4]), String(mine.fx[4]))
  check('MXCSR', hex(native.fx.subarray(24, 28)), hex(mine.fx.subarray(24, 28)))
  for (let i = 0; i < 8; i++) {
    const a = native.fx.subarray(32 + i * 16, 42 + i * 16)
    const b = mine.fx.subarray(32 + i * 16, 42 + i * 16)
    if (same(a, b)) continue
    if (!(oneUlp.test(c.row.mnemonic) && near(a, b))) check(`ST${i}`, hex(a), hex(b))
  }
  for (let i = 0; i < 16; i++) {
    const a = native.fx.subarray(160 + i * 16, 176 + i * 16)
    const b = mine.fx.subarray(160 + i * 16, 176 + i * 16)
    if (same(a, b)) continue
    if (!(estimates.test(c.row.mnemonic) && closeEstimate(a, b))) check(`XMM${i}`, hex(a), hex(b))
  }
  native.gpr.forEach((g, i) => check(`GPR${i}`, g.toString(16), (mine.gpr[i] ?? 0n).toString(16)))
  check('RFLAGS', (native.flags & 0x8d5n).toString(16), (mine.flags & 0x8d5n).toString(16))
  if (!same(native.memory, mine.memory)) {
    const at = native.memory.findIndex((x, i) => x !== mine.memory[i])
    check(`memory[${at}..]`, hex(native.memory.subarray(at, at + 16)), hex(mine.memory.subarray(at, at + 16)))
  }
  return found
}

function describe(c: Case, found: string[]): string {
  const fx = c.state.fx
  const code = c.code.map((b) => b.toString(16).padStart(2, '0')).join(' ')
  const st = [0, 1].map((i) => `ST${i} ${hex(fx.subarray(32 + i * 16, 42 + i * 16))}`).join(' ')
  return `${c.row.text} [${code}] FCW ${word(fx, 0).toString(16)} FSW ${word(fx, 2).toString(16)} FTW ${fx[4]} MXCSR ${hex(fx.subarray(24, 28))} ${st} M ${hex(c.state.memory.subarray(0, 16))}\n    ${found.join('\n    ')}`
}

/** The cases of one row do not depend on other rows. */
function casesOf(row: Opcode, style: Style, n: number, from = seed): Case[] {
  const hash = createHash('sha256').update(`${from} ${style} ${row.text}`).digest()
  const r = new Random(hash.readInt32LE(0))
  return Array.from({ length: n }, () => makeCase(row, r, style))
}

const test = suite('oracle')
for (const style of styles) {
  needs(test, 'amdOracle', `SSE and x87 against this CPU, exceptions ${style}`, () => {
    const cases = rows.flatMap((row) => casesOf(row, style, perRow))
    const native = runNative(cases)
    const core = new Emulated()
    const failures = new Map<string, string[]>()
    cases.forEach((c, i) => {
      let found: string[]
      try {
        found = differences(c, native[i] as Outcome, core.run(c.code, c.state))
      } catch (e) {
        found = [String(e)]
      }
      if (found.length > 0) failures.set(c.row.text, [...(failures.get(c.row.text) ?? []), describe(c, found)])
    })
    console.log(`simd: ${cases.length} cases over ${rows.length} rows, exceptions ${style}, seed ${seed}`)
    const report = [...failures].map(([row, list]) => `${row}: ${list.length} of ${perRow}\n  ${list.slice(0, 2).join('\n  ')}`)
    if (report.length > 0) throw new Error(`${report.length} of ${rows.length} rows differ\n${report.slice(0, 20).join('\n')}`)
  })
}

/** Digests of the core's outcomes, recorded (CLOISTER_SIMD_RECORD=1) on the reference CPU once the comparison above passed. */
test('SSE and x87 against the recorded digests', () => {
  const core = new Emulated()
  const digests: Record<string, string> = {}
  for (const row of rows) {
    const hash = createHash('sha256')
    for (const style of styles) {
      for (const c of casesOf(row, style, 6, 20260)) {
        const o = core.run(c.code, c.state)
        hash
          .update(`${o.vector} ${o.gpr.join()} ${o.flags & 0x8d5n} `)
          .update(o.fx)
          .update(o.memory)
      }
    }
    digests[row.text] = hash.digest('hex').slice(0, 16)
  }
  if (process.env['CLOISTER_SIMD_RECORD']) writeFileSync(vectors, `${JSON.stringify(digests, null, 1)}\n`)
  const recorded = JSON.parse(readFileSync(vectors, 'utf8')) as Record<string, string>
  const changed = rows.filter((row) => digests[row.text] !== recorded[row.text]).map((row) => row.text)
  if (changed.length > 0) throw new Error(`outcomes changed for ${changed.length} rows: ${changed.slice(0, 20).join('; ')}`)
})
test.run()
