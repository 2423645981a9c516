/**
 * FPREM and FPREM1 of integers (SDM vol 2, FPREM): exact multiples, halves, every sign, large quotients: the result and the quotient's low
 * bits in C0, C3, C1 against integer arithmetic.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine } from '../system/machine.ts'

const m = new Machine('long')
m.set64(L.CPU_CR0, 0x80000013n)
const A = 0x30000
const B = 0x30008
const OUT = 0x30010
const at = (a: number): number[] => [0x04, 0x25, ...[0, 8, 16, 24].map((s) => (a >> s) & 255)]

/** fild [B]; fild [A]; fprem or fprem1; fnstsw ax; fistp [OUT]; ffree; hlt */
function run(a: bigint, b: bigint, nearest: boolean): { result: bigint; status: number } {
  m.poke(A, a)
  m.poke(B, b)
  const ext = (op: number, digit: number, address: number): number[] => [
    op,
    (at(address)[0] as number) | (digit << 3),
    ...at(address).slice(1),
  ]
  m.code([...ext(0xdf, 5, B), ...ext(0xdf, 5, A), 0xd9, nearest ? 0xf5 : 0xf8, 0xdf, 0xe0, ...ext(0xdf, 7, OUT), 0xdd, 0xc0, 0xf4])
  for (const field of [L.CPU_FSW, L.CPU_FTOP, L.CPU_FTAG]) m.set32(field, 0)
  m.set32(L.CPU_FCW, 0x37f)
  m.set32(L.CPU_HALTED, 0)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.run(20)
  return { result: BigInt.asIntN(64, m.peek(OUT)), status: Number(m.reg(0) & 0xffffn) }
}

const abs = (v: bigint): bigint => (v < 0n ? -v : v)

test('integers by integers', () => {
  const values = [
    1n,
    2n,
    3n,
    4n,
    5n,
    6n,
    7n,
    8n,
    9n,
    12n,
    15n,
    16n,
    100n,
    255n,
    256n,
    1023n,
    0x7fff_fffen,
    0x1_0000_0000n,
    0x7fff_ffff_ffff_fffen,
    1n << 62n,
  ]
  let exact = 0
  for (const nearest of [false, true])
    for (const x of values)
      for (const y of values)
        for (const [a, b] of [
          [x, y],
          [-x, y],
          [x, -y],
        ] as const) {
          let q = abs(a) / abs(b)
          let rest = abs(a) % abs(b)
          if (rest === 0n) exact++
          if (nearest && (rest * 2n > abs(b) || (rest * 2n === abs(b) && (q & 1n) === 1n))) {
            q++
            rest -= abs(b)
          }
          const want = a < 0n ? -rest : rest
          const label = `${a} ${nearest ? 'rem1' : 'rem'} ${b}`
          const first = run(a, b, nearest)
          // Quotients of 64 bits and more come in steps; those here are below.
          assert.is(first.status & 0x400, 0, `${label}: C2`)
          assert.is(first.result, want, label)
          const bits = ((first.status >> 8) & 1) * 4 + ((first.status >> 14) & 1) * 2 + ((first.status >> 9) & 1)
          assert.is(bits, Number(q & 7n), `${label}: quotient`)
        }
  assert.ok(exact > 100, `${exact} exact multiples`)
})

test.run()
