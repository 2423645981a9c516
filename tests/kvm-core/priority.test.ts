/**
 * What comes first at one boundary (SDM vol 3, table 6-2; APM vol 2, 8.5): the trap of the instruction before, SMI, NMI, maskable
 * interrupts, then code breakpoints and faults of the fetch of the next instruction.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { CODE, gate, KCODE64, Machine, PML4, STUBS } from '../system/machine.ts'

const test = suite('priority')
const TABLE = 0x60000
/** Not present. */
const ABSENT = 0x130000
const stub = (vector: number): bigint => BigInt(STUBS + vector * 16)

function machine(): Machine {
  const m = new Machine('long', true)
  for (let i = 0; i < 512; i++) m.poke(TABLE + i * 8, i === ABSENT >> 12 ? 0n : BigInt(i * 4096) | 3n)
  m.poke(PML4 + 0x2000, BigInt(TABLE) | 3n)
  m.changed()
  m.set32(L.CPU_HALTED, 0)
  m.setReg(4, 0x28000n)
  m.code([0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe])
  return m
}
const run = (m: Machine, n: bigint): number => call(m.core, 'vcpuRun', m.s, n) | 0
const interrupt = (m: Machine, vector = 0x30): void => {
  m.core.view.setUint32(m.s + L.VCPU_KVM + L.VKVM_INTERRUPT, 0x100 | vector, true)
  m.core.view.setUint32(m.s + L.CPU_EVENT, m.u32(L.CPU_EVENT) | L.EVENT_INTERRUPT, true)
}
/** RIP that frame `i` from the top holds (40 bytes without error codes, aligned to 16). */
const frame = (m: Machine, i: number): bigint => m.peek(Number(m.reg(4)) + i * 48)

test('an NMI before the page fault of the fetch', () => {
  const m = machine()
  m.set64(L.CPU_RIP, BigInt(ABSENT))
  m.set64(L.CPU_CR2, 0x1234n)
  call(m.core, 'queueNmi', m.s)
  run(m, 1n)
  assert.is(m.rip - 1n, stub(2), 'NMI handler')
  assert.is(frame(m, 0), BigInt(ABSENT))
  assert.is(m.u64(L.CPU_CR2), 0x1234n, 'CR2 is as it was')
})

test('an interrupt before the page fault of the fetch, also when it comes by a timer behind a jump there', () => {
  const m = machine()
  m.set64(L.CPU_RIP, BigInt(ABSENT))
  m.setFlags(0x202n)
  interrupt(m)
  run(m, 1n)
  assert.is(m.rip - 1n, stub(0x30))
  assert.is(frame(m, 0), BigInt(ABSENT))
  // jmp to the absent page as the 5th instruction; the deadline is at the end of any of them.
  for (let at = 1; at <= 5; at++) {
    const t = machine()
    t.code([0x90, 0x90, 0x90, 0x90, 0xe9, ...new Uint8Array(new Int32Array([ABSENT - (CODE + 9)]).buffer)])
    t.setFlags(0x202n)
    const { view } = t.core
    const lapic = t.s + L.VCPU_LAPIC
    view.setUint32(lapic + 0xf0, 0x1ff, true)
    view.setUint32(lapic + 0x320, 0x40, true)
    view.setUint32(lapic + 0x3e0, 0xb, true)
    view.setUint32(lapic + 0x380, at, true)
    view.setBigUint64(lapic + L.LAPIC_TIMER_DEADLINE, BigInt(at), true)
    t.set64(L.CPU_CR2, 0n)
    run(t, BigInt(at + 1))
    assert.is(t.rip - 1n, stub(0x40), `deadline ${at}`)
    assert.is(t.u64(L.CPU_CR2), 0n, `deadline ${at}: CR2`)
    assert.is(frame(t, 0), at === 5 ? BigInt(ABSENT) : BigInt(CODE + at))
  }
})

test('NMI and interrupt before a code breakpoint, whose bits are not in DR6 yet', () => {
  for (const kind of ['NMI', 'interrupt']) {
    const m = machine()
    m.set64(L.CPU_DR, BigInt(CODE))
    m.set64(L.CPU_DR7, 0x401n)
    m.setFlags(0x202n)
    m.changed()
    if (kind === 'NMI') call(m.core, 'queueNmi', m.s)
    else interrupt(m)
    run(m, 1n)
    assert.is(m.rip - 1n, stub(kind === 'NMI' ? 2 : 0x30), kind)
    assert.is(frame(m, 0), BigInt(CODE))
    assert.is(m.u64(L.CPU_DR6) & 15n, 0n, `${kind}: DR6`)
  }
})

test('the single-step trap first, then the NMI before the handler runs, then the interrupt if the gate lets it', () => {
  for (const open of [false, true]) {
    const m = machine()
    if (open) {
      m.idt(1, gate(KCODE64, STUBS + 16, 0x8f))
      m.idt(2, gate(KCODE64, STUBS + 32, 0x8f))
    }
    m.setFlags(0x302n)
    // The instruction runs; during it all come up.
    run(m, 0n)
    m.set64(L.CPU_SLICE_END, m.u64(L.CPU_ICOUNT) + 1n)
    m.set64(L.CPU_BUDGET, m.u64(L.CPU_SLICE_END))
    run(m, 1n)
    call(m.core, 'queueNmi', m.s)
    interrupt(m)
    run(m, 1n)
    if (open) {
      assert.is(m.rip - 1n, stub(0x30))
      assert.is(frame(m, 0), stub(2))
      assert.is(frame(m, 1), stub(1))
      assert.is(frame(m, 2), BigInt(CODE + 1))
    } else {
      assert.is(m.rip - 1n, stub(2))
      assert.is(frame(m, 0), stub(1))
      assert.is(frame(m, 1), BigInt(CODE + 1))
    }
  }
})

test('STI; HLT with an interrupt waiting: HLT is reached, and left behind it', () => {
  const m = machine()
  m.code([0xfb, 0xf4, 0x90, 0xeb, 0xfe])
  interrupt(m)
  run(m, 3n)
  assert.is(m.rip - 1n, stub(0x30))
  assert.is(frame(m, 0), BigInt(CODE + 2))
})

test('an interrupt waits for the fault of the instruction in its shadow, not longer', () => {
  const m = machine()
  // sti; ud2: #UD through a trap gate, then the interrupt before its handler
  m.code([0xfb, 0x0f, 0x0b])
  m.idt(6, gate(KCODE64, STUBS + 6 * 16, 0x8f))
  interrupt(m)
  run(m, 2n)
  assert.is(m.rip - 1n, stub(0x30))
  assert.is(frame(m, 0), stub(6))
  assert.is(frame(m, 1), BigInt(CODE + 1))
})

test.run()
