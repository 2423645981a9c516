/**
 * One guest run by three machines through the run loop: undisturbed, one instruction at a time, and in pieces of any length.
 * After the same number of instructions all show the same vCPUs, interrupt controllers, virtual time and memory, and the
 * devices get the same accesses. The guest is any machine, run to any depth first.
 */
import { createHash } from 'node:crypto'
import * as assert from 'uvu/assert'
import * as L from '../../host/generated/layout.ts'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import { RunLoop, type GuestCpu, type Outcome } from '../../host/vmm/run-loop.ts'
import { type Vcpu, WHY } from '../../host/index.ts'

const EINTR = -4
const CHUNK = 1 << 20

/** [name, offset, size] of what is architectural in the vCPU structure. */
const fields: [string, number, number][] = [
  ['GPR', L.CPU_GPR, 128],
  ['RIP', L.CPU_RIP, 8],
  ['shadow, NMI blocked, halted', L.CPU_INTERRUPT_SHADOW, 12],
  ['segments', L.CPU_SEGMENTS, 160],
  ['CR0-CR4', L.CPU_CR0, 32],
  ['CR8, EFER, XCR0, XSS, DR0-DR3', L.CPU_CR8, 64],
  ['DR6 DR7 CPL', L.CPU_DR6, 20],
  ['MSRs', L.CPU_STAR, L.CPU_MSR_VALUE - L.CPU_STAR],
  ['pending #DB', L.CPU_PENDING_DB, 4],
  ['more MSRs', L.CPU_MSR_STORE, 384],
  ['x87, SSE', L.CPU_FCW, 0xe00 - L.CPU_FCW],
  ['RDRAND', L.CPU_RANDOM, 8],
  ['PKRU', L.CPU_PKRU, 4],
  ['PKRS', L.CPU_PKRS, 4],
]

interface State {
  /** By vCPU and then by name: a copy. */
  parts: [string, Buffer][]
  memory: string
}

/** A machine whose KVM_RUN comes back after as many instructions as `piece` says. */
class Stopped {
  readonly machine: Machine
  /** Length of the next piece. */
  piece: () => number = () => Number.MAX_SAFE_INTEGER
  /** Called after each. */
  stopped: () => void = () => {}
  /** Accesses that devices of the VMM saw, and where the guest was. */
  readonly accesses = createHash('sha1')
  outcome: Outcome | null = null
  /** Instructions of all vCPUs. */
  total = 0
  pages: number[] = []
  readonly #cpus: readonly GuestCpu[]
  readonly #clock: DataView
  #loop!: RunLoop

  private constructor(machine: Machine) {
    this.machine = machine
    this.#cpus = machine.vcpus.map((vcpu) => ({
      runRaw: (most) => this.#run(vcpu, most),
      runBytes: vcpu.runBytes,
      runView: vcpu.runView,
      notes: vcpu.notes,
    }))
    this.#clock = machine.vm.file.view
  }

  static async create(options: MachineOptions): Promise<Stopped> {
    const machine = await Machine.create(options)
    machine.launch()
    return new Stopped(machine)
  }

  #run(cpu: Vcpu, most: number): number {
    for (let left = most; ; ) {
      const before = cpu.notes.retired()
      const result = cpu.runRaw(Math.min(left, this.piece()))
      const ran = cpu.notes.retired() - before
      this.total += ran
      left -= ran
      if (result === 0) {
        const { runBytes } = cpu
        this.accesses.update(`${this.total} ${this.now()} `)
        this.accesses.update(runBytes.subarray(8, 12)).update(runBytes.subarray(32, 56))
      }
      // Only between two instructions is there anything to compare.
      if (result === EINTR && cpu.notes.why() === WHY.BUDGET) {
        this.stopped()
        if (left > 0) continue
      }
      return result
    }
  }

  /** Why the guest is over, null while it is not. */
  get ended(): string | null {
    return this.outcome && `${this.outcome.reason}: ${this.outcome.detail}`
  }

  now(): number {
    return this.machine.vm.clock
  }

  /** Until `n` instructions in all have retired. False if the guest ended before. */
  to(n: number): boolean {
    const { machine } = this
    this.#loop ??= new RunLoop({
      cpus: this.#cpus,
      board: machine.board,
      maxInstructions: Number.POSITIVE_INFINITY,
      deadline: Number.POSITIVE_INFINITY,
      now: () => this.now(),
      arm: (ns) => machine.vm.setDeadline(ns),
      resume: () => false,
      exitName: (reason) => `${reason}`,
      refusal: () => machine.kvm.lastRefusal()?.reason ?? '',
      trace: null,
      traceExits: false,
      traceGhcb: false,
      tracePorts: false,
      traceMmio: false,
    })
    const { piece } = this
    // The last piece of all ends there.
    this.piece = () => Math.max(1, Math.min(piece(), n - this.total))
    const stop = new Error('reached')
    const { stopped } = this
    this.stopped = () => {
      stopped()
      if (this.total >= n) throw stop
    }
    try {
      while (this.outcome === null && this.total < n) this.outcome = this.#loop.run(1e9)
    } catch (error) {
      if (error !== stop) throw error
    } finally {
      this.piece = piece
      this.stopped = stopped
    }
    return this.outcome === null
  }

  #page(page: number): Uint8Array {
    let at = page * 4096
    for (const range of this.machine.space.ranges) {
      if (at < range.size) return range.memory.read(range.offset + at, 4096)
      at -= range.size
    }
    throw new RangeError('page')
  }

  /** All guest memory, as the host sees it. */
  *memory(): Generator<Uint8Array> {
    for (const range of this.machine.space.ranges)
      for (let at = 0; at < range.size; at += CHUNK) yield range.memory.read(range.offset + at, Math.min(CHUNK, range.size - at))
  }

  digests(): string[] {
    return [...this.memory()].map((bytes) => createHash('sha1').update(bytes).digest('base64'))
  }

  state(): State {
    const { core } = this.machine.kvm.kernel
    const parts: [string, Buffer][] = []
    const add = (name: string, address: number, size: number): void =>
      void parts.push([name, Buffer.from(core.bytes(address, size).slice())])
    for (const { file, id } of this.machine.vcpus) {
      const { s } = file
      for (const [name, from, size] of fields) add(`vCPU ${id}: ${name}`, s + from, size)
      parts.push([`vCPU ${id}: flags`, Buffer.from(`${BigInt.asUintN(64, core.call.cpuGetFlags(s))}`)])
      add(`vCPU ${id}: local APIC`, s + L.VCPU_LAPIC, 0x420)
      add(`vCPU ${id}: NMI, SIPI`, s + L.VCPU_KVM + L.VKVM_INTERRUPT, 12)
      parts.push([`vCPU ${id}: instructions`, Buffer.from(`${file.cpu.getBigUint64(L.CPU_ICOUNT, true)}`)])
    }
    const chip = this.#clock.getUint32(L.VM_KVM_STATE, true)
    if (chip) {
      add('PIC, PIT, I/O APIC', chip, L.CHIP_RUNNING)
      add('interrupt sources', chip + L.CHIP_IRQ_SOURCES, 128)
    }
    parts.push(['time', Buffer.from(`${this.now()}`)], ['accesses', this.accesses.copy().digest()])
    const memory = createHash('sha1')
    for (const page of this.pages) memory.update(this.#page(page))
    return { parts, memory: memory.digest('base64') }
  }

  /** Pages that differ from what `before` holds. */
  changed(before: readonly Uint8Array[]): number[] {
    const out: number[] = []
    let page = 0
    let i = 0
    for (const now of this.memory()) {
      const was = before[i++] as Uint8Array
      const same = Buffer.compare(now, was) === 0
      for (let at = 0; at < now.length; at += 4096, page++)
        if (!same && Buffer.compare(now.subarray(at, at + 4096), was.subarray(at, at + 4096)) !== 0) out.push(page)
    }
    return out
  }
  [Symbol.dispose](): void {
    this.machine[Symbol.dispose]()
  }
}

function differs(a: State, b: State): string | null {
  const wrong = a.parts.filter(([, bytes], i) => !bytes.equals((b.parts[i] as [string, Buffer])[1]))
  if (wrong.length > 0) {
    const show = ([name, bytes]: [string, Buffer]): string => {
      const other = (b.parts.find(([n]) => n === name) as [string, Buffer])[1]
      const at = bytes.findIndex((byte, i) => byte !== other[i]) & ~7
      return `${name} +${at}: ${bytes.subarray(at, at + 16).toString('hex')}, stepped ${other.subarray(at, at + 16).toString('hex')}`
    }
    return wrong.map(show).join('\n  ')
  }
  return a.memory === b.memory ? null : 'memory'
}

export interface Window {
  /** Instructions before the first boundary. */
  from: number
  steps: number
}

/**
 * Compares in each window; returns the boundaries compared. `lengths` of the pieces, chosen by `random` (numbers in [0, 1)): stops
 * at lengths up to each of them.
 */
export async function compareStops(
  options: MachineOptions,
  windows: readonly Window[],
  random: () => number,
  lengths: readonly number[] = [2, 9, 60, 700],
): Promise<{ boundaries: number; stops: number }> {
  const whole = await Stopped.create(options)
  const stepped = await Stopped.create(options)
  const pieces = await Promise.all(lengths.map(() => Stopped.create(options)))
  const all = [whole, stepped, ...pieces]
  let boundaries = 0
  let stops = 0
  try {
    for (const { from, steps } of windows) {
      for (const m of all) {
        m.pages = []
        m.to(from)
      }
      // A guest may end earlier: all of them do, and at the same place.
      const first = whole.state()
      for (const m of all) assert.is(differs(m.state(), first), null, `at ${from}`)
      if (whole.ended !== null) break
      const before = [...whole.memory()]
      const pages = new Set<number>()
      const end = from + steps
      for (const n of [from + (steps >> 2), from + (steps >> 1), end])
        if (whole.to(n)) for (const page of whole.changed(before)) pages.add(page)
      for (const m of all) m.pages = [...pages]
      const expected = new Map<number, State>()
      stepped.piece = () => 1
      stepped.stopped = () => void expected.set(stepped.total, stepped.state())
      stepped.to(end)
      stepped.piece = () => Number.MAX_SAFE_INTEGER
      stepped.stopped = () => {}
      boundaries += expected.size
      for (const [i, m] of pieces.entries()) {
        const most = lengths[i] as number
        m.piece = () => 1 + Math.floor(random() * most)
        m.stopped = () => {
          const want = expected.get(m.total)
          if (!want) throw new Error(`stopped at ${m.total}, where single-stepping never was`)
          const wrong = differs(m.state(), want)
          if (wrong !== null) assert.unreachable(`pieces up to ${most}, after ${m.total - from} instructions from ${from}:\n  ${wrong}`)
          stops++
        }
        m.to(end)
        m.piece = () => Number.MAX_SAFE_INTEGER
        m.stopped = () => {}
      }
      const last = whole.state()
      const digests = whole.digests()
      for (const m of all) {
        assert.is(m.ended, whole.ended)
        assert.is(differs(m.state(), last), null, `at the end of the window from ${from}`)
        assert.equal(m.digests(), digests, `memory at the end of the window from ${from}`)
      }
    }
  } finally {
    for (const m of all) m[Symbol.dispose]()
  }
  return { boundaries, stops }
}
