/** What the host reads of a running SEV-ES guest of the legacy type: values of the last GHCB exit, and nothing else (B6). */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { REQUEST, type Vcpu } from 'cloister'
import { Machine } from 'cloister/vmm'

const LOAD = 0x200000
/** Where the sample guest keeps its GHCB. */
const GHCB = 0x300000n
const image = (): Uint8Array => new Uint8Array(readFileSync(new URL('../../../tests/guests/sev-es.bin', import.meta.url)))

async function start(type: 'sev-es' | 'sev-es-legacy'): Promise<{ machine: Machine; vcpu: Vcpu }> {
  const machine = await Machine.create({ type, image: { bytes: image(), load: LOAD, entry: LOAD, mode: 'long64' }, memory: 16 << 20 })
  await machine.launch()
  return { machine, vcpu: machine.vcpus[0] as Vcpu }
}

test('RAX as the GHCB gave it, other registers zero, RIP as at the launch', async () => {
  const { machine, vcpu } = await start('sev-es-legacy')
  const before = vcpu.getRegs()
  let text = ''
  for (let exits = 0; exits < 200; exits++) {
    const exit = vcpu.run({ maxInstructions: 1_000_000 })
    if (exit.reason !== 'KVM_EXIT_IO' || exit.direction !== 'out') break
    text += new TextDecoder().decode(exit.data)
    const regs = vcpu.getRegs()
    if (exit.count === 1 && exit.size === 1) assert.is(Number(regs.rax & 0xffn), exit.data[0])
    for (const name of ['rdi', 'rsp', 'rbp', 'r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const) assert.is(regs[name], 0n, name)
    assert.is(regs.rip, before.rip)
    const sregs = vcpu.getSregs()
    assert.is(sregs.cr3, 0n)
    assert.is(sregs.cs.selector, 0)
    // EFER.LME and LMA are what the launch set; SVME is the hardware's own.
    assert.is(sregs.efer & 0x1500n, 0x500n)
  }
  assert.ok(text.length > 20, text)
  assert.equal(machine.kvm.kernel.internalErrors, [])
  machine[Symbol.dispose]()
})

test('registers set while an exit is completed reach the GHCB', async () => {
  const { machine, vcpu } = await start('sev-es-legacy')
  assert.is(vcpu.run({ maxInstructions: 1_000_000 }).reason, 'KVM_EXIT_IO')
  vcpu.setRegs({ ...vcpu.getRegs(), rbx: 0x5501n, rcx: 0x5502n, rdx: 0x5503n, rsi: 0x5504n })
  // The exit is completed, and the guest has not looked yet.
  vcpu.runRaw(1)
  const slot = [...vcpu.vm.file.slots.values()].find((s) => GHCB >= s.gpa && GHCB < s.gpa + s.size)
  assert.ok(slot)
  const page = machine.kvm.kernel.memory.copyIn((slot?.userspaceAddr ?? 0n) + GHCB - (slot?.gpa ?? 0n), 4096) as Uint8Array
  const at = (offset: number): bigint => new DataView(page.buffer).getBigUint64(offset, true)
  // sev_es_sync_to_ghcb: RBX, RCX, RDX (GHCB offsets 0x318, 0x308, 0x310); RSI is the guest's alone.
  assert.equal([at(0x318), at(0x308), at(0x310)], [0x5501n, 0x5502n, 0x5503n])
  assert.is.not(at(0x330), 0x5504n)
  machine[Symbol.dispose]()
})

test('an SMI that userspace forces on a sealed vCPU shows nothing of it', async () => {
  for (const type of ['sev-es', 'sev-es-legacy'] as const) {
    const { machine, vcpu } = await start(type)
    assert.is(vcpu.run({ maxInstructions: 1_000_000 }).reason, 'KVM_EXIT_IO')
    const { kvm } = machine
    const smram = kvm.mmap(-1, 0x10000)
    const region = new Uint8Array(32)
    const view = new DataView(region.buffer)
    view.setUint32(0, 0x10000, true) // address space 1
    view.setBigUint64(8, 0x30000n, true)
    view.setBigUint64(16, 0x10000n, true)
    view.setBigUint64(24, smram.address, true)
    assert.is(kvm.ioctl(vcpu.vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, region), 0)
    const events = new Uint8Array(64)
    new DataView(events.buffer).setUint32(20, 8, true) // KVM_VCPUEVENT_VALID_SMM
    events[25] = 1
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_VCPU_EVENTS, events), 0)
    vcpu.runRaw(100)
    const saved = new DataView(smram.read(0xfe00, 512).buffer)
    assert.is(saved.getUint32(0xfc, true), 0x20064, 'the save area was written')
    // RIP, RFLAGS, CR3, RSP, the segments: nothing that the GHCB did not tell.
    for (const at of [0x178, 0x170, 0x150, 0x158, 0x148, 0xd0, 0x180 + 11 * 8, 0x10, 0x18, 0x60, 0x68])
      assert.is(saved.getBigUint64(at, true), 0n, `${type}: save area at 0x${at.toString(16)}`)
    assert.equal(kvm.kernel.internalErrors, [])
    machine[Symbol.dispose]()
  }
})

test('the newer type refuses every read, and the guest runs on', async () => {
  const { machine, vcpu } = await start('sev-es')
  const exit = vcpu.run({ maxInstructions: 1_000_000 })
  assert.is(exit.reason, 'KVM_EXIT_IO')
  assert.throws(() => vcpu.getRegs(), /guest_state_protected/)
  assert.is(vcpu.run({ maxInstructions: 1_000_000 }).reason, 'KVM_EXIT_IO')
  machine[Symbol.dispose]()
})

test('a flipped ciphertext bit makes the guest fail', async () => {
  const { machine, vcpu } = await start('sev-es')
  // The page that is executed: its granules decrypt to garbage.
  const slot = [...vcpu.vm.file.slots.values()].find((s) => BigInt(LOAD) >= s.gpa && BigInt(LOAD) < s.gpa + s.size)
  assert.ok(slot)
  const address = (slot?.userspaceAddr ?? 0n) + BigInt(LOAD) - (slot?.gpa ?? 0n)
  const { memory } = machine.kvm.kernel
  const bytes = memory.copyIn(address, 64) as Uint8Array
  assert.ok(
    memory.copyOut(
      address,
      bytes.map((b) => b ^ 1),
    ),
  )
  const exit = vcpu.run({ maxInstructions: 1_000_000 })
  assert.is.not(exit.reason, 'KVM_EXIT_IO')
  machine[Symbol.dispose]()
})

test.run()
