/** Random cases for the rows of spec/opcodes/{sse,x87}.ts: encodings, and operands near every edge of the formats. */
import { BLOCK_SIZE } from './native.ts'
import type { State } from './native.ts'
import type { Opcode } from '../../spec/opcodes/index.ts'

const edges64 = [
  0n,
  1n << 63n,
  0x3ff0000000000000n,
  0xbff0000000000000n,
  0x7ff0000000000000n,
  0xfff0000000000000n,
  0x7ff8000000000001n,
  0xfff8000000000000n,
  0x7ff0000000000001n,
  0xfff4000000000000n,
  1n,
  0x800fffffffffffffn,
  0x0010000000000000n,
  0x7fefffffffffffffn,
  0x41dfffffffc00000n,
  0x41e0000000000000n,
  0xc1e0000000000000n,
  0xc1e0000000200000n,
  0x43e0000000000000n,
  0xc3e0000000000000n,
  0x3fe0000000000000n,
  0x3ff8000000000000n,
  0x4004000000000000n,
  0x000fffffffffffffn,
  0x3fdfffffffffffffn,
  0x36a0000000000000n,
  0x380fffffffffffffn,
  0x380fffffe0000000n,
  0x47efffffefffffffn,
  0x47effffff0000000n,
]
const edges32 = [
  0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00001, 0xffc00000, 0x7f800001, 0xffa00000, 1, 0x807fffff, 0x00800000,
  0x7f7fffff, 0x4effffff, 0x4f000000, 0xcf000000, 0xcf000001, 0x5f000000, 0x3f000000, 0x3fc00000, 0x40200000, 0x007fffff, 0x3effffff,
]
const exponents64 = [0, 1, 2, 2046, 2045, 2040, 30, 1000, 500, 1500, 52, 53, 54, 511, 512, 1535, 1536]
const exponents32 = [0, 1, 2, 254, 253, 250, 23, 100, 24, 25, 63, 64, 190, 191]
const exponents80 = [0, 1, 2, 3, 32766, 32765, 32700, 60, 70, 8191, 8192, 24574, 24575, 65]
const TOP = 1n << 63n
const transcendental = /^(FPTAN|FSIN|FCOS|FSINCOS|F2XM1|FYL2X|FYL2XP1|FPATAN)$/

export interface Case {
  row: Opcode
  code: number[]
  state: State
}

/** mulberry32: the same cases on every run. */
export class Random {
  private x: number
  private recent: [bigint, bigint][] = []
  constructor(seed: number) {
    this.x = seed
  }

  u32(): number {
    this.x = (this.x + 0x6d2b79f5) | 0
    let t = Math.imul(this.x ^ (this.x >>> 15), 1 | this.x)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return (t ^ (t >>> 14)) >>> 0
  }
  below(n: number): number {
    return Math.floor((this.u32() / 4294967296) * n)
  }
  bits(words: number): bigint {
    return words === 1 ? BigInt(this.u32()) : (BigInt(this.u32()) << 32n) | BigInt(this.u32())
  }
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T
  }

  f64(): bigint {
    const k = this.below(10)
    const sign = 0x800fffffffffffffn
    if (k < 2) return this.bits(2)
    if (k < 4) return this.pick(edges64)
    if (k < 6) return (this.bits(2) & sign) | (BigInt(1023 - 40 + this.below(80)) << 52n)
    if (k === 6) return (this.bits(2) & sign & ~((1n << BigInt(this.below(52))) - 1n)) | (BigInt(1023 - 4 + this.below(12)) << 52n)
    if (k === 7) return (this.bits(2) & sign) | (BigInt(this.pick(exponents64)) << 52n)
    return this.f32() | (this.f32() << 32n)
  }
  f32(): bigint {
    const k = this.below(8)
    if (k < 1) return this.bits(1)
    if (k < 3) return BigInt(this.pick(edges32))
    if (k < 5) return (this.bits(1) & 0x807fffffn) | (BigInt(127 - 30 + this.below(60)) << 23n)
    if (k === 5) return (this.bits(1) & 0x807fffffn & ~((1n << BigInt(this.below(23))) - 1n)) | (BigInt(127 - 4 + this.below(12)) << 23n)
    if (k === 6) return (this.bits(1) & 0x807fffffn) | (BigInt(this.pick(exponents32)) << 23n)
    return this.bits(1)
  }
  /** Significand, and sign with exponent. */
  f80(): [bigint, bigint] {
    const k = this.below(14)
    const sign = BigInt(this.below(2)) << 15n
    let m = this.bits(2)
    let e = 16383 - 1 + this.below(3)
    if (k < 5) e = 16383 - 40 + this.below(80)
    else if (k < 6) {
      e = 16383 - 3 + this.below(10)
      m &= ~((1n << BigInt(this.below(63))) - 1n)
    } else if (k === 6) e = this.pick(exponents80)
    else if (k === 7) {
      e = 16383 + this.below(70)
      m = this.pick([TOP, 0xffffffffffffffffn, TOP | 1n, 0xc000000000000000n])
    } else if (k === 8)
      return [
        this.pick([TOP, 0xc000000000000000n, 0xc000000000000000n | (m >> 2n), 0x8000000000000001n, 0xa000000000000000n]),
        sign | 32767n,
      ]
    else if (k === 9) return [this.pick([0n, 0n, 0n, 0n, 1n, m >> 1n, 1n << 62n, m | TOP]), sign]
    else if (k === 10) e = this.below(32768)
    else if (k === 11 && this.below(3) === 0) return [m & ~TOP, sign | BigInt(this.below(32768))]
    else if (k === 12) return widened(this.f64())
    else if (k === 13 && this.recent.length > 0) {
      const [p, q] = this.pick(this.recent)
      return [p, q ^ sign]
    }
    const v: [bigint, bigint] = [m | TOP, sign | BigInt(e)]
    this.recent = [...this.recent.slice(-3), v]
    return v
  }
}
function widened(d: bigint): [bigint, bigint] {
  const sign = (d >> 63n) << 15n
  const e = Number((d >> 52n) & 0x7ffn)
  const m = d & 0xfffffffffffffn
  if (e === 0) return [0n, sign]
  if (e === 2047) return [TOP | (m << 11n), sign | 32767n]
  return [TOP | (m << 11n), sign | BigInt(e - 1023 + 16383)]
}

/** `masked`: all exceptions; `unmasked`: a random choice; `sticky`: masked, flags set beforehand; `pending`: both, so x87 exceptions may be due. */
export type Style = 'masked' | 'unmasked' | 'sticky' | 'pending'
/** Displacements of a memory operand: aligned to 64 and 16, not aligned, and across the page boundary at 0x200. */
const displacements = [0, 0, 0, 0, 0, 64, 16, 8, 1, 0x1f0, 0x1f8, 0x1fc, 0x1fe, 0x1ff]

function encode(row: Opcode, r: Random, memory: boolean, displacement: number): number[] {
  const code: number[] = []
  // F2 and F3 outrank 66 (SDM vol 2, 2.1.2).
  if ((row.prefix === 'F2' || row.prefix === 'F3') && r.below(8) === 0) code.push(0x66)
  if (row.prefix !== 'any' && row.prefix !== 'NP') code.push(Number.parseInt(row.prefix, 16))
  const has = (letters: RegExp): boolean => row.operands.some((o) => letters.test(o))
  const narrow = row.map === 0
  let reg = has(/^G/) ? r.below(4) : has(/^P/) || narrow ? r.below(8) : r.below(16)
  let rm = memory ? 6 : has(/^E/) ? r.below(4) : has(/^[QN]/) || narrow ? r.below(8) : r.below(16)
  if (row.ext !== undefined) reg = row.ext
  const wide = row.size === 'y' && r.below(2) === 1
  const rex = 0x40 | (wide ? 8 : 0) | ((reg >> 3) << 2) | (rm >> 3)
  if (rex !== 0x40) code.push(rex)
  code.push(...([[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]][row.map] as number[]), row.opcode)
  let modrm = (memory ? (displacement === 0 ? 0 : 0x80) : 0xc0) | ((reg & 7) << 3) | (rm & 7)
  if (row.exact !== undefined) modrm = row.exact
  if (row.modrm) code.push(modrm)
  if (memory && displacement !== 0) code.push(displacement & 0xff, displacement >> 8, 0, 0)
  if (row.immediate === 'Ub' || row.immediate === 'Ib')
    code.push(r.below(3) === 0 || /DP|ROUND/.test(row.mnemonic) ? r.below(256) : r.below(64))
  if (row.immediate === 'Iw') code.push(r.below(256), r.below(256))
  return code
}

export function makeCase(row: Opcode, r: Random, style: Style): Case {
  const memory = row.mod === 'mem' || (row.mod === 'any' && row.modrm && row.exact === undefined && r.below(3) === 0)
  const large = /^(F?X|FN?SAVE|FRSTOR|FN?STENV|FLDENV)/.test(row.mnemonic)
  const displacement = large ? r.pick([0, 0, 0, 64, 64, 16, 1]) : r.pick(displacements)
  const code = encode(row, r, memory, displacement)
  const fx = new Uint8Array(512)
  const d = new DataView(fx.buffer)
  const n = row.mnemonic
  let control = (0x37f & ~0xf00) | (r.below(4) << 10) | (r.pick([0, 2, 3, 3, 3]) << 8)
  if (style === 'unmasked' || style === 'pending') control &= ~r.below(64)
  d.setUint16(0, control, true)
  d.setUint16(2, (r.below(8) << 11) | (r.below(0x10000) & 0x4700) | (style === 'sticky' || style === 'pending' ? r.below(64) : 0), true)
  fx[4] = r.below(4) === 0 ? r.below(256) : 0xff
  let mxcsr =
    0x1f80 |
    (r.below(2) << 5) |
    (r.below(2) === 0 ? r.below(4) << 13 : 0) |
    (r.below(6) === 0 ? 0x8000 : 0) |
    (r.below(6) === 0 ? 0x40 : 0) |
    (r.below(6) === 0 ? 0x20000 : 0)
  if (style === 'unmasked') mxcsr &= ~(r.below(64) << 7)
  d.setUint32(24, mxcsr, true)
  for (let i = 0; i < 8; i++) {
    let [m, e] = r.f80()
    if (transcendental.test(n) && r.below(3) > 0) [m, e] = [m | TOP, BigInt((r.below(2) << 15) | (16383 - 20 + r.below(24)))]
    if (n.startsWith('FPREM') && r.below(2) === 0) e = BigInt((r.below(2) << 15) | (16383 - 20 + r.below(100)))
    d.setBigUint64(32 + i * 16, m, true)
    d.setUint16(40 + i * 16, Number(e), true)
  }
  const pairs = /PS|SS|PI|DQ2/.test(n)
  for (let i = 0; i < 32; i++) d.setBigUint64(160 + i * 8, pairs && r.below(8) > 0 ? r.f32() | (r.f32() << 32n) : r.f64(), true)
  if (/^PCMP.STR/.test(n))
    for (let i = 0; i < 256; i++) fx[160 + i] = r.below(4) === 0 ? r.below(4) : r.pick([1, 2, 3, 0x61, 0x80, 0xff, 7])
  if (/^(PS[LR]|PSRA)/.test(n)) {
    for (let i = 0; i < 16; i++) if (r.below(4) > 0) d.setBigUint64(160 + i * 16, BigInt(r.below(70)), true)
    for (let i = 0; i < 8; i++) if (r.below(4) > 0) d.setBigUint64(32 + i * 16, BigInt(r.below(70)), true)
  }
  const gpr = [r.f64(), r.f64(), r.f64(), r.below(2) === 0 ? BigInt(r.below(100)) : r.bits(2)]
  if (n.startsWith('PCMPESTR')) for (const k of [0, 2]) if (r.below(4) > 0) gpr[k] = BigInt.asUintN(64, BigInt(r.below(40) - 20))
  if (/^X(SAVE|RSTOR)/.test(n)) {
    // Components x87 and SSE only. Whether a state of all zeros counts as in use is the CPU's affair: guards.test.ts.
    gpr[0] = BigInt(r.below(4))
    gpr[2] = 0n
    if (r.below(4) === 0) d.setUint32(24, 0x1f80, true)
  }
  return { row, code, state: { gpr, flags: r.below(2) === 0 ? 0x202n : 0xad7n, fx, memory: memoryFor(n, r, displacement) } }
}

function memoryFor(mnemonic: string, r: Random, displacement: number): Uint8Array {
  const block = new Uint8Array(BLOCK_SIZE)
  const memory = block.subarray(displacement)
  const d = new DataView(block.buffer, displacement)
  for (let i = 0; i < BLOCK_SIZE; i++) block[i] = r.u32()
  for (let i = 0; i < 8; i++) d.setBigUint64(i * 8, r.below(2) === 0 ? r.f64() : r.f32() | (r.f32() << 32n), true)
  if (mnemonic === 'FBLD') for (let i = 0; i < 10; i++) memory[i] = r.below(10) | (r.below(10) << 4)
  else if (mnemonic === 'FXRSTOR' || mnemonic === 'XRSTOR') d.setUint32(24, r.below(4) === 0 ? r.below(0x20000) : 0x1f80, true)
  if (mnemonic.startsWith('XRSTOR')) {
    d.setBigUint64(512, BigInt(r.below(8) === 0 ? 0x100 : r.below(4)), true)
    d.setBigUint64(520, r.below(2) === 0 && mnemonic === 'XRSTOR' ? 0n : (1n << 63n) | BigInt(r.below(8) === 0 ? r.below(4) : 3), true)
    memory.fill(0, 528, 576)
    if (r.below(8) === 0) memory[r.pick([528, 540, 560])] = 1
  }
  if (mnemonic === 'LDMXCSR') d.setUint32(0, r.below(4) === 0 ? r.below(0x80000) : r.below(0x10000), true)
  else if (mnemonic.startsWith('F') && r.below(2) === 0) {
    const [m, e] = r.f80()
    d.setBigUint64(0, m, true)
    d.setUint16(8, Number(e), true)
  }
  return block
}
