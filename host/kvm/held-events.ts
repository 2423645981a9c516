/** Events that wait in the core for the next KVM_RUN (assembly/kvm/held.ts): a view on VKVM_HELD*. */
import {
  CPU_DR6,
  CPU_PENDING_DB,
  HELD_ERROR,
  HELD_EXCEPTION,
  HELD_NMI,
  HELD_PAYLOAD,
  HELD_PENDING,
  HELD_TRIPLE_FAULT,
  VKVM_HELD,
  VKVM_HELD_ERROR,
  VKVM_HELD_PAYLOAD,
  VKVM_HELD_VECTOR,
} from '../generated/layout.ts'
import type { VcpuFd } from './vcpu.ts'

export interface HeldException {
  readonly vector: number
  readonly error: number | null
  /** Not yet injected: its payload (CR2, DR6) is still to come. */
  readonly pending: boolean
  readonly payload: bigint | null
}

export interface HeldEvents {
  readonly exception: HeldException | null
  readonly nmi: boolean
  readonly tripleFault: boolean
}

export function heldEvents({ kvm }: VcpuFd): HeldEvents {
  const held = kvm.getUint32(VKVM_HELD, true)
  return {
    exception:
      (held & HELD_EXCEPTION) === 0
        ? null
        : {
            vector: kvm.getUint32(VKVM_HELD_VECTOR, true),
            error: (held & HELD_ERROR) !== 0 ? kvm.getUint32(VKVM_HELD_ERROR, true) : null,
            pending: (held & HELD_PENDING) !== 0,
            payload: (held & HELD_PAYLOAD) !== 0 ? kvm.getBigUint64(VKVM_HELD_PAYLOAD, true) : null,
          },
    nmi: (held & HELD_NMI) !== 0,
    tripleFault: (held & HELD_TRIPLE_FAULT) !== 0,
  }
}

/** Replaces the parts given. */
export function hold(vcpu: VcpuFd, change: Partial<HeldEvents>): void {
  const { exception, nmi, tripleFault } = { ...heldEvents(vcpu), ...change }
  const { kvm } = vcpu
  let held = (nmi ? HELD_NMI : 0) | (tripleFault ? HELD_TRIPLE_FAULT : 0)
  if (exception !== null) {
    held |= HELD_EXCEPTION | (exception.pending ? HELD_PENDING : 0)
    if (exception.error !== null) held |= HELD_ERROR
    if (exception.payload !== null) held |= HELD_PAYLOAD
    kvm.setUint32(VKVM_HELD_VECTOR, exception.vector, true)
    kvm.setUint32(VKVM_HELD_ERROR, exception.error ?? 0, true)
    kvm.setBigUint64(VKVM_HELD_PAYLOAD, exception.payload ?? 0n, true)
  }
  kvm.setUint32(VKVM_HELD, held, true)
}

/** A single-step trap that waits for the boundary is a queued exception to KVM (kvm_inject_emulated_db). */
export function holdTrap(vcpu: VcpuFd): void {
  const bits = vcpu.cpu.getUint32(CPU_PENDING_DB, true)
  if (bits === 0 || vcpu.guestStateProtected || heldEvents(vcpu).exception !== null) return
  vcpu.cpu.setUint32(CPU_PENDING_DB, 0, true)
  hold(vcpu, { exception: { vector: 1, error: null, pending: true, payload: BigInt(bits) } })
}

/** kvm_handle_exception_payload_quirk: without the capability DR6 changes when somebody looks, not when the #DB is injected. */
export function earlyPayload(vcpu: VcpuFd): void {
  const { exception } = heldEvents(vcpu)
  if (vcpu.vm.exceptionPayload || !exception?.pending || exception.payload === null) return
  if (exception.vector === 1) {
    const dr6 = vcpu.cpu.getBigUint64(CPU_DR6, true)
    vcpu.cpu.setBigUint64(CPU_DR6, (dr6 & ~15n) | exception.payload, true)
  }
  hold(vcpu, { exception: { ...exception, payload: null } })
}
