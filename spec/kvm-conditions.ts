/**
 * The conditions of the policy table as data: after these steps, this call gives this answer. They say in a form that can
 * be run what the `detail` of spec/kvm-policy.ts says in words; the tests run each and find the words that no case shows,
 * `cloister policy --explain` prints them. No behaviour here.
 */
import { LAUNCH_CONDITIONS } from './kvm-conditions-launch.ts'
import { MSR_CONDITIONS } from './kvm-conditions-msr.ts'
import { VCPU_CONDITIONS } from './kvm-conditions-vcpu.ts'
import { VM_CONDITIONS } from './kvm-conditions-vm.ts'
import type { Condition } from './kvm-condition.ts'
import type { PolicyType } from './kvm-policy.ts'

export { type Condition, phaseOf } from './kvm-condition.ts'

/** Every case of the policy table's details (upstream, Linux 7.3): each is a test, and `cloister policy --explain` prints them. */
export const CONDITIONS: readonly Condition[] = [...VM_CONDITIONS, ...LAUNCH_CONDITIONS, ...VCPU_CONDITIONS, ...MSR_CONDITIONS]

/** Words of the table that no call on the modelled hosts can show, and why; `held` names the test that shows them otherwise. */
export interface Unshown {
  readonly ioctl: string
  readonly types: readonly PolicyType[]
  readonly phase?: 'before' | 'after'
  readonly words: string
  readonly why: string
  readonly held?: string
}

const AMD: readonly PolicyType[] = ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp']
const ALL: readonly PolicyType[] = [...AMD, 'tdx']
const NO_RMP = 'a sealed SNP guest is not run: RMP and private memory are missing, and KVM_RUN says so by name'

export const UNSHOWN: readonly Unshown[] = [
  {
    ioctl: 'KVM_SET_MEMORY_ATTRIBUTES',
    types: ALL,
    words: 'when kernel lacks generic attributes',
    why: 'both modelled kernels are built with CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES',
  },
  {
    ioctl: 'KVM_SMI',
    types: ['default', 'sev-legacy', 'sev'],
    words: 'without CONFIG_KVM_SMM',
    why: 'both modelled kernels are built with CONFIG_KVM_SMM',
  },
  {
    ioctl: 'KVM_MEMORY_ENCRYPT_REG_REGION',
    types: ['sev', 'sev-es', 'snp'],
    phase: 'after',
    words: 'before INIT2',
    why: 'a launched guest has INIT2 behind it',
  },
  { ioctl: 'KVM_RUN', types: ['sev'], phase: 'after', words: 'before INIT2', why: 'a launched guest has INIT2 behind it' },
  { ioctl: 'KVM_MEMORY_ENCRYPT_OP', types: ['default'], words: 'SEV disabled', why: 'the modelled AMD host has SEV, SEV-ES and SEV-SNP' },
  { ioctl: 'KVM_RUN', types: ['snp'], phase: 'after', words: 'ok', why: NO_RMP },
  { ioctl: 'KVM_RUN', types: ['snp'], phase: 'after', words: 'KVM_EXIT_FAIL_ENTRY', why: NO_RMP },
  { ioctl: 'KVM_SET_CPUID2', types: ['snp'], phase: 'after', words: 'afterwards', why: NO_RMP },
  {
    ioctl: 'KVM_SET_REGS',
    types: ['sev-es-legacy'],
    phase: 'after',
    words: 'RAX RBX RCX RDX reach the guest',
    why: 'it takes a guest that waits for an exit to be completed',
    held: 'guest.test.ts: registers set while an exit is completed reach the GHCB',
  },
  { ioctl: 'KVM_SET_VAPIC_ADDR', types: ['tdx'], words: 'without in-kernel LAPIC', why: "a TD's vCPU exists only with the split irqchip" },
  {
    ioctl: 'KVM_GET_NESTED_STATE',
    types: AMD,
    words: 'ok',
    why: 'the modelled AMD host runs with kvm_amd.nested=0, so that both requests are -EINVAL',
  },
  { ioctl: 'KVM_GET_NESTED_STATE', types: AMD, words: 'buffer short', why: 'nested virtualisation is off' },
  { ioctl: 'KVM_SET_NESTED_STATE', types: AMD, words: 'ok', why: 'nested virtualisation is off' },
  {
    ioctl: 'KVM_KVMCLOCK_CTRL',
    types: ['tdx'],
    words: 'ok',
    why: 'the MSRs of kvmclock are not among those that KVM emulates for a TD, so its clock is never active',
  },
]
