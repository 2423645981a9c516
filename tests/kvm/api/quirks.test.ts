/** What disabled quirks, disabled exits and the small VM switches change for a guest. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO } from 'cloister'
import { CODE, RawGuest, type RawOptions } from './raw-guest.ts'

const QUIRK = { LINT0: 1, MMIO_HOLE: 4, OUT_7E: 8, NO_MWAIT: 16, HYPERCALL: 32, MWAIT_UD: 64, STUFF: 256 }

const without = (quirks: number, options: RawOptions = {}): RawOptions => ({
  ...options,
  before: (guest) => {
    assert.is(guest.enable(CAP.KVM_CAP_DISABLE_QUIRKS2, [quirks]), 0)
  },
})

/** Real-mode handlers of #UD (6) and #GP (13) that leave through ports 6 and 13. */
function handlers(guest: RawGuest): void {
  for (const vector of [6, 13]) {
    guest.memory.write(vector * 4, Uint8Array.of(0, 0x20 + vector, 0, 0))
    guest.memory.write(0x2000 + vector * 256, Uint8Array.of(0xe6, vector, 0xf4))
  }
}

const port = (guest: RawGuest): number => guest.to('KVM_EXIT_IO').getUint16(34, true)

test('LINT0_REENABLED: LVT0 of the boot processor', async () => {
  const lvt0 = async (options: RawOptions): Promise<number> => {
    const guest = await RawGuest.create([0xf4], { irqchip: 'full', ...options })
    return guest.get('KVM_GET_LAPIC', 1024).getUint32(0x350, true)
  }
  assert.is(await lvt0({}), 0x700)
  assert.is(await lvt0(without(QUIRK.LINT0, { irqchip: 'full' })), 0x10000)
})

test('LAPIC_MMIO_HOLE: the page of a disabled APIC', async () => {
  // mov eax, [0xfee00020]; out 1, al
  const code = [0xa1, 0x20, 0x00, 0xe0, 0xfe, 0xe6, 0x01]
  const guest = await RawGuest.create(code, { irqchip: 'full', mode: 'protected' })
  guest.msr(0x1b, 0xfee00100)
  assert.is(guest.port(1), 0xff)
  const bare = await RawGuest.create(code, without(QUIRK.MMIO_HOLE, { irqchip: 'full', mode: 'protected' }))
  bare.msr(0x1b, 0xfee00100)
  assert.is(bare.to('KVM_EXIT_MMIO').getBigUint64(32, true), 0xfee00020n)
  bare.runView().setUint32(40, 0x77, true)
  assert.is(bare.port(1), 0x77)
})

test('OUT_7E_INC_RIP: where RIP stands at the exit', async () => {
  const quirky = await RawGuest.create([0xe6, 0x7e, 0xf4])
  quirky.port(0x7e)
  assert.is(quirky.reg('RIP'), BigInt(CODE + 2))
  quirky.to('KVM_EXIT_HLT')
  const straight = await RawGuest.create([0xe6, 0x7e, 0xf4], without(QUIRK.OUT_7E))
  straight.port(0x7e)
  assert.is(straight.reg('RIP'), BigInt(CODE))
  straight.to('KVM_EXIT_HLT')
})

test('MONITOR and MWAIT (monitor_mwait_test)', async () => {
  // xor ecx, ecx; monitor; mwait; out 1, al
  const code = [0x66, 0x31, 0xc9, 0x0f, 0x01, 0xc8, 0x0f, 0x01, 0xc9, 0xe6, 0x01]
  const first = async (quirks: number, misc: boolean): Promise<number> => {
    const guest = await RawGuest.create(code, quirks === 0 ? {} : without(quirks))
    handlers(guest)
    if (misc) assert.is(guest.msr(0x1a0, 0x41800), 0x41800n)
    return port(guest)
  }
  assert.is(await first(0, false), 1, 'no-ops')
  assert.is(await first(QUIRK.MWAIT_UD, false), 6, 'the guest has no MWAIT in CPUID')
  assert.is(await first(QUIRK.MWAIT_UD | QUIRK.NO_MWAIT, false), 6)
  assert.is(await first(QUIRK.MWAIT_UD | QUIRK.NO_MWAIT, true), 1, 'IA32_MISC_ENABLE decides')
  assert.is(await first(QUIRK.NO_MWAIT, false), 1)
})

test('MISC_ENABLE_NO_MWAIT: the bit shows in CPUID when the quirk is off', async () => {
  // mov eax, 1; cpuid; mov al, cl; out 1, al
  const code = [0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x0f, 0xa2, 0x88, 0xc8, 0xe6, 0x01]
  const cl = async (options: RawOptions): Promise<number> => {
    const guest = await RawGuest.create(code, options)
    guest.msr(0x1a0, 0x41800)
    return guest.port(1) & 8
  }
  assert.is(await cl({}), 0)
  assert.is(await cl(without(QUIRK.NO_MWAIT)), 8)
})

test('FIX_HYPERCALL_INSN: VMCALL becomes VMMCALL in memory, or #UD (fix_hypercall_test)', async () => {
  // mov eax, 0x5555; vmcall; out 1, al
  const code = [0x66, 0xb8, 0x55, 0x55, 0x00, 0x00, 0x0f, 0x01, 0xc1, 0xe6, 0x01]
  const fixed = await RawGuest.create(code)
  handlers(fixed)
  assert.is(port(fixed), 1)
  assert.is(BigInt.asUintN(32, fixed.reg('RAX')), 0xfffffc18n, '-KVM_ENOSYS')
  assert.equal([...fixed.memory.read(CODE + 6, 3)], [0x0f, 0x01, 0xd9])
  const bare = await RawGuest.create(code, without(QUIRK.HYPERCALL))
  handlers(bare)
  assert.is(port(bare), 6)
  assert.equal([...bare.memory.read(CODE + 6, 3)], [0x0f, 0x01, 0xc1])
  // A page that cannot be written: #PF. With paging, at CODE.
  const readonly = await RawGuest.create(code.slice(1), { mode: 'long' })
  readonly.memory.write(0x12000, new Uint8Array(new BigUint64Array(512).map((_, i) => (BigInt(i) << 21n) | 0x81n).buffer))
  readonly.memory.write(0x11000, new Uint8Array(new BigUint64Array([0x12003n]).buffer))
  assert.is(readonly.run(), 0)
  assert.is(readonly.runView().getUint32(8, true), 8, 'KVM_EXIT_SHUTDOWN: the #PF finds no handler')
})

test('STUFF_FEATURE_MSRS: what a new vCPU reads', async () => {
  const values = async (options: RawOptions): Promise<(bigint | null)[]> => {
    const guest = await RawGuest.create([0xf4], options)
    return [guest.msr(0x8b), guest.msr(0xce)]
  }
  assert.equal(await values({}), [0x1000065n, 0x80000000n])
  assert.equal(await values(without(QUIRK.STUFF)), [0n, 0n])
})

test('KVM_CAP_MSR_PLATFORM_INFO: #GP for the guest, not for the host (platform_info_test)', async () => {
  // mov ecx, 0xce; rdmsr; out 1, al
  const guest = await RawGuest.create([0x66, 0xb9, 0xce, 0x00, 0x00, 0x00, 0x0f, 0x32, 0xe6, 0x01, 0xf4])
  handlers(guest)
  assert.is(guest.msr(0xce, 0x80001200), 0x80001200n)
  assert.is(port(guest), 1)
  assert.is(BigInt.asUintN(32, guest.reg('RAX')), 0x80001200n)
  assert.is(guest.enable(CAP.KVM_CAP_MSR_PLATFORM_INFO, [0]), 0)
  guest.setRegs({ RIP: CODE })
  assert.is(port(guest), 13)
  assert.is(guest.msr(0xce), 0x80001200n)
})

test('KVM_CAP_X86_DISABLE_EXITS: HLT waits in the processor, MWAIT checks its operands, APERF counts', async () => {
  const disable = (exits: number, options: RawOptions = {}): RawOptions => ({
    ...options,
    before: (guest) => {
      assert.is(guest.enable(CAP.KVM_CAP_X86_DISABLE_EXITS, [exits]), 0)
    },
  })
  const hlt = await RawGuest.create([0xf4, 0xe6, 0x01], disable(2))
  assert.is(hlt.run(), -ERRNO.EINTR, 'no KVM_EXIT_HLT')
  assert.is(hlt.get('KVM_GET_MP_STATE', 4).getUint32(0, true), 0, 'KVM knows of no halt')
  hlt.port(1)
  const wait = await RawGuest.create([0x66, 0xb9, 0x02, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xc9, 0xe6, 0x01], disable(1))
  handlers(wait)
  assert.is(port(wait), 13, 'ECX bit 1 is not an extension of MWAIT')
  const counter = [0x66, 0xb9, 0xe8, 0x00, 0x00, 0x00, 0x0f, 0x32, 0x66, 0x89, 0xc3, 0x0f, 0x32, 0x66, 0x29, 0xd8, 0xe6, 0x01]
  const aperf = await RawGuest.create(counter, disable(16))
  handlers(aperf)
  assert.is(port(aperf), 1)
  assert.ok(BigInt.asUintN(32, aperf.reg('RAX')) > 0n)
  const trapped = await RawGuest.create(counter)
  handlers(trapped)
  assert.is(port(trapped), 13)
})

test('KVM_CAP_EXIT_ON_EMULATION_FAILURE: x87 on MMIO (exit_on_emulation_failure_test)', async () => {
  // mov eax, 0xd0000000; fld dword [eax]; out 1, al
  const code = [0xb8, 0x00, 0x00, 0x00, 0xd0, 0xd9, 0x00, 0xe6, 0x01]
  const guest = await RawGuest.create(code, { mode: 'protected' })
  assert.is(guest.enable(CAP.KVM_CAP_EXIT_ON_EMULATION_FAILURE, [1]), 0)
  const exit = guest.to('KVM_EXIT_INTERNAL_ERROR')
  assert.equal([exit.getUint32(32, true), exit.getBigUint64(40, true)], [1, 1n], 'KVM_INTERNAL_ERROR_EMULATION, INSTRUCTION_BYTES')
  assert.ok(exit.getUint32(36, true) >= 3)
  assert.ok(exit.getUint8(48) >= 2)
  assert.equal([exit.getUint8(49), exit.getUint8(50)], [0xd9, 0x00])
  assert.is(guest.reg('RIP'), BigInt(CODE + 5))
  guest.setRegs({ RIP: CODE + 7 })
  guest.port(1)
})

test('KVM_CAP_X86_APIC_BUS_CYCLES_NS: the timer counts in bus cycles', async () => {
  // Read TMCCT, burn time with port reads of the caller, read it again.
  const code = [0xa1, 0x90, 0x03, 0xe0, 0xfe, 0xe6, 0x01, 0xe6, 0x02, 0xa1, 0x90, 0x03, 0xe0, 0xfe, 0xe6, 0x01]
  const ticks = async (ns: number): Promise<number> => {
    const guest = await RawGuest.create(code, {
      irqchip: 'full',
      mode: 'protected',
      before: (g) => {
        if (ns !== 1) assert.is(g.enable(CAP.KVM_CAP_X86_APIC_BUS_CYCLES_NS, [ns]), 0)
        assert.is(g.cap(CAP.KVM_CAP_X86_APIC_BUS_CYCLES_NS), ns)
      },
    })
    const lapic = guest.get('KVM_GET_LAPIC', 1024)
    lapic.setUint32(0xf0, 0x1ff, true)
    lapic.setUint32(0x3e0, 0xb, true) // divide by 1
    lapic.setUint32(0x380, 1_000_000, true)
    guest.set('KVM_SET_LAPIC', lapic)
    guest.port(1)
    const first = Number(guest.reg('RAX'))
    guest.port(2)
    guest.port(1)
    return first - Number(guest.reg('RAX'))
  }
  const [one, ten] = [await ticks(1), await ticks(10)]
  assert.ok(Math.abs(one - ten * 10) <= 20, `${one} and ${ten}`)
})

test.run()
