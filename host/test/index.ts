/**
 * `cloister/test`: assertions for test suites of VMMs. A failure names the protection switch and the kernel function
 * that decide, so that it explains the rule and not only the number.
 */
import { ERRNO, REQUEST } from '../generated/kvm-abi.ts'
import type { Kvm, VmType } from '../kvm/kvm.ts'
import { CloisterError, KvmError, type Refusal } from '../errors.ts'
import { type Linux, type PolicyPhase, type PolicyType, policyTable, POLICY_TYPES } from '../policy/index.ts'

/** Name of an errno: `EINVAL`. */
export type ErrnoName = keyof typeof ERRNO

/** What an assertion throws: `expected` and `actual` as test runners show them. */
export class ExpectationError extends Error {
  readonly code = 'ERR_ASSERTION'
  /** Errno name or `success`. */
  readonly expected: unknown
  /** Errno name or `success`. */
  readonly actual: unknown
  constructor(message: string, expected: unknown, actual: unknown) {
    super(message)
    this.name = 'ExpectationError'
    this.expected = expected
    this.actual = actual
  }
}

const nameOf = (errno: number): string => Object.entries(ERRNO).find(([, n]) => n === -errno)?.[0] ?? String(errno)

/** Who decides about an ioctl: the switch and the kernel function of its row in the policy table. */
function decider(ioctl: string, linux: Linux): string {
  const row = policyTable('upstream', linux).get(ioctl)
  if (row === undefined) return ''
  return `; ${row.switch === null ? 'no protection switch' : `switch ${row.switch}`}, decided in ${row.source}`
}

function describe(refusal: Refusal): string {
  const by = refusal.switch === undefined ? '' : `, switch ${refusal.switch}`
  return `${refusal.ioctl}: ${refusal.code}: ${refusal.reason} (${refusal.source}${by})`
}

/**
 * Runs `call` and expects it to be refused with `errno`: either a negative number (raw ioctl) or a thrown KvmError
 * (typed wrapper). Gives back the refusal with its reason; anything else is an ExpectationError.
 *
 *     expectRefused(kvm, 'EINVAL', () => kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, regs), 'KVM_GET_REGS')
 */
export function expectRefused(kvm: Kvm, errno: ErrnoName, call: () => unknown, ioctl?: keyof typeof REQUEST): Refusal {
  let result: unknown
  try {
    result = call()
  } catch (error) {
    if (!(error instanceof KvmError)) throw error
    result = error.errno
  }
  const refusal = kvm.lastRefusal()
  if (typeof result === 'number' && result === -ERRNO[errno] && refusal !== null) return refusal
  const refused = typeof result === 'number' && result < 0
  const got = refused ? nameOf(result as number) : 'success'
  const name = ioctl ?? (refused ? refusal?.ioctl : undefined)
  const rule = name === undefined ? '' : decider(name, kvm.linux)
  const why = refused && refusal !== null ? ` (${describe(refusal)})` : ''
  throw new ExpectationError(`${name ?? 'the call'}: expected ${errno}, got ${got}${why}${rule}`, errno, got)
}

/** Expects `call` to be served and gives back its result; a refusal is an ExpectationError with its reason, switch and kernel function. */
export function expectServed<T>(kvm: Kvm, call: () => T): T {
  let result: T
  try {
    result = call()
  } catch (error) {
    if (!(error instanceof KvmError)) throw error
    throw new ExpectationError(`expected success: ${error.message}${decider(error.ioctl, kvm.linux)}`, 'success', error.code)
  }
  if (typeof result !== 'number' || result >= 0) return result
  const refusal = kvm.lastRefusal()
  const why = refusal === null ? nameOf(result) : `${describe(refusal)}${decider(refusal.ioctl, kvm.linux)}`
  throw new ExpectationError(`expected success: ${why}`, 'success', nameOf(result))
}

/**
 * What the policy table says an ioctl answers: `ok`, `ok-zeros`, …, or an errno name. Default: profile `upstream`, Linux 7.3.
 * CloisterError `ERR_ARGUMENT` for an ioctl, type or phase that is not in the table.
 */
export function expectedAnswer(ioctl: string, type: VmType, phase: PolicyPhase, options: { profile?: string; linux?: Linux } = {}): string {
  if (phase !== 'before' && phase !== 'after') throw new CloisterError('ERR_ARGUMENT', `no phase ${String(phase)}: before or after`)
  const row = policyTable(options.profile ?? 'upstream', options.linux ?? '7.3').get(ioctl)
  const rule = row?.rules[POLICY_TYPES.indexOf(type as PolicyType)]?.[phase === 'before' ? 0 : 1]
  if (rule === undefined) throw new CloisterError('ERR_ARGUMENT', `no row for ${ioctl} and VM type ${type}`)
  return rule.errno ?? rule.result
}
