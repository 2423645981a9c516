/**
 * SEND_* and RECEIVE_*: a SEV guest goes to another platform (another `openKvm` with another chip) page by page and goes on
 * there. In the manner of the kernel's SEV selftests; orders and answers follow arch/x86/kvm/svm/sev.c.
 */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { GUEST_STATE, type Kvm, openKvm, type Vcpu, type Vm, type VmType } from 'cloister'
import { Machine } from 'cloister/vmm'
import { allPages, copyVcpu, movePages, sameSlots } from '../../support/migration.ts'

const IMAGE = new Uint8Array(readFileSync(new URL('../../../../tests/guests/sev.bin', import.meta.url)))
const IMAGE_AT = 0x200000
const LINES = 40

/** Where the VMM has this guest-physical address. */
function hva(vm: Vm, gpa: number): bigint {
  const at = BigInt(gpa)
  for (const slot of vm.file.slots.values()) if (at >= slot.gpa && at < slot.gpa + slot.size) return slot.userspaceAddr + at - slot.gpa
  throw new RangeError(`no memory at 0x${gpa.toString(16)}`)
}

/** Runs until `lines` lines are printed; pages that the guest declares shared are noted. */
function read(vcpu: Vcpu, lines: number, shared: Set<number>): string {
  let text = ''
  for (let exits = 0; exits < lines * 17 + 10; exits++) {
    const exit = vcpu.run({ maxInstructions: 1_000_000 })
    if (exit.reason === 'KVM_EXIT_HYPERCALL') {
      assert.is(exit.nr, 12n)
      shared.add(Number(exit.args[0]))
      vcpu.runView.setBigUint64(88, 0n, true)
    } else if (exit.reason === 'KVM_EXIT_IO') text += new TextDecoder().decode(exit.data)
    else throw new Error(`${exit.reason} after ${text}`)
    if (text.endsWith('\n') && text.split('\n').length > lines) break
  }
  return text
}

async function start(type: VmType, policy: bigint, seed: number): Promise<Machine> {
  const machine = await Machine.create({
    type,
    policy,
    seed,
    image: { bytes: IMAGE, load: 0x200000, entry: 0x200000, mode: 'long64' },
    memory: 6 << 20,
  })
  machine.vm.enableCap('KVM_CAP_EXIT_HYPERCALL', [1 << 12])
  machine.launch()
  return machine
}

/** What the guest prints when nobody moves it. */
async function unmoved(type: VmType): Promise<string> {
  const machine = await start(type, 0n, 1)
  const text = read(machine.vcpus[0] as Vcpu, LINES, new Set())
  machine[Symbol.dispose]()
  return text
}

function target(kvm: Kvm, source: Machine): { vm: Vm; mappings: ReturnType<typeof sameSlots> } {
  const vm = kvm.createVm(source.vm.type)
  vm.sevInit()
  if (source.vm.file.irqchip !== 'none') vm.createIrqchip()
  return { vm, mappings: sameSlots(source.vm, vm) }
}

for (const type of ['sev', 'sev-legacy'] as const) {
  test(`${type}: stop and copy; the guest goes on with the right memory and registers`, async () => {
    const want = await unmoved(type)
    const source = await start(type, 0n, 1)
    const shared = new Set<number>()
    let text = read(source.vcpus[0] as Vcpu, 13, shared)
    assert.equal([...shared], [0x300000])
    const there = await openKvm({ memory: 256 << 20, seed: 2n })
    const { vm, mappings } = target(there, source)

    const session = source.vm.sendStart(there.sevCertificates())
    assert.is(source.vm.guestStatus().state, GUEST_STATE.SENDING)
    vm.receiveStart({ policy: 0, pdh: source.kvm.sevCertificates().pdh, session })
    assert.is(vm.guestStatus().state, GUEST_STATE.RECEIVING)
    movePages(
      source.vm,
      vm,
      allPages(source.vm, mappings, (gpa) => shared.has(gpa)),
    )
    const vcpu = vm.createVcpu(0)
    copyVcpu(source.vcpus[0] as Vcpu, vcpu)
    source.vm.sendFinish()
    assert.is(source.vm.guestStatus().state, GUEST_STATE.SENT)
    vm.receiveFinish()
    assert.is(vm.guestStatus().state, GUEST_STATE.RUNNING)

    // The platforms have different keys: the same plaintext is other ciphertext.
    const here = source.kvm.kernel.memory.copyIn(hva(source.vm, IMAGE_AT), 4096) as Uint8Array
    const arrived = there.kernel.memory.copyIn(hva(vm, IMAGE_AT), 4096) as Uint8Array
    assert.is.not(Buffer.compare(here, arrived), 0)
    source[Symbol.dispose]()
    text += read(vcpu, LINES - 13, shared)
    assert.is(text, want)
    // The guest's own page is readable here and says how far it came.
    const done = there.kernel.memory.copyIn(hva(vm, 0x300000), 8) as Uint8Array
    assert.is(new DataView(done.buffer).getBigUint64(0, true), BigInt(LINES))
    assert.equal(there.kernel.internalErrors, [])
  })
}

test('live: the guest runs while its memory is sent; dirty pages are sent again', async () => {
  const want = await unmoved('sev')
  const source = await start('sev', 0n, 1)
  const shared = new Set<number>()
  const from = source.vcpus[0] as Vcpu
  let text = read(from, 5, shared)
  const there = await openKvm({ memory: 256 << 20, seed: 3n })
  const { vm, mappings } = target(there, source)
  // The slot above 1 MiB holds all that this guest works on.
  const slot = [...source.vm.file.slots.values()].find(({ gpa }) => gpa === 0x100000n)
  assert.ok(slot)
  const region = { slot: slot.id, guestPhysAddr: slot.gpa, memorySize: slot.size, userspaceAddr: slot.userspaceAddr }
  source.vm.setUserMemoryRegion({ ...region, flags: 1 })
  const bitmap = source.kvm.mmap(-1, 4096)
  const dirty = (): Uint8Array => {
    const bytes = new Uint8Array(16)
    new DataView(bytes.buffer).setUint32(0, slot.id, true)
    new DataView(bytes.buffer).setBigUint64(8, bitmap.address, true)
    source.vm.ioctl('KVM_GET_DIRTY_LOG', bytes)
    return bitmap.read(0, 4096)
  }
  vm.receiveStart({
    policy: 0,
    pdh: source.kvm.sevCertificates().pdh,
    session: source.vm.sendStart(there.sevCertificates()),
  })
  dirty()
  movePages(
    source.vm,
    vm,
    allPages(source.vm, mappings, (gpa) => shared.has(gpa)),
  )
  for (let round = 0; round < 3; round++) {
    if (round < 2) text += read(from, 4, shared)
    const bits = dirty()
    const pages = [...allPages(source.vm, mappings, (gpa) => shared.has(gpa))].filter(
      ({ at, target: to }) => to === mappings.get(slot.id) && ((bits[at >> 15] as number) >> ((at >> 12) & 7)) & 1,
    )
    const sent = movePages(source.vm, vm, pages)
    if (round < 2) assert.ok(sent >= 4 && sent < 40, `round ${round}: ${sent} pages`)
    else assert.is(sent, 0)
  }
  const vcpu = vm.createVcpu(0)
  copyVcpu(from, vcpu)
  source.vm.sendFinish()
  vm.receiveFinish()
  text += read(vcpu, LINES - 13, shared)
  assert.is(text, want)
})

test('KVM_HC_MAP_GPA_RANGE: an exit with KVM_CAP_EXIT_HYPERCALL, -KVM_ENOSYS for the guest without it', async () => {
  for (const [enabled, want] of [
    [true, 0n],
    [false, -1000n],
  ] as const) {
    const machine = await Machine.create({
      type: 'sev',
      policy: 0n,
      image: { bytes: IMAGE, load: IMAGE_AT, entry: IMAGE_AT, mode: 'long64' },
      memory: 6 << 20,
    })
    if (enabled) machine.vm.enableCap('KVM_CAP_EXIT_HYPERCALL', [1 << 12])
    machine.launch()
    const shared = new Set<number>()
    read(machine.vcpus[0] as Vcpu, 1, shared)
    assert.is(shared.size, enabled ? 1 : 0)
    // The guest keeps the answer behind 16 digits, a word and a quadword (tests/guests/sev.S); the policy allows to look.
    const out = machine.kvm.mmap(-1, 4096)
    const command = new Uint8Array(24)
    const view = new DataView(command.buffer)
    view.setBigUint64(0, hva(machine.vm, IMAGE_AT), true)
    view.setBigUint64(8, out.address, true)
    view.setUint32(16, 4096, true)
    machine.vm.sevCommand('KVM_SEV_DBG_DECRYPT', command)
    const image = Buffer.from(out.read(0, 4096))
    const digits = image.indexOf('0123456789abcdef')
    assert.is(image.readBigInt64LE(((digits + 18 + 15) & ~15) + 8), want)
  }
})

test('cancelled: the guest goes on where it is, and may be sent again, also to its own platform', async () => {
  const want = await unmoved('sev')
  const source = await start('sev', 0n, 1)
  const shared = new Set<number>()
  const from = source.vcpus[0] as Vcpu
  let text = read(from, 7, shared)
  const certificates = source.kvm.sevCertificates()
  source.vm.sendStart(certificates)
  source.vm.sendUpdateData(hva(source.vm, IMAGE_AT))
  source.vm.sendCancel()
  assert.is(source.vm.guestStatus().state, GUEST_STATE.RUNNING)
  text += read(from, 6, shared)
  const { vm, mappings } = target(source.kvm, source)
  vm.receiveStart({ policy: 0, pdh: certificates.pdh, session: source.vm.sendStart(certificates) })
  movePages(
    source.vm,
    vm,
    allPages(source.vm, mappings, (gpa) => shared.has(gpa)),
  )
  const vcpu = vm.createVcpu(0)
  copyVcpu(from, vcpu)
  source.vm.sendFinish()
  vm.receiveFinish()
  text += read(vcpu, LINES - 13, shared)
  assert.is(text, want)
})

test('the same guest inside one host: KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM over the same memory', async () => {
  const want = await unmoved('sev-legacy')
  const source = await start('sev-legacy', 0n, 1)
  const from = source.vcpus[0] as Vcpu
  const shared = new Set<number>()
  let text = read(from, 13, shared)
  const vm = source.kvm.createVm('sev-legacy')
  if (source.vm.file.irqchip !== 'none') vm.createIrqchip()
  for (const { id, gpa, size, userspaceAddr } of source.vm.file.slots.values())
    vm.setUserMemoryRegion({ slot: id, guestPhysAddr: gpa, memorySize: size, userspaceAddr })
  const vcpu = vm.createVcpu(0)
  // Registers of a SEV guest are the VMM's business, and have to be read before the source is dead.
  copyVcpu(from, vcpu)
  assert.is(vm.enableCap('KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM', [source.vm.fd]), 0)
  assert.is(from.runRaw(1), -5)
  text += read(vcpu, LINES - 13, shared)
  assert.is(text, want)
})

test.run()
