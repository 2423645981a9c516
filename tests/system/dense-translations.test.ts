/**
 * Translations that the loop knows from the dense entries of the L2 TLB (tools/generate-fill.ts): a page table entry is changed, then
 * the guest does what drops the translation, and the next access must find the new page; a page that gets code loses its stores.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine, PML4, STUBS } from './machine.ts'

const test = suite('dense translations')
const VA = 0x201000
const TABLE = 0x70000
const OLD = 0x180000
const NEW = 0x182000
const HLT = 0xf4
const PGE = 0x80n
const PCIDE = 0x20000n
/** D, A, W, P; G. */
const BITS = 0x63n
const GLOBAL = 0x100n

function machine(flags: bigint, cr4: bigint): Machine {
  const m = new Machine('long')
  m.poke(PML4 + 0x2000 + 8, BigInt(TABLE) | 0x63n)
  for (const [at, value] of [
    [OLD, 0x0a],
    [NEW, 0x0b],
  ] as const)
    m.code([value, 0xb0, value, 0xc3], at)
  m.code(
    programs.flatMap((p) => [...p, HLT, ...Array.from({ length: 31 - p.length }, () => HLT)]),
    CODE,
  )
  m.poke(TABLE + 8, BigInt(OLD) | flags)
  m.everyFeature()
  m.set64(L.CPU_CR4, cr4)
  m.changed()
  return m
}

const load = [0x8a, 0x01] // mov al,[rcx]
const store = [0xc6, 0x41, 0x10, 1] // mov byte ptr [rcx+16],1
const change = (value: number): number[] => [0xc6, 0x41, 0x02, value] // mov byte ptr [rcx+2],value
const call = [0xff, 0xd1] // call rcx
const invlpg = [0x0f, 0x01, 0x39]
const invpcid = [0x66, 0x0f, 0x38, 0x82, 0x11]
const moveCr3 = [0x0f, 0x22, 0xd8]
const moveCr4 = [0x0f, 0x22, 0xe0]
/** All in place before the first instruction: newly decoded code would be a reason of its own to drop dense entries. */
const programs = [load, store, change(0x2c), change(0x2d), call, invlpg, invpcid, moveCr3, moveCr4]

/** Vector of the exception, -1 without. */
function exec(m: Machine, program: readonly number[], rcx = BigInt(VA), rax = 0n): number {
  const at = CODE + 32 * programs.findIndex((p) => Buffer.from(p).equals(Buffer.from(program)))
  m.set32(L.CPU_HALTED, 0)
  m.set64(L.CPU_RIP, BigInt(at))
  m.setReg(4, 0x20000n)
  m.setReg(1, rcx)
  m.setReg(0, rax)
  m.run(100)
  const vector = (Number(m.rip) - 1 - STUBS) / 16
  return Number.isInteger(vector) && vector >= 0 && vector < 256 ? vector : -1
}

/** Takes every tag out of the L1 arrays. */
function forget(m: Machine): void {
  for (const array of [L.VCPU_TLB_USER, L.VCPU_TLB_SUPERVISOR, L.VCPU_TLB_SMAP])
    m.core.bytes.fill(0xff, m.s + array, m.s + array + L.VCPU_TLB_USER_SIZE)
}

const tagOf = (m: Machine): number => m.u32(L.VCPU_TLB_DENSE + ((((VA / 4096) ^ (VA >>> 28)) & 0xffff) << 3) + 4)
const current = (m: Machine): boolean => tagOf(m) === m.u32(L.VCPU_MMU + L.MMU_STAMP)

/** Until the dense entry is there, and once by it. */
function warm(m: Machine): void {
  for (let i = 0; i < 4; i++) {
    assert.is(exec(m, store), -1)
    forget(m)
  }
  assert.ok(current(m), 'no dense entry')
  assert.is(exec(m, load), -1)
  assert.is(m.reg(0) & 0xffn, 0x0an)
  forget(m)
}

const drops: [name: string, flags: bigint, cr4: bigint, code: number[], rax: bigint, set?: (m: Machine) => bigint][] = [
  ['INVLPG', BITS, 0x20n, invlpg, 0n],
  ['INVLPG, global page', BITS | GLOBAL, 0x20n | PGE, invlpg, 0n],
  ['MOV CR3', BITS, 0x20n, moveCr3, BigInt(PML4)],
  ['CR4.PGE off', BITS | GLOBAL, 0x20n | PGE, moveCr4, 0x20n],
  ['another PCID', BITS, 0x20n | PCIDE, moveCr3, BigInt(PML4) | 5n],
  [
    'INVPCID of all',
    BITS | GLOBAL,
    0x20n | PGE | PCIDE,
    invpcid,
    0n,
    (m) => {
      m.setReg(2, 2n)
      return 0x190000n
    },
  ],
]

for (const [name, flags, cr4, code, rax, set] of drops) {
  test(`${name} drops it`, () => {
    const m = machine(flags, cr4)
    warm(m)
    m.poke(TABLE + 8, BigInt(NEW) | flags)
    assert.is(exec(m, code, set ? set(m) : BigInt(VA), rax), -1)
    forget(m)
    assert.is(exec(m, load), -1)
    assert.is(m.reg(0) & 0xffn, 0x0bn)
  })
}

test('MOV CR3 keeps a global page', () => {
  const m = machine(BITS | GLOBAL, 0x20n | PGE)
  warm(m)
  m.poke(TABLE + 8, BigInt(NEW) | BITS | GLOBAL)
  assert.is(exec(m, moveCr3, BigInt(VA), BigInt(PML4)), -1)
  assert.is(exec(m, load), -1)
  assert.is(m.reg(0) & 0xffn, 0x0an)
})

test('a page that gets code loses its stores', () => {
  const m = machine(BITS, 0x20n)
  warm(m)
  assert.is(exec(m, call, BigInt(VA + 1)), -1)
  assert.is(m.reg(0) & 0xffn, 0x0an)
  assert.not(current(m))
  assert.is(exec(m, change(0x2c)), -1)
  forget(m)
  assert.is(exec(m, change(0x2d)), -1)
  assert.is(exec(m, call, BigInt(VA + 1)), -1)
  assert.is(m.reg(0) & 0xffn, 0x2dn)
})

test('an address that is not canonical is not taken for the one it resembles', () => {
  const m = machine(BITS, 0x20n)
  warm(m)
  for (const bit of [48n, 55n, 63n]) {
    assert.is(exec(m, load, BigInt(VA) | (1n << bit)), 13)
    forget(m)
  }
})

test.run()
