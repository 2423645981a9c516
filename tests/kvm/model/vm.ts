/** The model's rules for VM file descriptors, but for the launch commands (launch.ts). */
import { CAP } from 'cloister'
import { launchCommand } from './launch.ts'
import { type Ask, type ModelVcpu, type ModelVm, no, OK, served, TOP, u32, u64, UNKNOWN, type Verdict } from './state.ts'

const MAX_IDS = 4096
const ROUTES = 4096
const SLOTS = 32764

function createVcpu(vm: ModelVm, { value: id }: Ask): Verdict {
  if (!Number.isInteger(id)) return UNKNOWN
  if (id < 0 || id >= MAX_IDS || vm.order.length >= (vm.type === 'tdx' ? 4 : 1024)) return no('EINVAL')
  if (vm.vcpus.has(id)) return no('EEXIST')
  if (vm.maxIds !== 0 && id >= vm.maxIds) return no('EINVAL')
  // kvm_arch_vcpu_precreate has settled the number of ids by now.
  const settle = (): void => {
    vm.maxIds ||= MAX_IDS
  }
  if (vm.type === 'tdx' && vm.td !== 'initialized') return { want: 'EIO', failed: settle }
  if (vm.type === 'tdx' && vm.chip !== 'split') return { want: 'EINVAL', failed: settle }
  return served(() => {
    const td = vm.type === 'tdx'
    // The boot processor runs at once; without a local APIC in the kernel all do.
    const runnable = vm.chip === 'none' || id === vm.bsp
    const vcpu: ModelVcpu = {
      id,
      sealed: td,
      confidential: td,
      debug: false,
      exception: false,
      cpuid: null,
      mpState: td ? null : runnable ? 0 : 1,
      regs: null,
      debugregs: null,
      tscKhz: vm.tscKhz,
      banks: 0,
      tdReady: false,
      ran: false,
      vectorWaits: false,
      volatile: false,
      shutting: false,
    }
    vm.maxIds ||= MAX_IDS
    vm.vcpus.set(id, vcpu)
    vm.order.push(vcpu)
  })
}

function setRegion(vm: ModelVm, { name, bytes, read, kind }: Ask): Verdict {
  const b = bytes as Uint8Array
  const two = name.endsWith('2')
  const [slot, flags] = [u32(b, 0), u32(b, 4)]
  const [gpa, size, address] = [u64(b, 8), u64(b, 16), u64(b, 24)]
  const gmem = two && (flags & 4) !== 0
  let valid = gmem ? 4 : 1 | (two ? 4 : 0)
  if (!vm.protectedState && !gmem) valid |= 2
  if ((flags & ~valid) !== 0) return no('EINVAL')
  if (((size | gpa | address) & 0xfffn) !== 0n || address + size > 1n << 47n) return no('EINVAL')
  const offset = gmem ? u64(b, 32) : 0n
  if ((offset & 0xfffn) !== 0n || offset + size >= TOP) return no('EINVAL')
  if (slot >>> 16 >= vm.spaces || (slot & 0xffff) >= SLOTS || gpa + size >= TOP || size >> 12n > (1n << 31n) - 1n) return no('EINVAL')
  const old = vm.slots.get(slot)
  if (size === 0n)
    return old === undefined
      ? no('EINVAL')
      : served(() => {
          vm.gmems.get(old.gmem)?.bound.delete(slot)
          vm.slots.delete(slot)
        })
  if (old !== undefined) {
    if (gmem || (old.flags & 4) !== 0 || old.address !== address || old.size !== size || ((old.flags ^ flags) & 2) !== 0)
      return no('EINVAL')
    if (old.gpa === gpa && old.flags === flags) return OK
  }
  if (old === undefined || old.gpa !== gpa)
    for (const [other, s] of vm.slots)
      if (other !== slot && other >>> 16 === slot >>> 16 && s.gpa < gpa + size && gpa < s.gpa + s.size) return no('EEXIST')
  const fd = gmem ? u32(b, 40) | 0 : -1
  if (gmem) {
    if (kind(fd) === null) return no('EBADF')
    const file = vm.gmems.get(fd)
    if (file === undefined || offset + size > file.size) return no('EINVAL')
    for (const user of file.bound) {
      const s = vm.slots.get(user)
      if (s && s.offset < offset + size && offset < s.offset + s.size) return no('EEXIST')
    }
  }
  // kvm_mmu_max_gfn: the host's physical addresses, 48 bits on the AMD one, 52 on the Intel one.
  if ((old === undefined || old.gpa !== gpa) && gpa + size > 1n << (vm.type === 'tdx' ? 52n : 48n)) return no('EINVAL')
  // The contract: a pointer that is no pointer is -EFAULT; memory of a slot must be wholly mapped unless guest_memfd stands in.
  if (read(address, Number(size)) === null && !gmem) return no('EFAULT')
  return served(() => {
    vm.slots.set(slot, { gpa, size, flags, address, gmem: fd, offset })
    if (gmem) vm.gmems.get(fd)?.bound.add(slot)
  })
}

function setAttributes(vm: ModelVm, { bytes }: Ask): Verdict {
  const b = bytes as Uint8Array
  const [address, size, attributes, flags] = [u64(b, 0), u64(b, 8), u64(b, 16), u64(b, 24)]
  if (flags !== 0n || (attributes & ~(vm.privateMemory ? 8n : 0n)) !== 0n) return no('EINVAL')
  if (size === 0n || address + size >= TOP || ((address | size) & 0xfffn) !== 0n) return no('EINVAL')
  // A huge range may be more than the machine has.
  if (size > 1n << 24n) return UNKNOWN
  return served(() => {
    for (let frame = address >> 12n; frame < (address + size) >> 12n; frame++) {
      if (attributes !== 0n) vm.privateFrames.add(frame)
      else vm.privateFrames.delete(frame)
    }
  })
}

function routing(vm: ModelVm, { bytes }: Ask): Verdict {
  const b = bytes as Uint8Array
  const count = u32(b, 0)
  if (vm.chip === 'none' || count > ROUTES || u32(b, 4) !== 0) return no('EINVAL')
  if (b.length < 8 + count * 48) return no('EFAULT')
  const seen = new Map<number, number[]>()
  for (let i = 0; i < count; i++) if (u32(b, 8 + i * 48) >= ROUTES) return no('EINVAL')
  for (let i = 0; i < count; i++) {
    const at = 8 + i * 48
    const [gsi, type, flags, chip, pin] = [u32(b, at), u32(b, at + 4), u32(b, at + 8), u32(b, at + 16), u32(b, at + 20)]
    if (type > 3) return UNKNOWN
    if ((flags & ~(type === 2 ? 1 : 0)) !== 0) return no('EINVAL')
    const others = seen.get(gsi) ?? []
    if (others.some((other) => type !== 1 || other === -1 || other === chip)) return no('EINVAL')
    if (type === 1) {
      if (vm.chip === 'split' || chip > 2 || pin >= (chip === 2 ? 24 : 8)) return no('EINVAL')
    } else if (type !== 2 || (vm.wideIds && (pin & 0xff) !== 0)) return no('EINVAL')
    seen.set(gsi, [...others, type === 1 ? chip : -1])
  }
  return OK
}

function dirtyLog(vm: ModelVm, { name, bytes, read }: Ask): Verdict {
  const b = bytes as Uint8Array
  if (vm.ring) return UNKNOWN
  const number = u32(b, 0)
  const clear = name === 'KVM_CLEAR_DIRTY_LOG'
  if (number >>> 16 >= vm.spaces || (number & 0xffff) >= SLOTS) return no('EINVAL')
  if (clear && (u64(b, 8) & 63n) !== 0n) return no('EINVAL')
  const slot = vm.slots.get(number)
  if (slot === undefined || (slot.flags & 1) === 0) return no('ENOENT')
  const pages = slot.size >> 12n
  if (!clear) return read(u64(b, 8), Number(((pages + 63n) / 64n) * 8n)) === null ? no('EFAULT') : OK
  const [count, first] = [BigInt(u32(b, 4)), u64(b, 8)]
  if (first > pages || count > pages - first || (count < pages - first && (count & 63n) !== 0n)) return no('EINVAL')
  return read(u64(b, 16), Number(((count + 63n) / 64n) * 8n)) === null ? no('EFAULT') : OK
}

function enableCap(vm: ModelVm, { bytes }: Ask): Verdict {
  const b = bytes as Uint8Array
  const [cap, value] = [u32(b, 0), u64(b, 8)]
  if (cap === CAP.KVM_CAP_DIRTY_LOG_RING || cap === CAP.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
    return {
      want: null,
      effect: () => {
        vm.ring = true
      },
    }
  if (u32(b, 4) !== 0) return no('EINVAL')
  switch (cap) {
    case CAP.KVM_CAP_SPLIT_IRQCHIP:
      if (value > BigInt(ROUTES)) return no('EINVAL')
      if (vm.chip !== 'none' || vm.order.length > 0) return no('EEXIST')
      return served(() => {
        vm.chip = 'split'
      })
    case CAP.KVM_CAP_EXIT_HYPERCALL:
      return (value & ~0x1000n) !== 0n ? no('EINVAL') : OK
    case CAP.KVM_CAP_X86_USER_SPACE_MSR:
      return (value & ~7n) !== 0n ? no('EINVAL') : OK
    case CAP.KVM_CAP_EXCEPTION_PAYLOAD:
      return served(() => {
        vm.payload = value !== 0n
      })
    case CAP.KVM_CAP_X86_TRIPLE_FAULT_EVENT:
      return served(() => {
        vm.tripleFault = value !== 0n
      })
    case CAP.KVM_CAP_MAX_VCPU_ID:
      if (value > BigInt(MAX_IDS) || BigInt(vm.bsp) > value || (vm.maxIds !== 0 && BigInt(vm.maxIds) !== value)) return no('EINVAL')
      return served(() => {
        vm.maxIds = Number(value)
      })
    case CAP.KVM_CAP_X2APIC_API:
      return {
        want: (value & ~15n) !== 0n || (value & 12n) === 12n ? 'EINVAL' : null,
        effect: () => {
          vm.wideIds ||= (value & 1n) !== 0n
        },
      }
    case CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
      return {
        want: null,
        effect: () => {
          vm.mirror = true
          vm.init = true
        },
      }
    default:
      return UNKNOWN
  }
}

const CAPS: Readonly<Record<number, (vm: ModelVm) => number>> = {
  [CAP.KVM_CAP_X86_SMM]: (vm) => (vm.sevEs || vm.type === 'tdx' ? 0 : 1),
  [CAP.KVM_CAP_READONLY_MEM]: (vm) => (vm.protectedState ? 0 : 1),
  [CAP.KVM_CAP_SYNC_REGS]: (vm) => (vm.protectedState ? 0 : 7),
  [CAP.KVM_CAP_MEMORY_ATTRIBUTES]: (vm) => (vm.privateMemory ? 8 : 0),
  [CAP.KVM_CAP_MULTI_ADDRESS_SPACE]: (vm) => vm.spaces,
  [CAP.KVM_CAP_GUEST_MEMFD_FLAGS]: (vm) => (vm.privateMemory ? 1 : 3),
  [CAP.KVM_CAP_MAX_VCPUS]: (vm) => (vm.type === 'tdx' ? 4 : 1024),
  [CAP.KVM_CAP_EXIT_HYPERCALL]: () => 0x1000,
  [CAP.KVM_CAP_MEMORY_FAULT_INFO]: () => 1,
}

function ioeventfd(vm: ModelVm, { bytes, kind }: Ask): Verdict {
  const b = bytes as Uint8Array
  const [data, address, length, fd, flags] = [u64(b, 0), u64(b, 8), u32(b, 16), u32(b, 20) | 0, u32(b, 24)]
  const file = kind(fd)
  const bad = file === null ? no('EBADF') : file !== 'eventfd' ? no('EINVAL') : null
  if ((flags & 4) !== 0) return bad ?? UNKNOWN
  if (![0, 1, 2, 4, 8].includes(length) || address + BigInt(length) >= TOP || (flags & ~31) !== 0 || (length === 0 && (flags & 1) !== 0))
    return no('EINVAL')
  if (bad) return bad
  const bus = (flags & 2) !== 0 ? 'pio' : (flags & 8) !== 0 ? 'ccw' : 'mmio'
  const match = (flags & 1) !== 0 ? String(data) : '*'
  const key = `${bus} ${address} `
  const mine = `${key}${length} ${match}`
  const collides = [...vm.events].some((other) => {
    if (!other.startsWith(key)) return false
    const [theirs, what] = other.slice(key.length).split(' ') as [string, string]
    return theirs === '0' || length === 0 || (Number(theirs) === length && (what === '*' || match === '*' || what === match))
  })
  if (collides) return { want: vm.events.has('?') ? null : 'EEXIST' }
  return served(() => {
    vm.events.add(mine)
  })
}

function irqfd(vm: ModelVm, { bytes, kind }: Ask): Verdict {
  const b = bytes as Uint8Array
  const [fd, flags] = [u32(b, 0) | 0, u32(b, 8)]
  if ((flags & ~3) !== 0) return no('EINVAL')
  const file = kind(fd)
  const bad = file === null ? no('EBADF') : file !== 'eventfd' ? no('EINVAL') : null
  if ((flags & 1) !== 0) return bad ?? OK
  if (vm.chip === 'none' || ((flags & 2) !== 0 && vm.chip !== 'full')) return no('EINVAL')
  return bad ?? UNKNOWN
}

function msrFilter(_vm: ModelVm, { bytes, read }: Ask): Verdict {
  const b = bytes as Uint8Array
  const flags = u32(b, 0)
  if ((flags & ~1) !== 0) return no('EINVAL')
  const ranges = Array.from({ length: 16 }, (_, i) => 8 + i * 24).filter((at) => u32(b, at + 4) !== 0)
  if (ranges.length === 0) return flags === 1 ? no('EINVAL') : OK
  for (const at of ranges) {
    // kvm_add_msr_filter, range by range.
    if ((u32(b, at) & ~3) !== 0 || u32(b, at) === 0 || u32(b, at + 4) > 0x600 * 8) return UNKNOWN
    if (read(u64(b, at + 16), Math.ceil(u32(b, at + 4) / 64) * 8) === null) return UNKNOWN
  }
  return OK
}

type Rule = (vm: ModelVm, ask: Ask) => Verdict
const hasPit: Rule = (vm) => (vm.pit ? OK : no('ENXIO'))
const hasChip: Rule = (vm) => (vm.chip === 'none' ? no('ENXIO') : OK)
const fullChip: Rule = (vm, { bytes }) => (vm.chip !== 'full' ? no('ENXIO') : u32(bytes as Uint8Array, 0) > 2 ? no('EINVAL') : OK)

export const VM_RULES: Readonly<Partial<Record<Ask['name'], Rule>>> = {
  KVM_CREATE_VCPU: createVcpu,
  KVM_SET_USER_MEMORY_REGION: setRegion,
  KVM_SET_USER_MEMORY_REGION2: setRegion,
  KVM_SET_MEMORY_ATTRIBUTES: setAttributes,
  KVM_CREATE_GUEST_MEMFD: (vm, { bytes }) => {
    const b = bytes as Uint8Array
    const [size, flags] = [u64(b, 0), u64(b, 8)]
    if ((flags & ~(vm.privateMemory ? 1n : 3n)) !== 0n || size === 0n || size >> 63n !== 0n || (size & 0xfffn) !== 0n) return no('EINVAL')
    return size > 1n << 26n ? UNKNOWN : served((fd) => vm.gmems.set(fd, { size, flags, bound: new Set() }))
  },
  KVM_GET_DIRTY_LOG: dirtyLog,
  KVM_CLEAR_DIRTY_LOG: dirtyLog,
  KVM_CREATE_IRQCHIP: (vm) => {
    if (vm.chip !== 'none') return no('EEXIST')
    if (vm.type === 'tdx') return no('ENOTTY')
    if (vm.order.length > 0) return no('EINVAL')
    return served(() => {
      vm.chip = 'full'
    })
  },
  KVM_CREATE_PIT2: (vm) => {
    if (vm.pit) return no('EEXIST')
    if (vm.chip !== 'full') return no('ENOENT')
    return served(() => {
      vm.pit = true
    })
  },
  KVM_GET_PIT2: hasPit,
  KVM_SET_PIT2: hasPit,
  // An _IO request with a struct behind its argument.
  KVM_REINJECT_CONTROL: () => no('EFAULT'),
  KVM_GET_IRQCHIP: fullChip,
  KVM_SET_IRQCHIP: (vm, ask) => ({ ...fullChip(vm, ask), effect: () => (vm.volatile = true) }),
  KVM_IRQ_LINE: hasChip,
  KVM_IRQ_LINE_STATUS: hasChip,
  KVM_SET_GSI_ROUTING: routing,
  KVM_SIGNAL_MSI: (vm, { bytes }) => {
    const b = bytes as Uint8Array
    if (vm.chip === 'none' || (u32(b, 12) & ~1) !== 0 || (vm.wideIds && (u32(b, 4) & 0xff) !== 0)) return no('EINVAL')
    // Nobody has a local APIC.
    return vm.order.length === 0 ? no('EPERM') : { want: null, effect: () => (vm.volatile ||= (u32(b, 8) & 0x700) !== 0) }
  },
  KVM_IRQFD: irqfd,
  KVM_IOEVENTFD: (vm, ask) => {
    const verdict = ioeventfd(vm, ask)
    // What is deassigned is not followed.
    return (u32(ask.bytes as Uint8Array, 24) & 4) !== 0 ? { ...verdict, effect: () => vm.events.add('?') } : verdict
  },
  KVM_X86_SET_MSR_FILTER: msrFilter,
  KVM_SET_BOOT_CPU_ID: (vm, { value }) => {
    if (!Number.isInteger(value)) return UNKNOWN
    if (vm.order.length > 0) return no('EBUSY')
    if (value < 0 || value > MAX_IDS || (vm.maxIds !== 0 && value > vm.maxIds)) return no('EINVAL')
    return served(() => {
      vm.bsp = value
    })
  },
  KVM_SET_TSC_KHZ: (vm, { value }) => {
    if (!Number.isInteger(value) || value < 0 || value > 0x7fffffff) return UNKNOWN
    if (value === 0x7fffffff || vm.order.length > 0) return no('EINVAL')
    return served(() => {
      vm.tscKhz = value || 2_000_000
    })
  },
  KVM_GET_TSC_KHZ: (vm) => ({ want: 'ok', check: (result) => (result === vm.tscKhz ? null : `${result} kHz, set ${vm.tscKhz}`) }),
  KVM_SET_CLOCK: (_vm, { bytes }) => ((u32(bytes as Uint8Array, 8) & ~0xe) !== 0 ? no('EINVAL') : OK),
  KVM_GET_CLOCK: () => OK,
  KVM_SET_TSS_ADDR: (_vm, { value }) => (!Number.isInteger(value) || value < 0 ? UNKNOWN : value > 0xffffd000 ? no('EINVAL') : OK),
  KVM_SET_IDENTITY_MAP_ADDR: (vm) => (vm.order.length > 0 ? no('EINVAL') : OK),
  KVM_ENABLE_CAP: enableCap,
  KVM_CHECK_EXTENSION: (vm, { value }) => {
    const answer = CAPS[value]
    return answer === undefined
      ? UNKNOWN
      : { want: 'ok', check: (result) => (result === answer(vm) ? null : `${result}, expected ${answer(vm)}`) }
  },
  KVM_RESET_DIRTY_RINGS: (vm) => (vm.ring ? UNKNOWN : no('EINVAL')),
  KVM_GET_STATS_FD: () => OK,
  KVM_CREATE_DEVICE: (_vm, { bytes }) => (u32(bytes as Uint8Array, 0) === 4 ? UNKNOWN : no('ENODEV')),
  KVM_MEMORY_ENCRYPT_REG_REGION: (vm, { bytes, read }) => {
    const b = bytes as Uint8Array
    if (!vm.sev) return no('ENOTTY')
    if (vm.mirror) return no('EINVAL')
    const [address, size] = [u64(b, 0), u64(b, 8)]
    if (size === 0n || address + size > TOP) return no('EINVAL')
    return read(address, Number(size)) === null ? no('ENOMEM') : served(() => vm.regions.push(`${address} ${size}`))
  },
  KVM_MEMORY_ENCRYPT_UNREG_REGION: (vm, { bytes }) => {
    const b = bytes as Uint8Array
    if (!vm.sev) return no('ENOTTY')
    const at = vm.regions.indexOf(`${u64(b, 0)} ${u64(b, 8)}`)
    return at < 0 || vm.mirror ? no('EINVAL') : served(() => vm.regions.splice(at, 1))
  },
  KVM_MEMORY_ENCRYPT_OP: launchCommand,
}
