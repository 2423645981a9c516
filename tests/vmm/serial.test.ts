/** The 16550A by its data sheet (National Semiconductor PC16550D, sections in the tables): loopback, FIFO, interrupts. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Serial } from '../../host/vmm/devices/serial.ts'

const [DATA, IER, IIR, LCR, MCR, LSR, MSR] = [0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe] as const
const LOOP = 0x10

const make = (): { uart: Serial; out: number[]; line: boolean[]; r: (p: number) => number; w: (p: number, v: number) => void } => {
  const out: number[] = []
  const line: boolean[] = []
  const uart = new Serial(
    0x3f8,
    (b) => out.push(b),
    (l) => line.push(l),
  )
  return { uart, out, line, r: (p) => uart.readPort(p, 1), w: (p, v) => uart.writePort(p, 1, v) }
}

// 8.6 MODEM control register, bit 4: DTR, RTS, OUT1, OUT2 appear as DSR, CTS, RI, DCD
for (let mcr = 0; mcr < 16; mcr++) {
  const expected = ((mcr & 1) << 5) | ((mcr & 2) << 3) | ((mcr & 4) << 4) | ((mcr & 8) << 4)
  test(`loopback: MCR ${mcr.toString(2)} as MSR ${expected.toString(2)} (8.6)`, () => {
    const { r, w } = make()
    w(MCR, LOOP | mcr)
    assert.is(r(MSR), expected)
    assert.is(r(MCR), LOOP | mcr)
    w(MCR, mcr)
    assert.is(r(MSR), 0xb0, 'a terminal is attached')
  })
}

test('MCR: bits 7:5 read as 0 (8.6)', () => {
  const { r, w } = make()
  w(MCR, 0xff)
  assert.is(r(MCR), 0x1f)
})

test('loopback: what is sent is received and does not leave; interrupts work (8.6)', () => {
  const { r, w, out, line } = make()
  w(IER, 1)
  w(MCR, LOOP)
  w(DATA, 0x42)
  assert.equal([r(LSR), r(IIR), line.join()], [0x61, 4, 'true'])
  assert.equal([r(DATA), r(LSR), line.join()], [0x42, 0x60, 'true,false'])
  assert.equal(out, [])
  w(MCR, 0)
  w(DATA, 0x43)
  assert.equal([out.join(), r(LSR)], ['67', 0x60])
})

test('loopback: the receiver hears nobody else; what came waits (8.6)', () => {
  const { uart, r, w } = make()
  w(MCR, LOOP)
  uart.input(Uint8Array.of(7))
  assert.is(r(LSR), 0x60)
  w(DATA, 1)
  assert.equal([r(DATA), r(LSR)], [1, 0x60])
  w(MCR, 0)
  assert.equal([r(LSR), r(DATA)], [0x61, 7])
})

test('loopback without FIFO: the second character destroys the first, LSR.1 until read (8.4)', () => {
  const { r, w, line } = make()
  w(IER, 4)
  w(MCR, LOOP)
  w(DATA, 1)
  assert.equal(line, [])
  w(DATA, 2)
  assert.equal([line.join(), r(IIR)], ['true', 6])
  assert.equal([r(LSR), r(LSR), line.join()], [0x63, 0x61, 'true,false'])
  assert.equal([r(DATA), r(LSR)], [2, 0x60])
})

test('loopback with FIFO: sixteen are kept, the seventeenth is lost (8.4, 8.5)', () => {
  const { r, w } = make()
  w(IIR, 1)
  w(MCR, LOOP)
  for (let i = 1; i <= 16; i++) w(DATA, i)
  assert.is(r(LSR), 0x61)
  w(DATA, 17)
  assert.is(r(LSR), 0x63)
  for (let i = 1; i <= 16; i++) assert.is(r(DATA), i)
  assert.equal([r(LSR), r(DATA)], [0x60, 0])
})

test('FCR: switching the FIFOs, and bit 1, empty the receiver; IIR shows them (8.5, table IV)', () => {
  const { r, w } = make()
  w(MCR, LOOP)
  for (const [fcr, iir] of [
    [1, 0xc1],
    [3, 0xc1],
    [0, 0x01],
  ] as const) {
    w(DATA, 9)
    w(IIR, fcr)
    assert.equal([r(LSR), r(IIR)], [0x60, iir], `FCR ${fcr}`)
  }
  w(IIR, 1)
  w(DATA, 9)
  w(IIR, 1)
  assert.is(r(LSR), 0x61, 'no change, no reset')
})

test('priorities of IIR: line status, received data, THR empty (8.7, table IV)', () => {
  const { r, w, line } = make()
  w(MCR, LOOP)
  w(IER, 7)
  assert.is(line.join(), 'true')
  w(DATA, 1)
  w(DATA, 2)
  assert.is(r(IIR), 6)
  r(LSR)
  assert.is(r(IIR), 4)
  r(DATA)
  assert.equal([r(IIR), r(IIR), line.join()], [2, 1, 'true,false'])
  w(IER, 5)
  w(IER, 7)
  assert.is(r(IIR), 2, 'enabling it while THR is empty asks again (8.8)')
  w(IER, 7)
  assert.is(r(IIR), 1, 'only the change does')
  assert.is(r(IER), 7)
  w(IER, 0xff)
  assert.is(r(IER), 0x0f)
})

test('DLAB: data and IER are the divisor, nothing is sent (8.3)', () => {
  const { r, w, out } = make()
  w(LCR, 0x80)
  w(DATA, 0x34)
  w(IER, 0x12)
  assert.equal([r(DATA), r(IER), r(LCR)], [0x34, 0x12, 0x80])
  w(DATA, 0x56)
  assert.equal([r(DATA), r(IER)], [0x56, 0x12])
  w(LCR, 3)
  assert.equal([r(IER), r(LSR), out.length], [0, 0x60, 0])
  assert.is(r(0x3ff), 0)
})

test.run()
