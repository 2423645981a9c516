/**
 * KVM_MEMORY_ENCRYPT_OP of TDs (arch/x86/kvm/vmx/tdx.c tdx_vm_ioctl, tdx_vcpu_ioctl), in the kernel's order of checks: the
 * states of a TD and its vCPUs. There is no TDX module behind them yet: page contents are not taken into a TD and MRTD is
 * not computed; running a TD and KVM_TDX_GET_CPUID say so by name. Owns TdInfo and TdVcpu.
 */
import { TDX_COMMAND, VM_TYPE } from '../generated/kvm-abi.ts'
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import { CPU_HALTED, VKVM_SMI_PENDING } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import { gmemRefusal } from './gmem.ts'
import type { ErrnoName, Kernel } from './kernel.ts'
import { NO_SUBLEAF, TDX_CPUID_CONFIG } from './tdx-cpuid.ts'
import { MAX_CPUID_ENTRIES } from './vcpu-misc.ts'
import type { VcpuFd } from './vcpu.ts'
import type { VmFd } from './vm.ts'

const TDX_C = 'arch/x86/kvm/vmx/tdx.c'
/** TDX_TD_ATTR_SEPT_VE_DISABLE: all that KVM supports. */
const ATTRIBUTES = 1n << 28n
/** x87, SSE, AVX and CET. */
const XFAM = 0x1807n
const XFAM_FIXED1 = 3n
/** TDVMCALL SetupEventNotifyInterrupt goes to userspace. */
const USER_R11 = 2n
/** Completion status codes (TDX Module ABI specification, 348551; Linux arch/x86/kvm/vmx/tdx_errno.h). */
const OPERAND_INVALID = 0xc000010000000000n
const OPERAND = { XFAM: 65n, CPUID_CONFIG: 69n, TSC_FREQUENCY: 70n } as const
const EPT_ENTRY_STATE_INCORRECT = 0xc0000b0d00000000n
/** X2APIC at the default base. */
const X2APIC_BASE = 0xfee00c00n
const MSR_APIC_BASE = 0x1b

export class TdInfo {
  state: 'uninitialized' | 'initialized' | 'runnable' = 'uninitialized'
  attributes = 0n
  xfam = 0n
  /** GPA bit that makes a page shared. */
  sharedBit = 0n
  /** Pages that KVM_TDX_INIT_MEM_REGION added. */
  readonly pages = new Set<bigint>()
}

/** One command in flight; hw_error goes back into struct kvm_tdx_cmd. */
interface TdxCall {
  readonly kernel: Kernel
  readonly name: string
  readonly flags: number
  readonly data: bigint
  hwError: bigint
}

function refuse(call: TdxCall, code: ErrnoName, reason: string, where: string): number {
  return call.kernel.refuse(code, call.name, reason, `${TDX_C} ${where}`, { switch: 'td_state' })
}

function fault(call: TdxCall): number {
  return call.kernel.badPointer(call.name, 'kvm_tdx_cmd.data is not in a mapping')
}

const NAMES: ReadonlyMap<number, string> = new Map(Object.entries(TDX_COMMAND).map(([name, id]) => [id, name]))

function begin(kernel: Kernel, bytes: Uint8Array, where: string): TdxCall | number {
  if (bytes.length === 0) return kernel.badPointer('KVM_MEMORY_ENCRYPT_OP')
  const view = viewOf(bytes)
  const id = view.getUint32(0, true)
  const name = NAMES.get(id) ?? `KVM_MEMORY_ENCRYPT_OP id ${id}`
  const call: TdxCall = { kernel, name, flags: view.getUint32(4, true), data: view.getBigUint64(8, true), hwError: 0n }
  if (view.getBigUint64(16, true) !== 0n) return refuse(call, 'EINVAL', 'hw_error must be 0 on entry', where)
  return call
}

/** TDX commands of the VM file descriptor. */
export function tdxVmCommand(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const td = vm.td
  if (vm.type !== VM_TYPE.TDX || td === null)
    return kernel.refuse('ENOTTY', 'KVM_MEMORY_ENCRYPT_OP', 'not a TD', 'arch/x86/kvm/vmx/main.c vt_mem_enc_ioctl')
  const call = begin(kernel, bytes, 'tdx_vm_ioctl')
  if (typeof call === 'number') return call
  let result: number
  switch (viewOf(bytes).getUint32(0, true)) {
    case TDX_COMMAND.KVM_TDX_CAPABILITIES:
      result = capabilities(call)
      break
    case TDX_COMMAND.KVM_TDX_INIT_VM:
      result = initVm(call, vm, td)
      break
    case TDX_COMMAND.KVM_TDX_FINALIZE_VM:
      if (td.state !== 'initialized') return refuse(call, 'EINVAL', `the TD is ${td.state}`, 'tdx_td_finalize')
      td.state = 'runnable'
      vm.preFaultAllowed = true
      result = 0
      break
    default:
      return refuse(call, 'EINVAL', 'not a command of the VM file descriptor', 'tdx_vm_ioctl')
  }
  viewOf(bytes).setBigUint64(16, call.hwError, true)
  return result
}

/** struct kvm_tdx_capabilities: four masks and words, 2000 reserved bytes, then struct kvm_cpuid2. */
function capabilities(call: TdxCall): number {
  const { memory } = call.kernel
  if (call.flags !== 0) return refuse(call, 'EINVAL', 'flags must be 0', 'tdx_get_capabilities')
  const header = memory.copyIn(call.data + 2048n, 8)
  if (header === null) return fault(call)
  if (viewOf(header).getUint32(0, true) < TDX_CPUID_CONFIG.length)
    return refuse(call, 'E2BIG', `${TDX_CPUID_CONFIG.length} CPUID entries are there`, 'tdx_get_capabilities')
  const bytes = new Uint8Array(2056 + TDX_CPUID_CONFIG.length * CPUID_ENTRY_SIZE)
  const view = viewOf(bytes)
  view.setBigUint64(0, ATTRIBUTES, true)
  view.setBigUint64(8, XFAM, true)
  view.setBigUint64(24, USER_R11, true)
  view.setUint32(2048, TDX_CPUID_CONFIG.length, true)
  TDX_CPUID_CONFIG.forEach(([leaf, subleaf, ...words], i) => {
    const at = 2056 + i * CPUID_ENTRY_SIZE
    view.setUint32(at, leaf, true)
    if (subleaf !== NO_SUBLEAF) {
      view.setUint32(at + 4, subleaf, true)
      view.setUint32(at + 8, 1, true)
    }
    words.forEach((word, j) => {
      view.setUint32(at + 12 + j * 4, word, true)
    })
  })
  return memory.copyOut(call.data, bytes) ? 0 : fault(call)
}

interface Entry {
  readonly leaf: number
  readonly subleaf: number
  readonly words: readonly number[]
}

/** struct kvm_tdx_init_vm: attributes, xfam, three digests, reserved, then struct kvm_cpuid2 at 256. */
function initVm(call: TdxCall, vm: VmFd, td: TdInfo): number {
  const { memory } = call.kernel
  const where = 'tdx_td_init'
  if (td.state !== 'uninitialized') return refuse(call, 'EINVAL', `the TD is ${td.state}`, where)
  if (call.flags !== 0) return refuse(call, 'EINVAL', 'flags must be 0', where)
  const count = memory.copyIn(call.data + 256n, 4)
  if (count === null) return fault(call)
  const nent = viewOf(count).getUint32(0, true)
  if (nent > MAX_CPUID_ENTRIES) return refuse(call, 'E2BIG', `${nent} CPUID entries`, where)
  const bytes = memory.copyIn(call.data, 264 + nent * CPUID_ENTRY_SIZE)
  if (bytes === null) return fault(call)
  const view = viewOf(bytes)
  if (bytes.subarray(160, 256).some((b) => b !== 0)) return refuse(call, 'EINVAL', 'reserved bytes are not 0', where)
  if (view.getUint32(260, true) !== 0) return refuse(call, 'EINVAL', 'cpuid.padding is not 0', where)
  if (vm.vcpus.size > 0) return refuse(call, 'EBUSY', 'vCPUs exist already', 'setup_tdparams')
  const attributes = view.getBigUint64(0, true)
  const xfam = view.getBigUint64(8, true)
  if ((attributes & ~ATTRIBUTES) !== 0n)
    return refuse(call, 'EINVAL', `attributes 0x${attributes.toString(16)}: only SEPT_VE_DISABLE is supported`, 'setup_tdparams')
  if ((xfam & ~XFAM) !== 0n) return refuse(call, 'EINVAL', `xfam 0x${xfam.toString(16)} has unsupported bits`, 'setup_tdparams')
  const entries: Entry[] = Array.from({ length: nent }, (_, i) => {
    const at = 264 + i * CPUID_ENTRY_SIZE
    const u32 = (offset: number): number => view.getUint32(at + offset, true)
    return { leaf: u32(0), subleaf: (u32(8) & 1) !== 0 ? u32(4) : NO_SUBLEAF, words: [u32(12), u32(16), u32(20), u32(24)] }
  })
  const widths = entries.find((e) => e.leaf === 0x80000008)
  const width = ((widths?.words[0] ?? 0) >>> 16) & 0xff
  if (width !== 48 && width !== 52)
    return refuse(call, 'EINVAL', 'CPUID 0x80000008 EAX[23:16] must be 48 or 52', 'setup_tdparams_eptp_controls')
  const refused = cpuidRefusal(call, entries)
  if (refused !== 0) return refused
  if ((xfam & XFAM_FIXED1) !== XFAM_FIXED1) return operand(call, OPERAND.XFAM, 'XFAM lacks x87 and SSE')
  const khz = vm.tscKhz
  if (khz < 100_000 || khz > 10_000_000) return operand(call, OPERAND.TSC_FREQUENCY, `a TSC of ${khz} kHz`)
  Object.assign(td, { state: 'initialized', attributes, xfam, sharedBit: width === 48 ? 1n << 47n : 1n << 51n })
  return 0
}

/** TDX_OPERAND_INVALID of TDH.MNG.INIT. */
function operand(call: TdxCall, which: bigint, reason: string): number {
  call.hwError = OPERAND_INVALID | which
  return refuse(call, 'EINVAL', `the TDX module refuses ${reason}`, '__tdx_td_init (TDH.MNG.INIT)')
}

/** setup_tdparams_cpuids, then the module's check of the bits. */
function cpuidRefusal(call: TdxCall, entries: readonly Entry[]): number {
  const where = 'setup_tdparams_cpuids'
  let copied = 0
  let outside: Entry | null = null
  for (const [leaf, subleaf, ...masks] of TDX_CPUID_CONFIG) {
    const entry = entries.find((e) => e.leaf === leaf && e.subleaf === subleaf)
    if (entry === undefined) continue
    if (leaf === 7 && subleaf === 0) {
      if (((entry.words[1] as number) & 0x810) !== 0 || ((entry.words[2] as number) & 0x20) !== 0)
        return refuse(call, 'EINVAL', 'TSX (HLE, RTM) and WAITPKG clobber host state', `${where} (tdx_unsupported_cpuid)`)
    }
    copied++
    if (entry.words.some((word, i) => (word & ~(masks[i] as number)) !== 0)) outside ??= entry
  }
  if (copied !== entries.length) return refuse(call, 'EINVAL', `${entries.length - copied} CPUID entries are not configurable`, where)
  return outside === null ? 0 : operand(call, OPERAND.CPUID_CONFIG, `CPUID 0x${outside.leaf.toString(16)}: bits that are not configurable`)
}

/** tdx_vcpu_create. 0 or a negative errno. */
export function tdxVcpuRefusal(vm: VmFd): number {
  const where = `${TDX_C} tdx_vcpu_create`
  if (vm.td?.state !== 'initialized') {
    const reason = vm.td?.state === 'runnable' ? 'the TD is finalised' : 'KVM_TDX_INIT_VM has not been issued'
    return vm.kernel.refuse('EIO', 'KVM_CREATE_VCPU', reason, where, { switch: 'td_state' })
  }
  return vm.irqchip === 'split'
    ? 0
    : vm.kernel.refuse('EINVAL', 'KVM_CREATE_VCPU', 'a TD needs KVM_CAP_SPLIT_IRQCHIP', where, { switch: 'has_protected_eoi' })
}

/** TDX commands of a vCPU file descriptor. */
export function tdxVcpuCommand(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, vm } = vcpu
  const td = vm.td
  if (td === null) return kernel.refuse('EINVAL', 'KVM_MEMORY_ENCRYPT_OP', 'not a TD', 'arch/x86/kvm/vmx/main.c vt_vcpu_mem_enc_ioctl')
  if (bytes.length === 0) return kernel.badPointer('KVM_MEMORY_ENCRYPT_OP')
  if (td.state !== 'initialized')
    return kernel.refuse('EINVAL', 'KVM_MEMORY_ENCRYPT_OP', `the TD is ${td.state}`, `${TDX_C} tdx_vcpu_ioctl`, { switch: 'td_state' })
  const call = begin(kernel, bytes, 'tdx_vcpu_ioctl')
  if (typeof call === 'number') return call
  switch (viewOf(bytes).getUint32(0, true)) {
    case TDX_COMMAND.KVM_TDX_INIT_VCPU:
      return initVcpu(call, vcpu)
    case TDX_COMMAND.KVM_TDX_INIT_MEM_REGION: {
      const result = initMemory(call, vcpu, td)
      viewOf(bytes).setBigUint64(16, call.hwError, true)
      return result
    }
    case TDX_COMMAND.KVM_TDX_GET_CPUID:
      if (call.flags !== 0) return refuse(call, 'EINVAL', 'flags must be 0', 'tdx_vcpu_get_cpuid')
      return kernel.memory.copyIn(call.data, 8) === null ? fault(call) : kernel.unimplemented(call.name, 'the CPUID view of the TDX module')
    default:
      return refuse(call, 'EINVAL', 'not a command of a vCPU file descriptor', 'tdx_vcpu_ioctl')
  }
}

function initVcpu(call: TdxCall, vcpu: VcpuFd): number {
  const { core } = vcpu.kernel
  const where = 'tdx_vcpu_init'
  if (call.flags !== 0) return refuse(call, 'EINVAL', 'flags must be 0', where)
  if (vcpu.tdInitialized) return refuse(call, 'EINVAL', 'the vCPU is initialised already', where)
  const bsp = vcpu.id === vcpu.vm.bspId ? 0x100n : 0n
  core.stagingView.setBigUint64(0, X2APIC_BASE | bsp, true)
  if (!core.call.msrSet(vcpu.s, MSR_APIC_BASE))
    return refuse(call, 'EINVAL', 'CPUID does not offer x2APIC: KVM_SET_CPUID2 comes first', `${where} (kvm_apic_set_base)`)
  vcpu.tdInitialized = true
  // tdx_td_vcpu_init: also an AP is runnable from here on.
  vcpu.cpu.setUint32(CPU_HALTED, 0, true)
  return 0
}

/** struct kvm_tdx_init_mem_region: source_addr, gpa, nr_pages; what is left is written back. */
function initMemory(call: TdxCall, vcpu: VcpuFd, td: TdInfo): number {
  const { memory } = call.kernel
  const where = 'tdx_vcpu_init_mem_region'
  if (!vcpu.tdInitialized) return refuse(call, 'EINVAL', 'KVM_TDX_INIT_VCPU has not been issued', where)
  if ((call.flags & ~1) !== 0) return refuse(call, 'EINVAL', `flags 0x${call.flags.toString(16)}`, where)
  const bytes = memory.copyIn(call.data, 24)
  if (bytes === null) return fault(call)
  const view = viewOf(bytes)
  let [source, gpa, pages] = [view.getBigUint64(0, true), view.getBigUint64(8, true), view.getBigUint64(16, true)]
  const size = pages << 12n
  const end = gpa + size
  if (source === 0n || pages === 0n || ((source | gpa) & 0xfffn) !== 0n || size >= 1n << 64n || end > 1n << 64n)
    return refuse(call, 'EINVAL', 'source 0, no pages, unaligned or a wrapping range', where)
  if (gpa >= td.sharedBit || end > td.sharedBit) return refuse(call, 'EINVAL', 'the range has the shared bit set', where)
  let result = 0
  for (; pages > 0n; pages--, source += 4096n, gpa += 4096n) {
    const why = gmemRefusal(vcpu.vm, gpa)
    if (why !== null) result = refuse(call, 'EINVAL', why, `${where} (kvm_gmem_populate)`)
    else if (memory.copyIn(source, 4096) === null) result = call.kernel.badPointer(call.name, 'the source page is not in a mapping')
    else if (td.pages.has(gpa)) {
      call.hwError = EPT_ENTRY_STATE_INCORRECT
      result = refuse(call, 'EIO', 'the page was added already', `${where} (TDH.MEM.PAGE.ADD)`)
    }
    if (result !== 0) break
    td.pages.add(gpa)
  }
  view.setBigUint64(0, source, true)
  view.setBigUint64(8, gpa, true)
  view.setBigUint64(16, pages, true)
  return memory.copyOut(call.data, bytes) ? result : fault(call)
}

/** KVM_MP_STATE_UNINITIALIZED: an AP that nothing has started. */
const UNINITIALIZED = 1

/** The wait loop of an AP, tdx_vcpu_pre_run, then what is missing. */
export function tdxRunRefusal(vcpu: VcpuFd): number {
  // INIT and SIPI are blocked for a TD: the AP waits until a signal comes.
  if (vcpu.cpu.getUint32(CPU_HALTED, true) === UNINITIALIZED)
    return vcpu.kernel.refuse('EINTR', 'KVM_RUN', 'the vCPU waits for KVM_TDX_INIT_VCPU', 'arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_run')
  if (!vcpu.tdInitialized || vcpu.vm.td?.state !== 'runnable') {
    return vcpu.kernel.refuse('EINVAL', 'KVM_RUN', 'the vCPU is not initialised or the TD not finalised', `${TDX_C} tdx_vcpu_pre_run`, {
      switch: 'td_state',
    })
  }
  // vt_smi_allowed: no TD ever has an SMI, and KVM_SET_VCPU_EVENTS does not refuse to make one pending.
  if (vcpu.kvm.getUint32(VKVM_SMI_PENDING, true) !== 0) {
    vcpu.vm.kill('an SMI is pending on a TD (KVM_BUG_ON in arch/x86/kvm/vmx/main.c vt_smi_allowed)')
    return vcpu.vm.refuseDead()
  }
  return vcpu.kernel.unimplemented('KVM_RUN', 'running a TD: the TDX module (TDH.VP.ENTER)')
}
