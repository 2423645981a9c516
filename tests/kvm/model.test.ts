/**
 * Random command sequences on every VM type against an executable model of the switches: the model knows the VM type, which
 * steps were taken, and the rule "refuse iff has_protected_state and guest_state_protected"; it does not read the policy table.
 */
import fc from 'fast-check'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, type Kvm, openKvm, POLICY_TYPES, REQUEST, SEV_COMMAND, TDX_COMMAND, type VmType } from 'cloister'
import { hostOf, isEs, RawMachine } from './raw-machine.ts'

interface Model {
  readonly type: VmType
  init: boolean
  irqchip: 'none' | 'full' | 'split'
  pit: boolean
  vcpus: { sealed: boolean; debug: boolean }[]
  /** SEV firmware: 0 no context, 1 LAUNCH_UPDATE, 2 LAUNCH_SECRET, 3 RUNNING; a TD: 1 = RUNNABLE. */
  launch: number
}

type Answer = 'ok' | keyof typeof ERRNO

const hasProtectedState = (m: Model): boolean => m.type === 'sev-es' || m.type === 'snp' || m.type === 'tdx'
const isSev = (m: Model): boolean => m.type !== 'default' && m.type !== 'tdx'
/** Is this a SEV guest now? Legacy types are ordinary VMs before their init command. */
const active = (m: Model): boolean => isSev(m) && m.init
const guestStateProtected = (m: Model, vcpu: number): boolean => m.type === 'tdx' || m.vcpus[vcpu]?.sealed === true
const refused = (m: Model, vcpu: number): boolean => hasProtectedState(m) && guestStateProtected(m, vcpu)
/** The SNP path never sets fpstate_is_confidential. */
const confidential = (m: Model, vcpu: number): boolean => m.type === 'tdx' || (isEs(m.type) && m.vcpus[vcpu]?.sealed === true)

/** One kind of command: when it makes sense, what the model answers, what it does to the model, how to ask. */
interface Kind {
  readonly vcpu?: true
  expect(m: Model, vcpu: number): Answer
  effect?(m: Model, vcpu: number): void
  call(r: RawMachine, fd: number): number
}

const size = (name: keyof typeof REQUEST): number => Math.max(24, (REQUEST[name] >>> 16) & 0x3fff)
const ask =
  (name: keyof typeof REQUEST, fields = '') =>
  (r: RawMachine, fd: number): number =>
    r.kvm.ioctl(fd, REQUEST[name], r.struct(size(name), fields))
/** Sets what was read just before, or zeros. */
const roundTrip =
  (get: keyof typeof REQUEST, set: keyof typeof REQUEST) =>
  (r: RawMachine, fd: number): number => {
    const bytes = r.struct(size(set), '')
    r.kvm.ioctl(fd, REQUEST[get], bytes)
    return r.kvm.ioctl(fd, REQUEST[set], bytes)
  }
const registers: Kind['expect'] = (m, vcpu) => (refused(m, vcpu) ? 'EINVAL' : 'ok')
const fpu: Kind['expect'] = (m, vcpu) => (confidential(m, vcpu) && hasProtectedState(m) ? 'EINVAL' : 'ok')
/** A SEV command that works on the launch: who may ask, and in which firmware states. */
const launching =
  (states: readonly number[]): Kind['expect'] =>
  (m) =>
    m.type === 'snp' && m.init ? 'EPERM' : !active(m) ? 'ENOTTY' : m.launch === 0 ? 'EBADF' : states.includes(m.launch) ? 'ok' : 'EIO'

const KINDS: Readonly<Record<string, Kind>> = {
  init: {
    expect: (m) => {
      if (m.type === 'snp' && m.init) return 'EPERM'
      if (m.type === 'tdx') return m.init ? 'EINVAL' : m.vcpus.length > 0 ? 'EBUSY' : 'ok'
      return m.init || m.vcpus.length > 0 ? 'EINVAL' : 'ok'
    },
    effect: (m) => {
      m.init = true
    },
    call: (r) => {
      if (r.type === 'tdx')
        return r.command(
          TDX_COMMAND.KVM_TDX_INIT_VM,
          r.struct(304, `u64@0=${1 << 28} u64@8=7 u32@256=1 u32@264=0x80000008 u32@276=${48 << 16}`),
        )
      if (r.type === 'sev-legacy') return r.command(SEV_COMMAND.KVM_SEV_INIT)
      if (r.type === 'sev-es-legacy') return r.command(SEV_COMMAND.KVM_SEV_ES_INIT)
      return r.command(SEV_COMMAND.KVM_SEV_INIT2, new Uint8Array(48))
    },
  },
  irqchip: {
    expect: (m) => (m.irqchip !== 'none' ? 'EEXIST' : m.type === 'tdx' ? 'ENOTTY' : m.vcpus.length > 0 ? 'EINVAL' : 'ok'),
    effect: (m) => {
      m.irqchip = 'full'
    },
    call: (r) => r.ioctl('KVM_CREATE_IRQCHIP'),
  },
  split: {
    expect: (m) => (m.irqchip !== 'none' || m.vcpus.length > 0 ? 'EEXIST' : 'ok'),
    effect: (m) => {
      m.irqchip = 'split'
    },
    call: (r) => r.ioctl('KVM_ENABLE_CAP', r.struct(104, `u32@0=${CAP.KVM_CAP_SPLIT_IRQCHIP} u64@8=24`)),
  },
  pit: {
    expect: (m) => (m.irqchip !== 'full' ? 'ENOENT' : m.pit ? 'EEXIST' : 'ok'),
    effect: (m) => {
      m.pit = true
    },
    call: (r) => r.ioctl('KVM_CREATE_PIT2', new Uint8Array(64)),
  },
  vcpu: {
    expect: (m) => (m.type !== 'tdx' ? 'ok' : !m.init || m.launch !== 0 ? 'EIO' : m.irqchip !== 'split' ? 'EINVAL' : 'ok'),
    effect: (m) => {
      m.vcpus.push({ sealed: m.type === 'tdx', debug: false })
    },
    call: (r) => {
      const fd = r.ioctl('KVM_CREATE_VCPU', r.vcpus.length)
      if (fd >= 0) r.vcpus.push(fd)
      return fd
    },
  },
  start: {
    expect: (m) => (m.type === 'snp' && m.init ? 'EPERM' : !active(m) ? 'ENOTTY' : 'ok'),
    effect: (m) => {
      m.launch = 1
    },
    call: (r) => r.command(SEV_COMMAND.KVM_SEV_LAUNCH_START, r.struct(40, `u32@4=${isEs(r.type) ? 5 : 1}`)),
  },
  data: { expect: launching([1]), call: (r) => r.command(SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_DATA, r.struct(16, 'u64@0=$mem u32@8=0x1000')) },
  vmsa: {
    expect: (m) => {
      if (m.type === 'snp' && m.init) return 'EPERM'
      if (!active(m) || !isEs(m.type)) return 'ENOTTY'
      const first = m.vcpus[0]
      if (first === undefined) return 'ok'
      if (first.debug || first.sealed) return 'EINVAL'
      return m.launch === 0 ? 'EBADF' : m.launch !== 1 ? 'EIO' : m.vcpus.every((v) => !v.debug && !v.sealed) ? 'ok' : 'EINVAL'
    },
    effect: (m) => {
      for (const vcpu of m.vcpus) vcpu.sealed = true
    },
    call: (r) => r.command(SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_VMSA),
  },
  measure: {
    expect: launching([1]),
    effect: (m) => {
      m.launch = 2
    },
    call: (r) => r.command(SEV_COMMAND.KVM_SEV_LAUNCH_MEASURE, r.struct(16, 'u64@0=$mem u32@8=48')),
  },
  finish: {
    expect: launching([1, 2]),
    effect: (m) => {
      m.launch = 3
    },
    call: (r) => r.command(SEV_COMMAND.KVM_SEV_LAUNCH_FINISH),
  },
  status: { expect: launching([1, 2, 3]), call: (r) => r.command(SEV_COMMAND.KVM_SEV_GUEST_STATUS, new Uint8Array(12)) },
  readonlySlot: {
    expect: (m) => (hasProtectedState(m) ? 'EINVAL' : 'ok'),
    call: (r) => r.ioctl('KVM_SET_USER_MEMORY_REGION', r.struct(32, 'u32@0=3 u32@4=2 u64@8=0x800000 u64@16=0x1000 u64@24=$mem')),
  },
  privatePages: {
    expect: (m) => (m.type === 'snp' || m.type === 'tdx' ? 'ok' : 'EINVAL'),
    call: (r) => r.ioctl('KVM_SET_MEMORY_ATTRIBUTES', r.struct(32, 'u64@8=0x1000 u64@16=8')),
  },
  region: {
    expect: (m) => (active(m) ? 'ok' : 'ENOTTY'),
    call: (r) => r.ioctl('KVM_MEMORY_ENCRYPT_REG_REGION', r.struct(16, 'u64@0=$mem u64@8=0x1000')),
  },
  capabilities: {
    expect: () => 'ok',
    call: (r) => r.ioctl('KVM_CHECK_EXTENSION', CAP.KVM_CAP_VM_TYPES),
  },
  debug: {
    vcpu: true,
    expect: (m, vcpu) => (guestStateProtected(m, vcpu) ? 'EINVAL' : 'ok'),
    effect: (m, vcpu) => {
      const it = m.vcpus[vcpu]
      if (it) it.debug = true
    },
    call: ask('KVM_SET_GUEST_DEBUG', 'u32@0=1'),
  },
  debugOff: {
    vcpu: true,
    expect: (m, vcpu) => (guestStateProtected(m, vcpu) ? 'EINVAL' : 'ok'),
    effect: (m, vcpu) => {
      const it = m.vcpus[vcpu]
      if (it) it.debug = false
    },
    call: ask('KVM_SET_GUEST_DEBUG'),
  },
  getRegs: { vcpu: true, expect: registers, call: ask('KVM_GET_REGS') },
  setRegs: { vcpu: true, expect: registers, call: roundTrip('KVM_GET_REGS', 'KVM_SET_REGS') },
  getSregs: { vcpu: true, expect: registers, call: ask('KVM_GET_SREGS') },
  getSregs2: { vcpu: true, expect: registers, call: ask('KVM_GET_SREGS2') },
  setSregs: { vcpu: true, expect: registers, call: roundTrip('KVM_GET_SREGS', 'KVM_SET_SREGS') },
  getXcrs: { vcpu: true, expect: registers, call: ask('KVM_GET_XCRS') },
  setXcrs: { vcpu: true, expect: registers, call: roundTrip('KVM_GET_XCRS', 'KVM_SET_XCRS') },
  getDebugregs: { vcpu: true, expect: registers, call: ask('KVM_GET_DEBUGREGS') },
  getFpu: { vcpu: true, expect: fpu, call: ask('KVM_GET_FPU') },
  setFpu: { vcpu: true, expect: fpu, call: roundTrip('KVM_GET_FPU', 'KVM_SET_FPU') },
  getXsave: { vcpu: true, expect: fpu, call: ask('KVM_GET_XSAVE') },
  setXsave: { vcpu: true, expect: fpu, call: roundTrip('KVM_GET_XSAVE', 'KVM_SET_XSAVE') },
  events: { vcpu: true, expect: () => 'ok', call: roundTrip('KVM_GET_VCPU_EVENTS', 'KVM_SET_VCPU_EVENTS') },
  mpState: { vcpu: true, expect: () => 'ok', call: ask('KVM_GET_MP_STATE') },
  lapic: {
    vcpu: true,
    expect: (m) => (m.type === 'tdx' || m.irqchip === 'none' ? 'EINVAL' : 'ok'),
    call: ask('KVM_GET_LAPIC'),
  },
  nmi: { vcpu: true, expect: () => 'ok', call: (r, fd) => r.kvm.ioctl(fd, REQUEST.KVM_NMI, 0) },
  smi: {
    vcpu: true,
    // has_emulated_msr(kvm, SMBASE): false once SEV-ES is active.
    expect: (m) => (m.type === 'tdx' || (active(m) && (isEs(m.type) || m.type === 'snp')) ? 'ENOTTY' : 'ok'),
    call: (r, fd) => r.kvm.ioctl(fd, REQUEST.KVM_SMI, 0),
  },
  vcpuCommand: {
    vcpu: true,
    expect: (m) => (m.type === 'tdx' ? 'EINVAL' : 'ENOTTY'),
    call: ask('KVM_MEMORY_ENCRYPT_OP', 'u32@0=4'),
  },
}

/** Counts what was asked, over all sequences. */
const asked = new Map<string, number>()

class Command implements fc.Command<Model, RawMachine> {
  readonly #name: string
  readonly #pick: number
  constructor(name: string, pick: number) {
    this.#name = name
    this.#pick = pick
  }

  get #kind(): Kind {
    return KINDS[this.#name] as Kind
  }

  check(m: Readonly<Model>): boolean {
    if (this.#kind.vcpu && m.vcpus.length === 0) return false
    if (this.#name === 'vcpu' && m.vcpus.length >= 3) return false
    // A second context for one ASID is the firmware's matter; an init command needs a type that has one.
    if (this.#name === 'start' && m.launch !== 0) return false
    return this.#name !== 'init' || m.type !== 'default'
  }

  run(m: Model, r: RawMachine): void {
    const vcpu = m.vcpus.length === 0 ? 0 : this.#pick % m.vcpus.length
    // A TD has no SEV commands: their ids mean other things there.
    if (m.type === 'tdx' && ['start', 'data', 'vmsa', 'measure', 'finish', 'status'].includes(this.#name)) return
    const want = this.#kind.expect(m, vcpu)
    const result = this.#kind.call(r, r.vcpus[vcpu] ?? -1)
    if (result < 0 && r.kvm.lastRefusal()?.unimplemented) return
    const got = result >= 0 ? 'ok' : (Object.entries(ERRNO).find(([, n]) => n === -result)?.[0] ?? String(result))
    const where = `${this.#name} on vCPU ${vcpu} of ${JSON.stringify(m)} (${r.kvm.lastRefusal()?.reason})`
    assert.is(got, want, where)
    asked.set(`${m.type} ${this.#name} ${got}`, (asked.get(`${m.type} ${this.#name} ${got}`) ?? 0) + 1)
    if (got === 'ok') this.#kind.effect?.(m, vcpu)
    // A failed LAUNCH_UPDATE_VMSA leaves the vCPUs before the failure sealed.
    if (this.#name === 'vmsa' && got === 'EINVAL' && m.launch === 1) {
      for (const it of m.vcpus) {
        if (it.debug || it.sealed) break
        it.sealed = true
      }
    }
  }

  toString(): string {
    return `${this.#name}(${this.#pick})`
  }
}

const names = Object.keys(KINDS)
// Steps towards a sealed guest more often, in their order, so that sequences get far.
const path = ['init', 'vcpu', 'start', 'data', 'vmsa', 'measure', 'finish']
const command = fc
  .tuple(fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...names) }, { weight: 2, arbitrary: fc.constantFrom(...path) }), fc.nat(2))
  .map(([name, pick]) => new Command(name, pick))

const runs = Number(process.env['CLOISTER_MODEL_RUNS'] ?? 150)

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`random sequences on ${type} agree with the model`, async () => {
    const kvm: Kvm = await openKvm({ memory: 256 << 20, host: hostOf(type) })
    const scratch = kvm.mmap(-1, 0x8000)
    fc.assert(
      fc.property(fc.commands([command], { maxCommands: 60, size: 'max' }), (commands) => {
        const memory = kvm.mmap(-1, 0x10000)
        const real = new RawMachine(kvm, type, { memory, scratch })
        try {
          const model: Model = { type, init: false, irqchip: 'none', pit: false, vcpus: [], launch: 0 }
          fc.modelRun(() => ({ model, real }), commands)
        } finally {
          real.close()
          kvm.munmap(memory)
        }
      }),
      { numRuns: runs, seed: 3 },
    )
    assert.equal(kvm.kernel.internalErrors, [])
  })
}

test('the sequences reached sealed guests and their refusals', () => {
  for (const want of [
    'sev-es getRegs EINVAL',
    'sev-es-legacy getRegs ok',
    'sev-es-legacy debug EINVAL',
    'sev finish ok',
    'tdx getRegs EINVAL',
    'sev-es vmsa EINVAL',
  ]) {
    assert.ok((asked.get(want) ?? 0) > 0, want)
  }
})

test.run()
