/**
 * Which CPUID feature an instruction belongs to (SDM vol 2 and APM vol 3, "CPUID Feature Flag" of each page), by QEMU's names
 * (spec/cpu-models.ts). What every x86-64 CPU has (SSE2, CMOV, FXSR, …) is not asked for; instructions that a control register
 * switches (FSGSBASE, XSAVE, PKU) or whose handler looks itself (RDTSCP, RDPID, MONITORX, …) are not here either.
 */
import type { Opcode } from './row.ts'

const byMnemonic: readonly (readonly [feature: string, mnemonics: RegExp])[] = [
  ['sse3', /^(MOVSLDUP|MOVSHDUP|MOVDDUP|LDDQU|HADDP[SD]|HSUBP[SD]|ADDSUBP[SD]|FISTTP)$/],
  ['ssse3', /^(PSHUFB|PHADDS?W|PHADDD|PHSUBS?W|PHSUBD|PMADDUBSW|PSIGN[BWD]|PMULHRSW|PABS[BWD]|PALIGNR)$/],
  [
    'sse4.1',
    /^(PMULDQ|PCMPEQQ|PACKUSDW|P(MIN|MAX)(SB|SD|UW|UD)|PMULLD|PMOV[SZ]X|PTEST|PBLENDVB|BLENDV?P[SD]|PBLENDW|ROUND[PS][SD]|DPP[SD]|INSERTPS|EXTRACTPS|PINSR[BD]|PEXTR[BD]|PHMINPOSUW|MPSADBW|MOVNTDQA)$/,
  ],
  ['sse4.2', /^(PCMPGTQ|PCMP[EI]STR[MI]|CRC32)$/],
  ['sse4a', /^(EXTRQ|INSERTQ|MOVNTS[SD])$/],
  ['popcnt', /^POPCNT$/],
  ['movbe', /^MOVBE$/],
  ['aes', /^AES/],
  ['pclmulqdq', /^PCLMULQDQ$/],
  ['sha-ni', /^SHA/],
  ['adx', /^AD[CO]X$/],
  ['bmi1', /^(ANDN|BLSR|BLSMSK|BLSI|BEXTR|TZCNT)$/],
  ['bmi2', /^(BZHI|PEXT|PDEP|MULX|RORX|SARX|SHLX|SHRX)$/],
  ['abm', /^LZCNT$/],
  ['rdrand', /^RDRAND$/],
  ['rdseed', /^RDSEED$/],
  ['xsaveopt', /^XSAVEOPT$/],
  ['xsavec', /^XSAVEC$/],
  ['xsaves', /^(XSAVES|XRSTORS)$/],
  ['clflushopt', /^CLFLUSHOPT$/],
  ['clwb', /^CLWB$/],
]

export function featureOf(o: Opcode): string | undefined {
  // PEXTRW to memory; the older form needs SSE2.
  if (o.mnemonic === 'PEXTRW' && o.map === 3) return 'sse4.1'
  return byMnemonic.find(([, mnemonics]) => mnemonics.test(o.mnemonic))?.[0]
}
