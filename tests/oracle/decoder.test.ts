/**
 * Instruction lengths and validity of the decoder against iced-x86, in 16-, 32- and 64-bit code: random bytes, and bytes
 * that begin with each opcode of the map. What this core does not model (VEX, EVEX, XOP, 3DNow! and a few legacy
 * extensions) is #UD here and left out. `CLOISTER_ORACLE_CASES`, `CLOISTER_ORACLE_SEED` as in integer.test.ts.
 */
import iced from 'iced-x86'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import * as L from '../../host/generated/layout.ts'
import { opcodes } from '../../spec/opcodes/index.ts'
import { Emulated } from './core.ts'
import { Random } from './random.ts'

const { Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Mnemonic } = iced
const cases = Number(process.env['CLOISTER_ORACLE_CASES'] ?? 100000)
const seed = Number(process.env['CLOISTER_ORACLE_SEED'] ?? 1)

/** Extensions (iced's CpuidFeature) that the modelled CPU lacks or this core does not execute yet. */
const absent = new Set(
  (
    'AMXBF16 AMXTILE AMXINT8 CET_IBT CET_SS CLDEMOTE CL1INVMB CYRIX_DMI CYRIX_D3NOW CYRIX_EMMI CYRIX_FPU CYRIX_SHR CYRIX_SMINT CYRIX_SMM ' +
    'ENQCMD GEODE HRESET INTEL8086_ONLY INTEL186_ONLY INTEL286_ONLY INTEL386_ONLY INTEL386_486_ONLY INTEL386_A0_ONLY INTEL486_A_ONLY ' +
    'INTEL8086 KL AESKLE WIDE_KL MOVDIRI MOVDIR64B MPX PADLOCK_ACE PADLOCK_PHE PADLOCK_PMM PADLOCK_RNG PADLOCK_GMI PCONFIG PTWRITE ' +
    'RTM SERIALIZE SGX1 SMX TDX TSXLDTRK UINTR VMX WAITPKG INVEPT INVVPID PREFETCHW SEV_SNP TBM XOP LWP MCOMMIT OSS D3NOW D3NOWEXT ' +
    'CENTAUR_AIS GFNI SHA AES PCLMULQDQ SSE4A FMA4 RDPRU UDBG INVLPGB AVX AVX2 SVM SKINIT SNP SEV_ES MONITORX MONITOR CLZERO PKU WRMSRNS MSRLIST PBNDKB TSE RMPQUERY HLE_or_RTM RTM'
  ).split(' '),
)

/**
 * Refused by their handlers, not by the decoder: registers that do not exist (CRn, DRn, segments), FS and GS bases outside
 * of 64-bit code. SWAPGS, CLAC, STAC and VMCALL take any prefix, VERW takes LOCK (measured on Zen 4).
 */
const refused = /^((lock )?(0f2[0-3]|8c|8e|0fae[c-d][0-9a-f]|0f01(f8|ca|cb|c1))|lock 0f00)$/

function known(instruction: InstanceType<typeof iced.Instruction>, bytes: Uint8Array, bits: number): boolean {
  if (instruction.encoding !== EncodingKind.Legacy) return false
  // #UD on the physical CPU; LOCK MOV CR0 (MOV CR8) is not offered by the modelled CPU.
  const name = String(Code[instruction.code])
  if (name.startsWith('Reservednop') && name.endsWith('0F0D')) return false
  if (name.startsWith('Mov_') && opcodeOf(bytes, bits).startsWith('lock 0f2')) return false
  // UD0, UD1, UD2: no different from any other #UD.
  if (/^Ud[012]/.test(name)) return false
  return !instruction.cpuidFeatures().some((f) => absent.has(CpuidFeature[f] ?? ''))
}

function bytesFor(r: Random, i: number): Uint8Array {
  const bytes = new Uint8Array(16)
  for (let k = 0; k < 16; k++) bytes[k] = r.u32()
  if (i % 4 === 0) return bytes
  // Prefixes, then an opcode of the map; the rest stays random.
  let at = 0
  for (let n = r.below(3); n > 0; n--) bytes[at++] = r.pick([0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x65, 0xf0])
  const row = r.pick(opcodes)
  if (row.prefix === '66') bytes[at++] = 0x66
  if (row.prefix === 'F3') bytes[at++] = 0xf3
  if (row.prefix === 'F2') bytes[at++] = 0xf2
  if (r.chance(40)) bytes[at++] = 0x40 | r.below(16)
  if (row.map >= 4) {
    bytes[at++] = 0xc4
    bytes[at++] = (r.below(8) << 5) | (row.map - 3)
    bytes[at++] = (r.below(32) << 3) | { any: 0, NP: 0, '66': 1, F3: 2, F2: 3 }[row.prefix]
  } else if (row.map > 0) bytes[at++] = 0x0f
  if (row.map === 2) bytes[at++] = 0x38
  if (row.map === 3) bytes[at++] = 0x3a
  bytes[at++] = row.opcode + (row.embedded ? r.below(8) : 0)
  if (row.ext !== undefined) bytes[at] = ((bytes[at] as number) & 0xc7) | (row.ext << 3)
  return bytes
}

const legacy = new Set([0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65])

/** Prefixes dropped, LOCK and the prefix class kept: one line of a report per opcode. */
function opcodeOf(bytes: Uint8Array, bits: number): string {
  let at = 0
  let lock = ''
  for (;;) {
    const byte = bytes[at] as number
    if (byte === 0xf0) lock = 'lock '
    else if (!legacy.has(byte) && !(bits === 64 && (byte & 0xf0) === 0x40)) break
    at++
  }
  return (
    lock +
    Buffer.from(bytes.subarray(at, at + (bytes[at] !== 0x0f ? 1 : bytes[at + 1] === 1 || bytes[at + 1] === 0xae ? 3 : 2))).toString('hex')
  )
}

const modes = [
  { bits: 16, mode: L.MODE_CS16 },
  { bits: 32, mode: L.MODE_CS32 },
  { bits: 64, mode: L.MODE_CS64 },
]

for (const { bits, mode } of modes) {
  test(`decoder against iced-x86, ${bits}-bit code`, () => {
    const core = new Emulated()
    const r = new Random(seed + bits)
    const counts = new Map<string, number>()
    const texts: string[] = []
    let compared = 0
    for (let i = 0; i < cases; i++) {
      const bytes = bytesFor(r, i)
      const decoder = new Decoder(bits, bytes, DecoderOptions.AMD)
      const instruction = decoder.decode()
      const invalid = instruction.code === Code.INVALID
      const ours = core.decode(bytes, mode)
      if (invalid ? !refused.test(opcodeOf(bytes, bits)) : known(instruction, bytes, bits)) {
        compared++
        const good = invalid ? !ours.valid : ours.valid && ours.length === instruction.length
        if (!good) {
          const name = invalid ? `invalid ${opcodeOf(bytes, bits)}` : String(Mnemonic[instruction.mnemonic])
          const n = (counts.get(name) ?? 0) + 1
          counts.set(name, n)
          if (n <= 1)
            texts.push(
              `${Buffer.from(bytes).toString('hex')} ${invalid ? 'invalid' : `${Code[instruction.code]} ${instruction.length} bytes ${Array.from(instruction.cpuidFeatures(), (f) => CpuidFeature[f]).join()}`}, ours ${ours.valid ? `${ours.length} bytes` : '#UD'}`,
            )
        }
      }
      instruction.free()
      decoder.free()
    }
    const bad = [...counts.values()].reduce((a, b) => a + b, 0)
    console.log(`decoder ${bits}: ${compared} encodings compared, seed ${seed}`)
    if (bad > 0) console.log(`${texts.toSorted().join('\n')}`)
    assert.is(bad, 0, `${bad} encodings differ`)
  })
}

test.run()
