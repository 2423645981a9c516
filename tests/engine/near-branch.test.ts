/**
 * Near branches to where no code can be: the branch itself faults and changes nothing (measured on Zen 4 at CPL 3: JMP and CALL
 * through register and memory, RET, RET imm, RETF and IRET to non-canonical targets; JMP, Jcc, CALL and RET past the limit of a
 * 32-bit segment), once in cold code and once where the branch was taken before.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, KCODE64, KDATA, L, Machine, PML4, STUBS } from '../system/machine.ts'

const GP = BigInt(STUBS + 13 * 16 + 1)
const HLT = 0xf4
const AT = CODE + 0x100
const STACK = 0x20000

/** RBX holds the target; [rdi] too; on the stack where the form pops it. */
const forms: [name: string, code: number[], pops: 'none' | 'near' | 'far' | 'iret'][] = [
  ['jmp rbx', [0xff, 0xe3], 'none'],
  ['call rbx', [0xff, 0xd3], 'none'],
  ['jmp [rdi]', [0xff, 0x27], 'none'],
  ['call [rdi]', [0xff, 0x17], 'none'],
  ['ret', [0xc3], 'near'],
  ['ret 16', [0xc2, 16, 0], 'near'],
  ['retfq', [0x48, 0xcb], 'far'],
  ['iretq', [0x48, 0xcf], 'iret'],
]

function enter(m: Machine, pops: string, target: bigint, at = AT): void {
  m.set32(L.CPU_HALTED, 0)
  m.setFlags(2n)
  m.setReg(3, target)
  m.setReg(7, 0x30000n)
  m.poke(0x30000, target)
  const frame: bigint[] =
    pops === 'near'
      ? [target]
      : pops === 'far'
        ? [target, BigInt(KCODE64)]
        : pops === 'iret'
          ? [target, BigInt(KCODE64), 2n, BigInt(STACK), BigInt(KDATA)]
          : []
  for (let i = 0; i < 6; i++) m.poke(STACK + i * 8, frame[i] ?? 0x5555n)
  m.poke(STACK - 8, 0x7777n)
  m.setReg(4, BigInt(STACK))
  m.set64(L.CPU_RIP, BigInt(at))
}

const bad = [0x8000000000000000n, 0x0000800000000000n, 0xffff000000000000n, 0x1234567812345678n, 0xffff7fffffffffffn]

test('to a non-canonical address: #GP(0) on the branch', () => {
  const m = new Machine('long')
  m.code([HLT], CODE)
  let at = AT
  for (const [name, code, pops] of forms) {
    for (const warm of [false, true]) {
      for (const target of bad) {
        const where = `${name} to ${target.toString(16)}${warm ? ', warm' : ''}`
        at += 16
        m.code([...code, HLT], at)
        for (let i = 0; warm && i < 5; i++) {
          enter(m, pops, BigInt(CODE), at)
          m.run(10)
          assert.is(m.rip, BigInt(CODE + 1), `${where}: warm-up`)
        }
        enter(m, pops, target, at)
        const before = m.u64(L.CPU_ICOUNT)
        m.run(10)
        assert.is(m.rip, GP, `${where}: vector`)
        assert.is(m.frame(0), 0, `${where}: error code`)
        assert.is(m.frame(1), at, `${where}: RIP`)
        assert.is(m.frame(4), STACK, `${where}: RSP`)
        assert.is(m.reg(4), BigInt(STACK - 48), `${where}: stack`)
        // The one instruction that retires is the handler's HLT.
        assert.is(m.u64(L.CPU_ICOUNT) - before, 1n, `${where}: retired`)
      }
    }
  }
})

test('CALL does not store its return address first', () => {
  const m = new Machine('long')
  // The frame of #GP goes to another stack (IST 1), so that the slot below RSP shows.
  m.poke(0x2000 + 13 * 16 + 4, 1n, 1)
  m.code([0xff, 0xd3, HLT], AT)
  enter(m, 'none', 0x0000800000000000n)
  m.run(10)
  assert.is(m.rip, GP)
  assert.is(m.peek(STACK - 8), 0x7777n)
})

test('with LA57 a target of 57 bits runs, one of 58 faults on the branch', () => {
  const m = new Machine('long')
  const PML5 = 0x50000
  // Linear 0x0001000000000000 (bit 48): entry 1 of the PML5 leads to the same PML4.
  m.poke(PML5, BigInt(PML4) | 7n)
  m.poke(PML5 + 8, BigInt(PML4) | 7n)
  m.set64(L.CPU_CR3, BigInt(PML5))
  m.set64(L.CPU_CR4, m.u64(L.CPU_CR4) | 0x1000n)
  m.changed()
  m.code([HLT], CODE)
  for (const [name, code, pops] of forms) {
    m.code([...code, HLT], AT)
    for (let i = 0; i < 4; i++) {
      enter(m, pops, 0x0001000000000000n + BigInt(CODE))
      m.run(10)
      assert.is(m.rip, 0x0001000000000000n + BigInt(CODE + 1), name)
    }
    enter(m, pops, 0x0100000000000000n)
    m.run(10)
    assert.is(m.rip, GP, name)
    assert.is(m.frame(1), AT, name)
  }
})

test('past the limit of a 32-bit segment', () => {
  /** Bytes that go to EBX = 0x1000 (the limit is 0xfff), from offset 0x100. */
  const cases: [name: string, code: number[], at: number][] = [
    ['jmp rel32', [0xe9, 0xfb, 0x1e, 0, 0], 0],
    ['jmp rel8 behind 0', [0xeb, 0x80, 0x90], -0x100],
    ['jz rel32', [0x31, 0xc9, 0x0f, 0x84, 0xfa, 0x1e, 0, 0], 2],
    ['jmp ebx', [0xff, 0xe3], 0],
    ['call ebx', [0xff, 0xd3], 0],
    ['call rel32', [0xe8, 0xfb, 0x1e, 0, 0], 0],
    ['push ebx; ret', [0x53, 0xc3], 1],
    ['loop', [0xb9, 2, 0, 0, 0, 0x67, 0xe2, 0x80], -1],
  ]
  for (const [name, code, at] of cases) {
    const m = new Machine('protected')
    const start = name.includes('behind') ? 0 : 0x100
    m.code([...code, HLT], CODE + start)
    m.segment(L.SEG_CS, 8, BigInt(CODE), 0xfff, 0x49b)
    m.changed()
    m.setReg(3, 0x1000n)
    m.set64(L.CPU_RIP, BigInt(start))
    if (name === 'loop') {
      m.run(2)
      assert.is(m.rip, 0x88n, 'a target inside')
      continue
    }
    m.run(4)
    assert.is(m.rip, GP, name)
    assert.is(Number(m.peek(Number(m.reg(4)), 4)), 0, `${name}: error code`)
    assert.is(Number(m.peek(Number(m.reg(4)) + 4, 4)), start + Math.max(at, 0), `${name}: EIP`)
    assert.is(Number(m.reg(4)), STACK - 16 - (name.startsWith('push') ? 4 : 0), `${name}: ESP`)
  }
  const m = new Machine('protected')
  m.code([0xe9, 0xfa, 0x0e, 0, 0], CODE + 0x100)
  m.code([HLT], CODE + 0xfff)
  m.segment(L.SEG_CS, 8, BigInt(CODE), 0xfff, 0x49b)
  m.changed()
  m.set64(L.CPU_RIP, 0x100n)
  m.run(2)
  assert.is(m.rip, 0x1000n, 'the last byte')
})

test.run()
