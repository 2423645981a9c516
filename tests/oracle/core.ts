/**
 * The emulated CPU for the oracle: one vCPU in long mode at CPL 3 with the address space of place.ts, driven through the
 * core's raw exports. An exception goes through a real IDT to a loop at CPL 0, whose address tells the vector.
 * A sequence ends in HLT, which CPL 3 may not execute: that #GP is its regular end.
 */
import { readFileSync } from 'node:fs'
import * as L from '../../host/generated/layout.ts'
import { frameOf } from '../support/core.ts'
import type { Case } from './generate.ts'
import type { Outcome } from './native.ts'
import { CODE, CODE_SIZE, codeBase, DATA, DATA_SIZE, GS_BASE, patternByte, RAN, SEGMENTS, WINDOW, WINDOWS } from './place.ts'
import type { Bits } from './place.ts'

interface Exports {
  memoryInit?(limit: number): number
  vmCreate(): number
  vcpuCreate(vm: number, id: number): number
  backingCreate(pages: number): number
  slotSet(vm: number, id: number, gpa: bigint, size: bigint, flags: number, backing: number, offset: number): number
  cpuModeChanged(s: number): void
  cpuGetFlags(s: number): bigint
  cpuSetFlags(s: number, value: bigint): void
  execute(s: number): void
  decode(s: number, op: number, from: number, at: number, mode: number): number
  invalidateLines(s: number, frame: number, lines: number): number
}

const PAGES = 512
/** Guest-physical pages. */
const P = {
  PML4: 1,
  PDPT: 2,
  PD0: 3,
  PT_CODE: 4,
  PT_DATA: 5,
  PD1: 6,
  PT_KERNEL: 7,
  GDT: 8,
  IDT: 9,
  TSS: 10,
  HANDLERS: 11,
  STACK: 12,
  CODE: 32,
  DATA: 96,
}
const KERNEL = 0x40000000
const kernelAddress = (page: number): bigint => BigInt(KERNEL + page * 4096)
const HANDLERS = kernelAddress(P.HANDLERS)
const STACK_TOP = kernelAddress(P.STACK) + 4096n
const ERROR_CODES = new Set([8, 10, 11, 12, 13, 14, 17, 21])

export class Emulated {
  private readonly memory: WebAssembly.Memory
  private readonly call: Exports
  private readonly s: number
  /** Its BACKING. */
  private readonly frames: number
  private readonly bytes: Uint8Array
  private readonly view: DataView
  private readonly gpr: BigUint64Array
  private readonly snapshots: Record<Bits, Uint8Array>
  private bits: Bits = 64
  private readonly window = new Uint8Array(WINDOW)
  private dirty = false
  /** OP_ID of #UD. */
  private readonly undefinedId: number

  constructor() {
    const module = new WebAssembly.Module(readFileSync(new URL('../../../dist/core.wasm', import.meta.url)))
    this.memory = new WebAssembly.Memory({ initial: 1024, maximum: 65536, shared: true })
    const abort = (): never => {
      throw new Error('the core aborted')
    }
    const instance = new WebAssembly.Instance(module, { env: { memory: this.memory, abort } })
    this.call = instance.exports as unknown as Exports
    new DataView(this.memory.buffer).setUint32(L.GLOBAL + L.GLOBAL_LIMIT_PAGES, 4096, true)
    this.call.memoryInit?.(4096)
    const vm = this.call.vmCreate()
    this.s = this.call.vcpuCreate(vm, 0)
    const backing = this.call.backingCreate(PAGES)
    const result = this.call.slotSet(vm, 0, 0n, BigInt(PAGES * 4096), 0, backing, 0)
    if (result !== 0) throw new Error(`slotSet: ${result}`)
    this.view = new DataView(this.memory.buffer)
    this.frames = backing
    this.bytes = new Uint8Array(this.memory.buffer)
    this.buildAddressSpace(backing)
    this.gpr = new BigUint64Array(this.memory.buffer, this.s, 16)
    const snapshot = (bits: Bits): Uint8Array => {
      this.buildState(bits)
      return this.bytes.slice(this.s, this.s + 0x1000)
    }
    this.snapshots = { 32: snapshot(32), 16: snapshot(16), 64: snapshot(64) }
    // LOCK MOV r,r.
    this.undefinedId = 0xffff
    this.decode(Uint8Array.of(0xf0, 0x89, 0xc0, 0), L.MODE_CS64)
    this.undefinedId = this.view.getUint16(L.STAGING + 64 + L.OP_ID, true)
  }

  /** Linear-memory address of a guest-physical page. */
  private frame(page: number): number {
    return frameOf(this.view, this.frames, page)
  }

  private buildAddressSpace(backing: number): void {
    const exports = this.call as unknown as { backingWrite(b: number, offset: bigint, from: number, n: number): number }
    // Touch every page once, so that it has a frame.
    for (let page = 0; page < PAGES; page++) {
      this.bytes.fill(0, L.STAGING, L.STAGING + 4096)
      if (page >= P.CODE && page < P.CODE + CODE_SIZE / 4096) this.bytes.fill(0xcc, L.STAGING, L.STAGING + 4096)
      if (page >= P.DATA && page < P.DATA + DATA_SIZE / 4096)
        for (let i = 0; i < 4096; i++) this.bytes[L.STAGING + i] = patternByte((page - P.DATA) * 4096 + i)
      // JMP to itself in every handler.
      if (page === P.HANDLERS) for (let i = 0; i < 4096; i++) this.bytes[L.STAGING + i] = i % 2 ? 0xfe : 0xeb
      if (exports.backingWrite(backing, BigInt(page * 4096), L.STAGING, 4096) < 0) throw new Error('backingWrite')
    }
    const put = (page: number, index: number, value: bigint): void => this.view.setBigUint64(this.frame(page) + index * 8, value, true)
    const table = (page: number): bigint => BigInt(page * 4096) | 0x27n
    put(P.PML4, 0, table(P.PDPT))
    put(P.PDPT, 0, table(P.PD0))
    put(P.PDPT, 1, table(P.PD1))
    put(P.PD0, CODE >> 21, table(P.PT_CODE))
    put(P.PD0, DATA >> 21, table(P.PT_DATA))
    put(P.PD1, 0, table(P.PT_KERNEL))
    for (let i = 0; i < CODE_SIZE / 4096; i++) put(P.PT_CODE, i, BigInt((P.CODE + i) * 4096) | 0x67n)
    for (let i = 0; i < DATA_SIZE / 4096; i++) put(P.PT_DATA, i, BigInt((P.DATA + i) * 4096) | (i === 2 ? 0x65n : 0x67n))
    for (let i = 0; i < 32; i++) put(P.PT_KERNEL, i, BigInt(i * 4096) | 0x63n)
    put(P.GDT, 2, 0x00af9b000000ffffn)
    put(P.GDT, 3, 0x00cf93000000ffffn)
    put(P.GDT, 5, 0x00cff3000000ffffn)
    put(P.GDT, 6, 0x00affb000000ffffn)
    for (let v = 0; v < 32; v++) {
      const to = HANDLERS + BigInt(v * 16)
      put(P.IDT, v * 2, (to & 0xffffn) | (0x10n << 16n) | (0x8en << 40n) | (((to >> 16n) & 0xffffn) << 48n))
      put(P.IDT, v * 2 + 1, to >> 32n)
    }
    this.view.setBigUint64(this.frame(P.TSS) + 4, STACK_TOP, true)
    // No I/O permission bitmap.
    this.view.setUint16(this.frame(P.TSS) + 0x66, 0xffff, true)
  }

  private buildState(bits: Bits): void {
    const s = this.s
    const u64 = (offset: number, value: bigint): void => this.view.setBigUint64(s + offset, value, true)
    const segment = (n: number, selector: number, base: bigint, limit: number, attrib: number): void => {
      const at = s + L.CPU_SEGMENTS + n * 16
      this.view.setBigUint64(at + L.SEG_BASE, base, true)
      this.view.setUint32(at + L.SEG_LIMIT, limit, true)
      this.view.setUint16(at + L.SEG_SELECTOR, selector, true)
      this.view.setUint16(at + L.SEG_ATTRIB, attrib, true)
    }
    if (bits === 64) {
      for (const n of [L.SEG_ES, L.SEG_SS, L.SEG_DS]) segment(n, 0x2b, 0n, 0xffffffff, 0xcf3)
      segment(L.SEG_FS, 0, 0n, 0xffffffff, 0xcf3)
      segment(L.SEG_GS, 0, BigInt(GS_BASE), 0xffffffff, 0xcf3)
      segment(L.SEG_CS, 0x33, 0n, 0xffffffff, 0xafb)
    } else SEGMENTS[bits].forEach((x, n) => segment(n, x.selector, BigInt(x.base), x.limit, x.attrib))
    segment(L.SEG_TR, 0x40, kernelAddress(P.TSS), 0x67, 0x8b)
    segment(L.SEG_GDTR, 0, kernelAddress(P.GDT), 0x7f, 0)
    segment(L.SEG_IDTR, 0, kernelAddress(P.IDT), 0x1ff, 0)
    u64(L.CPU_CR0, 0x80050033n)
    u64(L.CPU_CR3, BigInt(P.PML4 * 4096))
    u64(L.CPU_CR4, 0x10620n)
    u64(L.CPU_EFER, 0xd01n)
    u64(L.CPU_XCR0, 7n)
    this.view.setUint32(s + L.CPU_CPL, 3, true)
    this.view.setUint32(s + L.CPU_HALTED, 0, true)
    this.view.setUint32(s + L.CPU_EVENT, 0, true)
    this.view.setUint32(s + L.CPU_MXCSR, 0x1f80, true)
    this.view.setUint32(s + L.CPU_FCW, 0x37f, true)
    this.call.cpuSetFlags(s, 0x202n)
    this.call.cpuModeChanged(s)
  }

  private setWindow(window: Uint8Array): void {
    for (const w of WINDOWS) {
      let at = w.at
      while (at < w.at + w.size) {
        const n = Math.min(w.at + w.size - at, 4096 - (at & 4095))
        this.bytes.set(window.subarray(w.from + at - w.at, w.from + at - w.at + n), this.frame(P.DATA + ((at - DATA) >> 12)) + (at & 4095))
        at += n
      }
    }
  }

  private getWindow(to: Uint8Array): void {
    for (const w of WINDOWS) {
      let at = w.at
      while (at < w.at + w.size) {
        const n = Math.min(w.at + w.size - at, 4096 - (at & 4095))
        const from = this.frame(P.DATA + ((at - DATA) >> 12)) + (at & 4095)
        to.set(this.bytes.subarray(from, from + n), w.from + at - w.at)
        at += n
      }
    }
  }

  /** Bytes that differ from the pattern outside the windows. */
  stray(): number[] {
    const found: number[] = []
    for (let i = 0; i < DATA_SIZE; i++) {
      const at = DATA + i
      if (WINDOWS.some((w) => at >= w.at && at < w.at + w.size)) continue
      if (this.bytes[this.frame(P.DATA + (i >> 12)) + (i & 4095)] !== patternByte(i)) found.push(at)
    }
    return found
  }

  private code(at: number, bytes: Uint8Array | undefined, n: number): void {
    for (let i = 0; i < n; i++) {
      const offset = at + i - CODE
      this.bytes[this.frame(P.CODE + (offset >> 12)) + (offset & 4095)] = bytes?.[i] ?? 0xcc
    }
    for (let page = (at - CODE) >> 12; page <= (at + n - 1 - CODE) >> 12; page++)
      this.call.invalidateLines(this.s, this.frame(P.CODE + page), 0xffffffff)
  }

  /** `step`: in runs of so many instructions; `armed`: as with a breakpoint elsewhere, which takes every op to its slow twin. */
  run(c: Case, window: Uint8Array, step = 100, armed = false): Outcome {
    const { s, view } = this
    const sequence = c.parts.length > 0
    this.code(c.slot, sequence ? Uint8Array.of(...c.bytes, 0xf4) : c.bytes, c.length + (sequence ? 1 : 0))
    this.setWindow(window)
    if (this.dirty || this.bits !== c.bits) {
      this.bits = c.bits
      // All but the fill mark of the block cache.
      const top = view.getUint32(s + L.CPU_BLOCKS_TOP, true)
      this.bytes.set(this.snapshots[c.bits], s)
      view.setUint32(s + L.CPU_BLOCKS_TOP, top, true)
    }
    this.gpr.set(c.gpr)
    view.setBigUint64(s + L.CPU_RIP, BigInt(c.slot - codeBase(c.bits)), true)
    view.setBigUint64(s + L.CPU_EFLAGS, c.rflags, true)
    view.setUint32(s + L.CPU_FLAG_KIND, L.FLAG_EAGER, true)
    const checked = (c.rflags & 0x40000n) !== 0n
    if (checked) this.call.cpuModeChanged(s)
    view.setUint32(s + L.CPU_LEAVE, 0, true)
    view.setUint32(s + L.CPU_STOP_REASON, 0, true)
    view.setUint32(s + L.CPU_EVENT, 0, true)
    view.setBigUint64(s + L.CPU_CR2, 0n, true)
    const start = view.getBigUint64(s + L.CPU_ICOUNT, true)
    view.setUint32(s + L.CPU_DEBUG_ARMED, armed ? L.DEBUG_EXEC : 0, true)
    let stop: number = L.STOP_BUDGET
    for (let ran = 0; ran < (sequence ? 100 : 1); ran += step) {
      const until = start + BigInt(sequence ? ran + step : 1)
      view.setBigUint64(s + L.CPU_BUDGET, until, true)
      view.setBigUint64(s + L.CPU_SLICE_END, until, true)
      this.call.execute(s)
      stop = view.getUint32(s + L.CPU_STOP_REASON, true)
      if (stop !== L.STOP_BUDGET || view.getUint32(s + L.CPU_CPL, true) === 0) break
    }
    const outcome: Outcome = {
      vector: RAN,
      error: 0,
      cr2: 0n,
      rip: view.getBigUint64(s + L.CPU_RIP, true),
      gpr: this.gpr.slice(),
      rflags: 0n,
      window: undefined,
      fx: undefined,
    }
    if (stop !== L.STOP_BUDGET) {
      outcome.vector = 1000 + stop
      this.dirty = true
      return outcome
    }
    if (view.getUint32(s + L.CPU_CPL, true) === 0) {
      outcome.vector = Number((outcome.rip - HANDLERS) / 16n)
      const top = this.frame(P.STACK) + 4096
      outcome.rip = view.getBigUint64(top - 40, true)
      outcome.rflags = view.getBigUint64(top - 24, true)
      outcome.gpr[4] = view.getBigUint64(top - 16, true)
      if (ERROR_CODES.has(outcome.vector)) outcome.error = view.getUint32(top - 48, true)
      outcome.cr2 = view.getBigUint64(s + L.CPU_CR2, true)
      this.dirty = true
      const end = c.slot - codeBase(c.bits) + c.length
      if (sequence && outcome.vector === 13 && outcome.rip === BigInt(end)) {
        outcome.vector = RAN
        outcome.error = 0
        outcome.cr2 = 0n
      }
    } else {
      outcome.rflags = this.call.cpuGetFlags(s)
      this.dirty = checked
    }
    this.getWindow(this.window)
    if (!this.window.every((b, i) => b === window[i])) outcome.window = this.window.slice()
    // The landing bytes must be what the other side has there.
    this.code(c.slot, undefined, c.length + 1)
    return outcome
  }

  /** Decodes 16 bytes in a mode (MODE_CS*); `valid` is false where the op raises #UD or #GP whatever its operands are. */
  decode(bytes: Uint8Array, mode: number): { length: number; valid: boolean } {
    this.bytes.set(bytes, L.STAGING)
    this.bytes.fill(0, L.STAGING + bytes.length, L.STAGING + 64)
    const length = this.call.decode(this.s, L.STAGING + 64, L.STAGING, 0, mode) & 0xff
    const id = this.view.getUint16(L.STAGING + 64 + L.OP_ID, true)
    return { length, valid: id !== this.undefinedId }
  }
}
