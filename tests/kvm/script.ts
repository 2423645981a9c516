/** Runs the words of spec/kvm-condition.ts on a RawMachine: steps, the call, what is seen after it. */
import { ERRNO, EXIT, type Kvm, policyTable, REQUEST, RUN } from 'cloister'
import type { Condition } from '../../host/generated/kvm-conditions.ts'
import { NotReached, type RawMachine } from './raw-machine.ts'

type Name = keyof typeof REQUEST
/** Room for the longest table that a request carries behind its header. */
const TAIL = 8 + 40 * 260
const WITH_TAIL =
  /^KVM_([GS]ET_(CPUID2|MSRS|GSI_ROUTING|SUPPORTED_CPUID|EMULATED_CPUID)|GET_MSR.*_LIST|SET_SIGNAL_MASK|SET_PMU_EVENT_FILTER)$/
const NESTED = 128 + 4096
const INSTRUCTIONS = 1000

/** Bytes that a request's struct may have. */
function sizeOf(name: Name): number {
  if (name === 'KVM_MEMORY_ENCRYPT_OP') return 24
  if (WITH_TAIL.test(name)) return TAIL
  if (name.endsWith('NESTED_STATE')) return NESTED
  return (REQUEST[name] >>> 16) & 0x3fff
}

interface Called {
  readonly result: number
  readonly bytes: Uint8Array<ArrayBuffer>
}

const errno = (name: string): number => -ERRNO[name as keyof typeof ERRNO]

export class Script {
  readonly machine: RawMachine
  readonly kvm: Kvm
  /** What the case opened; it may hold the VM. */
  readonly #opened: number[] = []

  constructor(machine: RawMachine) {
    this.machine = machine
    this.kvm = machine.kvm
  }

  /** What was wrong, or null. */
  run(one: Condition): string | null {
    for (const step of one.setup) this.step(step)
    return this.ask(one).wrong(one.expect, one.sees)
  }

  /** The call of a row: its answer, and what is asked about it. */
  ask(one: Pick<Condition, 'ioctl' | 'call'>): { result: number; wrong(expect: string, sees: readonly string[]): string | null } {
    const name = one.ioctl.split(/[@ ]/)[0] as Name
    const called = name === 'KVM_RUN' ? this.#runVcpu(one) : this.#ask(name, this.#fd(one), one.call)
    if (called.result >= 0 && /^KVM_CREATE_(VM|VCPU|GUEST_MEMFD)$|STATS_FD$/.test(name)) this.#made(called.result)
    if (called.result >= 0 && name === 'KVM_CREATE_DEVICE') this.#made(new DataView(called.bytes.buffer).getUint32(4, true))
    const wrong = (expect: string, sees: readonly string[]): string | null => {
      const other = this.#answered(name, called.result, expect)
      if (other !== null) return other
      for (const text of sees) {
        const missing = this.#sees(text, called)
        if (missing !== null) return missing
      }
      return null
    }
    return { result: called.result, wrong }
  }

  #made(fd: number): void {
    if (fd === 0) return
    this.machine.made = fd
    this.#opened.push(fd)
  }

  /** One step; NotReached when it is refused. */
  step(step: string): void {
    const { machine } = this
    if (step.startsWith('buf ')) machine.scratch.write(Number(machine.buf - machine.scratch.address), machine.struct(4096, step.slice(4)))
    else if (step === 'run') this.#enter()
    else if (step.startsWith('KVM_')) {
      const { result } = this.#callText(step)
      if (result < 0) throw new NotReached(`${step}: ${result} ${this.kvm.lastRefusal()?.reason}`)
    } else machine.do(step)
  }

  close(): void {
    for (const fd of this.#opened) this.kvm.close(fd)
    this.machine.close()
  }

  #fd(one: Pick<Condition, 'ioctl'>): number {
    const { machine } = this
    const scope = policyTable().get(one.ioctl)?.scope
    return scope === 'vcpu' || (scope === 'vm+vcpu' && machine.vcpu >= 0) ? machine.vcpu : scope === 'system' ? machine.system : machine.vm
  }

  #ask(name: Name, fd: number, call: string | number): Called {
    const { machine } = this
    const size = sizeOf(name)
    const scalar = typeof call === 'number' || (!call.includes('@') && !call.includes('<') && call !== '')
    if (scalar || size === 0) {
      const text = String(call)
      const value = text === '' ? 0 : text === '$type' ? Number(machine.struct(8, 'u32@0=$type')[0]) : Number(text)
      return { result: this.kvm.ioctl(fd, REQUEST[name], value), bytes: new Uint8Array(0) }
    }
    const bytes = machine.struct(size, call, fd)
    return { result: this.kvm.ioctl(fd, REQUEST[name], bytes), bytes }
  }

  /** `KVM_X@vcpu u32@0=1`, `KVM_X 5`. */
  #callText(text: string): Called {
    const { machine } = this
    const cut = text.indexOf(' ')
    const [name, on = ''] = (cut < 0 ? text : text.slice(0, cut)).split('@') as [Name, string?]
    const fds: Record<string, number> = { '': machine.vm, vm: machine.vm, vcpu: machine.vcpu, system: machine.system, new: machine.made }
    return this.#ask(name, fds[on] as number, cut < 0 ? '' : text.slice(cut + 1))
  }

  #runPage(): DataView {
    const run = this.kvm.mmap(this.machine.vcpu, 12288).bytes as Uint8Array
    return new DataView(run.buffer, run.byteOffset, 4096)
  }

  /** KVM_RUN with a budget, so that a guest without an end has one. */
  #enter(): number {
    return (this.kvm.kernel.file(this.machine.vcpu) as unknown as { run(n: number): number }).run(INSTRUCTIONS)
  }

  #runVcpu(one: Pick<Condition, 'call'>): Called {
    const { machine } = this
    const none = new Uint8Array(0)
    if (typeof one.call === 'number' && one.call !== 0)
      return { result: this.kvm.ioctl(machine.vcpu, REQUEST.KVM_RUN, one.call), bytes: none }
    const view = this.#runPage()
    if (typeof one.call === 'string') {
      for (const [, bits, at, value] of one.call.matchAll(/u(8|32|64)@(\d+)=(\S+)/g)) {
        if (bits === '64') view.setBigUint64(Number(at), BigInt(value as string), true)
        else if (bits === '32') view.setUint32(Number(at), Number(value), true)
        else view.setUint8(Number(at), Number(value))
      }
    }
    return { result: this.#enter(), bytes: none }
  }

  #answered(name: Name, result: number, expect: string): string | null {
    let good: boolean
    // A budget that ran out is no answer of KVM's.
    if (expect === 'ok') good = result >= 0 || (name === 'KVM_RUN' && result === -ERRNO.EINTR)
    else if (expect.startsWith('=')) good = result === Number(expect.slice(1))
    else if (expect in EXIT) good = result === 0 && this.#runPage().getUint32(RUN.EXIT_REASON, true) === EXIT[expect as keyof typeof EXIT]
    else good = result === errno(expect)
    return good ? null : `expected ${expect}, got ${result} (${this.kvm.lastRefusal()?.reason})`
  }

  #sees(text: string, own: Called): string | null {
    const { machine } = this
    const [source, checks] = text.split('=>').map((part) => part.trim()) as [string, string]
    let bytes: Uint8Array
    let result = own.result
    if (source === '') bytes = own.bytes
    else if (source === 'buf') bytes = machine.scratch.read(Number(machine.buf - machine.scratch.address), 4096)
    else if (source === 'slot') bytes = machine.scratch.read(0, 4096)
    else if (source === 'mem') bytes = machine.memory.read(0, 4096)
    else if (source === 'entered' || source === 'run') {
      if (source === 'entered') this.#enter()
      bytes = new Uint8Array(this.#runPage().buffer, this.#runPage().byteOffset, 4096)
    } else if (source === 'retired') {
      bytes = new Uint8Array(8)
      const vcpu = this.kvm.kernel.file(machine.vcpu) as unknown as { instructions: bigint }
      new DataView(bytes.buffer).setBigUint64(0, vcpu.instructions, true)
    } else if (source === 'stats') {
      bytes = new Uint8Array(24)
      result = this.kvm.read(machine.made, bytes)
    } else if (source.startsWith('attribute ')) {
      // KVM keeps it; the ioctl has no counterpart that reads.
      bytes = own.bytes
      const vm = this.kvm.kernel.file(machine.vm) as unknown as { isPrivate(gpa: bigint): boolean }
      result = vm.isPrivate(BigInt(source.slice(10))) ? 1 : 0
    } else {
      const called = this.#callText(source)
      bytes = called.bytes
      result = called.result
      if (result >= 0 && source.startsWith('KVM_CREATE_VCPU')) this.#made(result)
      if (result < 0 && !checks.split(' ').some((check) => check in ERRNO))
        return `${text}: got ${result} (${this.kvm.lastRefusal()?.reason})`
    }
    for (const check of checks.split(' ')) {
      const wrong = holds(check, result, bytes)
      if (wrong !== null) return `${text}: ${check} is ${wrong}`
    }
    return null
  }
}

/** What is there instead, or null. */
function holds(check: string, result: number, bytes: Uint8Array): string | null {
  if (check === 'ok') return result >= 0 ? null : String(result)
  if (check in ERRNO) return result === errno(check) ? null : String(result)
  if (/^=\d/.test(check)) return result === Number(check.slice(1)) ? null : String(result)
  const zero = /^zero@(\d+)\+(\d+)$/.exec(check)
  if (zero !== null) {
    const [from, size] = [Number(zero[1]), Number(zero[2])]
    const at = bytes.subarray(from, from + size).findIndex((byte) => byte !== 0)
    return at < 0 ? null : `not zero at ${from + at}`
  }
  const m = /^u(8|16|32|64)@(\d+)(!=|>=|=)(.+)$/.exec(check)
  if (m === null) throw new RangeError(`check ${check}`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const at = Number(m[2])
  const value =
    m[1] === '64'
      ? view.getBigUint64(at, true)
      : BigInt(m[1] === '32' ? view.getUint32(at, true) : m[1] === '16' ? view.getUint16(at, true) : view.getUint8(at))
  const want = BigInt(m[4] as string)
  const good = m[3] === '=' ? value === want : m[3] === '!=' ? value !== want : value >= want
  return good ? null : `0x${value.toString(16)}`
}
