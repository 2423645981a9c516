/**
 * Reads the policy table (spec/kvm-policy.ts) for a profile and a kernel version. The dispatcher asks
 * it before every ioctl; `cloister policy` prints it; the tests walk it. A profile is a list of
 * replaced cells, never code.
 */
import { POLICY, POLICY_TYPES, type PolicyRow, type PolicyType } from '../generated/kvm-policy.ts'
import { CloisterError } from '../errors.ts'
import { ERRNO } from '../generated/kvm-abi.ts'
import { type Overlay, OVERLAYS, PROFILES, type Profile, type ProfileData, profileOf } from './profiles.ts'

export { POLICY_TYPES, type PolicyType } from '../generated/kvm-policy.ts'

/**
 * What an ioctl answers: `ok`; `ok-zeros` (success, zeros instead of guest state); `ok-partial` (a part is real);
 * `ok-ignored` and `ok-dropped` (success, what was written has no effect); `error` with an errno; `special` (see its detail).
 */
export type PolicyResult = 'ok' | 'ok-zeros' | 'ok-partial' | 'ok-ignored' | 'ok-dropped' | 'error' | 'special'
/** Before or after guest state is protected: LAUNCH_UPDATE_VMSA (SEV-ES), SNP_LAUNCH_FINISH, KVM_TDX_FINALIZE_VM. */
export type PolicyPhase = 'before' | 'after'

/** One cell, parsed. */
export interface PolicyRule {
  /** The kind of answer. */
  readonly result: PolicyResult
  /** Errno name of an error. */
  readonly errno: string | null
  /** The result holds for a correct call; `detail` says when the answer differs. */
  readonly conditional: boolean
  /** When it differs, or what is seen; empty if nothing is to be said. */
  readonly detail: string
  /** Who decided, if not the row's own source: a profile or another kernel version. */
  readonly source?: string
}

/** One row with its cells parsed: `rules[type index][0 before | 1 after]`. */
export interface PolicyEntry {
  /** Name of the request; `@vcpu` and the like tell requests of one name apart. */
  readonly ioctl: string
  /** Its code; null for a row that stands for a group. */
  readonly request: number | null
  /** Kind of file descriptor. */
  readonly scope: PolicyRow['scope']
  /** Linux's protection switch that decides, null if none does. */
  readonly switch: string | null
  /** File and function of Linux. */
  readonly source: string
  /** Remarks; empty if none. */
  readonly notes: string
  /** By VM type (POLICY_TYPES), then before and after. */
  readonly rules: readonly (readonly [PolicyRule, PolicyRule])[]
}

/** One line of `cloister policy --json`. */
export interface PolicyLine {
  /** Name of the request. */
  ioctl: string
  /** Its code; null for a row that stands for a group. */
  request: number | null
  /** VM type. */
  type: PolicyType
  /** Before or after guest state is protected. */
  phase: PolicyPhase
  /** The kind of answer. */
  result: PolicyResult
  /** Errno name of an error, else null. */
  errno: string | null
  /** The result holds for a correct call; `detail` says when the answer differs. */
  conditional: boolean
  /** When it differs, or what is seen. */
  detail: string
  /** Linux's protection switch that decides, null if none does. */
  switch: string | null
  /** File and function of Linux, and the profile or kernel version that changed the cell. */
  source: string
  /** Kind of file descriptor: tells the rows of unknown requests apart. */
  scope: PolicyRow['scope']
}

/** Whose KVM is modelled. */
export type Linux = '6.12' | '7.3'

function parseCell(cell: string): PolicyRule {
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

/** A built-in profile by name, or one of the caller's own. */
export type ProfileSource = string | ProfileData

function overlaysOf(profile: ProfileSource, linux: Linux): Overlay[] {
  const base = typeof profile === 'string' ? profile : (profile.base ?? 'upstream')
  const own = typeof profile === 'string' ? [] : profile.overlays
  return [...OVERLAYS.filter((o) => o.profile === undefined || o.profile === base), ...own].filter(
    (o) => o.linux === undefined || o.linux === linux,
  )
}

/**
 * The table in force by name of the request: Linux 7.3's, then the kernel version's differences, then the profile's.
 * CloisterError `ERR_ARGUMENT` for a profile or kernel version that does not exist.
 */
export function policyTable(profile: ProfileSource = 'upstream', linux: Linux = '7.3'): ReadonlyMap<string, PolicyEntry> {
  if (typeof profile === 'string' && !(PROFILES as readonly string[]).includes(profile))
    throw new CloisterError('ERR_ARGUMENT', `profile must be one of ${PROFILES.join(', ')}, not ${profile}`)
  if (linux !== '6.12' && linux !== '7.3') throw new CloisterError('ERR_ARGUMENT', `linux must be 6.12 or 7.3, not ${String(linux)}`)
  const table = new Map<string, PolicyEntry>()
  // Rows for unknown requests bear one name on three kinds of file descriptor.
  for (const row of POLICY) table.set(table.has(row.ioctl) ? `${row.ioctl} (${row.scope})` : row.ioctl, parseRow(row))
  for (const overlay of overlaysOf(profile, linux)) {
    for (const name of overlay.ioctls) {
      const entry = table.get(name)
      if (!entry) throw new RangeError(`policy overlay ${overlay.source}: no row ${name}`)
      const rules = entry.rules.map(([before, after], i): readonly [PolicyRule, PolicyRule] => {
        if (!overlay.types.includes(POLICY_TYPES[i] as PolicyType)) return [before, after]
        const rule = { ...parseCell(overlay.cell), source: overlay.source }
        return [overlay.phase === 'after' ? before : rule, overlay.phase === 'before' ? after : rule]
      })
      table.set(name, { ...entry, rules })
    }
  }
  return table
}

const RESULTS: readonly string[] = ['ok', 'ok-zeros', 'ok-partial', 'ok-ignored', 'ok-dropped', 'error', 'special']

/** Checks a profile, JSON text or an object: `{name, base?, overlays: [{ioctls, types, phase?, linux?, cell, source?}]}`. */
export function parseProfile(given: string | ProfileData): ProfileData {
  const fail = (why: string): never => {
    throw new CloisterError('profile', `profile: ${why}`)
  }
  let data: Partial<ProfileData> | null
  try {
    data = typeof given === 'string' ? (JSON.parse(given) as Partial<ProfileData> | null) : given
  } catch (error) {
    return fail(`not JSON: ${error instanceof Error ? error.message : String(error)}`)
  }
  if (data === null || typeof data !== 'object' || typeof data.name !== 'string' || !Array.isArray(data.overlays))
    return fail('needs name and overlays')
  const base = data.base ?? 'upstream'
  if (!(PROFILES as readonly string[]).includes(base)) return fail(`base must be one of ${PROFILES.join(', ')}`)
  const known = new Set(POLICY.map((row) => row.ioctl))
  const overlays = data.overlays.map((overlay: Partial<Overlay>, i): Overlay => {
    if (overlay === null || typeof overlay !== 'object') return fail(`overlay ${i} needs ioctls, types and cell`)
    const { ioctls, types, phase, linux, cell, source = `profile ${data.name}` } = overlay
    if (!Array.isArray(ioctls) || !Array.isArray(types) || typeof cell !== 'string')
      return fail(`overlay ${i} needs ioctls, types and cell`)
    for (const name of ioctls) if (!known.has(name)) return fail(`overlay ${i}: no row ${name}`)
    for (const type of types) if (!POLICY_TYPES.includes(type)) return fail(`overlay ${i}: no VM type ${type}`)
    if (phase !== undefined && phase !== 'before' && phase !== 'after') return fail(`overlay ${i}: phase is before or after`)
    if (linux !== undefined && linux !== '6.12' && linux !== '7.3') return fail(`overlay ${i}: linux is 6.12 or 7.3`)
    const rule = parseCell(cell)
    if (!RESULTS.includes(rule.result)) return fail(`overlay ${i}: result ${rule.result} is not one of ${RESULTS.join(', ')}`)
    if (rule.result === 'error' && (rule.errno === null || !(rule.errno in ERRNO)))
      return fail(`overlay ${i}: error needs a known errno, as in error:EINVAL`)
    return { ioctls, types, cell, source, ...(phase === undefined ? {} : { phase }), ...(linux === undefined ? {} : { linux }) }
  })
  return { name: data.name, base: base as Profile, overlays }
}

/** The profile that a column inherits from because this one does not define the VM type; null = it defines it. */
export function inherits(profile: ProfileSource, type: PolicyType): string | null {
  if (profile === 'upstream' || typeof profile !== 'string') return null
  return profileOf(profile, type) === profile ? null : 'upstream'
}

/** The table as lines, one per request, VM type and phase: what `cloister policy --json` prints. Errors as policyTable's. */
export function policyLines(profile: ProfileSource = 'upstream', linux: Linux = '7.3'): PolicyLine[] {
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
          source: rule.source === undefined ? entry.source : `${entry.source}; ${rule.source}`,
          scope: entry.scope,
        })
      })
    })
  }
  return lines
}
