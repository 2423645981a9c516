/**
 * Sequences of raw calls as data, played on Cloister (here) and on the real /dev/kvm (player.c, real.ts). A command says
 * what to ask and where its bytes come from; both players answer {result, bytes}.
 */
import { type Kvm, type Mapping, REQUEST } from 'cloister'
import type { VcpuFd } from '../../../host/kvm/vcpu.ts'

export type Name = keyof typeof REQUEST

/** s: /dev/kvm, v: the VM, else the vCPU of that index. */
export type Target = 's' | 'v' | number
/** S: scratch, M: memory of the slots, else kvm_run of that vCPU. */
export type Area = 'S' | 'M' | number

export interface Call {
  readonly do: 'call'
  readonly on: Target
  readonly name: Name
  /** Bytes that the struct has; -1: `scalar` is the argument. */
  readonly length: number
  readonly scalar: number
  /** The struct begins as what this request gave last on the same file descriptor. */
  readonly base: Name | null
  readonly patches: readonly (readonly [at: number, bytes: Uint8Array])[]
  readonly pointers: readonly (readonly [at: number, kind: 'S' | 'M' | 'E', value: number])[]
}

export type Command =
  | Call
  | { readonly do: 'fresh'; readonly type: number }
  | { readonly do: 'write'; readonly area: Area; readonly at: number; readonly bytes: Uint8Array }
  | { readonly do: 'read'; readonly area: Area; readonly at: number; readonly length: number }
  | { readonly do: 'signal' | 'collect'; readonly event: number }

export interface Answer {
  readonly result: number
  readonly bytes: Uint8Array | null
}

const AREA_SIZE = 0x10000
const MOST_VCPUS = 4

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')

/** A command in player.c's notation. */
export function line(command: Command): string {
  switch (command.do) {
    case 'fresh':
      return `n ${command.type}`
    case 'write':
      return `w ${command.area} ${command.at} ${hexOf(command.bytes)}`
    case 'read':
      return `r ${command.area} ${command.at} ${command.length}`
    case 'signal':
      return `E ${command.event}`
    case 'collect':
      return `e ${command.event}`
    case 'call': {
      const { on, name, length, scalar, base, patches, pointers } = command
      const words = [
        ...patches.map(([at, bytes]) => `${at}:${hexOf(bytes)}`),
        ...pointers.map(([at, kind, value]) => `${at}${kind}${value}`),
      ]
      const head = `c ${on} ${REQUEST[name].toString(16)} ${length} ${base === null ? 0 : REQUEST[base].toString(16)}`
      return [head, BigInt.asUintN(64, BigInt(scalar)).toString(16), patches.length, pointers.length, ...words].join(' ')
    }
  }
}

/** The same on Cloister. */
export class EmulatedPlayer {
  readonly #kvm: Kvm
  readonly #system: number
  readonly #scratch: Mapping
  readonly #memory: Mapping
  #vm = -1
  #vcpus: number[] = []
  #runs: Mapping[] = []
  #events: number[] = []
  #kept = new Map<string, Uint8Array>()

  constructor(kvm: Kvm) {
    this.#kvm = kvm
    this.#system = kvm.open('/dev/kvm')
    this.#scratch = kvm.mmap(-1, AREA_SIZE)
    this.#memory = kvm.mmap(-1, AREA_SIZE)
  }

  play(command: Command): Answer {
    switch (command.do) {
      case 'fresh':
        return { result: this.#fresh(command.type), bytes: null }
      case 'write': {
        const area = this.#area(command.area)
        if (area.bytes) area.bytes.set(command.bytes, command.at)
        else area.write(command.at, command.bytes)
        return { result: 0, bytes: null }
      }
      case 'read':
        return { result: 0, bytes: this.#area(command.area).read(command.at, command.length) }
      case 'collect': {
        const value = new Uint8Array(8)
        const n = this.#kvm.read(this.#event(command.event), value)
        return { result: n < 0 ? n : Number(new DataView(value.buffer).getBigUint64(0, true)), bytes: null }
      }
      case 'signal': {
        const n = this.#kvm.write(this.#event(command.event), Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0))
        return { result: Math.min(n, 0), bytes: null }
      }
      case 'call':
        return this.#call(command)
    }
  }

  /** Why the last call was refused. */
  get reason(): string {
    return this.#kvm.lastRefusal()?.reason ?? ''
  }

  #area(area: Area): Mapping {
    return area === 'S' ? this.#scratch : area === 'M' ? this.#memory : (this.#runs[area] ?? this.#scratch)
  }

  #event(i: number): number {
    return (this.#events[i] ??= this.#kvm.eventfd())
  }

  #fresh(type: number): number {
    for (const fd of [...this.#vcpus, this.#vm, ...this.#events]) if (fd !== undefined && fd >= 0) this.#kvm.close(fd)
    this.#vcpus = []
    this.#runs = []
    this.#events = []
    this.#kept = new Map()
    this.#scratch.write(0, new Uint8Array(AREA_SIZE))
    this.#memory.write(0, new Uint8Array(AREA_SIZE))
    this.#vm = this.#kvm.ioctl(this.#system, REQUEST.KVM_CREATE_VM, type)
    return Math.min(this.#vm, 0)
  }

  #call({ on, name, length, scalar, base, patches, pointers }: Call): Answer {
    const fd = on === 's' ? this.#system : on === 'v' ? this.#vm : (this.#vcpus[on] ?? -1)
    let bytes: Uint8Array | null = null
    if (length >= 0) {
      bytes = new Uint8Array(length)
      const before = base === null ? undefined : this.#kept.get(`${fd} ${base}`)
      if (before) bytes.set(before.subarray(0, length))
      for (const [at, patch] of patches) bytes.set(patch, at)
      const view = new DataView(bytes.buffer)
      for (const [at, kind, value] of pointers) {
        if (kind === 'E') view.setUint32(at, this.#event(value), true)
        else view.setBigUint64(at, (kind === 'M' ? this.#memory : this.#scratch).address + BigInt(value), true)
      }
    }
    let result: number
    if (name === 'KVM_RUN' && fd >= 0) result = (this.#kvm.kernel.file(fd) as VcpuFd).run(200_000)
    else result = this.#kvm.ioctl(fd, REQUEST[name], bytes ?? scalar)
    if (name === 'KVM_CREATE_VCPU' && result >= 0) {
      if (this.#vcpus.length < MOST_VCPUS) {
        this.#vcpus.push(result)
        this.#runs.push(this.#kvm.mmap(result, 12288))
      } else this.#kvm.close(result)
      result = 0
    } else if (result >= 0 && (name === 'KVM_GET_STATS_FD' || name === 'KVM_CREATE_GUEST_MEMFD')) {
      this.#kvm.close(result)
      result = 0
    }
    if (bytes && result >= 0) this.#kept.set(`${fd} ${name}`, new Uint8Array(bytes))
    return { result, bytes }
  }
}
