/** A small VM driven through the raw core exports: code bytes in guest memory, registers by view, exits by KVM_RUN. */
import { call, L, loadCore, type Core } from '../support/core.ts'

/** Offsets in struct kvm_run. */
const RUN = { REASON: 8, IF: 13, CR8: 16, PAYLOAD: 32 } as const
export const EXIT = {
  IO: 2,
  HYPERCALL: 3,
  HLT: 5,
  MMIO: 6,
  IRQ_WINDOW: 7,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  INTERNAL_ERROR: 17,
  SYSTEM_EVENT: 24,
  AP_RESET_HOLD: 32,
} as const
export const GPR = { RAX: 0, RCX: 1, RDX: 2, RBX: 3, RSP: 4, RBP: 5, RSI: 6, RDI: 7 } as const

export interface GuestOptions {
  irqchip?: boolean
  split?: boolean
  pit?: boolean
  vcpus?: number
  /** VM_SEV, with an ASID. */
  sevEs?: boolean
  type?: number
  pages?: number
}

export class Guest {
  readonly core: Core
  readonly vm: number
  readonly cpus: number[] = []
  readonly backing: number

  constructor(options: GuestOptions = {}) {
    this.core = loadCore()
    this.vm = call(this.core, 'vmCreate')
    if (options.sevEs) {
      this.core.view.setUint32(this.vm + L.VM_SEV, 2, true)
      this.core.view.setUint32(this.vm + L.VM_ASID, 1, true)
      this.core.view.setUint32(this.vm + L.VM_TYPE, options.type ?? 3, true)
      this.core.view.setUint32(this.vm + L.VM_GHCB_VERSION, options.type === 0 ? 1 : 2, true)
      this.core.view.setBigUint64(this.vm + L.VM_C_BIT, 1n << 51n, true)
      call(this.core, 'setKey', 1, 0x1234n, 0x5678n)
    }
    if (options.irqchip || options.split) call(this.core, 'createIrqchip', this.vm, options.split ? 1 : 0)
    if (options.pit) call(this.core, 'createPit', this.vm, 1)
    const pages = options.pages ?? 512
    this.backing = call(this.core, 'backingCreate', pages)
    call(this.core, 'slotSet', this.vm, 0, 0n, BigInt(pages) << 12n, 0, this.backing, 0)
    for (let i = 0; i < (options.vcpus ?? 1); i++) this.cpus.push(call(this.core, 'vcpuCreate', this.vm, i))
  }

  get s(): number {
    return this.cpus[0] as number
  }

  write(gpa: number, bytes: readonly number[] | Uint8Array): void {
    for (let at = 0; at < bytes.length; at += 4096) {
      const part = bytes.slice(at, at + 4096)
      this.core.bytes.set(part, L.STAGING)
      call(this.core, 'backingWrite', this.backing, BigInt(gpa + at), L.STAGING, part.length)
    }
  }

  read(gpa: number, n: number): Uint8Array {
    call(this.core, 'backingRead', this.backing, BigInt(gpa), L.STAGING, n)
    return this.core.bytes.slice(L.STAGING, L.STAGING + n)
  }

  write64(gpa: number, value: bigint): void {
    this.write(gpa, [...new Uint8Array(new BigUint64Array([value]).buffer)])
  }

  read64(gpa: number): bigint {
    return new DataView(this.read(gpa, 8).slice().buffer).getBigUint64(0, true)
  }

  /** Real-mode entry: CS base 0, IP = `at`. */
  enter(at: number, s = this.s): void {
    const { view } = this.core
    const cs = s + L.CPU_SEGMENTS + L.SEG_CS * 16
    view.setBigUint64(cs + L.SEG_BASE, 0n, true)
    view.setUint16(cs + L.SEG_SELECTOR, 0, true)
    view.setBigUint64(s + L.CPU_RIP, BigInt(at), true)
    view.setBigUint64(s + GPR.RSP * 8, 0x7000n, true)
    call(this.core, 'cpuModeChanged', s)
  }

  reg(n: number, s = this.s): bigint {
    return this.core.view.getBigUint64(s + n * 8, true)
  }
  setReg(n: number, value: bigint, s = this.s): void {
    this.core.view.setBigUint64(s + n * 8, value, true)
  }
  rip(s = this.s): number {
    return Number(this.core.view.getBigUint64(s + L.CPU_RIP, true))
  }
  u32(field: number, s = this.s): number {
    return this.core.view.getUint32(s + field, true)
  }
  u64(field: number, s = this.s): bigint {
    return this.core.view.getBigUint64(s + field, true)
  }
  kvm32(field: number, s = this.s): number {
    return this.u32(L.VCPU_KVM + field, s)
  }
  kvm64(field: number, s = this.s): bigint {
    return this.u64(L.VCPU_KVM + field, s)
  }

  /** KVM_RUN. */
  run(s = this.s, budget = 100000n): number {
    return call(this.core, 'vcpuRun', s, budget) | 0
  }
  reason(s = this.s): number {
    return this.u32(L.VCPU_RUN + RUN.REASON, s)
  }
  payload(s = this.s): DataView {
    return new DataView(this.core.memory.buffer, s + L.VCPU_RUN + RUN.PAYLOAD, 256)
  }
  pio(s = this.s): Uint8Array {
    return new Uint8Array(this.core.memory.buffer, s + L.VCPU_PIO, 4096)
  }

  /** The port exit that KVM_RUN must have left with. */
  io(s = this.s): { write: boolean; size: number; port: number; count: number } {
    const p = this.payload(s)
    return { write: p.getUint8(0) !== 0, size: p.getUint8(1), port: p.getUint16(2, true), count: p.getUint32(4, true) }
  }
}
