/**
 * One sample guest, launched and run by the ioctls a VMM would use (Documentation/virt/kvm/api.rst and
 * x86/amd-memory-encryption.rst). Everything the host learns is what these calls return.
 */
import type { Kvm, Mapping } from '../../index.ts'
import type { Narrator } from './narrator.ts'

const KVM_CREATE_VM = 0xae01
const KVM_GET_VCPU_MMAP_SIZE = 0xae04
const KVM_GET_SUPPORTED_CPUID = 0xc008ae05
const KVM_CREATE_VCPU = 0xae41
const KVM_SET_USER_MEMORY_REGION = 0x4020ae46
const KVM_RUN = 0xae80
const KVM_GET_REGS = 0x8090ae81
const KVM_SET_REGS = 0x4090ae82
const KVM_GET_SREGS = 0x8138ae83
const KVM_SET_SREGS = 0x4138ae84
const KVM_SET_CPUID2 = 0x4008ae90
const KVM_MEMORY_ENCRYPT_OP = 0xc008aeba

/** Sub-commands of KVM_MEMORY_ENCRYPT_OP. */
const SEV = {
  INIT: 0,
  ES_INIT: 1,
  LAUNCH_START: 2,
  LAUNCH_UPDATE_DATA: 3,
  LAUNCH_UPDATE_VMSA: 4,
  LAUNCH_MEASURE: 6,
  LAUNCH_FINISH: 7,
  GET_ATTESTATION_REPORT: 20,
  INIT2: 22,
} as const
type SevCommand = keyof typeof SEV

const exitNames: Record<number, string> = {
  2: 'KVM_EXIT_IO',
  5: 'KVM_EXIT_HLT',
  6: 'KVM_EXIT_MMIO',
  8: 'KVM_EXIT_SHUTDOWN',
  9: 'KVM_EXIT_FAIL_ENTRY',
  17: 'KVM_EXIT_INTERNAL_ERROR',
  24: 'KVM_EXIT_SYSTEM_EVENT',
}

/** Offsets in struct kvm_run. */
const RUN_EXIT_REASON = 8
const RUN_UNION = 32

const MEMORY = 4 * 1024 * 1024
const TABLES = 0x1000

export interface GuestType {
  name: string
  /** KVM_CREATE_VM argument. */
  vmType: number
  init: 'none' | 'INIT' | 'ES_INIT' | 'INIT2'
  encrypted: boolean
  protectedState: boolean
  policy: number
}

export const guestTypes: readonly GuestType[] = [
  { name: 'default', vmType: 0, init: 'none', encrypted: false, protectedState: false, policy: 0 },
  { name: 'sev', vmType: 2, init: 'INIT2', encrypted: true, protectedState: false, policy: 1 },
  { name: 'sev-legacy', vmType: 0, init: 'INIT', encrypted: true, protectedState: false, policy: 1 },
  { name: 'sev-es', vmType: 3, init: 'INIT2', encrypted: true, protectedState: true, policy: 5 },
  { name: 'sev-es-legacy', vmType: 0, init: 'ES_INIT', encrypted: true, protectedState: true, policy: 5 },
]

export interface Image {
  bytes: Uint8Array
  load: number
}

/** A call that must succeed; what refuses is told with the kernel's reason. */
class Refused extends Error {
  constructor(call: string, errno: number, why: string) {
    super(`${call} returned ${errno}${why === '' ? '' : `: ${why}`}`)
  }
}

export class Guest {
  readonly kvm: Kvm
  readonly type: GuestType
  readonly vm: number
  readonly vcpu: number
  readonly memory: Mapping
  readonly run: Mapping
  private readonly device: number
  private readonly sevDevice: number
  /** Structures that commands point to live here: an anonymous mapping has an address. */
  private readonly scratch: Mapping
  private readonly say: Narrator

  constructor(kvm: Kvm, type: GuestType, say: Narrator) {
    this.kvm = kvm
    this.type = type
    this.say = say
    this.device = this.must('open /dev/kvm', kvm.open('/dev/kvm'))
    this.sevDevice = type.encrypted ? this.must('open /dev/sev', kvm.open('/dev/sev')) : -1
    this.vm = this.must('KVM_CREATE_VM', kvm.ioctl(this.device, KVM_CREATE_VM, type.vmType))
    this.memory = kvm.mmap(-1, MEMORY)
    this.scratch = kvm.mmap(-1, 0x1000)
    const region = new DataView(new ArrayBuffer(32))
    region.setBigUint64(16, BigInt(MEMORY), true)
    region.setBigUint64(24, this.memory.address, true)
    this.call('KVM_SET_USER_MEMORY_REGION', this.vm, KVM_SET_USER_MEMORY_REGION, bytesOf(region))
    if (type.init === 'INIT2') this.sev('INIT2', new Uint8Array(48))
    else if (type.init !== 'none') this.sev(type.init)
    this.vcpu = this.must('KVM_CREATE_VCPU', kvm.ioctl(this.vm, KVM_CREATE_VCPU, 0))
    this.run = kvm.mmap(this.vcpu, this.must('KVM_GET_VCPU_MMAP_SIZE', kvm.ioctl(this.device, KVM_GET_VCPU_MMAP_SIZE, 0)))
  }

  private must(call: string, result: number): number {
    if (result < 0) throw new Refused(call, result, String(this.kvm.lastRefusal()?.reason ?? ''))
    return result
  }

  private call(name: string, fd: number, request: number, arg: Uint8Array): void {
    this.must(name, this.kvm.ioctl(fd, request, arg))
  }

  /** KVM_MEMORY_ENCRYPT_OP with its parameters in memory; gives them back as the firmware left them. */
  private sev(command: SevCommand, parameters?: Uint8Array): Uint8Array {
    const size = parameters?.length ?? 0
    if (parameters !== undefined) this.scratch.write(0, parameters)
    const cmd = new DataView(new ArrayBuffer(24))
    cmd.setUint32(0, SEV[command], true)
    cmd.setBigUint64(8, size > 0 ? this.scratch.address : 0n, true)
    cmd.setUint32(20, this.sevDevice, true)
    const result = this.kvm.ioctl(this.vm, KVM_MEMORY_ENCRYPT_OP, bytesOf(cmd))
    this.say.ioctl(`KVM_SEV_${command}`, result)
    this.must(`KVM_SEV_${command}`, result)
    return this.scratch.read(0, size)
  }

  /** All CPUID leaves KVM supports, given to the vCPU; returns the position of the C-bit. */
  cpuid(): number {
    const capacity = 128
    const table = new DataView(new ArrayBuffer(8 + capacity * 40))
    table.setUint32(0, capacity, true)
    this.call('KVM_GET_SUPPORTED_CPUID', this.device, KVM_GET_SUPPORTED_CPUID, bytesOf(table))
    this.call('KVM_SET_CPUID2', this.vcpu, KVM_SET_CPUID2, bytesOf(table))
    for (let i = 0; i < table.getUint32(0, true); i++) {
      const at = 8 + i * 40
      if (table.getUint32(at, true) === 0x8000001f) return table.getUint32(at + 16, true) & 63
    }
    return 51
  }

  /** Image, page tables (the first 1 GiB identity-mapped, private where the guest is encrypted) and long mode. */
  prepare(image: Image): void {
    const cbit = this.cpuid()
    const mark = this.type.encrypted ? 1n << BigInt(cbit) : 0n
    this.memory.write(image.load, image.bytes)
    const tables = new DataView(new ArrayBuffer(0x3000))
    tables.setBigUint64(0, BigInt(TABLES + 0x1003) | mark, true)
    tables.setBigUint64(0x1000, BigInt(TABLES + 0x2003) | mark, true)
    for (let i = 0; i < 512; i++) tables.setBigUint64(0x2000 + i * 8, BigInt(i * 0x200000 + 0x83) | mark, true)
    this.memory.write(TABLES, bytesOf(tables))
    this.longMode(image.load)
  }

  private longMode(entry: number): void {
    const sregs = new Uint8Array(312)
    this.call('KVM_GET_SREGS', this.vcpu, KVM_GET_SREGS, sregs)
    const view = new DataView(sregs.buffer)
    // cs ds es fs gs ss: base u64, limit u32, selector u16, type, present, dpl, db, s, l, g
    for (let i = 0; i < 6; i++) {
      const at = i * 24
      const code = i === 0
      view.setBigUint64(at, 0n, true)
      view.setUint32(at + 8, 0xffffffff, true)
      view.setUint16(at + 12, code ? 8 : 16, true)
      sregs.set([code ? 11 : 3, 1, 0, code ? 0 : 1, 1, code ? 1 : 0, 1], at + 14)
    }
    const CR0 = 224
    view.setBigUint64(CR0, 0x80000011n, true)
    view.setBigUint64(CR0 + 16, BigInt(TABLES), true) // CR3
    view.setBigUint64(CR0 + 24, 0x20n, true) // CR4.PAE
    view.setBigUint64(CR0 + 40, 0x500n, true) // EFER.LME, LMA
    this.call('KVM_SET_SREGS', this.vcpu, KVM_SET_SREGS, sregs)
    const regs = new DataView(new ArrayBuffer(144))
    regs.setBigUint64(48, BigInt(entry), true) // RSP
    regs.setBigUint64(128, BigInt(entry), true) // RIP
    regs.setBigUint64(136, 2n, true) // RFLAGS
    this.call('KVM_SET_REGS', this.vcpu, KVM_SET_REGS, bytesOf(regs))
  }

  launchStart(): void {
    const start = new DataView(new ArrayBuffer(40))
    start.setUint32(4, this.type.policy, true)
    this.sev('LAUNCH_START', bytesOf(start))
  }

  launchUpdate(address: number, length: number): void {
    const update = new DataView(new ArrayBuffer(16))
    update.setBigUint64(0, this.memory.address + BigInt(address), true)
    update.setUint32(8, length, true)
    this.sev('LAUNCH_UPDATE_DATA', bytesOf(update))
  }

  launchUpdateTables(): void {
    this.launchUpdate(TABLES, 0x3000)
  }

  launchUpdateVmsa(): void {
    this.sev('LAUNCH_UPDATE_VMSA')
  }

  /** MEASURE (HMAC with the launch's integrity key over the digest) and the firmware's nonce. */
  launchMeasure(): Uint8Array {
    const measure = new DataView(new ArrayBuffer(16))
    measure.setBigUint64(0, this.scratch.address + 0x100n, true)
    measure.setUint32(8, 48, true)
    this.sev('LAUNCH_MEASURE', bytesOf(measure))
    return this.scratch.read(0x100, 48)
  }

  launchFinish(): void {
    this.sev('LAUNCH_FINISH')
  }

  /** The launch digest, from bytes 0x10-0x2f of the firmware's attestation report (SEV API, ATTESTATION_REPORT). */
  launchDigest(): Uint8Array {
    const report = new DataView(new ArrayBuffer(32))
    report.setBigUint64(16, this.scratch.address + 0x200n, true)
    report.setUint32(24, 0xd0, true)
    this.sev('GET_ATTESTATION_REPORT', bytesOf(report))
    return this.scratch.read(0x210, 32)
  }

  /** What the host gets for the guest's registers: RIP, RAX and R12, or the errno. */
  readRegisters(): string {
    const regs = new DataView(new ArrayBuffer(144))
    const result = this.kvm.ioctl(this.vcpu, KVM_GET_REGS, bytesOf(regs))
    if (result < 0) return `errno ${result}`
    const value = (at: number) => `0x${regs.getBigUint64(at, true).toString(16)}`
    return `rip=${value(128)} rax=${value(0)} r12=${value(96)}`
  }

  /** One KVM_RUN: the exit's name and what it carries. */
  step(): Exit {
    const result = this.kvm.ioctl(this.vcpu, KVM_RUN, 0)
    if (result < 0) return { name: `KVM_RUN returned ${result}`, text: '', last: true }
    const head = this.view(0, 0x120)
    const reason = head.getUint32(RUN_EXIT_REASON, true)
    const name = exitNames[reason] ?? `exit reason ${reason}`
    if (reason === 2) {
      const bytes = head.getUint8(RUN_UNION + 1) * head.getUint32(RUN_UNION + 4, true)
      const port = head.getUint16(RUN_UNION + 2, true)
      const data = this.run.read(Number(head.getBigUint64(RUN_UNION + 8, true)), bytes)
      const out = head.getUint8(RUN_UNION) === 1
      return {
        name,
        detail: `${out ? 'out' : 'in'} 0x${port.toString(16)}`,
        text: out && port === 0x3f8 ? String.fromCharCode(...data) : '',
        last: false,
      }
    }
    if (reason === 24) {
      const type = head.getUint32(RUN_UNION, true)
      const data = head.getBigUint64(RUN_UNION + 8, true)
      return { name, detail: `${type === 6 ? 'SEV_TERM' : `type ${type}`}, data[0] = 0x${data.toString(16)}`, text: '', last: true }
    }
    return { name, text: '', last: reason !== 5 }
  }

  private view(at: number, length: number): DataView {
    const bytes = this.run.read(at, length)
    return new DataView(bytes.buffer, bytes.byteOffset, length)
  }

  close(): void {
    for (const fd of [this.vcpu, this.vm, this.sevDevice, this.device]) if (fd >= 0) this.kvm.close(fd)
  }
}

export interface Exit {
  name: string
  detail?: string
  text: string
  last: boolean
}

function bytesOf(view: DataView): Uint8Array<ArrayBuffer> {
  return new Uint8Array(view.buffer as ArrayBuffer)
}
