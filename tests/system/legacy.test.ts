/** Hardware tasks, virtual-8086 mode, breakpoints. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, FREE, GDT, gate, descriptor, KCODE, KDATA, L, Machine, STACK, TSS, TSS_SEL, UDATA } from './machine.ts'

const test = suite('legacy')
const dword = (v: number): number[] => [v & 255, (v >> 8) & 255, (v >> 16) & 255, (v >>> 24) & 255]
const word = (v: number): number[] => [v & 255, (v >> 8) & 255]
const HLT = 0xf4
const TSS2 = 0x6000

/** A machine with a second task that begins at 0x11000. */
function tasks(type = 0x089): Machine {
  const m = new Machine('protected')
  m.poke(GDT + FREE, descriptor(TSS2, 0x67, type))
  const put = (offset: number, value: number): void => m.poke(TSS2 + offset, BigInt(value), 4)
  put(0x20, 0x11000)
  put(0x24, 2)
  put(0x28, 0x1234)
  put(0x38, 0x5000)
  for (const at of [0x48, 0x50, 0x54, 0x58, 0x5c]) put(at, KDATA)
  put(0x4c, KCODE)
  return m
}

test('CALL to a TSS and IRET back', () => {
  const m = tasks()
  m.code([0x40, 0xcf, HLT], 0x11000)
  m.setReg(3, 0x77n)
  assert.is(m.exec([0x9a, ...dword(0), ...word(FREE), HLT], 1), -10 - L.STOP_BUDGET)
  assert.equal([Number(m.rip), Number(m.reg(0)), Number(m.reg(4)), m.selector(L.SEG_TR)], [0x11000, 0x1234, 0x5000, FREE])
  assert.is(m.flags & 0x4000n, 0x4000n)
  assert.is(Number(m.peek(TSS2, 2)), TSS_SEL)
  assert.is(Number(m.peek(GDT + FREE + 5, 1)), 0x8b)
  assert.is(Number(m.peek(TSS + 0x20, 4)), CODE + 7)
  assert.is(m.u64(L.CPU_CR0) & 8n, 8n)
  assert.is(m.run(10), L.STOP_EXIT)
  assert.equal([Number(m.rip), Number(m.reg(3)), m.selector(L.SEG_TR)], [CODE + 8, 0x77, TSS_SEL])
  assert.is(Number(m.peek(GDT + FREE + 5, 1)), 0x89)
  assert.is(Number(m.peek(TSS2 + 0x28, 4)), 0x1235)
})

test('JMP clears the old busy bit; an exception through a task gate pushes its error code', () => {
  const m = tasks()
  m.code([HLT], 0x11000)
  assert.is(m.exec([0xea, ...dword(0), ...word(FREE)]), -1)
  assert.is(Number(m.peek(GDT + TSS_SEL + 5, 1)), 0x89)
  const g = tasks()
  g.idt(13, gate(FREE, 0, 0x85))
  g.code([HLT], 0x11000)
  g.setReg(0, 0x1000n)
  assert.is(g.exec([0x8e, 0xd8]), -1)
  assert.is(g.selector(L.SEG_TR), FREE)
  assert.is(Number(g.peek(0x4ffc, 4)), 0x1000)
  assert.is(Number(g.peek(TSS + 0x20, 4)), CODE)
})

test('faults of the new task are raised in it', () => {
  const m = tasks()
  m.poke(TSS2 + 0x50, 0n, 4)
  assert.is(m.exec([0xea, ...dword(0), ...word(FREE)], 1), -10 - L.STOP_SHUTDOWN, 'no stack: #TS cannot be delivered')
  const d = tasks()
  d.poke(TSS2 + 0x54, BigInt(TSS_SEL), 4)
  assert.is(d.exec([0xea, ...dword(0), ...word(FREE)]), 10)
  assert.equal([d.frame(0), d.frame(1)], [TSS_SEL, 0x11000])
})

/** Enters virtual-8086 mode at 1000:0100 with stack 2000:0800. */
function v86(code: readonly number[], iopl: number, extra?: (m: Machine) => void): Machine {
  const m = new Machine('protected')
  const frame = [0x100, 0x1000, 0x20202 | (iopl << 12), 0x800, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]
  m.setReg(4, 0x7000n)
  frame.forEach((v, i) => m.poke(0x7000 + i * 4, BigInt(v), 4))
  m.code(code, 0x10100)
  m.code([0xcf], 0x11000)
  m.set64(L.CPU_RIP, 0x11000n)
  extra?.(m)
  m.run(1)
  return m
}

test('virtual-8086 mode: entry, segments, interrupt frame', () => {
  const m = v86([0xb8, 0x34, 0x12, 0xa3, 0, 0, 0x0f, 0x0b], 0)
  assert.equal([m.cpl, m.selector(L.SEG_SS), Number(m.base(L.SEG_DS)), m.limit(L.SEG_ES)], [3, 0x2000, 0x40000, 0xffff])
  assert.is(m.flags & 0x20000n, 0x20000n)
  m.run(10)
  assert.is(Number(m.peek(0x40000, 2)), 0x1234)
  assert.is(m.cpl, 0)
  assert.is(Number(m.rip), 0x8000 + 6 * 16 + 1)
  assert.equal(
    Array.from({ length: 9 }, (_, i) => m.frame(i)),
    [0x106, 0x1000, 0x30202, 0x800, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000],
  )
  assert.equal([m.selector(L.SEG_DS), m.selector(L.SEG_GS), m.selector(L.SEG_SS)], [0, 0, KDATA])
})

test('virtual-8086 mode: IOPL-sensitive instructions', () => {
  for (const code of [[0xcd, 0x80], [0x9c], [0x9d], [0xfa], [0xcf], [HLT]]) {
    const m = v86(code, 0)
    m.run(10)
    assert.is(Number(m.rip), 0x8000 + 13 * 16 + 1, code.join())
    assert.is(m.frame(0), 0)
  }
  const open = v86([0x9c, 0x58, 0xfa, 0x0f, 0x0b], 3)
  open.run(10)
  assert.is(open.reg(0) & 0xffffn, 0x3202n)
  assert.is(open.frame(2), 0x33002 | 0x10000)
})

test('VME: VIF and the redirection map', () => {
  const m = v86([0xfa, 0xfb, 0x9c, 0x58, 0xcd, 0x21, 0x0f, 0x0b], 0, (x) => {
    x.set64(L.CPU_CR4, 1n)
    x.segment(L.SEG_TR, TSS_SEL, BigInt(TSS), 0x200, 0x8b)
    x.poke(TSS + 102, 0x88n, 2)
    x.poke(0x21 * 4, 0x10000300n, 4)
    x.code([0x0f, 0x0b], 0x10300)
  })
  m.run(5)
  assert.is(m.reg(0) & 0xffffn, 0x3202n)
  assert.equal([Number(m.rip), m.selector(L.SEG_CS), m.cpl], [0x300, 0x1000, 3])
  assert.is(Number(m.peek(0x207fa, 2)), 0x106)
  assert.is(m.flags & 0x80000n, 0n)
})

test('instruction breakpoint: fault before it, RF lets it pass', () => {
  const m = new Machine('long')
  m.set64(L.CPU_DR, BigInt(CODE + 1))
  m.setReg(0, 0x402n)
  // mov dr7, rax; nop at CODE + 3 is watched
  m.set64(L.CPU_DR, BigInt(CODE + 3))
  assert.is(m.exec([0x0f, 0x23, 0xf8, 0x90, HLT]), 1)
  assert.is(m.frame(0), CODE + 3)
  assert.is(m.u64(L.CPU_DR6) & 0xfn, 1n)
  m.code([0x48, 0x81, 0x4c, 0x24, 0x10, ...dword(0x10000), 0x48, 0xcf], 0x8000 + 16 + 1)
  m.run(10)
  assert.is(Number(m.rip), CODE + 5)
})

test('data breakpoint: trap after the store, not after a load', () => {
  const m = new Machine('long')
  m.set64(L.CPU_DR + 8, 0x5004n)
  m.setReg(0, 0xd0040an | 0x400n)
  assert.is(m.exec([0x0f, 0x23, 0xf8, 0x8b, 0x0c, 0x25, ...dword(0x5004), 0x89, 0x0c, 0x25, ...dword(0x5006), 0x90, HLT]), 1)
  assert.is(m.frame(0), CODE + 3 + 14)
  assert.is(m.u64(L.CPU_DR6) & 0xfn, 2n)
})

test('alignment checks in ring 3 with CR0.AM and AC; #VC 0x51 in an SEV-ES guest', () => {
  const machine = (flags: bigint): Machine => {
    const m = new Machine('long')
    m.set64(L.CPU_CR0, 0x80040011n)
    m.user()
    m.setFlags(flags)
    return m
  }
  const load = (at: number): number[] => [0x8b, 0x04, 0x25, ...dword(at), HLT]
  assert.is(machine(0x40002n).exec(load(0x5002)), 17)
  assert.is(machine(0x40002n).exec(load(0x5004)), 13)
  assert.is(machine(2n).exec(load(0x5002)), 13)
  const push = machine(0x40002n)
  push.setReg(4, 0x6001n)
  assert.is(push.exec([0x50]), 17)
  assert.is(push.frame(0), 0)
  const es = machine(0x40002n)
  es.core.view.setUint32(es.vm + L.VM_SEV, 2, true)
  assert.is(es.exec(load(0x5002)), 29)
  assert.is(es.frame(0), 0x51)
})

test('big real mode: branches of 16 bits truncate EIP, those of 32 bits and what runs on do not (SeaBIOS)', () => {
  const forms: [name: string, bytes: number[], wide: boolean][] = [
    ['JMP rel8', [0xeb, 0x20], false],
    ['JMP rel16', [0xe9, 0x1f, 0x00], false],
    ['JE rel8', [0x74, 0x20], false],
    ['JE rel16', [0x0f, 0x84, 0x1e, 0x00], false],
    ['LOOP', [0xe2, 0x20], false],
    ['JCXZ', [0xe3, 0x20], false],
    ['CALL rel16', [0xe8, 0x1f, 0x00], false],
    ['JMP rel32', [0x66, 0xe9, 0x1c, 0, 0, 0], true],
    ['JE rel32', [0x66, 0x0f, 0x84, 0x1b, 0, 0, 0], true],
    ['CALL rel32', [0x66, 0xe8, 0x1c, 0, 0, 0], true],
    ['NOPs', new Array<number>(0x30).fill(0x90), true],
  ]
  for (const [name, bytes, wide] of forms) {
    const m = new Machine('real')
    // The same bytes as a block of an ordinary segment first.
    for (const limit of [0xffff, 0xffffffff]) {
      m.segment(L.SEG_CS, CODE >> 4, BigInt(CODE), limit, 0x9b)
      m.changed()
      m.code(bytes, CODE + 0xfff0)
      m.code([HLT], CODE + 0x12)
      m.code([HLT], CODE + 0x10012)
      for (let round = 0; round < 3; round++) {
        m.set64(L.CPU_RIP, 0xfff0n)
        m.setReg(1, name === 'JCXZ' ? 0n : 5n)
        m.setFlags(0x42n)
        m.run(0x31)
        if (limit > 0xffff) assert.is(m.rip, wide ? 0x10013n : 0x13n, name)
        else if (!wide) assert.is(m.rip, 0x13n, `${name}, 64 KiB`)
      }
    }
  }
})

void [STACK, UDATA]
test.run()
