/** Operands of cold handlers: effective addresses, E and G operands, the stack. */
import { raise, raiseError } from '../cpu/exceptions'
import {
  CPU_CR0,
  CPU_EFLAGS,
  CPU_LEAVE,
  CPU_MODE,
  CPU_RIP,
  CPU_SEGMENTS,
  CPU_STACK_MASK,
  CPU_STOP_DETAIL,
  CPU_STOP_INFO,
  CPU_STOP_NAME,
  CPU_STOP_REASON,
  EA_FLAT32,
  EXC_GP,
  EXC_SS,
  EXC_UD,
  LEAVE_EXIT_RETRY,
  MODE_CS64,
  MODE_CS_MASK,
  OP_BASE,
  OP_DISP,
  OP_EA,
  OP_FLAGS,
  OP_INDEX,
  OP_NEXT,
  OP_MODRM,
  OP_EXTRA,
  OP_OFFSET,
  OP_REG,
  OP_RM,
  OP_SCALE,
  OP_SEG,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_FS,
  SEG_LIMIT,
  SEG_SS,
  STOP_UNIMPLEMENTED,
  GLOBAL,
} from '../generated/layout'
import { modifyMem, commitModify, readMem, writeMem } from '../memory/access'

/** A pseudo-op for implicit stack accesses: only its segment (SS) is ever read. */
export const STACK_OP: usize = GLOBAL + 0xff00
store<u8>(STACK_OP, <u8>SEG_SS, OP_SEG)
// In flat legacy code a stack access may not pass 4 GiB.
store<u8>(STACK_OP, <u8>EA_FLAT32, OP_EA)

/** Operand size of the op in bytes (1, 2, 4, 8). */
export function operandSize(op: usize): u32 {
  return 1 << ((<u32>load<u8>(op, OP_FLAGS) >> 4) & 3)
}

/** Address size in bytes (2, 4, 8). */
export function addressSize(op: usize): u32 {
  return 1 << (<u32>load<u8>(op, OP_FLAGS) >> 6)
}

/** All ones of the address size. */
export function addressMask(op: usize): u64 {
  const size = addressSize(op)
  return size == 8 ? ~(<u64>0) : size == 4 ? 0xffffffff : 0xffff
}

export function isMemory(op: usize): bool {
  return (load<u8>(op, OP_FLAGS) & 1) != 0
}

/** RIP of the instruction (not masked to the code size; it cannot wrap inside a block). */
export function instructionRip(s: usize, op: usize): u64 {
  return load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)
}

/**
 * Linear address of `offset` in a segment: base, limit and type checks (SDM vol 3, 5.3-5.5).
 * Raises #GP(0) or #SS(0); check CPU_LEAVE.
 */
export function segmentAddress(s: usize, segment: u32, offset: u64, size: u32, write: bool): u64 {
  const d = s + CPU_SEGMENTS + ((<usize>segment) << 4)
  if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64) return segment >= SEG_FS ? load<u64>(d, SEG_BASE) + offset : offset
  const attrib = <u32>load<u16>(d, SEG_ATTRIB)
  const limit = <u64>load<u32>(d, SEG_LIMIT)
  let ok = (attrib & 0x8080) == 0x80
  if (attrib & 8) ok = ok && !write && (attrib & 2) != 0
  else if (write) ok = ok && (attrib & 2) != 0
  const last = offset + <u64>size - 1
  if ((attrib & 12) == 4) ok = ok && offset > limit && last <= ((attrib & 0x400) != 0 ? <u64>0xffffffff : <u64>0xffff)
  else ok = ok && last <= limit
  // Real mode and virtual-8086 mode know no types: MOV CS:[x] is legal there.
  if (!ok && ((load<u64>(s, CPU_CR0) & 1) == 0 || (load<u64>(s, CPU_EFLAGS) & 0x20000) != 0)) ok = last <= limit
  if (!ok) {
    raiseError(s, segment == SEG_SS ? EXC_SS : EXC_GP, 0)
    return 0
  }
  return <u64>(<u32>(load<u64>(d, SEG_BASE) + offset))
}

/** The EA_GENERAL form: `offset` is base + index + displacement, untruncated. */
export function eaGeneral(s: usize, op: usize, offset: u64, size: u32, write: bool): u64 {
  return segmentAddress(s, <u32>load<u8>(op, OP_SEG), offset & addressMask(op), size, write)
}

function eaFor(s: usize, op: usize, size: u32, write: bool): u64 {
  const offset =
    load<u64>(s + <usize>load<u8>(op, OP_BASE)) +
    (load<u64>(s + <usize>load<u8>(op, OP_INDEX)) << (<u64>load<u8>(op, OP_SCALE))) +
    <u64>(<i64>load<i32>(op, OP_DISP))
  const kind = load<u8>(op, OP_EA)
  if (kind == 0) return offset
  if (kind == 1) return <u64>(<u32>offset)
  return eaGeneral(s, op, offset, size, write)
}

/** Base + index + displacement truncated to the address size, without the segment (LEA, bit strings). */
export function effectiveOffset(s: usize, op: usize): u64 {
  return (
    (load<u64>(s + <usize>load<u8>(op, OP_BASE)) +
      (load<u64>(s + <usize>load<u8>(op, OP_INDEX)) << (<u64>load<u8>(op, OP_SCALE))) +
      <u64>(<i64>load<i32>(op, OP_DISP))) &
    addressMask(op)
  )
}

/** Linear address of the memory operand for a read of `size` bytes; check leaving(s). */
export function ea(s: usize, op: usize, size: u32): u64 {
  return eaFor(s, op, size, false)
}

/** Linear address of `n` bytes behind the first `skip` of the memory operand, checked on their own; check leaving(s). */
export function eaBehind(s: usize, op: usize, skip: u32, n: u32): u64 {
  return segmentAddress(s, <u32>load<u8>(op, OP_SEG), (effectiveOffset(s, op) + <u64>skip) & addressMask(op), n, false)
}

/** Linear address of the memory operand for a write; check leaving(s). */
export function eaWrite(s: usize, op: usize, size: u32): u64 {
  return eaFor(s, op, size, true)
}

/** Zero-extended register value at offset `r` of the CPU structure. */
export function readRegister(address: usize, size: u32): u64 {
  if (size == 8) return load<u64>(address)
  if (size == 4) return <u64>load<u32>(address)
  if (size == 2) return <u64>load<u16>(address)
  return <u64>load<u8>(address)
}

/** Writes a general register: 32-bit writes zero the upper half. */
export function writeRegister(address: usize, size: u32, value: u64): void {
  if (size == 8) store<u64>(address, value)
  else if (size == 4) store<u64>(address, <u64>(<u32>value))
  else if (size == 2) store<u16>(address, <u16>value)
  else store<u8>(address, <u8>value)
}

/** Value of the E operand, zero-extended. Check leaving(s) if the op has a memory operand. */
export function getRm(s: usize, op: usize, size: u32): u64 {
  if (!isMemory(op)) return readRegister(s + <usize>load<u8>(op, OP_RM), size)
  const va = ea(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return 0
  return readMem(s, op, va, size)
}

/** Writes the E operand; 0 or LEAVE. */
export function setRm(s: usize, op: usize, size: u32, value: u64): u32 {
  if (!isMemory(op)) {
    writeRegister(s + <usize>load<u8>(op, OP_RM), size, value)
    return 0
  }
  const va = eaWrite(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  return writeMem(s, op, va, size, value)
}

/** For read-modify-write: address of the E operand (register or memory), 0 = leaving. After the store call finishRm. */
export function modifyRm(s: usize, op: usize, size: u32): usize {
  if (!isMemory(op)) return s + <usize>load<u8>(op, OP_RM)
  const va = eaWrite(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return 0
  return modifyMem(s, op, va, size)
}

/** Stores through an address of modifyRm; 0 or LEAVE. Set flags and other registers after it, unless it is neither 0 nor LEAVE_NEXT. */
export function finishRm(s: usize, op: usize, size: u32, address: usize, value: u64): u32 {
  if (!isMemory(op)) {
    writeRegister(address, size, value)
    return 0
  }
  if (size == 8) store<u64>(address, value)
  else if (size == 4) store<u32>(address, <u32>value)
  else if (size == 2) store<u16>(address, <u16>value)
  else store<u8>(address, <u8>value)
  return commitModify(s, op)
}

/** Value of the G operand register. */
export function getReg(s: usize, op: usize, size: u32): u64 {
  return readRegister(s + <usize>load<u8>(op, OP_REG), size)
}

export function setReg(s: usize, op: usize, size: u32, value: u64): void {
  writeRegister(s + <usize>load<u8>(op, OP_REG), size, value)
}

const RSP: usize = 32

/** Replaces the part of RSP that the stack size covers. */
export function setStackPointer(s: usize, value: u64): void {
  const mask = load<u64>(s, CPU_STACK_MASK)
  if (mask == 0xffff) store<u16>(s, <u16>value, RSP)
  else store<u64>(s, value & mask, RSP)
}

/** Linear address of a stack slot at `sp` (already masked); check CPU_LEAVE. */
export function stackAddress(s: usize, sp: u64, size: u32, write: bool): u64 {
  return segmentAddress(s, SEG_SS, sp, size, write)
}

/** Pushes `size` bytes; RSP changes only on success. 0 or LEAVE. */
export function push(s: usize, op: usize, size: u32, value: u64): u32 {
  const mask = load<u64>(s, CPU_STACK_MASK)
  const sp = (load<u64>(s, RSP) - <u64>size) & mask
  const va = stackAddress(s, sp, size, true)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  const leave = writeMem(s, STACK_OP, va, size, value)
  if (leave == 0 || leave == 2) setStackPointer(s, sp)
  return leave
}

/** Pops `size` bytes; check leaving(s); RSP changes only on success. */
export function pop(s: usize, op: usize, size: u32): u64 {
  const mask = load<u64>(s, CPU_STACK_MASK)
  const sp = load<u64>(s, RSP) & mask
  const va = stackAddress(s, sp, size, false)
  if (load<u32>(s, CPU_LEAVE)) return 0
  const value = readMem(s, STACK_OP, va, size)
  if (load<u32>(s, CPU_LEAVE)) return 0
  setStackPointer(s, (sp + <u64>size) & mask)
  return value
}

/** #UD: an encoding that does not exist, or is not legal here. */
export function undefinedOpcode(s: usize, op: usize): u32 {
  return raise(s, EXC_UD)
}

/** An instruction longer than 15 bytes, or beyond the code segment: #GP(0). */
export function generalProtection(s: usize, op: usize): u32 {
  return raiseError(s, EXC_GP, 0)
}

/** An encoding that the modelled CPU has and this core does not: a loud stop with its place and bytes. */
export function unimplemented(s: usize, op: usize): u32 {
  store<u32>(s, STOP_UNIMPLEMENTED, CPU_STOP_REASON)
  store<u32>(s, 0, CPU_STOP_NAME)
  store<u64>(s, instructionRip(s, op), CPU_STOP_DETAIL)
  store<u64>(
    s,
    <u64>(load<u16>(op, OP_NEXT) - load<u16>(op, OP_OFFSET)) |
      ((<u64>load<u8>(op, OP_MODRM)) << 8) |
      ((<u64>load<u32>(op, OP_EXTRA)) << 16),
    CPU_STOP_INFO,
  )
  store<u32>(s, LEAVE_EXIT_RETRY, CPU_LEAVE)
  return LEAVE_EXIT_RETRY
}
