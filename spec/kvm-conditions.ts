/**
 * The conditions of the policy table as data: after these steps, this call gives this answer. They say in a form that can
 * be run what the `detail` of spec/kvm-policy.ts says in words; the tests run each, `cloister policy --explain` prints them.
 * No behaviour here.
 *
 * Steps: `init` the type's init command; `irqchip`, `split` interrupt controllers; `pit`; `vcpu` a vCPU; `cpuid` its table;
 * `seal` the launch to its end (state protected); `debug` KVM_SET_GUEST_DEBUG active; `log-slot`, `slot` a memory slot of
 * 16 pages at 0 (slot 0); `region` a registered region.
 * Fields: `u32@4=2 u64@8=0x1000`; `$mem`, `$slot`, `$eventfd`, `$sev` stand for an address or a descriptor.
 */
import type { PolicyType } from './kvm-policy.ts'

export type Step = 'init' | 'irqchip' | 'split' | 'pit' | 'vcpu' | 'cpuid' | 'seal' | 'debug' | 'log-slot' | 'slot' | 'region'

export interface Condition {
  readonly ioctl: string
  readonly types: readonly PolicyType[]
  readonly setup: readonly Step[]
  /** Struct fields, or a scalar argument. */
  readonly call: string | number
  /** `ok`, or an errno name. */
  readonly expect: string
}

const AMD: readonly PolicyType[] = ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp']
const ALL: readonly PolicyType[] = [...AMD, 'tdx']
const SEV: readonly PolicyType[] = ['sev-legacy', 'sev-es-legacy', 'sev', 'sev-es']
const ES: readonly PolicyType[] = ['sev-es-legacy', 'sev-es']
const NEW: readonly PolicyType[] = ['sev', 'sev-es', 'snp']
const REGION = 'u64@16=0x10000 u64@24=$mem'

const row = (ioctl: string, types: readonly PolicyType[], setup: readonly Step[], call: string | number, expect: string): Condition => ({
  ioctl,
  types,
  setup,
  call,
  expect,
})

export const CONDITIONS: readonly Condition[] = [
  // Memory slots.
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], REGION, 'ok'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], `u32@4=1 ${REGION}`, 'ok'),
  row('KVM_SET_USER_MEMORY_REGION', ['default', 'sev-legacy', 'sev-es-legacy', 'sev'], [], `u32@4=2 ${REGION}`, 'ok'),
  row('KVM_SET_USER_MEMORY_REGION', ['sev-es', 'snp', 'tdx'], [], `u32@4=2 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ['sev-es-legacy'], ['init'], `u32@4=2 ${REGION}`, 'ok'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], `u32@4=4 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, ['slot'], `u32@0=1 u64@8=0x8000 ${REGION}`, 'EEXIST'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, ['slot'], 'u32@0=0', 'ok'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], 'u32@0=7', 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], 'u64@8=0x800 u64@16=0x10000 u64@24=$mem', 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], 'u64@16=0x10800 u64@24=$mem', 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], `u32@0=0x7fff ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], REGION, 'ok'),
  row('KVM_SET_USER_MEMORY_REGION2', ['sev-es', 'snp', 'tdx'], [], `u32@4=2 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=6 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=5 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=4 u32@40=999 ${REGION}`, 'EBADF'),
  row('KVM_GET_DIRTY_LOG', ALL, ['log-slot'], 'u64@8=$mem', 'ok'),
  row('KVM_GET_DIRTY_LOG', ALL, ['slot'], 'u64@8=$mem', 'ENOENT'),
  row('KVM_CLEAR_DIRTY_LOG', ALL, ['slot'], 'u32@4=64 u64@16=$mem', 'ENOENT'),
  // Private memory.
  row('KVM_SET_MEMORY_ATTRIBUTES', ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es'], [], 'u64@8=0x1000 u64@16=8', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ['default', 'sev-legacy', 'sev-es-legacy', 'sev', 'sev-es'], [], 'u64@8=0x1000', 'ok'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ['snp', 'tdx'], [], 'u64@8=0x1000 u64@16=8', 'ok'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@8=0x1000 u64@16=4', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@8=0x1000 u64@24=1', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@0=0x800 u64@8=0x1000', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@0=0', 'EINVAL'),
  row('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0x10000', 'ok'),
  row('KVM_CREATE_GUEST_MEMFD', ['default', 'sev', 'sev-es'], [], 'u64@0=0x10000 u64@8=3', 'ok'),
  row('KVM_CREATE_GUEST_MEMFD', ['snp', 'tdx'], [], 'u64@0=0x10000 u64@8=2', 'EINVAL'),
  row('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0', 'EINVAL'),
  row('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0x10800', 'EINVAL'),
  row('KVM_PRE_FAULT_MEMORY', ['default', 'sev', 'sev-es'], ['init', 'slot', 'vcpu'], 'u64@8=0x1000', 'ok'),
  row('KVM_PRE_FAULT_MEMORY', ['snp'], ['init', 'slot', 'vcpu'], 'u64@8=0x1000', 'EOPNOTSUPP'),
  row('KVM_PRE_FAULT_MEMORY', ['default', 'sev', 'sev-es'], ['init', 'vcpu'], 'u64@8=0x1000', 'ENOENT'),
  row('KVM_PRE_FAULT_MEMORY', ['default', 'sev', 'sev-es'], ['init', 'slot', 'vcpu'], 'u64@8=0x800', 'EINVAL'),
  // Interrupt controllers.
  row('KVM_CREATE_IRQCHIP', AMD, [], 0, 'ok'),
  row('KVM_CREATE_IRQCHIP', ALL, ['split'], 0, 'EEXIST'),
  row('KVM_CREATE_IRQCHIP', AMD, ['irqchip'], 0, 'EEXIST'),
  row('KVM_CREATE_IRQCHIP', AMD, ['init', 'vcpu'], 0, 'EINVAL'),
  row('KVM_CREATE_IRQCHIP', ['tdx'], [], 0, 'ENOTTY'),
  row('KVM_GET_IRQCHIP', AMD, ['irqchip'], '', 'ok'),
  row('KVM_GET_IRQCHIP', ALL, ['split'], '', 'ENXIO'),
  row('KVM_GET_IRQCHIP', ALL, [], '', 'ENXIO'),
  row('KVM_SET_IRQCHIP', AMD, ['irqchip'], '', 'ok'),
  row('KVM_SET_IRQCHIP', ALL, [], '', 'ENXIO'),
  row('KVM_CREATE_PIT2', AMD, ['irqchip'], '', 'ok'),
  row('KVM_CREATE_PIT2', AMD, ['irqchip', 'pit'], '', 'EEXIST'),
  row('KVM_CREATE_PIT2', ALL, [], '', 'ENOENT'),
  row('KVM_CREATE_PIT2', ALL, ['split'], '', 'ENOENT'),
  row('KVM_GET_PIT2', AMD, ['irqchip', 'pit'], '', 'ok'),
  row('KVM_GET_PIT2', ALL, [], '', 'ENXIO'),
  row('KVM_SET_PIT2', ALL, [], '', 'ENXIO'),
  row('KVM_IRQ_LINE', ALL, ['split'], '', 'ok'),
  row('KVM_IRQ_LINE', AMD, ['irqchip'], '', 'ok'),
  row('KVM_IRQ_LINE', ALL, [], '', 'ENXIO'),
  row('KVM_IRQ_LINE_STATUS', ALL, [], '', 'ENXIO'),
  row('KVM_SET_GSI_ROUTING', ALL, ['split'], '', 'ok'),
  row('KVM_SET_GSI_ROUTING', ALL, [], '', 'EINVAL'),
  row('KVM_SET_GSI_ROUTING', ALL, ['split'], 'u32@0=1 u32@12=1', 'EINVAL'),
  row('KVM_SIGNAL_MSI', ALL, [], 'u32@0=0xfee00000', 'EINVAL'),
  row('KVM_IRQFD', ALL, ['split'], 'u32@0=$eventfd u32@4=1', 'ok'),
  row('KVM_IRQFD', ALL, [], 'u32@0=$eventfd u32@4=1', 'EINVAL'),
  row('KVM_IRQFD', ALL, ['split'], 'u32@0=$eventfd u32@4=1 u32@8=2 u32@12=$eventfd', 'EINVAL'),
  row('KVM_IRQFD', ALL, ['split'], 'u32@0=999 u32@4=1', 'EBADF'),
  row('KVM_ENABLE_CAP', ALL, [], 'u32@0=121 u64@8=24', 'ok'),
  row('KVM_ENABLE_CAP', ALL, ['split'], 'u32@0=121 u64@8=24', 'EEXIST'),
  row('KVM_ENABLE_CAP', AMD, ['init', 'vcpu'], 'u32@0=121 u64@8=24', 'EEXIST'),
  row('KVM_ENABLE_CAP', ALL, [], 'u32@0=121 u64@8=0x10000', 'EINVAL'),
  row('KVM_ENABLE_CAP', ALL, [], 'u32@0=201 u64@8=0x1000', 'ok'),
  row('KVM_ENABLE_CAP', ALL, [], 'u32@0=201 u64@8=1', 'EINVAL'),
  row('KVM_ENABLE_CAP', ALL, [], 'u32@0=9999', 'EINVAL'),
  // The VM.
  row('KVM_SET_TSS_ADDR', AMD, [], 0xffffe000, 'EINVAL'),
  row('KVM_SET_TSS_ADDR', AMD, [], 0xfffbd000, 'ok'),
  row('KVM_SET_TSS_ADDR', ['tdx'], [], 0xfffbd000, 'ok'),
  row('KVM_SET_IDENTITY_MAP_ADDR', AMD, [], 'u64@0=0xfffbc000', 'ok'),
  row('KVM_SET_IDENTITY_MAP_ADDR', AMD, ['init', 'vcpu'], 'u64@0=0xfffbc000', 'EINVAL'),
  row('KVM_SET_BOOT_CPU_ID', ALL, [], 0, 'ok'),
  row('KVM_SET_BOOT_CPU_ID', AMD, ['init', 'vcpu'], 0, 'EBUSY'),
  row('KVM_SET_TSC_KHZ', AMD, ['init', 'vcpu'], 0, 'EINVAL'),
  row('KVM_CREATE_DEVICE', ALL, [], 'u32@0=99', 'ENODEV'),
  row('KVM_MEMORY_ENCRYPT_REG_REGION', ['default', 'sev', 'sev-es', 'snp'], [], 'u64@0=$mem u64@8=0x1000', 'ENOTTY'),
  row('KVM_MEMORY_ENCRYPT_REG_REGION', [...SEV, 'snp'], ['init'], 'u64@0=$mem u64@8=0x1000', 'ok'),
  row('KVM_MEMORY_ENCRYPT_UNREG_REGION', SEV, ['init'], 'u64@0=$mem u64@8=0x1000', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_UNREG_REGION', SEV, ['init', 'region'], 'u64@0=$mem u64@8=0x1000', 'ok'),
  // Launch order: E1, E2, B1.
  row('KVM_MEMORY_ENCRYPT_OP', NEW, [], 'u32@0=2 u64@8=$mem u32@20=$sev', 'ENOTTY'),
  row('KVM_MEMORY_ENCRYPT_OP', NEW, ['vcpu'], 'u32@0=22 u64@8=$mem u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', ['sev', 'sev-es'], ['init'], 'u32@0=22 u64@8=$mem u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', ['snp'], ['init'], 'u32@0=22 u64@8=$mem u32@20=$sev', 'EPERM'),
  row('KVM_MEMORY_ENCRYPT_OP', ['default'], [], 'u32@0=22 u64@8=$mem u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', NEW, [], 'u32@0=0 u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', ['sev-legacy', 'sev-es-legacy'], ['init'], 'u32@0=1 u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', SEV, ['init'], 'u32@0=3 u64@8=$slot u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', ['sev', 'sev-legacy'], ['init', 'vcpu'], 'u32@0=4 u32@20=$sev', 'ENOTTY'),
  row('KVM_MEMORY_ENCRYPT_OP', ES, ['init', 'vcpu', 'debug'], 'u32@0=4 u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', ES, ['init', 'vcpu', 'seal'], 'u32@0=4 u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', ES, ['init', 'vcpu'], 'u32@0=4 u32@20=$sev', 'EBADF'),
  row('KVM_MEMORY_ENCRYPT_OP', ['snp'], ['init'], 'u32@0=2 u64@8=$mem u32@20=$sev', 'EPERM'),
  row('KVM_MEMORY_ENCRYPT_OP', SEV, ['init'], 'u32@0=99 u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', SEV, ['init'], 'u32@0=10 u32@20=$sev', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP', SEV, ['init'], 'u32@0=100 u64@8=$mem u32@20=$sev', 'ENOTTY'),
  row('KVM_MEMORY_ENCRYPT_OP', SEV, ['init'], 'u32@0=101 u64@8=$mem u32@20=$sev', 'EINVAL'),
  // vCPUs.
  row('KVM_CREATE_VCPU', ['tdx'], ['split'], 0, 'EIO'),
  row('KVM_CREATE_VCPU', AMD, ['init', 'vcpu'], 0, 'EEXIST'),
  row('KVM_CREATE_VCPU', ALL, [], 0x10000, 'EINVAL'),
  row('KVM_CREATE_VCPU', NEW, [], 0, 'ok'),
  row('KVM_RUN', NEW, ['vcpu'], 0, 'EINVAL'),
  row('KVM_RUN', AMD, ['init', 'vcpu'], 1, 'EINVAL'),
  row('KVM_SET_GUEST_DEBUG', ES, ['init', 'vcpu', 'seal'], 'u32@0=1', 'EINVAL'),
  row('KVM_SET_GUEST_DEBUG', ES, ['init', 'vcpu'], 'u32@0=1', 'ok'),
  row('KVM_INTERRUPT', AMD, ['init', 'vcpu'], 'u32@0=0x30', 'ok'),
  row('KVM_INTERRUPT', AMD, ['init', 'vcpu'], 'u32@0=256', 'EINVAL'),
  row('KVM_INTERRUPT', AMD, ['init', 'irqchip', 'vcpu'], 'u32@0=0x30', 'ENXIO'),
  row('KVM_SMI', ['sev-es-legacy', 'sev-es', 'snp'], ['init', 'vcpu'], 0, 'ENOTTY'),
  row('KVM_SMI', ['default', 'sev-legacy', 'sev'], ['init', 'vcpu'], 0, 'ok'),
  row('KVM_SET_MP_STATE', AMD, ['init', 'vcpu'], 'u32@0=0', 'ok'),
  row('KVM_SET_MP_STATE', AMD, ['init', 'vcpu'], 'u32@0=3', 'EINVAL'),
  row('KVM_SET_MP_STATE', AMD, ['init', 'irqchip', 'vcpu'], 'u32@0=3', 'ok'),
  row('KVM_SET_MP_STATE', AMD, ['init', 'irqchip', 'vcpu'], 'u32@0=5', 'EINVAL'),
  row('KVM_GET_LAPIC', AMD, ['init', 'vcpu'], '', 'EINVAL'),
  row('KVM_GET_LAPIC', AMD, ['init', 'irqchip', 'vcpu'], '', 'ok'),
  row('KVM_SET_LAPIC', AMD, ['init', 'vcpu'], '', 'EINVAL'),
  row('KVM_X86_SETUP_MCE', AMD, ['init', 'vcpu'], 'u64@0=0', 'EINVAL'),
  row('KVM_X86_SETUP_MCE', AMD, ['init', 'vcpu'], 'u64@0=33', 'EINVAL'),
  row('KVM_X86_SETUP_MCE', AMD, ['init', 'vcpu'], 'u64@0=10', 'ok'),
  row('KVM_SET_VCPU_EVENTS', AMD, ['init', 'vcpu'], '', 'ok'),
  row('KVM_SET_VCPU_EVENTS', AMD, ['init', 'vcpu'], 'u32@20=0x40', 'EINVAL'),
  row('KVM_SET_VCPU_EVENTS', AMD, ['init', 'vcpu'], 'u8@0=1 u8@1=2', 'EINVAL'),
  row('KVM_SET_VCPU_EVENTS', AMD, ['init', 'vcpu'], 'u8@0=1 u8@1=32', 'EINVAL'),
  row('KVM_SET_VCPU_EVENTS', AMD, ['init', 'vcpu'], 'u32@20=0x10', 'EINVAL'),
  row('KVM_SET_XCRS', AMD, ['init', 'vcpu'], 'u32@0=17', 'EINVAL'),
  row('KVM_SET_XCRS', AMD, ['init', 'vcpu'], 'u32@0=1 u64@16=2', 'EINVAL'),
  row('KVM_SET_SIGNAL_MASK', AMD, ['init', 'vcpu'], 'u32@0=8', 'ok'),
  row('KVM_SET_SIGNAL_MASK', AMD, ['init', 'vcpu'], 'u32@0=4', 'EINVAL'),
  row('KVM_SET_VAPIC_ADDR', AMD, ['init', 'vcpu'], '', 'EINVAL'),
  row('KVM_KVMCLOCK_CTRL', AMD, ['init', 'vcpu'], 0, 'EINVAL'),
  row('KVM_ENABLE_CAP@vcpu', AMD, ['init', 'vcpu'], 'u32@0=9999', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_OP@vcpu', ['sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp'], ['init', 'vcpu'], 'u32@0=0', 'ENOTTY'),
  row('KVM_GET_NESTED_STATE', AMD, ['init', 'vcpu'], 'u32@4=128', 'EINVAL'),
  // Registers before and after the seal.
  ...(
    ['KVM_GET_REGS', 'KVM_GET_SREGS', 'KVM_GET_SREGS2', 'KVM_GET_XCRS', 'KVM_GET_DEBUGREGS', 'KVM_GET_FPU', 'KVM_GET_XSAVE'] as const
  ).flatMap((ioctl) => [
    row(ioctl, AMD, ['init', 'vcpu'], '', 'ok'),
    row(ioctl, ['sev-es-legacy', 'sev', 'sev-legacy'], ['init', 'vcpu', 'seal'], '', 'ok'),
    row(ioctl, ['sev-es'], ['init', 'vcpu', 'seal'], '', 'EINVAL'),
  ]),
]
