/**
 * Binary statistics (KVM_GET_STATS_FD; Documentation/virt/kvm/api.rst 4.131, virt/kvm/binary_stats.c): header, id string,
 * descriptors, data. The file descriptor reads like a file, with a position. Names, kinds and units are Linux's; what this
 * machine does not do (shadow paging, halt polling, host state reloads) counts 0.
 */
import { EXIT } from '../generated/kvm-abi.ts'
import { VKVM_HALT_EXITS } from '../generated/layout.ts'
import type { FileDescriptor, Kernel } from './kernel.ts'
import type { VcpuFd } from './vcpu.ts'
import type { VmFd } from './vm.ts'

/** KVM_STATS_TYPE_*, KVM_STATS_UNIT_*, KVM_STATS_BASE_*. */
const TYPE = { CUMULATIVE: 0, INSTANT: 1, PEAK: 2, LOG_HIST: 4 } as const
const UNIT = { NONE: 0, SECONDS: 0x20, BOOLEAN: 0x40 } as const
const BASE = { POW10: 0, POW2: 0x100 } as const

export interface Statistic {
  readonly name: string
  readonly flags: number
  readonly exponent: number
  readonly size: number
  readonly value: () => bigint
}

const zero = (): bigint => 0n
const count = (name: string, value: () => bigint = zero): Statistic => ({
  name,
  flags: TYPE.CUMULATIVE | UNIT.NONE | BASE.POW10,
  exponent: 0,
  size: 1,
  value,
})
const instant = (name: string, value: () => bigint = zero, flags: number = UNIT.NONE): Statistic => ({
  ...count(name, value),
  flags: TYPE.INSTANT | flags,
})
const peak = (name: string): Statistic => ({ ...count(name), flags: TYPE.PEAK })
const time = (name: string): Statistic => ({ ...count(name), flags: TYPE.CUMULATIVE | UNIT.SECONDS, exponent: -9 })
const histogram = (name: string): Statistic => ({ ...count(name), flags: TYPE.LOG_HIST | UNIT.SECONDS, exponent: -9, size: 32 })

const HEADER = 24
const NAME = 48
/** struct kvm_stats_desc: flags u32, exponent i16, size u16, offset u32, bucket_size u32, name. */
const DESCRIPTOR = 16 + NAME

export class StatsFd implements FileDescriptor {
  readonly kind = 'stats'
  readonly #kernel: Kernel
  readonly #id: string
  readonly #statistics: readonly Statistic[]
  #position = 0

  constructor(kernel: Kernel, id: string, statistics: readonly Statistic[]) {
    this.#kernel = kernel
    this.#id = id
    this.#statistics = statistics
  }

  ioctl(): number {
    return this.#kernel.refuse('ENOTTY', 'ioctl', 'a statistics file has no ioctls', 'virt/kvm/binary_stats.c')
  }

  read(bytes: Uint8Array): number {
    const n = this.readAt(this.#position, bytes)
    this.#position += n
    return n
  }

  /** pread(2). */
  readAt(offset: number, bytes: Uint8Array): number {
    const part = this.#image().subarray(offset, offset + bytes.length)
    bytes.set(part)
    return part.length
  }

  close(): void {
    // Nothing is held.
  }

  #image(): Uint8Array {
    const entries = this.#statistics.length
    const descriptors = HEADER + NAME
    const data = descriptors + entries * DESCRIPTOR
    const bytes = new Uint8Array(data + this.#statistics.reduce((sum, s) => sum + s.size * 8, 0))
    const view = new DataView(bytes.buffer)
    const text = new TextEncoder()
    for (const [i, value] of [0, NAME, entries, HEADER, descriptors, data].entries()) view.setUint32(i * 4, value, true)
    bytes.set(text.encode(this.#id).subarray(0, NAME - 1), HEADER)
    let offset = 0
    this.#statistics.forEach(({ name, flags, exponent, size, value }, i) => {
      const at = descriptors + i * DESCRIPTOR
      view.setUint32(at, flags, true)
      view.setInt16(at + 4, exponent, true)
      view.setUint16(at + 6, size, true)
      view.setUint32(at + 8, offset, true)
      bytes.set(text.encode(name).subarray(0, NAME - 1), at + 16)
      view.setBigUint64(data + offset, value(), true)
      offset += size * 8
    })
    return bytes
  }
}

/** kvm_vm_stats_desc. */
export function vmStatistics(vm: VmFd): Statistic[] {
  const zeros = (names: string): Statistic[] => names.split(' ').map((name) => count(name))
  return [
    ...zeros('remote_tlb_flush remote_tlb_flush_requests mmu_shadow_zapped mmu_pte_write mmu_pde_zapped mmu_flooded mmu_recycled'),
    count('mmu_cache_miss'),
    instant('mmu_unsync'),
    ...['pages_4k', 'pages_2m', 'pages_1g', 'nx_lpage_splits'].map((name) => instant(name)),
    peak('max_mmu_rmap_size'),
    peak('max_mmu_page_hash_collisions'),
    instant('vcpus', () => BigInt(vm.vcpus.size)),
    instant('slots', () => BigInt(vm.slots.size)),
  ]
}

/** kvm_vcpu_stats_desc, then what only an emulator can count. */
export function vcpuStatistics(vcpu: VcpuFd): Statistic[] {
  const exits =
    (...reasons: number[]): (() => bigint) =>
    () =>
      reasons.reduce((sum, reason) => sum + BigInt(vcpu.exitCounts[reason] ?? 0), 0n)
  const zeros = (names: string): Statistic[] => names.split(' ').map((name) => count(name))
  return [
    ...zeros('halt_successful_poll halt_attempted_poll halt_poll_invalid halt_wakeup'),
    ...['halt_poll_success_ns', 'halt_poll_fail_ns', 'halt_wait_ns'].map(time),
    ...['halt_poll_success_hist', 'halt_poll_fail_hist', 'halt_wait_hist'].map(histogram),
    instant('blocking', zero, UNIT.BOOLEAN),
    ...zeros('pf_taken pf_fixed pf_emulate pf_spurious pf_fast pf_mmio_spte_created pf_guest tlb_flush invlpg'),
    count('exits', () => vcpu.exits),
    count('io_exits', exits(EXIT.KVM_EXIT_IO)),
    count('mmio_exits', exits(EXIT.KVM_EXIT_MMIO)),
    count('signal_exits', exits(EXIT.KVM_EXIT_INTR)),
    count('irq_window_exits', exits(EXIT.KVM_EXIT_IRQ_WINDOW_OPEN)),
    ...zeros('nmi_window_exits l1d_flush'),
    count('halt_exits', () => vcpu.kvm.getBigUint64(VKVM_HALT_EXITS, true)),
    ...zeros('request_irq_exits irq_exits host_state_reload fpu_reload insn_emulation insn_emulation_fail'),
    count('hypercalls', exits(EXIT.KVM_EXIT_HYPERCALL)),
    ...zeros('irq_injections nmi_injections req_event nested_run directed_yield_attempted directed_yield_successful'),
    ...zeros('preemption_reported preemption_other'),
    instant('guest_mode', zero, UNIT.BOOLEAN),
    count('notify_window_exits'),
    count('instructions', () => vcpu.instructions),
  ]
}
