/**
 * Conditions of KVM_MEMORY_ENCRYPT_OP: every SEV, SNP and TDX command in every state of a launch, its errno and the firmware's
 * status (Linux 7.3 arch/x86/kvm/svm/sev.c sev_mem_enc_ioctl, arch/x86/kvm/vmx/tdx.c tdx_vm_ioctl, tdx_vcpu_ioctl; guest states
 * of the SEV API 55766, 6.2). The words are explained in spec/kvm-condition.ts.
 */
import { AMD, type Condition, ES, LEGACY, NEW, onOtherHost, row, SEV } from './kvm-condition.ts'
import type { PolicyType } from './kvm-policy.ts'

const OP = 'KVM_MEMORY_ENCRYPT_OP'
const PER_SEV = 'per SEV command table'
const DEFAULT_AMD = 'AMD: sub-command INIT/ES_INIT ok'
/** struct kvm_sev_cmd: id, data, sev_fd; struct kvm_tdx_cmd: id, flags, data. */
const cmd = (id: number, data = '$buf'): string => `u32@0=${id} u64@8=${data} u32@20=$sev`
const tdx = (id: number, data = '$buf', flags = 0): string => `u32@0=${id} u32@4=${flags} u64@8=${data}`
/** kvm_sev_cmd.error. */
const status = (code: number): string => `=> u32@16=${code}`
const INVALID_GUEST_STATE = status(2)
const GUEST_STATUS = (state: number): readonly string[] => [`${OP} ${cmd(16)} => ok`, `buf => u32@8=${state}`]

type Ask = readonly [setup: readonly string[], call: string, expect: string, sees?: string | readonly string[]]
/** The same question before the launch is finished and after. */
const asks = (types: readonly PolicyType[], shows: string, list: readonly Ask[]): readonly Condition[] =>
  list.map(([setup, call, expect, sees = []]) => row(OP, types, setup, call, expect, sees, shows))

const START = 'buf u32@4=1'
const ES_START = 'buf u32@4=5'
const REGION = 'buf u64@0=$mem u32@8=0x1000'
const BLOB = 'buf u64@0=$slot u32@8=48'
const SECRET = 'buf u64@0=$slot u32@8=52 u64@16=$mem u32@24=16 u64@32=$slot u32@40=16'
const LUPDATE = ['init', 'start']
const LSECRET = ['init', 'start', 'data', 'measure']
const RUNNING = ['init', 'start', 'data', 'measure', 'finish']

/** Commands on the guest context, by state; a launch without vCPUs, so that SEV and SEV-ES answer alike. */
const CONTEXT: readonly Condition[] = asks(SEV, PER_SEV, [
  // Nothing but INIT before INIT: sev_guest() is asked first, of RECEIVE_UPDATE_DATA with another errno.
  ...[2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 17, 18, 20, 21].map((id): Ask => [[], cmd(id), 'ENOTTY']),
  [[], cmd(13), 'EINVAL'],
  // Numbers without a command.
  ...[10, 14, 19, 99].map((id): Ask => [['init'], cmd(id), 'EINVAL']),
  // Before LAUNCH_START the stored file descriptor is 0.
  [['init', REGION], cmd(3), 'EBADF'],
  [['init', BLOB], cmd(6), 'EBADF'],
  [['init', SECRET], cmd(5), 'EBADF'],
  [['init'], cmd(7), 'EBADF'],
  [['init'], cmd(16), 'EBADF'],
  // Arguments come before the firmware.
  [['init'], cmd(2, '$wild'), 'EFAULT'],
  [['init'], cmd(3, '$wild'), 'EFAULT'],
  [['init'], cmd(6, '$wild'), 'EFAULT'],
  [['init'], cmd(5, '$wild'), 'EFAULT'],
  [['init', 'buf u64@0=$mem'], cmd(3), 'EINVAL'],
  [['init', 'buf u64@0=$wild u32@8=0x1000'], cmd(3), 'ENOMEM'],
  [['init', 'buf u64@0=$slot u32@8=0x4001'], cmd(6), 'EINVAL'],
  [['init', 'buf u64@8=$slot'], cmd(2), 'EINVAL'],
  [['init', 'buf u64@8=$slot u32@16=0x4001'], cmd(2), 'EINVAL'],
  [['init', START], `u32@0=2 u64@8=$buf u32@20=$vm`, 'EBADF'],
  [['init', 'buf u32@4=1 u64@8=$wild u32@16=0x400'], cmd(2), 'EFAULT'],
  [['init', 'buf u32@4=1 u64@24=$wild u32@32=0x400'], cmd(2), 'EFAULT'],
  [[...LUPDATE, 'buf u64@0=$wild u32@8=48'], cmd(6), 'EFAULT'],
  [LUPDATE, cmd(16, '$wild'), 'EFAULT'],
  [LUPDATE, cmd(20, '$wild'), 'EFAULT'],
  [[...LUPDATE, 'buf u64@0=$slot u32@8=52 u64@16=$mem u32@24=16 u64@32=$wild u32@40=16'], cmd(5), 'EFAULT'],
  [[...LUPDATE, 'buf u64@0=$wild u32@8=52 u64@16=$mem u32@24=16 u64@32=$slot u32@40=16'], cmd(5), 'EFAULT'],
  [[...LUPDATE, 'buf u64@0=$slot u32@8=52 u64@16=$wild u32@24=16 u64@32=$slot u32@40=16'], cmd(5), 'ENOMEM'],
  // LAUNCH_UPDATE.
  [[...LUPDATE, REGION], cmd(3), 'ok', status(0)],
  [[...LUPDATE, 'buf u64@0=$mem u32@8=0x1008'], cmd(3), 'EIO', status(4)],
  [[...LUPDATE, BLOB], cmd(6), 'ok', ['buf => u32@8=48', ...GUEST_STATUS(2)]],
  [[...LUPDATE, 'buf u64@0=0'], cmd(6), 'EIO', [status(4), 'buf => u32@8=48']],
  [[...LUPDATE, SECRET], cmd(5), 'EIO', INVALID_GUEST_STATE],
  [LUPDATE, cmd(7), 'ok', GUEST_STATUS(3)],
  [LUPDATE, cmd(16), 'ok', ['buf => u32@8=1', 'buf => u32@0!=0']],
  // LAUNCH_SECRET.
  [[...LSECRET, REGION], cmd(3), 'EIO', INVALID_GUEST_STATE],
  [[...LSECRET, BLOB], cmd(6), 'EIO', INVALID_GUEST_STATE],
  [LSECRET, cmd(7), 'ok', GUEST_STATUS(3)],
  [LSECRET, cmd(16), 'ok', 'buf => u32@8=2'],
  // RUNNING.
  [[...RUNNING, REGION], cmd(3), 'EIO', INVALID_GUEST_STATE],
  [[...RUNNING, BLOB], cmd(6), 'EIO', INVALID_GUEST_STATE],
  [[...RUNNING, SECRET], cmd(5), 'EIO', INVALID_GUEST_STATE],
  [RUNNING, cmd(7), 'EIO', INVALID_GUEST_STATE],
  [RUNNING, cmd(16), 'ok', 'buf => u32@8=3'],
  // And the same by way of the whole launch.
  [['init', 'vcpu', 'seal', REGION], cmd(3), 'EIO', INVALID_GUEST_STATE],
  [['init', 'vcpu', 'seal', BLOB], cmd(6), 'EIO', INVALID_GUEST_STATE],
  [['init', 'vcpu', 'seal'], cmd(7), 'EIO', INVALID_GUEST_STATE],
  [['init', 'vcpu', 'seal'], cmd(16), 'ok', 'buf => u32@8=3'],
  [['init', 'vcpu', 'seal'], cmd(99), 'EINVAL'],
  [['init', 'vcpu', 'seal'], cmd(100), 'ENOTTY'],
  // The SNP commands.
  [['init'], cmd(100), 'ENOTTY'],
  [['init'], cmd(101), 'EINVAL'],
  [['init'], cmd(102), 'ENOTTY'],
  [['init'], cmd(103), 'EINVAL'],
])

const START_BY_KIND: readonly Condition[] = [
  ...asks(['sev-legacy', 'sev'], PER_SEV, [
    [['init', START], cmd(2), 'ok', GUEST_STATUS(1)],
    // Policy and init command that disagree: the firmware refuses the ASID (B1).
    [['init', ES_START], cmd(2), 'EIO', status(0xd)],
  ]),
  ...asks(ES, PER_SEV, [
    [['init', ES_START], cmd(2), 'ok', GUEST_STATUS(1)],
    [['init', START], cmd(2), 'EIO', status(0xd)],
  ]),
]

const INIT: readonly Condition[] = [
  ...asks(['default'], DEFAULT_AMD, [
    [[], cmd(0), 'ok', `${OP} ${cmd(0)} => EINVAL`],
    [[], cmd(1), 'ok', `${OP} ${cmd(1)} => EINVAL`],
    [[], cmd(22), 'EINVAL'],
    [['vcpu'], cmd(0), 'EINVAL'],
    [['vcpu'], cmd(1), 'EINVAL'],
    [[], cmd(2), 'ENOTTY'],
    [[], cmd(100), 'ENOTTY'],
    [['vcpu', 'seal'], cmd(0), 'EINVAL'],
    [['vcpu', 'seal'], cmd(1), 'EINVAL'],
    [['vcpu', 'seal'], cmd(2), 'ENOTTY'],
    [['seal'], cmd(0), 'ok', `${OP} ${cmd(0)} => EINVAL`],
  ]),
  onOtherHost(row(OP, ['default'], [], cmd(0), 'ENOTTY', [], 'Intel: -ENOTTY')),
  ...asks(LEGACY, PER_SEV, [
    [['init'], cmd(0), 'EINVAL'],
    [['init'], cmd(1), 'EINVAL'],
    [['init'], cmd(22), 'EINVAL'],
    [['init', 'vcpu', 'seal'], cmd(0), 'EINVAL'],
  ]),
  ...asks(NEW, PER_SEV, [
    [[], cmd(0), 'EINVAL'],
    [[], cmd(1), 'EINVAL'],
    [['vcpu'], cmd(22), 'EINVAL'],
    [['buf u32@8=1'], cmd(22), 'EINVAL'],
    [['buf u16@12=3'], cmd(22), 'EINVAL'],
    [['buf u64@0=1'], cmd(22), 'EINVAL'],
    [[], cmd(22, '$wild'), 'EFAULT'],
    [[], cmd(22), 'ok'],
  ]),
  ...asks(['sev'], PER_SEV, [[['buf u16@12=1'], cmd(22), 'EINVAL']]),
  ...asks(['sev'], PER_SEV, [[['buf u64@0=0x20'], cmd(22), 'EINVAL']]),
  ...asks(['snp'], PER_SEV, [[['buf u16@12=1'], cmd(22), 'EINVAL']]),
  ...asks(['sev-es', 'snp'], PER_SEV, [[['buf u64@0=0x20'], cmd(22), 'ok']]),
  ...asks(['sev-es'], PER_SEV, [[['buf u64@0=0x200'], cmd(22), 'EINVAL']]),
  ...asks(['snp'], PER_SEV, [[['buf u64@0=0x200'], cmd(22), 'ok']]),
  ...asks(['sev', 'sev-es'], PER_SEV, [
    [['init'], cmd(22), 'EINVAL'],
    [['init', 'vcpu', 'seal'], cmd(22), 'EINVAL'],
  ]),
]

/** LAUNCH_UPDATE_VMSA: E1, E2, B2. */
const VMSA: readonly Condition[] = [
  ...asks(['sev', 'sev-legacy'], PER_SEV, [
    [['init', 'vcpu'], cmd(4), 'ENOTTY'],
    [['init', 'vcpu', 'start'], cmd(4), 'ENOTTY'],
  ]),
  ...asks(ES, PER_SEV, [
    [['init'], cmd(4), 'ok'],
    [['init', 'vcpu'], cmd(4), 'EBADF'],
    [['init', 'vcpu', 'start'], cmd(4), 'ok', 'KVM_SET_GUEST_DEBUG@vcpu u32@0=1 => EINVAL'],
    [['init', 'vcpu', 'start', 'vmsa'], cmd(4), 'EINVAL'],
    [['init', 'vcpu', 'start', 'measure'], cmd(4), 'EIO', INVALID_GUEST_STATE],
    [['init', 'vcpu', 'start', 'KVM_SET_DEBUGREGS@vcpu u64@40=0x401'], cmd(4), 'EINVAL'],
    [['init', 'vcpu', 'start', 'KVM_SET_DEBUGREGS@vcpu u64@40=0x400'], cmd(4), 'ok'],
    [['init', 'vcpu', 'seal'], cmd(4), 'EINVAL'],
  ]),
  ...ES.map((type) =>
    row(OP, [type], ['init', 'vcpu', 'start', 'debug'], cmd(4), 'EINVAL', [], 'KVM_SET_GUEST_DEBUG: makes LAUNCH_UPDATE_VMSA'),
  ),
  ...asks(ES, PER_SEV, [
    [['init', 'vcpu', 'start', 'debug', 'KVM_SET_GUEST_DEBUG@vcpu u32@0=0'], cmd(4), 'ok', 'KVM_SET_GUEST_DEBUG@vcpu u32@0=1 => EINVAL'],
  ]),
]

const PAGE = 'buf u64@0=0x100 u64@8=$mem u64@16=0x1000 u8@24=1'
const SNP_START = 'buf u64@0=0x30000'
const SNP_READY = ['init', 'gmem-slot', 'start']
const SNP: readonly Condition[] = [
  ...asks(['snp'], '100..103 per SEV command table', [
    [[], cmd(100), 'ENOTTY'],
    [[], cmd(101), 'EINVAL'],
    [[], cmd(102), 'ENOTTY'],
    [[], cmd(103), 'EINVAL'],
    [['init'], cmd(101), 'EINVAL'],
    [['init'], cmd(102), 'EINVAL'],
    [['init'], cmd(103), 'ok'],
    [['init', 'vcpu'], cmd(103), 'EINVAL'],
    [['init'], cmd(104), 'EINVAL'],
    [['init', SNP_START], cmd(100), 'ok', `${OP} ${cmd(100)} => EINVAL`],
    [['init', 'buf u64@0=0x10000'], cmd(100), 'EINVAL'],
    [['init', 'buf u64@0=0x70000'], cmd(100), 'EINVAL'],
    [['init', `${SNP_START} u16@24=1`], cmd(100), 'EINVAL'],
    [['init'], cmd(100, '$wild'), 'EFAULT'],
    [['init', SNP_START], 'u32@0=100 u64@8=$buf u32@20=$vm', 'ENOTTY'],
    [[...SNP_READY, PAGE], cmd(101), 'ok', 'buf => u64@0=0x101 u64@16=0'],
    [[...SNP_READY, `${PAGE} u8@24=3 u64@8=0`], cmd(101), 'ok', 'buf => u64@0=0x101 u64@8=0'],
    [[...SNP_READY, `${PAGE} u8@24=2`], cmd(101), 'EINVAL'],
    [[...SNP_READY, `${PAGE} u8@24=7`], cmd(101), 'EINVAL'],
    [[...SNP_READY, `${PAGE} u16@26=1`], cmd(101), 'EINVAL'],
    [[...SNP_READY, `${PAGE} u64@16=0`], cmd(101), 'EINVAL'],
    [[...SNP_READY, `${PAGE} u64@16=0x800`], cmd(101), 'EINVAL'],
    [[...SNP_READY, `${PAGE} u64@8=0`], cmd(101), 'EINVAL'],
    [[...SNP_READY, `${PAGE} u64@0=0x999`], cmd(101), 'EINVAL'],
    [[...SNP_READY], cmd(101, '$wild'), 'EFAULT'],
    [[...SNP_READY, PAGE, `${OP} ${cmd(101)}`, PAGE], cmd(101), 'EIO'],
    [[...SNP_READY, 'KVM_SET_MEMORY_ATTRIBUTES u64@0=0x100000 u64@8=0x1000', PAGE], cmd(101), 'EIO'],
    [[...SNP_READY, 'buf u16@54=1'], cmd(102), 'EINVAL'],
    [SNP_READY, cmd(102), 'ok', `${OP} ${cmd(102)} => EIO`],
    [SNP_READY, cmd(102, '$wild'), 'EFAULT'],
    [[...SNP_READY, `${PAGE} u64@8=$wild`], cmd(101), 'EIO'],
    [[...SNP_READY, 'buf u64@0=$wild u64@8=$slot u8@16=1'], cmd(102), 'EFAULT'],
    [[...SNP_READY, 'buf u64@0=$slot u64@8=$wild u8@16=1'], cmd(102), 'EFAULT'],
    [[...SNP_READY.slice(0, 1), 'vcpu', ...SNP_READY.slice(1), 'KVM_SET_DEBUGREGS@vcpu u64@40=0x401'], cmd(102), 'EINVAL'],
    [['init', 'vcpu', 'seal'], cmd(100), 'EINVAL'],
    [['init', 'vcpu', 'seal', 'buf u64@0=0x101 u64@8=$mem u64@16=0x1000 u8@24=1'], cmd(101), 'EIO', INVALID_GUEST_STATE],
    [['init', 'vcpu', 'seal'], cmd(102), 'EINVAL'],
    [['init', 'vcpu', 'seal'], cmd(103), 'EINVAL'],
  ]),
  row(OP, ['snp'], ['init', 'vcpu', 'start', 'debug'], cmd(102), 'EINVAL', [], 'KVM_SET_GUEST_DEBUG: makes SNP_LAUNCH_FINISH'),
  ...[0, 1, 2, 3, 4, 7, 16, 22, 50].flatMap((id) => [
    row(OP, ['snp'], ['init'], cmd(id), 'EPERM', [], 'id < 100'),
    row(OP, ['snp'], ['init', 'vcpu', 'seal'], cmd(id), 'EPERM', [], 'id < 100'),
  ]),
]

const TD = 'ok: CAPABILITIES, INIT_VM, FINALIZE_VM'
const TD_AFTER = 'CAPABILITIES ok'
/** Offsets in struct kvm_tdx_init_vm; `$td` is copied to `$buf` first. */
const INIT_VM = (change: string): readonly string[] => [`buf <$td ${change}`]
const TDX_VM: readonly Condition[] = [
  ...asks(['tdx'], TD, [
    [['buf u32@2048=40'], tdx(0), 'ok', ['buf => u64@0=0x10000000', 'buf => u64@24=2', 'buf => u32@2048>=10']],
    [['buf u32@2048=1'], tdx(0), 'E2BIG', 'buf => u32@2048=1'],
    [['buf u32@2048=40'], tdx(0, '$buf', 1), 'EINVAL'],
    [[], tdx(0, '$wild'), 'EFAULT'],
    [['buf u32@2048=40'], `${tdx(0)} u64@16=1`, 'EINVAL'],
    [[], tdx(1, '$td'), 'ok', `${OP} ${tdx(1, '$td')} => EINVAL`],
    [[], tdx(1, '$td', 1), 'EINVAL'],
    [[], tdx(1, '$wild'), 'EFAULT'],
    [INIT_VM('u64@0=1'), tdx(1), 'EINVAL', '=> u64@16=0'],
    [INIT_VM('u64@8=0x10000000007'), tdx(1), 'EINVAL', '=> u64@16=0'],
    [INIT_VM('u8@200=1'), tdx(1), 'EINVAL'],
    [INIT_VM('u32@260=1'), tdx(1), 'EINVAL'],
    [INIT_VM('u32@276=0'), tdx(1), 'EINVAL'],
    [INIT_VM('u32@256=300'), tdx(1), 'E2BIG'],
    [INIT_VM('u32@256=2 u32@304=0x40000000'), tdx(1), 'EINVAL', '=> u64@16=0'],
    [INIT_VM('u32@256=2 u32@304=7 u32@312=1 u32@320=0x10'), tdx(1), 'EINVAL', '=> u64@16=0'],
    // TDX_OPERAND_INVALID of TDH.MNG.INIT: XFAM without SSE.
    [INIT_VM('u64@8=4'), tdx(1), 'EINVAL', '=> u64@16=0xc000010000000041'],
    [['td'], tdx(1, '$td'), 'EINVAL'],
    [[], tdx(4), 'EINVAL'],
    [['td'], tdx(4), 'ok', `${OP} ${tdx(4)} => EINVAL`],
    ...[2, 3, 5, 6, 9].map((id): Ask => [['td'], tdx(id), 'EINVAL']),
  ]),
  ...asks(['tdx'], TD_AFTER, [
    [['init', 'vcpu', 'seal', 'buf u32@2048=40'], tdx(0), 'ok', 'buf => u64@24=2'],
    [['init', 'vcpu', 'seal'], tdx(1, '$td'), 'EINVAL'],
    [['init', 'vcpu', 'seal'], tdx(4), 'EINVAL'],
    ...[2, 3, 5, 6].map((id): Ask => [['init', 'vcpu', 'seal'], tdx(id), 'EINVAL']),
  ]),
]

const VCPU_OP = `${OP}@vcpu`
const VCPU_TD = 'ok: INIT_VCPU, INIT_MEM_REGION, GET_CPUID'
const READY = ['init', 'gmem-slot', 'vcpu', 'cpuid', 'td-vcpu']
const vcpuAsks = (list: readonly Ask[]): readonly Condition[] =>
  list.map(([setup, call, expect, sees = []]) => row(VCPU_OP, ['tdx'], setup, call, expect, sees, VCPU_TD))
const TDX_VCPU: readonly Condition[] = [
  ...(['sev-legacy', 'sev-es-legacy', 'sev', 'sev-es', 'snp'] as const).map((type) =>
    row(VCPU_OP, [type], ['init', 'vcpu'], 'u32@0=0', 'ENOTTY'),
  ),
  row(VCPU_OP, ['default'], ['vcpu'], '', 'ENOTTY', [], 'AMD -ENOTTY'),
  row(VCPU_OP, ['default'], ['vcpu', 'seal'], '', 'ENOTTY', [], 'AMD -ENOTTY'),
  onOtherHost(row(VCPU_OP, ['default'], ['vcpu'], '', 'EINVAL', [], 'Intel -EINVAL')),
  onOtherHost(row(VCPU_OP, ['default'], ['vcpu', 'seal'], '', 'EINVAL', [], 'Intel -EINVAL')),
  ...vcpuAsks([
    [['init', 'vcpu', 'cpuid'], tdx(2, '0'), 'ok', [`${VCPU_OP} ${tdx(2, '0')} => EINVAL`, 'KVM_GET_MP_STATE@vcpu => u32@0=0']],
    // KVM sets an x2APIC base: the vCPU's CPUID has to offer it.
    [['init', 'vcpu'], tdx(2, '0'), 'EINVAL'],
    [['init', 'vcpu', 'cpuid'], tdx(2, '0', 1), 'EINVAL'],
    [['init', 'vcpu', 'cpuid'], `${tdx(2, '0')} u64@16=1`, 'EINVAL'],
    ...[0, 1, 4, 6].map((id): Ask => [['init', 'vcpu', 'cpuid'], tdx(id), 'EINVAL']),
    [['init', 'gmem-slot', 'vcpu', 'cpuid', 'buf u64@0=$mem u64@8=0x100000 u64@16=1'], tdx(3), 'EINVAL'],
    [[...READY, 'buf u64@0=$mem u64@8=0x100000 u64@16=2'], tdx(3), 'ok', 'buf => u64@8=0x102000 u64@16=0'],
    [[...READY, 'buf u64@0=$mem u64@8=0x100000 u64@16=1'], tdx(3, '$buf', 1), 'ok', 'buf => u64@8=0x101000 u64@16=0'],
    [[...READY, 'buf u64@0=$mem u64@8=0x100000 u64@16=1'], tdx(3, '$buf', 2), 'EINVAL'],
    [READY, tdx(3, '$wild'), 'EFAULT'],
    [[...READY, 'buf u64@0=0 u64@8=0x100000 u64@16=1'], tdx(3), 'EINVAL'],
    [[...READY, 'buf u64@0=$mem u64@8=0x100000'], tdx(3), 'EINVAL'],
    [[...READY, 'buf u64@0=$mem u64@8=0x100800 u64@16=1'], tdx(3), 'EINVAL'],
    [[...READY, 'buf u64@0=$mem u64@8=0x800000100000 u64@16=1'], tdx(3), 'EINVAL'],
    [[...READY, 'buf u64@0=$mem u64@8=0x100000 u64@16=20'], tdx(3), 'EINVAL', 'buf => u64@16=4'],
    [[...READY, 'buf u64@0=$wild u64@8=0x100000 u64@16=1'], tdx(3), 'EFAULT', 'buf => u64@16=1'],
    [READY, tdx(5, '$wild'), 'EFAULT'],
  ]),
  ...[2, 3, 5].map((id) => row(VCPU_OP, ['tdx'], ['init', 'vcpu', 'seal'], tdx(id), 'EINVAL')),
]

export const LAUNCH_CONDITIONS: readonly Condition[] = [
  ...INIT,
  ...CONTEXT,
  ...START_BY_KIND,
  ...VMSA,
  ...SNP,
  ...TDX_VM,
  ...TDX_VCPU,
  // A NULL argument asks whether SEV is there.
  row(OP, AMD, [], 0, 'ok'),
]
