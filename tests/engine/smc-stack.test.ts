/** Pushes that store into the instruction behind themselves: it runs as stored, whichever instruction pushed. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine, type Mode } from '../system/machine.ts'

const HLT = 0xf4

/** The form is followed by 8 bytes of `mov al, 0x11; hlt; nop...`; RSP is put so that its last store is these 8 bytes' beginning. */
interface Form {
  name: string
  mode: Mode
  code: number[]
  /** Bytes it pushes, all of them. */
  size: number
  /** Little-endian value of the last one pushed: `mov al, 0x42; hlt` where the form allows. */
  prepare: (m: Machine) => void
  /** AL, and whether HLT is in what was stored. */
  expect: number
}
const VALUE = 0x90f442b0n
const forms: Form[] = [
  { name: 'push eax..', mode: 'protected', code: [0x53], size: 4, prepare: (m) => m.setReg(3, VALUE), expect: 0x42 },
  { name: 'push imm32', mode: 'protected', code: [0x68, 0xb0, 0x42, 0xf4, 0x90], size: 4, prepare: () => {}, expect: 0x42 },
  {
    name: 'push [ebx]',
    mode: 'protected',
    code: [0xff, 0x33],
    size: 4,
    prepare: (m) => {
      m.setReg(3, 0x30000n)
      m.poke(0x30000, VALUE)
    },
    expect: 0x42,
  },
  { name: 'pushad', mode: 'protected', code: [0x60], size: 32, prepare: (m) => m.setReg(7, VALUE), expect: 0x42 },
  { name: 'enter 0,0', mode: 'protected', code: [0xc8, 0, 0, 0], size: 4, prepare: (m) => m.setReg(5, VALUE), expect: 0x42 },
  { name: 'push rbx', mode: 'long', code: [0x53], size: 8, prepare: (m) => m.setReg(3, VALUE), expect: 0x42 },
  { name: 'enter 0,0 (64)', mode: 'long', code: [0xc8, 0, 0, 0], size: 8, prepare: (m) => m.setReg(5, VALUE), expect: 0x42 },
  {
    name: 'push [rbx]',
    mode: 'long',
    code: [0xff, 0x33],
    size: 8,
    prepare: (m) => {
      m.setReg(3, 0x30000n)
      m.poke(0x30000, VALUE)
    },
    expect: 0x42,
  },
]

function once(m: Machine, f: Form, at: number): number {
  const behind = at + f.code.length
  m.code([...f.code, 0xb0, 0x11, HLT, 0x90, 0x90, 0x90, 0x90, 0x90], at)
  m.set32(L.CPU_HALTED, 0)
  f.prepare(m)
  m.setReg(0, 0n)
  m.setReg(4, BigInt(behind + f.size))
  m.set64(L.CPU_RIP, BigInt(at))
  m.run(3)
  assert.is(m.rip, BigInt(behind + 3), `${f.name}: where it halted`)
  return Number(m.reg(0) & 0xffn)
}

for (const f of forms) {
  test(`${f.name} over the next instruction`, () => {
    const m = new Machine(f.mode)
    for (let i = 0; i < 4; i++) assert.is(once(m, f, CODE + 0x40), f.expect, `pass ${i}`)
    // across the edge of two 128-byte lines, and of two pages
    for (const at of [CODE + 0x7e, CODE + 0x7f, CODE + 0x80 - f.code.length, CODE + 0x1000 - f.code.length, CODE + 0xffe])
      for (let i = 0; i < 3; i++) assert.is(once(m, f, at), f.expect, `at ${at.toString(16)}, pass ${i}`)
  })
}

test('pushf, push fs and pusha (16 bits) over a prefix of the next instruction', () => {
  // push fs / pushf store 2 bytes: `mov al, imm8` gets its immediate from the selector or the flags.
  const run = (code: number[], prepare: (m: Machine) => void, skip: number, size: number): number => {
    const m = new Machine('real')
    let al = 0
    for (let i = 0; i < 3; i++) {
      m.code([...code, 0xb0, 0x11, HLT, HLT])
      m.set32(L.CPU_HALTED, 0)
      m.segment(L.SEG_SS, CODE >> 4, BigInt(CODE), 0xffff, 0x93)
      prepare(m)
      m.changed()
      m.setReg(4, BigInt(code.length + skip + size))
      m.set64(L.CPU_RIP, 0n)
      m.run(3)
      al = Number(m.reg(0) & 0xffn)
    }
    return al
  }
  const fs = (m: Machine): void => m.segment(L.SEG_FS, 0xf442, 0xf4420n, 0xffff, 0x93)
  assert.is(run([0x0f, 0xa0], fs, 1, 2), 0x42, 'push fs')
  assert.is(
    run([0x9c], (m) => m.setFlags(0x8d7n), 1, 2),
    0xd7,
    'pushf',
  )
  assert.is(
    run([0x60], (m) => m.setReg(7, 0xf442n), 1, 16),
    0x42,
    'pusha',
  )
})

test.run()
