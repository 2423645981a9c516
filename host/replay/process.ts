/** The process of the log: its file descriptors, mappings and eventfds, and what stands for them here. */
import type { Kvm } from '../kvm/kvm.ts'
import type { Mapping } from '../kvm/mapping.ts'
import type { PolicyType } from '../policy/index.ts'
import type { Command } from './guess.ts'
import { type LoggedCall, requestOf } from './log.ts'
import type { FileKind } from './report.ts'
import { scalar } from './structs.ts'

export interface VmState {
  readonly fd: number
  readonly type: PolicyType
  /** Type by the log's own KVM_CREATE_VM. */
  readonly own: PolicyType
  readonly commands: Command[]
  readonly slots: { address: bigint; gpa: bigint; size: bigint }[]
  next: number
  pages: number
  launched: boolean
}

export interface File {
  readonly kind: FileKind
  readonly fd: number
  readonly vm: VmState | null
  vcpuReady: boolean
  readonly run: Mapping | null
}

interface Region {
  readonly address: bigint
  readonly length: bigint
  mapping: Mapping | null
}

export class LoggedProcess {
  readonly #kvm: Kvm
  /** By the log's numbers. */
  readonly files = new Map<number, File>()
  readonly #regions: Region[] = []
  readonly #events = new Map<bigint, number>()
  /** Capability that each thread asked for last: what its next KVM_ENABLE_CAP is for. */
  readonly asked = new Map<number, number>()
  /** Memory of the replay's own. */
  readonly scratch: Mapping

  constructor(kvm: Kvm) {
    this.#kvm = kvm
    this.scratch = kvm.mmap(-1, 0x10000)
  }

  open({ args, result }: LoggedCall): void {
    const path = args[1]
    if ((path !== '/dev/kvm' && path !== '/dev/sev') || result === null || result < 0n) {
      // A descriptor that is used again for something else is no longer ours.
      if (result !== null && result >= 0n) this.files.delete(Number(result))
      return
    }
    const fd = this.#kvm.open(path)
    if (fd >= 0) this.files.set(Number(result), { kind: path === '/dev/sev' ? 'sev' : 'system', fd, vm: null, vcpuReady: false, run: null })
  }

  mmap({ args, result }: LoggedCall): void {
    const length = scalar(args[1])
    if (result === null || result < 0n || length === null || length === 0n) return
    this.#regions.push({ address: BigInt.asUintN(64, result), length, mapping: null })
  }

  /** Our address for an address of the log. */
  address(value: bigint, length: bigint): bigint {
    if (value === 0n || value >= 1n << 47n) return value
    let region = this.#regions.findLast((r) => value >= r.address && value + length <= r.address + r.length)
    if (region === undefined) {
      region = { address: value, length: length === 0n ? 4096n : length, mapping: null }
      this.#regions.push(region)
    }
    try {
      region.mapping ??= this.#kvm.mmap(-1, Number(region.length))
    } catch {
      return value
    }
    return region.mapping.address + (value - region.address)
  }

  file(call: LoggedCall): File | null {
    const fd = Number(scalar(call.args[0]) ?? -1n)
    const file = this.files.get(fd)
    if (file !== undefined) return file
    // The log began after /dev/kvm was opened.
    const { name } = requestOf(call.args[1])
    if (name !== 'KVM_CREATE_VM' && name !== 'KVM_GET_API_VERSION' && name !== 'KVM_CHECK_EXTENSION') return null
    const made: File = { kind: 'system', fd: this.#kvm.open('/dev/kvm'), vm: null, vcpuReady: false, run: null }
    this.files.set(fd, made)
    return made
  }

  /** Ours for an eventfd of the log. */
  eventfd(given: bigint): bigint {
    if (given < 0n || given >= 1n << 31n) return given
    let fd = this.#events.get(given)
    if (fd === undefined) {
      fd = this.#kvm.eventfd()
      this.#events.set(given, fd)
    }
    return BigInt(fd)
  }
}
