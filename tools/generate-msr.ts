/** Writes the MSR table for assembly/ (rows of three u64, sorted by index) and the index list for host/. */
import { msrs } from '../spec/msr.ts'
import type { Msr } from '../spec/msr.ts'

const kinds: Record<Msr['kind'], number> = { field: 0, store: 0, constant: 1, special: 2 }
const access: Record<NonNullable<Msr['access']>, number> = { rw: 0, canonical: 1, ro: 2, ignore: 4, wo: 8 }
const hex = (v: bigint): string => `0x${v.toString(16)}`

/** Row: index | kind << 32 | flags << 40, writable mask, reset value; offsets follow in their own table. */
export function msrAssembly(): string {
  let slot = 0
  const rows: string[] = []
  const offsets: string[] = []
  for (const m of msrs) {
    const flags = access[m.access ?? 'rw'] | (m.pass ? 16 : 0)
    rows.push(
      `  ${hex(BigInt(m.index) | (BigInt(kinds[m.kind]) << 32n) | (BigInt(flags) << 40n))}, ${hex(m.mask ?? (1n << 64n) - 1n)}, ${hex(m.reset ?? 0n)}, // ${m.name}`,
    )
    offsets.push(m.kind === 'field' ? `<u32>CPU_${m.field}` : m.kind === 'store' ? `<u32>CPU_MSR_STORE + ${8 * slot++}` : '0')
  }
  if (slot > 48) throw new RangeError(`MSR_STORE: ${slot} slots needed, 48 are reserved`)
  const fields = [...new Set(msrs.flatMap((m) => (m.field ? [`CPU_${m.field}`] : [])))].sort()
  return [
    '// Generated from spec/msr.ts by tools/generate.ts. Do not edit.',
    `import { CPU_MSR_STORE, ${fields.join(', ')} } from './layout'`,
    '',
    `export const MSR_COUNT: u32 = ${msrs.length}`,
    'export const MSR_KIND_FIELD: u32 = 0',
    'export const MSR_KIND_CONSTANT: u32 = 1',
    'export const MSR_KIND_SPECIAL: u32 = 2',
    'export const MSRF_CANONICAL: u32 = 1',
    'export const MSRF_READ_ONLY: u32 = 2',
    'export const MSRF_IGNORE: u32 = 4',
    'export const MSRF_WRITE_ONLY: u32 = 8',
    'export const MSRF_PASS: u32 = 16',
    'export const MSR_ROWS: usize = memory.data<u64>([',
    ...rows,
    '])',
    `const offsets: StaticArray<u32> = [${offsets.join(', ')}]`,
    'export function msrOffset(row: u32): usize {',
    '  return <usize>unchecked(offsets[row])',
    '}',
    '',
  ].join('\n')
}

export function msrHost(): string {
  return [
    '// Generated from spec/msr.ts by tools/generate.ts. Do not edit.',
    '/** Every MSR that has a row; `save`: in KVM_GET_MSR_INDEX_LIST; `pass`: not intercepted for SEV-ES guests. */',
    'export const msrs: readonly { index: number; name: string; save: boolean; pass: boolean }[] = [',
    ...msrs.map((m) => `  { index: 0x${m.index.toString(16)}, name: '${m.name}', save: ${m.save ?? false}, pass: ${m.pass ?? false} },`),
    ']',
    '',
  ].join('\n')
}
