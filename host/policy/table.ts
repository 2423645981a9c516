/**
 * Reads the policy table (spec/kvm-policy.ts) for a profile and a kernel version. The dispatcher asks
 * it before every ioctl; `cloister policy` prints it; the tests walk it. A profile is a list of
 * replaced cells, never code.
 */
import { POLICY, POLICY_TYPES, type PolicyRow, type PolicyType } from '../generated/kvm-policy.ts'
import { OVERLAYS } from './profiles.ts'

export { POLICY_TYPES, type PolicyType } from '../generated/kvm-policy.ts'

export type PolicyResult = 'ok' | 'ok-zeros' | 'ok-partial' | 'ok-ignored' | 'ok-dropped' | 'error' | 'special'
export type PolicyPhase = 'before' | 'after'

/** One cell, parsed. */
export interface PolicyRule {
  readonly result: PolicyResult
  /** Errno name of an error. */
  readonly errno: string | null
  /** The result holds for a correct call; `detail` says when the answer differs. */
  readonly conditional: boolean
  readonly detail: string
}

/** One row with its cells parsed: `rules[type index][0 before | 1 after]`. */
export interface PolicyEntry {
  readonly ioctl: string
  readonly request: number | null
  readonly scope: PolicyRow['scope']
  readonly switch: string | null
  readonly source: string
  readonly notes: string
  readonly rules: readonly (readonly [PolicyRule, PolicyRule])[]
}

/** One line of `cloister policy` (contract.md). */
export interface PolicyLine {
  ioctl: string
  request: number | null
  type: PolicyType
  phase: PolicyPhase
  result: PolicyResult
  errno: string | null
  conditional: boolean
  detail: string
  switch: string | null
  source: string
}

export type Linux = '6.12' | '7.3'

export function parseCell(cell: string): PolicyRule {
  const cut = cell.indexOf(';')
  const head = (cut < 0 ? cell : cell.slice(0, cut)).trim()
  const conditional = head.endsWith('?')
  const [result = 'special', errno] = (conditional ? head.slice(0, -1) : head).split(':')
  return { result: result as PolicyResult, errno: errno ?? null, conditional, detail: cut < 0 ? '' : cell.slice(cut + 1).trim() }
}

function parseRow(row: PolicyRow): PolicyEntry {
  const rules = POLICY_TYPES.map((_, i): readonly [PolicyRule, PolicyRule] => {
    const cell = typeof row.cells === 'string' ? row.cells : row.cells[i]
    if (cell === undefined) throw new RangeError(`policy: ${row.ioctl} lacks a cell`)
    return typeof cell === 'string' ? [parseCell(cell), parseCell(cell)] : [parseCell(cell[0]), parseCell(cell[1])]
  })
  const { ioctl, request, scope, source, notes = '' } = row
  return { ioctl, request, scope, switch: row.switch, source, notes, rules }
}

/** The table in force: POLICY, then the kernel version's differences, then the profile's. */
export function policyTable(profile: string = 'upstream', linux: Linux = '7.3'): ReadonlyMap<string, PolicyEntry> {
  const table = new Map(POLICY.map((row) => [row.ioctl, parseRow(row)]))
  for (const overlay of OVERLAYS) {
    if (overlay.profile !== undefined && overlay.profile !== profile) continue
    if (overlay.linux !== undefined && overlay.linux !== linux) continue
    for (const name of overlay.ioctls) {
      const entry = table.get(name)
      if (!entry) throw new RangeError(`policy overlay ${overlay.source}: no row ${name}`)
      const rules = entry.rules.map(([before, after], i): readonly [PolicyRule, PolicyRule] => {
        if (!overlay.types.includes(POLICY_TYPES[i] as PolicyType)) return [before, after]
        const rule = parseCell(overlay.cell)
        return [overlay.phase === 'after' ? before : rule, overlay.phase === 'before' ? after : rule]
      })
      table.set(name, { ...entry, rules, source: `${entry.source}; ${overlay.source}` })
    }
  }
  return table
}

/** The table as lines, for the command line, docs and tests. */
export function policyLines(profile: string = 'upstream', linux: Linux = '7.3'): PolicyLine[] {
  const lines: PolicyLine[] = []
  for (const entry of policyTable(profile, linux).values()) {
    entry.rules.forEach((pair, i) => {
      pair.forEach((rule, phase) => {
        lines.push({
          ioctl: entry.ioctl,
          request: entry.request,
          type: POLICY_TYPES[i] as PolicyType,
          phase: phase === 0 ? 'before' : 'after',
          result: rule.result,
          errno: rule.errno,
          conditional: rule.conditional,
          detail: rule.detail,
          switch: entry.switch,
          source: entry.source,
        })
      })
    })
  }
  return lines
}
