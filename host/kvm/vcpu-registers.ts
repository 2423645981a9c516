/** KVM_GET/SET_REGS, SREGS and SREGS2 (arch/x86/kvm/regs.c of 7.3; x86.c before). */
import { CPU_APIC_BASE, CPU_CR0, CPU_CR4, CPU_CR8, CPU_EFER, VM_PHYS_MASK } from '../generated/layout.js'
import { viewOf } from './dispatch.js'
import { getRegs, getSregs, setRegs, setSregs, SREGS, validSregs } from './registers.js'
import type { VcpuRow } from './vcpu-ioctls.js'
import type { VcpuFd } from './vcpu.js'

/** Legacy SEV-ES: only what the write traps and the GHCB told KVM is valid (facts/kvm.md 2.1). */
function getProtectedSregs(vcpu: VcpuFd, out: DataView): void {
  for (const [from, at] of [
    [CPU_CR0, SREGS.CR0], [CPU_CR4, SREGS.CR4], [CPU_CR8, SREGS.CR8], [CPU_EFER, SREGS.EFER], [CPU_APIC_BASE, SREGS.APIC_BASE],
  ] as const) {
    out.setBigUint64(at, vcpu.cpu.getBigUint64(from, true), true)
  }
}

function physMask(vcpu: VcpuFd): bigint {
  const mask = vcpu.vm.view.getBigUint64(VM_PHYS_MASK, true)
  return mask === 0n ? 0xfffffffffffffn : mask
}

function storeSregs(vcpu: VcpuFd, name: string, from: DataView): number {
  if (!validSregs(from, physMask(vcpu))) {
    return vcpu.kernel.refuse('EINVAL', name, 'CR0, CR3, CR4, EFER and CS do not fit together', 'arch/x86/kvm/regs.c kvm_is_valid_sregs')
  }
  vcpu.cpu.setBigUint64(CPU_APIC_BASE, from.getBigUint64(SREGS.APIC_BASE, true), true)
  if (vcpu.guestStateProtected) return 0
  setSregs(vcpu.cpu, from)
  vcpu.kernel.core.call.cpuModeChanged(vcpu.s)
  return 0
}

export const registerHandlers: readonly VcpuRow[] = [
  [
    'KVM_GET_REGS',
    (vcpu, bytes) => {
      getRegs(vcpu.kernel.core.call, vcpu.s, vcpu.cpu, viewOf(bytes))
      return 0
    },
  ],
  [
    'KVM_SET_REGS',
    (vcpu, bytes) => {
      setRegs(vcpu.kernel.core.call, vcpu.s, vcpu.cpu, viewOf(bytes))
      return 0
    },
  ],
  [
    'KVM_GET_SREGS',
    (vcpu, bytes) => {
      bytes.fill(0, 0, 312)
      if (vcpu.guestStateProtected) getProtectedSregs(vcpu, viewOf(bytes))
      else getSregs(vcpu.cpu, viewOf(bytes))
      return 0
    },
  ],
  ['KVM_SET_SREGS', (vcpu, bytes) => storeSregs(vcpu, 'KVM_SET_SREGS', viewOf(bytes))],
  [
    'KVM_GET_SREGS2',
    (vcpu, bytes) => {
      bytes.fill(0, 0, 320)
      if (vcpu.guestStateProtected) getProtectedSregs(vcpu, viewOf(bytes))
      else getSregs(vcpu.cpu, viewOf(bytes))
      return 0
    },
  ],
  ['KVM_SET_SREGS2', (vcpu, bytes) => storeSregs(vcpu, 'KVM_SET_SREGS2', viewOf(bytes))],
]
