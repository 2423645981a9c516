/** `cloister policy`: which ioctl does what to which VM type, before and after guest state is protected. */
import { CloisterError } from '../errors.ts'
import {
  parseProfile,
  POLICY_TYPES,
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
    { name: 'profile', value: 'NAME', help: `${PROFILES.join(', ')} (default upstream), or a JSON file with overlays` },
    { name: 'linux', value: '6.12|7.3', help: 'whose KVM (default 7.3)' },
    { name: 'type', value: 'T', help: `only this VM type: ${POLICY_TYPES.join(', ')}` },
    { name: 'phase', value: 'P', help: 'only before or after guest state is protected' },
    { name: 'diff', value: 'A B', help: 'lines that differ between two profiles or kernels (linux:6.12 linux:7.3); status 1 if any' },
    { name: 'explain', value: 'IOCTL', help: 'all that is known of one ioctl' },
    { name: 'json', help: 'as JSON' },
  ],
  run: (values) => {
    if (values.has('diff')) return diff(values)
    if (values.positionals.length > 0) usage(`unexpected argument '${values.positionals[0]}'`)
    return values.has('explain') ? explain(values) : list(values)
  },
}

function profileName(name: string): ProfileSource {
  if ((PROFILES as readonly string[]).includes(name)) return name
  if (/[./]/.test(name)) return profileFile(name)
  return usage(`--profile: unknown profile '${name}'${suggestion(name, PROFILES)}; one of ${PROFILES.join(', ')}`)
}

/** A profile of the user's own, as JSON. */
function profileFile(path: string): ProfileSource {
  try {
    return parseProfile(new TextDecoder().decode(readInput('profile', path)))
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
    const row = cells.get(line.ioctl) ?? new Map<PolicyType, string[]>()
    cells.set(line.ioctl, row)
    row.set(line.type, [...(row.get(line.type) ?? []), answer(line)])
  }
  const text = (both: string[] | undefined): string => [...new Set(both ?? [])].join(' > ')
  const rows = [['ioctl', ...types], ...[...cells].map(([ioctl, row]) => [ioctl, ...types.map((t) => text(row.get(t)))])]
  const widths = rows[0]?.map((_, i) => Math.min(40, Math.max(...rows.map((r) => r[i]?.length ?? 0)))) ?? []
  for (const row of rows) print(`${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ').trimEnd()}\n`)
  print("\nbefore > after guest state is protected; '?': holds for a correct call, --explain IOCTL says when not\n")
  return STATUS.ok
}

/** A side of --diff: a profile, or linux:VERSION. */
function side(spec: string, values: Values): PolicyLine[] {
  const kernel = /^linux:(.*)$/.exec(spec)?.[1]
  if (kernel !== undefined) return policyLines(profileName(values.text('profile') ?? 'upstream'), choice('diff', kernel, LINUXES, '7.3'))
  return policyLines(profileName(spec), choice('linux', values.text('linux'), LINUXES, '7.3'))
}

function diff(values: Values): number {
  const a = values.text('diff') ?? ''
  const b = values.positionals[0] ?? usage('--diff wants two: profiles, or linux:6.12 linux:7.3')
  const key = (line: PolicyLine) => `${line.ioctl} ${line.type} ${line.phase}`
  const left = new Map(filtered(side(a, values), values).map((line) => [key(line), line]))
  const differing: { ioctl: string; type: PolicyType; phase: PolicyPhase; a: PolicyLine | null; b: PolicyLine }[] = []
  for (const line of filtered(side(b, values), values)) {
    const other = left.get(key(line)) ?? null
    if (other === null || answer(other) !== answer(line) || other.detail !== line.detail) {
      differing.push({ ioctl: line.ioctl, type: line.type, phase: line.phase, a: other, b: line })
    }
  }
  if (values.has('json')) print(json(differing))
  else for (const d of differing) print(`${d.ioctl}  ${d.type}  ${d.phase}:  ${d.a === null ? 'absent' : answer(d.a)} -> ${answer(d.b)}  (${d.b.source})\n`)
  return differing.length > 0 ? STATUS.no : STATUS.ok
}

function explain(values: Values): number {
  const asked = values.text('explain') ?? ''
  const profile = profileName(values.text('profile') ?? 'upstream')
  const table = policyTable(profile, choice('linux', values.text('linux'), LINUXES, '7.3'))
  const upper = asked.toUpperCase()
  const entry = table.get(upper) ?? table.get(`KVM_${upper}`) ?? usage(`--explain: unknown ioctl '${asked}'${suggestion(upper, [...table.keys()])}`)
  const lines = selected(values).filter((line) => line.ioctl === entry.ioctl)
  if (values.has('json')) {
    print(json(lines))
    return STATUS.ok
  }
  print(`${entry.ioctl} (${entry.scope} fd${entry.request === null ? '' : `, request 0x${entry.request.toString(16)}`})\n`)
  print(`  source  ${entry.source}\n`)
  if (entry.switch !== null) print(`  switch  ${entry.switch}\n`)
  if (entry.notes !== '') print(`  notes   ${entry.notes}\n`)
  for (const line of lines) {
    const condition = line.conditional ? ' (for a correct call)' : ''
    print(`  ${line.type.padEnd(14)} ${line.phase.padEnd(6)}  ${answer(line).replace('?', '')}${condition}${line.detail === '' ? '' : `: ${line.detail}`}\n`)
  }
  return STATUS.ok
}
