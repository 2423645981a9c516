/**
 * What KVM keeps of a SEV guest (struct kvm_sev_info, arch/x86/kvm/svm/svm.h), and the steps that touch
 * the vCPUs: sealing their state into VMSAs.
 */
import { CloisterError } from '../errors.ts'
import {
  CPU_CR0,
  CPU_CR4,
  CPU_EFER,
  CPU_SEV_STATUS,
  CPU_XCR0,
  STAGING,
  VKVM_GHCB_RAX,
  VKVM_GHCB_RBX,
  VKVM_GHCB_RCX,
  VKVM_GHCB_RDX,
  VKVM_GHCB_RSI,
  VKVM_GHCB_XCR0,
  VM_ASID,
  VM_C_BIT,
  VM_GHCB_VERSION,
  VM_LEGACY_ES,
  VM_PHYS_MASK,
  VM_SEV,
  VM_VMSA_FEATURES,
} from '../generated/layout.ts'
import { REQUEST, VM_TYPE } from '../generated/kvm-abi.ts'
import { SEV_FEATURE } from '../generated/psp.ts'
import type { Guest } from '../firmware/psp/guest.ts'
import { ASID } from '../firmware/psp/platform.ts'
import { viewOf } from './dispatch.ts'
import type { Kernel } from './kernel.ts'
import type { SnpInfo } from './sev-snp.ts'
import type { VcpuFd } from './vcpu.ts'
import type { VmFd } from './vm.ts'

/** Position of the encryption bit in a page-table entry (CPUID 0x8000001F EBX[5:0]). */
const C_BIT = 51n
const PAGE = 4096

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
  /** enc_context_owner: the VM that this one mirrors. */
  owner: VmFd | null = null
  /** mirror_vms. */
  readonly mirrors = new Set<VmFd>()
  /** It came by KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM. */
  moved = false
  /** After SNP_LAUNCH_START. */
  snp: SnpInfo | null = null
  /** KVM_SEV_SNP_ENABLE_REQ_CERTS. */
  requestCerts = false

  constructor(asid: number, es: boolean, vmsaFeatures: bigint, ghcbVersion: number) {
    this.asid = asid
    this.es = es
    this.vmsaFeatures = vmsaFeatures
    this.ghcbVersion = ghcbVersion
  }

  /** ____sev_snp_guest. */
  get snpActive(): boolean {
    return (this.vmsaFeatures & SEV_FEATURE.SNP_ACTIVE) !== 0n
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
  view.setBigUint64(VM_VMSA_FEATURES, info.vmsaFeatures, true)
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

/** The 4096 bytes that LAUNCH_UPDATE_VMSA measures: the vCPU's real state (sev_es_sync_vmsa). */
export function vmsaImage(vcpu: VcpuFd): Uint8Array<ArrayBuffer> {
  const { call, staging } = vcpu.kernel.core
  call.vmsaBuild(vcpu.s, STAGING)
  const image = new Uint8Array(staging.subarray(0, PAGE))
  staging.fill(0, 0, PAGE)
  return image
}

/** The legacy type answers register reads from KVM's copies. */
export function keepCopies(vcpu: VcpuFd): void {
  const regs = new Uint8Array(144)
  vcpu.ioctl(REQUEST.KVM_GET_REGS, regs)
  const debug = new Uint8Array(128)
  vcpu.ioctl(REQUEST.KVM_GET_DEBUGREGS, debug)
  vcpu.sealed = { regs, setAt: vcpu.instructions, debug: debug.slice(0, 48) }
  const xcr0 = vcpu.cpu.getBigUint64(CPU_XCR0, true)
  vcpu.kvm.setBigUint64(VKVM_GHCB_XCR0, xcr0, true)
  const view = viewOf(regs)
  for (const [at, to] of [
    [0, VKVM_GHCB_RAX],
    [8, VKVM_GHCB_RBX],
    [16, VKVM_GHCB_RCX],
    [24, VKVM_GHCB_RDX],
    [32, VKVM_GHCB_RSI],
  ] as const) {
    vcpu.kvm.setBigUint64(to, view.getBigUint64(at, true), true)
  }
}

/** Encrypts the state into a page of its own and hides it from here on; `fpstate` too, except by SNP. False: no memory left. */
export function sealVcpu(vcpu: VcpuFd, fpstate = true): boolean {
  const legacy = vcpu.vm.type === VM_TYPE.DEFAULT
  if (legacy) keepCopies(vcpu)
  if (noteControl(vcpu, () => vcpu.kernel.core.call.vmsaSeal(vcpu.s)) < 0) {
    vcpu.sealed = null
    return false
  }
  vcpu.guestStateProtected = true
  vcpu.fpstateConfidential = fpstate
  return true
}

/** While `change` hides CR0, CR4 and EFER, KVM's copies stay what they were. */
export function noteControl<T>(vcpu: VcpuFd, change: () => T): T {
  const before = CONTROL.map((field) => vcpu.cpu.getBigUint64(field, true))
  const result = change()
  CONTROL.forEach((field, i) => {
    vcpu.sealedControl.set(field, { shown: before[i] as bigint, raw: vcpu.cpu.getBigUint64(field, true) })
  })
  return result
}

/** Registers whose writes trap, so that KVM knows their values. */
const CONTROL = [CPU_CR0, CPU_CR4, CPU_EFER] as const
const EFER_SVME = 0x1000n

/** KVM's copy of CR0, CR4 or EFER: as at the launch until the guest writes the register. */
export function trackedControl(vcpu: VcpuFd, field: number): bigint {
  const raw = vcpu.cpu.getBigUint64(field, true)
  const sealed = vcpu.sealedControl.get(field)
  if (sealed !== undefined && sealed.raw === raw) return sealed.shown
  return field === CPU_EFER ? raw & ~EFER_SVME : raw
}

/** The encrypted VMSA page as the host sees it. */
export class VmsaPage {
  readonly length = PAGE
  readonly #vcpu: VcpuFd

  constructor(vcpu: VcpuFd) {
    this.#vcpu = vcpu
  }

  read(offset: number | bigint, n: number): Uint8Array<ArrayBuffer> {
    const { call, staging } = this.#vcpu.kernel.core
    const at = Number(offset)
    if (!inside(at, n) || !call.vmsaHostRead(this.#vcpu.s, at, STAGING, n))
      throw new CloisterError('ERR_RANGE', `VMSA page: ${n} bytes at ${offset}`)
    return new Uint8Array(staging.subarray(0, n))
  }

  write(offset: number | bigint, bytes: Uint8Array): void {
    const { call, staging } = this.#vcpu.kernel.core
    const at = Number(offset)
    if (!inside(at, bytes.length)) throw new CloisterError('ERR_RANGE', `VMSA page: ${bytes.length} bytes at ${offset}`)
    staging.set(bytes)
    if (!call.vmsaHostWrite(this.#vcpu.s, at, STAGING, bytes.length)) throw new CloisterError('ERR_RANGE', 'VMSA page: not sealed')
  }
}

function inside(at: number, n: number): boolean {
  return Number.isInteger(at) && at >= 0 && n >= 0 && at + n <= PAGE
}
