/** Holds a real VM against the model: one call at a time, errno and values. */
import { ERRNO, type Kvm, type Refusal, REQUEST } from 'cloister'
import type { RawMachine } from '../raw-machine.ts'
import { type Ask, ModelVm, type Name, no, UNKNOWN, type Verdict } from './state.ts'
import { VCPU_RULES } from './vcpu.ts'
import { VM_RULES } from './vm.ts'

const NAMES: Readonly<Record<number, string>> = Object.fromEntries(Object.entries(ERRNO).map(([name, n]) => [-n, name]))

/** A reason in words, and a source that names a kernel function (file and name), a mail, or Cloister's own rule. */
export const explained = ({ reason, source }: Refusal): boolean =>
  reason.length > 4 && (/[\w-]+\.[ch] .*[a-z_]{4}/.test(source) || /mail 00\d/.test(source) || source === 'cloister')

export interface Judged {
  readonly result: number
  /** What disagrees, null if nothing does. */
  readonly wrong: string | null
  /** The model had an opinion. */
  readonly judged: boolean
}

export class Judge {
  readonly #kvm: Kvm
  readonly #machine: RawMachine
  readonly vm: ModelVm

  constructor(machine: RawMachine) {
    this.#machine = machine
    this.#kvm = machine.kvm
    this.vm = new ModelVm(machine.type)
  }

  /** A request with its struct or scalar on the VM (`vcpu` null) or the vCPU of that index. */
  call(name: Name, vcpu: number | null, argument: Uint8Array | number): Judged {
    const { vm } = this
    const machine = this.#machine
    const fd = vcpu === null ? machine.vm : (machine.vcpus[vcpu] ?? -1)
    const size = (REQUEST[name] >>> 16) & 0x3fff
    const short = argument instanceof Uint8Array && argument.length < Math.max(size, name === 'KVM_MEMORY_ENCRYPT_OP' ? 24 : 0)
    const ask: Ask = {
      name,
      vcpu,
      bytes: argument instanceof Uint8Array ? argument.slice() : null,
      value: typeof argument === 'number' ? argument : 0,
      read: (address, n) => this.#read(address, n),
      kind: (file) => this.#kvm.kernel.file(file)?.kind ?? null,
    }
    // Which comes first, a bad pointer or a refusal, is the walker's matter.
    const verdict = vm.dead ? (this.#known ? no('EIO') : UNKNOWN) : short || (size > 0 && ask.bytes === null) ? UNKNOWN : this.#verdict(ask)
    const result = this.#kvm.ioctl(fd, REQUEST[name], argument)
    if (name === 'KVM_CREATE_VCPU' && result >= 0) machine.vcpus.push(result)
    const got = result >= 0 ? 'ok' : (NAMES[result] ?? String(result))
    const after = argument instanceof Uint8Array ? argument : null
    const refusal = result < 0 ? this.#kvm.lastRefusal() : null
    let wrong: string | null = null
    if (verdict.want !== null && got !== verdict.want && !refusal?.unimplemented)
      wrong = `expected ${verdict.want}, got ${got} (${refusal?.reason})`
    else if (got === 'ok') {
      const differs = verdict.check?.(result, after) ?? null
      if (differs !== null) wrong = `served, but ${differs}`
    } else if (refusal !== null && !explained(refusal))
      wrong = `${got} without a reason that names who decides: ${refusal.reason} (${refusal.source})`
    if (got === 'ok') verdict.effect?.(result, after)
    else verdict.failed?.()
    return { result, wrong: wrong === null ? null : `${name}${vcpu === null ? '' : `@${vcpu}`}: ${wrong}`, judged: verdict.want !== null }
  }

  /** `dead` by a move is certain; by a command that leaves the model's type it only ends the comparison. */
  get #known(): boolean {
    return this.#machine.moved
  }

  #verdict(ask: Ask): Verdict {
    const { vm } = this
    if (ask.vcpu === null) return VM_RULES[ask.name]?.(vm, ask) ?? UNKNOWN
    const vcpu = vm.order[ask.vcpu]
    return vcpu === undefined ? UNKNOWN : (VCPU_RULES[ask.name]?.(vm, vcpu, ask) ?? UNKNOWN)
  }

  #read(address: bigint, n: number): Uint8Array | null {
    for (const mapping of [this.#machine.memory, this.#machine.scratch]) {
      const offset = Number(address - mapping.address)
      if (offset < 0 || offset + n > mapping.length) continue
      // What is encrypted reads as ciphertext; the model looks only at structs, which lie in `scratch`.
      return mapping === this.#machine.scratch ? mapping.read(offset, n) : new Uint8Array(0)
    }
    return null
  }
}
