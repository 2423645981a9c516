/** What the physical CPU cannot be asked at CPL 3: control-register guards, XCR0, modes, environment images. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { L } from '../support/core.ts'
import { CODE, Machine, PML4 } from '../system/machine.ts'
import type { Mode } from '../system/machine.ts'

const test = suite('simd guards')
const UD = 6
const NM = 7
const GP = 13
const MF = 16
const XM = 19
const HALTED = -1
/** CR4: PAE, OSFXSR, OSXMMEXCPT, OSXSAVE. */
const CR4 = 0x40620n
const DATA = 0x30000

function machine(change: { cr0?: bigint; cr4?: bigint; mode?: Mode } = {}): Machine {
  const m = new Machine(change.mode ?? 'long')
  const paging = m.mode === 'long' ? 0x80000000n : 0n
  m.set64(L.CPU_CR0, ((change.cr0 ?? 0x33n) | paging) & (m.mode === 'real' ? ~1n : -1n))
  m.set64(L.CPU_CR4, (change.cr4 ?? CR4) & (m.mode === 'long' ? -1n : ~0x20n))
  m.set64(L.CPU_XCR0, 3n)
  m.set32(L.CPU_FCW, 0x37f)
  m.set32(L.CPU_MXCSR, 0x1f80)
  m.setReg(6, BigInt(DATA))
  m.changed()
  return m
}
/** Runs the bytes and HLT; the vector, or HALTED. */
const outcome = (m: Machine, ...code: number[]): number => m.exec([...code, 0xf4])

const ADDPS = [0x0f, 0x58, 0xc1]
const PADDB_MMX = [0x0f, 0xfc, 0xc1]
const FADD = [0xd8, 0xc1]
const FXSAVE = [0x0f, 0xae, 0x06]
const XSAVE = [0x0f, 0xae, 0x26]
const LDMXCSR = [0x0f, 0xae, 0x16]
const WAIT = [0x9b]
const FNINIT = [0xdb, 0xe3]

test('CR0.EM: SSE, MMX and FXSAVE are #UD, x87 is #NM, WAIT goes on', () => {
  const em = { cr0: 0x37n }
  for (const code of [ADDPS, PADDB_MMX, FXSAVE]) assert.is(outcome(machine(em), ...code), UD)
  for (const code of [FADD, FNINIT]) assert.is(outcome(machine(em), ...code), NM)
  assert.is(outcome(machine(em), ...WAIT), HALTED)
})
test('CR0.TS: everything is #NM; WAIT only with CR0.MP', () => {
  for (const code of [ADDPS, PADDB_MMX, FXSAVE, FADD, FNINIT, XSAVE, LDMXCSR, WAIT])
    assert.is(outcome(machine({ cr0: 0x3bn }), ...code), NM)
  assert.is(outcome(machine({ cr0: 0x39n }), ...WAIT), HALTED)
})
test('which instructions are the last x87 instruction, as on Zen 4: FNOP and the stack pointers are, control is not', () => {
  // FNINIT, FLD1, FLDZ, FLD1, FDIVRP (zero divide, masked); ...; FLDCW [rsi + 0x200] unmasks it; FXSAVE [rsi]
  const before = [...FNINIT, 0xd9, 0xe8, 0xd9, 0xee, 0xd9, 0xe8, 0xde, 0xf1]
  const last = (...code: number[]): string => {
    const m = machine()
    m.poke(DATA + 0x200, 0x33bn)
    assert.is(outcome(m, ...before, ...code, 0xd9, 0xae, 0, 2, 0, 0, ...FXSAVE), HALTED)
    return `${(m.peek(DATA) >> 48n).toString(16)} ${m.peek(DATA + 8, 4) - BigInt(CODE)}`
  }
  const division = `6f1 ${before.length - 2}`
  const here = before.length
  assert.is(last(0xd9, 0xd0), `1d0 ${here}`, 'FNOP')
  assert.is(last(0xd9, 0xf7), `1f7 ${here}`, 'FINCSTP')
  assert.is(last(0xdd, 0xc3), `5c3 ${here}`, 'FFREE')
  assert.is(last(0xd9, 0xc9), `1c9 ${here}`, 'FXCH')
  assert.is(last(0xd9, 0x3e), division, 'FNSTCW')
  assert.is(last(0xdf, 0xe0), division, 'FNSTSW AX')
  assert.is(last(0xdb, 0xe0), division, 'FNENI')
  assert.is(last(0x9b), division, 'WAIT')
})
test('without CR4.OSFXSR SSE is #UD, MMX and FXSAVE are not, and FXSAVE leaves XMM and MXCSR out', () => {
  const bare = { cr4: 0x20n }
  for (const code of [ADDPS, LDMXCSR]) assert.is(outcome(machine(bare), ...code), UD)
  assert.is(outcome(machine(bare), ...PADDB_MMX), HALTED)
  const m = machine(bare)
  for (let i = 0; i < 512; i += 8) m.poke(DATA + i, 0xa5a5a5a5a5a5a5a5n)
  assert.is(outcome(m, ...FXSAVE), HALTED)
  assert.is(m.peek(DATA, 2), 0x37fn)
  assert.is(m.peek(DATA + 24, 4), 0xa5a5a5a5n)
  assert.is(m.peek(DATA + 160), 0xa5a5a5a5a5a5a5a5n)
})
test('without CR4.OSXSAVE the XSAVE family is #UD', () => {
  assert.is(outcome(machine({ cr4: 0x620n }), ...XSAVE), UD)
})
test('an unmasked SSE exception is #XM, or #UD without CR4.OSXMMEXCPT', () => {
  for (const [cr4, vector] of [
    [CR4, XM],
    [0x220n, UD],
  ] as const) {
    const m = machine({ cr4 })
    m.set32(L.CPU_MXCSR, 0x1d80)
    m.set64(L.CPU_XMM, 0x3ff0000000000000n)
    // DIVSD xmm0, xmm1 (zero), ZE unmasked
    assert.is(outcome(m, 0xf2, 0x0f, 0x5e, 0xc1), vector)
    assert.is(m.u32(L.CPU_MXCSR), 0x1d84)
    assert.is(m.u64(L.CPU_XMM), 0x3ff0000000000000n)
  }
})
test('an unmasked x87 exception is #MF at the next waiting instruction', () => {
  const m = machine()
  m.set32(L.CPU_FCW, 0x37b)
  // FLDZ, FLD1, FDIV ST(0), ST(1), FNSTSW AX, FADD
  assert.is(outcome(m, 0xd9, 0xee, 0xd9, 0xe8, 0xd8, 0xf1, 0xdf, 0xe0, ...FADD), MF)
  assert.is(m.reg(0) & 0xffffn, 0xb084n)
})
test('FXSAVE and XSAVE want alignment and a supported layout', () => {
  const m = machine()
  m.setReg(6, BigInt(DATA + 8))
  assert.is(outcome(m, ...FXSAVE), GP)
  const n = machine()
  n.setReg(6, BigInt(DATA + 16))
  assert.is(outcome(n, ...XSAVE), GP)
})
test('XSAVEOPT leaves out what is in its initial state, XSAVE writes it; XRSTOR without the bit initialises', () => {
  for (const [code, expected] of [
    [[0x0f, 0xae, 0x36], 0x5a5a5a5a5a5a5a5an],
    [XSAVE, 0n],
  ] as const) {
    const m = machine()
    for (let i = 0; i < 576; i += 8) m.poke(DATA + i, i < 512 ? 0x5a5a5a5a5a5a5a5an : 0n)
    m.setReg(0, 3n)
    assert.is(outcome(m, ...code), HALTED)
    assert.is(m.peek(DATA + 160), expected)
    assert.is(m.peek(DATA + 512), 0n)
    assert.is(m.peek(DATA + 24, 4), 0x1f80n)
    m.set64(L.CPU_XMM + 64, 77n)
    m.set32(L.CPU_FCW, 0x27f)
    m.set32(L.CPU_HALTED, 0)
    m.set64(L.CPU_RIP, BigInt(CODE))
    assert.is(outcome(m, 0x0f, 0xae, 0x2e), HALTED)
    assert.is(m.u64(L.CPU_XMM + 64), 0n)
    assert.is(m.u32(L.CPU_FCW), 0x37f)
  }
})
test('XSAVES and XRSTORS: CPL 0 only, compacted format round trip', () => {
  const m = machine()
  m.setReg(0, 3n)
  m.set64(L.CPU_XMM + 32, 0x1122334455667788n)
  m.set32(L.CPU_MXCSR, 0x1fa0)
  // XSAVES [rsi]; PXOR xmm1, xmm1; XRSTORS [rsi]
  assert.is(outcome(m, 0x0f, 0xc7, 0x2e, 0x66, 0x0f, 0xef, 0xc9, 0x0f, 0xc7, 0x1e), HALTED)
  assert.is(m.u64(L.CPU_XMM + 32), 0x1122334455667788n)
  assert.is(m.peek(DATA + 520), 0x8000000000000003n)
  assert.is(m.peek(DATA + 512) & 2n, 2n)
  const user = machine()
  user.user()
  assert.is(outcome(user, 0x0f, 0xc7, 0x2e), GP)
})
test('FNSTENV tells the last instruction and operand, in the image of the mode', () => {
  const m = machine()
  // FLD dword [rsi+4]; FNSTENV [rsi+64]
  assert.is(outcome(m, 0xd9, 0x46, 0x04, 0xd9, 0x76, 0x40), HALTED)
  assert.is(m.peek(DATA + 64 + 12, 4), BigInt(CODE))
  assert.is(m.peek(DATA + 64 + 16, 4) >> 16n, 0x146n)
  assert.is(m.peek(DATA + 64 + 20, 4), BigInt(DATA + 4))
  const r = machine({ mode: 'real' })
  // FLD1; FNSTENV [0x100]: 14 bytes with a 20-bit linear address
  assert.is(outcome(r, 0xd9, 0xe8, 0xd9, 0x36, 0x00, 0x01), HALTED)
  assert.is(r.peek(0x100, 2), 0x37fn)
  assert.is(r.peek(0x106, 2), BigInt(CODE & 0xffff))
  assert.is(r.peek(0x108, 2), BigInt(((CODE >> 16) << 12) | 0x1e8))
})
test('outside 64-bit mode FXSAVE names eight XMM registers', () => {
  const m = machine({ mode: 'protected' })
  for (let i = 0; i < 512; i += 8) m.poke(DATA + i, 0xa5a5a5a5a5a5a5a5n)
  assert.is(outcome(m, ...FXSAVE), HALTED)
  assert.is(m.peek(DATA + 160 + 7 * 16), 0n)
  assert.is(m.peek(DATA + 160 + 8 * 16), 0xa5a5a5a5a5a5a5a5n)
})
test('an x87 access that faults leaves the x87 environment alone', () => {
  // FLD1, then FST or FADD at an address without a page
  for (const code of [
    [0xd9, 0x16],
    [0xdd, 0x1e],
    [0xd8, 0x06],
    [0xdb, 0x3e],
    [0xdf, 0x3e],
  ]) {
    const m = machine()
    m.poke(PML4 + 0x2008, 0n)
    m.setReg(6, 0x200000n)
    assert.is(outcome(m, 0xd9, 0xe8, ...code), 14)
    assert.is(m.u64(L.CPU_FIP), BigInt(CODE))
    assert.is(m.u64(L.CPU_FDP), 0n)
    assert.is(m.u32(L.CPU_FTOP), 7)
    assert.is(m.u32(L.CPU_FSW), 0)
  }
})
test('vector VEX and EVEX do not exist on this CPU model', () => {
  // VZEROUPPER, VPXOR, ANDN with L = 1 and behind 66 (the plain form exists), an AVX-512 move
  for (const code of [
    [0xc5, 0xf8, 0x77],
    [0xc5, 0xf9, 0xef, 0xc0],
    [0xc4, 0xe2, 0x7c, 0xf2, 0xc1],
    [0x66, 0xc4, 0xe2, 0x78, 0xf2, 0xc1],
    [0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1],
  ]) {
    assert.is(outcome(machine(), ...code), UD)
  }
  assert.is(outcome(machine({ mode: 'protected' }), 0xc5, 0xf8, 0x77), UD)
})
test('LOCK is #UD on every SSE and x87 instruction', () => {
  for (const code of [ADDPS, FADD, FXSAVE, PADDB_MMX]) assert.is(outcome(machine(), 0xf0, ...code), UD)
})
test('an image that runs into a missing page changes nothing', () => {
  const m = machine()
  m.poke(PML4 + 0x2008, 0n)
  for (let i = 0; i < 256; i += 8) m.poke(0x1fff00 + i, 0x5a5a5a5a5a5a5a5an)
  m.setReg(6, 0x1fff00n)
  assert.is(outcome(m, ...FXSAVE), 14)
  // The last byte is touched first (measured on Zen 4).
  assert.is(m.u64(L.CPU_CR2), 0x2000ffn)
  for (let i = 0; i < 256; i += 8) assert.is(m.peek(0x1fff00 + i), 0x5a5a5a5a5a5a5a5an)
})
test.run()
