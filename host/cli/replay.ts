/** `cloister replay LOG`: what this KVM answers to what a real VMM asked. */
import { POLICY_TYPES } from '../policy/index.ts'
import { replay as replayLog } from '../replay/replay.ts'
import type { ReplayedCall, ReplayReport } from '../replay/report.ts'
import { choice, type Command } from './arguments.ts'
import { STATUS, usage } from './errors.ts'
import { readInput } from './files.ts'
import { json, print } from './output.ts'
import { profileName } from './policy.ts'

const LINUXES = ['6.12', '7.3'] as const

export const replay: Command = {
  name: 'replay',
  summary: "Replays a real VMM's KVM calls (an strace log): what this KVM answers, the first difference, and why.",
  positionals: 'LOG',
  maxPositionals: 1,
  options: [
    { name: 'type', value: 'T', help: `replay its VMs as this type: ${POLICY_TYPES.join(', ')} (default: the log's own)` },
    { name: 'launch', help: "issue the type's own init and launch commands, which the log lacks" },
    { name: 'profile', value: 'NAME|FILE', help: 'policy profile, or a JSON file with overlays' },
    { name: 'linux', value: '6.12|7.3', help: 'whose KVM (default 7.3)' },
    { name: 'differences', help: 'leave out the calls that are answered alike' },
    { name: 'json', help: 'as JSON' },
  ],
  notes: `Make the log with: strace -f -e trace=ioctl,openat,mmap -o LOG VMM...
Guests are not executed: KVM_RUN is checked up to the entry. What strace does not print is assumed, and said so.
Status 0: every call is answered alike; 1: some are not.`,
  run: async (values) => {
    const path = values.positionals[0] ?? usage('replay wants a log file')
    const text = new TextDecoder().decode(readInput('LOG', path))
    if (values.has('launch') && !values.has('type')) usage('--launch wants --type T: the type whose commands are issued')
    if (values.has('differences') && values.has('json')) usage('--differences and --json exclude each other: JSON lists every call')
    const profile = values.text('profile')
    const report = await replayLog(text, {
      ...(values.has('type') ? { type: choice('type', values.text('type'), POLICY_TYPES, 'default') } : {}),
      ...(profile === undefined ? {} : { profile: profileName(profile) }),
      linux: choice('linux', values.text('linux'), LINUXES, '7.3'),
      launch: values.has('launch'),
    })
    if (values.has('json')) print(json(report))
    else show(report, values.has('differences'))
    return report.firstDifference === null ? STATUS.ok : STATUS.no
  },
}

const MARK: Readonly<Record<ReplayedCall['verdict'], string>> = {
  same: ' ',
  value: '~',
  differs: '!',
  unknown: '?',
  unimplemented: '-',
  injected: '+',
}

function why(call: ReplayedCall): string {
  if (call.reason === null) return ''
  return `${call.reason} [${call.source}${call.switch === null ? '' : `, switch ${call.switch}`}]`
}

function show(report: ReplayReport, onlyDifferences: boolean): void {
  for (const call of report.calls) {
    if (onlyDifferences && call.verdict === 'same') continue
    const answer = call.verdict === 'same' && call.logged === call.answer ? call.answer : `${call.logged} -> ${call.answer}`
    const times = call.count > 1 ? ` x${call.count}` : ''
    const words = [call.assumed === null ? '' : `assumed: ${call.assumed}`, why(call)].filter((w) => w !== '').join('; ')
    print(
      `${MARK[call.verdict]} ${String(call.line ?? '').padStart(6)}  ${call.fd.padEnd(6)}  ${call.ioctl}${times}  ${answer}${words === '' ? '' : `  (${words})`}\n`,
    )
  }
  const { summary } = report
  print(
    `\n${summary.same} alike, ${summary.value} with another value, ${summary.differs} answered differently, ${summary.unknown} not decided by the log, `,
  )
  print(`${summary.unimplemented} not implemented here${summary.injected > 0 ? `, ${summary.injected} added` : ''}\n`)
  const first = report.firstDifference === null ? null : report.calls[report.firstDifference]
  if (first)
    print(
      `first difference: line ${first.line}: ${first.ioctl} on a ${first.fd} fd answered ${first.logged}, here ${first.answer}: ${why(first)}\n`,
    )
  else print('no call is answered differently\n')
}
