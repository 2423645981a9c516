/** Whatever a guest or a caller puts in, the core answers: no WASM trap, no endless loop. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { Guest } from './guest.ts'

const test = suite('hostile input')

/** xorshift32. */
function random(seed: number): (n: number) => number {
  let x = seed
  return (n) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % n
  }
}

test('GHCB pages with random fields', () => {
  const r = random(0x9e3779b9)
  const g = new Guest({ irqchip: true, sevEs: true, pit: true })
  g.write(0x1000, [0xf3, 0x0f, 0x01, 0xd9, 0xeb, 0xfa])
  call(g.core, 'pspEncrypt', g.backing, 0x1000n, 16, 1)
  g.enter(0x1000)
  call(g.core, 'vmsaSeal', g.s)
  const codes = [
    0x27, 0x37, 0x6e, 0x6f, 0x72, 0x76, 0x7b, 0x7b, 0x7b, 0x7c, 0x81, 0x87, 0x89, 0x8a, 0x8b, 0x80000001, 0x80000002, 0x80000003,
    0x80000005, 0x80000010, 0x80000013, 0x8000fffd,
  ]
  for (let i = 0; i < 4000; i++) {
    const bytes = new Uint8Array(4096)
    const view = new DataView(bytes.buffer)
    for (const at of [0x1f8, 0x308, 0x310, 0x318, 0x330, 0x3e8]) view.setUint32(at, r(4) === 0 ? r(2 ** 32) : r(0x1000), true)
    view.setUint32(0x390, codes[r(codes.length)] as number, true)
    const port = [0x20, 0x21, 0x40, 0x43, 0x61, 0x3f8, 0x4d0, r(0x10000)][r(8)] as number
    view.setUint32(0x398, r(3) === 0 ? (port << 16) | r(0x80) : ([0xfee00000, 0xfec00000, 0xb0000000][r(3)] as number) + r(0x1000), true)
    view.setUint32(0x3a0, [0, 1, 4, 8, r(64), r(2 ** 32)][r(6)] as number, true)
    view.setUint32(0x3a8, [0x100800, 0x100800 + r(0x900), 0x2000, r(2 ** 32)][r(4)] as number, true)
    for (let b = 0x3f0; b < 0x400; b++) bytes[b] = r(8) === 0 ? r(256) : 0xff
    g.write(0x100000, bytes)
    g.core.view.setBigUint64(g.s + L.CPU_GHCB, BigInt([0x100000, 0x100000, 0x100000, 0x1ff000, r(2 ** 32)][r(5)] as number), true)
    g.core.view.setBigUint64(g.s + L.CPU_RIP, 0x1000n, true)
    g.core.view.setUint32(g.s + L.CPU_HALTED, 0, true)
    if (r(2) === 0) g.pio()[0] = r(256)
    g.core.view.setUint32(g.vm + L.VM_GHCB_VERSION, 1 + r(2), true)
    g.core.view.setUint32(g.vm + L.VM_USER_MSR_MASK, r(8), true)
    const result = g.run(g.s, BigInt(1 + r(4)))
    assert.ok([0, -4, -14, -22].includes(result), String(result))
  }
})

test('random device registers and state blobs', () => {
  const r = random(12345)
  const g = new Guest({ irqchip: true, pit: true })
  g.core.view.setUint32(g.s + L.CPU_SEGMENTS + L.SEG_DS * 16 + L.SEG_LIMIT, 0xffffffff, true)
  for (let i = 0; i < 4000; i++) {
    const fill = (n: number): void => {
      for (let k = 0; k < n; k++) g.core.view.setUint8(L.STAGING + k, r(256))
    }
    switch (r(8)) {
      case 0:
        fill(112)
        call(g.core, 'pitSet', g.vm, L.STAGING)
        break
      case 1:
        fill(216)
        g.core.view.setBigUint64(L.STAGING, 0xfec00000n, true)
        call(g.core, 'ioapicSet', g.vm, L.STAGING)
        break
      case 2:
        fill(16)
        call(g.core, 'picSet', g.vm, r(2), L.STAGING)
        break
      case 3:
        fill(1024)
        call(g.core, 'lapicSet', g.s, L.STAGING)
        break
      case 4:
        call(g.core, 'irqLine', g.vm, r(40), r(2))
        break
      default: {
        const gpa = ([0xfee00000, 0xfec00000][r(2)] as number) + r(0x400)
        const port = [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4d0, 0x4d1][r(11)] as number
        g.write(
          0x1000,
          [
            [0x67, 0x66, 0x89, 0x03],
            [0x67, 0x66, 0x8b, 0x03],
            [0xee, 0x90],
            [0xec, 0x90],
            [0xef, 0x90],
            [0xed, 0x90],
          ][r(6)] as number[],
        )
        g.enter(0x1000)
        call(g.core, 'cpuSetFlags', g.s, 2n)
        g.core.view.setUint32(g.s + L.CPU_HALTED, 0, true)
        g.setReg(0, BigInt(r(2 ** 32)))
        g.setReg(2, BigInt(port))
        g.setReg(3, BigInt(gpa))
      }
    }
    const result = g.run(g.s, BigInt(1 + r(3)))
    // -EIO: an SMI (by IPI or MSI) found no memory for its save area.
    assert.ok([0, -4, -5].includes(result), String(result))
  }
})

test.run()
