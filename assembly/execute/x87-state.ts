/**
 * x87 environment: control, status and tag words, TOP, pending exceptions (SDM vol 1, 8.1; vol 2 FNINIT..WAIT).
 * Owns CPU_FCW, CPU_FSW (without TOP), CPU_FTOP, CPU_FTAG, CPU_FOP, CPU_FIP, CPU_FDP, CPU_FCS, CPU_FDS.
 */
import {
  CPU_CR0,
  CPU_FCS,
  CPU_FCW,
  CPU_FDP,
  CPU_FDS,
  CPU_FIP,
  CPU_FOP,
  CPU_FSW,
  CPU_FTAG,
  CPU_FTOP,
  CPU_ST,
  EXC_MF,
  EXC_NM,
} from '../generated/layout'
import { CR0_EM, CR0_MP, CR0_TS } from '../generated/registers'
import { raise } from '../cpu/exceptions'
import { leaving } from '../memory/access'
import { getRm, setRm } from './operands'
import { left, mmxUsable } from './sse-operands'

export const FSW_SF: u32 = 64
export const FSW_ES: u32 = 1 << 7
export const FSW_C0: u32 = 1 << 8
export const FSW_C1: u32 = 1 << 9
export const FSW_C2: u32 = 1 << 10
export const FSW_C3: u32 = 1 << 14
export const FSW_B: u32 = 1 << 15
const FSW_TOP_SHIFT: u32 = 11

/** #NM when the OS wants to switch or emulate x87 state. For control instructions that do not wait. */
export function x87Available(s: usize): bool {
  if ((load<u64>(s, CPU_CR0) & (CR0_EM | CR0_TS)) == 0) return true
  raise(s, EXC_NM)
  return false
}
/** As above, then #MF for an unmasked exception that is still pending. */
export function x87Usable(s: usize): bool {
  if (!x87Available(s)) return false
  if ((load<u32>(s, CPU_FSW) & FSW_ES) == 0) return true
  raise(s, EXC_MF)
  return false
}

/** Status word as software sees it. */
export function statusWord(s: usize): u32 {
  return load<u32>(s, CPU_FSW) | (load<u32>(s, CPU_FTOP) << FSW_TOP_SHIFT)
}
export function setStatusWord(s: usize, value: u32): void {
  store<u32>(s, (value >> FSW_TOP_SHIFT) & 7, CPU_FTOP)
  store<u32>(s, value & 0xc7ff, CPU_FSW)
  summarise(s)
}
/** ES and B follow from flags and masks (SDM vol 1, 8.1.3). */
export function summarise(s: usize): void {
  let status = load<u32>(s, CPU_FSW) & ~(FSW_ES | FSW_B)
  if ((status & ~load<u32>(s, CPU_FCW) & 0x3f) != 0) status |= FSW_ES | FSW_B
  store<u32>(s, status, CPU_FSW)
}
export function setControlWord(s: usize, value: u32): void {
  store<u32>(s, (value & 0x1f3f) | 0x40, CPU_FCW)
  summarise(s)
}

export function initX87(s: usize): void {
  store<u32>(s, 0x37f, CPU_FCW)
  store<u32>(s, 0, CPU_FSW)
  store<u32>(s, 0, CPU_FTOP)
  store<u32>(s, 0, CPU_FTAG)
  store<u32>(s, 0, CPU_FOP)
  store<u64>(s, 0, CPU_FIP)
  store<u64>(s, 0, CPU_FDP)
  store<u32>(s, 0, CPU_FCS)
  store<u32>(s, 0, CPU_FDS)
}

/** Address of ST(i). */
export function st(s: usize, i: u32): usize {
  return s + CPU_ST + ((<usize>((load<u32>(s, CPU_FTOP) + i) & 7)) << 4)
}

export function fninit(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  initX87(s)
  return 0
}
export function fnclex(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  store<u32>(s, load<u32>(s, CPU_FSW) & 0x7f00, CPU_FSW)
  return 0
}
export function fldcw(s: usize, op: usize): u32 {
  if (!x87Usable(s)) return left(s)
  const value = <u32>getRm(s, op, 2)
  if (leaving(s)) return left(s)
  setControlWord(s, value)
  return 0
}
export function fnstcw(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  return setRm(s, op, 2, load<u32>(s, CPU_FCW))
}
export function fnstsw(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  return setRm(s, op, 2, statusWord(s))
}
/** FNSTSW AX: RAX is at offset 0 of the CPU structure. */
export function fnstswAx(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  store<u16>(s, <u16>statusWord(s))
  return 0
}
export function wait(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR0) & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS)) return raise(s, EXC_NM)
  return (load<u32>(s, CPU_FSW) & FSW_ES) != 0 ? raise(s, EXC_MF) : 0
}
export function emms(s: usize, op: usize): u32 {
  if (!mmxUsable(s)) return left(s)
  store<u32>(s, 0, CPU_FTOP)
  store<u32>(s, 0, CPU_FTAG)
  return 0
}
/** FNENI, FNDISI, FNSETPM: 8087 and 80287 left-overs that do nothing and do not wait. */
export function fneni(s: usize, op: usize): u32 {
  return x87Available(s) ? 0 : left(s)
}
