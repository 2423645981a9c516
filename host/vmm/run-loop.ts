/**
 * The run loop: all vCPUs serially on one thread, each for a fixed quantum of instructions, exits dispatched by number.
 * Owns the counters of the report. Nothing on the port and MMIO path allocates but the bytes of an MMIO access.
 */
import { ERRNO, EXIT, RUN, type Vcpu, WHY } from '../index.ts'
import type { Board } from './board.ts'
import type { ExitReason } from './options.ts'

const EINTR = -ERRNO.EINTR
const EAGAIN = -ERRNO.EAGAIN
/** Offset of the exit's own fields in struct kvm_run. */
const { PAYLOAD } = RUN
/** While GHCB events are traced: not more of them at a time than the core's ring holds. */
const GHCB_TRACE_SLICE = 32

/** What the loop needs of a vCPU. */
export type GuestCpu = Pick<Vcpu, 'runRaw' | 'runBytes' | 'runView' | 'notes'>

export interface Outcome {
  reason: ExitReason
  detail: string | null
  debugExit: number | null
}

export interface LoopOptions {
  cpus: readonly GuestCpu[]
  board: Board
  maxInstructions: number
  /** Wall clock, in milliseconds, at which the run ends. */
  deadline: number
  /** Virtual time in nanoseconds. */
  now: () => number
  /** Announces the virtual time at which KVM_RUN is to come back; Infinity: none. */
  arm: (ns: number) => void
  /** ACPI S3: sleeps until the machine wakes and enters the guest's waking vector; false when it cannot. */
  resume: () => boolean
  /** Name of an exit number, for the counters. */
  exitName: (reason: number) => string
  /** Text of a refusal, for errors that are not part of a run's normal course. */
  refusal: () => string
  trace: ((line: string) => void) | null
  traceExits: boolean
  traceGhcb: boolean
  tracePorts: boolean
  traceMmio: boolean
}

/**
 * Instructions a vCPU runs before the next one has its turn. With several, the length varies (the same way in each run): a loop
 * that takes a lock, looks and gives it back would otherwise be interrupted at the same place each time, with the lock taken
 * (SeaBIOS waiting for its other CPUs).
 */
const QUANTUM_ONE = 1_000_000
const QUANTUM_SMP = 16_384
const QUANTUM_SPREAD = 8191
/** Timers may fire so often for nobody: a guest that sleeps with its interrupts off has halted all the same. */
const FRUITLESS = 10_000

export class RunLoop {
  readonly #options: LoopOptions
  readonly #counts = new Float64Array(64)
  readonly #mmio = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((n) => new Uint8Array(n))
  #next = 0
  /** State of the sequence that varies the turns (xorshift, Marsaglia 2003). */
  #variation = 1
  /** What the vCPU whose turn it is may still run. */
  #quantum = 0
  /** The last turn ended because time was up, not by its own rules. */
  #late = false
  #exits = 0
  #armed = Number.POSITIVE_INFINITY
  #limit = Number.POSITIVE_INFINITY
  /** Timers that fired in a row without an instruction in between. */
  #fired = 0
  /** Consecutive turns in which a vCPU had nothing to do. */
  #idle = 0
  /** True when every vCPU waits for an interrupt that only the host can send. */
  waiting = false

  constructor(options: LoopOptions) {
    this.#options = options
  }

  get counts(): Record<string, number> {
    const out: Record<string, number> = {}
    for (const [reason, n] of this.#counts.entries()) if (n) out[this.#options.exitName(reason)] = n
    return out
  }

  get instructions(): number {
    let sum = 0
    for (const cpu of this.#options.cpus) sum += cpu.notes.retired()
    return sum
  }

  /**
   * Runs until the guest ends, a budget is spent (an outcome), or about `milliseconds` have passed, or virtual time has
   * reached `clockLimit` (null).
   */
  run(milliseconds: number, clockLimit = Number.POSITIVE_INFINITY): Outcome | null {
    const { cpus, maxInstructions, deadline } = this.#options
    const until = Math.min(performance.now() + milliseconds, deadline)
    this.waiting = false
    this.#limit = clockLimit
    let spent = this.instructions
    for (;;) {
      const cpu = cpus[this.#next] as GuestCpu
      const before = cpu.notes.retired()
      const left = maxInstructions - spent
      if (left <= 0) return this.#end('budget-instructions', `${maxInstructions} instructions`)
      if (this.#quantum <= 0) this.#quantum = this.#turnLength()
      this.#late = false
      const outcome = this.#turn(cpu, Math.min(left, this.#quantum), until)
      if (outcome) return outcome
      const ran = cpu.notes.retired() - before
      spent += ran
      this.#quantum -= ran
      // A turn that the clock cut short goes on later: who runs when must not depend on the host's speed.
      if (!this.#late) {
        this.#quantum = 0
        if (++this.#next === cpus.length) this.#next = 0
        this.#idle = ran > 0 ? 0 : this.#idle + 1
        if (ran > 0) this.#fired = 0
        if (this.#idle > 2 * cpus.length + 2) {
          const ended = this.#asleep()
          if (ended) return ended
          this.waiting = true
          this.#idle = 0
          return null
        }
      }
      if (clockLimit !== Number.POSITIVE_INFINITY && this.#options.now() >= clockLimit) return null
      if (performance.now() >= until) {
        return until === deadline && performance.now() >= deadline ? this.#end('budget-time', 'time budget') : null
      }
    }
  }

  #turnLength(): number {
    if (this.#options.cpus.length === 1) return QUANTUM_ONE
    let x = this.#variation
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.#variation = x
    return QUANTUM_SMP + (x & QUANTUM_SPREAD)
  }

  /** No vCPU ran: halted for good, or waiting for input? */
  #asleep(): Outcome | null {
    const { cpus } = this.#options
    const dead = cpus.every(
      (cpu) => cpu.notes.why() === WHY.WAIT_SIPI || (cpu.notes.why() === WHY.HALTED_FOREVER && cpu.runView.getUint8(RUN.IF_FLAG) === 0),
    )
    return dead ? this.#end('halted', 'halted with interrupts disabled') : null
  }

  /** Devices do what is due; the next deadline is announced. True if something fired. */
  #timers(): boolean {
    const { board, now, arm } = this.#options
    const due = board.deadline <= now()
    if (due) board.expire(now())
    const at = Math.min(board.deadline, this.#limit)
    if (at !== this.#armed) {
      this.#armed = at
      arm(at)
    }
    return due
  }

  /** One vCPU for at most `quantum` instructions; a storm of exits is left when `until` has passed. */
  #turn(cpu: GuestCpu, quantum: number, until: number): Outcome | null {
    const start = cpu.notes.retired()
    const { traceGhcb, traceExits } = this.#options
    for (;;) {
      const left = quantum - (cpu.notes.retired() - start)
      if (left <= 0) return null
      if (this.#timers()) this.#idle = this.#fired++ < FRUITLESS ? 0 : this.#idle
      if ((++this.#exits & 511) === 0 && performance.now() >= until) {
        this.#late = true
        return null
      }
      const result = cpu.runRaw(traceGhcb ? Math.min(left, GHCB_TRACE_SLICE) : left)
      if (traceGhcb) for (const line of cpu.notes.ghcbTrace()) this.#options.trace?.(line)
      if (traceGhcb && result === EINTR && cpu.notes.why() === WHY.BUDGET) continue
      if (result === EINTR && cpu.notes.why() === WHY.USER_DEADLINE && this.#options.board.deadline <= this.#options.now()) continue
      if (result === EINTR || result === EAGAIN) return null
      if (result < 0 && cpu.notes.nowhere()) return this.#end('guest-terminated', cpu.notes.stopped())
      if (result < 0) return this.#end('internal-error', `KVM_RUN: errno ${-result}: ${this.#options.refusal()}`)
      const reason = cpu.runView.getUint32(RUN.EXIT_REASON, true)
      if (reason < 64) this.#counts[reason] = (this.#counts[reason] as number) + 1
      if (traceExits) this.#options.trace?.(this.#exitLine(cpu, reason))
      if (reason === EXIT.KVM_EXIT_IO) this.#io(cpu)
      else if (reason === EXIT.KVM_EXIT_MMIO) this.#memory(cpu)
      else {
        const outcome = this.#other(cpu, reason)
        if (outcome) return outcome
        if (reason === EXIT.KVM_EXIT_HLT || reason === EXIT.KVM_EXIT_INTR || reason === EXIT.KVM_EXIT_AP_RESET_HOLD) return null
      }
      if (this.#options.board.ending) return this.#ended()
      if (this.#options.board.suspended) {
        this.#options.board.suspended = false
        if (!this.#options.resume()) return this.#end('halted', 'ACPI S3 without anything that wakes the machine')
        return null
      }
    }
  }

  /** One line of `--trace exits`. */
  #exitLine(cpu: GuestCpu, reason: number): string {
    const view = cpu.runView
    const hex = (n: number): string => `0x${n.toString(16)}`
    const name = `exit ${this.#options.exitName(reason)}`
    if (reason === EXIT.KVM_EXIT_IO) {
      const [direction, size, count] = [view.getUint8(PAYLOAD), view.getUint8(PAYLOAD + 1), view.getUint32(PAYLOAD + 4, true)]
      const at = view.getUint32(PAYLOAD + 8, true)
      const data =
        direction === 0
          ? ''
          : ` data=${[...cpu.runBytes.subarray(at, at + size * Math.min(count, 16))].map((b) => b.toString(16).padStart(2, '0')).join('')}`
      return `${name} ${direction === 0 ? 'in' : 'out'} port=${hex(view.getUint16(PAYLOAD + 2, true))} size=${size} count=${count}${data} icount=${cpu.notes.retired()}`
    }
    if (reason === EXIT.KVM_EXIT_MMIO) {
      const address = view.getUint32(PAYLOAD, true) + view.getUint32(PAYLOAD + 4, true) * 0x100000000
      return `${name} ${view.getUint8(PAYLOAD + 20) === 0 ? 'read' : 'write'} address=${hex(address)} length=${view.getUint32(PAYLOAD + 16, true)} icount=${cpu.notes.retired()}`
    }
    return `${name} icount=${cpu.notes.retired()}`
  }

  #io(cpu: GuestCpu): void {
    const { bus } = this.#options.board
    const view = cpu.runView
    const size = view.getUint8(PAYLOAD + 1)
    const port = view.getUint16(PAYLOAD + 2, true)
    const count = view.getUint32(PAYLOAD + 4, true)
    let at = view.getUint32(PAYLOAD + 8, true)
    if (view.getUint8(PAYLOAD) === 0) {
      for (let i = 0; i < count; i++, at += size) {
        const value = bus.readPort(port, size)
        if (size === 1) view.setUint8(at, value)
        else if (size === 2) view.setUint16(at, value, true)
        else view.setUint32(at, value, true)
        if (this.#options.tracePorts) this.#options.trace?.(`pio in 0x${port.toString(16)} ${size} 0x${value.toString(16)}`)
      }
      return
    }
    for (let i = 0; i < count; i++, at += size) {
      const value = size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(at, true) : view.getUint32(at, true)
      if (this.#options.tracePorts) this.#options.trace?.(`pio out 0x${port.toString(16)} ${size} 0x${value.toString(16)}`)
      bus.writePort(port, size, value)
    }
  }

  #memory(cpu: GuestCpu): void {
    const { bus } = this.#options.board
    const view = cpu.runView
    const address = view.getUint32(PAYLOAD, true) + view.getUint32(PAYLOAD + 4, true) * 0x100000000
    const length = view.getUint32(PAYLOAD + 16, true)
    const isWrite = view.getUint8(PAYLOAD + 20) !== 0
    const data = this.#mmio[length] as Uint8Array
    if (isWrite) {
      for (let i = 0; i < length; i++) data[i] = view.getUint8(PAYLOAD + 8 + i)
      bus.writeMmio(address, data)
    } else {
      bus.readMmio(address, data)
      for (let i = 0; i < length; i++) view.setUint8(PAYLOAD + 8 + i, data[i] as number)
    }
    if (this.#options.traceMmio) {
      this.#options.trace?.(
        `mmio ${isWrite ? 'write' : 'read'} 0x${address.toString(16)} ${length} ${[...data].map((b) => b.toString(16).padStart(2, '0')).join('')}`,
      )
    }
  }

  #other(cpu: GuestCpu, reason: number): Outcome | null {
    const view = cpu.runView
    const { exitName } = this.#options
    switch (reason) {
      case EXIT.KVM_EXIT_HLT:
      case EXIT.KVM_EXIT_INTR:
      case EXIT.KVM_EXIT_AP_RESET_HOLD:
        return null
      case EXIT.KVM_EXIT_HYPERCALL:
        view.setBigUint64(88, 0xfffffffffffffc18n, true) // -KVM_ENOSYS
        return null
      case EXIT.KVM_EXIT_SHUTDOWN:
        return this.#end('triple-fault', `KVM_EXIT_SHUTDOWN ${cpu.notes.stopped()}`)
      case EXIT.KVM_EXIT_FAIL_ENTRY:
        return this.#end('guest-terminated', `KVM_EXIT_FAIL_ENTRY: hardware reason 0x${view.getBigUint64(PAYLOAD, true).toString(16)}`)
      case EXIT.KVM_EXIT_SYSTEM_EVENT:
        return this.#systemEvent(view)
      case EXIT.KVM_EXIT_INTERNAL_ERROR: {
        const suberror = view.getUint32(PAYLOAD, true)
        if (suberror === 1) return this.#end(cpu.notes.nowhere() ? 'guest-terminated' : 'unimplemented', cpu.notes.stopped())
        // KVM_INTERNAL_ERROR_DELIVERY_EV: the guest's stack or tables are nowhere.
        if (suberror === 3) {
          const gpa = view.getBigUint64(PAYLOAD + 32, true).toString(16)
          return this.#end('guest-terminated', `an exception could not be delivered: no memory at guest-physical 0x${gpa}`)
        }
        return this.#end(
          'internal-error',
          `KVM_EXIT_INTERNAL_ERROR: sub-error ${suberror}, data 0x${view.getBigUint64(PAYLOAD + 8, true).toString(16)}`,
        )
      }
      default:
        return this.#end('internal-error', `exit ${exitName(reason)} is not handled by this machine`)
    }
  }

  /** KVM_SYSTEM_EVENT_*: 1 shutdown, 2 reset, 3 crash, 6 SEV_TERM (GHCB MSR value in data[0]). */
  #systemEvent(view: DataView): Outcome {
    const type = view.getUint32(PAYLOAD, true)
    if (type === 1) return this.#end('powered-off', 'KVM_SYSTEM_EVENT_SHUTDOWN')
    if (type === 2) return this.#end('powered-off', 'KVM_SYSTEM_EVENT_RESET')
    if (type !== 6) return this.#end('guest-terminated', `KVM_SYSTEM_EVENT ${type}`)
    const value = view.getBigUint64(PAYLOAD + 8, true)
    const set = Number((value >> 12n) & 15n)
    const code = Number((value >> 16n) & 0xffn)
    return this.#end('guest-terminated', `termination request: reason set ${set}, code ${code} (GHCB MSR 0x${value.toString(16)})`)
  }

  #ended(): Outcome {
    const ending = this.#options.board.ending as NonNullable<Board['ending']>
    if (ending.kind === 'debug-exit') return { reason: 'debug-exit', detail: ending.detail, debugExit: ending.value }
    return this.#end('powered-off', ending.detail)
  }

  #end(reason: ExitReason, detail: string | null): Outcome {
    return { reason, detail, debugExit: null }
  }
}
