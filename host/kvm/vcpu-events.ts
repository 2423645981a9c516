/** Events, interrupts, MP state and local APIC of a vCPU (arch/x86/kvm/x86.c, irq.c). */
import {
  CPU_EVENT,
  CPU_HALTED,
  CPU_INTERRUPT_SHADOW,
  CPU_NMI_BLOCKED,
  CPU_PENDING_DB,
  EVENT_INIT,
  EVENT_INTERRUPT,
  EVENT_NMI,
  EVENT_SIPI,
  EVENT_SMI,
  EXITS_HLT,
  STAGING,
  VM_DISABLED_EXITS,
  VKVM_INTERRUPT,
  VKVM_NMI_PENDING,
  VKVM_SIPI_VECTOR,
  VKVM_SMI_PENDING,
  VKVM_SMM,
} from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import { getInterruptShadow } from './guest-state.ts'
import { earlyPayload, heldEvents, hold, holdTrap } from './held-events.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

const X86 = 'arch/x86/kvm/x86.c'
/** kvm_vcpu_events.flags. */
const VALID = { NMI_PENDING: 1, SIPI_VECTOR: 2, SHADOW: 4, SMM: 8, PAYLOAD: 16, TRIPLE_FAULT: 32 } as const
/** kvm_mp_state. */
export const MP_STATE = { RUNNABLE: 0, UNINITIALIZED: 1, INIT_RECEIVED: 2, HALTED: 3, SIPI_RECEIVED: 4, AP_RESET_HOLD: 9 } as const
/** Offsets in struct kvm_vcpu_events. */
const AT = { SMM: 24, SMI_PENDING: 25, INSIDE_NMI: 26, LATCHED_INIT: 27, TRIPLE_FAULT: 28, HAS_PAYLOAD: 55, PAYLOAD: 56 } as const
/** A vector kept in VKVM_INTERRUPT carries this bit; 0 = none. */
const QUEUED = 0x100
/** It came by KVM_SET_VCPU_EVENTS or KVM_SET_SREGS: vcpu->arch.interrupt, not pending_external_vector. */
export const INJECTED = 0x200
/** A software interrupt: it happens again by itself, and KVM_GET_VCPU_EVENTS does not show it. */
export const SOFT = 0x400

/** svm_get_interrupt_shadow: the VMCB does not tell STI from MOV SS. */
const AMD_SHADOW = 3

function getEvents(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { vm, kvm } = vcpu
  holdTrap(vcpu)
  earlyPayload(vcpu)
  const held = heldEvents(vcpu)
  bytes.fill(0, 0, 64)
  const out = viewOf(bytes)
  const queued = kvm.getUint32(VKVM_INTERRUPT, true)
  // A vector of KVM_INTERRUPT waits outside arch.interrupt when the local APIC is in the kernel.
  const injected = queued !== 0 && (vm.irqchip !== 'split' || (queued & INJECTED) !== 0)
  // Fields of what is neither injected nor pending are left over from the last time.
  bytes.set(vcpu.eventBytes.subarray(1, 3), 1)
  bytes.set(vcpu.eventBytes.subarray(4, 8), 4)
  out.setUint8(8, injected && (queued & SOFT) === 0 ? 1 : 0)
  out.setUint8(9, injected ? queued & 0xff : (vcpu.eventBytes[9] as number))
  if (held.exception) {
    const { vector, error, pending, payload } = held.exception
    // Software exceptions (#BP, #OF) happen again; without payloads nobody tells pending from injected.
    const shown = vector !== 3 && vector !== 4
    out.setUint8(0, shown && (!pending || !vm.exceptionPayload) ? 1 : 0)
    out.setUint8(1, vector)
    out.setUint8(2, error === null ? 0 : 1)
    out.setUint8(3, shown && pending ? 1 : 0)
    if (error !== null) out.setUint32(4, error, true)
    out.setUint8(AT.HAS_PAYLOAD, payload === null ? 0 : 1)
    out.setBigUint64(AT.PAYLOAD, payload ?? 0n, true)
  }
  // rfc-2020 does not ask for the shadow of a protected guest; upstream's answer is none.
  const asks = !(vm.rfc2020 && vcpu.guestStateProtected)
  out.setUint8(11, asks && getInterruptShadow(vcpu) !== 0 ? AMD_SHADOW : 0)
  out.setUint8(12, held.nmi ? 1 : 0)
  // process_nmi: one beside a handler that runs, else two.
  const nmis = Math.min(kvm.getUint32(VKVM_NMI_PENDING, true), held.nmi || vcpu.cpu.getUint32(CPU_NMI_BLOCKED, true) !== 0 ? 1 : 2)
  kvm.setUint32(VKVM_NMI_PENDING, nmis, true)
  out.setUint8(13, nmis)
  out.setUint8(14, vcpu.cpu.getUint32(CPU_NMI_BLOCKED, true))
  const smm = kvm.getUint32(VKVM_SMM, true)
  out.setUint8(AT.SMM, smm & 1)
  out.setUint8(AT.SMI_PENDING, kvm.getUint32(VKVM_SMI_PENDING, true))
  out.setUint8(AT.INSIDE_NMI, (smm >> 1) & 1)
  out.setUint8(AT.LATCHED_INIT, vm.irqchip !== 'none' && (vcpu.cpu.getUint32(CPU_EVENT, true) & EVENT_INIT) !== 0 ? 1 : 0)
  let flags = VALID.NMI_PENDING | VALID.SHADOW | VALID.SMM
  if (vm.exceptionPayload) flags |= VALID.PAYLOAD
  if (vm.tripleFaultEvent) {
    flags |= VALID.TRIPLE_FAULT
    out.setUint8(AT.TRIPLE_FAULT, held.tripleFault ? 1 : 0)
  }
  if (vm.rfc2020 && vcpu.guestStateProtected) flags = VALID.NMI_PENDING
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
  if ((flags & ~allowed) !== 0) return refuse(`flags 0x${flags.toString(16)} are not possible here`)
  const pending = (flags & VALID.PAYLOAD) !== 0 && view.getUint8(3) !== 0
  const injected = !pending && view.getUint8(0) !== 0
  const nr = view.getUint8(1)
  if (injected && vm.rfc2020 && vm.hasProtectedEoi) return refuse('no exception can be injected into a TD (rfc-2020, A7)')
  if ((injected || pending) && (nr > 31 || nr === 2)) return refuse(`exception ${nr} cannot be injected`)
  const error = view.getUint8(2) !== 0 ? view.getUint32(4, true) : null
  const payload = pending && view.getUint8(AT.HAS_PAYLOAD) !== 0 ? view.getBigUint64(AT.PAYLOAD, true) : null
  const tripleFault =
    (flags & VALID.TRIPLE_FAULT) !== 0 && vm.tripleFaultEvent ? view.getUint8(AT.TRIPLE_FAULT) !== 0 : heldEvents(vcpu).tripleFault
  hold(vcpu, {
    exception: injected || pending ? { vector: nr, error, pending, payload } : null,
    nmi: view.getUint8(12) !== 0,
    tripleFault,
  })
  if (!vcpu.guestStateProtected) vcpu.cpu.setUint32(CPU_PENDING_DB, 0, true)
  vcpu.eventBytes.set(bytes.subarray(0, 16))
  vcpu.eventBytes[2] = error === null ? 0 : 1
  const soft = view.getUint8(10) !== 0 ? SOFT : 0
  if (view.getUint8(8) !== 0) vcpu.kvm.setUint32(VKVM_INTERRUPT, QUEUED | INJECTED | soft | view.getUint8(9), true)
  else if (vm.irqchip !== 'split' || (vcpu.kvm.getUint32(VKVM_INTERRUPT, true) & INJECTED) !== 0)
    vcpu.kvm.setUint32(VKVM_INTERRUPT, 0, true)
  const shadow = view.getUint8(11)
  if ((flags & VALID.SHADOW) !== 0 && !vcpu.guestStateProtected)
    vcpu.cpu.setUint32(CPU_INTERRUPT_SHADOW, shadow === 0 ? 0 : shadow === 1 ? 1 : 2, true)
  if ((flags & VALID.NMI_PENDING) !== 0)
    vcpu.kvm.setUint32(VKVM_NMI_PENDING, Math.min(view.getUint8(14) !== 0 || view.getUint8(12) !== 0 ? 1 : 2, view.getUint8(13)), true)
  if (!vcpu.guestStateProtected) vcpu.cpu.setUint32(CPU_NMI_BLOCKED, view.getUint8(14) !== 0 ? 1 : 0, true)
  if ((flags & VALID.SIPI_VECTOR) !== 0 && vm.irqchip !== 'none') vcpu.kvm.setUint32(VKVM_SIPI_VECTOR, view.getUint32(16, true), true)
  if ((flags & VALID.SMM) !== 0) setSmm(vcpu, view)
  vcpu.signal(EVENT_INTERRUPT | EVENT_NMI | EVENT_SMI)
  // Linux's last check: all else has taken effect.
  return (flags & VALID.TRIPLE_FAULT) !== 0 && !vm.tripleFaultEvent ? refuse('KVM_CAP_X86_TRIPLE_FAULT_EVENT is not enabled') : 0
}

/** The smi fields: mode, pending SMI, NMI mask of the interrupted code, and an INIT that waits. */
function setSmm(vcpu: VcpuFd, view: DataView): void {
  const { kvm } = vcpu
  const on = view.getUint8(AT.SMM) !== 0
  if (on !== ((kvm.getUint32(VKVM_SMM, true) & 1) !== 0)) vcpu.kernel.core.call.smmChanged(vcpu.s, on ? 1 : 0)
  if (on) kvm.setUint32(VKVM_SMM, view.getUint8(AT.INSIDE_NMI) !== 0 ? 3 : 1, true)
  kvm.setUint32(VKVM_SMI_PENDING, view.getUint8(AT.SMI_PENDING) !== 0 ? 1 : 0, true)
  if (vcpu.vm.irqchip === 'none') return
  if (view.getUint8(AT.LATCHED_INIT) !== 0) vcpu.signal(EVENT_INIT)
  else vcpu.unsignal(EVENT_INIT)
}

/** Userspace's interrupt controller: one vector at a time. */
function interrupt(vcpu: VcpuFd, bytes: Uint8Array): number {
  const { kernel, vm } = vcpu
  const irq = viewOf(bytes).getUint32(0, true)
  const source = `${X86} kvm_vcpu_ioctl_interrupt`
  if (irq >= 256) return kernel.refuse('EINVAL', 'KVM_INTERRUPT', `vector ${irq}`, source)
  if (vm.irqchip === 'full') return kernel.refuse('ENXIO', 'KVM_INTERRUPT', 'the interrupt controller is in the kernel', source)
  const queued = vcpu.kvm.getUint32(VKVM_INTERRUPT, true)
  if (vm.irqchip === 'split' && queued !== 0 && (queued & INJECTED) === 0) {
    return kernel.refuse('EEXIST', 'KVM_INTERRUPT', 'an external vector is pending already', source)
  }
  if (vm.irqchip === 'none') vcpu.eventBytes[9] = irq
  vcpu.kvm.setUint32(VKVM_INTERRUPT, QUEUED | (vm.irqchip === 'none' ? INJECTED : 0) | irq, true)
  vcpu.signal(EVENT_INTERRUPT)
  return 0
}

function smi(vcpu: VcpuFd): number {
  // kvm_x86_has_emulated_msr(kvm, MSR_IA32_SMBASE): false from the SEV-ES init command on.
  if (vcpu.vm.sevEs || vcpu.vm.hasProtectedEoi) {
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
  vcpu.kernel.core.call.queueSmi(vcpu.s)
  return 0
}

function getMpState(vcpu: VcpuFd, bytes: Uint8Array): number {
  // kvm_apic_accept_events: INIT and SIPI take effect before anyone looks.
  if (vcpu.vm.td === null) vcpu.kernel.core.call.acceptEvents(vcpu.s)
  const state = vcpu.cpu.getUint32(CPU_HALTED, true)
  // Of a HLT that is not intercepted KVM knows nothing.
  const unseen = state === MP_STATE.HALTED && (vcpu.vm.view.getUint32(VM_DISABLED_EXITS, true) & EXITS_HLT) !== 0
  const shown = unseen ? MP_STATE.RUNNABLE : state === MP_STATE.SIPI_RECEIVED ? MP_STATE.INIT_RECEIVED : state
  viewOf(bytes).setUint32(0, shown, true)
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
  core.staging.set(bytes.subarray(0, 1024))
  core.call.lapicSet(vcpu.s, STAGING)
  return 0
}

export const eventHandlers: readonly VcpuRow[] = [
  ['KVM_GET_VCPU_EVENTS', getEvents],
  ['KVM_SET_VCPU_EVENTS', setEvents],
  // A TD's vector is taken and lost, after the same checks.
  ['KVM_INTERRUPT', interrupt, { checks: true }],
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
  ['KVM_SET_LAPIC', setLapic, { first: (vcpu: VcpuFd) => lapic(vcpu, 'KVM_SET_LAPIC') }],
]
