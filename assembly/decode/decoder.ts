/**
 * Decodes one instruction into an op, by the tables generated from spec/opcodes.
 * (SDM vol 2, chapter 2 and appendix A.)
 */
import {
  CPU_FEATURES,
  EA_FLAT32,
  EA_FLAT64,
  EA_GENERAL,
  EA_SEGMENT64,
  MODE_CS16,
  MODE_CS16_BIG,
  MODE_CS32,
  MODE_CS64,
  MODE_CS_MASK,
  MODE_FLAT,
  OP_BASE,
  OP_DISP,
  OP_EA,
  OP_EXTRA,
  OP_FLAGS,
  OP_ID,
  OP_IMM,
  OP_INDEX,
  OP_ACCESS,
  OP_MODRM,
  OP_NEXT,
  OP_OFFSET,
  OP_REG,
  OP_RM,
  OP_SCALE,
  OP_SEG,
  OPF_LOCK,
  OPF_MEM,
  OPF_REP,
  OPF_REPNE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GS,
  SEG_SS,
} from '../generated/layout'
import {
  D_BYTE_REG,
  D_BYTE_RM,
  D_EMBEDDED,
  D_END,
  D_LOCK,
  D_MMX_REG,
  D_MMX_RM,
  D_MODRM,
  D_NO64,
  D_ONLY64,
  D_REG_ONLY,
  D_BRANCH,
  chained,
  descriptors,
  groups,
  H_GP,
  H_NOP,
  H_UD,
  IMM_Ap,
  IMM_Ib,
  IMM_Iv,
  IMM_Iw,
  IMM_IwIb,
  IMM_Iz,
  IMM_Jb,
  IMM_Jz,
  IMM_moffs,
  IMM_one,
  IMM_Ub,
  roots,
  SIZE_BYTE,
  SIZE_D64,
  SIZE_F64,
  SIZE_FIXED,
  SIZE_NATIVE,
  SIZE_V,
  SIZE_Y,
  accessOf,
} from '../generated/opcodes'
import { undefinedEnd } from './undefined'

/** Result flag of decode: the op ends its block. */
export const ENDS: u32 = 0x100

const NONE: u8 = 128
const RIP_SLOT: u8 = 136

/** Base and index registers of the 16-bit ModRM forms (SDM vol 2, table 2-1); 16 = none. */
const base16: usize = memory.data<u8>([3, 3, 5, 5, 6, 7, 5, 3])
const index16: usize = memory.data<u8>([6, 7, 6, 7, 16, 16, 16, 16])

/** #UD that reaches to `end`; too long before it is undefined. */
function undefinedOp(op: usize, at: u32, start: usize, end: usize): u32 {
  return end - start > 15 ? finish(op, H_GP, 15, at, ENDS) : finish(op, H_UD, <u32>(end - start), at, ENDS)
}

/**
 * Decodes the instruction at `p` into `op`; `at` is its offset in the block. 16 readable bytes are
 * needed at `p`. Returns its length, | ENDS if it ends the block.
 */
export function decode(s: usize, op: usize, p: usize, at: u32, mode: u32): u32 {
  const start = p
  const code = mode & MODE_CS_MASK
  const long = code == MODE_CS64
  memory.fill(op, 0, 32)
  store<u8>(op, NONE, OP_BASE)
  store<u8>(op, NONE, OP_INDEX)
  let opsize16 = code == MODE_CS16 || code == MODE_CS16_BIG
  let addr: u32 = long ? 3 : code == MODE_CS32 ? 2 : 1
  let flags: u32 = 0
  let prefix66 = false
  let repeat: u32 = 0
  let segment: i32 = -1
  let rex: u32 = 0
  let byte: u32 = 0
  let map: u32 = 0
  for (;;) {
    byte = <u32>load<u8>(p++)
    if (p - start > 15) break
    if (byte == 0x66) {
      if (!prefix66) opsize16 = !opsize16
      prefix66 = true
    } else if (byte == 0x67) {
      addr = long ? 2 : code == MODE_CS32 ? 1 : 2
    } else if (byte == 0xf0) flags |= OPF_LOCK
    else if (byte == 0xf2 || byte == 0xf3) repeat = byte
    else if (byte == 0x2e || byte == 0x36 || byte == 0x3e || byte == 0x26) {
      if (!long) segment = byte == 0x2e ? SEG_CS : byte == 0x36 ? SEG_SS : byte == 0x3e ? SEG_DS : SEG_ES
    } else if (byte == 0x64) segment = SEG_FS
    else if (byte == 0x65) segment = SEG_GS
    else if (long && (byte & 0xf0) == 0x40) {
      rex = byte
      byte = <u32>load<u8>(p++)
      // A REX that is not the last prefix is ignored.
      if (
        byte == 0x66 ||
        byte == 0x67 ||
        byte == 0xf0 ||
        byte == 0xf2 ||
        byte == 0xf3 ||
        byte == 0x2e ||
        byte == 0x36 ||
        byte == 0x3e ||
        byte == 0x26 ||
        byte == 0x64 ||
        byte == 0x65 ||
        (byte & 0xf0) == 0x40
      ) {
        rex = 0
        p--
        continue
      }
      break
    } else break
  }
  let vex: u32 = 0
  /** An encoding that is #UD once all of it was fetched. */
  let refused = false
  if ((byte == 0xc4 || byte == 0xc5) && rex == 0 && (long || load<u8>(p) >= 0xc0)) {
    // VEX (SDM vol 2, 2.3.5): no other prefix but segments and 67 may come before it, and behind REX it is LES or LDS; only L = 0 has rows.
    refused = prefix66 || repeat != 0 || (flags & OPF_LOCK) != 0
    flags &= ~OPF_LOCK
    const first = <u32>load<u8>(p++)
    vex = byte == 0xc4 ? <u32>load<u8>(p++) : first
    rex = ((first >> 5) & 4) ^ 4
    map = 4
    if (byte == 0xc4) {
      rex |= (((first >> 5) & 3) ^ 3) | (long ? (vex >> 4) & 8 : 0)
      map = (first & 31) + 3
    }
    if (!long) rex = 0
    if (map < 4 || map > 6) return undefinedOp(op, at, start, undefinedEnd(p + 1, 2, 0, addr, false, long, false))
    if ((vex & 4) != 0) refused = true
    vex |= 0x100
    const pp = vex & 3
    prefix66 = pp == 1
    repeat = pp == 2 ? 0xf3 : pp == 3 ? 0xf2 : 0
    byte = <u32>load<u8>(p++)
  }
  if (repeat == 0xf3) flags |= OPF_REP
  else if (repeat == 0xf2) flags |= OPF_REPNE
  if (vex == 0 && byte == 0x0f) {
    byte = <u32>load<u8>(p++)
    map = 1
    if (byte == 0x38) {
      byte = <u32>load<u8>(p++)
      map = 2
    } else if (byte == 0x3a) {
      byte = <u32>load<u8>(p++)
      map = 3
    }
  }
  const prefixClass: u32 = repeat == 0xf3 ? 2 : repeat == 0xf2 ? 3 : prefix66 ? 1 : 0
  // F3 90 is PAUSE only where 90 would be NOP: with REX.B it is XCHG (measured on Zen 4).
  const table: u32 = vex == 0 && map == 0 && byte == 0x90 && (rex & 1) != 0 ? 0 : map * 4 + prefixClass
  const modrm = <u32>load<u8>(p)
  let node = lookUp(table, byte, modrm)
  if (!offered(s, node)) {
    // TZCNT and LZCNT are BSF and BSR with a prefix to CPUs that do not know them.
    node = table == 6 && (byte == 0xbc || byte == 0xbd) ? lookUp(4, byte, modrm) : 0
  }
  const d = descriptors + node * 24
  const bits = <u32>load<u16>(d)
  if (node == 0 || ((bits & D_NO64) != 0 && long) || ((bits & D_ONLY64) != 0 && !long)) {
    // An undefined instruction is fetched as far as its opcode says all the same.
    const end = undefinedEnd(p, vex != 0 ? map - 3 : map, byte, addr, (rex & 8) == 0 && opsize16, long, rex != 0)
    return undefinedOp(op, at, start, end)
  }

  // Operand size (SDM vol 1, 3.6): log2 of bytes.
  let size: u32
  const wide = (rex & 8) != 0
  const rule = <u32>load<u8>(d, 3)
  if (rule == SIZE_BYTE) size = 0
  else if (rule == SIZE_V) size = wide ? 3 : opsize16 ? 1 : 2
  else if (rule == SIZE_D64) size = long ? (prefix66 && !wide ? 1 : 3) : opsize16 ? 1 : 2
  else if (rule == SIZE_F64) size = long ? 3 : opsize16 ? 1 : 2
  else if (rule == SIZE_Y) size = wide ? 3 : 2
  else if (rule == SIZE_NATIVE) size = long ? 3 : 2
  else size = rule - SIZE_FIXED

  flags |= (size << 4) | (addr << 6)
  let ea: u32 = EA_FLAT64
  let isMemory: u32 = 0
  let disp: i32 = 0
  let ripRelative = false
  if (bits & D_MODRM) {
    p++
    store<u8>(op, <u8>modrm, OP_MODRM)
    const mod = modrm >> 6
    let r = (modrm >> 3) & 7
    if ((bits & D_BYTE_REG) != 0) store<u8>(op, byteRegister(r | ((rex & 4) << 1), rex), OP_REG)
    else store<u8>(op, <u8>(((bits & D_MMX_REG) != 0 ? r : r | ((rex & 4) << 1)) << 3), OP_REG)
    r = modrm & 7
    if (mod == 3 || (bits & D_REG_ONLY) != 0) {
      if ((bits & D_BYTE_RM) != 0) store<u8>(op, byteRegister(r | ((rex & 1) << 3), rex), OP_RM)
      else store<u8>(op, <u8>(((bits & D_MMX_RM) != 0 ? r : r | ((rex & 1) << 3)) << 3), OP_RM)
    } else {
      isMemory = 1
      flags |= OPF_MEM
      let defaultSegment: i32 = SEG_DS
      if (addr == 1) {
        const b = load<u8>(base16 + <usize>r)
        if (mod == 0 && r == 6) {
          disp = <i32>load<u16>(p)
          p += 2
        } else {
          store<u8>(op, b << 3, OP_BASE)
          const x = load<u8>(index16 + <usize>r)
          store<u8>(op, x << 3, OP_INDEX)
          if (b == 5) defaultSegment = SEG_SS
          if (mod == 1) disp = <i32>load<i8>(p++)
          else if (mod == 2) {
            disp = <i32>load<i16>(p)
            p += 2
          }
        }
      } else {
        let b = r
        let hasBase = true
        if (r == 4) {
          const sib = <u32>load<u8>(p++)
          const x = ((sib >> 3) & 7) | ((rex & 2) << 2)
          if (x != 4) {
            store<u8>(op, <u8>(x << 3), OP_INDEX)
            store<u8>(op, <u8>(sib >> 6), OP_SCALE)
          }
          b = sib & 7
          if (b == 5 && mod == 0) {
            hasBase = false
            disp = load<i32>(p)
            p += 4
          } else if (b == 4 || b == 5) {
            if ((rex & 1) == 0) defaultSegment = SEG_SS
          }
        } else if (r == 5 && mod == 0) {
          hasBase = false
          disp = load<i32>(p)
          p += 4
          ripRelative = long
        } else if (r == 5 && (rex & 1) == 0) defaultSegment = SEG_SS
        if (hasBase) {
          store<u8>(op, <u8>((b | ((rex & 1) << 3)) << 3), OP_BASE)
          if (mod == 1) disp = <i32>load<i8>(p++)
          else if (mod == 2) {
            disp = load<i32>(p)
            p += 4
          }
        }
      }
      if (segment < 0) segment = defaultSegment
    }
  } else if (bits & D_EMBEDDED) {
    const r = (byte & 7) | ((rex & 1) << 3)
    store<u8>(op, (bits & D_BYTE_RM) != 0 ? byteRegister(r, rex) : <u8>(r << 3), OP_RM)
  }
  if (segment < 0) segment = SEG_DS
  store<u8>(op, <u8>segment, OP_SEG)
  if (long) ea = segment >= <i32>SEG_FS ? (addr == 3 ? EA_SEGMENT64 : EA_GENERAL) : addr == 3 ? EA_FLAT64 : EA_FLAT32
  else ea = (mode & MODE_FLAT) != 0 && addr == 2 && (segment == SEG_DS || segment == SEG_SS || segment == SEG_ES) ? EA_FLAT32 : EA_GENERAL
  store<u8>(op, <u8>ea, OP_EA)
  store<u32>(op, byte, OP_EXTRA)

  // Immediate.
  let imm: i64 = 0
  switch (<u32>load<u8>(d, 2)) {
    case IMM_Ib:
    case IMM_Jb:
      imm = <i64>load<i8>(p)
      p += 1
      break
    case IMM_Ub:
      imm = <i64>load<u8>(p)
      p += 1
      break
    case IMM_one:
      imm = 1
      break // the shifts by 1 run in the handlers of those by an immediate
    case IMM_Iw:
      imm = <i64>load<u16>(p)
      p += 2
      break
    case IMM_Iz:
    case IMM_Jz:
      if (size == 1) {
        imm = <i64>load<i16>(p)
        p += 2
      } else {
        imm = <i64>load<i32>(p)
        p += 4
      }
      break
    case IMM_Iv:
      if (size == 1) {
        imm = <i64>load<i16>(p)
        p += 2
      } else if (size == 2) {
        imm = <i64>load<i32>(p)
        p += 4
      } else {
        imm = load<i64>(p)
        p += 8
      }
      break
    case IMM_Ap:
      if (size == 1) {
        imm = <i64>load<u16>(p)
        p += 2
      } else {
        imm = <i64>load<u32>(p)
        p += 4
      }
      store<u32>(op, <u32>load<u16>(p), OP_EXTRA)
      p += 2
      break
    case IMM_moffs:
      if (addr == 1) {
        imm = <i64>load<u16>(p)
        p += 2
      } else if (addr == 2) {
        imm = <i64>load<u32>(p)
        p += 4
      } else {
        imm = load<i64>(p)
        p += 8
      }
      break
    case IMM_IwIb:
      imm = <i64>load<u16>(p)
      store<u32>(op, <u32>load<u8>(p, 2), OP_EXTRA)
      p += 3
      break
    default:
      break
  }
  const length = <u32>(p - start)
  if (length > 15) return finish(op, H_GP, 15, at, ENDS)
  if (vex != 0) {
    const vvvv = ((vex >> 3) & 15) ^ 15
    if (<u32>load<u8>(d, 2) == 0) imm = <i64>((long ? vvvv : vvvv & 7) << 3)
    else if (vvvv != 0) refused = true
    if (refused) return finish(op, H_UD, length, at, ENDS)
  }
  const next = at + length
  if (ripRelative) {
    store<u8>(op, RIP_SLOT, OP_BASE)
    disp += <i32>next
  }
  store<i32>(op, disp, OP_DISP)
  let id = <u32>load<u16>(d + 8 + <usize>((size * 2 + isMemory) << 1))
  if (bits & D_BRANCH) {
    imm += <i64>next
    // A 16-bit operand size truncates EIP, which in 16-bit code of at most 64 KiB happens anyway, and code that is not flat has a limit: the cold form looks.
    if (size == 1 ? code != MODE_CS16 : !long && (mode & MODE_FLAT) == 0) id = <u32>load<u16>(d, 4)
    if (chained(id)) store<u32>(op, 0, OP_EXTRA)
  }
  store<i64>(op, imm, OP_IMM)
  if (flags & OPF_LOCK) {
    if ((bits & D_LOCK) == 0 || (!isMemory && (bits & D_REG_ONLY) == 0)) return finish(op, H_UD, length, at, ENDS)
  }
  if (vex == 0 && map == 0 && byte == 0x90 && (rex & 1) == 0 && repeat != 0xf3) id = H_NOP
  store<u8>(op, <u8>flags, OP_FLAGS)
  return finish(op, id, length, at, (bits & D_END) != 0 ? ENDS : 0)
}

/** Descriptor by map * 4 + prefix class, opcode and ModRM byte; 0 = undefined. */
function lookUp(table: u32, byte: u32, modrm: u32): u32 {
  const node = <u32>load<u16>(roots + ((table * 256 + byte) << 1))
  if (node < 0x8000) return node
  // Group: 8 memory and 64 register descriptors, by ModRM.
  const slot = modrm >= 0xc0 ? 8 + (modrm & 63) : (modrm >> 3) & 7
  return <u32>load<u16>(groups + (((node & 0x7fff) * 72 + slot) << 1))
}

/** Whether CPUID has the feature that an instruction belongs to; before KVM_SET_CPUID2 everything is there. */
function offered(s: usize, node: u32): bool {
  const need = <u32>load<u16>(descriptors + node * 24, 6)
  if (need == 0 || load<u32>(s + CPU_FEATURES, 60) == 0) return true
  return ((load<u32>(s + CPU_FEATURES + (((need - 1) >> 5) << 2)) >> ((need - 1) & 31)) & 1) != 0
}

function finish(op: usize, id: u32, length: u32, at: u32, ends: u32): u32 {
  store<u16>(op, <u16>id, OP_ID)
  store<u8>(op, <u8>accessOf(id), OP_ACCESS)
  store<u16>(op, <u16>at, OP_OFFSET)
  store<u16>(op, <u16>(at + length), OP_NEXT)
  return length | ends
}

/** AH, CH, DH, BH without REX; the low byte of R otherwise. */
function byteRegister(r: u32, rex: u32): u8 {
  return rex == 0 && r >= 4 ? <u8>(((r - 4) << 3) + 1) : <u8>(r << 3)
}
