/**
 * -EFAULT for every request with a payload, for every VM type, in every phase: a pointer to nothing, one whose struct runs
 * over the end of a mapping by one byte, an array that is one byte short, and tables that run over the end. What the kernel
 * asks before it touches the memory is data (spec/kvm-pointers.ts). Afterwards the VM still answers.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type Kvm, openKvm, policyTable, POLICY_TYPES, type PolicyEntry, REQUEST, type VmType } from 'cloister'
import { ASKED_FIRST, type PointerPhase, TAILS } from '../../host/generated/kvm-pointers.ts'
import { hostOf, RawMachine } from './raw-machine.ts'

type Name = keyof typeof REQUEST
const PHASES: readonly PointerPhase[] = ['created', 'initialised', 'vcpus', 'sealed']
const WILD = 0x10000

const nameOf = (entry: PolicyEntry): Name => entry.ioctl.split(/[@ ]/)[0] as Name
/** The request code's size is that of a pointer where the struct has 24 bytes. */
const sizeOf = (name: Name): number => (name === 'KVM_MEMORY_ENCRYPT_OP' ? 24 : (REQUEST[name] >>> 16) & 0x3fff)

function bring(kvm: Kvm, type: VmType, phase: PointerPhase, irqchip: boolean): RawMachine {
  const machine = new RawMachine(kvm, type)
  if (phase !== 'created') machine.do('init')
  if (irqchip) for (const step of ['irqchip', 'pit']) machine.do(step)
  if (phase === 'vcpus' || phase === 'sealed') for (const step of ['vcpu', 'cpuid']) machine.do(step)
  if (phase === 'sealed') machine.do('seal')
  return machine
}

function errnoName(result: number): string {
  return Object.entries(ERRNO).find(([, code]) => code === -result)?.[0] ?? String(result)
}

for (const type of POLICY_TYPES as readonly VmType[]) {
  test(`pointers to nothing, ${type}`, async () => {
    const kvm = await openKvm({ memory: 256 << 20, host: hostOf(type) })
    const used = new Set<object>()
    const wrong: string[] = []
    let asked = 0
    for (const phase of PHASES) {
      for (const irqchip of type === 'tdx' ? [false] : [false, true]) {
        const machine = bring(kvm, type, phase, irqchip)
        const { memory } = machine
        const end = memory.address + BigInt(memory.length)
        const fdOf = (entry: PolicyEntry): number =>
          entry.scope === 'system' ? machine.system : entry.scope === 'vcpu' ? machine.vcpu : machine.vm
        for (const entry of policyTable().values()) {
          const name = nameOf(entry)
          const fd = fdOf(entry)
          if (!(name in REQUEST) || entry.request === null || sizeOf(name) === 0 || fd < 0) continue
          const first = ASKED_FIRST.find(
            (a) =>
              a.ioctls.includes(entry.ioctl) &&
              a.types.includes(type) &&
              a.phases.includes(phase) &&
              (a.withoutIrqchip !== true || !irqchip),
          )
          if (first !== undefined) used.add(first)
          const want = first?.errno ?? 'EFAULT'
          const size = sizeOf(name)
          for (const [what, argument] of [
            ['wild', WILD],
            ['across the end', end - BigInt(size - 1)],
            ['all ones', 0xffffffffffffffffn],
            ['a short array', new Uint8Array(size - 1)],
          ] as const) {
            const result = kvm.ioctl(fd, REQUEST[name], argument)
            asked++
            if (result !== -ERRNO[want as 'EFAULT'])
              wrong.push(
                `${entry.ioctl} ${phase}${irqchip ? ' irqchip' : ''} ${what}: ${errnoName(result)} instead of ${want} (${kvm.lastRefusal()?.reason})`,
              )
          }
        }
        for (const [name, header] of TAILS) {
          const entry = policyTable().get(name) as PolicyEntry
          const fd = fdOf(entry)
          if (fd < 0 || (name === 'KVM_SET_GSI_ROUTING' && !irqchip)) continue
          const size = sizeOf(name as Name)
          const at = memory.length - size
          memory.write(at, machine.struct(size, header))
          const result = kvm.ioctl(fd, REQUEST[name as Name], memory.address + BigInt(at))
          // GET_CPUID2 of a TD and the others have a table to copy out since KVM_SET_CPUID2.
          if (result !== -ERRNO.EFAULT) wrong.push(`${name} ${phase}: a table over the end: ${errnoName(result)}`)
        }
        assert.ok(machine.ioctl('KVM_CHECK_EXTENSION', 235) > 0)
        if (machine.vcpu >= 0) assert.is(machine.ioctl('KVM_GET_MP_STATE', new Uint8Array(4), machine.vcpu), 0)
        machine.close()
      }
    }
    assert.is(wrong.join('\n'), '')
    assert.equal(kvm.kernel.internalErrors, [])
    assert.equal(
      ASKED_FIRST.filter((a) => a.types.includes(type) && !used.has(a)),
      [],
    )
    assert.ok(asked > 700, String(asked))
  })
}

test('an ordinary VM of the Intel host has no command to point at', async () => {
  const kvm = await openKvm({ memory: 64 << 20, host: 'intel' })
  const machine = new RawMachine(kvm, 'default')
  machine.do('vcpu')
  // vt_mem_enc_ioctl, vt_vcpu_mem_enc_ioctl: not a TD, and nothing is copied.
  assert.is(machine.ioctl('KVM_MEMORY_ENCRYPT_OP', WILD), -ERRNO.ENOTTY)
  assert.is(machine.ioctl('KVM_MEMORY_ENCRYPT_OP', WILD, machine.vcpu), -ERRNO.EINVAL)
})

test.run()
