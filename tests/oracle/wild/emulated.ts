/**
 * The emulated CPU for the wild oracle: a process of 64-bit Linux as wild.c makes it (GDT, LDT, the same pages), exceptions
 * through an IDT to loops at CPL 0. TF is set here too, or the instruction is run alone with a budget of 1 (`step` false).
 */
import { encodeCpuid } from '../../../host/cpuid/entries.ts'
import type { CpuidEntry } from '../../../host/cpuid/entries.ts'
import { call, frameOf, L, loadCore } from '../../support/core.ts'
import { CODE, CODE_END, CODE_SIZE, DATA, DATA_SIZE, encode, find, FX_SIZE, gdt, patternByte, WRITABLE } from './place.ts'
import type { Batch, Outcome, State } from './place.ts'

/** Guest-physical pages. */
const P = {
  PML4: 1,
  PDPT: 2,
  PD0: 3,
  PT_CODE: 4,
  PT_DATA: 5,
  PD1: 6,
  PT_KERNEL: 7,
  PDPT1: 14,
  GDT: 8,
  IDT: 9,
  TSS: 10,
  HANDLERS: 11,
  STACK: 12,
  LDT: 13,
  CODE: 32,
  DATA: 96,
}
const PAGES = 128
/** In the upper half, where what the host's kernel maps is not compared either. */
const kernelAddress = (page: number): bigint => 0xffff_ff80_0000_0000n + BigInt(page * 4096)
const HANDLERS = kernelAddress(P.HANDLERS)
const ERROR_CODES = new Set([8, 10, 11, 12, 13, 14, 17, 21])
const STOPPED = 1000

export class Emulated {
  private readonly core = loadCore()
  private readonly s: number
  private readonly view: DataView
  private readonly bytes: Uint8Array
  private readonly backing: number
  private readonly snapshot: Uint8Array
  private readonly gpr: BigUint64Array
  private batch: Batch | undefined

  constructor(cpuid: readonly CpuidEntry[]) {
    const vm = call(this.core, 'vmCreate')
    const backing = call(this.core, 'backingCreate', PAGES)
    call(this.core, 'slotSet', vm, 0, 0n, BigInt(PAGES * 4096), 0, backing, 0)
    this.s = call(this.core, 'vcpuCreate', vm, 0)
    this.view = this.core.view
    this.bytes = this.core.bytes
    this.backing = backing
    for (let page = 0; page < PAGES; page++) {
      this.bytes.fill(0, L.STAGING, L.STAGING + 4096)
      if (page >= P.CODE && page < P.CODE + CODE_SIZE / 4096) this.bytes.fill(0xcc, L.STAGING, L.STAGING + 4096)
      if (page >= P.DATA && page < P.DATA + DATA_SIZE / 4096)
        for (let i = 0; i < 4096; i++) this.bytes[L.STAGING + i] = patternByte((page - P.DATA) * 4096 + i)
      // JMP to itself.
      if (page === P.HANDLERS) for (let i = 0; i < 4096; i++) this.bytes[L.STAGING + i] = i % 2 ? 0xfe : 0xeb
      call(this.core, 'backingWrite', backing, BigInt(page * 4096), L.STAGING, 4096)
    }
    this.tables()
    this.registers()
    // kvm_cpuid2 has eight bytes in front of the entries, the vCPU's table sixteen.
    const table = encodeCpuid(cpuid)
    this.bytes.set(table.subarray(8), this.s + L.VCPU_CPUID + 16)
    this.view.setUint32(this.s + L.VCPU_CPUID, cpuid.length, true)
    call(this.core, 'cpuidChanged', this.s)
    this.gpr = new BigUint64Array(this.core.memory.buffer, this.s, 16)
    this.snapshot = this.bytes.slice(this.s, this.s + 0x1000)
  }

  private frame(page: number): number {
    return frameOf(this.view, this.backing, page)
  }

  private tables(): void {
    const put = (page: number, index: number, value: bigint): void => this.view.setBigUint64(this.frame(page) + index * 8, value, true)
    const table = (page: number): bigint => BigInt(page * 4096) | 0x27n
    put(P.PML4, 0, table(P.PDPT))
    put(P.PDPT, 0, table(P.PD0))
    put(P.PML4, 511, table(P.PDPT1))
    put(P.PDPT1, 0, table(P.PD1))
    put(P.PD0, CODE >> 21, table(P.PT_CODE))
    put(P.PD0, DATA >> 21, table(P.PT_DATA))
    put(P.PD1, 0, table(P.PT_KERNEL))
    for (let i = 0; i < CODE_SIZE / 4096; i++) put(P.PT_CODE, i, BigInt((P.CODE + i) * 4096) | 0x67n)
    for (let i = 0; i < DATA_SIZE / 4096; i++) put(P.PT_DATA, i, BigInt((P.DATA + i) * 4096) | (i === 2 ? 0x65n : 0x67n))
    for (let i = 0; i < 32; i++) put(P.PT_KERNEL, i, BigInt(i * 4096) | 0x63n)
    put(P.GDT, 2, 0x00af9b000000ffffn)
    put(P.GDT, 3, 0x00cf93000000ffffn)
    for (const [selector, d] of gdt) put(P.GDT, selector >> 3, encode(d))
    for (let v = 0; v < 32; v++) {
      const to = HANDLERS + BigInt(v * 16)
      const type = v === 3 || v === 4 ? 0xeen : 0x8en
      put(P.IDT, v * 2, (to & 0xffffn) | (0x10n << 16n) | (type << 40n) | (((to >> 16n) & 0xffffn) << 48n))
      put(P.IDT, v * 2 + 1, to >> 32n)
    }
    this.view.setBigUint64(this.frame(P.TSS) + 4, kernelAddress(P.STACK) + 4096n, true)
    this.view.setUint16(this.frame(P.TSS) + 0x66, 0xffff, true)
  }

  private segment(n: number, selector: number, base: bigint, limit: number, attrib: number): void {
    const at = this.s + L.CPU_SEGMENTS + n * 16
    this.view.setBigUint64(at + L.SEG_BASE, base, true)
    this.view.setUint32(at + L.SEG_LIMIT, limit, true)
    this.view.setUint16(at + L.SEG_SELECTOR, selector, true)
    this.view.setUint16(at + L.SEG_ATTRIB, attrib, true)
  }

  private registers(): void {
    const { s, view } = this
    const u64 = (offset: number, value: bigint): void => view.setBigUint64(s + offset, value, true)
    this.segment(L.SEG_TR, 0x40, kernelAddress(P.TSS), 0x67, 0x8b)
    this.segment(L.SEG_LDTR, 0x50, kernelAddress(P.LDT), 0xff, 0x82)
    this.segment(L.SEG_GDTR, 0, kernelAddress(P.GDT), 0x7f, 0)
    this.segment(L.SEG_IDTR, 0, kernelAddress(P.IDT), 0x1ff, 0)
    u64(L.CPU_CR0, 0x80050033n)
    u64(L.CPU_CR3, BigInt(P.PML4 * 4096))
    u64(L.CPU_CR4, 0x50620n)
    u64(L.CPU_EFER, 0xd01n)
    u64(L.CPU_XCR0, 7n)
    view.setUint32(s + L.CPU_CPL, 3, true)
    view.setUint32(s + L.CPU_HALTED, 0, true)
    view.setUint32(s + L.CPU_EVENT, 0, true)
  }

  begin(batch: Batch): void {
    this.batch = batch
    const table = this.frame(P.LDT)
    for (let i = 0; i < 32; i++) {
      const d = batch.ldt[i]
      this.view.setBigUint64(table + i * 8, d ? encode(d) : 0n, true)
    }
    for (let i = 0; i < 2; i++) this.bytes.set(batch.data.subarray(i * 4096, i * 4096 + 4096), this.frame(P.DATA + i))
  }

  private putCode(c: State, set: boolean): void {
    for (let i = 0; i < c.code.length && c.slot + i < CODE_END; i++) {
      const offset = c.slot + i - CODE
      this.bytes[this.frame(P.CODE + (offset >> 12)) + (offset & 4095)] = set ? (c.code[i] as number) : 0xcc
    }
    const last = Math.min(c.slot + c.code.length - 1, CODE_END - 1)
    for (let page = (c.slot - CODE) >> 12; page <= (last - CODE) >> 12; page++)
      call(this.core, 'invalidateLines', this.s, this.frame(P.CODE + page), 0xffffffff)
  }

  private load(c: State, step: boolean): void {
    const { s, view, bytes } = this
    const ldt = this.batch?.ldt ?? []
    const top = view.getUint32(s + L.CPU_BLOCKS_TOP, true)
    bytes.set(this.snapshot, s)
    view.setUint32(s + L.CPU_BLOCKS_TOP, top, true)
    c.segment.forEach((selector, n) => {
      const d = find(selector, ldt)
      // The hidden part has the accessed bit, as loading set it.
      if (d) this.segment(n, selector, BigInt(d.base >>> 0), d.limit, d.attrib | 1)
      else this.segment(n, selector, n >= 4 ? (c.base[n - 4] ?? 0n) : 0n, 0, 0x8000)
    })
    this.gpr.set(c.gpr)
    view.setBigUint64(s + L.CPU_RIP, c.rip, true)
    const fx = new DataView(c.fx.buffer, c.fx.byteOffset)
    const status = fx.getUint16(2, true)
    const control = fx.getUint16(0, true)
    const st = (status >> 11) & 7
    view.setUint32(s + L.CPU_FCW, control, true)
    view.setUint32(s + L.CPU_FSW, (status & 0x477f) | ((status & ~control & 0x3f) !== 0 ? 0x8080 : 0), true)
    view.setUint32(s + L.CPU_FTOP, st, true)
    view.setUint32(s + L.CPU_FTAG, fx.getUint8(4), true)
    view.setUint32(s + L.CPU_FOP, fx.getUint16(6, true), true)
    view.setBigUint64(s + L.CPU_FIP, fx.getBigUint64(8, true), true)
    view.setBigUint64(s + L.CPU_FDP, fx.getBigUint64(16, true), true)
    view.setUint32(s + L.CPU_FCS, 0, true)
    view.setUint32(s + L.CPU_FDS, 0, true)
    view.setUint32(s + L.CPU_MXCSR, fx.getUint32(24, true), true)
    for (let i = 0; i < 8; i++) bytes.set(c.fx.subarray(32 + i * 16, 42 + i * 16), s + L.CPU_ST + (((i + st) & 7) << 4))
    for (let i = 0; i < 16; i++) bytes.set(c.fx.subarray(160 + i * 16, 176 + i * 16), s + L.CPU_XMM + i * 32)
    call(this.core, 'cpuSetFlags', s, c.rflags | (step ? 0x100n : 0n))
    call(this.core, 'cpuModeChanged', s)
  }

  run(c: State, step: boolean): Outcome {
    const { s, view, bytes } = this
    this.load(c, step)
    this.putCode(c, true)
    const budget = view.getBigUint64(s + L.CPU_ICOUNT, true) + (c.free ? 200n : step ? 4n : 1n)
    view.setBigUint64(s + L.CPU_BUDGET, budget, true)
    view.setBigUint64(s + L.CPU_SLICE_END, budget, true)
    call(this.core, 'execute', s)
    const stop = view.getUint32(s + L.CPU_STOP_REASON, true)
    const selector = (n: number): number => view.getUint16(s + L.CPU_SEGMENTS + n * 16 + L.SEG_SELECTOR, true)
    const base = (n: number): bigint => view.getBigUint64(s + L.CPU_SEGMENTS + n * 16 + L.SEG_BASE, true)
    const fx = new Uint8Array(FX_SIZE)
    const image = new DataView(fx.buffer)
    const top = view.getUint32(s + L.CPU_FTOP, true)
    image.setUint16(0, view.getUint32(s + L.CPU_FCW, true), true)
    image.setUint16(2, view.getUint32(s + L.CPU_FSW, true) | (top << 11), true)
    fx[4] = view.getUint32(s + L.CPU_FTAG, true)
    image.setUint16(6, view.getUint32(s + L.CPU_FOP, true), true)
    image.setBigUint64(8, view.getBigUint64(s + L.CPU_FIP, true), true)
    image.setBigUint64(16, view.getBigUint64(s + L.CPU_FDP, true), true)
    image.setUint32(24, view.getUint32(s + L.CPU_MXCSR, true), true)
    for (let i = 0; i < 8; i++) {
      const from = s + L.CPU_ST + (((i + top) & 7) << 4)
      fx.set(bytes.subarray(from, from + 10), 32 + i * 16)
    }
    for (let i = 0; i < 16; i++) fx.set(bytes.subarray(s + L.CPU_XMM + i * 32, s + L.CPU_XMM + i * 32 + 16), 160 + i * 16)
    const o: Outcome = {
      vector: 1,
      error: 0,
      cr2: 0n,
      rip: view.getBigUint64(s + L.CPU_RIP, true),
      gpr: this.gpr.slice(),
      rflags: 0n,
      base: [base(4), base(5)],
      segment: [0, 1, 2, 3, 4, 5].map(selector),
      fx,
      first: WRITABLE,
      data: new Uint8Array(0),
    }
    if (stop !== L.STOP_BUDGET) o.vector = STOPPED + stop
    else if (view.getUint32(s + L.CPU_CPL, true) === 0) {
      o.vector = Number((o.rip - HANDLERS) / 16n)
      const frame = this.frame(P.STACK) + 4096
      o.rip = view.getBigUint64(frame - 40, true)
      o.segment[1] = view.getUint16(frame - 32, true)
      o.rflags = view.getBigUint64(frame - 24, true)
      o.gpr[4] = view.getBigUint64(frame - 16, true)
      o.segment[2] = view.getUint16(frame - 8, true)
      if (ERROR_CODES.has(o.vector)) o.error = view.getUint32(frame - 48, true)
      o.cr2 = view.getBigUint64(s + L.CPU_CR2, true)
      // Alone, the instruction ran; then the page of the next one was not there.
      if (!step && !c.free && o.vector === 14 && (o.error & 0x10) !== 0 && o.rip !== c.rip) {
        o.vector = 1
        o.error = 0
        o.rflags |= 0x100n
      }
    } else if (step || c.free) o.vector = STOPPED
    else o.rflags = BigInt.asUintN(64, this.core.x['cpuGetFlags']?.(s) ?? 0n) | 0x100n
    this.changes(o)
    this.putCode(c, false)
    return o
  }

  private changes(o: Outcome): void {
    const clean = this.batch?.data ?? new Uint8Array(WRITABLE)
    const at = [this.frame(P.DATA), this.frame(P.DATA + 1)] as const
    let first = -1
    let last = -1
    for (let page = 0; page < 2; page++) {
      const a = Buffer.from(this.bytes.buffer, at[page], 4096)
      const b = Buffer.from(clean.buffer, clean.byteOffset + page * 4096, 4096)
      if (a.equals(b)) continue
      for (let i = 0; i < 4096; i += 8) {
        if (a.readBigUInt64LE(i) === b.readBigUInt64LE(i)) continue
        if (first < 0) first = page * 4096 + i
        last = page * 4096 + i + 8
      }
    }
    if (first < 0) return
    o.first = first
    o.data = new Uint8Array(last - first)
    for (let i = first; i < last; i++) {
      const from = (at[i >> 12] as number) + (i & 4095)
      o.data[i - first] = this.bytes[from] as number
      this.bytes[from] = clean[i] as number
    }
  }
}
