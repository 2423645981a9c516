/**
 * A vCPU file descriptor: its views on the core's memory and KVM_RUN. The other requests live beside
 * it (vcpu-registers, -fpu, -debug, -msrs, -events, -misc) and meet in vcpu-ioctls.
 */
import { ERRNO, EXIT, VCPU_MMAP_SIZE } from '../generated/kvm-abi.ts'
import {
  CPU_BUDGET,
  CPU_EVENT,
  CPU_HALTED,
  CPU_ICOUNT,
  EVENT_KICK,
  VCPU_KVM,
  VCPU_KVM_SIZE,
  VCPU_RUN,
  VCPU_STATE_SIZE,
  CHIP_HOST_WORK,
  VKVM_RING,
  VM_KVM_STATE,
  VKVM_WHY,
  VM_RING_ENTRIES,
  WHY_BUDGET,
  WHY_HOST,
} from '../generated/layout.ts'
import type { PolicyEntry } from '../policy/table.ts'
import { RING_PAGE } from './dirty-log.ts'
import { dispatch, type IoctlTable, type Target } from './dispatch.ts'
import { RUN } from '../generated/kvm.ts'
import { askGuestState, type GuestStateOp, inKernel } from './guest-state.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import type { Mapping } from './mapping.ts'
import { snpRunRefusal } from './sev-snp.ts'
import { VmsaPage } from './sev-vm.ts'
import { tdxRunRefusal } from './tdx.ts'
import { loadSyncRegs, storeSyncRegs } from './sync-regs.ts'
import { enterFpu } from './vcpu-fpu.ts'
import { vcpuTable } from './vcpu-ioctls.ts'
import type { VmFd } from './vm.ts'

/** Instructions per entry into the core: short until V8 has tiered up (it swaps code at entry), then long. */
const COLD_SLICE = 200_000
const WARM_SLICE = 1_000_000
const COLD_ENTRIES = 64
/** KVM_MP_STATE_UNINITIALIZED. */
const UNINITIALIZED = 1
/** More than the highest KVM_EXIT_*. */
const EXIT_REASONS = 64
const COLD_SLICE_BIG = BigInt(COLD_SLICE)
const WARM_SLICE_BIG = BigInt(WARM_SLICE)

/** KVM's copies of registers that left its sight when the VMSA was sealed (legacy SEV-ES reads them). */
export interface SealedCopies {
  /** struct kvm_regs: RIP and RFLAGS stale from the launch; the rest as last set by KVM_SET_REGS. */
  readonly regs: Uint8Array
  /** Instructions retired when `regs` was last set: any VMGEXIT since then cleared regs[]. */
  setAt: bigint
  /** struct kvm_debugregs up to DR7. */
  readonly debug: Uint8Array
}

export class VcpuFd implements FileDescriptor, Target {
  readonly kind = 'vcpu'
  readonly kernel: Kernel
  readonly vm: VmFd
  readonly id: number
  /** Address of the vCPU arena. */
  readonly s: number
  /** The CPU structure. */
  readonly cpu: DataView
  /** The VKVM structure: what the kernel's fast paths keep. */
  readonly kvm: DataView
  /** kvm_run, PIO page, coalesced ring. */
  readonly runBytes: Uint8Array
  readonly runView: DataView
  readonly #words: Int32Array
  readonly #longs: BigInt64Array
  readonly #hostWork: Int32Array
  /** Indices into #words. */
  readonly #why = (VCPU_KVM + VKVM_WHY) >> 2
  readonly #valid = (VCPU_RUN + RUN.VALID_REGS) >> 2
  readonly #reason = (VCPU_RUN + RUN.EXIT_REASON) >> 2
  readonly #dirty = (VCPU_RUN + RUN.DIRTY_REGS) >> 2
  readonly #run: (s: number, maxInstructions: bigint) => number
  readonly #table: IoctlTable<VcpuFd>
  #entries = 0
  /** Returns of KVM_RUN by exit reason. */
  readonly exitCounts = new Float64Array(EXIT_REASONS)
  mapping: Mapping | null = null
  ringMapping: Mapping | null = null

  // KVM's state of the vCPU that the core does not hold.
  #guestStateProtected = false
  fpstateConfidential = false
  /** KVM's own floating-point state where the guest's is out of its sight but not confidential: a SEV-ES vCPU that was moved into. */
  fpuShadow: DataView | null = null
  /** KVM_TDX_INIT_VCPU has been issued. */
  tdInitialized = false
  guestDebug = 0
  /** Entries of KVM_SET_CPUID2; frozen by the first KVM_RUN. */
  cpuid: Uint8Array<ArrayBuffer> = new Uint8Array(0)
  hasRun = false
  /** kvm_arch_vcpu_put: where it was when it was last scheduled out. */
  preemptedInKernel = false
  /** IA32_MCi_CTL2 and IA32_MCG_EXT_CTL: KVM's own copies. */
  readonly mcCtl2 = new BigUint64Array(32)
  mcgExtCtl = 0n
  /** The first 16 bytes of the last KVM_SET_VCPU_EVENTS. */
  readonly eventBytes = new Uint8Array(16)
  /** XSTATE_BV of KVM's copy of the FPU state; null while the guest's registers are it. */
  xstateBv: bigint | null = 0n
  /** FXSAVE image of KVM's memory, which keeps what userspace wrote where XSAVES does not write; null = the initial state. */
  fpuMemory: Uint8Array | null = null
  /** CR0, CR4 and EFER by field: KVM's value at the seal, and the hardware's. */
  readonly sealedControl = new Map<number, { readonly shown: bigint; readonly raw: bigint }>()
  sealed: SealedCopies | null = null
  /** The profile hides the run state of this protected guest (rfc-2020, A3). */
  #dummyRunState = false

  constructor(vm: VmFd, id: number, s: number) {
    this.kernel = vm.kernel
    this.vm = vm
    this.id = id
    this.s = s
    const { core } = vm.kernel
    this.cpu = core.view(s, VCPU_STATE_SIZE)
    this.kvm = core.view(s + VCPU_KVM, VCPU_KVM_SIZE)
    this.runBytes = core.bytes(s + VCPU_RUN, VCPU_MMAP_SIZE)
    this.runView = core.view(s + VCPU_RUN, VCPU_MMAP_SIZE)
    this.#words = new Int32Array(core.memory.buffer, s, (VCPU_KVM + VCPU_KVM_SIZE) / 4)
    this.#longs = new BigInt64Array(core.memory.buffer, s, VCPU_STATE_SIZE / 8)
    this.#hostWork = new Int32Array(core.memory.buffer, vm.view.getUint32(VM_KVM_STATE, true) + CHIP_HOST_WORK, 1)
    this.#run = core.call.vcpuRun
    this.#table = vcpuTable(vm.kernel)
    if (vm.td !== null) {
      // tdx_vcpu_create: DEBUG is not an attribute that KVM allows, so every TD vCPU is protected from birth.
      this.guestStateProtected = true
      this.fpstateConfidential = true
    }
  }

  /** vcpu->arch.guest_state_protected. */
  get guestStateProtected(): boolean {
    return this.#guestStateProtected
  }

  set guestStateProtected(on: boolean) {
    this.#guestStateProtected = on
    this.#dummyRunState = on && this.vm.rfc2020
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
   * are spent, on `immediate_exit`, on `kick()`, and when there is nothing left to run. Allocates nothing.
   */
  run(maxInstructions: number): number {
    const words = this.#words
    const valid = words[this.#valid] as number
    const dirty = words[this.#dirty] as number
    if (this.vm.gated || !this.hasRun || this.xstateBv !== null || (valid | dirty | this.guestDebug) !== 0) {
      const refused = this.#admit(valid, dirty)
      if (refused !== 0) {
        if (!this.vm.dead) this.#postRunSave()
        return Math.min(refused, 0)
      }
    }
    // rfc-2020: the request for an interrupt window is never granted.
    const window = this.runBytes[RUN.REQUEST_INTERRUPT_WINDOW] as number
    if (this.#dummyRunState) this.runBytes[RUN.REQUEST_INTERRUPT_WINDOW] = 0
    let left = maxInstructions
    for (;;) {
      if (this.#kickWord !== null && Atomics.exchange(this.#kickWord, 0, 0) !== 0) this.kick()
      const warm = this.#entries >= COLD_ENTRIES
      const slice = warm ? WARM_SLICE : COLD_SLICE
      const short = left < slice
      const before = words[CPU_ICOUNT >> 2] as number
      const result = this.#run(this.s, short ? BigInt(Math.max(0, Math.trunc(left))) : warm ? WARM_SLICE_BIG : COLD_SLICE_BIG)
      this.#entries++
      if (result === -ERRNO.EINTR && words[this.#why] === WHY_HOST) {
        // Event file descriptors want the host; the VMM does not see that.
        this.vm.events.work(this.vm)
        left -= ((words[CPU_ICOUNT >> 2] as number) - before) >>> 0
        continue
      }
      if (
        result !== -ERRNO.EINTR ||
        short ||
        left === slice ||
        words[this.#why] !== WHY_BUDGET ||
        this.runBytes[RUN.IMMEDIATE_EXIT] !== 0
      ) {
        const reason = words[this.#reason] as number
        if (reason < EXIT_REASONS) (this.exitCounts[reason] as number)++
        if (this.#hostWork[0] !== 0) this.vm.events.work(this.vm)
        if (valid !== 0) storeSyncRegs(this, valid)
        if (this.#dummyRunState) this.#clearRunState(window)
        if (result === -ERRNO.EINTR) this.preemptedInKernel = inKernel(this)
        else if (result < 0) this.#explain(result)
        return result
      }
      left -= slice
    }
  }

  /** The reason of an errno that the core returned. */
  #explain(result: number): void {
    const { kernel } = this
    if (result === -ERRNO.EIO) {
      this.vm.kill('the state-save area of an SMI is not in writable memory of address space 1')
      this.vm.refuseDead()
    } else if (result === -ERRNO.ENOMEM)
      kernel.refuse('ENOMEM', 'KVM_RUN', 'the memory budget of this device (openKvm) is spent', 'cloister')
    else if (result === -ERRNO.EFAULT && this.runView.getUint32(RUN.EXIT_REASON, true) === EXIT.KVM_EXIT_MEMORY_FAULT)
      kernel.refuse(
        'EFAULT',
        'KVM_RUN',
        `no ${(this.runView.getUint8(32) & 8) !== 0 ? 'private memory (guest_memfd)' : 'shared memory'} behind guest-physical 0x${this.runView.getBigUint64(40, true).toString(16)}: see the exit, set memory attributes or slots, run again`,
        'arch/x86/kvm/mmu/mmu.c kvm_mmu_faultin_pfn (kvm_prepare_memory_fault_exit)',
        { switch: 'has_private_mem' },
      )
    else if (result === -ERRNO.EFAULT)
      kernel.refuse('EFAULT', 'KVM_RUN', 'memory that KVM needs is not mapped', 'arch/x86/kvm/svm/sev.c, mmu.c')
    else if (result === -ERRNO.EINVAL)
      kernel.refuse(
        'EINVAL',
        'KVM_RUN',
        'the guest or the completion of an exit asked for what KVM does not do',
        'arch/x86/kvm/svm/sev.c sev_handle_vmgexit',
      )
  }

  /** What KVM checks before it enters the guest. 0 = go on, 1 = an exit is in kvm_run, else a negative errno. */
  #admit(valid: number, dirty: number): number {
    const { vm, kernel } = this
    if (vm.dead) return vm.refuseDead()
    // kvm_load_guest_fpu, whatever comes of the entry.
    enterFpu(this)
    // An AP that waits for INIT: kvm_vcpu_block before anything is looked at.
    if (vm.td === null && this.cpu.getUint32(CPU_HALTED, true) === UNINITIALIZED) return 0
    if (((valid | dirty) & ~vm.syncMask) !== 0) {
      return kernel.refuse(
        'EINVAL',
        'KVM_RUN',
        `kvm_valid_regs or kvm_dirty_regs outside 0x${vm.syncMask.toString(16)}`,
        'arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_run (kvm_sync_valid_fields)',
        {
          switch: 'has_protected_state',
        },
      )
    }
    if (dirty !== 0) {
      const refused = loadSyncRegs(this, dirty)
      if (refused < 0) return refused
    }
    // complete_userspace_io, then immediate_exit: both before the checks of the vendor's code.
    if (this.runBytes[RUN.IMMEDIATE_EXIT] !== 0) return vm.td === null ? 0 : -ERRNO.EINTR
    if (vm.needInit) {
      const why = vm.sev?.moved
        ? 'KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM does not clear need_init: only the legacy VM type runs after a move'
        : 'KVM_SEV_INIT2 has not been issued'
      return kernel.refuse('EINVAL', 'KVM_RUN', why, 'arch/x86/kvm/svm/svm.c svm_vcpu_pre_run', { switch: 'need_init' })
    }
    if (vm.td !== null) return tdxRunRefusal(this)
    if (vm.sev?.snp) {
      const refused = snpRunRefusal(this)
      if (refused < 0) return refused
    }
    this.hasRun = true
    return 0
  }

  /** post_kvm_run_save of a KVM_RUN that did not get as far as the core. */
  #postRunSave(): void {
    this.kernel.core.call.saveRunState(this.s)
    if (this.#dummyRunState) this.#clearRunState(this.runBytes[RUN.REQUEST_INTERRUPT_WINDOW] as number)
  }

  /** rfc-2020 (A3): what KVM_RUN exports of a protected guest is a dummy. */
  #clearRunState(window: number): void {
    this.runView.setUint8(RUN.REQUEST_INTERRUPT_WINDOW, window)
    this.runView.setUint8(RUN.READY_FOR_INTERRUPT_INJECTION, 0)
    this.runView.setUint8(RUN.IF_FLAG, 0)
    this.runView.setBigUint64(RUN.CR8, 0n, true)
    this.runView.setBigUint64(RUN.APIC_BASE, 0n, true)
  }

  /** An internal operation on the guest's state, as KVM's common code asks it (guest-state.ts). */
  askGuestState(op: GuestStateOp): number {
    return askGuestState(this, op)
  }

  /** Why the last run returned -EINTR (WHY_* of the core). */
  get why(): number {
    return this.#words[this.#why] as number
  }

  /** Sets event bits and asks the core for attention (design: event protocol). */
  signal(event: number): void {
    Atomics.or(this.#words, CPU_EVENT >> 2, event)
    Atomics.store(this.#longs, CPU_BUDGET >> 3, 0n)
  }

  /** Takes event bits back. */
  unsignal(event: number): void {
    Atomics.and(this.#words, CPU_EVENT >> 2, ~event)
  }

  /** Stops the running vCPU with -EINTR, as a signal would. Callable from another thread. */
  kick(): void {
    this.signal(EVENT_KICK)
  }

  /** Word of its own shared buffer that another thread may set (kickVcpu): memory of the machine is not handed out. */
  #kickWord: Int32Array | null = null

  get kickHandle(): Int32Array {
    this.#kickWord ??= new Int32Array(typeof SharedArrayBuffer === 'undefined' ? new ArrayBuffer(4) : new SharedArrayBuffer(4))
    return this.#kickWord
  }

  /** Times the core was entered. */
  get exits(): bigint {
    return BigInt(this.#entries)
  }

  /** Instructions retired. */
  get instructions(): bigint {
    return BigInt.asUintN(64, this.#longs[CPU_ICOUNT >> 3] as bigint)
  }

  /** kvm_vcpu_mmap: the kvm_run pages, or from page 64 on the dirty ring. */
  mmap(length = VCPU_MMAP_SIZE, offset = 0): Mapping | number {
    if (offset === 0) {
      this.mapping ??= this.kernel.memory.live(this.runBytes)
      return this.mapping
    }
    const ring = this.kvm.getUint32(VKVM_RING, true)
    const size = this.vm.view.getUint32(VM_RING_ENTRIES, true) * 16
    if (offset !== RING_PAGE * 4096 || ring === 0 || length > size)
      return this.kernel.refuse(
        'EINVAL',
        'mmap',
        'only kvm_run at 0 and the dirty ring at page 64 can be mapped',
        'virt/kvm/kvm_main.c kvm_vcpu_mmap',
      )
    this.ringMapping ??= this.kernel.memory.live(this.kernel.core.bytes(ring, size))
    return this.ringMapping
  }

  /** The host's view of the sealed VMSA page. */
  vmsaPage(): Pick<Mapping, 'length' | 'read' | 'write'> | null {
    return this.guestStateProtected ? new VmsaPage(this) : null
  }

  close(): void {
    this.vm.release()
  }
}
