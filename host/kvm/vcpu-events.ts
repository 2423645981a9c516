/** Events, interrupts, MP state and local APIC of a vCPU (arch/x86/kvm/x86.c, irq.c). */
import {
  CPU_HALTED,
  CPU_INTERRUPT_SHADOW,
  CPU_NMI_BLOCKED,
  EVENT_INTERRUPT,
  EVENT_NMI,
  EVENT_SIPI,
  STAGING,
  VKVM_INTERRUPT,
  VKVM_NMI_PENDING,
  VKVM_SIPI_VECTOR,
} from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

const X86 = 'arch/x86/kvm/x86.c'
/** kvm_vcpu_events.flags. */
const VALID = { NMI_PENDING: 1, SIPI_VECTOR: 2, SHADOW: 4, SMM: 8, PAYLOAD: 16, TRIPLE_FAULT: 32 } as const
/** kvm_mp_state. */
export const MP_STATE = { RUNNABLE: 0, UNINITIALIZED: 1, INIT_RECEIVED: 2, HALTED: 3, SIPI_RECEIVED: 4, AP_RESET_HOLD: 9 } as const
/** A vector kept in VKVM_INTERRUPT carries this bit; 0 = none. */
const QUEUED = 0x100

function getEvents(vcpu: VcpuFd, bytes: Uint8Array): number {
  bytes.fill(0, 0, 64)
  const out = viewOf(bytes)
  const queued = vcpu.kvm.getUint32(VKVM_INTERRUPT, true)
  out.setUint8(8, queued !== 0 && vcpu.vm.irqchip !== 'split' ? 1 : 0)
  out.setUint8(9, vcpu.vm.irqchip !== 'split' ? queued & 0xff : 0)
  const { held } = vcpu
  if (held?.exception) {
    const { vector, error, payload } = held.exception
    for (const [at, value] of [
      [payload ? 3 : 0, 1],
      [1, vector],
      [2, error === null ? 0 : 1],
    ] as const)
      out.setUint8(at, value)
    out.setUint32(4, error ?? 0, true)
  }
  out.setUint8(12, held?.nmi ? 1 : 0)
  out.setUint8(25, held?.smi ? 1 : 0)
  out.setUint8(28, held?.tripleFault ? 1 : 0)
  // The guest's own shadow is not KVM's to see once its state is protected.
  out.setUint8(11, vcpu.guestStateProtected ? 0 : vcpu.cpu.getUint32(CPU_INTERRUPT_SHADOW, true))
  out.setUint8(13, vcpu.kvm.getUint32(VKVM_NMI_PENDING, true))
  out.setUint8(14, vcpu.cpu.getUint32(CPU_NMI_BLOCKED, true))
  let flags = VALID.NMI_PENDING | VALID.SHADOW | VALID.SMM
  if (vcpu.vm.exceptionPayload) flags |= VALID.PAYLOAD
  if (vcpu.vm.tripleFaultEvent) flags |= VALID.TRIPLE_FAULT
  if (vcpu.vm.rfc2020 && vcpu.guestStateProtected) flags = VALID.NMI_PENDING
  out.setUint32(20, flags, true)
  return 0
}

function setEvents(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, vm } = vcpu
  const view = viewOf(bytes)
  const flags = view.getUint32(20, true)
  const refuse = (reason: string): number =>
    kernel.refuse('EINVAL', 'KVM_SET_VCPU_EVENTS', reason, `${X86} kvm_vcpu_ioctl_x86_set_vcpu_events`)
  let allowed = vm.rfc2020 && vcpu.guestStateProtected ? VALID.NMI_PENDING : 0x3f
  if (!vm.exceptionPayload) allowed &= ~VALID.PAYLOAD
  if (!vm.tripleFaultEvent) allowed &= ~VALID.TRIPLE_FAULT
  if ((flags & ~allowed) !== 0) return refuse(`flags 0x${flags.toString(16)} are not possible here`)
  const injected = view.getUint8(0) !== 0
  const pending = (flags & VALID.PAYLOAD) !== 0 && view.getUint8(3) !== 0
  const nr = view.getUint8(1)
  if (injected && vm.rfc2020 && vm.hasProtectedEoi) return refuse('no exception can be injected into a TD (rfc-2020, A7)')
  if ((injected || pending) && (nr > 31 || nr === 2)) return refuse(`exception ${nr} cannot be injected`)
  if ((flags & VALID.SMM) !== 0 && view.getUint8(24) !== 0) return kernel.unimplemented('KVM_SET_VCPU_EVENTS', 'system management mode')
  const error = view.getUint8(2) !== 0 ? view.getUint32(4, true) : null
  const held = {
    exception: injected || pending ? { vector: nr, error, payload: !injected } : null,
    nmi: view.getUint8(12) !== 0,
    smi: (flags & VALID.SMM) !== 0 ? view.getUint8(25) !== 0 : (vcpu.held?.smi ?? false),
    tripleFault: (flags & VALID.TRIPLE_FAULT) !== 0 && view.getUint8(28) !== 0,
  }
  vcpu.held = held.exception !== null || held.nmi || held.smi || held.tripleFault ? held : null
  if (vm.irqchip !== 'split') vcpu.kvm.setUint32(VKVM_INTERRUPT, view.getUint8(8) !== 0 ? QUEUED | view.getUint8(9) : 0, true)
  if ((flags & VALID.SHADOW) !== 0 && !vcpu.guestStateProtected) vcpu.cpu.setUint32(CPU_INTERRUPT_SHADOW, view.getUint8(11) & 3, true)
  if ((flags & VALID.NMI_PENDING) !== 0) vcpu.kvm.setUint32(VKVM_NMI_PENDING, Math.min(2, view.getUint8(13)), true)
  if (!vcpu.guestStateProtected) vcpu.cpu.setUint32(CPU_NMI_BLOCKED, view.getUint8(14) !== 0 ? 1 : 0, true)
  vcpu.signal(EVENT_INTERRUPT | EVENT_NMI)
  return 0
}

/** Userspace's interrupt controller: one vector at a time. */
function interrupt(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, vm } = vcpu
  const irq = viewOf(bytes).getUint32(0, true)
  const source = `${X86} kvm_vcpu_ioctl_interrupt`
  if (irq >= 256) return kernel.refuse('EINVAL', 'KVM_INTERRUPT', `vector ${irq}`, source)
  if (vm.irqchip === 'full') return kernel.refuse('ENXIO', 'KVM_INTERRUPT', 'the interrupt controller is in the kernel', source)
  if (vm.irqchip === 'split' && vcpu.kvm.getUint32(VKVM_INTERRUPT, true) !== 0) {
    return kernel.refuse('EEXIST', 'KVM_INTERRUPT', 'an external vector is pending already', source)
  }
  vcpu.kvm.setUint32(VKVM_INTERRUPT, QUEUED | irq, true)
  vcpu.signal(EVENT_INTERRUPT)
  return 0
}

function smi(vcpu: VcpuFd): number {
  // kvm_x86_has_emulated_msr(kvm, MSR_IA32_SMBASE): false from the SEV-ES init command on.
  if (vcpu.vm.sevEs) {
    return vcpu.kernel.refuse(
      'ENOTTY',
      'KVM_SMI',
      'no system management mode for a guest with encrypted state',
      `${X86} kvm_inject_smi (has_emulated_msr SMBASE)`,
      {
        switch: 'has_emulated_msr(SMBASE)',
      },
    )
  }
  // Accepted and pending, as in Linux; KVM_RUN then names what is missing.
  vcpu.held = { exception: null, nmi: false, tripleFault: false, ...vcpu.held, smi: true }
  return 0
}

function getMpState(vcpu: VcpuFd, bytes: Uint8Array): number {
  const state = vcpu.cpu.getUint32(CPU_HALTED, true)
  viewOf(bytes).setUint32(0, state === MP_STATE.SIPI_RECEIVED ? MP_STATE.INIT_RECEIVED : state, true)
  return 0
}

function setMpState(vcpu: VcpuFd, bytes: Uint8Array): number {
  const state = viewOf(bytes).getUint32(0, true)
  const known = Object.values(MP_STATE).includes(state as 0)
  if (!known || (state !== MP_STATE.RUNNABLE && vcpu.vm.irqchip === 'none')) {
    const why = known ? 'needs the local APIC in the kernel' : 'is not an MP state'
    return vcpu.kernel.refuse('EINVAL', 'KVM_SET_MP_STATE', `${state} ${why}`, `${X86} kvm_arch_vcpu_ioctl_set_mpstate`)
  }
  if (state === MP_STATE.SIPI_RECEIVED) {
    // KVM keeps INIT_RECEIVED and makes the SIPI pending.
    vcpu.cpu.setUint32(CPU_HALTED, MP_STATE.INIT_RECEIVED, true)
    vcpu.kvm.setUint32(VKVM_SIPI_VECTOR, 0, true)
    vcpu.signal(EVENT_SIPI)
    return 0
  }
  vcpu.cpu.setUint32(CPU_HALTED, state, true)
  vcpu.signal(0)
  return 0
}

function lapic(vcpu: VcpuFd, name: string): number {
  return vcpu.vm.irqchip === 'none'
    ? vcpu.kernel.refuse('EINVAL', name, 'the local APIC is not in the kernel', `${X86} kvm_arch_vcpu_ioctl`)
    : 0
}

function getLapic(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { core } = vcpu.kernel
  const refused = lapic(vcpu, 'KVM_GET_LAPIC')
  if (refused < 0) return refused
  core.call.lapicGet(vcpu.s, STAGING)
  bytes.set(core.staging.subarray(0, 1024))
  return 0
}

function setLapic(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { core } = vcpu.kernel
  const refused = lapic(vcpu, 'KVM_SET_LAPIC')
  if (refused < 0) return refused
  core.staging.set(bytes.subarray(0, 1024))
  core.call.lapicSet(vcpu.s, STAGING)
  return 0
}

export const eventHandlers: readonly VcpuRow[] = [
  ['KVM_GET_VCPU_EVENTS', getEvents],
  ['KVM_SET_VCPU_EVENTS', setEvents],
  ['KVM_INTERRUPT', interrupt],
  [
    'KVM_NMI',
    (vcpu) => {
      vcpu.kernel.core.call.queueNmi(vcpu.s)
      return 0
    },
  ],
  ['KVM_SMI', smi],
  ['KVM_GET_MP_STATE', getMpState],
  ['KVM_SET_MP_STATE', setMpState],
  ['KVM_GET_LAPIC', getLapic],
  ['KVM_SET_LAPIC', setLapic],
]
