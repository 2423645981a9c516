/** Bytes for the structs that a log does not show: what is assumed instead, in words. */
import { encodeCpuid } from '../cpuid/entries.ts'
import { CAP, REQUEST } from '../generated/kvm-abi.ts'
import type { Kvm } from '../kvm/kvm.ts'
import type { LoggedCall } from './log.ts'
import type { File, LoggedProcess } from './process.ts'
import { structSize } from './structs.ts'

const PAIRS: Readonly<Record<string, keyof typeof REQUEST>> = {
  KVM_SET_REGS: 'KVM_GET_REGS',
  KVM_SET_SREGS: 'KVM_GET_SREGS',
  KVM_SET_SREGS2: 'KVM_GET_SREGS2',
  KVM_SET_VCPU_EVENTS: 'KVM_GET_VCPU_EVENTS',
  KVM_SET_LAPIC: 'KVM_GET_LAPIC',
  KVM_SET_XSAVE: 'KVM_GET_XSAVE',
  KVM_SET_FPU: 'KVM_GET_FPU',
  KVM_SET_XCRS: 'KVM_GET_XCRS',
  KVM_SET_DEBUGREGS: 'KVM_GET_DEBUGREGS',
  KVM_SET_CLOCK: 'KVM_GET_CLOCK',
  KVM_SET_PIT2: 'KVM_GET_PIT2',
  KVM_SET_IRQCHIP: 'KVM_GET_IRQCHIP',
}
/** What a VM can enable (kvm_vm_ioctl_enable_cap). */
const ENABLED: ReadonlySet<number> = new Set([
  CAP.KVM_CAP_SPLIT_IRQCHIP,
  CAP.KVM_CAP_EXIT_HYPERCALL,
  CAP.KVM_CAP_X86_USER_SPACE_MSR,
  CAP.KVM_CAP_EXCEPTION_PAYLOAD,
  CAP.KVM_CAP_X86_TRIPLE_FAULT_EVENT,
  CAP.KVM_CAP_X2APIC_API,
  CAP.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
  CAP.KVM_CAP_DIRTY_LOG_RING,
  CAP.KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
  CAP.KVM_CAP_HALT_POLL,
  CAP.KVM_CAP_MSR_PLATFORM_INFO,
  CAP.KVM_CAP_DISABLE_QUIRKS,
  CAP.KVM_CAP_DISABLE_QUIRKS2,
  CAP.KVM_CAP_X86_DISABLE_EXITS,
  CAP.KVM_CAP_X86_BUS_LOCK_EXIT,
  CAP.KVM_CAP_MAX_VCPU_ID,
  CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
  CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
])
/** Without their contents there is nothing to ask. */
export const OPAQUE = new Set([
  'KVM_SET_USER_MEMORY_REGION',
  'KVM_SET_USER_MEMORY_REGION2',
  'KVM_GET_DIRTY_LOG',
  'KVM_CLEAR_DIRTY_LOG',
  'KVM_CREATE_GUEST_MEMFD',
])

export class Contents {
  readonly #kvm: Kvm
  readonly #process: LoggedProcess
  /** Eventfds and ports given out so far. */
  #doors = 0

  constructor(kvm: Kvm, process: LoggedProcess) {
    this.#kvm = kvm
    this.#process = process
  }

  /** Bytes for a struct that the log does not show; null: nothing sensible can be assumed. */
  of(call: LoggedCall, file: File, code: number, name: string, size: number): { bytes: Uint8Array; why: string } | null {
    const short = call.errno === 'E2BIG'
    const zeros = new Uint8Array(size)
    const view = new DataView(zeros.buffer)
    const out = (bytes: Uint8Array, why: string) => ({ bytes, why })
    const list = (header: number, entry: number, n: number): Uint8Array => {
      const bytes = new Uint8Array(header + entry * 512)
      new DataView(bytes.buffer).setUint32(0, n, true)
      return bytes
    }
    const pair = PAIRS[name]
    if (pair !== undefined) {
      const bytes = new Uint8Array(Math.max(size, structSize(REQUEST[pair])))
      if (this.#kvm.ioctl(file.fd, REQUEST[pair], bytes) < 0) bytes.fill(0)
      return out(bytes, 'the contents: what the matching KVM_GET_* gives')
    }
    switch (name) {
      case 'KVM_GET_MSR_INDEX_LIST':
      case 'KVM_GET_MSR_FEATURE_INDEX_LIST':
        return out(list(4, 4, short ? 0 : 512), 'the length')
      case 'KVM_GET_SUPPORTED_CPUID':
      case 'KVM_GET_EMULATED_CPUID':
      case 'KVM_GET_CPUID2':
        return out(list(8, 40, short ? 0 : 256), 'the length')
      case 'KVM_SET_CPUID2':
        return out(encodeCpuid(this.#kvm.supportedCpuid()), 'the entries: what KVM_GET_SUPPORTED_CPUID gives')
      case 'KVM_GET_MSRS':
      case 'KVM_SET_MSRS': {
        const bytes = list(8, 16, 1)
        new DataView(bytes.buffer).setUint32(8, file.kind === 'system' ? 0x10a : 0x10, true)
        return out(bytes, 'one harmless MSR')
      }
      case 'KVM_ENABLE_CAP': {
        const asked = this.#process.asked.get(call.pid)
        if (asked === undefined) return null
        // Asking for the in-kernel irqchip and then enabling something is how the split one is chosen.
        const cap = asked === CAP.KVM_CAP_IRQCHIP ? CAP.KVM_CAP_SPLIT_IRQCHIP : asked
        // Not asked for before it is enabled (KVM_CAP_MAX_VCPU_ID, for one): nobody can tell which it is.
        if (!ENABLED.has(cap)) return null
        view.setUint32(0, cap, true)
        view.setBigUint64(8, cap === CAP.KVM_CAP_SPLIT_IRQCHIP ? 24n : cap === CAP.KVM_CAP_EXIT_HYPERCALL ? 0x1000n : 1n, true)
        const capName = Object.entries(CAP).find(([, n]) => n === cap)?.[0] ?? `capability ${cap}`
        // A capability that this KVM cannot enable was probably not the one.
        if (this.#kvm.ioctl(file.fd, REQUEST.KVM_CHECK_EXTENSION, cap) === 0) return null
        return out(zeros, `${capName}, which the thread asked for last`)
      }
      case 'KVM_MEMORY_ENCRYPT_REG_REGION':
      case 'KVM_MEMORY_ENCRYPT_UNREG_REGION': {
        const slot = file.vm?.slots.at(-1)
        if (slot === undefined) return null
        view.setBigUint64(0, slot.address, true)
        view.setBigUint64(8, slot.size, true)
        return out(zeros, 'the region: the slot set last')
      }
      case 'KVM_SET_MEMORY_ATTRIBUTES': {
        const slot = file.vm?.slots.at(-1)
        if (slot === undefined) return null
        view.setBigUint64(0, slot.gpa, true)
        view.setBigUint64(8, slot.size, true)
        view.setBigUint64(16, 8n, true)
        return out(zeros, 'PRIVATE for the slot set last')
      }
      case 'KVM_IRQFD':
        view.setUint32(0, Number(this.#process.eventfd(BigInt(1000 + this.#doors))), true)
        view.setUint32(4, this.#doors++ % 24, true)
        return out(zeros, 'an eventfd and a GSI')
      case 'KVM_IOEVENTFD':
        view.setBigUint64(8, BigInt(0x2000 + this.#doors++), true)
        view.setUint32(16, 1, true)
        view.setUint32(20, Number(this.#process.eventfd(2000n)), true)
        view.setUint32(24, 2, true)
        return out(zeros, 'an eventfd on a free port')
      case 'KVM_GET_DEVICE_ATTR':
      case 'KVM_SET_DEVICE_ATTR':
      case 'KVM_HAS_DEVICE_ATTR':
        view.setBigUint64(16, this.#process.scratch.address, true)
        return out(zeros, 'group 0, attribute 0')
      case 'KVM_X86_SETUP_MCE':
        view.setBigUint64(0, 0x10an, true)
        return out(zeros, '10 banks')
      case 'KVM_SET_SIGNAL_MASK':
        view.setUint32(0, 8, true)
        return out(zeros, 'an empty mask')
      case 'KVM_SET_IDENTITY_MAP_ADDR':
        view.setBigUint64(0, 0xfeffc000n, true)
        return out(zeros, 'the usual address')
      case 'KVM_SIGNAL_MSI':
        view.setUint32(0, 0xfee00000, true)
        return out(zeros, 'vector 0 to APIC 0')
      default:
        return out(zeros, code >>> 30 === 2 ? 'nothing: an output' : 'the contents: zeros')
    }
  }
}
