/** What a replay found: a line per call (alike ones in a row folded), with the verdict and this KVM's reason. */
import { ERRNO } from '../generated/kvm-abi.ts'
import { UNKNOWN_IOCTL } from '../kvm/dispatch.ts'
import type { Kvm } from '../kvm/kvm.ts'
import type { PolicyType } from '../policy/index.ts'
import type { LoggedCall } from './log.ts'
import { knownErrno } from './structs.ts'

/** `value`: both succeed with different numbers; `unknown`: the log does not hold what the answer depends on. */
export type Verdict = 'same' | 'value' | 'differs' | 'unknown' | 'unimplemented' | 'injected'

export interface ReplayedCall {
  /** Line of the log; null for a call that the replay added. */
  line: number | null
  fd: 'system' | 'vm' | 'vcpu' | 'device' | 'sev'
  ioctl: string
  /** What was logged: `0`, `-EINVAL`, `?`. */
  logged: string
  /** What this KVM answers. */
  answer: string
  verdict: Verdict
  /** What had to be assumed because the log does not show it. */
  assumed: string | null
  reason: string | null
  source: string | null
  switch: string | null
  /** So many calls in a row were alike. */
  count: number
}

export interface ReplayReport {
  schema: 1
  type: PolicyType | null
  host: 'amd' | 'intel'
  calls: ReplayedCall[]
  /** Index in `calls` of the first call that is answered differently. */
  firstDifference: number | null
  summary: Record<Verdict, number>
}

/** Requests whose number is the answer. */
const VALUES = new Set(['KVM_GET_API_VERSION', 'KVM_CHECK_EXTENSION', 'KVM_GET_VCPU_MMAP_SIZE', 'KVM_GET_TSC_KHZ'])
/** The kind of file descriptor as a line names it. */
export type FileKind = ReplayedCall['fd'] | 'other'

const shown = (kind: FileKind): ReplayedCall['fd'] => (kind === 'other' ? 'device' : kind)

/** The log's answer: `0`, `-EINVAL`, `?`. */
export const loggedText = (call: LoggedCall): string =>
  call.result === null
    ? '?'
    : call.errno !== null
      ? `-${call.errno}`
      : `${call.result}${call.note.startsWith('KVM_EXIT') ? ` ${call.note}` : ''}`

export class Findings {
  readonly #kvm: Kvm
  readonly calls: ReplayedCall[] = []

  constructor(kvm: Kvm) {
    this.#kvm = kvm
  }

  /** Compares this KVM's `result` with the log's. */
  compare(call: LoggedCall, kind: FileKind, name: string, result: number, assumed: string | null): void {
    const refusal = result < 0 ? this.#kvm.lastRefusal() : null
    let verdict: Verdict
    if (refusal !== null && (refusal.unimplemented || refusal.source === UNKNOWN_IOCTL)) verdict = 'unimplemented'
    else if (call.result === null) verdict = 'unknown'
    else if (call.errno !== null) {
      const same = result < 0 && knownErrno(call.errno) && result === -ERRNO[call.errno as keyof typeof ERRNO]
      // A refusal may lie in contents that the log does not show.
      verdict = same ? 'same' : assumed !== null ? 'unknown' : 'differs'
    } else if (result < 0) verdict = name === 'KVM_ENABLE_CAP' && assumed !== null ? 'unknown' : 'differs'
    else verdict = VALUES.has(name.split(' ')[0] as string) && BigInt(result) !== call.result ? 'value' : 'same'
    this.push(call, kind, name, loggedText(call), result, verdict, assumed)
  }

  /** A call that was not asked, and why. */
  note(call: LoggedCall, kind: FileKind, name: string, why: string): void {
    this.push(call, kind, name, loggedText(call), null, 'unknown', why)
  }

  push(
    call: LoggedCall | null,
    kind: FileKind,
    ioctl: string,
    logged: string,
    result: number | null,
    verdict: Verdict,
    assumed: string | null,
    words?: string,
  ): void {
    const fd = shown(kind)
    const refusal = result !== null && result < 0 ? this.#kvm.lastRefusal() : null
    const answer = words ?? (result === null ? 'not asked' : result < 0 ? `-${refusal?.code ?? result}` : String(result))
    const last = this.calls.at(-1)
    const reason = refusal?.reason ?? null
    if (
      call !== null &&
      last?.ioctl === ioctl &&
      last.fd === fd &&
      last.answer === answer &&
      last.verdict === verdict &&
      last.logged === logged &&
      last.reason === reason
    ) {
      last.count++
      return
    }
    this.calls.push({
      line: call?.line ?? null,
      fd,
      ioctl,
      logged,
      answer,
      verdict,
      assumed,
      reason,
      source: refusal?.source ?? null,
      switch: refusal?.switch ?? null,
      count: 1,
    })
  }
}
