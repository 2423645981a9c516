/** Interrupts, NMIs, windows, shadows, kicks, deadlines and poll loops at block boundaries. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { EXIT, GPR, Guest, type GuestOptions } from './guest.ts'

const test = suite('events')
const CODE = 0x1000

/** Vector 0x20 -> 0x2000, NMI -> 0x3000. */
function start(code: number[], options: GuestOptions = {}): Guest {
  const g = new Guest(options)
  g.write(0x20 * 4, [0x00, 0x20, 0x00, 0x00])
  g.write(2 * 4, [0x00, 0x30, 0x00, 0x00])
  g.write(0x2000, [0x43, 0xcf]) // inc bx; iret
  g.write(0x3000, [0x42, 0xcf]) // inc dx; iret
  g.write(CODE, code)
  g.enter(CODE)
  return g
}
const kvm = (g: Guest, field: number, value: number, s = g.s): void => g.core.view.setUint32(s + L.VCPU_KVM + field, value, true)
const ns = (g: Guest): number => Number(g.core.view.getBigUint64(g.vm + L.VM_CLOCK, true))

test('KVM_INTERRUPT waits for IF; STI lets one instruction pass', () => {
  const g = start([0x90, 0x90, 0xfb, 0x40, 0x40, 0xf4]) // nop; nop; sti; inc ax; inc ax; hlt
  kvm(g, L.VKVM_INTERRUPT, 0x120)
  g.run(g.s, 3n)
  assert.is(g.rip(), CODE + 3)
  g.run(g.s, 1n)
  assert.is(g.reg(GPR.RAX), 1n)
  g.run(g.s, 1n)
  assert.is(g.reg(GPR.RBX), 1n, 'the handler ran after the shadow')
  assert.is(g.kvm32(L.VKVM_INTERRUPT), 0)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.HLT)
  assert.is(g.reg(GPR.RAX), 2n)
})

test('request_interrupt_window leaves as soon as the window is open', () => {
  const g = start([0x90, 0xfb, 0x40, 0x40, 0xeb, 0xfe])
  g.core.view.setUint8(g.s + L.VCPU_RUN, 1)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.IRQ_WINDOW)
  assert.is(g.core.view.getUint8(g.s + L.VCPU_RUN + 12), 1)
  assert.is(g.core.view.getUint8(g.s + L.VCPU_RUN + 13), 1)
  assert.is(g.reg(GPR.RAX), 1n)
})

test('an NMI is delivered whatever IF is, and blocks the next until IRET', () => {
  const g = start([0x40, 0xeb, 0xfd])
  kvm(g, L.VKVM_NMI_PENDING, 2)
  g.run(g.s, 1n)
  assert.is(g.u32(L.CPU_NMI_BLOCKED), 1)
  assert.is(g.kvm32(L.VKVM_NMI_PENDING), 1)
  g.run(g.s, 10n)
  assert.is(g.reg(GPR.RDX) & 0xffn, 2n, 'the second comes right after IRET')
  assert.is(g.u32(L.CPU_NMI_BLOCKED), 0)
})

test('kick ends the run once', () => {
  const g = start([0xeb, 0xfe])
  call(g.core, 'vcpuKick', g.s)
  assert.is(g.run(), -4)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_KICK)
  assert.is(g.u64(L.CPU_ICOUNT), 0n)
  assert.is(g.run(g.s, 5n), -4)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_BUDGET)
})

test('a deadline of the VMM ends the run at its nanosecond', () => {
  const g = start([0xeb, 0xfe])
  call(g.core, 'setUserDeadline', g.vm, 1234n)
  assert.is(g.run(), -4)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_USER_DEADLINE)
  assert.is(ns(g), 1234)
  const h = start([0xfb, 0xf4], { irqchip: true })
  call(h.core, 'setUserDeadline', h.vm, 5_000_000n)
  assert.is(h.run(), -4)
  assert.is(h.kvm32(L.VKVM_WHY), L.WHY_USER_DEADLINE)
  assert.is(ns(h), 5_000_000)
  assert.is(h.u32(L.CPU_HALTED), 3)
})

test('a polled port lets virtual time jump, deterministically; RDTSC in the loop stops that', () => {
  const poll = (code: number[]): Guest => {
    const g = start(code)
    for (let i = 0; i < 200; i++) {
      assert.is(g.run(), 0)
      assert.is(g.io().port, 0x608)
    }
    return g
  }
  const loop = [0xba, 0x08, 0x06, 0xed, 0xeb, 0xfd] // mov dx,608; in ax,dx; jmp
  const a = poll(loop)
  const b = poll(loop)
  assert.is(ns(a), ns(b))
  assert.ok(ns(a) > 10_000_000, String(ns(a)))
  assert.ok(a.kvm64(L.VKVM_POLL_JUMPS) > 100n)
  const c = poll([0xba, 0x08, 0x06, 0xed, 0x50, 0x52, 0x0f, 0x31, 0x5a, 0x58, 0xeb, 0xf7]) // .. with rdtsc
  assert.is(c.kvm64(L.VKVM_POLL_JUMPS), 0n)
})

test('RDTSC and PAUSE in a loop jump as well, up to the next deadline', () => {
  const g = start([0x0f, 0x31, 0xf3, 0x90, 0xeb, 0xfa]) // rdtsc; pause; jmp
  call(g.core, 'setUserDeadline', g.vm, 3_000_000n)
  assert.is(g.run(g.s, 1_000_000n), -4)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_USER_DEADLINE)
  assert.ok(g.u64(L.CPU_ICOUNT) < 1000n, String(g.u64(L.CPU_ICOUNT)))
  assert.ok(ns(g) >= 3_000_000 && ns(g) < 3_000_100, String(ns(g)))
})

test('the TSC runs at VM_TSC_KHZ', () => {
  for (const khz of [2_000_000n, 3_000_000n, 999_999n]) {
    const g = start([0x0f, 0x31, 0xf4])
    g.core.view.setBigUint64(g.vm + L.VM_TSC_KHZ, khz, true)
    g.core.view.setBigUint64(g.vm + L.VM_CLOCK, 10_000_000_000n, true)
    g.run()
    const tsc = (g.reg(GPR.RDX) << 32n) | g.reg(GPR.RAX)
    const expected = (10_000_000_001n * khz) / 1_000_000n
    assert.ok(tsc >= expected - khz / 100_000n && tsc <= expected + khz / 100_000n, `${khz}: ${tsc}`)
  }
})

test('an AP that nobody started waits for SIPI', () => {
  const g = start([0xf4], { irqchip: true, vcpus: 2 })
  const ap = g.cpus[1] as number
  g.run()
  assert.is(g.run(ap), -4)
  assert.is(g.kvm32(L.VKVM_WHY, ap), L.WHY_WAIT_SIPI)
  assert.is(g.u64(L.CPU_ICOUNT, ap), 0n)
})

test('two halted vCPUs: the one with a timer wakes', () => {
  const g = start([0xf4], { irqchip: true, vcpus: 2 })
  const ap = g.cpus[1] as number
  g.core.view.setUint32(ap + L.CPU_HALTED, 0, true)
  g.write(0x5000, [0xfb, 0xf4, 0x40, 0xeb, 0xfd]) // sti; hlt; inc ax; ..
  g.enter(0x5000, ap)
  const apic = ap + L.VCPU_LAPIC
  g.core.view.setUint32(apic + L.APIC_SVR, 0x1ff, true)
  g.core.view.setUint32(apic + L.APIC_LVTT, 0x20, true)
  g.core.view.setBigUint64(apic + L.LAPIC_TIMER_DEADLINE, 1_000_000n, true)
  assert.is(g.run(g.s), -4)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_BLOCKED, 'the other one can run')
  for (let i = 0; i < 6 && g.reg(GPR.RAX, ap) === 0n; i++) {
    g.run(ap, 10n)
    g.run(g.s, 10n)
  }
  assert.ok(g.reg(GPR.RAX, ap) > 0n)
  assert.is(g.reg(GPR.RBX, ap), 1n)
  assert.ok(ns(g) >= 1_000_000)
})

test("a halted vCPU's timer fires while another vCPU never halts", () => {
  const g = start([0xeb, 0xfe], { irqchip: true, vcpus: 2 }) // jmp $
  const sleeper = g.cpus[1] as number
  g.core.view.setUint32(sleeper + L.CPU_HALTED, 0, true)
  g.write(0x5000, [0xfb, 0xf4, 0x40, 0xeb, 0xfc]) // sti; hlt; inc ax; back to hlt
  g.enter(0x5000, sleeper)
  const apic = sleeper + L.VCPU_LAPIC
  g.core.view.setUint32(apic + L.APIC_SVR, 0x1ff, true)
  g.core.view.setUint32(apic + L.APIC_LVTT, 0x20, true)
  g.core.view.setBigUint64(apic + L.LAPIC_TIMER_DEADLINE, 1_000_000n, true)
  let woke = 0
  for (let i = 0; i < 100 && g.reg(GPR.RAX, sleeper) === 0n; i++) {
    g.run(g.s, 20_000n)
    g.run(sleeper, 20_000n)
    woke = ns(g)
  }
  assert.is(g.reg(GPR.RBX, sleeper), 1n, 'its handler ran')
  assert.ok(woke >= 1_000_000 && woke < 1_050_000, `at ${woke} ns`)
})

test.run()
