/**
 * kvm_run, decoded: one variant per exit reason with the kernel's names (uapi/linux/kvm.h, struct
 * kvm_run). `data` members are live views of the vCPU's pages: a handler completes a read by writing
 * into them, then calls `run` again.
 */
import { EXIT } from '../generated/kvm-abi.ts'

export type ExitReason = keyof typeof EXIT

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
export interface MmioExit {
  readonly reason: 'KVM_EXIT_MMIO'
  readonly physAddr: bigint
  readonly len: number
  readonly isWrite: boolean
  /** `len` live bytes. */
  readonly data: Uint8Array
}
export interface HypercallExit {
  readonly reason: 'KVM_EXIT_HYPERCALL'
  readonly nr: bigint
  readonly args: readonly bigint[]
  readonly flags: bigint
}
export interface MsrExit {
  readonly reason: 'KVM_EXIT_X86_RDMSR' | 'KVM_EXIT_X86_WRMSR'
  /** KVM_MSR_EXIT_REASON_*. */
  readonly why: number
  readonly index: number
  readonly data: bigint
}
export interface FailEntryExit {
  readonly reason: 'KVM_EXIT_FAIL_ENTRY'
  readonly hardwareEntryFailureReason: bigint
  readonly cpu: number
}
export interface InternalErrorExit {
  readonly reason: 'KVM_EXIT_INTERNAL_ERROR'
  readonly suberror: number
  readonly data: readonly bigint[]
}
export interface SystemEventExit {
  readonly reason: 'KVM_EXIT_SYSTEM_EVENT'
  readonly type: number
  readonly data: readonly bigint[]
}
export interface MemoryFaultExit {
  readonly reason: 'KVM_EXIT_MEMORY_FAULT'
  readonly flags: bigint
  readonly gpa: bigint
  readonly size: bigint
}
export interface DebugExit {
  readonly reason: 'KVM_EXIT_DEBUG'
  readonly exception: number
  readonly pc: bigint
  readonly dr6: bigint
  readonly dr7: bigint
}
export interface ExceptionExit {
  readonly reason: 'KVM_EXIT_EXCEPTION'
  readonly exception: number
  readonly errorCode: number
}
export interface IoapicEoiExit {
  readonly reason: 'KVM_EXIT_IOAPIC_EOI'
  readonly vector: number
}
export interface UnknownExit {
  readonly reason: 'KVM_EXIT_UNKNOWN'
  readonly hardwareExitReason: bigint
}
/** Exits without payload, and those whose payload later issues decode. */
export interface PlainExit {
  readonly reason:
    | 'KVM_EXIT_HLT'
    | 'KVM_EXIT_SHUTDOWN'
    | 'KVM_EXIT_INTR'
    | 'KVM_EXIT_IRQ_WINDOW_OPEN'
    | 'KVM_EXIT_SET_TPR'
    | 'KVM_EXIT_TPR_ACCESS'
    | 'KVM_EXIT_NMI'
    | 'KVM_EXIT_HYPERV'
    | 'KVM_EXIT_DIRTY_RING_FULL'
    | 'KVM_EXIT_AP_RESET_HOLD'
    | 'KVM_EXIT_X86_BUS_LOCK'
    | 'KVM_EXIT_XEN'
    | 'KVM_EXIT_NOTIFY'
    | 'KVM_EXIT_TDX'
    | 'KVM_EXIT_SNP_REQ_CERTS'
}

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
  | UnknownExit
  | PlainExit

/** Offsets in struct kvm_run. */
export const RUN = {
  REQUEST_INTERRUPT_WINDOW: 0,
  IMMEDIATE_EXIT: 1,
  EXIT_REASON: 8,
  READY_FOR_INTERRUPT_INJECTION: 12,
  IF_FLAG: 13,
  FLAGS: 14,
  CR8: 16,
  APIC_BASE: 24,
  PAYLOAD: 32,
  VALID_REGS: 288,
  DIRTY_REGS: 296,
  SYNC_REGS: 304,
  SYNC_SREGS: 448,
  SYNC_EVENTS: 760,
  HYPERCALL_RET: 88,
  MSR_ERROR: 32,
  MSR_DATA: 48,
} as const

const names: readonly (ExitReason | undefined)[] = (() => {
  const list: (ExitReason | undefined)[] = []
  for (const [name, number] of Object.entries(EXIT)) list[number] = name as ExitReason
  return list
})()

/** The kernel's name of an exit number. */
export function exitName(reason: number): ExitReason | `KVM_EXIT_${number}` {
  return names[reason] ?? `KVM_EXIT_${reason}`
}

/** Decodes the exit that the vCPU's pages hold. */
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
      return { reason: 'KVM_EXIT_INTERNAL_ERROR', suberror: u32(32), data: list(40, Math.min(16, u32(36))) }
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
    case EXIT.KVM_EXIT_UNKNOWN:
      return { reason: 'KVM_EXIT_UNKNOWN', hardwareExitReason: u64(32) }
    default: {
      const name = names[reason]
      if (name === undefined) return { reason: 'KVM_EXIT_UNKNOWN', hardwareExitReason: BigInt(reason) }
      return { reason: name as PlainExit['reason'] }
    }
  }
}
