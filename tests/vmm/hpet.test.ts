/** The HPET by its specification (Intel IA-PC HPET 1.0a, sections in the tests), and the ICH9's PM timer (ACPI 6.5, 4.8.2.1, 4.8.3.3). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Bus } from '../../host/vmm/bus.ts'
import { Hpet } from '../../host/vmm/devices/hpet.ts'
import { PowerManagement } from '../../host/vmm/devices/power.ts'

const [CAPABILITIES, CONFIG, STATUS, COUNTER] = [0x00, 0x10, 0x20, 0xf0] as const
const timer = (n: number): number => 0x100 + 0x20 * n
const comparator = (n: number): number => timer(n) + 8
const [LEVEL, ENABLE, PERIODIC, SET, BITS32] = [2, 4, 8, 0x40, 0x100] as const
const route = (line: number): number => line << 9

interface Board {
  r: (at: number) => bigint
  r32: (at: number) => number
  w: (at: number, value: bigint) => void
  w32: (at: number, value: number) => void
  /** Runs up to that tick of 10 ns: "tick:events" as they come. */
  to: (tick: number) => string
  hpet: Hpet
}
function make(): Board {
  let now = 0
  const events: string[] = []
  const tick = (): number => now / 10
  const hpet = new Hpet({
    now: () => now,
    irqLine: (gsi, level) => events.push(`${tick()}:${gsi}${level ? '+' : '-'}`),
    legacy: (on) => events.push(`${tick()}:${on ? 'legacy' : 'standard'}`),
  })
  const access = (at: number, size: number, value?: bigint): bigint => {
    const bytes = new Uint8Array(8)
    const view = new DataView(bytes.buffer)
    if (value === undefined) hpet.readMmio(at, bytes.subarray(0, size))
    else {
      view.setBigUint64(0, value, true)
      hpet.writeMmio(at, bytes.subarray(0, size))
    }
    return view.getBigUint64(0, true)
  }
  return {
    hpet,
    r: (at) => access(at, 8),
    r32: (at) => Number(access(at, 4)),
    w: (at, value) => void access(at, 8, value),
    w32: (at, value) => void access(at, 4, BigInt(value >>> 0)),
    to(until) {
      while (hpet.deadline <= until * 10) {
        now = hpet.deadline
        hpet.expire(now)
      }
      now = until * 10
      return events.splice(0).join(' ')
    },
  }
}

test('capabilities: 100 MHz, 64 bits, three timers, legacy replacement, read-only (2.3.4)', () => {
  const { r, w } = make()
  assert.is(r(CAPABILITIES), 0x0098_9680_8086_a201n)
  w(CAPABILITIES, 0n)
  assert.is(r(CAPABILITIES), 0x0098_9680_8086_a201n)
})

test('configuration: two bits (2.3.5); reserved places read 0 (2.3.3)', () => {
  const { r, w } = make()
  w(CONFIG, 0xffff_ffff_ffff_ffffn)
  assert.is(r(CONFIG), 3n)
  for (const at of [0x08, 0x18, 0x28, 0xf8, 0x110, 0x118, 0x160]) {
    w(at, 0x1234n)
    assert.is(r(at), 0n, at.toString(16))
  }
})

test('timer configuration: what is writable, what it can (2.3.8)', () => {
  const { r, w } = make()
  const capabilities = (0x00ff0000n << 32n) | 0x30n // lines 16 to 23, 64 bits, periodic
  for (const n of [0, 1, 2]) {
    assert.is(r(timer(n)), capabilities)
    w(timer(n), 0xffff_ffff_ffff_c1ffn | BigInt(route(23)))
    assert.is(r(timer(n)), capabilities | BigInt(route(23)) | 0x14en, 'no FSB delivery (bit 14), bits 0 and 7 reserved')
    w(timer(n), BigInt(route(5)))
    assert.is(r(timer(n)), capabilities | BigInt(route(23)), 'a line it cannot reach is not taken')
  }
})

test('counter: written while halted, read in halves, stops where it is (2.3.7)', () => {
  const { r, r32, w, to } = make()
  w(COUNTER, 0xffff_fff0n)
  to(100)
  assert.is(r(COUNTER), 0xffff_fff0n)
  w(CONFIG, 1n)
  to(132)
  assert.equal([r(COUNTER), r32(COUNTER), r32(COUNTER + 4)], [0x1_0000_0010n, 0x10, 1])
  w(CONFIG, 0n)
  to(200)
  assert.is(r(COUNTER), 0x1_0000_0010n)
})

test('one shot: at the match, once in 64 bits; 32 bits again after each wrap (2.3.9.2.1)', () => {
  for (const [bits, expected] of [
    [0, '48:20+ 48:20-'],
    [BITS32, `48:20+ 48:20- ${48 + 2 ** 32}:20+ ${48 + 2 ** 32}:20-`],
  ] as const) {
    const { w, w32, to } = make()
    w(COUNTER, 0xffff_ffe0n)
    w32(timer(1), route(20) | ENABLE | bits)
    w(comparator(1), bits ? 0x10n : 0x1_0000_0010n)
    w(CONFIG, 1n)
    assert.is(to(2 ** 32 + 1000), expected)
  }
})

test('a comparator equal to the counter matches a whole round later (2.3.9.2.1)', () => {
  const { w, w32, to } = make()
  w(COUNTER, 500n)
  w32(timer(1), route(20) | ENABLE | BITS32)
  w32(comparator(1), 500)
  w(CONFIG, 1n)
  assert.is(to(2 ** 32 - 1), '')
  assert.is(to(2 ** 32), `${2 ** 32}:20+ ${2 ** 32}:20-`)
})

test('32-bit mode: the upper halves go, whichever comes first, the mode or the value (2.3.8, Tn_32MODE_CNF)', () => {
  for (const first of [true, false]) {
    const { r, w, w32 } = make()
    if (first) w32(timer(2), BITS32)
    w(comparator(2), 0x5_0000_0064n)
    if (!first) w32(timer(2), BITS32)
    assert.is(r(comparator(2)), 0x64n)
  }
})

// Periodic programming (2.3.9.2.2). Writes to comparator 0, then the interrupts up to tick 1000.
for (const [name, writes, expected] of [
  [
    'bit 6: first match, then the period',
    [
      [SET, 300],
      [0, 200],
    ],
    '300 500 700 900',
  ],
  ['one write with bit 6 is both', [[SET, 300]], '300 600 900'],
  [
    'without bit 6 only the period: the match is where it was',
    [
      [SET, 300],
      [0, 200],
      [0, 100],
    ],
    '300 400 500 600 700 800 900 1000',
  ],
  [
    'bit 6 clears itself with the write',
    [
      [SET, 300],
      [0, 200],
      [0, 250],
    ],
    '300 550 800',
  ],
] as const) {
  test(`periodic: ${name}`, () => {
    const { r, w, w32, to } = make()
    const setup = route(20) | ENABLE | PERIODIC
    for (const [bits, value] of writes) {
      if (bits) w32(timer(0), setup | bits)
      w(comparator(0), BigInt(value))
      assert.is(Number(r(timer(0)) & BigInt(SET)), 0)
    }
    w(CONFIG, 1n)
    const at = to(1000)
      .split(' ')
      .filter((e) => e.endsWith('+'))
      .map((e) => e.split(':')[0])
    assert.is(at.join(' '), expected)
  })
}

test('periodic in halves of 32 bits: the low half clears bit 6, the high one reaches the period alone (2.3.9.2.2)', () => {
  const { r, w32 } = make()
  w32(timer(0), PERIODIC | SET)
  w32(comparator(0), 300)
  w32(comparator(0) + 4, 7)
  assert.is(r(comparator(0)), 0xffff_ffff_0000_012cn)
})

test('the comparator of a periodic timer reads as its next match, also with the interrupt off (2.3.9.2.2, 2.3.8)', () => {
  for (const enable of [ENABLE, 0]) {
    const { r, w, w32, to } = make()
    w32(timer(0), route(20) | enable | PERIODIC | SET)
    w(comparator(0), 100n)
    w(CONFIG, 1n)
    to(250)
    assert.is(r(comparator(0)), 300n)
    w32(timer(0), route(20) | ENABLE | PERIODIC)
    assert.ok(to(350).endsWith('300:20+ 300:20-'))
  }
})

test('periodic without a period matches once; a period left from before does not move a one-shot timer', () => {
  const { r, w, w32, to } = make()
  w(comparator(0), 100n)
  w32(timer(0), route(20) | ENABLE | PERIODIC)
  w(CONFIG, 1n)
  assert.is(to(1000), '100:20+ 100:20-')
  assert.is(r(comparator(0)), 100n)
  w(comparator(0), 50n)
  w32(timer(0), route(20) | ENABLE)
  w(comparator(0), 2000n)
  assert.is(to(3000), '2000:20+ 2000:20-')
  assert.is(r(comparator(0)), 2000n)
})

test('nothing is announced while it stands still or no interrupt is on', () => {
  const { w, w32, hpet } = make()
  w(comparator(1), 100n)
  w(CONFIG, 1n)
  assert.is(hpet.deadline, Number.POSITIVE_INFINITY)
  w32(timer(1), route(20) | ENABLE)
  assert.is(hpet.deadline, 1000)
  w(CONFIG, 0n)
  assert.is(hpet.deadline, Number.POSITIVE_INFINITY)
})

test('periodic, 32 bits: the match wraps with the counter', () => {
  const { r, w, w32, to } = make()
  w(COUNTER, 0xffff_ff00n)
  w32(timer(0), route(20) | ENABLE | PERIODIC | SET | BITS32)
  w32(comparator(0), 0xffff_ff80)
  w32(comparator(0), 0x100)
  w(CONFIG, 1n)
  assert.is(to(700), '128:20+ 128:20- 384:20+ 384:20- 640:20+ 640:20-')
  assert.is(r(comparator(0)), 0x280n)
})

test('level: the line is up from the match until its status is written 1; 0 does nothing (2.3.6)', () => {
  const { r, w, w32, to } = make()
  w32(timer(2), route(21) | ENABLE | LEVEL)
  w(comparator(2), 100n)
  w(CONFIG, 1n)
  assert.is(to(150), '100:21+')
  w32(STATUS, 3)
  assert.equal([to(150), r(STATUS)], ['', 4n])
  w32(STATUS, 4)
  assert.equal([to(150), r(STATUS)], ['150:21-', 0n])
})

test('level with the interrupt off: the status shows the match, the line comes with the enable (2.3.8, Tn_INT_ENB_CNF)', () => {
  const { r, w, w32, to } = make()
  w32(timer(2), route(21) | LEVEL)
  w(comparator(2), 100n)
  w(CONFIG, 1n)
  assert.equal([to(150), r(STATUS)], ['', 4n])
  w32(timer(2), route(21) | ENABLE | LEVEL)
  assert.is(to(160), '150:21+')
  w32(timer(2), route(21) | LEVEL)
  assert.is(to(170), '160:21-')
  w32(timer(2), route(21) | ENABLE | LEVEL)
  w(CONFIG, 0n)
  assert.is(to(180), '170:21+ 170:21-')
})

test('edge: no status (2.3.6)', () => {
  const { r, w, w32, to } = make()
  w32(timer(2), route(21) | ENABLE)
  w(comparator(2), 100n)
  w(CONFIG, 1n)
  assert.is(to(150), '100:21+ 100:21-')
  assert.is(r(STATUS), 0n)
})

test('legacy replacement: timer 0 on line 0, timer 1 on line 8, timer 2 where it was; the 8254 is told (2.3.5, LEG_RT_CNF)', () => {
  const { w, w32, to } = make()
  for (const n of [0, 1, 2]) {
    w32(timer(n), route(20 + n) | ENABLE)
    w(comparator(n), BigInt(100 + n))
  }
  w(CONFIG, 3n)
  assert.is(to(200), '0:legacy 100:0+ 100:0- 101:8+ 101:8- 102:22+ 102:22-')
  w(CONFIG, 1n)
  for (const n of [0, 1]) w(comparator(n), BigInt(300 + n))
  assert.is(to(400), '200:standard 300:20+ 300:20- 301:21+ 301:21-')
})

test('a level that is up follows its route', () => {
  const { w, w32, to } = make()
  w32(timer(1), route(20) | ENABLE | LEVEL)
  w(comparator(1), 100n)
  w(CONFIG, 1n)
  to(150)
  w(CONFIG, 3n)
  assert.is(to(160), '150:legacy 150:20- 150:8+')
})

// ---------------------------------------------------------------------------------------------------------------------------

test('PM timer: 3.579545 MHz, 24 bits, in any width; TMR_STS with each change of bit 23, cleared by a 1 (ACPI 4.8.3.3, 4.8.3.1.1)', () => {
  let now = 0
  const pm = new PowerManagement(
    new Bus(),
    () => now,
    () => {},
  )
  pm.move(0x600)
  const ticks = (n: number): void => void (now = Math.ceil((n * 1e9) / 3579545))
  const read = (): number => pm.readPort(0x608, 4)
  const status = (): number => pm.readPort(0x600, 2) & 1
  for (const [n, value, sts] of [
    [0, 0, 0],
    [1, 1, 0],
    [0x7fffff, 0x7fffff, 0],
    [0x800000, 0x800000, 1],
    [0xffffff, 0xffffff, 0],
    [0x1000000, 0, 1],
    [0x1000001, 1, 0],
    [0x123456789, 0x456789, 1],
  ] as const) {
    ticks(n)
    assert.equal([read(), status()], [value, sts], n.toString(16))
    assert.equal([pm.readPort(0x608, 1), pm.readPort(0x609, 1), pm.readPort(0x60a, 2)], [value & 255, (value >> 8) & 255, value >>> 16])
    pm.writePort(0x600, 2, 0)
    assert.is(status(), sts, '0 clears nothing')
    pm.writePort(0x600, 2, 1)
    assert.is(status(), 0)
    pm.writePort(0x608, 4, 0x12345)
    assert.is(read(), value, 'read-only')
  }
})

test.run()
