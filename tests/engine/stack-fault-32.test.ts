/**
 * Page faults in the middle of what 32-bit code at CPL 3 does with several accesses: PUSHA, POPA, ENTER, far CALL and RET, a call
 * gate to an inner ring with parameters, a task switch, LDS, BOUND. Registers are untouched, and the retry does it all.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, descriptor, FREE, gate, GDT, L, Machine, STACK0, STUBS, TSS, UCODE, UDATA } from '../system/machine.ts'

const DIRECTORY = 0x61000
const TABLE = 0x60000
const PAGE = 0x120000
const NEXT = PAGE + 4096
const CODE1 = FREE + 1
const DATA1 = FREE + 8 + 1
const GATE = FREE + 16 + 3
const TASK = FREE + 24 + 3
const PF = BigInt(STUBS + 14 * 16 + 1)
const INNER = 0x15000
const WINDOW = NEXT - 256

function prepare(): Machine {
  const m = new Machine('protected')
  for (let i = 0; i < 1024; i++) m.poke(TABLE + i * 4, BigInt(i * 4096) | 7n, 4)
  m.poke(DIRECTORY, BigInt(TABLE) | 7n, 4)
  const put = (selector: number, d: bigint): void => m.poke(GDT + (selector & 0xfff8), d)
  put(CODE1, descriptor(0, 0xfffff, 0xcbb))
  put(DATA1, descriptor(0, 0xfffff, 0xcb3))
  put(GATE, gate(CODE1, INNER, 0xec, 0x0002))
  m.set64(L.CPU_CR3, BigInt(DIRECTORY))
  m.set64(L.CPU_CR0, 0x80010011n)
  m.code([0xf4], INNER)
  m.changed()
  return m
}

function map(m: Machine, bad: string, page: number): void {
  for (const p of [PAGE, NEXT])
    m.poke(TABLE + (p >> 12) * 4, BigInt(p) | (p === page ? (bad === 'none' ? 6n : bad === 'ro' ? 5n : 7n) : 7n), 4)
  call(m.core, 'flushTlb', m.s)
}

interface Form {
  name: string
  code: number[]
  /** Where ESP, or the operand, or the inner stack or TSS begins, relative to the page edge. */
  at: readonly number[]
  set?: (m: Machine, address: number) => void
  stack?: boolean
  /** What was popped before the fault stays popped (measured on Zen 4); ESP does not move. */
  pops?: boolean
}
const around = Array.from({ length: 25 }, (_, i) => i * 4 - 48)
const odd = [-7, -5, -3, -2, -1]

function task(m: Machine, address: number): void {
  m.poke(GDT + (TASK & 0xfff8), descriptor(address, 0x67, 0x0e9))
  const put = (offset: number, value: number): void => m.poke(address + offset, BigInt(value), 4)
  for (let i = 0; i < 0x68; i += 4) put(i, 0)
  put(0x1c, DIRECTORY)
  put(0x20, INNER)
  put(0x24, 2)
  for (let i = 0; i < 8; i++) put(0x28 + i * 4, 0x1111 * (i + 1))
  for (const [offset, selector] of [
    [0x48, UDATA],
    [0x4c, UCODE],
    [0x50, UDATA],
    [0x54, UDATA],
    [0x58, UDATA],
    [0x5c, UDATA],
  ] as const)
    put(offset, selector)
}

const forms: Form[] = [
  { name: 'pusha', code: [0x60], at: [...around, ...odd], stack: true },
  { name: 'pusha 16', code: [0x66, 0x60], at: [...around, ...odd], stack: true },
  { name: 'popa', code: [0x61], at: around, stack: true, pops: true },
  { name: 'push es', code: [0x06], at: around, stack: true },
  { name: 'pop es', code: [0x07], at: around, stack: true, set: (m, a) => m.poke(a, BigInt(UDATA), 4) },
  { name: 'enter 8,5', code: [0xc8, 8, 0, 5], at: around, stack: true },
  { name: 'leave', code: [0xc9], at: around, stack: true },
  { name: 'call far', code: [0x9a, INNER & 255, INNER >> 8, 1, 0, UCODE, 0], at: around, stack: true },
  {
    name: 'retf',
    code: [0xcb],
    at: around,
    stack: true,
    set: (m, a) => {
      m.poke(a, BigInt(INNER), 4)
      m.poke(a + 4, BigInt(UCODE), 4)
    },
  },
  {
    name: 'iretd',
    code: [0xcf],
    at: around,
    stack: true,
    set: (m, a) => {
      for (const [i, v] of [INNER, UCODE, 2].entries()) m.poke(a + i * 4, BigInt(v), 4)
    },
  },
  { name: 'lds', code: [0xc5, 0x0b], at: [-5, -4, -3, -1, 0, -8], set: (m, a) => m.poke(a + 4, BigInt(UDATA), 2) },
  { name: 'bound', code: [0x62, 0x0b], at: [-7, -4, -1, 0, -8] },
  {
    name: 'call gate, parameters on the outer stack',
    code: [0x9a, 0, 0, 0, 0, GATE & 255, GATE >> 8],
    at: around,
    stack: true,
    set: (m) => {
      m.poke(TSS + 12, 0x30000n, 4)
      m.poke(TSS + 16, BigInt(DATA1), 4)
    },
  },
  {
    name: 'call gate, on the inner stack',
    code: [0x9a, 0, 0, 0, 0, GATE & 255, GATE >> 8],
    at: around,
    set: (m, a) => {
      m.poke(TSS + 12, BigInt(a), 4)
      m.poke(TSS + 16, BigInt(DATA1), 4)
    },
  },
  { name: 'task switch', code: [0xea, 0, 0, 0, 0, TASK & 255, TASK >> 8], at: [-100, -96, -72, -64, -40, -36, -28, -4, 0, 4], set: task },
]

function start(m: Machine, f: Form, address: number): void {
  m.set32(L.CPU_HALTED, 0)
  m.user()
  for (let n = 0; n < 8; n++) m.setReg(n, BigInt(n + 1) * 0x01020304n)
  m.setReg(1, 0x05050505n)
  m.setReg(3, BigInt(address))
  m.setReg(4, BigInt(f.stack ? address : 0x20000))
  m.setReg(5, BigInt(f.stack ? address : 0x20000))
  m.setFlags(2n)
  m.segment(L.SEG_TR, 0x30, BigInt(TSS), 0x67, 0x8b)
  m.poke(GDT + 0x30 + 5, 0x8bn, 1)
  m.set64(L.CPU_CR3, BigInt(DIRECTORY))
  m.set64(L.CPU_CR0, 0x80010011n)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.changed()
}

function fill(m: Machine, f: Form, address: number): void {
  for (let i = 0; i < 512; i += 8) m.poke(WINDOW + i, 0x0001020304050607n + BigInt(i))
  f.set?.(m, address)
}

const hex = (m: Machine, from: number, size: number): string =>
  Buffer.from(m.core.bytes.subarray(m.s + from, m.s + from + size)).toString('hex')
const registers = (m: Machine): string => `${hex(m, L.CPU_GPR, 64)} ${hex(m, L.CPU_SEGMENTS, 160)} ${m.cpl}`
const all = (m: Machine): string =>
  `${m.rip} ${m.flags} ${registers(m)} ${Array.from({ length: 64 }, (_, i) => m.peek(WINDOW + i * 8).toString(16)).join(' ')}`

for (const f of forms) {
  test(`${f.name} across a page edge`, () => {
    const m = prepare()
    m.code([...f.code, 0x90, 0x90])
    let faults = 0
    for (const offset of f.at) {
      const address = NEXT + offset
      map(m, 'rw', 0)
      fill(m, f, address)
      start(m, f, address)
      m.run(1)
      const good = all(m)
      for (const page of [PAGE, NEXT]) {
        for (const bad of ['none', 'ro']) {
          const where = `${f.name} at ${offset}, page ${page === PAGE ? 'before' : 'behind'} ${bad}`
          map(m, 'rw', 0)
          fill(m, f, address)
          start(m, f, address)
          const before = registers(m)
          map(m, bad, page)
          m.run(1)
          if (m.rip !== PF) {
            map(m, 'rw', 0)
            assert.is(all(m), good, `${where}: no fault, another result`)
            continue
          }
          faults++
          // Error code, EIP, CS, EFLAGS, ESP, SS on the stack of ring 0.
          const frame = [0, 1, 2, 3, 4, 5].map((i) => Number(m.peek(STACK0 - 24 + i * 4, 4)))
          assert.is(frame[1], CODE, `${where}: EIP`)
          assert.is(frame[2], UCODE, `${where}: CS`)
          assert.is(frame[5], UDATA, `${where}: SS`)
          assert.is(Number(m.u64(L.CPU_CR2)) & ~0xfff, page, `${where}: CR2`)
          // As the handler's IRET would leave them.
          m.setReg(4, BigInt(frame[4] ?? 0))
          const cs = before
          m.user()
          if (f.pops) assert.is(m.reg(4), BigInt(address), `${where}: ESP`)
          else assert.is(registers(m), cs, `${where}: registers`)
          map(m, 'rw', 0)
          m.set64(L.CPU_RIP, BigInt(CODE))
          m.setFlags(2n)
          m.changed()
          m.run(1)
          assert.is(all(m), good, `${where}: retry`)
        }
      }
    }
    assert.ok(faults > 2, `${faults} faults`)
  })
}

test('a push at ESP 0 goes to the top of 4 GiB, and ESP has 32 bits', () => {
  const m = prepare()
  const TOP = 0x62000
  m.poke(DIRECTORY + 1023 * 4, BigInt(TOP) | 7n, 4)
  m.poke(TOP + 1023 * 4, BigInt(PAGE) | 7n, 4)
  call(m.core, 'flushTlb', m.s)
  m.code([0x51, 0xf4])
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.setReg(1, 0x12345678n)
  m.setReg(4, 0n)
  m.run(10)
  assert.is(m.reg(4), 0xfffffffcn)
  assert.is(m.peek(PAGE + 0xffc, 4), 0x12345678n)
})

test.run()
