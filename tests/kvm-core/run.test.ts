/** KVM_RUN of ordinary guests: port and MMIO exits, completion, HLT, shutdown, immediate_exit. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { EXIT, GPR, Guest } from './guest.ts'

const test = suite('KVM_RUN')
const CODE = 0x1000

function start(code: number[], options = {}): Guest {
  const g = new Guest(options)
  g.write(CODE, code)
  g.enter(CODE)
  return g
}

test('OUT leaves with RIP on the instruction and completes at the next run', () => {
  const g = start([0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xf4]) // mov dx,3f8; mov al,'A'; out dx,al; hlt
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.IO)
  assert.equal(g.io(), { write: true, size: 1, port: 0x3f8, count: 1 })
  assert.is(g.pio()[0], 0x41)
  assert.is(g.rip(), CODE + 5)
  assert.is(g.u64(L.CPU_ICOUNT), 2n)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.HLT)
  assert.is(g.rip(), CODE + 7)
  assert.is(g.u64(L.CPU_ICOUNT), 4n)
})

test('OUT to port 0x7e shows RIP past the instruction (quirk)', () => {
  const g = start([0xe6, 0x7e, 0xf4])
  g.run()
  assert.equal(g.io(), { write: true, size: 1, port: 0x7e, count: 1 })
  assert.is(g.rip(), CODE + 2)
})

test('IN re-reads the payload; moved RIP drops the completion', () => {
  const g = start([0xb8, 0xff, 0xff, 0xe5, 0x60, 0xf4]) // mov ax,-1; in ax,60; hlt
  g.run()
  assert.equal(g.io(), { write: false, size: 2, port: 0x60, count: 1 })
  g.pio().set([0x34, 0x12])
  g.run()
  assert.is(g.reason(), EXIT.HLT)
  assert.is(g.reg(GPR.RAX), 0x1234n)
  const h = start([0xb8, 0x01, 0x00, 0xe5, 0x60, 0xf4, 0xf4])
  h.run()
  h.core.view.setBigUint64(h.s + L.CPU_RIP, BigInt(CODE + 6), true)
  h.pio().set([0x34, 0x12])
  h.run()
  assert.is(h.reg(GPR.RAX), 1n)
})

test('REP INSB asks for as many as fit, REP OUTSB one at a time', () => {
  const g = start([0xbf, 0xfc, 0x2f, 0xb9, 0x08, 0x00, 0xba, 0x10, 0x05, 0xf3, 0x6c, 0xf4]) // di=2ffc cx=8 dx=510 rep insb
  g.run()
  assert.equal(g.io(), { write: false, size: 1, port: 0x510, count: 4 })
  assert.is(g.reg(GPR.RCX), 8n)
  g.pio().set([1, 2, 3, 4])
  g.run()
  assert.equal(g.io(), { write: false, size: 1, port: 0x510, count: 4 })
  assert.is(g.reg(GPR.RDI), 0x3000n)
  g.pio().set([5, 6, 7, 8])
  g.run()
  assert.is(g.reason(), EXIT.HLT)
  assert.equal([...g.read(0x2ffc, 8)], [1, 2, 3, 4, 5, 6, 7, 8])
  const h = start([0xbe, 0x00, 0x20, 0xb9, 0x02, 0x00, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0xf4])
  h.write(0x2000, [0x61, 0x62])
  h.run()
  assert.is(h.pio()[0], 0x61)
  assert.is(h.reg(GPR.RCX), 1n)
  assert.is(h.rip(), CODE + 9)
  h.run()
  assert.is(h.pio()[0], 0x62)
  assert.is(h.rip(), CODE + 11)
  h.run()
  assert.is(h.reason(), EXIT.HLT)
})

test('immediate_exit completes the pending exit first', () => {
  const g = start([0xe4, 0x60, 0xf4])
  g.run()
  g.pio()[0] = 0x55
  g.core.view.setUint8(g.s + L.VCPU_RUN + 1, 1)
  assert.is(g.run(), -4)
  assert.is(g.reg(GPR.RAX) & 0xffn, 0x55n)
  assert.is(g.rip(), CODE + 2)
})

test('a single-stepped IN traps after its completion', () => {
  const g = start([0xe4, 0x60, 0x40, 0xf4]) // in al,60; inc ax; hlt
  g.write(1 * 4, [0x00, 0x20, 0x00, 0x00])
  g.write(0x2000, [0xf4])
  call(g.core, 'cpuSetFlags', g.s, 0x102n)
  g.run()
  assert.is(g.reason(), EXIT.IO)
  g.pio()[0] = 7
  g.run()
  assert.equal([g.reason(), g.rip()], [EXIT.HLT, 0x2001])
  assert.is(g.reg(GPR.RAX), 7n)
  assert.equal([...g.read(0x6ffa, 2)], [0x02, 0x10], 'IP past the IN')
})

test('guest debug: single steps and software breakpoints leave as KVM_EXIT_DEBUG', () => {
  const DEBUG = 4
  const g = start([0x40, 0xe4, 0x60, 0xcc, 0x40, 0xf4]) // inc ax; in al,60; int3; inc ax; hlt
  const p = g.payload()
  const control = (value: number): void => g.core.view.setUint32(g.s + L.VCPU_KVM + L.VKVM_GUEST_DEBUG, value, true)
  control(3)
  g.run()
  assert.equal(
    [g.reason(), p.getUint32(0, true), p.getBigUint64(8, true), p.getBigUint64(16, true)],
    [DEBUG, 1, BigInt(CODE + 1), 0xffff4ff0n],
  )
  g.run()
  assert.is(g.reason(), EXIT.IO)
  g.pio()[0] = 9
  g.run()
  assert.equal([g.reason(), p.getBigUint64(8, true), g.reg(GPR.RAX)], [DEBUG, BigInt(CODE + 3), 9n])
  control(0x10001)
  g.run()
  assert.equal([g.reason(), p.getUint32(0, true), p.getBigUint64(8, true), g.rip()], [DEBUG, 3, BigInt(CODE + 3), CODE + 3])
  control(0)
  g.write(3 * 4, [0x00, 0x20, 0x00, 0x00])
  g.write(0x2000, [0xcf])
  g.run()
  assert.equal([g.reason(), g.reg(GPR.RAX)], [EXIT.HLT, 10n])
})

test('the budget stops to the instruction', () => {
  const g = start([0x40, 0x40, 0x40, 0xeb, 0xfb])
  assert.is(g.run(g.s, 10n), -4)
  assert.is(g.u64(L.CPU_ICOUNT), 10n)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_BUDGET)
  assert.is(g.run(g.s, 1n), -4)
  assert.is(g.u64(L.CPU_ICOUNT), 11n)
})

test('MMIO reads and writes of a 32-bit guest; a crossing access leaves fragment by fragment', () => {
  const g = start([
    0x66,
    0xb8,
    0x00,
    0x00,
    0x00,
    0xe0, // mov eax,e0000000
    0x67,
    0x66,
    0x8b,
    0x18, // mov ebx,[eax]
  ])
  // real mode has 64 KiB limits: open DS
  const ds = g.s + L.CPU_SEGMENTS + L.SEG_DS * 16
  g.core.view.setUint32(ds + L.SEG_LIMIT, 0xffffffff, true)
  call(g.core, 'cpuModeChanged', g.s)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.MMIO)
  const p = g.payload()
  assert.is(p.getBigUint64(0, true), 0xe0000000n)
  assert.is(p.getUint32(16, true), 4)
  assert.is(p.getUint8(20), 0)
  p.setBigUint64(8, 0x11223344n, true)
  g.run(g.s, 1n)
  assert.is(g.reg(GPR.RBX), 0x11223344n)
})

test('triple fault is KVM_EXIT_SHUTDOWN', () => {
  const g = start([0x0f, 0x0b])
  const idtr = g.s + L.CPU_SEGMENTS + L.SEG_IDTR * 16
  g.core.view.setUint32(idtr + L.SEG_LIMIT, 0, true)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.SHUTDOWN)
})

test('HLT with an APIC in the kernel: nothing can wake it', () => {
  const g = start([0xf4], { irqchip: true })
  assert.is(g.run(), -4)
  assert.is(g.kvm32(L.VKVM_WHY), L.WHY_HALTED_FOREVER)
  assert.is(g.u32(L.CPU_HALTED), 3)
})

test('HLT wakes by the PIT through PIC and ExtINT; time jumps to the tick', () => {
  const g = start(
    [
      0xb0,
      0x11,
      0xe6,
      0x20,
      0xb0,
      0x20,
      0xe6,
      0x21,
      0xb0,
      0x04,
      0xe6,
      0x21,
      0xb0,
      0x01,
      0xe6,
      0x21, // PIC: base 0x20
      0xb0,
      0xfe,
      0xe6,
      0x21, // unmask irq 0
      0xb0,
      0x34,
      0xe6,
      0x43,
      0xb0,
      0xa9,
      0xe6,
      0x40,
      0xb0,
      0x04,
      0xe6,
      0x40, // channel 0: mode 2, 1193 = 1 ms
      0xfb,
      0xf4, // sti; hlt
      0xe6,
      0x80, // out 80
    ],
    { irqchip: true, pit: true },
  )
  g.write(0x80, [0x00, 0x05, 0x00, 0x00]) // vector 0x20 -> 0:0500
  g.write(0x500, [0x43, 0xb0, 0x20, 0xe6, 0x20, 0xcf]) // inc bx; eoi; iret
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.IO)
  assert.is(g.io().port, 0x80)
  assert.is(g.reg(GPR.RBX), 1n)
  const ns = Number(call(g.core, 'vmClock', g.vm))
  assert.ok(ns > 1_000_000 && ns < 1_100_000, String(ns))
})

test('MSRs: filters, exits to userspace, and their answers', () => {
  const X86_RDMSR = 29
  const X86_WRMSR = 30
  // mov ecx,12345678; rdmsr; hlt    handler of #GP at 0x2000: hlt
  const g = start([0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32, 0xf4])
  g.write(13 * 4, [0x00, 0x20, 0x00, 0x00])
  g.write(0x2000, [0xf4])
  g.core.view.setUint32(g.vm + L.VM_USER_MSR_MASK, 2, true)
  assert.is(g.run(), 0)
  assert.is(g.reason(), X86_RDMSR)
  const p = g.payload()
  assert.equal([p.getUint8(0), p.getUint32(8, true), p.getUint32(12, true)], [0, 2, 0x12345678])
  p.setBigUint64(16, 0x1122334455667788n, true)
  g.run()
  assert.is(g.reason(), EXIT.HLT)
  assert.equal([g.reg(GPR.RAX), g.reg(GPR.RDX), g.rip()], [0x55667788n, 0x11223344n, CODE + 9])
  g.enter(CODE)
  g.run()
  p.setUint8(0, 1)
  g.run()
  assert.equal([g.reason(), g.rip()], [EXIT.HLT, 0x2001])
  // deny writes of 0x174 and 0x175, allow 0x176
  call(g.core, 'msrFilterBegin', g.vm, 0)
  g.core.view.setUint8(L.STAGING, 0b100)
  assert.is(call(g.core, 'msrFilterRange', g.vm, 2, 3, 0x174, L.STAGING), 0)
  g.core.view.setUint32(g.vm + L.VM_USER_MSR_MASK, 4, true)
  const wrmsr = (index: number): number => {
    g.write(CODE, [0x0f, 0x30, 0xf4])
    g.enter(CODE)
    g.setReg(GPR.RCX, BigInt(index))
    g.setReg(GPR.RAX, 0x10n)
    g.setReg(GPR.RDX, 0n)
    g.run()
    return g.reason()
  }
  assert.is(wrmsr(0x175), X86_WRMSR)
  assert.equal([p.getUint32(8, true), p.getUint32(12, true), p.getBigUint64(16, true)], [4, 0x175, 0x10n])
  g.run()
  assert.is(wrmsr(0x176), EXIT.HLT)
  call(g.core, 'msrFilterFree', g.vm)
  assert.is(wrmsr(0x175), EXIT.HLT)
})

test('split irqchip: the EOI of a routed level interrupt leaves for userspace', () => {
  // a handler at 0x2000 that writes the EOI register: mov [ebx], eax; iret
  const g = start([0xfb, 0x90, 0xeb, 0xfe], { split: true })
  g.write(0x55 * 4, [0x00, 0x20, 0x00, 0x00])
  g.write(0x2000, [0x67, 0x66, 0x89, 0x03, 0xcf])
  g.core.view.setUint32(g.s + L.CPU_SEGMENTS + L.SEG_DS * 16 + L.SEG_LIMIT, 0xffffffff, true)
  g.setReg(GPR.RBX, 0xfee000b0n)
  g.core.view.setUint32(g.s + L.VCPU_LAPIC + L.APIC_SVR, 0x1ff, true)
  const route = [3, 2, 0xfee00000, 0, 0xc055, 0]
  for (const [i, v] of route.entries()) g.core.view.setUint32(L.STAGING + i * 4, v, true)
  call(g.core, 'setRouting', g.vm, L.STAGING, 1)
  assert.is(call(g.core, 'irqLine', g.vm, 3, 1), 1)
  assert.is(g.run(), 0)
  assert.is(g.reason(), 26)
  assert.is(g.payload().getUint8(0), 0x55)
  assert.is(g.run(g.s, 20n), -4)
})

test.run()
