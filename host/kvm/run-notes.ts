/**
 * What the core notes beside kvm_run about the last KVM_RUN: why it returned, where it stopped, GHCB events. Linux has
 * tracepoints and debugfs for this; nothing here is guest data.
 */
import {
  CPU_ICOUNT,
  CPU_RIP,
  CPU_STOP_DETAIL,
  CPU_STOP_INFO,
  CPU_STOP_NAME,
  CPU_STOP_REASON,
  STOP_FETCH_MMIO,
  STOP_UNIMPLEMENTED,
  VCPU_KVM,
  VCPU_KVM_SIZE,
  VKVM_COUNTS,
  VKVM_COUNT_USED,
  VKVM_TRACE,
  VKVM_TRACE_HEAD,
  VKVM_WHY,
} from '../generated/layout.ts'
import { ghcbEventName } from './ghcb-names.ts'
import type { VcpuFd } from './vcpu.ts'

/** Why KVM_RUN returned -EINTR (VKVM_WHY). */
export const WHY = { NONE: 0, BUDGET: 1, BLOCKED: 2, HALTED_FOREVER: 3, KICK: 4, USER_DEADLINE: 5, WAIT_SIPI: 6 } as const

/** UNIMPLEMENTED_* of the core. */
const unimplemented = [
  'an instruction form',
  'a hardware task switch',
  'virtual-8086 mode',
  'RSM',
  'SVM instructions',
  'an exception frame in MMIO',
  'an MMIO access of more than 16 fragments',
  "an x87 instruction on MMIO, which KVM's emulator lacks",
]

/** `vcpu.notes`. */
export class RunNotes {
  readonly #id: number
  readonly #cpu: DataView
  readonly #kvm: DataView
  #traced = 0

  /** @internal */
  constructor(vcpu: VcpuFd) {
    this.#id = vcpu.id
    this.#cpu = vcpu.cpu
    this.#kvm = vcpu.kernel.core.view(vcpu.s + VCPU_KVM, VCPU_KVM_SIZE)
  }

  /** Instructions retired so far; exact up to 2^53. */
  retired(): number {
    return this.#cpu.getUint32(CPU_ICOUNT, true) + this.#cpu.getUint32(CPU_ICOUNT + 4, true) * 0x100000000
  }

  /** One of WHY, after KVM_RUN returned -EINTR. */
  why(): number {
    return this.#kvm.getUint32(VKVM_WHY, true)
  }

  /** The engine fetched an instruction where no memory is. */
  nowhere(): boolean {
    return this.#cpu.getUint32(CPU_STOP_REASON, true) === STOP_FETCH_MMIO
  }

  /** The engine's own note of where and on what it stopped: addresses and instruction form, not guest data. */
  stopped(): string {
    const hex = (offset: number): string => `0x${this.#cpu.getBigUint64(offset, true).toString(16)}`
    const at = `vCPU ${this.#id} at RIP ${hex(CPU_RIP)}`
    if (this.nowhere()) return `${at}: no memory at guest-physical ${hex(CPU_STOP_DETAIL)} to fetch from`
    if (this.#cpu.getUint32(CPU_STOP_REASON, true) !== STOP_UNIMPLEMENTED) return at
    const what = unimplemented[this.#cpu.getUint32(CPU_STOP_NAME, true)] ?? 'something'
    const info = this.#cpu.getUint32(CPU_STOP_INFO, true)
    return `${what}, vCPU ${this.#id} at RIP ${hex(CPU_STOP_DETAIL)}: instruction of ${info & 0xff} bytes, ModRM 0x${((info >> 8) & 0xff).toString(16)}`
  }

  /** GHCB events since the last call, one line each; the ring holds 32. */
  *ghcbTrace(): Generator<string> {
    const head = this.#kvm.getUint32(VKVM_TRACE_HEAD, true)
    for (; this.#traced !== head; this.#traced++) {
      const at = VKVM_TRACE + (this.#traced & 31) * 32
      const field = (i: number): string => `0x${this.#kvm.getBigUint64(at + i * 8, true).toString(16)}`
      yield `ghcb ${ghcbEventName(this.#kvm.getBigUint64(at, true))} info1=${field(1)} info2=${field(2)} vcpu=${this.#id} icount=${this.#kvm.getBigUint64(at + 24, true)}`
    }
  }

  /** GHCB events by name with their counts. */
  *ghcbCounts(): Generator<[string, number]> {
    const used = this.#kvm.getUint32(VKVM_COUNT_USED, true)
    for (let i = 0; i < used; i++) {
      const at = VKVM_COUNTS + i * 16
      yield [ghcbEventName(this.#kvm.getBigUint64(at, true)), Number(this.#kvm.getBigUint64(at + 8, true))]
    }
  }
}
