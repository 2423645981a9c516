/**
 * What a CPU model masks in CPUID is #UD, and what it shows runs: every row of the opcode map that belongs to a feature
 * (spec/opcodes/features.ts), on every model and with every feature taken away. And docs/cpu-models.md against the CPUID that
 * a guest gets.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeCpuid } from '../../host/cpuid/entries.ts'
import { openKvm } from '../../host/index.ts'
import { cpuidFor, parseCpu } from '../../host/vmm/cpu-types.ts'
import { CPU_MODELS, FEATURE_BITS, FEATURE_WORDS } from '../../spec/cpu-models.ts'
import { featureOf } from '../../spec/opcodes/features.ts'
import { opcodes } from '../../spec/opcodes/index.ts'
import type { Opcode } from '../../spec/opcodes/index.ts'
import { call } from '../support/core.ts'
import { CODE, L, Machine } from '../system/machine.ts'

const kvm = await openKvm({ host: 'amd' })
const supported = kvm.supportedCpuid()
kvm[Symbol.dispose]()

const m = new Machine('long')
m.set64(L.CPU_CR0, 0x80000013n)
m.set64(L.CPU_CR4, 0x40620n)
m.set64(L.CPU_XCR0, 3n)
const UD = 6
const cpuidOf = (cpu: string): ReturnType<typeof cpuidFor>['entries'] => cpuidFor(supported, 0, 1, undefined, parseCpu(cpu)).entries

function choose(cpu: string): void {
  const entries = cpuidOf(cpu)
  m.core.bytes.set(encodeCpuid(entries).subarray(8), m.s + L.VCPU_CPUID + 16)
  m.core.view.setUint32(m.s + L.VCPU_CPUID, entries.length, true)
  call(m.core, 'cpuidChanged', m.s)
  m.changed()
}

/** Features by name in the CPUID of a model. */
function shown(cpu: string): Set<string> {
  const entries = cpuidOf(cpu)
  const found = new Set<string>()
  for (const [word, names] of Object.entries(FEATURE_BITS)) {
    const [leaf, index, register] = FEATURE_WORDS[word as keyof typeof FEATURE_WORDS]
    const value = entries.find((e) => e.function === leaf && e.index === index)?.[register] ?? 0
    for (const [name, bit] of Object.entries(names)) if ((value >>> bit) & 1) found.add(name)
  }
  return found
}

/** One form of the row: [rsi], or registers. */
function encode(o: Opcode): number[] {
  const prefix = o.prefix === 'any' || o.prefix === 'NP' ? [] : [Number.parseInt(o.prefix, 16)]
  const pp = { any: 0, NP: 0, '66': 1, F3: 2, F2: 3 }[o.prefix]
  const maps = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]]
  const front =
    o.map >= 4 ? [0xc4, 0xe0 | (o.map - 3), (o.operands.includes('By') ? 0x60 : 0x78) | pp] : [...prefix, ...(maps[o.map] as number[])]
  const modrm = o.exact ?? (o.mod === 'reg' ? 0xc0 : 0) | ((o.ext ?? 1) << 3) | 6
  const immediate = o.immediate === 'none' ? [] : o.immediate === 'Iw' ? [1, 1] : [1]
  return [...front, o.opcode, ...(o.modrm ? [modrm] : []), ...immediate]
}

let at = CODE
/** The vector that the row raises in 64-bit mode, -1 = it runs. */
function vector(o: Opcode): number {
  at = at + 32 < CODE + 0x8000 ? at + 32 : CODE
  m.code([...encode(o), 0xf4], at)
  for (let i = 0; i < 16; i++) m.setReg(i, BigInt(i))
  m.setReg(0, 3n)
  m.setReg(2, 0n)
  m.setReg(4, 0x20000n)
  m.setReg(6, 0x30000n)
  for (const field of [L.CPU_FSW, L.CPU_FTOP, L.CPU_FTAG]) m.set32(field, 0)
  m.set32(L.CPU_FCW, 0x37f)
  m.set32(L.CPU_MXCSR, 0x1f80)
  m.setFlags(2n)
  m.set64(L.CPU_RIP, BigInt(at))
  m.set32(L.CPU_HALTED, 0)
  m.run(2)
  const vectorOf = (Number(m.rip) - 1 - 0x8000) / 16
  return Number.isInteger(vectorOf) && vectorOf >= 0 && vectorOf < 256 ? vectorOf : -1
}

const rows = opcodes.flatMap((row) => {
  const feature = featureOf(row)
  return feature === undefined ? [] : [{ row, feature }]
})
/** TZCNT and LZCNT run as BSF and BSR where they do not exist. */
const expected = (row: Opcode, present: boolean): boolean => present || /^[TL]ZCNT$/.test(row.mnemonic)

test('every instruction that a model shows runs, and what it masks is #UD', () => {
  let compared = 0
  const wrong: string[] = []
  for (const model of ['default', ...Object.keys(CPU_MODELS)]) {
    choose(model)
    const features = shown(model)
    for (const { row, feature } of rows) {
      compared++
      const ran = vector(row) !== UD
      if (ran !== expected(row, features.has(feature))) wrong.push(`${model}: ${row.text} ${ran ? 'runs' : 'is #UD'}`)
    }
  }
  console.log(`cpu features: ${compared} rows and models`)
  assert.ok(rows.length > 150, `${rows.length} rows belong to a feature`)
  assert.equal(wrong.slice(0, 20), [])
})

test('taking one feature away takes its instructions away', () => {
  const wrong: string[] = []
  for (const taken of new Set(rows.map((r) => r.feature))) {
    if (!shown('default').has(taken)) continue
    choose(`default,-${taken}`)
    for (const { row, feature } of rows) {
      const ran = vector(row) !== UD
      if (ran !== expected(row, feature !== taken && shown('default').has(feature)))
        wrong.push(`-${taken}: ${row.text} ${ran ? 'runs' : 'is #UD'}`)
    }
  }
  assert.equal(wrong.slice(0, 20), [])
})

test('LZCNT and TZCNT without their features are BSR and BSF', () => {
  const run = (code: number[]): bigint => {
    m.code([...code, 0xf4], CODE + 0x9000)
    m.setReg(6, 0x10n)
    m.set64(L.CPU_RIP, BigInt(CODE + 0x9000))
    m.set32(L.CPU_HALTED, 0)
    m.run(2)
    return m.reg(0)
  }
  choose('default')
  assert.is(run([0xf3, 0x0f, 0xbd, 0xc6]), 27n)
  choose('default,-abm')
  assert.is(run([0xf3, 0x0f, 0xbd, 0xc6]), 4n)
})

/** Instructions whose handlers look themselves, bits of CR4 and EFER: what they do without their feature. */
const asked: readonly (readonly [feature: string, code: readonly number[], without: number, before?: (m: Machine) => void])[] = [
  ['cx16', [0x48, 0x0f, 0xc7, 0x0e], UD],
  ['movdiri', [0x0f, 0x38, 0xf9, 0x06], UD],
  ['movdir64b', [0x66, 0x0f, 0x38, 0xf8, 0x06], UD],
  ['rdtscp', [0x0f, 0x01, 0xf9], UD],
  ['rdpid', [0xf3, 0x0f, 0xc7, 0xf8], UD],
  ['invpcid', [0x66, 0x0f, 0x38, 0x82, 0x0f], UD],
  ['smap', [0x0f, 0x01, 0xca], UD],
  ['smap', [0x0f, 0x01, 0xcb], UD],
  ['lahf-lm', [0x9f], UD],
  ['lahf-lm', [0x9e], UD],
  ['clzero', [0x0f, 0x01, 0xfc], UD],
  ...(
    [
      ['umip', 11],
      ['fsgsbase', 16],
      ['pcid', 17],
      ['xsave', 18],
      ['smep', 20],
      ['smap', 21],
      ['pku', 22],
    ] as const
  ).map(([feature, bit]) => [feature, [0x0f, 0x22, 0xe0], 13, (x: Machine) => x.setReg(0, 0x620n | (1n << BigInt(bit)))] as const),
  ['nx', [0x0f, 0x30], 13, (x: Machine): void => [0xd01n, 0xc0000080n, 0n].forEach((v, i) => x.setReg(i, v))],
]

test('instructions, CR4 and EFER that look for their feature themselves', () => {
  const run = (cpu: string, code: readonly number[], before?: (m: Machine) => void): number => {
    choose(cpu)
    m.code([...code, 0xf4], CODE + 0xa000)
    for (let i = 0; i < 8; i++) m.setReg(i, 0n)
    m.setReg(0, 0x30000n)
    m.setReg(4, 0x20000n)
    m.setReg(6, 0x30000n)
    m.set64(L.CPU_CR4, 0x40620n)
    m.set64(L.CPU_EFER, 0x501n)
    m.changed()
    before?.(m)
    m.set64(L.CPU_RIP, BigInt(CODE + 0xa000))
    m.set32(L.CPU_HALTED, 0)
    m.run(2)
    const stub = (Number(m.rip) - 1 - 0x8000) / 16
    return Number(m.rip) === CODE + 0xa001 + code.length ? -1 : stub
  }
  let without = 0
  for (const [feature, code, vectorOf, before] of asked) {
    const label = `${feature}: ${code.map((b) => b.toString(16)).join(' ')}`
    if (!shown('default').has(feature)) {
      assert.is(run('default', code, before), vectorOf, label)
      continue
    }
    without++
    // With SMEP the next fetch faults: these pages are the user's.
    assert.ok(feature === 'smep' ? run('default', code, before) !== vectorOf : run('default', code, before) === -1, label)
    assert.is(run(`default,-${feature}`, code, before), vectorOf, `without ${label}`)
  }
  assert.ok(without > 12, `${without} rows with a feature that a guest has`)
})

test('docs/cpu-models.md lists what a guest does not see', () => {
  const document = readFileSync(fileURLToPath(new URL('../../../docs/cpu-models.md', import.meta.url)), 'utf8')
  let models = 0
  for (const line of document.split('\n')) {
    const cells = line.split('|').map((c) => c.trim())
    const names = [...(cells[1] ?? '').matchAll(/`([^`]+)`/g)].map((x) => x[1] as string)
    if (cells.length < 5 || names.length === 0) continue
    const lacks = [...(cells[3] ?? '').matchAll(/`([^`]+)`/g)].map((x) => x[1] as string)
    for (const name of names) {
      const model = CPU_MODELS[name]
      if (!model) throw new Error(`${name} is no model`)
      const features = shown(name)
      models++
      assert.equal(
        lacks.toSorted(),
        model.features
          .split(' ')
          .filter((f) => !features.has(f))
          .toSorted(),
        name,
      )
    }
  }
  assert.is(models, Object.keys(CPU_MODELS).length)
})

test.run()
