/**
 * Every row of the policy table, for every VM type, in every phase: created, initialised, with a vCPU, sealed, dead. Each
 * cell is asked with a correct call on a fresh VM that was brought there by raw request codes.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type Kvm, openKvm, policyTable, POLICY_TYPES, type PolicyEntry, REQUEST, RUN, type VmType } from 'cloister'
import { hostOf, NotReached, RawMachine, TYPE_NUMBER } from './raw-machine.ts'

const PHASES = ['created', 'initialised', 'vcpus', 'sealed', 'dead'] as const
type Phase = (typeof PHASES)[number]

/** What a row's correct call needs to have been set up before the vCPU. */
function needs(name: string): string[] {
  if (/^KVM_[GS]ET_PIT2$/.test(name)) return ['irqchip', 'pit']
  if (
    /^KVM_(GET_IRQCHIP|SET_IRQCHIP|CREATE_PIT2|IRQ_LINE|IRQ_LINE_STATUS|SET_GSI_ROUTING|SIGNAL_MSI|IRQFD|GET_LAPIC|SET_LAPIC|SET_VAPIC_ADDR)$/.test(
      name,
    )
  )
    return ['irqchip']
  if (name === 'KVM_GET_DIRTY_LOG') return ['log-slot']
  if (name === 'KVM_PRE_FAULT_MEMORY' || name === 'KVM_RUN') return ['slot']
  return []
}

const PAIRS: Readonly<Record<string, keyof typeof REQUEST>> = {
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
  KVM_SET_IRQCHIP: 'KVM_GET_IRQCHIP',
}

const FIELDS: Readonly<Record<string, string>> = {
  KVM_HAS_DEVICE_ATTR: 'u64@16=$mem',
  KVM_GET_DEVICE_ATTR: 'u64@16=$mem',
  KVM_SET_DEVICE_ATTR: 'u64@16=$mem',
  KVM_SET_USER_MEMORY_REGION: 'u32@0=9 u64@8=0x200000 u64@16=0x1000 u64@24=$mem',
  KVM_SET_USER_MEMORY_REGION2: 'u32@0=9 u64@8=0x200000 u64@16=0x1000 u64@24=$mem',
  KVM_CREATE_GUEST_MEMFD: 'u64@0=0x10000',
  KVM_SET_MEMORY_ATTRIBUTES: 'u64@8=0x1000 u64@16=8',
  KVM_GET_DIRTY_LOG: 'u64@8=$slot',
  KVM_SET_IDENTITY_MAP_ADDR: 'u64@0=0xfffbc000',
  KVM_SIGNAL_MSI: 'u32@0=0xfee00000 u32@8=0x31',
  KVM_IRQFD: 'u32@0=$eventfd u32@4=1',
  KVM_IOEVENTFD: 'u64@8=0x3000 u32@16=1 u32@20=$eventfd u32@24=2',
  KVM_ENABLE_CAP: 'u32@0=201 u64@8=0x1000',
  KVM_MEMORY_ENCRYPT_REG_REGION: 'u64@0=$mem u64@8=0x1000',
  KVM_MEMORY_ENCRYPT_UNREG_REGION: 'u64@0=$mem u64@8=0x1000',
  KVM_GET_ONE_REG: 'u64@0=0x203000020000003b u64@8=$slot',
  KVM_SET_ONE_REG: 'u64@0=0x203000020000003b u64@8=$slot',
  KVM_INTERRUPT: 'u32@0=0x30',
  // KVM_TDX_INIT_VCPU.
  KVM_MEMORY_ENCRYPT_OP: 'u32@0=2',
  KVM_X86_SETUP_MCE: 'u64@0=10',
  KVM_X86_SET_MCE: 'u64@0=0x8000000000000000',
  KVM_PRE_FAULT_MEMORY: 'u64@8=0x1000',
  KVM_SET_SIGNAL_MASK: 'u32@0=8',
  KVM_CREATE_DEVICE: 'u32@0=4 u32@8=1',
  KVM_GET_MSRS: 'u32@0=1 u32@8=0x1b',
  KVM_SET_MSRS: 'u32@0=1 u32@8=0x2ff u64@16=0xc06',
}
const SCALARS: Readonly<Record<string, number>> = { KVM_CHECK_EXTENSION: 235, KVM_CREATE_VCPU: 5, KVM_SET_TSS_ADDR: 0xfffbd000 }

/** A correct call depends on more than the VM's phase; spec/kvm-conditions.ts and other tests hold these. */
const ELSEWHERE = new Set([
  'KVM_CLEAR_DIRTY_LOG',
  'KVM_KVMCLOCK_CTRL',
  'KVM_GET_NESTED_STATE',
  'KVM_SET_NESTED_STATE',
  'KVM_ENABLE_CAP@vcpu',
  'KVM_MEMORY_ENCRYPT_OP',
])

/** Conditions that the phase itself decides: the detail of the row, by phase. */
function byPhase(name: string, type: VmType, phase: Phase): string | null {
  const vcpus = phase === 'vcpus' || phase === 'sealed'
  const amd = type !== 'tdx'
  if (vcpus && (name === 'KVM_SET_IDENTITY_MAP_ADDR' || name === 'KVM_SET_TSC_KHZ')) return 'EINVAL'
  if (vcpus && amd && name === 'KVM_CREATE_IRQCHIP') return 'EINVAL'
  // Nobody takes the message: kvm_irq_delivery_to_apic gives -1.
  if (!vcpus && name === 'KVM_SIGNAL_MSI') return 'EPERM'
  if (!amd && name === 'KVM_CREATE_IRQCHIP' && phase !== 'created') return 'EEXIST'
  if (vcpus && name === 'KVM_SET_BOOT_CPU_ID') return 'EBUSY'
  if (name.endsWith('REG_REGION') && phase === 'created' && amd) return 'ENOTTY'
  if (name === 'KVM_MEMORY_ENCRYPT_OP' && type === 'default') return 'ENOTTY'
  if (name === 'KVM_CREATE_VCPU' && type === 'tdx' && phase === 'created') return 'EIO'
  return null
}

function call(machine: RawMachine, entry: PolicyEntry): number {
  const { kvm } = machine
  const [name, rest] = entry.ioctl.split(/[@ ]/) as [string, string | undefined]
  const vcpu = entry.scope === 'vcpu' || (entry.scope === 'vm+vcpu' && machine.vcpu >= 0)
  const fd = entry.scope === 'system' ? machine.system : vcpu ? machine.vcpu : machine.vm
  if (entry.ioctl.startsWith('unknown')) return kvm.ioctl(fd, 0xaeff, 0)
  const request = REQUEST[name as keyof typeof REQUEST]
  if (name === 'KVM_RUN') {
    const run = kvm.mmap(fd, 12288).bytes as Uint8Array
    const view = new DataView(run.buffer, run.byteOffset, 4096)
    view.setBigUint64(RUN.VALID_REGS, rest === undefined ? 0n : 1n, true)
    // A budget of no instruction: the checks before the entry.
    const result = (kvm.kernel.file(fd) as unknown as { run(n: number): number }).run(0)
    view.setBigUint64(RUN.VALID_REGS, 0n, true)
    return result === -ERRNO.EINTR ? 0 : result
  }
  if (name === 'KVM_CREATE_VM') {
    const made = kvm.ioctl(fd, request, TYPE_NUMBER[machine.type])
    if (made >= 0) kvm.close(made)
    return made
  }
  const size = (request >>> 16) & 0x3fff
  if (size === 0) return kvm.ioctl(fd, request, SCALARS[name] ?? 0)
  let bytes = machine.struct(Math.max(size, 24), '')
  if (/CPUID|MSR|GSI_ROUTING/.test(name) && !name.includes('FILTER')) {
    bytes = new Uint8Array(8 + 40 * 512)
    if (/GET_.*(CPUID|INDEX_LIST)/.test(name)) new DataView(bytes.buffer).setUint32(0, name.includes('CPUID') ? 256 : 512, true)
    if (name === 'KVM_SET_CPUID2') {
      new DataView(bytes.buffer).setUint32(0, 256, true)
      kvm.ioctl(machine.system, REQUEST.KVM_GET_SUPPORTED_CPUID, bytes)
    }
    if (/^KVM_[GS]ET_MSRS$/.test(name)) bytes.set(machine.struct(24, FIELDS[name] as string))
  } else if (machine.type === 'tdx' && name.endsWith('ONE_REG')) bytes = machine.struct(64, 'u64@0=0x20300002000002ff u64@8=$buf')
  else if (name in FIELDS) bytes = machine.struct(Math.max(size, 64), FIELDS[name] as string)
  const pair = PAIRS[name]
  if (pair !== undefined) kvm.ioctl(fd, REQUEST[pair], bytes)
  if (name === 'KVM_X86_SET_MCE') kvm.ioctl(fd, REQUEST.KVM_X86_SETUP_MCE, machine.struct(8, 'u64@0=10'))
  if (name.endsWith('UNREG_REGION')) machine.ioctl('KVM_MEMORY_ENCRYPT_REG_REGION', bytes)
  const result = kvm.ioctl(fd, request, bytes)
  if (name === 'KVM_CREATE_GUEST_MEMFD' && result >= 0) kvm.close(result) // it holds the VM
  return result
}

/** Kills the VM: by moving its context to an heir where that is possible, else as KVM_BUG_ON would. */
function kill(machine: RawMachine): number {
  const { kvm, type } = machine
  if (type !== 'sev' && type !== 'sev-legacy') {
    ;(kvm.kernel.file(machine.vm) as unknown as { kill(why: string): void }).kill('the test')
    return -1
  }
  const heir = kvm.ioctl(machine.system, REQUEST.KVM_CREATE_VM, TYPE_NUMBER[type])
  assert.is(machine.ioctl('KVM_ENABLE_CAP', machine.struct(104, `u32@0=206 u64@8=${machine.vm}`), heir), 0, kvm.lastRefusal()?.reason)
  return heir
}

function bring(
  kvm: Kvm,
  type: VmType,
  phase: Phase,
  name: string,
  shared: { memory: RawMachine['memory']; scratch: RawMachine['scratch'] },
): RawMachine {
  const machine = new RawMachine(kvm, type, shared)
  try {
    steps(machine, type, phase, name)
    return machine
  } catch (error) {
    machine.close()
    throw error
  }
}

function steps(machine: RawMachine, type: VmType, phase: Phase, name: string): void {
  if (phase !== 'created') machine.do('init')
  for (const step of needs(name)) {
    if (type === 'tdx' && step === 'pit') continue
    if (type === 'tdx' && step === 'irqchip') {
      if (phase === 'created') machine.do('split')
    } else machine.do(step)
  }
  if (phase === 'vcpus' || phase === 'sealed' || phase === 'dead') {
    machine.do('vcpu')
    if (phase !== 'dead') machine.do('cpuid')
  }
  if (phase === 'sealed') machine.do('seal')
}

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`every row for ${type}, in every phase`, async () => {
    const kvm = await openKvm({ memory: 512 << 20, host: hostOf(type) })
    const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
    const column = POLICY_TYPES.indexOf(type)
    const wrong: string[] = []
    const gaps = new Set<string>()
    const walked: Record<Phase, number> = { created: 0, initialised: 0, vcpus: 0, sealed: 0, dead: 0 }
    for (const phase of PHASES) {
      for (const entry of policyTable().values()) {
        const name = entry.ioctl.split(/[@ ]/)[0] as string
        if (ELSEWHERE.has(entry.ioctl) || entry.ioctl.startsWith('any ')) continue
        const onVcpu = entry.scope === 'vcpu'
        if (onVcpu && (phase === 'created' || phase === 'initialised')) continue
        let machine: RawMachine
        let heir = -1
        // The reason must be this step's own.
        kvm.kernel.refusal = null
        try {
          machine = bring(kvm, type, phase, name, shared)
        } catch (error) {
          if (!(error instanceof NotReached)) throw error
          if (kvm.lastRefusal()?.unimplemented || /TDX_INIT_VM|SNP/.test(error.message)) gaps.add(`${phase} is not reached`)
          else wrong.push(`${entry.ioctl} ${phase}: ${error.message}`)
          continue
        }
        // An ordinary VM that will take a legacy init command is an ordinary VM until then.
        const legacy = type === 'sev-legacy' || type === 'sev-es-legacy'
        const rule = entry.rules[legacy && phase === 'created' ? 0 : column]?.[phase === 'sealed' ? 1 : 0]
        if (rule === undefined) throw new RangeError(entry.ioctl)
        if (phase === 'dead') {
          if (entry.scope === 'system') {
            machine.close()
            continue
          }
          heir = kill(machine)
        }
        let want = phase === 'dead' ? 'EIO' : (byPhase(name, type, phase) ?? (rule.result === 'error' ? (rule.errno ?? '') : rule.result))
        if (entry.ioctl === 'KVM_SET_TSC_KHZ@vcpu' && phase !== 'dead') want = rule.result === 'error' ? (rule.errno ?? '') : 'ok'
        if (want === 'special') want = 'ok'
        if (machine.vcpu < 0 && onVcpu) {
          machine.close()
          continue
        }
        const result = call(machine, entry)
        const good = want in ERRNO ? result === -ERRNO[want as keyof typeof ERRNO] : result >= 0
        if (good) walked[phase]++
        else if (result < 0 && kvm.lastRefusal()?.unimplemented) gaps.add(entry.ioctl)
        else wrong.push(`${entry.ioctl} ${phase}: table ${want}, got ${result} (${kvm.lastRefusal()?.reason})`)
        machine.close()
        if (heir >= 0) kvm.close(heir)
      }
    }
    assert.equal(wrong, [])
    assert.equal(kvm.kernel.internalErrors, [])
    if (gaps.size > 0) process.stdout.write(`  not implemented yet for ${type}: ${[...gaps].join(', ')}\n`)
    process.stdout.write(`  ${type}: ${PHASES.map((p) => `${p} ${walked[p]}`).join(', ')}\n`)
    assert.ok(walked.created > 30)
    assert.ok(walked.vcpus > 80 && walked.sealed > 80 && walked.dead > 75, JSON.stringify(walked))
  })
}

test.run()
