/** kvm_valid_regs and kvm_dirty_regs: register sets that travel in kvm_run (arch/x86/kvm/x86.c sync_regs, store_regs). */
import { REQUEST } from '../generated/kvm-abi.ts'
import { RUN } from '../generated/kvm.ts'
import type { VcpuFd } from './vcpu.ts'

const REGS = 1
const SREGS = 2
const EVENTS = 4
const SETS = [
  [REGS, RUN.SYNC_REGS, 144, REQUEST.KVM_GET_REGS, REQUEST.KVM_SET_REGS],
  [SREGS, RUN.SYNC_SREGS, 312, REQUEST.KVM_GET_SREGS, REQUEST.KVM_SET_SREGS],
  [EVENTS, RUN.SYNC_EVENTS, 64, REQUEST.KVM_GET_VCPU_EVENTS, REQUEST.KVM_SET_VCPU_EVENTS],
] as const

/** 0 or a negative errno; the sets that were taken are cleared in kvm_dirty_regs. */
export function loadSyncRegs(vcpu: VcpuFd, dirty: number): number {
  for (const [bit, at, size, , set] of SETS) {
    if ((dirty & bit) === 0) continue
    const result = vcpu.ioctl(set, vcpu.runBytes.slice(at, at + size))
    if (result < 0) return result
    vcpu.runView.setUint32(RUN.DIRTY_REGS, vcpu.runView.getUint32(RUN.DIRTY_REGS, true) & ~bit, true)
  }
  return 0
}

/** Nothing is stored back once the guest's state is protected; rfc-2020 still gives its events (A6). */
export function storeSyncRegs(vcpu: VcpuFd, valid: number): void {
  if (vcpu.guestStateProtected && !vcpu.vm.rfc2020) return
  for (const [bit, at, size, get] of SETS) {
    if ((valid & bit) === 0) continue
    const bytes = new Uint8Array(size)
    if (vcpu.ioctl(get, bytes) === 0) vcpu.runBytes.set(bytes, at)
  }
}
