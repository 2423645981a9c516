/**
 * What KVM keeps of a SEV guest (struct kvm_sev_info, arch/x86/kvm/svm/svm.h), and the steps that touch
 * the vCPUs: sealing their state into VMSAs.
 */
import {
  BACKING_FRAMES, CPU_SEV_STATUS, CPU_XCR0, FRAME_FLAGS, FRAME_INFO, FRAME_VMSA, SIZEOF_FRAME, STAGING, VCPU_KVM, VKVM_GHCB_RAX, VKVM_GHCB_RBX,
  VKVM_GHCB_RCX, VKVM_GHCB_RDX, VKVM_GHCB_RSI, VKVM_GHCB_XCR0, VKVM_PROTECTED, VKVM_VMSA_FRAME, VM_ASID,
  VM_C_BIT, VM_GHCB_VERSION, VM_LEGACY_ES, VM_PHYS_MASK, VM_SEV,
} from '../generated/layout.js'
import { REQUEST, VM_TYPE } from '../generated/kvm-abi.js'
import type { Guest } from '../firmware/psp/guest.js'
import { ASID } from '../firmware/psp/platform.js'
import { viewOf } from './dispatch.js'
import type { Kernel } from './kernel.js'
import type { Mapping } from './mapping.js'
import type { VcpuFd } from './vcpu.js'
import type { VmFd } from './vm.js'

/** Position of the encryption bit in a page-table entry (CPUID 0x8000001F EBX[5:0]). */
export const C_BIT = 51n
const PAGE = 4096
/** VMSA.SEV_FEATURES (APM vol 2, appendix B). */
const VMSA_SEV_FEATURES = 0x3b0

export interface EncRegion {
  readonly address: bigint
  readonly size: bigint
}

export class SevInfo {
  readonly asid: number
  readonly es: boolean
  readonly vmsaFeatures: bigint
  readonly ghcbVersion: number
  /** The firmware's context, after LAUNCH_START. */
  guest: Guest | null = null
  /** File descriptor that LAUNCH_START came with; 0 before, which is why later commands then end in -EBADF. */
  fd = 0
  readonly regions: EncRegion[] = []

  constructor(asid: number, es: boolean, vmsaFeatures: bigint, ghcbVersion: number) {
    this.asid = asid
    this.es = es
    this.vmsaFeatures = vmsaFeatures
    this.ghcbVersion = ghcbVersion
  }
}

/** sev_asid_new: SEV-ES and SNP guests use the ASIDs below MIN_SEV. 0 = none free. */
export function allocateAsid(kernel: Kernel, es: boolean): number {
  const [first, last] = es ? [1, ASID.MIN_SEV - 1] : [ASID.MIN_SEV, ASID.MAX]
  for (let asid = first; asid <= last; asid++) {
    if (!kernel.asids.has(asid)) {
      kernel.asids.add(asid)
      return asid
    }
  }
  return 0
}

/** Turns the VM into a SEV guest: ASID, C-bit and GHCB version where the core reads them. */
export function activateSev(vm: VmFd, info: SevInfo): void {
  const { view } = vm
  vm.sev = info
  vm.sevActive = true
  vm.sevEs = info.es
  vm.needInit = false
  vm.gated = vm.type === VM_TYPE.SNP
  view.setUint32(VM_SEV, info.es ? 2 : 1, true)
  view.setUint32(VM_ASID, info.asid, true)
  view.setBigUint64(VM_C_BIT, 1n << C_BIT, true)
  const mask = view.getBigUint64(VM_PHYS_MASK, true)
  if (mask !== 0n) view.setBigUint64(VM_PHYS_MASK, mask & ~(1n << C_BIT), true)
  view.setUint32(VM_GHCB_VERSION, info.ghcbVersion, true)
  if (vm.type === VM_TYPE.DEFAULT) {
    view.setUint32(VM_LEGACY_ES, info.es ? 1 : 0, true)
    vm.becomeLegacy(info.es ? 'sev-es-legacy' : 'sev-legacy')
  }
}

/** MSR SEV_STATUS of a new vCPU: bit 0 SEV, bit 1 SEV-ES, then the VMSA's SEV_FEATURES. */
export function initSevVcpu(vcpu: VcpuFd): void {
  const info = vcpu.vm.sev
  if (info === null) return
  const status = 1n | (info.es ? 2n : 0n) | (info.vmsaFeatures << 2n)
  vcpu.cpu.setBigUint64(CPU_SEV_STATUS, status, true)
}

/** Writes the vCPU's state as a VMSA into a page of its own. Legacy SEV-ES has no FPU state in it (sev_es_sync_vmsa). */
export function buildVmsa(vcpu: VcpuFd): Mapping | null {
  const { core, memory } = vcpu.kernel
  const info = vcpu.vm.sev as SevInfo
  vcpu.vmsa ??= memory.anonymous(PAGE)
  if (vcpu.vmsa === null) return null
  core.staging.fill(0, 0, PAGE)
  core.call.vmsaBuild(vcpu.s, STAGING, vcpu.vm.type === VM_TYPE.DEFAULT ? 1 : 0)
  viewOf(core.staging).setBigUint64(VMSA_SEV_FEATURES, info.vmsaFeatures, true)
  if (core.call.backingWrite(vcpu.vmsa.backing, 0n, STAGING, PAGE) < 0) return null
  return vcpu.vmsa
}

/** The legacy type answers register reads from KVM's copies. */
function keepCopies(vcpu: VcpuFd): void {
  const regs = new Uint8Array(144)
  vcpu.ioctl(REQUEST.KVM_GET_REGS, regs)
  const debug = new Uint8Array(128)
  vcpu.ioctl(REQUEST.KVM_GET_DEBUGREGS, debug)
  vcpu.sealed = { regs, setAt: vcpu.instructions, debug: debug.slice(0, 48) }
  const xcr0 = vcpu.cpu.getBigUint64(CPU_XCR0, true)
  vcpu.kvm.setBigUint64(VKVM_GHCB_XCR0, xcr0, true)
  const view = viewOf(regs)
  for (const [at, to] of [[0, VKVM_GHCB_RAX], [8, VKVM_GHCB_RBX], [16, VKVM_GHCB_RCX], [24, VKVM_GHCB_RDX], [32, VKVM_GHCB_RSI]] as const) {
    vcpu.kvm.setBigUint64(to, view.getBigUint64(at, true), true)
  }
}

/** After the firmware has encrypted the page: from here on the state lives there. */
export function sealVcpu(vcpu: VcpuFd): void {
  const { core } = vcpu.kernel
  const { backing } = vcpu.vmsa as Mapping
  const frames = core.view(backing, BACKING_FRAMES + 4).getUint32(BACKING_FRAMES, true)
  const frame = core.view(frames, 4).getUint32(0, true)
  const flags = core.bytes(FRAME_INFO + (frame >>> 12) * SIZEOF_FRAME + FRAME_FLAGS, 1)
  flags[0] = (flags[0] as number) | FRAME_VMSA
  const kvm = core.view(vcpu.s + VCPU_KVM, VKVM_VMSA_FRAME + 4)
  kvm.setUint32(VKVM_VMSA_FRAME, frame, true)
  kvm.setUint32(VKVM_PROTECTED, 1, true)
  if (vcpu.vm.type === VM_TYPE.DEFAULT) keepCopies(vcpu)
  vcpu.guestStateProtected = true
  vcpu.fpstateConfidential = true
}
