/**
 * Random instructions made from the opcode map, with a state that lets most of them run: every encodable form of a row
 * that is legal in user mode of the given code size (prefixes, REX, ModRM and SIB forms), memory operands in the windows of place.ts or
 * deliberately at a page boundary, on the read-only page, unmapped or non-canonical.
 */
import type { Opcode } from '../../spec/opcodes/index.ts'
import { codeBase, DATA, GS_BASE, READ_ONLY, SEGMENTS, SLOT, UNMAPPED, WINDOWS } from './place.ts'
import type { Bits } from './place.ts'
import { Random } from './random.ts'

export interface Case {
  bits: Bits
  row: Opcode
  bytes: Uint8Array
  length: number
  gpr: BigUint64Array
  rflags: bigint
  /** Operand size in bytes. */
  size: number
  /** Bytes written into the window for this case: [offset in window, value, bytes]. */
  pokes: [number, bigint, number][]
  memory: boolean
  immediate: number
  rex: number
  /** Address of the instruction. */
  slot: number
  /** FXSAVE image to load before, for x87 and SSE. */
  fx: Uint8Array | undefined
  /** Instructions in `bytes`, and the cases they come from if there are several. */
  count: number
  parts: Case[]
}

/** For one instruction of a sequence: its address; its registers are not its own to choose. */
export interface Within {
  slot: number
}

const mask64 = (v: bigint): bigint => BigInt.asUintN(64, v)
const RCX = 1
const RDX = 2
const RBX = 3
const RSP = 4
const RBP = 5
const RSI = 6
const RDI = 7

/** Rows whose opcode is another instruction under this prefix. */
export class Claims {
  private readonly taken = new Set<string>()

  constructor(rows: readonly Opcode[]) {
    for (const r of rows) this.taken.add(`${r.map}.${r.opcode}.${r.prefix}`)
  }

  has(row: Opcode, prefix: string): boolean {
    return this.taken.has(`${row.map}.${row.opcode}.${prefix}`)
  }
}

const strings = new Set(['MOVS', 'STOS', 'LODS', 'SCAS', 'CMPS'])

/** A target linear address for an access of `size` bytes. */
function target(r: Random, size: number): bigint {
  const roll = r.below(100)
  const w1 = WINDOWS[0]
  const w2 = WINDOWS[1]
  if (roll < 60) return BigInt(w1.at + r.below(w1.size - size + 1))
  if (roll < 72) return BigInt(0x20001000 - r.below(Math.min(size + 2, 128)))
  if (roll < 80) return BigInt(w2.at + r.below(w2.size))
  if (roll < 84) return BigInt(READ_ONLY - r.below(size + 2))
  if (roll < 88) return BigInt(READ_ONLY + r.below(0x1000 - size))
  if (roll < 92) return BigInt(UNMAPPED - r.below(size + 2))
  if (roll < 94) return BigInt(UNMAPPED + r.below(0x1000 - size))
  if (roll < 96) return BigInt(DATA - 1 - r.below(size))
  if (roll < 98) return mask64(0x8000_0000_0000n + BigInt(r.below(32) - 16))
  return mask64((0xffff_8000_0000_0000n - 8n + BigInt(r.below(16))) ^ (r.chance(50) ? 0n : 1n << 62n))
}

/** Bytes of memory that the instruction touches at its operand. */
function accessSize(row: Opcode, size: number): number {
  if (row.mnemonic === 'BOUND') return 2 * size
  if (row.mnemonic === 'CMPXCHG8B') return size === 8 ? 16 : 8
  if (row.mnemonic === 'MOVDIR64B') return 64
  return size
}

function windowOffset(address: bigint): number {
  const a = Number(address)
  for (const w of WINDOWS) if (a >= w.at && a < w.at + w.size) return w.from + a - w.at
  return -1
}

/** A 16-bit offset in the segment of this base: never in the data pages outside the windows. */
function reach16(offset: bigint, base: bigint): bigint {
  // The code segment: away from the instruction, whose surroundings differ.
  if (base === BigInt(codeBase(16))) return 0x9000n | (offset & 0xfffn)
  const at = Number((base + (offset & 0xffffn)) & 0xffff_ffffn)
  const inside = windowOffset(BigInt(at)) >= 0 && windowOffset(BigInt(at + 63)) === windowOffset(BigInt(at)) + 63
  return inside || at < DATA - 64 || at >= READ_ONLY || (at > READ_ONLY - 64 && windowOffset(BigInt(at)) >= 0)
    ? offset & 0xffffn
    : (BigInt(WINDOWS[0].at + 0xc0) - base) & 0xffffn
}

/** A code address whose bytes are INT3 on both sides. */
const landing = (r: Random, bits: Bits): bigint =>
  BigInt(SLOT - codeBase(bits) + (r.chance(50) ? 0x100 + r.below(0x4000) : -0x100 - r.below(0x4000)))

const ES = 0
const SS = 2
const DS = 3
const GS = 5
const overridePrefixes = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]
/** Base and index registers of the 16-bit forms; -1 = none. */
const forms16 = [
  [3, 6],
  [3, 7],
  [5, 6],
  [5, 7],
  [6, -1],
  [7, -1],
  [5, -1],
  [3, -1],
] as const

export function generate(r: Random, row: Opcode, claims: Claims, bits: Bits, within?: Within): Case {
  const long = bits === 64
  const gpr = new BigUint64Array(16)
  for (let i = 0; i < 16; i++) gpr[i] = r.operand()
  const pokes: Case['pokes'] = []
  const prefixes: number[] = []
  const string = strings.has(row.mnemonic)
  const branch = row.flags.has('end')
  const stack = /^(PUSH|POP|CALL|RET|ENTER|LEAVE|PUSHF|POPF|PUSHA|POPA)$/.test(row.mnemonic)

  // Now and then across a page boundary.
  const slot = within ? within.slot : r.chance(4) ? SLOT - 1 - r.below(14) : SLOT

  // Prefixes; behind VEX the class is in its pp field.
  const vex = row.map >= 4
  let operand16 = false
  if (vex) {
    // none of 66, F2, F3
  } else if (row.prefix === '66') {
    prefixes.push(0x66)
    operand16 = true
  } else if (row.prefix === 'any' && r.chance(branch ? 5 : 25) && !claims.has(row, '66')) {
    prefixes.push(0x66)
    operand16 = true
  }
  if (!vex && (row.prefix === 'F3' || row.prefix === 'F2')) {
    prefixes.push(row.prefix === 'F3' ? 0xf3 : 0xf2)
    if (r.chance(20) && row.map !== 0 && /v/.test(row.operands.join('')) && !operand16) {
      prefixes.push(0x66)
      operand16 = true
    }
  } else if (string && r.chance(60)) prefixes.push(r.chance(50) ? 0xf3 : 0xf2)
  else if (row.prefix === 'any' && row.map === 0 && !string && r.chance(3) && row.opcode !== 0x90) prefixes.push(r.chance(50) ? 0xf3 : 0xf2)
  const repeated = string && prefixes.some((p) => p >= 0xf2)
  const addressPrefix = r.chance(bits === 32 ? 20 : 10)
  if (addressPrefix) prefixes.push(0x67)
  /** Address size in bytes. */
  const addressSize = long ? (addressPrefix ? 4 : 8) : (bits === 32) === addressPrefix ? 2 : 4
  const address32 = addressSize === 4
  const roll = r.below(100)
  let override = -1
  // Without a 32-bit address, flat segments do not reach the windows.
  const beyond = bits === 32 && addressSize === 2 && row.mnemonic !== 'LEA' && r.chance(80)
  if (long) override = roll < 6 && row.mnemonic !== 'LEA' ? GS : -1
  else if (beyond) override = 4 + r.below(2)
  else if (roll < 20) override = r.below(6)
  if (override >= 0) prefixes.push(overridePrefixes[override] as number)
  else if (long && roll < 12) prefixes.push(r.pick([0x2e, 0x36, 0x3e, 0x26]))
  const gs = long && override === GS
  const baseOf = (segment: number): bigint => (long ? (segment === GS ? BigInt(GS_BASE) : 0n) : BigInt(SEGMENTS[bits][segment]?.base ?? 0))
  const segmentBase = baseOf(override >= 0 ? override : DS)
  const stackBase = long ? 0n : baseOf(SS)
  const extraBase = long ? 0n : baseOf(ES)
  const rex = long && r.chance(60) ? 0x40 | r.below(16) : 0
  const wide = (rex & 8) !== 0
  /** The operand-size prefix selects 16 bits, or leaves them. */
  const half = bits === 16 ? !operand16 : operand16

  let size: number
  switch (row.size) {
    case 'byte':
      size = 1
      break
    case 'v':
      size = wide ? 8 : half ? 2 : 4
      break
    case 'd64':
      size = long ? (operand16 && !wide ? 2 : 8) : half ? 2 : 4
      break
    case 'f64':
    case 'native':
      size = long ? 8 : 4
      break
    case 'y':
      size = wide ? 8 : 4
      break
    default:
      size = row.size
  }
  const access = accessSize(
    row,
    row.operands.includes('Eb') ? 1 : row.operands.includes('Ew') ? 2 : row.operands.includes('Ed') && size > 4 ? 4 : size,
  )

  // Stack and implicit operands.
  const setStack = (v: bigint): void => {
    gpr[RSP] = bits === 16 ? ((v - stackBase) & 0xffffn) | (r.u64() & 0xffff_0000n) : v
  }
  const stackAt = r.chance(95) ? WINDOWS[0].at + 96 + r.below(WINDOWS[0].size - 192) : READ_ONLY + 16 + r.below(64)
  if (stack || r.chance(50)) setStack(BigInt(stackAt))
  if (/^(ENTER|LEAVE)$/.test(row.mnemonic))
    gpr[RBP] = bits === 16 ? ((BigInt(stackAt) - stackBase) & 0xffffn) | (r.u64() & 0xffff_0000n) : BigInt(stackAt + r.below(64) - 32)
  if (row.mnemonic === 'RET') {
    if (windowOffset(BigInt(stackAt)) >= 0) pokes.push([windowOffset(BigInt(stackAt)), landing(r, bits), 8])
    else setStack(BigInt(UNMAPPED))
  }
  if (row.mnemonic === 'POPF') {
    if (windowOffset(BigInt(stackAt)) >= 0) pokes.push([windowOffset(BigInt(stackAt)), BigInt(r.u32() & 0x200cd5), 8])
    else return generate(r, row, claims, bits, within)
  }
  const addressLow = (v: bigint): bigint => {
    if (addressSize === 8) return mask64(v)
    const low = addressSize === 4 ? 0xffff_ffffn : 0xffffn
    return (v & low) | (r.u64() & ~low & 0xffff_ffff_ffff_ffffn)
  }
  if (string) {
    let wantSi = r.chance(70) ? BigInt(WINDOWS[0].at + 128 + r.below(256)) : target(r, size)
    if (gs && wantSi >> 63n) wantSi = BigInt(UNMAPPED)
    gpr[RSI] = addressLow(addressSize === 2 ? reach16(wantSi - segmentBase, segmentBase) : wantSi - segmentBase)
    let wantDi =
      r.chance(50) && row.mnemonic !== 'STOS'
        ? wantSi + BigInt(r.below(40) - 20)
        : r.chance(75)
          ? BigInt(WINDOWS[0].at + 128 + r.below(256))
          : target(r, size)
    const inside = wantDi >= BigInt(WINDOWS[0].at) && wantDi + BigInt(size) <= BigInt(WINDOWS[0].at + WINDOWS[0].size)
    // Else where six elements in either direction stay inside, or run into the read-only page.
    if (!inside && wantDi >= BigInt(DATA - 64) && wantDi < BigInt(READ_ONLY)) wantDi = BigInt(WINDOWS[1].at + 48 + r.below(80))
    if (addressSize === 2) wantDi = reach16(wantDi - extraBase, extraBase) + extraBase
    gpr[RDI] = addressLow(wantDi - extraBase)
    gpr[RCX] = addressLow(BigInt(r.chance(10) ? 0 : r.below(Math.floor(120 / size))))
    if (row.mnemonic === 'SCAS' || row.mnemonic === 'CMPS') {
      // Runs of equal bytes, so that repetition goes on for a while.
      const byte = BigInt(r.below(256)) * 0x0101_0101_0101_0101n
      if (r.chance(60)) for (let i = 0; i < 512; i += 8) pokes.push([i, r.chance(97) ? byte : r.u64(), 8])
      if (r.chance(60)) gpr[0] = byte
    }
    // Writes that would leave the windows are not compared: keep repetitions inside or running into a fault.
    const writes = row.mnemonic === 'MOVS' || row.mnemonic === 'STOS'
    if (writes && repeated) {
      const di = Number(BigInt.asUintN(32, wantDi))
      const inFirst = wantDi < 1n << 32n && di >= WINDOWS[0].at && di < WINDOWS[0].at + WINDOWS[0].size
      const room = inFirst ? Math.min(di - WINDOWS[0].at, WINDOWS[0].at + WINDOWS[0].size - di) : 0
      const most = Math.floor(room / size) - 1
      const c = (gpr[RCX] as bigint) & (addressSize === 2 ? 0xffffn : 0xffff_ffffn)
      if (inFirst && c > BigInt(Math.max(most, 0))) gpr[RCX] = addressLow(BigInt(Math.max(most, 0)))
      if (!inFirst && c > 5n) gpr[RCX] = addressLow(BigInt(r.below(6)))
    }
  }
  if (row.mnemonic === 'XLAT') {
    const at = target(r, 1)
    const offset = (gs && at >> 63n ? BigInt(UNMAPPED) : at) - segmentBase
    gpr[RBX] = addressLow((addressSize === 2 ? reach16(offset, segmentBase) : offset) - ((gpr[0] as bigint) & 0xffn))
  }
  if (/^LOOP|^JCXZ/.test(row.mnemonic) && r.chance(60)) gpr[RCX] = r.chance(30) ? addressLow(BigInt(r.below(3))) : BigInt(r.below(3))
  if ((row.mnemonic === 'DIV' || row.mnemonic === 'IDIV') && r.chance(70)) {
    const sign = row.mnemonic === 'IDIV' && r.chance(50)
    const high = BigInt(sign ? -1 - r.below(4) : r.below(4))
    if (size === 1) gpr[0] = ((gpr[0] as bigint) & ~0xff00n) | ((high & 0xffn) << 8n)
    else gpr[RDX] = mask64(high)
  }

  // ModRM.
  const tail: number[] = []
  const modrmRex = rex
  let memory = false
  let relativeAt = -1
  let relativeTarget = 0n
  if (row.modrm) {
    const regField = row.ext ?? r.below(8)
    const reg = row.ext === undefined ? regField | ((rex & 4) << 1) : 16
    if (row.exact !== undefined) tail.push(row.exact)
    else if (row.mod === 'reg' || (row.mod === 'any' && r.chance(40))) {
      const rm = r.below(8)
      tail.push(0xc0 | (regField << 3) | rm)
      const full = rm | ((rex & 1) << 3)
      // CALL RSP would push into the code.
      if (branch && full === RSP) return generate(r, row, claims, bits, within)
      if (branch) gpr[full] = landing(r, bits)
    } else {
      memory = true
      const bitString = row.mnemonic.startsWith('BT') && row.operands[1] === 'Gv'
      let want = within && r.chance(90) ? BigInt(WINDOWS[0].at + r.below(WINDOWS[0].size - access + 1)) : target(r, access)
      if (bitString && reg < 16) {
        const far = r.chance(90)
        const index = BigInt(far ? r.below(1600) - 800 : r.below(8))
        gpr[reg] = size === 8 ? mask64(index) : mask64((index & ((1n << BigInt(size * 8)) - 1n)) | (r.u64() << BigInt(size * 8)))
        if (far) want = BigInt(WINDOWS[0].at + 128 + r.below(240))
      }
      if (row.mnemonic === 'CMPXCHG8B' && size === 8 && r.chance(85)) want &= ~15n
      if (row.mnemonic === 'MOVDIR64B' && reg < 16)
        gpr[reg] = BigInt(r.chance(80) ? 0x20000f00 + 64 * r.below(7) : 0x20000f00 + r.below(448))
      // With a GS base the upper half is left out: the virtualised host answers #GP there.
      if (gs && want >> 63n) want = BigInt(UNMAPPED)
      const offsetIn = (segment: number): bigint => mask64(want - baseOf(override >= 0 ? override : segment))
      const offset = offsetIn(DS)
      const form = within ? 0 : r.below(10)
      const disp = r.pick([0, 0, r.below(256) - 128, r.below(256) - 128, r.u32() | 0])
      let clash = false
      const setAddress = (n: number, v: bigint): void => {
        clash ||= bitString && n === reg
        gpr[n] = addressLow(v)
      }
      const pushDisp = (n: number): void => void tail.push(n & 255, (n >> 8) & 255, (n >> 16) & 255, (n >> 24) & 255)
      if (addressSize === 2) {
        const rm = within ? 6 : r.below(8)
        const mod = within ? 0 : r.below(3)
        const direct = mod === 0 && rm === 6
        const [base, index] = forms16[rm] as readonly [number, number]
        const segment = base === 5 && !direct ? SS : DS
        const off = reach16(offsetIn(segment), baseOf(override >= 0 ? override : segment))
        want = off + baseOf(override >= 0 ? override : segment)
        const d = direct ? Number(off) : mod === 0 ? 0 : mod === 1 ? r.below(256) - 128 : r.below(65536)
        tail.push((mod << 6) | (regField << 3) | rm)
        if (!direct) {
          const i = index < 0 ? 0n : (gpr[index] as bigint)
          clash ||= bitString && index === reg
          setAddress(base, off - BigInt(d) - i)
        }
        if (mod === 1) tail.push(d & 255)
        else if (mod === 2 || direct) tail.push(d & 255, (d >> 8) & 255)
      } else if (form === 0 && !long) {
        tail.push((regField << 3) | 5)
        pushDisp(Number(BigInt.asIntN(32, offset)))
      } else if (form === 0 && (within || BigInt.asIntN(33, offset) === BigInt.asIntN(64, offset))) {
        // RIP-relative.
        tail.push((regField << 3) | 5)
        relativeAt = tail.length
        relativeTarget = offset
        pushDisp(0)
      } else if (form === 1 && (rex & 2) === 0 && BigInt.asUintN(31, offset) === offset) {
        // Absolute: SIB without base and index.
        tail.push((regField << 3) | 4, 0x25)
        pushDisp(Number(offset))
      } else if (form === 2) {
        // Index without base.
        const index = r.below(8)
        const full = index | ((rex & 2) << 2)
        if (full === 4) {
          tail.push((regField << 3) | 4, 0x25)
          pushDisp(Number(BigInt.asIntN(32, offset)))
        } else {
          const scale = r.below(4)
          const d = BigInt(disp)
          const v = mask64(offset - d)
          const rest = v & ((1n << BigInt(scale)) - 1n)
          setAddress(full, v >> BigInt(scale))
          tail.push((regField << 3) | 4, (scale << 6) | (index << 3) | 5)
          pushDisp(Number(BigInt.asIntN(32, d + rest)))
        }
      } else {
        const base = r.below(8)
        const fullBase = base | ((rex & 1) << 3)
        const sib = base === 4 || form < 6
        let index = 4
        let fullIndex = 4
        const scale = r.below(4)
        if (sib) {
          index = r.below(8)
          fullIndex = index | ((rex & 2) << 2)
        }
        const mod = disp === 0 && base !== 5 ? 0 : disp >= -128 && disp < 128 ? 1 : 2
        let d = disp
        let useMod = mod
        const based = offsetIn(fullBase === 4 || (fullBase === 5 && mod !== 0) ? SS : DS)
        if (fullIndex !== 4 && fullIndex === fullBase) {
          const factor = 1n + (1n << BigInt(scale))
          const o = fullBase === 5 ? offsetIn(SS) : based
          setAddress(fullBase, (address32 ? o & 0xffff_ffffn : o) / factor)
          d = Number((address32 ? o & 0xffff_ffffn : o) % factor)
          useMod = 1
        } else {
          const i = fullIndex === 4 || !sib ? 0n : (gpr[fullIndex] as bigint)
          // POP computes its address with RSP behind what it popped.
          const popped = row.mnemonic === 'POP' && fullBase === RSP ? BigInt(size) : 0n
          setAddress(fullBase, based - BigInt(disp) - (i << BigInt(scale)) - popped)
        }
        if (sib) tail.push((useMod << 6) | (regField << 3) | 4, (scale << 6) | (index << 3) | base)
        else tail.push((useMod << 6) | (regField << 3) | base)
        if (useMod === 1) tail.push(d & 255)
        else if (useMod === 2) pushDisp(d)
      }
      // The bit index is an address then: anywhere.
      const sp =
        bits === 16 ? ((gpr[RSP] as bigint) & 0xffffn) + stackBase : long ? (gpr[RSP] as bigint) : (gpr[RSP] as bigint) & 0xffff_ffffn
      if (
        stack &&
        (sp < BigInt(WINDOWS[0].at + 96) || sp > BigInt(WINDOWS[0].at + 416)) &&
        (sp < BigInt(READ_ONLY) || sp > BigInt(UNMAPPED))
      )
        return generate(r, row, claims, bits, within)
      if (clash) return generate(r, row, claims, bits, within)
      const w = windowOffset(want)
      if (branch && row.mnemonic !== 'RET') {
        if (w >= 0) pokes.push([w, landing(r, bits), 8])
        else if (want >= BigInt(READ_ONLY) && want < BigInt(UNMAPPED)) return generate(r, row, claims, bits, within)
      } else if (w >= 0 && r.chance(40)) pokes.push([w, r.operand(), 8])
      if (row.mnemonic.startsWith('CMPXCHG') && r.chance(50) && w >= 0) {
        pokes.push([w, gpr[0] as bigint, access > 8 ? 8 : access])
        if (access === 16) pokes.push([w + 8, gpr[RDX] as bigint, 8])
        else if (row.mnemonic === 'CMPXCHG8B') pokes.push([w, ((gpr[0] as bigint) & 0xffff_ffffn) | mask64((gpr[RDX] as bigint) << 32n), 8])
      }
    }
  }
  if (row.mnemonic === 'CMPXCHG' && !memory && r.chance(40)) gpr[0] = gpr[r.below(16)] as bigint

  // LOCK: where it is legal, now and then where it is not (#UD).
  const lockable = row.flags.has('lock') && memory
  if (lockable ? r.chance(20) : r.chance(1) && !string && !branch) prefixes.push(0xf0)

  // Immediate.
  const immediate: number[] = []
  let value = 0
  const put = (n: number, bytes: number): void => {
    value = n
    for (let i = 0; i < bytes; i++) immediate.push((n >> (8 * i)) & 255)
  }
  switch (row.immediate) {
    case 'Ib':
    case 'Ub':
      put(r.chance(30) ? Number(r.operand() & 0xffn) : r.below(256), 1)
      break
    case 'Iw':
      put(row.mnemonic === 'RET' ? r.below(65536) : r.below(65536), 2)
      break
    case 'Iz':
      put(Number(BigInt.asIntN(32, r.operand())), (long ? operand16 && !wide : half) ? 2 : 4)
      break
    case 'Iv': {
      const v = r.operand()
      if (size === 8) put(Number(BigInt.asIntN(32, v)), 4)
      put(Number(BigInt.asIntN(32, size === 8 ? v >> 32n : v)), size === 2 ? 2 : 4)
      break
    }
    case 'moffs': {
      const want = target(r, size)
      let at = mask64((gs && want >> 63n ? BigInt(UNMAPPED) : want) - segmentBase)
      if (addressSize === 2) at = reach16(at, segmentBase)
      put(Number(BigInt.asIntN(32, at)), addressSize === 2 ? 2 : 4)
      if (addressSize === 8) put(Number(BigInt.asIntN(32, at >> 32n)), 4)
      break
    }
    case 'Jb': {
      // Never into the instruction itself or the jump behind it.
      put(r.chance(50) ? 24 + r.below(100) : -128 + r.below(100), 1)
      break
    }
    case 'Jz':
      put((r.chance(50) ? 1 : -1) * (64 + r.below(0x4000)), size === 2 ? 2 : 4)
      break
    case 'IwIb':
      put(r.chance(15) ? r.below(0x3000) : r.below(64), 2)
      put(r.chance(70) ? r.below(3) : r.below(256) & 0xe3, 1)
      break
    default:
  }

  // Assemble: legacy prefixes in any order, REX last.
  for (let i = prefixes.length - 1; i > 0; i--) {
    const j = r.below(i + 1)
    const t = prefixes[i] as number
    prefixes[i] = prefixes[j] as number
    prefixes[j] = t
  }
  const bytes: number[] = [...prefixes]
  if (vex) {
    const pp = { any: 0, NP: 0, '66': 1, F3: 2, F2: 3 }[row.prefix]
    const vvvv = row.operands.includes('By') ? r.below(long ? 16 : 8) : 0
    bytes.push(0xc4, ((~modrmRex & 7) << 5) | (row.map - 3), ((modrmRex & 8) << 4) | ((~vvvv & 15) << 3) | pp)
  } else {
    if (rex) bytes.push(modrmRex)
    if (row.map > 0) bytes.push(0x0f)
    if (row.map === 2) bytes.push(0x38)
    if (row.map === 3) bytes.push(0x3a)
  }
  bytes.push(row.embedded ? row.opcode + r.below(8) : row.opcode)
  const tailAt = bytes.length
  bytes.push(...tail, ...immediate)
  if (relativeAt >= 0) {
    const d = Number(BigInt.asIntN(32, relativeTarget - BigInt(slot + bytes.length)))
    for (let i = 0; i < 4; i++) bytes[tailAt + relativeAt + i] = (d >> (8 * i)) & 255
  }
  let rflags = BigInt(0x202 | (r.u32() & 0x8d5) | (string && r.chance(40) ? 0x400 : r.chance(5) ? 0x400 : 0))
  // Alignment checks, now and then.
  if (r.chance(4)) rflags |= 0x40000n
  // Only the lower halves exist.
  if (!long) for (let i = 0; i < 16; i++) gpr[i] = i < 8 ? (gpr[i] as bigint) & 0xffff_ffffn : 0n
  return {
    bits,
    row,
    bytes: Uint8Array.from(bytes.slice(0, 15)),
    length: Math.min(bytes.length, 15),
    gpr,
    rflags,
    size,
    pokes,
    memory,
    immediate: value,
    rex,
    slot,
    fx: undefined,
    count: 1,
    parts: [],
  }
}

/** Rows that may stand in a sequence: nothing implicit in memory, and no jump. */
export function sequential(row: Opcode): boolean {
  if (row.flags.has('end') || strings.has(row.mnemonic)) return false
  if (row.mnemonic.startsWith('BT') && row.operands[1] === 'Gv') return false
  return !/^(INS|OUTS|LGDT|LIDT|SHLD|SHRD|PUSH|POP|PUSHF|POPF|PUSHA|POPA|ENTER|LEAVE|XLAT|BOUND|MOVDIR64B|MOVDIRI|CMPXCHG8B|INT3|INTO)$/.test(
    row.mnemonic,
  )
}

/**
 * Several instructions in a row, whose operands are registers and fixed addresses: what the flags of one mean to the next,
 * and where a fault in the middle leaves everything. `bad(c)` refuses a part.
 */
export function generateSequence(r: Random, rows: readonly Opcode[], claims: Claims, bits: Bits, bad: (c: Case) => boolean): Case {
  const start = r.chance(10) ? SLOT - r.below(40) : SLOT
  const parts: Case[] = []
  const bytes: number[] = []
  const wanted = 2 + r.below(5)
  while (parts.length < wanted && bytes.length < 72) {
    // Now and then a short jump, taken or not, over the instruction.
    const jump = r.chance(25) ? 2 : 0
    const part = generate(r, r.pick(rows), claims, bits, { slot: start + bytes.length + jump })
    if (bad(part)) continue
    parts.push(part)
    if (jump) bytes.push(r.chance(15) ? 0xeb : 0x70 | r.below(16), part.bytes.length)
    bytes.push(...part.bytes)
  }
  const first = parts[0] as Case
  const pokes = parts.flatMap((p) => p.pokes)
  return { ...first, bytes: Uint8Array.from(bytes), length: bytes.length, slot: start, pokes, count: parts.length, parts }
}
