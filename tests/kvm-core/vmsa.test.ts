/** The VMSA: its measured bytes, the sealed frame, tampering, and KVM_RUN without one. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { apQwords, bspQwords } from '../vectors/vmsa.ts'
import { EXIT, GPR, Guest } from './guest.ts'

const test = suite('VMSA')

function image(g: Guest): Uint8Array {
  call(g.core, 'vmsaBuild', g.s, L.STAGING)
  return g.core.bytes.slice(L.STAGING, L.STAGING + 4096)
}

function vector(...parts: (readonly (readonly [number, string])[])[]): Uint8Array {
  const out = new Uint8Array(4096)
  for (const [offset, bytes] of parts.flat()) out.set(Buffer.from(bytes, 'hex'), offset)
  return out
}

function milan(options = {}): Guest {
  const g = new Guest({ irqchip: true, sevEs: true, ...options })
  g.setReg(GPR.RDX, 0xa00f11n)
  return g
}

test('the reset state gives the bytes of the measured VMSA', () => {
  const g = milan()
  g.core.view.setBigUint64(g.vm + L.VM_VMSA_FEATURES, 1n, true)
  assert.equal(image(g), vector(bspQwords))
  const cs = g.s + L.CPU_SEGMENTS + L.SEG_CS * 16
  g.core.view.setBigUint64(cs + L.SEG_BASE, 0x800000n, true)
  g.core.view.setBigUint64(g.s + L.CPU_RIP, 0xb004n, true)
  assert.equal(image(g), vector(bspQwords, apQwords))
})

test('KVM_SEV_ES_INIT leaves the FPU out', () => {
  const g = milan({ type: 0 })
  const bytes = image(g)
  assert.equal(bytes.slice(0x400, 0x670), new Uint8Array(0x270))
  assert.is(bytes[0x3b0], 0)
})

test('FPU and AVX registers have their places', () => {
  const g = milan()
  const { view } = g.core
  view.setUint32(g.s + L.CPU_FTOP, 6, true)
  view.setBigUint64(g.s + L.CPU_ST + 6 * 16, 0x8000000000000001n, true)
  view.setUint16(g.s + L.CPU_ST + 6 * 16 + 8, 0x3fff, true)
  view.setBigUint64(g.s + L.CPU_XMM + 3 * 32, 0x1111n, true)
  view.setBigUint64(g.s + L.CPU_XMM + 3 * 32 + 16, 0x2222n, true)
  const out = new DataView(image(g).buffer)
  assert.is(out.getUint16(0x40e, true), 6 << 11)
  assert.is(out.getBigUint64(0x420, true), 0x8000000000000001n)
  assert.is(out.getUint16(0x460, true), 0x3fff)
  assert.is(out.getBigUint64(0x470 + 48, true), 0x1111n)
  assert.is(out.getBigUint64(0x570 + 48, true), 0x2222n)
})

function hostView(g: Guest): Uint8Array {
  assert.ok(call(g.core, 'vmsaHostRead', g.s, 0, L.STAGING, 4096))
  return g.core.bytes.slice(L.STAGING, L.STAGING + 4096)
}

test('KVM_RUN before the seal fails, after it the host sees ciphertext that changes', () => {
  const g = milan()
  g.write(0x1000, [0x40, 0xeb, 0xfd]) // inc ax; jmp
  call(g.core, 'pspEncrypt', g.backing, 0n, 0x2000, 1)
  g.enter(0x1000)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.FAIL_ENTRY)
  assert.is(g.payload().getBigUint64(0, true), 0xffffffffffffffffn)
  const plain = image(g)
  assert.is(call(g.core, 'vmsaSeal', g.s), 0)
  assert.is(call(g.core, 'vmsaSeal', g.s) | 0, -22)
  const first = hostView(g)
  let same = 0
  for (let i = 0; i < 4096; i += 16) if (first.slice(i, i + 16).every((b, j) => b === plain[i + j])) same++
  assert.is(same, 0)
  assert.is(g.run(g.s, 11n), -4)
  assert.is(g.reg(GPR.RAX), 6n)
  const second = hostView(g)
  assert.not.equal(second, first)
  // only blocks of registers that changed differ
  assert.equal(second.slice(0x10, 0x20), first.slice(0x10, 0x20))
  assert.not.equal(second.slice(0x1f0, 0x200), first.slice(0x1f0, 0x200))
})

test('a tampered VMSA fails to enter', () => {
  const g = milan()
  call(g.core, 'vmsaSeal', g.s)
  const bytes = hostView(g)
  g.core.bytes.set(bytes, L.STAGING)
  call(g.core, 'vmsaHostWrite', g.s, 0, L.STAGING, 4096)
  g.write(0x1000, [0xeb, 0xfe])
  g.core.view.setUint8(L.STAGING, (bytes[0x178] as number) ^ 1)
  call(g.core, 'vmsaHostWrite', g.s, 0x178, L.STAGING, 1)
  assert.is(g.run(), 0)
  assert.is(g.reason(), EXIT.FAIL_ENTRY)
  assert.is(g.payload().getBigUint64(0, true), 0xffffffffffffffffn)
})

test.run()
