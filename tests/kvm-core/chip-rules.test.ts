/**
 * Rules of KVM's chips that only show in the run of events: ticks of the PIT made up for, its NMI watchdog, who takes a
 * lowest-priority message, edges at the I/O APIC, widths of port accesses, a divider changed under way, IPIs by hypercall.
 * (Linux 7.3 arch/x86/kvm/i8254.c, i8259.c, ioapic.c, lapic.c)
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { APIC, Board, CODE, IOAPIC } from './board.ts'

const test = suite('rules of the chips')
const HANDLER = 0x2000
const COUNTER = 0x3000

/** A handler for `vector`: inc word [COUNTER]; EOI by `end`; iret. */
function handler(b: Board, vector: number, end: readonly number[]): void {
  b.write(vector * 4, [HANDLER & 255, HANDLER >> 8, 0, 0])
  b.write(HANDLER, [0x50, 0xff, 0x06, COUNTER & 255, COUNTER >> 8, ...end, 0x58, 0xcf])
  b.write(COUNTER, [0, 0])
}
/** mov al, 0x20; out 0x20, al */
const picEoi = [0xb0, 0x20, 0xe6, 0x20]
/** mov dword [0xfee000b0], 0 */
const apicEoi = [0x67, 0x66, 0xc7, 0x05, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0]
const count = (b: Board): number => b.read(COUNTER, 1)[0] as number

/** sti; jmp $ for `ns`, then IF off again. */
function enabled(b: Board, ns: number): number {
  b.write(CODE, [0xfb, 0xeb, 0xfe])
  b.enter(CODE)
  b.run(b.s, BigInt(ns))
  const { x } = b.core
  x['cpuSetFlags']?.(b.s, BigInt.asUintN(64, x['cpuGetFlags']?.(b.s) ?? 0n) & ~0x200n)
  return count(b)
}

/** Channel 0 in mode 2 with 1193 ticks: 999,847 ns. */
function program(b: Board): void {
  b.out(0x43, 0x34)
  b.out(0x40, 1193 & 255)
  b.out(0x40, 1193 >> 8)
}

test('PIT by the PIC: ticks that found interrupts off are made up for, one by one', () => {
  const b = new Board()
  handler(b, 0x20, picEoi)
  b.initPic()
  program(b)
  b.wait(5_400_000)
  assert.is(enabled(b, 100_000), 5)
  // The next one is in time.
  assert.is(enabled(b, 1_000_000), 6)
})

test('KVM_REINJECT_CONTROL off: they are lost', () => {
  const b = new Board()
  call(b.core, 'pitSetReinject', b.vm, 0)
  handler(b, 0x20, picEoi)
  b.initPic()
  program(b)
  b.wait(5_400_000)
  assert.is(enabled(b, 100_000), 1)
})

test('unmasking IRQ 0, and programming the PIT, forget what is owed', () => {
  const b = new Board()
  handler(b, 0x20, picEoi)
  b.initPic()
  program(b)
  b.out(0x21, 1)
  b.wait(5_400_000)
  b.out(0x21, 0)
  // The edge that the PIC latched while masked, and no more.
  assert.is(enabled(b, 100_000), 1)
  b.wait(5_000_000)
  program(b)
  assert.is(enabled(b, 100_000), 2)
})

test('PIT by the I/O APIC: the EOI of the edge acknowledges', () => {
  const b = new Board()
  handler(b, 0x41, apicEoi)
  b.initPic()
  b.out(0x21, 0xff)
  b.store(APIC + 0xf0, 0x1ff)
  b.ioapic(0x11, 0)
  b.ioapic(0x10, 0x41)
  program(b)
  b.wait(4_400_000)
  assert.is(enabled(b, 100_000), 4)
})

test('virtual wire: with LVT0 in NMI mode every tick is an NMI', () => {
  const b = new Board()
  b.write(2 * 4, [HANDLER & 255, HANDLER >> 8, 0, 0])
  b.write(HANDLER, [0xff, 0x06, COUNTER & 255, COUNTER >> 8, 0xcf])
  b.write(COUNTER, [0, 0])
  call(b.core, 'pitSetReinject', b.vm, 0)
  b.initPic()
  b.out(0x21, 0xff)
  b.store(APIC + 0xf0, 0x1ff)
  b.store(APIC + 0x350, 0x400)
  program(b)
  b.wait(3_200_000)
  assert.is(count(b), 3)
})

test('the PIC answers bytes only, the PIT one byte', () => {
  const b = new Board()
  b.initPic()
  b.out(0x21, 0x5a)
  b.setReg(2, 0x20n)
  b.setReg(0, 0xffffn)
  b.step([0xef], b.s) // out dx, ax
  assert.is(b.pic()[2], 0x5a, 'IMR')
  b.setReg(2, 0x21n)
  // A word at 0x21 reaches over the device: not in the kernel; at 0x20 it is 0.
  b.setReg(2, 0x20n)
  b.setReg(0, 0xffffn)
  b.step([0xed], b.s) // in ax, dx
  assert.is(Number(b.reg(0) & 0xffffn), 0)
  b.setReg(2, 0x42n)
  b.out(0x43, 0xb0)
  b.out(0x42, 0x34)
  b.out(0x42, 0x12)
  b.setReg(2, 0x42n)
  b.step([0xed], b.s)
  assert.is(Number((b.reg(0) & 0xff00n) >> 8n), 0, 'one byte, zero-extended')
})

test('lowest priority: the vector chooses among the bits of the destination', () => {
  const b = new Board({ vcpus: 4 })
  b.cpus.forEach((s, i) => {
    b.store(APIC + 0xf0, 0x1ff, s)
    b.store(APIC + 0xd0, (1 << i) << 24, s)
  })
  const taken = (vector: number): number[] => b.cpus.flatMap((s, i) => (b.bit(0x200, vector, s) ? [i] : []))
  // Lowest priority, logical, edge, to all four.
  b.ioapic(0x13, 0x0f000000)
  for (let vector = 0x50; vector < 0x58; vector++) {
    b.ioapic(0x12, 0x900 | vector)
    b.irq(1, 1)
    b.irq(1, 0)
    assert.equal(taken(vector), [vector % 4], `vector ${vector.toString(16)}`)
  }
  // A bit without a CPU is chosen like any other: then nobody takes it.
  b.ioapic(0x13, 0x1f000000)
  for (let vector = 0x60; vector < 0x65; vector++) {
    b.ioapic(0x12, 0x900 | vector)
    b.irq(1, 1)
    b.irq(1, 0)
    assert.equal(taken(vector), vector % 5 === 4 ? [] : [vector % 5], `vector ${vector.toString(16)}`)
  }
  // An MSI with the redirection hint goes to one, too; without it to all.
  const msi = (low: number, vector: number): void => void call(b.core, 'signalMsi', 0xfee00000 | low, 0, vector, b.vm)
  msi((0x0f << 12) | 4 | 8, 0x71)
  assert.equal(taken(0x71), [1])
  msi((0x0f << 12) | 4, 0x72)
  assert.equal(taken(0x72), [0, 1, 2, 3])
  // Physical broadcast with lowest priority is a broadcast.
  b.ioapic(0x13, 0xff000000)
  b.ioapic(0x12, 0x100 | 0x73)
  b.irq(1, 1)
  b.irq(1, 0)
  assert.equal(taken(0x73), [0, 1, 2, 3])
  // Clusters: 0x11, 0x12, 0x21, 0x22.
  b.cpus.forEach((s, i) => {
    b.store(APIC + 0xe0, 0x0fffffff, s)
    b.store(APIC + 0xd0, ((((i >> 1) + 1) << 4) | (1 << (i & 1))) << 24, s)
  })
  b.ioapic(0x13, 0x23000000)
  for (const vector of [0x80, 0x81]) {
    b.ioapic(0x12, 0x900 | vector)
    b.irq(1, 1)
    b.irq(1, 0)
    assert.equal(taken(vector), [2 + (vector % 2)], `cluster, vector ${vector.toString(16)}`)
  }
  // An APIC that is switched off by software takes none.
  b.store(APIC + 0xf0, 0xff, b.cpus[2] as number)
  b.ioapic(0x12, 0x900 | 0x82)
  b.irq(1, 1)
  b.irq(1, 0)
  assert.equal(taken(0x82), [])
})

test('I/O APIC: what KVM_IRQ_LINE_STATUS says of edges, levels and masks', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  const line = (gsi: number, level: number): number => call(b.core, 'irqLine', b.vm, gsi, level) | 0
  // GSI 20 is no PIC's. Masked: ignored, and a falling line forgets the edge.
  assert.is(line(20, 1), -1)
  assert.is(line(20, 1), 0, 'the same edge')
  assert.is(line(20, 0), 1)
  b.ioapic(0x38, 0x62)
  assert.not.ok(b.bit(0x200, 0x62), 'an edge that fell while masked')
  assert.is(line(20, 1), 1)
  assert.ok(b.bit(0x200, 0x62))
  assert.is(line(20, 1), 0)
  line(20, 0)
  // Level: remote IRR holds the second one back; -1 until the EOI.
  b.ioapic(0x3a, 0x8063)
  assert.is(line(21, 1), 1)
  assert.ok(b.ioapic(0x3a) & 0x4000, 'remote IRR')
  assert.is(line(21, 1), -1)
  // Turned to edge, remote IRR is gone; it is how guests clear it.
  b.ioapic(0x3a, 0x0063)
  assert.not.ok(b.ioapic(0x3a) & 0x4000)
  // Remote IRR and delivery status cannot be written.
  b.ioapic(0x3a, 0x1d063)
  assert.is(b.ioapic(0x3a) & 0x5000, 0)
  // Unmasking a level entry whose line is still high delivers.
  line(21, 1)
  b.ioapic(0x3a, 0x18064)
  b.ioapic(0x3a, 0x08064)
  assert.ok(b.bit(0x200, 0x64))
  assert.is(b.load(IOAPIC), 0x3a)
})

test('APIC timer: a divider changed under way keeps the count that is left', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  b.store(APIC + 0x3e0, 0xb)
  b.store(APIC + 0x320, 0x40)
  b.store(APIC + 0x380, 100_000)
  b.wait(40_000)
  const before = b.load(APIC + 0x390)
  b.store(APIC + 0x3e0, 0)
  const after = b.load(APIC + 0x390)
  assert.ok(before - after < 3000 && before >= after, `${before} became ${after}`)
  b.wait(after)
  assert.not.ok(b.bit(0x200, 0x40), 'half as fast now')
  b.wait(after + 5000)
  assert.ok(b.bit(0x200, 0x40))
})

test('KVM_HC_SEND_IPI: 32-bit words outside of long mode, no id wraps round', () => {
  const b = new Board({ vcpus: 3 })
  for (const s of b.cpus) b.store(APIC + 0xf0, 0x1ff, s)
  const send = (low: number, high: number, first: number, icr: number): number => {
    for (const [n, v] of [
      [0, 10],
      [3, low],
      [1, high],
      [2, first],
      [6, icr],
    ] as const)
      b.setReg(n, BigInt(v >>> 0))
    b.step([0x0f, 0x01, 0xd9], b.s)
    return Number(BigInt.asIntN(32, b.reg(0)))
  }
  const taken = (vector: number): number[] => b.cpus.flatMap((s, i) => (b.bit(0x200, vector, s) ? [i] : []))
  assert.is(send(0b101, 0, 0, 0x51), 2)
  assert.equal(taken(0x51), [0, 2])
  assert.is(send(0b11, 0, 1, 0x52), 2)
  assert.equal(taken(0x52), [1, 2])
  assert.is(send(0xffffffff, 0xffffffff, 0xffffffff, 0x53), 0)
  assert.equal(taken(0x53), [])
  assert.is(send(0, 0xffffffff, 0, 0x54), 0, 'the second word begins at id 32')
  assert.is(send(1, 0, 0, 0x800 | 0x55), -22, 'logical')
  assert.is(send(1, 0, 0, 0x40000 | 0x55), -22, 'a shorthand')
})

test.run()
