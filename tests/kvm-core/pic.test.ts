/**
 * The in-kernel pair of 8259As: initialisation, EOIs, rotation, modes, poll, spurious interrupts. "8259A" is Intel's data sheet
 * 231468-003, "KVM" arch/x86/kvm/i8259.c of Linux, which decides where they differ (special mask mode is kept without effect,
 * a poll ends its interrupt at once).
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { APIC, Board, CODE } from './board.ts'

const test = suite('8259A')

// Bytes of struct kvm_pic_state.
const LAST_IRR = 0
const IRR = 1
const IMR = 2
const ISR = 3
const PRIORITY_ADD = 4
const IRQ_BASE = 5
const READ_ISR = 6
const POLL = 7
const SPECIAL_MASK = 8
const INIT_STATE = 9
const AUTO_EOI = 10
const ROTATE_AEOI = 11
const FULLY_NESTED = 12
const INIT4 = 13

function board(): Board {
  const b = new Board()
  b.initPic()
  return b
}
const edge = (b: Board, irq: number): void => {
  b.irq(irq, 1)
  b.irq(irq, 0)
}
/** The vector that a CPU takes with interrupts on, -1 if none. */
function take(b: Board, s = b.s): number {
  const { x } = b.core
  for (let vector = 0x20; vector < 0x30; vector++) {
    const at = 0x2000 + vector * 16
    b.write(vector * 4, [at & 255, at >> 8, 0, 0])
    b.write(at, [0xc6, 0x06, 0x00, 0x30, vector, 0xeb, 0xfe]) // mov byte [0x3000], vector; jmp $
  }
  b.write(0x3000, [0])
  b.write(CODE, [0xfb, 0xeb, 0xfe]) // sti; jmp $
  b.setReg(4, 0x7000n, s)
  b.enter(CODE, s)
  b.run(s, 50n)
  x['cpuSetFlags']?.(s, BigInt.asUintN(64, x['cpuGetFlags']?.(s) ?? 0n) & ~0x200n)
  return b.read(0x3000, 1)[0] || -1
}
const state = (b: Board, at: number, slave = 0): number => b.pic(slave)[at] as number

test('ICW1 to ICW4 (8259A "Initialization Command Words"): base, states, what they reset', () => {
  const b = board()
  edge(b, 3)
  b.irq(5, 1)
  b.out(0x21, 0xff)
  b.out(0x20, 0xc2)
  b.out(0x20, 0x0b)
  b.out(0x20, 0x68)
  assert.equal(
    [PRIORITY_ADD, READ_ISR, SPECIAL_MASK].map((at) => state(b, at)),
    [3, 1, 1],
  )
  b.out(0x20, 0x11) // ICW1, ICW4 needed
  // "The edge sense circuit is reset, IMR cleared, IR7 lowest priority, special mask mode cleared, status read set to IRR"
  assert.equal(
    [LAST_IRR, IRR, IMR, PRIORITY_ADD, READ_ISR, SPECIAL_MASK, INIT_STATE, INIT4].map((at) => state(b, at)),
    [0, 0, 0, 0, 0, 0, 1, 1],
  )
  b.out(0x21, 0x77) // T7..T3 only
  assert.equal([state(b, IRQ_BASE), state(b, INIT_STATE)], [0x70, 2])
  b.out(0x21, 4)
  assert.is(state(b, INIT_STATE), 3)
  b.out(0x21, 0x13) // ICW4: SFNM and AEOI
  assert.equal(
    [AUTO_EOI, FULLY_NESTED, INIT_STATE].map((at) => state(b, at)),
    [1, 1, 0],
  )
  // Without ICW4 its functions are set to zero, and ICW3 is the last.
  b.out(0x20, 0x10)
  assert.equal(
    [AUTO_EOI, FULLY_NESTED, INIT4].map((at) => state(b, at)),
    [0, 0, 0],
  )
  b.out(0x21, 0x20)
  b.out(0x21, 4)
  assert.is(state(b, INIT_STATE), 0)
  b.out(0x21, 0xa5)
  assert.is(b.in(0x21), 0xa5, 'OCW1 again')
})

test('ICW1 keeps level requests and the in-service register (KVM kvm_pic_reset)', () => {
  const b = board()
  b.out(0x4d0, 0x20)
  b.irq(5, 1)
  edge(b, 3)
  edge(b, 0)
  assert.is(take(b), 0x20)
  b.out(0x20, 0x11)
  assert.equal([state(b, IRR), state(b, ISR)], [0x20, 1])
})

test('fully nested: priorities, service, non-specific EOI (8259A "Fully Nested Mode")', () => {
  const b = board()
  for (const irq of [6, 3, 4]) edge(b, irq)
  assert.is(take(b), 0x23)
  assert.is(take(b), -1, 'equal and lower wait')
  edge(b, 3)
  assert.is(take(b), -1)
  edge(b, 1)
  assert.is(take(b), 0x21, 'a higher one does not')
  assert.is(state(b, ISR), 0x0a)
  b.out(0x20, 0x20)
  assert.is(state(b, ISR), 0x08, 'the highest in service')
  assert.is(take(b), -1)
  b.out(0x20, 0x20)
  assert.equal([take(b), state(b, ISR)], [0x23, 8])
  b.out(0x20, 0x60 | 5)
  assert.is(state(b, ISR), 8, 'specific EOI of another')
  b.out(0x20, 0x60 | 3)
  assert.equal([state(b, ISR), take(b)], [0, 0x24])
})

// OCW2 (8259A figure 8), in service before, what is left, the lowest priority afterwards (PRIORITY_ADD = lowest + 1)
const OCW2: readonly (readonly [name: string, value: number, isr: number, add: number, after: number, addAfter: number])[] = [
  ['non-specific EOI', 0x20, 0x14, 0, 0x10, 0],
  ['non-specific EOI by rotated priority', 0x20, 0x14, 3, 0x04, 3],
  ['specific EOI', 0x64, 0x14, 0, 0x04, 0],
  ['rotate on non-specific EOI', 0xa0, 0x14, 0, 0x10, 3],
  ['rotate on non-specific EOI, nothing in service', 0xa0, 0, 2, 0, 2],
  ['rotate on specific EOI', 0xe4, 0x14, 0, 0x04, 5],
  ['rotate on specific EOI of IR7', 0xe7, 0x84, 0, 0x04, 0],
  ['set priority', 0xc4, 0x14, 0, 0x14, 5],
  ['set priority: IR7 lowest', 0xc7, 0x14, 5, 0x14, 0],
  ['no operation', 0x40, 0x14, 2, 0x14, 2],
]
for (const [name, value, isr, add, after, addAfter] of OCW2) {
  test(`OCW2 ${name}`, () => {
    const b = board()
    const bytes = b.pic()
    bytes[ISR] = isr
    bytes[PRIORITY_ADD] = add
    b.setPic(bytes)
    b.out(0x20, value)
    assert.equal([state(b, ISR), state(b, PRIORITY_ADD)], [after, addAfter])
  })
}

test('rotated priorities decide who is taken and who may interrupt (8259A "Automatic Rotation")', () => {
  const b = board()
  b.out(0x20, 0xc0 | 4) // IR4 lowest, IR5 highest
  for (const irq of [3, 4, 6]) edge(b, irq)
  assert.is(take(b), 0x26)
  edge(b, 5)
  assert.is(take(b), 0x25)
  edge(b, 0)
  assert.is(take(b), -1, 'IR0 comes behind 7 now')
  b.out(0x20, 0xa0)
  assert.is(state(b, PRIORITY_ADD), 6)
})

test('automatic EOI, with and without rotation (8259A "Automatic End of Interrupt")', () => {
  const b = board()
  b.out(0x20, 0x11)
  for (const v of [0x20, 4, 3]) b.out(0x21, v)
  b.out(0x21, 0)
  edge(b, 4)
  assert.equal([take(b), state(b, ISR), state(b, PRIORITY_ADD)], [0x24, 0, 0])
  b.out(0x20, 0x80)
  assert.is(state(b, ROTATE_AEOI), 1)
  edge(b, 4)
  assert.equal([take(b), state(b, ISR), state(b, PRIORITY_ADD)], [0x24, 0, 5])
  b.out(0x20, 0)
  edge(b, 2 + 4)
  assert.equal([take(b), state(b, PRIORITY_ADD)], [0x26, 5])
})

test('special mask mode: kept, but in service still inhibits (KVM pic_get_irq ignores it; 8259A would let IR5 through)', () => {
  const b = board()
  edge(b, 3)
  assert.is(take(b), 0x23)
  b.out(0x20, 0x68)
  b.out(0x21, 8)
  edge(b, 5)
  assert.equal([state(b, SPECIAL_MASK), take(b)], [1, -1])
  b.out(0x20, 0x48)
  assert.is(state(b, SPECIAL_MASK), 0)
  b.out(0x20, 0x28) // ESMM 0: SMM is don't care
  assert.is(state(b, SPECIAL_MASK), 0)
})

test('special fully nested master: a higher request of the slave interrupts the slave (8259A "Special Fully Nested Mode")', () => {
  for (const nested of [false, true]) {
    const b = board()
    b.out(0x20, 0x11)
    for (const v of [0x20, 4, nested ? 0x11 : 1]) b.out(0x21, v)
    b.out(0x21, 0)
    edge(b, 12)
    assert.is(take(b), 0x2c)
    edge(b, 9)
    assert.is(take(b), nested ? 0x29 : -1)
  }
})

test('cascade: EOI to both; a spurious request of the slave is its IR7 and leaves IR2 in service (8259A "Cascade Mode")', () => {
  const b = board()
  edge(b, 14)
  assert.equal([take(b), state(b, ISR), state(b, ISR, 1)], [0x2e, 4, 0x40])
  b.out(0xa0, 0x20)
  b.out(0x20, 0x20)
  assert.equal([state(b, ISR), state(b, ISR, 1)], [0, 0])
  b.out(0x4d1, 0x10)
  b.irq(12, 1)
  b.irq(12, 0)
  assert.equal([take(b), state(b, ISR), state(b, ISR, 1)], [0x2f, 4, 0])
})

test('a level that is gone before it is taken leaves nothing behind: INTR falls with it (KVM pic_update_irq)', () => {
  const b = board()
  b.out(0x4d0, 0x20)
  b.irq(5, 1)
  b.irq(5, 0)
  assert.equal([take(b), state(b, IRR), state(b, ISR)], [-1, 0, 0])
})

test('poll (8259A "Poll Command"): bit 7 and the level, 7 without a request; KVM ends it at once', () => {
  const b = board()
  for (const [irq, port, value] of [
    [6, 0x20, 0x86],
    [11, 0xa0, 0x83],
  ] as const) {
    b.out(port, 0x0c)
    assert.equal([state(b, POLL, port >> 7), b.in(port)], [1, 7])
    edge(b, irq)
    b.out(port, 0x0c)
    assert.is(b.in(port | 1), value, 'either port answers')
    assert.equal([state(b, IRR), state(b, IRR, 1), state(b, ISR), state(b, ISR, 1)], [0, 0, 0, 0])
    assert.is(take(b), -1)
    assert.is(state(b, POLL, port >> 7), 0)
  }
})

test('a mask holds the request back and does not lose it; both registers are read by OCW3 (8259A "OCW1", "OCW3")', () => {
  const b = board()
  b.out(0x21, 0x10)
  assert.is(call(b.core, 'irqLine', b.vm, 4, 1) | 0, -1, 'masked here and in the I/O APIC')
  assert.is(take(b), -1)
  assert.is(b.in(0x20), 0x10)
  b.out(0x21, 0)
  assert.is(take(b), 0x24)
  b.out(0x20, 0x0b)
  assert.is(b.in(0x20), 0x10)
  b.out(0x20, 0x08)
  assert.is(b.in(0x20), 0x10, 'RR 0: no action')
  b.out(0x20, 0x0a)
  assert.is(b.in(0x20), 0)
})

test('edge and level (ELCR): an edge is taken once, a level for as long as it lasts (KVM pic_set_irq1)', () => {
  const b = board()
  b.irq(4, 1)
  assert.is(take(b), 0x24)
  b.out(0x20, 0x20)
  b.irq(4, 1)
  assert.is(take(b), -1)
  b.out(0x4d0, 0x20)
  b.irq(5, 1)
  assert.is(take(b), 0x25)
  b.out(0x20, 0x20)
  assert.is(take(b), 0x25, 'still there')
  b.irq(5, 0)
  b.out(0x20, 0x20)
  assert.is(take(b), -1)
  // Results of KVM_IRQ_LINE_STATUS: the I/O APIC's pin is masked (-1), so this is the PIC's.
  assert.is(call(b.core, 'irqLineStatus', b.vm, 5, 1), 1)
  assert.is(call(b.core, 'irqLineStatus', b.vm, 5, 1), 0, 'coalesced')
})

test('INTR reaches whoever takes ExtINT: LVT0 in that mode, or an APIC switched off (kvm_apic_accept_pic_intr)', () => {
  const b = new Board({ vcpus: 2 })
  b.initPic()
  const [bsp, ap] = b.cpus as [number, number]
  const taken = (): number[] => {
    b.out(0x20, 0x20)
    edge(b, 4)
    return [ap, bsp].map((s) => take(b, s))
  }
  assert.equal(taken(), [-1, 0x24])
  b.store(APIC + 0xf0, 0x1ff, ap)
  b.store(APIC + 0x350, 0x700, ap)
  b.store(APIC + 0x350, 0x10700, bsp)
  assert.equal(taken(), [0x24, -1])
  b.store(APIC + 0x350, 0x10700, ap)
  assert.equal(taken(), [-1, -1])
  b.core.view.setBigUint64(ap + L.CPU_APIC_BASE, 0xfee00000n, true)
  assert.equal(taken(), [0x24, -1])
})

test.run()
