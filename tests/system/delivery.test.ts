/** Exceptions and interrupts: vectors, error codes, frames, stacks, double and triple faults. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  CODE,
  FREE,
  GDT,
  gate,
  descriptor,
  IDT,
  IST1,
  KCODE,
  KCODE64,
  KDATA,
  L,
  Machine,
  STACK,
  STACK0,
  TSS,
  UCODE,
  UCODE64,
  UDATA,
} from './machine.ts'

const test = suite('delivery')
const UD2 = [0x0f, 0x0b]

test('real mode: vector table, frame, IF and TF cleared', () => {
  const m = new Machine('real')
  m.setFlags(0x202n)
  assert.is(m.exec([0xcd, 0x21]), 0x21)
  assert.equal([m.frame(0), m.frame(1), m.frame(2)], [2, CODE >> 4, 0x202])
  assert.is(m.flags & 0x300n, 0n)
  const d = new Machine('real')
  assert.is(d.exec([0x31, 0xc9, 0xf7, 0xf1]), 0)
  assert.is(d.frame(0), 2)
})

test('real mode: a vector beyond the limit shuts down', () => {
  const m = new Machine('real')
  m.segment(L.SEG_IDTR, 0, 0n, 3, 0)
  assert.is(m.exec(UD2), -10 - L.STOP_SHUTDOWN)
  assert.is(m.u32(L.CPU_TRIPLE_FAULT), 1)
})

for (const mode of ['protected', 'long'] as const) {
  const code = mode === 'long' ? KCODE64 : KCODE
  const ucode = mode === 'long' ? UCODE64 : UCODE

  test(`${mode}: #UD frame at the same level`, () => {
    const m = new Machine(mode)
    m.setFlags(0x202n)
    assert.is(m.exec([0x90, ...UD2]), 6)
    assert.equal([m.frame(0), m.frame(1), m.frame(2)], [CODE + 1, code, 0x10202])
    if (mode === 'long') assert.equal([m.frame(3), m.frame(4)], [STACK, KDATA])
    assert.is(m.flags & 0x200n, 0n)
  })

  test(`${mode}: trap gate keeps IF, interrupt gate clears it`, () => {
    const m = new Machine(mode)
    m.idt(6, gate(code, 0x8000 + 6 * 16, 0x8f))
    m.setFlags(0x202n)
    assert.is(m.exec(UD2), 6)
    assert.is(m.flags & 0x200n, 0x200n)
  })

  test(`${mode}: from CPL 3 the stack comes from the TSS`, () => {
    const m = new Machine(mode)
    m.user()
    assert.is(m.exec(UD2), 6)
    assert.is(m.cpl, 0)
    assert.equal([m.frame(0), m.frame(1)], [CODE, ucode])
    assert.is(m.frame(3), STACK)
    assert.is(m.frame(4), mode === 'long' ? 0x5b : UDATA)
    assert.is(Number(m.reg(4)), STACK0 - 5 * (mode === 'long' ? 8 : 4))
    assert.is(m.selector(L.SEG_SS), mode === 'long' ? 0 : KDATA)
  })

  test(`${mode}: INT n needs gate DPL >= CPL`, () => {
    const m = new Machine(mode)
    m.user()
    assert.is(m.exec([0xcd, 0x80]), 13)
    assert.is(m.frame(0), 0x80 * 8 + 2)
    assert.is(m.frame(1), CODE)
    const n = new Machine(mode)
    n.idt(0x80, gate(code, 0x8000 + 0x80 * 16, 0xee))
    n.user()
    assert.is(n.exec([0xcd, 0x80]), 0x80)
    assert.is(n.frame(0), CODE + 2)
  })

  test(`${mode}: gate faults carry IDT error codes`, () => {
    const absent = new Machine(mode)
    absent.idt(6, gate(code, 0, 0x0e))
    assert.is(absent.exec(UD2), 11)
    assert.is(absent.frame(0), 6 * 8 + 2 + 1)
    const type = new Machine(mode)
    type.idt(6, gate(code, 0, 0x82))
    assert.is(type.exec(UD2), 13)
    assert.is(type.frame(0), 6 * 8 + 2 + 1)
    const beyond = new Machine(mode)
    beyond.segment(L.SEG_IDTR, 0, BigInt(IDT), (mode === 'long' ? 16 : 8) * 0x20 - 1, 0)
    assert.is(beyond.exec([0xcd, 0x30]), 13)
    assert.is(beyond.frame(0), 0x30 * 8 + 2)
    const nullCode = new Machine(mode)
    nullCode.idt(6, gate(0, 0, 0x8e))
    assert.is(nullCode.exec(UD2), 13)
    assert.is(nullCode.frame(0), 1)
    const data = new Machine(mode)
    data.idt(6, gate(KDATA, 0, 0x8e))
    assert.is(data.exec(UD2), 13)
    assert.is(data.frame(0), KDATA + 1)
  })

  test(`${mode}: double and triple fault`, () => {
    const m = new Machine(mode)
    m.idt(13, gate(code, 0, 0x0e))
    // #GP whose gate is absent: #NP while delivering a contributory exception
    assert.is(m.exec([0x31, 0xc0, 0xb8, 0x33, 0, 0, 0, 0x8e, 0xd0]), 8)
    assert.is(m.frame(0), 0)
    const t = new Machine(mode)
    t.idt(13, gate(code, 0, 0x0e))
    t.idt(8, gate(code, 0, 0x0e))
    assert.is(t.exec([0x31, 0xc0, 0xb8, 0x33, 0, 0, 0, 0x8e, 0xd0]), -10 - L.STOP_SHUTDOWN)
    // #UD is benign: its bad gate gives the second exception itself
    const b = new Machine(mode)
    b.idt(6, gate(code, 0, 0x0e))
    assert.is(b.exec(UD2), 11)
  })
}

test('protected: 16-bit gate pushes words', () => {
  const m = new Machine('protected')
  m.idt(6, gate(KCODE, 0x8000 + 6 * 16, 0x86))
  assert.is(m.exec([0x66, 0x90, ...UD2].slice(2)), 6)
  assert.is(Number(m.reg(4)), STACK - 6)
  assert.is(m.frame(0, 2), CODE & 0xffff)
})

test('protected: bad inner stacks raise #TS and #SS with the selector', () => {
  const cases: [number, bigint | undefined, number, number][] = [
    [0, undefined, 10, 1],
    [KDATA | 3, undefined, 10, KDATA + 1],
    [KCODE, undefined, 10, KCODE + 1],
    [FREE, descriptor(0, 0xfffff, 0xc13), 12, FREE + 1],
    [0x7f8, undefined, 10, 0x7f9],
  ]
  for (const [ss, d, vector, error] of cases) {
    const m = new Machine('protected')
    if (d !== undefined) m.poke(GDT + FREE, d)
    m.poke(TSS + 8, BigInt(ss), 4)
    // The handlers of #TS and #SS run in a conforming segment, so that they need no stack from the TSS.
    m.poke(GDT + FREE + 8, descriptor(0, 0xfffff, 0xc9f))
    for (const v of [10, 12]) m.idt(v, gate(FREE + 8, 0x8000 + v * 16, 0x8e))
    m.user()
    m.exec(UD2, 2)
    assert.is(Number(m.rip), 0x8000 + vector * 16, `SS ${ss.toString(16)}`)
    assert.is(m.frame(0), error, `SS ${ss.toString(16)}`)
    assert.is(m.cpl, 3)
  }
})

test('long: IST switches without a change of privilege; the stack is aligned', () => {
  const m = new Machine('long')
  m.idt(6, gate(KCODE64, 0x8000 + 6 * 16, 0x8e, 1))
  m.setReg(4, BigInt(STACK + 5))
  assert.is(m.exec(UD2), 6)
  assert.is(Number(m.reg(4)), IST1 - 40)
  assert.is(m.frame(3), STACK + 5)
  const n = new Machine('long')
  n.setReg(4, BigInt(STACK + 5))
  assert.is(n.exec(UD2), 6)
  assert.is(Number(n.reg(4)), STACK - 40)
})

test('long: #PF pushes its error code and sets CR2', () => {
  const m = new Machine('long')
  // mov rax, [0x12345678]
  assert.is(m.exec([0x48, 0x8b, 0x04, 0x25, 0x78, 0x56, 0x34, 0x12]), 14)
  assert.is(m.frame(0), 0)
  assert.is(m.u64(L.CPU_CR2), 0x12345678n)
  const d = new Machine('long')
  // Stack pointer in an unmapped page: #PF while delivering #PF.
  d.idt(8, gate(KCODE64, 0x8000 + 8 * 16, 0x8e, 1))
  d.setReg(4, 0x12345000n)
  assert.is(d.exec([0x48, 0x8b, 0x04, 0x25, 0x78, 0x56, 0x34, 0x12]), 8)
  assert.is(d.u64(L.CPU_CR2), 0x12344ff8n)
})

test('long: a code segment that is not 64-bit and a non-canonical target', () => {
  const m = new Machine('long')
  m.idt(6, gate(KCODE, 0x8000, 0x8e))
  assert.is(m.exec(UD2), 13)
  assert.is(m.frame(0), KCODE + 1)
  const n = new Machine('long')
  n.poke(IDT + 6 * 16 + 8, 0x12345678n)
  assert.is(n.exec(UD2), 13)
  assert.is(n.frame(0), 1)
})

test('long: non-canonical RSP gives #SS', () => {
  const m = new Machine('long')
  m.idt(12, gate(KCODE64, 0x8000 + 12 * 16, 0x8e, 1))
  m.setReg(4, 0x8000_0000_0000_0000n)
  assert.is(m.exec(UD2), 12)
  assert.is(m.frame(0), 1)
})

test('single step: #DB after each instruction, DR6.BS, TF clear in the handler', () => {
  const m = new Machine('long')
  m.setFlags(0x102n)
  assert.is(m.exec([0x90, 0x90]), 1)
  assert.is(m.frame(0), CODE + 1)
  assert.is(m.frame(2), 0x102)
  assert.is(m.u64(L.CPU_DR6) & 0x4000n, 0x4000n)
  assert.is(m.flags & 0x100n, 0n)
})

test('INT3, INTO, INT1, BOUND', () => {
  const m = new Machine('protected')
  assert.is(m.exec([0xcc]), 3)
  assert.is(m.frame(0), CODE + 1)
  const o = new Machine('protected')
  o.setFlags(0x802n)
  assert.is(o.exec([0xce]), 4)
  const i = new Machine('protected')
  assert.is(i.exec([0xce, 0xf4]), -1)
  const d = new Machine('long')
  assert.is(d.exec([0xf1]), 1)
  assert.is(d.frame(0), CODE + 1)
  const b = new Machine('protected')
  b.poke(0x5000, 5n | (9n << 32n))
  b.setReg(0, 10n)
  assert.is(b.exec([0x62, 0x05, 0, 0x50, 0, 0]), 5)
  assert.is(b.frame(0), CODE)
})

test.run()
