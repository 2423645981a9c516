/** KVM_GET/SET_DEBUGREGS and KVM_SET_GUEST_DEBUG (arch/x86/kvm/x86.c). */
import { CPU_DR, CPU_DR6, CPU_DR7, VKVM_DEBUG_DR, VKVM_DEBUG_DR7, VKVM_GUEST_DEBUG } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import { earlyPayload, heldEvents, hold, holdTrap } from './held-events.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

/** KVM_GUESTDBG_*: what means something in `control`; Linux takes other bits and does nothing. */
export const GUESTDBG = {
  ENABLE: 1,
  SINGLESTEP: 2,
  BLOCKIRQ: 0x100000,
  USE_SW_BP: 0x10000,
  USE_HW_BP: 0x20000,
  INJECT_DB: 0x40000,
  INJECT_BP: 0x80000,
} as const

/** A sealed legacy SEV-ES vCPU has KVM's copy only (vcpu.sealedDebug); its DR7 is swapped by hardware. */
function getDebugregs(vcpu: VcpuFd, bytes: Uint8Array): number {
  bytes.fill(0, 0, 128)
  if (vcpu.sealed !== null) {
    bytes.set(vcpu.sealed.debug.subarray(0, 48))
    return 0
  }
  holdTrap(vcpu)
  earlyPayload(vcpu)
  const out = viewOf(bytes)
  for (let i = 0; i < 4; i++) out.setBigUint64(i * 8, vcpu.cpu.getBigUint64(CPU_DR + i * 8, true), true)
  out.setBigUint64(32, vcpu.cpu.getBigUint64(CPU_DR6, true), true)
  out.setBigUint64(40, vcpu.cpu.getBigUint64(CPU_DR7, true), true)
  return 0
}

function setDebugregs(vcpu: VcpuFd, bytes: Uint8Array): number {
  const view = viewOf(bytes)
  const dr6 = view.getBigUint64(32, true)
  const dr7 = view.getBigUint64(40, true)
  if (view.getBigUint64(48, true) !== 0n || dr6 >> 32n !== 0n || dr7 >> 32n !== 0n) {
    return vcpu.kernel.refuse(
      'EINVAL',
      'KVM_SET_DEBUGREGS',
      'flags must be 0 and DR6, DR7 fit 32 bits',
      'arch/x86/kvm/x86.c kvm_vcpu_ioctl_x86_set_debugregs',
    )
  }
  if (vcpu.sealed !== null) {
    vcpu.sealed.debug.set(bytes.subarray(0, 48))
    return 0
  }
  for (let i = 0; i < 4; i++) vcpu.cpu.setBigUint64(CPU_DR + i * 8, view.getBigUint64(i * 8, true), true)
  vcpu.cpu.setBigUint64(CPU_DR6, dr6, true)
  vcpu.cpu.setBigUint64(CPU_DR7, dr7, true)
  // What is armed is derived from DR7.
  vcpu.kernel.core.call.cpuModeChanged(vcpu.s)
  return 0
}

/** struct kvm_guest_debug: control, pad u32, debugreg[8]. guest_debug is 0 again when ENABLE is missing. */
function setGuestDebug(vcpu: VcpuFd, bytes: Uint8Array): number {
  const control = viewOf(bytes).getUint32(0, true)
  if ((control & (GUESTDBG.INJECT_DB | GUESTDBG.INJECT_BP)) !== 0) {
    const { exception, tripleFault } = heldEvents(vcpu)
    if (exception || tripleFault)
      return vcpu.kernel.refuse(
        'EBUSY',
        'KVM_SET_GUEST_DEBUG',
        'an exception is pending already',
        'arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_set_guest_debug',
      )
    const vector = (control & GUESTDBG.INJECT_DB) !== 0 ? 1 : 3
    hold(vcpu, { exception: { vector, error: null, pending: true, payload: null } })
    vcpu.eventBytes.set([0, vector, 0, 0, 0, 0, 0, 0])
  }
  vcpu.guestDebug = (control & GUESTDBG.ENABLE) !== 0 ? control : 0
  vcpu.kvm.setUint32(VKVM_GUEST_DEBUG, vcpu.guestDebug, true)
  const view = viewOf(bytes)
  for (let i = 0; i < 4; i++) vcpu.kvm.setBigUint64(VKVM_DEBUG_DR + i * 8, view.getBigUint64(8 + i * 8, true), true)
  vcpu.kvm.setBigUint64(VKVM_DEBUG_DR7, view.getBigUint64(64, true), true)
  vcpu.kernel.core.call.cpuModeChanged(vcpu.s)
  return 0
}

export const debugHandlers: readonly VcpuRow[] = [
  ['KVM_GET_DEBUGREGS', getDebugregs],
  ['KVM_SET_DEBUGREGS', setDebugregs],
  ['KVM_SET_GUEST_DEBUG', setGuestDebug],
]
