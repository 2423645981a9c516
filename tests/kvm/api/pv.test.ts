/** Paravirtual services: kvmclock, wall clock, steal time, PV EOI, kicks, and which of them a guest is offered (kvm_pv, kvm_clock, steal_time). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, REQUEST } from 'cloister'
import { CODE, RawGuest } from './raw-guest.ts'

const MSR = {
  WALL: 0x4b564d00,
  TIME: 0x4b564d01,
  APF: 0x4b564d02,
  STEAL: 0x4b564d03,
  EOI: 0x4b564d04,
  POLL: 0x4b564d05,
  APF_INT: 0x4b564d06,
}
const PAGE = 0x5000

const le = (n: number): number[] => [n & 0xff, (n >>> 8) & 0xff, (n >>> 16) & 0xff, n >>> 24]
/** mov ecx, msr; mov eax, low; xor edx, edx; wrmsr (32-bit code). */
const wrmsr = (msr: number, low: number): number[] => [0xb9, ...le(msr), 0xb8, ...le(low), 0x31, 0xd2, 0x0f, 0x30]
const rdmsr = (msr: number): number[] => [0xb9, ...le(msr), 0x0f, 0x32]
const out = (port: number): number[] => [0xe6, port]
const view = (guest: RawGuest, at: number, n: number): DataView => new DataView(guest.memory.read(at, n).buffer)
const clock = (guest: RawGuest): DataView => {
  const bytes = new Uint8Array(48)
  guest.must(guest.vmCall('KVM_GET_CLOCK', bytes), 'KVM_GET_CLOCK')
  return new DataView(bytes.buffer)
}
const setClock = (guest: RawGuest, value: bigint, flags = 0, realtime = 0n): number => {
  const bytes = new Uint8Array(48)
  const v = new DataView(bytes.buffer)
  v.setBigUint64(0, value, true)
  v.setUint32(8, flags, true)
  v.setBigUint64(16, realtime, true)
  return guest.vmCall('KVM_SET_CLOCK', bytes)
}

/** What a guest computes from its page. */
function pvclock(guest: RawGuest): { now: bigint; version: number; flags: number } {
  const page = view(guest, PAGE, 32)
  const shift = page.getInt8(28)
  let delta = guest.msr(0x10) as bigint
  delta -= page.getBigUint64(8, true)
  delta = shift < 0 ? delta >> BigInt(-shift) : delta << BigInt(shift)
  return {
    now: page.getBigUint64(16, true) + ((delta * BigInt(page.getUint32(24, true))) >> 32n),
    version: page.getUint32(0, true),
    flags: page.getUint8(29),
  }
}

test('kvmclock: the page of a guest agrees with KVM_GET_CLOCK, whatever the TSC rate', async () => {
  for (const khz of [0, 2_000_000, 2_500_000, 999_999, 4_200_000]) {
    const guest = await RawGuest.create([...wrmsr(MSR.TIME, PAGE | 1), ...out(1), ...out(2), ...out(3), 0xf4], { mode: 'protected' })
    if (khz !== 0) assert.is(guest.call('KVM_SET_TSC_KHZ', khz), 0)
    assert.is(guest.call('KVM_KVMCLOCK_CTRL'), -ERRNO.EINVAL, 'no page yet')
    guest.port(1)
    const near = (a: bigint, b: bigint): boolean => a - b <= 2n && b - a <= 2n
    const first = pvclock(guest)
    assert.is(first.version & 1, 0)
    assert.is(first.flags, 1, 'TSC stable')
    assert.ok(near(first.now, clock(guest).getBigUint64(0, true)), `${khz}: ${first.now} ${clock(guest).getBigUint64(0, true)}`)
    guest.port(2)
    assert.ok(near(pvclock(guest).now, clock(guest).getBigUint64(0, true)), `${khz} later`)
    assert.is(setClock(guest, 0x1234567890n), 0)
    assert.is(guest.call('KVM_KVMCLOCK_CTRL'), 0)
    guest.port(3)
    const later = pvclock(guest)
    assert.ok(later.version > first.version)
    assert.is(later.flags, 3, 'GUEST_STOPPED')
    assert.ok(near(later.now, clock(guest).getBigUint64(0, true)) && later.now > 0x1234567890n)
  }
})

test('KVM_GET_CLOCK and KVM_SET_CLOCK: flags, realtime and host TSC (kvm_clock_test)', async () => {
  const guest = await RawGuest.create([...out(1), 0xf4], { mode: 'protected' })
  assert.is(clock(guest).getUint32(8, true), 0, 'no master clock before the first vCPU has run')
  guest.port(1)
  const now = clock(guest)
  assert.is(now.getUint32(8, true), 14, 'TSC_STABLE, REALTIME, HOST_TSC')
  const real = now.getBigUint64(16, true)
  assert.ok(real > 1_700_000_000_000_000_000n)
  assert.is(setClock(guest, 1000n, 1), -ERRNO.EINVAL)
  assert.is(setClock(guest, 1000n, 4, real - 5000n), 0)
  assert.is(clock(guest).getBigUint64(0, true), 6000n, 'advanced by the time that has passed')
  assert.is(setClock(guest, 1000n, 4, real + 5000n), 0)
  assert.is(clock(guest).getBigUint64(0, true), 1000n, 'never set back')
  // TSCs that differ: no master clock.
  guest.addVcpu(1)
  assert.is(clock(guest).getUint32(8, true), 14)
  guest.msr(0x10, 1n << 40n)
  guest.to('KVM_EXIT_HLT')
  assert.is(clock(guest).getUint32(8, true), 0)
})

test('the wall clock is the time at which kvmclock was 0', async () => {
  const guest = await RawGuest.create([...wrmsr(MSR.WALL, PAGE + 64), ...out(1)], { mode: 'protected' })
  guest.port(1)
  const page = view(guest, PAGE + 64, 12)
  assert.is(page.getUint32(0, true), 2)
  const wall = BigInt(page.getUint32(4, true)) * 1_000_000_000n + BigInt(page.getUint32(8, true))
  const now = clock(guest)
  assert.is(wall, now.getBigUint64(16, true) - now.getBigUint64(0, true))
})

test('the old MSRs: no stable TSC', async () => {
  const guest = await RawGuest.create([...wrmsr(0x12, PAGE | 1), ...out(1)], { mode: 'protected' })
  guest.port(1)
  assert.is(pvclock(guest).flags, 0)
  assert.is(clock(guest).getUint32(8, true), 0)
})

test('steal time: time that other vCPUs took; preempted while it does not run; TLB flushes asked for there', async () => {
  const guest = await RawGuest.create([...wrmsr(MSR.STEAL, PAGE | 1), ...out(1), 0xeb, 0xfe], { mode: 'protected' })
  guest.memory.write(0x3000, Uint8Array.of(0xeb, 0xfe))
  const other = guest.addVcpu(1, { mode: 'protected' })
  guest.setRegs({ RIP: 0x3000 }, other)
  const steal = (): [bigint, number, number] => {
    const page = view(guest, PAGE, 64)
    return [page.getBigUint64(0, true), page.getUint32(8, true), page.getUint8(16)]
  }
  guest.port(1)
  assert.equal(steal(), [0n, 2, 1], 'preempted since KVM_RUN returned')
  assert.is(guest.run(guest.vcpu, 1000), -ERRNO.EINTR)
  assert.equal(steal(), [0n, 4, 1])
  assert.is(guest.run(other, 5000), -ERRNO.EINTR)
  guest.memory.write(PAGE + 16, Uint8Array.of(3))
  assert.is(guest.run(guest.vcpu, 1000), -ERRNO.EINTR)
  assert.equal(steal(), [5000n, 6, 1])
})

/** A guest that takes vector 0x41 with `handler`; its ISR word, and an MSI for it. */
async function interrupted(code: number[], handler: number[]): Promise<{ guest: RawGuest; isr: () => number; msi: () => number }> {
  const guest = await RawGuest.create(code, { mode: 'protected', irqchip: 'full' })
  guest.memory.write(0x3000, Uint8Array.from(handler))
  guest.memory.write(0x6000 + 0x41 * 8, Uint8Array.of(0x00, 0x30, 0x08, 0, 0, 0x8e, 0, 0))
  guest.memory.write(0x7000 + 8, Uint8Array.of(0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0, 0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0))
  const sregs = guest.get('KVM_GET_SREGS', 312)
  sregs.setBigUint64(192, 0x7000n, true)
  sregs.setUint16(200, 0x1f, true)
  sregs.setBigUint64(208, 0x6000n, true)
  sregs.setUint16(216, 0x7ff, true)
  guest.set('KVM_SET_SREGS', sregs)
  const lapic = guest.get('KVM_GET_LAPIC', 1024)
  lapic.setUint32(0xf0, 0x1ff, true)
  guest.set('KVM_SET_LAPIC', lapic)
  const isr = (): number => guest.get('KVM_GET_LAPIC', 1024).getUint32(0x100 + 0x20, true)
  const msi = (): number => {
    const bytes = new Uint8Array(32)
    const v = new DataView(bytes.buffer)
    v.setUint32(0, 0xfee00000, true)
    v.setUint32(8, 0x41, true)
    return guest.vmCall('KVM_SIGNAL_MSI', bytes)
  }
  return { guest, isr, msi }
}

test('PV EOI switched off inside a handler: the offer is taken back', async () => {
  const handler = [...wrmsr(MSR.EOI, 0), 0x0f, 0xba, 0x35, ...le(PAGE), 0, 0xe6, 0x01, 0xcf]
  const { guest, isr, msi } = await interrupted([...wrmsr(MSR.EOI, PAGE | 1), 0xfb, 0xf4], handler)
  assert.is(guest.run(), -ERRNO.EINTR, 'halted')
  assert.is(msi(), 1)
  guest.port(1)
  assert.is(guest.reg('RFLAGS') & 1n, 0n, 'BTR found the bit clear: the handler writes the register')
  assert.is(isr(), 2, 'the vector is in service until then')
})

test('PV EOI: the guest clears a bit instead of writing the register', async () => {
  // sti; hlt; out 2; mov eax,[PAGE]; out 3; hlt. The handler at 0x3000 (IDT): btr dword [PAGE], 0; out 1; iretd
  const code = [...wrmsr(MSR.EOI, PAGE | 1), 0xfb, 0xf4, ...out(2), 0xf4, ...out(3)]
  const { guest, isr, msi } = await interrupted(code, [0x0f, 0xba, 0x35, ...le(PAGE), 0, 0xe6, 0x01, 0xcf])
  assert.is(guest.run(), -ERRNO.EINTR, 'halted')
  assert.is(msi(), 1)
  guest.port(1)
  assert.is(guest.reg('RFLAGS') & 1n, 1n, 'the bit was set when the handler began: BTR found it')
  assert.is(isr(), 0, 'and clearing it was the EOI')
  guest.port(2)
  // A second interrupt that waits makes the guest do it the long way.
  assert.is(guest.run(), -ERRNO.EINTR)
  assert.is(msi(), 1)
  guest.port(1)
  guest.port(3)
})

// Redirection entry, pin, offered (kvm_ioapic_handles_vector: pv_eoi is for vectors whose EOI nobody waits for)
for (const [entry, pin, offered] of [
  [0x10041, 9, 1n],
  [0x18041, 9, 0n], // level
  [0x10041, 8, 0n], // the RTC's pin, whose EOIs are tracked
  [0x10042, 8, 1n],
] as const) {
  test(`PV EOI and the I/O APIC: entry ${entry.toString(16)} of pin ${pin}, ${offered ? 'offered' : 'not offered'}`, async () => {
    const handler = [0x0f, 0xba, 0x35, ...le(PAGE), 0, 0xe6, 0x01, 0xcf]
    const { guest, msi } = await interrupted([...wrmsr(MSR.EOI, PAGE | 1), 0xfb, 0xf4], handler)
    const chip = new Uint8Array(520)
    chip[0] = 2
    assert.is(guest.vmCall('KVM_GET_IRQCHIP', chip), 0)
    new DataView(chip.buffer).setBigUint64(8 + 24 + pin * 8, BigInt(entry), true)
    assert.is(guest.vmCall('KVM_SET_IRQCHIP', chip), 0)
    assert.is(guest.run(), -ERRNO.EINTR, 'halted')
    assert.is(msi(), 1)
    guest.port(1)
    assert.is(guest.reg('RFLAGS') & 1n, offered)
    guest.close()
  })
}

test('KVM_HC_KICK_CPU ends a halt, also one that is still to come; the other hypercalls', async () => {
  // mov eax, nr; mov ebx, a0; mov ecx, a1; vmmcall; out 1
  const call = (nr: number, a0: number, a1: number): number[] => [
    0xb8,
    ...le(nr),
    0xbb,
    ...le(a0),
    0xb9,
    ...le(a1),
    0x0f,
    0x01,
    0xd9,
    ...out(1),
  ]
  const code = [...call(5, 0, 1), ...call(11, 1, 0), ...call(9, PAGE, 0), ...call(9, PAGE, 1), ...call(99, 0, 0)]
  const guest = await RawGuest.create(code, { mode: 'protected', irqchip: 'full' })
  guest.memory.write(0x3000, Uint8Array.of(0xf4, 0xe6, 0x05, 0xf4, 0xe6, 0x06))
  const other = guest.addVcpu(1, { mode: 'protected' })
  guest.setRegs({ RIP: 0x3000 }, other)
  guest.set('KVM_SET_MP_STATE', new DataView(new Uint8Array(4).buffer), other)
  const answer = (): number => {
    guest.port(1)
    return Number(BigInt.asIntN(32, guest.reg('RAX')))
  }
  assert.is(answer(), 0, 'kick')
  guest.port(5, other)
  assert.is(guest.run(other), -ERRNO.EINTR, 'one kick, one wake')
  assert.is(answer(), 0, 'yield')
  assert.is(answer(), 0, 'clock pairing')
  const pair = view(guest, PAGE, 24)
  assert.ok(pair.getBigUint64(0, true) > 1_700_000_000n && pair.getBigUint64(16, true) > 0n)
  assert.is(answer(), -95)
  assert.is(answer(), -1000)
})

test('KVM_CAP_ENFORCE_PV_FEATURE_CPUID: what CPUID does not offer is #GP and -KVM_ENOSYS (kvm_pv_test)', async () => {
  const guest = await RawGuest.create([0xf4], { mode: 'protected', cpuid: false })
  const table = new Uint8Array(8 + 256 * 40)
  const entries = new DataView(table.buffer)
  entries.setUint32(0, 256, true)
  guest.must(guest.kvm.ioctl(guest.system, REQUEST.KVM_GET_SUPPORTED_CPUID, table), 'KVM_GET_SUPPORTED_CPUID')
  const count = entries.getUint32(0, true)
  let features = 0
  for (let i = 0; i < count; i++) {
    if (entries.getUint32(8 + i * 40, true) !== 0x40000001) continue
    features = entries.getUint32(8 + i * 40 + 12, true)
    entries.setUint32(8 + i * 40 + 12, 0, true)
  }
  assert.is(features, 0x01007efb)
  guest.must(guest.call('KVM_SET_CPUID2', table), 'KVM_SET_CPUID2')
  assert.is(guest.enable(CAP.KVM_CAP_SPLIT_IRQCHIP, [24], guest.vcpu), -ERRNO.EINVAL, 'not a capability of vCPUs')
  const known = Object.values(MSR).filter((msr) => msr !== MSR.APF_INT && msr !== MSR.APF)
  for (const msr of known) {
    guest.memory.write(CODE, Uint8Array.of(...rdmsr(msr), ...out(1)))
    guest.setRegs({ RIP: CODE })
    guest.port(1)
  }
  assert.is(guest.enable(CAP.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, [1], guest.vcpu), 0)
  for (const msr of [...Object.values(MSR), 0x11, 0x12]) {
    for (const code of [rdmsr(msr), wrmsr(msr, 0)]) {
      const again = await RawGuest.create([0xf4], { mode: 'real', cpuid: false })
      again.must(again.call('KVM_SET_CPUID2', table), 'KVM_SET_CPUID2')
      again.enable(CAP.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, [1], again.vcpu)
      again.memory.write(13 * 4, Uint8Array.of(0, 0x30, 0, 0))
      again.memory.write(0x3000, Uint8Array.of(...out(13)))
      // The operand size prefixes make 32-bit moves of the 16-bit code.
      again.memory.write(
        CODE,
        Uint8Array.of(
          0x66,
          ...code.slice(0, 5),
          ...(code.length > 7 ? [0x66, ...code.slice(5, 10), 0x66] : []),
          ...code.slice(code.length > 7 ? 10 : 5),
        ),
      )
      again.port(13)
      assert.is(again.msr(msr), 0n, 'the host reads 0')
    }
  }
  for (const nr of [5, 10, 11]) {
    guest.memory.write(CODE, Uint8Array.of(0xb8, ...le(nr), 0x0f, 0x01, 0xd9, ...out(1)))
    guest.setRegs({ RIP: CODE })
    guest.port(1)
    assert.is(BigInt.asIntN(32, guest.reg('RAX')), -1000n, `hypercall ${nr}`)
  }
})

test('a HLT that is not intercepted takes PV_UNHALT out of CPUID', async () => {
  const guest = await RawGuest.create([0xb8, ...le(0x40000001), 0x0f, 0xa2, ...out(1)], {
    mode: 'protected',
    before: (g) => {
      g.enable(CAP.KVM_CAP_X86_DISABLE_EXITS, [2])
    },
  })
  guest.port(1)
  assert.is(BigInt.asUintN(32, guest.reg('RAX')), 0x01007e7bn)
})

test('TPR: reports of accesses, the virtual APIC page, and CR8 with a local APIC in userspace', async () => {
  // mov eax, [0xfee00080]; mov dword [0xfee00080], 0x20; out 1
  const code = [0xa1, ...le(0xfee00080), 0xc7, 0x05, ...le(0xfee00080), ...le(0x20), ...out(1), ...out(2), ...out(3)]
  const guest = await RawGuest.create(code, { mode: 'protected', irqchip: 'full' })
  const control = new Uint8Array(40)
  control[0] = 1
  assert.is(guest.call('KVM_TPR_ACCESS_REPORTING', control), 0)
  const read = guest.to('KVM_EXIT_TPR_ACCESS')
  assert.equal([read.getBigUint64(32, true), read.getUint32(40, true)], [BigInt(CODE), 0])
  assert.is(guest.reg('RIP'), BigInt(CODE + 5), 'the access is done')
  const write = guest.to('KVM_EXIT_TPR_ACCESS')
  assert.equal([write.getBigUint64(32, true), write.getUint32(40, true)], [BigInt(CODE + 5), 1])
  guest.port(1)
  assert.is(guest.get('KVM_GET_LAPIC', 1024).getUint32(0x80, true), 0x20)
  // The page: what the guest stores there is its TPR.
  const address = new Uint8Array(8)
  new DataView(address.buffer).setBigUint64(0, 0x40000000n, true)
  assert.is(guest.call('KVM_SET_VAPIC_ADDR', address), -ERRNO.EINVAL)
  new DataView(address.buffer).setBigUint64(0, BigInt(PAGE), true)
  assert.is(guest.call('KVM_SET_VAPIC_ADDR', address), 0)
  guest.port(2)
  assert.is(view(guest, PAGE, 4).getUint32(0, true), 0x20)
  guest.memory.write(PAGE, Uint8Array.of(0x50))
  guest.runView().setUint8(1, 1)
  assert.is(guest.run(), -ERRNO.EINTR)
  guest.runView().setUint8(1, 0)
  guest.port(3)

  // mov eax, 8; mov cr8, rax; mov eax, 3; mov cr8, rax; out 1
  const cr8 = await RawGuest.create([0xb8, 8, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0, 0xb8, 3, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0, ...out(1)], {
    mode: 'long',
  })
  const lowered = cr8.to('KVM_EXIT_SET_TPR')
  assert.is(lowered.getBigUint64(16, true), 3n, 'kvm_run.cr8')
  lowered.setBigUint64(16, 16n, true)
  assert.is(cr8.run(), -ERRNO.EINVAL)
  lowered.setBigUint64(16, 7n, true)
  cr8.port(1)
  assert.is(cr8.get('KVM_GET_SREGS', 312).getBigUint64(8 * 24 + 32 + 32, true), 7n, 'kvm_run.cr8 is taken over')
})

test.run()
