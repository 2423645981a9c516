/** Typed wrappers of VM ioctls; every refusal is a KvmError with the kernel's reason. */
import { CloisterError } from '../errors.ts'
import { sevRootCertificates } from '../firmware/psp/roots.ts'
import { type CAP, REQUEST, type SEV_COMMAND } from '../generated/kvm-abi.ts'
import { SEV_SIZE } from '../generated/psp.ts'
import type { Kvm, VmType } from './kvm.ts'
import { capNumber, requestCode, sevCommandNumber } from './names.ts'
import { makeVcpu, type Vcpu } from './typed-vcpu.ts'
import type { VcpuFd } from './vcpu.ts'
import type { VmFd } from './vm.ts'

/** struct kvm_userspace_memory_region; addresses and size in bytes, multiples of 4096. */
export interface MemoryRegion {
  /** Slot number; bits 16-31 the address space (1: SMM). */
  readonly slot: number
  /** KVM_MEM_LOG_DIRTY_PAGES 1, KVM_MEM_READONLY 2. */
  readonly flags?: number
  /** Where the guest sees it. */
  readonly guestPhysAddr: bigint | number
  /** 0 deletes the slot. */
  readonly memorySize: bigint | number
  /** An address inside a mapping. */
  readonly userspaceAddr: bigint | number
}

/** What a KVM_MEMORY_ENCRYPT_OP returned. */
export interface SevResult {
  /** 0 or a negative errno. */
  readonly errno: number
  /** Firmware status code (FIRMWARE_STATUS). */
  readonly fwError: number
  /** The command's struct after the call. */
  readonly data: Uint8Array<ArrayBuffer>
}

/** What `vm.launchStart` takes. */
export interface LaunchStart {
  /** Guest policy (SEV_POLICY), 32 bits. */
  readonly policy: number | bigint
  /** The guest owner's DH certificate and session blob (createLaunchSession); without them the firmware makes random keys. */
  readonly dhCert?: Uint8Array
  /** Goes with `dhCert`. */
  readonly session?: Uint8Array
}

/** What travels between two platforms (SEV API 55766, SEND_UPDATE_DATA). */
export interface MigrationPacket {
  /** 52 bytes: flags, IV, MAC. */
  readonly header: Uint8Array
  /** Guest memory under the transport key. */
  readonly data: Uint8Array
}

/** Name of a KVM_MEMORY_ENCRYPT_OP command. */
export type SevCommandName = keyof typeof SEV_COMMAND

/** Makes the object of a VM file descriptor: `kvm.createVm` alone does. @internal */
export let makeVm: (kvm: Kvm, fd: number, type: VmType, file: VmFd) => Vm

/** A VM file descriptor. Every method throws KvmError with the kernel's reason when the call is refused. */
export class Vm {
  static {
    makeVm = (kvm, fd, type, file) => new Vm(kvm, fd, type, file)
  }

  /** The device it belongs to. */
  readonly kvm: Kvm
  /** File descriptor, for raw calls. */
  readonly fd: number
  /** As asked of `createVm`. */
  readonly type: VmType
  readonly #file: VmFd
  /** In the order of their creation. */
  readonly vcpus: Vcpu[] = []
  #sevFd = -1

  private constructor(kvm: Kvm, fd: number, type: VmType, file: VmFd) {
    this.kvm = kvm
    this.fd = fd
    this.type = type
    this.#file = file
  }

  /** @internal */
  get file(): VmFd {
    return this.#file
  }

  /** Virtual time in nanoseconds: what timers of the VMM's devices go by (Linux: the host's CLOCK_MONOTONIC). */
  get clock(): number {
    return this.#file.clock
  }

  /** Moves virtual time forward while no vCPU runs: the machine is suspended. */
  sleepUntil(ns: number): void {
    this.#file.clock = ns
  }

  /** KVM_RUN returns -EINTR at this virtual time, also out of HLT (Linux: a timer's signal). Infinity: none. */
  setDeadline(ns: number): void {
    this.#file.setDeadline(ns)
  }

  /** Any request by name, with its struct bytes or scalar. CloisterError `ERR_ARGUMENT` for a name that is none. */
  ioctl(name: keyof typeof REQUEST, arg?: Uint8Array | number | bigint): number {
    return this.kvm.check(this.kvm.ioctl(this.fd, requestCode(name), arg))
  }

  /** KVM_CHECK_EXTENSION on this VM: 0 = not there. */
  checkExtension(cap: number | keyof typeof CAP): number {
    return this.ioctl('KVM_CHECK_EXTENSION', capNumber(cap))
  }

  /** KVM_CREATE_VCPU: `id` is the APIC id. */
  createVcpu(id: number | bigint): Vcpu {
    const fd = this.ioctl('KVM_CREATE_VCPU', id)
    const vcpu = makeVcpu(this.kvm, this, fd, this.kvm.kernel.file(fd) as VcpuFd)
    this.vcpus.push(vcpu)
    return vcpu
  }

  /** KVM_SET_USER_MEMORY_REGION. */
  setUserMemoryRegion(region: MemoryRegion): void {
    const bytes = new Uint8Array(32)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, region.slot, true)
    view.setUint32(4, region.flags ?? 0, true)
    view.setBigUint64(8, BigInt(region.guestPhysAddr), true)
    view.setBigUint64(16, BigInt(region.memorySize), true)
    view.setBigUint64(24, BigInt(region.userspaceAddr), true)
    this.ioctl('KVM_SET_USER_MEMORY_REGION', bytes)
  }

  /** KVM_CREATE_IRQCHIP: local APICs, IOAPIC and PIC in the kernel. */
  createIrqchip(): void {
    this.ioctl('KVM_CREATE_IRQCHIP', 0)
  }

  /** KVM_CREATE_PIT2: the 8254; flag KVM_PIT_SPEAKER_DUMMY 1. */
  createPit2(flags = 0): void {
    const bytes = new Uint8Array(64)
    new DataView(bytes.buffer).setUint32(0, flags, true)
    this.ioctl('KVM_CREATE_PIT2', bytes)
  }

  /** KVM_IRQ_LINE: the level of a global interrupt line. */
  irqLine(gsi: number, level: boolean | number): void {
    const bytes = new Uint8Array(8)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, gsi, true)
    view.setUint32(4, Number(level), true)
    this.ioctl('KVM_IRQ_LINE', bytes)
  }

  /** KVM_SIGNAL_MSI: > 0 delivered, 0 blocked by the guest. */
  signalMsi(address: bigint | number, data: number): number {
    const bytes = new Uint8Array(32)
    const view = new DataView(bytes.buffer)
    view.setBigUint64(0, BigInt(address), true)
    view.setUint32(8, data, true)
    return this.ioctl('KVM_SIGNAL_MSI', bytes)
  }

  /** KVM_ENABLE_CAP on this VM, with at most four arguments. */
  enableCap(cap: number | keyof typeof CAP, args: readonly (bigint | number)[] = [], flags = 0): number {
    const bytes = new Uint8Array(104)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, capNumber(cap), true)
    view.setUint32(4, flags, true)
    args.slice(0, 4).forEach((arg, i) => {
      view.setBigUint64(8 + i * 8, BigInt(arg), true)
    })
    return this.ioctl('KVM_ENABLE_CAP', bytes)
  }

  // SEV (KVM_MEMORY_ENCRYPT_OP).

  /** One command with its struct; a refusal is in `errno`. */
  memoryEncrypt(command: SevCommandName | number, data: Uint8Array | null = null): SevResult {
    const id = sevCommandNumber(command)
    if (this.#sevFd < 0 && this.kvm.host === 'amd') this.#sevFd = this.kvm.open('/dev/sev')
    const arg = new Uint8Array(24)
    const view = new DataView(arg.buffer)
    view.setUint32(0, id, true)
    view.setBigUint64(8, data === null ? 0n : this.kvm.scratch(data), true)
    view.setUint32(20, this.#sevFd, true)
    const errno = this.kvm.ioctl(this.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, arg)
    return { errno, fwError: view.getUint32(16, true), data: data === null ? new Uint8Array(0) : this.kvm.readScratch(data.length) }
  }

  /** As memoryEncrypt, but a refusal throws. */
  sevCommand(command: SevCommandName, data: Uint8Array | null = null): Uint8Array<ArrayBuffer> {
    const result = this.memoryEncrypt(command, data)
    this.kvm.check(result.errno)
    return result.data
  }

  /**
   * The init command of this VM type: KVM_SEV_INIT, KVM_SEV_ES_INIT or, with the options, KVM_SEV_INIT2. CloisterError
   * `ERR_ARGUMENT` for a type without one.
   */
  sevInit(options: { vmsaFeatures?: bigint | number; flags?: number; ghcbVersion?: number } = {}): void {
    switch (this.type) {
      case 'sev-legacy':
        this.sevCommand('KVM_SEV_INIT')
        return
      case 'sev-es-legacy':
        this.sevCommand('KVM_SEV_ES_INIT')
        return
      case 'sev':
      case 'sev-es':
      case 'snp': {
        const data = new Uint8Array(48)
        const view = new DataView(data.buffer)
        view.setBigUint64(0, BigInt(options.vmsaFeatures ?? 0), true)
        view.setUint32(8, options.flags ?? 0, true)
        view.setUint16(12, options.ghcbVersion ?? 0, true)
        this.sevCommand('KVM_SEV_INIT2', data)
        return
      }
      default:
        throw new CloisterError('ERR_ARGUMENT', `a VM of type ${this.type} has no SEV init command`)
    }
  }

  /** KVM_SEV_LAUNCH_START: the firmware's handle of the guest. */
  launchStart(options: LaunchStart): number {
    const data = new Uint8Array(40)
    const view = new DataView(data.buffer)
    view.setUint32(4, Number(options.policy), true)
    if (options.dhCert) {
      view.setBigUint64(8, this.kvm.scratch(options.dhCert, 0x4000), true)
      view.setUint32(16, options.dhCert.length, true)
    }
    if (options.session) {
      view.setBigUint64(24, this.kvm.scratch(options.session, 0x8000), true)
      view.setUint32(32, options.session.length, true)
    }
    const out = this.sevCommand('KVM_SEV_LAUNCH_START', data)
    return new DataView(out.buffer).getUint32(0, true)
  }

  /** KVM_SEV_LAUNCH_UPDATE_DATA: encrypts and measures memory of a mapping in place; multiples of 16 bytes. */
  launchUpdateData(address: bigint | number, length: number | bigint): void {
    const data = new Uint8Array(16)
    const view = new DataView(data.buffer)
    view.setBigUint64(0, BigInt(address), true)
    view.setUint32(8, Number(length), true)
    this.sevCommand('KVM_SEV_LAUNCH_UPDATE_DATA', data)
  }

  /** KVM_SEV_LAUNCH_UPDATE_VMSA (SEV-ES): measures and seals the registers of all vCPUs. */
  launchUpdateVmsa(): void {
    this.sevCommand('KVM_SEV_LAUNCH_UPDATE_VMSA')
  }

  /** KVM_SEV_LAUNCH_MEASURE, 48 bytes: the measurement (HMAC-SHA-256, 32) and the nonce (16). */
  launchMeasure(): Uint8Array<ArrayBuffer> {
    const data = new Uint8Array(16)
    const view = new DataView(data.buffer)
    view.setBigUint64(0, this.kvm.scratch(new Uint8Array(48), 0x4000), true)
    view.setUint32(8, 48, true)
    this.sevCommand('KVM_SEV_LAUNCH_MEASURE', data)
    return this.kvm.readScratch(48, 0x4000)
  }

  /**
   * KVM_SEV_LAUNCH_SECRET: injects a secret that `packSecret` encrypted into guest memory at `address` of a mapping; `length`
   * bytes, a multiple of 16.
   */
  launchSecret(options: { header: Uint8Array; address: bigint | number; length: number; secret: Uint8Array }): void {
    const data = this.#packet(options.header, options.secret, options.address, options.length)
    this.sevCommand('KVM_SEV_LAUNCH_SECRET', data)
  }

  /** KVM_SEV_LAUNCH_FINISH: the guest can run. */
  launchFinish(): void {
    this.sevCommand('KVM_SEV_LAUNCH_FINISH')
  }

  /** KVM_SEV_GUEST_STATUS; `state` is one of GUEST_STATE. */
  guestStatus(): { handle: number; policy: number; state: number } {
    const out = this.sevCommand('KVM_SEV_GUEST_STATUS', new Uint8Array(12))
    const view = new DataView(out.buffer)
    return { handle: view.getUint32(0, true), policy: view.getUint32(4, true), state: view.getUint32(8, true) }
  }

  // Migration to another platform (KVM_SEV_SEND_*, KVM_SEV_RECEIVE_*).

  /** KVM_SEV_SEND_START to the platform with these certificates (`kvm.sevCertificates()` there): the session for its RECEIVE_START. */
  sendStart(receiver: { pdh: Uint8Array; chain: Uint8Array; roots?: Uint8Array }): Uint8Array<ArrayBuffer> {
    const data = new Uint8Array(72)
    const view = new DataView(data.buffer)
    ;[receiver.pdh, receiver.chain, receiver.roots ?? sevRootCertificates(), new Uint8Array(SEV_SIZE.SESSION)].forEach((bytes, i) => {
      view.setBigUint64(8 + i * 16, this.kvm.scratch(bytes, 0x2000 * (i + 1)), true)
      view.setUint32(16 + i * 16, bytes.length, true)
    })
    this.sevCommand('KVM_SEV_SEND_START', data)
    return this.kvm.readScratch(SEV_SIZE.SESSION, 0x8000)
  }

  /** KVM_SEV_SEND_UPDATE_DATA: one piece of encrypted guest memory (inside a page, in units of 16 bytes) as a packet. */
  sendUpdateData(address: bigint | number, length = 4096): MigrationPacket {
    this.sevCommand(
      'KVM_SEV_SEND_UPDATE_DATA',
      this.#packet(new Uint8Array(SEV_SIZE.PACKET_HEADER), new Uint8Array(length), address, length),
    )
    return { header: this.kvm.readScratch(SEV_SIZE.PACKET_HEADER, 0x4000), data: this.kvm.readScratch(length, 0x8000) }
  }

  /** KVM_SEV_SEND_FINISH: the guest does not run here any more. */
  sendFinish(): void {
    this.sevCommand('KVM_SEV_SEND_FINISH')
  }

  /** KVM_SEV_SEND_CANCEL: back to running here. */
  sendCancel(): void {
    this.sevCommand('KVM_SEV_SEND_CANCEL')
  }

  /** KVM_SEV_RECEIVE_START; `pdh` is the sender's. The firmware's handle of the guest. */
  receiveStart(options: { policy: number | bigint; pdh: Uint8Array; session: Uint8Array }): number {
    const data = new Uint8Array(40)
    const view = new DataView(data.buffer)
    view.setUint32(4, Number(options.policy), true)
    view.setBigUint64(8, this.kvm.scratch(options.pdh, 0x4000), true)
    view.setUint32(16, options.pdh.length, true)
    view.setBigUint64(24, this.kvm.scratch(options.session, 0x8000), true)
    view.setUint32(32, options.session.length, true)
    const out = this.sevCommand('KVM_SEV_RECEIVE_START', data)
    return new DataView(out.buffer).getUint32(0, true)
  }

  /** KVM_SEV_RECEIVE_UPDATE_DATA into memory at `address` of a mapping. */
  receiveUpdateData(packet: MigrationPacket, address: bigint | number): void {
    this.sevCommand('KVM_SEV_RECEIVE_UPDATE_DATA', this.#packet(packet.header, packet.data, address, packet.data.length))
  }

  /** KVM_SEV_RECEIVE_FINISH: the guest can run. */
  receiveFinish(): void {
    this.sevCommand('KVM_SEV_RECEIVE_FINISH')
  }

  /** The struct that SEND_UPDATE_DATA, RECEIVE_UPDATE_DATA and LAUNCH_SECRET have in common. */
  #packet(header: Uint8Array, packet: Uint8Array, address: bigint | number, length: number): Uint8Array<ArrayBuffer> {
    const data = new Uint8Array(48)
    const view = new DataView(data.buffer)
    view.setBigUint64(0, this.kvm.scratch(header, 0x4000), true)
    view.setUint32(8, header.length, true)
    view.setBigUint64(16, BigInt(address), true)
    view.setUint32(24, length, true)
    view.setBigUint64(32, this.kvm.scratch(packet, 0x8000), true)
    view.setUint32(40, packet.length, true)
    return data
  }

  /**
   * The launch digest so far, in hex (null without a guest context), as the firmware would put it into its measurement. Real firmware
   * reveals only the HMAC over it; a VMM computes this value from what it loaded.
   */
  launchDigest(): string | null {
    return this.#file.launchDigest()
  }

  /** Closes its file descriptor and those of its vCPUs. */
  [Symbol.dispose](): void {
    for (const vcpu of this.vcpus) vcpu[Symbol.dispose]()
    if (this.#sevFd >= 0) this.kvm.close(this.#sevFd)
    this.#sevFd = -1
    if (this.kvm.kernel.file(this.fd) === this.#file) this.kvm.close(this.fd)
  }
}
