/**
 * Random sequences of raw calls on all seven VM types against the executable model (tests/kvm/model): SEV, SNP and TDX launches
 * among them, slots and guest_memfd, irqchips and routing, events, MP states, debugging, CPUID, moves. fast-check shrinks what
 * disagrees; CLOISTER_MODEL_RUNS and CLOISTER_MODEL_SEED play others.
 */
import fc from 'fast-check'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, POLICY_TYPES, openKvm, type VmType } from 'cloister'
import { bring, SETUPS } from './model/bring.ts'
import { Caller, VCPU_CALLS, VM_CALLS } from './model/calls.ts'
import { Judge } from './model/judge.ts'
import type { Name } from './model/state.ts'
import { hostOf, RawMachine, TYPE_NUMBER } from './raw-machine.ts'

interface Real {
  readonly machine: RawMachine
  readonly caller: Caller
  readonly judge: Judge
  heir: number
}

const asked = new Map<string, number>()
let judged = 0
let calls = 0

/** A request; the picks choose its argument, so that fewer and smaller picks are a simpler call. */
class RawCall implements fc.Command<object, Real> {
  readonly #name: Name
  readonly #onVcpu: boolean
  readonly #picks: readonly number[]
  #told = ''

  constructor(name: Name, onVcpu: boolean, picks: readonly number[]) {
    this.#name = name
    this.#onVcpu = onVcpu
    this.#picks = picks
  }

  check(): boolean {
    return true
  }

  run(_model: object, { machine, caller, judge }: Real): void {
    let at = 0
    const pick = (n: number): number => (this.#picks[at++] ?? 0) % n
    if (this.#onVcpu && machine.vcpus.length === 0) return
    if (this.#name === 'KVM_CREATE_VCPU' && machine.vcpus.length >= 3) return
    const vcpu = this.#onVcpu ? pick(machine.vcpus.length) : null
    const argument = caller.argument(this.#name, vcpu, pick)
    const before = argument instanceof Uint8Array ? Buffer.from(argument.subarray(0, 96)).toString('hex') : argument
    this.#told = `${this.#name}${vcpu === null ? '' : `@${vcpu}`}(${before})`
    const { result, wrong, judged: opinion } = judge.call(this.#name, vcpu, argument)
    if (this.#name === 'KVM_CREATE_GUEST_MEMFD' && result >= 0) caller.noteGmem(result)
    calls++
    if (opinion) judged++
    const key = `${machine.type} ${this.#name} ${result < 0 ? 'refused' : 'ok'}`
    asked.set(key, (asked.get(key) ?? 0) + 1)
    assert.is(wrong, null, `${machine.type}: ${wrong}; ${this.#told}`)
  }

  toString(): string {
    return this.#told || this.#name
  }
}

/** KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM into a fresh VM: refused, or this VM is dead and every later call -EIO. */
class Move implements fc.Command<object, Real> {
  check(): boolean {
    return true
  }

  run(_model: object, real: Real): void {
    const { machine, judge } = real
    if (machine.kvm.host !== 'amd' || machine.moved) return
    const { kvm, vm, type } = machine
    const heir = kvm.createVm(type)
    const result = machine.ioctl(
      'KVM_ENABLE_CAP',
      machine.struct(104, `u32@0=${CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM} u64@8=${vm}`),
      heir.fd,
    )
    const model = judge.vm
    // sev_vm_move_enc_context_from: a SEV guest, no SNP; of SEV-ES as many vCPUs, all of the source sealed.
    const movable =
      model.sev && type !== 'snp' && !model.mirror && (!model.sevEs || (model.order.length === 0 && model.order.every((v) => v.sealed)))
    if (!model.dead) assert.is(result === 0, movable, `move of ${type}: ${result} (${kvm.lastRefusal()?.reason})`)
    if (result === 0) {
      model.dead = true
      machine.moved = true
      asked.set(`${type} moved`, 1)
    }
    if (real.heir >= 0) kvm.close(real.heir)
    real.heir = heir.fd
  }

  toString(): string {
    return 'move'
  }
}

/** KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: a mirror takes four commands only. */
class Mirror implements fc.Command<object, Real> {
  check(): boolean {
    return true
  }

  run(_model: object, { machine, judge }: Real): void {
    if (machine.kvm.host !== 'amd') return
    const { kvm, vm, type, sev } = machine
    const mirror = kvm.createVm(type)
    const model = judge.vm
    const result = machine.ioctl(
      'KVM_ENABLE_CAP',
      machine.struct(104, `u32@0=${CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM} u64@8=${vm}`),
      mirror.fd,
    )
    if (!model.dead) {
      // sev_vm_copy_enc_context_from: a SEV guest of the same type, which is no mirror itself; SNP has none.
      if (type !== 'snp') assert.is(result === 0, model.sev, `mirror of ${type}: ${result} (${kvm.lastRefusal()?.reason})`)
      if (result === 0) {
        asked.set(`${type} mirrored`, 1)
        const command = machine.struct(24, 'u32@0=2')
        new DataView(command.buffer).setInt32(20, sev, true)
        assert.is(machine.ioctl('KVM_MEMORY_ENCRYPT_OP', command, mirror.fd), -22)
      }
    }
    kvm.close(mirror.fd)
  }

  toString(): string {
    return 'mirror'
  }
}

const LAUNCH: readonly (readonly [Name, boolean])[] = [
  ['KVM_MEMORY_ENCRYPT_OP', false],
  ['KVM_CREATE_VCPU', false],
  ['KVM_SET_CPUID2', true],
  ['KVM_MEMORY_ENCRYPT_OP', true],
  ['KVM_CREATE_GUEST_MEMFD', false],
  ['KVM_SET_USER_MEMORY_REGION2', false],
  ['KVM_SET_MEMORY_ATTRIBUTES', false],
]
const picks = fc.array(fc.nat(1023), { minLength: 8, maxLength: 16 })
const call = (list: readonly (readonly [Name, boolean])[]): fc.Arbitrary<RawCall> =>
  fc.tuple(fc.constantFrom(...list), picks).map(([[name, onVcpu], p]) => new RawCall(name, onVcpu, p))
const commands = fc.commands(
  [
    call(LAUNCH),
    call(VM_CALLS.map((name) => [name, false])),
    call(VCPU_CALLS.map((name) => [name, true])),
    call(VCPU_CALLS.map((name) => [name, true])),
    fc.constant(new Move()),
    fc.constant(new Mirror()),
  ],
  { maxCommands: 80, size: 'max' },
)

const runs = Number(process.env['CLOISTER_MODEL_RUNS'] ?? 100)
const seed = Number(process.env['CLOISTER_MODEL_SEED'] ?? 3)

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`random sequences on ${type} agree with the model (seed ${seed})`, async () => {
    const kvm = await openKvm({ memory: 512 << 20, host: hostOf(type) })
    const memory = kvm.mmap(-1, 0x10000)
    const scratch = kvm.mmap(-1, 0x8000)
    const floor = kvm.kernel.files.filter((f) => f !== null).length
    fc.assert(
      fc.property(fc.constantFrom(...SETUPS), commands, (setup, sequence) => {
        const machine = new RawMachine(kvm, type, { memory, scratch })
        const judge = new Judge(machine)
        const caller = new Caller(machine)
        const real: Real = { machine, caller, judge, heir: -1 }
        try {
          bring(machine, judge, setup)
          fc.modelRun(() => ({ model: {}, real }), sequence)
        } finally {
          caller.close()
          if (real.heir >= 0) kvm.close(real.heir)
          for (let fd = kvm.kernel.files.length - 1; fd >= floor; fd--) if (kvm.kernel.file(fd)) kvm.close(fd)
        }
      }),
      { numRuns: runs, seed },
    )
    assert.equal(kvm.kernel.internalErrors, [])
  })
}

test('the sequences reached launches and what follows them', () => {
  process.stdout.write(`  ${calls} calls, the model judged ${judged}\n`)
  assert.ok(judged > calls * 0.6, `${judged} of ${calls} calls judged`)
  if (runs < 100) return
  const missing = [
    'snp KVM_GET_REGS refused',
    'tdx KVM_GET_REGS refused',
    'sev-es KVM_GET_REGS refused',
    'sev moved',
    'sev-legacy moved',
    'sev mirrored',
    'snp KVM_SET_USER_MEMORY_REGION2 ok',
  ]
  assert.equal(
    missing.filter((what) => !asked.has(what)),
    [],
  )
  for (const type of POLICY_TYPES)
    for (const name of VCPU_CALLS) assert.ok(asked.has(`${type} ${name} ok`) || asked.has(`${type} ${name} refused`), `${type} ${name}`)
  assert.ok(TYPE_NUMBER.tdx === 5)
})

test.run()
