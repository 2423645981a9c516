/** In the manner of selftests x86/debug_regs: single steps, software and hardware breakpoints of KVM_SET_GUEST_DEBUG. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { REQUEST, type Vcpu } from 'cloister'
import { CODE, realModeGuest } from './guest.ts'

const GUESTDBG = { ENABLE: 1, SINGLESTEP: 2, USE_SW_BP: 0x10000, USE_HW_BP: 0x20000 }

function debug(vcpu: Vcpu, control: number, registers: readonly bigint[] = []): number {
  const bytes = new Uint8Array(72)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, control, true)
  for (const [i, value] of registers.entries()) view.setBigUint64(8 + i * 8, value, true)
  return vcpu.kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_GUEST_DEBUG, bytes)
}

test('single step: one KVM_EXIT_DEBUG for each instruction', async () => {
  // xor ax, ax; inc ax; inc ax; nop; hlt
  const { vcpu } = await realModeGuest([0x31, 0xc0, 0x40, 0x40, 0x90, 0xf4])
  assert.is(debug(vcpu, GUESTDBG.ENABLE | GUESTDBG.SINGLESTEP), 0)
  for (const at of [2, 3, 4, 5]) {
    const exit = vcpu.run()
    assert.is(exit.reason, 'KVM_EXIT_DEBUG')
    if (exit.reason !== 'KVM_EXIT_DEBUG') return
    assert.is(exit.exception, 1)
    assert.is(exit.pc, BigInt(CODE + at))
    assert.is(exit.dr6 & 0x4000n, 0x4000n, 'BS')
  }
  assert.is(debug(vcpu, 0), 0)
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  assert.is(vcpu.getRegs().rax, 2n)
})

test('software breakpoint: INT3 comes to userspace', async () => {
  // nop; int3; hlt
  const { vcpu } = await realModeGuest([0x90, 0xcc, 0xf4])
  assert.is(debug(vcpu, GUESTDBG.ENABLE | GUESTDBG.USE_SW_BP), 0)
  const exit = vcpu.run()
  assert.is(exit.reason, 'KVM_EXIT_DEBUG')
  if (exit.reason !== 'KVM_EXIT_DEBUG') return
  assert.is(exit.exception, 3)
  assert.is(exit.pc, BigInt(CODE + 1))
})

test('hardware breakpoint on an instruction', async () => {
  const { kvm, vcpu } = await realModeGuest([0x90, 0x90, 0x40, 0xf4])
  assert.is(debug(vcpu, GUESTDBG.ENABLE | GUESTDBG.USE_HW_BP, [BigInt(CODE + 2), 0n, 0n, 0n, 0n, 0n, 0n, 0x402n]), 0)
  const result = vcpu.runRaw(1000)
  if (result < 0 && kvm.lastRefusal()?.unimplemented) return
  assert.is(result, 0)
  assert.is(vcpu.runView.getUint32(8, true), 4, 'KVM_EXIT_DEBUG')
  assert.is(vcpu.runView.getBigUint64(40, true), BigInt(CODE + 2))
  assert.is(vcpu.runView.getBigUint64(48, true) & 1n, 1n, 'DR6.B0')
})

test.run()
