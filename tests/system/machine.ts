/**
 * A machine for tests of the privileged architecture: 4 MiB of RAM, descriptor tables, TSS and page
 * tables at fixed places, one HLT stub per vector, and code given as bytes.
 */
import { call, loadCore, L, type Core } from '../support/core.ts'

export { L }
export const GDT = 0x1000
export const IDT = 0x2000
export const TSS = 0x3000
export const LDT = 0x3800
export const CODE = 0x10000
export const STUBS = 0x8000
export const STACK = 0x20000
export const STACK0 = 0x28000
export const IST1 = 0x2c000
export const PML4 = 0x40000
/** Selectors of the GDT every test gets. */
export const KCODE = 0x08
export const KDATA = 0x10
export const UDATA = 0x1b
export const UCODE = 0x23
export const KCODE64 = 0x28
export const TSS_SEL = 0x30
export const LDT_SEL = 0x40
export const UCODE64 = 0x53
export const UDATA64 = 0x5b
export const CODE16 = 0x60
/** First free descriptor for a test's own. */
export const FREE = 0x80

export type Mode = 'real' | 'protected' | 'long'

export function descriptor(base: number, limit: number, attrib: number): bigint {
  const b = BigInt(base)
  const l = BigInt(limit)
  return (
    (l & 0xffffn) |
    ((b & 0xffffffn) << 16n) |
    (BigInt(attrib & 0xff) << 40n) |
    ((l & 0xf0000n) << 32n) |
    (BigInt(attrib & 0xf00) << 44n) |
    ((b & 0xff000000n) << 32n)
  )
}

/** Gate of a given type byte (0x8e interrupt, 0x8f trap, 0x86/0x87 16-bit, 0xee DPL 3, 0x8c call). */
export function gate(selector: number, offset: number, type: number, low = 0): bigint {
  const o = BigInt(offset)
  return (o & 0xffffn) | (BigInt(selector) << 16n) | (BigInt(low) << 32n) | (BigInt(type) << 40n) | ((o & 0xffff0000n) << 32n)
}

export class Machine {
  readonly core: Core
  readonly vm: number
  readonly s: number
  readonly backing: number
  readonly mode: Mode

  /** `chips`: PIC, IOAPIC, local APIC and PIT are there (run by `vcpuRun`). */
  constructor(mode: Mode, chips = false) {
    this.mode = mode
    this.core = loadCore()
    this.vm = call(this.core, 'vmCreate')
    if (chips) {
      call(this.core, 'createIrqchip', this.vm, 0)
      call(this.core, 'createPit', this.vm, 1)
    }
    this.backing = call(this.core, 'backingCreate', 1024)
    call(this.core, 'slotSet', this.vm, 0, 0n, 0x400000n, 0, this.backing, 0)
    this.s = call(this.core, 'vcpuCreate', this.vm, 0)
    for (let v = 0; v < 256; v++) this.poke(STUBS + v * 16, 0xf4n, 1)
    if (mode === 'real') this.real()
    else this.tables()
  }

  u64(field: number): bigint {
    return this.core.view.getBigUint64(this.s + field, true)
  }
  set64(field: number, value: bigint): void {
    this.core.view.setBigUint64(this.s + field, BigInt.asUintN(64, value), true)
  }
  u32(field: number): number {
    return this.core.view.getUint32(this.s + field, true)
  }
  set32(field: number, value: number): void {
    this.core.view.setUint32(this.s + field, value, true)
  }
  reg(n: number): bigint {
    return this.u64(L.CPU_GPR + n * 8)
  }
  setReg(n: number, value: bigint): void {
    this.set64(L.CPU_GPR + n * 8, value)
  }
  get rip(): bigint {
    return this.u64(L.CPU_RIP)
  }
  get cpl(): number {
    return this.u32(L.CPU_CPL)
  }
  get flags(): bigint {
    return BigInt.asUintN(64, this.core.x['cpuGetFlags']?.(this.s) ?? 0n)
  }
  setFlags(value: bigint): void {
    this.core.x['cpuSetFlags']?.(this.s, value)
  }
  selector(n: number): number {
    return this.core.view.getUint16(this.s + L.CPU_SEGMENTS + n * 16 + L.SEG_SELECTOR, true)
  }
  attrib(n: number): number {
    return this.core.view.getUint16(this.s + L.CPU_SEGMENTS + n * 16 + L.SEG_ATTRIB, true)
  }
  base(n: number): bigint {
    return this.core.view.getBigUint64(this.s + L.CPU_SEGMENTS + n * 16 + L.SEG_BASE, true)
  }
  limit(n: number): number {
    return this.core.view.getUint32(this.s + L.CPU_SEGMENTS + n * 16 + L.SEG_LIMIT, true)
  }

  segment(n: number, selector: number, base: bigint, limit: number, attrib: number): void {
    const at = this.s + L.CPU_SEGMENTS + n * 16
    this.core.view.setBigUint64(at + L.SEG_BASE, base, true)
    this.core.view.setUint32(at + L.SEG_LIMIT, limit, true)
    this.core.view.setUint16(at + L.SEG_SELECTOR, selector, true)
    this.core.view.setUint16(at + L.SEG_ATTRIB, attrib, true)
  }

  poke(gpa: number, value: bigint, size = 8): void {
    this.core.view.setBigUint64(L.STAGING, BigInt.asUintN(64, value), true)
    call(this.core, 'backingWrite', this.backing, BigInt(gpa), L.STAGING, size)
  }

  peek(gpa: number, size = 8): bigint {
    this.core.view.setBigUint64(L.STAGING, 0n, true)
    call(this.core, 'backingRead', this.backing, BigInt(gpa), L.STAGING, size)
    return this.core.view.getBigUint64(L.STAGING, true)
  }

  code(bytes: readonly number[], at = CODE): void {
    bytes.forEach((b, i) => this.poke(at + i, BigInt(b), 1))
  }

  /** A CPUID table that has all features; without one, those that every CPU has are there. */
  everyFeature(): void {
    const leaves = [0, 1, 7, 0x80000001]
    leaves.forEach((leaf, i) => {
      const registers = leaf === 0 ? [0xd, 0x68747541, 0x444d4163, 0x69746e65] : [-1, -1, -1, -1]
      const words = [leaf, 0, leaf === 7 ? 1 : 0, ...registers]
      words.forEach((w, k) => this.core.view.setUint32(this.s + L.VCPU_CPUID + 16 + i * 40 + k * 4, w, true))
    })
    this.core.view.setUint32(this.s + L.VCPU_CPUID, leaves.length, true)
    call(this.core, 'cpuidChanged', this.s)
  }

  changed(): void {
    call(this.core, 'cpuModeChanged', this.s)
  }

  private real(): void {
    for (let v = 0; v < 256; v++) this.poke(v * 4, BigInt(STUBS + v * 16), 4)
    for (let n = 0; n < 6; n++) this.segment(n, 0, 0n, 0xffff, 0x93)
    this.segment(L.SEG_CS, CODE >> 4, BigInt(CODE), 0xffff, 0x9b)
    this.segment(L.SEG_IDTR, 0, 0n, 0x3ff, 0)
    this.setReg(4, 0x7000n)
    this.set64(L.CPU_RIP, 0n)
    this.changed()
  }

  private tables(): void {
    const long = this.mode === 'long'
    const put = (selector: number, d: bigint): void => this.poke(GDT + (selector & 0xfff8), d)
    put(KCODE, descriptor(0, 0xfffff, 0xc9b))
    put(KDATA, descriptor(0, 0xfffff, 0xc93))
    put(UDATA, descriptor(0, 0xfffff, 0xcf3))
    put(UCODE, descriptor(0, 0xfffff, 0xcfb))
    put(KCODE64, descriptor(0, 0xfffff, 0xa9b))
    put(TSS_SEL, descriptor(TSS, 0x67, 0x08b))
    put(LDT_SEL, descriptor(LDT, 0x7f, 0x082))
    put(UCODE64, descriptor(0, 0xfffff, 0xafb))
    put(UDATA64, descriptor(0, 0xfffff, 0xcf3))
    put(CODE16, descriptor(0, 0xffff, 0x09b))
    for (let v = 0; v < 256; v++) this.idt(v, gate(long ? KCODE64 : KCODE, STUBS + v * 16, 0x8e))
    this.segment(L.SEG_GDTR, 0, BigInt(GDT), 0x3ff, 0)
    this.segment(L.SEG_IDTR, 0, BigInt(IDT), long ? 0xfff : 0x7ff, 0)
    this.segment(L.SEG_TR, TSS_SEL, BigInt(TSS), 0x67, 0x8b)
    for (const n of [L.SEG_ES, L.SEG_SS, L.SEG_DS, L.SEG_FS, L.SEG_GS]) this.segment(n, KDATA, 0n, 0xffffffff, 0xc93)
    if (long) {
      this.segment(L.SEG_CS, KCODE64, 0n, 0xffffffff, 0xa9b)
      this.poke(TSS + 4, BigInt(STACK0))
      this.poke(TSS + 0x24, BigInt(IST1))
      this.poke(PML4, BigInt(PML4 + 0x1000) | 7n)
      this.poke(PML4 + 0x1000, BigInt(PML4 + 0x2000) | 7n)
      for (let i = 0; i < 4; i++) this.poke(PML4 + 0x2000 + i * 8, BigInt(i * 0x200000) | 0x87n)
      this.set64(L.CPU_CR3, BigInt(PML4))
      this.set64(L.CPU_CR4, 0x20n)
      this.set64(L.CPU_EFER, 0x501n)
      this.set64(L.CPU_CR0, 0x80000011n)
    } else {
      this.segment(L.SEG_CS, KCODE, 0n, 0xffffffff, 0xc9b)
      this.poke(TSS + 4, BigInt(STACK0), 4)
      this.poke(TSS + 8, BigInt(KDATA), 4)
      this.set64(L.CPU_CR0, 0x11n)
    }
    this.setReg(4, BigInt(STACK))
    this.set64(L.CPU_RIP, BigInt(CODE))
    this.changed()
  }

  /** Sets a gate; in long mode the upper half is zero. */
  idt(vector: number, g: bigint): void {
    if (this.mode === 'long') {
      this.poke(IDT + vector * 16, g)
      this.poke(IDT + vector * 16 + 8, 0n)
    } else this.poke(IDT + vector * 8, g)
  }

  /** Runs user code: CPL 3 with the user segments of the mode. */
  user(): void {
    const long = this.mode === 'long'
    this.segment(L.SEG_CS, long ? UCODE64 : UCODE, 0n, 0xffffffff, long ? 0xafb : 0xcfb)
    for (const n of [L.SEG_ES, L.SEG_SS, L.SEG_DS, L.SEG_FS, L.SEG_GS]) this.segment(n, long ? UDATA64 : UDATA, 0n, 0xffffffff, 0xcf3)
    this.set32(L.CPU_CPL, 3)
    this.changed()
  }

  /** Executes at most `n` instructions from CPU_RIP; the STOP_* reason. */
  run(n = 1000): number {
    this.set64(L.CPU_SLICE_END, this.u64(L.CPU_ICOUNT) + BigInt(n))
    this.set64(L.CPU_BUDGET, this.u64(L.CPU_SLICE_END))
    call(this.core, 'execute', this.s)
    return this.u32(L.CPU_STOP_REASON)
  }

  /** Runs code from CODE; the vector whose stub halted it, or -1 if it halted elsewhere, or -STOP - 10. */
  exec(bytes: readonly number[], n = 1000): number {
    this.code(bytes)
    const why = this.run(n)
    const linear = this.base(L.SEG_CS) + this.rip
    if (why !== L.STOP_EVENT && why !== L.STOP_EXIT) return -10 - why
    const vector = (Number(linear) - 1 - STUBS) / 16
    return Number.isInteger(vector) && vector >= 0 && vector < 256 ? vector : -1
  }

  /** Word `i` of the frame on the stack of the handler. */
  frame(i: number, size = this.mode === 'long' ? 8 : this.mode === 'real' ? 2 : 4): number {
    return Number(this.peek(Number(this.base(L.SEG_SS) + (this.reg(4) & 0xffffffn)) + i * size, size))
  }
}
