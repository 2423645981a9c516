/**
 * Several instructions of all kinds in a row, run at once to an INT3 behind them: integer, x87, MMX and SSE state through blocks,
 * short jumps over single instructions, repetitions of any count, a fault in the middle. Operands in memory have fixed addresses.
 */
import { estimates, oneUlp } from '../../simd/tolerances.ts'
import { undefinedFlags, undefinedResult } from '../undefined.ts'
import { asCase } from './compare.ts'
import { notCode } from './generate.ts'
import type { Generator, Wild } from './generate.ts'
import { CODE_BYTES, CODE, DATA, find, SS, WRITABLE } from './place.ts'
import type { Batch } from './place.ts'

/** What leaves the row, changes TF or CS, or has a result that is compared by other means. */
const left =
  /^(J.*|Call|Ret.*|Iret.*|Loop.*|Int.*|Sys.*|Popf.*|Bound|Into|Lss|Lds|Les|Lfs|Lgs|Fn?save|Frstor|Fldenv|Fn?stenv|Fxsave.*|Fxrstor.*|Hlt|Ud.*|INVALID|Cli|Sti|In|Out|Ins.*|Outs.*|Mov_Sreg)$/

function may(w: Wild): boolean {
  const mnemonic = w.mnemonic.toUpperCase()
  if (left.test(w.mnemonic) || estimates.test(mnemonic) || oneUlp.test(mnemonic)) return false
  if (/Sreg/.test(w.text) || /^Pop_[w]?[d]?[q]?(ss|es|ds|fs|gs)/i.test(w.text)) return false
  const asked = asCase(w)
  return undefinedFlags(asked) === 0 && !undefinedResult(asked)
}

export function sequence(g: Generator, batch: Batch): Wild {
  const { r } = g
  const bits = r.pick([64, 64, 64, 32, 16] as const)
  const { segment, base } = g.segments(batch, bits)
  const gpr = new BigUint64Array(16)
  for (let i = 0; i < 16; i++) gpr[i] = notCode(r.operand())
  const stackBase = bits === 64 ? 0 : (find(segment[SS] as number, batch.ldt)?.base ?? 0) >>> 0
  const esBase = bits === 64 ? 0 : (find(segment[0] as number, batch.ldt)?.base ?? 0) >>> 0
  const dsBase = bits === 64 ? 0 : (find(segment[3] as number, batch.ldt)?.base ?? 0) >>> 0
  const near = (from: number): bigint => BigInt.asUintN(bits === 64 ? 64 : 32, BigInt(DATA + 0x100 + r.below(WRITABLE - 0x200) - from))
  gpr[4] = near(stackBase) & ~7n
  gpr[5] = near(stackBase)
  gpr[6] = near(dsBase)
  gpr[7] = near(esBase)
  gpr[3] = near(dsBase)
  if (r.chance(70)) gpr[1] = BigInt(r.pick([r.below(4), r.below(100), r.below(5000), r.u32()]))
  const slot = r.chance(10) ? CODE + 0x11000 - 1 - r.below(60) : CODE + 0x10000 + r.below(64)
  const bytes: number[] = []
  const texts: string[] = []
  const wanted = r.pick([1, 2, 3, 5, 8, 12])
  let fx = r.pick(g.fx)
  let first: Wild | undefined
  for (let tries = 0; tries < 400 && texts.length < wanted && bytes.length < CODE_BYTES - 24; tries++) {
    const jump = r.chance(15) ? 2 : 0
    const w = g.make(batch, { bits, slot: slot + bytes.length + jump, segment, base, gpr })
    if (!w || !may(w)) continue
    first ??= w
    if (texts.length === 0) fx = w.state.fx
    if (jump) bytes.push(r.chance(10) ? 0xeb : 0x70 | r.below(16), w.length)
    bytes.push(...w.state.code.subarray(0, w.length))
    texts.push(w.text)
  }
  if (!first) return sequence(g, batch)
  return {
    ...first,
    state: {
      ...first.state,
      code: Uint8Array.from([...bytes, 0xcc]),
      free: true,
      slot,
      rip: first.state.rip + BigInt(slot - first.state.slot),
      gpr,
      fx,
    },
    row: undefined,
    mnemonic: texts.length === 1 ? first.mnemonic : 'SEQUENCE',
    text: texts.join('; '),
    step: false,
    length: bytes.length,
  }
}
