/** Exits for MMIO and ports as KVM's emulator leaves: which registers stand where, pieces, strings, and what comes in between. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO } from 'cloister'
import { CODE, RawGuest } from './raw-guest.ts'

const MMIO = 0xd0000000n
const out = (port: number): number[] => [0xe6, port]

/** phys_addr, len, is_write, data. */
function mmio(guest: RawGuest): [bigint, number, number, bigint] {
  const view = guest.to('KVM_EXIT_MMIO')
  const len = view.getUint32(48, true)
  return [view.getBigUint64(32, true), len, view.getUint8(52), BigInt.asUintN(len * 8, view.getBigUint64(40, true))]
}

async function long(code: readonly number[], regs: Parameters<RawGuest['setRegs']>[0] = {}): Promise<RawGuest> {
  const guest = await RawGuest.create(code, { mode: 'long' })
  guest.setRegs(regs)
  return guest
}

test('a write leaves with RIP behind it, a read with RIP on it', async () => {
  // mov [rdi], eax; mov ebx, [rdi]; out 1
  const guest = await long([0x89, 0x07, 0x8b, 0x1f, ...out(1)], { RDI: MMIO, RAX: 0x11223344 })
  assert.equal(mmio(guest), [MMIO, 4, 1, 0x11223344n])
  assert.is(guest.reg('RIP'), BigInt(CODE + 2))
  // What is left of the write: read_exit_mmio does not touch the data.
  assert.equal(mmio(guest), [MMIO, 4, 0, 0x11223344n])
  assert.is(guest.reg('RIP'), BigInt(CODE + 2))
  guest.runView().setUint32(40, 0x55667788, true)
  guest.port(1)
  assert.is(guest.reg('RBX'), 0x55667788n)
})

test('registers that the instruction changes are changed at the exit of a write', async () => {
  // push rax; stosq; xadd: reads first; call pushes too
  const guest = await long([0x50, 0x48, 0xab, ...out(1)], { RSP: MMIO + 0x100n, RDI: MMIO + 0x200n, RAX: 0x1234 })
  assert.equal(mmio(guest), [MMIO + 0xf8n, 8, 1, 0x1234n])
  assert.is(guest.reg('RSP'), MMIO + 0xf8n)
  assert.is(guest.reg('RIP'), BigInt(CODE + 1))
  assert.equal(mmio(guest), [MMIO + 0x200n, 8, 1, 0x1234n])
  assert.is(guest.reg('RDI'), MMIO + 0x208n)
  assert.is(guest.reg('RIP'), BigInt(CODE + 3))
  guest.port(1)
})

test('userspace may move RIP at the exit of a write', async () => {
  const guest = await long([0x89, 0x07, ...out(1), ...out(2)], { RDI: MMIO })
  mmio(guest)
  guest.setRegs({ RIP: CODE + 4 })
  guest.port(2)
})

test('pieces of at most 8 bytes, across a page, with RIP behind all of them at once', async () => {
  // movups [rdi], xmm0; out 1
  const guest = await long([0x0f, 0x11, 0x07, ...out(1)], { RDI: MMIO + 0xffan })
  const seen: (readonly [bigint, number])[] = []
  for (let i = 0; i < 3; i++) {
    const [at, len, write] = mmio(guest)
    assert.is(write, 1)
    assert.is(guest.reg('RIP'), BigInt(CODE + 3), `piece ${i}`)
    seen.push([at, len])
  }
  assert.equal(seen, [
    [MMIO + 0xffan, 6],
    [MMIO + 0x1000n, 8],
    [MMIO + 0x1008n, 2],
  ])
  guest.port(1)
})

test('REP STOS and REP MOVS: one exit for each element, the counter with it', async () => {
  const stos = await long([0xf3, 0xaa, ...out(1)], { RDI: MMIO, RCX: 3, RAX: 0x5a })
  for (let i = 0n; i < 3n; i++) {
    assert.equal(mmio(stos), [MMIO + i, 1, 1, 0x5an])
    assert.is(stos.reg('RCX'), 2n - i)
    assert.is(stos.reg('RDI'), MMIO + i + 1n)
    assert.is(stos.reg('RIP'), BigInt(i === 2n ? CODE + 2 : CODE), 'behind it after the last')
  }
  stos.port(1)
  // From MMIO to MMIO, downwards.
  const movs = await long([0xfd, 0xf3, 0xa5, ...out(1)], { RSI: MMIO + 0x100n, RDI: MMIO + 0x204n, RCX: 2 })
  for (let i = 0n; i < 2n; i++) {
    assert.equal(mmio(movs).slice(0, 3), [MMIO + 0x100n - i * 4n, 4, 0])
    movs.runView().setUint32(40, 0x100 + Number(i), true)
    assert.equal(mmio(movs), [MMIO + 0x204n - i * 4n, 4, 1, 0x100n + i])
    assert.is(movs.reg('RCX'), 1n - i)
  }
  movs.port(1)
})

test('read-modify-write: the read, then the write with what userspace gave', async () => {
  // lock add dword [rdi], 5; jnz +; out 2; out 1
  const guest = await long([0xf0, 0x83, 0x07, 0x05, 0x75, 0x02, ...out(2), ...out(1)], { RDI: MMIO })
  assert.equal(mmio(guest), [MMIO, 4, 0, 0n])
  guest.runView().setUint32(40, 7, true)
  assert.equal(mmio(guest), [MMIO, 4, 1, 12n])
  assert.is(guest.reg('RIP'), BigInt(CODE + 4))
  guest.port(1)
})

test('immediate_exit after a write and after a read', async () => {
  const guest = await long([0x89, 0x07, 0x8b, 0x1f, ...out(1)], { RDI: MMIO })
  mmio(guest)
  guest.runView().setUint8(1, 1)
  assert.is(guest.run(), -ERRNO.EINTR)
  assert.is(guest.reg('RIP'), BigInt(CODE + 2))
  guest.runView().setUint8(1, 0)
  mmio(guest)
  guest.runView().setUint32(40, 9, true)
  guest.runView().setUint8(1, 1)
  assert.is(guest.run(), -ERRNO.EINTR)
  assert.equal([guest.reg('RIP'), guest.reg('RBX')], [BigInt(CODE + 4), 9n], 'the read is completed before -EINTR')
  guest.runView().setUint8(1, 0)
  guest.port(1)
})

test('between the pieces of a write: immediate_exit shows the next one, an NMI waits for the end', async () => {
  const guest = await RawGuest.create([0x67, 0x66, 0x89, 0x07, ...out(1)], { mode: 'real' })
  const sregs = guest.get('KVM_GET_SREGS', 312)
  for (const n of [1, 2]) sregs.setUint32(n * 24 + 8, 0xffffffff, true)
  guest.set('KVM_SET_SREGS', sregs)
  guest.memory.write(8, Uint8Array.of(0x00, 0x30, 0, 0))
  guest.memory.write(0x3000, Uint8Array.of(...out(2), 0xcf))
  guest.setRegs({ RDI: MMIO + 0xffen, RAX: 0x44332211 })
  assert.equal(mmio(guest), [MMIO + 0xffen, 2, 1, 0x2211n])
  guest.call('KVM_NMI')
  assert.equal(mmio(guest), [MMIO + 0x1000n, 2, 1, 0x4433n])
  guest.port(2)
  assert.is(guest.reg('RSP'), 0x8000n - 6n)
  assert.is(guest.memory.read(0x7ffa, 1)[0], (CODE + 4) & 255, 'the NMI came behind the store')
  guest.port(1)
})

test('strings to and from ports: counts, directions, pages', async () => {
  // rep outsd; out 1
  const outs = await RawGuest.create([0xf3, 0x6f, ...out(1)], { mode: 'protected' })
  outs.memory.write(0x4000, Uint8Array.of(1, 2, 3, 4, 5, 6))
  outs.setRegs({ RSI: 0x4000, RCX: 3, RDX: 0x77, RDI: 0x5000 })
  const words: number[] = []
  for (;;) {
    const view = outs.to('KVM_EXIT_IO')
    if (view.getUint16(34, true) === 1) break
    assert.equal([view.getUint8(32), view.getUint8(33), view.getUint32(36, true)], [1, 4, 1])
    words.push(view.getUint32(Number(view.getBigUint64(40, true)), true))
  }
  assert.is(words.length, 3)
  assert.is(words[0], 0x04030201)
  // rep insb over the end of a page: at most up to it at once, then the rest; downwards one page as well.
  for (const down of [false, true]) {
    const ins = await RawGuest.create([down ? 0xfd : 0xfc, 0xf3, 0x6c, 0xfc, ...out(1)], { mode: 'protected' })
    const start = down ? 0x5004 : 0x4ffb
    ins.setRegs({ RDI: start, RCX: 10, RDX: 0x77 })
    let next = 1
    const counts: number[] = []
    for (;;) {
      const view = ins.to('KVM_EXIT_IO')
      if (view.getUint16(34, true) === 1) break
      assert.is(view.getUint8(32), 0)
      const count = view.getUint32(36, true)
      counts.push(count)
      for (let i = 0; i < count; i++) ins.runBytes()[Number(view.getBigUint64(40, true)) + i] = next++
    }
    assert.is(
      counts.reduce((a, b) => a + b, 0),
      10,
    )
    assert.ok((counts[0] as number) <= 5, 'not beyond the page')
    const bytes = [...ins.memory.read(down ? 0x4ffb : start, 10)]
    assert.equal(down ? bytes.toReversed() : bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert.is(ins.reg('RCX'), 0n)
  }
})

test('single steps over an MMIO write and a port: one KVM_EXIT_DEBUG behind each', async () => {
  const guest = await long([0x89, 0x07, ...out(1), 0x90, 0xf4], { RDI: MMIO })
  const debug = new Uint8Array(72)
  debug[0] = 3
  guest.must(guest.call('KVM_SET_GUEST_DEBUG', debug), 'KVM_SET_GUEST_DEBUG')
  mmio(guest)
  assert.is(guest.to('KVM_EXIT_DEBUG').getBigUint64(40, true), BigInt(CODE + 2))
  guest.port(1)
  assert.is(guest.to('KVM_EXIT_DEBUG').getBigUint64(40, true), BigInt(CODE + 4))
  assert.is(guest.to('KVM_EXIT_DEBUG').getBigUint64(40, true), BigInt(CODE + 5))
})

test('kvm_valid_regs shows the registers of the exit, kvm_dirty_regs changes them in between', async () => {
  const guest = await long([0x89, 0x07, 0x89, 0x07, ...out(1)], { RDI: MMIO, RAX: 1 })
  guest.runView().setBigUint64(288, 1n, true)
  mmio(guest)
  const view = guest.runView()
  assert.is(view.getBigUint64(304 + 128, true), BigInt(CODE + 2), 'RIP in kvm_run')
  view.setBigUint64(304, 0x99n, true)
  view.setBigUint64(296, 1n, true)
  assert.equal(mmio(guest), [MMIO, 4, 1, 0x99n])
  guest.port(1)
})

test.run()
