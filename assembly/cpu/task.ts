/**
 * Hardware task switches: JMP and CALL to a TSS or task gate, task gates in the IDT, IRET with NT
 * (SDM vol 3, 7.3; APM vol 2, 12.3). Legacy modes only. Owns no state.
 */
import {
  CPU_CPL,
  CPU_CR0,
  CPU_DEBUG_ARMED,
  CPU_DR7,
  CPU_GPR,
  CPU_LEAVE,
  CPU_PENDING_DB,
  CPU_RIP,
  EXC_GP,
  EXC_NP,
  EXC_SS,
  EXC_TS,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GS,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
} from '../generated/layout'
import { CR0_PG, CR0_TS, FLAG_NT, FLAG_VM } from '../generated/registers'
import { sysRead, sysWrite } from '../memory/access'
import { raiseError } from './exceptions'
import { getFlags, setFlags } from './flags'
import { writeCr3 } from './control'
import { updateDebug } from './debug'
import { ATTR_UNUSABLE, segment, updateMode } from './mode'
import {
  applyStack,
  attributes,
  beginStackCurrent,
  codeSegment,
  descriptor,
  descriptorBase,
  descriptorError,
  descriptorLimit,
  fetchDescriptor,
  markAccessed,
  setDescriptorCache,
  setNullCache,
  setRealCache,
  stackPush,
  writableData,
  writeAccessByte,
} from './segments'

export const TASK_JUMP: u32 = 0
export const TASK_CALL: u32 = 1
export const TASK_RETURN: u32 = 2
/** An interrupt or exception through a task gate. */
export const TASK_GATE: u32 = 3

/** Nothing has changed; the exception belongs to the old task. */
export const TASK_REFUSED: u32 = 0
export const TASK_DONE: u32 = 1
/** The new task is current and CPU_RIP is its EIP; an exception is pending in it. */
export const TASK_FAULTED: u32 = 2

const DR7_LOCAL: u64 = 0x155
/** T bit of the new TSS. */
export const DR6_BT: u32 = 0x8000

function failed(s: usize): bool {
  return load<u32>(s, CPU_LEAVE) != 0
}

function refuse(s: usize, vector: u32, error: u32): u32 {
  raiseError(s, vector, error)
  return TASK_REFUSED
}

/** A store to a TSS that has been checked to be there; false: it faulted all the same. */
function put(s: usize, at: u64, size: u32, value: u64): bool {
  const leave = sysWrite(s, at & 0xffffffff, size, value)
  if (leave == 0 || leave == 2) {
    store<u32>(s, 0, CPU_LEAVE)
    return true
  }
  return false
}

/** The byte is there and may be written; false: it faulted. */
function touch(s: usize, at: u64): bool {
  const value = get(s, at, 1)
  return !failed(s) && put(s, at, 1, value)
}

/** Saves the outgoing task: general registers, segments, flags, next EIP. */
function save(s: usize, base: u64, wide: bool, eip: u64, flags: u64): bool {
  const step: u64 = wide ? 4 : 2
  const size = <u32>step
  if (!put(s, base + (wide ? 0x20 : 0x0e), size, eip) || !put(s, base + (wide ? 0x24 : 0x10), size, flags)) return false
  const registers = base + (wide ? 0x28 : 0x12)
  for (let i: u64 = 0; i < 8; i++) if (!put(s, registers + i * step, size, load<u64>(s + CPU_GPR + <usize>(i << 3)))) return false
  const selectors = base + (wide ? 0x48 : 0x22)
  const count: u64 = wide ? 6 : 4
  for (let i: u64 = 0; i < count; i++) if (!put(s, selectors + i * step, 2, <u64>load<u16>(segment(s, <u32>i), SEG_SELECTOR))) return false
  return true
}

function get(s: usize, at: u64, size: u32): u64 {
  return sysRead(s, at & 0xffffffff, size)
}

/** Raises in the new task. */
function fault(s: usize, vector: u32, error: u32): u32 {
  raiseError(s, vector, error)
  return TASK_FAULTED
}

/** Loads and checks one data segment register of the new task. */
function loadData(s: usize, n: u32, selector: u32, x: u32): bool {
  if ((selector & 0xfffc) == 0) {
    setNullCache(s, n, selector)
    return true
  }
  if (!fetchDescriptor(s, selector, EXC_TS, x)) return false
  const attrib = attributes(descriptor())
  const error = descriptorError(selector, x)
  const code = codeSegment(attrib)
  const dpl = (attrib >> 5) & 3
  if (
    (attrib & 0x10) == 0 ||
    (code && (attrib & 2) == 0) ||
    ((!code || (attrib & 4) == 0) && (dpl < (selector & 3) || dpl < load<u32>(s, CPU_CPL)))
  ) {
    raiseError(s, EXC_TS, error)
    return false
  }
  if ((attrib & 0x80) == 0) {
    raiseError(s, EXC_NP, error)
    return false
  }
  if (!markAccessed(s, selector, descriptor())) return false
  setDescriptorCache(s, n, selector, descriptor())
  return true
}

/** Checks LDTR, CS, SS and the data segments of the new task; false: an exception is pending in it. */
function loadSegments(s: usize, selectors: StaticArray<u32>, ldt: u32, x: u32): bool {
  if ((ldt & 0xfffc) == 0) setNullCache(s, SEG_LDTR, ldt)
  else {
    if ((ldt & 4) != 0) {
      raiseError(s, EXC_TS, descriptorError(ldt, x))
      return false
    }
    if (!fetchDescriptor(s, ldt, EXC_TS, x)) return false
    const attrib = attributes(descriptor())
    if ((attrib & 0x1f) != 2 || (attrib & 0x80) == 0) {
      raiseError(s, EXC_TS, descriptorError(ldt, x))
      return false
    }
    const d = segment(s, SEG_LDTR)
    store<u64>(d, descriptorBase(descriptor()), SEG_BASE)
    store<u32>(d, descriptorLimit(descriptor()), SEG_LIMIT)
    store<u16>(d, <u16>attrib, SEG_ATTRIB)
  }
  if (getFlags(s) & FLAG_VM) {
    for (let n: u32 = 0; n < 6; n++) setRealCache(s, n, unchecked(selectors[n]))
    return true
  }
  const cs = unchecked(selectors[SEG_CS])
  const cpl = cs & 3
  if ((cs & 0xfffc) == 0) {
    raiseError(s, EXC_TS, x)
    return false
  }
  if (!fetchDescriptor(s, cs, EXC_TS, x)) return false
  const code = attributes(descriptor())
  const codeDpl = (code >> 5) & 3
  if (!codeSegment(code) || ((code & 4) != 0 ? codeDpl > cpl : codeDpl != cpl)) {
    raiseError(s, EXC_TS, descriptorError(cs, x))
    return false
  }
  if ((code & 0x80) == 0) {
    raiseError(s, EXC_NP, descriptorError(cs, x))
    return false
  }
  if (!markAccessed(s, cs, descriptor())) return false
  setDescriptorCache(s, SEG_CS, cs, descriptor())
  const ss = unchecked(selectors[SEG_SS])
  if ((ss & 0xfffc) == 0) {
    raiseError(s, EXC_TS, x)
    return false
  }
  if (!fetchDescriptor(s, ss, EXC_TS, x)) return false
  const stack = attributes(descriptor())
  if (!writableData(stack) || ((stack >> 5) & 3) != cpl || (ss & 3) != cpl) {
    raiseError(s, EXC_TS, descriptorError(ss, x))
    return false
  }
  if ((stack & 0x80) == 0) {
    raiseError(s, EXC_SS, descriptorError(ss, x))
    return false
  }
  if (!markAccessed(s, ss, descriptor())) return false
  setDescriptorCache(s, SEG_SS, ss, descriptor())
  store<u32>(s, cpl, CPU_CPL)
  return (
    loadData(s, SEG_ES, unchecked(selectors[SEG_ES]), x) &&
    loadData(s, SEG_DS, unchecked(selectors[SEG_DS]), x) &&
    loadData(s, SEG_FS, unchecked(selectors[SEG_FS]), x) &&
    loadData(s, SEG_GS, unchecked(selectors[SEG_GS]), x)
  )
}

const incoming: StaticArray<u32> = new StaticArray<u32>(6)

/**
 * Switches to the task of `selector`. `eip` is where the old task goes on and `flags` its image; `x` is the EXT bit;
 * for TASK_GATE an error code is pushed on the new stack if hasError. TASK_*.
 */
export function taskSwitch(s: usize, selector: u32, kind: u32, eip: u64, flags: u64, x: u32, hasError: bool, error: u32): u32 {
  const returning = kind == TASK_RETURN
  const bad: u32 = returning ? EXC_TS : EXC_GP
  if ((selector & 4) != 0 || (selector & 0xfffc) == 0) return refuse(s, returning ? EXC_TS : EXC_GP, descriptorError(selector, x))
  if (!fetchDescriptor(s, selector, bad, x)) return TASK_REFUSED
  const d = descriptor()
  const attrib = attributes(d)
  const type = attrib & 0x1f
  const busy = type == 3 || type == 11
  if ((type != 1 && type != 9 && !busy) || busy != returning) return refuse(s, bad, descriptorError(selector, x))
  if ((attrib & 0x80) == 0) return refuse(s, EXC_NP, descriptorError(selector, x))
  const wide = (type & 8) != 0
  const limit = descriptorLimit(d)
  const least: u32 = wide ? 0x67 : 0x2b
  if (limit < least) return refuse(s, EXC_TS, descriptorError(selector, x))
  const base = descriptorBase(d)
  const tr = segment(s, SEG_TR)
  const oldBase = load<u64>(tr, SEG_BASE)
  const oldSelector = <u32>load<u16>(tr, SEG_SELECTOR)
  const oldWide = (load<u16>(tr, SEG_ATTRIB) & 8) != 0

  // Everything that is read from the new TSS, before anything changes.
  const step: u64 = wide ? 4 : 2
  const size = <u32>step
  const newEip = get(s, base + (wide ? 0x20 : 0x0e), size)
  if (failed(s)) return TASK_REFUSED
  let newFlags = get(s, base + (wide ? 0x24 : 0x10), size)
  if (failed(s)) return TASK_REFUSED
  const newCr3 = wide ? get(s, base + 0x1c, 4) : 0
  if (failed(s)) return TASK_REFUSED
  const trap = wide ? <u32>get(s, base + 0x64, 2) & 1 : 0
  if (failed(s)) return TASK_REFUSED
  const ldt = <u32>get(s, base + (wide ? 0x60 : 0x2a), 2)
  if (failed(s)) return TASK_REFUSED
  for (let i: u64 = 0; i < 6; i++) {
    const value = i < 4 || wide ? <u32>get(s, base + (wide ? 0x48 : 0x22) + i * step, 2) : 0
    if (failed(s)) return TASK_REFUSED
    unchecked((incoming[<i32>i] = value))
  }
  const registers = base + (wide ? 0x28 : 0x12)
  get(s, registers, size)
  if (failed(s)) return TASK_REFUSED
  get(s, registers + 7 * step, size)
  if (failed(s)) return TASK_REFUSED

  // And what will be written: it is all there before the first change (SDM vol 3, 7.3, step 6).
  const release = kind == TASK_JUMP || returning
  const newType = <u32>(d >> 40) & 0xff
  if (!touch(s, oldBase + (oldWide ? 0x20 : 0x0e)) || !touch(s, oldBase + (oldWide ? 0x5d : 0x29))) return TASK_REFUSED
  if (!release && (!touch(s, base) || !touch(s, base + 1))) return TASK_REFUSED
  if (!returning && !writeAccessByte(s, selector, newType)) return TASK_REFUSED
  if (release) {
    if (!fetchDescriptor(s, oldSelector, EXC_TS, x) || !writeAccessByte(s, oldSelector, <u32>(descriptor() >> 40) & 0xfd))
      return TASK_REFUSED
  }
  if (!save(s, oldBase, oldWide, eip, returning ? flags & ~FLAG_NT : flags)) return TASK_REFUSED
  if (!release) {
    if (!put(s, base, 2, <u64>oldSelector)) return TASK_REFUSED
    newFlags |= FLAG_NT
  }
  if (!returning && !writeAccessByte(s, selector, newType | 2)) return TASK_REFUSED

  // The new task is current from here on.
  store<u64>(tr, base, SEG_BASE)
  store<u32>(tr, limit, SEG_LIMIT)
  store<u16>(tr, <u16>selector, SEG_SELECTOR)
  store<u16>(tr, <u16>((attrib & 0xff) | 2), SEG_ATTRIB)
  store<u64>(s, load<u64>(s, CPU_CR0) | CR0_TS, CPU_CR0)
  store<u64>(s, load<u64>(s, CPU_DR7) & ~DR7_LOCAL, CPU_DR7)
  updateDebug(s)
  for (let i: u64 = 0; i < 8; i++) {
    const value = get(s, registers + i * step, size)
    store<u64>(s + CPU_GPR + <usize>(i << 3), wide ? value : value | 0xffff0000)
  }
  store<u32>(s, 0, CPU_LEAVE)
  if (wide && (load<u64>(s, CPU_CR0) & CR0_PG) != 0) writeCr3(s, newCr3)
  // RF is loaded too (SDM vol 3, 17.3.1.1); nothing can see it but a breakpoint.
  setFlags(s, newFlags & (load<u32>(s, CPU_DEBUG_ARMED) ? 0x3f7fd7 : 0x3e7fd7))
  store<u64>(s, newEip, CPU_RIP)
  // Selectors are loaded first, their descriptors afterwards: a fault sees the new selectors with nothing behind them.
  for (let n: u32 = 0; n < 6; n++) {
    const at = segment(s, n)
    store<u16>(at, <u16>unchecked(incoming[n]), SEG_SELECTOR)
    if (n != SEG_CS) store<u16>(at, <u16>ATTR_UNUSABLE, SEG_ATTRIB)
  }
  store<u16>(segment(s, SEG_LDTR), <u16>ldt, SEG_SELECTOR)
  store<u16>(segment(s, SEG_LDTR), <u16>ATTR_UNUSABLE, SEG_ATTRIB)
  // Until there is a stack, the handler of a fault gets the one that the TSS has for its level.
  store<u32>(s, 3, CPU_CPL)
  const loaded = loadSegments(s, incoming, ldt, x)
  updateMode(s)
  if (!loaded) return TASK_FAULTED
  if (trap) store<u32>(s, load<u32>(s, CPU_PENDING_DB) | DR6_BT, CPU_PENDING_DB)
  if (hasError) {
    beginStackCurrent(s, x)
    if (!stackPush(s, size, <u64>error)) return TASK_FAULTED
    applyStack(s)
  }
  if (newEip > <u64>load<u32>(segment(s, SEG_CS), SEG_LIMIT)) return fault(s, EXC_GP, x)
  return TASK_DONE
}
