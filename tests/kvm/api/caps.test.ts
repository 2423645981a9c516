/** KVM_CHECK_EXTENSION and KVM_ENABLE_CAP: every capability of x86 in the order of uapi/linux/kvm.h, by value and by errno. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CAP, ERRNO, type Kvm, openKvm, type VmType } from 'cloister'
import { RawMachine } from '../raw-machine.ts'
import { RawGuest } from './raw-guest.ts'

/** Answers of an ordinary VM of 7.3 on the AMD host that differ from 1; the rest of CAP answers 1. */
const VALUES: Readonly<Partial<Record<keyof typeof CAP, number>>> = {
  KVM_CAP_NR_VCPUS: 4,
  KVM_CAP_NR_MEMSLOTS: 32764,
  KVM_CAP_COALESCED_MMIO: 2,
  KVM_CAP_IRQ_ROUTING: 4096,
  KVM_CAP_MCE: 32,
  KVM_CAP_ADJUST_CLOCK: 14,
  KVM_CAP_MAX_VCPUS: 1024,
  KVM_CAP_SYNC_REGS: 7,
  KVM_CAP_MULTI_ADDRESS_SPACE: 2,
  KVM_CAP_MAX_VCPU_ID: 4096,
  KVM_CAP_X2APIC_API: 11,
  KVM_CAP_X86_DISABLE_EXITS: 0x1f,
  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 3,
  KVM_CAP_DIRTY_LOG_RING: 0x100000,
  KVM_CAP_DIRTY_LOG_RING_ACQ_REL: 0x100000,
  KVM_CAP_SET_GUEST_DEBUG2: 0x1f0003,
  KVM_CAP_EXIT_HYPERCALL: 0x1000,
  KVM_CAP_XSAVE2: 4096,
  KVM_CAP_DISABLE_QUIRKS2: 0xfff,
  KVM_CAP_MEMORY_ATTRIBUTES: 0,
  KVM_CAP_GUEST_MEMFD_FLAGS: 3,
}
/** Not of x86, gone, or of a kernel configuration and a processor that are not modelled (host/kvm/caps.ts names them). */
const ABSENT =
  /PV_MMU|IOMMU|ASSIGN_DEV_IRQ|XEN_HVM|HYPERV|INTR_SHADOW|PCI_2_3|VM_ATTRIBUTES|GUEST_DEBUG_HW|MSI_DEVID|PROTECT$|SMALLER_MAXPHYADDR|BUS_LOCK|SGX|PTP_KVM|VM_GPA_BITS|PMU_CAPABILITY|NOTIFY_VMEXIT|COUNTER_OFFSET|RING_WITH_BITMAP|NESTED_STATE/

test('every capability of an ordinary VM has its value', async () => {
  const guest = await RawGuest.create([0xf4])
  for (const [name, number] of Object.entries(CAP)) {
    if (name === 'KVM_CAP_VM_TYPES') continue
    const expected = ABSENT.test(name) ? 0 : (VALUES[name as keyof typeof CAP] ?? 1)
    assert.is(guest.cap(number), expected, name)
  }
  assert.is(guest.cap(9999), 0)
})

const types: readonly (readonly [VmType, number[]])[] = [
  ['default', [1, 7, 1, 1]],
  ['sev-legacy', [1, 7, 1, 1]],
  ['sev-es-legacy', [0, 7, 1, 1]],
  ['sev', [1, 7, 1, 1]],
  ['sev-es', [0, 0, 0, 1]],
  ['snp', [0, 0, 0, 1]],
  ['tdx', [0, 0, 0, 1]],
]

test('the answers that depend on the VM type', async () => {
  const hosts: Record<string, Kvm> = { amd: await openKvm({ host: 'amd' }), intel: await openKvm({ host: 'intel' }) }
  for (const [type, expected] of types) {
    const machine = new RawMachine(hosts[type === 'tdx' ? 'intel' : 'amd'] as Kvm, type)
    machine.do('init')
    const caps = ['KVM_CAP_X86_SMM', 'KVM_CAP_SYNC_REGS', 'KVM_CAP_READONLY_MEM', 'KVM_CAP_VAPIC'] as const
    assert.equal(
      caps.map((cap) => machine.ioctl('KVM_CHECK_EXTENSION', CAP[cap])),
      expected,
      type,
    )
    machine.close()
  }
})

type Row = readonly [cap: keyof typeof CAP, arg: number | bigint, expect: 0 | keyof typeof ERRNO, setup?: 'irqchip' | 'split' | 'vcpu']
/** In the order of kvm_vm_ioctl_enable_cap; a new VM for every row. */
const ROWS: readonly Row[] = [
  ['KVM_CAP_DISABLE_QUIRKS2', 0xfff, 0],
  ['KVM_CAP_DISABLE_QUIRKS2', 0x1000, 'EINVAL'],
  ['KVM_CAP_DISABLE_QUIRKS', 0xffff_ffff, 0],
  ['KVM_CAP_SPLIT_IRQCHIP', 24, 0],
  ['KVM_CAP_SPLIT_IRQCHIP', 4097, 'EINVAL'],
  ['KVM_CAP_SPLIT_IRQCHIP', 24, 'EEXIST', 'irqchip'],
  ['KVM_CAP_SPLIT_IRQCHIP', 24, 'EEXIST', 'vcpu'],
  ['KVM_CAP_X2APIC_API', 3, 0],
  ['KVM_CAP_X2APIC_API', 16, 'EINVAL'],
  ['KVM_CAP_X2APIC_API', 12, 'EINVAL', 'split'],
  ['KVM_CAP_X2APIC_API', 4, 'EINVAL', 'irqchip'],
  ['KVM_CAP_X2APIC_API', 4, 0, 'split'],
  ['KVM_CAP_X2APIC_API', 8, 0, 'irqchip'],
  ['KVM_CAP_X86_DISABLE_EXITS', 0x1f, 0],
  ['KVM_CAP_X86_DISABLE_EXITS', 0x20, 'EINVAL'],
  ['KVM_CAP_X86_DISABLE_EXITS', 2, 'EINVAL', 'vcpu'],
  ['KVM_CAP_MSR_PLATFORM_INFO', 2, 0],
  ['KVM_CAP_EXCEPTION_PAYLOAD', 2, 0],
  ['KVM_CAP_X86_TRIPLE_FAULT_EVENT', 1, 0],
  ['KVM_CAP_X86_USER_SPACE_MSR', 7, 0],
  ['KVM_CAP_X86_USER_SPACE_MSR', 8, 'EINVAL'],
  ['KVM_CAP_X86_BUS_LOCK_EXIT', 2, 0],
  ['KVM_CAP_X86_BUS_LOCK_EXIT', 3, 'EINVAL'],
  ['KVM_CAP_X86_BUS_LOCK_EXIT', 4, 'EINVAL'],
  ['KVM_CAP_SGX_ATTRIBUTE', 0, 'EINVAL'],
  ['KVM_CAP_EXIT_HYPERCALL', 0x1000, 0],
  ['KVM_CAP_EXIT_HYPERCALL', 1, 'EINVAL'],
  ['KVM_CAP_EXIT_ON_EMULATION_FAILURE', 1, 0],
  ['KVM_CAP_EXIT_ON_EMULATION_FAILURE', 2, 'EINVAL'],
  ['KVM_CAP_PMU_CAPABILITY', 1, 'EINVAL'],
  ['KVM_CAP_MAX_VCPU_ID', 4097, 'EINVAL'],
  ['KVM_CAP_MAX_VCPU_ID', 4096, 0],
  ['KVM_CAP_MAX_VCPU_ID', 16, 'EINVAL', 'vcpu'],
  ['KVM_CAP_X86_NOTIFY_VMEXIT', 1, 'EINVAL'],
  ['KVM_CAP_VM_DISABLE_NX_HUGE_PAGES', 0, 0],
  ['KVM_CAP_VM_DISABLE_NX_HUGE_PAGES', 1, 'EINVAL'],
  ['KVM_CAP_VM_DISABLE_NX_HUGE_PAGES', 0, 'EINVAL', 'vcpu'],
  ['KVM_CAP_X86_APIC_BUS_CYCLES_NS', 0, 'EINVAL', 'irqchip'],
  ['KVM_CAP_X86_APIC_BUS_CYCLES_NS', 1n << 31n, 'EINVAL', 'irqchip'],
  ['KVM_CAP_X86_APIC_BUS_CYCLES_NS', 40, 'ENXIO'],
  ['KVM_CAP_X86_APIC_BUS_CYCLES_NS', 40, 0, 'irqchip'],
  ['KVM_CAP_HALT_POLL', 200000, 0],
  ['KVM_CAP_HALT_POLL', 1n << 32n, 'EINVAL'],
  ['KVM_CAP_HYPERV_SYNIC', 0, 'EINVAL'],
  ['KVM_CAP_IRQCHIP', 0, 'EINVAL'],
]

test('KVM_ENABLE_CAP of a VM: values, orders and flags', async () => {
  const kvm = await openKvm()
  for (const [cap, arg, expect, setup] of ROWS) {
    const machine = new RawMachine(kvm, 'default')
    if (setup !== undefined) machine.do(setup)
    const bytes = machine.struct(104, `u32@0=${CAP[cap]} u64@8=${arg}`)
    const where = `${cap} ${arg} ${setup ?? ''}`
    assert.is(machine.ioctl('KVM_ENABLE_CAP', bytes), expect === 0 ? 0 : -ERRNO[expect], where)
    bytes[4] = 1
    assert.is(machine.ioctl('KVM_ENABLE_CAP', bytes), -ERRNO.EINVAL, `${where} with flags`)
    machine.close()
  }
})

test('KVM_CAP_MAX_VCPU_ID and KVM_SET_BOOT_CPU_ID bound each other (max_vcpuid_cap, set_boot_cpu_id)', async () => {
  const kvm = await openKvm()
  const machine = new RawMachine(kvm, 'default')
  const limit = (n: number): number => machine.ioctl('KVM_ENABLE_CAP', machine.struct(104, `u32@0=${CAP.KVM_CAP_MAX_VCPU_ID} u64@8=${n}`))
  assert.is(machine.ioctl('KVM_SET_BOOT_CPU_ID', 16), 0)
  assert.is(limit(15), -ERRNO.EINVAL)
  assert.is(machine.ioctl('KVM_SET_BOOT_CPU_ID', 0), 0)
  assert.is(limit(16), 0)
  assert.is(limit(16), 0, 'again the same')
  assert.is(limit(17), -ERRNO.EINVAL)
  assert.is(machine.ioctl('KVM_SET_BOOT_CPU_ID', 17), -ERRNO.EINVAL)
  assert.is(machine.ioctl('KVM_CREATE_VCPU', 16), -ERRNO.EINVAL)
  assert.ok(machine.ioctl('KVM_CREATE_VCPU', 15) >= 0)
  assert.is(machine.ioctl('KVM_SET_BOOT_CPU_ID', 1), -ERRNO.EBUSY)
})

test('6.12 answers as 6.12', async () => {
  const machine = new RawMachine(await openKvm({ linux: '6.12' }), 'default')
  const answer = (cap: keyof typeof CAP): number => machine.ioctl('KVM_CHECK_EXTENSION', CAP[cap])
  assert.equal(
    (
      ['KVM_CAP_X2APIC_API', 'KVM_CAP_X86_DISABLE_EXITS', 'KVM_CAP_DISABLE_QUIRKS2', 'KVM_CAP_ONE_REG', 'KVM_CAP_NESTED_STATE'] as const
    ).map(answer),
    [3, 0xf, 0x7ff, 0, 4224],
  )
})

test.run()
