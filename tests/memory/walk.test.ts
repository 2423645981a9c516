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
  set(field: number, value: bigint): void {
    this.m.core.view.setBigUint64(this.m.s + field, value, true)
  }
  get(field: number): bigint {
    return this.m.core.view.getBigUint64(this.m.s + field, true)
  }
  cpl(n: number): void {
    this.m.core.view.setUint32(this.m.s + L.CPU_CPL, n, true)
    this.select()
  }
  /** As an interrupt or IRET does. */
  privilege(n: number): void {
    this.m.core.view.setUint32(this.m.s + L.CPU_CPL, n, true)
    call(this.m.core, 'selectTlb', this.m.s)
  }
  select(): void {
    call(this.m.core, 'selectTlb', this.m.s)
    call(this.m.core, 'flushTlb', this.m.s)
  }
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
    const vector = core.view.getUint32(s + L.CPU_EXC_VECTOR, true)
    const error = core.view.getUint32(s + L.CPU_EXC_ERROR, true)
    if (vector !== L.EXC_PF) return `#${vector}(${error})`
    assert.is(this.get(L.CPU_CR2), this.get(L.CPU_EFER) & 0x400n ? va : va & 0xffffffffn)
    return `#PF(${['p', 'w', 'u', 'r', 'i'].map((c, i) => ((error >> i) & 1 ? c.toUpperCase() : c)).join('')})`
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

const P = 1n
const W = 2n
const U = 4n
const A = 0x20n
const D = 0x40n
const PS = 0x80n
const G = 0x100n

interface Case {
  readonly entries?: readonly [top: bigint, ...rest: bigint[]]
  readonly cr0?: bigint
  readonly cr4?: bigint
  readonly efer?: bigint
  readonly cpl?: number
  readonly ac?: boolean
  readonly kind: 'r' | 'w' | 'x' | 'sr' | 'sw'
  readonly va?: bigint
  readonly result: string
}

const all = P | W | U
const long: Pick<Case, 'cr0' | 'cr4' | 'efer'> = { cr0: PG | PE | WP, cr4: PAE, efer: LMA | NXE }

/** Flags of the four entries that lead to page 9 at linear address 0x5000 (tables at 0x1000..0x4000). */
const fourLevel: Record<string, Case> = {
  'all rights, user read': { kind: 'r', cpl: 3, result: 'ok' },
  'all rights, user write': { kind: 'w', cpl: 3, result: 'ok' },
  'all rights, user fetch': { kind: 'x', cpl: 3, result: 'ok' },
  'not present in level 4': { entries: [W, all, all, all], kind: 'r', result: '#PF(pwuri)' },
  'not present in level 3': { entries: [all, W, all, all], kind: 'w', result: '#PF(pWuri)' },
  'not present in level 2': { entries: [all, all, W, all], kind: 'x', result: '#PF(pwurI)' },
  'not present in level 1': { entries: [all, all, all, W], kind: 'r', cpl: 3, result: '#PF(pwUri)' },
  'not present, user write': { entries: [all, all, all, 0n], kind: 'w', cpl: 3, result: '#PF(pWUri)' },
  'fetch without NXE and SMEP has no I bit': { entries: [all, all, all, 0n], efer: LMA, kind: 'x', result: '#PF(pwuri)' },
  'fetch with SMEP has the I bit': { entries: [all, all, all, 0n], efer: LMA, cr4: PAE | SMEP, kind: 'x', result: '#PF(pwurI)' },
  'supervisor page, user read': { entries: [all, all, all, P | W], kind: 'r', cpl: 3, result: '#PF(PwUri)' },
  'supervisor in level 4 counts': { entries: [P | W, all, all, all], kind: 'r', cpl: 3, result: '#PF(PwUri)' },
  'supervisor page, user fetch': { entries: [all, all, P | W, all], kind: 'x', cpl: 3, result: '#PF(PwUrI)' },
  'CPL 2 is supervisor': { entries: [all, all, all, P | W], kind: 'r', cpl: 2, result: 'ok' },
  'read-only, user write': { entries: [all, all, all, P | U], kind: 'w', cpl: 3, result: '#PF(PWUri)' },
  'read-only in level 3, user write': { entries: [all, P | U, all, all], kind: 'w', cpl: 3, result: '#PF(PWUri)' },
  'read-only, supervisor write with WP': { entries: [all, all, all, P | U], kind: 'w', result: '#PF(PWuri)' },
  'read-only, supervisor write without WP': { entries: [all, all, all, P | U], cr0: PG | PE, kind: 'w', result: 'ok' },
  'WP does not help the user': { entries: [all, all, all, P | U], cr0: PG | PE, cpl: 3, kind: 'w', result: '#PF(PWUri)' },
  'NX, fetch': { entries: [all, all, all, all | NX], kind: 'x', result: '#PF(PwurI)' },
  'NX in level 2, user fetch': { entries: [all, all, all | NX, all], kind: 'x', cpl: 3, result: '#PF(PwUrI)' },
  'NX, read': { entries: [all, all, all, all | NX], kind: 'r', result: 'ok' },
  'NX without NXE is reserved': { entries: [all, all, all, all | NX], efer: LMA, kind: 'r', result: '#PF(PwuRi)' },
  'reserved beats permission': { entries: [all, all, all, P | NX], efer: LMA, kind: 'w', cpl: 3, result: '#PF(PWURi)' },
  'reserved address bit in level 4': { entries: [all | (1n << 45n), all, all, all], kind: 'r', result: '#PF(PwuRi)' },
  'reserved address bit in level 1': { entries: [all, all, all, all | (1n << 51n)], kind: 'r', cpl: 3, result: '#PF(PwURi)' },
  'PS in level 4 is reserved': { entries: [all | PS, all, all, all], kind: 'r', result: '#PF(PwuRi)' },
  'G in level 4 is reserved (AMD)': { entries: [all | G, all, all, all], kind: 'r', result: '#PF(PwuRi)' },
  'G in a level 3 table pointer is reserved (AMD)': { entries: [all, all | G, all, all], kind: 'r', result: '#PF(PwuRi)' },
  '1 GiB page with low address bits': { entries: [all, all | PS, all, all], kind: 'r', result: '#PF(PwuRi)' },
  '2 MiB page with low address bits': { entries: [all, all, all | PS | 0x2000n, all], kind: 'r', result: '#PF(PwuRi)' },
  'ignored bits 62:52 and 11:9': { entries: [all | 0x7ff0000000000e00n, all, all, all | 0x7ff0000000000e00n], kind: 'r', result: 'ok' },
  'SMEP, fetch from a user page': { cr4: PAE | SMEP, kind: 'x', result: '#PF(PwurI)' },
  'SMEP, fetch from a page that is supervisor in level 2': { cr4: PAE | SMEP, entries: [all, all, P | W, all], kind: 'x', result: 'ok' },
  'SMEP, user fetch': { cr4: PAE | SMEP, kind: 'x', cpl: 3, result: 'ok' },
  'SMAP, read': { cr4: PAE | SMAP, kind: 'r', result: '#PF(Pwuri)' },
  'SMAP, write': { cr4: PAE | SMAP, kind: 'w', result: '#PF(PWuri)' },
  'SMAP with AC': { cr4: PAE | SMAP, ac: true, kind: 'w', result: 'ok' },
  'SMAP, implicit access ignores AC': { cr4: PAE | SMAP, ac: true, kind: 'sr', result: '#PF(Pwuri)' },
  'SMAP does not concern fetches': { cr4: PAE | SMAP, kind: 'x', result: 'ok' },
  'SMAP, supervisor page': { cr4: PAE | SMAP, entries: [all, P | W, all, all], kind: 'w', result: 'ok' },
  'SMAP, user access': { cr4: PAE | SMAP, kind: 'r', cpl: 3, result: 'ok' },
  'implicit access at CPL 3 is supervisor': { entries: [all, all, all, P | W], kind: 'sw', cpl: 3, result: 'ok' },
  'implicit access at CPL 3, error code': { entries: [all, all, all, 0n], kind: 'sw', cpl: 3, result: '#PF(pWuri)' },
  'not canonical': { kind: 'r', va: 0x0000800000000000n, result: '#13(0)' },
  'not canonical, high': { kind: 'w', va: 0xffff7fffffffffffn, result: '#13(0)' },
  'not canonical, alias of a mapped page': { kind: 'r', va: 0x8000000000005000n, result: '#13(0)' },
}

function setUp(c: Case, defaults: Pick<Case, 'cr0' | 'cr4' | 'efer'>, levels: number): Guest {
  const g = new Guest()
  g.set(L.CPU_CR0, c.cr0 ?? defaults.cr0 ?? 0n)
  g.set(L.CPU_CR4, c.cr4 ?? defaults.cr4 ?? 0n)
  g.set(L.CPU_EFER, c.efer ?? defaults.efer ?? 0n)
  g.set(L.CPU_EFLAGS, c.ac ? AC : 0n)
  g.m.core.view.setBigUint64(g.m.vm + L.VM_PHYS_MASK, (1n << 40n) - 1n, true)
  g.set(L.CPU_CR3, 0x1000n)
  const flags = c.entries ?? Array.from({ length: levels }, () => all)
  for (let i = 0; i < levels; i++) {
    const last = i === levels - 1
    g.poke((i + 1) * 0x1000 + (last ? 5 * 8 : 0), BigInt(last ? 0x9000 : (i + 2) * 0x1000) | (flags[i] ?? all))
  }
  g.cpl(c.cpl ?? 0)
  return g
}

for (const [name, c] of Object.entries(fourLevel)) {
  test(`4 levels: ${name}`, () => {
    const g = setUp(c, long, 4)
    assert.is(g.access(c.kind, c.va ?? 0x5000n), c.result)
    // The same from the TLB, and after other accesses have filled it.
    for (const other of ['r', 'x', 'w', 'sr'] as const) g.access(other, 0x5000n)
    assert.is(g.access(c.kind, c.va ?? 0x5000n), c.result, 'second time')
  })
}

test('stack accesses that are not canonical raise #SS', () => {
  const g = setUp({ kind: 'r', result: '' }, long, 4)
  g.m.core.view.setUint8(OP + L.OP_SEG, L.SEG_SS)
  assert.is(g.access('r', 0x8000000000005000n), '#12(0)')
})

test('5 levels', () => {
  const g = setUp({ kind: 'r', result: '' }, { ...long, cr4: PAE | LA57 }, 5)
  g.poke(0x9000, 0x77n)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x5000n, 8), 0x77n)
  assert.is(g.access('r', 0x0000800000000000n), '#PF(pwuri)')
  assert.is(g.access('r', 0x0100000000000000n), '#13(0)')
})

test('accessed and dirty bits', () => {
  const g = setUp({ kind: 'r', result: '' }, long, 4)
  // A walk that faults leaves the way there alone, too, and caches nothing of it.
  g.poke(0x4030, 0x9000n | P | U)
  assert.is(g.access('r', 0x7000n), '#PF(pwuri)')
  assert.is(g.access('w', 0x6000n), '#PF(PWuri)')
  assert.equal(
    [0x1000, 0x2000, 0x3000].map((at) => g.peek(at) & A),
    [0n, 0n, 0n],
  )
  assert.is(g.access('r', 0x5000n), 'ok')
  assert.is(g.peek(0x1000), 0x2000n | all | A)
  assert.is(g.peek(0x2000), 0x3000n | all | A)
  assert.is(g.peek(0x3000), 0x4000n | all | A)
  assert.is(g.peek(0x4028), 0x9000n | all | A)
  assert.is(g.access('w', 0x5000n), 'ok')
  assert.is(g.peek(0x4028), 0x9000n | all | A | D)
  // A fault leaves the leaf alone.
  g.poke(0x4030, 0x9000n | P | U)
  assert.is(g.access('w', 0x6000n), '#PF(PWuri)')
  assert.is(g.peek(0x4030), 0x9000n | P | U)
  // Probing sets nothing.
  assert.is(call64(g.m.core, 'probe', g.m.s, 0x6123n), 0x9123n)
  assert.is(g.peek(0x4030), 0x9000n | P | U)
  assert.is(call64(g.m.core, 'probe', g.m.s, 0x7123n), 0xffffffffffffffffn)
})

for (const [supervisor, user] of [
  [10, 10],
  [200, 0],
  [200, 100],
  [40, 300],
  [512, 512],
] as const) {
  test(`CR0.WP takes write tags away, and the flush after it everything else: ${supervisor} and ${user} pages`, () => {
    const g = setUp({ kind: 'r', result: '' }, { ...long, cr0: PG | PE }, 4)
    const { core, s } = g.m
    for (let i = 0; i < 512; i++) g.poke(0x4000 + i * 8, 0x9000n | P | U)
    const write = (on: boolean): void => {
      g.set(L.CPU_CR0, PG | PE | (on ? WP : 0n))
      call(core, 'writeProtectionChanged', s)
    }
    for (let round = 0; round < 3; round++) {
      write(false)
      g.privilege(0)
      for (let i = 0; i < supervisor; i++) assert.is(g.access('w', BigInt(i) << 12n), 'ok')
      g.privilege(3)
      for (let i = 0; i < user; i++) assert.is(g.access('r', BigInt(i) << 12n), 'ok')
      write(true)
      g.privilege(0)
      for (let i = 0; i < supervisor; i++) assert.is(g.access('w', BigInt(i) << 12n), '#PF(PWuri)')
      for (let i = 0; i < supervisor; i++) assert.is(g.access('r', BigInt(i) << 12n), 'ok')
    }
    for (let i = 0; i < 512; i++) g.poke(0x4000 + i * 8, 0n)
    call(core, 'flushTlb', s)
    for (const cpl of [0, 3]) {
      g.privilege(cpl)
      for (let i = 0; i < 512; i++) assert.is(g.access('r', BigInt(i) << 12n), cpl ? '#PF(pwUri)' : '#PF(pwuri)')
    }
  })
}

test('an array that is filled only once the list of fills is full is flushed, too', () => {
  const g = setUp({ kind: 'r', result: '' }, long, 4)
  const { core, s } = g.m
  for (let i = 0; i < 512; i++) g.poke(0x4000 + i * 8, 0x9000n | P | U | A)
  assert.is(g.access('r', 0x1ff000n), 'ok')
  g.privilege(0)
  for (let i = 0; i < 1000; i++) {
    call(core, 'invalidatePage', s, 0x6000n)
    assert.is(g.access('r', 0x6000n), 'ok')
  }
  assert.is(g.access('r', 0x5000n), 'ok')
  g.privilege(3)
  assert.is(call(core, 'quickFill', s, 0x5000n, 5), 1)
  g.poke(0x4028, 0n)
  call(core, 'flushTlb', s)
  assert.is(g.access('r', 0x5000n), '#PF(pwUri)')
})

test('2 MiB and 1 GiB pages', () => {
  const g = setUp({ kind: 'r', result: '' }, long, 4)
  g.poke(0x3008, 0x200000n | all | PS)
  g.poke(0x2008, 0n | all | PS)
  g.poke(0x234568, 0xabcn)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x234568n, 8), 0xabcn)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x40234568n, 8), 0xabcn)
  assert.is(g.access('w', 0x40234568n, 8), 'ok')
  assert.is(g.peek(0x2008), all | PS | A | D)
  assert.is(call64(g.m.core, 'probe', g.m.s, 0x40fedcban), 0xfedcban)
  // INVLPG of any address in a large page takes all of it away.
  g.poke(0x3008, 0x400000n | all | PS)
  g.poke(0x434568, 0xdefn)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x234568n, 8), 0x5an, 'stale as long as nothing invalidates')
  call(g.m.core, 'invalidatePage', g.m.s, 0x3ff000n)
  assert.is(call64(g.m.core, 'readMem', g.m.s, OP, 0x234568n, 8), 0xdefn)
})

test('32-bit paging', () => {
  const make = (c: Partial<Case>, pde: bigint, pte: bigint): Guest => {
    const g = new Guest()
    g.set(L.CPU_CR0, c.cr0 ?? PG | PE | WP)
    g.set(L.CPU_CR4, c.cr4 ?? PSE)
    g.m.core.view.setBigUint64(g.m.vm + L.VM_PHYS_MASK, (1n << 36n) - 1n, true)
    g.set(L.CPU_CR3, 0x1000n)
    g.poke(0x1000 + 4 * 0x300, pde, 4) // 0xc0000000
    g.poke(0x2000 + 4 * 5, pte, 4)
    g.cpl(c.cpl ?? 0)
    return g
  }
  const va = 0xc0005000n
  assert.is(make({}, 0x2000n | all, 0x9000n | all).access('r', va), 'ok')
  assert.is(make({}, 0x2000n | all, 0x9000n | P).access('w', va), '#PF(PWuri)')
  assert.is(make({ cr0: PG | PE }, 0x2000n | all, 0x9000n | P).access('w', va), 'ok')
  assert.is(make({ cpl: 3 }, 0x2000n | P, 0x9000n | all).access('r', va), '#PF(PwUri)')
  assert.is(make({}, 0x2000n, 0n).access('r', va), '#PF(pwuri)')
  assert.is(make({}, 0x2000n | all, 0n).access('x', va), '#PF(pwuri)')
  const big = make({}, 0x400000n | all | PS, 0n)
  big.poke(0x405010, 0x99n)
  assert.is(call64(big.m.core, 'readMem', big.m.s, OP, 0xc0005010n, 8), 0x99n)
  assert.is(big.access('w', va), 'ok')
  assert.is(big.peek(0x1c00) & 0xffffffffn, 0x400000n | all | PS | A | D)
  assert.is(make({}, 0x600000n | all | PS, 0n).access('r', va), '#PF(PwuRi)')
  // PSE-36: bits 20:13 are address bits 39:32; 36 bits of address here.
  assert.is(make({}, 0x400000n | all | PS | (0x2000n << 4n), 0n).access('r', va), '#PF(PwuRi)')
  // Without CR4.PSE bit 7 means nothing.
  assert.is(make({ cr4: 0n }, 0x2000n | all | PS, 0x9000n | all).access('r', va), 'ok')
})

test('PAE paging', () => {
  const make = (pdpte: bigint, pde: bigint, pte: bigint, c: Partial<Case> = {}): Guest => {
    const g = new Guest()
    g.set(L.CPU_CR0, PG | PE | WP)
    g.set(L.CPU_CR4, c.cr4 ?? PAE)
    g.set(L.CPU_EFER, c.efer ?? NXE)
    g.m.core.view.setBigUint64(g.m.vm + L.VM_PHYS_MASK, (1n << 40n) - 1n, true)
    g.set(L.CPU_CR3, 0x1020n) // the PDPT is 32-byte aligned
    g.poke(0x1020 + 3 * 8, pdpte)
    g.poke(0x2000, pde)
    g.poke(0x3000 + 5 * 8, pte)
    g.cpl(c.cpl ?? 0)
    return g
  }
  const va = 0xc0005000n
  assert.is(make(0x2001n, 0x3000n | all, 0x9000n | all).access('w', va), 'ok')
  assert.is(make(0x2001n, 0x3000n | all, 0x9000n | all, { cpl: 3 }).access('w', va), 'ok', 'a PDPTE has no rights')
  assert.is(make(0x2000n, 0x3000n | all, 0x9000n | all).access('r', va), '#PF(pwuri)')
  assert.is(make(0x2003n, 0x3000n | all, 0x9000n | all).access('r', va), '#PF(PwuRi)')
  assert.is(make(0x2001n, 0x3000n | all | (1n << 52n), 0x9000n | all).access('r', va), '#PF(PwuRi)')
  assert.is(make(0x2001n, 0x3000n | all, 0x9000n | all | NX).access('x', va), '#PF(PwurI)')
  assert.is(make(0x2001n, 0x3000n | all, 0x9000n | all | NX, { efer: 0n }).access('r', va), '#PF(PwuRi)')
  assert.is(make(0x2001n, 0x400000n | all | PS, 0n).access('w', va), 'ok')
  assert.is(make(0x2001n, 0x402000n | all | PS, 0n).access('w', va), '#PF(PWuRi)')
  const g = make(0x2001n, 0x3000n | all, 0x9000n | all)
  g.access('w', va)
  assert.is(g.peek(0x1038), 0x2001n, 'PDPTEs have no A bit')
  assert.is(g.peek(0x3028), 0x9000n | all | A | D)
})

test('INVLPG of one page empties the paging-structure cache', () => {
  const g = setUp({ kind: 'r', result: '' }, long, 4)
  const read = (va: bigint): bigint => call64(g.m.core, 'readMem', g.m.s, OP, va, 8)
  g.poke(0x9000, 1n)
  g.poke(0x3008, 0x6000n | all) // second page table, at 2 MiB
  g.poke(0x6000, 0xa000n | all)
  g.poke(0x6008, 0x9000n | all | A)
  g.poke(0xa000, 2n)
  assert.is(read(0x200000n), 2n)
  // Another directory: page 1 of that region was never translated, its table pointer was cached.
  g.poke(0x2000, 0x7000n | all)
  g.poke(0x7000, 0x4000n | all)
  g.poke(0x7008, 0x8000n | all)
  g.poke(0x8000, 0x9000n | all)
  g.poke(0x8008, 0xa000n | all)
  assert.is(read(0x201000n), 1n, 'through the cached pointer')
  for (let i = 0; i < 600; i++) {
    // generations of the cache wrap
    call(g.m.core, 'invalidatePage', g.m.s, 0x5000n)
    if (i === 0) call(g.m.core, 'invalidatePage', g.m.s, 0x201000n)
    assert.is(read(0x201000n), 2n, `round ${i}`)
  }
})

test('tables outside of any slot read as ones', () => {
  const g = setUp({ kind: 'r', result: '' }, long, 4)
  g.poke(0x1008, 0x80000000n | all)
  assert.is(g.access('r', 0x8000000000n), '#PF(PwuRi)')
})

test('global entries survive CR3, others do not', () => {
  const g = setUp({ kind: 'r', result: '' }, { ...long, cr4: PAE | PGE }, 4)
  g.poke(0x4030, 0xa000n | all | G)
  g.poke(0x9000, 1n)
  g.poke(0xa000, 2n)
  const read = (va: bigint): bigint => call64(g.m.core, 'readMem', g.m.s, OP, va, 8)
  assert.is(read(0x5000n), 1n)
  assert.is(read(0x6000n), 2n)
  g.poke(0x4028, 0xb000n | all)
  g.poke(0x4030, 0xb000n | all | G)
  g.poke(0xb000, 3n)
  assert.is(read(0x5000n), 1n)
  call(g.m.core, 'flushTlbLocal', g.m.s)
  assert.is(read(0x5000n), 3n)
  assert.is(read(0x6000n), 2n)
  call(g.m.core, 'invalidatePage', g.m.s, 0x6000n)
  assert.is(read(0x6000n), 3n)
  for (let i = 0; i < 200; i++) {
    // generations wrap
    g.poke(0x4028, i & 1 ? 0x9000n | all : 0xa000n | all)
    call(g.m.core, i % 3 ? 'flushTlbLocal' : 'flushTlb', g.m.s)
    assert.is(read(0x5000n), i & 1 ? 1n : 2n, `round ${i}`)
  }
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
  assert.is(g.access('r', 0xffff800000006010n), '#PF(pwuri)')
  assert.is(g.access('r', 0x0080000000000000n), '#13(0)')
  assert.is(call64(g.m.core, 'probe', g.m.s, 0xffff800000005123n), 0x9123n)
})

test.run()
