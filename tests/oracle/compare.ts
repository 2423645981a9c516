/** Runs random cases on both CPUs and reports differences. */
import type { Opcode } from '../../spec/opcodes/index.ts'
import { Emulated } from './core.ts'
import { Claims, generate, generateSequence } from './generate.ts'
import type { Case } from './generate.ts'
import { Native } from './native.ts'
import type { Outcome } from './native.ts'
import { codeBase, RAN, WINDOW } from './place.ts'
import type { Bits } from './place.ts'
import { Random } from './random.ts'
import { undefinedFlags, undefinedResult } from './undefined.ts'

const hex = (n: bigint | number): string => `0x${n.toString(16)}`
const names = 'rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15'.split(' ')
const RF = 0x10000n

/** A branch away ended in INT3 on the physical side: that is where it went. */
function normalise(c: Case, o: Outcome): Outcome {
  // INT3 itself faults nowhere here: the case's own bytes never are one.
  if (o.vector === 3) {
    o.vector = RAN
    o.rip -= 1n
    o.error = 0
  } else if (
    o.vector === 14 &&
    o.rip + BigInt(codeBase(c.bits)) === o.cr2 &&
    (o.cr2 < BigInt(c.slot) || o.cr2 >= BigInt(c.slot + c.length)) &&
    (o.error & 16) !== 0
  ) {
    // A branch to nowhere retired; the fetch after it faulted.
    o.vector = RAN
    o.error = 0
  }
  return o
}

/** Differences, as one line each; empty = equal. */
function differences(c: Case, want: Outcome, got: Outcome, window: Uint8Array): string[] {
  const found: string[] = []
  if (want.vector !== got.vector) found.push(`vector ${want.vector} expected, got ${got.vector}`)
  if (want.vector !== got.vector && (got.vector >= 1000 || want.vector === RAN)) return found
  if (want.vector !== RAN && want.vector === got.vector) {
    // Pages of the host's kernel, which are not mapped for us.
    const care = want.vector === 14 && want.cr2 >= 0x7fff_ffff_f000n ? ~1 : ~0
    if ((want.error & care) !== (got.error & care)) found.push(`error code ${hex(want.error)} expected, got ${hex(got.error)}`)
    if (want.vector === 14 && want.cr2 !== got.cr2) found.push(`cr2 ${hex(want.cr2)} expected, got ${hex(got.cr2)}`)
  }
  if (want.rip !== got.rip) found.push(`rip ${hex(want.rip)} expected, got ${hex(got.rip)}`)
  const loose = c.count === 1 && undefinedResult(c)
  // Legacy code has eight registers of 32 bits.
  const width = c.bits === 64 ? 64 : 32
  for (let i = 0; i < (c.bits === 64 ? 16 : 8); i++) {
    if (BigInt.asUintN(width, want.gpr[i] as bigint) !== BigInt.asUintN(width, got.gpr[i] as bigint) && !loose)
      found.push(`${names[i]} ${hex(want.gpr[i] as bigint)} expected, got ${hex(got.gpr[i] as bigint)} (was ${hex(c.gpr[i] as bigint)})`)
  }
  const care = ~(BigInt(want.vector === RAN && c.count === 1 ? undefinedFlags(c) : 0) | RF)
  if (((want.rflags ^ got.rflags) & care) !== 0n)
    found.push(`rflags ${hex(want.rflags)} expected, got ${hex(got.rflags)} (was ${hex(c.rflags)})`)
  if (!loose) {
    const a = want.window ?? window
    const b = got.window ?? window
    for (let i = 0; i < WINDOW; i++) {
      if (a[i] !== b[i]) {
        const show = (w: Uint8Array): string => Buffer.from(w.subarray(i, i + 16)).toString('hex')
        found.push(`memory at window + ${hex(i)}: ${show(a)} expected, got ${show(b)} (was ${show(window)})`)
        break
      }
    }
  }
  return found
}

function describe(c: Case): string {
  return `${c.parts.length > 0 ? c.parts.map((x) => `${x.row.text} (${Buffer.from(x.bytes).toString('hex')})`).join('; ') : c.row.text}\n    ${c.bits}-bit code, bytes ${Buffer.from(c.bytes).toString('hex')} at ${hex(c.slot)}, rflags ${hex(c.rflags)}\n    ${names.map((n, i) => `${n}=${hex(c.gpr[i] as bigint)}`).join(' ')}`
}

export interface Report {
  cases: number
  faults: number
  bad: number
  /** By mnemonic. */
  counts: Map<string, number>
  kinds: Map<string, number>
  texts: string[]
}

export interface Plan {
  rows: readonly Opcode[]
  all: readonly Opcode[]
  cases: number
  seed: number
  bits: Bits
  /** Several instructions at a time. */
  sequences?: boolean
  /** Stop collecting texts after so many per mnemonic. */
  perMnemonic?: number
  perKind?: number
  prepare?: (r: Random, c: Case) => void
  /** Cases of another generator; they end the comparison when they are used up. */
  from?: (r: Random) => Iterator<Case>
  /** The core runs each case twice more: one instruction at a time, and through the slow twins of all handlers. */
  again?: boolean
}

const BATCH = 2000

export async function compare(plan: Plan): Promise<Report> {
  const native = new Native()
  const emulated = new Emulated()
  const claims = new Claims(plan.all)
  const r = new Random(plan.seed)
  const given = plan.from?.(r)
  let ended = false
  const report: Report = { cases: 0, faults: 0, bad: 0, counts: new Map(), kinds: new Map(), texts: [] }
  try {
    while (report.cases < plan.cases && !ended) {
      const cases: Case[] = []
      const windows: Uint8Array[] = []
      const sent: (Uint8Array | undefined)[] = []
      let base = new Uint8Array(WINDOW)
      for (let i = 0; i < Math.min(BATCH, plan.cases - report.cases); i++) {
        const next = given?.next()
        ended = next?.done === true
        if (ended) break
        const c = next?.value
          ? next.value
          : plan.sequences
            ? generateSequence(r, plan.rows, claims, plan.bits, (part) => undefinedFlags(part) !== 0 || undefinedResult(part))
            : generate(r, plan.rows[(report.cases + i) % plan.rows.length] as Opcode, claims, plan.bits)
        plan.prepare?.(r, c)
        let fresh = i === 0
        if (i % 16 === 0) {
          base = new Uint8Array(WINDOW)
          for (let k = 0; k < WINDOW; k++) base[k] = r.chance(25) ? r.pick([0, 255, 128, 127, 1]) : r.u32()
          fresh = true
        }
        let window = base
        if (c.pokes.length > 0) {
          window = base.slice()
          const v = new DataView(window.buffer)
          for (const [at, value, n] of c.pokes)
            for (let k = 0; k < n && at + k < WINDOW; k++) v.setUint8(at + k, Number((value >> BigInt(8 * k)) & 0xffn))
        }
        sent.push(fresh || window !== windows.at(-1) ? window : undefined)
        cases.push(c)
        windows.push(window)
      }
      const pending = native.run(cases, sent)
      const got = cases.map((c, i) => emulated.run(c, windows[i] as Uint8Array))
      const again: Record<string, (Outcome | undefined)[]> = {}
      if (plan.again) {
        again['single-stepped'] = cases.map((c, i) => (c.count > 1 ? emulated.run(c, windows[i] as Uint8Array, 1) : undefined))
        again['slow'] = cases.map((c, i) => emulated.run(c, windows[i] as Uint8Array, 100, true))
      }
      const want = await pending
      cases.forEach((c, i) => {
        const w = normalise(c, want[i] as Outcome)
        if (w.vector !== RAN) report.faults++
        const found = differences(c, w, normalise(c, got[i] as Outcome), windows[i] as Uint8Array)
        for (const [how, outcomes] of Object.entries(again)) {
          const o = outcomes[i]
          if (o && found.length === 0)
            found.push(...differences(c, w, normalise(c, o), windows[i] as Uint8Array).map((text) => `${how}: ${text}`))
        }
        if (found.length === 0) return
        report.bad++
        const n = (report.counts.get(c.row.mnemonic) ?? 0) + 1
        report.counts.set(c.row.mnemonic, n)
        const kind = `${c.row.mnemonic} ${found.map((f) => f.replace(/0x[0-9a-f]+|window.*/g, '')).join()}`
        const k = (report.kinds.get(kind) ?? 0) + 1
        report.kinds.set(kind, k)
        if (k <= (plan.perKind ?? 1) && n <= (plan.perMnemonic ?? 3)) report.texts.push(`${describe(c)}\n      ${found.join('\n      ')}`)
      })
      report.cases += cases.length
      const stray = emulated.stray()
      if (stray.length > 0)
        throw new Error(`the core wrote outside the windows at ${hex(stray[0] as number)} in the batch before case ${report.cases}`)
    }
  } finally {
    native.close()
  }
  return report
}
