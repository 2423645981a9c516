/**
 * The in-kernel local APIC: registers and their masks, the timer in its three modes beside TSC_ADJUST, IPIs to oneself and by
 * shorthand, what it does without an error register. "APM" is AMD's manual volume 2, chapter 16, "SDM" Intel's volume 3,
 * "KVM" arch/x86/kvm/lapic.c of Linux, which decides where they differ.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { APIC, Board, CODE } from './board.ts'

const test = suite('local APIC')
const DEADLINE = 0x40000
const PERIODIC = 0x20000

function board(vcpus = 1): Board {
  const b = new Board({ vcpus })
  for (const s of b.cpus) b.store(APIC + 0xf0, 0x1ff, s)
  return b
}
const reg = (b: Board, at: number, s = b.s): number => b.core.view.getUint32(s + L.VCPU_LAPIC + at, true)
const irr = (b: Board, vector: number, s = b.s): boolean => (reg(b, 0x200 + (vector >> 5) * 16, s) & (1 << (vector & 31))) !== 0
const clear = (b: Board, s = b.s): void => void b.core.bytes.fill(0, s + L.VCPU_LAPIC + 0x200, s + L.VCPU_LAPIC + 0x280)
/** As KVM_GET_MSRS and KVM_SET_MSRS: null if refused. */
const msr = (b: Board, index: number, value?: bigint, s = b.s): bigint | null => {
  if (value !== undefined) b.core.view.setBigUint64(L.STAGING, value, true)
  if (!call(b.core, value === undefined ? 'msrGet' : 'msrSet', s, index)) return null
  return value ?? b.core.view.getBigUint64(L.STAGING, true)
}
/** WRMSR by the guest. False: #GP. */
function wrmsr(b: Board, index: number, value: bigint, s = b.s): boolean {
  b.setReg(1, BigInt(index), s)
  b.setReg(0, value & 0xffffffffn, s)
  b.setReg(2, value >> 32n, s)
  b.write(0x2200, [0x90])
  b.write(13 * 4, [0, 0x22, 0, 0])
  b.setReg(4, 0x7000n, s)
  b.write(CODE, [0x0f, 0x30, 0x90, 0x90])
  b.enter(CODE, s)
  b.run(s, 2n)
  return b.rip(s) < 0x2200
}
function x2apic(b: Board): void {
  for (const s of b.cpus) assert.ok(wrmsr(b, 0x1b, 0xfee00c00n | (s === b.s ? 0x100n : 0n), s))
}

// Written as ones and as zeros with the APIC enabled by software: what is read (KVM apic_lvt_mask, kvm_lapic_reg_write).
const WRITES: readonly (readonly [at: number, name: string, ones: number, zeros: number])[] = [
  [0x20, 'ID', 0xff000000, 0],
  [0x30, 'version, read-only: 14h, six LVT entries', 0x00050014, 0x00050014],
  [0x80, 'TPR', 0xff, 0],
  [0x90, 'APR reads as 0', 0, 0],
  [0xd0, 'LDR', 0xff000000, 0],
  [0xe0, 'DFR', 0xffffffff, 0x0fffffff],
  [0xf0, 'SVR without directed EOI', 0x3ff, 0],
  [0x280, 'ESR holds nothing', 0, 0],
  [0x310, 'ICR high', 0xff000000, 0],
  [0x320, 'LVT timer: one shot, periodic and TSC deadline', 0x710ff, 0],
  [0x330, 'LVT thermal', 0x117ff, 0],
  [0x340, 'LVT performance', 0x117ff, 0],
  [0x350, 'LVT LINT0', 0x1f7ff, 0],
  [0x360, 'LVT LINT1', 0x1f7ff, 0],
  [0x370, 'LVT error', 0x110ff, 0],
  [0x3e0, 'TDCR', 0x0b, 0],
  [0x2f0, 'LVT CMCI is not there', 0, 0],
  [0x3f0, 'self-IPI is not there in xAPIC mode', 0, 0],
]
test('registers: what writes of ones and zeros leave', () => {
  for (const [at, name, ones, zeros] of WRITES) {
    const b = board()
    for (const [value, expected] of [
      [0xffffffff, ones],
      [0, zeros],
    ] as const) {
      b.store(APIC + at, value)
      assert.is(b.load(APIC + at), expected, `${name}, ${value}`)
      if (at === 0xf0) b.store(APIC + at, 0x1ff)
    }
  }
})

test('SVR.8 off masks all LVT entries and keeps them so (APM 16.4.7; KVM apic_set_spiv)', () => {
  const b = board()
  for (let at = 0x320; at <= 0x370; at += 16) b.store(APIC + at, 0x31)
  b.store(APIC + 0xf0, 0xff)
  for (let at = 0x320; at <= 0x370; at += 16) {
    assert.is(b.load(APIC + at), 0x10031)
    b.store(APIC + at, 0x32)
    assert.is(b.load(APIC + at), 0x10032)
  }
  b.store(APIC + 0xf0, 0x1ff)
  assert.is(b.load(APIC + 0x320), 0x10032, 'and they stay masked')
})

test('APR reads 0 whatever KVM_SET_LAPIC brought (KVM __apic_read)', () => {
  const b = board()
  call(b.core, 'lapicGet', b.s, L.STAGING)
  b.core.view.setUint32(L.STAGING + 0x90, 0x55, true)
  call(b.core, 'lapicSet', b.s, L.STAGING)
  assert.is(b.load(APIC + 0x90), 0)
})

test('accesses: bytes and words inside a register, none across, writes of 32 bits only (KVM kvm_lapic_reg_read, apic_mmio_write)', () => {
  const b = board()
  b.store(APIC + 0x350, 0x1a7ff)
  const read = (code: number[], at: number): number => {
    b.setReg(3, BigInt(APIC + at))
    b.setReg(0, 0xffffffffn)
    b.step([0x67, ...code], b.s)
    return Number(b.reg(0) & 0xffffffffn)
  }
  assert.is(read([0x8a, 0x03], 0x351) & 0xff, 0xa7)
  assert.is(read([0x8b, 0x03], 0x351) & 0xffff, 0x01a7)
  b.store(APIC + 0xd0, 0xff000000)
  assert.is(read([0x8a, 0x03], 0xd3) & 0xff, 0xff)
  assert.is(read([0x8b, 0x03], 0xd3) & 0xffff, 0, 'across the register')
  assert.is(read([0x66, 0x8b, 0x03], 0x354), 0, 'behind it')
  b.setReg(3, BigInt(APIC + 0x350))
  b.setReg(0, 0x44n)
  b.step([0x67, 0x89, 0x03], b.s)
  assert.is(b.load(APIC + 0x350), 0x1a7ff, 'a word is not written')
})

// Timer ----------------------------------------------------------------------------------------------------------------------

for (const [tdcr, divisor] of [
  [0, 2],
  [1, 4],
  [2, 8],
  [3, 16],
  [8, 32],
  [9, 64],
  [10, 128],
  [11, 1],
] as const) {
  test(`divider ${tdcr.toString(2)}: by ${divisor} (APM table 16-4)`, () => {
    const b = board()
    b.store(APIC + 0x3e0, tdcr)
    b.store(APIC + 0x320, 0x31)
    b.store(APIC + 0x380, 0x100000)
    b.wait(1_000_000)
    const spent = 0x100000 - b.load(APIC + 0x390)
    const expected = 1_000_000 / divisor
    assert.ok(spent >= expected && spent < expected + 8000 / divisor + 2, `${spent}`)
  })
}

test('one shot: fires once, the count stays 0; initial count 0 stops it (APM 16.4.1)', () => {
  const b = board()
  b.store(APIC + 0x3e0, 11)
  b.store(APIC + 0x320, 0x31)
  b.store(APIC + 0x380, 100_000)
  b.wait(120_000)
  assert.equal([irr(b, 0x31), b.load(APIC + 0x390), b.load(APIC + 0x380)], [true, 0, 100_000])
  clear(b)
  b.wait(500_000)
  assert.is(irr(b, 0x31), false)
  b.store(APIC + 0x380, 100_000)
  b.store(APIC + 0x380, 0)
  b.wait(500_000)
  assert.equal([irr(b, 0x31), b.load(APIC + 0x390)], [false, 0])
})

test('periodic: reloads; a period below 200 us is made 200 us (KVM limit_periodic_timer_frequency), also when the mode is changed under way', () => {
  const b = board()
  b.store(APIC + 0x3e0, 11)
  const ticks = (ns: number): number => {
    let n = 0
    for (let at = 0; at < ns; at += 10_000) {
      b.wait(10_000)
      if (irr(b, 0x31)) n++
      clear(b)
    }
    return n
  }
  b.store(APIC + 0x320, PERIODIC | 0x31)
  b.store(APIC + 0x380, 400_000)
  assert.is(ticks(2_100_000), 5)
  b.store(APIC + 0x380, 50_000)
  assert.is(ticks(2_100_000), 10)
  b.store(APIC + 0x320, 0x31)
  b.store(APIC + 0x380, 50_000)
  b.store(APIC + 0x320, PERIODIC | 0x31)
  assert.is(ticks(1_000_000), 5, 'the first after 50 us, then every 200')
})

test('masked: runs without a request; unmasked later it does not fire for what is past', () => {
  const b = board()
  b.store(APIC + 0x3e0, 11)
  b.store(APIC + 0x320, 0x10031)
  b.store(APIC + 0x380, 100_000)
  b.wait(150_000)
  b.store(APIC + 0x320, 0x31)
  b.wait(150_000)
  assert.is(irr(b, 0x31), false)
})

test('another divider after a one-shot timer ran down: KVM arms it with nothing left (update_target_expiration)', () => {
  const b = board()
  b.store(APIC + 0x3e0, 11)
  b.store(APIC + 0x320, 0x31)
  b.store(APIC + 0x380, 100_000)
  b.wait(150_000)
  clear(b)
  b.store(APIC + 0x3e0, 11)
  b.wait(1000)
  assert.is(irr(b, 0x31), false, 'the same divider')
  b.store(APIC + 0x3e0, 0)
  b.wait(1000)
  assert.is(irr(b, 0x31), true)
})

// LVT timer, current count, ns until it fires (set_target_expiration with APIC_TMCCT)
for (const [lvtt, count, due] of [
  [0x31, 50_000, 50_000],
  [0x31, 2_000_000, 1_000_000], // never more than the initial count
  [0x31, 0, 0], // has run down: at once
  [PERIODIC | 0x31, 300_000, 300_000],
  [PERIODIC | 0x31, 0, 1_000_000],
] as const) {
  test(`KVM_SET_LAPIC, LVT timer ${lvtt.toString(16)} with ${count} of 1000000 left: fires after ${due}`, () => {
    const b = board()
    call(b.core, 'lapicGet', b.s, L.STAGING)
    for (const [at, value] of [
      [0x320, lvtt],
      [0x380, 1_000_000],
      [0x390, count],
      [0x3e0, 11],
    ] as const)
      b.core.view.setUint32(L.STAGING + at, value, true)
    call(b.core, 'lapicSet', b.s, L.STAGING)
    assert.is(reg(b, 0x390), 0)
    call(b.core, 'lapicGet', b.s, L.STAGING)
    assert.is(b.core.view.getUint32(L.STAGING + 0x390, true), due)
    if (due > 0) {
      b.wait(due - 1000)
      assert.is(irr(b, 0x31), false)
    }
    b.wait(2000)
    assert.is(irr(b, 0x31), true)
    clear(b)
    b.wait(999_000)
    assert.is(irr(b, 0x31), lvtt !== 0x31, 'the next one')
  })
}

const TSC = 0x10
const ADJUST = 0x3b
const TSC_DEADLINE = 0x6e0
test('TSC deadline: fires when the TSC gets there and reads 0 then; past values fire at once, 0 disarms (SDM 11.5.4.1)', () => {
  const b = board()
  b.store(APIC + 0x320, DEADLINE | 0x31)
  const tsc = (): bigint => msr(b, TSC) as bigint
  wrmsr(b, TSC_DEADLINE, tsc() + 200_000n) // 100 us
  assert.is.not(msr(b, TSC_DEADLINE), 0n)
  b.wait(90_000)
  assert.is(irr(b, 0x31), false)
  b.wait(20_000)
  assert.equal([irr(b, 0x31), msr(b, TSC_DEADLINE)], [true, 0n])
  clear(b)
  wrmsr(b, TSC_DEADLINE, 1n)
  b.wait(100)
  assert.is(irr(b, 0x31), true)
  clear(b)
  wrmsr(b, TSC_DEADLINE, tsc() + 200_000n)
  wrmsr(b, TSC_DEADLINE, 0n)
  b.wait(200_000)
  assert.is(irr(b, 0x31), false)
  assert.equal([b.load(APIC + 0x380), b.load(APIC + 0x390)], [0, 0])
  b.store(APIC + 0x380, 5)
  assert.is(b.load(APIC + 0x380), 0, 'the initial count is not written in this mode (KVM)')
})

test('TSC deadline and TSC_ADJUST: an armed deadline stays where it is (KVM sw timer), a new one goes by the TSC of now', () => {
  for (const adjust of [1_000_000n, -1_000_000n]) {
    const b = board()
    b.wait(2_000_000)
    b.store(APIC + 0x320, DEADLINE | 0x31)
    const before = msr(b, TSC) as bigint
    wrmsr(b, TSC_DEADLINE, before + 200_000n)
    assert.ok(wrmsr(b, ADJUST, BigInt.asUintN(64, adjust)))
    const moved = (msr(b, TSC) as bigint) - before - adjust
    assert.ok(moved > 0n && moved < 20_000n, `${moved}`)
    b.wait(80_000)
    assert.is(irr(b, 0x31), false)
    b.wait(30_000)
    assert.is(irr(b, 0x31), true)
    clear(b)
    wrmsr(b, TSC_DEADLINE, (msr(b, TSC) as bigint) + 200_000n)
    b.wait(80_000)
    assert.is(irr(b, 0x31), false)
    b.wait(30_000)
    assert.is(irr(b, 0x31), true)
  }
})

test('modes: to or from TSC deadline stops and clears the timer, between the others it goes on (KVM apic_update_lvtt)', () => {
  const b = board()
  b.store(APIC + 0x3e0, 11)
  b.store(APIC + 0x320, 0x31)
  b.store(APIC + 0x380, 300_000)
  assert.is(msr(b, TSC_DEADLINE), 0n, 'reads 0 in another mode')
  wrmsr(b, TSC_DEADLINE, 1n)
  assert.is(irr(b, 0x31), false, 'and is not written')
  b.store(APIC + 0x320, DEADLINE | 0x31)
  b.wait(400_000)
  assert.equal([irr(b, 0x31), b.load(APIC + 0x380)], [false, 0])
  wrmsr(b, TSC_DEADLINE, (msr(b, TSC) as bigint) + 200_000n)
  b.store(APIC + 0x320, PERIODIC | 0x31)
  b.wait(400_000)
  assert.is(irr(b, 0x31), false)
  b.store(APIC + 0x380, 300_000)
  b.store(APIC + 0x320, 0x32)
  b.wait(400_000)
  assert.is(irr(b, 0x32), true)
})

test('a disabled APIC has no TSC deadline: reads 0, writes are dropped (KVM kvm_apic_present)', () => {
  const b = board()
  b.store(APIC + 0x320, DEADLINE | 0x31)
  wrmsr(b, TSC_DEADLINE, (msr(b, TSC) as bigint) + 2_000_000n)
  assert.ok(wrmsr(b, 0x1b, 0xfee00100n))
  assert.is(msr(b, TSC_DEADLINE), 0n)
  wrmsr(b, TSC_DEADLINE, 5n)
  assert.ok(wrmsr(b, 0x1b, 0xfee00900n))
  assert.ok((msr(b, TSC_DEADLINE) as bigint) > 5n)
})

// IPIs -----------------------------------------------------------------------------------------------------------------------

test('self-IPI: by shorthand in both modes, by its own MSR in x2APIC mode, whose upper bits are reserved (SDM 11.12.11)', () => {
  const b = board(2)
  const [, ap] = b.cpus as [number, number]
  b.store(APIC + 0x300, 0x40051)
  assert.equal([irr(b, 0x51), irr(b, 0x51, ap), b.load(APIC + 0x300)], [true, false, 0x40051])
  x2apic(b)
  clear(b)
  for (const [value, ok] of [
    [0x52n, true],
    [0x152n, false],
    [0x1_0000_0052n, false],
  ] as const) {
    assert.is(wrmsr(b, 0x83f, value), ok, value.toString(16))
    assert.is(irr(b, 0x52), true)
  }
  assert.is(msr(b, 0x83f), null, 'write-only')
  assert.is(reg(b, 0x300), 0x40051, 'ICR does not show it')
})

test('shorthands (APM 16.5, bits 19:18), also without a destination field; lowest priority picks one (KVM kvm_irq_delivery_to_apic)', () => {
  const targets = (icr: number): number[] => {
    const b = board(4)
    b.store(APIC + 0x300, icr)
    return b.cpus.flatMap((s, i) => (irr(b, icr & 0xff, s) ? [i] : []))
  }
  assert.equal(targets(0x40051), [0])
  assert.equal(targets(0x80051), [0, 1, 2, 3])
  assert.equal(targets(0xc0051), [1, 2, 3])
  for (const vector of [0x50, 0x51, 0x52, 0x53]) {
    assert.equal(targets(0x80100 | vector), [vector % 4])
    assert.equal(targets(0xc0100 | vector), [1 + (vector % 3)])
  }
})

test('destinations of x2APICs: the cluster counts, the id has 32 bits, also of a CPU in xAPIC mode (KVM kvm_apic_match_dest)', () => {
  const b = board(2)
  const [bsp, ap] = b.cpus as [number, number]
  x2apic(b)
  const sent = (icr: bigint): boolean[] => {
    for (const s of b.cpus) clear(b, s)
    assert.ok(wrmsr(b, 0x830, icr, bsp))
    return b.cpus.map((s) => irr(b, 0x51, s))
  }
  for (const [destination, logical, expected] of [
    [0x0000_0001n, true, [true, false]],
    [0x0000_0003n, true, [true, true]],
    [0x0001_0001n, true, [false, false]],
    [0xffff_ffffn, true, [true, true]],
    [1n, false, [false, true]],
    [0xffn, false, [false, false]],
    [0xffff_ffffn, false, [true, true]],
  ] as const)
    assert.equal(sent((destination << 32n) | (logical ? 0x4851n : 0x4051n)), expected, `${destination.toString(16)} ${logical}`)
  // Ids from 9 on: LDR has the cluster above and one of 16 bits below.
  b.core.view.setUint32(ap + L.CPU_ID, 0x119, true)
  assert.is(msr(b, 0x1b, 0xfee00900n, ap), 0xfee00900n)
  assert.equal(sent((0x119n << 32n) | 0x4051n), [false, true], 'in xAPIC mode')
  x2apic(b)
  assert.equal([reg(b, 0x20, ap), reg(b, 0xd0, ap)], [0x119, (0x11 << 16) | (1 << 9)])
  assert.equal(sent((0x0011_0200n << 32n) | 0x4851n), [false, true])
})

test('NMIs that wait: two, one beside a handler (KVM process_nmi)', () => {
  for (const [blocked, waiting] of [
    [0, 2],
    [1, 1],
  ] as const) {
    const b = board(2)
    const ap = b.cpus[1] as number
    b.core.view.setUint32(ap + L.CPU_NMI_BLOCKED, blocked, true)
    for (let i = 0; i < 3; i++) b.store(APIC + 0x300, 0xc4400)
    assert.equal([b.kvm32(L.VKVM_NMI_PENDING, ap), b.kvm32(L.VKVM_NMI_PENDING)], [waiting, 0])
  }
})

test('ICR: delivery status is never busy; a level that is de-asserted sends nothing (APM 16.5; KVM __apic_accept_irq)', () => {
  const b = board()
  b.store(APIC + 0x300, 0x41051)
  assert.is(b.load(APIC + 0x300), 0x40051)
  clear(b)
  b.store(APIC + 0x300, 0x48051)
  assert.is(irr(b, 0x51), false)
  b.store(APIC + 0x300, 0x4c051)
  assert.is(irr(b, 0x51), true)
  assert.is(reg(b, 0x180 + 32) & 0x20000, 0x20000, 'TMR')
  b.store(APIC + 0x300, 0x40051)
  assert.is(reg(b, 0x180 + 32) & 0x20000, 0)
})

test('illegal vectors: KVM has no error register, they are requested and never taken; LVT error never fires (APM 16.4.6 would)', () => {
  const b = board()
  b.store(APIC + 0x370, 0x33)
  for (const vector of [0, 15]) b.store(APIC + 0x300, 0x40000 | vector)
  b.store(APIC + 0x320, 5)
  b.store(APIC + 0x280, 0)
  assert.equal([b.load(APIC + 0x280), irr(b, 0x33), irr(b, 15), irr(b, 0)], [0, false, true, true])
  b.write(CODE, [0xfb, 0xeb, 0xfe])
  b.enter(CODE)
  b.run(b.s, 1000n)
  assert.ok(b.rip() < 0x1100, 'no interrupt')
})

test('x2APIC: reserved bits of the ICR and of the other registers are #GP; ESR takes 0 alone (KVM X2APIC_ICR_RESERVED_BITS)', () => {
  const b = board()
  x2apic(b)
  for (const [index, value, ok] of [
    [0x830, 0x40051n, true],
    [0x830, 0x42051n, false],
    [0x830, 0x50051n, false],
    [0x830, 0x60051n, false],
    [0x830, 0x140051n, false],
    [0x830, 0x80040051n, false],
    [0x830, 0xffffffff_00040051n, true],
    [0x828, 0n, true],
    [0x828, 1n, false],
    [0x808, 0x1_0000_0000n, false],
    [0x808, 0x20n, true],
    [0x802, 0n, false],
    [0x80d, 0n, false],
    [0x80e, 0n, false],
    [0x831, 0n, false],
    [0x80b, 0n, true],
    [0x839, 0n, false],
  ] as const)
    assert.is(wrmsr(b, index, value), ok, `${index.toString(16)} ${value.toString(16)}`)
  for (const index of [0x809, 0x80b, 0x80e, 0x831, 0x83f, 0x82f]) assert.is(msr(b, index), null, index.toString(16))
  assert.is(msr(b, 0x80d), 1n)
  assert.is(msr(b, 0x830), 0xffffffff_00040051n)
})

// from, to, allowed for the guest, for userspace (APM 16.9; KVM kvm_apic_set_base)
test('APIC base: transitions between disabled, xAPIC and x2APIC, and reserved bits', () => {
  const [off, on, wide, wrong] = [0xfee00100n, 0xfee00900n, 0xfee00d00n, 0xfee00500n]
  for (const [from, to, guest, host] of [
    [off, on, true, true],
    [off, wide, false, true],
    [off, wrong, false, false],
    [on, off, true, true],
    [on, wide, true, true],
    [on, wrong, false, false],
    [wide, off, true, true],
    [wide, on, false, true],
    [wide, wide, true, true],
    [on, on | 0x200n, false, false],
    [on, on | (1n << 40n), false, false],
    [on, 0xfee10900n, true, true],
  ] as const) {
    const b = board()
    for (const asGuest of [true, false]) {
      assert.is(msr(b, 0x1b, from), from, from.toString(16))
      const done = asGuest ? wrmsr(b, 0x1b, to) : msr(b, 0x1b, to) !== null
      assert.is(done, asGuest ? guest : host, `${from.toString(16)} to ${to.toString(16)}, ${asGuest ? 'guest' : 'userspace'}`)
      assert.is(msr(b, 0x1b), done ? to : from)
    }
  }
})

test('priorities: TPR and service bound what is taken, PPR shows it (APM 16.6.4)', () => {
  for (const [tpr, inService, request, ppr, taken] of [
    [0, -1, 0x31, 0, true],
    [0x2f, -1, 0x31, 0x2f, true],
    [0x30, -1, 0x31, 0x30, false],
    [0x31, -1, 0x3f, 0x31, false],
    [0x20, 0x35, 0x41, 0x30, true],
    [0x20, 0x35, 0x3f, 0x30, false],
    [0x35, 0x38, 0x41, 0x35, true],
    [0x45, 0x38, 0x41, 0x45, false],
  ] as const) {
    const b = board()
    b.store(APIC + 0x80, tpr)
    if (inService >= 0) b.core.view.setUint32(b.s + L.VCPU_LAPIC + 0x100 + (inService >> 5) * 16, 1 << (inService & 31), true)
    assert.is(b.load(APIC + 0xa0), ppr, `PPR of ${tpr.toString(16)}, ${inService.toString(16)}`)
    b.store(APIC + 0x300, 0x40000 | request)
    b.write(request * 4, [0x00, 0x20, 0, 0])
    b.write(0x2000, [0xeb, 0xfe])
    b.setReg(4, 0x7000n)
    b.write(CODE, [0xfb, 0xeb, 0xfe])
    b.enter(CODE)
    b.run(b.s, 100n)
    assert.is(b.rip() === 0x2000, taken, `${tpr.toString(16)} ${inService.toString(16)} ${request.toString(16)}`)
  }
})

test.run()
