/** Typed wrappers of vCPU ioctls, and the two forms of running. */
import { type CpuidEntry, decodeCpuid, encodeCpuid } from '../cpuid/entries.ts'
import { CloisterError } from '../errors.ts'
import { ERRNO, EXIT, REQUEST } from '../generated/kvm-abi.ts'
import { RUN } from '../generated/kvm.ts'
import { decodeExit, type Exit } from './exits.ts'
import type { Kvm } from './kvm.ts'
import type { Mapping } from './mapping.ts'
import { requestCode } from './names.ts'
import { RunNotes } from './run-notes.ts'
import { decodeSregs, encodeSregs, REG_NAMES, type Regs, type Sregs } from './registers.ts'
import type { Vm } from './typed-vm.ts'
import type { VcpuFd } from './vcpu.ts'

/** One struct kvm_msr_entry. */
export interface MsrValue {
  /** MSR number. */
  readonly index: number
  /** Its value. */
  readonly value: bigint
}

/** `vcpu.kick()` from another thread, by the handle of `vcpu.kickHandle`. */
export function kickVcpu(handle: Int32Array): void {
  Atomics.store(handle, 0, 1)
}

/** Makes the object of a vCPU file descriptor: `vm.createVcpu` alone does. @internal */
export let makeVcpu: (kvm: Kvm, vm: Vm, fd: number, file: VcpuFd) => Vcpu

/** A vCPU file descriptor. Every method throws KvmError with the kernel's reason when the call is refused. */
export class Vcpu {
  static {
    makeVcpu = (kvm, vm, fd, file) => new Vcpu(kvm, vm, fd, file)
  }

  /** The device it belongs to. */
  readonly kvm: Kvm
  /** Its VM. */
  readonly vm: Vm
  /** File descriptor, for raw calls. */
  readonly fd: number
  /** APIC id. */
  readonly id: number
  /** The three pages of this vCPU: kvm_run, PIO data, coalesced ring. Live. */
  readonly runBytes: Uint8Array
  /** The same bytes; offsets in RUN. */
  readonly runView: DataView
  /** What the emulator knows of the last KVM_RUN beside `kvm_run`. */
  readonly notes: RunNotes
  readonly #file: VcpuFd

  private constructor(kvm: Kvm, vm: Vm, fd: number, file: VcpuFd) {
    this.kvm = kvm
    this.vm = vm
    this.fd = fd
    this.id = file.id
    this.runBytes = file.runBytes
    this.runView = file.runView
    this.notes = new RunNotes(file)
    this.#file = file
  }

  /** @internal */
  get file(): VcpuFd {
    return this.#file
  }

  /** Any request by name, with its struct bytes or scalar. CloisterError `ERR_ARGUMENT` for a name that is none. */
  ioctl(name: keyof typeof REQUEST, arg?: Uint8Array | number | bigint): number {
    return this.kvm.check(this.kvm.ioctl(this.fd, requestCode(name), arg))
  }

  /**
   * Runs until the next exit. A spent budget, `immediate_exit` and `kick()` are KVM_EXIT_INTR; an
   * -EFAULT with a memory fault is KVM_EXIT_MEMORY_FAULT; any other errno is thrown as KvmError. CloisterError `ERR_ARGUMENT`
   * for a budget that is negative or no number.
   */
  run(options: { maxInstructions?: number | bigint } = {}): Exit {
    const most = options.maxInstructions === undefined ? Number.POSITIVE_INFINITY : Number(options.maxInstructions)
    if (!(most >= 0)) throw new CloisterError('ERR_ARGUMENT', `maxInstructions ${String(options.maxInstructions)}: must not be negative`)
    const result = this.runRaw(most)
    if (result < 0) {
      if (result === -ERRNO.EINTR) return { reason: 'KVM_EXIT_INTR' }
      const fault = result === -ERRNO.EFAULT || result === -ERRNO.EHWPOISON
      if (!fault || this.runView.getUint32(RUN.EXIT_REASON, true) !== EXIT.KVM_EXIT_MEMORY_FAULT) this.kvm.check(result)
    }
    return decodeExit(this.runBytes, this.runView)
  }

  /** The hot form: 0 and an exit in `runBytes`, or a negative errno. Allocates nothing. */
  runRaw(maxInstructions: number): number {
    return this.#file.run(maxInstructions)
  }

  /** Makes the running (or next) `run` return -EINTR. */
  kick(): void {
    this.#file.kick()
  }

  /**
   * What another thread needs to kick this vCPU: post it there and call `kickVcpu(handle)`. KVM_RUN then returns -EINTR at
   * the end of its slice (a few milliseconds), or at once if it begins later.
   */
  get kickHandle(): Int32Array {
    return this.#file.kickHandle
  }

  /** Instructions this vCPU has retired. */
  get instructions(): bigint {
    return this.#file.instructions
  }

  /** KVM_GET_REGS. */
  getRegs(): Regs {
    const bytes = new Uint8Array(144)
    this.ioctl('KVM_GET_REGS', bytes)
    const view = new DataView(bytes.buffer)
    return Object.fromEntries(REG_NAMES.map((name, i) => [name, view.getBigUint64(i * 8, true)])) as Regs
  }

  /** KVM_SET_REGS; registers that are not named keep their values (KVM_GET_REGS first). */
  setRegs(regs: Readonly<Partial<Record<keyof Regs, bigint | number>>>): void {
    const bytes = new Uint8Array(144)
    const view = new DataView(bytes.buffer)
    if (REG_NAMES.some((name) => regs[name] === undefined)) this.ioctl('KVM_GET_REGS', bytes)
    REG_NAMES.forEach((name, i) => {
      const value = regs[name]
      if (value !== undefined) view.setBigUint64(i * 8, BigInt(value), true)
    })
    this.ioctl('KVM_SET_REGS', bytes)
  }

  /** KVM_GET_SREGS. */
  getSregs(): Sregs {
    const bytes = new Uint8Array(312)
    this.ioctl('KVM_GET_SREGS', bytes)
    return decodeSregs(new DataView(bytes.buffer))
  }

  /** KVM_SET_SREGS. */
  setSregs(sregs: Readonly<Sregs>): void {
    const bytes = new Uint8Array(312)
    encodeSregs(sregs, new DataView(bytes.buffer))
    this.ioctl('KVM_SET_SREGS', bytes)
  }

  /** KVM_SET_CPUID2: at most 256 leaves, before the first KVM_RUN. */
  setCpuid2(entries: readonly CpuidEntry[]): void {
    this.ioctl('KVM_SET_CPUID2', encodeCpuid(entries))
  }

  /** KVM_GET_CPUID2. */
  getCpuid2(): CpuidEntry[] {
    const bytes = new Uint8Array(8 + 256 * 40)
    new DataView(bytes.buffer).setUint32(0, 256, true)
    this.ioctl('KVM_GET_CPUID2', bytes)
    return decodeCpuid(bytes)
  }

  /** KVM_GET_MSRS: the values read; shorter than `indices` if the kernel stopped early. */
  getMsrs(indices: readonly number[]): MsrValue[] {
    const bytes = new Uint8Array(8 + indices.length * 16)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, indices.length, true)
    indices.forEach((index, i) => {
      view.setUint32(8 + i * 16, index, true)
    })
    const n = this.ioctl('KVM_GET_MSRS', bytes)
    return indices.slice(0, n).map((index, i) => ({ index, value: view.getBigUint64(16 + i * 16, true) }))
  }

  /** KVM_SET_MSRS: how many were written; fewer than `entries` if the kernel stopped early. */
  setMsrs(entries: readonly { readonly index: number; readonly value: bigint | number }[]): number {
    const bytes = new Uint8Array(8 + entries.length * 16)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, entries.length, true)
    entries.forEach((entry, i) => {
      view.setUint32(8 + i * 16, entry.index, true)
      view.setBigUint64(16 + i * 16, BigInt(entry.value), true)
    })
    return this.ioctl('KVM_SET_MSRS', bytes)
  }

  /** KVM_GET_MP_STATE: KVM_MP_STATE_RUNNABLE 0, UNINITIALIZED 1, INIT_RECEIVED 2, HALTED 3, SIPI_RECEIVED 4, AP_RESET_HOLD 9. */
  getMpState(): number {
    const bytes = new Uint8Array(4)
    this.ioctl('KVM_GET_MP_STATE', bytes)
    return new DataView(bytes.buffer).getUint32(0, true)
  }

  /** KVM_SET_MP_STATE. */
  setMpState(state: number): void {
    const bytes = new Uint8Array(4)
    new DataView(bytes.buffer).setUint32(0, state, true)
    this.ioctl('KVM_SET_MP_STATE', bytes)
  }

  /** A struct by its GET request: KVM_GET_FPU, KVM_GET_XSAVE, KVM_GET_LAPIC, KVM_GET_VCPU_EVENTS, ... */
  get(name: Extract<keyof typeof REQUEST, `KVM_GET_${string}`>): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array((REQUEST[name] >>> 16) & 0x3fff)
    this.ioctl(name, bytes)
    return bytes
  }

  /** The SET request of such a struct. */
  set(name: Extract<keyof typeof REQUEST, `KVM_SET_${string}`>, bytes: Uint8Array): void {
    this.ioctl(name, bytes)
  }

  /** KVM_INTERRUPT, for VMs without in-kernel irqchip. */
  interrupt(irq: number): void {
    const bytes = new Uint8Array(4)
    new DataView(bytes.buffer).setUint32(0, irq, true)
    this.ioctl('KVM_INTERRUPT', bytes)
  }

  /** KVM_NMI. */
  nmi(): void {
    this.ioctl('KVM_NMI', 0)
  }

  /** KVM_SET_GUEST_DEBUG: control bits, DR0..DR3, DR6, DR7. */
  setGuestDebug(control: number, debugreg: readonly (bigint | number)[] = []): void {
    const bytes = new Uint8Array(72)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, control, true)
    debugreg.slice(0, 8).forEach((value, i) => {
      view.setBigUint64(8 + i * 8, BigInt(value), true)
    })
    this.ioctl('KVM_SET_GUEST_DEBUG', bytes)
  }

  /** Result of KVM_EXIT_HYPERCALL, read by the next `run`. */
  completeHypercall(ret: bigint | number): void {
    this.runView.setBigUint64(RUN.HYPERCALL_RET, BigInt(ret), true)
  }

  /** Result of KVM_EXIT_X86_RDMSR / WRMSR. */
  completeMsr(data: bigint | number, error = 0): void {
    this.runView.setUint8(RUN.MSR_ERROR, error)
    this.runView.setBigUint64(RUN.MSR_DATA, BigInt(data), true)
  }

  /**
   * The encrypted VMSA page of a sealed SEV-ES vCPU as the host sees it: ciphertext; writing it
   * corrupts the guest's saved state. Real KVM keeps this page in kernel memory (svm->sev_es.vmsa),
   * so this is not part of its user API: it exists to play the hostile host. Null before the seal.
   */
  vmsaPage(): Pick<Mapping, 'length' | 'read' | 'write'> | null {
    return this.#file.vmsaPage()
  }

  /** Closes its file descriptor. */
  [Symbol.dispose](): void {
    if (this.kvm.kernel.file(this.fd) === this.#file) this.kvm.close(this.fd)
  }
}
