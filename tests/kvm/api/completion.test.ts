/**
 * Answers that /dev/kvm gave otherwise (tests/kvm/oracle, seed 9): an instruction whose access userspace answered ends before what
 * userspace injected meanwhile; its single-step trap is a queued exception like others; KVM_SET_SREGS with the reset state wakes
 * the BSP; KVM_GET_FPU shows memory that XSAVES does not write while a component is in its initial state.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, RawGuest, type RawOptions } from './raw-guest.ts'

const TF = 0x100n
/** mov ax, [0x5000] through DS with base 0x80000; hlt */
const READ = [0xa1, 0x00, 0x50, 0xf4]
const MMIO_DS = 0x80000n

async function reading(options: RawOptions = {}): Promise<RawGuest> {
  const guest = await RawGuest.create(READ, options)
  const sregs = guest.get('KVM_GET_SREGS', 312)
  sregs.setBigUint64(24, MMIO_DS, true)
  guest.set('KVM_SET_SREGS', sregs)
  guest.to('KVM_EXIT_MMIO')
  guest.runView().setUint16(40, 0xbeef, true)
  // Handlers: iret, at 0x3000.
  for (const vector of [1, 2, 6]) guest.memory.write(vector * 4, Uint8Array.of(0, 0x30, 0, 0))
  guest.memory.write(0x3000, Uint8Array.of(0xe6, 0x77, 0xcf))
  return guest
}

for (const [name, edit] of [
  ['an injected NMI', (view: DataView) => view.setUint8(12, 1)],
  [
    'an injected exception',
    (view: DataView) => {
      view.setUint8(0, 1)
      view.setUint8(1, 6)
    },
  ],
] as const) {
  test(`an MMIO read is completed before ${name} is delivered`, async () => {
    const guest = await reading()
    guest.events(edit)
    guest.port(0x77)
    assert.is(guest.reg('RAX') & 0xffffn, 0xbeefn)
    assert.equal([...guest.memory.read(0x7ffa, 2)], [(CODE + 3) & 255, (CODE + 3) >> 8], 'the pushed IP')
  })

  test(`an MMIO read is completed by immediate_exit, ${name} stays`, async () => {
    const guest = await reading()
    guest.events(edit)
    guest.runView().setUint8(1, 1)
    assert.is(guest.run(), -4)
    assert.is(guest.reg('RIP'), BigInt(CODE + 3))
    assert.is(guest.reg('RAX') & 0xffffn, 0xbeefn)
    assert.is(guest.events().getUint8(name.includes('NMI') ? 12 : 0), 1)
    guest.runView().setUint8(1, 0)
    guest.port(0x77)
    assert.is(guest.reg('RIP'), 0x3000n)
  })
}

test('an access is completed on a vCPU that userspace calls halted, and it stays halted', async () => {
  for (const nmi of [false, true]) {
    const guest = await RawGuest.create(READ, { irqchip: 'full' })
    const sregs = guest.get('KVM_GET_SREGS', 312)
    sregs.setBigUint64(24, MMIO_DS, true)
    guest.set('KVM_SET_SREGS', sregs)
    guest.to('KVM_EXIT_MMIO')
    guest.runView().setUint16(40, 0xbeef, true)
    const state = new DataView(new ArrayBuffer(4))
    state.setUint32(0, 3, true)
    guest.set('KVM_SET_MP_STATE', state)
    if (nmi) assert.is(guest.call('KVM_NMI'), 0)
    guest.runView().setUint8(1, 1)
    assert.is(guest.run(), -4)
    assert.is(guest.reg('RAX') & 0xffffn, 0xbeefn)
    assert.is(guest.reg('RIP'), BigInt(CODE + 3))
    assert.is(guest.get('KVM_GET_MP_STATE', 4).getUint32(0, true), 3)
    guest.close()
  }
})

test('an access stays open while the vCPU is uninitialized', async () => {
  // kvm_arch_vcpu_ioctl_run: the MP state is looked at before complete_userspace_io (host's KVM: tests/kvm/oracle, seed 5310)
  const guest = await reading({ irqchip: 'full' })
  const state = (value: number): void => guest.set('KVM_SET_MP_STATE', new DataView(Uint32Array.of(value).buffer))
  const rip = guest.reg('RIP')
  state(1)
  for (const immediate of [1, 0]) {
    guest.runView().setUint8(1, immediate)
    assert.is(guest.run(), -4)
    assert.is(guest.reg('RIP'), rip)
  }
  state(0)
  guest.runView().setUint8(1, 1)
  assert.is(guest.run(), -4)
  assert.is(guest.reg('RIP'), rip + 3n)
  assert.is(guest.reg('RAX') & 0xffffn, 0xbeefn)
})

test('a step that KVM makes itself leaves dr7 in kvm_run alone', async () => {
  // out 0x10, al; nop; nop
  const guest = await RawGuest.create([0xe6, 0x10, 0x90, 0x90, 0xf4])
  guest.port(0x10)
  const debug = new DataView(new ArrayBuffer(72))
  debug.setUint32(0, 3, true)
  guest.set('KVM_SET_GUEST_DEBUG', debug)
  guest.runView().setBigUint64(56, 0x1234n, true)
  guest.to('KVM_EXIT_DEBUG')
  assert.is(guest.runView().getBigUint64(40, true), BigInt(CODE + 2))
  assert.is(guest.runView().getBigUint64(56, true), 0x1234n)
  guest.to('KVM_EXIT_DEBUG')
  assert.is(guest.runView().getBigUint64(56, true), 0x400n, 'by the CPU: db_interception')
})

test('a read leaves the data in kvm_run as they were', async () => {
  const guest = await RawGuest.create(READ)
  const sregs = guest.get('KVM_GET_SREGS', 312)
  sregs.setBigUint64(24, MMIO_DS, true)
  guest.set('KVM_SET_SREGS', sregs)
  guest.runView().setBigUint64(40, 0x1122334455667788n, true)
  guest.to('KVM_EXIT_MMIO')
  assert.is(guest.runView().getBigUint64(40, true), 0x1122334455667788n)
})

test('the trap flag of a completed port access: a pending #DB that userspace sees and can take back', async () => {
  for (const take of [false, true]) {
    // out 0x10, al; hlt
    const guest = await RawGuest.create([0xe6, 0x10, 0x90, 0xf4], { irqchip: 'none' })
    guest.memory.write(4, Uint8Array.of(0, 0x30, 0, 0))
    guest.memory.write(0x3000, Uint8Array.of(0xe6, 0x77))
    guest.port(0x10)
    guest.setRegs({ RFLAGS: 2n | TF })
    guest.runView().setUint8(1, 1)
    assert.is(guest.run(), -4)
    guest.runView().setUint8(1, 0)
    assert.is(guest.reg('RIP'), BigInt(CODE + 2))
    const events = guest.events()
    assert.equal(
      [0, 1, 2, 3].map((at) => events.getUint8(at)),
      [1, 1, 0, 1],
      'exception injected, nr, has_error_code, pending',
    )
    guest.setRegs({ RFLAGS: 2 })
    // __set_regs forgets a pending exception.
    assert.is(guest.events().getUint8(0), 0)
    if (take) guest.to('KVM_EXIT_HLT')
    else {
      guest.events((view) => {
        view.setUint8(0, 1)
        view.setUint8(1, 1)
      })
      guest.port(0x77)
    }
    guest.close()
  }
})

test('KVM_SET_SREGS with the reset state wakes a halted BSP, KVM_SET_REGS does not', async () => {
  const guest = await RawGuest.create([0xf4], { irqchip: 'full' })
  const other = guest.addVcpu(1)
  const state = (fd: number, value?: number): number => {
    const view = new DataView(new ArrayBuffer(4))
    if (value !== undefined) {
      view.setUint32(0, value, true)
      guest.set('KVM_SET_MP_STATE', view, fd)
    }
    return guest.get('KVM_GET_MP_STATE', 4, fd).getUint32(0, true)
  }
  for (const [fd, ends] of [
    [guest.vcpu, 0],
    [other, 3],
  ] as const) {
    guest.setRegs({ RIP: 0xfff0 }, fd)
    const sregs = guest.get('KVM_GET_SREGS', 312, fd)
    assert.is(state(fd, 3), 3)
    guest.set('KVM_SET_SREGS', sregs, fd)
    assert.is(state(fd), 3, 'CS is not the reset one')
    sregs.setUint16(12, 0xf000, true)
    sregs.setBigUint64(0, 0xffff0000n, true)
    guest.set('KVM_SET_SREGS', sregs, fd)
    assert.is(state(fd), ends)
    state(fd, 3)
    guest.setRegs({ RIP: 0xfff0 }, fd)
    assert.is(state(fd), 3)
  }
})

test('KVM_GET_FPU after an entry that found x87 in its initial state: what KVM_SET_FPU had written', async () => {
  // out 1; fninit; fld1; out 2; fninit; out 3
  const guest = await RawGuest.create([0xe6, 1, 0xe6, 1, 0xdb, 0xe3, 0xd9, 0xe8, 0xe6, 2, 0xdb, 0xe3, 0xe6, 3])
  const fpu = guest.get('KVM_GET_FPU', 416)
  fpu.setUint16(128, 0x7f, true)
  fpu.setUint8(7, 0x55)
  fpu.setUint16(134, 0x3bff, true)
  fpu.setUint8(160, 0x77)
  guest.set('KVM_SET_FPU', fpu)
  const raw = guest.get('KVM_GET_FPU', 416)
  assert.equal([raw.getUint16(134, true), raw.getUint8(160)], [0x3bff, 0x77], 'as written')
  guest.port(1)
  assert.is(guest.get('KVM_GET_FPU', 416).getUint8(160), 0, 'XMM is always saved')
  const now = guest.get('KVM_GET_FPU', 416)
  assert.is(now.getUint16(128, true), 0x7f)
  assert.is(now.getUint8(7), 0x55)
  // fpu_copy_guest_fpstate_to_uabi looks at XSTATE_BV: the guest itself has the initial state.
  const area = guest.get('KVM_GET_XSAVE', 4096)
  assert.is(area.getUint16(0, true), 0x37f)
  assert.is(area.getUint8(39), 0)
  guest.port(1)
  guest.port(2)
  assert.is(guest.get('KVM_GET_FPU', 416).getUint16(128, true), 0x37f, 'in use')
})

test.run()
