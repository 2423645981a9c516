/** Far pointers with REX.W: AMD's offset has 32 bits in memory, but KVM's emulator, which reads MMIO, takes 64. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, KCODE64, L, Machine } from './machine.ts'

const EXIT_MMIO = 6

test('jmp far m16:64 in RAM and in MMIO', () => {
  const m = new Machine('long')
  const target = CODE + 0x40
  m.code([0xf4], target)
  // rex.w jmp far [rbx]
  m.code([0x48, 0xff, 0x2b])
  m.setReg(3, 0x30000n)
  m.poke(0x30000, BigInt(target) | (BigInt(KCODE64) << 32n))
  m.run(10)
  assert.is(m.rip, BigInt(target + 1), 'RAM')
  // 0x500000 is mapped, and no memory.
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.set32(L.CPU_HALTED, 0)
  m.setReg(3, 0x500000n)
  const payload = new DataView(m.core.memory.buffer, m.s + L.VCPU_RUN + 32, 24)
  const bytes: bigint[] = [BigInt(target), BigInt(KCODE64)]
  const sizes: number[] = []
  for (const value of bytes) {
    call(m.core, 'vcpuRun', m.s, 100n)
    assert.is(m.u32(L.VCPU_RUN + 8), EXIT_MMIO)
    sizes.push(payload.getUint32(16, true))
    payload.setBigUint64(8, value, true)
  }
  call(m.core, 'vcpuRun', m.s, 100n)
  assert.equal(sizes, [8, 2])
  assert.is(m.rip, BigInt(target + 1), 'MMIO')
})

test.run()
