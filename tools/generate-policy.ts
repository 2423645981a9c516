/** Writes docs/policy.md: the policy table, what profiles and kernels change in it, and the mails behind it. */
import { POLICY, POLICY_TYPES, type PolicyRow, type PolicyType } from '../spec/kvm-policy.ts'
import { MAIL_NOTES, OVERLAYS, type Overlay, PROFILE_TYPES, PROFILES } from '../spec/kvm-profiles.ts'

/** `-EINVAL`, `ok`, `zeros`, …; a dagger where the answer depends on more. */
function short(cell: string): string {
  const head = (cell.split(';')[0] ?? '').trim()
  const conditional = head.endsWith('?')
  const [result = '', errno] = (conditional ? head.slice(0, -1) : head).split(':')
  return `${errno === undefined ? result.replace(/^ok-/, '') : `-${errno}`}${conditional ? '†' : ''}`
}

const detail = (cell: string): string => cell.slice(cell.indexOf(';') < 0 ? cell.length : cell.indexOf(';') + 1).trim()

function cells(row: PolicyRow): (readonly [string, string])[] {
  return POLICY_TYPES.map((_, i) => {
    const cell = (typeof row.cells === 'string' ? row.cells : row.cells[i]) ?? ''
    return typeof cell === 'string' ? ([cell, cell] as const) : cell
  })
}

const escape = (text: string): string => text.replaceAll('|', '\\|')
const both = ([before, after]: readonly [string, string]): string =>
  short(before) === short(after) ? short(before) : `${short(before)} → ${short(after)}`
const heading = (row: PolicyRow): string => `${row.ioctl}${row.ioctl.startsWith('KVM_') ? '' : ` (${row.scope})`}`

/** Conditions of one row, types with the same words together. */
function conditions(row: PolicyRow): string[] {
  const groups = new Map<string, string[]>()
  const add = (text: string, type: string): void => {
    if (text !== '') groups.set(text, [...(groups.get(text) ?? []), type])
  }
  cells(row).forEach(([before, after], i) => {
    const type = POLICY_TYPES[i] as PolicyType
    if (before === after) add(detail(before), type)
    else {
      add(detail(before), `${type} before`)
      add(detail(after), `${type} after`)
    }
  })
  return [...groups].map(([text, types]) => `  - ${types.length === POLICY_TYPES.length ? 'all types' : types.join(', ')}: ${escape(text)}`)
}

function overlayLine(o: Overlay): string {
  const phase = o.phase === undefined ? '' : ` ${o.phase}`
  return `- ${o.ioctls.map((name) => `\`${name}\``).join(', ')} for ${o.types.join(', ')}${phase}: **${short(o.cell)}** ${escape(detail(o.cell))} (${o.source})`
}

export function policyDocument(): string {
  const header = ['ioctl', 'request', 'fd', ...POLICY_TYPES]
  const request = (row: PolicyRow): string => (row.request === null ? '' : `\`0x${row.request.toString(16).padStart(8, '0')}\``)
  return [
    '# What KVM answers to each ioctl, for each VM type',
    '',
    'Generated from `spec/kvm-policy.ts` and `spec/kvm-profiles.ts` by `npm run generate`; CI checks that it is current.',
    'It is the table that the dispatcher reads, that `cloister policy` prints and that the tests walk.',
    '',
    '`a → b`: before → after guest state is protected. `†`: the answer to a correct call; the conditions stand below.',
    '`zeros` succeeds and fills with zeros, `ignored` succeeds without effect, `partial` is valid in part, `dropped` is accepted and lost.',
    '',
    `${POLICY.length} rows, profile \`upstream\`, Linux 7.3.`,
    '',
    `| ${header.join(' | ')} |`,
    `|${header.map(() => '---').join('|')}|`,
    ...POLICY.map((row) => `| ${[escape(heading(row)), request(row), row.scope, ...cells(row).map(both)].join(' | ')} |`),
    '',
    '## Profiles',
    '',
    ...PROFILES.filter((p) => p !== 'upstream').flatMap((p) => [
      `### ${p}`,
      '',
      `Defines ${PROFILE_TYPES[p].join(' and ')}; the other VM types inherit \`upstream\`. \`cloister policy --diff upstream ${p}\` shows it.`,
      '',
      ...OVERLAYS.filter((o) => o.profile === p).map(overlayLine),
      '',
    ]),
    '### Linux 6.12',
    '',
    ...OVERLAYS.filter((o) => o.linux === '6.12').map(overlayLine),
    '',
    '## The mails',
    '',
    '| mail | rule | ioctls | types | proposed | merged |',
    '|---|---|---|---|---|---|',
    ...MAIL_NOTES.map(
      (n) => `| ${n.mail} | ${n.rule} | ${n.ioctls.join(', ')} | ${n.types.join(', ')} | ${escape(n.proposed)} | ${escape(n.merged)} |`,
    ),
    '',
    '## Conditions and sources',
    '',
    ...POLICY.flatMap((row) => [
      `- **${heading(row)}**: ${row.switch === null ? 'no switch' : `switch \`${row.switch}\``}; ${escape(row.source)}${row.notes === undefined ? '' : `. ${escape(row.notes)}`}`,
      ...conditions(row),
    ]),
    '',
  ].join('\n')
}
