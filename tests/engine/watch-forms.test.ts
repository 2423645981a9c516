/**
 * A data breakpoint on the operand of every memory form: the instruction does what it does without, then #DB comes with RIP behind it.
 * A breakpoint on reads and writes fires where an absent page would fault, one on writes where a read-only page would.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { call } from '../support/core.ts'
import { CODE, gate, IST1, KCODE64, L, type Machine, STUBS } from '../system/machine.ts'
import { GPR, Guest } from '../kvm-core/guest.ts'
import { FormBench } from './bench.ts'
import { encodings } from './forms.ts'

const PAGE = 0x120000
const NEXT = PAGE + 4096
const SCRATCH = 0x140000
const DB = BigInt(STUBS + 16)
const PF = BigInt(STUBS + 14 * 16)

const pattern = Uint8Array.from({ length: 8192 }, (_, i) => (i * 37 + (i >> 8) * 11 + 3) & 0xff)

class Bench extends FormBench {
  constructor() {
    super((m) => {
      for (const vector of [1, 14]) m.idt(vector, gate(KCODE64, STUBS + vector * 16, 0x8e, 1))
      m.set64(L.CPU_CR0, m.u64(L.CPU_CR0) | 0x10000n)
    })
  }

  /** One instruction; `dr7` 0: no breakpoint. What it left (without RIP) and where it ended. */
  run(
    code: readonly number[],
    at: number,
    watch = 0,
    dr7 = 0n,
    prepare: (m: Machine) => void = () => {},
    n = 1,
  ): { state: string; rip: bigint } {
    const { m } = this
    this.restart()
    this.write(PAGE, pattern)
    this.write(SCRATCH, new Uint8Array(0x1000).fill(0x49))
    this.general(SCRATCH + 0x800)
    m.setReg(3, BigInt(at))
    m.setReg(4, 0x20000n)
    this.vectors()
    m.set64(L.CPU_DR, BigInt(watch))
    m.set64(L.CPU_DR7, 0x400n | dr7)
    m.set64(L.CPU_RIP, BigInt(CODE))
    m.code([...code, 0xf4, 0xf4, 0xf4])
    prepare(m)
    m.changed()
    m.run(n)
    const { rip } = m
    const part = this.part.bind(this)
    const memory = this.read(PAGE, 8192).toString('base64')
    const segments = `${part(L.CPU_SEGMENTS, 32)} ${part(L.CPU_SEGMENTS + 48, 112)}`
    const fpu = `${part(L.CPU_FCW, 24)} ${part(L.CPU_ST, 128)} ${part(L.CPU_XMM, 512)}`
    const taken = rip === DB || rip === DB + 1n
    const frame = IST1 - 40
    const [next, flags, rsp] = taken ? [m.peek(frame), m.peek(frame + 16), m.peek(frame + 24)] : [rip, m.flags, m.reg(4)]
    return {
      state: `${next.toString(16)} ${flags & 0x8d5n} ${rsp.toString(16)} ${part(L.CPU_GPR, 32)} ${part(L.CPU_GPR + 40, 88)} ${segments} ${fpu} ${memory}`,
      rip,
    }
  }
}

const apart = /^(VMRUN|VMLOAD|VMSAVE|INVLPGA|INVLPG|MONITOR)/

test('every memory form under a data breakpoint', () => {
  const b = new Bench()
  const wrong: string[] = []
  let hits = 0
  let silent = 0
  for (const o of opcodes) {
    if (!o.modrm || o.mod === 'reg' || o.exact !== undefined || o.flags.has('no64') || apart.test(o.mnemonic)) continue
    for (const [variant, code] of encodings(o)) {
      for (const at of [NEXT - 64, NEXT - 1]) {
        const where = `${o.text} ${variant} (${Buffer.from(code).toString('hex')}) at ${at.toString(16)}`
        const faults = [0n, 1n].map((bits) => {
          b.map([PAGE, bits], [NEXT, 3n])
          const { rip } = b.run(code, at)
          return rip === PF || rip === PF + 1n
        })
        b.map([PAGE, 3n], [NEXT, 3n])
        const plain = b.run(code, at)
        // What it read made it fault.
        if (plain.rip >= BigInt(STUBS) && plain.rip < BigInt(STUBS + 0x1000)) continue
        for (const [kind, dr7, expected] of [
          ['read or write', 0x30001n, faults[0]],
          ['write', 0x10001n, faults[1]],
        ] as const) {
          const got = b.run(code, at, at, dr7)
          const fired = got.rip === DB || got.rip === DB + 1n
          if (fired !== expected) wrong.push(`${where}: ${kind} ${fired ? 'fired' : 'did not fire'}`)
          else if (fired) {
            hits++
            if (got.state !== plain.state)
              wrong.push(`${where}: ${kind}: another result\n${got.state.slice(0, 120)}\n${plain.state.slice(0, 120)}`)
            if ((b.m.u64(L.CPU_DR6) & 0x400fn) !== 1n) wrong.push(`${where}: DR6 ${b.m.u64(L.CPU_DR6).toString(16)}`)
          } else silent++
        }
        // The byte before the operand is none of it.
        const beside = b.run(code, at, at - 1, 0x30001n)
        if (beside.rip === DB || beside.rip === DB + 1n) wrong.push(`${where}: fired a byte before`)
      }
    }
  }
  process.stdout.write(`  ${hits} breakpoints hit, ${silent} not\n`)
  assert.equal(wrong.slice(0, 20), [], `${wrong.length} wrong`)
  assert.ok(hits > 1500, `${hits}`)
})

/** As seen on Zen 4 by PTRACE_POKEUSER: instructions, breakpoint on writes of the first byte, bytes that one on accesses fires for. */
const seen: [name: string, code: string, write: boolean, bytes: string][] = [
  ['cmpxchg, not equal', 'b805000000b907000000f00fb10f', true, '0-3'],
  ['cmpxchg8b', 'b805000000ba070000000fc70f', true, '0-7'],
  ['cmpxchg16b', 'b805000000ba07000000480fc70f', true, '0-15'],
  ['shl by 0', '31c9d327', true, '0-3'],
  ['rol by 0', '31c9d307', true, '0-3'],
  ['shld by 0', '31c90fa507', true, '0-3'],
  ['rcl by 32', 'b920000000d317', true, '0-3'],
  ['rep stosb, 0 times', '31c9f3aa', false, ''],
  ['maskmovdqu of nothing', '660fefc9660ff7c1', false, ''],
  ['bts by register', 'b8c8000000480fab07', false, '24-31'],
  ['bt', '0fba2701', false, '0-3'],
  ['fxsave', '0fae07', true, '0-31 160-160'],
  ['fnstenv', 'd937', true, '0-27'],
  ['fnstcw', 'd93f', true, '0-1'],
  ['fstp tbyte', 'd9eedb3f', true, '0-9'],
  ['xadd', '0fc107', true, '0-3'],
  ['xchg', '8707', true, '0-3'],
  ['add 0', '830700', true, '0-3'],
  ['cmp', '833f00', false, '0-3'],
  ['test', 'f70700000000', false, '0-3'],
  ['setc', '0f9207', true, '0-0'],
  ['movnti', '0fc307', true, '0-3'],
  ['movdqu', 'f30f7f07', true, '0-15'],
  ['movhpd', '660f1707', true, '0-7'],
]

test('which bytes a breakpoint sees', () => {
  const b = new Bench()
  b.map([PAGE, 3n], [NEXT, 3n])
  const at = PAGE + 0x400
  const wrong: string[] = []
  for (const [name, hex, write, bytes] of seen) {
    const code = [...Buffer.from(hex, 'hex')]
    const fires = (offset: number, dr7: bigint): boolean => {
      b.run(
        code,
        at,
        at + offset,
        dr7,
        (m) => {
          m.setReg(7, BigInt(at))
          m.setFlags(2n)
        },
        4,
      )
      return (b.m.u64(L.CPU_DR6) & 15n) !== 0n
    }
    if (fires(0, 0x10001n) !== write) wrong.push(`${name}: write`)
    const ranges = bytes
      .split(' ')
      .filter((r) => r !== '')
      .map((r) => r.split('-').map(Number) as [number, number])
    for (const offset of [0, 1, 4, 7, 8, 9, 10, 15, 16, 24, 25, 31, 160, 416, 511, 512]) {
      const expected = ranges.some(([from, to]) => offset >= from && offset <= to)
      if (fires(offset, 0x30001n) !== expected) wrong.push(`${name}: byte ${offset} ${expected ? 'does not fire' : 'fires'}`)
    }
  }
  assert.equal(wrong, [])
})

test('a repetition stops behind the round that hits (as on Zen 4)', () => {
  const b = new Bench()
  b.map([PAGE, 3n], [NEXT, 3n])
  const at = PAGE + 0x400
  for (const [name, code, size] of [
    ['movsb', [0xf3, 0xa4], 1],
    ['movsq', [0xf3, 0x48, 0xa5], 8],
    ['stosb', [0xf3, 0xaa], 1],
    ['stosq', [0xf3, 0x48, 0xab], 8],
    ['lodsb', [0xf3, 0xac], 1],
    ['cmpsb', [0xf3, 0xa6], 1],
    ['scasb', [0xf3, 0xae], 1],
  ] as const) {
    for (const offset of [0, 8, 16]) {
      b.run(
        [...code],
        at,
        at + offset,
        0x30001n,
        (m) => {
          m.setReg(1, 200n)
          m.setReg(7, BigInt(at))
          m.setReg(6, BigInt(name === 'lodsb' ? at : at + 0x200))
          for (let i = 0; i < 32; i++) for (const to of [at, at + 0x200]) m.poke(to + i * 8, 0x2121212121212121n)
        },
        30,
      )
      const rounds = Math.floor(offset / size) + 1
      assert.is(b.m.reg(1), BigInt(200 - rounds), `${name} +${offset}: RCX`)
      assert.is(b.m.peek(IST1 - 40), BigInt(CODE), `${name}: RIP`)
    }
  }
})

test('two accesses: a breakpoint on the first while the second leaves for userspace, or faults', () => {
  // cmpsb: [ds:si] is watched RAM, [es:di] is MMIO.
  const g = new Guest({ irqchip: true })
  const { view } = g.core
  g.write(4, [0, 0x20, 0, 0])
  g.write(0x2000, [0xf4])
  g.write(0x1000, [0xa6, 0x90, 0xf4])
  g.write(0x3000, [0x55])
  view.setUint32(g.s + L.CPU_HALTED, 0, true)
  view.setBigUint64(g.s + L.CPU_SEGMENTS + L.SEG_ES * 16 + L.SEG_BASE, 0x80000000n, true)
  view.setBigUint64(g.s + L.CPU_DR, 0x3000n, true)
  view.setBigUint64(g.s + L.CPU_DR7, 0x30401n, true)
  g.enter(0x1000)
  g.setReg(GPR.RSP, 0x9000n)
  g.setReg(GPR.RSI, 0x3000n)
  g.setReg(GPR.RDI, 0x10n)
  call(g.core, 'cpuModeChanged', g.s)
  g.run(g.s, 100n)
  assert.is(g.reason(), 6, 'MMIO')
  assert.is(g.u64(L.CPU_RIP), 0x1000n)
  g.payload().setUint8(8, 0x55)
  g.run(g.s, 1n)
  assert.is(g.u64(L.CPU_RIP), 0x2000n, 'the handler')
  assert.equal(g.read(0x8ffa, 2), Uint8Array.of(1, 0x10), 'behind the instruction')
  assert.is(g.reg(GPR.RSI), 0x3001n)
  assert.is(g.reg(GPR.RDI), 0x11n)
  assert.is(g.u64(L.CPU_DR6) & 15n, 1n)
})

test.run()
