/** Decode tables, handler ids, the cold table and the coverage document, all from the opcode map. */
import { FEATURE_BITS } from '../spec/cpu-models.ts'
import { featureOf } from '../spec/opcodes/features.ts'
import { constants } from '../spec/layout/index.ts'
import { opcodes } from '../spec/opcodes/index.ts'
import type { Opcode, PrefixClass, SizeRule } from '../spec/opcodes/index.ts'
import { coldBase, hotIds, memoryBase } from './generate-execute.ts'
import { accesses, flagUse, flagUses, fusedNames, hotName, quietForms, sizes } from './hot-handlers.ts'

const { ACCESS_WRITE: WRITE = 0 } = constants

const bits = {
  MODRM: 1,
  EMBEDDED: 2,
  LOCK: 4,
  END: 8,
  NO64: 16,
  ONLY64: 32,
  BYTE_RM: 64,
  BYTE_REG: 128,
  MMX_RM: 256,
  MMX_REG: 512,
  REG_ONLY: 1024,
  BRANCH: 2048,
}
const immediates = ['none', 'Ib', 'Ub', 'Iw', 'Iz', 'Iv', 'Jb', 'Jz', 'Ap', 'moffs', 'IwIb', 'one']
const sizeRules: SizeRule[] = ['byte', 'v', 'd64', 'f64', 'y', 'native']
const classes: PrefixClass[] = ['NP', '66', 'F3', 'F2']

/** Cold handlers that no row names: what the decoder itself asks for. */
const builtin = ['undefinedOpcode', 'generalProtection', 'branchRelative']
const coldNames = [...new Set([...builtin, ...opcodes.flatMap((o) => o.handler ?? [])])]
const coldIds = new Map(coldNames.map((name, i) => [name, coldBase + i]))
const id = (name: string): number => {
  const found = hotIds.get(name) ?? coldIds.get(name)
  if (found === undefined) throw new Error(`no handler ${name}`)
  return found
}

function flagsOf(o: Opcode): number {
  let f = 0
  const has = (...names: string[]): boolean => o.operands.some((x) => names.includes(x))
  const starts = (letters: string): boolean => o.operands.some((x) => letters.includes(x[0] ?? '') && /^[A-Z][a-z]/.test(x))
  if (o.modrm) f |= bits.MODRM
  if (o.embedded) f |= bits.EMBEDDED
  if (o.flags.has('lock')) f |= bits.LOCK
  if (o.flags.has('end')) f |= bits.END
  if (o.flags.has('no64')) f |= bits.NO64
  if (o.flags.has('only64')) f |= bits.ONLY64
  if (has('Eb', 'Zb')) f |= bits.BYTE_RM
  if (has('Gb')) f |= bits.BYTE_REG
  if (starts('QN')) f |= bits.MMX_RM
  if (starts('P')) f |= bits.MMX_REG
  if (starts('CD') || has('Cr', 'Dr')) f |= bits.REG_ONLY
  if (o.immediate === 'Jb' || o.immediate === 'Jz') f |= bits.BRANCH
  return f
}

/** Words of CPU_FEATURES (assembly/cpu/features.ts) by their names in spec/cpu-models.ts. */
const featureWords = ['1.ecx', '1.edx', '7.ebx', '7.ecx', '7.edx', '80000001.ecx', '80000001.edx', '80000008.ebx', '', 'd.1.eax']

/** 1 + word * 32 + bit of the CPUID feature that the row needs; 0 = none. */
function needs(o: Opcode): number {
  const feature = featureOf(o)
  if (feature === undefined) return 0
  for (const [word, names] of Object.entries(FEATURE_BITS)) {
    const bit = names[feature]
    if (bit === undefined) continue
    const at = featureWords.indexOf(word)
    if (at < 0) throw new Error(`no feature word ${word}`)
    return 1 + at * 32 + bit
  }
  throw new Error(`opcode map: no CPUID feature ${feature}`)
}

function descriptor(o: Opcode): number[] {
  const branch = o.immediate === 'Jb' || o.immediate === 'Jz'
  const cold = coldIds.get(o.handler ?? (branch ? 'branchRelative' : 'undefinedOpcode')) ?? 0
  const handlers = sizes.flatMap((z) => [false, true].map((m) => hotIds.get(hotName(o, z, m) ?? '') ?? cold))
  const rule = typeof o.size === 'number' ? 16 + Math.log2(o.size) : sizeRules.indexOf(o.size)
  return [flagsOf(o), immediates.indexOf(o.immediate) | (rule << 8), cold, needs(o), ...handlers]
}

const describe = (o: Opcode): string => o.text.split(' ').slice(0, 2).join(' ')

export interface Tables {
  readonly roots: number[]
  readonly groups: number[]
  readonly descriptors: number[]
}

function buildTables(): Tables {
  // Descriptor 0: no such instruction.
  const descriptors: number[][] = [new Array<number>(12).fill(0)]
  const index = new Map(opcodes.map((o) => [o, descriptors.push(descriptor(o)) - 1]))
  const groups: number[][] = []
  const groupOf = new Map<string, number>()
  const roots: number[] = []
  const byOpcode = new Map<string, Opcode[]>()
  for (const o of opcodes) {
    for (let i = 0; i < (o.embedded ? 8 : 1); i++) {
      const key = `${o.map}:${o.opcode + i}`
      byOpcode.set(key, [...(byOpcode.get(key) ?? []), o])
    }
  }
  const fits = (o: Opcode, slot: number): boolean => {
    const register = slot >= 8
    const modrm = register ? 0xc0 + slot - 8 : slot << 3
    if (o.exact !== undefined) return o.exact === modrm
    if (o.mod === 'reg' && !register) return false
    if (o.mod === 'mem' && register) return false
    return o.ext === undefined || o.ext === ((modrm >> 3) & 7)
  }
  /** Exact ModRM before mod before /n before none; a named prefix class before none. */
  const rank = (o: Opcode): number =>
    (o.exact !== undefined ? 8 : 0) + (o.mod !== 'any' ? 2 : 0) + (o.ext !== undefined ? 2 : 0) + (o.prefix !== 'any' ? 1 : 0)
  const choose = (rows: Opcode[], where: string): number => {
    if (rows.length === 0) return 0
    const sorted = [...rows].sort((a, b) => rank(b) - rank(a))
    const [first, second] = sorted
    if (first && second && rank(first) === rank(second))
      throw new Error(`opcode map: ${describe(first)} and ${describe(second)} both claim ${where}`)
    return first ? (index.get(first) ?? 0) : 0
  }
  for (let map = 0; map < 7; map++) {
    for (const cls of classes) {
      for (let opcode = 0; opcode < 256; opcode++) {
        const rows = (byOpcode.get(`${map}:${opcode}`) ?? []).filter((o) => o.prefix === 'any' || o.prefix === cls)
        const where = `map ${map} opcode ${opcode.toString(16)} prefix ${cls}`
        if (!rows.some((o) => o.ext !== undefined || o.exact !== undefined || o.mod !== 'any')) {
          roots.push(choose(rows, where))
          continue
        }
        const group = Array.from({ length: 72 }, (_, slot) =>
          choose(
            rows.filter((o) => fits(o, slot)),
            `${where} slot ${slot}`,
          ),
        )
        const key = group.join()
        let at = groupOf.get(key)
        if (at === undefined) {
          at = groups.push(group) - 1
          groupOf.set(key, at)
        }
        roots.push(0x8000 | at)
      }
    }
  }
  return { roots, groups: groups.flat(), descriptors: descriptors.flat() }
}

/** Which file of assembly/execute (or kvm) exports each cold handler; found by reading them. */
export function opcodesSource(files: ReadonlyMap<string, string>): string {
  const tables = buildTables()
  const imports = new Map<string, string[]>()
  for (const name of coldNames) {
    const found = [...files].filter(([, text]) => new RegExp(`^export function ${name}\\(s: usize, op: usize\\): u32 `, 'm').test(text))
    const file = found[0]?.[0]
    if (file === undefined) throw new Error(`opcode map: no file of assembly/ exports the handler ${name}(s, op)`)
    if (found.length > 1) throw new Error(`opcode map: handler ${name} is exported by ${found.map(([path]) => path).join(' and ')}`)
    imports.set(file, [...(imports.get(file) ?? []), name])
  }
  const plainForms = [
    ...[...quietForms].map(([form, quiet]) => [quiet, form] as const),
    ...[...fusedNames].flatMap(([form, { zero, other }]) =>
      (other === undefined ? [zero] : [zero, other]).map((name) => [name, form] as const),
    ),
  ]
  const list = (values: readonly number[]): string => values.join(',')
  const lines = ['// Generated from the opcode map by tools/generate-opcodes.ts. Do not edit.', `import { COLD_TABLE } from './layout'`]
  for (const [file, names] of imports) lines.push(`import { ${names.join(', ')} } from '../${file.replace(/\.ts$/, '')}'`)
  for (const [name, value] of Object.entries(bits)) lines.push(`export const D_${name}: u32 = ${value}`)
  immediates.forEach((name, i) => lines.push(`export const IMM_${name}: u32 = ${i}`))
  sizeRules.forEach((name, i) => lines.push(`export const SIZE_${String(name).toUpperCase()}: u32 = ${i}`))
  lines.push(
    'export const SIZE_FIXED: u32 = 16',
    `export const coldBase: u32 = ${coldBase}`,
    `export const H_UD: u32 = ${id('undefinedOpcode')}`,
    `export const H_GP: u32 = ${id('generalProtection')}`,
    `export const H_NOP: u32 = ${id('NOP')}`,
    `export const H_CONTINUE: u32 = ${id('CONTINUE')}`,
    `export const H_PARTIAL_END: u32 = ${id('PARTIAL_END')}`,
    '/** Relative branches whose chain slots are in OP_DISP and OP_EXTRA. */',
    `export function chained(id: u32): bool { return (id >= ${id('JCC_0')} && id <= ${id('JCC_15')}) || id == ${id('JMP_rel')} || id == ${id('CONTINUE')} || id == ${id('CALL_rel_4')} || id == ${id('CALL_rel_8')} }`,
    '/** The handler of an op that the conditional jump `jcc` follows, 0 = it has none. */',
    `export function fused(id: u32, jcc: u32): u32 { const zero = ((jcc - ${id('JCC_0')}) >> 1) == 2; switch (id) { ${[...fusedNames].map(([from, { zero, other }]) => `case ${id(from)}: return zero ? ${id(zero)} : ${other === undefined ? 0 : id(other)};`).join(' ')} default: return 0 } }`,
    ...flagUses.map((use, i) => `export const FLAGS_${use}: u32 = ${i}`),
    '/** FLAGS_* of an op. */',
    `export function flagUse(id: u32): u32 { return id < coldBase ? <u32>load<u8>(uses + <usize>id) : FLAGS_NEEDS }`,
    `const uses: usize = memory.data<u8>([${list([...hotIds.keys()].map((name) => flagUses.indexOf(flagUse(name))))}])`,
    '/** The form of an op that leaves the flags alone, 0 = it has none. */',
    `export function quiet(id: u32): u32 { switch (id) { ${[...quietForms].map(([from, to]) => `case ${id(from)}: return ${id(to)};`).join(' ')} default: return 0 } }`,
    '/** The form of an op that stands alone: neither quiet nor fused. */',
    `export function plain(id: u32): u32 { switch (id) { ${plainForms.map(([from, to]) => `case ${id(from)}: return ${id(to)};`).join(' ')} default: return id } }`,
    '/** OP_ACCESS of a handler. */',
    `export function accessOf(id: u32): u32 { return id >= ${memoryBase} && id < coldBase ? <u32>load<u8>(accesses + <usize>(id - ${memoryBase})) : 0 }`,
    `const accesses: usize = memory.data<u8>([${list(accesses.map(({ size, write }) => (size - 1) | (write ? WRITE : 0)))}])`,
    `export function isJcc(id: u32): bool { return id >= ${id('JCC_0')} && id <= ${id('JCC_15')} }`,
    '/** u16 node by map, prefix class (NP 66 F3 F2), opcode; 0x8000 | group, or descriptor. */',
    `export const roots: usize = memory.data<u16>([${list(tables.roots)}])`,
    '/** u16 descriptor by group and ModRM slot (8 memory, 64 register). */',
    `export const groups: usize = memory.data<u16>([${list(tables.groups)}])`,
    '/** 24 bytes each: flags, immediate kind, size rule, cold handler, CPUID feature, handlers by size and form. */',
    `export const descriptors: usize = memory.data<u16>([${list(tables.descriptors)}])`,
    ...coldNames.map((name, i) => `store<u32>(COLD_TABLE, load<u32>(changetype<usize>(${name})), ${i * 4})`),
  )
  return `${lines.join('\n')}\n`
}

/** docs/opcodes.md: every row, and how it runs. */
export function coverageDocument(): string {
  const maps = ['', '0F ', '0F 38 ', '0F 3A ', 'VEX 0F ', 'VEX 0F 38 ', 'VEX 0F 3A ']
  const rows = opcodes.map((o) => {
    const name = (o.prefix === 'any' ? '' : `${o.prefix} `) + maps[o.map] + o.opcode.toString(16).toUpperCase().padStart(2, '0')
    const ext =
      o.exact !== undefined ? ` ${o.exact.toString(16).toUpperCase()}` : o.ext !== undefined ? ` /${o.ext}` : o.embedded ? '+r' : ''
    const hot = sizes.some((z) => hotName(o, z, false) !== undefined || hotName(o, z, true) !== undefined)
    const how =
      o.handler === 'unimplemented'
        ? '**not implemented** (named stop)'
        : hot
          ? o.handler
            ? 'switch and cold handler'
            : 'switch'
          : 'cold handler'
    return { mnemonic: o.mnemonic, line: `| \`${name}${ext}\` | ${o.mnemonic} | ${o.operands.join(', ')} | ${how} |` }
  })
  return [
    '# Instruction coverage',
    '',
    'Generated from `spec/opcodes` by `npm run generate`; CI checks that it is current. An encoding without a row is #UD.',
    '',
    `${rows.length} rows, ${new Set(rows.map((r) => r.mnemonic)).size} mnemonics; ${coldNames.length} cold handlers, ${hotIds.size} specialised handlers in the switch.`,
    '',
    '| encoding | mnemonic | operands | runs in |',
    '|---|---|---|---|',
    ...rows.map((r) => r.line),
    '',
  ].join('\n')
}
