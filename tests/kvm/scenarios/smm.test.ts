/** In the manner of selftests x86/smm_test: SMI, the save area, RSM, and what waits while the vCPU is in system management mode. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, openKvm, REQUEST } from 'cloister'
import { RawGuest, type RawOptions, RUN_FLAGS, SREGS_CR0 } from '../api/raw-guest.ts'
import { RawMachine } from '../raw-machine.ts'

const SMBASE = 0x40000
const HANDLER = 0x8000
const AREA = 0xfe00
const IA32_SMBASE = 0x9e
const SMI_COUNT = 0x34
const EVENT = { PENDING_NMI: 13, NMI_MASKED: 14, FLAGS: 20, SMM: 24, SMI_PENDING: 25, INSIDE_NMI: 26, LATCHED_INIT: 27 }

// mov al, 0x5a; out 0xe, al; mov al, 0x5b; out 0xe, al; rsm
const handler = [0xb0, 0x5a, 0xe6, 0x0e, 0xb0, 0x5b, 0xe6, 0x0e, 0x0f, 0xaa]
// mov al, 1; out 0xe, al; mov al, 2; out 0xe, al; hlt
const guestCode = [0xb0, 0x01, 0xe6, 0x0e, 0xb0, 0x02, 0xe6, 0x0e, 0xf4]

async function boot(options: RawOptions = {}, code: readonly number[] = guestCode, smi: readonly number[] = handler) {
  const guest = await RawGuest.create(code, options)
  const smram = guest.kvm.mmap(-1, 0x10000)
  smram.write(HANDLER, Uint8Array.from(smi))
  guest.must(guest.slot((1 << 16) | 1, SMBASE, smram), 'SMRAM in address space 1')
  assert.is(guest.msr(IA32_SMBASE, SMBASE), BigInt(SMBASE))
  const area = (): DataView => new DataView(smram.read(AREA, 512).buffer)
  return { guest, smram, area }
}

for (const mode of ['real', 'protected', 'long'] as const) {
  for (const cpuid of mode === 'long' ? [true] : [true, false]) {
    test(`${mode} mode, ${cpuid ? '64' : '32'}-bit save area: entry, what it holds, and the way back`, async () => {
      const { guest, area } = await boot({ mode, cpuid })
      assert.is(guest.port(0xe), 1)
      guest.setRegs({ RAX: 0x1122330144556601n, RDI: 0x1234567890n, RFLAGS: 0x897 })
      const before = { regs: guest.get('KVM_GET_REGS', 144), sregs: guest.get('KVM_GET_SREGS', 312) }
      assert.is(guest.msr(SMI_COUNT), 0n)
      assert.is(guest.call('KVM_SMI'), 0)
      assert.is(guest.events().getUint8(EVENT.SMI_PENDING), 1)
      assert.is(guest.runView().getUint16(RUN_FLAGS, true), 0)

      assert.is(guest.port(0xe), 0x5a)
      assert.is(guest.runView().getUint16(RUN_FLAGS, true), 1, 'KVM_RUN_X86_SMM')
      assert.is(guest.msr(SMI_COUNT), 1n)
      const inside = guest.events()
      assert.equal(
        [EVENT.SMM, EVENT.SMI_PENDING, EVENT.INSIDE_NMI, EVENT.NMI_MASKED].map((at) => inside.getUint8(at)),
        [1, 0, 0, 1],
      )
      assert.is(guest.reg('RIP'), BigInt(HANDLER + 2))
      assert.is(guest.reg('RFLAGS'), 2n)
      const sregs = guest.get('KVM_GET_SREGS', 312)
      assert.is(sregs.getBigUint64(0, true), BigInt(SMBASE), 'CS base')
      assert.is(sregs.getUint16(12, true), SMBASE >> 4, 'CS selector')
      assert.is(sregs.getUint32(8, true), 0xffffffff, 'CS limit')
      assert.is(sregs.getBigUint64(SREGS_CR0, true) & 0x80000001n, 0n)
      assert.is(sregs.getBigUint64(SREGS_CR0 + 24, true), 0n, 'CR4')
      assert.is(sregs.getBigUint64(SREGS_CR0 + 40, true), 0n, 'EFER')

      // The OUT at which the guest stood is completed before the SMI comes in.
      const next = before.regs.getBigUint64(128, true) + 2n
      if (cpuid) {
        assert.is(area().getUint32(0xfc, true), 0x00020064, 'revision')
        assert.is(area().getUint32(0x100, true), SMBASE)
        assert.is(area().getBigUint64(0x178, true), next, 'RIP')
        assert.is(area().getBigUint64(0x170, true), 0x897n)
        assert.is(area().getBigUint64(0x1f8, true), 0x1122330144556601n, 'RAX is the last row')
        assert.is(area().getBigUint64(0x1c0, true), 0x1234567890n, 'RDI')
        assert.is(area().getBigUint64(0x158, true), before.sregs.getBigUint64(SREGS_CR0, true), 'CR0')
        assert.is(area().getBigUint64(0xd0, true), before.sregs.getBigUint64(SREGS_CR0 + 40, true), 'EFER')
        assert.is(area().getUint16(0x12, true), mode === 'long' ? 0xa09b : mode === 'protected' ? 0xc09b : 0x9b, 'CS attributes')
      } else {
        assert.is(area().getUint32(0xfc, true), 0x00020000, 'revision')
        assert.is(area().getUint32(0xf8, true), SMBASE)
        assert.is(area().getUint32(0x1f0, true), Number(next), 'EIP')
        assert.is(area().getUint32(0x1d0, true), 0x44556601, 'EAX')
        assert.is(area().getUint32(0x1f4, true), 0x897)
        assert.is(area().getUint32(0x190, true), mode === 'protected' ? 0xc09b00 : 0x9b00, 'CS flags')
      }

      assert.is(guest.port(0xe), 0x5b)
      assert.is(guest.port(0xe), 2, 'RSM went back')
      assert.is(guest.runView().getUint16(RUN_FLAGS, true), 0)
      assert.equal(
        [EVENT.SMM, EVENT.NMI_MASKED].map((at) => guest.events().getUint8(at)),
        [0, 0],
      )
      const after = guest.get('KVM_GET_SREGS', 312)
      assert.equal(new Uint8Array(after.buffer), new Uint8Array(before.sregs.buffer), 'segments and control registers')
      assert.is(guest.reg('RFLAGS'), 0x897n)
      assert.is(guest.reg('RDI'), cpuid ? 0x1234567890n : 0x34567890n)
      guest.to('KVM_EXIT_HLT')
    })
  }
}

test('what the handler writes into the save area is what RSM loads, SMBASE included', async () => {
  const { guest, smram } = await boot({ mode: 'long' })
  assert.is(guest.port(0xe), 1)
  guest.call('KVM_SMI')
  assert.is(guest.port(0xe), 0x5a)
  smram.write(AREA + 0x1f8, new Uint8Array(new BigUint64Array([0x77n]).buffer))
  smram.write(AREA + 0x100, new Uint8Array(new Uint32Array([0x48000]).buffer))
  guest.port(0xe)
  // RIP was saved behind the OUT of 1: the guest loads AL itself, so look at RAX one instruction earlier.
  guest.memory.write(0x1004, Uint8Array.of(0x90, 0x90))
  assert.is(guest.port(0xe), 0x77)
  assert.is(guest.msr(IA32_SMBASE), 0x48000n)
})

test('an SMI inside SMM waits for RSM; NMIs are masked; an INIT is latched', async () => {
  const { guest } = await boot({ irqchip: 'full' })
  guest.memory.write(8, Uint8Array.of(0x00, 0x30, 0, 0)) // vector 2 -> 0x3000
  guest.memory.write(0x3000, Uint8Array.of(0xb0, 0x22, 0xe6, 0x0e, 0xcf)) // mov al, 0x22; out 0xe, al; iret
  const top = guest.kvm.mmap(-1, 0x1000)
  top.write(0xff0, Uint8Array.of(0xb0, 0x99, 0xe6, 0x0e)) // the reset vector: mov al, 0x99; out 0xe, al
  guest.must(guest.slot(2, 0xfffff000, top), 'reset vector')
  assert.is(guest.port(0xe), 1)
  guest.call('KVM_SMI')
  assert.is(guest.port(0xe), 0x5a)
  guest.call('KVM_SMI')
  guest.call('KVM_NMI')
  assert.equal(
    [EVENT.SMI_PENDING, EVENT.PENDING_NMI].map((at) => guest.events().getUint8(at)),
    [1, 1],
  )
  assert.is(guest.port(0xe), 0x5b)
  assert.is(guest.port(0xe), 0x5a, 'the second SMI, before the NMI')
  assert.is(guest.msr(SMI_COUNT), 2n)
  assert.is(guest.port(0xe), 0x5b)
  assert.is(guest.port(0xe), 0x22, 'the NMI')
  assert.is(guest.port(0xe), 2)
  // An INIT comes while in SMM.
  guest.call('KVM_SMI')
  assert.is(guest.port(0xe), 0x5a)
  guest.events((view) => {
    view.setUint8(EVENT.LATCHED_INIT, 1)
  })
  assert.is(guest.events().getUint8(EVENT.LATCHED_INIT), 1)
  assert.is(guest.port(0xe), 0x5b, 'INIT does not end SMM')
  assert.is(guest.port(0xe), 0x99, 'after RSM the INIT is taken')
  assert.is(guest.events().getUint8(EVENT.LATCHED_INIT), 0)
})

test('NMIs that were masked before the SMI stay masked after RSM', async () => {
  const { guest } = await boot()
  assert.is(guest.port(0xe), 1)
  guest.events((view) => {
    view.setUint8(EVENT.NMI_MASKED, 1)
  })
  guest.call('KVM_SMI')
  assert.is(guest.port(0xe), 0x5a)
  assert.is(guest.events().getUint8(EVENT.INSIDE_NMI), 1)
  guest.port(0xe)
  assert.is(guest.port(0xe), 2)
  assert.is(guest.events().getUint8(EVENT.NMI_MASKED), 1)
})

test('a guest sends itself an SMI by the ICR; a halted one is woken by it', async () => {
  // mov ecx, 0x830; mov eax, 0x44200 (self, assert, SMI); xor edx, edx; wrmsr; hlt; mov al, 7; out 0xe, al
  const code = [0xb9, 0x30, 0x08, 0x00, 0x00, 0xb8, 0x00, 0x42, 0x04, 0x00, 0x31, 0xd2, 0x0f, 0x30, 0xf4, 0xb0, 0x07, 0xe6, 0x0e, 0xf4]
  const { guest } = await boot({ irqchip: 'full', mode: 'long' }, code)
  assert.is(guest.msr(0x1b, 0xfee00d00), 0xfee00d00n)
  assert.is(guest.port(0xe), 0x5a)
  assert.is(guest.port(0xe), 0x5b)
  assert.is(guest.run(), -ERRNO.EINTR, 'halted for good')
  guest.call('KVM_SMI')
  assert.is(guest.port(0xe), 0x5a)
  assert.is(guest.port(0xe), 0x5b)
  assert.is(guest.port(0xe), 7, 'KVM knows no auto-HLT restart: the guest goes on behind HLT')
})

test('save and restore inside SMM into another VM', async () => {
  const from = await boot({ mode: 'long' })
  assert.is(from.guest.port(0xe), 1)
  from.guest.call('KVM_SMI')
  assert.is(from.guest.port(0xe), 0x5a)
  from.guest.runView().setUint8(1, 1)
  assert.is(from.guest.run(), -ERRNO.EINTR, 'the OUT is completed')
  const to = await boot({ mode: 'real' })
  to.guest.memory.write(0, from.guest.memory.read(0, from.guest.memory.length))
  to.smram.write(0, from.smram.read(0, 0x10000))
  for (const [get, set, size] of [
    ['KVM_GET_SREGS', 'KVM_SET_SREGS', 312],
    ['KVM_GET_REGS', 'KVM_SET_REGS', 144],
    ['KVM_GET_DEBUGREGS', 'KVM_SET_DEBUGREGS', 128],
    ['KVM_GET_VCPU_EVENTS', 'KVM_SET_VCPU_EVENTS', 64],
  ] as const)
    to.guest.set(set, from.guest.get(get, size))
  assert.is(to.guest.port(0xe), 0x5b)
  assert.is(to.guest.port(0xe), 2, 'back in long mode')
  to.guest.to('KVM_EXIT_HLT')
})

test('RSM outside of SMM is #UD; a save area that is gone or cannot be loaded', async () => {
  const ud = await RawGuest.create([0x0f, 0xaa])
  ud.memory.write(6 * 4, Uint8Array.of(0x00, 0x30, 0, 0))
  ud.memory.write(0x3000, Uint8Array.of(0xe6, 0x0e))
  ud.port(0xe)

  const bad = await boot({ mode: 'long' })
  bad.guest.port(0xe)
  bad.guest.call('KVM_SMI')
  bad.guest.port(0xe)
  bad.smram.write(AREA + 0x158, new Uint8Array(new BigUint64Array([0x80000000n]).buffer)) // CR0: PG without PE
  bad.guest.port(0xe)
  bad.guest.to('KVM_EXIT_SHUTDOWN')

  // No memory for the save area: kvm_vm_dead.
  const dead = await RawGuest.create(guestCode)
  dead.port(0xe)
  dead.call('KVM_SMI')
  assert.is(dead.run(), -ERRNO.EIO)
  assert.is(dead.call('KVM_GET_REGS', new Uint8Array(144)), -ERRNO.EIO)
  assert.is(dead.vmCall('KVM_CHECK_EXTENSION', 0), -ERRNO.EIO)
})

test('which VM types have it', async () => {
  const amd = await openKvm({ host: 'amd' })
  for (const [type, has] of [
    ['default', 1],
    ['sev-legacy', 1],
    ['sev', 1],
    ['sev-es-legacy', 0],
    ['sev-es', 0],
    ['snp', 0],
  ] as const) {
    const machine = new RawMachine(amd, type)
    for (const step of ['init', 'vcpu'] as const) machine.do(step)
    assert.is(machine.ioctl('KVM_CHECK_EXTENSION', CAP.KVM_CAP_X86_SMM), has, type)
    assert.is(machine.ioctl('KVM_SMI', 0, machine.vcpu), has ? 0 : -ERRNO.ENOTTY, type)
    machine.close()
  }
  const tdx = new RawMachine(await openKvm({ host: 'intel' }), 'tdx')
  for (const step of ['init', 'vcpu'] as const) tdx.do(step)
  assert.is(tdx.ioctl('KVM_CHECK_EXTENSION', CAP.KVM_CAP_X86_SMM), 0)
  assert.is(tdx.kvm.ioctl(tdx.vcpu, REQUEST.KVM_SMI, 0), -ERRNO.ENOTTY)
})

test.run()
