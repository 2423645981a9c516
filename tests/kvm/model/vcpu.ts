/** The model's rules for vCPU file descriptors. */
import { vcpuCommand } from './launch.ts'
import { type Ask, type ModelVcpu, type ModelVm, no, OK, served, TOP, u8, u32, u64, UNKNOWN, type Verdict } from './state.ts'

type Rule = (vm: ModelVm, vcpu: ModelVcpu, ask: Ask) => Verdict

/** Refuse iff has_protected_state and guest_state_protected. */
const refused = (vm: ModelVm, vcpu: ModelVcpu): boolean => vm.protectedState && vcpu.sealed
/** INIT may have reset what was set. */
const moving = (vm: ModelVm, vcpu: ModelVcpu): boolean => vm.volatile || vcpu.volatile
const same = (a: Uint8Array, b: Uint8Array, n: number): boolean => a.subarray(0, n).every((byte, i) => byte === b[i])

const registers =
  (set = false): Rule =>
  (vm, vcpu) =>
    refused(vm, vcpu) ? no('EINVAL') : set ? { want: null } : OK

const fpu =
  (size: number, deeper?: (ask: Ask) => Verdict): Rule =>
  (vm, vcpu, ask) => {
    if (!vcpu.confidential) return deeper?.(ask) ?? OK
    if (vm.protectedState) return no('EINVAL')
    // Legacy SEV-ES: zeros, and what is set is lost.
    return {
      want: 'ok',
      check: (_, after) => (ask.name.includes('_SET_') || after?.subarray(0, size).every((b) => b === 0) ? null : 'not zeros'),
    }
  }

/** x87, SSE, AVX, PKRU. */
const COMPONENTS = 0x207n

function setXsave({ bytes }: Ask): Verdict {
  const b = bytes as Uint8Array
  const components = u64(b, 512)
  if ((components & ~COMPONENTS) !== 0n || b.subarray(520, 576).some((x) => x !== 0)) return no('EINVAL')
  // MXCSR counts with any of x87, SSE and AVX.
  return (components & 7n) !== 0n && (u32(b, 24) & ~0x2ffff) !== 0 ? no('EINVAL') : OK
}

function setXcrs(vm: ModelVm, vcpu: ModelVcpu, { bytes }: Ask): Verdict {
  const b = bytes as Uint8Array
  if (refused(vm, vcpu) || u32(b, 0) > 16 || u32(b, 4) !== 0) return no('EINVAL')
  for (let i = 0; i < u32(b, 0); i++) {
    if (u32(b, 8 + i * 16) !== 0) continue
    const value = u64(b, 16 + i * 16)
    if ((value & 1n) === 0n) return no('EINVAL')
    return value === 1n ? OK : vcpu.cpuid === null ? no('EINVAL') : UNKNOWN
  }
  return OK
}

const events: Rule = (vm, vcpu, { bytes }) => {
  const b = bytes as Uint8Array
  const flags = u32(b, 20)
  if ((flags & ~0x3f) !== 0 || ((flags & 16) !== 0 && !vm.payload)) return no('EINVAL')
  const pending = (flags & 16) !== 0 && u8(b, 3) !== 0
  const injected = !pending && u8(b, 0) !== 0
  if ((injected || pending) && (u8(b, 1) > 31 || u8(b, 1) === 2)) return no('EINVAL')
  const effect = (): void => {
    vcpu.exception = injected || pending
    vcpu.vectorWaits = null
    if ((flags & 8) !== 0 || (flags & 0x20) !== 0) {
      vcpu.volatile = true
      vcpu.shutting ||= (flags & 0x20) !== 0
      vcpu.exception = null
      vcpu.mpState = null
      vcpu.regs = null
    }
  }
  if ((flags & 0x20) !== 0 && !vm.tripleFault) return { want: 'EINVAL', failed: effect }
  // SMM changes modes and registers; a TD has none, and SEV-ES loses it: not followed.
  return { want: (flags & 8) !== 0 && u8(b, 24) !== 0 ? null : vm.type === 'tdx' && u8(b, 25) !== 0 ? null : 'ok', effect }
}

const mp: Rule = (vm, vcpu, { bytes }) => {
  const state = u32(bytes as Uint8Array, 0)
  if (![0, 1, 2, 3, 4, 9].includes(state) || (state !== 0 && vm.chip === 'none')) return no('EINVAL')
  return served(() => {
    // SIPI_RECEIVED is INIT_RECEIVED and a SIPI on its way.
    vcpu.mpState = state === 4 ? null : state
    vcpu.regs = state === 4 ? null : vcpu.regs
  })
}

const cpuid: Rule = (_vm, vcpu, { bytes }) => {
  const b = bytes as Uint8Array
  const count = u32(b, 0)
  if (count > 256) return no('E2BIG')
  if (b.length < 8 + count * 40) return no('EFAULT')
  if (vcpu.ran) return UNKNOWN
  const entries = b.slice(8, 8 + count * 40)
  return {
    want: null,
    effect: () => {
      vcpu.cpuid = entries
    },
  }
}

const lapic: Rule = (vm) => (vm.chip === 'none' || vm.type === 'tdx' ? no('EINVAL') : OK)
const ok: Rule = () => OK

export const VCPU_RULES: Readonly<Partial<Record<Ask['name'], Rule>>> = {
  KVM_GET_REGS: (vm, vcpu) => {
    if (refused(vm, vcpu)) return no('EINVAL')
    const regs = vcpu.regs
    return {
      want: 'ok',
      check: (_, after) =>
        regs === null || vcpu.sealed || moving(vm, vcpu) || (after && same(regs, after, 136)) ? null : 'not the registers that were set',
    }
  },
  KVM_SET_REGS: (vm, vcpu, { bytes }) => {
    if (refused(vm, vcpu)) return no('EINVAL')
    const copy = (bytes as Uint8Array).slice(0, 144)
    return served(() => {
      vcpu.regs = vcpu.sealed ? null : copy
      if (vcpu.exception !== false) vcpu.exception = null
    })
  },
  KVM_GET_SREGS: registers(),
  KVM_GET_SREGS2: registers(),
  KVM_SET_SREGS: (vm, vcpu) => ({
    ...registers(true)(vm, vcpu, null as never),
    effect: () => ((vcpu.vectorWaits = null), (vcpu.mpState = null)),
  }),
  KVM_SET_SREGS2: (vm, vcpu) => ({ ...registers(true)(vm, vcpu, null as never), effect: () => (vcpu.mpState = null) }),
  KVM_GET_FPU: fpu(416),
  KVM_SET_FPU: fpu(416),
  KVM_GET_XSAVE: fpu(4096),
  KVM_GET_XSAVE2: fpu(4096),
  KVM_SET_XSAVE: fpu(4096, setXsave),
  KVM_GET_XCRS: registers(),
  KVM_SET_XCRS: setXcrs,
  KVM_GET_DEBUGREGS: (vm, vcpu) => {
    if (refused(vm, vcpu)) return no('EINVAL')
    const set = vcpu.debugregs
    return {
      want: 'ok',
      check: (_, after) =>
        set === null || moving(vm, vcpu) || (after && same(set, after, 48)) ? null : 'not the debug registers that were set',
    }
  },
  KVM_SET_DEBUGREGS: (vm, vcpu, { bytes }) => {
    const b = bytes as Uint8Array
    if (refused(vm, vcpu) || u64(b, 48) !== 0n || u64(b, 32) >> 32n !== 0n || u64(b, 40) >> 32n !== 0n) return no('EINVAL')
    const copy = b.slice(0, 48)
    return served(() => {
      vcpu.debugregs = copy
    })
  },
  KVM_SET_GUEST_DEBUG: (_vm, vcpu, { bytes }) => {
    const control = u32(bytes as Uint8Array, 0)
    if (vcpu.sealed) return no('EINVAL')
    const effect = (): void => {
      vcpu.debug = (control & 1) !== 0
      // TF and pending exceptions: not followed any further.
      if ((control & 2) !== 0) vcpu.regs = null
      if ((control & 0xc0000) !== 0) vcpu.exception = null
    }
    if ((control & 0xc0000) === 0) return served(effect)
    return { want: vcpu.exception === null || vcpu.shutting ? null : vcpu.exception ? 'EBUSY' : 'ok', effect }
  },
  KVM_GET_MSRS: (_vm, _vcpu, { bytes }) => (u32(bytes as Uint8Array, 0) >= 256 ? no('E2BIG') : UNKNOWN),
  KVM_SET_MSRS: (_vm, vcpu, { bytes }) =>
    u32(bytes as Uint8Array, 0) >= 256 ? no('E2BIG') : { want: null, effect: () => ((vcpu.mpState = null), (vcpu.regs = null)) },
  KVM_GET_MP_STATE: (vm, vcpu) => {
    const state = vcpu.mpState
    return {
      want: 'ok',
      check: (_, after) =>
        state === null || moving(vm, vcpu) || u32(after as Uint8Array, 0) === state ? null : `${u32(after as Uint8Array, 0)}, set ${state}`,
    }
  },
  KVM_SET_MP_STATE: mp,
  KVM_GET_VCPU_EVENTS: (vm) => ({
    want: 'ok',
    check: (_, after) => {
      const flags = 0xd | (vm.payload ? 16 : 0) | (vm.tripleFault ? 32 : 0)
      return u32(after as Uint8Array, 20) === flags ? null : `flags ${u32(after as Uint8Array, 20)}, expected ${flags}`
    },
  }),
  KVM_SET_VCPU_EVENTS: events,
  KVM_INTERRUPT: (vm, vcpu, { bytes }) => {
    if (u32(bytes as Uint8Array, 0) >= 256) return no('EINVAL')
    if (vm.chip === 'full') return no('ENXIO')
    if (vm.chip === 'none') return OK
    return { want: vcpu.vectorWaits === null ? null : vcpu.vectorWaits ? 'EEXIST' : 'ok', effect: () => (vcpu.vectorWaits = true) }
  },
  KVM_NMI: ok,
  KVM_SMI: (vm) => (vm.sevEs || vm.type === 'tdx' ? no('ENOTTY') : OK),
  KVM_GET_LAPIC: lapic,
  KVM_SET_LAPIC: (vm, vcpu, ask) =>
    lapic(vm, vcpu, ask).want === 'EINVAL' ? no('EINVAL') : { want: null, effect: () => (vcpu.volatile = true) },
  KVM_SET_CPUID2: cpuid,
  KVM_GET_CPUID2: (_vm, vcpu, { bytes }) => {
    const b = bytes as Uint8Array
    const count = (vcpu.cpuid?.length ?? 0) / 40
    if (u32(b, 0) < count) return no('E2BIG')
    if (b.length < 8 + count * 40) return no('EFAULT')
    return {
      want: 'ok',
      check: (_, after) => {
        const out = after as Uint8Array
        if (u32(out, 0) !== count) return `${u32(out, 0)} entries, set ${count}`
        // Leaves and subleaves as set; some bits of the values follow the vCPU's state.
        for (let i = 0; i < count; i++)
          if (!same((vcpu.cpuid as Uint8Array).subarray(i * 40), out.subarray(8 + i * 40), 8)) return `entry ${i}`
        return null
      },
    }
  },
  KVM_X86_SETUP_MCE: (_vm, vcpu, { bytes }) => {
    const cap = u64(bytes as Uint8Array, 0)
    const banks = Number(cap & 0xffn)
    if (banks === 0 || banks > 32) return no('EINVAL')
    return cap >> 32n !== 0n || (cap & 0xfe00_0000n) !== 0n
      ? { want: null, effect: () => (vcpu.banks = banks) }
      : { want: null, effect: () => (vcpu.banks = banks) }
  },
  KVM_X86_SET_MCE: (_vm, vcpu, { bytes }) => {
    const b = bytes as Uint8Array
    if (u64(b, 0) >> 63n === 0n) return no('EINVAL')
    return vcpu.banks > 0 && u8(b, 32) >= vcpu.banks ? no('EINVAL') : { want: null, effect: () => (vcpu.shutting = true) }
  },
  KVM_SET_TSC_KHZ: (vm, vcpu, { value }) => {
    if (vm.type === 'tdx') return no('EINVAL')
    if (!Number.isInteger(value) || value < 0 || value > 0x7fffffff) return UNKNOWN
    if (value === 0x7fffffff) return no('EINVAL')
    return served(() => (vcpu.tscKhz = value || 2_000_000))
  },
  KVM_GET_TSC_KHZ: (_vm, vcpu) => ({
    want: 'ok',
    check: (result) => (result === vcpu.tscKhz ? null : `${result} kHz, set ${vcpu.tscKhz}`),
  }),
  KVM_TRANSLATE: ok,
  KVM_TPR_ACCESS_REPORTING: (_vm, _vcpu, { bytes }) => (u32(bytes as Uint8Array, 4) !== 0 ? no('EINVAL') : UNKNOWN),
  KVM_SET_SIGNAL_MASK: (_vm, _vcpu, { bytes }) => (u32(bytes as Uint8Array, 0) !== 8 ? no('EINVAL') : UNKNOWN),
  KVM_SET_VAPIC_ADDR: (vm) => (vm.chip === 'none' ? no('EINVAL') : UNKNOWN),
  KVM_PRE_FAULT_MEMORY: (vm, _vcpu, { bytes }) => {
    const b = bytes as Uint8Array
    const [gpa, size, flags] = [u64(b, 0), u64(b, 8), u64(b, 16)]
    if (flags !== 0n || ((gpa | size) & 0xfffn) !== 0n || size === 0n || gpa + size >= TOP) return no('EINVAL')
    const early = (vm.type === 'snp' && vm.snp !== 'finished') || (vm.type === 'tdx' && vm.td !== 'runnable')
    if (early) return no('EOPNOTSUPP')
    // kvm_handle_noslot_fault: private memory cannot be emulated as a device.
    return vm.slots.size === 0 ? no(vm.privateFrames.has(gpa >> 12n) ? 'EFAULT' : 'ENOENT') : UNKNOWN
  },
  KVM_GET_DEVICE_ATTR: (_vm, _vcpu, { bytes, read }) => {
    const b = bytes as Uint8Array
    if (u32(b, 4) !== 0 || u64(b, 8) !== 0n) return no('ENXIO')
    return read(u64(b, 16), 8) === null ? no('EFAULT') : OK
  },
  KVM_SET_DEVICE_ATTR: (_vm, _vcpu, { bytes, read }) => {
    const b = bytes as Uint8Array
    if (u32(b, 4) !== 0 || u64(b, 8) !== 0n) return no('ENXIO')
    return read(u64(b, 16), 8) === null ? no('EFAULT') : OK
  },
  KVM_HAS_DEVICE_ATTR: (_vm, _vcpu, { bytes }) =>
    u32(bytes as Uint8Array, 4) !== 0 || u64(bytes as Uint8Array, 8) !== 0n ? no('ENXIO') : OK,
  KVM_MEMORY_ENCRYPT_OP: vcpuCommand,
  KVM_GET_STATS_FD: ok,
}
