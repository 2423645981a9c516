/**
 * Floating-point state: kvm_fpu, kvm_xsave (standard format, SDM vol 1 13.4; APM vol 2 11.5.2) and kvm_xcrs.
 * KVM's copy of a sealed SEV-ES vCPU is confidential: zeros for the legacy VM type, refused for the others.
 */
import {
  CPU_FCS,
  CPU_FCW,
  CPU_FDP,
  CPU_FDS,
  CPU_FIP,
  CPU_FOP,
  CPU_FSW,
  CPU_FTAG,
  CPU_FTOP,
  CPU_MXCSR,
  CPU_PKRU,
  CPU_ST,
  CPU_XCR0,
  CPU_XMM,
  VKVM_GHCB_XCR0,
} from '../generated/layout.ts'
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import { viewOf } from './dispatch.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

/** State components. */
const X87 = 1n
const SSE = 2n
const YMM = 4n
const PKRU = 0x200n
/** Bits of MXCSR that the CPU has (FXSAVE mxcsr_mask): DAZ and, on AMD, misaligned exception mask. */
const MXCSR_MASK = 0x2ffff
const SW_BYTES = 464
const XSTATE_BV = 512
const YMM_AT = 576
/** CPUID 0xD.9. */
const PKRU_AT = 2432
const FCW_INITIAL = 0x37f
const MXCSR_INITIAL = 0x1f80
/** The modelled CPU's XCR0 as KVM offers it. */
export const XCR0_SUPPORTED = X87 | SSE | YMM | PKRU

/** What KVM sees: the live registers, or after a move of a sealed vCPU its own copy. */
const fpuOf = (vcpu: VcpuFd): DataView => vcpu.fpuShadow ?? vcpu.cpu

/** The guest's state is about to be put into this vCPU: KVM's copy stays. */
export function shadowFpu(vcpu: VcpuFd): void {
  const { buffer, byteOffset, byteLength } = vcpu.cpu
  vcpu.fpuShadow = new DataView(new Uint8Array(new Uint8Array(buffer, byteOffset, byteLength)).buffer)
}

/** FXSAVE image (512 bytes) of the live registers. */
function saveFxsave(vcpu: VcpuFd, out: DataView): void {
  const cpu = fpuOf(vcpu)
  const top = cpu.getUint32(CPU_FTOP, true) & 7
  out.setUint16(0, cpu.getUint32(CPU_FCW, true), true)
  out.setUint16(2, (cpu.getUint32(CPU_FSW, true) & ~0x3800) | (top << 11), true)
  out.setUint8(4, cpu.getUint32(CPU_FTAG, true))
  out.setUint16(6, cpu.getUint32(CPU_FOP, true), true)
  out.setBigUint64(8, cpu.getBigUint64(CPU_FIP, true), true)
  out.setBigUint64(16, cpu.getBigUint64(CPU_FDP, true), true)
  out.setUint32(24, cpu.getUint32(CPU_MXCSR, true), true)
  out.setUint32(28, MXCSR_MASK, true)
  for (let i = 0; i < 8; i++) {
    const from = CPU_ST + ((top + i) & 7) * 16
    out.setBigUint64(32 + i * 16, cpu.getBigUint64(from, true), true)
    out.setUint16(40 + i * 16, cpu.getUint16(from + 8, true), true)
  }
  for (let i = 0; i < 16; i++) {
    out.setBigUint64(160 + i * 16, cpu.getBigUint64(CPU_XMM + i * 32, true), true)
    out.setBigUint64(168 + i * 16, cpu.getBigUint64(CPU_XMM + i * 32 + 8, true), true)
  }
}

function loadX87(vcpu: VcpuFd, from: DataView): void {
  const cpu = fpuOf(vcpu)
  const top = (from.getUint16(2, true) >> 11) & 7
  cpu.setUint32(CPU_FCW, from.getUint16(0, true), true)
  cpu.setUint32(CPU_FSW, from.getUint16(2, true) & ~0x3800, true)
  cpu.setUint32(CPU_FTOP, top, true)
  cpu.setUint32(CPU_FTAG, from.getUint8(4), true)
  cpu.setUint32(CPU_FOP, from.getUint16(6, true) & 0x7ff, true)
  cpu.setBigUint64(CPU_FIP, from.getBigUint64(8, true), true)
  cpu.setBigUint64(CPU_FDP, from.getBigUint64(16, true), true)
  cpu.setUint32(CPU_FCS, 0, true)
  cpu.setUint32(CPU_FDS, 0, true)
  for (let i = 0; i < 8; i++) {
    const to = CPU_ST + ((top + i) & 7) * 16
    cpu.setBigUint64(to, from.getBigUint64(32 + i * 16, true), true)
    cpu.setBigUint64(to + 8, BigInt(from.getUint16(40 + i * 16, true)), true)
  }
}

function loadXmm(vcpu: VcpuFd, from: DataView, at: number): void {
  const cpu = fpuOf(vcpu)
  for (let i = 0; i < 16; i++) {
    cpu.setBigUint64(CPU_XMM + i * 32, from.getBigUint64(at + i * 16, true), true)
    cpu.setBigUint64(CPU_XMM + i * 32 + 8, from.getBigUint64(at + 8 + i * 16, true), true)
  }
}

/**
 * kvm_fpu: FXSAVE's parts in another order; KVM leaves MXCSR out of it. The bytes are those of KVM's memory, where XSAVES does not
 * write a component that is in its initial state: there is still what userspace put there.
 */
function getFpu(vcpu: VcpuFd, bytes: Uint8Array): number {
  bytes.fill(0, 0, 416)
  if (vcpu.fpstateConfidential) return 0
  const area = new Uint8Array(4096)
  const inUse = saveXsave(vcpu, area)
  const image = area.subarray(0, 512)
  // Before an entry all of it is what userspace wrote; after one only x87 can be missing: Zen 4 always saves XMM.
  if (vcpu.xstateBv === null) keepFpu(vcpu, image, X87 & ~inUse, inUse | SSE)
  else keepFpu(vcpu, image, X87 | SSE, 0n)
  bytes.set(image.subarray(32, 160), 0)
  bytes.set(image.subarray(0, 5), 128)
  bytes.set(image.subarray(6, 8), 134)
  bytes.set(image.subarray(8, 24), 136)
  bytes.set(image.subarray(160, 416), 152)
  return 0
}

/** Where the components `from` lie in an FXSAVE image: [component, from, to]. */
const LEGACY: readonly (readonly [bigint, number, number])[] = [
  [X87, 0, 24],
  [X87, 32, 160],
  [SSE, 160, 416],
]

/** Takes the components `from` out of KVM's memory into `image`, and puts those of `to` there. */
function keepFpu(vcpu: VcpuFd, image: Uint8Array, from: bigint, to: bigint): void {
  for (const [component, start, end] of LEGACY) {
    if ((from & component) !== 0n && vcpu.fpuMemory) image.set(vcpu.fpuMemory.subarray(start, end), start)
    if ((to & component) === 0n) continue
    vcpu.fpuMemory ??= initialFxsave()
    vcpu.fpuMemory.set(image.subarray(start, end), start)
  }
}

function initialFxsave(): Uint8Array {
  const image = new Uint8Array(512)
  viewOf(image).setUint16(0, FCW_INITIAL, true)
  return image
}

/** KVM_SET_FPU writes the registers' memory but not XSTATE_BV: what was in its initial state stays there. */
function setFpu(vcpu: VcpuFd, bytes: Uint8Array): number {
  if (vcpu.fpstateConfidential) return 0
  vcpu.xstateBv ??= saveXsave(vcpu, new Uint8Array(4096))
  const image = new Uint8Array(512)
  image.set(bytes.subarray(0, 128), 32)
  image.set(bytes.subarray(128, 133), 0)
  image.set(bytes.subarray(134, 136), 6)
  image.set(bytes.subarray(136, 152), 8)
  const view = viewOf(image)
  loadX87(vcpu, view)
  loadXmm(vcpu, viewOf(bytes), 152)
  image.set(bytes.subarray(152, 408), 160)
  keepFpu(vcpu, image, 0n, X87 | SSE)
  return 0
}

/** An image in which the components outside `components` have their initial values (copy_xstate_to_uabi_buf). */
function initialise(bytes: Uint8Array, components: bigint): void {
  if ((components & X87) === 0n) {
    bytes.fill(0, 0, 24)
    bytes.fill(0, 32, 160)
    viewOf(bytes).setUint16(0, FCW_INITIAL, true)
  }
  if ((components & SSE) === 0n) bytes.fill(0, 160, 416)
  if ((components & YMM) === 0n) bytes.fill(0, YMM_AT, YMM_AT + 256)
  if ((components & PKRU) === 0n) bytes.fill(0, PKRU_AT, PKRU_AT + 4)
}

/**
 * An entry loads KVM's copy by XRSTOR: what KVM_SET_FPU wrote is lost unless KVM_SET_XSAVE said that the component is
 * there.
 */
export function enterFpu(vcpu: VcpuFd): void {
  if (vcpu.xstateBv === null || vcpu.fpstateConfidential) return
  const image = new Uint8Array(4096)
  saveFxsave(vcpu, viewOf(image))
  initialise(image, vcpu.xstateBv)
  loadX87(vcpu, viewOf(image))
  loadXmm(vcpu, viewOf(image), 160)
  vcpu.xstateBv = null
}

/** The whole area with the live registers; XINUSE: the components that are not in their initial state. */
function saveXsave(vcpu: VcpuFd, bytes: Uint8Array): bigint {
  const view = viewOf(bytes)
  saveFxsave(vcpu, view)
  let components = 0n
  const some = (from: number, to: number): boolean => bytes.subarray(from, to).some((byte) => byte !== 0)
  if (view.getUint16(0, true) !== FCW_INITIAL || some(2, 24) || some(32, 160)) components |= X87
  if (view.getUint32(24, true) !== MXCSR_INITIAL || some(160, 416)) components |= SSE
  for (let i = 0; i < 16; i++) {
    for (const half of [0, 8]) view.setBigUint64(YMM_AT + i * 16 + half, fpuOf(vcpu).getBigUint64(CPU_XMM + i * 32 + 16 + half, true), true)
  }
  if (some(YMM_AT, YMM_AT + 256)) components |= YMM
  const pkru = fpuOf(vcpu).getUint32(CPU_PKRU, true)
  view.setUint32(PKRU_AT, pkru, true)
  if (pkru !== 0) components |= PKRU
  return components
}

function getXsave(vcpu: VcpuFd, bytes: Uint8Array): number {
  bytes.fill(0, 0, 4096)
  if (vcpu.fpstateConfidential) return 0
  const view = viewOf(bytes)
  const inUse = saveXsave(vcpu, bytes)
  if (vcpu.xstateBv !== null) initialise(bytes, vcpu.xstateBv)
  view.setBigUint64(XSTATE_BV, vcpu.xstateBv ?? inUse, true)
  // xstate_fx_sw_bytes: the kernel's user features.
  view.setBigUint64(SW_BYTES, XCR0_SUPPORTED, true)
  return 0
}

/** fpu_copy_uabi_to_guest_fpstate: a component whose bit is clear goes to its initial state. */
function setXsave(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const components = view.getBigUint64(XSTATE_BV, true)
  const source = 'arch/x86/kernel/fpu/core.c fpu_copy_uabi_to_guest_fpstate'
  if (vcpu.fpstateConfidential) return 0
  const { kernel } = vcpu
  const cpu = fpuOf(vcpu)
  if ((components & ~XCR0_SUPPORTED) !== 0n) {
    return kernel.refuse('EINVAL', 'KVM_SET_XSAVE', `xstate_bv 0x${components.toString(16)} has components that this CPU lacks`, source)
  }
  for (let at = XSTATE_BV + 8; at < YMM_AT; at += 8) {
    if (view.getBigUint64(at, true) !== 0n)
      return kernel.refuse('EINVAL', 'KVM_SET_XSAVE', 'xcomp_bv and reserved header bytes must be 0', source)
  }
  const mxcsr = view.getUint32(24, true)
  // MXCSR counts when any of the three components does.
  const takesMxcsr = (components & (X87 | SSE | YMM)) !== 0n
  if (takesMxcsr && (mxcsr & ~MXCSR_MASK) !== 0)
    return kernel.refuse('EINVAL', 'KVM_SET_XSAVE', `MXCSR 0x${mxcsr.toString(16)} has reserved bits`, source)
  cpu.setUint32(CPU_PKRU, (components & PKRU) !== 0n ? view.getUint32(PKRU_AT, true) : 0, true)
  kernel.core.call.cpuModeChanged(vcpu.s)
  const initial = initialFxsave()
  keepFpu(vcpu, bytes, 0n, components)
  loadX87(vcpu, (components & X87) !== 0n ? view : viewOf(initial))
  loadXmm(vcpu, (components & SSE) !== 0n ? view : viewOf(initial), 160)
  if (takesMxcsr) cpu.setUint32(CPU_MXCSR, mxcsr, true)
  if (vcpu.xstateBv !== null) vcpu.xstateBv = components
  for (let i = 0; i < 16; i++) {
    for (const half of [0, 8]) {
      cpu.setBigUint64(CPU_XMM + i * 32 + 16 + half, (components & YMM) !== 0n ? view.getBigUint64(YMM_AT + i * 16 + half, true) : 0n, true)
    }
  }
  return 0
}

/** struct kvm_xcrs: nr u32, flags u32, 16 entries {xcr u32, reserved u32, value u64}. */
function getXcrs(vcpu: VcpuFd, bytes: Uint8Array): number {
  bytes.fill(0, 0, 392)
  const view = viewOf(bytes)
  view.setUint32(0, 1, true)
  view.setBigUint64(
    16,
    vcpu.guestStateProtected ? vcpu.kvm.getBigUint64(VKVM_GHCB_XCR0, true) : vcpu.cpu.getBigUint64(CPU_XCR0, true),
    true,
  )
  return 0
}

/** guest_supported_xcr0, from leaf 0xD of KVM_SET_CPUID2: without a table x87 alone. */
function guestXcr0({ cpuid }: VcpuFd): bigint {
  const view = viewOf(cpuid)
  for (let at = 0; at < cpuid.length; at += CPUID_ENTRY_SIZE) {
    if (view.getUint32(at, true) !== 0xd || view.getUint32(at + 4, true) !== 0) continue
    const supported = (BigInt(view.getUint32(at + 24, true)) << 32n) | BigInt(view.getUint32(at + 12, true))
    return (supported & XCR0_SUPPORTED) | X87
  }
  return X87
}

function setXcrs(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const count = view.getUint32(0, true)
  const source = 'arch/x86/kvm/x86.c kvm_vcpu_ioctl_x86_set_xcrs'
  if (count > 16 || view.getUint32(4, true) !== 0)
    return vcpu.kernel.refuse('EINVAL', 'KVM_SET_XCRS', 'too many registers, or flags', source)
  for (let i = 0; i < count; i++) {
    if (view.getUint32(8 + i * 16, true) !== 0) continue
    const value = view.getBigUint64(16 + i * 16, true)
    // __kvm_set_xcr: x87 always, AVX needs SSE, nothing that the guest's CPUID lacks.
    if ((value & X87) === 0n || (value & ~guestXcr0(vcpu)) !== 0n || ((value & YMM) !== 0n && (value & SSE) === 0n)) {
      return vcpu.kernel.refuse(
        'EINVAL',
        'KVM_SET_XCRS',
        `XCR0 0x${value.toString(16)} is not possible`,
        'arch/x86/kvm/x86.c __kvm_set_xcr',
      )
    }
    if (vcpu.guestStateProtected) vcpu.kvm.setBigUint64(VKVM_GHCB_XCR0, value, true)
    else vcpu.cpu.setBigUint64(CPU_XCR0, value, true)
    break
  }
  return 0
}

export const fpuHandlers: readonly VcpuRow[] = [
  ['KVM_GET_FPU', getFpu],
  ['KVM_SET_FPU', setFpu],
  ['KVM_GET_XSAVE', getXsave],
  ['KVM_GET_XSAVE2', getXsave],
  ['KVM_SET_XSAVE', setXsave],
  ['KVM_GET_XCRS', getXcrs],
  ['KVM_SET_XCRS', setXcrs],
]
