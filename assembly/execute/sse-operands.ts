/**
 * Operands of SSE handlers (SDM vol 1, chapters 10-12; vol 2, 2.4 "exception types").
 * Owns no state; works on CPU_XMM and, for memory operands, on whatever address memory/access.ts names.
 */
import {
  CPU_CR0,
  CPU_CR4,
  CPU_FSW,
  CPU_LEAVE,
  CPU_MODE,
  CPU_MXCSR,
  CPU_SEGMENTS,
  CPU_ST,
  CPU_XMM,
  CPU_FTAG,
  CPU_FTOP,
  EA_FLAT32,
  EXC_AC,
  EXC_GP,
  EXC_MF,
  EXC_NM,
  EXC_SS,
  EXC_UD,
  LEAVE_NEXT,
  OP_EA,
  OP_MODRM,
  OP_REG,
  OP_RM,
  MODE_CS64,
  MODE_CS_MASK,
  OP_SEG,
  SEG_BASE,
  SEG_FS,
  SEG_SS,
} from '../generated/layout'
import { CR0_EM, CR0_TS, CR4_OSFXSR } from '../generated/registers'
import { raise, raiseError } from '../cpu/exceptions'
import { leaving, plainRead, plainWrite, slowRead, writeBytes, writeMem } from '../memory/access'
import { alignmentChecked } from '../memory/tlb'
import { canonical } from '../memory/translate'
import { ea, eaWrite, effectiveOffset, isMemory } from './operands'

// SDM vol 3, 2.5 "control registers".
// APM vol 1, 4.2.2: misaligned-exception mask.
const MXCSR_MM: u32 = 1 << 17
const FSW_ES: u32 = 1 << 7

/** #UD or #NM when the OS has not enabled SSE or wants to switch its state. */
export function sseUsable(s: usize): bool {
  const cr0 = load<u64>(s, CPU_CR0)
  if ((cr0 & (CR0_EM | CR0_TS)) == 0 && (load<u64>(s, CPU_CR4) & CR4_OSFXSR) != 0) return true
  raise(s, (cr0 & CR0_EM) != 0 || (load<u64>(s, CPU_CR4) & CR4_OSFXSR) == 0 ? EXC_UD : EXC_NM)
  return false
}

/** MMX: #UD, #NM, then a pending x87 exception. */
export function mmxUsable(s: usize): bool {
  const cr0 = load<u64>(s, CPU_CR0)
  if ((cr0 & (CR0_EM | CR0_TS)) != 0) {
    raise(s, (cr0 & CR0_EM) != 0 ? EXC_UD : EXC_NM)
    return false
  }
  if ((load<u32>(s, CPU_FSW) & FSW_ES) != 0) {
    raise(s, EXC_MF)
    return false
  }
  return true
}

/** An MMX instruction makes all registers valid and TOP 0 (SDM vol 1, 9.5.2). */
export function enterMmx(s: usize): void {
  store<u32>(s, 0, CPU_FTOP)
  store<u32>(s, 0xff, CPU_FTAG)
}

export function left(s: usize): u32 {
  return load<u32>(s, CPU_LEAVE)
}

/** Register named by ModRM.reg / ModRM.rm; the operand fields hold n * 8, registers are 32 bytes apart. */
export function xmmReg(s: usize, op: usize): usize {
  return s + CPU_XMM + ((<usize>load<u8>(op, OP_REG)) << 2)
}
export function xmmRm(s: usize, op: usize): usize {
  return s + CPU_XMM + ((<usize>load<u8>(op, OP_RM)) << 2)
}
/** MMX registers alias the significands of the physical x87 registers; REX does not extend them. */
export function mmxReg(s: usize, op: usize): usize {
  return s + CPU_ST + (((<usize>load<u8>(op, OP_MODRM) >> 3) & 7) << 4)
}
export function mmxRm(s: usize, op: usize): usize {
  return s + CPU_ST + ((<usize>load<u8>(op, OP_MODRM) & 7) << 4)
}

/** Address of `n` (<= 64) readable bytes of the memory operand, any alignment; 0 = leaving.  */
export function memory(s: usize, op: usize, n: u32): usize {
  const va = ea(s, op, n)
  if (leaving(s)) return 0
  return readable(s, op, va, n)
}

export function readable(s: usize, op: usize, va: u64, n: u32): usize {
  if ((<u32>va & 4095) + n <= 4096) {
    const p = plainRead(s, va)
    if (p) return p
  }
  return slowRead(s, op, va, n)
}

/** Of an operand that its segment refuses: misalignment is #GP all the same, also on the stack (measured on Zen 4). */
export function misaligned(s: usize, op: usize): bool {
  return ((segmentBase(s, op) + effectiveOffset(s, op)) & 15) != 0
}
function segmentBase(s: usize, op: usize): u64 {
  const segment = <u32>load<u8>(op, OP_SEG)
  const flat = (load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64 && segment < SEG_FS
  return flat ? 0 : load<u64>(s + CPU_SEGMENTS + ((<usize>segment) << 4), SEG_BASE)
}
function protection(s: usize): usize {
  raiseError(s, EXC_GP, 0)
  return 0
}

/** Address of the 16-byte E operand of an instruction that demands alignment; 0 = leaving. */
export function source(s: usize, op: usize): usize {
  if (!sseUsable(s)) return 0
  if (!isMemory(op)) return xmmRm(s, op)
  const va = ea(s, op, 16)
  if (leaving(s)) return misaligned(s, op) && (load<u32>(s, CPU_MXCSR) & MXCSR_MM) == 0 ? protection(s) : 0
  if ((va & 15) != 0 && (load<u32>(s, CPU_MXCSR) & MXCSR_MM) == 0) {
    raiseError(s, EXC_GP, 0)
    return 0
  }
  return readable(s, op, va, 16)
}

/** Unpacking of low halves, and shifts by a count in memory: where MXCSR.MM lets the operand be misaligned, half is read (measured on Zen 4). */
export function halfUsed(s: usize, op: usize, opcode: u32): bool {
  if ((load<u32>(s, CPU_MXCSR) & MXCSR_MM) == 0 || !isMemory(op) || ((segmentBase(s, op) + effectiveOffset(s, op)) & 15) == 0) return false
  if (opcode >= 0xd1) return opcode <= 0xd3 || opcode == 0xe1 || opcode == 0xe2 || (opcode >= 0xf1 && opcode <= 0xf3)
  return (opcode >= 0x60 && opcode <= 0x62) || opcode == 0x6c || opcode == 0x14
}

/** The low half of a 16-byte operand, whose segment and canonical form are checked for all of it. */
export function sourceLow(s: usize, op: usize): usize {
  if (!sseUsable(s)) return 0
  const va = ea(s, op, 16)
  if (leaving(s)) return 0
  const flat = (load<u32>(s, CPU_MODE) & MODE_CS_MASK) != MODE_CS64 && load<u8>(op, OP_EA) == <u8>EA_FLAT32
  if (!canonical(s, va) || !canonical(s, va + 15) || (flat && va + 15 > 0xffffffff)) {
    raiseError(s, load<u8>(op, OP_SEG) == <u8>SEG_SS ? EXC_SS : EXC_GP, 0)
    return 0
  }
  // It is misaligned, or it would not be read by halves.
  if (alignmentChecked(s)) {
    raiseError(s, EXC_AC, 0)
    return 0
  }
  return readable(s, op, va, 8)
}

/** As source, for instructions whose memory operand has `n` bytes at any alignment. */
export function sourceOf(s: usize, op: usize, n: u32): usize {
  if (!sseUsable(s)) return 0
  return isMemory(op) ? memory(s, op, n) : xmmRm(s, op)
}

/** The first operand (= destination) and its replacement. */
export function first(s: usize, op: usize): v128 {
  return v128.load(xmmReg(s, op))
}
export function put(s: usize, op: usize, value: v128): u32 {
  v128.store(xmmReg(s, op), value)
  return 0
}

/** Stores `n` (1, 4, 8 or 16) bytes from `from` to the memory operand;  */
export function storeMemory(s: usize, op: usize, from: usize, n: u32): u32 {
  const va = eaWrite(s, op, n)
  if (leaving(s)) return left(s)
  return storeAt(s, op, va, from, n)
}

export function storeAt(s: usize, op: usize, va: u64, from: usize, n: u32): u32 {
  if (n <= 8)
    return writeMem(
      s,
      op,
      va,
      n,
      n == 8 ? load<u64>(from) : n == 4 ? <u64>load<u32>(from) : n == 2 ? <u64>load<u16>(from) : <u64>load<u8>(from),
    )
  if (n == 16 && (<u32>va & 4095) + 16 <= 4096) {
    const p = plainWrite(s, va)
    if (p) {
      v128.store(p, v128.load(from))
      return 0
    }
  }
  return writeBytes(s, op, va, from, n)
}

/** As storeMemory with 16 bytes, #GP when misaligned (no MXCSR.MM relief: APM vol 1, 4.2.2, moves always fault). */
export function storeAligned(s: usize, op: usize, from: usize): u32 {
  const va = eaWrite(s, op, 16)
  if (leaving(s)) {
    if (misaligned(s, op)) protection(s)
    return left(s)
  }
  if ((va & 15) != 0) return raiseError(s, EXC_GP, 0)
  return storeAt(s, op, va, from, 16)
}

/** Address of the 8-byte MMX E operand after the checks; 0 = leaving. Enters MMX state only when the operand is there. */
export function mmxSource(s: usize, op: usize, n: u32): usize {
  if (!mmxUsable(s)) return 0
  const p = isMemory(op) ? memory(s, op, n) : mmxRm(s, op)
  if (p) enterMmx(s)
  return p
}

/** Writes an MMX register: bits 79:64 become ones. */
export function putMmx(s: usize, op: usize, value: u64): u32 {
  const at = mmxReg(s, op)
  store<u64>(at, value)
  store<u16>(at, 0xffff, 8)
  return 0
}

/** A store that retired: 0, or LEAVE_NEXT when it hit decoded code. */
export function stored(leave: u32): bool {
  return leave == 0 || leave == LEAVE_NEXT
}
