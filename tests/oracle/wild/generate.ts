/**
 * Wild instructions: any prefixes in any order and number, REX where it counts and where it does not, any opcode byte, ModRM
 * and SIB as they fall, and only then registers, such that most memory operands are somewhere near the data pages: inside,
 * across pages, on the read-only page, unmapped or non-canonical. What iced-x86 makes of the bytes only steers the state.
 */
import iced from 'iced-x86'
import { opcodes } from '../../../spec/opcodes/index.ts'
import type { Opcode } from '../../../spec/opcodes/index.ts'
import { Random as Floats } from '../../simd/cases.ts'
import { Random } from '../random.ts'
import { CODE, CODE_END, CS, DATA, DATA_SIZE, ES, find, FS, FX_SIZE, GS, SS, WRITABLE } from './place.ts'
import type { Batch, Descriptor, State } from './place.ts'

const { Code, ConstantOffsets, Decoder, DecoderOptions, EncodingKind, Mnemonic, OpKind, Register, RegisterExt, MemorySizeExt } = iced
void ConstantOffsets

export interface Wild {
  state: State
  bits: 16 | 32 | 64
  row: Opcode | undefined
  /** iced's name, or INVALID. */
  mnemonic: string
  /** Bits of the first operand and, for shifts, the immediate or CL. */
  size: number
  shift: number | undefined
  text: string
  /** The emulated CPU runs it with TF too. */
  step: boolean
  /** Bytes of the instruction. */
  length: number
}

/** One of several instructions: where it lies, and what it shares with the others. Its operands in memory have fixed addresses. */
export interface Within {
  bits: Wild['bits']
  slot: number
  segment: number[]
  base: [bigint, bigint]
  gpr: BigUint64Array
}

const legacy = [0x66, 0x66, 0x66, 0x67, 0x67, 0xf2, 0xf2, 0xf3, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0xf0]

/**
 * Never run: system calls, what differs by time or machine, what this machine's kernel or hypervisor answers itself (UMIP,
 * hypercalls), what sleeps, and registers of features the emulated CPU is known not to have (docs/cpu-models.md).
 */
const never =
  /^(Syscall|Sysenter|Rdtsc|Rdtscp|Rdpmc|Rdpru|Cpuid|Rdrand|Rdseed|Xgetbv|Rdpid|Sgdt|Sidt|Smsw|Sldt|Str|Vmcall|Vmmcall|Vmgexit|Vm.*|Mwaitx?|Monitorx?|Umonitor|Umwait|Tpause|Clzero|Mcommit|Invlpgb|Tlbsync|Gf2p8.*|Xsave.*|Xrstor.*|Xsetbv|Enqcmds?|Loadiwkey|Pvalidate|Rmp.*|Psmash|Wbnoinvd|Rdsspd|Rdsspq|Incssp.|Rstorssp|Saveprevssp|Setssbsy|Clrssbsy|Wrss.|Wruss.|Seam.*|Td.*|Encl.|Int1|Getsec|Serialize|Hreset|Ptwrite|Cldemote|Xbegin|Xabort|Xend|Xtest|Stui|Clui|Testui|Uiret|Senduipi)$/

const data16 = (base: number, limit: number, attrib = 0xf3): Descriptor => ({ base, limit, attrib })
const SMALL = 0x1fff8000
const CODE16 = 0x10008000

/** A new LDT and new data for each batch. */
export function makeBatch(r: Random): Batch {
  const ldt: (Descriptor | null)[] = Array.from({ length: 32 }, () => null)
  ldt[0] = { base: CODE16, limit: 0xffff, attrib: 0xfb }
  ldt[1] = data16(SMALL, 0xffff)
  ldt[2] = data16(SMALL, 0x9ffb)
  ldt[3] = data16(SMALL, 0x8f7f, 0xf7)
  ldt[4] = data16(SMALL, 0xffff, 0xf1)
  // 32-bit code with a base, 32-bit data segments of several kinds.
  ldt[5] = { base: CODE, limit: 0x1ffff, attrib: 0x4fb }
  ldt[6] = { base: 0, limit: 0xffffffff, attrib: 0xcf3 }
  for (let i = 7; i < 30; i++) {
    const code = r.chance(25)
    // Linux makes no conforming segment that is present.
    const type = code ? (r.chance(50) ? 0xb : 0x9) : 1 | (r.chance(70) ? 2 : 0) | (r.chance(25) ? 4 : 0)
    const granular = r.chance(30)
    const base = code
      ? r.pick([CODE16, CODE, 0, CODE + r.below(0x1000)])
      : r.pick([SMALL, 0, DATA - r.below(0x4000), DATA + r.below(0x3000), DATA - r.below(16), 0xfffff000 + r.below(0x1000)])
    const near = DATA - base + r.pick([0, 0x800, 0x1000, 0x1fff, 0x2000, 0x3000, r.below(0x3000), r.below(0x3000)])
    const raw = r.chance(15) ? r.u32() : near > 0 && !code ? near : r.pick([0xffff, 0xfffff, 0x1ffff])
    const limit = granular ? (r.chance(40) ? 0xffffffff : (raw | 0xfff) >>> 0) : Math.min(raw >>> 0, 0xfffff)
    const absent = r.chance(8)
    ldt[i] = {
      base,
      limit,
      attrib: (absent ? 0x70 : 0xf0) | type | (r.chance(60) ? 0x400 : 0) | (granular ? 0x800 : 0) | (r.chance(20) ? 0x100 : 0),
    }
  }
  const data = new Uint8Array(WRITABLE)
  const v = new DataView(data.buffer)
  const f = new Floats(r.u32() | 0)
  for (let i = 0; i < WRITABLE; i += 8)
    v.setBigUint64(i, r.chance(40) ? r.operand() : r.chance(50) ? f.f64() : f.f32() | (f.f32() << 32n), true)
  for (let i = 0x200; i < 0x400; i += 16) {
    const [m, e] = f.f80()
    v.setBigUint64(i, m, true)
    v.setUint16(i + 8, Number(e), true)
  }
  // Far pointers of 16, 32 and 64 bits, and what RETF and IRET pop.
  for (let i = 0x400; i < 0x800; i += 16) {
    const width = r.pick([2, 4, 4, 8])
    v.setBigUint64(i, BigInt(r.chance(80) ? codeOffset(r) : r.u32()), true)
    v.setUint16(i + width, selector(r), true)
  }
  for (let i = 0x800; i < 0xe00; i += 48) {
    const width = r.pick([2, 4, 4, 8, 8])
    const words = [
      BigInt(codeOffset(r)),
      BigInt(selector(r)),
      BigInt(r.u32() & 0x6dd5) | (r.chance(50) ? 0x202n : 0n),
      BigInt(DATA + r.below(0x2000)),
      BigInt(selector(r)),
    ]
    for (let k = 0; k < 5; k++) {
      const w = words[k] as bigint
      if (width === 2) v.setUint16(i + k * 2, Number(w & 0xffffn), true)
      else if (width === 4) v.setUint32(i + k * 4, Number(w & 0xffffffffn), true)
      else if (k < 5) v.setBigUint64(i + k * 8, w, true)
    }
  }
  return { ldt, data, states: [] }
}

const codeOffset = (r: Random): number => r.pick([CODE + r.below(0x20000), 0x1000 + r.below(0x8000), r.below(0x10000)])

function selector(r: Random): number {
  const k = r.below(10)
  if (k < 4) return r.pick([0x23, 0x2b, 0x33, 0x2b, 0x7b, 0x20, 0x2a, 0, 3, 0x10, 0x13, 0x18, 0x08, 0x40, 0x50])
  if (k < 9) return (r.below(34) << 3) | 4 | (r.chance(85) ? 3 : r.below(4))
  return r.below(65536)
}

/** An address for an access of some bytes. */
function target(r: Random): bigint {
  const k = r.below(100)
  if (k < 40) return BigInt(DATA + 64 + r.below(WRITABLE - 128))
  if (k < 50) return BigInt(DATA + 64 + 16 * r.below(WRITABLE / 16 - 8))
  if (k < 58) return BigInt(DATA + 0x200 + 16 * r.below(0x60))
  if (k < 68) return BigInt(DATA + 0x1000 - r.below(24))
  if (k < 76) return BigInt(DATA + 0x2000 - r.below(24))
  if (k < 80) return BigInt(DATA + 0x2000 + r.below(0x1000))
  if (k < 85) return BigInt(DATA + DATA_SIZE - r.below(24))
  if (k < 88) return BigInt(DATA - r.below(24))
  if (k < 91) return BigInt(DATA + DATA_SIZE + r.below(4096))
  if (k < 95) return BigInt.asUintN(64, 0x8000_0000_0000n + BigInt(r.below(40) - 20))
  if (k < 97) return BigInt.asUintN(64, 0xffff_8000_0000_0000n + BigInt(r.below(40) - 20))
  if (k < 98) return BigInt.asUintN(64, BigInt(r.below(40) - 20))
  if (k < 99) return r.u64() | (1n << 63n)
  return 0xffff_ffff_0000_0000n + BigInt(r.u32() & 0x7fff_ffff)
}

/** What lies in the code pages is not compared: nothing may point there. */
export function notCode(v: bigint): bigint {
  const low = v & 0xffff_ffffn
  return low >= BigInt(CODE - 0x400) && low < BigInt(CODE_END + 0x400) ? v ^ 0x4000_0000n : v
}

/** AL indexes the table of XLAT. */
const indexValue = (reg: number, gpr: BigUint64Array): bigint =>
  RegisterExt.size(reg) === 1 ? (gpr[0] as bigint) & 0xffn : (gpr[RegisterExt.number(reg)] as bigint)

const registerNumber = (reg: number): number => (reg === Register.None || RegisterExt.isIP(reg) ? -1 : RegisterExt.number(reg))

function makeFx(r: Random, f: Floats): Uint8Array {
  const fx = new Uint8Array(FX_SIZE)
  const d = new DataView(fx.buffer)
  let control = (0x37f & ~0xf00) | (r.below(4) << 10) | (r.pick([0, 2, 3, 3, 3, 1]) << 8)
  let status = (r.below(8) << 11) | (r.u32() & 0x4700)
  if (r.chance(30)) control &= ~r.below(64)
  if (r.chance(30)) status |= r.below(64)
  const pending = (status & ~control & 0x3f) !== 0
  if (pending && r.chance(60)) status &= ~0x3f
  if ((status & ~control & 0x3f) !== 0) status |= 0x8080
  d.setUint16(0, control, true)
  d.setUint16(2, status, true)
  fx[4] = r.chance(60) ? 0xff : r.below(256)
  let mxcsr =
    0x1f80 |
    (r.chance(30) ? r.below(4) << 13 : 0) |
    (r.chance(15) ? 0x8000 : 0) |
    (r.chance(15) ? 0x40 : 0) |
    (r.chance(40) ? r.below(64) : 0)
  if (r.chance(25)) mxcsr &= ~(r.below(64) << 7)
  if (r.chance(10)) mxcsr |= 0x20000
  d.setUint32(24, mxcsr, true)
  for (let i = 0; i < 8; i++) {
    const [m, e] = f.f80()
    d.setBigUint64(32 + i * 16, m, true)
    d.setUint16(40 + i * 16, Number(e), true)
  }
  const single = r.chance(50)
  for (let i = 0; i < 32; i++) d.setBigUint64(160 + i * 8, single ? f.f32() | (f.f32() << 32n) : r.chance(20) ? r.operand() : f.f64(), true)
  return fx
}

export class Generator {
  readonly r: Random
  private readonly f: Floats
  fx: Uint8Array[] = []
  /** Rows that were executed, by text: cases. */
  readonly covered = new Map<string, number>()
  readonly refused = new Map<string, number>()
  private readonly rows: readonly Opcode[]

  constructor(seed: number, only = /./) {
    this.r = new Random(seed)
    this.f = new Floats(seed ^ 0x5bd1e995)
    this.rows = opcodes.filter((o) => only.test(o.text))
  }

  begin(): Batch {
    this.fx = Array.from({ length: 64 }, () => makeFx(this.r, this.f))
    return makeBatch(this.r)
  }

  private bytes(bits: number, fixed: boolean): { bytes: number[]; row: Opcode | undefined } {
    const { r } = this
    const row = r.chance(80) || this.rows.length < opcodes.length ? this.rows[r.below(this.rows.length)] : undefined
    const out: number[] = []
    const n = fixed ? r.pick([0, 0, 0, 1]) : r.pick([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, r.below(16)])
    for (let i = 0; i < n; i++) if (r.pick([1, 1, 1, 0]) === 1) out.push(r.pick(legacy))
    const vex = row !== undefined && row.map >= 4
    if (row && !vex && row.prefix !== 'any' && row.prefix !== 'NP') out.splice(r.below(out.length + 1), 0, Number.parseInt(row.prefix, 16))
    // Behind VEX, 66, F2, F3, LOCK and REX are #UD.
    const clean = r.chance(95)
    if (vex && clean) out.splice(0, out.length, ...out.filter((b) => ![0x66, 0xf2, 0xf3, 0xf0].includes(b)))
    // LOCK and the prefixes of other rows now and then only.
    if (row && !vex && r.chance(80)) {
      const keep = row.prefix === 'any' ? [] : [Number.parseInt(row.prefix, 16)]
      if (!row.flags.has('lock') || r.chance(50)) out.splice(0, out.length, ...out.filter((b) => b !== 0xf0))
      if (row.prefix !== 'any') out.splice(0, out.length, ...out.filter((b) => ![0xf2, 0xf3].includes(b) || keep.includes(b)))
    }
    if (bits === 64 && r.chance(vex ? 3 : 55)) {
      out.push(0x40 | r.below(16))
      if (r.chance(3)) out.push(r.pick(legacy))
    }
    let map = row ? (row.map > 3 ? 0 : row.map) : r.pick([0, 0, 0, 1, 1, 1, 2, 3])
    if (vex && row) {
      const pp = { any: 0, NP: 0, '66': 1, F3: 2, F2: 3 }[row.prefix]
      const reserved = r.chance(2) ? 4 : 0
      out.push(0xc4, (r.below(8) << 5) | (bits === 64 ? 0 : 0xc0) | (row.map - 3), (r.below(2) << 7) | (r.below(16) << 3) | reserved | pp)
      map = 0
    } else if (map > 0) out.push(0x0f)
    if (map === 2) out.push(0x38)
    if (map === 3) out.push(0x3a)
    out.push(row ? row.opcode + (row.embedded ? r.below(8) : 0) : r.below(256))
    if (!row || row.modrm) {
      let modrm = r.below(256)
      if (row && r.chance(97)) {
        if (row.ext !== undefined) modrm = (modrm & 0xc7) | (row.ext << 3)
        if (row.mod === 'reg') modrm |= 0xc0
        if (row.mod === 'mem' && modrm >= 0xc0) modrm &= r.pick([0x3f, 0x7f, 0xbf])
        if (row.exact !== undefined) modrm = row.exact
      }
      if (fixed && modrm < 0xc0) modrm = (modrm & 0x38) | (bits === 16 ? 6 : 5)
      out.push(modrm)
    }
    while (out.length < 16) out.push(r.chance(20) ? r.pick([0, 0xff, 0x80, 0x7f, 1]) : r.below(256))
    return { bytes: out.slice(0, 16), row }
  }

  /** Selectors, and bases of FS and GS. */
  segments(batch: Batch, bits: Wild['bits']): { segment: number[]; base: [bigint, bigint] } {
    const { r } = this
    const segment = [0, 0x33, 0x2b, 0, 0, 0]
    if (bits === 64) {
      segment[ES] = r.pick([0, 0x2b])
      segment[SS] = r.chance(97) ? 0x2b : 0x0f
      segment[3] = r.pick([0, 0x2b, 0x2b])
      segment[FS] = r.chance(85) ? 0 : this.dataSelector(batch, false)
      segment[GS] = r.chance(85) ? 0 : this.dataSelector(batch, false)
    } else {
      segment[CS] = bits === 16 ? 0x07 : r.chance(70) ? 0x23 : 0x2f
      for (const n of [ES, 3, FS, GS]) segment[n] = r.chance(50) && bits === 32 ? 0x2b : r.chance(4) ? 0 : this.dataSelector(batch, false)
      segment[SS] = r.chance(60) && bits === 32 ? 0x2b : this.dataSelector(batch, true)
    }
    return { segment, base: [BigInt(r.pick([0, 0x1000, DATA, DATA + 0xff8])), BigInt(r.pick([0, DATA, DATA - 0x100, DATA + 8]))] }
  }

  /** One case for the batch, or nothing if what came out may not be run. */
  make(batch: Batch, within?: Within): Wild | undefined {
    const { r } = this
    const bits = within?.bits ?? r.pick([64, 64, 64, 64, 32, 32, 16] as const)
    const { bytes, row } = this.bytes(bits, within !== undefined)
    let slot = CODE + 0x10000 + r.below(64)
    if (r.chance(8)) slot = CODE + 0x11000 - 1 - r.below(15)
    else if (r.chance(bits === 16 ? 0 : 6)) slot = CODE_END - 1 - r.below(15)
    if (within) slot = within.slot
    const { segment, base } = within ?? this.segments(batch, bits)
    const code = find(segment[CS] as number, batch.ldt) as Descriptor
    const offset = slot - code.base
    if (bits !== 64 && offset + 15 > code.limit) return undefined

    const gpr = within ? within.gpr.slice() : new BigUint64Array(16)
    if (!within) for (let i = 0; i < 16; i++) gpr[i] = notCode(r.operand())
    const baseOf = (n: number): bigint => {
      if (bits === 64 && n < FS) return 0n
      const d = find(segment[n] as number, batch.ldt)
      if (d) return BigInt(d.base >>> 0)
      return n >= FS && bits === 64 ? (base[n - FS] as bigint) : 0n
    }

    const options = DecoderOptions.AMD
    const buffer = Uint8Array.from(bytes)
    let decoder = new Decoder(bits, buffer, options)
    decoder.ip = BigInt(offset)
    let instruction = decoder.decode()
    const offsets = decoder.getConstantOffsets(instruction)
    const memory = Array.from({ length: instruction.opCount }, (_, i) => instruction.opKind(i)).includes(OpKind.Memory)
    const put = (n: number, width: number, v: bigint): void => {
      const mask = (1n << BigInt(width * 8)) - 1n
      gpr[n] = (v & mask) | ((gpr[n] as bigint) & ~mask & 0xffff_ffff_ffff_ffffn)
    }
    // The stack, string registers and the table of XLAT first: the explicit operand wins.
    const stackBase = baseOf(SS)
    const stackAt = BigInt(r.chance(60) ? DATA + 0x800 + 48 * r.below(32) : DATA + 0x100 + r.below(WRITABLE - 0x200))
    const stackWidth = bits === 64 ? 8 : ((find(segment[SS] as number, batch.ldt)?.attrib ?? 0) & 0x400) !== 0 ? 4 : 2
    const stackTarget = r.chance(85) ? stackAt : target(r)
    put(4, stackWidth, BigInt.asUintN(64, stackTarget - stackBase))
    if (r.chance(60)) put(5, stackWidth, BigInt.asUintN(64, (r.chance(80) ? stackAt + BigInt(r.below(64)) : target(r)) - stackBase))
    for (const [n, seg] of [
      [6, 3],
      [7, ES],
      [3, 3],
    ] as const)
      if (r.chance(60)) put(n, 8, BigInt.asUintN(64, target(r) - baseOf(seg)))
    if (r.chance(50)) put(1, 8, BigInt(r.below(4)))
    if (r.chance(10)) put(2, 8, BigInt(r.below(3)))

    // Above a base the virtualised host answers #GP for the upper half.
    if (bits === 64 && bytes.some((b) => b === 0x64 || b === 0x65))
      for (const n of [3, 6, 7]) gpr[n] = (gpr[n] as bigint) & 0x3fff_ffff_ffffn
    if (memory) {
      // Of several instructions most have to get past their operand.
      const want =
        within && r.chance(85) ? BigInt(DATA + 16 * (8 + r.below(WRITABLE / 16 - 16)) + (r.chance(20) ? r.below(16) : 0)) : target(r)
      const seg = segmentNumber(instruction.memorySegment)
      const at = BigInt.asUintN(64, want - baseOf(seg))
      const b = instruction.memoryBase
      const x = instruction.memoryIndex
      const rip = RegisterExt.isIP(b)
      const bn = rip ? -1 : registerNumber(b)
      const xn = registerNumber(x)
      const scale = BigInt(instruction.memoryIndexScale)
      if (rip || (b === Register.None && x === Register.None)) {
        if (offsets.hasDisplacement && offsets.displacementSize > 0) {
          const from = rip ? at - BigInt(offset + instruction.length) : at
          for (let i = 0; i < offsets.displacementSize; i++)
            buffer[offsets.displacementOffset + i] = Number((from >> BigInt(8 * i)) & 0xffn)
        }
      } else {
        const width = RegisterExt.size(b === Register.None ? x : b)
        const displacement = BigInt.asUintN(64, instruction.memoryDisplacement)
        if (bn >= 0 && xn === bn) put(bn, width, BigInt.asUintN(width * 8, at - displacement) / (scale + 1n))
        else if (bn >= 0) put(bn, width, BigInt.asUintN(64, at - displacement - (xn < 0 ? 0n : indexValue(x, gpr) * scale)))
        else put(xn, width, BigInt.asUintN(width * 8, at - displacement) / scale)
      }
    }
    instruction.free()
    decoder.free()
    decoder = new Decoder(bits, buffer, options)
    decoder.ip = BigInt(offset)
    instruction = decoder.decode()
    try {
      const invalid = instruction.code === Code.INVALID
      const mnemonic = invalid ? 'INVALID' : String(Mnemonic[instruction.mnemonic])
      const no = (why: string): undefined => {
        this.refused.set(why, (this.refused.get(why) ?? 0) + 1)
        return undefined
      }
      if (never.test(mnemonic)) return no(mnemonic)
      if (mnemonic === 'Int' && instruction.immediate8 === 0x80) return no('Int 80')
      // VEX, EVEX, XOP: only what the map has.
      const vexByte = prefixEnd(buffer, bits)
      const lead = buffer[vexByte] as number
      const vexed = (lead === 0xc4 || lead === 0xc5 || lead === 0x62) && (bits === 64 || (buffer[vexByte + 1] as number) >= 0xc0)
      if (vexed && !(row && row.map >= 4)) return no('VEX')
      if (vexed && instruction.encoding !== EncodingKind.VEX && !invalid) return no('VEX')
      if (vexed && row && ((buffer[vexByte + 1] as number) & 31) !== row.map - 3) return no('VEX')
      if (!invalid && instruction.encoding !== EncodingKind.Legacy && !(row && row.map >= 4)) return no('VEX')
      // iced knows fewer of the forms that the kernel or hypervisor answers than exist.
      if (lead === 0x0f && ((buffer[vexByte + 1] as number) === 5 || (buffer[vexByte + 1] as number) === 0x34)) return no('Syscall')
      if (
        lead === 0x0f &&
        buffer[vexByte + 1] === 1 &&
        (invalid || ((buffer[vexByte + 2] as number) >= 0xc0 && mnemonic !== 'Swapgs' && mnemonic !== 'Clac' && mnemonic !== 'Stac'))
      )
        return no('0F 01')
      if (lead === 0x0f && buffer[vexByte + 1] === 0xae && invalid) return no('0F AE')
      if (lead === 0x0f && buffer[vexByte + 1] === 0xc7 && invalid) return no('0F C7')
      if (memory) {
        const address = effective(instruction, gpr, bits, baseOf)
        const reach = 1024n
        // Above a base the virtualised host answers #GP for the upper half.
        const based = baseOf(segmentNumber(instruction.memorySegment)) !== 0n
        if (based && bits === 64 && address >> 47n !== 0n) return no('upper half above a base')
        if (address + reach > BigInt(CODE) && address < BigInt(CODE_END + 64)) return no('memory in code')
        if (/^Bt[crs]?$/.test(mnemonic) && instruction.opKind(1) === OpKind.Register) {
          // The bit index is an address too.
          const width = RegisterExt.size(instruction.opRegister(1))
          const index = registerNumber(instruction.opRegister(1))
          if (index === registerNumber(instruction.memoryBase) || index === registerNumber(instruction.memoryIndex)) return no('bit index')
          put(index, width, BigInt.asUintN(64, BigInt(r.below(0x8000) - 0x4000)))
        }
      }
      // With a 16-bit stack that wraps, this machine faults for ever.
      const top = Number(stackBase) + Number((gpr[4] as bigint) & 0xffffn)
      if (/^(Retf|Iret)/.test(mnemonic) && stackWidth === 2 && (top < DATA || top > DATA + 0x1e00))
        return no('RETF at the end of a 16-bit stack')
      if (/^(Maskmovq|Maskmovdqu)$/.test(mnemonic) && bits === 16) return no('16-bit MASKMOV')
      const c: State = {
        code: buffer,
        slot,
        segment,
        rip: BigInt(offset),
        gpr,
        rflags: BigInt(0x202 | (r.u32() & 0x8d5) | (r.chance(20) ? 0x400 : 0) | (r.chance(4) ? 0x40000 : 0) | (r.chance(3) ? 0x10000 : 0)),
        base,
        fx: r.pick(this.fx),
      }
      let shift: number | undefined
      let size = 0
      if (!invalid && instruction.opCount > 0) {
        const kind = instruction.opKind(0)
        size =
          kind === OpKind.Register
            ? RegisterExt.size(instruction.opRegister(0)) * 8
            : kind === OpKind.Memory
              ? MemorySizeExt.size(instruction.memorySize) * 8
              : 0
        const last = instruction.opCount - 1
        if (instruction.opKind(last) === OpKind.Immediate8) shift = instruction.immediate8
        else if (instruction.opKind(last) === OpKind.Register && instruction.opRegister(last) === Register.CL)
          shift = Number((gpr[1] as bigint) & 0xffn)
      }
      const shadow =
        (/^(Mov|Pop|Lss)$/.test(mnemonic) &&
          instruction.opCount > 0 &&
          instruction.opKind(0) === OpKind.Register &&
          instruction.opRegister(0) === Register.SS) ||
        mnemonic === 'Lss'
      // The instruction in the shadow runs too.
      if (shadow && !invalid) for (let i = instruction.length; i < 16; i++) buffer[i] = 0x90
      const repeated = instruction.hasRepPrefix || instruction.hasRepnePrefix
      const step = shadow || repeated || /^(Pushf|Popf|Iret|Int)/.test(mnemonic) || r.chance(50)
      if (row) this.covered.set(row.text, (this.covered.get(row.text) ?? 0) + 1)
      return {
        state: c,
        bits,
        row,
        mnemonic,
        size,
        shift,
        text: invalid ? 'invalid' : String(Code[instruction.code]),
        step,
        length: instruction.length,
      }
    } finally {
      instruction.free()
      decoder.free()
    }
  }

  private dataSelector(batch: Batch, stack: boolean): number {
    const { r } = this
    for (let i = 0; i < 100; i++) {
      const n = r.chance(50) ? 1 + r.below(4) : 6 + r.below(24)
      const d = batch.ldt[n]
      if (!d || (d.attrib & 0x80) === 0 || (d.attrib & 8) !== 0) continue
      if (stack && (d.attrib & 2) === 0) continue
      return n * 8 + 7
    }
    return 0x2b
  }
}

function segmentNumber(register: number): number {
  return [Register.ES, Register.CS, Register.SS, Register.DS, Register.FS, Register.GS].indexOf(register)
}

const prefixes = new Set([0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0xf0])
function prefixEnd(bytes: Uint8Array, bits: number): number {
  let i = 0
  while (i < 15 && (prefixes.has(bytes[i] as number) || (bits === 64 && ((bytes[i] as number) & 0xf0) === 0x40))) i++
  return i
}

function effective(
  instruction: InstanceType<typeof iced.Instruction>,
  gpr: BigUint64Array,
  bits: number,
  baseOf: (n: number) => bigint,
): bigint {
  const b = instruction.memoryBase
  const x = instruction.memoryIndex
  const d = BigInt.asUintN(64, instruction.memoryDisplacement)
  const seg = baseOf(segmentNumber(instruction.memorySegment))
  if (RegisterExt.isIP(b)) return BigInt.asUintN(64, d + seg)
  const width = b !== Register.None ? RegisterExt.size(b) : x !== Register.None ? RegisterExt.size(x) : bits === 64 ? 8 : 4
  const base = b === Register.None ? 0n : (gpr[RegisterExt.number(b)] as bigint)
  const index = x === Register.None ? 0n : indexValue(x, gpr)
  const at = BigInt.asUintN(width * 8, d + base + index * BigInt(instruction.memoryIndexScale))
  return BigInt.asUintN(bits === 64 ? 64 : 32, at + seg)
}
