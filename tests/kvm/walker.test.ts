/**
 * Every row of the policy table, for every VM type, in every phase: created, initialised, with a vCPU, sealed, dead. Each
 * cell is asked with a correct call on a fresh VM that was brought there by raw request codes, and where the table says ok
 * (zeros, partial, ignored, dropped) the effect is looked at.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type Kvm, openKvm, policyTable, POLICY_TYPES, type PolicyEntry, REQUEST, type VmType } from 'cloister'
import { hostOf, isEs, NotReached, RawMachine, TYPE_NUMBER } from './raw-machine.ts'
import { Script } from './script.ts'
import { type Effect, NO_EFFECT, PHASES, type Phase, WALK, type Walk, type Where } from './walk-rows.ts'

type Shared = Pick<RawMachine, 'memory' | 'scratch'>

/** Linux serves these; Cloister names them as unimplemented. */
const GAPS: Readonly<Record<string, readonly VmType[]>> = {
  // The RMP and the TDX module.
  KVM_RUN: ['snp', 'tdx'],
}

/** Conditions that the phase itself decides: the detail of the row, by phase. */
function byPhase(name: string, type: VmType, phase: Phase, linux: Variant['linux']): string | null {
  const vcpus = phase === 'vcpus' || phase === 'sealed'
  const amd = type !== 'tdx'
  if (vcpus && (name === 'KVM_SET_IDENTITY_MAP_ADDR' || name === 'KVM_SET_TSC_KHZ')) return 'EINVAL'
  if (vcpus && amd && name === 'KVM_CREATE_IRQCHIP') return 'EINVAL'
  // Nobody takes the message: kvm_irq_delivery_to_apic gives -1.
  if (!vcpus && name === 'KVM_SIGNAL_MSI') return 'EPERM'
  if (!amd && name === 'KVM_CREATE_IRQCHIP' && phase !== 'created') return 'EEXIST'
  if (vcpus && name === 'KVM_SET_BOOT_CPU_ID') return 'EBUSY'
  if (name.endsWith('REG_REGION') && phase === 'created' && amd) return 'ENOTTY'
  if (name === 'KVM_CREATE_VCPU' && type === 'tdx' && phase === 'created') return 'EIO'
  if (name === 'KVM_MEMORY_ENCRYPT_OP@vcpu' && type === 'default') return 'ENOTTY'
  if (name === 'KVM_MEMORY_ENCRYPT_OP' && type === 'default' && vcpus) return 'EINVAL'
  if (name === 'KVM_MEMORY_ENCRYPT_OP' && type === 'snp' && phase === 'sealed') return 'EPERM'
  // Nested virtualisation is off; 6.12 answers the one question all the same.
  if (name === 'KVM_GET_NESTED_STATE' && linux === '6.12') return null
  // The MSRs of kvmclock are not a TD's.
  if (name.endsWith('NESTED_STATE') || (name === 'KVM_KVMCLOCK_CTRL' && !amd)) return 'EINVAL'
  return null
}

/**
 * Kills the VM. SEV and SEV-ES: its context moves to an heir (sev_vm_move_enc_context_from). Ordinary and SNP: an SMI whose
 * save area is not in memory (enter_smm). TDX: an SMI that userspace makes pending (KVM_BUG_ON in vt_smi_allowed); rfc-2020
 * does not let it, so there a question about the guest's state is asked from inside (A5).
 */
function kill(script: Script, rfc2020: boolean): number {
  const { machine, kvm } = script
  const { type } = machine
  if (type.startsWith('sev')) {
    const heir = kvm.ioctl(machine.system, REQUEST.KVM_CREATE_VM, TYPE_NUMBER[type])
    if (isEs(type)) for (const [id] of machine.vcpus.entries()) machine.keep(kvm.ioctl(heir, REQUEST.KVM_CREATE_VCPU, id))
    assert.is(machine.ioctl('KVM_ENABLE_CAP', machine.struct(104, `u32@0=206 u64@8=${machine.vm}`), heir), 0, kvm.lastRefusal()?.reason)
    return heir
  }
  if (type === 'tdx' && rfc2020) {
    const inside = kvm.kernel.file(machine.vcpu) as unknown as { askGuestState(op: 'get_cpl'): number }
    assert.throws(() => inside.askGuestState('get_cpl'), /KVM_BUG_ON/)
    return -1
  }
  script.step('KVM_SET_VCPU_EVENTS@vcpu u8@25=1 u32@20=8')
  const result = script.ask({ ioctl: 'KVM_RUN', call: 0 }).result
  assert.is(result, -ERRNO.EIO, `${type}: KVM_RUN did not kill it: ${kvm.lastRefusal()?.reason}`)
  return -1
}

/** What a TD has no use for: its controller is split, and comes with KVM_TDX_INIT_VM. */
function needed(steps: readonly string[], type: VmType, phase: Phase): string[] {
  return steps.flatMap((step) => {
    if (step === 'region')
      return phase === 'created' || type === 'default' || type === 'tdx' ? [] : ['KVM_MEMORY_ENCRYPT_REG_REGION u64@0=$mem u64@8=0x1000']
    if (type !== 'tdx') return [step]
    if (step === 'pit') return []
    return step === 'irqchip' ? (phase === 'created' ? ['split'] : []) : [step]
  })
}

/** Steps that the type refuses belong to a cell that is refused. */
function tried(script: Script, steps: readonly string[]): void {
  for (const step of steps) {
    try {
      script.step(step)
    } catch (error) {
      if (!(error instanceof NotReached)) throw error
    }
  }
}

function bring(kvm: Kvm, type: VmType, phase: Phase, walk: Walk, shared: Shared): Script {
  const script = new Script(new RawMachine(kvm, type, shared))
  const { machine } = script
  try {
    if (phase !== 'created') machine.do('init')
    for (const step of needed(walk.needs ?? [], type, phase)) script.step(step)
    if (phase === 'vcpus' || phase === 'sealed' || phase === 'dead') {
      machine.do('vcpu')
      machine.do('cpuid')
      tried(script, walk.early ?? [])
    }
    // A SEV-ES context moves with sealed vCPUs only, and a TD runs once it is finalised.
    if (phase === 'sealed' || (phase === 'dead' && (isEs(type) || type === 'tdx'))) machine.do('seal')
    if (phase !== 'dead') tried(script, walk.ready ?? [])
    return script
  } catch (error) {
    script.close()
    throw error
  }
}

interface Count {
  cells: number
  effects: number
}

/** One cell: what is wrong with it, or null. */
function cell(script: Script, entry: PolicyEntry, walk: Walk | undefined, where: Where, want: string, count: Count): string | null {
  const { machine, kvm } = script
  const onVcpu = entry.scope === 'vcpu' || (entry.scope === 'vm+vcpu' && machine.vcpu >= 0)
  if (walk === undefined) {
    const fd = entry.scope === 'system' ? machine.system : onVcpu ? machine.vcpu : machine.vm
    const result = kvm.ioctl(fd, 0xaeff, 0)
    return result === -ERRNO[want as keyof typeof ERRNO] ? null : `got ${result}`
  }
  const given = typeof walk.call === 'function' ? walk.call(where) : walk.call
  // A dead VM is not asked what to start from.
  const call = where.phase === 'dead' && typeof given === 'string' && given.startsWith('<') ? '' : given
  let asked: ReturnType<Script['ask']>
  try {
    asked = script.ask({ ioctl: entry.ioctl, call })
  } catch (error) {
    // What the state would start from is refused as well: the bare request then.
    if (!(error instanceof NotReached) || !(want in ERRNO)) throw error
    asked = script.ask({ ioctl: entry.ioctl, call: '' })
  }
  if (want in ERRNO) return asked.wrong(want, [])
  const sees = typeof walk.sees === 'function' ? walk.sees(where) : walk.sees
  if (sees.length === 0 && !(entry.ioctl in NO_EFFECT)) return 'no effect is looked at'
  const wrong = asked.wrong('ok', sees)
  if (wrong === null && sees.length > 0) count.effects++
  return wrong
}

interface Variant {
  readonly profile: 'upstream' | 'rfc-2020'
  readonly linux: '6.12' | '7.3'
  readonly types: readonly VmType[]
}
const ALL = POLICY_TYPES as readonly VmType[]
const VARIANTS: readonly Variant[] = [
  { profile: 'upstream', linux: '7.3', types: ALL },
  // One of each kind: shared, protected, private memory. 6.12 has no TDX.
  { profile: 'upstream', linux: '6.12', types: ['default', 'sev-es', 'snp'] },
  // What the proposal defines, and one column that it inherits.
  { profile: 'rfc-2020', linux: '7.3', types: ['sev-es-legacy', 'sev-es', 'tdx'] },
]

for (const { profile, linux, type } of VARIANTS.flatMap((v) => v.types.map((t) => ({ ...v, type: t })))) {
  test(`every row for ${type}, in every phase: ${profile}, Linux ${linux}`, async () => {
    const kvm = await openKvm({ memory: 512 << 20, host: hostOf(type), profile, linux })
    const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
    const column = POLICY_TYPES.indexOf(type)
    const wrong: string[] = []
    const gaps = new Set<string>()
    const walked: Record<Phase, Count> = Object.fromEntries(PHASES.map((p) => [p, { cells: 0, effects: 0 }])) as Record<Phase, Count>
    for (const phase of PHASES) {
      for (const entry of policyTable(profile, linux).values()) {
        if (entry.ioctl.startsWith('any ')) continue
        const unknown = entry.ioctl.startsWith('unknown')
        const walk = unknown ? undefined : WALK[entry.ioctl]
        assert.ok(unknown || walk !== undefined, `no walk for ${entry.ioctl}`)
        const onVcpu = entry.scope === 'vcpu'
        if (onVcpu && (phase === 'created' || phase === 'initialised')) continue
        if (phase === 'dead' && entry.scope === 'system') continue
        // Ciphertext of the last launch is not what the next one starts from, and the reason must be this step's own.
        shared.memory.write(0, new Uint8Array(0x10000))
        shared.scratch.write(0, new Uint8Array(0x8000))
        kvm.kernel.refusal = null
        let script: Script
        try {
          script = bring(kvm, type, phase, walk ?? { call: 0, sees: [] }, shared)
        } catch (error) {
          if (!(error instanceof NotReached)) throw error
          wrong.push(`${entry.ioctl} ${phase}: ${error.message}`)
          continue
        }
        // An ordinary VM that will take a legacy init command is an ordinary VM until then.
        const legacy = type === 'sev-legacy' || type === 'sev-es-legacy'
        const rule = entry.rules[legacy && phase === 'created' ? 0 : column]?.[phase === 'sealed' ? 1 : 0]
        if (rule === undefined) throw new RangeError(entry.ioctl)
        const heir = phase === 'dead' ? kill(script, profile === 'rfc-2020') : -1
        const firm = rule.result === 'error' ? (rule.errno ?? '') : 'ok'
        let want = phase === 'dead' ? 'EIO' : (byPhase(entry.ioctl, type, phase, linux) ?? firm)
        // Type 0 waits for its own init command.
        if (legacy && phase === 'created' && entry.ioctl === 'KVM_MEMORY_ENCRYPT_OP') want = 'ok'
        const effect = (rule.result.startsWith('ok') ? rule.result : 'ok') as Effect
        kvm.kernel.refusal = null
        const failed = cell(script, entry, walk, { type, phase, effect, rfc2020: profile === 'rfc-2020', linux }, want, walked[phase])
        if (failed === null) walked[phase].cells++
        else if (kvm.lastRefusal()?.unimplemented && GAPS[entry.ioctl]?.includes(type)) gaps.add(entry.ioctl)
        else wrong.push(`${entry.ioctl} ${phase}: table ${want} (${effect}): ${failed}`)
        script.close()
        if (heir >= 0) kvm.close(heir)
      }
    }
    assert.is(wrong.join('\n'), '')
    assert.equal(kvm.kernel.internalErrors, [])
    // A gap that is closed leaves the list.
    assert.equal(
      [...gaps],
      Object.keys(GAPS).filter((name) => GAPS[name]?.includes(type)),
    )
    if (gaps.size > 0) process.stdout.write(`  not implemented yet for ${type}: ${[...gaps].join(', ')}\n`)
    process.stdout.write(
      `  ${type} (${profile}, ${linux}): ${PHASES.map((p) => `${p} ${walked[p].cells} (${walked[p].effects} effects)`).join(', ')}\n`,
    )
    assert.ok(walked.created.cells > 40 && walked.created.effects > 30, JSON.stringify(walked))
    assert.ok(walked.vcpus.cells > 90 && walked.sealed.cells > 90 && walked.dead.cells > 80, JSON.stringify(walked))
  })
}

test('every row of the table is walked, and nothing else', () => {
  const rows = [...policyTable().keys()].filter((name) => !/^(unknown|any) /.test(name))
  assert.equal(Object.keys(WALK).sort(), rows.sort())
  for (const name of Object.keys(NO_EFFECT)) assert.ok(name in WALK, name)
})

test.run()
