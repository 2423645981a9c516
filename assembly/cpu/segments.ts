/**
 * Descriptors, segment register loads and stacks of other privilege levels (SDM vol 3, chapters 3, 5, 7;
 * APM vol 2, chapter 4). Owns CPU_SEGMENTS. The variables below are scratch of one operation, not state.
 */
import {
  CPU_CPL,
  CPU_LEAVE,
  CPU_STACK_MASK,
  EXC_GP,
  EXC_NP,
  EXC_SS,
  EXC_TS,
  LEAVE_NEXT,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_GDTR,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
} from '../generated/layout'
import { STACK_OP } from '../execute/operands'
import { readMem, sysRead, sysWrite, writeMem } from '../memory/access'
import { raiseError } from './exceptions'
import { ATTR_DB, ATTR_UNUSABLE, canonical, code64, longMode, protectedMode, segment, virtual8086 } from './mode'

const RSP: usize = 32

let lastDescriptor: u64 = 0
let lastUpper: u64 = 0

/** The descriptor (low 8 bytes) read last. */
export function descriptor(): u64 {
  return lastDescriptor
}

/** Bytes 8..15 of the 16-byte system descriptor read last. */
export function descriptorUpper(): u64 {
  return lastUpper
}

/** VMSA packing of a descriptor's attributes. */
export function attributes(d: u64): u32 {
  return (<u32>(d >> 40) & 0xff) | (<u32>(d >> 44) & 0xf00)
}

export function descriptorBase(d: u64): u64 {
  return ((d >> 16) & 0xffffff) | ((d >> 32) & 0xff000000)
}

/** In bytes, granularity expanded. */
export function descriptorLimit(d: u64): u32 {
  const limit = (<u32>d & 0xffff) | (<u32>(d >> 32) & 0xf0000)
  return (d & ((<u64>1) << 55)) != 0 ? (limit << 12) | 0xfff : limit
}

export function codeSegment(attrib: u32): bool {
  return (attrib & 0x18) == 0x18
}

export function writableData(attrib: u32): bool {
  return (attrib & 0x1a) == 0x12
}

export function descriptorError(selector: u32, x: u32): u32 {
  return (selector & 0xfffc) | x
}

/** Linear address of a selector's descriptor if `bytes` of it lie inside the table, else ~0. */
function descriptorAddress(s: usize, selector: u32, bytes: u32): u64 {
  const table = segment(s, (selector & 4) != 0 ? SEG_LDTR : SEG_GDTR)
  if ((selector & 4) != 0 && (load<u16>(table, SEG_ATTRIB) & 0x8080) != 0x80) return ~(<u64>0)
  if ((selector & 0xfff8) + bytes - 1 > load<u32>(table, SEG_LIMIT)) return ~(<u64>0)
  const at = load<u64>(table, SEG_BASE) + <u64>(selector & 0xfff8)
  return longMode(s) ? at : at & 0xffffffff
}

/** Reads a descriptor into descriptor(); false: `vector`(selector + x) raised, or a page fault. */
export function fetchDescriptor(s: usize, selector: u32, vector: u32, x: u32): bool {
  const at = descriptorAddress(s, selector, 8)
  if (at == ~(<u64>0)) {
    raiseError(s, vector, descriptorError(selector, x))
    return false
  }
  lastDescriptor = sysRead(s, at, 8)
  return load<u32>(s, CPU_LEAVE) == 0
}

/** Reads a system descriptor: 16 bytes in long mode. */
export function fetchSystemDescriptor(s: usize, selector: u32, vector: u32, x: u32): bool {
  lastUpper = 0
  if (!longMode(s)) return fetchDescriptor(s, selector, vector, x)
  const at = descriptorAddress(s, selector, 16)
  if (at == ~(<u64>0)) {
    raiseError(s, vector, descriptorError(selector, x))
    return false
  }
  lastDescriptor = sysRead(s, at, 8)
  if (load<u32>(s, CPU_LEAVE)) return false
  lastUpper = sysRead(s, at + 8, 8)
  return load<u32>(s, CPU_LEAVE) == 0
}

/** For LAR, LSL, VERR, VERW: reads without faulting on the table limit. 1 read, 0 outside, -1 page fault. */
export function peekDescriptor(s: usize, selector: u32): i32 {
  if ((selector & 0xfffc) == 0) return 0
  const at = descriptorAddress(s, selector, 8)
  if (at == ~(<u64>0)) return 0
  lastDescriptor = sysRead(s, at, 8)
  return load<u32>(s, CPU_LEAVE) == 0 ? 1 : -1
}

/** Sets the accessed bit in memory (and nothing else). False: the write faulted. */
export function markAccessed(s: usize, selector: u32, d: u64): bool {
  if ((d & ((<u64>1) << 40)) != 0) return true
  return writeAccessByte(s, selector, (<u32>(d >> 40) & 0xff) | 1)
}

/** Replaces the type byte of a descriptor (accessed, busy). */
export function writeAccessByte(s: usize, selector: u32, value: u32): bool {
  const leave = sysWrite(s, descriptorAddress(s, selector, 8) + 5, 1, <u64>value)
  if (leave != 0 && leave != LEAVE_NEXT) return false
  store<u32>(s, 0, CPU_LEAVE)
  return true
}

export function setDescriptorCache(s: usize, n: u32, selector: u32, d: u64): void {
  const at = segment(s, n)
  store<u64>(at, descriptorBase(d), SEG_BASE)
  store<u32>(at, descriptorLimit(d), SEG_LIMIT)
  store<u16>(at, <u16>selector, SEG_SELECTOR)
  store<u16>(at, <u16>(attributes(d) | 1), SEG_ATTRIB)
}

/** Real-mode and virtual-8086 loads: base = selector * 16; limit and size stay as they were ("unreal" mode). */
export function setRealCache(s: usize, n: u32, selector: u32): void {
  const at = segment(s, n)
  store<u64>(at, <u64>(selector << 4), SEG_BASE)
  store<u16>(at, <u16>selector, SEG_SELECTOR)
  let attrib = <u32>load<u16>(at, SEG_ATTRIB)
  if (virtual8086(s)) {
    store<u32>(at, 0xffff, SEG_LIMIT)
    attrib = 0xf3
  } else {
    if ((attrib & ATTR_UNUSABLE) != 0) store<u32>(at, 0xffff, SEG_LIMIT)
    attrib = (attrib & 0xd00) | 0x93
  }
  store<u16>(at, <u16>attrib, SEG_ATTRIB)
}

/** A null selector in a data segment register (or LDTR): unusable; the base is cleared as Zen 2 and later do. */
export function setNullCache(s: usize, n: u32, selector: u32): void {
  const at = segment(s, n)
  store<u64>(at, 0, SEG_BASE)
  store<u32>(at, 0, SEG_LIMIT)
  store<u16>(at, <u16>selector, SEG_SELECTOR)
  store<u16>(at, <u16>ATTR_UNUSABLE, SEG_ATTRIB)
}

/** MOV/POP/LxS to ES, SS, DS, FS, GS. 0, or LEAVE_FAULT. */
export function loadSegment(s: usize, n: u32, selector: u32): u32 {
  if (!protectedMode(s) || virtual8086(s)) {
    setRealCache(s, n, selector)
    return 0
  }
  const cpl = load<u32>(s, CPU_CPL)
  const rpl = selector & 3
  const error = selector & 0xfffc
  if (error == 0) {
    if (n == SEG_SS) {
      if (!code64(s) || cpl == 3 || rpl != cpl) return raiseError(s, EXC_GP, 0)
      setNullCache(s, n, selector)
      store<u16>(segment(s, n), <u16>(ATTR_UNUSABLE | (cpl << 5)), SEG_ATTRIB)
      return 0
    }
    setNullCache(s, n, selector)
    return 0
  }
  if (!fetchDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  const d = lastDescriptor
  const attrib = attributes(d)
  const dpl = (attrib >> 5) & 3
  if (n == SEG_SS) {
    if (rpl != cpl || dpl != cpl || !writableData(attrib)) return raiseError(s, EXC_GP, error)
    if ((attrib & 0x80) == 0) return raiseError(s, EXC_SS, error)
  } else {
    const code = codeSegment(attrib)
    if ((attrib & 0x10) == 0 || (code && (attrib & 2) == 0)) return raiseError(s, EXC_GP, error)
    if ((!code || (attrib & 4) == 0) && (rpl > dpl || cpl > dpl)) return raiseError(s, EXC_GP, error)
    if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, error)
  }
  if (!markAccessed(s, selector, d)) return load<u32>(s, CPU_LEAVE)
  setDescriptorCache(s, n, selector, d)
  return 0
}

// Pushes and pops on a stack that is committed only when everything else has succeeded.
let stackBase: u64 = 0
let stackSp: u64 = 0
let stackMask: u64 = 0
let stackLimit: u32 = 0
let stackAttrib: u32 = 0
let stackError: u32 = 0
let stackLong: bool = false
/** Accesses are those of the instruction at its own privilege; else of the system, whatever the CPL. */
let stackExplicit: bool = false
/** A push changed code of the running block: the instruction ends it (stackDone). */
let stackHit: bool = false
let pendingSelector: u32 = 0
let pendingDescriptor: u64 = 0

/** The current stack at the current privilege. */
export function beginStackCurrent(s: usize, error: u32): void {
  const ss = segment(s, SEG_SS)
  stackBase = load<u64>(ss, SEG_BASE)
  stackLimit = load<u32>(ss, SEG_LIMIT)
  stackAttrib = <u32>load<u16>(ss, SEG_ATTRIB)
  stackMask = load<u64>(s, CPU_STACK_MASK)
  stackSp = load<u64>(s, RSP)
  stackLong = code64(s)
  stackExplicit = true
  stackError = error
  stackHit = false
}

/** The current stack as 64-bit or compatibility code sees it. */
export function beginStackMode(s: usize, long: bool): void {
  beginStackCurrent(s, 0)
  if (!stackLong) stackSp &= 0xffffffff
  stackLong = long
  stackMask = long ? ~(<u64>0) : (stackAttrib & ATTR_DB) != 0 ? 0xffffffff : 0xffff
}

/** A 64-bit stack at privilege `cpl`. */
export function beginStack64(rsp: u64, cpl: u32, error: u32): void {
  stackMask = ~(<u64>0)
  stackSp = rsp
  stackLong = true
  stackExplicit = cpl == 3
  stackError = error
}

/** A stack in the segment `d`. */
function beginStack(sp: u64, selector: u32, d: u64, cpl: u32, error: u32): void {
  stackBase = descriptorBase(d)
  stackLimit = descriptorLimit(d)
  stackAttrib = attributes(d)
  stackMask = (stackAttrib & ATTR_DB) != 0 ? 0xffffffff : 0xffff
  stackSp = sp
  stackLong = false
  stackExplicit = cpl == 3
  stackError = error
  pendingSelector = selector
  pendingDescriptor = d
}

/** Whether `size` bytes at the masked offset `at` lie in a stack segment that can be used. */
function insideStack(attrib: u32, limit: u32, at: u64, size: u32): bool {
  const last = at + <u64>size - 1
  const big: u64 = (attrib & ATTR_DB) != 0 ? 0xffffffff : 0xffff
  const inside = (attrib & 0xc) == 4 ? at > <u64>limit && last <= big : last <= <u64>limit
  return inside && (attrib & 0x8080) == 0x80
}

/** Linear address of `size` bytes at the masked offset `at`; raises #SS. */
function stackLinear(s: usize, at: u64, size: u32): u64 {
  if (stackLong) {
    if (canonical(s, at) && canonical(s, at + <u64>size - 1)) return at
  } else {
    if (insideStack(stackAttrib, stackLimit, at, size)) return <u64>(<u32>(stackBase + at))
  }
  raiseError(s, EXC_SS, stackError)
  return 0
}

export function stackPush(s: usize, size: u32, value: u64): bool {
  const sp = (stackSp - <u64>size) & stackMask
  const va = stackLinear(s, sp, size)
  if (load<u32>(s, CPU_LEAVE)) return false
  const leave = stackExplicit ? writeMem(s, STACK_OP, va, size, value) : sysWrite(s, va, size, value)
  if (leave != 0 && leave != LEAVE_NEXT) return false
  if (leave) stackHit = true
  store<u32>(s, 0, CPU_LEAVE)
  stackSp = sp
  return true
}

/** The end of an instruction that pushed and goes on behind itself: 0, or LEAVE_NEXT if it stored into its own block. */
export function stackDone(s: usize): u32 {
  if (!stackHit) return 0
  store<u32>(s, LEAVE_NEXT, CPU_LEAVE)
  return LEAVE_NEXT
}

/** Check CPU_LEAVE. */
export function stackPop(s: usize, size: u32): u64 {
  const sp = stackSp & stackMask
  const va = stackLinear(s, sp, size)
  if (load<u32>(s, CPU_LEAVE)) return 0
  const value = readMem(s, STACK_OP, va, size)
  stackSp = (stackSp + <u64>size) & stackMask
  return value
}

export function stackSkip(bytes: u64): void {
  stackSp = (stackSp + bytes) & stackMask
}

/** What lies `offset` bytes above the top. Check CPU_LEAVE. */
export function stackRead(s: usize, offset: u64, size: u32): u64 {
  const va = stackLinear(s, (stackSp + offset) & stackMask, size)
  return load<u32>(s, CPU_LEAVE) ? 0 : readMem(s, STACK_OP, va, size)
}

/** Reads `offset` bytes above the top of the caller's stack, at its privilege, while another stack is being filled. Check CPU_LEAVE. */
export function callerStack(s: usize, offset: u64, size: u32): u64 {
  const ss = segment(s, SEG_SS)
  const at = (load<u64>(s, RSP) + offset) & load<u64>(s, CPU_STACK_MASK)
  if (!insideStack(<u32>load<u16>(ss, SEG_ATTRIB), load<u32>(ss, SEG_LIMIT), at, size)) {
    raiseError(s, EXC_SS, 0)
    return 0
  }
  return readMem(s, STACK_OP, <u64>(<u32>(load<u64>(ss, SEG_BASE) + at)), size)
}

export function stackTop(): u64 {
  return stackSp
}

/** Commits RSP in the width of the stack. */
export function applyStack(s: usize): void {
  if (stackMask == 0xffff) store<u16>(s, <u16>stackSp, RSP)
  else store<u64>(s, stackSp & stackMask, RSP)
}

/** Sets the accessed bit of the SS that readStackSegment found: behind the pushes, which may fault. */
export function markStack(s: usize): bool {
  return markAccessed(s, pendingSelector, pendingDescriptor)
}

/** Commits it. */
export function loadedStack(s: usize): void {
  setDescriptorCache(s, SEG_SS, pendingSelector, pendingDescriptor)
}

/** RSPn or ISTn from the 64-bit TSS at `offset`; #TS on the limit, #SS on a non-canonical pointer. Check CPU_LEAVE. */
export function stackPointer(s: usize, offset: u32, x: u32): u64 {
  const tr = segment(s, SEG_TR)
  if (offset + 7 > load<u32>(tr, SEG_LIMIT)) {
    raiseError(s, EXC_TS, descriptorError(<u32>load<u16>(tr, SEG_SELECTOR), x))
    return 0
  }
  const rsp = sysRead(s, load<u64>(tr, SEG_BASE) + <u64>offset, 8)
  if (load<u32>(s, CPU_LEAVE) == 0 && !canonical(s, rsp)) raiseError(s, EXC_SS, x)
  return rsp
}

/** SS:ESP for privilege `cpl` from a 16- or 32-bit TSS, all checks (SDM vol 3, 6.12.1); begins that stack. */
export function readStackSegment(s: usize, cpl: u32, x: u32): bool {
  const tr = segment(s, SEG_TR)
  const wide = (load<u16>(tr, SEG_ATTRIB) & 8) != 0
  const offset: u32 = wide ? 4 + (cpl << 3) : 2 + (cpl << 2)
  if (offset + (wide ? 5 : 3) > load<u32>(tr, SEG_LIMIT)) {
    raiseError(s, EXC_TS, descriptorError(<u32>load<u16>(tr, SEG_SELECTOR), x))
    return false
  }
  const at = load<u64>(tr, SEG_BASE) + <u64>offset
  const sp = sysRead(s, at & 0xffffffff, wide ? 4 : 2)
  if (load<u32>(s, CPU_LEAVE)) return false
  const selector = <u32>sysRead(s, (at + (wide ? 4 : 2)) & 0xffffffff, 2)
  if (load<u32>(s, CPU_LEAVE)) return false
  if (!checkStackSegment(s, selector, cpl, x)) return false
  beginStack(sp, selector, lastDescriptor, cpl, descriptorError(selector, x))
  return true
}

/** The new SS of an inward transfer; the descriptor stays in descriptor(). */
function checkStackSegment(s: usize, selector: u32, cpl: u32, x: u32): bool {
  const error = descriptorError(selector, x)
  if ((selector & 0xfffc) == 0) {
    raiseError(s, EXC_TS, x)
    return false
  }
  if (!fetchDescriptor(s, selector, EXC_TS, x)) return false
  const attrib = attributes(lastDescriptor)
  if ((selector & 3) != cpl || ((attrib >> 5) & 3) != cpl || !writableData(attrib)) {
    raiseError(s, EXC_TS, error)
    return false
  }
  if ((attrib & 0x80) == 0) {
    raiseError(s, EXC_SS, error)
    return false
  }
  return true
}
