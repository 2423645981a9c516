/**
 * Long repetitions against a byte-by-byte model: page-wise bulk moves and fills, overlaps in both directions, the pauses
 * every 64 KiB, and scans that end anywhere. The physical CPU sees only short ones (integer.test.ts).
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, L, Machine } from '../system/machine.ts'
import { Random } from './random.ts'

const seed = Number(process.env['CLOISTER_ORACLE_SEED'] ?? 1)
const cases = Number(process.env['CLOISTER_STRING_CASES'] ?? 150)
const AREA = 0x100000
const SIZE = 0x80000
const MIDDLE = SIZE / 2

interface Wanted {
  si: number
  di: number
  count: number
  equal: boolean | undefined
}

const opcodeOf = { MOVS: 0xa4, STOS: 0xaa, SCAS: 0xae, CMPS: 0xa6 } as const
type Name = keyof typeof opcodeOf

/** The architecture's own loop, on offsets in `area`. */
function model(name: Name, area: Uint8Array, size: number, down: boolean, repne: boolean, rax: bigint, w: Wanted): void {
  const step = down ? -size : size
  while (w.count > 0) {
    if (name === 'MOVS') {
      const element = area.slice(w.si, w.si + size)
      area.set(element, w.di)
    } else if (name === 'STOS') {
      for (let i = 0; i < size; i++) area[w.di + i] = Number((rax >> BigInt(8 * i)) & 0xffn)
    } else {
      w.equal = true
      for (let i = 0; i < size; i++) {
        const a = name === 'CMPS' ? area[w.si + i] : Number((rax >> BigInt(8 * i)) & 0xffn)
        if (a !== area[w.di + i]) w.equal = false
      }
    }
    if (name === 'MOVS' || name === 'CMPS') w.si += step
    w.di += step
    w.count--
    if (w.equal !== undefined && w.equal === repne) return
  }
}

function readArea(m: Machine): Uint8Array {
  const area = new Uint8Array(SIZE)
  for (let at = 0; at < SIZE; at += 0x8000) {
    call(m.core, 'backingRead', m.backing, BigInt(AREA + at), L.STAGING, 0x8000)
    area.set(m.core.bytes.subarray(L.STAGING, L.STAGING + 0x8000), at)
  }
  return area
}

function writeArea(m: Machine, area: Uint8Array): void {
  for (let at = 0; at < SIZE; at += 0x8000) {
    m.core.bytes.set(area.subarray(at, at + 0x8000), L.STAGING)
    call(m.core, 'backingWrite', m.backing, BigInt(AREA + at), L.STAGING, 0x8000)
  }
}

test('long repetitions', () => {
  const m = new Machine('long')
  const r = new Random(seed)
  const noise = new Uint8Array(SIZE)
  for (let i = 0; i < SIZE; i++) noise[i] = r.u32()
  for (let k = 0; k < cases; k++) {
    const name = r.pick(['MOVS', 'MOVS', 'STOS', 'SCAS', 'CMPS'] as const)
    const shift = r.below(4)
    const size = 1 << shift
    const down = r.chance(40)
    const repne = (name === 'SCAS' || name === 'CMPS') && r.chance(50)
    const count = Math.floor(r.pick([1, 17, 4096, 9000, 65536, 70000, 140000]) / size) + r.below(3)
    const near = (): number => MIDDLE + (down ? 0x20000 : -0x20000) + r.below(0x3000)
    const di = near()
    const si = r.chance(50) ? di + r.pick([-4096, -64, -9, -8, -3, -1, 0, 1, 2, 5, 8, 63, 4095, 4096]) : near()
    const rax = r.operand()
    const area = noise.slice()
    if (name === 'SCAS' || name === 'CMPS') {
      // Runs of one value, ended somewhere.
      area.fill(Number(rax & 0xffn))
      if (repne && name === 'SCAS') area.fill(Number((rax + 1n) & 0xffn))
      const stop = di + (down ? -1 : 1) * r.below(count * size)
      if (r.chance(70)) area[stop] = r.u32()
    }
    writeArea(m, area)
    const wanted: Wanted = { si, di, count, equal: undefined }
    model(name, area, size, down, repne, rax, wanted)
    const bytes = [
      repne ? 0xf2 : 0xf3,
      ...(shift === 1 ? [0x66] : []),
      ...(shift === 3 ? [0x48] : []),
      opcodeOf[name] + (shift > 0 ? 1 : 0),
    ]
    m.code([...bytes, 0x90], CODE + (k % 64) * 16)
    m.setReg(0, rax)
    m.setReg(1, BigInt(count))
    m.setReg(6, BigInt(AREA + si))
    m.setReg(7, BigInt(AREA + di))
    m.setFlags(down ? 0x402n : 2n)
    m.set64(L.CPU_RIP, BigInt(CODE + (k % 64) * 16))
    const before = m.u64(L.CPU_ICOUNT)
    const done = count - wanted.count
    // One, and one for each 64 KiB after which iterations were left.
    const stretches = 1 + Math.max(Math.ceil((done * size) / 65536) - 1, 0)
    m.set64(L.CPU_BUDGET, before + BigInt(stretches))
    m.set64(L.CPU_SLICE_END, before + BigInt(stretches))
    call(m.core, 'execute', m.s)
    const what = `${repne ? 'REPNE' : 'REPE'} ${name} size ${size} count ${count} ${down ? 'down' : 'up'} si ${si} di ${di} (case ${k}, seed ${seed})`
    assert.is(m.u64(L.CPU_ICOUNT) - before, BigInt(stretches), `${what}: instructions`)
    assert.is(m.rip, BigInt(CODE + (k % 64) * 16 + bytes.length), `${what}: rip`)
    assert.is(m.reg(1), BigInt(wanted.count), `${what}: rcx`)
    assert.is(m.reg(7), BigInt(AREA + wanted.di), `${what}: rdi`)
    assert.is(m.reg(6), BigInt(AREA + wanted.si), `${what}: rsi`)
    if (wanted.equal !== undefined) assert.is((m.flags & 0x40n) !== 0n, wanted.equal, `${what}: ZF`)
    assert.ok(Buffer.compare(readArea(m), area) === 0, `${what}: memory`)
  }
})

test.run()
