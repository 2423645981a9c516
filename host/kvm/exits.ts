/**
 * kvm_run, decoded: one variant per exit reason with the kernel's names (uapi/linux/kvm.h, struct
 * kvm_run). `data` members are live views of the vCPU's pages: a handler completes a read by writing
 * into them, then calls `run` again.
 */
import { RUN } from '../generated/kvm.ts'
import { EXIT } from '../generated/kvm-abi.ts'

/** Names of exit reasons (uapi/linux/kvm.h KVM_EXIT_*). */
export type ExitReason = keyof typeof EXIT

/** The guest accessed a port. */
export interface IoExit {
  readonly reason: 'KVM_EXIT_IO'
  readonly direction: 'in' | 'out'
  /** Bytes per access: 1, 2 or 4. */
  readonly size: number
  readonly port: number
  readonly count: number
  /** `count * size` live bytes: written by the guest (out), to be filled by the handler (in). */
  readonly data: Uint8Array
}
/** The guest accessed an address without memory. */
export interface MmioExit {
  readonly reason: 'KVM_EXIT_MMIO'
  readonly physAddr: bigint
  readonly len: number
  readonly isWrite: boolean
  /** `len` live bytes. */
  readonly data: Uint8Array
}
/** A hypercall for userspace (KVM_HC_MAP_GPA_RANGE 12); the answer goes by `vcpu.completeHypercall`. */
export interface HypercallExit {
  readonly reason: 'KVM_EXIT_HYPERCALL'
  readonly nr: bigint
  readonly args: readonly bigint[]
  readonly flags: bigint
}
/** An MSR that KVM_CAP_X86_USER_SPACE_MSR hands over; the answer goes by `vcpu.completeMsr`. */
export interface MsrExit {
  readonly reason: 'KVM_EXIT_X86_RDMSR' | 'KVM_EXIT_X86_WRMSR'
  /** KVM_MSR_EXIT_REASON_*. */
  readonly why: number
  readonly index: number
  readonly data: bigint
}
/** The hardware refused to enter the guest. */
export interface FailEntryExit {
  readonly reason: 'KVM_EXIT_FAIL_ENTRY'
  readonly hardwareEntryFailureReason: bigint
  readonly cpu: number
}
/** KVM could not go on. */
export interface InternalErrorExit {
  readonly reason: 'KVM_EXIT_INTERNAL_ERROR'
  /** KVM_INTERNAL_ERROR_*: 1 EMULATION, 3 DELIVERY_EV, 4 UNEXPECTED_EXIT_REASON. */
  readonly suberror: number
  readonly data: readonly bigint[]
  /** Of EMULATION: bytes at RIP, as many as KVM could fetch. */
  readonly instruction: Uint8Array | null
}
/** KVM_SYSTEM_EVENT_*: SHUTDOWN 1, RESET 2, CRASH 3, SEV_TERM 6 with the GHCB MSR's value in data[0]. */
export interface SystemEventExit {
  readonly reason: 'KVM_EXIT_SYSTEM_EVENT'
  readonly type: number
  readonly data: readonly bigint[]
}
/** No memory of the kind asked for behind these addresses; KVM_RUN returned -EFAULT. Flag 8: private. */
export interface MemoryFaultExit {
  readonly reason: 'KVM_EXIT_MEMORY_FAULT'
  readonly flags: bigint
  readonly gpa: bigint
  readonly size: bigint
}
/** A breakpoint or step of KVM_SET_GUEST_DEBUG. */
export interface DebugExit {
  readonly reason: 'KVM_EXIT_DEBUG'
  readonly exception: number
  readonly pc: bigint
  readonly dr6: bigint
  readonly dr7: bigint
}
/** Not made by KVM today; logs may hold it. */
export interface ExceptionExit {
  readonly reason: 'KVM_EXIT_EXCEPTION'
  readonly exception: number
  readonly errorCode: number
}
/** End of interrupt, for an IOAPIC in userspace (KVM_CAP_SPLIT_IRQCHIP). */
export interface IoapicEoiExit {
  readonly reason: 'KVM_EXIT_IOAPIC_EOI'
  readonly vector: number
}
/** A reason without a name here; `hardwareExitReason` is the vendor's number. */
export interface UnknownExit {
  readonly reason: 'KVM_EXIT_UNKNOWN'
  readonly hardwareExitReason: bigint
}
/** The guest touched the TPR (KVM_TPR_ACCESS_REPORTING). */
export interface TprAccessExit {
  readonly reason: 'KVM_EXIT_TPR_ACCESS'
  /** RIP of the access, which is done. */
  readonly rip: bigint
  readonly isWrite: boolean
}
/** KVM_CAP_X86_NOTIFY_VMEXIT. */
export interface NotifyExit {
  readonly reason: 'KVM_EXIT_NOTIFY'
  /** KVM_NOTIFY_CONTEXT_INVALID 1. */
  readonly flags: number
}
/** The guest asks for certificates; the answer goes to `ret` (RUN.CERTS_RET): 0, ENOSPC with `npages`, EAGAIN or EIO. */
export interface SnpReqCertsExit {
  readonly reason: 'KVM_EXIT_SNP_REQ_CERTS'
  readonly gpa: bigint
  readonly npages: bigint
}
/** A TDVMCALL for userspace; the answer goes to RUN.TDX_RET, of GetTdVmCallInfo also to RUN.TDX_R11 and the three after it. */
export interface TdxExit {
  readonly reason: 'KVM_EXIT_TDX'
  readonly flags: bigint
  readonly call:
    | { readonly nr: 0x10000n; readonly leaf: bigint }
    | { readonly nr: 0x10002n; readonly gpa: bigint; readonly size: bigint }
    | { readonly nr: 0x10004n; readonly vector: bigint }
    | { readonly nr: bigint; readonly data: readonly bigint[] }
}
/** struct kvm_hyperv_exit: SYNIC 1, HCALL 2, SYNDBG 3. Not made here (no CONFIG_KVM_HYPERV); logs may hold it. */
export interface HypervExit {
  readonly reason: 'KVM_EXIT_HYPERV'
  readonly type: number
  /** SYNIC: msr, control, event page, message page; HCALL: input, result, two parameters; SYNDBG: msr, control, status, pages. */
  readonly data: readonly bigint[]
}
/** struct kvm_xen_exit: HCALL 1. Not made here (no CONFIG_KVM_XEN). */
export interface XenExit {
  readonly reason: 'KVM_EXIT_XEN'
  readonly type: number
  readonly longMode: boolean
  readonly cpl: number
  readonly input: bigint
  readonly params: readonly bigint[]
}
/** Exits without payload. KVM_EXIT_SET_TPR: the value is kvm_run.cr8. */
export interface PlainExit {
  readonly reason:
    | 'KVM_EXIT_HLT'
    | 'KVM_EXIT_SHUTDOWN'
    | 'KVM_EXIT_INTR'
    | 'KVM_EXIT_IRQ_WINDOW_OPEN'
    | 'KVM_EXIT_SET_TPR'
    | 'KVM_EXIT_NMI'
    | 'KVM_EXIT_DIRTY_RING_FULL'
    | 'KVM_EXIT_AP_RESET_HOLD'
    | 'KVM_EXIT_X86_BUS_LOCK'
}

/** What KVM_RUN came back with: told apart by `reason`, the kernel's full name. */
export type Exit =
  | IoExit
  | MmioExit
  | HypercallExit
  | MsrExit
  | FailEntryExit
  | InternalErrorExit
  | SystemEventExit
  | MemoryFaultExit
  | DebugExit
  | ExceptionExit
  | IoapicEoiExit
  | TprAccessExit
  | NotifyExit
  | SnpReqCertsExit
  | TdxExit
  | HypervExit
  | XenExit
  | UnknownExit
  | PlainExit

const names: readonly (ExitReason | undefined)[] = (() => {
  const list: (ExitReason | undefined)[] = []
  for (const [name, number] of Object.entries(EXIT)) list[number] = name as ExitReason
  return list
})()

/** The kernel's name of an exit number. */
export function exitName(reason: number): ExitReason | `KVM_EXIT_${number}` {
  return names[reason] ?? `KVM_EXIT_${reason}`
}

/** The leaves that have a form of their own: GetTdVmCallInfo, GetQuote, SetupEventNotifyInterrupt. */
function tdxCall(nr: bigint, data: readonly bigint[]): TdxExit['call'] {
  const [first, second] = data as [bigint, bigint]
  if (nr === 0x10000n) return { nr, leaf: first }
  if (nr === 0x10002n) return { nr, gpa: first, size: second }
  if (nr === 0x10004n) return { nr, vector: first }
  return { nr, data }
}

/** Decodes the exit that a vCPU's pages hold: `decodeExit(vcpu.runBytes, vcpu.runView)` after `vcpu.runRaw`. Never throws. */
export function decodeExit(run: Uint8Array, view: DataView): Exit {
  const reason = view.getUint32(RUN.EXIT_REASON, true)
  const u32 = (at: number): number => view.getUint32(at, true)
  const u64 = (at: number): bigint => view.getBigUint64(at, true)
  const list = (at: number, n: number): bigint[] => Array.from({ length: n }, (_, i) => u64(at + i * 8))
  switch (reason) {
    case EXIT.KVM_EXIT_IO: {
      const size = view.getUint8(33)
      const count = u32(36)
      const at = Number(u64(40))
      return {
        reason: 'KVM_EXIT_IO',
        direction: view.getUint8(32) === 0 ? 'in' : 'out',
        size,
        port: view.getUint16(34, true),
        count,
        data: run.subarray(at, at + size * count),
      }
    }
    case EXIT.KVM_EXIT_MMIO: {
      const len = u32(48)
      return { reason: 'KVM_EXIT_MMIO', physAddr: u64(32), len, isWrite: view.getUint8(52) !== 0, data: run.subarray(40, 40 + len) }
    }
    case EXIT.KVM_EXIT_HYPERCALL:
      return { reason: 'KVM_EXIT_HYPERCALL', nr: u64(32), args: list(40, 6), flags: u64(96) }
    case EXIT.KVM_EXIT_X86_RDMSR:
    case EXIT.KVM_EXIT_X86_WRMSR:
      return {
        reason: reason === EXIT.KVM_EXIT_X86_RDMSR ? 'KVM_EXIT_X86_RDMSR' : 'KVM_EXIT_X86_WRMSR',
        why: u32(40),
        index: u32(44),
        data: u64(48),
      }
    case EXIT.KVM_EXIT_FAIL_ENTRY:
      return { reason: 'KVM_EXIT_FAIL_ENTRY', hardwareEntryFailureReason: u64(32), cpu: u32(40) }
    case EXIT.KVM_EXIT_INTERNAL_ERROR:
      return {
        reason: 'KVM_EXIT_INTERNAL_ERROR',
        suberror: u32(32),
        data: list(40, Math.min(16, u32(36))),
        // KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        instruction: u32(32) === 1 && (u64(40) & 1n) !== 0n ? run.slice(49, 49 + Math.min(15, view.getUint8(48))) : null,
      }
    case EXIT.KVM_EXIT_SYSTEM_EVENT:
      return { reason: 'KVM_EXIT_SYSTEM_EVENT', type: u32(32), data: list(40, Math.min(16, u32(36))) }
    case EXIT.KVM_EXIT_MEMORY_FAULT:
      return { reason: 'KVM_EXIT_MEMORY_FAULT', flags: u64(32), gpa: u64(40), size: u64(48) }
    case EXIT.KVM_EXIT_DEBUG:
      return { reason: 'KVM_EXIT_DEBUG', exception: u32(32), pc: u64(40), dr6: u64(48), dr7: u64(56) }
    case EXIT.KVM_EXIT_EXCEPTION:
      return { reason: 'KVM_EXIT_EXCEPTION', exception: u32(32), errorCode: u32(36) }
    case EXIT.KVM_EXIT_IOAPIC_EOI:
      return { reason: 'KVM_EXIT_IOAPIC_EOI', vector: view.getUint8(32) }
    case EXIT.KVM_EXIT_TPR_ACCESS:
      return { reason: 'KVM_EXIT_TPR_ACCESS', rip: u64(32), isWrite: u32(40) !== 0 }
    case EXIT.KVM_EXIT_NOTIFY:
      return { reason: 'KVM_EXIT_NOTIFY', flags: u32(32) }
    case EXIT.KVM_EXIT_SNP_REQ_CERTS:
      return { reason: 'KVM_EXIT_SNP_REQ_CERTS', gpa: u64(32), npages: u64(40) }
    case EXIT.KVM_EXIT_TDX:
      return { reason: 'KVM_EXIT_TDX', flags: u64(32), call: tdxCall(u64(40), list(56, 5)) }
    case EXIT.KVM_EXIT_HYPERV:
      return { reason: 'KVM_EXIT_HYPERV', type: u32(32), data: [u32(32) === 2 ? u64(40) : BigInt(u32(40)), ...list(48, 5)] }
    case EXIT.KVM_EXIT_XEN:
      return { reason: 'KVM_EXIT_XEN', type: u32(32), longMode: u32(40) !== 0, cpl: u32(44), input: u64(48), params: list(64, 6) }
    case EXIT.KVM_EXIT_UNKNOWN:
      return { reason: 'KVM_EXIT_UNKNOWN', hardwareExitReason: u64(32) }
    default: {
      const name = names[reason]
      if (name === undefined) return { reason: 'KVM_EXIT_UNKNOWN', hardwareExitReason: BigInt(reason) }
      return { reason: name as PlainExit['reason'] }
    }
  }
}
