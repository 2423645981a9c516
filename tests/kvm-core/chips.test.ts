/** Register behaviour of the in-kernel PIC pair, PIT, local APIC and I/O APIC. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { APIC, Board, CODE } from './board.ts'
import { EXIT } from './guest.ts'

const test = suite('interrupt controllers')
test('PIC: initialisation, mask, IRR and ISR reads, ELCR masks', () => {
  const b = new Board()
  b.initPic()
  assert.equal([...b.pic()].slice(0, 6), [0, 0, 0, 0, 0, 0x20])
  b.out(0x21, 0xa5)
  assert.is(b.in(0x21), 0xa5)
  b.irq(3, 1)
  b.out(0x20, 0x0a)
  assert.is(b.in(0x20), 0x08)
  b.out(0x20, 0x0b)
  assert.is(b.in(0x20), 0)
  b.out(0x4d0, 0xff)
  b.out(0x4d1, 0xff)
  assert.equal([b.in(0x4d0), b.in(0x4d1)], [0xf8, 0xde])
})

test('PIC: level lines stay requested, edges need a new edge', () => {
  const b = new Board()
  b.initPic()
  b.irq(4, 1)
  b.irq(4, 1)
  assert.is(b.pic()[1], 0x10)
  b.irq(4, 0)
  assert.is(b.pic()[1], 0x10, 'an edge is remembered')
  b.out(0x4d0, 0x20)
  b.irq(5, 1)
  b.irq(5, 0)
  assert.is((b.pic()[1] as number) & 0x20, 0, 'a level is not')
})

test('PIC: poll command acknowledges; a slave request shows at IR2', () => {
  const b = new Board()
  b.initPic()
  b.irq(12, 1)
  assert.is((b.pic()[1] as number) & 4, 4)
  assert.is((b.pic(1)[1] as number) & 0x10, 0x10)
  b.out(0xa0, 0x0c)
  assert.is(b.in(0xa0), 0x84)
})

test('PIC: rotation and specific EOI', () => {
  const b = new Board()
  b.initPic()
  b.out(0x20, 0xc3) // set priority: irq 3 lowest
  assert.is(b.pic()[4], 4)
  b.out(0x20, 0x80) // rotate on automatic EOI
  assert.is(b.pic()[11], 1)
  b.out(0x20, 0x00)
  assert.is(b.pic()[11], 0)
})

test('PIT: counting, latch, read-back and status', () => {
  const b = new Board()
  b.out(0x43, 0xb0) // channel 2, word, mode 0
  b.out(0x61, 1)
  b.out(0x42, 0xff)
  b.out(0x42, 0xff)
  b.out(0x43, 0x80) // latch
  const first = b.in(0x42) | (b.in(0x42) << 8)
  b.wait(1_000_000)
  b.out(0x43, 0x80)
  const second = b.in(0x42) | (b.in(0x42) << 8)
  assert.ok(Math.abs(first - second - 1193) < 25, `${first} ${second}`)
  b.out(0x43, 0xe8) // read back status of channel 2
  assert.is(b.in(0x42), 0x30)
  b.out(0x42, 0x00)
  b.out(0x42, 0x10)
  b.wait(3_500_000)
  assert.is(b.in(0x61) & 0x20, 0x20, 'output is high after the terminal count')
  b.out(0x43, 0xe8)
  assert.is(b.in(0x42), 0xb0)
})

test('PIT: mode 3 counts by two, mode 2 reloads, gate restarts', () => {
  const b = new Board()
  b.out(0x61, 0)
  b.out(0x43, 0x96) // channel 2, LSB, mode 3
  b.out(0x42, 100)
  assert.is(b.in(0x43), 0)
  b.out(0x61, 1)
  const value = b.in(0x42)
  assert.ok(value > 80 && value <= 100, String(value))
  b.out(0x61, 3)
  assert.is(b.in(0x61) & 3, 3)
  const blob = (): Uint8Array => {
    call(b.core, 'pitGet', b.vm, L.STAGING)
    return b.core.bytes.slice(L.STAGING, L.STAGING + 112)
  }
  assert.is(blob()[48 + 13], 3)
  assert.is(blob()[72], 2, 'speaker data')
  const saved = blob()
  b.core.bytes.set(saved, L.STAGING)
  call(b.core, 'pitSet', b.vm, L.STAGING)
  assert.equal(blob().slice(24), saved.slice(24))
})

test('local APIC: reset values and writable bits', () => {
  const b = new Board()
  const expect: Record<number, number> = {
    0x20: 0,
    0x30: 0x50014,
    0x80: 0,
    0xd0: 0,
    0xe0: 0xffffffff,
    0xf0: 0xff,
    0x320: 0x10000,
    0x350: 0x700,
    0x360: 0x10000,
    0x370: 0x10000,
    0x380: 0,
    0x390: 0,
    0x3e0: 0,
  }
  for (const [at, value] of Object.entries(expect)) assert.is(b.load(APIC + Number(at)), value, `register 0x${Number(at).toString(16)}`)
  b.store(APIC + 0x320, 0xffffffff)
  assert.is(b.load(APIC + 0x320), 0x710ff, 'disabled: masked')
  b.store(APIC + 0xf0, 0x1ff)
  b.store(APIC + 0x350, 0xfffeffff)
  assert.is(b.load(APIC + 0x350), 0xf7ff)
  b.store(APIC + 0xd0, 0xffffffff)
  assert.is(b.load(APIC + 0xd0), 0xff000000)
  b.store(APIC + 0xe0, 0)
  assert.is(b.load(APIC + 0xe0), 0x0fffffff)
  b.store(APIC + 0xf0, 0)
  assert.is(b.load(APIC + 0x350), 0x1f7ff, 'software disable masks the LVT')
  b.store(APIC + 0x80, 0x1c5)
  assert.is(b.load(APIC + 0x80), 0xc5)
  assert.is(b.u64(L.CPU_CR8), 0xcn)
  assert.is(b.load(APIC + 0xa0), 0xc5)
})

test('local APIC: self IPI, priority, EOI', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  b.store(APIC + 0x300, 0x44041)
  b.store(APIC + 0x300, 0x44092)
  assert.ok(b.bit(0x200, 0x41) && b.bit(0x200, 0x92))
  // interrupts on: the higher one is delivered
  b.write(0x92 * 4, [0x00, 0x20, 0x00, 0x00])
  b.write(0x41 * 4, [0x00, 0x30, 0x00, 0x00])
  b.write(0x2000, [0xeb, 0xfe])
  b.write(CODE, [0xfb, 0x90, 0xeb, 0xfe])
  b.enter(CODE)
  b.run(b.s, 10n)
  assert.is(b.rip(), 0x2000)
  assert.ok(b.bit(0x100, 0x92) && !b.bit(0x200, 0x92))
  assert.is(b.load(APIC + 0xa0), 0x90, 'PPR')
  b.store(APIC + 0xb0, 0)
  assert.not.ok(b.bit(0x100, 0x92))
  assert.is(b.load(APIC + 0xa0), 0)
})

test('local APIC timer: one shot, periodic, divider', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  b.store(APIC + 0x3e0, 0xb) // divide by 1
  b.store(APIC + 0x320, 0x40)
  b.store(APIC + 0x380, 1_000_000)
  const left = b.load(APIC + 0x390)
  assert.ok(left > 990_000 && left < 1_000_000, String(left))
  b.wait(1_000_000)
  assert.ok(b.bit(0x200, 0x40))
  assert.is(b.load(APIC + 0x390), 0)
  b.store(APIC + 0x3e0, 0x1) // divide by 4
  b.store(APIC + 0x320, 0x20041)
  b.store(APIC + 0x380, 1_000_000)
  b.wait(4_100_000)
  assert.ok(b.bit(0x200, 0x41))
  const again = b.load(APIC + 0x390)
  assert.ok(again > 950_000 && again < 1_000_000, String(again))
})

test('x2APIC: registers by MSR, page gone', () => {
  const b = new Board()
  const x2 = (value: bigint, index: number): number => {
    b.core.view.setBigUint64(L.STAGING, value, true)
    return call(b.core, 'msrSet', b.s, index)
  }
  const read = (index: number): bigint | null => (call(b.core, 'msrGet', b.s, index) ? b.core.view.getBigUint64(L.STAGING, true) : null)
  assert.is(read(0x802), null, 'not in xAPIC mode')
  assert.ok(x2(0xfee00d00n, 0x1b))
  assert.is(b.load(APIC + 0x30), 0xffffffff)
  assert.is(read(0x803), 0x50014n)
  assert.is(read(0x802), 0n)
  assert.is(read(0x80d), 1n)
  assert.is(read(0x80e), null, 'no DFR')
  assert.ok(x2(0x1ffn, 0x80f))
  assert.ok(x2(0x51n, 0x83f))
  const irr = read(0x822)
  assert.is(irr, 1n << 17n)
  assert.not.ok(x2(0x100n, 0x83f))
  assert.not.ok(x2(1n, 0x828), 'ESR takes 0 only')
})

test('I/O APIC: registers', () => {
  const b = new Board()
  assert.is(b.ioapic(1), 0x170011)
  assert.is(b.ioapic(0, 0xffffffff), 0x0f000000)
  assert.is(b.ioapic(0x10), 0x10000)
  assert.is(b.ioapic(0x10, 0xffffffff), 0xffffafff, 'delivery status and remote IRR are read-only')
})

test('I/O APIC: level interrupt sets remote IRR until EOI, and comes again while the line is high', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  b.out(0x21, 0xff)
  b.out(0xa1, 0xff)
  b.ioapic(0x10 + 2 * 10, 0x8000 | 0x55)
  b.irq(10, 1)
  assert.ok(b.bit(0x200, 0x55) && b.bit(0x180, 0x55))
  assert.is(b.ioapic(0x10 + 20) & 0x4000, 0x4000)
  b.write(0x55 * 4, [0x00, 0x20, 0x00, 0x00])
  b.write(0x2000, [0xeb, 0xfe])
  b.write(CODE, [0xfb, 0x90, 0xeb, 0xfe])
  b.enter(CODE)
  b.run(b.s, 10n)
  assert.is(b.rip(), 0x2000)
  b.store(APIC + 0xb0, 0)
  assert.ok(b.bit(0x200, 0x55), 'still high')
  b.irq(10, 0)
  const blob = (): DataView => {
    call(b.core, 'ioapicGet', b.vm, L.STAGING)
    return new DataView(b.core.bytes.slice(L.STAGING, L.STAGING + 216).buffer)
  }
  assert.is(blob().getBigUint64(0, true), 0xfec00000n)
  assert.is(blob().getUint32(16, true) & 0x400, 0)
})

test('I/O APIC: a masked edge is kept for level only', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  b.ioapic(0x10 + 2 * 11, 0x18000 | 0x56)
  b.irq(11, 1)
  assert.not.ok(b.bit(0x200, 0x56))
  b.ioapic(0x10 + 2 * 11, 0x8000 | 0x56)
  assert.ok(b.bit(0x200, 0x56))
})

test('INIT and SIPI start a second processor; broadcast and logical destinations', () => {
  const b = new Board({ vcpus: 2 })
  const ap = b.cpus[1] as number
  b.core.view.setUint32(ap + L.CPU_HALTED, 1, true)
  b.write(0x9000, [0xe6, 0x80]) // out 80h
  b.store(APIC + 0x310, 0x01000000)
  b.store(APIC + 0x300, 0x4500)
  b.store(APIC + 0x300, 0x4609)
  assert.is(b.run(ap), 0)
  assert.is(b.reason(ap), EXIT.IO)
  assert.is(b.rip(ap), 0)
  assert.is(b.core.view.getUint16(ap + L.CPU_SEGMENTS + L.SEG_CS * 16 + L.SEG_SELECTOR, true), 0x900)
  b.open(ap)
  for (const s of b.cpus) b.store(APIC + 0xf0, 0x1ff, s)
  b.store(APIC + 0xd0, 0x02000000, ap)
  b.store(APIC + 0x310, 0x02000000)
  b.store(APIC + 0x300, 0x4861) // logical
  assert.ok(b.bit(0x200, 0x61, ap) && !b.bit(0x200, 0x61))
  b.store(APIC + 0x300, 0x0c4062) // all but self
  assert.ok(b.bit(0x200, 0x62, ap) && !b.bit(0x200, 0x62))
  call(b.core, 'signalMsi', 0xfee01000, 0, 0x4063, b.vm)
  assert.ok(b.bit(0x200, 0x63, ap))
})

test('lapic state: 1024 bytes, byte for byte', () => {
  const b = new Board()
  b.store(APIC + 0xf0, 0x1ff)
  b.store(APIC + 0x80, 0x30)
  const get = (): Uint8Array => {
    call(b.core, 'lapicGet', b.s, L.STAGING)
    return b.core.bytes.slice(L.STAGING, L.STAGING + 1024)
  }
  const saved = get()
  assert.is(saved[0x80], 0x30)
  b.store(APIC + 0x80, 0)
  b.core.bytes.set(saved, L.STAGING)
  call(b.core, 'lapicSet', b.s, L.STAGING)
  assert.equal(get(), saved)
  assert.is(b.u64(L.CPU_CR8), 3n)
})

test.run()
