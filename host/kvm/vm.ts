/** A VM file descriptor: the protection switches, memory slots and vCPUs. Its requests meet in vm-ioctls. */
import { VM_TYPE } from '../generated/kvm-abi.ts'
import { SEV_FEATURE } from '../generated/psp.ts'
import { SIZEOF_VM, VM_BSP_ID, VM_CLOCK, VM_LINUX, VM_PHYS_MASK, VM_TSC_KHZ, VM_TYPE as VM_TYPE_FIELD } from '../generated/layout.ts'
import { POLICY_TYPES, type PolicyEntry, type PolicyType } from '../policy/table.ts'
import { profileOf } from '../policy/profiles.ts'
import { dispatch, type IoctlTable, type Target } from './dispatch.ts'
import { hex } from '../crypto/sha256.ts'
import { VmEvents } from './irqfd.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import type { SevInfo } from './sev-vm.ts'
import { TdInfo } from './tdx.ts'
import type { VcpuFd } from './vcpu.ts'
import { vmTable } from './vm-ioctls.ts'
import type { Slot } from './vm-memory.ts'

/** Later than any deadline: 2^53 ns are 104 days. */
const NEVER = 2 ** 53

export class VmFd implements FileDescriptor, Target {
  readonly kind = 'vm'
  readonly kernel: Kernel
  /** KVM_CREATE_VM argument. */
  readonly type: number
  /** Address of the core's VM structure. */
  readonly address: number
  readonly view: DataView
  readonly vcpus = new Map<number, VcpuFd>()
  readonly slots = new Map<number, Slot>()
  /** irqfds and ioeventfds. */
  readonly events = new VmEvents()
  /** KVM_CAP_X2APIC_API flags. */
  x2apicApi = 0
  readonly #table: IoctlTable<VmFd>

  // The switches of struct kvm_arch. guest_state_protected and fpstate_is_confidential are per vCPU.
  readonly hasProtectedState: boolean
  readonly hasPrivateMem: boolean
  readonly hasProtectedEoi: boolean
  preFaultAllowed: boolean
  needInit: boolean
  dead = false
  /** Its core structure is gone. */
  released = false
  /** What happened when it died. */
  deathReason = ''

  irqchip: 'none' | 'full' | 'split' = 'none'
  pit = false
  /** It has a VFIO device. */
  vfio = false
  sev: SevInfo | null = null
  sevActive = false
  /** State of a TD, null for other VM types. */
  readonly td: TdInfo | null
  sevEs = false
  exceptionPayload = false
  /** max_vcpu_ids: 0 = not settled. */
  maxVcpuIds = 0
  tripleFaultEvent = false
  #references = 1
  /** Some check stands before KVM_RUN beyond the fast ones. */
  gated: boolean
  #typeIndex: number

  constructor(kernel: Kernel, type: number, address: number) {
    this.kernel = kernel
    this.type = type
    this.address = address
    this.view = kernel.core.view(address, SIZEOF_VM)
    this.view.setUint32(VM_TYPE_FIELD, type, true)
    this.view.setUint32(VM_LINUX, kernel.options.linux === '6.12' ? 612 : 703, true)
    // Physical address width of the modelled hosts (CPUID Fn8000_0008): page tables are checked against the host's.
    this.view.setBigUint64(VM_PHYS_MASK, kernel.options.host === 'amd' ? 0x0000fffffffff000n : 0x000ffffffffff000n, true)
    this.hasProtectedState = type === VM_TYPE.SEV_ES || type === VM_TYPE.SNP || type === VM_TYPE.TDX
    this.hasPrivateMem = type === VM_TYPE.SNP || type === VM_TYPE.TDX || type === VM_TYPE.SW_PROTECTED
    this.hasProtectedEoi = type === VM_TYPE.TDX
    this.preFaultAllowed = type !== VM_TYPE.SNP && type !== VM_TYPE.TDX
    this.needInit = type === VM_TYPE.SEV || type === VM_TYPE.SEV_ES || type === VM_TYPE.SNP
    this.gated = this.needInit || type === VM_TYPE.TDX
    this.td = type === VM_TYPE.TDX ? new TdInfo() : null
    const column: Record<number, PolicyType> = { 0: 'default', 2: 'sev', 3: 'sev-es', 4: 'snp', 5: 'tdx' }
    this.#typeIndex = POLICY_TYPES.indexOf(column[type] ?? 'default')
    this.#table = vmTable(kernel)
  }

  /** Column of the policy table; the legacy init commands move an ordinary VM to theirs. */
  get typeIndex(): number {
    return this.#typeIndex
  }

  /** The 2020 proposal decides for this VM; types that it does not define inherit upstream. */
  get rfc2020(): boolean {
    return profileOf(this.kernel.options.profile, POLICY_TYPES[this.#typeIndex] as PolicyType) === 'rfc-2020'
  }

  /** KVM_SET_BOOT_CPU_ID. */
  get bspId(): number {
    return this.view.getUint32(VM_BSP_ID, true)
  }

  /** guest_tsc_protected: TDX, and SNP with Secure TSC. */
  get guestTscProtected(): boolean {
    return this.td !== null || ((this.sev?.vmsaFeatures ?? 0n) & SEV_FEATURE.SECURE_TSC) !== 0n
  }

  /** Virtual time in nanoseconds; exact up to 2^53. */
  get clock(): number {
    return this.view.getUint32(VM_CLOCK, true) + this.view.getUint32(VM_CLOCK + 4, true) * 2 ** 32
  }

  set clock(ns: number) {
    this.view.setBigUint64(VM_CLOCK, BigInt(ns), true)
  }

  /** The core returns to the host at this virtual time. */
  setDeadline(ns: number): void {
    this.kernel.core.call.setUserDeadline(this.address, ns < NEVER ? BigInt(Math.ceil(ns)) : -1n)
  }

  /** default_tsc_khz. */
  get tscKhz(): number {
    return Number(this.view.getBigUint64(VM_TSC_KHZ, true))
  }

  /** The private attribute of a page (KVM_SET_MEMORY_ATTRIBUTES). */
  isPrivate(gpa: bigint): boolean {
    return this.kernel.core.call.isPrivate(this.address, gpa) !== 0
  }

  becomeLegacy(type: 'sev-legacy' | 'sev-es-legacy'): void {
    this.#typeIndex = POLICY_TYPES.indexOf(type)
  }

  phase(row: PolicyEntry): 0 | 1 {
    if (row.switch === 'pre_fault_allowed') return this.preFaultAllowed ? 1 : 0
    if (this.td !== null) return this.td.state === 'runnable' ? 1 : 0
    for (const vcpu of this.vcpus.values()) if (vcpu.guestStateProtected) return 1
    return 0
  }

  ioctl(request: number, argument: IoctlArgument): number {
    if (this.dead) return this.refuseDead()
    return dispatch(this.#table, this, request, argument, 'ENOTTY')
  }

  refuseDead(): number {
    return this.kernel.refuse('EIO', 'any ioctl', `the VM is dead: ${this.deathReason}`, 'virt/kvm/kvm_main.c kvm_vm_ioctl (vm_dead)')
  }

  /** KVM_BUG_ON and a moved-from VM: every later ioctl on the VM and its vCPUs is -EIO. */
  kill(reason: string): void {
    this.dead = true
    this.gated = true
    this.deathReason = reason
  }

  /** Hex of the digest the firmware holds, null without a guest context. */
  launchDigest(): string | null {
    const guest = this.sev?.snp?.guest ?? this.sev?.guest
    return guest ? hex(guest.digest) : null
  }

  /** kvm_sync_valid_fields: what kvm_valid_regs and kvm_dirty_regs may name (REGS 1, SREGS 2, EVENTS 4). */
  get syncMask(): number {
    if (this.rfc2020) {
      if (this.hasProtectedState) return 4
      for (const vcpu of this.vcpus.values()) if (vcpu.guestStateProtected) return 4
      return 7
    }
    return this.hasProtectedState ? 0 : 7
  }

  /** Every vCPU file descriptor keeps the VM alive, as in Linux. */
  retain(): void {
    this.#references++
  }

  release(): void {
    if (--this.#references > 0) return
    const { call } = this.kernel.core
    this.events.release()
    for (const vcpu of this.vcpus.values()) call.vcpuDestroy(vcpu.s)
    this.vcpus.clear()
    call.vmDestroy(this.address)
    this.released = true
    if (this.sev?.owner) {
      this.sev.owner.sev?.mirrors.delete(this)
      this.sev.owner.release()
    } else if (this.sev) {
      if (this.sev.guest) this.kernel.psp.decommission(this.sev.guest)
      this.kernel.asids.delete(this.sev.asid)
    }
    this.kill('its last file descriptor was closed')
  }

  close(): void {
    this.release()
  }
}
