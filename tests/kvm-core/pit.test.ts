/**
 * The in-kernel 8254: modes, latches, halves, read-back and gate, each value with its source. "8254" is Intel's data sheet
 * 231164-005; "KVM" is arch/x86/kvm/i8254.c of Linux, which decides where the two differ (it keeps no null count, counts
 * in binary whatever the BCD bit says, and loads a count at once instead of with the next clock).
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { Board } from './board.ts'

const test = suite('8254')
const TICK = 1e9 / 1193182

/** A board whose channel 2 has its gate on. */
function board(): Board {
  const b = new Board()
  call(b.core, 'createPit', b.vm, 1) // KVM_PIT_SPEAKER_DUMMY: port 0x61 is the kernel's
  b.out(0x61, 1)
  return b
}
const now = (b: Board): bigint => b.core.view.getBigUint64(b.s + L.CPU_TIME_BASE, true) + b.core.view.getBigUint64(b.s + L.CPU_ICOUNT, true)
/** Virtual time moves on by so many ticks, exactly: the accesses count too. */
function until(b: Board, start: bigint, ticks: number): void {
  const left = Number(start) + Math.ceil(ticks * TICK) - Number(now(b))
  assert.ok(left > 0, `too late by ${-left} ns`)
  b.wait(left)
}
const write16 = (b: Board, channel: number, value: number): void => {
  b.out(0x40 + channel, value & 255)
  b.out(0x40 + channel, value >> 8)
}
/** Latches status and count of one channel by the read-back command. */
function readBack(b: Board, channel: number): { out: number; mode: number; count: number; status: number } {
  b.out(0x43, 0xc0 | (2 << channel))
  const status = b.in(0x40 + channel)
  const count = b.in(0x40 + channel) | (b.in(0x40 + channel) << 8)
  return { out: status >> 7, mode: (status >> 1) & 7, count, status }
}

/** Time of the access itself: the count is latched 1 us after the instruction began. */
const PORT = Math.round(1000 / TICK)

// mode, count, ticks since loading, OUT, count; OUT by "8254" mode definitions, counts by the same where KVM follows.
const MODES: readonly (readonly [mode: number, load: number, ticks: number, out: number, count: number, source: string])[] = [
  [0, 1000, 400, 0, 600, '8254 mode 0: low until terminal count'],
  [0, 1000, 1100, 1, 0xffff - 99, '8254 mode 0: high from then on, the count wraps to FFFF'],
  [0, 0, 400, 0, 0x10000 - 400, '8254: 0 means 2^16'],
  [0, 100, 30, 0, 70, 'KVM create_pit_timer: only a periodic timer has a shortest period'],
  [1, 1000, 400, 1, 600, 'KVM pit_get_out: high while the one-shot runs (8254: low)'],
  [1, 1000, 1100, 0, 0xffff - 99, 'KVM, likewise'],
  [2, 1000, 400, 0, 600, 'KVM pit_get_out: high for the one clock at the reload only (8254: inverted)'],
  [2, 1000, 3400, 0, 600, '8254 mode 2: reloads by itself'],
  [3, 1000, 300, 1, 400, '8254 mode 3: high for the first half, counts by two'],
  [3, 1000, 700, 0, 600, '8254 mode 3: low for the second half, counts by two from the reload'],
  [3, 1001, 490, 1, 21, '8254 mode 3: an odd count is high for (N+1)/2'],
  [3, 1001, 510, 0, 982, 'KVM pit_get_count: "may be incorrect for odd counts"'],
  [4, 1000, 400, 0, 600, 'KVM pit_get_out: high for the clock of the strobe only (8254: inverted)'],
  [5, 1000, 400, 0, 600, 'KVM, likewise'],
  [6, 1000, 300, 1, 400, '8254 control word: X10 is mode 2, X11 mode 3 (6 = X10)'],
  [7, 1000, 300, 1, 400, '8254 control word: 7 = X11'],
]
for (const channel of [2, 0]) {
  for (const [mode, load, ticks, out, count, source] of MODES) {
    if (channel === 0 && mode === 5) continue // no timer: see below
    test(`channel ${channel} mode ${mode}, ${load} after ${ticks} ticks: ${source}`, () => {
      const b = board()
      b.out(0x43, (channel << 6) | 0x30 | (mode << 1))
      write16(b, channel, load)
      const start = now(b)
      until(b, start, ticks - PORT)
      const got = readBack(b, channel)
      const real = mode === 6 ? 2 : mode === 7 ? 3 : mode
      const expected = mode === 6 ? { out: 0, count: 700 } : { out, count }
      assert.is(got.mode, real)
      assert.is(got.out, expected.out)
      assert.ok(Math.abs(got.count - expected.count) <= (real === 3 ? 6 : 3), `${got.count}, not ${expected.count}`)
    })
  }
}

test('mode 3 with count 3, tick by tick: high for two, low for one; the count tells which (8254 mode 3; KVM pit_get_count)', () => {
  const b = board()
  b.out(0x43, 0xb6)
  write16(b, 2, 3)
  const seen = new Set<number>()
  for (let i = 0; i < 40; i++) {
    b.wait(300)
    const { out, count } = readBack(b, 2)
    seen.add(count)
    assert.is(out, count === 2 ? 0 : 1, `${count}`)
  }
  assert.equal([...seen].toSorted(), [1, 2, 3])
})

test('a count of 0 that KVM_SET_PIT2 brings to another channel counts as 2^16, like one that is loaded', () => {
  const b = board()
  for (const channel of [1, 2]) {
    b.out(0x43, (channel << 6) | 0x34)
    write16(b, channel, 0)
  }
  call(b.core, 'pitGet', b.vm, L.STAGING)
  b.core.view.setUint32(L.STAGING + 48, 0, true)
  b.core.view.setBigUint64(L.STAGING + 48 + 16, b.core.view.getBigUint64(L.STAGING + 24 + 16, true), true)
  call(b.core, 'pitSet', b.vm, L.STAGING)
  b.wait(100_000)
  b.out(0x43, 0xdc) // both counts at once
  const [one, two] = [1, 2].map((channel) => b.in(0x40 + channel) | (b.in(0x40 + channel) << 8))
  assert.is(two, one)
})

test('channel 0 keeps step with its interrupts: the count is near the top behind each of a million (KVM __kpit_elapsed)', () => {
  const b = board()
  b.out(0x43, 0x34)
  write16(b, 0, 1193)
  const start = now(b)
  // 1193 ticks are 999,847.46 ns, the timer runs in whole ns: 0.46 s of difference after a million.
  const period = Math.floor((1193 * 1e9) / 1193182)
  b.core.view.setBigUint64(b.vm + L.VM_CLOCK, BigInt(period) * 1_000_000n + start, true)
  b.wait(20_000)
  const { count } = readBack(b, 0)
  assert.ok(count > 1193 - 60 && count < 1193 - 8, `${count}`)
})

test('channel 0 in mode 5 and before the first count has no timer (KVM destroy_pit_timer, period 0)', () => {
  const b = board()
  assert.is(readBack(b, 0).count, 0)
  b.wait(100_000)
  assert.is(readBack(b, 0).count, 0)
  b.out(0x43, 0x3a)
  write16(b, 0, 500)
  assert.is(b.core.view.getBigUint64(b.core.view.getUint32(b.vm + L.VM_KVM_STATE, true) + L.CHIP_PIT_DEADLINE, true), (1n << 64n) - 1n)
})

test('counter latch: holds until read, a second latch is ignored; status before count (8254 "Counter Latch", "Read-Back")', () => {
  const b = board()
  b.out(0x43, 0xb0)
  write16(b, 2, 0xf000)
  b.out(0x43, 0x80)
  b.wait(1_000_000)
  b.out(0x43, 0x80)
  const first = b.in(0x42) | (b.in(0x42) << 8)
  assert.ok(first > 0xefe0, first.toString(16))
  const live = b.in(0x42) | (b.in(0x42) << 8)
  assert.ok(live < first - 1000, live.toString(16))
  // Both latched: the first read is the status, then the count, as one.
  b.out(0x43, 0xc8)
  assert.is(b.in(0x42), 0x30)
  b.wait(1_000_000)
  const latched = b.in(0x42) | (b.in(0x42) << 8)
  assert.ok(Math.abs(latched - live) < 20, `${latched} ${live}`)
  // Status alone (bit 4 low, bit 5 high), twice: the second is ignored.
  b.out(0x43, 0xe8)
  b.out(0x43, 0xe8)
  assert.is(b.in(0x42), 0x30)
  assert.is.not(b.in(0x42) | (b.in(0x42) << 8), 0x3030)
})

test('read-back reaches all channels named in bits 3:1 and no other (8254 "Read-Back")', () => {
  const b = board()
  for (const channel of [0, 1, 2]) {
    b.out(0x43, (channel << 6) | 0x30)
    write16(b, channel, 0x8000)
  }
  b.out(0x43, 0xd6) // count of channels 0 and 1, not the status
  b.wait(2_000_000)
  const counts = [0, 1, 2].map((channel) => b.in(0x40 + channel) | (b.in(0x40 + channel) << 8))
  assert.ok((counts[0] as number) - (counts[2] as number) > 2000, `${counts}`)
  assert.ok((counts[1] as number) - (counts[2] as number) > 2000, `${counts}`)
})

// access, bytes written, count in force, bytes that reading gives, source
const HALVES: readonly (readonly [access: number, written: readonly number[], count: number, read: readonly number[]])[] = [
  [1, [0x34], 0x0034, [0x34, 0x34]], // 8254 control word: RW 01 least significant byte only
  [2, [0x12], 0x1200, [0x12, 0x12]], // RW 10 most significant byte only, the other half is 0
  [3, [0x34, 0x12], 0x1234, [0x34, 0x12]], // RW 11 least significant byte first
]
for (const [access, written, count, read] of HALVES) {
  test(`halves: access ${access} loads 0x${count.toString(16)}`, () => {
    const b = board()
    b.out(0x43, 0x80 | (access << 4))
    for (const byte of written) b.out(0x42, byte)
    const at = b.core.view.getUint32(b.vm + L.VM_KVM_STATE, true) + L.CHIP_PIT + 64
    assert.is(b.core.view.getUint32(at + L.PIT_COUNT, true), count)
    // What is read has counted on by a few ticks of the accesses.
    const bytes = read.map(() => b.in(0x42))
    read.forEach((byte, i) => {
      const low = access === 1 || (access === 3 && i === 0)
      const distance = (byte - (bytes[i] as number)) & 255
      assert.ok(low ? distance < 12 : distance <= 1, `${bytes}`)
    })
    b.out(0x43, 0xe8)
    assert.is(b.in(0x42) & 0x30, access << 4)
  })
}

test('a new count between the halves of a word: the first byte waits, a control word begins anew (8254 "Write Operations")', () => {
  const b = board()
  const at = b.core.view.getUint32(b.vm + L.VM_KVM_STATE, true) + L.CHIP_PIT + 64
  b.out(0x43, 0xb0)
  write16(b, 2, 0x1234)
  b.out(0x42, 0x78)
  assert.is(b.core.view.getUint32(at + L.PIT_COUNT, true), 0x1234)
  b.out(0x43, 0xb0)
  write16(b, 2, 0x5678)
  assert.is(b.core.view.getUint32(at + L.PIT_COUNT, true), 0x5678)
})

test('BCD: kept in the status, counted in binary (KVM pit_get_count knows no BCD)', () => {
  const b = board()
  b.out(0x43, 0xb1)
  write16(b, 2, 0x1000)
  b.out(0x43, 0xe8)
  assert.is(b.in(0x42) & 1, 1)
  b.wait(100_000)
  const count = b.in(0x42) | (b.in(0x42) << 8)
  assert.ok(count > 0x1000 - 150 && count < 0x1000 - 115, count.toString(16))
})

for (const [mode, restarts] of [
  [0, false], // 8254 "Gate": level sensitive; KVM pit_set_gate: "just disable/enable counting"
  [1, true], // 8254: a rising edge triggers
  [2, true],
  [3, true],
  [4, false],
  [5, true],
] as const) {
  test(`gate of channel 2 in mode ${mode}: a rising edge ${restarts ? 'restarts' : 'does nothing'}`, () => {
    const b = board()
    b.out(0x43, 0xb0 | (mode << 1))
    write16(b, 2, 60000)
    b.wait(1_000_000)
    b.out(0x61, 1) // no edge
    assert.ok(readBack(b, 2).count < (mode === 3 ? 57700 : 58850))
    b.out(0x61, 0)
    b.out(0x61, 1)
    const { count } = readBack(b, 2)
    assert.is(count > 59900, restarts, `${count}`)
    assert.is(b.in(0x61) & 3, 1)
  })
}

test('port 0x61: gate, speaker, refresh clock of 2^14 ns, OUT of channel 2 (KVM speaker_ioport_read)', () => {
  const b = board()
  b.out(0x43, 0xb0)
  write16(b, 2, 100)
  assert.is(b.in(0x61) & 0x23, 1)
  b.out(0x61, 3)
  assert.is(b.in(0x61) & 0x23, 3)
  b.wait(200_000)
  assert.is(b.in(0x61) & 0x23, 0x23)
  const seen: number[] = []
  for (let i = 0; i < 24; i++) {
    b.wait(7000)
    seen.push((b.in(0x61) >> 4) & 1)
  }
  const edges = seen.filter((bit, i) => i > 0 && bit !== seen[i - 1]).length
  assert.ok(edges >= 10 && edges <= 14, `${seen}`)
})

test('KVM_SET_PIT2 takes every count as it is, 0 as 2^16 (pit_load_count), and what is read comes back', () => {
  const b = board()
  for (const [given, kept] of [
    [0, 0x10000],
    [0x10000, 0x10000],
    [1193, 1193],
    [0x12345678, 0x12345678],
  ] as const) {
    call(b.core, 'pitGet', b.vm, L.STAGING)
    b.core.view.setUint32(L.STAGING, given, true)
    call(b.core, 'pitSet', b.vm, L.STAGING)
    call(b.core, 'pitGet', b.vm, L.STAGING)
    assert.is(b.core.view.getUint32(L.STAGING, true), kept)
  }
})

test.run()
