/** A VM file descriptor: the protection switches, memory slots and vCPUs. Its requests meet in vm-ioctls. */
import { VM_TYPE } from '../generated/kvm-abi.js'
import { SIZEOF_VM, VM_TYPE as VM_TYPE_FIELD } from '../generated/layout.js'
import { POLICY_TYPES, type PolicyEntry, type PolicyType } from '../policy/table.js'
import { dispatch, type IoctlTable, type Target } from './dispatch.js'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.js'
import type { VcpuFd } from './vcpu.js'
import { vmTable } from './vm-ioctls.js'
import type { Slot } from './vm-memory.js'

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
  readonly #table: IoctlTable<VmFd>

  // The switches (facts/kvm.md 1). guest_state_protected and fpstate_is_confidential are per vCPU.
  readonly hasProtectedState: boolean
  readonly hasPrivateMem: boolean
  readonly hasProtectedEoi: boolean
  preFaultAllowed: boolean
  needInit: boolean
  dead = false
  /** What happened when it died. */
  deathReason = ''

  irqchip: 'none' | 'full' | 'split' = 'none'
  pit = false
  sevActive = false
  sevEs = false
  /** Some check stands before KVM_RUN beyond the fast ones. */
  gated: boolean
  #typeIndex: number

  constructor(kernel: Kernel, type: number, address: number) {
    this.kernel = kernel
    this.type = type
    this.address = address
    this.view = kernel.core.view(address, SIZEOF_VM)
    this.view.setUint32(VM_TYPE_FIELD, type, true)
    this.hasProtectedState = type === VM_TYPE.SEV_ES || type === VM_TYPE.SNP || type === VM_TYPE.TDX
    this.hasPrivateMem = type === VM_TYPE.SNP || type === VM_TYPE.TDX || type === VM_TYPE.SW_PROTECTED
    this.hasProtectedEoi = type === VM_TYPE.TDX
    this.preFaultAllowed = type !== VM_TYPE.SNP && type !== VM_TYPE.TDX
    this.needInit = type === VM_TYPE.SEV || type === VM_TYPE.SEV_ES || type === VM_TYPE.SNP
    this.gated = this.needInit || type === VM_TYPE.TDX
    const column: Record<number, PolicyType> = { 0: 'default', 2: 'sev', 3: 'sev-es', 4: 'snp', 5: 'tdx' }
    this.#typeIndex = POLICY_TYPES.indexOf(column[type] ?? 'default')
    this.#table = vmTable(kernel)
  }

  /** Column of the policy table; the legacy init commands move an ordinary VM to theirs. */
  get typeIndex(): number {
    return this.#typeIndex
  }

  becomeLegacy(type: 'sev-legacy' | 'sev-es-legacy'): void {
    this.#typeIndex = POLICY_TYPES.indexOf(type)
  }

  phase(row: PolicyEntry): 0 | 1 {
    if (row.switch === 'pre_fault_allowed') return this.preFaultAllowed ? 1 : 0
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
    return null
  }

  close(): void {
    for (const vcpu of this.vcpus.values()) vcpu.close()
    this.kernel.core.call.vmDestroy(this.address)
    this.kill('its file descriptor was closed')
  }
}
