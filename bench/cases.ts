/** What is measured. Each case says how many units one call of its function does. */
import { guestFile, loopImage, loops } from './loops.ts'
import { type BenchGuest, startGuest } from './guest.ts'
import { memoryCases } from './memory.ts'

export interface Case {
  name: string
  unit: string
  note: string
  /** Units per call. */
  units: number
  start(): Promise<{ step(): void; close(): void /** A line of its own, after the measurement. */; compare?(): string }>
}

const SLICE = 1_000_000
const KVM_CHECK_EXTENSION = 0xae03
const KVM_GET_MP_STATE = 0x8004ae98
const KVM_MEMORY_ENCRYPT_OP = 0xc008aeba

function endless(image: () => Uint8Array, options?: Parameters<typeof startGuest>[1]): Case['start'] {
  return async () => {
    const guest = await startGuest(image(), options)
    const expect = -4 // EINTR: the budget
    return {
      step: () => {
        const result = guest.vcpu.runRaw(SLICE)
        if (result !== expect) throw new Error(`unexpected exit ${guest.vcpu.runView.getUint32(8, true)} (KVM_RUN ${result})`)
      },
      close: guest.close,
    }
  }
}

/** The image of a guest whose loop is chosen by the word at offset 16. */
function chosen(file: string, which: number): () => Uint8Array {
  return () => {
    const image = guestFile(file)
    new DataView(image.buffer).setBigUint64(16, BigInt(which), true)
    return image
  }
}

function exits(image: () => Uint8Array, options?: Parameters<typeof startGuest>[1]): Case['start'] {
  return async () => {
    const guest = await startGuest(image(), options)
    return {
      step: () => {
        const result = guest.vcpu.runRaw(SLICE)
        if (result !== 0) throw new Error(`KVM_RUN returned ${result}`)
      },
      close: guest.close,
    }
  }
}

function onGuest(prepare: (guest: BenchGuest) => () => void, options?: Parameters<typeof startGuest>[1]): Case['start'] {
  return async () => {
    const guest = await startGuest(guestFile('system.bin'), options)
    return { step: prepare(guest), close: guest.close }
  }
}

export const cases: readonly Case[] = [
  ...loops.map(
    ({ name }, which): Case => ({
      name: `loop-${name}`,
      unit: 'instructions',
      note: 'bare integer loop in long mode (bench/guests/loops.S)',
      units: SLICE,
      start: endless(() => loopImage(which, 1e12)),
    }),
  ),
  {
    name: 'tlb-miss',
    unit: 'misses',
    note: '16384 pages, 4 instructions a miss',
    units: SLICE / 4,
    start: endless(chosen('system.bin', 0)),
  },
  {
    name: 'tlb-flush',
    unit: 'flushes',
    note: 'MOV CR3 and one load, 4 instructions',
    units: SLICE / 4,
    start: endless(chosen('system.bin', 2)),
  },
  { name: 'cpuid', unit: 'instructions', note: 'CPUID, answered in the core', units: SLICE / 3, start: endless(chosen('system.bin', 4)) },
  {
    name: 'exit',
    unit: 'exits',
    note: 'KVM_EXIT_IO: OUT and back by the hot form of run',
    units: 1,
    start: exits(chosen('system.bin', 1)),
  },
  {
    name: 'ghcb-msr',
    unit: 'vmgexits',
    note: 'GHCB MSR protocol, answered in the core, 6 instructions',
    units: SLICE / 6,
    start: endless(chosen('ghcb.bin', 0), { type: 'sev-es' }),
  },
  {
    name: 'ghcb-page',
    unit: 'vmgexits',
    note: 'GHCB page with CPUID, answered in the core, 11 instructions',
    units: SLICE / 11,
    start: endless(chosen('ghcb.bin', 1), { type: 'sev-es' }),
  },
  {
    name: 'ghcb-exit',
    unit: 'exits',
    note: 'GHCB page with OUT, answered by userspace',
    units: 1,
    start: exits(chosen('ghcb.bin', 2), { type: 'sev-es' }),
  },
  {
    name: 'view-conversion',
    unit: 'conversions',
    note: 'one page by turns through a private and a shared mapping: 128 stores each (388 instructions)',
    units: SLICE / 388,
    start: endless(chosen('system.bin', 3), { type: 'sev' }),
  },
  {
    name: 'launch-update',
    unit: 'pages',
    note: 'LAUNCH_UPDATE_DATA of 1 MiB: encrypt and measure',
    units: 256,
    start: async () => {
      const { openKvm } = await import('cloister')
      const kvm = await openKvm({ host: 'amd' })
      const vm = kvm.createVm('sev')
      const memory = kvm.mmap(-1, 0x100000)
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x100000, userspaceAddr: memory.address })
      vm.sevInit()
      vm.launchStart({ policy: 0 })
      return { step: () => vm.launchUpdateData(memory.address, 0x100000), close: () => kvm[Symbol.dispose]() }
    },
  },
  {
    name: 'ioctl',
    unit: 'calls',
    note: 'KVM_CHECK_EXTENSION on a VM: dispatch and policy',
    units: 1,
    start: onGuest(
      ({ kvm, vm }) =>
        () =>
          void kvm.ioctl(vm.fd, KVM_CHECK_EXTENSION, 0),
    ),
  },
  {
    name: 'ioctl-struct',
    unit: 'calls',
    note: 'KVM_GET_MP_STATE with its struct',
    units: 1,
    start: onGuest(({ kvm, vcpu }) => {
      const state = new Uint8Array(4)
      return () => void kvm.ioctl(vcpu.fd, KVM_GET_MP_STATE, state)
    }),
  },
  {
    name: 'ioctl-refused',
    unit: 'calls',
    note: 'KVM_MEMORY_ENCRYPT_OP on an ordinary VM: the reason is kept',
    units: 1,
    start: onGuest(({ kvm, vm }) => {
      const command = new Uint8Array(24)
      return () => void kvm.ioctl(vm.fd, KVM_MEMORY_ENCRYPT_OP, command)
    }),
  },
  ...memoryCases,
]
