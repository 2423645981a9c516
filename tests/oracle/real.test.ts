/** Integer instructions in real mode, which the physical CPU cannot be asked about from user space. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine } from '../system/machine.ts'

test('MOV CS:[offset], AX stores in real mode', () => {
  const m = new Machine('real')
  m.setReg(0, 0x1234n)
  assert.is(m.exec([0x2e, 0xa3, 0x00, 0x01, 0xf4]), -1)
  assert.is(m.peek(CODE + 0x100, 2), 0x1234n)
})

test('MOV CS:[BX], AL stores in real mode', () => {
  const m = new Machine('real')
  m.setReg(0, 0x56n)
  m.setReg(3, 0x200n)
  assert.is(m.exec([0x2e, 0x88, 0x07, 0xf4]), -1)
  assert.is(m.peek(CODE + 0x200, 1), 0x56n)
})

test('a word at offset ffff passes the limit', () => {
  const m = new Machine('real')
  m.setReg(3, 0xffffn)
  assert.is(m.exec([0x8b, 0x07, 0xf4]), 13)
})

test('REP MOVSB wraps SI and DI at 64 KiB', () => {
  const m = new Machine('real')
  for (let i = 0; i < 8; i++) m.poke(0x30000 + ((0xfffc + i) & 0xffff), BigInt(0xa0 + i), 1)
  m.segment(L.SEG_DS, 0x3000, 0x30000n, 0xffff, 0x93)
  m.segment(L.SEG_ES, 0x5000, 0x50000n, 0xffff, 0x93)
  m.setReg(1, 8n)
  m.setReg(6, 0xfffcn)
  m.setReg(7, 0xfffen)
  assert.is(m.exec([0xf3, 0xa4, 0xf4]), -1)
  assert.is(m.reg(6), 4n)
  assert.is(m.reg(7), 6n)
  for (let i = 0; i < 8; i++) assert.is(m.peek(0x50000 + ((0xfffe + i) & 0xffff), 1), BigInt(0xa0 + i))
})

test.run()
