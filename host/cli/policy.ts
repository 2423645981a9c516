/** `cloister policy`: which ioctl does what to which VM type, before and after guest state is protected. */
import { CloisterError } from '../errors.ts'
import {
  CONDITIONS,
  phaseOf,
  inherits,
  MAIL_NOTES,
  parseProfile,
  POLICY_TYPES,
  type PolicyEntry,
  type PolicyLine,
  type PolicyPhase,
  type PolicyType,
  PROFILES,
  type ProfileSource,
  policyLines,
  policyTable,
} from '../policy/index.ts'
import { choice, type Command, suggestion, type Values } from './arguments.ts'
import { STATUS, usage } from './errors.ts'
import { readInput } from './files.ts'
import { json, print } from './output.ts'

type Linux = '6.12' | '7.3'
const LINUXES = ['6.12', '7.3'] as const
const PHASES = ['before', 'after'] as const

export const policy: Command = {
  name: 'policy',
  summary: 'The policy table in force: what each KVM ioctl answers, per VM type and phase.',
  positionals: '',
  maxPositionals: 1,
  options: [
    { name: 'profile', value: 'NAME|FILE', help: `${PROFILES.join(', ')} (default upstream), or a JSON file with overlays` },
    { name: 'linux', value: '6.12|7.3', help: 'whose KVM (default 7.3)' },
    { name: 'type', value: 'T', help: `only this VM type: ${POLICY_TYPES.join(', ')}` },
    { name: 'phase', value: 'P', help: 'only before or after guest state is protected' },
    { name: 'diff', value: 'A B', help: 'lines that differ between two profiles or kernels (linux:6.12 linux:7.3); status 1 if any' },
    { name: 'explain', value: 'IOCTL', help: 'all that is known of one ioctl' },
    { name: 'json', help: 'as JSON' },
  ],
  run: (values) => {
    if (values.has('diff') && values.has('explain')) usage('--diff and --explain exclude each other')
    if (values.has('diff')) return diff(values)
    if (values.positionals.length > 0) usage(`unexpected argument '${values.positionals[0]}'`)
    return values.has('explain') ? explain(values) : list(values)
  },
}

/** `ok`, `returns 2`, an exit or an errno; then what is seen. */
function outcome({ expect, sees }: (typeof CONDITIONS)[number]): string {
  const said = expect.startsWith('=') ? `returns ${expect.slice(1)}` : /^E[A-Z0-9]+$/.test(expect) ? `-${expect}` : expect
  return sees.length === 0 ? said : `${said}; then ${sees.map((s) => (s.startsWith('=>') ? `its bytes ${s}` : s)).join(', ')}`
}

export function profileName(name: string, option = 'profile'): ProfileSource {
  if ((PROFILES as readonly string[]).includes(name)) return name
  if (/[./]/.test(name)) return profileFile(name)
  return usage(`--${option}: unknown profile '${name}'${suggestion(name, PROFILES)}; one of ${PROFILES.join(', ')}`)
}

/** A profile of the user's own, as JSON. */
function profileFile(path: string): ProfileSource {
  try {
    return parseProfile(new TextDecoder().decode(readInput('--profile', path)))
  } catch (error) {
    if (error instanceof CloisterError && error.code === 'profile') return usage(`--profile ${path}: ${error.message}`)
    throw error
  }
}

function selected(values: Values): PolicyLine[] {
  const profile = profileName(values.text('profile') ?? 'upstream')
  const linux: Linux = choice('linux', values.text('linux'), LINUXES, '7.3')
  return filtered(policyLines(profile, linux), values)
}

function filtered(lines: PolicyLine[], values: Values): PolicyLine[] {
  const type = values.has('type') ? choice('type', values.text('type'), POLICY_TYPES, 'default') : null
  const phase = values.has('phase') ? choice<PolicyPhase>('phase', values.text('phase'), PHASES, 'before') : null
  return lines.filter((line) => (type === null || line.type === type) && (phase === null || line.phase === phase))
}

const answer = (line: PolicyLine): string => `${line.errno === null ? line.result : `-${line.errno}`}${line.conditional ? '?' : ''}`

/** One row per ioctl, one column per type; `before > after` where they differ. */
function list(values: Values): number {
  const lines = selected(values)
  if (values.has('json')) {
    print(json(lines))
    return STATUS.ok
  }
  const types = POLICY_TYPES.filter((t) => lines.some((line) => line.type === t))
  const cells = new Map<string, Map<PolicyType, string[]>>()
  for (const line of lines) {
    const name = line.ioctl.startsWith('KVM_') ? line.ioctl : `${line.ioctl} (${line.scope})`
    const row = cells.get(name) ?? new Map<PolicyType, string[]>()
    cells.set(name, row)
    row.set(line.type, [...(row.get(line.type) ?? []), answer(line)])
  }
  const text = (both: string[] | undefined): string => [...new Set(both ?? [])].join(' > ')
  const rows = [['ioctl', ...types], ...[...cells].map(([ioctl, row]) => [ioctl, ...types.map((t) => text(row.get(t)))])]
  const widths = rows[0]?.map((_, i) => Math.min(40, Math.max(...rows.map((r) => r[i]?.length ?? 0)))) ?? []
  for (const row of rows)
    print(
      `${row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd()}\n`,
    )
  const profile = profileName(values.text('profile') ?? 'upstream')
  const inherited = types.filter((t) => inherits(profile, t) !== null)
  if (inherited.length > 0)
    print(`\n${String(profile)} does not define ${inherited.join(', ')}: these columns are inherited from upstream\n`)
  print("\nbefore > after guest state is protected; '?': holds for a correct call, --explain IOCTL says when not\n")
  return STATUS.ok
}

/** A side of --diff: a profile, or linux:VERSION. */
function side(spec: string, values: Values): PolicyLine[] {
  const kernel = /^linux:(.*)$/.exec(spec)?.[1]
  if (kernel !== undefined) return policyLines(profileName(values.text('profile') ?? 'upstream'), choice('diff', kernel, LINUXES, '7.3'))
  return policyLines(profileName(spec, 'diff'), choice('linux', values.text('linux'), LINUXES, '7.3'))
}

function diff(values: Values): number {
  const a = values.text('diff') ?? ''
  const b = values.positionals[0] ?? usage('--diff wants two: profiles, or linux:6.12 linux:7.3')
  const key = (line: PolicyLine) => `${line.ioctl} ${line.scope} ${line.type} ${line.phase}`
  const left = new Map(filtered(side(a, values), values).map((line) => [key(line), line]))
  const differing: { ioctl: string; type: PolicyType; phase: PolicyPhase; a: PolicyLine | null; b: PolicyLine }[] = []
  for (const line of filtered(side(b, values), values)) {
    const other = left.get(key(line)) ?? null
    // Two refusals with one errno are the same answer, whatever the reason.
    const same = other !== null && answer(other) === answer(line) && (other.detail === line.detail || line.result === 'error')
    if (!same) differing.push({ ioctl: line.ioctl, type: line.type, phase: line.phase, a: other, b: line })
  }
  if (values.has('json')) print(json(differing))
  else {
    for (const d of differing) {
      const words = d.a !== null && answer(d.a) === answer(d.b) ? `: ${d.b.detail}` : ''
      print(`${d.ioctl}  ${d.type}  ${d.phase}:  ${d.a === null ? 'absent' : answer(d.a)} -> ${answer(d.b)}${words}  (${d.b.source})\n`)
    }
  }
  return differing.length > 0 ? STATUS.no : STATUS.ok
}

/** Rows whose name is `asked`, with or without KVM_; `KVM_X` also means its `@vcpu` and device-attribute rows. */
function matching(asked: string, table: ReadonlyMap<string, PolicyEntry>): PolicyEntry[] {
  const upper = asked.toUpperCase()
  const names = new Set([upper, `KVM_${upper}`])
  const exact = [...table.values()].filter((entry) => names.has(entry.ioctl.toUpperCase()))
  const found =
    exact.length > 0 && upper.includes('@')
      ? exact
      : [...table.values()].filter((e) => names.has(e.ioctl.toUpperCase().split(/[@ ]/)[0] ?? ''))
  return found.length > 0 ? found : usage(`--explain: unknown ioctl '${asked}'${suggestion(upper, [...table.keys()])}`)
}

/** What a switch is and who sets it (facts of the five switches). */
const SWITCHES: Readonly<Record<string, string>> = {
  has_protected_state: 'kvm->arch.has_protected_state: set by KVM_CREATE_VM for types SEV_ES, SNP and TDX; never for legacy SEV-ES',
  guest_state_protected:
    'vcpu->arch.guest_state_protected: set by LAUNCH_UPDATE_VMSA (SEV-ES), SNP_LAUNCH_FINISH (SNP), KVM_CREATE_VCPU (TDX); -EINVAL only together with has_protected_state',
  fpstate_is_confidential: 'fpstate_is_confidential: set by LAUNCH_UPDATE_VMSA (SEV-ES) and KVM_CREATE_VCPU (TDX); not on the SNP path',
  has_private_mem: 'kvm->arch.has_private_mem: set by KVM_CREATE_VM for types SNP, TDX and SW_PROTECTED',
  pre_fault_allowed: 'kvm->arch.pre_fault_allowed: true from creation, for SNP after LAUNCH_FINISH, for TDX after FINALIZE_VM',
}

function explain(values: Values): number {
  const profile = profileName(values.text('profile') ?? 'upstream')
  const entries = matching(values.text('explain') ?? '', policyTable(profile, choice('linux', values.text('linux'), LINUXES, '7.3')))
  const all = selected(values)
  const type = values.text('type')
  const notes = (ioctl: string) =>
    MAIL_NOTES.filter((n) => n.ioctls.includes(ioctl) && (type === undefined || n.types.includes(type as PolicyType)))
  if (values.has('json')) {
    print(
      json(
        entries.flatMap((entry) =>
          all
            .filter((line) => line.ioctl === entry.ioctl)
            .map((line) => ({ ...line, mails: notes(entry.ioctl).filter((n) => n.types.includes(line.type)) })),
        ),
      ),
    )
    return STATUS.ok
  }
  for (const [i, entry] of entries.entries()) {
    if (i > 0) print('\n')
    print(`${entry.ioctl} (${entry.scope} fd${entry.request === null ? '' : `, request 0x${entry.request.toString(16)}`})\n`)
    print(`  source  ${entry.source}\n`)
    print(`  switch  ${entry.switch === null ? 'none: no protection switch decides' : (SWITCHES[entry.switch] ?? entry.switch)}\n`)
    if (entry.notes !== '') print(`  notes   ${entry.notes}\n`)
    for (const line of all.filter((l) => l.ioctl === entry.ioctl)) {
      const condition = line.conditional ? ' (for a correct call)' : ''
      const own = line.source === entry.source ? '' : `  [${line.source.slice(entry.source.length + 2)}]`
      const inherited = inherits(profile, line.type)
      const from = inherited === null ? '' : `  [inherits ${inherited}]`
      const words = line.detail === '' ? '' : `: ${line.detail}`
      print(`  ${line.type.padEnd(14)} ${line.phase.padEnd(6)}  ${answer(line).replace('?', '')}${condition}${words}${own}${from}\n`)
    }
    const phase = values.text('phase')
    const conditions = CONDITIONS.filter(
      (one) =>
        one.ioctl === entry.ioctl &&
        (type === undefined || one.types.includes(type as PolicyType)) &&
        (phase === undefined || phaseOf(one) === phase),
    )
    if (conditions.length > 0) print('  conditions (upstream, Linux 7.3), each a test:\n')
    for (const c of conditions) {
      const after = c.setup.length === 0 ? 'after creation' : `after ${c.setup.join(', ')}`
      const call = c.call === '' ? 'zeros' : typeof c.call === 'number' ? `argument 0x${c.call.toString(16)}` : c.call
      const on = c.otherHost ? 'on a host of the other vendor, ' : ''
      print(`  condition  ${on}${after}: ${call} -> ${outcome(c)}${type === undefined ? ` (${c.types.join(', ')})` : ''}\n`)
    }
    for (const note of notes(entry.ioctl)) {
      print(
        `  mail ${note.mail}, rule ${note.rule} (${note.types.join(', ')})\n    proposed: ${note.proposed}\n    merged:   ${note.merged}\n`,
      )
    }
  }
  return STATUS.ok
}
