/**
 * A fault in the middle of a read-modify-write: the operand begins on a good page, its second page is read-only or not there
 * (or all of it is read-only). No effect at all, the right error code and CR2; after the page is made good, the retry succeeds.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine, PML4, STUBS } from '../system/machine.ts'

const TABLE = 0x60000
/** The good page; the next one is made bad. */
const PAGE = 0x120000
const NEXT = PAGE + 4096
const HLT = 0xf4

/** Operand [rbx], sizes in bytes. */
const forms: [name: string, bytes: number[], size: number, locked?: boolean][] = []
const sized = (name: string, opcode: readonly number[], lock: boolean): void => {
  for (const [size, prefix] of [
    [2, [0x66]],
    [4, []],
    [8, [0x48]],
  ] as const) {
    forms.push([`${name} ${size}`, [...prefix, ...opcode], size])
    if (lock) forms.push([`lock ${name} ${size}`, [0xf0, ...prefix, ...opcode], size])
  }
}
for (const [i, name] of ['add', 'or', 'adc', 'sbb', 'and', 'sub', 'xor'].entries()) {
  sized(`${name} [rbx], rcx`, [i * 8 + 1, 0x0b], true)
  sized(`${name} [rbx], imm8`, [0x83, 0x03 + i * 8, 0x55], true)
}
sized('inc', [0xff, 0x03], true)
sized('dec', [0xff, 0x0b], true)
sized('not', [0xf7, 0x13], true)
sized('neg', [0xf7, 0x1b], true)
for (const [i, name] of ['rol', 'ror', 'rcl', 'rcr', 'shl', 'shr', 'sal', 'sar'].entries()) {
  sized(`${name} 1`, [0xd1, 0x03 + i * 8], false)
  sized(`${name} cl`, [0xd3, 0x03 + i * 8], false)
  sized(`${name} imm8`, [0xc1, 0x03 + i * 8, 3], false)
}
sized('shld', [0x0f, 0xa4, 0x0b, 5], false)
sized('shrd cl', [0x0f, 0xad, 0x0b], false)
sized('xchg', [0x87, 0x0b], true)
sized('xadd', [0x0f, 0xc1, 0x0b], true)
sized('cmpxchg that stores', [0x0f, 0xb1, 0x0b], true)
sized('bts imm', [0x0f, 0xba, 0x2b, 0], true)
sized('btr imm', [0x0f, 0xba, 0x33, 0], true)
sized('btc imm', [0x0f, 0xba, 0x3b, 0], true)
forms.push(['cmpxchg8b', [0x0f, 0xc7, 0x0b], 8], ['lock cmpxchg8b', [0xf0, 0x0f, 0xc7, 0x0b], 8])

function prepare(): Machine {
  const m = new Machine('long')
  for (let i = 0; i < 512; i++) m.poke(TABLE + i * 8, BigInt(i * 4096) | 3n)
  m.poke(PML4 + 0x2000, BigInt(TABLE) | 3n)
  m.set64(L.CPU_CR0, m.u64(L.CPU_CR0) | 0x10000n)
  m.changed()
  return m
}

function entry(m: Machine, page: number, value: bigint): void {
  m.poke(TABLE + (page >> 12) * 8, value)
  m.code([0x0f, 0x01, 0x3c, 0x25, page & 255, (page >> 8) & 255, page >> 16, 0, HLT], CODE + 0x800)
  m.set64(L.CPU_RIP, BigInt(CODE + 0x800))
  m.set32(L.CPU_HALTED, 0)
  m.run(10)
  m.set32(L.CPU_HALTED, 0)
}

const registers = (m: Machine): string => Array.from({ length: 16 }, (_, n) => m.reg(n).toString(16)).join(' ')
const operand = (m: Machine): string => `${m.peek(NEXT - 16).toString(16)} ${m.peek(NEXT - 8).toString(16)} ${m.peek(NEXT).toString(16)}`

function start(m: Machine, at: number): void {
  m.poke(NEXT - 16, 0x1111111111111111n)
  m.poke(NEXT - 8, 0x8899aabbccddeeffn)
  m.poke(NEXT, 0x7766554433221100n)
  for (let n = 0; n < 16; n++) m.setReg(n, BigInt(n + 1) * 0x0fedcba987654321n)
  m.setReg(4, 0x20000n)
  m.setReg(3, BigInt(at))
  m.setReg(1, 0x0123456789abcd03n)
  // RAX (RDX) equal to the operand: CMPXCHG stores.
  const value = m.peek(at)
  m.setReg(0, value)
  m.setReg(2, value >> 32n)
  m.setFlags(0x3n)
  m.set64(L.CPU_RIP, BigInt(CODE))
}

/** [what, PTE of the second page, error code] */
const bad: [string, bigint, number][] = [
  ['read-only', BigInt(NEXT) | 1n, 3],
  ['not present', 0n, 2],
]

test('operands across a page edge whose second page is bad', () => {
  const m = prepare()
  // pop: the stack is good; CR2 is the first byte of the bad page.
  for (const [name, code, size] of forms) {
    for (let first = 1; first < size; first++) {
      const at = NEXT - first
      m.code([...code, HLT])
      entry(m, NEXT, BigInt(NEXT) | 3n)
      start(m, at)
      m.run(2)
      assert.is(m.rip, BigInt(CODE + code.length + 1), `${name}: plain run`)
      const good = `${registers(m)} ${operand(m)} ${m.flags}`
      for (const [what, pte, code2] of bad) {
        const where = `${name}, ${first} of ${size} bytes, ${what}`
        entry(m, NEXT, pte)
        start(m, at)
        const before = `${registers(m).replace(/^(\S+ ){4}\S+/, '')} ${operand(m)}`
        const all = [0, 1, 2, 3].map((n) => m.reg(n))
        m.run(2)
        assert.is(m.rip, BigInt(STUBS + 14 * 16 + 1), `${where}: #PF`)
        assert.is(m.u64(L.CPU_CR2), BigInt(NEXT), `${where}: CR2`)
        // A load that faults first reports a read where the form reads by a plain load.
        assert.is(m.frame(0), code2, `${where}: error code`)
        assert.is(m.frame(1), CODE, `${where}: RIP`)
        assert.is(m.frame(3) & 0x8d5, 1, `${where}: flags`)
        assert.is(`${registers(m).replace(/^(\S+ ){4}\S+/, '')} ${operand(m)}`, before, `${where}: no effect`)
        assert.equal(
          [0, 1, 2, 3].map((n) => m.reg(n)),
          all,
          `${where}: registers`,
        )
        assert.is(m.frame(4), 0x20000, `${where}: RSP`)
        entry(m, NEXT, BigInt(NEXT) | 3n)
        start(m, at)
        m.run(2)
        assert.is(`${registers(m)} ${operand(m)} ${m.flags}`, good, `${where}: retry`)
      }
    }
  }
})

test('a whole operand on a read-only page', () => {
  const m = prepare()
  for (const [name, code, size] of forms) {
    const at = NEXT + 16 - size
    m.code([...code, HLT])
    entry(m, NEXT, BigInt(NEXT) | 1n)
    start(m, at)
    m.poke(at, 0x8899aabbccddeeffn)
    m.setReg(0, 0x8899aabbccddeeffn)
    m.setReg(2, 0x8899aabbn)
    const before = m.peek(at)
    m.run(2)
    assert.is(m.rip, BigInt(STUBS + 14 * 16 + 1), `${name}: #PF`)
    assert.is(m.u64(L.CPU_CR2), BigInt(at), `${name}: CR2`)
    assert.is(m.frame(0), 3, `${name}: error code`)
    assert.is(m.peek(at), before, name)
    assert.is(m.reg(1), 0x0123456789abcd03n, name)
  }
})

test.run()
