/**
 * The MC146818 by its data sheet (Motorola, ADI1026; headings in quotes): update cycle, SET, the divider, formats, the three
 * interrupts. Where a value is a choice of PC emulation it is QEMU's (hw/rtc/mc146818rtc.c).
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Cmos } from '../../host/vmm/devices/cmos.ts'

const S = 1e9
const [A, B, C, D] = [10, 11, 12, 13] as const
const [SET, PIE, AIE, UIE] = [0x80, 0x40, 0x20, 0x10] as const
const BCD24 = 2

interface Clock {
  at: (ns: number) => void
  r: (i: number) => number
  w: (i: number, v: number) => void
  levels: boolean[]
  alarms: () => number
  cmos: Cmos
  time: () => string
}
/** `date`: what the clock shows at virtual time 0. */
function make(date = '2026-01-01T00:00:00Z'): Clock {
  let now = 0
  let alarms = 0
  const levels: boolean[] = []
  const cmos = new Cmos({
    epoch: Date.parse(date) / 1000,
    now: () => now,
    lowMemory: 1 << 28,
    highMemory: 0,
    cpus: 1,
    irq: (level) => levels.push(level),
    onAlarm: () => alarms++,
  })
  const r = (i: number): number => (cmos.writePort(0x70, 1, i), cmos.readPort(0x71, 1))
  const w = (i: number, v: number): void => (cmos.writePort(0x70, 1, i), cmos.writePort(0x71, 1, v))
  const hex = (i: number): string => r(i).toString(16).padStart(2, '0')
  return {
    at(ns) {
      while (cmos.deadline <= ns) {
        now = cmos.deadline
        cmos.expire(now)
      }
      now = ns
    },
    r,
    w,
    levels,
    alarms: () => alarms,
    cmos,
    time: () => `${hex(0x32)}${hex(9)}-${hex(8)}-${hex(7)} ${hex(4)}:${hex(2)}:${hex(0)}`,
  }
}

test('UIP: up for the 244 us before each update, never while SET (“UIP”, t BUC)', () => {
  const { at, r, w } = make()
  for (const [ns, up] of [
    [0, 0],
    [S - 244_001, 0],
    [S - 244_000, 0x80],
    [S - 1, 0x80],
    [S, 0],
    [3 * S - 100_000, 0x80],
  ] as const) {
    at(ns)
    assert.is(r(A), 0x26 | up, `${ns}`)
  }
  w(B, SET | BCD24)
  at(5 * S - 100_000)
  assert.is(r(A), 0x26)
  w(A, 0xa6)
  assert.is(r(A), 0x26, 'read-only')
})

test('SET: the clock stands, its bytes are plain; it goes on from them at the next edge of the divider (“SET”)', () => {
  const { at, w, time } = make()
  at(10.25 * S)
  w(B, SET | BCD24)
  at(20.25 * S)
  assert.is(time(), '2026-01-01 00:00:10')
  w(0, 0x59)
  w(2, 0x59)
  at(30.75 * S)
  assert.is(time(), '2026-01-01 00:59:59')
  w(B, BCD24)
  at(31 * S - 1)
  assert.is(time(), '2026-01-01 00:59:59')
  at(31 * S)
  assert.is(time(), '2026-01-01 01:00:00')
})

// The order in which guests write a date must not matter: on the way there are dates that no calendar has.
for (const [from, to, order] of [
  ['2026-01-31T12:00:00Z', '2026-02-15', 'YMD'], // Linux: year, month, day; day 31 of February on the way
  ['2026-02-15T12:00:00Z', '2026-01-31', 'DMY'],
  ['2026-03-31T12:00:00Z', '2024-02-29', 'MDY'],
  ['2024-02-29T12:00:00Z', '2025-12-31', 'YDM'],
  ['1999-12-31T12:00:00Z', '2000-02-29', 'DYM'],
] as const) {
  test(`SET: from ${from.slice(0, 10)} to ${to}, written ${order}`, () => {
    const { at, w, time } = make(from)
    const bcd = (i: number, text: string): void => w(i, Number.parseInt(text, 16))
    w(B, SET | BCD24)
    for (const field of order) {
      if (field === 'Y') {
        bcd(0x32, to.slice(0, 2))
        bcd(9, to.slice(2, 4))
      } else if (field === 'M') bcd(8, to.slice(5, 7))
      else bcd(7, to.slice(8, 10))
    }
    w(B, BCD24)
    assert.is(time(), `${to} 12:00:00`)
    at(86400 * S)
    const next = new Date(Date.parse(`${to}T12:00:00Z`) + 86400e3).toISOString()
    assert.is(time(), `${next.slice(0, 10)} ${next.slice(11, 19)}`)
  })
}

test('SET going up clears UIE (“UIE”)', () => {
  const { w, r, at, levels } = make()
  w(B, UIE | AIE | BCD24)
  w(B, SET | UIE | AIE | BCD24)
  assert.is(r(B), SET | AIE | BCD24)
  w(B, AIE | BCD24)
  at(3 * S)
  assert.equal(levels, [])
})

test('divider in reset: clock and periodic interrupt stand; the first update is half a second behind the release (“Divider Control”)', () => {
  const { w, r, at, time, levels } = make()
  at(5.75 * S)
  w(A, 0x76)
  r(C)
  w(B, PIE | BCD24)
  levels.length = 0
  at(9.1 * S)
  assert.equal([time(), r(A), levels.length], ['2026-01-01 00:00:05', 0x76, 0])
  w(A, 0x26)
  at(9.6 * S - 1)
  assert.is(time(), '2026-01-01 00:00:05')
  at(9.6 * S)
  assert.is(time(), '2026-01-01 00:00:06')
  at(10.6 * S - 100_000)
  assert.is(r(A), 0xa6)
  at(10.6 * S)
  assert.is(time(), '2026-01-01 00:00:07')
})

// register B, hours as they are read at 00, 01, 11, 12, 13, 23 (“Time, Calendar, and Alarm Data Modes”, table 3)
for (const [b, hours] of [
  [2, [0x00, 0x01, 0x11, 0x12, 0x13, 0x23]],
  [6, [0, 1, 11, 12, 13, 23]],
  [0, [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]],
  [4, [12, 1, 11, 0x8c, 0x81, 0x8b]],
] as const) {
  test(`hours with DM ${b >> 2}, 24/12 ${(b >> 1) & 1}: read, written, rung`, () => {
    for (const [i, hour] of [0, 1, 11, 12, 13, 23].entries()) {
      const expected = hours[i] as number
      const read = make(`2026-01-01T${String(hour).padStart(2, '0')}:00:00Z`)
      read.w(B, b)
      assert.is(read.r(4), expected)
      const { w, r, at, alarms, time } = make(`2026-01-01T${String((hour + 23) % 24).padStart(2, '0')}:59:59Z`)
      w(B, b | AIE)
      for (const [index, value] of [
        [1, 0],
        [3, 0],
        [5, expected],
      ] as const)
        w(index, value)
      at(S - 1)
      assert.is(alarms(), 0)
      at(S)
      assert.equal([alarms(), r(C) & 0xb0], [1, 0xb0])
      w(B, SET | b)
      w(4, expected)
      w(B, b)
      w(B, 2)
      assert.is(time().slice(11, 13), String(hour).padStart(2, '0'))
    }
  })
}

test('the day of the week is a counter of its own, 1 to 7 (“Day of the Week”)', () => {
  const { w, r, at } = make() // a Thursday
  assert.is(r(6), 5)
  w(6, 7)
  assert.equal([r(6), r(7)], [7, 1])
  at(86400 * S)
  assert.equal([r(6), r(7)], [1, 2])
})

// RS, ns (table 5, 32.768 kHz)
for (const [rs, ns] of [
  [1, 3_906_250],
  [2, 7_812_500],
  [3, 122_070.3125],
  [4, 244_140.625],
  [5, 488_281.25],
  [6, 976_562.5],
  [7, 1_953_125],
  [8, 3_906_250],
  [9, 7_812_500],
  [10, 15_625_000],
  [11, 31_250_000],
  [12, 62_500_000],
  [13, 125_000_000],
  [14, 250_000_000],
  [15, 500_000_000],
] as const) {
  test(`periodic rate ${rs}: ${ns} ns (table 5)`, () => {
    const { w, r, cmos } = make()
    w(A, 0x20 | rs)
    w(B, PIE | BCD24)
    for (const n of [1, 2, 3]) {
      assert.is(cmos.deadline, Math.ceil(n * ns))
      cmos.expire(cmos.deadline)
      assert.is(r(C) & 0xc0, 0xc0)
    }
  })
}

test('PF is up from the first period on, not before (table 5)', () => {
  const { r, at } = make()
  for (const [ns, flag] of [
    [976_562, 0],
    [976_563, 0x40],
    [1_953_124, 0],
    [1_953_125, 0x40],
  ] as const) {
    at(ns)
    assert.is(r(C) & 0x40, flag, `${ns}`)
  }
})

test('rate 0: none (table 5)', () => {
  const { w, r, at, cmos } = make()
  w(A, 0x20)
  w(B, PIE | BCD24)
  assert.is(cmos.deadline, Number.POSITIVE_INFINITY)
  at(3 * S)
  assert.is(r(C) & 0x40, 0)
})

test('register C: flags without their enables, IRQF with; read clears and lets the line go (“Register C”)', () => {
  const { w, r, at, levels } = make()
  at(1.5 * S)
  assert.equal([r(C) & 0xd0, r(C), levels.join()], [0x50, 0, 'false,false'])
  levels.length = 0
  at(2.5 * S)
  // Enabled while its flag is up: IRQ at once; disabled again: it falls, the flag stays.
  w(B, UIE | BCD24)
  assert.is(levels.join(), 'true')
  w(B, BCD24)
  assert.is(levels.join(), 'true,false')
  w(B, UIE | BCD24)
  assert.equal([levels.join(), r(C) & 0x90, r(C)], ['true,false,true', 0x90, 0])
  w(C, 0xff)
  w(D, 0)
  assert.equal([r(C), r(D)], [0, 0x80], 'read-only')
})

for (const [name, enable] of [
  ['PIE', PIE],
  ['AIE', AIE],
  ['UIE', UIE],
] as const) {
  test(`${name} switched on over its flag: IRQ at once (“IRQF”)`, () => {
    const { w, r, at, levels } = make()
    for (const i of [1, 3, 5]) w(i, 0xff)
    at(1.5 * S)
    w(B, enable | BCD24)
    assert.is(levels.join(), 'true')
    assert.is(r(C) & (0x80 | enable), 0x80 | enable)
  })
}

// alarm bytes hour, minute, second; seconds at which it rings in the first two hours (“Alarm Bytes”: 11xxxxxx is don't care)
for (const [bytes, rings] of [
  [[0x00, 0x01, 0x30], [90]],
  [
    [0xc0, 0x00, 0x05],
    [5, 3605],
  ],
  [
    [0xff, 0xff, 0x58],
    [58, 118, 178],
  ],
  [
    [0x00, 0xc5, 0xd0],
    [1, 2, 3],
  ],
] as const) {
  test(`alarm ${bytes.map((v) => v.toString(16)).join(':')}`, () => {
    const { w, at, alarms } = make()
    for (const [i, value] of bytes.entries()) w(5 - 2 * i, value)
    w(B, AIE | BCD24)
    for (const [n, second] of rings.entries()) {
      at(second * S - 1)
      assert.is(alarms(), n)
      at(second * S)
      assert.is(alarms(), n + 1)
    }
  })
}

test('the RAM behind the registers is RAM', () => {
  const { w, r } = make()
  for (const i of [0x0e, 0x33, 0x40, 0x7f]) {
    w(i, i ^ 0x5a)
    assert.is(r(i), i ^ 0x5a)
  }
})

test.run()
