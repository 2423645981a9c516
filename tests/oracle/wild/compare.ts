/** What differs between the two CPUs after a wild case, in words. */
import { undefinedFlags, undefinedResult } from '../undefined.ts'
import type { Case } from '../generate.ts'
import { estimates, oneUlp } from '../../simd/tolerances.ts'
import type { Wild } from './generate.ts'
import { find, FX_SIZE, WRITABLE } from './place.ts'
import type { Batch, Outcome } from './place.ts'

const hex = (n: bigint | number): string => `0x${n.toString(16)}`
const names = 'rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15'.split(' ')
const segments = ['es', 'cs', 'ss', 'ds', 'fs', 'gs']
const raw = (b: Uint8Array): string => Buffer.from(b).toString('hex')
const RF = 0x10000n

/** The fields of a Case that say which flags are undefined. */
export function asCase(w: Wild): Case {
  const mnemonic = w.mnemonic.toUpperCase()
  const name = mnemonic === 'SAL' ? 'SHL' : mnemonic
  const row = { mnemonic: name, ext: name === 'IMUL' && w.row?.ext === 5 ? 5 : undefined, operands: ['Ub'] }
  return { row, size: w.size / 8, immediate: w.shift ?? 1, gpr: w.state.gpr } as unknown as Case
}

const memory = (o: Outcome, clean: Uint8Array): Uint8Array => {
  const all = clean.slice()
  all.set(o.data, o.first)
  return all
}

/** Without TF the regular end is the INT3 behind the code. */
export function normalise(w: Wild, o: Outcome): Outcome {
  return w.state.free && o.vector === 3 ? { ...o, vector: 1, error: 0, rip: o.rip - 1n } : o
}

export function differences(w: Wild, batch: Batch, want: Outcome, got: Outcome): string[] {
  const found: string[] = []
  // Half of a misaligned operand is read, all of it has to be canonical.
  if (w.mnemonic.startsWith('Unpcklp') && want.vector === 13 && got.vector === 14) return []
  if (want.vector !== got.vector)
    return [
      `vector ${want.vector} expected, got ${got.vector} (error ${hex(want.error)}/${hex(got.error)}, rip ${hex(want.rip)}/${hex(got.rip)}, cr2 ${hex(want.cr2)}/${hex(got.cr2)})`,
    ]
  const { state } = w
  const ran = want.vector === 1
  if (!ran) {
    // The kernel reports its own half as protected.
    const care = want.vector === 14 && want.cr2 >= 0x7fff_ffff_f000n ? ~1 : ~0
    if ((want.error & care) !== (got.error & care)) found.push(`error code ${hex(want.error)} expected, got ${hex(got.error)}`)
    if (want.vector === 14 && want.cr2 !== got.cr2) found.push(`cr2 ${hex(want.cr2)} expected, got ${hex(got.cr2)}`)
  }
  if (want.rip !== got.rip) found.push(`rip ${hex(want.rip)} expected, got ${hex(got.rip)}`)
  const asked = asCase(w)
  const loose = ran && undefinedResult(asked)
  const legacy = w.bits !== 64 || ((find(want.segment[1] as number, batch.ldt)?.attrib ?? 0x200) & 0x200) === 0
  // RETF imm16 carries out of a 16-bit SP.
  const small = w.mnemonic.startsWith('Retf') && ((find(state.segment[2] as number, batch.ldt)?.attrib ?? 0x400) & 0x400) === 0
  for (let i = 0; i < 16; i++) {
    const n = small && i === 4 ? 16 : legacy && i < 8 ? 32 : 64
    if (BigInt.asUintN(n, want.gpr[i] as bigint) !== BigInt.asUintN(n, got.gpr[i] as bigint) && !loose)
      found.push(
        `${names[i]} ${hex(want.gpr[i] as bigint)} expected, got ${hex(got.gpr[i] as bigint)} (was ${hex(state.gpr[i] as bigint)})`,
      )
  }
  const care = ~(BigInt(ran ? undefinedFlags(asked) : 0) | (w.step ? 0n : 0x100n) | RF)
  if (((want.rflags ^ got.rflags) & care) !== 0n)
    found.push(`rflags ${hex(want.rflags)} expected, got ${hex(got.rflags)} (was ${hex(state.rflags)})`)
  // On its way out of the kernel a null selector loses its RPL.
  const plain = (n: number | undefined): number => ((n ?? 0) < 4 ? 0 : (n ?? 0))
  for (let i = 0; i < 6; i++)
    if (plain(want.segment[i]) !== plain(got.segment[i]))
      found.push(`${segments[i]} ${hex(want.segment[i] as number)} expected, got ${hex(got.segment[i] as number)}`)
  for (const i of [0, 1] as const)
    if (want.base[i] !== got.base[i]) found.push(`${segments[i + 4]} base ${hex(want.base[i])} expected, got ${hex(got.base[i])}`)
  if (!loose && (want.first !== got.first || Buffer.compare(want.data, got.data) !== 0)) {
    const a = memory(want, batch.data)
    const b = memory(got, batch.data)
    for (let i = 0; i < WRITABLE; i++) {
      if (a[i] === b[i]) continue
      found.push(
        `data + ${hex(i)}: ${raw(a.subarray(i, i + 16))} expected, got ${raw(b.subarray(i, i + 16))} (was ${raw(batch.data.subarray(i, i + 16))})`,
      )
      break
    }
  }
  const mnemonic = w.mnemonic.toUpperCase()
  const a = want.fx
  const b = got.fx
  const part = (name: string, from: number, to: number): void => {
    if (Buffer.compare(a.subarray(from, to), b.subarray(from, to)) !== 0)
      found.push(
        `${name} ${raw(a.subarray(from, to).toReversed())} expected, got ${raw(b.subarray(from, to).toReversed())} (was ${raw(state.fx.subarray(from, to).toReversed())})`,
      )
  }
  part('fcw', 0, 2)
  if (!oneUlp.test(mnemonic)) part('fsw', 2, 4)
  part('ftw', 4, 5)
  // AMD stores the pointers only while an exception is pending (APM vol 2, 11.4.4).
  if ((new DataView(a.buffer).getUint16(2, true) & 0x80) !== 0) {
    part('fop', 6, 8)
    part('fip', 8, 16)
    part('fdp', 16, 24)
  }
  part('mxcsr', 24, 28)
  if (!oneUlp.test(mnemonic)) for (let i = 0; i < 8; i++) part(`st${i}`, 32 + i * 16, 42 + i * 16)
  if (!estimates.test(mnemonic)) for (let i = 0; i < 16; i++) part(`xmm${i}`, 160 + i * 16, 176 + i * 16)
  void FX_SIZE
  return found
}

export function describe(w: Wild, batch: Batch): string {
  const { state } = w
  const at = Number((state.gpr[4] as bigint) & 0x1fffn)
  const stack = raw(batch.data.subarray(at, at + 40))
  const fx = new DataView(state.fx.buffer)
  return `${w.text} (${w.row?.text ?? 'no row'}) ${w.bits}-bit, ${raw(state.code)} at ${hex(state.slot)}, rip ${hex(state.rip)}, rflags ${hex(state.rflags)}${w.step ? ', TF' : ''}
    ${names.map((n, i) => `${n}=${hex(state.gpr[i] as bigint)}`).join(' ')}
    ${segments.map((n, i) => `${n}=${hex(state.segment[i] as number)}`).join(' ')} bases ${state.base.map(hex).join(' ')} fcw ${hex(fx.getUint16(0, true))} fsw ${hex(fx.getUint16(2, true))} ftw ${hex(fx.getUint8(4))} mxcsr ${hex(fx.getUint32(24, true))} stack ${stack}`
}
