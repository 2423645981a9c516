/**
 * Code that changes, or means something else, without an ordinary store: by the page walk's and the segment loads' own writes, under
 * another mode, segment or limit, by PCID, by memory slots, by the host's clock.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, descriptor, FREE, GDT, KCODE, KCODE64, L, Machine, PML4, STUBS, TSS, TSS_SEL } from '../system/machine.ts'

const HLT = 0xf4
const TABLE = 0x60000
const le = (value: number, n: number): number[] => Array.from({ length: n }, (_, i) => Math.floor(value / 2 ** (8 * i)) & 0xff)

function smallPages(m: Machine): void {
  for (let i = 0; i < 512; i++) m.poke(TABLE + i * 8, BigInt(i * 4096) | 7n)
  m.poke(PML4 + 0x2000, BigInt(TABLE) | 7n)
}

/** Runs from `at` and returns the vector of the stub that halted it, -1 for another HLT. */
function go(m: Machine, at: number, n = 1000): number {
  m.set64(L.CPU_RIP, BigInt(at))
  m.set32(L.CPU_HALTED, 0)
  m.run(n)
  const vector = (Number(m.base(L.SEG_CS) + m.rip) - 1 - STUBS) / 16
  return Number.isInteger(vector) && vector >= 0 && vector < 256 ? vector : -1
}

/** An instruction and behind it `mov rax, imm64; hlt` whose immediate lies at `at`. */
function immediateAt(m: Machine, at: number, first: number[]): number {
  const start = at - 2 - first.length
  m.code([...first, 0x48, 0xb8], start)
  m.code([HLT], at + 8)
  return start
}

// The walk's own store is not the program's: the block that runs goes on (SDM vol 3, 11.6 promises nothing), the next sees it.
test('accessed and dirty bits that a page walk sets in code behind the next jump', () => {
  for (const [what, code, bits] of [
    ['load', [0x8a, 0x0b], 0x20n],
    ['store', [0x88, 0x0b], 0x60n],
    ['add', [0x00, 0x0b], 0x60n],
    ['movups', [0x0f, 0x10, 0x03], 0x20n],
    ['rep movsb', [0xf3, 0xa4], 0x20n],
    ['push', [0x51], 0x60n],
  ] as const) {
    const m = new Machine('long')
    smallPages(m)
    // The table of 0x200000-0x3fffff is the page of the code.
    const table = 0x15000
    m.poke(PML4 + 0x2008, BigInt(table) | 7n)
    m.set64(L.CPU_CR4, m.u64(L.CPU_CR4) | 0x600n)
    m.changed()
    const at = table + 0x100 * 8
    const start = immediateAt(m, at, [...code, 0xeb, 0])
    for (let pass = 0; pass < 3; pass++) {
      m.poke(at, 0x130007n)
      call(m.core, 'flushTlb', m.s)
      // Warm: decoded with the walk already done.
      m.setReg(1, 2n)
      m.setReg(3, 0x300000n)
      m.setReg(6, 0x300000n)
      m.setReg(7, 0x140000n)
      m.setReg(4, what === 'push' ? 0x300100n : 0x28000n)
      assert.is(go(m, start), -1, what)
      assert.is(m.reg(0), 0x130007n | bits, `${what}, pass ${pass}`)
    }
  }
})

test("accessed bit of a descriptor that is the next instruction's immediate", () => {
  for (const [what, code] of [
    ['mov ds', [0x8e, 0xd9]],
    ['mov fs', [0x8e, 0xe1]],
    ['mov ss', [0x8e, 0xd1]],
    ['pop gs', [0x0f, 0xa9]],
    ['lfs', [0x0f, 0xb4, 0x13]],
  ] as const) {
    const m = new Machine('long')
    const at = GDT + FREE
    const plain = descriptor(0, 0xfffff, 0xc92)
    const start = immediateAt(m, at, [...code])
    for (let pass = 0; pass < 3; pass++) {
      m.poke(at, plain)
      m.setReg(1, BigInt(FREE))
      m.setReg(3, 0x30000n)
      m.setReg(4, 0x28000n)
      m.poke(0x28000, BigInt(FREE))
      m.poke(0x30000, BigInt(FREE) << 32n)
      assert.is(go(m, start), -1, what)
      assert.is(m.reg(0), plain | (1n << 40n), `${what}, pass ${pass}`)
    }
  }
})

test('LTR sets busy in the next instruction', () => {
  const m = new Machine('long')
  const at = GDT + TSS_SEL
  const start = immediateAt(m, at, [0x0f, 0x00, 0xd9])
  const tss = descriptor(TSS, 0x67, 0x089)
  for (let pass = 0; pass < 3; pass++) {
    m.poke(at, tss)
    // hlt behind the immediate is the upper half of the descriptor: base 63:32 must be 0 for LTR, so the code goes on elsewhere.
    m.poke(at + 8, 0n)
    m.setReg(1, BigInt(TSS_SEL))
    m.set64(L.CPU_RIP, BigInt(start))
    m.set32(L.CPU_HALTED, 0)
    m.run(2)
    assert.is(m.reg(0), tss | (2n << 40n), `pass ${pass}`)
  }
})

test('the same bytes in 64-bit, 32-bit and 16-bit code, in turn', () => {
  // 48 b8 imm64: mov rax, imm64 | dec eax; mov eax, imm32; 4 bytes | dec ax; mov ax, imm16 ...
  const m = new Machine('long')
  m.poke(GDT + FREE, descriptor(0, 0xfffff, 0xc9b))
  m.poke(GDT + FREE + 8, descriptor(0, 0xfffff, 0x89b))
  const bytes = [0x48, 0xb8, 0x90, 0x90, 0x90, 0x90, 0x41, 0x41, 0x41, 0x41, HLT]
  m.code(bytes, 0x14000)
  for (let turn = 0; turn < 6; turn++) {
    for (const [selector, attrib, rax, rcx] of [
      [KCODE64, 0xa9b, 0x4141414190909090n, 0n],
      [FREE, 0xc9b, 0x90909090n, 4n],
      [FREE + 8, 0x89b, 0x9090n, 4n],
    ] as const) {
      m.segment(L.SEG_CS, selector, 0n, 0xffffffff, attrib)
      m.changed()
      m.setReg(0, 0n)
      m.setReg(1, 0n)
      assert.is(go(m, 0x14000), -1)
      assert.is(m.reg(0) & (attrib === 0x89b ? 0xffffn : 0xffffffffffffffffn), rax, `turn ${turn}, ${attrib.toString(16)}`)
      assert.is(m.reg(1), rcx)
    }
  }
})

test('a smaller limit cuts code that ran under a larger one', () => {
  const m = new Machine('protected')
  const at = 0x14000
  // inc eax x 8; hlt
  m.code([...new Array<number>(8).fill(0x40), HLT], at)
  const limit = (value: number): void => {
    m.segment(L.SEG_CS, KCODE, 0n, value, 0xc9b)
    m.changed()
  }
  for (let turn = 0; turn < 3; turn++) {
    limit(0xffffffff)
    m.setReg(0, 0n)
    m.setReg(4, 0x28000n)
    assert.is(go(m, at), -1)
    assert.is(m.reg(0), 8n)
    for (const last of [0, 3, 7]) {
      limit(at + last)
      m.setReg(0, 0n)
      m.setReg(4, 0x28000n)
      // The stub itself lies below the limit.
      assert.is(go(m, at), 13, `turn ${turn}, limit behind ${last + 1} instructions`)
      assert.is(m.reg(0), BigInt(last + 1))
      assert.is(m.frame(1), at + last + 1, 'EIP')
    }
  }
})

test('the same code reached by another segment, whose limit ends in it', () => {
  const m = new Machine('protected')
  const at = 0x14000
  m.code([...new Array<number>(8).fill(0x40), HLT], at)
  for (let turn = 0; turn < 3; turn++) {
    m.segment(L.SEG_CS, KCODE, 0n, 0xffffffff, 0xc9b)
    m.changed()
    m.setReg(0, 0n)
    m.setReg(4, 0x28000n)
    assert.is(go(m, at), -1)
    assert.is(m.reg(0), 8n)
    m.segment(L.SEG_CS, KCODE, BigInt(at - 0x1000), 0x1003, 0x49b)
    m.changed()
    m.setReg(0, 0n)
    go(m, 0x1000)
    assert.is(m.reg(0), 4n, `turn ${turn}`)
  }
})

test('an instruction that the limit cuts, after it ran whole', () => {
  const m = new Machine('protected')
  const at = 0x14000
  // mov eax, imm32; hlt
  m.code([0xb8, 1, 2, 3, 4, HLT], at)
  for (let turn = 0; turn < 3; turn++) {
    for (const [last, vector] of [
      [0xffffffff, -1],
      [at + 4, 13],
      [at + 3, 13],
      [at, 13],
    ] as const) {
      m.segment(L.SEG_CS, KCODE, 0n, last, 0xc9b)
      m.changed()
      m.setReg(0, 0n)
      m.setReg(4, 0x28000n)
      assert.is(go(m, at), vector)
      assert.is(m.reg(0), last >= at + 4 ? 0x04030201n : 0n, `limit ${last.toString(16)}`)
    }
  }
})

test('one linear address by two real-mode segments', () => {
  const m = new Machine('real')
  m.code([0x40, 0x40, 0x40, 0x40, 0x40, 0x40, HLT], 0x1fffc)
  const from = (cs: number, ip: number): bigint => {
    m.segment(L.SEG_CS, cs, BigInt(cs * 16), 0xffff, 0x9b)
    m.changed()
    m.setReg(0, 0n)
    m.setReg(4, 0x7000n)
    go(m, ip, 7)
    return m.reg(0)
  }
  for (let turn = 0; turn < 3; turn++) {
    assert.is(from(0x1f00, 0xffc), 6n)
    // The fourth is the last below the limit.
    assert.is(from(0x1000, 0xfffc), 4n, `turn ${turn}`)
  }
})

test('two address spaces by PCID, without and with flushing', () => {
  const m = new Machine('long')
  smallPages(m)
  // A second set of tables in which 0x14000 is 0x16000.
  for (let i = 0; i < 512; i++) m.poke(0x70000 + i * 8, BigInt(i === 0x14 ? 0x16000 : i * 4096) | 7n)
  m.poke(0x71000, 0x72007n)
  m.poke(0x72000, 0x73007n)
  m.poke(0x73000, 0x70007n)
  m.set64(L.CPU_CR4, m.u64(L.CPU_CR4) | 0x20000n)
  m.changed()
  m.code([0xb0, 0x11, 0xc3], 0x14000)
  m.code([0xb0, 0x42, 0xc3], 0x16000)
  // mov cr3, rcx; mov ebx, 0x14000; call rbx; mov dl, al; mov cr3, rsi; call rbx; hlt
  const code = [0x0f, 0x22, 0xd9, 0xbb, ...le(0x14000, 4), 0xff, 0xd3, 0x88, 0xc2, 0x0f, 0x22, 0xde, 0xff, 0xd3, HLT]
  m.code(code, CODE)
  for (let turn = 0; turn < 12; turn++) {
    const keep = turn % 3 === 0 ? 0n : 1n << 63n
    m.setReg(1, BigInt(PML4) | 1n | keep)
    m.setReg(6, 0x71000n | 2n | keep)
    m.setReg(4, 0x28000n)
    assert.is(go(m, CODE), -1)
    assert.is(m.reg(2) & 0xffn, 0x11n, `turn ${turn}`)
    assert.is(m.reg(0) & 0xffn, 0x42n, `turn ${turn}`)
  }
  // One PCID for two sets of tables: without a flush either may be seen, after one only the new.
  for (let turn = 0; turn < 6; turn++) {
    m.setReg(1, BigInt(PML4) | 1n)
    m.setReg(6, 0x71000n | 1n)
    m.setReg(4, 0x28000n)
    assert.is(go(m, CODE), -1)
    assert.equal([m.reg(2) & 0xffn, m.reg(0) & 0xffn], [0x11n, 0x42n])
  }
})

test('code in a slot that is logged, read-only, and read-write again', () => {
  const m = new Machine('long')
  const low = call(m.core, 'backingCreate', 16)
  const AT = 0x500000
  m.poke(PML4 + 0x2010, 0x400087n)
  const slot = (flags: number): void => assert.is(call(m.core, 'slotSet', m.vm, 1, BigInt(AT), 0x10000n, flags, low, 0) | 0, 0)
  const write = (value: number): void => {
    m.core.bytes.set([0xb0, value, 0xc3], L.STAGING)
    call(m.core, 'backingWrite', low, 0n, L.STAGING, 3)
  }
  write(0x11)
  slot(0)
  m.code([0xbb, ...le(AT, 4), 0xff, 0xd3, 0x88, 0xc2, 0xc6, 0x43, 1, 0x55, 0xff, 0xd3, HLT], CODE)
  let value = 0x11
  for (const [turn, flags] of [0, 1, 0, 1, 1, 0].entries()) {
    if (turn > 0) slot(flags)
    write(value)
    m.setReg(4, 0x28000n)
    assert.is(go(m, CODE), -1)
    assert.equal([m.reg(2) & 0xffn, m.reg(0) & 0xffn], [BigInt(value), 0x55n], `turn ${turn}`)
    value++
  }
})

test('kvmclock and the steal-time area over the immediate of the next instruction', () => {
  // The version lies at 0 and at 8: mov eax, imm32 over it.
  for (const [msr, at, version] of [
    [0x4b564d01, 0x14020, 0],
    [0x4b564d03, 0x14040, 8],
  ] as const) {
    const m = new Machine('long', true)
    const next = at + version - 1
    const one = (): number => {
      m.set32(L.CPU_HALTED, 0)
      call(m.core, 'vcpuRun', m.s, 1n)
      return Number(m.reg(0))
    }
    m.code([0x0f, 0x30], 0x13000)
    m.code([0xb8, 0x10, 0x20, 0x30, 0x40], next)
    for (let i = 0; i < 3; i++) {
      m.set64(L.CPU_RIP, BigInt(next))
      assert.is(one(), 0x40302010)
    }
    m.set64(L.CPU_RIP, 0x13000n)
    m.setReg(1, BigInt(msr))
    m.setReg(0, BigInt(at | 1))
    m.setReg(2, 0n)
    one()
    assert.is(m.rip, 0x13002n, 'the MSR exists')
    for (let i = 0; i < 3; i++) {
      // Every entry writes the steal time, the clock when something changed.
      call(m.core, 'clockStale', m.vm)
      m.set64(L.CPU_RIP, BigInt(next))
      const eax = one()
      assert.is.not(eax, 0x40302010)
      assert.is(eax, Number(m.peek(at + version, 4)))
    }
  }
})

test.run()
