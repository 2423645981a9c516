/**
 * What every x87 instruction does around its operation: availability, instruction and data pointers, stack checks,
 * exception delivery into the status word (SDM vol 1, 8.1.8, 8.5-8.6). Owns CPU_FIP, CPU_FDP, CPU_FOP and C1.
 */
import {
  CPU_FCS,
  CPU_FCW,
  CPU_FDP,
  CPU_FDS,
  CPU_FIP,
  CPU_FOP,
  CPU_FSW,
  CPU_FTAG,
  CPU_FTOP,
  CPU_LEAVE,
  CPU_SEGMENTS,
  OP_EXTRA,
  OP_MODRM,
  OP_SEG,
  SEG_CS,
  SEG_SELECTOR,
  VCPU_FPU,
} from '../generated/layout'
import { effectiveOffset, instructionRip, isMemory } from './operands'
import { begin, FLAGS, flag, IE, UP } from './softfloat'
import { defaultResult, RESULT_SE, RESULT_SIG, setPrecision } from './softfloat-extended'
import { FSW_B, FSW_C1, FSW_ES, FSW_SF, st, x87Usable } from './x87-state'

/** Instruction and data pointers before this instruction. */
const POINTERS: usize = VCPU_FPU + 0xf40

/** A memory operand widened to a register image. */
export function scratch(s: usize): usize {
  return s + VCPU_FPU + 0xf00
}

/** Checks, pointers, C1 = 0 and the arithmetic context; false = leaving. */
export function enter(s: usize, op: usize): bool {
  if (!x87Usable(s)) return false
  const modrm = <u32>load<u8>(op, OP_MODRM)
  const kept = s + POINTERS
  store<u64>(kept, load<u64>(s, CPU_FIP))
  store<u64>(kept, load<u64>(s, CPU_FDP), 8)
  store<u32>(kept, load<u32>(s, CPU_FCS), 16)
  store<u32>(kept, load<u32>(s, CPU_FDS), 20)
  store<u32>(kept, load<u32>(s, CPU_FOP), 24)
  store<u64>(s, instructionRip(s, op), CPU_FIP)
  store<u32>(s, <u32>load<u16>(s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4), SEG_SELECTOR), CPU_FCS)
  store<u32>(s, ((load<u32>(op, OP_EXTRA) & 7) << 8) | modrm, CPU_FOP)
  if (isMemory(op)) {
    store<u64>(s, effectiveOffset(s, op), CPU_FDP)
    store<u32>(s, <u32>load<u16>(s + CPU_SEGMENTS + ((<usize>load<u8>(op, OP_SEG)) << 4), SEG_SELECTOR), CPU_FDS)
  }
  context(s)
  return true
}
/** The memory operand faulted: the instruction leaves no trace. */
export function abandon(s: usize): u32 {
  const kept = s + POINTERS
  store<u64>(s, load<u64>(kept), CPU_FIP)
  store<u64>(s, load<u64>(kept, 8), CPU_FDP)
  store<u32>(s, load<u32>(kept, 16), CPU_FCS)
  store<u32>(s, load<u32>(kept, 20), CPU_FDS)
  store<u32>(s, load<u32>(kept, 24), CPU_FOP)
  return load<u32>(s, CPU_LEAVE)
}
function context(s: usize): void {
  const control = load<u32>(s, CPU_FCW)
  begin((control >> 10) & 3, control & 0x3f, false, false)
  const precision = (control >> 8) & 3
  setPrecision(precision == 0 ? 24 : precision == 2 ? 53 : 64)
}

export function index(op: usize): u32 {
  return <u32>load<u8>(op, OP_MODRM) & 7
}
export function isEmpty(s: usize, i: u32): bool {
  return ((load<u32>(s, CPU_FTAG) >> ((load<u32>(s, CPU_FTOP) + i) & 7)) & 1) == 0
}
function setValid(s: usize, i: u32): void {
  store<u32>(s, load<u32>(s, CPU_FTAG) | (1 << ((load<u32>(s, CPU_FTOP) + i) & 7)), CPU_FTAG)
}
export function setEmpty(s: usize, i: u32): void {
  store<u32>(s, load<u32>(s, CPU_FTAG) & ~(1 << ((load<u32>(s, CPU_FTOP) + i) & 7)), CPU_FTAG)
}
export function pop(s: usize): void {
  setEmpty(s, 0)
  store<u32>(s, (load<u32>(s, CPU_FTOP) + 1) & 7, CPU_FTOP)
}

export function clearC1(s: usize): void {
  store<u32>(s, load<u32>(s, CPU_FSW) & ~FSW_C1, CPU_FSW)
}
export function setCodes(s: usize, mask: u32, value: u32): void {
  store<u32>(s, (load<u32>(s, CPU_FSW) & ~mask) | value, CPU_FSW)
}

/** Adds `found` to the status word; true when none of `stopping` is both found and unmasked. */
export function report(s: usize, found: u32, stopping: u32): bool {
  const unmasked = found & ~load<u32>(s, CPU_FCW) & 0x3f
  // A pre-computation exception (IE, DE, ZE) that stops the operation leaves no rounding behind.
  let status = load<u32>(s, CPU_FSW) | ((unmasked & 7) != 0 ? found & 7 : found)
  if (unmasked != 0) status |= FSW_ES | FSW_B
  store<u32>(s, status, CPU_FSW)
  return (unmasked & stopping) == 0
}
/** Stack underflow (overflow: C1 = 1). True when masked: the result is then the default NaN. */
export function stackFault(s: usize, overflow: bool): bool {
  const status = load<u32>(s, CPU_FSW) & ~FSW_C1
  store<u32>(s, status | FSW_SF | (overflow ? FSW_C1 : 0), CPU_FSW)
  flag(IE)
  defaultResult()
  return report(s, IE, IE)
}
/** Flags of an operation into the status word, C1 from the rounding; false: the result must not be stored. */
export function settle(s: usize): bool {
  const go = report(s, FLAGS, 7)
  setCodes(s, FSW_C1, go && UP ? FSW_C1 : 0)
  return go
}
/** Stores RESULT in ST(i). */
export function putSt(s: usize, i: u32): void {
  const to = st(s, i)
  store<u64>(to, RESULT_SIG)
  store<u16>(to, <u16>RESULT_SE, 8)
  setValid(s, i)
}
/** Pushes RESULT; the caller has checked for overflow. */
export function pushResult(s: usize): void {
  store<u32>(s, (load<u32>(s, CPU_FTOP) + 7) & 7, CPU_FTOP)
  putSt(s, 0)
}
