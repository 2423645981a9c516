/**
 * How a condition of the policy table is written down: after these steps, this call gives this answer, and then this is
 * seen. The cases are in spec/kvm-conditions-*.ts. No behaviour here.
 *
 * Steps: `init` the type's init command (TDX: with the split irqchip before it); `td` KVM_TDX_INIT_VM alone; `secure-tsc`
 * KVM_SEV_INIT2 with that feature; `irqchip`, `split` interrupt controllers; `pit`; `vcpu` a vCPU; `cpuid` its table; `seal`
 * the launch to its end (state protected); `start`, `data`, `vmsa`, `measure`, `finish` the commands of a SEV launch one by
 * one; `td-vcpu` KVM_TDX_INIT_VCPU; `debug` KVM_SET_GUEST_DEBUG active; `slot`, `log-slot` a memory slot of 16 pages at 0
 * (slot 0); `gmem-slot` one with guest_memfd and the private attribute at 1 MiB (slot 3); `region` a registered region;
 * `run` KVM_RUN; `buf FIELDS` writes memory at `$buf`; `KVM_… FIELDS` a call that succeeds.
 *
 * Fields: `u32@4=2 u64@8=0x1000`; `<KVM_GET_X` in front starts from what that call gives. `$mem`, `$slot`, `$buf` are
 * addresses of 64, 20 and 8 KiB; `$wild` is none, `$edge` has 4 bytes; `$eventfd`, `$sev`, `$gmem`, `$vm` are file
 * descriptors, `$type` the number of the VM type, `$td` the address of a correct struct kvm_tdx_init_vm, `$cpuid` of the
 * supported CPUID table.
 *
 * What is seen: `SOURCE => CHECKS`. Source: nothing (the bytes of the call), `buf`, `mem`, `run` (the vCPU's kvm_run), or a
 * call (`@vm`, `@vcpu`, `@system`, `@new` = the descriptor that the case made). Checks: `ok`, an errno, `=5` (the returned
 * number), `u64@8=5`, `u64@8!=5`, `u64@8>=5`, `zero@8+16` (16 bytes at 8).
 */
import type { PolicyType } from './kvm-policy.ts'

/** One case: after `setup`, `call` answers `expect`, and then `sees` holds. The words are explained at the head of spec/kvm-condition.ts. */
export interface Condition {
  /** Row of the policy table. */
  readonly ioctl: string
  /** VM types for which it holds. */
  readonly types: readonly PolicyType[]
  /** Steps before the call. */
  readonly setup: readonly string[]
  /** Struct fields, or a scalar argument. */
  readonly call: string | number
  /** `ok`, an errno name, `=N` (the returned number) or the exit reason of a KVM_RUN. */
  readonly expect: string
  /** What is seen afterwards. */
  readonly sees: readonly string[]
  /** Words of the table's details that this case shows; `ROW: words` for another row than its own. */
  readonly shows: readonly string[]
  /** Asked on a host of the other vendor, of an ordinary VM. */
  readonly otherHost: boolean
}

export const AMD: readonly PolicyType[] = ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp']
export const ALL: readonly PolicyType[] = [...AMD, 'tdx']
export const SEV: readonly PolicyType[] = ['sev-legacy', 'sev-es-legacy', 'sev', 'sev-es']
/** What SEV-ES is, and what it is not, on AMD hosts. */
export const ES: readonly PolicyType[] = ['sev-es-legacy', 'sev-es']
export const NOT_ES: readonly PolicyType[] = ['default', 'sev-legacy', 'sev']
/** Types that need KVM_SEV_INIT2. */
export const NEW: readonly PolicyType[] = ['sev', 'sev-es', 'snp']
export const LEGACY: readonly PolicyType[] = ['sev-legacy', 'sev-es-legacy']
/** has_protected_state. */
export const PROTECTED: readonly PolicyType[] = ['sev-es', 'snp', 'tdx']
/** has_private_mem, and the others. */
export const PRIVATE: readonly PolicyType[] = ['snp', 'tdx']
export const SHARED: readonly PolicyType[] = ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es']

type Words = string | readonly string[]
const list = (words: Words): readonly string[] => (typeof words === 'string' ? (words === '' ? [] : [words]) : words)

export function row(
  ioctl: string,
  types: readonly PolicyType[],
  setup: readonly string[],
  call: string | number,
  expect: string,
  sees: Words = [],
  shows: Words = [],
): Condition {
  return { ioctl, types, setup, call, expect, sees: list(sees), shows: list(shows), otherHost: false }
}

export function onOtherHost(one: Condition): Condition {
  return { ...one, otherHost: true }
}

/** The same steps with the launch done. */
function sealed(setup: readonly string[]): readonly string[] {
  if (setup.includes('seal')) return setup
  const init = setup.includes('init') || setup.includes('td') || setup.includes('secure-tsc') ? [] : ['init']
  const at = setup.indexOf('vcpu')
  // Controllers and calls on the VM come before the vCPU, calls on the vCPU after the seal.
  const head = at < 0 ? setup : setup.slice(0, at)
  const tail = at < 0 ? [] : setup.slice(at + 1)
  return [...init, ...head, 'vcpu', 'seal', ...tail]
}

/** A case that holds before and after the guest's state is protected. */
export function both(...given: Parameters<typeof row>): readonly Condition[] {
  const one = row(...given)
  return [one, { ...one, setup: sealed(one.setup) }]
}

/** Whether the case is asked after the launch. */
export function phaseOf(one: Condition): 'before' | 'after' {
  return one.setup.includes('seal') ? 'after' : 'before'
}
