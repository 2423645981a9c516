/** A vCPU as the run loop sees it: running it, and what the core notes beside kvm_run. */
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
import type { Vcpu } from '../index.ts'
import { ghcbEventName } from './ghcb-names.ts'
import type { GuestCpu } from './run-loop.ts'

/** UNIMPLEMENTED_* of the core. */
const unimplemented = [
  'an instruction form',
  'a hardware task switch',
  'virtual-8086 mode',
  'RSM',
  'SVM instructions',
  'an exception frame in MMIO',
  'an MMIO access of more than 16 fragments',
]

export class RunningCpu implements GuestCpu {
  readonly runBytes: Uint8Array
  readonly runView: DataView
  readonly #vcpu: Vcpu
  readonly #cpu: DataView
  readonly #kvm: DataView
  #traced = 0

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu
    this.runBytes = vcpu.runBytes
    this.runView = vcpu.runView
    this.#cpu = vcpu.file.cpu
    this.#kvm = vcpu.kvm.kernel.core.view(vcpu.file.s + VCPU_KVM, VCPU_KVM_SIZE)
  }

  runRaw(maxInstructions: number): number {
    return this.#vcpu.runRaw(maxInstructions)
  }

  retired(): number {
    return this.#cpu.getUint32(CPU_ICOUNT, true) + this.#cpu.getUint32(CPU_ICOUNT + 4, true) * 0x100000000
  }

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
    const at = `vCPU ${this.#vcpu.id} at RIP ${hex(CPU_RIP)}`
    if (this.nowhere()) return `${at}: no memory at guest-physical ${hex(CPU_STOP_DETAIL)} to fetch from`
    if (this.#cpu.getUint32(CPU_STOP_REASON, true) !== STOP_UNIMPLEMENTED) return at
    const what = unimplemented[this.#cpu.getUint32(CPU_STOP_NAME, true)] ?? 'something'
    const info = this.#cpu.getUint32(CPU_STOP_INFO, true)
    return `${what}, vCPU ${this.#vcpu.id} at RIP ${hex(CPU_STOP_DETAIL)}: instruction of ${info & 0xff} bytes, ModRM 0x${((info >> 8) & 0xff).toString(16)}`
  }

  /** GHCB events since the last call, one line each; the ring holds 32. */
  *ghcbTrace(): Generator<string> {
    const head = this.#kvm.getUint32(VKVM_TRACE_HEAD, true)
    for (; this.#traced !== head; this.#traced++) {
      const at = VKVM_TRACE + (this.#traced & 31) * 32
      const field = (i: number): string => `0x${this.#kvm.getBigUint64(at + i * 8, true).toString(16)}`
      yield `ghcb ${ghcbEventName(this.#kvm.getBigUint64(at, true))} info1=${field(1)} info2=${field(2)} vcpu=${this.#vcpu.id} icount=${this.#kvm.getBigUint64(at + 24, true)}`
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
