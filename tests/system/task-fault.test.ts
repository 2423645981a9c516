/**
 * Task switches whose accesses fault (SDM vol 3, 7.3; APM vol 2, 12.3). The law: a page fault on a descriptor table or TSS, at any
 * of the pages a switch touches, leaves the old task as it was; when the page is there, the instruction or event runs as if nothing
 * had happened. Besides, what a switch does to RF, the T bit and DR7.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, descriptor, gate, GDT, KCODE, KDATA, L, Machine, STUBS, TSS_SEL } from './machine.ts'

const test = suite('task faults')
const dword = (v: number): number[] => [v & 255, (v >> 8) & 255, (v >> 16) & 255, (v >>> 24) & 255]
const PD = 0x60000
const PT = 0x61000
/** Code and data segments on one page, the descriptor of the old task on the next, that of the new task on another. */
const TABLE = 0x56000 - TSS_SEL
const NEW = 0x1000 + TSS_SEL
/** Each crosses into the next page in the middle of its registers. */
const OLD_TSS = 0x50fc0
const NEW_TSS = 0x52fc0
const PAGES = [0x50, 0x51, 0x52, 0x53, 0x56, 0x57]
const NEXT = 0x11000
const HLT = 0xf4
const GP = 13

type Way = 'jmp' | 'call' | 'iret' | 'int' | 'exception'
const ways: readonly Way[] = ['jmp', 'call', 'iret', 'int', 'exception']

function field(m: Machine, at: number, wide: boolean, name: 'eip' | 'flags' | 'esp' | 'link', value: number): void {
  const offset = { link: [0, 0], eip: [0x0e, 0x20], flags: [0x10, 0x24], esp: [0x1a, 0x38] }[name][wide ? 1 : 0] as number
  m.poke(at + offset, BigInt(value), wide && name !== 'link' ? 4 : 2)
}

/** A machine with 4 KiB pages that stands before a switch from OLD_TSS to NEW_TSS. */
function prepared(way: Way, oldWide: boolean, newWide: boolean): Machine {
  const m = new Machine('protected')
  m.poke(PD, BigInt(PT) | 3n, 4)
  for (let i = 0; i < 1024; i++) m.poke(PT + i * 4, BigInt(i * 4096) | 3n, 4)
  for (let i = 0; i < TSS_SEL; i += 8) m.poke(TABLE + i, m.peek(GDT + i))
  const returning = way === 'iret'
  m.poke(TABLE + TSS_SEL, descriptor(OLD_TSS, oldWide ? 0x67 : 0x2b, oldWide ? 0x8b : 0x83))
  m.poke(TABLE + NEW, descriptor(NEW_TSS, newWide ? 0x67 : 0x2b, (newWide ? 0x89 : 0x81) | (returning ? 2 : 0)))
  m.segment(L.SEG_GDTR, 0, BigInt(TABLE), 0x1fff, 0)
  m.segment(L.SEG_TR, TSS_SEL, BigInt(OLD_TSS), oldWide ? 0x67 : 0x2b, oldWide ? 0x8b : 0x83)
  field(m, NEW_TSS, newWide, 'eip', newWide ? NEXT : 0x3000)
  field(m, NEW_TSS, newWide, 'flags', 2)
  field(m, NEW_TSS, newWide, 'esp', 0x6000)
  if (newWide) m.poke(NEW_TSS + 0x1c, BigInt(PD), 4)
  const [first, step] = newWide ? [0x48, 4] : [0x22, 2]
  for (let i = 0; i < (newWide ? 6 : 4); i++) m.poke(NEW_TSS + first + i * step, BigInt(i === 1 ? KCODE : KDATA), 2)
  for (let i = 0; i < 8; i++) if (i !== 4) m.poke(NEW_TSS + (newWide ? 0x28 + i * 4 : 0x12 + i * 2), BigInt(0x1110 + i), newWide ? 4 : 2)
  if (returning) field(m, OLD_TSS, oldWide, 'link', NEW)
  m.set64(L.CPU_CR3, BigInt(PD))
  m.set64(L.CPU_CR0, 0x80010011n)
  m.setFlags(returning ? 0x4002n : 2n)
  for (let n = 0; n < 8; n++) if (n !== 4) m.setReg(n, BigInt(0x2220 + n))
  m.changed()
  m.idt(0x40, gate(NEW, 0, 0x85))
  if (way === 'exception') m.idt(GP, gate(NEW, 0, 0x85))
  // Handlers of faults: nop (which a run of one instruction still executes, since a fault retires nothing); add esp, 4; iret.
  for (const v of [10, 11, 13, 14]) m.code([0x90, 0x83, 0xc4, 4, 0xcf], STUBS + v * 16)
  m.code([HLT], NEXT)
  m.code([HLT], 0x3000)
  m.code(
    {
      jmp: [0xea, ...dword(0), NEW & 255, NEW >> 8],
      call: [0x9a, ...dword(0), NEW & 255, NEW >> 8],
      iret: [0xcf],
      int: [0xcd, 0x40],
      // A descriptor outside the table: #GP(0xfff8).
      exception: [0xb8, 0xf8, 0xff, 0, 0, 0x8e, 0xd8],
    }[way],
  )
  if (way === 'exception') m.run(1)
  return m
}

/** Everything that a switch may change: registers, tables, both TSS, the new stack. */
function state(m: Machine): string {
  const parts: (bigint | number)[] = [m.rip, m.flags, m.u64(L.CPU_CR0), m.u64(L.CPU_CR3), m.u64(L.CPU_DR7), m.cpl]
  for (let n = 0; n < 8; n++) parts.push(m.reg(n))
  for (const n of [L.SEG_ES, L.SEG_CS, L.SEG_SS, L.SEG_DS, L.SEG_FS, L.SEG_GS, L.SEG_TR, L.SEG_LDTR])
    parts.push(m.selector(n), m.attrib(n), m.base(n), m.limit(n))
  for (let i = 0; i <= TSS_SEL; i += 8) parts.push(m.peek(TABLE + i))
  parts.push(m.peek(TABLE + NEW))
  for (let i = 0; i < 0x68; i += 8) parts.push(m.peek(NEW_TSS + i), m.peek(OLD_TSS + i))
  for (let i = 0x5fe0; i < 0x6000; i += 8) parts.push(m.peek(i))
  return parts.map((v) => v.toString(16)).join(' ')
}

for (const way of ways)
  test(`a page fault on a table or TSS during ${way} leaves the old task, and the switch can be repeated`, () => {
    let faults = 0
    for (const [oldWide, newWide] of [
      [true, true],
      [true, false],
      [false, true],
      [false, false],
    ] as const) {
      const whole = prepared(way, oldWide, newWide)
      const before = state(whole)
      const start = whole.rip
      whole.run(1)
      assert.is(whole.selector(L.SEG_TR), NEW, `${way}: switched`)
      const after = state(whole)
      assert.is.not(after, before)
      for (const page of PAGES)
        for (const entry of [0, 1]) {
          const label = `${way} ${oldWide ? 32 : 16}->${newWide ? 32 : 16}, page ${page.toString(16)}, entry ${entry}`
          const m = prepared(way, oldWide, newWide)
          m.poke(PT + page * 4, BigInt(entry ? page * 4096 + 1 : 0), 4)
          m.core.x['flushTlb']?.(m.s)
          m.run(1)
          if (Number(m.rip) !== STUBS + 14 * 16 + 1) {
            // Not touched, or only read.
            assert.is(state(m), after, label)
            continue
          }
          faults++
          assert.is(Number(m.u64(L.CPU_CR2)) >> 12, page, label)
          // P, W, never U; a page that is not there may be found by a read or by a write.
          assert.is(m.frame(0) & ~2, entry, label)
          if (entry) assert.is(m.frame(0), 3, label)
          // As it was: #PF pushed four words and nothing else; RF is in the image only.
          assert.is(m.frame(1), Number(start), label)
          m.poke(PT + page * 4, BigInt(page * 4096 + 3), 4)
          m.run(2)
          assert.is(Number(m.rip), Number(start), label)
          assert.is(state(m), before, label)
          m.run(1)
          assert.is(state(m), after, label)
        }
    }
    assert.ok(faults > 8, `${faults} faults`)
  })

test('RF: saved for a fault that goes through a task gate, loaded from the TSS', () => {
  const m = prepared('exception', true, true)
  m.run(1)
  assert.is(Number(m.peek(OLD_TSS + 0x24, 4)), 0x10002, 'a fault')
  const trap = prepared('int', true, true)
  trap.run(1)
  assert.is(Number(trap.peek(OLD_TSS + 0x24, 4)), 2, 'INT n')
  // A breakpoint at the first instruction of the new task: G0 stays enabled across the switch, L0 does not.
  for (const way of ['jmp', 'call', 'iret', 'int'] as const)
    for (const [rf, dr7, stops] of [
      [0, 2n, true],
      [1, 2n, false],
      [0, 1n, false],
    ] as const) {
      const b = prepared(way, true, true)
      b.setReg(0, BigInt(NEXT))
      b.code([0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xf9], CODE - 6)
      b.setReg(1, dr7 | 0x400n)
      b.set64(L.CPU_RIP, BigInt(CODE - 6))
      b.poke(NEW_TSS + 0x24, BigInt(2 | (rf << 16)), 4)
      b.code([0x90, HLT], NEXT)
      b.run(100)
      assert.is(Number(b.rip), stops ? STUBS + 16 + 1 : NEXT + 2, `${way}, RF ${rf}, DR7 ${dr7}`)
      if (stops) assert.equal([b.frame(0), b.frame(2) & 0x10000], [NEXT, 0])
    }
})

test('T bit: #DB before the first instruction of the new task, with BT', () => {
  for (const way of ['jmp', 'call', 'iret', 'int', 'exception'] as const) {
    const m = prepared(way, true, true)
    m.poke(NEW_TSS + 0x64, 1n, 2)
    m.run(10)
    assert.is(Number(m.rip), STUBS + 16 + 1, way)
    assert.equal([m.frame(0), m.selector(L.SEG_TR), Number(m.u64(L.CPU_DR6) & 0xe00fn)], [NEXT, NEW, 0x8000], way)
  }
})

test('a TSS that ends too early, is not there or has the wrong type: nothing changes', () => {
  const cases: [Way, bigint, number, number][] = [
    ['jmp', descriptor(NEW_TSS, 0x66, 0x89), 10, NEW],
    ['jmp', descriptor(NEW_TSS, 0x2a, 0x81), 10, NEW],
    ['call', descriptor(NEW_TSS, 0x67, 0x09), 11, NEW],
    ['call', descriptor(NEW_TSS, 0x67, 0x8b), 13, NEW],
    ['iret', descriptor(NEW_TSS, 0x67, 0x89), 10, NEW],
    ['iret', descriptor(NEW_TSS, 0x67, 0x0b), 11, NEW],
    ['iret', descriptor(NEW_TSS, 0x66, 0x8b), 10, NEW],
    ['iret', descriptor(0, 0xfffff, 0xc93), 10, NEW],
    ['int', descriptor(NEW_TSS, 0x66, 0x89), 10, NEW],
    ['int', descriptor(NEW_TSS, 0x67, 0x8b), 13, NEW],
    ['int', descriptor(NEW_TSS, 0x67, 0x09), 11, NEW],
  ]
  for (const [way, d, vector, error] of cases) {
    const m = prepared(way, true, true)
    m.poke(TABLE + NEW, d)
    const before = state(m)
    m.run(1)
    const label = `${way}, ${d.toString(16)}`
    assert.is(Number(m.rip), STUBS + vector * 16 + 1, label)
    assert.is(m.frame(0), error, label)
    assert.is(m.frame(1), CODE, label)
    m.run(2)
    assert.is(state(m), before, label)
  }
})

test.run()
