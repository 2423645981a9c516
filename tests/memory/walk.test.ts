/** Page walks: every paging mode, every error code, accessed and dirty bits, the TLB in front of them. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { bareMachine, call, call64, L, type Bare } from '../support/core.ts'

const test = suite('page walks')

const PG = 0x80000000n
const PE = 1n
const WP = 0x10000n
const PSE = 0x10n
const PAE = 0x20n
const PGE = 0x80n
const LA57 = 0x1000n
const SMEP = 0x100000n
const SMAP = 0x200000n
const LMA = 0x500n
const NXE = 0x800n
const AC = 0x40000n
const NX = 1n << 63n
const OP = 0x8000 // an op in the bare core's static area: segment DS, memory operand

/** A machine whose RAM can be read and written by guest-physical address. */
class Guest {
  readonly m: Bare
  constructor(pages = 4096) {
    this.m = bareMachine(pages)
    this.m.core.view.setUint8(OP + L.OP_SEG, L.SEG_DS)
  }
  set(field: number, value: bigint): void { this.m.core.view.setBigUint64(this.m.s + field, value, true) }
  get(field: number): bigint { return this.m.core.view.getBigUint64(this.m.s + field, true) }
  cpl(n: number): void { this.m.core.view.setUint32(this.m.s + L.CPU_CPL, n, true); this.select() }
  select(): void { call(this.m.core, 'selectTlb', this.m.s); call(this.m.core, 'flushTlb', this.m.s) }
  poke(gpa: number, value: bigint, size = 8): void {
    this.m.core.view.setBigUint64(L.STAGING, value, true)
    assert.is(call(this.m.core, 'backingWrite', this.m.backing, BigInt(gpa), L.STAGING, size), 0)
  }
  peek(gpa: number): bigint {
    call(this.m.core, 'backingRead', this.m.backing, BigInt(gpa), L.STAGING, 8)
    return this.m.core.view.getBigUint64(L.STAGING, true)
  }
  /** 'ok', or '#vector(error)' with CR2 for a page fault. */
  access(kind: 'r' | 'w' | 'x' | 'sr' | 'sw', va: bigint, size = 1): string {
    const { core, s } = this.m
    core.view.setUint32(s + L.CPU_LEAVE, 0, true)
    core.view.setUint32(s + L.CPU_EXC_VECTOR, 0, true)
    if (kind === 'r') call64(core, 'readMem', s, OP, va, size)
    else if (kind === 'w') call(core, 'writeMem', s, OP, va, size, 0x5an)
    else if (kind === 'x') call(core, 'fetchAddress', s, va)
    else if (kind === 'sr') call64(core, 'sysRead', s, va, size)
    else call(core, 'sysWrite', s, va, size, 0x5an)
    const leave = core.view.getUint32(s + L.CPU_LEAVE, true)
    if (leave === 0) return 'ok'
    if (leave !== L.LEAVE_FAULT) return `leave ${leave}`
    return 'fault'
  }
}

test('real mode is the identity', () => {
  const g = new Guest()
  g.poke(0x12345, 0x1122334455667788n)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x12345n, 8), 0x1122334455667788n)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x12345n, 4), 0x55667788n)
  assert.is(call(g.m.core, 'writeMem', g.m.s, OP, 0x1fffcn, 8, 0x0102030405060708n), 0)
  assert.is(g.peek(0x1fffc), 0x0102030405060708n)
  assert.is(call64(g.m.core, 'probe', g.m.s, 0x1fffcn), 0x1fffcn)
})

test('4-level mapping', () => {
  const g = new Guest()
  g.set(L.CPU_CR0, PG | PE | WP)
  g.set(L.CPU_CR4, PAE)
  g.set(L.CPU_EFER, LMA | NXE)
  g.set(L.CPU_CR3, 0x1000n)
  g.poke(0x1000 + 8 * 0x100, 0x2003n) // va 0xffff800000000000
  g.poke(0x2000, 0x3003n)
  g.poke(0x3000, 0x4003n)
  g.poke(0x4000 + 8 * 5, 0x9003n)
  g.select()
  g.poke(0x9010, 0xcafen)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0xffff800000005010n, 8), 0xcafen)
  assert.is(g.peek(0x4000 + 8 * 5), 0x9023n)
  assert.is(g.peek(0x3000), 0x4023n)
  assert.is(g.access('w', 0xffff800000005010n), 'ok')
  assert.is(g.peek(0x4000 + 8 * 5), 0x9063n)
  assert.is(g.access('r', 0xffff800000006010n), 'fault')
  assert.is(g.access('r', 0x0080000000000000n), 'fault')
  assert.is(call64(g.m.core, 'probe', g.m.s, 0xffff800000005123n), 0x9123n)
})

test.run()
export { PGE, PSE, LA57, SMEP, SMAP, AC, NX }
