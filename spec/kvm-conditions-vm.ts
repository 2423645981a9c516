/**
 * Conditions of the system's and the VM's requests: memory, interrupt controllers, capabilities (Linux 7.3 virt/kvm/kvm_main.c,
 * guest_memfd.c, eventfd.c; arch/x86/kvm/x86.c, irq.c). The words are explained in spec/kvm-condition.ts.
 */
import { ALL, AMD, both, type Condition, LEGACY, NEW, onOtherHost, PRIVATE, PROTECTED, row, SEV, SHARED } from './kvm-condition.ts'

const REGION = 'u64@16=0x10000 u64@24=$mem'
const READ_ONLY_OK = ['default', 'sev-legacy', 'sev-es-legacy', 'sev'] as const
const SAME_PLACE = 'KVM_SET_USER_MEMORY_REGION u32@0=9 u64@16=0x1000 u64@24=$mem => EEXIST'
const SEV_INIT = 'KVM_MEMORY_ENCRYPT_OP u32@0=0 u32@20=$sev => EINVAL'
const ES_INIT = 'KVM_MEMORY_ENCRYPT_OP u32@0=1 u32@20=$sev => EINVAL'
const INIT2 = 'KVM_MEMORY_ENCRYPT_OP u32@0=22 u64@8=$buf u32@20=$sev => EINVAL'

/** KVM_CHECK_EXTENSION on the VM (facts of arch/x86/kvm/x86.c kvm_vm_ioctl_check_extension): capability, answer, types. */
const CAPS: readonly (readonly [number, string, readonly string[], Parameters<typeof row>[1]])[] = [
  [235, '=31', [], AMD],
  [235, '=35', [], ['tdx']],
  [117, '=1', ['init'], ['default', 'sev-legacy', 'sev']],
  [117, '=0', ['init'], ['sev-es-legacy', 'sev-es', 'snp', 'tdx']],
  [81, '=1', ['init'], READ_ONLY_OK],
  [81, '=0', ['init'], PROTECTED],
  [74, '=7', ['init'], READ_ONLY_OK],
  [74, '=0', ['init'], PROTECTED],
  [233, '=0', ['init'], SHARED],
  [233, '=8', ['init'], PRIVATE],
  [234, '=1', ['init'], ALL],
  [244, '=3', ['init'], SHARED],
  [244, '=1', ['init'], PRIVATE],
  [118, '=2', ['init'], SHARED],
  [118, '=1', ['init'], PRIVATE],
  [66, '=1024', ['init'], AMD],
  [66, '=4', ['init'], ['tdx']],
  [236, '=1', ['init'], ALL],
  [201, '=4096', ['init'], ALL],
  ...[232, 121, 0, 82, 136, 23, 14, 70].map((cap) => [cap, '=1', ['init'], ALL] as const),
]

const CREATION: readonly Condition[] = [
  row('KVM_CREATE_VM', ALL, [], '$type', 'ok', 'KVM_CHECK_EXTENSION@new 235 => ok'),
  row('KVM_CREATE_VM', LEGACY, [], 0, 'ok', 'KVM_CHECK_EXTENSION@new 74 => =7', 'create as type 0'),
  row('KVM_CREATE_VM', ['default'], [], 32, 'EINVAL'),
  onOtherHost(row('KVM_CREATE_VM', [...NEW, 'tdx'], [], '$type', 'EINVAL', 'KVM_CHECK_EXTENSION@system 235 => ok')),
  ...CAPS.flatMap(([cap, expect, setup, types]) => both('KVM_CHECK_EXTENSION', types, setup, cap, expect, [], 'value depends on VM type')),
  // Group 0: XCOMP_GUEST_SUPP; group 1: SEV features, SNP policy bits, request for certificates.
  ...(['KVM_HAS_DEVICE_ATTR', 'KVM_GET_DEVICE_ATTR'] as const).flatMap((name) => {
    const seen = name === 'KVM_GET_DEVICE_ATTR'
    const group0 = 'ok for group 0 attr 0'
    return [
      row(name, ALL, [], 'u64@16=$buf', 'ok', seen ? 'buf => u64@0=0x207' : [], group0),
      row(name, AMD, [], 'u32@4=1 u64@16=$buf', 'ok', seen ? 'buf => u64@0!=0' : []),
      row(name, AMD, [], 'u32@4=1 u64@8=1 u64@16=$buf', 'ok', seen ? 'buf => u64@0!=0' : []),
      row(name, AMD, [], 'u32@4=1 u64@8=2 u64@16=$buf', 'ok', seen ? 'buf => u64@0=1' : []),
      row(name, AMD, [], 'u32@4=1 u64@8=3 u64@16=$buf', 'ENXIO'),
      row(name, ['tdx'], [], 'u32@4=1 u64@16=$buf', 'ENXIO'),
      row(name, ALL, [], 'u32@4=2 u64@16=$buf', 'ENXIO'),
    ]
  }),
  row('KVM_GET_DEVICE_ATTR', ALL, [], 'u64@16=$wild', 'EFAULT'),
  // vCPUs: E1, B1.
  row('KVM_CREATE_VCPU', ['default', ...LEGACY], ['init'], 0, 'ok', 'KVM_GET_MP_STATE@new => u32@0=0'),
  row('KVM_CREATE_VCPU', ['sev-legacy'], [], 0, 'ok', SEV_INIT, 'must come after KVM_SEV_INIT'),
  row('KVM_CREATE_VCPU', ['sev-es-legacy'], [], 0, 'ok', ES_INIT, 'must come after KVM_SEV_ES_INIT'),
  row('KVM_CREATE_VCPU', ['sev-legacy'], ['init', 'vcpu', 'seal'], 1, 'ok', SEV_INIT, 'must come after KVM_SEV_INIT'),
  row('KVM_CREATE_VCPU', ['sev-es-legacy'], ['init', 'vcpu', 'seal'], 1, 'ok', ES_INIT, 'must come after KVM_SEV_ES_INIT'),
  row('KVM_CREATE_VCPU', NEW, [], 0, 'ok', INIT2, 'ok even before INIT2'),
  row('KVM_CREATE_VCPU', ['sev'], ['init', 'vcpu', 'seal'], 1, 'ok', INIT2, 'ok even before INIT2'),
  row('KVM_CREATE_VCPU', ['sev-es'], ['init', 'vcpu', 'seal'], 1, 'ok', 'KVM_GET_REGS@new => ok', 'new vCPU starts unprotected'),
  row('KVM_CREATE_VCPU', ['snp'], ['init', 'vcpu', 'seal'], 1, 'ok', 'KVM_GET_REGS@new => ok'),
  row('KVM_CREATE_VCPU', ['tdx'], ['init'], 0, 'ok', 'KVM_GET_REGS@new => EINVAL'),
  row('KVM_CREATE_VCPU', ['tdx'], ['split'], 0, 'EIO'),
  row('KVM_CREATE_VCPU', ['tdx'], ['td'], 0, 'EINVAL'),
  row('KVM_CREATE_VCPU', ['tdx'], ['init', 'vcpu', 'seal'], 1, 'EIO', [], 'TD state is RUNNABLE'),
  row('KVM_CREATE_VCPU', AMD, ['init', 'vcpu'], 0, 'EEXIST'),
  ...both('KVM_CREATE_VCPU', ALL, [], 0x10000, 'EINVAL'),
]

const MEMORY: readonly Condition[] = [
  ...both('KVM_SET_USER_MEMORY_REGION', ALL, [], REGION, 'ok', SAME_PLACE),
  ...both('KVM_SET_USER_MEMORY_REGION', ALL, [], `u32@4=1 ${REGION}`, 'ok', 'KVM_GET_DIRTY_LOG u64@8=$buf => ok'),
  ...both('KVM_SET_USER_MEMORY_REGION', READ_ONLY_OK, [], `u32@4=2 ${REGION}`, 'ok', SAME_PLACE),
  ...both('KVM_SET_USER_MEMORY_REGION', PROTECTED, [], `u32@4=2 ${REGION}`, 'EINVAL', 'KVM_SET_USER_MEMORY_REGION u32@0=0 => EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], `u32@4=4 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, ['slot'], `u32@0=1 u64@8=0x8000 ${REGION}`, 'EEXIST'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, ['slot'], 'u32@0=0', 'ok', `KVM_SET_USER_MEMORY_REGION u32@0=9 ${REGION} => ok`),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], 'u32@0=7', 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], 'u64@8=0x800 u64@16=0x10000 u64@24=$mem', 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], 'u64@16=0x10800 u64@24=$mem', 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION', ALL, [], `u32@0=0x7fff ${REGION}`, 'EINVAL'),
  ...both('KVM_SET_USER_MEMORY_REGION2', ALL, [], REGION, 'ok', SAME_PLACE),
  ...both('KVM_SET_USER_MEMORY_REGION2', READ_ONLY_OK, [], `u32@4=3 ${REGION}`, 'ok', SAME_PLACE, 'flags LOG_DIRTY|READONLY'),
  ...both('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=4 ${REGION} u32@40=$gmem`, 'ok', SAME_PLACE),
  ...both('KVM_SET_USER_MEMORY_REGION2', PROTECTED, [], `u32@4=2 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=6 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=5 ${REGION}`, 'EINVAL'),
  row('KVM_SET_USER_MEMORY_REGION2', ALL, [], `u32@4=4 u32@40=999 ${REGION}`, 'EBADF'),
  ...both('KVM_SET_USER_MEMORY_REGION2', PRIVATE, [], `u32@0=0x10000 ${REGION}`, 'EINVAL', [], 'as_id 1'),
  ...both('KVM_SET_USER_MEMORY_REGION2', SHARED, [], `u32@0=0x10000 ${REGION}`, 'ok', SAME_PLACE.replace('u32@0=9', 'u32@0=0x10009')),
  // Private memory without a guest_memfd behind it is no memory.
  ...(['before', 'after'] as const).flatMap((phase) =>
    PRIVATE.map((type) => {
      const steps = ['init', 'slot', 'vcpu', 'KVM_SET_MEMORY_ATTRIBUTES u64@8=0x1000 u64@16=8']
      const words = 'KVM_SET_USER_MEMORY_REGION2: GUEST_MEMFD needed for private memory'
      if (phase === 'after')
        return row('KVM_PRE_FAULT_MEMORY', [type], ['init', 'slot', 'vcpu', 'seal', ...steps.slice(3)], 'u64@8=0x1000', 'EFAULT', [], words)
      return type === 'snp'
        ? row(
            'KVM_MEMORY_ENCRYPT_OP',
            [type],
            [...steps, 'start', 'buf u64@8=$mem u64@16=0x1000 u8@24=1'],
            'u32@0=101 u64@8=$buf u32@20=$sev',
            'EINVAL',
            [],
            words,
          )
        : row(
            'KVM_MEMORY_ENCRYPT_OP@vcpu',
            [type],
            [...steps, 'cpuid', 'td-vcpu', 'buf u64@0=$mem u64@16=1'],
            'u32@0=3 u64@8=$buf',
            'EINVAL',
            [],
            words,
          )
    }),
  ),
  ...both('KVM_GET_DIRTY_LOG', ALL, ['log-slot'], 'u64@8=$buf', 'ok', 'buf => u64@0=0'),
  // KVM_DIRTY_LOG_INITIALLY_SET: every page of a new slot is dirty until it is cleared.
  ...both('KVM_GET_DIRTY_LOG', ALL, ['KVM_ENABLE_CAP u32@0=168 u64@8=3', 'log-slot'], 'u64@8=$buf', 'ok', 'buf => u64@0=0xffff'),
  ...both('KVM_GET_DIRTY_LOG', ALL, ['slot'], 'u64@8=$buf', 'ENOENT'),
  ...both('KVM_GET_DIRTY_LOG', ALL, [], 'u32@0=5 u64@8=$buf', 'ENOENT'),
  row('KVM_GET_DIRTY_LOG', ALL, ['log-slot'], 'u64@8=$wild', 'EFAULT'),
  ...both('KVM_CLEAR_DIRTY_LOG', ALL, ['KVM_ENABLE_CAP u32@0=168 u64@8=3', 'log-slot', 'buf u64@0=0x0ff0'], 'u32@4=16 u64@16=$buf', 'ok', [
    'KVM_GET_DIRTY_LOG u64@8=$buf => ok',
    'buf => u64@0=0xf00f',
  ]),
  ...both('KVM_CLEAR_DIRTY_LOG', ALL, ['slot'], 'u32@4=64 u64@16=$buf', 'ENOENT'),
  row('KVM_CLEAR_DIRTY_LOG', ALL, ['log-slot'], 'u32@4=8 u64@16=$buf', 'EINVAL'),
  row('KVM_CLEAR_DIRTY_LOG', ALL, ['log-slot'], 'u32@4=16 u64@8=1 u64@16=$buf', 'EINVAL'),
  row('KVM_CLEAR_DIRTY_LOG', ALL, ['log-slot'], 'u32@4=17 u64@16=$buf', 'EINVAL'),
  row('KVM_CLEAR_DIRTY_LOG', ALL, ['log-slot'], 'u32@4=16 u64@16=$wild', 'EFAULT'),
  // Attributes and guest_memfd.
  ...both('KVM_SET_MEMORY_ATTRIBUTES', SHARED, [], 'u64@8=0x1000 u64@16=8', 'EINVAL'),
  ...both('KVM_SET_MEMORY_ATTRIBUTES', SHARED, [], 'u64@8=0x1000', 'ok', [], 'ok for 0'),
  row('KVM_SET_MEMORY_ATTRIBUTES', PRIVATE, [], 'u64@8=0x1000 u64@16=8', 'ok'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@8=0x1000 u64@16=4', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@8=0x1000 u64@24=1', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@0=0x800 u64@8=0x1000', 'EINVAL'),
  row('KVM_SET_MEMORY_ATTRIBUTES', ALL, [], 'u64@0=0', 'EINVAL'),
  ...both('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0x10000', 'ok', `KVM_SET_USER_MEMORY_REGION2 u32@4=4 ${REGION} u32@40=$new => ok`),
  ...both('KVM_CREATE_GUEST_MEMFD', SHARED, [], 'u64@0=0x10000 u64@8=3', 'ok', [], 'flags MMAP|INIT_SHARED allowed'),
  ...both('KVM_CREATE_GUEST_MEMFD', PRIVATE, [], 'u64@0=0x10000 u64@8=2', 'EINVAL'),
  row('KVM_CREATE_GUEST_MEMFD', PRIVATE, [], 'u64@0=0x10000 u64@8=1', 'ok'),
  row('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0', 'EINVAL'),
  row('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0x10800', 'EINVAL'),
  row('KVM_CREATE_GUEST_MEMFD', ALL, [], 'u64@0=0x10000 u64@8=4', 'EINVAL'),
]

const IRQCHIP_ROUTE = 'u32@0=1 u32@8=3 u32@12=1 u32@24=2 u32@28=3'
const MSI_ROUTE = 'u32@0=1 u32@8=40 u32@12=2 u32@24=0xfee00000 u32@32=0x31'
/** The IOAPIC's pin state: struct kvm_ioapic_state.irr. */
const IOAPIC_IRR = 'KVM_GET_IRQCHIP u32@0=2 =>'

const INTERRUPTS: readonly Condition[] = [
  row('KVM_CREATE_IRQCHIP', AMD, [], 0, 'ok', 'KVM_GET_IRQCHIP u32@0=2 => ok'),
  row('KVM_CREATE_IRQCHIP', AMD, ['init', 'seal'], 0, 'ok', 'KVM_GET_IRQCHIP u32@0=2 => ok'),
  ...both('KVM_CREATE_IRQCHIP', AMD, ['split'], 0, 'EEXIST', 'KVM_GET_IRQCHIP => ENXIO'),
  row('KVM_CREATE_IRQCHIP', ['tdx'], ['split'], 0, 'EEXIST', 'KVM_GET_IRQCHIP => ENXIO'),
  row('KVM_CREATE_IRQCHIP', ['tdx'], ['init', 'vcpu', 'seal'], 0, 'EEXIST'),
  ...both('KVM_CREATE_IRQCHIP', AMD, ['irqchip'], 0, 'EEXIST'),
  ...both('KVM_CREATE_IRQCHIP', AMD, ['init', 'vcpu'], 0, 'EINVAL'),
  row('KVM_CREATE_IRQCHIP', ['tdx'], [], 0, 'ENOTTY'),
  row('KVM_CREATE_IRQCHIP', ['tdx'], ['td', 'seal'], 0, 'ENOTTY'),
  ...both('KVM_GET_IRQCHIP', AMD, ['irqchip'], 'u32@0=2', 'ok', '=> u64@8=0xfec00000'),
  ...both('KVM_GET_IRQCHIP', AMD, ['split'], '', 'ENXIO'),
  ...both('KVM_GET_IRQCHIP', AMD, [], '', 'ENXIO'),
  row('KVM_GET_IRQCHIP', ['tdx'], ['split'], '', 'ENXIO'),
  row('KVM_GET_IRQCHIP', AMD, ['irqchip'], 'u32@0=3', 'EINVAL'),
  ...both('KVM_SET_IRQCHIP', AMD, ['irqchip'], '<KVM_GET_IRQCHIP u32@0=2 u64@40=0x10031', 'ok', `${IOAPIC_IRR} u64@40=0x10031`),
  ...both('KVM_SET_IRQCHIP', AMD, [], '', 'ENXIO'),
  row('KVM_SET_IRQCHIP', ['tdx'], [], '', 'ENXIO'),
  row('KVM_SET_IRQCHIP', AMD, ['irqchip'], 'u32@0=3', 'EINVAL'),
  ...both('KVM_CREATE_PIT2', AMD, ['irqchip'], '', 'ok', 'KVM_GET_PIT2 => ok'),
  ...both('KVM_CREATE_PIT2', AMD, ['irqchip', 'pit'], '', 'EEXIST'),
  ...both('KVM_CREATE_PIT2', AMD, [], '', 'ENOENT'),
  ...both('KVM_CREATE_PIT2', AMD, ['split'], '', 'ENOENT'),
  row('KVM_CREATE_PIT2', ['tdx'], ['split'], '', 'ENOENT'),
  ...both('KVM_GET_PIT2', AMD, ['irqchip', 'pit'], '', 'ok', '=> u32@0=0x10000'),
  ...both('KVM_GET_PIT2', AMD, [], '', 'ENXIO'),
  row('KVM_GET_PIT2', ['tdx'], [], '', 'ENXIO'),
  ...both('KVM_SET_PIT2', AMD, ['irqchip', 'pit'], '<KVM_GET_PIT2 u32@24=0x1234 u8@38=3', 'ok', 'KVM_GET_PIT2 => u32@24=0x1234'),
  ...both('KVM_SET_PIT2', AMD, [], '', 'ENXIO'),
  row('KVM_SET_PIT2', ['tdx'], [], '', 'ENXIO'),
  // A level on a pin is the IOAPIC's to keep; with the split irqchip only pins with an MSI route do anything.
  ...both('KVM_IRQ_LINE', AMD, ['irqchip'], 'u32@0=9 u32@4=1', 'ok', `${IOAPIC_IRR} u32@24=0x200`),
  ...both('KVM_IRQ_LINE', AMD, ['split'], 'u32@0=9 u32@4=1', 'ok', 'KVM_IRQ_LINE_STATUS u32@0=9 u32@4=1 => u32@0=0xffffffff'),
  row('KVM_IRQ_LINE', ['tdx'], ['split'], 'u32@0=9 u32@4=1', 'ok', 'KVM_IRQ_LINE_STATUS u32@0=9 u32@4=1 => u32@0=0xffffffff'),
  row('KVM_IRQ_LINE', ['tdx'], ['init', 'vcpu', 'seal'], 'u32@0=9 u32@4=1', 'ok', 'KVM_IRQ_LINE_STATUS u32@0=9 => u32@0=0xffffffff'),
  ...both('KVM_IRQ_LINE', AMD, [], '', 'ENXIO'),
  row('KVM_IRQ_LINE', ['tdx'], [], '', 'ENXIO'),
  row('KVM_IRQ_LINE', ['tdx'], ['td', 'seal'], '', 'ENXIO'),
  ...both('KVM_IRQ_LINE_STATUS', AMD, ['irqchip'], 'u32@0=9 u32@4=1', 'ok', ['=> u32@0!=9', `${IOAPIC_IRR} u32@24=0x200`]),
  row('KVM_IRQ_LINE_STATUS', ['tdx'], ['split'], 'u32@0=9 u32@4=1', 'ok', '=> u32@0=0xffffffff'),
  row('KVM_IRQ_LINE_STATUS', ['tdx'], ['init', 'vcpu', 'seal'], 'u32@0=9 u32@4=1', 'ok', '=> u32@0=0xffffffff'),
  ...both('KVM_IRQ_LINE_STATUS', AMD, [], '', 'ENXIO'),
  row('KVM_IRQ_LINE_STATUS', ['tdx'], [], '', 'ENXIO'),
  row('KVM_IRQ_LINE_STATUS', ['tdx'], ['td', 'seal'], '', 'ENXIO'),
  // An empty table takes the default routes away.
  ...both('KVM_SET_GSI_ROUTING', AMD, ['irqchip'], '', 'ok', 'KVM_IRQ_LINE_STATUS u32@0=9 u32@4=1 => u32@0=0xffffffff'),
  ...both('KVM_SET_GSI_ROUTING', AMD, ['irqchip'], IRQCHIP_ROUTE, 'ok', ['KVM_IRQ_LINE u32@0=3 u32@4=1 => ok', `${IOAPIC_IRR} u32@24=8`]),
  ...both('KVM_SET_GSI_ROUTING', AMD, ['split'], MSI_ROUTE, 'ok', 'KVM_IRQ_LINE_STATUS u32@0=3 u32@4=1 => u32@0=0xffffffff'),
  row('KVM_SET_GSI_ROUTING', ['tdx'], ['init'], MSI_ROUTE, 'ok', [], 'ok for MSI routes'),
  row('KVM_SET_GSI_ROUTING', ['tdx'], ['init', 'vcpu', 'seal'], MSI_ROUTE, 'ok', [], 'ok for MSI routes'),
  ...both('KVM_SET_GSI_ROUTING', AMD, [], '', 'EINVAL'),
  row('KVM_SET_GSI_ROUTING', ['tdx'], [], '', 'EINVAL'),
  ...both('KVM_SET_GSI_ROUTING', AMD, ['split'], IRQCHIP_ROUTE, 'EINVAL'),
  row('KVM_SET_GSI_ROUTING', ['tdx'], ['init'], IRQCHIP_ROUTE, 'EINVAL'),
  row('KVM_SET_GSI_ROUTING', ['tdx'], ['init', 'vcpu', 'seal'], IRQCHIP_ROUTE, 'EINVAL'),
  row('KVM_SET_GSI_ROUTING', ALL, ['split'], 'u32@4=1', 'EINVAL'),
  ...both(
    'KVM_SIGNAL_MSI',
    AMD,
    ['irqchip', 'vcpu', 'KVM_SET_LAPIC@vcpu <KVM_GET_LAPIC u32@240=0x1ff'],
    'u32@0=0xfee00000 u32@8=0x31',
    'ok',
    ['KVM_GET_LAPIC@vcpu => u32@528=0x20000'],
  ),
  row('KVM_SIGNAL_MSI', ['tdx'], ['init', 'vcpu', 'cpuid', 'td-vcpu'], 'u32@0=0xfee00000 u32@8=0x31', 'ok'),
  row('KVM_SIGNAL_MSI', ['tdx'], ['init', 'vcpu', 'seal'], 'u32@0=0xfee00000 u32@8=0x31', 'ok'),
  ...both('KVM_SIGNAL_MSI', AMD, [], 'u32@0=0xfee00000', 'EINVAL'),
  row('KVM_SIGNAL_MSI', ['tdx'], [], 'u32@0=0xfee00000', 'EINVAL'),
  row('KVM_SIGNAL_MSI', ['tdx'], ['td', 'seal'], 'u32@0=0xfee00000', 'EINVAL'),
  row('KVM_SIGNAL_MSI', ALL, ['split'], 'u32@0=0xfee00000 u32@12=2', 'EINVAL'),
  // Resampling needs an EOI that KVM sees.
  ...both('KVM_IRQFD', AMD, ['irqchip'], 'u32@0=$eventfd u32@4=1', 'ok'),
  ...both('KVM_IRQFD', AMD, ['split'], 'u32@0=$eventfd u32@4=1', 'ok'),
  row('KVM_IRQFD', ['tdx'], ['init'], 'u32@0=$eventfd u32@4=1', 'ok'),
  row('KVM_IRQFD', ['tdx'], ['init', 'vcpu', 'seal'], 'u32@0=$eventfd u32@4=1', 'ok'),
  ...both('KVM_IRQFD', AMD, [], 'u32@0=$eventfd u32@4=1', 'EINVAL', [], 'plain needs in-kernel irqchip'),
  row('KVM_IRQFD', ['tdx'], [], 'u32@0=$eventfd u32@4=1', 'EINVAL'),
  ...both('KVM_IRQFD', AMD, ['irqchip'], 'u32@0=$eventfd u32@4=1 u32@8=2 u32@12=$eventfd', 'ok', [], 'RESAMPLE needs full irqchip'),
  ...both('KVM_IRQFD', AMD, ['split'], 'u32@0=$eventfd u32@4=1 u32@8=2 u32@12=$eventfd', 'EINVAL', [], 'RESAMPLE needs full irqchip'),
  row('KVM_IRQFD', ['tdx'], ['init'], 'u32@0=$eventfd u32@4=1 u32@8=2 u32@12=$eventfd', 'EINVAL'),
  row('KVM_IRQFD', ['tdx'], ['init', 'vcpu', 'seal'], 'u32@0=$eventfd u32@4=1 u32@8=2 u32@12=$eventfd', 'EINVAL'),
  row('KVM_IRQFD', ALL, ['split'], 'u32@0=999 u32@4=1', 'EBADF'),
  row('KVM_IRQFD', ALL, ['split'], 'u32@0=$vm u32@4=1', 'EINVAL'),
  row('KVM_IRQFD', ALL, ['split'], 'u32@0=$eventfd u32@4=1 u32@8=4', 'EINVAL'),
  row('KVM_IOEVENTFD', ALL, [], 'u64@8=0x3000 u32@16=3 u32@20=$eventfd', 'EINVAL'),
  row('KVM_IOEVENTFD', ALL, [], 'u64@8=0x3000 u32@16=1 u32@20=999', 'EBADF'),
  row('KVM_IOEVENTFD', ALL, [], 'u64@8=0x3000 u32@16=1 u32@20=$eventfd u32@24=4', 'ENOENT'),
]

/** KVM_ENABLE_CAP: capability and first argument. */
const cap = (number: number, value: number | string): string => `u32@0=${number} u64@8=${value}`
const PER_CAP = 'ok per capability'

const CAPABILITIES: readonly Condition[] = [
  row('KVM_ENABLE_CAP', ALL, [], cap(121, 24), 'ok', 'KVM_CREATE_IRQCHIP => EEXIST', PER_CAP),
  row('KVM_ENABLE_CAP', ALL, ['split'], cap(121, 24), 'EEXIST'),
  ...both('KVM_ENABLE_CAP', AMD, ['init', 'vcpu'], cap(121, 24), 'EEXIST'),
  row('KVM_ENABLE_CAP', ALL, [], cap(121, 0x10000), 'EINVAL'),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(201, 0x1000), 'ok', [], PER_CAP),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(201, 1), 'EINVAL'),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(9999, 0), 'EINVAL'),
  ...both('KVM_ENABLE_CAP', ALL, [], `u32@4=1 ${cap(201, 0)}`, 'EINVAL'),
  ...both(
    'KVM_ENABLE_CAP',
    ALL,
    [],
    cap(168, 3),
    'ok',
    ['KVM_SET_USER_MEMORY_REGION u32@4=1 u64@16=0x1000 u64@24=$mem => ok', 'KVM_GET_DIRTY_LOG u64@8=$buf => ok', 'buf => u64@0=1'],
    PER_CAP,
  ),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(168, 2), 'EINVAL'),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(188, 7), 'ok', [], PER_CAP),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(188, 8), 'EINVAL'),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(129, 3), 'ok', [], PER_CAP),
  ...both('KVM_ENABLE_CAP', ALL, [], cap(129, 0x10), 'EINVAL'),
  row('KVM_ENABLE_CAP', ALL, [], cap(192, 2048), 'EINVAL', [], PER_CAP),
  row('KVM_ENABLE_CAP', AMD, [], cap(192, 4096), 'ok', [], PER_CAP),
  // Page-modification logging may push 512 entries more.
  row('KVM_ENABLE_CAP', ['tdx'], [], cap(192, 4096), 'EINVAL', [], PER_CAP),
  row('KVM_ENABLE_CAP', ALL, [], cap(192, 0x10000), 'ok', 'KVM_GET_DIRTY_LOG u64@8=$buf => ENXIO', PER_CAP),
  row('KVM_ENABLE_CAP', AMD, ['init', 'vcpu'], cap(192, 0x10000), 'EINVAL'),
  row('KVM_ENABLE_CAP', ALL, [], cap(192, 0x200000), 'E2BIG'),
  ...both('KVM_ENABLE_CAP', AMD, ['init', 'vcpu'], cap(164, 1), 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u32@20=0x1d', PER_CAP),
  ...both('KVM_ENABLE_CAP', AMD, ['init', 'vcpu'], cap(218, 1), 'ok', 'KVM_GET_VCPU_EVENTS@vcpu => u32@20=0x2d', PER_CAP),
  // KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM.
  ...[197, 206].flatMap((number) => [
    row('KVM_ENABLE_CAP', AMD, [], cap(number, 999), 'EBADF', [], PER_CAP),
    row('KVM_ENABLE_CAP', AMD, [], cap(number, '$vm'), 'EINVAL'),
    row('KVM_ENABLE_CAP', ['tdx'], [], cap(number, '$vm'), 'EINVAL'),
  ]),
]

const REST: readonly Condition[] = [
  // svm_set_tss_addr and svm_set_identity_map_addr keep nothing, nor do those of a TD: the place stays free for a slot.
  ...both(
    'KVM_SET_TSS_ADDR',
    ALL,
    [],
    0xfffbd000,
    'ok',
    'KVM_SET_USER_MEMORY_REGION u32@0=9 u64@8=0xfffbd000 u64@16=0x3000 u64@24=$mem => ok',
  ),
  ...both('KVM_SET_TSS_ADDR', AMD, [], 0xffffe000, 'EINVAL'),
  row(
    'KVM_SET_IDENTITY_MAP_ADDR',
    ALL,
    [],
    'u64@0=0xfffbc000',
    'ok',
    'KVM_SET_USER_MEMORY_REGION u32@0=9 u64@8=0xfffbc000 u64@16=0x1000 u64@24=$mem => ok',
  ),
  row(
    'KVM_SET_IDENTITY_MAP_ADDR',
    ALL,
    ['init', 'seal'],
    'u64@0=0xfffbc000',
    'ok',
    'KVM_SET_USER_MEMORY_REGION u32@0=9 u64@8=0xfffbc000 u64@16=0x1000 u64@24=$mem => ok',
  ),
  ...both('KVM_SET_IDENTITY_MAP_ADDR', ALL, ['init', 'vcpu'], 'u64@0=0xfffbc000', 'EINVAL'),
  row('KVM_SET_BOOT_CPU_ID', ALL, ['init'], 1, 'ok'),
  row('KVM_SET_BOOT_CPU_ID', AMD, ['init', 'irqchip'], 1, 'ok', ['KVM_CREATE_VCPU 0 => ok', 'KVM_GET_MP_STATE@new => u32@0=1']),
  row('KVM_SET_BOOT_CPU_ID', ALL, ['init', 'seal'], 1, 'ok'),
  row('KVM_SET_BOOT_CPU_ID', ALL, [], 0x10000, 'EINVAL'),
  ...both('KVM_SET_BOOT_CPU_ID', ALL, ['init', 'vcpu'], 0, 'EBUSY'),
  row('KVM_SET_TSC_KHZ', ALL, [], 1_000_000, 'ok', 'KVM_GET_TSC_KHZ => =1000000'),
  row('KVM_SET_TSC_KHZ', ALL, ['init', 'seal'], 1_000_000, 'ok', 'KVM_GET_TSC_KHZ => =1000000'),
  ...both('KVM_SET_TSC_KHZ', ALL, ['init', 'vcpu'], 0, 'EINVAL'),
  row('KVM_SET_TSC_KHZ', ALL, [], 0xffffffff, 'EINVAL'),
  ...both('KVM_GET_TSC_KHZ', ALL, [], 0, '=2000000', [], 'returns kHz'),
  row('KVM_GET_TSC_KHZ', ALL, ['KVM_SET_TSC_KHZ 1500000'], 0, '=1500000', [], 'returns kHz'),
  // The clock runs on from what was set.
  ...both('KVM_SET_CLOCK', ALL, [], 'u64@0=0x100000000', 'ok', 'KVM_GET_CLOCK => u64@0>=0x100000000'),
  ...both('KVM_SET_CLOCK', ALL, [], 'u32@8=1', 'EINVAL'),
  ...both('KVM_SET_CLOCK', ALL, [], '<KVM_GET_CLOCK', 'ok'),
  ...both('KVM_GET_CLOCK', ALL, ['KVM_SET_CLOCK u64@0=0x200000000'], '', 'ok', '=> u64@0>=0x200000000'),
  // KVM_DEV_TYPE_VFIO is the only device of x86; KVM_CREATE_DEVICE_TEST asks without making one.
  ...both('KVM_CREATE_DEVICE', ALL, [], 'u32@0=4 u32@8=1', 'ok', '=> u32@4=0', 'ok per device type'),
  ...both('KVM_CREATE_DEVICE', ALL, [], 'u32@0=4', 'ok', ['=> u32@4!=0', 'KVM_CREATE_DEVICE u32@0=4 => EBUSY'], 'ok per device type'),
  ...both('KVM_CREATE_DEVICE', ALL, [], 'u32@0=99', 'ENODEV', [], 'ok per device type'),
  row('KVM_CREATE_DEVICE', ALL, [], 'u32@0=1', 'ENODEV'),
  // KVM_X86_SET_MSR_FILTER, KVM_SET_PMU_EVENT_FILTER.
  ...both('KVM_X86_SET_MSR_FILTER', ALL, [], 'u32@8=1 u32@12=8 u32@16=0x10 u64@24=$buf', 'ok'),
  ...both('KVM_X86_SET_MSR_FILTER', ALL, [], 'u32@0=2', 'EINVAL'),
  ...both('KVM_X86_SET_MSR_FILTER', ALL, [], 'u32@0=1', 'EINVAL'),
  ...both('KVM_X86_SET_MSR_FILTER', ALL, [], 'u32@8=1 u32@12=8 u64@24=$wild', 'EFAULT'),
  row('KVM_X86_SET_MSR_FILTER', ALL, [], 'u32@8=4 u32@12=8 u64@24=$buf', 'EINVAL'),
  row('KVM_X86_SET_MSR_FILTER', ALL, [], 'u32@8=1 u32@12=0x3001 u64@24=$buf', 'EINVAL'),
  // Action, number of events, flags; masked entries (flag 1) have bits that must not be set.
  ...both('KVM_SET_PMU_EVENT_FILTER', ALL, [], 'u32@4=2 u64@32=0xc0 u64@40=0x3c', 'ok'),
  ...both('KVM_SET_PMU_EVENT_FILTER', ALL, [], 'u32@0=1', 'ok'),
  ...both('KVM_SET_PMU_EVENT_FILTER', ALL, [], 'u32@0=2', 'EINVAL'),
  ...both('KVM_SET_PMU_EVENT_FILTER', ALL, [], 'u32@12=2', 'EINVAL'),
  ...both('KVM_SET_PMU_EVENT_FILTER', ALL, [], 'u32@4=301', 'E2BIG'),
  ...both('KVM_SET_PMU_EVENT_FILTER', ALL, [], 'u32@4=1 u32@12=1 u64@32=0x10000', 'EINVAL'),
  ...both('KVM_GET_STATS_FD', ALL, [], 0, 'ok', [], 'returns fd'),
  // Registered regions.
  ...both(
    'KVM_MEMORY_ENCRYPT_REG_REGION',
    [...SEV, 'snp'],
    ['init'],
    'u64@0=$mem u64@8=0x1000',
    'ok',
    'KVM_MEMORY_ENCRYPT_UNREG_REGION u64@0=$mem u64@8=0x1000 => ok',
  ),
  row('KVM_MEMORY_ENCRYPT_REG_REGION', ['default', ...NEW, ...LEGACY, 'tdx'], [], 'u64@0=$mem u64@8=0x1000', 'ENOTTY'),
  row('KVM_MEMORY_ENCRYPT_REG_REGION', [...SEV, 'snp'], ['init'], 'u64@0=$mem u64@8=0', 'EINVAL'),
  row('KVM_MEMORY_ENCRYPT_REG_REGION', [...SEV, 'snp'], ['init'], 'u64@0=$wild u64@8=0x1000', 'ENOMEM'),
  ...both('KVM_MEMORY_ENCRYPT_UNREG_REGION', [...SEV, 'snp'], ['init'], 'u64@0=$mem u64@8=0x1000', 'EINVAL', [], 'unknown region'),
  ...both(
    'KVM_MEMORY_ENCRYPT_UNREG_REGION',
    [...SEV, 'snp'],
    ['init', 'region'],
    'u64@0=$mem u64@8=0x1000',
    'ok',
    'KVM_MEMORY_ENCRYPT_UNREG_REGION u64@0=$mem u64@8=0x1000 => EINVAL',
  ),
]

export const VM_CONDITIONS: readonly Condition[] = [...CREATION, ...MEMORY, ...INTERRUPTS, ...CAPABILITIES, ...REST]
