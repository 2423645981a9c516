/** One vCPU of an ordinary VM by raw requests alone: registers, events and kvm_run as bytes, guests as machine code. */
import * as assert from 'uvu/assert'
import { CAP, EXIT, type Kvm, type Mapping, openKvm, REQUEST } from 'cloister'
import type { VcpuFd } from '../../../host/kvm/vcpu.ts'

export const CODE = 0x1000
/** Instruction budget of one KVM_RUN: no guest here needs a tenth of it. */
const BUDGET = 100_000

export const RUN_FLAGS = 14
const REG = { RAX: 0, RBX: 8, RCX: 16, RDX: 24, RSI: 32, RDI: 40, RSP: 48, RBP: 56, RIP: 128, RFLAGS: 136 } as const

export interface RawOptions {
  readonly type?: number
  readonly irqchip?: 'none' | 'full' | 'split'
  /** KVM_SET_CPUID2 with what KVM_GET_SUPPORTED_CPUID gives. */
  readonly cpuid?: boolean
  readonly mode?: 'real' | 'protected' | 'long'
  readonly size?: number
  readonly options?: Parameters<typeof openKvm>[0]
  /** Runs before the vCPU is created. */
  readonly before?: (guest: RawGuest) => void
}

export class RawGuest {
  readonly kvm: Kvm
  readonly system: number
  readonly vm: number
  readonly memory: Mapping
  readonly vcpus: number[] = []

  private constructor(kvm: Kvm, options: RawOptions) {
    this.kvm = kvm
    this.system = kvm.open('/dev/kvm')
    this.vm = this.must(kvm.ioctl(this.system, REQUEST.KVM_CREATE_VM, options.type ?? 0), 'KVM_CREATE_VM')
    if (options.irqchip === 'full') this.must(this.vmCall('KVM_CREATE_IRQCHIP'), 'KVM_CREATE_IRQCHIP')
    if (options.irqchip === 'split') this.must(this.enable(CAP.KVM_CAP_SPLIT_IRQCHIP, [24]), 'split irqchip')
    this.memory = kvm.mmap(-1, options.size ?? 0x20000)
    this.must(this.slot(0, 0, this.memory), 'slot 0')
  }

  static async create(code: readonly number[], options: RawOptions = {}): Promise<RawGuest> {
    const kvm = await openKvm({ memory: 256 << 20, ...options.options })
    const guest = new RawGuest(kvm, options)
    options.before?.(guest)
    guest.addVcpu(0, options)
    guest.memory.write(CODE, Uint8Array.from(code))
    return guest
  }

  addVcpu(id: number, { cpuid = true, mode = 'real' }: Pick<RawOptions, 'cpuid' | 'mode'> = {}): number {
    const fd = this.must(this.vmCall('KVM_CREATE_VCPU', id), 'KVM_CREATE_VCPU')
    this.vcpus.push(fd)
    if (cpuid) {
      const table = new Uint8Array(8 + 256 * 40)
      new DataView(table.buffer).setUint32(0, 256, true)
      this.must(this.kvm.ioctl(this.system, REQUEST.KVM_GET_SUPPORTED_CPUID, table), 'KVM_GET_SUPPORTED_CPUID')
      this.must(this.call('KVM_SET_CPUID2', table, fd), 'KVM_SET_CPUID2')
    }
    this.#mode(mode, fd)
    this.setRegs({ RIP: CODE, RFLAGS: 2, RSP: 0x8000 }, fd)
    return fd
  }

  must(result: number, what: string): number {
    assert.ok(result >= 0, `${what}: ${result} ${this.kvm.lastRefusal()?.reason}`)
    return result
  }

  get vcpu(): number {
    return this.vcpus[0] as number
  }

  vmCall(name: keyof typeof REQUEST, arg: Uint8Array | number | bigint = 0): number {
    return this.kvm.ioctl(this.vm, REQUEST[name], arg)
  }

  call(name: keyof typeof REQUEST, arg: Uint8Array | number | bigint = 0, fd = this.vcpu): number {
    return this.kvm.ioctl(fd, REQUEST[name], arg)
  }

  cap(cap: number): number {
    return this.vmCall('KVM_CHECK_EXTENSION', cap)
  }

  enable(cap: number, args: readonly (number | bigint)[] = [], fd = this.vm): number {
    const bytes = new Uint8Array(104)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, cap, true)
    args.forEach((arg, i) => {
      view.setBigUint64(8 + i * 8, BigInt.asUintN(64, BigInt(arg)), true)
    })
    return this.kvm.ioctl(fd, REQUEST.KVM_ENABLE_CAP, bytes)
  }

  slot(number: number, gpa: number | bigint, memory: Mapping, flags = 0): number {
    const bytes = new Uint8Array(32)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, number, true)
    view.setUint32(4, flags, true)
    view.setBigUint64(8, BigInt(gpa), true)
    view.setBigUint64(16, BigInt(memory.length), true)
    view.setBigUint64(24, memory.address, true)
    return this.vmCall('KVM_SET_USER_MEMORY_REGION', bytes)
  }

  #file(fd: number): VcpuFd {
    return this.kvm.kernel.file(fd) as VcpuFd
  }

  /** KVM_RUN with a budget: 0 or a negative errno. */
  run(fd = this.vcpu, budget = BUDGET): number {
    return this.#file(fd).run(budget)
  }

  runView(fd = this.vcpu): DataView {
    return this.#file(fd).runView
  }

  runBytes(fd = this.vcpu): Uint8Array {
    return this.#file(fd).runBytes
  }

  /** Runs to the next exit, which must have this reason. */
  to(reason: keyof typeof EXIT, fd = this.vcpu): DataView {
    const result = this.run(fd)
    const view = this.runView(fd)
    assert.is(result, 0, `${reason} expected, got errno ${result} (${this.kvm.lastRefusal()?.reason}), why ${this.#file(fd).why}`)
    const names = Object.entries(EXIT).find(([, n]) => n === view.getUint32(8, true))?.[0]
    assert.is(names, reason)
    return view
  }

  /** Runs to a port exit: port, direction (1 out) and the first data byte. */
  port(port: number, fd = this.vcpu): number {
    const view = this.to('KVM_EXIT_IO', fd)
    assert.is(view.getUint16(34, true), port, 'port')
    return view.getUint8(Number(view.getBigUint64(40, true)))
  }

  get(name: keyof typeof REQUEST, size: number, fd = this.vcpu): DataView {
    const bytes = new Uint8Array(size)
    this.must(this.call(name, bytes, fd), name)
    return new DataView(bytes.buffer)
  }

  set(name: keyof typeof REQUEST, view: DataView, fd = this.vcpu): void {
    this.must(this.call(name, new Uint8Array(view.buffer), fd), name)
  }

  reg(name: keyof typeof REG, fd = this.vcpu): bigint {
    return this.get('KVM_GET_REGS', 144, fd).getBigUint64(REG[name], true)
  }

  setRegs(values: Partial<Record<keyof typeof REG, number | bigint>>, fd = this.vcpu): void {
    const view = this.get('KVM_GET_REGS', 144, fd)
    for (const [name, value] of Object.entries(values)) view.setBigUint64(REG[name as 'RAX'], BigInt(value), true)
    this.set('KVM_SET_REGS', view, fd)
  }

  /** struct kvm_vcpu_events, changed by `edit` and written back. */
  events(edit?: (view: DataView) => void, fd = this.vcpu): DataView {
    const view = this.get('KVM_GET_VCPU_EVENTS', 64, fd)
    if (edit !== undefined) {
      edit(view)
      this.set('KVM_SET_VCPU_EVENTS', view, fd)
    }
    return view
  }

  msr(index: number, value?: bigint | number, fd = this.vcpu): bigint | null {
    const bytes = new Uint8Array(24)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, 1, true)
    view.setUint32(8, index, true)
    if (value !== undefined) view.setBigUint64(16, BigInt(value), true)
    const done = this.call(value === undefined ? 'KVM_GET_MSRS' : 'KVM_SET_MSRS', bytes, fd)
    return done === 1 ? view.getBigUint64(16, true) : null
  }

  /** struct kvm_sregs: segments of 24 bytes cs ds es fs gs ss tr ldt, gdt, idt, cr0 cr2 cr3 cr4 cr8 efer apic_base. */
  #mode(mode: 'real' | 'protected' | 'long', fd: number): void {
    const view = this.get('KVM_GET_SREGS', 312, fd)
    const segment = (n: number, selector: number, type: number, db: number, l: number, limit: number): void => {
      const at = n * 24
      view.setBigUint64(at, 0n, true)
      view.setUint32(at + 8, limit, true)
      view.setUint16(at + 12, selector, true)
      ;[type, 1, 0, db, 1, l, limit > 0xfffff ? 1 : 0, 0, 0].forEach((value, i) => {
        view.setUint8(at + 14 + i, value)
      })
    }
    if (mode === 'real') segment(0, 0, 11, 0, 0, 0xffff)
    else {
      segment(0, 8, 11, mode === 'long' ? 0 : 1, mode === 'long' ? 1 : 0, 0xffffffff)
      for (const n of [1, 2, 3, 4, 5]) segment(n, 16, 3, 1, 0, 0xffffffff)
      view.setBigUint64(SREGS_CR0, view.getBigUint64(SREGS_CR0, true) | 1n, true)
    }
    if (mode === 'long') {
      // PML4 at 0x10000, PDPT at 0x11000 with one 1 GiB page.
      this.memory.write(0x10000, new Uint8Array(new BigUint64Array([0x11003n]).buffer))
      this.memory.write(0x11000, new Uint8Array(new BigUint64Array([0x83n, 0x40000083n, 0x80000083n, 0xc0000083n]).buffer))
      view.setBigUint64(SREGS_CR0, 0x80010011n, true)
      view.setBigUint64(SREGS_CR0 + 16, 0x10000n, true)
      view.setBigUint64(SREGS_CR0 + 24, 0x620n, true)
      view.setBigUint64(SREGS_CR0 + 40, 0x500n, true)
    }
    this.set('KVM_SET_SREGS', view, fd)
  }

  close(): void {
    for (const fd of this.vcpus) this.kvm.close(fd)
    this.kvm.close(this.vm)
    this.kvm.close(this.system)
  }
}

export const SREGS_CR0 = 8 * 24 + 2 * 16
