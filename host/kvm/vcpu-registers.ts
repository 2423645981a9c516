/** KVM_GET/SET_REGS, SREGS and SREGS2 (arch/x86/kvm/regs.c of 7.3; x86.c before). */
import {
  CPU_APIC_BASE,
  CPU_CR0,
  CPU_CR4,
  CPU_CR8,
  CPU_EFER,
  CPU_HALTED,
  CPU_PENDING_DB,
  CPU_RIP,
  EVENT_INTERRUPT,
  VKVM_GHCB_RAX,
  VKVM_GHCB_RBX,
  VKVM_GHCB_RCX,
  VKVM_GHCB_RDX,
  VKVM_GHCB_RSI,
  VKVM_INTERRUPT,
} from '../generated/layout.ts'
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import { viewOf } from './dispatch.ts'
import { CR0_PG, CR4_PAE, EFER_LMA, getRegs, getSregs, REGS_RFLAGS, REGS_RIP, setRegs, setSregs, SREGS, validSregs } from './registers.ts'
import { trackedControl } from './sev-vm.ts'
import { GUESTDBG } from './vcpu-debug.ts'
import { heldEvents, hold } from './held-events.ts'
import { INJECTED, MP_STATE, SOFT } from './vcpu-events.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { SealedCopies, VcpuFd } from './vcpu.ts'

const IA32_APIC_BASE = 0x1b
const TF = 0x100n

/** __cr4_reserved_bits: CR4 bits that need a CPUID feature {leaf, register offset in the entry, bit}. */
const CR4_FEATURES: readonly (readonly [cr4: number, leaf: number, at: number, bit: number])[] = [
  [11, 7, 20, 2],
  [12, 7, 20, 16],
  [13, 1, 20, 5],
  [16, 7, 16, 0],
  [17, 1, 20, 17],
  [18, 1, 20, 26],
  [20, 7, 16, 7],
  [21, 7, 16, 20],
  [22, 7, 20, 3],
]

/** __kvm_valid_efer: LME and LMA, NX, SVME, FFXSR, AUTOIBRS. */
const EFER_FEATURES: typeof CR4_FEATURES = [
  [8, 0x80000001, 24, 29],
  [10, 0x80000001, 24, 29],
  [11, 0x80000001, 24, 20],
  [12, 0x80000001, 20, 2],
  [14, 0x80000001, 24, 25],
  [21, 0x80000021, 12, 8],
]

/** Bits of the register whose feature the guest's CPUID lacks. */
function guestReserved({ cpuid }: VcpuFd, features: typeof CR4_FEATURES): bigint {
  const view = viewOf(cpuid)
  const has = new Map<number, number>()
  for (let at = 0; at < cpuid.length; at += CPUID_ENTRY_SIZE) {
    if (view.getUint32(at + 4, true) === 0) has.set(view.getUint32(at, true), at)
  }
  let reserved = 0n
  for (const [which, leaf, offset, bit] of features) {
    const at = has.get(leaf)
    if (at === undefined || ((view.getUint32(at + offset, true) >>> bit) & 1) === 0) reserved |= 1n << BigInt(which)
  }
  return reserved
}

/** cr4_guest_rsvd_bits: 6.12 has none before KVM_SET_CPUID2, 7.3 begins with an empty table. */
function guestReservedCr4(vcpu: VcpuFd): bigint {
  return vcpu.cpuid.length === 0 && vcpu.kernel.options.linux === '6.12' ? 0n : guestReserved(vcpu, CR4_FEATURES)
}

/** Legacy SEV-ES: only what the write traps and the GHCB told KVM is valid (arch/x86/kvm/svm/svm.c cr_trap, efer_trap). */
function getProtectedSregs(vcpu: VcpuFd, out: DataView): void {
  for (const [from, at] of [
    [CPU_CR0, SREGS.CR0],
    [CPU_CR4, SREGS.CR4],
    [CPU_EFER, SREGS.EFER],
  ] as const) {
    out.setBigUint64(at, trackedControl(vcpu, from), true)
  }
  for (const [from, at] of [
    [CPU_CR8, SREGS.CR8],
    [CPU_APIC_BASE, SREGS.APIC_BASE],
  ] as const) {
    out.setBigUint64(at, vcpu.cpu.getBigUint64(from, true), true)
  }
}

const SREGS_SIZE = 312
const SREGS2_SIZE = 320
/** kvm_sregs2.flags. */
const PDPTRS_VALID = 1n

function loadSregs(vcpu: VcpuFd, bytes: Uint8Array, size: number): number {
  bytes.fill(0, 0, size)
  const out = viewOf(bytes)
  if (vcpu.guestStateProtected) {
    getProtectedSregs(vcpu, out)
    return 0
  }
  getSregs(vcpu.cpu, out)
  if (size === SREGS_SIZE) {
    // The one hardware interrupt that is injected and not yet delivered.
    const queued = vcpu.kvm.getUint32(VKVM_INTERRUPT, true)
    if (queued !== 0 && (queued & SOFT) === 0 && (vcpu.vm.irqchip !== 'split' || (queued & INJECTED) !== 0))
      out.setUint8(SREGS.INTERRUPT_BITMAP + ((queued & 0xff) >> 3), 1 << (queued & 7))
  }
  return 0
}

/** cpuid_query_maxphyaddr: 36 until KVM_SET_CPUID2 says otherwise. */
function maxPhysical(vcpu: VcpuFd): bigint {
  const view = viewOf(vcpu.cpuid)
  for (let at = 0; at + CPUID_ENTRY_SIZE <= vcpu.cpuid.length; at += CPUID_ENTRY_SIZE) {
    if (view.getUint32(at, true) === 0x80000008) return BigInt(view.getUint32(at + 12, true) & 0xff)
  }
  return 36n
}

/** CR0.PG, CR4.PAE, not long mode. */
function paePaging(from: DataView): boolean {
  const [cr0, cr4, efer] = [SREGS.CR0, SREGS.CR4, SREGS.EFER].map((at) => from.getBigUint64(at, true)) as [bigint, bigint, bigint]
  return (cr0 & CR0_PG) !== 0n && (cr4 & CR4_PAE) !== 0n && (efer & EFER_LMA) === 0n
}

function storeSregs(vcpu: VcpuFd, name: string, from: DataView): number {
  const { kernel } = vcpu
  const two = name === 'KVM_SET_SREGS2'
  const bits = maxPhysical(vcpu)
  if (two) {
    const flags = from.getBigUint64(SREGS.FLAGS, true)
    if ((flags & ~PDPTRS_VALID) !== 0n || (flags !== 0n && (vcpu.guestStateProtected || !paePaging(from)))) {
      return kernel.refuse('EINVAL', name, `flags 0x${flags.toString(16)}`, 'arch/x86/kvm/regs.c __set_sregs2')
    }
  }
  const absent = from.getBigUint64(SREGS.CR4, true) & guestReservedCr4(vcpu)
  if (absent !== 0n) {
    const reason = `CR4 0x${absent.toString(16)}: the vCPU's CPUID lacks the feature`
    return vcpu.kernel.refuse('EINVAL', name, reason, 'arch/x86/kvm/regs.c kvm_is_valid_sregs (cr4_guest_rsvd_bits)')
  }
  // 6.12 does not hold EFER against CPUID here.
  const efer = from.getBigUint64(SREGS.EFER, true) & (kernel.options.linux === '6.12' ? 0n : guestReserved(vcpu, EFER_FEATURES))
  if (efer !== 0n) {
    const reason = `EFER 0x${efer.toString(16)}: the vCPU's CPUID lacks the feature`
    return kernel.refuse('EINVAL', name, reason, 'arch/x86/kvm/msrs.c kvm_valid_efer (kvm_is_valid_sregs)')
  }
  if (!validSregs(from, (1n << bits) - 1n)) {
    return kernel.refuse('EINVAL', name, 'CR0, CR3, CR4, EFER and CS do not fit together', 'arch/x86/kvm/regs.c kvm_is_valid_sregs')
  }
  const { call, stagingView } = kernel.core
  stagingView.setBigUint64(0, from.getBigUint64(SREGS.APIC_BASE, true), true)
  if (from.getBigUint64(SREGS.APIC_BASE, true) >> bits !== 0n || !call.msrSet(vcpu.s, IA32_APIC_BASE)) {
    return kernel.refuse('EINVAL', name, 'apic_base is not possible', 'arch/x86/kvm/lapic.c kvm_apic_set_base')
  }
  if (!vcpu.guestStateProtected) {
    setSregs(vcpu.cpu, from)
    call.cpuModeChanged(vcpu.s)
    // "Older userspace won't unhalt the vcpu on reset."
    const atReset = from.getUint16(SREGS.CS + 12, true) === 0xf000 && from.getBigUint64(SREGS.CS, true) === 0xffff0000n
    const real = (from.getBigUint64(SREGS.CR0, true) & 1n) === 0n
    if (atReset && real && vcpu.id === vcpu.vm.bspId && vcpu.cpu.getBigUint64(CPU_RIP, true) === 0xfff0n)
      vcpu.cpu.setUint32(CPU_HALTED, MP_STATE.RUNNABLE, true)
  }
  if (!two) {
    for (let vector = 0; vector < 256; vector++) {
      if ((from.getUint8(SREGS.INTERRUPT_BITMAP + (vector >> 3)) & (1 << (vector & 7))) === 0) continue
      vcpu.kvm.setUint32(VKVM_INTERRUPT, 0x100 | INJECTED | vector, true)
      vcpu.signal(EVENT_INTERRUPT)
      break
    }
  }
  return 0
}

/** Registers that the GHCB carries: offset in kvm_regs, KVM's copy. */
const GHCB_REGS = [
  [0, VKVM_GHCB_RAX],
  [8, VKVM_GHCB_RBX],
  [16, VKVM_GHCB_RCX],
  [24, VKVM_GHCB_RDX],
  [32, VKVM_GHCB_RSI],
] as const

/**
 * A sealed vCPU of the legacy type: five registers from the latest GHCB, the others 0 since the last
 * VMGEXIT (or what KVM_SET_REGS left there), RIP and RFLAGS stale from the launch.
 */
function getSealedRegs(vcpu: VcpuFd, sealed: SealedCopies, bytes: Uint8Array): number {
  bytes.set(sealed.regs)
  if (vcpu.instructions !== sealed.setAt) bytes.fill(0, 0, REGS_RIP)
  const view = viewOf(bytes)
  for (const [at, from] of GHCB_REGS) view.setBigUint64(at, vcpu.kvm.getBigUint64(from, true), true)
  return 0
}

function setSealedRegs(vcpu: VcpuFd, sealed: SealedCopies, bytes: Uint8Array): number {
  sealed.regs.set(bytes.subarray(0, 144))
  sealed.setAt = vcpu.instructions
  const view = viewOf(bytes)
  for (const [at, to] of GHCB_REGS) vcpu.kvm.setBigUint64(to, view.getBigUint64(at, true), true)
  return 0
}

export const registerHandlers: readonly VcpuRow[] = [
  [
    'KVM_GET_REGS',
    (vcpu, bytes) => {
      if (vcpu.sealed !== null) return getSealedRegs(vcpu, vcpu.sealed, bytes)
      const out = viewOf(bytes)
      getRegs(vcpu.kernel.core.call, vcpu.s, vcpu.cpu, out)
      // kvm_get_rflags: TF belongs to the debugger while it steps.
      if ((vcpu.guestDebug & GUESTDBG.SINGLESTEP) !== 0) out.setBigUint64(REGS_RFLAGS, out.getBigUint64(REGS_RFLAGS, true) & ~TF, true)
      return 0
    },
  ],
  [
    'KVM_SET_REGS',
    (vcpu, bytes) => {
      if (vcpu.sealed !== null) return setSealedRegs(vcpu, vcpu.sealed, bytes)
      setRegs(vcpu.kernel.core.call, vcpu.s, vcpu.cpu, viewOf(bytes))
      // __set_regs: an exception that is pending is forgotten, an injected one is not.
      if (heldEvents(vcpu).exception?.pending) hold(vcpu, { exception: null })
      vcpu.cpu.setUint32(CPU_PENDING_DB, 0, true)
      return 0
    },
  ],
  ['KVM_GET_SREGS', (vcpu, bytes) => loadSregs(vcpu, bytes, SREGS_SIZE)],
  ['KVM_SET_SREGS', (vcpu, bytes) => storeSregs(vcpu, 'KVM_SET_SREGS', viewOf(bytes))],
  ['KVM_GET_SREGS2', (vcpu, bytes) => loadSregs(vcpu, bytes, SREGS2_SIZE)],
  ['KVM_SET_SREGS2', (vcpu, bytes) => storeSregs(vcpu, 'KVM_SET_SREGS2', viewOf(bytes)), { refusesFirst: true }],
]
