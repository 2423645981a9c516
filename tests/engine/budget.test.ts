/** The same guest stopped at every budget N shows the state that single-stepping shows. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine } from '../system/machine.ts'

/**
 * A loop of loads, stores, RMW, REP MOVS, CALL/RET, ADC/SBB, shifts by CL and a store into its own code:
 * mov ecx,7; mov esi,0x30000; mov edi,0x31000; outer: add/adc/rol/push/call f/pop/mov/xor/inc/rep movsb/
 * mov [patch+1],cl; patch: add al,imm; sub/sbb/setc/cmovb/shl/imul/dec/jnz outer; jmp start; f: lea/bt/jc/neg/ret
 */
const program =
  'b907000000be00000300bf001003004801c84811c348c1c30353e83f0000005a488914ce817604aa550000fe4609515657b905000000f3a45f5e59880d0100000004114929c04d19c1410f92c24d0f42d949d3e34d6be311ffc975b3eba2488d5c9b01480fbae305720348f7dbc3'
const STEPS = 700

function prepare(m: Machine): void {
  m.code(program.match(/../g)?.map((b) => Number.parseInt(b, 16)) ?? [])
  for (let i = 0; i < 64; i++) {
    m.poke(0x30000 + i * 8, BigInt(i) * 0x9e3779b97f4a7c15n)
    m.poke(0x31000 + i * 8, 0n)
  }
  for (let r = 0; r < 16; r++) m.setReg(r, BigInt(r) * 0x123456789abcdefn)
  m.setReg(4, 0x20000n)
  m.setFlags(2n)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.changed()
}

function state(m: Machine): string {
  const parts = [m.rip, m.flags & 0x8d5n]
  for (let r = 0; r < 16; r++) parts.push(m.reg(r))
  for (let i = 0; i < 10; i++) parts.push(m.peek(0x30000 + i * 8), m.peek(0x31000 + i * 8), m.peek(0x1ffd0 + i * 8))
  return parts.map((v) => v.toString(16)).join(' ')
}

test('every budget from 1 to 700 against single-stepping', () => {
  const stepped = new Machine('long')
  prepare(stepped)
  const expected: string[] = []
  for (let n = 0; n < STEPS; n++) {
    assert.is(stepped.run(1), L.STOP_BUDGET, `step ${n}`)
    expected.push(state(stepped))
  }
  const whole = new Machine('long')
  for (let n = 1; n <= STEPS; n++) {
    prepare(whole)
    assert.is(whole.run(n), L.STOP_BUDGET)
    assert.is(state(whole), expected[n - 1], `budget ${n}`)
  }
})

test.run()
