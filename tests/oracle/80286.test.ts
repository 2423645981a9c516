/**
 * Cases of a physical 80286 in real mode (tests/vectors/80286) on the core. `CLOISTER_80286` names the folder
 * v1_real_mode of a checkout of SingleStepTests/80286 to run all of it, `CLOISTER_80286_ONLY` a regular expression on opcodes.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { L, Machine } from '../system/machine.ts'
import { chunks, mooCase } from './moo.ts'
import type { MooCase } from './moo.ts'

const only = new RegExp(process.env['CLOISTER_80286_ONLY'] ?? '')
const whole = process.env['CLOISTER_80286']
const sample = fileURLToPath(new URL('../../../tests/vectors/80286/sample.moo.gz', import.meta.url))

const CF = 1
const PF = 4
const AF = 0x10
const ZF = 0x40
const SF = 0x80
const OF = 0x800

/** Flags that the opcode leaves undefined (SDM vol. 2; the same as flags-mask in the suite's metadata.json). */
function undefinedFlags(opcode: string, c: MooCase): number {
  const cl = (c.initial.regs[2] ?? 0) & 31
  const last = c.bytes[c.bytes.length - 1] === 0xf4 ? c.bytes.length - 2 : c.bytes.length - 1
  const count = /^D[01]/.test(opcode) ? 1 : /^D[23]/.test(opcode) ? cl : (c.bytes[last] ?? 0) & 31
  if (/^(0[89A-D]|2[0-5]|3[0-5]|8[0-3]\.[146]|8[45]|A[89]|F[67]\.[01])$/.test(opcode)) return AF
  if (/^(27|2F)$/.test(opcode)) return OF
  if (/^(37|3F)$/.test(opcode)) return OF | SF | ZF | PF
  if (opcode === 'D4' && c.exception === 0) return CF | OF | SF | ZF | AF | PF
  if (/^D[45]$/.test(opcode)) return OF | AF | CF
  if (/^(69|6B|F[67]\.[45])$/.test(opcode)) return SF | ZF | AF | PF
  if (/^F[67]\.[67]$/.test(opcode)) return CF | OF | SF | ZF | AF | PF
  if (/^(C[01]|D[0-3])\.[0-3]$/.test(opcode)) return count === 1 ? 0 : OF
  if (/^(C[01]|D[0-3])\.[4-7]$/.test(opcode)) return AF | (count === 1 ? 0 : OF) | (count >= 8 ? CF : 0)
  return 0
}

/** Prefixes in front of the opcode. */
function prefixes(c: MooCase): number[] {
  const found: number[] = []
  for (const b of c.bytes) {
    if (![0x26, 0x2e, 0x36, 0x3e, 0xf0, 0xf2, 0xf3].includes(b)) break
    found.push(b)
  }
  return found
}

/** Three vectors in which the 286 is said to have pushed SS in place of CS: taken for recording errors. */
const wrong = new Set(['CD 2044', 'CE 1193', 'FF.3 1141'])

/** Offset of a 16-bit memory operand whose ModRM byte is at `at`. */
function offset(c: MooCase, at: number): number {
  const r = (i: number): number => c.initial.regs[i] ?? 0
  const [bx, bp, si, di] = [r(1), r(9), r(10), r(11)]
  const modrm = c.bytes[at] ?? 0
  const low = c.bytes[at + 1] ?? 0
  const wide = low | ((c.bytes[at + 2] ?? 0) << 8)
  const displacement = modrm >= 0x80 ? wide : modrm >= 0x40 ? (low << 24) >> 24 : 0
  if ((modrm & 0xc7) === 6) return wide
  return (([bx + si, bx + di, bp + si, bp + di, si, di, bp, bx][modrm & 7] as number) + displacement) & 0xffff
}

/** Where a 286 and every later CPU differ by design, by name; such cases are counted and left out. */
function differs(opcode: string, c: MooCase): string | null {
  const before = prefixes(c)
  if (before.includes(0xf0)) return 'LOCK: the 286 takes it in front of what later CPUs refuse with #UD'
  if (/^(6[C-F]|E[4-7]|E[C-F])$/.test(opcode)) return 'ports: an exit to the VMM'
  if (/^(D[89A-F]|9B)/.test(opcode)) return 'x87: the 286 has no coprocessor here'
  if (c.bytes.length > 11) return 'length: the 286 stops at 10 bytes, later CPUs at 15'
  const modrm = c.bytes[before.length + 1] ?? 0
  if (/^8[CE]$/.test(opcode) && (modrm & 0x30) === 0x20) return 'FS and GS: #UD on the 286'
  if (/^(62|C[45]|FF\.[35])$/.test(opcode) && modrm < 0xc0 && offset(c, before.length + 1) > 0xfffc)
    return 'two words across the end of a segment: the 286 wraps, later CPUs fault'
  if (wrong.has(`${opcode} ${c.index}`)) return 'recording error'
  if (opcode === 'F6.7' && c.exception === undefined && ((c.final.regs[0] ?? 0) & 0xff) === 0x80)
    return 'quotients of -128: the 286 takes some overflows for one'
  if (c.exception !== 13) return null
  if (opcode === 'C7' && (modrm & 0x38) !== 0) return 'undefined form with a bad operand: #GP on the 286, #UD on later CPUs'
  if (opcode === '8F') return 'POP to memory: the 286 does not restore SP after a fault'
  if (/^A[4-7A-F]$/.test(opcode)) return 'strings: the 286 does not restore the registers of the iteration that faulted'
  const override = before.findLast((b) => [0x26, 0x2e, 0x36, 0x3e].includes(b))
  const stack = modrm < 0xc0 && ([2, 3].includes(modrm & 7) || ((modrm & 7) === 6 && modrm >= 0x40))
  if (/^([01][7F]|5[89A-F]|6[01]|9D|C[239ABF])$/.test(opcode) || override === 0x36 || (override === undefined && stack))
    return 'overrun of the stack segment: #GP on the 286, #SS since the 386'
  return null
}

const ORDER = [0, 3, 1, 2, -L.SEG_CS - 1, -L.SEG_SS - 1, -L.SEG_DS - 1, -L.SEG_ES - 1, 4, 5, 6, 7] as const
const NAMES = ['ax', 'bx', 'cx', 'dx', 'cs', 'ss', 'ds', 'es', 'sp', 'bp', 'si', 'di', 'ip', 'flags']
/** IOPL and NT cannot be set in real mode on a 286, but can on later CPUs. */
const HIGH = 0xf000

function get(m: Machine, i: number): number {
  if (i === 12) return Number(m.rip & 0xffffn)
  if (i === 13) return Number(m.flags & 0xffffn)
  const n = ORDER[i] ?? 0
  return n < 0 ? m.selector(-n - 1) : Number(m.reg(n) & 0xffffn)
}

function run(m: Machine, opcode: string, c: MooCase): string[] {
  const { regs } = c.initial
  const at = (i: number): number => regs[i] ?? 0
  for (const [address, value] of c.initial.ram) m.poke(address, BigInt(value), 1)
  ORDER.forEach((n, i) => {
    if (n >= 0) m.setReg(n, BigInt(at(i)))
    else m.segment(-n - 1, at(i), BigInt(at(i) << 4), 0xffff, n === -L.SEG_CS - 1 ? 0x9b : 0x93)
  })
  m.set64(L.CPU_RIP, BigInt(at(12)))
  m.setFlags(BigInt((at(13) & 0xfd5) | 2))
  m.set32(L.CPU_HALTED, 0)
  m.set32(L.CPU_EVENT, 0)
  m.changed()
  const why = m.run(2000)
  const found: string[] = []
  const check = (what: string, expected: number, got: number): void => {
    if (expected !== got) found.push(`${what}: 286 ${expected.toString(16)}, core ${got.toString(16)}`)
  }
  if (why !== L.STOP_EVENT && why !== L.STOP_EXIT) return [`stopped for ${why}`]
  const loose = undefinedFlags(opcode, c)
  NAMES.forEach((name, i) => {
    const mask = i === 13 ? ~(loose | HIGH) & 0xffff : 0xffff
    check(name, (c.final.regs[i] ?? at(i)) & mask, get(m, i) & mask)
  })
  // Not EXCP's flag address: it is even where SP is odd.
  const pushed = (at(5) << 4) + (((c.final.regs[8] ?? at(8)) + 4) & 0xffff)
  for (const [address, value] of c.final.ram) {
    const low = c.exception !== undefined && address === pushed
    const high = c.exception !== undefined && address === pushed + 1
    const mask = 0xff & ~(low ? loose : high ? (loose | HIGH) >> 8 : 0)
    check(address.toString(16), value & mask, Number(m.peek(address, 1)) & mask)
  }
  return found
}

function* vectors(): Generator<[string, MooCase]> {
  if (whole) {
    for (const file of readdirSync(whole)
      .filter((f) => f.endsWith('.MOO.gz'))
      .toSorted())
      for (const { tag, body } of chunks(gunzipSync(readFileSync(join(whole, file)))))
        if (tag === 'TEST') yield [file.replace('.MOO.gz', ''), mooCase(body)]
    return
  }
  let opcode = ''
  for (const { tag, body } of chunks(gunzipSync(readFileSync(sample)))) {
    if (tag === 'FILE') opcode = String.fromCharCode(...body)
    else if (tag === 'TEST') yield [opcode, mooCase(body)]
  }
}

test('cases of a physical 80286', () => {
  const m = new Machine('real')
  const left = new Map<string, number>()
  const bad = new Map<string, number>()
  const texts: string[] = []
  let cases = 0
  for (const [opcode, c] of vectors()) {
    if (!only.test(opcode)) continue
    const why = differs(opcode, c)
    if (why) {
      left.set(why, (left.get(why) ?? 0) + 1)
      continue
    }
    cases++
    const found = run(m, opcode, c)
    if (found.length === 0) continue
    const before = bad.get(opcode) ?? 0
    bad.set(opcode, before + 1)
    if (before < 3)
      texts.push(`${opcode} #${c.index} ${Buffer.from(c.bytes).toString('hex')} exc ${c.exception ?? '-'}: ${found.slice(0, 6).join('; ')}`)
  }
  console.log(`80286: ${cases} cases; left out: ${[...left].map(([why, n]) => `${n} (${why})`).join(', ')}`)
  if (texts.length > 0) console.log(texts.join('\n'))
  assert.equal([...bad], [], 'cases that differ, by opcode')
})

test.run()
