/** Far pointers in memory (JMP, CALL, LDS and its kin): offset first, selector behind it. Owns no state of the vCPU. */
import { intelCompatible } from '../cpu/features'
import { CPU_VM } from '../generated/layout'
import { probe, readMem } from '../memory/access'
import { slotFind } from '../memory/slots'
import { left } from './common'
import { ea, eaBehind, operandSize } from './operands'

/** What readFarPointer read. */
export let pointerOffset: u64 = 0
export let pointerSelector: u32 = 0
/** Bytes of the offset. */
export let pointerSize: u32 = 0

/**
 * Bytes of the offset in a far pointer: AMD has none of 64 bits (APM vol 3, JMP far, LFS). But a pointer in MMIO is read by KVM's
 * emulator, which takes 64 on every CPU (SrcMemFAddr; kvm-unit-tests' emulator wants it).
 */
function offsetSize(s: usize, op: usize): u32 {
  const size = operandSize(op)
  if (size != 8 || intelCompatible(s)) return size
  const va = ea(s, op, 4)
  if (left(s)) return 4
  const gpa = probe(s, va)
  return gpa != ~(<u64>0) && slotFind(<usize>load<u32>(s, CPU_VM), gpa) == 0 ? 8 : 4
}

/** Reads the operand into pointerOffset and pointerSelector; false: CPU_LEAVE says why not. */
export function readFarPointer(s: usize, op: usize): bool {
  const size = offsetSize(s, op)
  pointerSize = size
  const va = ea(s, op, size)
  if (left(s)) return false
  pointerOffset = readMem(s, op, va, size)
  if (left(s)) return false
  const behind = eaBehind(s, op, size, 2)
  if (left(s)) return false
  pointerSelector = <u32>readMem(s, op, behind, 2)
  return !left(s)
}
