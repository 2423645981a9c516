/**
 * Pairs: every form of an instruction that sets flags, directly followed by every form of one that reads them. The rows come from
 * the opcode map, the operands are registers and one window of memory that are always there, so that nothing faults and several
 * pairs fit into one case. RSI points at the operands, RSP at a stack behind them, RCX holds the count of shifts: no result goes there.
 */
import type { Opcode } from '../../spec/opcodes/index.ts'
import type { Case } from './generate.ts'
import { codeBase, GS_BASE, SEGMENTS, SLOT, WINDOWS } from './place.ts'
import type { Bits } from './place.ts'
import type { Random } from './random.ts'
import { undefinedFlags, undefinedResult } from './undefined.ts'

const CF = 1
const PF = 4
const AF = 0x10
const ZF = 0x40
const SF = 0x80
const OF = 0x800
const ALL = CF | PF | AF | ZF | SF | OF
const RAX = 0
const RCX = 1
const RSP = 4
const RSI = 6
const RDI = 7
/** Bytes of code that native.c takes. */
const ROOM = 94

/** A row with an operand form and size. */
export interface Form {
  row: Opcode
  size: number
  memory: boolean
}

const setters =
  /^(ADD|OR|ADC|SBB|AND|SUB|XOR|CMP|TEST|INC|DEC|NEG|ROL|ROR|RCL|RCR|SHL|SHR|SAR|SHLD|SHRD|MUL|IMUL|XADD|CMPXCHG|BT|BTS|BTR|BTC|BSF|BSR|TZCNT|LZCNT|POPCNT|ADCX|ADOX|CMC|CLC|STC|SAHF|ANDN|BLSR|BLSMSK|BLSI|BEXTR|BZHI)$/
/** Readers of carry that set flags themselves, and what changes some flags and leaves the others. */
const readers = /^(ADC|SBB|RCL|RCR|INC|DEC|CMC|STC|CLC|ROL|ROR|SHL|SAR|BT|SAHF|LAHF|PUSHF|ADCX|ADOX)$/
const conditional = /^(J|SET|CMOV)(O|NO|B|AE|E|NE|BE|A|S|NS|P|NP|L|GE|LE|G)$/

const conditionReads = [OF, CF, ZF, CF | ZF, SF, PF, SF | OF, SF | OF | ZF]

/** Flags that decide what the reader does. */
function reads(row: Opcode): number {
  if (conditional.test(row.mnemonic)) return conditionReads[(row.opcode & 15) >> 1] as number
  if (row.mnemonic === 'LAHF') return ALL & ~OF
  if (row.mnemonic === 'PUSHF') return ALL
  return row.mnemonic === 'ADOX' ? OF : CF
}

function sizes(row: Opcode, bits: Bits): number[] {
  if (row.flags.has('d64')) return [bits === 64 ? 8 : bits / 8]
  if (row.size === 'byte') return [1]
  if (row.size === 'y') return bits === 64 ? [4, 8] : [4]
  if (typeof row.size === 'number') return [row.size]
  // INC, LAHF and the like without an operand of a size of their own have one form.
  if (row.operands.length === 0) return [bits === 16 ? 2 : 4]
  return bits === 64 ? [2, 4, 8] : [2, 4]
}

function forms(rows: readonly Opcode[], bits: Bits): Form[] {
  return rows.flatMap((row) => {
    // A bit string would reach anywhere.
    const bitString = row.mnemonic.startsWith('BT') && row.operands[1] === 'Gv'
    const memories = !row.modrm || row.mod === 'reg' || bitString ? [false] : row.mod === 'mem' ? [true] : [false, true]
    return sizes(row, bits).flatMap((size) => memories.map((memory) => ({ row, size, memory })))
  })
}

const legal = (row: Opcode, bits: Bits): boolean => !row.flags.has(bits === 64 ? 'no64' : 'only64') && (bits === 64 || row.map < 4)

export const settersOf = (all: readonly Opcode[], bits: Bits): Form[] =>
  forms(
    all.filter((o) => setters.test(o.mnemonic) && legal(o, bits)),
    bits,
  )

export const readersOf = (all: readonly Opcode[], bits: Bits): Form[] =>
  forms(
    all.filter((o) => (readers.test(o.mnemonic) || conditional.test(o.mnemonic)) && legal(o, bits)),
    bits,
  )

const little = (v: number, bytes: number): number[] => Array.from({ length: bytes }, (_, i) => (v >> (8 * i)) & 255)

interface Operands {
  reg: number
  rm: number
  immediate: number
  /** ModRM.rm of a memory operand, and what follows. */
  place: { mod: number; tail: number[]; prefix: number[] }
}

/** Registers by number that may change; as bytes without REX, 4 to 7 are AH to BH, and CH belongs to the count. */
const free64 = [0, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15]
const freeLegacy = [0, 2, 3, 5, 7]
const freeByte = [0, 2, 3, 4, 6, 7]

function operandsOf(r: Random, form: Form, bits: Bits): Operands {
  const byte = form.row.operands.some((o) => /^[EGZ]b$/.test(o))
  const list = byte && (bits !== 64 || r.chance(40)) ? freeByte : bits === 64 ? free64 : freeLegacy
  const reg = r.pick(list)
  let rm = r.chance(20) ? reg : r.pick(list)
  // A byte register above BL with REX and one without do not go together: all of one kind.
  if (byte && list !== freeByte && rm < 8 && reg < 8 && (rm > 3 || reg > 3)) rm = reg
  const immediate = r.chance(40) ? r.pick([0, 1, -1, 127, -128, 0x7fffffff, -0x80000000]) : r.u32() | 0
  const d = r.below(120) - 56
  const gs = bits === 64 && r.chance(15)
  const place = gs
    ? { mod: 0x04, tail: [0x25, ...little(WINDOWS[0].at - GS_BASE + 64 + d, 4)], prefix: [0x65] }
    : { mod: bits === 16 ? 0x44 : 0x46, tail: [d & 255], prefix: bits === 64 && r.chance(10) ? [0x67] : [] }
  return { reg, rm, immediate, place }
}

function encode(form: Form, o: Operands, bits: Bits, lock: boolean, opcodeRegister = o.rm): number[] {
  const { row, size, memory } = form
  const vex = row.map >= 4
  const byteRow = row.operands.some((x) => /^[EGZ]b$/.test(x))
  const out: number[] = []
  if (lock) out.push(0xf0)
  if (memory) out.push(...o.place.prefix)
  if (!row.flags.has('d64') && !vex && (bits === 16 ? size === 4 : size === 2) && row.operands.length > 0 && row.size !== 'y')
    out.push(0x66)
  if (!vex && row.prefix === '66') out.push(0x66)
  if (!vex && row.prefix === 'F3') out.push(0xf3)
  if (!vex && row.prefix === 'F2') out.push(0xf2)
  const rm = row.modrm ? (memory ? 0 : o.rm) : row.embedded ? opcodeRegister : 0
  const reg = row.modrm && row.ext === undefined ? o.reg : 0
  if (vex) {
    const pp = { any: 0, NP: 0, '66': 1, F3: 2, F2: 3 }[row.prefix]
    // vvvv: the register of the reg field again, or RAX where that is an extension.
    const v = row.ext === undefined ? o.reg : o.rm
    out.push(0xc4, (reg & 8 ? 0 : 0x80) | 0x40 | (rm & 8 ? 0 : 0x20) | (row.map - 3), (size === 8 ? 0x80 : 0) | ((~v & 15) << 3) | pp)
  } else if (bits === 64) {
    const rex = 0x40 | (size === 8 && !row.flags.has('d64') ? 8 : 0) | (reg & 8 ? 4 : 0) | (rm & 8 ? 1 : 0)
    // Byte registers 5 and 7 of the list with REX are BPL and DIL.
    const needed = byteRow && (reg === 5 || rm === 5 || ((reg === 7 || rm === 7) && ((reg | rm) & 8) !== 0))
    if (rex !== 0x40 || needed) out.push(rex)
  }
  if (!vex) out.push(...[[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]][row.map]!)
  out.push(row.embedded ? row.opcode + (rm & 7) : row.opcode)
  if (row.modrm) {
    const middle = row.ext ?? reg & 7
    if (memory) out.push(o.place.mod | (middle << 3), ...o.place.tail)
    else out.push(0xc0 | (middle << 3) | (rm & 7))
  }
  if (row.immediate === 'Ib' || row.immediate === 'Ub') out.push(o.immediate & 255)
  else if (row.immediate === 'Iz') out.push(...little(o.immediate, size === 2 ? 2 : 4))
  return out
}

/** What undefined.ts has to know of one instruction. */
const asked = (row: Opcode, size: number, gpr: BigUint64Array, immediate: number): Case =>
  ({ row, size, gpr, immediate, memory: false, count: 1 }) as unknown as Case

/** One pair as code; undefined if the reader would see an undefined flag. */
function pair(r: Random, setter: Form, reader: Form, bits: Bits, gpr: BigUint64Array): number[] | undefined {
  const o = operandsOf(r, setter, bits)
  const first = asked(setter.row, setter.size, gpr, o.immediate)
  const undefinedBits = undefinedFlags(first)
  if ((undefinedBits & reads(reader.row)) !== 0 || undefinedResult(first)) return undefined
  const out: number[] = []
  // Equal operands.
  if (/^(CMP|SUB|XOR|SBB|CMPXCHG)$/.test(setter.row.mnemonic) && setter.row.modrm && setter.row.ext === undefined && r.chance(25)) {
    const move = { ...setter.row, opcode: 0x88 | (setter.row.opcode & 1), map: 0, mnemonic: 'MOV', prefix: 'any' } as Opcode
    out.push(...encode({ ...setter, row: move }, o, bits, false))
  }
  out.push(...encode(setter, o, bits, setter.memory && setter.row.flags.has('lock') && r.chance(10)))
  const p = operandsOf(r, reader, bits)
  let left = undefinedBits | undefinedFlags(asked(reader.row, reader.size, gpr, p.immediate))
  if (reader.row.mnemonic.startsWith('J')) {
    const skipped = bits === 64 ? [0x48, 0x8d, 0x7f, 0x11] : bits === 32 ? [0x8d, 0x7f, 0x11] : [0x8d, 0x7d, 0x11]
    // Now and then something without flags in between.
    if (r.chance(20)) out.push(0x89, bits === 16 ? 0xd8 : 0xda)
    if (reader.row.map === 0) out.push(reader.row.opcode, skipped.length)
    else out.push(0x0f, reader.row.opcode, ...little(skipped.length, bits === 16 ? 2 : 4))
    out.push(...skipped)
  } else {
    out.push(...encode(reader, p, bits, false))
    const pop = 0x58 + r.pick([0, 2, 3, 5, 7])
    if (reader.row.mnemonic === 'PUSHF') out.push(pop)
    else if (left === 0 && !conditional.test(reader.row.mnemonic) && r.chance(60)) out.push(0x9c, pop)
  }
  if (reader.row.mnemonic === 'SAHF') left &= OF
  // Defined flags again: CMP EAX,EDI.
  if (left !== 0) out.push(0x39, 0xf8)
  return out
}

/** All pairs in a random order, as cases of several pairs each; `share` of them if not all. */
export function* pairCases(r: Random, all: readonly Opcode[], bits: Bits, share = 1): Generator<Case> {
  const readersHere = readersOf(all, bits)
  const settersHere = settersOf(all, bits)
  const order = new Uint32Array(settersHere.length * readersHere.length).map((_, i) => i)
  for (let i = order.length - 1; i > 0; i--) {
    const j = r.below(i + 1)
    const t = order[i] as number
    order[i] = order[j] as number
    order[j] = t
  }
  const wanted = order.subarray(0, Math.floor(order.length * share))
  let parts: Case[] = []
  let bytes: number[] = []
  let gpr = registers(r, bits)
  const finish = (): Case => {
    const slot = r.chance(20) ? SLOT - 1 - r.below(bytes.length) : SLOT
    const done: Case = {
      ...(parts[0] as Case),
      bytes: Uint8Array.from(bytes),
      length: bytes.length,
      gpr,
      rflags: BigInt(0x202 | (r.u32() & 0x8d5)),
      slot,
      count: 2 * parts.length,
      parts,
    }
    parts = []
    bytes = []
    gpr = registers(r, bits)
    return done
  }
  for (const n of wanted) {
    const setter = settersHere[n % settersHere.length] as Form
    const reader = readersHere[Math.floor(n / settersHere.length)] as Form
    const code = pair(r, setter, reader, bits, gpr)
    if (!code) continue
    if (bytes.length + code.length > ROOM) yield finish()
    bytes.push(...code)
    const text = `${setter.row.text} (${setter.size}) + ${reader.row.text} (${reader.size})`
    parts.push({
      bits,
      row: { ...setter.row, text },
      bytes: Uint8Array.from(code),
      length: code.length,
      gpr,
      rflags: 2n,
      size: setter.size,
      pokes: [],
      memory: setter.memory,
      immediate: 0,
      rex: 0,
      slot: SLOT,
      fx: undefined,
      count: 1,
      parts: [],
    })
  }
  if (parts.length > 0) yield finish()
}

function registers(r: Random, bits: Bits): BigUint64Array {
  const gpr = new BigUint64Array(16)
  for (let i = 0; i < 16; i++) gpr[i] = bits === 64 ? r.operand() : i < 8 ? r.operand() & 0xffff_ffffn : 0n
  const base = bits === 16 ? (SEGMENTS[16][3]?.base ?? 0) : 0
  gpr[RSI] = BigInt(WINDOWS[0].at + 64 - base)
  gpr[RSP] = BigInt(WINDOWS[0].at + 448 - base)
  if (r.chance(50)) gpr[RCX] = ((gpr[RCX] as bigint) & ~0xffn) | BigInt(r.below(4))
  if (r.chance(20)) gpr[RDI] = gpr[RAX] as bigint
  if (codeBase(bits) !== 0) gpr[RSI] &= 0xffffn
  return gpr
}
