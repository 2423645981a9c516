/** KVM_GUESTDBG_USE_HW_BP and injection, TSC scaling, uncorrected machine checks (selftests debug_regs, tsc_scaling). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, openKvm, REQUEST } from 'cloister'

async function boot(code: readonly number[], vectors: Record<number, number> = {}) {
  const kvm = await openKvm({ memory: 128 << 20 })
  const vm = kvm.createVm('default')
  const memory = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000, userspaceAddr: memory.address })
  memory.write(0x1000, new Uint8Array(code))
  for (const [vector, at] of Object.entries(vectors)) memory.write(Number(vector) * 4, new Uint8Array([at & 0xff, at >> 8, 0, 0]))
  memory.write(0x3000, new Uint8Array([0xe6, 0x77, 0xcf]))
  const vcpu = vm.createVcpu(0)
  const sregs = vcpu.getSregs()
  sregs.cs.base = 0n
  sregs.cs.selector = 0
  vcpu.setSregs(sregs)
  const regs = vcpu.getRegs()
  regs.rip = 0x1000n
  regs.rsp = 0x8000n
  vcpu.setRegs(regs)
  const debug = (control: number, breakpoints: readonly bigint[] = [], dr7 = 0n): number => {
    const bytes = new Uint8Array(72)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, control, true)
    breakpoints.forEach((at, i) => view.setBigUint64(8 + i * 8, at, true))
    view.setBigUint64(64, dr7, true)
    return kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_GUEST_DEBUG, bytes)
  }
  return { kvm, vm, vcpu, debug }
}

const ENABLE = 1
const HW = 0x20000

test('instruction and data breakpoints of the debugger leave with KVM_EXIT_DEBUG', async () => {
  // nop; nop; mov [0x4000], ax; nop; hlt
  const { kvm, vcpu, debug } = await boot([0x90, 0x90, 0xa3, 0x00, 0x40, 0x90, 0xf4])
  for (let i = 0; i < 4; i++) {
    const at = [0n, 0n, 0n, 0n]
    at[i] = 0x1001n
    assert.is(debug(ENABLE | HW, at, 0x400n | (1n << BigInt(i * 2 + 1))), 0)
    const exit = vcpu.run({ maxInstructions: 100 })
    assert.is(exit.reason, 'KVM_EXIT_DEBUG')
    if (exit.reason !== 'KVM_EXIT_DEBUG') return
    assert.is(exit.exception, 1)
    assert.is(exit.pc, 0x1001n)
    assert.is(exit.dr6, 0xffff0ff0n | (1n << BigInt(i)))
  }
  // A write of two bytes at 0x4000 (DR1, kind 1, length 2).
  assert.is(debug(ENABLE | HW, [0n, 0x4000n], 0x400n | 8n | (1n << 20n) | (1n << 22n)), 0)
  const exit = vcpu.run({ maxInstructions: 100 })
  assert.is(exit.reason, 'KVM_EXIT_DEBUG')
  if (exit.reason === 'KVM_EXIT_DEBUG') assert.equal([exit.pc, exit.dr6], [0x1005n, 0xffff0ff2n])
  // The guest's own debug registers are untouched.
  const own = new Uint8Array(128)
  kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_DEBUGREGS, own)
  assert.is(new DataView(own.buffer).getBigUint64(40, true), 0x400n)
  assert.is(debug(0), 0)
  assert.is(vcpu.run({ maxInstructions: 100 }).reason, 'KVM_EXIT_HLT')
  assert.equal(kvm.kernel.internalErrors, [])
})

test('INJECT_DB and INJECT_BP', async () => {
  const { vcpu, debug } = await boot([0xf4], { 1: 0x3000, 3: 0x3000 })
  assert.is(debug(ENABLE | 0x40000), 0)
  assert.is(debug(ENABLE | 0x80000), -ERRNO.EBUSY)
  const exit = vcpu.run({ maxInstructions: 100 })
  assert.is(exit.reason, 'KVM_EXIT_IO')
  assert.is(vcpu.run({ maxInstructions: 100 }).reason, 'KVM_EXIT_HLT')
})

test('TSC scaling of one vCPU', async () => {
  // rdtsc; out; rdtsc; hlt
  const { kvm, vcpu } = await boot([0x0f, 0x31, 0x66, 0x89, 0xc3, 0xe4, 0x80, 0x0f, 0x31, 0xf4])
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_TSC_KHZ, 0), 2_000_000)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_TSC_KHZ, 1_000_000), 0)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_TSC_KHZ, 0), 1_000_000)
  assert.is(vcpu.run({ maxInstructions: 100 }).reason, 'KVM_EXIT_IO')
  assert.is(vcpu.run({ maxInstructions: 100 }).reason, 'KVM_EXIT_HLT')
  const regs = vcpu.getRegs()
  const slow = Number((regs.rax & 0xffffffffn) - (regs.rbx & 0xffffffffn))
  // A port access costs 1 us of virtual time: 1000 ticks at 1 GHz.
  assert.ok(slow >= 1000 && slow < 1100, String(slow))
})

test('an uncorrected machine check: #MC with CR4.MCE, else shutdown', async () => {
  for (const mce of [true, false]) {
    const { kvm, vcpu } = await boot([0xf4], { 18: 0x3000 })
    const cap = new Uint8Array(8)
    new DataView(cap.buffer).setBigUint64(0, 0x104n, true)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_X86_SETUP_MCE, cap), 0)
    const sregs = vcpu.getSregs()
    sregs.cr4 = mce ? 0x40n : 0n
    vcpu.setSregs(sregs)
    const bytes = new Uint8Array(64)
    const view = new DataView(bytes.buffer)
    view.setBigUint64(0, 0xb200000000000000n, true)
    view.setBigUint64(8, 0x1234n, true)
    view.setBigUint64(24, 5n, true)
    view.setUint8(32, 1)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_X86_SET_MCE, bytes), 0)
    assert.is(vcpu.run({ maxInstructions: 100 }).reason, mce ? 'KVM_EXIT_IO' : 'KVM_EXIT_SHUTDOWN')
    const msrs = new Uint8Array(8 + 16)
    new DataView(msrs.buffer).setUint32(0, 1, true)
    new DataView(msrs.buffer).setUint32(8, 0x405, true)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_MSRS, msrs), 1)
    assert.is(new DataView(msrs.buffer).getBigUint64(16, true), mce ? 0xb200000000000000n : 0n)
  }
})

test.run()
