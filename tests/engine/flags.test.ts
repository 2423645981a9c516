/**
 * Fused compare-and-branch ops, lazy and eager flags, the fast and the slow function of the loop: random programs run whole and
 * warm end as those that are single-stepped. `CLOISTER_ENGINE_SEED`, `CLOISTER_ENGINE_PROGRAMS` for other and longer runs.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine } from '../system/machine.ts'

const seed = Number(process.env['CLOISTER_ENGINE_SEED'] ?? Date.now() & 0xffff)
const programs = Number(process.env['CLOISTER_ENGINE_PROGRAMS'] ?? 150)
let word = (seed * 2654435761 + 1) >>> 0 || 1

/** xorshift32. */
function random(n: number): number {
  word ^= word << 13
  word ^= word >>> 17
  word ^= word << 5
  return (word >>> 0) % n
}
/** Not RSP, RSI, RDI, RBP: those are addresses or left alone. */
const usable = [0, 1, 2, 3, 8, 9, 10, 11] as const
const register = (): number => usable[random(usable.length)] ?? 0

/** Opcode with ModRM reg, rm (registers), for one of four sizes; `byte` is the opcode of the byte form. */
function form(opcode: number[], reg: number, rm: number, size: number, memory = false): number[] {
  const last = opcode.length - 1
  const code = opcode.map((b, i) => (i === last && size === 1 ? b & ~1 : b))
  const rex = 0x40 | (size === 8 ? 8 : 0) | (reg & 8 ? 4 : 0) | (!memory && rm & 8 ? 1 : 0)
  // Memory: [rsi + disp8].
  const modrm = memory ? [0x46 | ((reg & 7) << 3), random(8) * 8] : [0xc0 | ((reg & 7) << 3) | (rm & 7)]
  return [...(size === 2 ? [0x66] : []), rex, ...code, ...modrm]
}

function setter(): number[] {
  const size = 1 << random(4)
  const memory = random(3) === 0
  const [a, b] = [register(), register()]
  switch (random(18)) {
    case 0:
    case 1:
    case 2:
    case 3:
      return form([random(8) * 8 + 1], a, b, size, memory)
    case 4:
    case 5:
      return form([0x39], a, b, size, memory)
    case 6:
      return form([0x3b], a, b, size, memory)
    case 7:
      return form([0x85], a, b, size, memory)
    case 8:
      return [...form([0x83], random(8), b, Math.max(size, 2)), random(256)]
    case 9:
      return [...form([0x81], random(8), b, 8, memory), random(256), random(256), random(256), random(256)]
    case 10:
      return form([0xff], random(2), b, size, memory)
    case 11:
      return form([0xf7], 3, b, size, memory)
    case 12:
      return [...form([0xc1], [4, 5, 7, 0, 1][random(5)] ?? 4, b, size, memory), random(33)]
    case 13:
      return form([0xd3], 4 + (random(3) === 2 ? 3 : random(2)), b, size)
    case 14:
      return form([0x0f, 0xa3], a, b, 4)
    case 15:
      // POPF of random arithmetic flags.
      return [0x68, random(256) & 0xd5, random(2) * 8, 0, 0, 0x9d]
    case 16:
      return [0xb4, random(256), 0x9e]
    default:
      return [[0xf8, 0xf9, 0xf5][random(3)] ?? 0xf8]
  }
}

function user(): number[] {
  const cc = random(16)
  const [a, b] = [register(), register()]
  switch (random(5)) {
    case 0:
      return [0x40 | (b & 8 ? 1 : 0), 0x0f, 0x90 | cc, 0xc0 | (b & 7)]
    case 1:
      return form([0x0f, 0x40 | cc], a, b, random(2) ? 8 : 4).map((x, i, all) => (i === all.length - 2 ? 0x40 | cc : x))
    case 2: {
      // Jcc over an instruction that shows.
      const over = [0x48, 0x8d, 0x40 | ((a & 7) << 3) | (a & 7), 1 + random(100)].map((x, i) => (i === 0 ? 0x48 | (a & 8 ? 5 : 0) : x))
      return [0x70 | cc, over.length, ...over]
    }
    case 3: {
      const over = setter()
      return [0x0f, 0x80 | cc, over.length, 0, 0, 0, ...over]
    }
    default:
      return [0x9c, 0x5b]
  }
}

function program(eagerFirst: boolean): number[] {
  const code: number[] = []
  for (let i = 0; i < 30; i++) {
    code.push(...setter())
    if (eagerFirst && i % 3 === 0) code.push(0x9c, 0x9d)
    for (let k = random(3); k >= 0; k--) code.push(...user())
  }
  return [...code, 0xf4]
}

function prepare(m: Machine): void {
  for (let n = 0; n < 16; n++) m.setReg(n, BigInt.asUintN(64, BigInt(n + 3) * 0x9e3779b97f4a7c15n * BigInt(n % 3 ? 1 : 0x10001)))
  m.setReg(4, 0x20000n)
  m.setReg(6, 0x30000n)
  for (let i = 0; i < 10; i++) m.poke(0x30000 + i * 8, BigInt.asUintN(64, BigInt(i) * 0x8421_1248_8001_7ffen))
  m.setFlags(2n)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.set32(L.CPU_HALTED, 0)
}

function state(m: Machine): string {
  const parts = [m.rip, m.flags & 0x8d5n]
  for (let n = 0; n < 16; n++) parts.push(m.reg(n))
  for (let i = 0; i < 9; i++) parts.push(m.peek(0x30000 + i * 8))
  return parts.map((v) => v.toString(16)).join(' ')
}

test(`${programs} random programs, seed ${seed}`, () => {
  const whole = new Machine('long')
  const stepped = new Machine('long')
  for (let p = 0; p < programs; p++) {
    const code = program(p % 2 === 1)
    const hex = Buffer.from(code).toString('hex')
    const end = BigInt(CODE + code.length)
    stepped.code(code)
    prepare(stepped)
    const trail: string[] = []
    while (stepped.rip !== end && trail.length < 500) {
      stepped.run(1)
      trail.push(state(stepped))
    }
    assert.is(stepped.rip, end, `seed ${seed}, program ${p}: ended at ${stepped.rip.toString(16)} (${hex})`)
    whole.code(code)
    for (let pass = 0; pass < 3; pass++) {
      prepare(whole)
      whole.run(1000)
      assert.is(state(whole), trail.at(-1), `seed ${seed}, program ${p}, pass ${pass}: ${hex}`)
    }
    // And stopped half-way.
    const half = 1 + random(trail.length - 1)
    prepare(whole)
    whole.run(half)
    assert.is(state(whole), trail[half - 1], `seed ${seed}, program ${p}, after ${half}: ${hex}`)
  }
})

/** POPF and SAHF before each condition: eager flags in Jcc (short, near), SETcc and CMOVcc. */
test('every condition with eager flags', () => {
  const m = new Machine('long')
  for (let cc = 0; cc < 16; cc++) {
    for (let bits = 0; bits < 64; bits++) {
      const [cf, pf, af, zf, sf, of] = [0, 1, 2, 3, 4, 5].map((i) => (bits >> i) & 1) as [number, number, number, number, number, number]
      const low = cf | (pf << 2) | (af << 4) | (zf << 6) | (sf << 7)
      const less = sf !== of
      const table = [of, cf, zf, cf | zf, sf, pf, Number(less), zf | Number(less)]
      const expected = (table[cc >> 1] ?? 0) ^ (cc & 1)
      // push low+of; popfq | (for OF = 0 also) mov ah, low; sahf
      for (const set of [[0x68, low, of * 8, 0, 0, 0x9d], ...(of ? [] : [[0x31, 0xc0, 0xb4, low, 0x9e]])]) {
        // setcc bl; mov ecx,0; mov edx,1; cmovcc ecx,edx; mov r8d,1; jcc +6; mov r8d,0; mov r9d,1; jcc near; mov r9d,0; pushfq; pop r10
        const code = [...set, 0x0f, 0x90 | cc, 0xc3, 0xb9, 0, 0, 0, 0, 0xba, 1, 0, 0, 0, 0x0f, 0x40 | cc, 0xca]
        code.push(0x41, 0xb8, 1, 0, 0, 0, 0x70 | cc, 6, 0x41, 0xb8, 0, 0, 0, 0, 0x41, 0xb9, 1, 0, 0, 0)
        code.push(0x0f, 0x80 | cc, 6, 0, 0, 0, 0x41, 0xb9, 0, 0, 0, 0, 0x9c, 0x41, 0x5a, 0xf4)
        m.code(code)
        prepare(m)
        m.run(100)
        const got = [m.reg(3) & 0xffn, m.reg(1), m.reg(8), m.reg(9)].map(Number)
        assert.equal(got, [expected, expected, expected, expected], `cc ${cc}, flags ${(low | (of << 11)).toString(16)}`)
        assert.is(Number(m.reg(10) & 0x8d5n), low | (of << 11))
      }
    }
  }
})

test.run()
