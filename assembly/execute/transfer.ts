/**
 * Far JMP and CALL: direct, through memory, through call gates, to tasks (SDM vol 2 JMP, CALL; vol 3, 5.8; APM vol 2, 4.11).
 */
import { deliver } from '../cpu/delivery'
import { raiseError, vmmCommunication } from '../cpu/exceptions'
import { getFlags } from '../cpu/flags'
import { ATTR_DB, ATTR_L, canonical, leaveWith, longMode, protectedMode, segment, sevEs, updateMode, virtual8086 } from '../cpu/mode'
import {
  applyStack,
  attributes,
  beginStack64,
  beginStackCurrent,
  beginStackMode,
  callerStack,
  codeSegment,
  descriptor,
  descriptorLimit,
  descriptorUpper,
  fetchDescriptor,
  fetchSystemDescriptor,
  loadedStack,
  markAccessed,
  markStack,
  readStackSegment,
  setDescriptorCache,
  setRealCache,
  stackPointer,
  stackPush,
  stackTop,
} from '../cpu/segments'
import {
  CPU_CPL,
  CPU_LEAVE,
  CPU_RIP,
  CPU_STOP_REASON,
  EXC_GP,
  EXC_NP,
  LEAVE_BRANCH,
  LEAVE_EXIT_BRANCH,
  OP_EXTRA,
  OP_IMM,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
} from '../generated/layout'
import { TASK_CALL, TASK_FAULTED, TASK_JUMP, TASK_REFUSED, taskSwitch } from '../cpu/task'
import { pointerOffset, pointerSelector, readFarPointer } from './far-pointer'
import { operandSize } from './operands'
import { left, nextRip } from './common'

const RSP: usize = 32

/** Mask of an offset of `size` bytes. */
function offsetMask(size: u32): u64 {
  return size == 8 ? ~(<u64>0) : size == 4 ? 0xffffffff : 0xffff
}

/** CS and RIP are committed: new block, new mode. */
export function arrive(s: usize, rip: u64): u32 {
  store<u64>(s, rip, CPU_RIP)
  updateMode(s)
  return leaveWith(s, LEAVE_BRANCH)
}

/** JMP ptr16:16/32 */
export function jmpFar(s: usize, op: usize): u32 {
  return jumpTo(s, op, load<u32>(op, OP_EXTRA) & 0xffff, load<u64>(op, OP_IMM) & offsetMask(operandSize(op)))
}

/** CALL ptr16:16/32 */
export function callFar(s: usize, op: usize): u32 {
  return callTo(s, op, load<u32>(op, OP_EXTRA) & 0xffff, load<u64>(op, OP_IMM) & offsetMask(operandSize(op)))
}

export function jmpFarMemory(s: usize, op: usize): u32 {
  if (!readFarPointer(s, op)) return load<u32>(s, CPU_LEAVE)
  return jumpTo(s, op, pointerSelector, pointerOffset)
}

export function callFarMemory(s: usize, op: usize): u32 {
  if (!readFarPointer(s, op)) return load<u32>(s, CPU_LEAVE)
  return callTo(s, op, pointerSelector, pointerOffset)
}

/** Checks a code segment for a direct far transfer at the current privilege; 0, or LEAVE_FAULT. */
function checkDirect(s: usize, selector: u32, attrib: u32): u32 {
  const cpl = load<u32>(s, CPU_CPL)
  const dpl = (attrib >> 5) & 3
  const error = selector & 0xfffc
  if ((attrib & 4) != 0 ? dpl > cpl : (selector & 3) > cpl || dpl != cpl) return raiseError(s, EXC_GP, error)
  if (longMode(s) && (attrib & (ATTR_L | ATTR_DB)) == (ATTR_L | ATTR_DB)) return raiseError(s, EXC_GP, error)
  if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, error)
  return 0
}

/** The target lies in the segment (canonical, in 64-bit code); else #GP(0). */
export function checkTarget(s: usize, d: u64, rip: u64): u32 {
  const long = longMode(s) && (attributes(d) & ATTR_L) != 0
  if (long ? !canonical(s, rip) : rip > <u64>descriptorLimit(d)) return raiseError(s, EXC_GP, 0)
  return 0
}

/** Offset of a call gate; in long mode the 64-bit one. */
function gateOffset(s: usize, gate: u64): u64 {
  if (longMode(s)) return (gate & 0xffff) | ((gate >> 32) & 0xffff0000) | (descriptorUpper() << 32)
  const wide = ((gate >> 43) & 1) != 0
  return wide ? (gate & 0xffff) | ((gate >> 32) & 0xffff0000) : gate & 0xffff
}

/** A system descriptor as far target: 1 = call gate that may be used, 0 = LEAVE is set. */
function gateAllowed(s: usize, selector: u32, attrib: u32): u32 {
  const type = attrib & 0x1f
  const long = longMode(s)
  const cpl = load<u32>(s, CPU_CPL)
  const dpl = (attrib >> 5) & 3
  const error = selector & 0xfffc
  if (type != 12 && (type != 4 || long)) {
    raiseError(s, EXC_GP, error)
    return 0
  }
  if (dpl < cpl || dpl < (selector & 3)) {
    raiseError(s, EXC_GP, error)
    return 0
  }
  if ((attrib & 0x80) == 0) {
    raiseError(s, EXC_NP, error)
    return 0
  }
  if (long && (<u32>(descriptorUpper() >> 40) & 0x1f) != 0) {
    raiseError(s, EXC_GP, error)
    return 0
  }
  return 1
}

/** A TSS or task gate as far target (legacy modes). */
function taskTarget(s: usize, attrib: u32): bool {
  const type = attrib & 0x1f
  return !longMode(s) && (type == 5 || type == 1 || type == 9 || type == 3 || type == 11)
}

/** JMP or CALL to a TSS or task gate. */
function taskTransfer(s: usize, op: usize, selector: u32, d: u64, attrib: u32, kind: u32): u32 {
  const dpl = (attrib >> 5) & 3
  const error = selector & 0xfffc
  if (dpl < load<u32>(s, CPU_CPL) || dpl < (selector & 3)) return raiseError(s, EXC_GP, error)
  let target = selector
  if ((attrib & 0x1f) == 5) {
    if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, error)
    target = <u32>(d >> 16) & 0xffff
  }
  if (sevEs(s)) return vmmCommunication(s, 0x7d)
  return switched(s, taskSwitch(s, target, kind, nextRip(s, op), getFlags(s), 0, false, 0))
}

/** The end of an instruction that switched tasks; an exception of the new task is delivered here, since RIP is the new one. */
export function switched(s: usize, result: u32): u32 {
  if (result == TASK_REFUSED) return load<u32>(s, CPU_LEAVE)
  if (result == TASK_FAULTED) {
    const stop = deliver(s)
    if (stop) {
      store<u32>(s, stop, CPU_STOP_REASON)
      return leaveWith(s, LEAVE_EXIT_BRANCH)
    }
  }
  return leaveWith(s, LEAVE_BRANCH)
}

/** Reads and checks the code segment behind a call gate; its attributes, 0 = LEAVE is set. */
function gateCode(s: usize, selector: u32): u32 {
  const error = selector & 0xfffc
  if (error == 0) {
    raiseError(s, EXC_GP, 0)
    return 0
  }
  if (!fetchDescriptor(s, selector, EXC_GP, 0)) return 0
  const attrib = attributes(descriptor())
  if (!codeSegment(attrib) || ((attrib >> 5) & 3) > load<u32>(s, CPU_CPL) || (longMode(s) && (attrib & (ATTR_L | ATTR_DB)) != ATTR_L)) {
    raiseError(s, EXC_GP, error)
    return 0
  }
  return attrib
}

function jumpTo(s: usize, op: usize, selector: u32, offset: u64): u32 {
  if (!protectedMode(s) || virtual8086(s)) {
    if (offset > <u64>load<u32>(segment(s, SEG_CS), SEG_LIMIT)) return raiseError(s, EXC_GP, 0)
    setRealCache(s, SEG_CS, selector)
    return arrive(s, offset)
  }
  if ((selector & 0xfffc) == 0) return raiseError(s, EXC_GP, 0)
  if (!fetchDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  let d = descriptor()
  let attrib = attributes(d)
  let rip = offset
  if ((attrib & 0x10) == 0) {
    if (longMode(s) && !fetchSystemDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
    if (taskTarget(s, attrib)) return taskTransfer(s, op, selector, d, attrib, TASK_JUMP)
    if (!gateAllowed(s, selector, attrib)) return load<u32>(s, CPU_LEAVE)
    rip = gateOffset(s, d)
    selector = <u32>(d >> 16) & 0xffff
    attrib = gateCode(s, selector)
    if (attrib == 0) return load<u32>(s, CPU_LEAVE)
    d = descriptor()
    if ((attrib & 4) == 0 && ((attrib >> 5) & 3) != load<u32>(s, CPU_CPL)) return raiseError(s, EXC_GP, selector & 0xfffc)
    if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, selector & 0xfffc)
  } else {
    if (!codeSegment(attrib)) return raiseError(s, EXC_GP, selector & 0xfffc)
    if (checkDirect(s, selector, attrib)) return load<u32>(s, CPU_LEAVE)
  }
  if (checkTarget(s, d, rip)) return load<u32>(s, CPU_LEAVE)
  if (!markAccessed(s, selector, d)) return load<u32>(s, CPU_LEAVE)
  setDescriptorCache(s, SEG_CS, (selector & 0xfffc) | load<u32>(s, CPU_CPL), d)
  return arrive(s, rip)
}

function callTo(s: usize, op: usize, selector: u32, offset: u64): u32 {
  const size = operandSize(op)
  const cs = segment(s, SEG_CS)
  const oldCs = <u64>load<u16>(cs, SEG_SELECTOR)
  const ret = nextRip(s, op)
  if (!protectedMode(s) || virtual8086(s)) {
    beginStackCurrent(s, 0)
    if (!stackPush(s, size, oldCs) || !stackPush(s, size, ret)) return load<u32>(s, CPU_LEAVE)
    if (offset > <u64>load<u32>(cs, SEG_LIMIT)) return raiseError(s, EXC_GP, 0)
    applyStack(s)
    setRealCache(s, SEG_CS, selector)
    return arrive(s, offset)
  }
  if ((selector & 0xfffc) == 0) return raiseError(s, EXC_GP, 0)
  if (!fetchDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  const d = descriptor()
  const attrib = attributes(d)
  if (taskTarget(s, attrib)) return taskTransfer(s, op, selector, d, attrib, TASK_CALL)
  if ((attrib & 0x10) == 0) return callGate(s, selector, d, attrib, oldCs, ret)
  if (!codeSegment(attrib)) return raiseError(s, EXC_GP, selector & 0xfffc)
  if (checkDirect(s, selector, attrib)) return load<u32>(s, CPU_LEAVE)
  // CS is read before the pushes, which are those of the new mode (APM vol 3, CALL far; measured on Zen 4).
  if (longMode(s)) beginStackMode(s, (attrib & ATTR_L) != 0)
  else beginStackCurrent(s, 0)
  if (!stackPush(s, size, oldCs) || !stackPush(s, size, ret)) return load<u32>(s, CPU_LEAVE)
  if (checkTarget(s, d, offset)) return load<u32>(s, CPU_LEAVE)
  if (!markAccessed(s, selector, d)) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  setDescriptorCache(s, SEG_CS, (selector & 0xfffc) | load<u32>(s, CPU_CPL), d)
  return arrive(s, offset)
}

function callGate(s: usize, selector: u32, gate: u64, gateAttrib: u32, oldCs: u64, ret: u64): u32 {
  const long = longMode(s)
  if (long && !fetchSystemDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  if (!gateAllowed(s, selector, gateAttrib)) return load<u32>(s, CPU_LEAVE)
  const rip = gateOffset(s, gate)
  const target = <u32>(gate >> 16) & 0xffff
  const attrib = gateCode(s, target)
  if (attrib == 0) return load<u32>(s, CPU_LEAVE)
  const d = descriptor()
  if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, target & 0xfffc)
  const cpl = load<u32>(s, CPU_CPL)
  const dpl = (attrib >> 5) & 3
  const newCpl = (attrib & 4) == 0 && dpl < cpl ? dpl : cpl
  const ss = segment(s, SEG_SS)
  const oldSs = <u64>load<u16>(ss, SEG_SELECTOR)
  const oldSp = load<u64>(s, RSP)
  const size: u32 = long ? 8 : (gateAttrib & 8) != 0 ? 4 : 2
  if (newCpl < cpl) {
    if (long) {
      const rsp = stackPointer(s, 4 + (newCpl << 3), 0)
      if (left(s)) return load<u32>(s, CPU_LEAVE)
      beginStack64(rsp, newCpl, 0)
    } else if (!readStackSegment(s, newCpl, 0)) return load<u32>(s, CPU_LEAVE)
    if (!stackPush(s, size, oldSs) || !stackPush(s, size, oldSp)) return load<u32>(s, CPU_LEAVE)
    if (!long) {
      // Parameters are copied from the caller's stack, the last one first.
      for (let i = <u32>(gate >> 32) & 31; i > 0; i--) {
        const value = callerStack(s, <u64>((i - 1) * size), size)
        if (left(s) || !stackPush(s, size, value)) return load<u32>(s, CPU_LEAVE)
      }
    }
  } else if (long) beginStack64(load<u64>(s, RSP), cpl, 0)
  else beginStackCurrent(s, 0)
  if (!stackPush(s, size, oldCs) || !stackPush(s, size, ret)) return load<u32>(s, CPU_LEAVE)
  if (checkTarget(s, d, rip)) return load<u32>(s, CPU_LEAVE)
  if (newCpl < cpl && !long && !markStack(s)) return load<u32>(s, CPU_LEAVE)
  if (!markAccessed(s, target, d)) return load<u32>(s, CPU_LEAVE)
  if (newCpl < cpl) {
    if (long) nullStack(s, newCpl)
    else loadedStack(s)
  }
  if (long) store<u64>(s, stackTop(), RSP)
  else applyStack(s)
  setDescriptorCache(s, SEG_CS, (target & 0xfffc) | newCpl, d)
  store<u32>(s, newCpl, CPU_CPL)
  return arrive(s, rip)
}

/** The null SS that long mode loads on an inward transfer. */
export function nullStack(s: usize, cpl: u32): void {
  const ss = segment(s, SEG_SS)
  store<u16>(ss, <u16>cpl, SEG_SELECTOR)
  store<u64>(ss, 0, SEG_BASE)
  store<u32>(ss, 0xffffffff, SEG_LIMIT)
  store<u16>(ss, <u16>(0xc93 | (cpl << 5)), SEG_ATTRIB)
}
