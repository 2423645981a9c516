/**
 * Raising exceptions: what a handler notes for its instruction, and loud stops (SDM vol 3, chapter 6; APM vol 2, chapter 8).
 * Owns CPU_EXC_* and CPU_CR2; delivery.ts delivers what they describe.
 */
import {
  CPU_CR2,
  CPU_DR6,
  CPU_EXC_ERROR,
  CPU_EXC_FLAGS,
  CPU_EXC_VECTOR,
  CPU_RIP,
  CPU_STOP_DETAIL,
  CPU_STOP_INFO,
  CPU_STOP_NAME,
  CPU_STOP_REASON,
  EXCF_ERROR,
  EXC_DB,
  EXC_PF,
  EXC_VC,
  LEAVE_EXIT_RETRY,
  LEAVE_FAULT,
  OP_NEXT,
  OP_OFFSET,
  OP_MODRM,
  STOP_UNIMPLEMENTED,
} from '../generated/layout'
import { instructionRip } from '../execute/operands'
import { leaveWith } from './mode'

/** Raises a fault without error code; returns LEAVE_FAULT. */
export function raise(s: usize, vector: u32): u32 {
  store<u32>(s, vector, CPU_EXC_VECTOR)
  store<u32>(s, 0, CPU_EXC_ERROR)
  store<u32>(s, 0, CPU_EXC_FLAGS)
  return leaveWith(s, LEAVE_FAULT)
}

export function raiseError(s: usize, vector: u32, error: u32): u32 {
  store<u32>(s, vector, CPU_EXC_VECTOR)
  store<u32>(s, error, CPU_EXC_ERROR)
  store<u32>(s, EXCF_ERROR, CPU_EXC_FLAGS)
  return leaveWith(s, LEAVE_FAULT)
}

/** #PF: sets CR2. */
export function raisePageFault(s: usize, va: u64, error: u32): u32 {
  store<u64>(s, va, CPU_CR2)
  return raiseError(s, EXC_PF, error)
}

/** #VC: an SEV-ES guest met a non-automatic exit; `exitCode` is the SVM exit code (APM vol 2, 15.35.5). */
export function vmmCommunication(s: usize, exitCode: u32): u32 {
  return raiseError(s, EXC_VC, exitCode)
}

/** #DB as a fault (general detect, instruction breakpoint); `bits` go to DR6. */
export function raiseDebug(s: usize, bits: u32): u32 {
  store<u64>(s, load<u64>(s, CPU_DR6) | <u64>bits, CPU_DR6)
  return raise(s, EXC_DB)
}

/** Stops loudly: `what` is one of UNIMPLEMENTED_*; op may be 0 outside an instruction. Returns LEAVE_EXIT_RETRY. */
export function unimplementedFeature(s: usize, op: usize, what: u32): u32 {
  store<u32>(s, STOP_UNIMPLEMENTED, CPU_STOP_REASON)
  store<u32>(s, what, CPU_STOP_NAME)
  store<u64>(s, op ? instructionRip(s, op) : load<u64>(s, CPU_RIP), CPU_STOP_DETAIL)
  store<u64>(s, op ? <u64>(load<u16>(op, OP_NEXT) - load<u16>(op, OP_OFFSET)) | ((<u64>load<u8>(op, OP_MODRM)) << 8) : 0, CPU_STOP_INFO)
  return leaveWith(s, LEAVE_EXIT_RETRY)
}
