/**
 * Segmentation for cold handlers that form addresses themselves: string instructions, bit strings,
 * XLAT, moffs (SDM vol. 3, chapters 3.4 and 5.3). Owns no state.
 */
import {
  CPU_CR0,
  CPU_EFLAGS,
  CPU_MODE,
  CPU_RIP,
  CPU_RIP_MASK,
  CPU_SEGMENTS,
  EXC_GP,
  EXC_SS,
  LEAVE_EXIT_RETRY,
  LEAVE_FAULT,
  MODE_CS64,
  MODE_CS_MASK,
  OP_NEXT,
  OP_OFFSET,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_FS,
  SEG_LIMIT,
  SEG_SS,
} from '../generated/layout'
import { raiseError } from '../cpu/exceptions'
import { canonical } from '../memory/translate'
import { addressMask, addressSize } from './operands'

/** Why tryLinear failed is not kept: the vector depends on the segment only (SS: #SS, others: #GP). */
/** Not canonical, so that no access has it. */
export const NO_ADDRESS: u64 = 0x7fff_0000_0000_0000

/** Linear address of offset..offset+size-1 in a segment, or NO_ADDRESS if the access violates segmentation. */
export function tryLinear(s: usize, segment: u32, offset: u64, size: u32, write: bool): u64 {
  const g = s + CPU_SEGMENTS + ((<usize>segment) << 4)
  if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64) {
    const va = segment >= SEG_FS ? load<u64>(g, SEG_BASE) + offset : offset
    return canonical(s, va) && canonical(s, va + (size - 1)) ? va : NO_ADDRESS
  }
  const attrib = <u32>load<u16>(g, SEG_ATTRIB)
  const limit = <u64>load<u32>(g, SEG_LIMIT)
  const end = offset + (size - 1)
  // Real mode and virtual-8086 mode ignore the type.
  if ((load<u64>(s, CPU_CR0) & 1) != 0 && (load<u64>(s, CPU_EFLAGS) & 0x20000) == 0) {
    if (attrib & 0x8000) return NO_ADDRESS
    if (attrib & 8) {
      if (write || (attrib & 2) == 0) return NO_ADDRESS
    } else if (write && (attrib & 2) == 0) return NO_ADDRESS
  }
  if ((attrib & 0xc) == 4) {
    const top: u64 = attrib & 0x400 ? 0xffff_ffff : 0xffff
    if (offset <= limit || end > top) return NO_ADDRESS
  } else if (end > limit) return NO_ADDRESS
  return (load<u64>(g, SEG_BASE) + offset) & 0xffff_ffff
}

/** As tryLinear, but raises #SS(0) or #GP(0); test leaving(s). */
export function linear(s: usize, segment: u32, offset: u64, size: u32, write: bool): u64 {
  const va = tryLinear(s, segment, offset, size, write)
  if (va == NO_ADDRESS) raiseError(s, segment == SEG_SS ? EXC_SS : EXC_GP, 0)
  return va
}

/** Address-size register rCX, rSI, ...: value, and write that keeps (16-bit) or zeroes (32-bit) the rest. */
export function getCounter(s: usize, op: usize, register: u32): u64 {
  return load<u64>(s + ((<usize>register) << 3)) & addressMask(op)
}
export function setCounter(s: usize, op: usize, register: u32, value: u64): void {
  const p = s + ((<usize>register) << 3)
  const size = addressSize(op)
  if (size == 8) store<u64>(p, value)
  else if (size == 4) store<u64>(p, value & 0xffff_ffff)
  else store<u16>(p, <u16>value)
}

/** RIP of the running instruction and of the following one. */
export function currentRip(s: usize, op: usize): u64 {
  return (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)) & load<u64>(s, CPU_RIP_MASK)
}
export function nextRip(s: usize, op: usize): u64 {
  return (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK)
}

/** True if a memory helper's code means that the instruction did not happen (others: it did, then leave). */
export function aborted(code: u32): bool {
  return code == LEAVE_FAULT || code == LEAVE_EXIT_RETRY
}
