/** Far transfers, call gates, IRET to each ring, SYSCALL and SYSENTER. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  CODE,
  CODE16,
  FREE,
  GDT,
  gate,
  descriptor,
  KCODE,
  KCODE64,
  KDATA,
  L,
  Machine,
  STACK,
  STACK0,
  TSS_SEL,
  UCODE,
  UCODE64,
  UDATA,
  UDATA64,
} from './machine.ts'

const test = suite('transfer')
const dword = (v: number): number[] => [v & 255, (v >> 8) & 255, (v >> 16) & 255, (v >>> 24) & 255]
const word = (v: number): number[] => [v & 255, (v >> 8) & 255]
const HLT = 0xf4

test('real to protected to long and into compatibility mode', () => {
  const m = new Machine('real')
  const p = new Machine('long')
  // Copy tables of a long-mode machine; the code switches by itself.
  for (let at = 0x1000; at < 0x4000; at += 8) m.poke(at, p.peek(at))
  for (let at = 0x40000; at < 0x43000; at += 8) m.poke(at, p.peek(at))
  m.poke(0x6000, 0x3ffn | (0x1000n << 16n), 6)
  const code = [
    0x66,
    0x0f,
    0x01,
    0x16,
    ...word(0x6000), // lgdt with DS base 0
    0x0f,
    0x20,
    0xc0,
    0x0c,
    1,
    0x0f,
    0x22,
    0xc0, // CR0.PE
    0x66,
    0xea,
    ...dword(0x11000),
    ...word(KCODE),
  ]
  m.code(
    [
      0xb8,
      ...dword(KDATA),
      0x8e,
      0xd8,
      0x8e,
      0xd0,
      0xbc,
      ...dword(STACK),
      0xb8,
      ...dword(0x20),
      0x0f,
      0x22,
      0xe0, // CR4.PAE
      0xb8,
      ...dword(0x40000),
      0x0f,
      0x22,
      0xd8, // CR3
      0xb9,
      ...dword(0xc0000080),
      0x0f,
      0x32,
      0x0f,
      0xba,
      0xe8,
      8,
      0x0f,
      0x30, // EFER.LME
      0x0f,
      0x20,
      0xc0,
      0x0f,
      0xba,
      0xe8,
      31,
      0x0f,
      0x22,
      0xc0, // CR0.PG
      0xea,
      ...dword(0x12000),
      ...word(KCODE64),
    ],
    0x11000,
  )
  m.code([0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, HLT], 0x12000)
  assert.is(m.exec(code), -1)
  assert.is(Number(m.rip), 0x1200b)
  assert.is(m.reg(0), 0x0807060504030201n)
  assert.is(m.u32(L.CPU_MODE), L.MODE_CS64 | L.MODE_LONG)
  assert.is(m.u64(L.CPU_EFER), 0x500n)
})

test('far JMP: checks and error codes', () => {
  const cases: [string, number, bigint | undefined, number, number][] = [
    ['null', 0, undefined, 13, 0],
    ['beyond the table', 0x3f8 + 8, undefined, 13, 0x400],
    ['data', KDATA, undefined, 13, KDATA],
    ['inner DPL', UCODE, undefined, 13, UCODE & 0xfffc],
    ['absent', FREE, descriptor(0, 0xfffff, 0xc1b), 11, FREE],
    ['busy TSS', TSS_SEL, undefined, 13, TSS_SEL],
    ['short TSS', FREE, descriptor(0, 0x66, 0x089), 10, FREE],
    ['absent TSS', FREE, descriptor(0, 0x67, 0x009), 11, FREE],
    ['empty LDT', FREE | 4, undefined, 13, FREE | 4],
  ]
  for (const [name, selector, d, vector, error] of cases) {
    const m = new Machine('protected')
    m.idt(13, gate(KCODE, 0x8000 + 13 * 16, 0x8e))
    if (d !== undefined) m.poke(GDT + FREE, d)
    const got = m.exec([0xea, ...dword(0x11000), ...word(selector)])
    assert.is(got, vector, name)
    assert.is(m.frame(0), error, name)
    assert.is(m.frame(1), CODE, name)
  }
  const limit = new Machine('protected')
  assert.is(limit.exec([0xea, ...dword(0x20000), ...word(CODE16)]), 13)
  assert.is(limit.frame(0), 0)
})

test('far JMP sets the accessed bit; 16-bit code runs', () => {
  const m = new Machine('protected')
  m.poke(GDT + FREE, descriptor(0x10000, 0xffff, 0x09a))
  m.code([0xb8, 0x34, 0x12, HLT], 0x10100)
  assert.is(m.exec([0xea, ...dword(0x100), ...word(FREE)]), -1)
  assert.is(m.reg(0) & 0xffffn, 0x1234n)
  assert.is(Number(m.peek(GDT + FREE + 5, 1)), 0x9b)
})

test('CALL and RETF, same level, both sizes', () => {
  const m = new Machine('protected')
  m.code([0xb3, 7, 0xcb], 0x11000)
  assert.is(m.exec([0x9a, ...dword(0x11000), ...word(KCODE), HLT]), -1)
  assert.is(Number(m.rip), CODE + 8)
  assert.is(m.reg(3), 7n)
  assert.is(Number(m.reg(4)), STACK)
  const r = new Machine('real')
  r.code([0xb3, 7, 0xca, 2, 0], 0x10100)
  assert.is(r.exec([0x9a, 0, 1, 0, 0x10, HLT]), -1)
  assert.is(Number(r.reg(4)), 0x7002)
})

test('call gate to an inner level copies parameters; RETF releases both', () => {
  const m = new Machine('protected')
  m.poke(GDT + FREE, gate(KCODE, 0x11000, 0xec, 2))
  m.code([0x8b, 0x44, 0x24, 8, 0x8b, 0x5c, 0x24, 12, 0xca, 8, 0], 0x11000)
  m.user()
  m.poke(STACK, 0x1111n | (0x2222n << 32n))
  m.code([0x9a, ...dword(0), ...word(FREE | 3), 0xeb, 0xfe])
  m.run(1)
  assert.is(m.cpl, 0)
  assert.is(Number(m.reg(4)), STACK0 - 24)
  assert.equal([m.frame(0), m.frame(1), m.frame(2), m.frame(3), m.frame(4), m.frame(5)], [CODE + 7, UCODE, 0x1111, 0x2222, STACK, UDATA])
  m.run(4)
  assert.is(m.cpl, 3)
  assert.equal([m.reg(0), m.reg(3)], [0x1111n, 0x2222n])
  assert.is(Number(m.reg(4)), STACK + 8)
  assert.is(m.selector(L.SEG_SS), UDATA)
})

test('call gate in long mode', () => {
  const m = new Machine('long')
  m.poke(GDT + FREE, gate(KCODE64, 0x11000, 0xec))
  m.poke(GDT + FREE + 8, 0n)
  m.poke(0x5000, BigInt(FREE | 3) << 32n)
  m.code([HLT], 0x11000)
  m.user()
  assert.is(m.exec([0xff, 0x1c, 0x25, ...dword(0x5000)]), -1)
  assert.is(m.cpl, 0)
  assert.equal([m.frame(0), m.frame(1), m.frame(2), m.frame(3)], [CODE + 7, UCODE64, STACK, UDATA64])
  assert.is(m.selector(L.SEG_SS), 0)
})

test('gate privilege: DPL below CPL, absent, code of another kind', () => {
  const cases: [bigint, number, number][] = [
    [gate(KCODE, 0x11000, 0x8c), 13, FREE],
    [gate(KCODE, 0x11000, 0x6c), 11, FREE],
    [gate(0, 0x11000, 0xec), 13, 0],
    [gate(KDATA, 0x11000, 0xec), 13, KDATA],
  ]
  for (const [g, vector, error] of cases) {
    const m = new Machine('protected')
    m.poke(GDT + FREE, g)
    m.user()
    assert.is(m.exec([0x9a, ...dword(0), ...word(FREE | 3)]), vector)
    assert.is(m.frame(0), error)
  }
})

test('IRET to ring 3 (32-bit): segments of ring 0 become null', () => {
  const m = new Machine('protected')
  m.segment(L.SEG_ES, UDATA, 0n, 0xffffffff, 0xcf3)
  const push = (v: number): number[] => [0x68, ...dword(v)]
  m.code([0xeb, 0xfe], 0x11000)
  m.code([...push(UDATA), ...push(0x5000), ...push(0x3202), ...push(UCODE), ...push(0x11000), 0xcf])
  m.run(6)
  assert.is(m.cpl, 3)
  assert.is(Number(m.rip), 0x11000)
  assert.is(Number(m.reg(4)), 0x5000)
  assert.is(m.flags & 0x3200n, 0x3200n)
  assert.equal([m.selector(L.SEG_DS), m.selector(L.SEG_ES), m.selector(L.SEG_SS)], [0, UDATA, UDATA])
})

test('IRETQ to ring 0 and ring 3, and into compatibility mode', () => {
  for (const [cs, ss, cpl, mode] of [
    [KCODE64, 0, 0, L.MODE_CS64],
    [KCODE64, KDATA, 0, L.MODE_CS64],
    [UCODE64, UDATA64, 3, L.MODE_CS64],
    [UCODE, UDATA, 3, L.MODE_CS32],
  ] as const) {
    const m = new Machine('long')
    const frame = [0x11000, cs, 0x202, 0x5000, ss]
    m.setReg(4, 0x6000n)
    frame.forEach((v, i) => m.poke(0x6000 + i * 8, BigInt(v)))
    m.code([0xeb, 0xfe], 0x11000)
    m.code([0x48, 0xcf])
    m.run(1)
    assert.equal([Number(m.rip), m.cpl, Number(m.reg(4)), m.u32(L.CPU_MODE) & 3, m.selector(L.SEG_SS)], [0x11000, cpl, 0x5000, mode, ss])
  }
})

test('IRETQ faults: non-canonical RIP, null SS for ring 3, NT', () => {
  const tryFrame = (frame: readonly bigint[], flags = 2n): Machine => {
    const m = new Machine('long')
    m.setReg(4, 0x6000n)
    m.setFlags(flags)
    frame.forEach((v, i) => m.poke(0x6000 + i * 8, v))
    assert.is(m.exec([0x48, 0xcf]), 13)
    return m
  }
  assert.is(tryFrame([1n << 47n, BigInt(KCODE64), 2n, 0x5000n, 0n]).frame(0), 0)
  assert.is(tryFrame([0x11000n, BigInt(UCODE64), 2n, 0x5000n, 0n]).frame(0), 0)
  assert.is(tryFrame([0x11000n, BigInt(UCODE64), 2n, 0x5000n, BigInt(KDATA)]).frame(0), KDATA)
  assert.is(tryFrame([0x11000n, BigInt(KDATA), 2n, 0x5000n, 0n]).frame(0), KDATA)
  assert.is(tryFrame([0x11000n, BigInt(KCODE64), 2n, 0x5000n, 0n], 0x4002n).frame(0), 0)
})

test('SYSCALL and SYSRET', () => {
  const m = new Machine('long')
  m.set64(L.CPU_STAR, (BigInt(0x43) << 48n) | (BigInt(KCODE64) << 32n))
  m.set64(L.CPU_LSTAR, 0x11000n)
  m.set64(L.CPU_SFMASK, 0x700n)
  m.code([0x48, 0x0f, 0x07], 0x11000)
  m.code([0x0f, 0x05, 0xeb, 0xfe])
  m.user()
  m.setFlags(0x203n)
  m.run(1)
  assert.equal([Number(m.rip), m.cpl, m.selector(L.SEG_CS), m.selector(L.SEG_SS)], [0x11000, 0, KCODE64, KCODE64 + 8])
  assert.equal([m.reg(1), m.reg(11)], [BigInt(CODE + 2), 0x203n])
  assert.is(m.flags, 3n)
  m.run(1)
  assert.equal([Number(m.rip), m.cpl, m.selector(L.SEG_CS), m.selector(L.SEG_SS)], [CODE + 2, 3, 0x53, 0x4b])
  assert.is(m.flags, 0x203n)
  const off = new Machine('long')
  off.set64(L.CPU_EFER, 0x500n)
  assert.is(off.exec([0x0f, 0x05]), 6)
  const ring3 = new Machine('long')
  ring3.user()
  assert.is(ring3.exec([0x48, 0x0f, 0x07]), 13)
})

test('SYSCALL and SYSRET trap on the TF that they end with', () => {
  const ENTRY = 0x11000
  for (const tf of [false, true])
    for (const masked of [false, true]) {
      const m = new Machine('long')
      m.set64(L.CPU_EFER, 0x501n)
      m.set64(L.CPU_STAR, BigInt(KCODE64) << 32n)
      m.set64(L.CPU_LSTAR, BigInt(ENTRY))
      m.set64(L.CPU_SFMASK, masked ? 0x100n : 0n)
      m.user()
      m.setFlags(tf ? 0x102n : 2n)
      m.code([0x90, 0xf4], ENTRY)
      m.changed()
      const vector = m.exec([0x0f, 0x05])
      const traps = tf && !masked
      assert.equal([vector, traps ? m.frame(0) : Number(m.rip)], traps ? [1, ENTRY] : [-1, ENTRY + 2], `SYSCALL, TF ${tf}, ${masked}`)
      assert.is(Number(m.reg(11)) & 0x100, tf ? 0x100 : 0)
    }
  for (const [before, after] of [
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ] as const) {
    const m = new Machine('long')
    m.set64(L.CPU_EFER, 0x501n)
    m.set64(L.CPU_STAR, 0x43n << 48n)
    m.setReg(1, BigInt(ENTRY))
    m.setReg(11, after ? 0x102n : 2n)
    m.setFlags(before ? 0x102n : 2n)
    // nop; ud2
    m.code([0x90, 0x0f, 0x0b], ENTRY)
    m.changed()
    const vector = m.exec([0x48, 0x0f, 0x07])
    assert.equal([vector, m.frame(0)], after ? [1, ENTRY] : [6, ENTRY + 1], `SYSRET, TF ${before} to ${after}`)
  }
})

test('SYSENTER and SYSEXIT in protected mode; #UD in long mode of an AMD CPU', () => {
  const m = new Machine('protected')
  m.set64(L.CPU_SYSENTER_CS, BigInt(KCODE))
  m.set64(L.CPU_SYSENTER_EIP, 0x11000n)
  m.set64(L.CPU_SYSENTER_ESP, 0x6000n)
  m.user()
  m.code([0x0f, 0x35], 0x11000)
  m.code([0xb9, ...dword(0x5000), 0xba, ...dword(CODE), 0x0f, 0x34])
  m.run(3)
  assert.equal([Number(m.rip), m.cpl, Number(m.reg(4))], [0x11000, 0, 0x6000])
  m.run(1)
  assert.equal([Number(m.rip), m.cpl, Number(m.reg(4)), m.selector(L.SEG_CS)], [CODE, 3, 0x5000, (KCODE + 16) | 3])
  const l = new Machine('long')
  assert.is(l.exec([0x0f, 0x34]), 6)
})

test.run()
