/**
 * Task switches as a table (SDM vol 3, 7.2 and 7.3, tables 7-1 and 7-2): what each way of switching does to busy bits, back link and NT,
 * and each defect of the new task with its exception, which is raised in the new task.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { descriptor, FREE, GDT, gate, KCODE, KDATA, L, LDT_SEL, Machine, STUBS, TSS, TSS_SEL, UCODE, UDATA } from './machine.ts'

const test = suite('task table')
const dword = (v: number): number[] => [v & 255, (v >> 8) & 255, (v >> 16) & 255, (v >>> 24) & 255]
const NEW = FREE
const NEW_TSS = 0x6000
const NEXT = 0x11000
/** For the selectors of the new task. */
const X = 0x90
const STACK0 = 0x29000
type Way = 'jmp' | 'call' | 'int' | 'iret'

/** Fields of the new TSS by offset. */
function prepared(way: Way, fields: Record<number, number> = {}, cpl = 0): Machine {
  const m = new Machine('protected')
  m.poke(GDT + NEW, descriptor(NEW_TSS, 0x67, way === 'iret' ? 0x8b : 0x8e9))
  const user = cpl === 3
  const all: Record<number, number> = {
    0x04: STACK0,
    0x08: KDATA,
    0x20: NEXT,
    0x24: 2,
    0x38: 0x5000,
    0x4c: user ? UCODE : KCODE,
    ...Object.fromEntries([0x48, 0x50, 0x54, 0x58, 0x5c].map((at) => [at, user ? UDATA : KDATA])),
    ...fields,
  }
  for (const [at, v] of Object.entries(all)) m.poke(NEW_TSS + Number(at), BigInt(v), 4)
  m.idt(0x40, gate(NEW, 0, 0xe5))
  m.code(
    {
      jmp: [0xea, ...dword(0), NEW, 0],
      call: [0x9a, ...dword(0), NEW, 0],
      int: [0xcd, 0x40],
      iret: [0xcf],
    }[way],
  )
  m.code([0x90, 0xf4], NEXT)
  if (way === 'iret') {
    m.poke(TSS, BigInt(NEW), 2)
    m.setFlags(0x4002n)
  }
  return m
}

test('busy bits, back link and NT by the way of switching', () => {
  const LINK = 0x7777
  for (const [way, oldBusy, newBusy, link, nt, oldNt] of [
    ['jmp', false, true, LINK, false, false],
    ['call', true, true, TSS_SEL, true, false],
    ['int', true, true, TSS_SEL, true, false],
    ['iret', false, true, LINK, false, false],
  ] as const) {
    const m = prepared(way, { 0: LINK })
    m.run(1)
    assert.is(Number(m.rip), NEXT, way)
    assert.equal(
      [
        (m.peek(GDT + TSS_SEL + 5, 1) & 2n) !== 0n,
        (m.peek(GDT + NEW + 5, 1) & 2n) !== 0n,
        Number(m.peek(NEW_TSS, 2)),
        (m.flags & 0x4000n) !== 0n,
        (m.peek(TSS + 0x24, 4) & 0x4000n) !== 0n,
      ],
      [oldBusy, newBusy, link, nt, oldNt],
      way,
    )
    assert.is(m.u64(L.CPU_CR0) & 8n, 8n, 'TS')
  }
})

/** Of the descriptor X, or a selector as it is; X + 3 = RPL 3. */
type Defect = readonly [what: string, cpl: 0 | 3, field: number, selector: number, d: bigint, vector: number, error: number]
const flat = (attrib: number): bigint => descriptor(0, 0xfffff, attrib)
const [ES, CS, SS, DS, LDT] = [0x48, 0x4c, 0x50, 0x54, 0x60]
const RUNS = -1
const defects: readonly Defect[] = [
  ['LDT of the LDT', 3, LDT, 0x44, 0n, 10, 0x44],
  ['LDT is a TSS', 3, LDT, TSS_SEL, 0n, 10, TSS_SEL],
  ['LDT is data', 3, LDT, KDATA, 0n, 10, KDATA],
  ['LDT absent', 3, LDT, X, descriptor(0x7000, 0x7f, 0x002), 10, X],
  ['LDT beyond the table', 3, LDT, 0x400, 0n, 10, 0x400],
  ['LDT', 3, LDT, LDT_SEL, 0n, RUNS, 0],
  ['no LDT', 3, LDT, 3, 0n, RUNS, 0],
  ['CS beyond the table', 3, CS, 0x403, 0n, 10, 0x400],
  ['SS null', 3, SS, 3, 0n, 10, 0],
  ['SS with RPL 0', 3, SS, UDATA & ~3, 0n, 10, UDATA & ~3],
  ['SS with DPL 0', 3, SS, X | 3, flat(0xc92), 10, X],
  ['SS read-only', 3, SS, X | 3, flat(0xcf0), 10, X],
  ['SS is code', 3, SS, X | 3, flat(0xcfa), 10, X],
  ['SS is a TSS', 3, SS, TSS_SEL | 3, 0n, 10, TSS_SEL],
  ['SS absent', 3, SS, X | 3, flat(0xc72), 12, X],
  ['SS', 3, SS, X | 3, flat(0xcf2), RUNS, 0],
  ['SS that grows down', 3, SS, X | 3, descriptor(0, 0xf, 0xcf6), RUNS, 0],
  ['DS a TSS', 3, DS, TSS_SEL | 3, 0n, 10, TSS_SEL],
  ['DS execute-only', 3, DS, X | 3, flat(0xcf8), 10, X],
  ['DS with DPL 0', 3, DS, X | 3, flat(0xc92), 10, X],
  ['DS with DPL 0 and RPL 0', 3, DS, X, flat(0xc92), 10, X],
  ['DS readable code with DPL 0', 3, DS, X | 3, flat(0xc9a), 10, X],
  ['DS readable conforming code with DPL 0', 3, DS, X | 3, flat(0xc9e), RUNS, 0],
  ['DS absent', 3, DS, X | 3, flat(0xc72), 11, X],
  ['DS beyond the table', 3, DS, 0x403, 0n, 10, 0x400],
  ['DS null', 3, DS, 2, 0n, RUNS, 0],
  ['DS read-only', 3, DS, X | 3, flat(0xcf0), RUNS, 0],
  ['ES of RPL 3 and DPL 0 at level 0', 0, ES, X | 3, flat(0xc92), 10, X],
  ['ES absent at level 0', 0, ES, X, flat(0xc12), 11, X],
  ['ES beyond the LDT', 3, ES, 7, 0n, 10, 4],
  ['FS absent', 3, 0x58, X | 3, flat(0xc72), 11, X],
  ['GS execute-only', 3, 0x5c, X | 3, flat(0xcf8), 10, X],
]

test('defects of the new task', () => {
  for (const way of ['jmp', 'call', 'int'] as const)
    for (const [what, cpl, field, selector, d, vector, error] of defects) {
      const label = `${way}, ${what}`
      const m = prepared(way, { [field]: selector }, cpl)
      m.poke(GDT + X, d)
      m.run(1)
      if (vector === RUNS) {
        assert.equal([Number(m.rip), m.cpl], [NEXT, cpl], label)
        assert.is(m.selector(field === LDT ? L.SEG_LDTR : L.SEG_ES + (field - ES) / 4), selector, label)
        continue
      }
      assert.is(m.selector(L.SEG_TR), NEW, label)
      const at = Number(m.rip) & 1
      assert.is(Number(m.rip) - at, STUBS + vector * 16, label)
      // An event through a gate is external only if it was not INT n.
      assert.equal([m.frame(0), m.frame(1)], [error, NEXT], label)
    }
})

test('defects of CS, whatever the level of the old task', () => {
  for (const [what, selector, d, vector, error] of [
    ['null', 0, 0n, 10, 0],
    ['null with RPL', 3, 0n, 10, 0],
    ['data', X | 3, flat(0xcf2), 10, X],
    ['a TSS', TSS_SEL | 3, 0n, 10, TSS_SEL],
    ['DPL above RPL', X, flat(0xcfa), 10, X],
    ['DPL below RPL', X | 3, flat(0xc9a), 10, X],
    ['conforming, DPL above RPL', X | 1, flat(0xcfe), 10, X],
    ['absent', X | 3, flat(0xc7a), 11, X],
    ['conforming, DPL below RPL', X | 3, flat(0xc9e), RUNS, 0],
  ] as const) {
    for (const old of [0, 3]) {
      const m = prepared('jmp', { [CS]: selector }, 3)
      m.poke(GDT + X, d)
      if (old) m.user()
      m.run(1)
      if (vector === RUNS) {
        assert.equal([Number(m.rip), m.cpl], [NEXT, 3], what)
        continue
      }
      assert.equal([Number(m.rip) & ~1, m.frame(0), m.frame(1)], [STUBS + vector * 16, error, NEXT], what)
    }
  }
})

test('EIP beyond the limit of CS: #GP(0) in the new task', () => {
  for (const [limit, runs] of [
    [NEXT, true],
    [NEXT - 1, false],
  ] as const) {
    const m = prepared('call', { [CS]: X })
    m.poke(GDT + X, descriptor(0, limit, 0x49a))
    m.run(1)
    if (runs) assert.is(Number(m.rip), NEXT)
    else assert.equal([Number(m.rip) & ~1, m.frame(0), m.frame(1), m.frame(2)], [STUBS + 13 * 16, 0, NEXT, X])
  }
})

test.run()
