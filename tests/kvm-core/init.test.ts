/**
 * INIT and SIPI in every state a vCPU can be in (kvm_apic_accept_events, kvm_vcpu_reset of Linux 7.3): what INIT forgets and what it
 * keeps, who starts by a SIPI and who does not notice it, NMIs that come meanwhile.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { GPR, Guest } from './guest.ts'

const test = suite('init')
/** Two vCPUs; the first can write its ICR by hand. NMI -> 0x3000: inc dx; iret. SIPI vector 5 -> 0x5000: inc bx; jmp $. */
function pair(): { g: Guest; a: number; b: number; icr: (low: number) => void; b64: (at: number, value: bigint) => void } {
  const g = new Guest({ irqchip: true, vcpus: 2, pages: 512 })
  const [a = 0, b = 0] = g.cpus
  const { view } = g.core
  g.write(2 * 4, [0x00, 0x30, 0x00, 0x00])
  g.write(0x3000, [0x42, 0xcf])
  g.write(0x5000, [0x43, 0xeb, 0xfe])
  g.write(0x1000, [0xfb, 0xf4, 0x40, 0xeb, 0xfd]) // sti; hlt; inc ax; jmp
  // The first one's code: mov [es:bx], eax with ES over the local APIC.
  g.write(0x4000, [0x26, 0x66, 0x89, 0x07, 0xeb, 0xfe])
  g.enter(0x4000, a)
  view.setBigUint64(a + L.CPU_SEGMENTS + L.SEG_ES * 16 + L.SEG_BASE, 0xfee00000n, true)
  const icr = (low: number): void => {
    for (const [at, value] of [
      [0x310, 1 << 24],
      [0x300, low],
    ] as const) {
      view.setBigUint64(a + L.CPU_RIP, 0x4000n, true)
      g.setReg(GPR.RBX, BigInt(at), a)
      g.setReg(GPR.RAX, BigInt(value), a)
      g.run(a, 1n)
    }
  }
  return { g, a, b, icr, b64: (at, value) => view.setBigUint64(b + at, value, true) }
}
const INIT = 0x4500
const SIPI = 0x4605
const NMI = 0x4400

const running = (g: Guest, s: number): void => {
  g.core.view.setUint32(s + L.CPU_HALTED, 0, true)
  g.enter(0x1000, s)
}

test('INIT finds a vCPU running, halted, in a shadow, in an NMI handler: each waits for SIPI in the state after reset', () => {
  for (const state of ['running', 'halted', 'shadow', 'nmi', 'uninitialised']) {
    const { g, b, icr } = pair()
    const { view } = g.core
    if (state !== 'uninitialised') running(g, b)
    if (state === 'halted') g.run(b, 2n)
    if (state === 'halted') assert.is(g.u32(L.CPU_HALTED, b), 3)
    if (state === 'shadow') g.run(b, 1n)
    if (state === 'shadow') assert.is(g.u32(L.CPU_INTERRUPT_SHADOW, b), 1)
    if (state === 'nmi') {
      call(g.core, 'queueNmi', b)
      g.run(b, 1n)
      assert.is(g.u32(L.CPU_NMI_BLOCKED, b), 1)
    }
    g.setReg(GPR.RSI, 0x1234n, b)
    icr(INIT)
    g.run(b, 100n)
    assert.is(g.u32(L.CPU_HALTED, b), 2, `${state}: waits for SIPI`)
    assert.is(g.rip(b), 0xfff0)
    assert.is(g.reg(GPR.RSI, b), 0n)
    assert.equal([g.u32(L.CPU_INTERRUPT_SHADOW, b), g.u32(L.CPU_NMI_BLOCKED, b)], [0, 0])
    icr(SIPI)
    g.run(b, 10n)
    assert.is(g.u32(L.CPU_HALTED, b), 0, `${state}: started`)
    assert.is(view.getUint16(b + L.CPU_SEGMENTS + L.SEG_CS * 16 + L.SEG_SELECTOR, true), 0x500)
    assert.is(g.reg(GPR.RBX, b), 1n)
    // The second is not noticed.
    icr(SIPI)
    g.run(b, 10n)
    assert.is(g.reg(GPR.RBX, b), 1n, `${state}: started once`)
    assert.is(g.rip(b), 1)
  }
})

test('a SIPI without INIT is lost, also one that comes before it', () => {
  const { g, b, icr } = pair()
  running(g, b)
  icr(SIPI)
  g.run(b, 2n)
  assert.is(g.u32(L.CPU_HALTED, b), 3, 'its own HLT')
  icr(INIT)
  g.run(b, 10n)
  assert.is(g.u32(L.CPU_HALTED, b), 2)
})

test('INIT forgets what waited: NMIs, injected interrupts and exceptions, traps, clocks in memory', () => {
  const { g, b, icr, b64 } = pair()
  const { view } = g.core
  running(g, b)
  const kvm = (field: number, value: number): void => view.setUint32(b + L.VCPU_KVM + field, value, true)
  kvm(L.VKVM_NMI_PENDING, 2)
  kvm(L.VKVM_INTERRUPT, 0x320)
  kvm(L.VKVM_HELD, L.HELD_EXCEPTION | L.HELD_NMI)
  kvm(L.VKVM_HELD_VECTOR, 6)
  view.setUint32(b + L.CPU_PENDING_DB, 0x4000, true)
  b64(L.CPU_XSS, 0x800n)
  b64(L.CPU_XCR0, 7n)
  b64(L.CPU_CR2, 0x1234n)
  for (const field of [L.VKVM_PV_CLOCK, L.VKVM_STEAL, L.VKVM_APF_ENABLE, L.VKVM_APF_VECTOR, L.VKVM_PV_EOI]) b64(L.VCPU_KVM + field, 0x8001n)
  icr(INIT)
  g.run(b, 10n)
  assert.is(g.u32(L.CPU_HALTED, b), 2)
  assert.equal(
    [L.VKVM_NMI_PENDING, L.VKVM_INTERRUPT, L.VKVM_HELD].map((field) => g.kvm32(field, b)),
    [0, 0, 0],
  )
  assert.is(g.u32(L.CPU_PENDING_DB, b), 0)
  assert.equal(
    [L.VKVM_PV_CLOCK, L.VKVM_STEAL, L.VKVM_APF_ENABLE, L.VKVM_APF_VECTOR, L.VKVM_PV_EOI].map((field) => g.kvm64(field, b)),
    [0n, 0n, 0n, 0n, 0n],
  )
  assert.is(g.u64(L.CPU_XSS, b), 0x800n, 'XSS stays')
  assert.is(g.u64(L.CPU_XCR0, b), 7n, 'XCR0 stays')
  assert.is(g.u64(L.CPU_CR2, b), 0n)
})

test('an NMI while waiting for SIPI is taken when it starts', () => {
  const { g, b, icr } = pair()
  running(g, b)
  icr(INIT)
  g.run(b, 10n)
  icr(NMI)
  assert.is(g.run(b, 10n), -4)
  assert.is(g.u32(L.CPU_HALTED, b), 2, 'it does not wake')
  icr(SIPI)
  g.run(b, 3n)
  assert.is(g.reg(GPR.RDX, b) & 0xffffn, BigInt(g.u64(2 * 8, b)) & 0xffffn, 'the handler ran')
  assert.is(g.reg(GPR.RBX, b), 1n)
})

test('a halted vCPU takes an NMI with interrupts off, and goes on behind HLT', () => {
  const { g, b, icr } = pair()
  running(g, b)
  g.write(0x1000, [0xfa, 0xf4, 0x40, 0xf4]) // cli; hlt; inc ax; hlt
  g.setReg(GPR.RDX, 0n, b)
  g.run(b, 2n)
  assert.is(g.u32(L.CPU_HALTED, b), 3)
  icr(NMI)
  g.run(b, 4n)
  assert.is(g.reg(GPR.RDX, b), 1n)
  assert.is(g.reg(GPR.RAX, b) & 0xffffn, 1n)
  assert.is(g.u32(L.CPU_HALTED, b), 3)
})

test('an IRET that faults unblocks NMIs like one that does not (svm_complete_interrupts: RIP is another)', () => {
  const g = new Guest({ irqchip: true })
  g.core.view.setUint32(g.s + L.CPU_HALTED, 0, true)
  g.write(2 * 4, [0x00, 0x30, 0x00, 0x00])
  g.write(13 * 4, [0x00, 0x31, 0x00, 0x00])
  g.write(12 * 4, [0x00, 0x31, 0x00, 0x00])
  // mov sp, ffffh; iret: its frame passes the limit (#SS)
  g.write(0x3000, [0xbc, 0xff, 0xff, 0xcf])
  // The handler of the fault: mov sp, 6000h; inc dx; jmp $
  g.write(0x3100, [0xbc, 0x00, 0x60, 0x42, 0xeb, 0xfe])
  g.write(0x1000, [0xeb, 0xfe])
  g.enter(0x1000)
  g.setReg(GPR.RDX, 0n)
  call(g.core, 'queueNmi', g.s)
  g.run(g.s, 1n)
  assert.is(g.u32(L.CPU_NMI_BLOCKED), 1)
  call(g.core, 'queueNmi', g.s)
  g.run(g.s, 0n)
  assert.is(g.kvm32(L.VKVM_NMI_PENDING), 1, 'it waits')
  // IRET retires nothing; the one instruction is the NMI handler's first, before any of the fault's handler.
  g.run(g.s, 1n)
  assert.is(g.kvm32(L.VKVM_NMI_PENDING), 0, 'taken behind the faulting IRET')
  assert.is(g.rip(), 0x3003)
  assert.is(g.reg(GPR.RDX), 0n)
})

test.run()
