/** A VM of any type with real-mode guests, driven by raw requests: what the kernel's selftests do in C. */
import * as assert from 'uvu/assert'
import { ERRNO, type Kvm, openKvm, REQUEST, type Vcpu, Vm } from 'cloister'

export const PAGE = 4096
export const SW_PROTECTED = 1
export const FLAG = { LOG_DIRTY: 1, READONLY: 2, GUEST_MEMFD: 4 } as const
export const PRIVATE = 8n
/** Where guests start; the first 64 KiB are slot 0. */
const CODE = 0x1000

type Mapping = ReturnType<Kvm['mmap']>

export interface Region {
  slot: number
  flags?: number
  gpa: number | bigint
  size: number | bigint
  hva?: bigint
  gmem?: number
  offset?: number | bigint
}

export class Box {
  readonly kvm: Kvm
  readonly system: number
  readonly fd: number
  readonly vm: Vm

  private constructor(kvm: Kvm, type: number) {
    this.kvm = kvm
    this.system = kvm.open('/dev/kvm')
    this.fd = kvm.ioctl(this.system, REQUEST.KVM_CREATE_VM, type)
    assert.ok(this.fd >= 0, `KVM_CREATE_VM ${type}: ${kvm.lastRefusal()?.reason}`)
    // A VM of a type that createVm does not know (SW_PROTECTED).
    this.vm = Reflect.construct(Vm, [kvm, this.fd, 'default', kvm.kernel.file(this.fd)]) as Vm
  }

  static async create(type = 0, options: Parameters<typeof openKvm>[0] = {}): Promise<Box> {
    return new Box(await openKvm({ memory: 256 << 20, ...options }), type)
  }

  ioctl(name: keyof typeof REQUEST, arg: Uint8Array | number): number {
    return this.kvm.ioctl(this.fd, REQUEST[name], arg)
  }

  memory(length: number): Mapping {
    return this.kvm.mmap(-1, length)
  }

  region(r: Region, two = true): number {
    const bytes = new Uint8Array(two ? 160 : 32)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, r.slot, true)
    view.setUint32(4, r.flags ?? 0, true)
    view.setBigUint64(8, BigInt(r.gpa), true)
    view.setBigUint64(16, BigInt(r.size), true)
    view.setBigUint64(24, r.hva ?? 0n, true)
    if (two) {
      view.setBigUint64(32, BigInt.asUintN(64, BigInt(r.offset ?? 0)), true)
      view.setInt32(40, r.gmem ?? 0, true)
    }
    return this.ioctl(two ? 'KVM_SET_USER_MEMORY_REGION2' : 'KVM_SET_USER_MEMORY_REGION', bytes)
  }

  guestMemfd(size: number | bigint, flags: number | bigint = 0): number {
    const bytes = new Uint8Array(64)
    const view = new DataView(bytes.buffer)
    view.setBigInt64(0, BigInt(size), true)
    view.setBigUint64(8, BigInt(flags), true)
    return this.ioctl('KVM_CREATE_GUEST_MEMFD', bytes)
  }

  attributes(address: number | bigint, size: number | bigint, attributes: bigint, flags = 0n): number {
    return this.ioctl(
      'KVM_SET_MEMORY_ATTRIBUTES',
      new Uint8Array(new BigUint64Array([BigInt(address), BigInt(size), attributes, flags]).buffer),
    )
  }

  /** Slot 0: 64 KiB with `code` at CODE. */
  guest(code: readonly number[]): Vcpu {
    const ram = this.memory(0x10000)
    ram.write(CODE, new Uint8Array(code))
    assert.is(this.region({ slot: 0, gpa: 0, size: 0x10000, hva: ram.address }), 0)
    return this.vcpu()
  }

  vcpu(id = 0): Vcpu {
    const vcpu = this.vm.createVcpu(id)
    const sregs = vcpu.getSregs()
    vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })
    vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE), rsp: 0x8000n, rflags: 2n })
    return vcpu
  }

  /** Runs to the next OUT and gives its byte. */
  out(vcpu: Vcpu): number {
    const exit = vcpu.run({ maxInstructions: 10_000_000 })
    assert.is(
      exit.reason,
      'KVM_EXIT_IO',
      JSON.stringify(exit, (_, v) => (typeof v === 'bigint' ? `0x${v.toString(16)}` : v)),
    )
    return exit.reason === 'KVM_EXIT_IO' ? (exit.data[0] as number) : -1
  }

  /** KVM_RUN must fail with -EFAULT and this payload. */
  fault(vcpu: Vcpu, gpa: number, flags: bigint): void {
    assert.is(vcpu.runRaw(1_000_000), -ERRNO.EFAULT)
    assert.is(vcpu.runView.getUint32(8, true), 39)
    assert.is(vcpu.runView.getBigUint64(32, true), flags)
    assert.is(vcpu.runView.getBigUint64(40, true), BigInt(gpa))
    assert.is(vcpu.runView.getBigUint64(48, true), BigInt(PAGE))
    assert.is(this.kvm.lastRefusal()?.code, 'EFAULT')
  }

  done(): void {
    assert.equal(this.kvm.kernel.internalErrors, [])
    this.kvm[Symbol.dispose]()
  }
}

/** 16-bit code. */
export const asm = {
  ds: (segment: number): number[] => [0xb8, segment & 0xff, segment >> 8, 0x8e, 0xd8],
  /** mov byte [offset], value */
  store: (offset: number, value: number): number[] => [0xc6, 0x06, offset & 0xff, offset >> 8, value],
  /** mov al, [offset]; out 0x10, al */
  show: (offset: number): number[] => [0xa0, offset & 0xff, offset >> 8, 0xe6, 0x10],
  /** mov al, value; out 0x10, al */
  mark: (value: number): number[] => [0xb0, value, 0xe6, 0x10],
  /** KVM_HC_MAP_GPA_RANGE; AL of its result to port 0x10. */
  map: (gpa: number, pages: number, attributes: number): number[] => [
    ...[0x66, 0xb8, 12, 0, 0, 0],
    ...[0x66, 0xbb, ...u32(gpa)],
    ...[0x66, 0xb9, ...u32(pages)],
    ...[0x66, 0xba, ...u32(attributes)],
    ...[0x0f, 0x01, 0xd9, 0xe6, 0x10],
  ],
  /** Fills `pages` pages from DS:0 on with AL, 4096 bytes each (ES = DS). */
  fill: (bytes: number): number[] => [0x1e, 0x07, 0x31, 0xff, 0xb9, bytes & 0xff, bytes >> 8, 0xf3, 0xaa],
  hlt: [0xf4],
}

function u32(value: number): number[] {
  return [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, (value >>> 24) & 0xff]
}
