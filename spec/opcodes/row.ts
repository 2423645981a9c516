/**
 * The opcode map's line format, and its parser.
 *
 * `<encoding> <MNEMONIC> <operands> <attributes>`
 *
 * encoding    optional `VEX.` (L = 0; `By` is vvvv), optional class `NP.` `66.` `F3.` `F2.` (none: every prefix that no other row of the opcode
 *             claims), map (none, `0F`, `0F38`, `0F3A`) and opcode byte; `+r` register in the opcode;
 *             `/3` ModRM.reg, `/3r` only mod 3, `/3m` only memory; `:D9` one exact ModRM byte
 * operands    Intel's opcode-map notation (SDM vol 2, appendix A.2), `Ub` for an unsigned Ib
 * attributes  `=name` cold handler; end lock d64 f64 no64 only64 native y reg mem size=N
 */
export type ImmediateKind = 'none' | 'Ib' | 'Ub' | 'Iw' | 'Iz' | 'Iv' | 'Jb' | 'Jz' | 'Ap' | 'moffs' | 'IwIb' | 'one'
export type PrefixClass = 'any' | 'NP' | '66' | 'F3' | 'F2'
export type SizeRule = 'byte' | 'v' | 'd64' | 'f64' | 'y' | 'native' | 1 | 2 | 4 | 8

export interface Opcode {
  readonly text: string
  readonly prefix: PrefixClass
  /** 0 one-byte, 1 0F, 2 0F38, 3 0F3A; 4, 5, 6 the last three behind a VEX prefix (L = 0). */
  readonly map: 0 | 1 | 2 | 3 | 4 | 5 | 6
  readonly opcode: number
  readonly embedded: boolean
  readonly ext: number | undefined
  readonly mod: 'reg' | 'mem' | 'any'
  readonly exact: number | undefined
  readonly mnemonic: string
  readonly operands: readonly string[]
  readonly modrm: boolean
  readonly immediate: ImmediateKind
  readonly size: SizeRule
  readonly handler: string | undefined
  readonly flags: ReadonlySet<string>
}

const encoding = /^(?:(VEX)\.)?(?:(NP|66|F3|F2)\.)?(?:(0F38|0F3A|0F)\.)?([0-9A-F]{2})(\+r)?(?:\/([0-7])([rm])?)?(?::([0-9A-F]{2}))?$/
const immediates: Record<string, ImmediateKind> = {
  Ib: 'Ib',
  Ub: 'Ub',
  Iw: 'Iw',
  Iz: 'Iz',
  Iv: 'Iv',
  Jb: 'Jb',
  Jz: 'Jz',
  Ap: 'Ap',
  Ob: 'moffs',
  Ov: 'moffs',
  1: 'one',
}
const known = new Set(['end', 'lock', 'd64', 'f64', 'no64', 'only64', 'native', 'y', 'reg', 'mem'])

function immediateOf(operands: readonly string[]): ImmediateKind {
  const found = operands.flatMap((o) => immediates[o] ?? [])
  if (found.length === 2 && found[0] === 'Iw') return 'IwIb'
  return found[0] ?? 'none'
}

/** Operands that are encoded in a ModRM byte: Ev, Gb, M, Mp, Sw, Cr, Dr, Rv, Vdq, Wps, Pq, Qq, Nq, Udq. */
const inModrm = (o: string): boolean => (/^[EGMVWPQSCDRNU]([a-z].*)?$/.test(o) && o !== 'Ub') || o === 'M'

function sizeOf(operands: readonly string[], flags: ReadonlySet<string>, fixed: number | undefined): SizeRule {
  if (fixed !== undefined) return fixed as 1 | 2 | 4 | 8
  for (const rule of ['d64', 'f64', 'native', 'y'] as const) if (flags.has(rule)) return rule
  const wide = operands.some((o) => /^[GEZ][vy]$/.test(o) || o === 'rAX' || o === 'Ov')
  return !wide && operands.some((o) => ['Eb', 'Gb', 'Zb', 'AL', 'Ob'].includes(o)) ? 'byte' : 'v'
}

function mapOf(vex: string | undefined, map: string | undefined): Opcode['map'] {
  if (map === undefined) return 0
  const n = map === '0F' ? 1 : map === '0F38' ? 2 : 3
  return vex === undefined ? n : ((n + 3) as 4 | 5 | 6)
}

export function parseRow(text: string): Opcode {
  const parts = text.trim().split(/\s+/)
  const m = encoding.exec(parts[0] ?? '')
  if (!m) throw new SyntaxError(`opcode map: bad encoding in "${text}"`)
  const mnemonic = parts[1]
  if (!mnemonic) throw new SyntaxError(`opcode map: no mnemonic in "${text}"`)
  let operands: string[] = []
  const flags = new Set<string>()
  let handler: string | undefined
  let fixed: number | undefined
  for (const part of parts.slice(2)) {
    if (part.startsWith('=')) handler = part.slice(1)
    else if (part.startsWith('size=')) fixed = Number(part.slice(5))
    else if (known.has(part)) flags.add(part)
    else if (operands.length === 0) operands = part.split(',')
    else throw new SyntaxError(`opcode map: unknown attribute "${part}" in "${text}"`)
  }
  return {
    text,
    prefix: (m[2] as PrefixClass | undefined) ?? 'any',
    map: mapOf(m[1], m[3]),
    opcode: Number.parseInt(m[4] ?? '', 16),
    embedded: m[5] !== undefined,
    ext: m[6] === undefined ? undefined : Number(m[6]),
    mod: m[7] === 'r' || flags.has('reg') ? 'reg' : m[7] === 'm' || flags.has('mem') ? 'mem' : 'any',
    exact: m[8] === undefined ? undefined : Number.parseInt(m[8], 16),
    mnemonic,
    operands,
    modrm: m[6] !== undefined || m[8] !== undefined || operands.some(inModrm),
    immediate: immediateOf(operands),
    size: sizeOf(operands, flags, fixed),
    handler,
    flags,
  }
}
