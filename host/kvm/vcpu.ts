/**
 * A vCPU file descriptor: its views on the core's memory and KVM_RUN. The other requests live beside
 * it (vcpu-registers, vcpu-fpu, vcpu-msrs, vcpu-events, vcpu-cpuid) and meet in vcpu-ioctls.
 */
import { ERRNO, EXIT, VCPU_MMAP_SIZE } from '../generated/kvm-abi.js'
import {
  CPU_BUDGET, CPU_EVENT, CPU_ICOUNT, CPU_STOP_REASON, EVENT_KICK, STOP_BUDGET, VCPU_RUN, VCPU_STATE_SIZE,
} from '../generated/layout.js'
import type { PolicyEntry } from '../policy/table.js'
import { dispatch, type IoctlTable, type Target } from './dispatch.js'
import { RUN } from './exits.js'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.js'
import type { Mapping } from './mapping.js'
import { vcpuTable } from './vcpu-ioctls.js'
import type { VmFd } from './vm.js'

/** Instructions per entry into the core: short until V8 has tiered up (it swaps code at entry), then long. */
const COLD_SLICE = 200_000
const WARM_SLICE = 1_000_000
const COLD_ENTRIES = 64
const COLD_SLICE_BIG = BigInt(COLD_SLICE)
const WARM_SLICE_BIG = BigInt(WARM_SLICE)

export class VcpuFd implements FileDescriptor, Target {
  readonly kind = 'vcpu'
  readonly kernel: Kernel
  readonly vm: VmFd
  readonly id: number
  /** Address of the vCPU arena. */
  readonly s: number
  /** The CPU structure. */
  readonly cpu: DataView
  /** kvm_run, PIO page, coalesced ring. */
  readonly runBytes: Uint8Array
  readonly runView: DataView
  readonly #words: Int32Array
  readonly #longs: BigInt64Array
  readonly #run: (s: number, maxInstructions: bigint) => number
  readonly #table: IoctlTable<VcpuFd>
  #entries = 0
  mapping: Mapping | null = null

  /** KVM's state of the vCPU that the core does not hold. */
  guestStateProtected = false
  fpstateConfidential = false
  guestDebug = 0
  /** KVM_GET_CPUID2 answers these; frozen by the first KVM_RUN. */
  cpuid: Uint8Array<ArrayBuffer> = new Uint8Array(0)
  hasRun = false
  closed = false

  constructor(vm: VmFd, id: number, s: number) {
    this.kernel = vm.kernel
    this.vm = vm
    this.id = id
    this.s = s
    const { core } = vm.kernel
    this.cpu = core.view(s, VCPU_STATE_SIZE)
    this.runBytes = core.bytes(s + VCPU_RUN, VCPU_MMAP_SIZE)
    this.runView = core.view(s + VCPU_RUN, VCPU_MMAP_SIZE)
    this.#words = new Int32Array(core.memory.buffer, s, VCPU_STATE_SIZE / 4)
    this.#longs = new BigInt64Array(core.memory.buffer, s, VCPU_STATE_SIZE / 8)
    this.#run = core.call.vcpuRun
    this.#table = vcpuTable(vm.kernel)
  }

  get typeIndex(): number {
    return this.vm.typeIndex
  }

  phase(row: PolicyEntry): 0 | 1 {
    switch (row.switch) {
      case 'guest_state_protected':
        return this.guestStateProtected ? 1 : 0
      case 'fpstate_is_confidential':
        return this.fpstateConfidential ? 1 : 0
      default:
        return this.vm.phase(row)
    }
  }

  ioctl(request: number, argument: IoctlArgument): number {
    if (this.vm.dead) return this.vm.refuseDead()
    return dispatch(this.#table, this, request, argument, 'EINVAL')
  }

  /**
   * KVM_RUN. Stops with 0 and an exit in kvm_run, or a negative errno; -EINTR when `maxInstructions`
   * are spent, on `immediate_exit` and on `kick()`. Allocates nothing.
   */
  run(maxInstructions: number): number {
    if (this.vm.gated || !this.hasRun || this.runView.getUint32(RUN.VALID_REGS, true) !== 0 || this.runView.getUint32(RUN.DIRTY_REGS, true) !== 0) {
      const refused = this.#admit()
      if (refused !== 0) return refused < 0 ? refused : 0
    }
    let left = maxInstructions
    for (;;) {
      const warm = this.#entries >= COLD_ENTRIES
      const slice = warm ? WARM_SLICE : COLD_SLICE
      const short = left < slice
      this.#words[CPU_STOP_REASON >> 2] = 0
      const result = this.#run(this.s, short ? BigInt(Math.trunc(left)) : warm ? WARM_SLICE_BIG : COLD_SLICE_BIG)
      this.#entries++
      if (result !== -ERRNO.EINTR || this.#words[CPU_STOP_REASON >> 2] !== STOP_BUDGET) return result
      if (short || left === slice) return result
      left -= slice
      if (this.runBytes[RUN.IMMEDIATE_EXIT] !== 0) return result
    }
  }

  /** What KVM checks before it enters the guest. 0 = go on, negative errno, positive = an exit is in kvm_run. */
  #admit(): number {
    const { vm } = this
    if (vm.dead) return vm.refuseDead()
    if (vm.needInit) {
      return this.kernel.refuse('EINVAL', 'KVM_RUN', 'KVM_SEV_INIT2 has not been issued', 'arch/x86/kvm/svm/sev.c sev_handle_vmgexit (need_init)', {
        switch: 'need_init',
      })
    }
    if (vm.sevEs && !this.guestStateProtected) {
      // VMRUN of a VMSA that was never encrypted: hardware-defined; facts/kvm.md 0a decides FAIL_ENTRY.
      this.runView.setUint32(RUN.EXIT_REASON, EXIT.KVM_EXIT_FAIL_ENTRY, true)
      this.runView.setBigUint64(RUN.PAYLOAD, 0xffffffffffffffffn, true)
      this.runView.setUint32(RUN.PAYLOAD + 8, 0, true)
      return 1
    }
    this.hasRun = true
    return 0
  }

  /** Stops the running vCPU with -EINTR, as a signal would. Callable from another thread. */
  kick(): void {
    Atomics.or(this.#words, CPU_EVENT >> 2, EVENT_KICK)
    Atomics.store(this.#longs, CPU_BUDGET >> 3, 0n)
  }

  /** Instructions retired. */
  get instructions(): bigint {
    return BigInt.asUintN(64, this.#longs[CPU_ICOUNT >> 3] as bigint)
  }

  mmap(): Mapping {
    this.mapping ??= this.kernel.memory.live(this.runBytes)
    return this.mapping
  }

  /** The host's view of the sealed VMSA page. */
  vmsaPage(): Pick<Mapping, 'length' | 'read' | 'write'> | null {
    return null
  }

  close(): void {
    // The vCPU itself lives as long as its VM, as in Linux.
    this.closed = true
  }
}
