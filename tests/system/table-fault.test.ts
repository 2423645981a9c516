/**
 * Page faults on descriptor tables, gates and stacks in the middle of far transfers, segment loads and event delivery. The law: nothing
 * has changed but memory below a stack pointer; when the page is good, the instruction does what it does undisturbed. #PF is
 * delivered where it disturbs nothing: through a task gate, in long mode on a stack of its own.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, descriptor, FREE, gate, GDT, IDT, KCODE, KCODE64, KDATA, L, Machine, STUBS, TSS, TSS_SEL } from './machine.ts'

const test = suite('table faults')
const PD = 0x60000
const PT = 0x61000
/** Where the tables go: the machine's own entries on the first page, what the instructions use on the next. */
const GDT_AT = 0x52000 - 0x400
const IDT_AT = 0x54000 - 0x200
const LDT_AT = 0x55000
const STACK_IN = 0x57800
const STACK_OUT = 0x59800
const PF_TSS_AT = 0x5b000
const PF_STACK = 0x5d000
const TARGET = 0x11000
const PF_CODE = 0x12000
const PF_TSS = FREE
/** Selectors behind the page edge (GDT_AT + 0x400), and one of the LDT. */
const [TARGET_CS, INNER_SS, GATE, GATE16, CONFORMING, GATE_SAME, DATA2, TSS2, LDT2, OUT_CS, OUT_SS] = Array.from(
  { length: 11 },
  (_, i) => 0x400 + i * 16,
) as [number, number, number, number, number, number, number, number, number, number, number]
const IN_LDT = 0x0f
const LDT_CODE = 0x17
/** First vector behind the page edge of the IDT (protected mode), and in long mode. */
const VECTOR = 0x40
const dword = (v: number): number[] => [v & 255, (v >> 8) & 255, (v >> 16) & 255, (v >>> 24) & 255]
const far = (opcode: number, selector: number, offset = TARGET): number[] => [opcode, ...dword(offset), selector & 255, selector >> 8]
const load = (selector: number): number[] => [0x66, 0xb8, selector & 255, selector >> 8]

interface Form {
  name: string
  /** Instructions before run undisturbed. */
  before?: number[]
  code: number[]
  cpl: 0 | 3
  /** Words at the stack pointer. */
  stack?: number[]
}

const protectedForms: Form[] = [
  { name: 'call gate with parameters', code: far(0x9a, GATE), cpl: 3, stack: [0x1234, 0x5678] },
  { name: 'call gate of 16 bits', code: far(0x9a, GATE16), cpl: 3, stack: [0x1234, 0x5678] },
  { name: 'call gate to the same level', code: far(0x9a, GATE_SAME), cpl: 3 },
  { name: 'jmp gate', code: far(0xea, GATE_SAME), cpl: 3 },
  { name: 'call far, conforming', code: far(0x9a, CONFORMING), cpl: 3 },
  { name: 'jmp far, conforming', code: far(0xea, CONFORMING), cpl: 3 },
  { name: 'call far into the LDT', code: far(0x9a, LDT_CODE), cpl: 3 },
  { name: 'jmp far into the LDT', code: far(0xea, LDT_CODE), cpl: 3 },
  { name: 'retf', code: [0xcb], cpl: 3, stack: [TARGET, LDT_CODE] },
  { name: 'retf outwards', code: [0xcb], cpl: 0, stack: [TARGET, OUT_CS | 3, STACK_OUT, OUT_SS | 3] },
  { name: 'retf outwards to LDT segments', code: [0xca, 8, 0], cpl: 0, stack: [TARGET, LDT_CODE, 1, 2, STACK_OUT, IN_LDT] },
  { name: 'iret', code: [0xcf], cpl: 0, stack: [TARGET, TARGET_CS, 2] },
  { name: 'iret outwards', code: [0xcf], cpl: 0, stack: [TARGET, OUT_CS | 3, 0x3202, STACK_OUT, OUT_SS | 3] },
  {
    name: 'iret to virtual-8086 mode',
    code: [0xcf],
    cpl: 0,
    stack: [0x100, 0x1100, 0x23202, 0x800, 0x5900, 0x5500, 0x5501, 0x5502, 0x5503],
  },
  { name: 'int inwards', code: [0xcd, VECTOR], cpl: 3 },
  { name: 'int at the same level', code: [0xcd, VECTOR], cpl: 0 },
  { name: 'int of 16 bits', code: [0xcd, VECTOR + 1], cpl: 3 },
  { name: 'mov ds', before: load(DATA2 | 3), code: [0x8e, 0xd8], cpl: 3 },
  { name: 'mov ss', before: load(INNER_SS), code: [0x8e, 0xd0], cpl: 0 },
  { name: 'mov fs, of the LDT', before: load(IN_LDT), code: [0x8e, 0xe0], cpl: 3 },
  { name: 'pop es', code: [0x07], cpl: 3, stack: [IN_LDT] },
  { name: 'pop ss', code: [0x17], cpl: 0, stack: [INNER_SS] },
  { name: 'lds', code: [0xc5, 0x1c, 0x24], cpl: 3, stack: [0x1234, DATA2 | 3] },
  { name: 'lss', code: [0x0f, 0xb2, 0x24, 0x24], cpl: 0, stack: [STACK_OUT, INNER_SS] },
  { name: 'lar', before: load(DATA2 | 3), code: [0x0f, 0x02, 0xc8], cpl: 3 },
  { name: 'lsl', before: load(IN_LDT), code: [0x0f, 0x03, 0xc8], cpl: 3 },
  { name: 'verw', before: load(DATA2 | 3), code: [0x0f, 0x00, 0xe8], cpl: 3 },
  { name: 'ltr', before: load(TSS2), code: [0x0f, 0x00, 0xd8], cpl: 0 },
  { name: 'lldt', before: load(LDT2), code: [0x0f, 0x00, 0xd0], cpl: 0 },
]

const longForms: Form[] = [
  { name: 'call gate inwards', before: [], code: [0xff, 0x1c, 0x24], cpl: 3, stack: [0, GATE] },
  { name: 'call gate to the same level', code: [0xff, 0x1c, 0x24], cpl: 3, stack: [0, GATE_SAME] },
  { name: 'jmp gate', code: [0xff, 0x2c, 0x24], cpl: 3, stack: [0, GATE_SAME] },
  { name: 'int inwards', code: [0xcd, VECTOR], cpl: 3 },
  { name: 'int at the same level', code: [0xcd, VECTOR], cpl: 0 },
  { name: 'iretq', code: [0x48, 0xcf], cpl: 0, stack: [TARGET, TARGET_CS, 2, STACK_IN, INNER_SS] },
  { name: 'iretq outwards', code: [0x48, 0xcf], cpl: 0, stack: [TARGET, OUT_CS | 3, 0x3202, STACK_OUT, OUT_SS | 3] },
  { name: 'retfq', code: [0x48, 0xcb], cpl: 0, stack: [TARGET, TARGET_CS] },
  { name: 'retfq outwards', code: [0x48, 0xcb], cpl: 0, stack: [TARGET, OUT_CS | 3, STACK_OUT, OUT_SS | 3] },
  { name: 'mov ds', before: load(DATA2 | 3), code: [0x8e, 0xd8], cpl: 3 },
  { name: 'mov ss', before: load(INNER_SS), code: [0x8e, 0xd0], cpl: 0 },
  { name: 'mov fs, of the LDT', before: load(IN_LDT), code: [0x8e, 0xe0], cpl: 3 },
  { name: 'pop gs', code: [0x0f, 0xa9], cpl: 3, stack: [IN_LDT] },
  { name: 'lar', before: load(DATA2 | 3), code: [0x0f, 0x02, 0xc8], cpl: 3 },
  { name: 'verr', before: load(IN_LDT), code: [0x0f, 0x00, 0xe0], cpl: 3 },
  { name: 'ltr', before: load(TSS2), code: [0x0f, 0x00, 0xd8], cpl: 0 },
  { name: 'lldt', before: load(LDT2), code: [0x0f, 0x00, 0xd0], cpl: 0 },
]

const PAGES = [0x52, 0x54, 0x55, 0x57, 0x59]

function prepare(mode: 'protected' | 'long', f: Form): Machine {
  const m = new Machine(mode)
  const long = mode === 'long'
  const word = long ? 8 : 4
  const entry = long ? 8 : 4
  for (let i = 0; i < 512; i++) m.poke(PT + i * entry, BigInt(i * 4096) | 7n, entry)
  m.poke(PD, BigInt(PT) | 7n, entry)
  if (long) m.poke(0x42000, BigInt(PT) | 7n)
  for (let i = 0; i < 0x400; i += 8) m.poke(GDT_AT + i, m.peek(GDT + i))
  for (let i = 0; i < (long ? 0x1000 : 0x800); i += 8) m.poke((long ? 0x54000 - VECTOR * 16 : IDT_AT) + i, m.peek(IDT + i))
  const put = (selector: number, d: bigint, high = 0n): void => {
    m.poke(GDT_AT + selector, d)
    m.poke(GDT_AT + selector + 8, high)
  }
  const code = long ? 0xa9a : 0xc9a
  put(TARGET_CS, descriptor(0, 0xfffff, code))
  put(INNER_SS, descriptor(0, 0xfffff, 0xc92))
  put(GATE, gate(TARGET_CS, TARGET, 0xec, 2))
  put(GATE16, gate(TARGET_CS, 0x3000, 0xe4, 2))
  put(CONFORMING, descriptor(0, 0xfffff, code | 4))
  put(GATE_SAME, gate(CONFORMING, TARGET, 0xec))
  put(DATA2, descriptor(0, 0xfffff, 0xcf2))
  put(TSS2, descriptor(0x30000, 0x67, 0x089))
  put(LDT2, descriptor(LDT_AT, 0xff, 0x082))
  put(OUT_CS, descriptor(0, 0xfffff, code | 0x60))
  put(OUT_SS, descriptor(0, 0xfffff, 0xcf2))
  m.poke(LDT_AT + 8, descriptor(0, 0xfffff, 0xcf2))
  m.poke(LDT_AT + 16, descriptor(0, 0xfffff, code | 0x60))
  m.segment(L.SEG_GDTR, 0, BigInt(GDT_AT), 0xfff, 0)
  const idt = long ? 0x54000 - VECTOR * 16 : IDT_AT
  m.segment(L.SEG_IDTR, 0, BigInt(idt), 0xfff, 0)
  m.segment(L.SEG_LDTR, 0x40, BigInt(LDT_AT), 0xff, 0x82)
  m.poke(GDT_AT + 0x40, descriptor(LDT_AT, 0xff, 0x082))
  if (long) {
    m.poke(GDT_AT + 0x48, 0n)
    m.poke(idt + VECTOR * 16, gate(TARGET_CS, TARGET, 0xee))
    // #PF on IST1.
    m.poke(idt + 14 * 16, gate(KCODE64, PF_CODE, 0x8e, 1))
    m.poke(TSS + 0x24, BigInt(PF_STACK))
    m.poke(TSS + 4, BigInt(STACK_IN))
    m.code([0x90, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf], PF_CODE)
  } else {
    m.poke(idt + VECTOR * 8, gate(TARGET_CS, TARGET, 0xee))
    m.poke(idt + VECTOR * 8 + 8, gate(TARGET_CS, 0x3000, 0xe6))
    m.poke(GDT_AT + PF_TSS, descriptor(PF_TSS_AT, 0x67, 0x089))
    m.poke(idt + 14 * 8, gate(PF_TSS, 0, 0x85))
    for (const [at, v] of [
      [0x1c, PD],
      [0x20, PF_CODE],
      [0x24, 2],
      [0x38, PF_STACK],
      [0x4c, KCODE],
      [0x60, 0],
    ] as const)
      m.poke(PF_TSS_AT + at, BigInt(v), 4)
    for (const at of [0x48, 0x50, 0x54, 0x58, 0x5c]) m.poke(PF_TSS_AT + at, BigInt(KDATA), 4)
    m.poke(TSS + 4, BigInt(STACK_IN), 4)
    m.poke(TSS + 8, BigInt(INNER_SS), 4)
    m.poke(TSS + 0x1c, BigInt(PD), 4)
    m.poke(TSS + 0x60, 0x40n, 4)
    // Accessed already, so that coming back from the handler's task changes nothing.
    for (const selector of [TSS_SEL]) m.poke(GDT_AT + selector + 5, 0x8bn, 1)
    m.code([0x90, 0xcf], PF_CODE)
    m.set64(L.CPU_CR3, BigInt(PD))
  }
  for (const at of [TARGET, 0x3000, 0x11100]) m.code([0x90, 0xf4], at)
  for (let n = 0; n < 8; n++) m.setReg(n, BigInt(0x2220 + n))
  if (f.cpl === 3) m.user()
  const sp = f.cpl === 3 ? STACK_OUT : STACK_IN
  m.setReg(4, BigInt(sp))
  f.stack?.forEach((v, i) => {
    // A far pointer in memory has 32 bits of offset (an AMD CPU), and the selector follows.
    if (long && f.code[0] === 0xff) m.poke(sp + i * 4, BigInt(v), 4)
    else m.poke(sp + i * word, BigInt(v), word)
  })
  // TS is set as a task switch would.
  m.set64(L.CPU_CR0, 0x80010019n)
  m.setFlags(f.cpl === 3 ? 0x3202n : 2n)
  m.changed()
  m.code([...(f.before ?? []), ...f.code])
  call(m.core, 'flushTlb', m.s)
  if (f.before && f.before.length > 0) m.run(1)
  return m
}

/** Everything but what lies below the stack pointers and what the handler's own task leaves in the TSS. */
function state(m: Machine, whole: boolean): string {
  const parts: (bigint | number)[] = [m.rip, m.flags & ~0x10000n, m.u64(L.CPU_CR0), m.cpl, m.u32(L.CPU_INTERRUPT_SHADOW)]
  for (let n = 0; n < 16; n++) parts.push(m.reg(n))
  for (const n of [L.SEG_ES, L.SEG_CS, L.SEG_SS, L.SEG_DS, L.SEG_FS, L.SEG_GS, L.SEG_TR, L.SEG_LDTR])
    parts.push(m.selector(n), m.attrib(n), m.base(n), m.limit(n))
  for (let i = 0x400; i < 0x500; i += 8) parts.push(m.peek(GDT_AT + i))
  for (let i = 0; i < 0x20; i += 8) parts.push(m.peek(LDT_AT + i))
  const below = whole ? 0x40 : 0
  for (const sp of [STACK_IN, STACK_OUT]) for (let i = -below; i < 0x40; i += 4) parts.push(m.peek(sp + i, 4))
  return parts.map((v) => v.toString(16)).join(' ')
}

for (const [mode, forms] of [
  ['protected', protectedForms],
  ['long', longForms],
] as const)
  for (const f of forms)
    test(`${mode}: ${f.name}`, () => {
      const whole = prepare(mode, f)
      const before = state(whole, false)
      const start = whole.rip
      whole.run(1)
      const after = state(whole, true)
      assert.is.not(Number(whole.rip) >> 12, STUBS >> 12, 'the instruction runs')
      assert.is.not(state(whole, false), before, 'the instruction runs')
      let faults = 0
      for (const page of PAGES)
        for (const [kind, bits] of [
          ['absent', 6],
          ['read-only', 5],
          ['the supervisor', 3],
        ] as const) {
          const label = `page ${page.toString(16)}: ${kind}`
          const m = prepare(mode, f)
          const put = (entry: number): void => {
            m.poke(PT + page * (mode === 'long' ? 8 : 4), BigInt(page * 4096 + entry), 4)
            call(m.core, 'flushTlb', m.s)
          }
          put(bits)
          m.run(1)
          const inHandler = Number(m.rip) === PF_CODE + 1
          if (!inHandler) {
            assert.is(state(m, true), after, label)
            continue
          }
          faults++
          assert.is(Number(m.u64(L.CPU_CR2)) >> 12, page, label)
          const error = mode === 'long' ? Number(m.peek(PF_STACK - 48)) : Number(m.peek(PF_STACK - 4, 4))
          const table = page < 0x57
          // Tables are read by the system, whatever the CPL; the stack of a CPL 3 program by the program.
          assert.is(error & 1, kind === 'absent' ? 0 : 1, label)
          assert.is((error >> 2) & 1, !table && f.cpl === 3 && page === 0x59 ? 1 : 0, `${label}: user`)
          if (kind === 'read-only') assert.is(error & 2, 2, label)
          put(7)
          m.run(mode === 'long' ? 2 : 1)
          assert.is(Number(m.rip), Number(start), label)
          assert.is(state(m, false), before, label)
          m.run(1)
          assert.is(state(m, true), after, `${label}: repeated`)
        }
      assert.ok(faults > 0, 'a page of tables or stacks matters')
    })

test('protected: parameters that lie beyond the limit of the caller are #SS(0) of the caller', () => {
  const f = protectedForms[0] as Form
  for (const [limit, vector] of [
    [STACK_OUT + 7, -1],
    [STACK_OUT + 6, 12],
    [STACK_OUT + 3, 12],
  ] as const) {
    const m = prepare('protected', f)
    m.segment(L.SEG_SS, 0x1b, 0n, limit, 0x4f3)
    m.run(1)
    if (vector < 0) assert.is(Number(m.rip), TARGET)
    else {
      assert.equal([Number(m.rip), m.frame(0), m.frame(1)], [STUBS + vector * 16 + 1, 0, CODE])
      assert.is(m.frame(4), STACK_OUT)
    }
  }
})

test.run()
