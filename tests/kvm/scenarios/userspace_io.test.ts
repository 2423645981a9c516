/** In the manner of selftests x86/userspace_io_test: string and single port I/O completed by userspace, registers rewritten in between. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, RUN } from 'cloister'
import { realModeGuest } from './guest.ts'

test('IN: what userspace puts into the PIO page is what the guest reads', async () => {
  // in al, 0x80; mov [0x2000], al; in ax, dx (0x80); mov [0x2002], ax; hlt
  const { vcpu, memory } = await realModeGuest([0xe4, 0x80, 0xa2, 0x00, 0x20, 0xba, 0x80, 0x00, 0xed, 0xa3, 0x02, 0x20, 0xf4])
  const first = vcpu.run()
  assert.is(first.reason, 'KVM_EXIT_IO')
  if (first.reason !== 'KVM_EXIT_IO') return
  assert.equal([first.direction, first.size, first.port, first.count], ['in', 1, 0x80, 1])
  first.data[0] = 0xaa
  const second = vcpu.run()
  assert.ok(second.reason === 'KVM_EXIT_IO' && second.size === 2)
  if (second.reason === 'KVM_EXIT_IO') second.data.set([0x34, 0x12])
  assert.is(vcpu.run().reason, 'KVM_EXIT_HLT')
  assert.equal([...memory.read(0x2000, 4)], [0xaa, 0, 0x34, 0x12])
})

test('REP INSB: the whole string, whatever userspace does to the count', async () => {
  // mov dx, 0x80; mov cx, 8; mov di, 0x2000; rep insb; hlt
  const code = [0xba, 0x80, 0x00, 0xb9, 0x08, 0x00, 0xbf, 0x00, 0x20, 0xf3, 0x6c, 0xf4]
  const { vcpu, memory } = await realModeGuest(code)
  let next = 1
  let bytes = 0
  for (;;) {
    const exit = vcpu.run()
    if (exit.reason !== 'KVM_EXIT_IO') {
      assert.is(exit.reason, 'KVM_EXIT_HLT')
      break
    }
    for (let i = 0; i < exit.data.length; i++) exit.data[i] = next++
    bytes += exit.data.length
    // Registers are readable in the middle of the instruction, and writing them back changes nothing.
    vcpu.setRegs(vcpu.getRegs())
    assert.ok(bytes <= 8)
  }
  assert.equal([...memory.read(0x2000, 9)], [1, 2, 3, 4, 5, 6, 7, 8, 0])
})

test('OUT and OUTSB: bytes in order; immediate_exit completes the pending access first', async () => {
  // mov al, 'A'; out 0x80, al; mov si, 0x1020; mov cx, 3; mov dx, 0x81; rep outsb; hlt
  const { vcpu, memory } = await realModeGuest([
    0xb0, 0x41, 0xe6, 0x80, 0xbe, 0x20, 0x10, 0xb9, 0x03, 0x00, 0xba, 0x81, 0x00, 0xf3, 0x6e, 0xf4,
  ])
  memory.write(0x1020, Uint8Array.from([0x42, 0x43, 0x44]))
  const seen: number[] = []
  let interrupted = 0
  for (;;) {
    vcpu.runView.setUint8(RUN.IMMEDIATE_EXIT, 1)
    assert.is(vcpu.runRaw(1000), -ERRNO.EINTR)
    interrupted++
    vcpu.runView.setUint8(RUN.IMMEDIATE_EXIT, 0)
    const exit = vcpu.run()
    if (exit.reason !== 'KVM_EXIT_IO') break
    seen.push(...exit.data)
  }
  assert.equal(seen, [0x41, 0x42, 0x43, 0x44])
  assert.ok(interrupted > 1)
})

test.run()
