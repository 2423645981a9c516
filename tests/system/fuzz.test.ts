/** Random code, registers, descriptors and TSS contents in every mode: whatever a guest does, the core must not trap. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, GDT, IDT, L, Machine, TSS, type Mode } from './machine.ts'

const test = suite('fuzz')
/** Beginnings that lead into this room's handlers more often than chance. */
const prefixes: readonly (readonly number[])[] = [
  ...[0x00, 0x01, 0x02, 0x03, 0x05, 0x07, 0x20, 0x21, 0x22, 0x23, 0x30, 0x32, 0x34, 0x35, 0xa2, 0xae, 0xb2, 0xc7].map((b) => [0x0f, b]),
  ...[
    0x07, 0x17, 0x1f, 0x48, 0x60, 0x61, 0x62, 0x63, 0x66, 0x8c, 0x8e, 0x9a, 0x9c, 0x9d, 0xc4, 0xc5, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd,
    0xcf, 0xea, 0xf0, 0xf1, 0xf4, 0xfa, 0xfb, 0xff,
  ].map((b) => [b]),
]

test('no wasm trap in 600 random programs', () => {
  let state = 0x2545f491
  const random = (n: number): number => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % n
  }
  const wide = (): bigint => (BigInt(random(0x100000000)) << 32n) | BigInt(random(0x100000000))
  const value = (): bigint =>
    [0n, 1n, 0x5000n, BigInt(CODE), wide(), 1n << 47n, -1n, BigInt(random(0x100) * 8), 0xc0000080n + BigInt(random(5))][random(9)] ?? 0n
  let machine: Machine | null = null
  for (let i = 0; i < 600; i++) {
    const mode = (['real', 'protected', 'long'] as const)[random(3)] as Mode
    if (machine?.mode !== mode) machine = new Machine(mode)
    const m: Machine = machine
    const at = state >>> 0
    if (mode !== 'real' && random(3) === 0) m.user()
    for (let r = 0; r < 16; r++) if (r !== 4 || random(4) === 0) m.setReg(r, value())
    if (random(4) === 0) m.poke(GDT + random(48) * 8, wide())
    if (random(4) === 0) m.poke(IDT + random(64) * 8, wide())
    if (random(8) === 0) m.poke(TSS + random(13) * 8, wide())
    if (random(6) === 0) m.setFlags(BigInt(random(0x400000)))
    if (random(20) === 0) m.core.view.setUint32(m.vm + L.VM_SEV, random(3), true)
    m.code(Array.from({ length: 24 }, () => [...(random(2) ? (prefixes[random(prefixes.length)] ?? []) : []), random(256)]).flat())
    m.set64(L.CPU_RIP, mode === 'real' ? 0n : BigInt(CODE))
    m.set32(L.CPU_HALTED, 0)
    let stop = 0
    assert.not.throws(
      () => {
        stop = m.run(300)
      },
      `program ${i}, state 0x${at.toString(16)}, ${mode}`,
    )
    if (stop !== L.STOP_BUDGET) machine = null
  }
})

test.run()
