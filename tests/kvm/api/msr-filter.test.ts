/** KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR as a guest meets them; userspace's own access is never filtered. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO } from 'cloister'
import { RawGuest } from './raw-guest.ts'

const DEF_TYPE = 0x2ff
const FIX_64K = 0x250
/** KVM_MSR_EXIT_REASON_FILTER. */
const FILTER = 4
/** MOV ECX, index; RDMSR or WRMSR. */
const access = (index: number, write = false): number[] => [0x66, 0xb9, index & 255, (index >> 8) & 255, 0, 0, 0x0f, write ? 0x30 : 0x32]
const HLT = 0xf4

/** One range of MSRs from `base` whose bit says allowed. */
function filter(guest: RawGuest, flags: number, range: { flags: number; count: number; base: number; bits: number } | null): number {
  const bytes = new Uint8Array(392)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, flags, true)
  if (range !== null) {
    const bitmap = guest.kvm.mmap(-1, 4096)
    bitmap.write(0, Uint8Array.of(range.bits))
    view.setUint32(8, range.flags, true)
    view.setUint32(12, range.count, true)
    view.setUint32(16, range.base, true)
    view.setBigUint64(24, bitmap.address, true)
  }
  return guest.vmCall('KVM_X86_SET_MSR_FILTER', bytes)
}

test('a denied read exits with its index, the answer is what the guest reads; userspace reads the register', async () => {
  const guest = await RawGuest.create([...access(DEF_TYPE), ...access(FIX_64K), HLT])
  guest.must(guest.enable(CAP.KVM_CAP_X86_USER_SPACE_MSR, [FILTER]), 'user-space MSRs')
  assert.is(guest.msr(DEF_TYPE, 0xc06), 0xc06n)
  // Reads (1) of 0x2ff alone are denied.
  assert.is(filter(guest, 0, { flags: 1, count: 1, base: DEF_TYPE, bits: 0 }), 0)
  const run = guest.to('KVM_EXIT_X86_RDMSR')
  assert.is(run.getUint32(44, true), DEF_TYPE)
  assert.is(run.getUint32(40, true), FILTER)
  assert.is(guest.msr(DEF_TYPE), 0xc06n)
  run.setBigUint64(48, 0x1234n, true)
  // The second one passes, then the guest halts.
  guest.to('KVM_EXIT_HLT')
  assert.is(guest.reg('RAX'), 0n)
  guest.close()
})

test('a write is denied apart from reads, an error of userspace is #GP', async () => {
  // The handler of #GP (vector 13 of the real-mode table at 0) is at 0x2000.
  const guest = await RawGuest.create([...access(DEF_TYPE), ...access(DEF_TYPE, true), HLT])
  guest.memory.write(13 * 4, Uint8Array.of(0, 0x20, 0, 0))
  guest.memory.write(0x2000, Uint8Array.of(0xb0, 0x77, 0xe6, 0x10)) // MOV AL, 0x77; OUT 0x10
  guest.must(guest.enable(CAP.KVM_CAP_X86_USER_SPACE_MSR, [FILTER]), 'user-space MSRs')
  assert.is(filter(guest, 0, { flags: 2, count: 1, base: DEF_TYPE, bits: 0 }), 0)
  const run = guest.to('KVM_EXIT_X86_WRMSR')
  assert.is(run.getUint32(44, true), DEF_TYPE)
  run.setUint8(32, 1)
  assert.is(guest.port(0x10), 0x77)
  guest.close()
})

test('without the capability a denied access is #GP at once; DEFAULT_DENY reaches what no range names; no ranges lift it', async () => {
  const guest = await RawGuest.create([...access(DEF_TYPE), 0xe6, 0x11, HLT])
  guest.memory.write(13 * 4, Uint8Array.of(0, 0x20, 0, 0))
  guest.memory.write(0x2000, Uint8Array.of(0xe6, 0x10))
  assert.is(filter(guest, 1, null), -ERRNO.EINVAL, 'DEFAULT_DENY without a range')
  assert.is(filter(guest, 1, { flags: 3, count: 1, base: 0x10, bits: 1 }), 0)
  guest.port(0x10)
  assert.is(filter(guest, 0, null), 0)
  guest.setRegs({ RIP: 0x1000 })
  guest.port(0x11)
  guest.close()
})

test('MTRRs and the APIC base have 36 address bits without CPUID leaf 0x80000008 (cpuid_query_maxphyaddr)', async () => {
  const bare = await RawGuest.create([0xf4], { irqchip: 'full', cpuid: false })
  const full = await RawGuest.create([0xf4], { irqchip: 'full' })
  for (const [index, value, without] of [
    [0x200, 1n << 35n, true],
    [0x200, 1n << 36n, false],
    [0x201, (1n << 35n) | 0x800n, true],
    [0x201, 1n << 41n, false],
    [0x1b, (1n << 35n) | 0x900n, true],
    [0x1b, (1n << 36n) | 0x900n, false],
  ] as const) {
    assert.is(bare.msr(index, value) !== null, without, `${index.toString(16)} ${value.toString(16)}`)
    assert.is.not(full.msr(index, value), null)
  }
  bare.close()
  full.close()
})

test.run()
