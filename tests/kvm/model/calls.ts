/** Calls with arguments that get past the first check: what a VMM would send, with some bytes changed. */
import { CAP, REQUEST, SEV_COMMAND, TDX_COMMAND } from 'cloister'
import type { RawMachine } from '../raw-machine.ts'
import type { Name } from './state.ts'
import { VCPU_RULES } from './vcpu.ts'
import { VM_RULES } from './vm.ts'

export type Pick = (n: number) => number

export const VM_CALLS = Object.keys(VM_RULES) as Name[]
export const VCPU_CALLS = Object.keys(VCPU_RULES) as Name[]

const GETS: Readonly<Partial<Record<Name, Name>>> = {
  KVM_SET_REGS: 'KVM_GET_REGS',
  KVM_SET_SREGS: 'KVM_GET_SREGS',
  KVM_SET_SREGS2: 'KVM_GET_SREGS2',
  KVM_SET_VCPU_EVENTS: 'KVM_GET_VCPU_EVENTS',
  KVM_SET_LAPIC: 'KVM_GET_LAPIC',
  KVM_SET_XSAVE: 'KVM_GET_XSAVE',
  KVM_SET_FPU: 'KVM_GET_FPU',
  KVM_SET_XCRS: 'KVM_GET_XCRS',
  KVM_SET_DEBUGREGS: 'KVM_GET_DEBUGREGS',
  KVM_SET_PIT2: 'KVM_GET_PIT2',
  KVM_SET_CLOCK: 'KVM_GET_CLOCK',
  KVM_SET_IRQCHIP: 'KVM_GET_IRQCHIP',
}
const CAPS = [
  CAP.KVM_CAP_SPLIT_IRQCHIP,
  CAP.KVM_CAP_EXIT_HYPERCALL,
  CAP.KVM_CAP_X86_USER_SPACE_MSR,
  CAP.KVM_CAP_EXCEPTION_PAYLOAD,
  CAP.KVM_CAP_X86_TRIPLE_FAULT_EVENT,
  CAP.KVM_CAP_MAX_VCPU_ID,
  CAP.KVM_CAP_X2APIC_API,
  CAP.KVM_CAP_HALT_POLL,
  CAP.KVM_CAP_PIT2,
] as const
const CHECKED = [
  CAP.KVM_CAP_X86_SMM,
  CAP.KVM_CAP_READONLY_MEM,
  CAP.KVM_CAP_SYNC_REGS,
  CAP.KVM_CAP_MEMORY_ATTRIBUTES,
  CAP.KVM_CAP_MULTI_ADDRESS_SPACE,
  CAP.KVM_CAP_GUEST_MEMFD_FLAGS,
  CAP.KVM_CAP_MAX_VCPUS,
  CAP.KVM_CAP_EXIT_HYPERCALL,
  CAP.KVM_CAP_MEMORY_FAULT_INFO,
  9999,
] as const

/** What the calls of one VM share. */
export class Caller {
  readonly #m: RawMachine
  readonly #eventfds: number[] = []
  #gmem = -1

  constructor(machine: RawMachine) {
    this.#m = machine
  }

  #eventfd(i: number): number {
    return (this.#eventfds[i] ??= this.#m.kvm.eventfd())
  }

  /** A guest_memfd was made. */
  noteGmem(fd: number): void {
    this.#gmem = fd
  }

  close(): void {
    for (const fd of this.#eventfds) if (fd !== undefined) this.#m.kvm.close(fd)
  }

  argument(name: Name, vcpu: number | null, pick: Pick): Uint8Array | number {
    const { kvm, memory, scratch, vcpus, vm } = this.#m
    const one = <T>(list: readonly T[]): T => list[pick(list.length)] as T
    const code = REQUEST[name]
    const size = (code >>> 16) & 0x3fff
    if (size === 0 || code >>> 30 === 0) return this.#scalar(name, pick)
    const tail = name.includes('CPUID2') ? 40 * 24 : name.endsWith('MSRS') ? 16 * 4 : name === 'KVM_SET_GSI_ROUTING' ? 48 * 4 : 0
    const bytes = new Uint8Array(Math.max(size, 24) + tail)
    const v = new DataView(bytes.buffer)
    const fd = vcpu === null ? vm : (vcpus[vcpu] ?? -1)
    const get = GETS[name]
    if (get !== undefined) {
      if (name === 'KVM_SET_IRQCHIP') v.setUint32(0, pick(3), true)
      kvm.ioctl(fd, REQUEST[get], bytes)
      if (name === 'KVM_SET_CLOCK') v.setUint32(8, one([0, 0, 2, 16]), true)
      // Most of the time a field or two are changed.
      for (let n = pick(3); n > 0; n--) bytes[pick(Math.min(size, name === 'KVM_SET_XSAVE' ? 600 : size))] = one([0, 1, 2, 255, 128])
      return bytes
    }
    const page = (): bigint => memory.address + BigInt(pick(16) * 0x1000)
    switch (name) {
      case 'KVM_SET_USER_MEMORY_REGION':
      case 'KVM_SET_USER_MEMORY_REGION2':
        v.setUint32(0, one([0, 1, 2, 3, 9, 0x10000, 32764, 0x20001]), true)
        v.setUint32(4, one(name.endsWith('2') ? [0, 4, 4, 1, 2, 6, 8] : [0, 0, 1, 2, 3, 4]), true)
        v.setBigUint64(8, one([0n, 0x4000n, 0x8000n, 0x100000n, 0x800n, 1n << 47n, 1n << 48n, 1n << 63n]), true)
        v.setBigUint64(16, one([0n, 0x1000n, 0x4000n, 0x8000n, 0x10000n, 0x10n]), true)
        v.setBigUint64(24, one([page(), page(), memory.address, scratch.address + 0x100000n]), true)
        if (bytes.length >= 44) {
          v.setBigUint64(32, one([0n, 0n, 0x1000n, 0x10n]), true)
          v.setInt32(40, one([this.#gmem, this.#gmem, this.#eventfd(0), 99]), true)
        }
        return bytes
      case 'KVM_SET_MEMORY_ATTRIBUTES':
        v.setBigUint64(0, one([0n, 0x1000n, 0x100000n, 0x800n]), true)
        v.setBigUint64(8, one([0x1000n, 0x4000n, 0x10000n, 0n, 0x20n]), true)
        v.setBigUint64(16, one([8n, 8n, 0n, 1n]), true)
        v.setBigUint64(24, one([0n, 0n, 0n, 1n]), true)
        return bytes
      case 'KVM_CREATE_GUEST_MEMFD':
        v.setBigUint64(0, one([0x10000n, 0x4000n, 0n, 0x10n]), true)
        v.setBigUint64(8, one([0n, 0n, 1n, 2n, 3n, 4n]), true)
        return bytes
      case 'KVM_GET_DIRTY_LOG':
      case 'KVM_CLEAR_DIRTY_LOG':
        v.setUint32(0, one([0, 1, 2, 3, 0x10000, 40000]), true)
        if (name === 'KVM_GET_DIRTY_LOG') v.setBigUint64(8, one([scratch.address + 0x4000n, 7n]), true)
        else {
          v.setUint32(4, one([0, 1, 4, 8, 16, 64]), true)
          v.setBigUint64(8, one([0n, 0n, 1n, 64n]), true)
          v.setBigUint64(16, scratch.address + 0x4000n, true)
        }
        return bytes
      case 'KVM_ENABLE_CAP':
        v.setUint32(0, one(CAPS), true)
        v.setUint32(4, one([0, 0, 0, 0, 1]), true)
        v.setBigUint64(8, one([0n, 1n, 3n, 24n, 0x1000n, 4096n, 5000n, 7n]), true)
        return bytes
      case 'KVM_IRQFD':
        v.setInt32(0, one([this.#eventfd(0), this.#eventfd(1), vm, -1]), true)
        v.setUint32(4, pick(30), true)
        v.setUint32(8, one([0, 0, 1, 2, 4]), true)
        v.setInt32(12, this.#eventfd(2), true)
        return bytes
      case 'KVM_IOEVENTFD':
        v.setBigUint64(0, BigInt(pick(3)), true)
        v.setBigUint64(8, BigInt(0x2000 + pick(3)), true)
        v.setUint32(16, one([0, 1, 2, 4, 8, 3]), true)
        v.setInt32(20, one([this.#eventfd(0), this.#eventfd(1), vm, -1]), true)
        v.setUint32(24, one([0, 1, 2, 3, 4, 8, 32]), true)
        return bytes
      case 'KVM_SET_GSI_ROUTING': {
        const n = pick(5)
        v.setUint32(0, n, true)
        v.setUint32(4, one([0, 0, 0, 0, 0, 1]), true)
        for (let i = 0; i < Math.min(n, 4); i++) {
          const at = 8 + i * 48
          const type = one([1, 1, 2, 2, 3])
          const words = [
            one([i, i, 0, 24, 4096]),
            type,
            one([0, 0, 0, 0, 1]),
            0,
            type === 2 ? 0xfee00000 : pick(4),
            one([0, 1, 7, 8, 23, 24, 0x100]),
          ]
          words.forEach((word, j) => v.setUint32(at + j * 4, word, true))
        }
        return bytes
      }
      case 'KVM_SIGNAL_MSI':
        v.setUint32(0, 0xfee00000, true)
        v.setUint32(4, one([0, 0, 0x100, 1]), true)
        v.setUint32(8, one([0x31, 0x4031]), true)
        v.setUint32(12, one([0, 0, 0, 1, 2]), true)
        return bytes
      case 'KVM_X86_SET_MSR_FILTER':
        v.setUint32(0, pick(3), true)
        if (pick(2)) {
          v.setUint32(8, one([1, 2, 3]), true)
          v.setUint32(12, one([8, 64]), true)
          v.setUint32(16, 0x174, true)
          v.setBigUint64(24, scratch.address + 0x5000n, true)
        }
        return bytes
      case 'KVM_MEMORY_ENCRYPT_REG_REGION':
      case 'KVM_MEMORY_ENCRYPT_UNREG_REGION':
        v.setBigUint64(0, one([memory.address, memory.address, page(), 5n]), true)
        v.setBigUint64(8, one([0x1000n, 0x1000n, 0x4000n, 0n]), true)
        return bytes
      case 'KVM_MEMORY_ENCRYPT_OP':
        return this.#command(bytes, v, pick)
      case 'KVM_CREATE_DEVICE':
        v.setUint32(0, one([4, 1, 9, 100]), true)
        v.setUint32(8, 1, true)
        return bytes
      case 'KVM_IRQ_LINE':
      case 'KVM_IRQ_LINE_STATUS':
        v.setUint32(0, pick(30), true)
        v.setUint32(4, pick(2), true)
        return bytes
      case 'KVM_GET_IRQCHIP':
        v.setUint32(0, pick(4), true)
        return bytes
      case 'KVM_SET_IDENTITY_MAP_ADDR':
        v.setBigUint64(0, 0xfeffc000n, true)
        return bytes
      case 'KVM_SET_GUEST_DEBUG':
        v.setUint32(0, one([0, 1, 3, 0x10001, 0x20001, 0x40001, 0x80001]), true)
        return bytes
      case 'KVM_SET_CPUID2':
      case 'KVM_GET_CPUID2':
        if (name === 'KVM_SET_CPUID2' && pick(3)) {
          const all = new Uint8Array(8 + 40 * 256)
          new DataView(all.buffer).setUint32(0, 256, true)
          kvm.ioctl(this.#m.system, REQUEST.KVM_GET_SUPPORTED_CPUID, all)
          return all
        }
        v.setUint32(0, one([0, 1, 24, 300]), true)
        if (name === 'KVM_GET_CPUID2' && pick(2)) {
          const all = new Uint8Array(8 + 40 * 256)
          new DataView(all.buffer).setUint32(0, 256, true)
          return all
        }
        v.setUint32(8, pick(4), true)
        return bytes
      case 'KVM_GET_MSRS':
      case 'KVM_SET_MSRS':
        v.setUint32(0, one([1, 2, 3, 256]), true)
        for (let i = 0; i < 4; i++) {
          v.setUint32(8 + i * 16, one([0x10, 0x1b, 0x174, 0x277, 0x2ff, 0xc0000080, 0xc0000081, 0x12345]), true)
          v.setBigUint64(16 + i * 16, one([0n, 6n, 0xc06n, 0xfee00900n]), true)
        }
        return bytes
      case 'KVM_SET_MP_STATE':
        v.setUint32(0, pick(11), true)
        return bytes
      case 'KVM_INTERRUPT':
        v.setUint32(0, one([0x20, 0x30, 255, 256]), true)
        return bytes
      case 'KVM_X86_SETUP_MCE':
        v.setBigUint64(0, one([10n, 0x10an, 32n, 33n, 0n]), true)
        return bytes
      case 'KVM_X86_SET_MCE':
        v.setBigUint64(0, one([1n << 63n, 0n, 5n << 61n]), true)
        v.setUint8(32, one([0, 1, 9, 10, 31, 32]))
        return bytes
      case 'KVM_PRE_FAULT_MEMORY':
        v.setBigUint64(0, one([0n, 0x1000n, 0x100000n, 8n]), true)
        v.setBigUint64(8, one([0x1000n, 0x4000n, 0n]), true)
        v.setBigUint64(16, one([0n, 0n, 0n, 1n]), true)
        return bytes
      case 'KVM_GET_DEVICE_ATTR':
      case 'KVM_SET_DEVICE_ATTR':
      case 'KVM_HAS_DEVICE_ATTR':
        v.setUint32(4, one([0, 0, 0, 1]), true)
        v.setBigUint64(8, one([0n, 0n, 1n]), true)
        v.setBigUint64(16, one([scratch.address + 0x5000n, 9n]), true)
        return bytes
      case 'KVM_SET_SIGNAL_MASK':
        v.setUint32(0, one([8, 4]), true)
        return bytes
      case 'KVM_TPR_ACCESS_REPORTING':
        v.setUint32(4, pick(2), true)
        return bytes
      default:
        return bytes
    }
  }

  #scalar(name: Name, pick: Pick): number {
    const one = <T>(list: readonly T[]): T => list[pick(list.length)] as T
    if (name === 'KVM_CREATE_VCPU') return one([0, 1, 2, 3, 7, 4095, 4096])
    if (name === 'KVM_CHECK_EXTENSION') return one(CHECKED)
    if (name === 'KVM_SET_TSC_KHZ') return one([0, 1_000_000, 3_000_000, 0x7fffffff])
    if (name === 'KVM_SET_BOOT_CPU_ID') return one([0, 1, 4096, 4097])
    if (name === 'KVM_SET_TSS_ADDR') return one([0xfffbd000, 0xffffd000, 0xffffe000])
    return 0
  }

  /** kvm_sev_cmd or kvm_tdx_cmd with its struct behind `data`. */
  #command(bytes: Uint8Array, v: DataView, pick: Pick): Uint8Array {
    const { memory, scratch, type, sev } = this.#m
    const one = <T>(list: readonly T[]): T => list[pick(list.length)] as T
    const data = new Uint8Array(512)
    const d = new DataView(data.buffer)
    const put = (at: number, value: bigint | number): void => d.setBigUint64(at, BigInt(value), true)
    if (type === 'tdx') {
      const id = one([0, 1, 1, 2, 2, 3, 4, 5, 6])
      v.setUint32(0, id, true)
      v.setUint32(4, one([0, 0, 0, 0, 1, 2]), true)
      if (id === TDX_COMMAND.KVM_TDX_INIT_VM) {
        put(0, one([0n, 1n << 28n, 1n]))
        put(8, 7)
        d.setUint32(256, one([1, 1, 1, 0, 300]), true)
        d.setUint32(264, 0x80000008, true)
        d.setUint32(276, 48 << 16, true)
      } else if (id === TDX_COMMAND.KVM_TDX_INIT_MEM_REGION) {
        put(0, memory.address)
        put(8, one([0n, 0x1000n, 0x100000n, 8n]))
        put(16, one([1, 1, 2, 0]))
      }
      v.setBigUint64(16, one([0n, 0n, 0n, 0n, 1n]), true)
    } else {
      const C = SEV_COMMAND
      const init = type === 'sev-legacy' ? C.KVM_SEV_INIT : type === 'sev-es-legacy' ? C.KVM_SEV_ES_INIT : C.KVM_SEV_INIT2
      const es = type === 'sev-es' || type === 'sev-es-legacy'
      const launch = [
        C.KVM_SEV_LAUNCH_START,
        C.KVM_SEV_LAUNCH_UPDATE_DATA,
        C.KVM_SEV_LAUNCH_UPDATE_VMSA,
        C.KVM_SEV_LAUNCH_MEASURE,
        C.KVM_SEV_LAUNCH_FINISH,
        C.KVM_SEV_GUEST_STATUS,
      ]
      const snp = [
        C.KVM_SEV_SNP_LAUNCH_START,
        C.KVM_SEV_SNP_LAUNCH_UPDATE,
        C.KVM_SEV_SNP_LAUNCH_UPDATE,
        C.KVM_SEV_SNP_LAUNCH_FINISH,
        C.KVM_SEV_SNP_ENABLE_REQ_CERTS,
      ]
      const id =
        type === 'snp'
          ? one([init, ...snp, ...snp, ...launch, 55, 104])
          : one([init, ...launch, ...launch, ...snp, C.KVM_SEV_INIT2, 10, 19, 55])
      v.setUint32(0, id, true)
      v.setInt32(20, one([sev, sev, sev, sev, sev, this.#eventfd(0), 99]), true)
      if (id === C.KVM_SEV_INIT2) {
        put(0, one([0n, 0n, 0n, 1n << 5n, 1n]))
        d.setUint32(8, one([0, 0, 0, 1]), true)
        d.setUint16(12, one([0, 0, 1, 2, 3]), true)
      } else if (id === C.KVM_SEV_LAUNCH_START) d.setUint32(4, one(es ? [5, 5, 5, 1] : [1, 1, 1, 5]), true)
      else if (id === C.KVM_SEV_LAUNCH_UPDATE_DATA) {
        put(0, one([memory.address, memory.address + 0x1000n, 5n]))
        d.setUint32(8, one([0x1000, 0x10, 0]), true)
      } else if (id === C.KVM_SEV_LAUNCH_MEASURE) {
        put(0, scratch.address + 0x6000n)
        d.setUint32(8, one([48, 48, 64, 0, 0x5000]), true)
      } else if (id === C.KVM_SEV_SNP_LAUNCH_START) {
        put(0, one([0x30000n, 0x30000n, 0x10000n, 1n << 40n]))
        d.setUint16(24, one([0, 0, 0, 1]), true)
      } else if (id === C.KVM_SEV_SNP_LAUNCH_UPDATE) {
        put(0, one([0x100n, 0x101n, 0x102n, 0n, 1n]))
        put(8, one([memory.address, memory.address, 0n, 5n]))
        put(16, one([0x1000n, 0x1000n, 0n]))
        data[24] = one([1, 1, 3, 4, 2])
        d.setUint16(26, one([0, 0, 0, 1]), true)
      } else if (id === C.KVM_SEV_SNP_LAUNCH_FINISH) d.setUint16(54, one([0, 0, 0, 1]), true)
    }
    scratch.write(0x1000, data)
    v.setBigUint64(8, pick(12) ? scratch.address + 0x1000n : 5n, true)
    return bytes
  }
}
