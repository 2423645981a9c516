/** Interrupt windows, injected interrupts and NMIs in combination with what is pending (KVM_INTERRUPT, request_interrupt_window, KVM_NMI). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO } from 'cloister'
import { CODE, RawGuest } from './raw-guest.ts'

const out = (port: number): number[] => [0xe6, port]
/** Real-mode handlers: vector 0x20 leaves through port 0x20, vector 2 through port 2. */
function handlers(guest: RawGuest): void {
  for (const vector of [2, 0x20]) {
    guest.memory.write(vector * 4, Uint8Array.of(0, 0x20 + (vector & 15), 0, 0))
    guest.memory.write(0x2000 + ((vector & 15) << 8), Uint8Array.of(...out(vector), 0xcf))
  }
}
const vector = (n: number): Uint8Array => new Uint8Array(new Uint32Array([n]).buffer)
const ready = (guest: RawGuest): [number, number] => [guest.runView().getUint8(12), guest.runView().getUint8(13)]

for (const irqchip of ['none', 'split'] as const) {
  test(`${irqchip}: the window opens behind the instruction after STI, and not while LVT0 is masked`, async () => {
    // out 1; sti; nop; out 3
    const guest = await RawGuest.create([...out(1), 0xfb, 0x90, ...out(3), 0xf4], { irqchip })
    handlers(guest)
    guest.runView().setUint8(0, 1) // request_interrupt_window
    guest.port(1)
    assert.equal(ready(guest), [0, 0])
    if (irqchip === 'split') {
      const lapic = guest.get('KVM_GET_LAPIC', 1024)
      lapic.setUint32(0x350, 0x10700, true)
      guest.set('KVM_SET_LAPIC', lapic)
      guest.port(3)
      assert.equal(ready(guest), [0, 1], 'IF is set, the ExtINT could not come in')
      lapic.setUint32(0x350, 0x700, true)
      guest.set('KVM_SET_LAPIC', lapic)
    }
    guest.to('KVM_EXIT_IRQ_WINDOW_OPEN')
    assert.is(guest.reg('RIP'), BigInt(irqchip === 'split' ? CODE + 6 : CODE + 4), 'no half-done instruction')
    assert.equal(ready(guest), [1, 1])
    assert.is(guest.call('KVM_INTERRUPT', vector(0x20)), 0)
    guest.runView().setUint8(0, 0)
    guest.port(0x20)
    if (irqchip === 'none') guest.port(3)
  })
}

test('split: one external vector at a time; it waits for IF', async () => {
  const guest = await RawGuest.create([...out(1), 0xfb, 0x90, ...out(3)], { irqchip: 'split' })
  handlers(guest)
  const lapic = guest.get('KVM_GET_LAPIC', 1024)
  lapic.setUint32(0x350, 0x700, true)
  guest.set('KVM_SET_LAPIC', lapic)
  assert.is(guest.call('KVM_INTERRUPT', vector(0x20)), 0)
  assert.is(guest.call('KVM_INTERRUPT', vector(0x21)), -ERRNO.EEXIST)
  assert.is(guest.call('KVM_INTERRUPT', vector(256)), -ERRNO.EINVAL)
  guest.port(1)
  guest.port(0x20)
  guest.port(3)
})

test('a second NMI waits for the IRET of the first, a third is lost; both come before an interrupt', async () => {
  const guest = await RawGuest.create([0xfb, 0x90, 0x90, ...out(3)], { irqchip: 'none' })
  handlers(guest)
  for (let i = 0; i < 3; i++) assert.is(guest.call('KVM_NMI'), 0)
  assert.is(guest.events().getUint8(13), 2, 'two are pending')
  guest.port(2)
  assert.equal(
    [13, 14].map((at) => guest.events().getUint8(at)),
    [1, 1],
    'one waits, NMIs are masked',
  )
  guest.call('KVM_NMI')
  assert.is(guest.events().getUint8(13), 1)
  guest.port(2)
  assert.equal(
    [13, 14].map((at) => guest.events().getUint8(at)),
    [0, 1],
  )
  guest.port(3)
  assert.is(guest.events().getUint8(14), 0)
})

test('an NMI and immediate_exit at a pending IN: the input is completed, then -EINTR, then the NMI', async () => {
  const guest = await RawGuest.create([0xe4, 0x10, ...out(3)], { irqchip: 'none' })
  handlers(guest)
  const view = guest.to('KVM_EXIT_IO')
  guest.runBytes()[Number(view.getBigUint64(40, true))] = 0x5a
  guest.call('KVM_NMI')
  guest.runView().setUint8(1, 1)
  assert.is(guest.run(), -ERRNO.EINTR)
  assert.equal([guest.reg('RIP'), guest.reg('RAX') & 255n], [BigInt(CODE + 2), 0x5an])
  assert.is(guest.events().getUint8(13), 1)
  guest.runView().setUint8(1, 0)
  guest.port(2)
  assert.is(guest.port(3), 0x5a)
})

test('a triple fault that userspace injects, with immediate_exit before it', async () => {
  const guest = await RawGuest.create([...out(3)], { irqchip: 'none' })
  assert.is(guest.enable(218, [1]), 0)
  guest.events((view) => {
    view.setUint8(28, 1)
  })
  guest.runView().setUint8(1, 1)
  assert.is(guest.run(), -ERRNO.EINTR)
  assert.is(guest.events().getUint8(28), 1, 'still pending')
  guest.runView().setUint8(1, 0)
  guest.to('KVM_EXIT_SHUTDOWN')
  assert.is(guest.reg('RIP'), BigInt(CODE), 'no INIT follows a fault that was asked for')
})

test.run()
