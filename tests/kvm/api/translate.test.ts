/** KVM_TRANSLATE in every paging mode, against the engine's own walker: two implementations, random tables. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CPU_CR0, CPU_CR3, CPU_CR4, CPU_EFER, CPU_PKRU } from '../../../host/generated/layout.ts'
import type { VcpuFd } from '../../../host/kvm/vcpu.ts'
import { RawGuest } from './raw-guest.ts'

const NONE = 0xffff_ffff_ffff_ffffn
const MODES = {
  none: [0x11n, 0n, 0n],
  '32-bit': [0x80010011n, 0n, 0n],
  PSE: [0x80010011n, 0x10n, 0n],
  PAE: [0x80010011n, 0x20n, 0x800n],
  '4-level': [0x80010011n, 0x20n, 0xd00n],
  'no NX': [0x80010011n, 0x20n, 0x500n],
  SMAP: [0x80010011n, 0x200020n, 0xd00n],
  PKU: [0x80010011n, 0x400020n, 0xd00n],
} as const

function lcg(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state >>> 8
  }
}

for (const [name, [cr0, cr4, efer]] of Object.entries(MODES)) {
  test(`${name}: agrees with the engine`, async () => {
    const guest = await RawGuest.create([0xf4], { size: 0x40000 })
    const file = guest.kvm.kernel.file(guest.vcpu) as VcpuFd
    const { call } = guest.kvm.kernel.core
    const seed = 20261120
    const random = lcg(seed)
    let valid = 0
    let accessed = 0
    let tables = new Uint8Array(0)
    const fill = (): void => {
      // Tables from 0x10000 on, filled with entries that mostly point to each other and now and then are wrong.
      tables = new Uint8Array(0x10000)
      const view = new DataView(tables.buffer)
      const wide = cr4 !== 0n && cr4 !== 0x10n
      for (let at = 0; at < tables.length; at += wide ? 8 : 4) {
        const target = 0x10000n + (BigInt(random() % 16) << 12n)
        let entry = target | (random() % 16 === 0 ? 0n : 1n) | (BigInt(random() % 2) << 2n) | (BigInt(random() % 2) << 5n) | 2n
        if (random() % 8 === 0) entry |= 0x80n
        if (random() % 4 === 0) entry |= 0x40n
        if (wide && random() % 8 === 0) entry |= 1n << 63n
        if (wide && random() % 8 === 0) entry |= BigInt(random() % 16) << 59n
        if (random() % 16 === 0) entry |= wide ? 1n << BigInt(12 + (random() % 40)) : 1n << BigInt(12 + (random() % 20))
        // 4 MiB pages above 36 bits: the processor has them, KVM's walk does not.
        if (!wide && (entry & 0x80n) !== 0n) entry &= ~0x3e0000n
        if (wide) view.setBigUint64(at, entry, true)
        else view.setUint32(at, Number(entry & 0xffffffffn), true)
      }
      if (cr4 === 0x20n && efer === 0x800n)
        for (let i = 0; i < 4; i++) view.setBigUint64(i * 8, 0x11001n + BigInt(random() % 4) * 0x1000n, true)
      guest.memory.write(0x10000, tables)
    }
    for (let round = 0; round < 400; round++) {
      if (round % 20 === 0) fill()
      file.cpu.setBigUint64(CPU_CR0, cr0, true)
      file.cpu.setBigUint64(CPU_CR3, 0x10000n, true)
      file.cpu.setBigUint64(CPU_CR4, cr4, true)
      file.cpu.setBigUint64(CPU_EFER, efer, true)
      file.cpu.setUint32(CPU_PKRU, 0x1010, true)
      call.cpuModeChanged(file.s)
      const long = (efer & 0x400n) !== 0n
      const linear = long
        ? BigInt.asUintN(47, (BigInt(random()) << 24n) | BigInt(random()))
        : BigInt((random() << 8) >>> 0) | BigInt(random() & 255)
      const engine = BigInt.asUintN(64, call.probe(file.s, BigInt.asIntN(64, linear)))
      const bytes = new Uint8Array(24)
      const out = new DataView(bytes.buffer)
      out.setBigUint64(0, linear, true)
      assert.is(guest.call('KVM_TRANSLATE', bytes), 0)
      const where = `${name}, seed ${seed}, round ${round}, 0x${linear.toString(16)}`
      assert.is(out.getBigUint64(8, true), engine, where)
      assert.equal([out.getUint8(16), out.getUint8(17), out.getUint8(18)], [engine === NONE ? 0 : 1, 1, 0], where)
      if (engine !== NONE) valid++
      if (round % 20 !== 19) continue
      const now = guest.memory.read(0x10000, tables.length)
      if (!tables.every((b, i) => now[i] === b)) accessed++
    }
    assert.ok(valid > 40, `${valid} valid`)
    if (cr0 >> 31n !== 0n) assert.ok(accessed > 0, 'the walk sets accessed bits')
  })
}

test.run()
