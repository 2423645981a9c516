/**
 * KVM_GET_MSRS, KVM_SET_MSRS, machine-check set-up. For a sealed SEV-ES vCPU an MSR that KVM passes
 * through cannot be read: the legacy VM type reads 0 and drops writes, the others stop the loop
 * (svm_get_msr, svm_set_msr).
 */
import { VM_TYPE } from '../generated/kvm-abi.ts'
import { CPU_MC_BANKS, CPU_MCG_CAP, CPU_MCG_CTL, CPU_MCG_STATUS } from '../generated/layout.ts'
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import type { Kernel } from './kernel.ts'
import { featureMsrValues, isPassThrough } from './msr-lists.ts'
import { viewOf } from './dispatch.ts'
import { readCr4 } from './guest-state.ts'
import { hold } from './held-events.ts'
import { setTdMsr, tdHasMsr, tdMsr, tdMsrReadOnly } from './tdx-msrs.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

const MAX_IO_MSRS = 256
const IA32_XSS = 0xda0

/** Calls `each` for the entries; their number, or what stopped the loop. */
function forEachMsr(vcpu: VcpuFd, name: string, bytes: Uint8Array, each: (view: DataView, index: number, at: number) => boolean): number {
  const view = viewOf(bytes)
  const count = view.getUint32(0, true)
  if (count >= MAX_IO_MSRS)
    return vcpu.kernel.refuse('E2BIG', name, `${count} entries (fewer than ${MAX_IO_MSRS})`, 'arch/x86/kvm/msrs.c msr_io')
  if (bytes.length < 8 + count * 16) return vcpu.kernel.badPointer(name, 'the entries run over the end of the buffer')
  for (let i = 0; i < count; i++) if (!each(view, view.getUint32(8 + i * 16, true), 16 + i * 16)) return i
  return count
}

/** CPUID leaf, offset of the register in struct kvm_cpuid_entry2, bit. */
type Feature = readonly [leaf: number, at: number, bit: number]

/** Passed through only if the guest's CPUID has one of these features; else intercepted, and KVM's. */
const PASSED_WITH: ReadonlyMap<number, readonly Feature[]> = new Map([
  // guest_has_spec_ctrl_msr, guest_has_pred_cmd_msr.
  [
    0x48,
    [
      [7, 24, 26],
      [7, 24, 27],
      [0x80000008, 16, 14],
      [0x80000008, 16, 15],
      [0x80000008, 16, 24],
    ],
  ],
  [
    0x49,
    [
      [7, 24, 26],
      [0x80000008, 16, 12],
      [0x80000021, 12, 27],
    ],
  ],
  [0x10b, [[7, 24, 28]]],
  [
    0xc0000103,
    [
      [0x80000001, 24, 27],
      [7, 20, 22],
    ],
  ],
])

function guestHas({ cpuid }: VcpuFd, [leaf, at, bit]: Feature): boolean {
  const view = viewOf(cpuid)
  for (let entry = 0; entry < cpuid.length; entry += CPUID_ENTRY_SIZE) {
    if (view.getUint32(entry, true) === leaf && view.getUint32(entry + 4, true) === 0)
      return ((view.getUint32(entry + at, true) >>> bit) & 1) !== 0
  }
  return false
}

/** 0 = ordinary access, 1 = reads 0 and drops writes, 2 = refused. */
function sealedRule(vcpu: VcpuFd, index: number): 0 | 1 | 2 {
  if (!vcpu.guestStateProtected || index === IA32_XSS || !isPassThrough(index)) return 0
  const features = PASSED_WITH.get(index)
  if (features !== undefined && !features.some((feature) => guestHas(vcpu, feature))) return 0
  return vcpu.vm.type === VM_TYPE.DEFAULT ? 1 : 2
}

const IA32_TSC = 0x10
const SEV_ES_GHCB = 0xc0010130
const SEV_STATUS = 0xc0010131
const MC_CTL2 = 0x280
const MCG_CMCI_P = 0x400n
const CTL2_WRITABLE = 0x40007fffn

/** Registers that KVM keeps and the core does not know: null = not one of them, false = refused. */
function ownMsr(vcpu: VcpuFd, index: number, value: bigint | null): bigint | boolean | null {
  // The guest has them in hardware; KVM knows neither, and passes the GHCB's on once the guest is sealed.
  if (index === SEV_STATUS || (index === SEV_ES_GHCB && !vcpu.guestStateProtected)) return false
  if (index >= MC_CTL2 && index < MC_CTL2 + MAX_BANKS) {
    const cap = vcpu.cpu.getBigUint64(CPU_MCG_CAP, true)
    const bank = index - MC_CTL2
    if (bank >= Number(cap & 0xffn)) return false
    if (value === null) return vcpu.mcCtl2[bank] as bigint
    if ((value & ~CTL2_WRITABLE) !== 0n || (value !== 0n && (cap & MCG_CMCI_P) === 0n)) return false
    vcpu.mcCtl2[bank] = value
    return true
  }
  // kvm_synchronize_tsc does nothing for a guest whose time stamp is protected.
  if (index === IA32_TSC && value !== null && vcpu.vm.td === null && vcpu.vm.guestTscProtected) return true
  if (vcpu.vm.td === null) return null
  if (!tdHasMsr(index) || (value !== null && tdMsrReadOnly(index))) return false
  return value === null ? tdMsr(vcpu, index) : setTdMsr(vcpu, index, value)
}

function stopped(vcpu: VcpuFd, name: string, index: number, why: string): false {
  // Not an errno: the ioctl returns how far it came. The reason is kept all the same.
  vcpu.kernel.refuse('EINVAL', name, `stopped at MSR 0x${index.toString(16)}: ${why}`, 'arch/x86/kvm/svm/svm.c svm_get_msr, svm_set_msr', {
    switch: 'guest_state_protected',
  })
  return false
}

function getMsrs(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { call, stagingView } = vcpu.kernel.core
  return forEachMsr(vcpu, 'KVM_GET_MSRS', bytes, (view, index, at) => {
    let value: bigint | boolean | null = ownMsr(vcpu, index, null)
    if (value === null) {
      // A TD's list is its own: what the guest keeps is not in it.
      const rule = vcpu.vm.td === null ? sealedRule(vcpu, index) : 0
      if (rule === 2) return stopped(vcpu, 'KVM_GET_MSRS', index, 'passed through to the guest, whose state is protected')
      if (rule === 1) value = 0n
      else value = call.msrGet(vcpu.s, index) ? stagingView.getBigUint64(0, true) : false
    }
    if (typeof value === 'boolean') return stopped(vcpu, 'KVM_GET_MSRS', index, 'no such register')
    view.setBigUint64(at, value, true)
    return true
  })
}

function setMsrs(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { call, stagingView } = vcpu.kernel.core
  return forEachMsr(vcpu, 'KVM_SET_MSRS', bytes, (view, index, at) => {
    const value = view.getBigUint64(at, true)
    let taken = ownMsr(vcpu, index, value)
    if (taken === null) {
      const rule = vcpu.vm.td === null ? sealedRule(vcpu, index) : 0
      if (rule === 2) return stopped(vcpu, 'KVM_SET_MSRS', index, 'passed through to the guest, whose state is protected')
      if (rule === 1) return true
      stagingView.setBigUint64(0, value, true)
      taken = call.msrSet(vcpu.s, index) !== 0
    }
    return taken ? true : stopped(vcpu, 'KVM_SET_MSRS', index, 'no such register or value')
  })
}

/** MCG_CTL_P, MCG_SER_P; Intel adds LMCE and CMCI. */
const MCE_CAP_SUPPORTED = 0x1000100n
const LMCE = 0x8000000n
const MAX_BANKS = 32

export function mceCapSupported(host: 'amd' | 'intel'): bigint {
  return host === 'intel' ? MCE_CAP_SUPPORTED | LMCE | MCG_CMCI_P : MCE_CAP_SUPPORTED
}

function setupMce(vcpu: VcpuFd, bytes: Uint8Array): number {
  const cap = viewOf(bytes).getBigUint64(0, true)
  const banks = Number(cap & 0xffn)
  const valid = mceCapSupported(vcpu.kernel.options.host) | 0xff00ffn
  if (banks === 0 || banks > MAX_BANKS || (cap & ~valid) !== 0n) {
    return vcpu.kernel.refuse(
      'EINVAL',
      'KVM_X86_SETUP_MCE',
      `mcg_cap 0x${cap.toString(16)}`,
      'arch/x86/kvm/x86.c kvm_vcpu_ioctl_x86_setup_mce',
    )
  }
  vcpu.cpu.setBigUint64(CPU_MCG_CAP, cap, true)
  if ((cap & 0x100n) !== 0n) vcpu.cpu.setBigUint64(CPU_MCG_CTL, 0xffffffffffffffffn, true)
  for (let i = 0; i < banks; i++) vcpu.cpu.setBigUint64(CPU_MC_BANKS + i * 32, 0xffffffffffffffffn, true)
  return 0
}

const MCI_VAL = 1n << 63n
const MCI_OVER = 1n << 62n
const MCI_UC = 1n << 61n
const MCG_CTL_P = 0x100n
const MCIP = 4n
const CR4_MCE = 0x40n
const ALL = (1n << 64n) - 1n
const MC_VECTOR = 18

/** An uncorrected error: #MC, or shutdown when the guest cannot take one. */
function uncorrected(vcpu: VcpuFd, mce: DataView, at: number): number {
  const { cpu } = vcpu
  const off = (cpu.getBigUint64(CPU_MCG_CAP, true) & MCG_CTL_P) !== 0n && cpu.getBigUint64(CPU_MCG_CTL, true) !== ALL
  if (off || cpu.getBigUint64(at, true) !== ALL) return 0
  if ((cpu.getBigUint64(CPU_MCG_STATUS, true) & MCIP) !== 0n || (readCr4(vcpu) & CR4_MCE) === 0n) {
    hold(vcpu, { tripleFault: true })
    return 0
  }
  const over = (cpu.getBigUint64(at + 8, true) & MCI_VAL) !== 0n ? MCI_OVER : 0n
  cpu.setBigUint64(at + 16, mce.getBigUint64(8, true), true)
  cpu.setBigUint64(at + 24, mce.getBigUint64(16, true), true)
  cpu.setBigUint64(CPU_MCG_STATUS, mce.getBigUint64(24, true), true)
  cpu.setBigUint64(at + 8, mce.getBigUint64(0, true) | over, true)
  hold(vcpu, { exception: { vector: MC_VECTOR, error: null, pending: true, payload: null } })
  return 0
}

/** struct kvm_x86_mce: status, addr, misc, mcg_status u64, bank u8. */
function setMce(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const status = view.getBigUint64(0, true)
  const bank = view.getUint8(32)
  const source = 'arch/x86/kvm/x86.c kvm_vcpu_ioctl_x86_set_mce'
  if (bank >= Number(vcpu.cpu.getBigUint64(CPU_MCG_CAP, true) & 0xffn) || (status & (1n << 63n)) === 0n) {
    return vcpu.kernel.refuse('EINVAL', 'KVM_X86_SET_MCE', `bank ${bank} does not exist, or the status is not valid`, source)
  }
  const at = CPU_MC_BANKS + bank * 32
  if ((status & MCI_UC) !== 0n) return uncorrected(vcpu, view, at)
  if ((vcpu.cpu.getBigUint64(at + 8, true) & MCI_UC) !== 0n && (vcpu.cpu.getBigUint64(at + 8, true) & MCI_VAL) !== 0n) {
    vcpu.cpu.setBigUint64(at + 8, vcpu.cpu.getBigUint64(at + 8, true) | MCI_OVER, true)
    return 0
  }
  const overflow = (vcpu.cpu.getBigUint64(at + 8, true) >> 63n) & 1n
  vcpu.cpu.setBigUint64(at + 8, status | (overflow << 62n), true)
  vcpu.cpu.setBigUint64(at + 16, view.getBigUint64(8, true), true)
  vcpu.cpu.setBigUint64(at + 24, view.getBigUint64(16, true), true)
  return 0
}

/** KVM_GET_MSRS on /dev/kvm: MSR-based features of the host (kvm_get_feature_msr); the number read. */
export function getFeatureMsrs(kernel: Kernel, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const count = view.getUint32(0, true)
  if (count >= MAX_IO_MSRS)
    return kernel.refuse('E2BIG', 'KVM_GET_MSRS', `${count} entries (fewer than ${MAX_IO_MSRS})`, 'arch/x86/kvm/msrs.c msr_io')
  if (bytes.length < 8 + count * 16) return kernel.badPointer('KVM_GET_MSRS', 'the entries run over the end of the buffer')
  for (let i = 0; i < count; i++) {
    const index = view.getUint32(8 + i * 16, true)
    const value = featureMsrValues.get(index)
    if (value === undefined) {
      kernel.refuse(
        'EINVAL',
        'KVM_GET_MSRS',
        `stopped at MSR 0x${index.toString(16)}: no feature`,
        'arch/x86/kvm/msrs.c do_get_feature_msr',
      )
      return i
    }
    view.setBigUint64(16 + i * 16, value, true)
  }
  return count
}

export const msrEntries = (header: DataView): number => 8 + header.getUint32(0, true) * 16

export const msrHandlers: readonly VcpuRow[] = [
  ['KVM_GET_MSRS', getMsrs, { tail: msrEntries }],
  ['KVM_SET_MSRS', setMsrs, { tail: msrEntries }],
  ['KVM_X86_SETUP_MCE', setupMce],
  ['KVM_X86_SET_MCE', setMce],
]
