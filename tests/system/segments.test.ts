/** Segment loads, descriptor tables, privileged instructions, flags, interrupt shadow, MSRs. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, loadCore } from '../support/core.ts'
import {
  CODE,
  FREE,
  GDT,
  descriptor,
  gate,
  KCODE,
  KCODE64,
  KDATA,
  L,
  LDT_SEL,
  LDT,
  Machine,
  STACK,
  TSS_SEL,
  TSS,
  UCODE,
  UDATA,
  UDATA64,
} from './machine.ts'

const test = suite('segments')
const dword = (v: number): number[] => [v & 255, (v >> 8) & 255, (v >> 16) & 255, (v >>> 24) & 255]
const HLT = 0xf4
const movSs = [0x8e, 0xd0]
const movDs = [0x8e, 0xd8]

test('MOV Sreg: checks and error codes', () => {
  const cases: [string, readonly number[], number, bigint | undefined, number, number][] = [
    ['SS null', movSs, 0, undefined, 13, 0],
    ['SS RPL', movSs, KDATA | 3, undefined, 13, KDATA],
    ['SS DPL', movSs, UDATA, undefined, 13, UDATA & 0xfffc],
    ['SS code', movSs, KCODE, undefined, 13, KCODE],
    ['SS read-only', movSs, FREE, descriptor(0, 0xfffff, 0xc91), 13, FREE],
    ['SS absent', movSs, FREE, descriptor(0, 0xfffff, 0xc13), 12, FREE],
    ['DS absent', movDs, FREE, descriptor(0, 0xfffff, 0xc13), 11, FREE],
    ['DS execute-only', movDs, FREE, descriptor(0, 0xfffff, 0xc99), 13, FREE],
    ['DS system', movDs, LDT_SEL, undefined, 13, LDT_SEL],
    ['DS RPL above DPL', movDs, KDATA | 3, undefined, 13, KDATA],
    ['DS beyond', movDs, 0x1000, undefined, 13, 0x1000],
    ['DS without LDT', movDs, 0x0c, undefined, 13, 0x0c],
  ]
  for (const [name, code, selector, d, vector, error] of cases) {
    const m = new Machine('protected')
    if (d !== undefined) m.poke(GDT + FREE, d)
    m.setReg(0, BigInt(selector))
    assert.is(m.exec(code), vector, name)
    assert.is(m.frame(0), error, name)
  }
})

test('MOV Sreg: null DS faults on use, accessed bit, expand-down limits', () => {
  const m = new Machine('protected')
  assert.is(m.exec([0x31, 0xc0, ...movDs, 0xa0, ...dword(0x5000)]), 13)
  assert.is(m.frame(0), 0)
  const a = new Machine('protected')
  a.poke(GDT + FREE, descriptor(0x100, 0xfff, 0x492))
  a.setReg(0, BigInt(FREE))
  assert.is(a.exec([...movDs, 0xa0, ...dword(0xfff), HLT]), -1)
  assert.is(Number(a.peek(GDT + FREE + 5, 1)), 0x93)
  assert.equal([a.base(L.SEG_DS), a.limit(L.SEG_DS)], [0x100n, 0xfff])
  for (const [offset, ok] of [
    [0xfff, false],
    [0x1000, true],
  ] as const) {
    const e = new Machine('protected')
    e.poke(GDT + FREE, descriptor(0, 0xfff, 0x496))
    e.setReg(0, BigInt(FREE))
    assert.is(e.exec([...movDs, 0xa0, ...dword(offset), HLT]), ok ? -1 : 13)
  }
})

test('long mode: null SS is allowed below ring 3 with RPL = CPL', () => {
  const m = new Machine('long')
  assert.is(m.exec([0x31, 0xc0, ...movSs, 0x50, HLT]), -1)
  const r = new Machine('long')
  r.user()
  assert.is(r.exec([0xb8, 3, 0, 0, 0, ...movSs]), 13)
})

test('LLDT and LTR', () => {
  const m = new Machine('protected')
  m.poke(LDT + 8, descriptor(0x12345000, 0xfffff, 0xc93))
  m.setReg(0, BigInt(LDT_SEL))
  m.setReg(1, 0x0cn)
  assert.is(m.exec([0x0f, 0x00, 0xd0, 0x8e, 0xd9, HLT]), -1)
  assert.is(m.base(L.SEG_DS), 0x12345000n)
  const t = new Machine('long')
  t.poke(GDT + FREE, descriptor(0x5000, 0x67, 0x089))
  t.poke(GDT + FREE + 8, 0xffff8000n)
  t.setReg(0, BigInt(FREE))
  assert.is(t.exec([0x0f, 0x00, 0xd8, HLT]), -1)
  assert.is(t.base(L.SEG_TR), 0xffff800000005000n)
  assert.is(Number(t.peek(GDT + FREE + 5, 1)), 0x8b)
  for (const [selector, error] of [
    [0, 0],
    [TSS_SEL, TSS_SEL],
    [KDATA, KDATA],
    [0x0c, 0x0c],
  ] as const) {
    const e = new Machine('protected')
    e.setReg(0, BigInt(selector))
    assert.is(e.exec([0x0f, 0x00, 0xd8]), 13)
    assert.is(e.frame(0), error)
  }
})

test('LGDT, SGDT, LIDT, SIDT in three sizes', () => {
  const m = new Machine('long')
  m.poke(0x5000, 0x77ffn | (0xffff888877776666n << 16n))
  m.poke(0x5008, 0xffffn, 2)
  m.poke(0x5002, 0xffff888877776666n)
  assert.is(m.exec([0x0f, 0x01, 0x1c, 0x25, ...dword(0x5000), 0x0f, 0x01, 0x0c, 0x25, ...dword(0x5100), HLT]), -1)
  assert.equal([m.base(L.SEG_IDTR), m.limit(L.SEG_IDTR)], [0xffff888877776666n, 0x77ff])
  assert.is(m.peek(0x5102), 0xffff888877776666n)
  const n = new Machine('long')
  n.poke(0x5002, 1n << 47n)
  assert.is(n.exec([0x0f, 0x01, 0x1c, 0x25, ...dword(0x5000)]), 13)
  const r = new Machine('real')
  r.poke(0x5000, 0xff12345678ffffn)
  assert.is(r.exec([0x0f, 0x01, 0x16, 0, 0x50, HLT]), -1)
  assert.equal([r.base(L.SEG_GDTR), r.limit(L.SEG_GDTR)], [0x345678n, 0xffff])
})

test('LAR, LSL, VERR, VERW, ARPL', () => {
  const m = new Machine('protected')
  m.setReg(1, BigInt(UDATA))
  assert.is(m.exec([0x0f, 0x02, 0xc1, 0x0f, 0x03, 0xd1, 0x0f, 0x00, 0xe1, 0x0f, 0x94, 0xc3, 0x0f, 0x00, 0xe9, 0x0f, 0x94, 0xc7, HLT]), -1)
  assert.equal([m.reg(0), m.reg(2), m.reg(3) & 0xffffn], [0xcff300n, 0xffffffffn, 0x101n])
  const n = new Machine('protected')
  n.setReg(1, BigInt(KCODE))
  n.setReg(0, 0x55n)
  n.user()
  n.exec([0x0f, 0x02, 0xc1, 0xeb, 0xfe], 1)
  assert.is(n.reg(0), 0x55n)
  assert.is(n.flags & 0x40n, 0n)
  const a = new Machine('protected')
  a.setReg(0, 0x10n)
  a.setReg(1, 3n)
  assert.is(a.exec([0x63, 0xc8, HLT]), -1)
  assert.is(a.reg(0), 0x13n)
  assert.is(a.flags & 0x40n, 0x40n)
  const r = new Machine('real')
  assert.is(r.exec([0x0f, 0x02, 0xc1]), 6)
})

test('privileged instructions fault in ring 3', () => {
  const list: [string, readonly number[]][] = [
    ['HLT', [HLT]],
    ['CLI', [0xfa]],
    ['STI', [0xfb]],
    ['MOV CR0', [0x0f, 0x20, 0xc0]],
    ['MOV to CR3', [0x0f, 0x22, 0xd8]],
    ['MOV DR0', [0x0f, 0x21, 0xc0]],
    ['LGDT', [0x0f, 0x01, 0x14, 0x25, 0, 0x50, 0, 0]],
    ['LLDT', [0x0f, 0x00, 0xd0]],
    ['LTR', [0x0f, 0x00, 0xd8]],
    ['LMSW', [0x0f, 0x01, 0xf0]],
    ['CLTS', [0x0f, 0x06]],
    ['INVLPG', [0x0f, 0x01, 0x38]],
    ['INVD', [0x0f, 0x08]],
    ['WBINVD', [0x0f, 0x09]],
    ['RDMSR', [0x0f, 0x32]],
    ['WRMSR', [0x0f, 0x30]],
    ['SWAPGS', [0x0f, 0x01, 0xf8]],
  ]
  for (const [name, code] of list) {
    const m = new Machine('long')
    m.user()
    assert.is(m.exec(code), 13, name)
    assert.is(m.frame(0), 0, name)
  }
})

test('POPF and IOPL', () => {
  for (const [cpl, iopl, want] of [
    [0, 0, 0x3202n],
    [3, 0, 0x2n],
    [3, 3, 0x3202n],
  ] as const) {
    const m = new Machine('protected')
    if (cpl === 3) m.user()
    m.setFlags(2n | BigInt(iopl << 12))
    m.code([0x68, ...dword(0x3202), 0x9d, 0xeb, 0xfe])
    m.run(2)
    assert.is(m.flags, want)
  }
})

test('STI holds interrupts for one instruction, MOV SS too', () => {
  const m = new Machine('protected')
  assert.is(m.exec([0xfb, 0x90, 0x90, 0x90], 1), -10 - L.STOP_BUDGET)
  assert.is(m.u32(L.CPU_INTERRUPT_SHADOW), 1)
  m.run(1)
  assert.is(m.u32(L.CPU_INTERRUPT_SHADOW), 0)
  const ss = new Machine('protected')
  ss.setReg(0, BigInt(KDATA))
  ss.exec([...movSs, 0x90, 0x90], 1)
  assert.is(ss.u32(L.CPU_INTERRUPT_SHADOW), 2)
})

test('control registers: refused combinations', () => {
  const cr = (n: number): number[] => [0x0f, 0x22, 0xc0 | (n << 3)]
  const cases: [string, number, bigint][] = [
    ['PG without PE', 0, 0x80000010n],
    ['NW without CD', 0, 0x20000011n],
    ['CR0 upper half', 0, 1n << 32n],
    ['CR0.PG off in 64-bit code', 0, 0x11n],
    ['CR4 reserved', 4, 0x80000020n],
    ['CR4.PAE off in long mode', 4, 0n],
    ['CR8 reserved', 8, 16n],
    ['CR3 reserved', 3, 1n << 60n],
  ]
  for (const [name, n, value] of cases) {
    const m = new Machine('long')
    m.setReg(0, value)
    const code = n === 8 ? [0x44, 0x0f, 0x22, 0xc0] : cr(n)
    assert.is(m.exec(code), 13, name)
    assert.is(m.u64(L.CPU_CR0), 0x80000011n, name)
  }
  const u = new Machine('long')
  assert.is(u.exec([0x0f, 0x20, 0xc8]), 6)
})

test('debug registers: DR4 aliases DR6, general detect', () => {
  const m = new Machine('protected')
  m.setReg(0, 0xen)
  assert.is(m.exec([0x0f, 0x23, 0xe0, 0x0f, 0x21, 0xf3, HLT]), -1)
  assert.is(m.reg(3), 0xffff0ffen)
  const g = new Machine('protected')
  g.set64(L.CPU_DR7, 0x2400n)
  assert.is(g.exec([0x0f, 0x21, 0xc0]), 1)
  assert.is(g.u64(L.CPU_DR6) & 0x2000n, 0x2000n)
  assert.is(g.u64(L.CPU_DR7) & 0x2000n, 0n)
})

test('MSRs: storage, canonical checks, unknown, EFER', () => {
  const m = new Machine('long')
  const run = (code: readonly number[], index: number, value = 0n): number => {
    m.setReg(1, BigInt(index))
    m.setReg(0, value & 0xffffffffn)
    m.setReg(2, value >> 32n)
    m.setReg(4, BigInt(STACK))
    m.set64(L.CPU_RIP, BigInt(CODE))
    return m.exec([...code, HLT])
  }
  const W = [0x0f, 0x30]
  const R = [0x0f, 0x32]
  const value = (): bigint => (m.reg(2) << 32n) | m.reg(0)
  assert.is(run(W, 0xc0000082, 0xffff800000001234n), -1)
  assert.is(run(R, 0xc0000082), -1)
  assert.is(value(), 0xffff800000001234n)
  assert.is(run(W, 0xc0000082, 1n << 47n), 13)
  assert.is(run(R, 0x12345), 13)
  assert.is(run(W, 0xc0000100, 0x5000n), -1)
  assert.is(m.base(L.SEG_FS), 0x5000n)
  assert.is(run(W, 0x277, 0x0007040600070402n), 13)
  assert.is(run(R, 0x277), -1)
  assert.is(value(), 0x0007040600070406n)
  assert.is(run(R, 0xfe), -1)
  assert.is(value(), 0x508n)
  assert.is(run(R, 0xc0000080), -1)
  assert.is(value(), 0x501n)
  assert.is(run(W, 0xc0000080, 0x1n), 13)
  assert.is(run(W, 0x250, 0x0606060606060606n), -1)
  assert.is(run(W, 0x250, 0x0202020202020202n), 13)
  assert.is(run(R, 0x400), -1)
  assert.is(run(W, 0x10, 1000000n), -1)
  assert.is(run(R, 0x10), -1)
  assert.ok(value() >= 1000000n && value() < 1000100n)
})

test('PUSHA, POPA, ENTER, LEAVE, LES', () => {
  const m = new Machine('protected')
  for (let i = 0; i < 8; i++) if (i !== 4) m.setReg(i, BigInt(i + 1))
  assert.is(m.exec([0x60, 0x31, 0xc0, 0x31, 0xff, 0x61, 0xc8, 0x10, 0, 0, 0xc9, HLT]), -1)
  assert.equal(
    [0, 1, 2, 3, 4, 5, 6, 7].map((i) => Number(m.reg(i))),
    [1, 2, 3, 4, STACK, 6, 7, 8],
  )
  const e = new Machine('protected')
  e.setReg(5, 0x6000n)
  e.poke(0x5ffc, 0xaaaan, 4)
  assert.is(e.exec([0xc8, 8, 0, 2, HLT]), -1)
  assert.equal([Number(e.reg(5)), Number(e.reg(4))], [STACK - 4, STACK - 12 - 8])
  assert.equal([e.peek(STACK - 4, 4), e.peek(STACK - 8, 4), e.peek(STACK - 12, 4)], [0x6000n, 0xaaaan, BigInt(STACK - 4)])
  const l = new Machine('protected')
  l.poke(0x5000, 0x12345678n | (BigInt(KDATA) << 32n))
  assert.is(l.exec([0xc4, 0x1d, ...dword(0x5000), HLT]), -1)
  assert.is(l.reg(3), 0x12345678n)
})

test('SEV-ES: intercepted instructions become #VC with the exit code', () => {
  const list: [string, readonly number[], number][] = [
    ['CPUID', [0x0f, 0xa2], 0x72],
    ['WBINVD', [0x0f, 0x09], 0x89],
    ['INVD', [0x0f, 0x08], 0x76],
    ['RDPMC', [0x0f, 0x33], 0x6f],
    ['MOV DR7', [0x0f, 0x23, 0xf8], 0x37],
    ['MOV from DR7', [0x0f, 0x21, 0xf8], 0x27],
    ['VMMCALL', [0x0f, 0x01, 0xd9], 0x81],
    ['MONITOR', [0x0f, 0x01, 0xc8], 0x8a],
    ['MWAIT', [0x0f, 0x01, 0xc9], 0x8b],
    ['RDMSR MTRRCAP', [0xb9, ...dword(0xfe), 0x0f, 0x32], 0x7c],
    ['INT1', [0xf1], 0x88],
  ]
  for (const [name, code, exit] of list) {
    const m = new Machine('long')
    m.core.view.setUint32(m.vm + L.VM_SEV, 2, true)
    assert.is(m.exec(code), 29, name)
    assert.is(m.frame(0), exit, name)
  }
  const pass = new Machine('long')
  pass.core.view.setUint32(pass.vm + L.VM_SEV, 2, true)
  assert.is(pass.exec([0xb9, ...dword(0xc0010131), 0x0f, 0x32, HLT]), -1)
  const step = new Machine('long')
  step.core.view.setUint32(step.vm + L.VM_SEV, 2, true)
  step.setFlags(0x102n)
  assert.is(step.exec([0x90, 0x90]), 29)
  assert.is(step.frame(0), 0x41)
})

test('reset state', () => {
  const core = loadCore()
  const vm = call(core, 'vmCreate')
  const s = call(core, 'vcpuCreate', vm, 0)
  const u64 = (f: number): bigint => core.view.getBigUint64(s + f, true)
  assert.equal(
    [u64(L.CPU_RIP), u64(L.CPU_CR0), u64(L.CPU_DR6), u64(L.CPU_DR7), u64(L.CPU_XCR0)],
    [0xfff0n, 0x60000010n, 0xffff0ff0n, 0x400n, 1n],
  )
  assert.is(u64(L.CPU_PAT), 0x0007040600070406n)
  assert.is(u64(L.CPU_SEGMENTS + L.SEG_CS * 16), 0xffff0000n)
  for (const field of [L.CPU_FOP, L.CPU_FCS, L.CPU_FDS, L.CPU_FSW, L.CPU_HALTED])
    assert.is(core.view.getUint32(s + field, true) & 0xffff, 0)
})

void [KCODE64, TSS, UDATA64, UCODE, gate]
test.run()
