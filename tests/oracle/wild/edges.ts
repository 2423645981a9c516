/**
 * What lies at an edge: instructions that touch memory more than once or in large pieces, byte by byte across page edges, the ends
 * of segments and of the address space. Which access comes first is what the physical CPU says.
 */
import { Random } from '../random.ts'
import { makeBatch } from './generate.ts'
import type { Wild } from './generate.ts'
import { CODE, DATA, FX_SIZE, SS } from './place.ts'
import type { Batch } from './place.ts'

type Bits = 16 | 32 | 64
interface Form {
  name: string
  /** Prefixes, opcode, then `m` (ModRM with the operand) and immediate bytes. */
  code: string
  /** Bytes it reaches. */
  size: number
  /** Address in: the operand, the stack, RBP, RSI, RDI. */
  at: 'm' | 'sp' | 'bp' | 'si' | 'di'
  bits?: readonly Bits[]
}

const all: readonly Bits[] = [64, 32, 16]
const old: readonly Bits[] = [32, 16]
const long: readonly Bits[] = [64]
const f = (name: string, code: string, size: number, at: Form['at'] = 'm', bits: readonly Bits[] = all): Form => ({
  name,
  code,
  size,
  at,
  bits,
})

/** The name is iced's (compare.ts). `m/N`: the register field is N. */
export const forms: readonly Form[] = [
  ...['', '66 ', '48 '].flatMap((p) => {
    const bits = p === '48 ' ? long : all
    return [
      f('Iretd', `${p}cf`, 40, 'sp', bits),
      f('Retf', `${p}cb`, 32, 'sp', bits),
      f('Retf', `${p}ca 0800`, 40, 'sp', bits),
      f('Ret', `${p}c3`, 8, 'sp', bits),
      f('Call', `${p}e8 00010000`, 8, 'sp', bits),
      f('Call', `${p}ff m/3`, 10, 'm', bits),
      f('Call', `${p}ff m/3`, 16, 'sp', bits),
      f('Jmp', `${p}ff m/5`, 10, 'm', bits),
      f('Call', `${p}ff m/2`, 8, 'm', bits),
      f('Call', `${p}ff m/2`, 8, 'sp', bits),
      f('Push', `${p}ff m/6`, 8, 'm', bits),
      f('Push', `${p}ff m/6`, 8, 'sp', bits),
      f('Pop', `${p}8f m/0`, 8, 'm', bits),
      f('Pop', `${p}8f m/0`, 8, 'sp', bits),
      f('Push', `${p}68 01020304`, 8, 'sp', bits),
      f('Push', `${p}53`, 8, 'sp', bits),
      f('Pop', `${p}5a`, 8, 'sp', bits),
      f('Push', `${p}0fa0`, 8, 'sp', bits),
      f('Pop', `${p}0fa1`, 8, 'sp', bits),
      f('Pop', `${p}0fa9`, 8, 'sp', bits),
      f('Pushfd', `${p}9c`, 8, 'sp', bits),
      f('Popfd', `${p}9d`, 8, 'sp', bits),
      f('Leave', `${p}c9`, 8, 'bp', bits),
      f('Enter', `${p}c8 1000 00`, 32, 'sp', bits),
      f('Enter', `${p}c8 0000 01`, 16, 'sp', bits),
      f('Enter', `${p}c8 0400 03`, 40, 'sp', bits),
      f('Enter', `${p}c8 0400 03`, 24, 'bp', bits),
      f('Enter', `${p}c8 0800 1f`, 264, 'sp', bits),
      f('Lss', `${p}0fb2 m/1`, 10, 'm', bits),
      f('Lfs', `${p}0fb4 m/1`, 10, 'm', bits),
      f('Lgs', `${p}0fb5 m/1`, 10, 'm', bits),
      f('Add', `${p}01 m/1`, 8, 'm', bits),
      f('Adc', `${p}13 m/1`, 8, 'm', bits),
      f('Xchg', `${p}87 m/1`, 8, 'm', bits),
      f('Cmpxchg', `${p}0fb1 m/1`, 8, 'm', bits),
      f('Xadd', `${p}0fc1 m/1`, 8, 'm', bits),
      f('Shld', `${p}0fa4 m/1 05`, 8, 'm', bits),
      f('Rcl', `${p}d1 m/2`, 8, 'm', bits),
      f('Neg', `${p}f7 m/3`, 8, 'm', bits),
      f('Mul', `${p}f7 m/4`, 8, 'm', bits),
      f('Bts', `${p}0fba m/5 03`, 8, 'm', bits),
      f('Movbe', `${p}0f38f0 m/1`, 8, 'm', bits),
      f('Movbe', `${p}0f38f1 m/1`, 8, 'm', bits),
      f('Movs', `${p}a5`, 8, 'si', bits),
      f('Movs', `${p}a5`, 8, 'di', bits),
      f('Cmps', `${p}a7`, 8, 'si', bits),
      f('Cmps', `${p}a7`, 8, 'di', bits),
      f('Movs', `f3 ${p}a5`, 24, 'si', bits),
      f('Movs', `f3 ${p}a5`, 24, 'di', bits),
      f('Stos', `f3 ${p}ab`, 24, 'di', bits),
      f('Scas', `f3 ${p}af`, 24, 'di', bits),
      f('Cmps', `f3 ${p}a7`, 24, 'si', bits),
      f('Lods', `f3 ${p}ad`, 24, 'si', bits),
      f('Cmpxchg8b', `${p}0fc7 m/1`, 16, 'm', bits),
      f('Mov', `${p}8b m/1`, 8, 'm', bits),
      f('Mov', `${p}89 m/1`, 8, 'm', bits),
    ]
  }),
  ...['', '66 '].flatMap((p) => [
    f('Popa', `${p}61`, 32, 'sp', old),
    f('Pusha', `${p}60`, 32, 'sp', old),
    f('Les', `${p}c4 m/1`, 8, 'm', old),
    f('Lds', `${p}c5 m/1`, 8, 'm', old),
    f('Bound', `${p}62 m/1`, 8, 'm', old),
    f('Call', `${p}9a 0001 0000 2300 00`, 8, 'sp', old),
    f('Pop', `${p}17`, 4, 'sp', old),
    f('Pop', `${p}07`, 4, 'sp', old),
    f('Push', `${p}1e`, 4, 'sp', old),
    f('Fnsave', `${p}dd m/6`, 108),
    f('Frstor', `${p}dd m/4`, 108),
    f('Fnstenv', `${p}d9 m/6`, 28),
    f('Fldenv', `${p}d9 m/4`, 28),
  ]),
  ...['', '48 '].flatMap((p) => {
    const bits = p === '48 ' ? long : all
    return [
      f('Fxsave', `${p}0fae m/0`, 512, 'm', bits),
      f('Fxrstor', `${p}0fae m/1`, 512, 'm', bits),
      f('Xsave', `${p}0fae m/4`, 576, 'm', bits),
      f('Xrstor', `${p}0fae m/5`, 576, 'm', bits),
      f('Xsaveopt', `${p}0fae m/6`, 576, 'm', bits),
      f('Xsavec', `${p}0fc7 m/4`, 576, 'm', bits),
    ]
  }),
  f('Fld', 'db m/5', 10),
  f('Fstp', 'db m/7', 10),
  f('Fbld', 'df m/4', 10),
  f('Fbstp', 'df m/6', 10),
  f('Fld', 'dd m/0', 8),
  f('Fst', 'dd m/2', 8),
  f('Fistp', 'df m/7', 8),
  f('Fild', 'df m/5', 8),
  f('Fnstsw', 'dd m/7', 2),
  f('Fldcw', 'd9 m/5', 2),
  f('Movups', '0f10 m/1', 16),
  f('Movups', '0f11 m/1', 16),
  f('Movaps', '0f28 m/1', 16),
  f('Movdqa', '660f7f m/1', 16),
  f('Lddqu', 'f20ff0 m/1', 16),
  f('Paddb', '660ffc m/1', 16),
  f('Addps', '0f58 m/1', 16),
  f('Addsd', 'f20f58 m/1', 8),
  f('Cvtps2pd', '0f5a m/1', 8),
  f('Cvtpi2ps', '0f2a m/1', 8),
  f('Movlps', '0f13 m/1', 8),
  f('Movhpd', '660f17 m/1', 8),
  f('Movq', '0f6f m/1', 8),
  f('Movntdq', '660fe7 m/1', 16),
  f('Movnti', '0fc3 m/1', 4),
  f('Unpcklps', '0f14 m/1', 16),
  f('Punpckldq', '0f62 m/1', 8),
  f('Pcmpistri', '660f3a63 m/1 0c', 16),
  f('Pcmpestrm', '660f3a60 m/1 44', 16),
  f('Pmovzxbq', '660f3832 m/1', 2),
  f('Aesenc', '660f38dc m/1', 16),
  f('Sha1msg1', '0f38c9 m/1', 16),
  f('Pextrd', '660f3a16 m/1 02', 4),
  f('Extractps', '660f3a17 m/1 03', 4),
  f('Pinsrw', '660fc4 m/1 03', 2),
  f('Ldmxcsr', '0fae m/2', 4),
  f('Stmxcsr', '0fae m/3', 4),
  f('Clflush', '0fae m/7', 1),
  f('Prefetchnta', '0f18 m/0', 1),
  f('Maskmovdqu', '660ff7 d1', 16, 'di'),
  f('Maskmovq', '0ff7 d1', 8, 'di'),
  f('Xlatb', 'd7', 1),
  f('Crc32', 'f20f38f1 m/1', 4),
  f('Lock Add', 'f001 m/1', 4),
  f('Lock Cmpxchg8b', 'f00fc7 m/1', 8),
  f('Sgdt', '0f01 m/2', 10),
]

/** Segments of legacy code: LDT entries that end, wrap or grow down near the data. */
export function segmentsOf(batch: Batch): void {
  const { ldt } = batch
  ldt[7] = { base: DATA, limit: 0x1fff, attrib: 0x4f3 }
  ldt[8] = { base: DATA, limit: 0x1fff, attrib: 0xf3 }
  ldt[9] = { base: DATA, limit: 0x0fff, attrib: 0x4f7 }
  ldt[10] = { base: DATA, limit: 0x0fff, attrib: 0xf7 }
  ldt[11] = { base: DATA - 0xf000, limit: 0xffff, attrib: 0xf3 }
  ldt[12] = { base: DATA - 0xf000, limit: 0xffffffff, attrib: 0xcf3 }
  ldt[13] = { base: DATA + 0x1000, limit: 0xffff, attrib: 0xf3 }
  ldt[14] = { base: DATA + 0x1000, limit: 0xffffffff, attrib: 0xcf3 }
  ldt[15] = { base: CODE, limit: 0xffff, attrib: 0xf1 }
  ldt[16] = { base: DATA - 0xe800, limit: 0xf7ff, attrib: 0xf3 }
}

/** Offsets of the edges of a segment that is worth a look; 0x2b: flat. */
const edges: Record<number, readonly number[]> = {
  0x2b: [DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, 0],
  7: [0, 0x1000, 0x2000],
  8: [0, 0x1000, 0x2000, 0x10000],
  9: [0x1000, 0x2000, 0x3000, 0],
  10: [0x1000, 0x2000, 0x10000],
  11: [0xf000, 0x10000],
  12: [0xf000, 0x10000, 0x11000, 0],
  13: [0, 0x1000, 0x10000],
  14: [0, 0x1000, 0x2000],
  15: [0x1000, 0xff0, 0x10000],
  16: [0xe800, 0xf800, 0xf000],
}
const longEdges: readonly bigint[] = [
  ...[DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000].map(BigInt),
  0x8000_0000_0000n,
  0xffff_8000_0000_0000n,
  0n,
]

function deltas(r: Random, size: number): number[] {
  if (size <= 40) return Array.from({ length: size + 6 }, (_, i) => i - size - 3)
  const few = [...Array.from({ length: 12 }, () => r.below(size + 8) - size - 4), 0, -size, -16, -32, -1]
  return size < 512 ? few : [...few, ...Array.from({ length: 38 }, (_, i) => i * 16 - 592)]
}

/** The edges of all forms, or `percent` of them, with registers and small choices by the seed. */
export function* edgeCases(seed: number, only: RegExp, percent: number): Generator<{ batch: Batch; cases: Wild[] }> {
  const r = new Random(seed)
  for (const form of forms) {
    if (!only.test(`${form.name} ${form.code}`)) continue
    for (const bits of form.bits ?? all) {
      const batch = makeBatch(r)
      segmentsOf(batch)
      const cases: Wild[] = []
      if (bits === 64) {
        for (const edge of longEdges)
          for (const d of deltas(r, form.size))
            if (r.chance(percent)) cases.push(probeOne(r, form, bits, 0x2b, BigInt.asUintN(64, edge + BigInt(d)), false))
      } else {
        for (const [name, places] of Object.entries(edges)) {
          const n = Number(name)
          const selector = n === 0x2b ? n : n * 8 + 7
          const stack = form.at === 'sp' || form.at === 'bp'
          if (stack && n === 15) continue
          for (const edge of places)
            for (const d of deltas(r, form.size))
              if (r.chance(percent)) cases.push(probeOne(r, form, bits, selector, BigInt(edge + d), r.chance(bits === 16 ? 70 : 20)))
        }
      }
      batch.states = cases.map((c) => c.state)
      yield { batch, cases }
    }
  }
}

export function probeOne(r: Random, form: Form, bits: Bits, selector: number, address: bigint, other: boolean): Wild {
  const memory = form.code.includes('m/')
  // 67 where an operand is addressed; elsewhere a stack or string register is filled as wide as may be.
  const prefix = memory && bits !== 64 && other
  const address16 = (bits === 16) !== prefix
  let text = form.code.replace(/m\/(\d)/, (_, n: string) =>
    ((Number(n) << 3) | (bits !== 64 && address16 ? 7 : 3)).toString(16).padStart(2, '0'),
  )
  // 66 turns 32-bit forms into 16-bit ones and the other way round.
  if (bits === 16) text = text.replace('2300 00', '2300')
  const bytes = Buffer.from(`${prefix ? '67' : ''}${text.replaceAll(' ', '')}`, 'hex')
  const code = new Uint8Array(16).fill(0x90)
  code.set(bytes)
  const gpr = new BigUint64Array(16)
  for (let i = 0; i < 16; i++) gpr[i] = r.chance(60) ? BigInt(DATA + 0x100 + r.below(0x1e00)) : r.operand()
  gpr[1] = BigInt(r.below(4))
  gpr[4] = BigInt(DATA + 0x800 + 48 * r.below(32))
  const register = { m: 3, sp: 4, bp: 5, si: 6, di: 7 }[form.at]
  gpr[register] = BigInt.asUintN(bits === 64 ? 64 : 32, address)
  // Components x87 and SSE.
  if (form.name.startsWith('X')) {
    gpr[0] = BigInt(r.below(4))
    gpr[2] = 0n
  }
  const segment = [0x2b, bits === 64 ? 0x33 : bits === 32 ? 0x23 : 0x07, 0x2b, 0x2b, 0, 0]
  if (bits === 16) {
    // Reachable with 16 bits: elsewhere than at the edge, the small segment.
    for (const n of [0, 2, 3]) segment[n] = 0x0f
    for (const n of [4, 5, 6, 7]) if (n !== register) gpr[n] = (gpr[n] as bigint) - BigInt(DATA) + 0x8000n
  }
  const which = { m: 3, sp: SS, bp: SS, si: 3, di: form.name.startsWith('Maskmov') ? 3 : 0 }[form.at]
  if (bits !== 64) segment[which] = selector
  const fx = new Uint8Array(FX_SIZE)
  const v = new DataView(fx.buffer)
  v.setUint16(0, 0x37f, true)
  fx[4] = 0x3f
  v.setUint32(24, 0x1f80, true)
  for (let i = 32; i < FX_SIZE; i += 8) v.setBigUint64(i, r.u64(), true)
  for (let i = 0; i < 8; i++) v.setBigUint64(40 + i * 16, 0x3fffn, true)
  const slot = 0x10010000 + r.below(16)
  return {
    state: {
      code,
      slot,
      segment,
      rip: BigInt(bits === 16 ? slot - 0x10008000 : slot),
      gpr,
      rflags: BigInt(0x202 | (r.u32() & 0x8d5) | (r.chance(30) ? 0x400 : 0) | (r.chance(12) ? 0x40000 : 0)),
      base: [0n, 0n],
      fx,
    },
    bits,
    row: undefined,
    mnemonic: form.name.replace('Lock ', ''),
    size: 0,
    shift: undefined,
    text: `${form.name} ${text}`,
    step: true,
    length: bytes.length,
  }
}
