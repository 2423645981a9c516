/**
 * What KVM's common code asks the vendor code about a guest's own state (kvm_x86_ops: get_cpl, get_interrupt_shadow,
 * cache_reg of CR4). Of a protected guest `upstream` answers what it has: nothing for a TD, what the last GHCB exit and the write
 * traps told for SEV-ES. The code of `rfc-2020` yells if it is asked at all (requirements A5): a bug of KVM's, named, that
 * kills the VM. So whoever asks has looked at the protection first.
 */
import { CloisterError } from '../errors.ts'
import { CPU_CPL, CPU_CR4, CPU_INTERRUPT_SHADOW, VKVM_GHCB_CPL } from '../generated/layout.ts'
import { trackedControl } from './sev-vm.ts'
import type { VcpuFd } from './vcpu.ts'

export type GuestStateOp = 'get_cpl' | 'get_interrupt_shadow' | 'cache_reg(CR4)'

/** Whether the answer is the guest's; false: protected, and the profile lets KVM ask all the same. */
function readable(vcpu: VcpuFd, op: GuestStateOp): boolean {
  if (!vcpu.guestStateProtected) return true
  if (!vcpu.vm.rfc2020) return false
  const message = `KVM_BUG_ON: ${op} of a protected guest, vCPU ${vcpu.id} (rfc-2020, seed mail 000)`
  vcpu.vm.kill(message)
  throw new CloisterError('guest-state', message)
}

/** vt_get_cpl is 0 for a TD; svm_get_cpl reads what the GHCB exit stored in the VMCB. */
function getCpl(vcpu: VcpuFd): number {
  if (readable(vcpu, 'get_cpl')) return vcpu.cpu.getUint32(CPU_CPL, true)
  return vcpu.vm.td === null ? vcpu.kvm.getUint32(VKVM_GHCB_CPL, true) : 0
}

/** 0 = none, 1 STI, 2 MOV SS. */
export function getInterruptShadow(vcpu: VcpuFd): number {
  return readable(vcpu, 'get_interrupt_shadow') ? vcpu.cpu.getUint32(CPU_INTERRUPT_SHADOW, true) : 0
}

/** Writes of CR4 trap under SEV-ES, so KVM knows it; that of a TD it does not. */
export function readCr4(vcpu: VcpuFd): bigint {
  if (vcpu.guestStateProtected && vcpu.vm.td === null) return trackedControl(vcpu, CPU_CR4)
  return readable(vcpu, 'cache_reg(CR4)') ? vcpu.cpu.getBigUint64(CPU_CR4, true) : 0n
}

/** kvm_arch_vcpu_in_kernel: a protected guest counts as in its kernel, and nobody asks for its privilege level. */
export function inKernel(vcpu: VcpuFd): boolean {
  return vcpu.guestStateProtected || getCpl(vcpu) === 0
}

/** One of these operations by name, for who tests the kernel from inside. */
export function askGuestState(vcpu: VcpuFd, op: GuestStateOp): number {
  switch (op) {
    case 'get_cpl':
      return getCpl(vcpu)
    case 'get_interrupt_shadow':
      return getInterruptShadow(vcpu)
    case 'cache_reg(CR4)':
      return Number(readCr4(vcpu))
  }
}
