/** Descriptor-table instructions: LGDT..STR, LAR, LSL, VERR, VERW, ARPL (SDM vol 2; vol 3, 5.10). */
import { raise, raiseError } from '../cpu/exceptions'
import { ZF, arithmetic, setArithmetic } from '../cpu/flags'
import { canonicalRegister, code64, leaveWith, longMode, protectedMode, segment, virtual8086 } from '../cpu/mode'
import {
  attributes,
  codeSegment,
  descriptor,
  descriptorBase,
  descriptorLimit,
  descriptorUpper,
  fetchSystemDescriptor,
  peekDescriptor,
  setNullCache,
  writeAccessByte,
} from '../cpu/segments'
import {
  CPU_CPL,
  CPU_CR4,
  CPU_LEAVE,
  EXC_GP,
  EXC_NP,
  EXC_UD,
  LEAVE_NEXT,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_GDTR,
  SEG_IDTR,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_TR,
} from '../generated/layout'
import { CR4_UMIP } from '../generated/registers'
import { readMem, writeMem } from '../memory/access'
import { ea, eaWrite, getReg, getRm, isMemory, operandSize, setReg, setRm } from './operands'
import { left } from './common'

function umip(s: usize): bool {
  return (load<u64>(s, CPU_CR4) & CR4_UMIP) != 0 && load<u32>(s, CPU_CPL) > 0 && protectedMode(s)
}

function storeTable(s: usize, op: usize, n: u32): u32 {
  if (umip(s)) return raiseError(s, EXC_GP, 0)
  const long = code64(s)
  const va = eaWrite(s, op, long ? 10 : 6)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const d = segment(s, n)
  // The base first: if the second part faults, the instruction is repeated and stores both again.
  const first = writeMem(s, op, va + 2, long ? 8 : 4, load<u64>(d, SEG_BASE))
  if (first != 0 && first != LEAVE_NEXT) return first
  const second = writeMem(s, op, va, 2, <u64>load<u32>(d, SEG_LIMIT))
  return second != 0 ? second : first
}

function loadTable(s: usize, op: usize, n: u32): u32 {
  if (load<u32>(s, CPU_CPL) != 0) return raiseError(s, EXC_GP, 0)
  const long = code64(s)
  const va = ea(s, op, long ? 10 : 6)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const limit = <u32>readMem(s, op, va, 2)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  let base = readMem(s, op, va + 2, long ? 8 : 4)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (long) {
    if (!canonicalRegister(s, base)) return raiseError(s, EXC_GP, 0)
  } else if (operandSize(op) == 2) base &= 0xffffff
  const d = segment(s, n)
  store<u64>(d, base, SEG_BASE)
  store<u32>(d, limit, SEG_LIMIT)
  return leaveWith(s, LEAVE_NEXT)
}

export function sgdt(s: usize, op: usize): u32 {
  return storeTable(s, op, SEG_GDTR)
}
export function sidt(s: usize, op: usize): u32 {
  return storeTable(s, op, SEG_IDTR)
}
export function lgdt(s: usize, op: usize): u32 {
  return loadTable(s, op, SEG_GDTR)
}
export function lidt(s: usize, op: usize): u32 {
  return loadTable(s, op, SEG_IDTR)
}

function storeSelector(s: usize, op: usize, n: u32): u32 {
  if (!protectedMode(s) || virtual8086(s)) return raise(s, EXC_UD)
  if (umip(s)) return raiseError(s, EXC_GP, 0)
  return setRm(s, op, isMemory(op) ? 2 : operandSize(op), <u64>load<u16>(segment(s, n), SEG_SELECTOR))
}

export function sldt(s: usize, op: usize): u32 {
  return storeSelector(s, op, SEG_LDTR)
}
export function str(s: usize, op: usize): u32 {
  return storeSelector(s, op, SEG_TR)
}

/** Commits LDTR or TR from descriptor() and descriptorUpper(). */
function setSystemCache(s: usize, n: u32, selector: u32, attrib: u32): void {
  const d = segment(s, n)
  let base = descriptorBase(descriptor())
  if (longMode(s)) base |= descriptorUpper() << 32
  store<u64>(d, base, SEG_BASE)
  store<u32>(d, descriptorLimit(descriptor()), SEG_LIMIT)
  store<u16>(d, <u16>selector, SEG_SELECTOR)
  store<u16>(d, <u16>attrib, SEG_ATTRIB)
}

export function lldt(s: usize, op: usize): u32 {
  if (!protectedMode(s) || virtual8086(s)) return raise(s, EXC_UD)
  if (load<u32>(s, CPU_CPL) != 0) return raiseError(s, EXC_GP, 0)
  const selector = <u32>getRm(s, op, 2)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if ((selector & 0xfffc) == 0) {
    setNullCache(s, SEG_LDTR, selector)
    return leaveWith(s, LEAVE_NEXT)
  }
  if ((selector & 4) != 0) return raiseError(s, EXC_GP, selector & 0xfffc)
  if (!fetchSystemDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  const attrib = attributes(descriptor())
  if ((attrib & 0x1f) != 2) return raiseError(s, EXC_GP, selector & 0xfffc)
  if (
    longMode(s) &&
    ((<u32>(descriptorUpper() >> 40) & 0x1f) != 0 || !canonicalRegister(s, descriptorBase(descriptor()) | (descriptorUpper() << 32)))
  ) {
    return raiseError(s, EXC_GP, selector & 0xfffc)
  }
  if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, selector & 0xfffc)
  setSystemCache(s, SEG_LDTR, selector, attrib)
  return leaveWith(s, LEAVE_NEXT)
}

export function ltr(s: usize, op: usize): u32 {
  if (!protectedMode(s) || virtual8086(s)) return raise(s, EXC_UD)
  if (load<u32>(s, CPU_CPL) != 0) return raiseError(s, EXC_GP, 0)
  const selector = <u32>getRm(s, op, 2)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if ((selector & 0xfffc) == 0) return raiseError(s, EXC_GP, 0)
  if ((selector & 4) != 0) return raiseError(s, EXC_GP, selector & 0xfffc)
  if (!fetchSystemDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  const attrib = attributes(descriptor())
  const type = attrib & 0x1f
  if (type != 9 && (type != 1 || longMode(s))) return raiseError(s, EXC_GP, selector & 0xfffc)
  if (
    longMode(s) &&
    ((<u32>(descriptorUpper() >> 40) & 0x1f) != 0 || !canonicalRegister(s, descriptorBase(descriptor()) | (descriptorUpper() << 32)))
  ) {
    return raiseError(s, EXC_GP, selector & 0xfffc)
  }
  if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, selector & 0xfffc)
  if (!writeAccessByte(s, selector, (attrib & 0xff) | 2)) return load<u32>(s, CPU_LEAVE)
  setSystemCache(s, SEG_TR, selector, attrib | 2)
  return leaveWith(s, LEAVE_NEXT)
}

function setZero(s: usize, z: bool): void {
  setArithmetic(s, (arithmetic(s) & ~ZF) | (z ? ZF : 0))
}

/** The descriptor may be seen from here: conforming code always, else DPL >= CPL and RPL. */
function visible(s: usize, selector: u32, attrib: u32): bool {
  const dpl = (attrib >> 5) & 3
  return (attrib & 0x1c) == 0x1c || (dpl >= load<u32>(s, CPU_CPL) && dpl >= (selector & 3))
}

/** System types LAR and LSL know (SDM vol 2, tables 3-53, 3-57). */
function systemType(s: usize, type: u32, gates: bool): bool {
  if (longMode(s)) return type == 2 || type == 9 || type == 11 || (gates && type == 12)
  return type == 1 || type == 2 || type == 3 || type == 9 || type == 11 || (gates && (type == 4 || type == 5 || type == 12))
}

/** The selector that LAR, LSL, VERR or VERW asks about, its descriptor in descriptor(): 1 there, 0 not, -1 CPU_LEAVE is set. */
function askedDescriptor(s: usize, op: usize): i32 {
  if (!protectedMode(s) || virtual8086(s)) {
    raise(s, EXC_UD)
    return -1
  }
  asked = <u32>getRm(s, op, 2)
  if (left(s)) return -1
  return peekDescriptor(s, asked)
}

let asked: u32 = 0

/** May LAR (`gates`) or LSL see it? */
function seen(s: usize, gates: bool): bool {
  const attrib = attributes(descriptor())
  return ((attrib & 0x10) != 0 || systemType(s, attrib & 15, gates)) && visible(s, asked, attrib)
}

export function lar(s: usize, op: usize): u32 {
  const got = askedDescriptor(s, op)
  if (got < 0) return load<u32>(s, CPU_LEAVE)
  const ok = got == 1 && seen(s, true)
  if (ok) setReg(s, op, operandSize(op), (descriptor() >> 32) & (operandSize(op) == 2 ? 0xff00 : 0xffff00))
  setZero(s, ok)
  return 0
}

export function lsl(s: usize, op: usize): u32 {
  const got = askedDescriptor(s, op)
  if (got < 0) return load<u32>(s, CPU_LEAVE)
  const ok = got == 1 && seen(s, false)
  if (ok) setReg(s, op, operandSize(op), <u64>descriptorLimit(descriptor()))
  setZero(s, ok)
  return 0
}

export function verr(s: usize, op: usize): u32 {
  return verify(s, op, false)
}
export function verw(s: usize, op: usize): u32 {
  return verify(s, op, true)
}

function verify(s: usize, op: usize, write: bool): u32 {
  const got = askedDescriptor(s, op)
  if (got < 0) return load<u32>(s, CPU_LEAVE)
  let ok: bool = got == 1
  if (ok) {
    const attrib = attributes(descriptor())
    const code = codeSegment(attrib)
    ok = (attrib & 0x10) != 0 && (write ? !code && (attrib & 2) != 0 : !code || (attrib & 2) != 0) && visible(s, asked, attrib)
  }
  setZero(s, ok)
  return 0
}

export function arpl(s: usize, op: usize): u32 {
  if (!protectedMode(s) || virtual8086(s)) return raise(s, EXC_UD)
  const value = <u32>getRm(s, op, 2)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const rpl = <u32>getReg(s, op, 2) & 3
  if ((value & 3) >= rpl) {
    setZero(s, false)
    return 0
  }
  const result = setRm(s, op, 2, <u64>((value & ~3) | rpl))
  if (result == 0 || result == LEAVE_NEXT) setZero(s, true)
  return result
}
