/**
 * What changes under warm translations and warm code: writes of CR4, CR3 with PCIDs, INVPCID and INVLPG (SDM vol 3, 4.10.4.1), the rights of
 * SMEP, SMAP and protection keys, which hold at once (4.6). A page table entry is changed without a word to the TLB, then the guest does one
 * thing; where the architecture says that it drops the translation, the next access must find the new page, as data and as code.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine, PML4, STUBS } from './machine.ts'

const test = suite('live translations')
const VA = 0x200000
const TABLE = 0x70000
const OLD = 0x180000
const NEW = 0x181000
const HLT = 0xf4
const PGE = 7n
const PCIDE = 17n
const SMEP = 20n
const SMAP = 21n
const PKE = 22n
const LA57 = 12n
const GLOBAL = 0x100n

/** Page VA leads to OLD: MOV AL,0x0A; RET there, 0x0B in NEW. */
function machine(flags: bigint, cr4 = 0x20n): Machine {
  const m = new Machine('long')
  m.poke(PML4 + 0x2000 + 8, BigInt(TABLE) | 7n)
  // What the machine itself runs in is the supervisor's.
  m.poke(PML4 + 0x2000, 0x83n)
  for (const [at, value] of [
    [OLD, 0x0a],
    [NEW, 0x0b],
  ] as const)
    m.code([0xb0, value, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90], at)
  m.poke(TABLE, BigInt(OLD) | flags)
  m.everyFeature()
  m.set64(L.CPU_CR4, cr4)
  m.changed()
  return m
}

function exec(m: Machine, code: number[], set?: () => void): number {
  m.set32(L.CPU_HALTED, 0)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.setReg(4, 0x20000n)
  m.setReg(1, BigInt(VA))
  set?.()
  m.code([...code, HLT])
  m.run(100)
  const vector = (Number(m.rip) - 1 - STUBS) / 16
  return Number.isInteger(vector) && vector >= 0 && vector < 256 ? vector : -1
}

/** What is behind VA: 0x0a or 0x0b, as code (CALL) and as data; minus the vector of a fault. */
function seen(m: Machine): { code: number; data: number; stored: number } {
  const code = exec(m, [0xff, 0xd1])
  const called = code < 0 ? Number(m.reg(0) & 0xffn) : -code
  const data = exec(m, [0x8a, 0x41, 1])
  const read = data < 0 ? Number(m.reg(0) & 0xffn) : -data
  const store = exec(m, [0xc6, 0x41, 8, 1])
  return { code: called, data: read, stored: store < 0 ? 1 : -store }
}

const was = { code: 0x0a, data: 0x0a, stored: 1 }
const is = { code: 0x0b, data: 0x0b, stored: 1 }
const moveCr4 = [0x0f, 0x22, 0xe0]
const moveCr3 = [0x0f, 0x22, 0xd8]
const bit = (n: bigint): bigint => 1n << n

test('CR4: PGE either way, PCIDE off and SMEP on drop translations', () => {
  for (const [what, flags, from, to] of [
    ['PGE on', 3n, 0x20n, 0x20n | bit(PGE)],
    ['PGE off', 3n, 0x20n | bit(PGE), 0x20n],
    ['PGE on, global page', 3n | GLOBAL, 0x20n, 0x20n | bit(PGE)],
    ['PGE off, global page', 3n | GLOBAL, 0x20n | bit(PGE), 0x20n],
    ['PCIDE off', 3n, 0x20n | bit(PCIDE), 0x20n],
    ['PCIDE off, global page', 3n | GLOBAL, 0x20n | bit(PCIDE) | bit(PGE), 0x20n | bit(PGE)],
    ['SMEP on', 3n, 0x20n, 0x20n | bit(SMEP)],
  ] as const) {
    const m = machine(flags, from)
    assert.equal(seen(m), was, what)
    m.poke(TABLE, BigInt(NEW) | flags)
    assert.is(
      exec(m, moveCr4, () => m.setReg(0, to)),
      -1,
      what,
    )
    assert.is(m.u64(L.CPU_CR4), to, what)
    assert.equal(seen(m), is, what)
  }
})

test('CR3, INVLPG and INVPCID drop what they say and, of a page that did not change, lose nothing', () => {
  const invlpg = [0x0f, 0x01, 0x39]
  const descriptor = 0x190000
  const invpcid = (m: Machine, type: bigint, pcid: bigint): void => {
    m.poke(descriptor, pcid)
    m.poke(descriptor + 8, BigInt(VA))
    m.setReg(2, type)
    m.setReg(1, BigInt(descriptor))
  }
  const base = 0x20n | bit(PGE) | bit(PCIDE)
  for (const [what, flags, cr4, code, set, global] of [
    ['MOV CR3', 3n, 0x20n, moveCr3, (m: Machine) => m.setReg(0, BigInt(PML4)), false],
    ['MOV CR3 with PCID', 3n, base, moveCr3, (m: Machine) => m.setReg(0, BigInt(PML4)), false],
    ['INVLPG', 3n, 0x20n, invlpg, () => 0, true],
    ['INVLPG with PCID', 3n, base, invlpg, () => 0, true],
    ['INVPCID 0', 3n, base, [0x66, 0x0f, 0x38, 0x82, 0x11], (m: Machine) => invpcid(m, 0n, 0n), false],
    ['INVPCID 1', 3n, base, [0x66, 0x0f, 0x38, 0x82, 0x11], (m: Machine) => invpcid(m, 1n, 0n), false],
    ['INVPCID 2', 3n, base, [0x66, 0x0f, 0x38, 0x82, 0x11], (m: Machine) => invpcid(m, 2n, 0n), true],
    ['INVPCID 3', 3n, base, [0x66, 0x0f, 0x38, 0x82, 0x11], (m: Machine) => invpcid(m, 3n, 0n), false],
  ] as const)
    for (const g of global ? [0n, GLOBAL] : [0n]) {
      const m = machine(flags | g, cr4)
      assert.equal(seen(m), was, what)
      assert.is(
        exec(m, [...code], () => set(m)),
        -1,
        what,
      )
      assert.equal(seen(m), was, `${what}, unchanged`)
      m.poke(TABLE, BigInt(NEW) | flags | g)
      assert.is(
        exec(m, [...code], () => set(m)),
        -1,
        what,
      )
      assert.equal(seen(m), is, `${what}${g ? ', global page' : ''}`)
    }
})

test('INVLPG anywhere in a page of 2 MiB drops all of it', () => {
  const m = machine(3n)
  const other = 0x200000
  const entry = PML4 + 0x2000 + 8
  m.poke(entry, BigInt(other) | 0x83n)
  for (const [i, offset] of [0, 0x5000, 0x1ff000].entries()) {
    const frame = (at: number, value: number): void => m.code([0xb0, value, 0xc3], at + offset)
    frame(other, 0x0a)
    // The lower half of memory, where the machine itself lies, seen a second time.
    const below = m.peek(offset, 8)
    m.poke(entry, BigInt(other) | 0x83n)
    assert.is(exec(m, [0x0f, 0x01, 0x39]), -1)
    const at = (): number => (exec(m, [0x48, 0x8b, 0x01], () => m.setReg(1, BigInt(VA + offset))) < 0 ? Number(m.reg(0) & 0xffn) : -1)
    assert.is(at(), 0xb0, `offset ${offset.toString(16)}`)
    m.poke(entry, 0x83n)
    assert.is(
      exec(m, [0x0f, 0x01, 0x39], () => m.setReg(1, BigInt(VA + ([0x1ff000, 0, 0x7000][i] ?? 0)))),
      -1,
    )
    assert.is(at(), Number(below & 0xffn), `offset ${offset.toString(16)}, after INVLPG`)
  }
})

test('INVLPG anywhere in a page of 4 MiB (32-bit paging) drops all of it', () => {
  const m = new Machine('protected')
  const directory = 0x60000
  m.poke(directory, 0x83n, 4)
  m.poke(directory + 4, 0x83n, 4)
  m.set64(L.CPU_CR3, BigInt(directory))
  m.set64(L.CPU_CR4, 0x10n)
  m.set64(L.CPU_CR0, 0x80000011n)
  m.changed()
  m.poke(0x5000, 0x77n, 1)
  const at = 0x405000n
  for (const other of [0x405000n, 0x400000n, 0x7ff000n]) {
    m.poke(directory + 4, 0x83n, 4)
    exec(m, [0x0f, 0x01, 0x39], () => m.setReg(1, at))
    assert.is(
      exec(m, [0x8a, 0x01], () => m.setReg(1, at)),
      -1,
    )
    assert.is(Number(m.reg(0) & 0xffn), 0x77)
    m.poke(directory + 4, 0x82n, 4)
    exec(m, [0x0f, 0x01, 0x39], () => m.setReg(1, other))
    assert.is(
      exec(m, [0x8a, 0x01], () => m.setReg(1, at)),
      14,
      `by ${other.toString(16)}`,
    )
  }
})

test('STAC and CLAC hold for the next instruction', () => {
  const m = machine(7n, 0x20n | bit(SMAP))
  const [stac, clac, read] = [
    [0x0f, 0x01, 0xcb],
    [0x0f, 0x01, 0xca],
    [0x8a, 0x41, 1],
  ] as const
  for (let round = 0; round < 3; round++) {
    m.setFlags(2n)
    m.changed()
    assert.is(exec(m, [...read]), 14)
    assert.is(exec(m, [...stac, ...read]), -1)
    assert.is(Number(m.reg(0) & 0xffn), 0x0a)
    assert.is(exec(m, [...clac, ...read]), 14)
    m.setFlags(2n)
    m.changed()
    assert.is(exec(m, [...stac, ...read, ...clac, ...read]), 14)
    assert.is(m.flags & 0x40000n, 0n)
  }
})

test('translations of another PCID: INVPCID 1, 2 and 3, PGE and PCIDE drop them, a CR3 with bit 63 keeps to its own', () => {
  const base = 0x20n | bit(PGE) | bit(PCIDE)
  const keep = 1n << 63n
  const descriptor = 0x190000
  const change: readonly (readonly [string, (m: Machine) => void])[] = [
    ['PGE', (m): void => [base & ~bit(PGE), base].forEach((v) => exec(m, moveCr4, () => m.setReg(0, v)))],
    ...[1n, 2n, 3n].map(
      (type) =>
        [
          `INVPCID ${type}`,
          (m: Machine): void => {
            m.poke(descriptor, 1n)
            exec(m, [0x66, 0x0f, 0x38, 0x82, 0x11], () => {
              m.setReg(2, type)
              m.setReg(1, BigInt(descriptor))
            })
          },
        ] as const,
    ),
    ['CR3 of PCID 1 without bit 63', (m): void => void exec(m, moveCr3, () => m.setReg(0, BigInt(PML4) | 1n))],
  ]
  const cr3 = (m: Machine, pcid: bigint): number => exec(m, moveCr3, () => m.setReg(0, BigInt(PML4) | pcid | keep))
  for (const [what, act] of change) {
    const m = machine(3n, base)
    assert.is(cr3(m, 1n), -1)
    assert.equal(seen(m), was, what)
    assert.is(cr3(m, 2n), -1)
    m.poke(TABLE, BigInt(NEW) | 3n)
    act(m)
    assert.is(cr3(m, 1n), -1)
    assert.equal(seen(m), is, what)
  }
})

test('SMEP, SMAP and protection keys hold at once, and give way at once', () => {
  const m = machine(7n)
  assert.equal(seen(m), was)
  const cr4 = (value: bigint): number => exec(m, moveCr4, () => m.setReg(0, value))
  for (let round = 0; round < 2; round++) {
    assert.is(cr4(0x20n | bit(SMEP)), -1)
    assert.equal(seen(m), { ...was, code: -14 })
    assert.is(cr4(0x20n | bit(SMAP)), -1)
    assert.equal(seen(m), { code: 0x0a, data: -14, stored: -14 })
    m.setFlags(0x40002n)
    assert.equal(seen(m), was, 'AC')
    m.setFlags(2n)
    m.changed()
    assert.equal(seen(m), { code: 0x0a, data: -14, stored: -14 }, 'AC off')
    assert.is(cr4(0x20n), -1)
    assert.equal(seen(m), was)
  }
})

test('protection keys: both rights of every key, reads and writes, user and supervisor, with and without WP', () => {
  for (const key of [1n, 7n, 15n])
    for (const user of [false, true])
      for (const wp of [false, true]) {
        const m = machine(7n | (key << 59n))
        m.poke(PML4 + 0x2000, 0x87n)
        m.set64(L.CPU_CR0, wp ? 0x80010011n : 0x80000011n)
        if (user) m.user()
        m.set64(L.CPU_CR4, 0x20n | bit(PKE))
        m.changed()
        for (const rights of [0, 1, 2, 3, 0]) {
          const label = `key ${key}, rights ${rights}, ${user ? 'user' : 'supervisor'}${wp ? ', WP' : ''}`
          const run = (code: number[], set?: () => void): number => {
            if (user) m.user()
            // HLT is for the kernel: INT3 ends what the user runs.
            m.code([0xcc], STUBS + 3 * 16)
            return exec(m, code, set)
          }
          // The other keys are forbidden whole.
          const pkru = BigInt(rights) << (key * 2n)
          const others = 0xffff_fffcn & ~(3n << (key * 2n))
          run([0x0f, 0x01, 0xef], () => [pkru | others, 0n, 0n].forEach((v, i) => m.setReg(i, v)))
          const read = run([0x8a, 0x41, 1], () => m.setReg(0, 0n))
          assert.is(Number(m.reg(0) & 0xffn), rights & 1 ? 0 : 0x0a, `${label}, read`)
          if (rights & 1) assert.equal([read, m.frame(0)], [14, user ? 0x25 : 0x21], `${label}, read`)
          m.poke(OLD + 8, 0n, 1)
          const write = run([0xc6, 0x41, 8, 1])
          const denied = (rights & 1) !== 0 || ((rights & 2) !== 0 && (user || wp))
          assert.is(Number(m.peek(OLD + 8, 1)), denied ? 0 : 1, `${label}, write`)
          if (denied) assert.equal([write, m.frame(0)], [14, user ? 0x27 : 0x23], `${label}, write`)
          // Fetches are not asked.
          run([0xff, 0xd1], () => m.setReg(0, 0n))
          assert.is(Number(m.reg(0) & 0xffn), 0x0a, `${label}, fetch`)
        }
      }
})

test('CR4 in long mode: PAE and LA57 stay, whatever else changes', () => {
  for (const la57 of [false, true]) {
    const m = machine(3n)
    if (!la57) {
      assert.is(
        exec(m, moveCr4, () => m.setReg(0, 0x20n | bit(LA57))),
        13,
      )
      assert.is(
        exec(m, moveCr4, () => m.setReg(0, 0n)),
        13,
      )
      assert.is(
        exec(m, moveCr4, () => m.setReg(0, 0x620n)),
        -1,
      )
      continue
    }
    // CPUID has LA57; the fifth level leads to the four.
    m.poke(PML4 + 0x5000, BigInt(PML4) | 7n)
    m.set64(L.CPU_CR3, BigInt(PML4 + 0x5000))
    m.set64(L.CPU_CR4, 0x20n | bit(LA57))
    m.changed()
    m.core.x['flushTlb']?.(m.s)
    assert.equal(seen(m), was)
    assert.is(
      exec(m, moveCr4, () => m.setReg(0, 0x220n | bit(LA57))),
      -1,
      'another bit',
    )
    assert.is(
      exec(m, moveCr4, () => m.setReg(0, 0x220n)),
      13,
      'LA57 off',
    )
    assert.equal(seen(m), was)
  }
})

test.run()
