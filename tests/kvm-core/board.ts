/** A VM with the in-kernel chips whose guest's only job is to execute one access at a time. */
import { call, L } from '../support/core.ts'
import { Guest } from './guest.ts'

export const CODE = 0x1000
export const APIC = 0xfee00000
export const IOAPIC = 0xfec00000

export class Board extends Guest {
  constructor(options: { vcpus?: number } = {}) {
    super({ irqchip: true, pit: true, ...options })
    for (const s of this.cpus) {
      this.open(s)
      this.core.view.setUint32(s + L.CPU_HALTED, 0, true)
      this.cpuid(s)
    }
  }
  /** DS reaches 4 GiB. */
  open(s: number): void {
    this.core.view.setUint32(s + L.CPU_SEGMENTS + L.SEG_DS * 16 + L.SEG_LIMIT, 0xffffffff, true)
  }
  cpuid(s: number): void {
    const { view } = this.core
    const entries = [
      [0, 0, 0, 7, 0x68747541, 0x444d4163, 0x69746e65],
      [1, 0, 0, 0xa00f11, 0, (1 << 21) | (1 << 24), 0x178bfbff],
      [7, 0, 1, 0, 2, 0, 0], // TSC_ADJUST
    ]
    view.setUint32(s + L.VCPU_CPUID, entries.length, true)
    entries.forEach((e, i) => {
      for (const [j, value] of e.entries()) view.setUint32(s + L.VCPU_CPUID + 16 + i * 40 + j * 4, value, true)
    })
    call(this.core, 'cpuidChanged', s)
  }
  step(code: number[], s: number): void {
    this.write(CODE, code)
    this.enter(CODE, s)
    this.run(s, 1n)
  }
  out(port: number, value: number): void {
    this.setReg(2, BigInt(port))
    this.setReg(0, BigInt(value))
    this.step([0xee], this.s)
  }
  in(port: number): number {
    this.setReg(2, BigInt(port))
    this.step([0xec], this.s)
    return Number(this.reg(0) & 0xffn)
  }
  store(gpa: number, value: number, s = this.s): void {
    this.setReg(3, BigInt(gpa), s)
    this.setReg(0, BigInt(value >>> 0), s)
    this.step([0x67, 0x66, 0x89, 0x03], s) // mov [ebx], eax
  }
  load(gpa: number, s = this.s): number {
    this.setReg(3, BigInt(gpa), s)
    this.step([0x67, 0x66, 0x8b, 0x03], s)
    return Number(this.reg(0, s) & 0xffffffffn)
  }
  /** Lets time pass by instructions of an endless loop. */
  wait(ns: number, s = this.s): void {
    this.write(CODE, [0xeb, 0xfe])
    this.enter(CODE, s)
    this.run(s, BigInt(ns))
  }
  ioapic(index: number, value?: number): number {
    this.store(IOAPIC, index)
    if (value !== undefined) this.store(IOAPIC + 16, value)
    return this.load(IOAPIC + 16)
  }
  irq(gsi: number, level: number): void {
    call(this.core, 'irqLine', this.vm, gsi, level)
  }
  /** Bit `vector` of IRR, ISR or TMR. */
  bit(base: number, vector: number, s = this.s): boolean {
    return ((this.load(APIC + base + (vector >> 5) * 16, s) >>> (vector & 31)) & 1) !== 0
  }
  initPic(): void {
    for (const [port, values] of [
      [0x20, [0x11]],
      [0x21, [0x20, 4, 1]],
      [0xa0, [0x11]],
      [0xa1, [0x28, 2, 1]],
    ] as const)
      for (const v of values) this.out(port, v)
    this.out(0x21, 0)
    this.out(0xa1, 0)
  }
  setPic(bytes: Uint8Array, slave = 0): void {
    this.core.bytes.set(bytes, L.STAGING)
    call(this.core, 'picSet', this.vm, slave, L.STAGING)
  }
  /** The PIC master's bytes as KVM_GET_IRQCHIP returns them. */
  pic(slave = 0): Uint8Array {
    call(this.core, 'picGet', this.vm, slave, L.STAGING)
    return this.core.bytes.slice(L.STAGING, L.STAGING + 16)
  }
}
