/** A vCPU as the run loop sees it: running it, and what the core notes beside kvm_run. */
import { CPU_ICOUNT, CPU_RIP, CPU_STOP_DETAIL, CPU_STOP_INFO, VCPU_KVM, VCPU_KVM_SIZE, VKVM_COUNTS, VKVM_COUNT_USED, VKVM_WHY } from '../generated/layout.ts'
import type { Vcpu } from '../index.ts'
import { ghcbEventName } from './ghcb-names.ts'
import type { GuestCpu } from './run-loop.ts'

export class RunningCpu implements GuestCpu {
  readonly runBytes: Uint8Array
  readonly runView: DataView
  readonly #vcpu: Vcpu
  readonly #cpu: DataView
  readonly #kvm: DataView

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

  /** The engine's own note, which names code addresses only: not guest data. */
  stopped(): string {
    const hex = (offset: number): string => `0x${this.#cpu.getBigUint64(offset, true).toString(16)}`
    const bytes = Array.from({ length: 8 }, (_, i) => this.#cpu.getUint8(CPU_STOP_INFO + i).toString(16).padStart(2, '0')).join(' ')
    return `vcpu ${this.#vcpu.id} at ${hex(CPU_STOP_DETAIL)} (rip ${hex(CPU_RIP)}), instruction bytes ${bytes}`
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
