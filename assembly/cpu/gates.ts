/**
 * The way to a handler: real mode's vector table, gates of 16 and 32 bits, task gates, the long-mode IDT with IST
 * (SDM vol 3, 6.10 to 6.14; APM vol 2, 8.6 to 8.9). Owns no state; an event that fails leaves its exception in CPU_EXC_*.
 */
import {
  CPU_CPL,
  CPU_DEBUGCTL,
  CPU_DR6,
  CPU_DR7,
  CPU_LEAVE,
  CPU_RIP,
  CPU_RIP_MASK,
  EXCF_ERROR,
  EXCF_EXTERNAL,
  EXCF_INT3,
  EXCF_SOFT,
  EXCF_TRAP,
  EXC_DB,
  EXC_DF,
  EXC_GP,
  EXC_MC,
  EXC_NP,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GS,
  SEG_IDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
} from '../generated/layout'
import { FLAG_NT, FLAG_RF, FLAG_VM } from '../generated/registers'
import { sysRead } from '../memory/access'
import { getFlags, IF, setFlags, TF } from './flags'
import { ATTR_DB, ATTR_L, canonical, code64, longMode, protectedMode, segment, sevEs, updateMode, virtual8086 } from './mode'
import { TASK_DONE, TASK_GATE, TASK_REFUSED, taskSwitch } from './task'
import {
  applyStack,
  attributes,
  beginStack64,
  beginStackCurrent,
  codeSegment,
  descriptor,
  descriptorError,
  descriptorLimit,
  fetchDescriptor,
  loadedStack,
  markAccessed,
  markStack,
  readStackSegment,
  setDescriptorCache,
  setNullCache,
  setRealCache,
  stackPointer,
  stackPush,
  stackTop,
} from './segments'
import { raiseError, vmmCommunication } from './exceptions'

const RSP: usize = 32

/** The EXT bit of error codes: the event did not come from INT n, INT3 or INTO. */
function ext(flags: u32): u32 {
  return (flags & (EXCF_SOFT | EXCF_INT3)) == 0 ? 1 : 0
}

/** RFLAGS image: RF set for faults (SDM vol 3, 17.3.1.1). */
function pushedFlags(s: usize, vector: u32, flags: u32): u64 {
  const image = getFlags(s)
  // Not for instruction breakpoints: their handler sets RF itself.
  if (vector == EXC_DB && (load<u64>(s, CPU_DR6) & 0xf) != 0) return image
  const fault = (flags & (EXCF_EXTERNAL | EXCF_SOFT | EXCF_INT3 | EXCF_TRAP)) == 0 && vector != EXC_DF && vector != EXC_MC
  return fault ? image | FLAG_RF : image
}

/** The event went through a task gate: CPU_RIP belongs to the new task, whether or not an exception is pending in it. */
export let switched: bool = false

function enterHandler(s: usize, vector: u32, flags: u32): void {
  if (vector == EXC_DB && (flags & (EXCF_SOFT | EXCF_INT3)) == 0) {
    store<u64>(s, load<u64>(s, CPU_DR7) & ~(<u64>0x2000), CPU_DR7)
    store<u64>(s, load<u64>(s, CPU_DEBUGCTL) & ~(<u64>1), CPU_DEBUGCTL)
  }
  updateMode(s)
}

/** True: delivered, CPU_RIP set. False: EXC_* describes what went wrong; only memory below the stack pointer may have changed. */
export function throughIdt(s: usize, vector: u32, error: u32, flags: u32, ret: u64, op: usize): bool {
  ret &= load<u64>(s, CPU_RIP_MASK)
  switched = false
  let ok: bool
  if (!protectedMode(s)) ok = realMode(s, vector, flags, ret)
  else if (longMode(s)) ok = longGate(s, vector, error, flags, ret)
  else ok = legacyGate(s, vector, error, flags, ret)
  if (ok) enterHandler(s, vector, flags)
  return ok
}

function realMode(s: usize, vector: u32, flags: u32, ret: u64): bool {
  const idtr = segment(s, SEG_IDTR)
  if ((vector << 2) + 3 > load<u32>(idtr, SEG_LIMIT)) {
    raiseError(s, EXC_GP, (vector << 3) | 2 | ext(flags))
    return false
  }
  const entry = <u32>sysRead(s, load<u64>(idtr, SEG_BASE) + <u64>(vector << 2), 4)
  if (load<u32>(s, CPU_LEAVE)) return false
  beginStackCurrent(s, 0)
  if (!stackPush(s, 2, pushedFlags(s, 0x100, flags) & 0xffff)) return false
  if (!stackPush(s, 2, <u64>load<u16>(segment(s, SEG_CS), SEG_SELECTOR))) return false
  if (!stackPush(s, 2, ret)) return false
  applyStack(s)
  setFlags(s, getFlags(s) & ~(<u64>(IF | TF) | FLAG_RF | 0x40000))
  setRealCache(s, SEG_CS, entry >> 16)
  store<u64>(s, <u64>(entry & 0xffff), CPU_RIP)
  return true
}

function legacyGate(s: usize, vector: u32, error: u32, flags: u32, ret: u64): bool {
  const idtr = segment(s, SEG_IDTR)
  const x = ext(flags)
  const idtError = (vector << 3) | 2 | x
  const cpl = load<u32>(s, CPU_CPL)
  if ((vector << 3) + 7 > load<u32>(idtr, SEG_LIMIT)) return gateFault(s, EXC_GP, idtError)
  const gate = sysRead(s, <u64>(<u32>(load<u64>(idtr, SEG_BASE) + <u64>(vector << 3))), 8)
  if (load<u32>(s, CPU_LEAVE)) return false
  const type = <u32>(gate >> 40) & 0x1f
  if (type != 5 && type != 6 && type != 7 && type != 14 && type != 15) return gateFault(s, EXC_GP, idtError)
  if (x == 0 && (<u32>(gate >> 45) & 3) < cpl) return gateFault(s, EXC_GP, idtError)
  if (((gate >> 47) & 1) == 0) return gateFault(s, EXC_NP, idtError)
  if (type == 5) {
    // A task switch is intercepted for SEV-ES guests.
    if (sevEs(s)) {
      vmmCommunication(s, 0x7d)
      return false
    }
    const result = taskSwitch(
      s,
      <u32>(gate >> 16) & 0xffff,
      TASK_GATE,
      ret,
      pushedFlags(s, vector, flags),
      x,
      (flags & EXCF_ERROR) != 0,
      error,
    )
    switched = result != TASK_REFUSED
    return result == TASK_DONE
  }
  const wide = (type & 8) != 0
  const size: u32 = wide ? 4 : 2
  const selector = <u32>(gate >> 16) & 0xffff
  const target = wide ? ((gate >> 32) & 0xffff0000) | (gate & 0xffff) : gate & 0xffff
  const inner = handlerSegment(s, selector, x, false)
  if (inner < 0) return false
  const cs = descriptor()
  const newCpl = <u32>inner
  const v86 = virtual8086(s)
  if (v86 && newCpl != 0) return gateFault(s, EXC_GP, descriptorError(selector, x))
  if (newCpl < cpl) {
    if (!readStackSegment(s, newCpl, x)) return false
  } else beginStackCurrent(s, x)
  const oldSs = <u64>load<u16>(segment(s, SEG_SS), SEG_SELECTOR)
  if (v86) {
    if (
      !stackPush(s, size, <u64>load<u16>(segment(s, SEG_GS), SEG_SELECTOR)) ||
      !stackPush(s, size, <u64>load<u16>(segment(s, SEG_FS), SEG_SELECTOR))
    )
      return false
    if (
      !stackPush(s, size, <u64>load<u16>(segment(s, SEG_DS), SEG_SELECTOR)) ||
      !stackPush(s, size, <u64>load<u16>(segment(s, SEG_ES), SEG_SELECTOR))
    )
      return false
  }
  if (newCpl < cpl) {
    if (!stackPush(s, size, oldSs)) return false
    if (!stackPush(s, size, load<u64>(s, RSP))) return false
  }
  if (!stackPush(s, size, pushedFlags(s, vector, flags))) return false
  if (!stackPush(s, size, <u64>load<u16>(segment(s, SEG_CS), SEG_SELECTOR))) return false
  if (!stackPush(s, size, ret)) return false
  if ((flags & EXCF_ERROR) != 0 && !stackPush(s, size, <u64>error)) return false
  if (target > <u64>descriptorLimit(cs)) return gateFault(s, EXC_GP, x)
  if (newCpl < cpl && !markStack(s)) return false
  if (!markAccessed(s, selector, cs)) return false
  if (newCpl < cpl) loadedStack(s)
  applyStack(s)
  if (v86) {
    setNullCache(s, SEG_GS, 0)
    setNullCache(s, SEG_FS, 0)
    setNullCache(s, SEG_DS, 0)
    setNullCache(s, SEG_ES, 0)
  }
  setDescriptorCache(s, SEG_CS, (selector & 0xfffc) | newCpl, cs)
  store<u32>(s, newCpl, CPU_CPL)
  const clear = <u64>TF | FLAG_NT | FLAG_RF | FLAG_VM | ((type & 1) == 0 ? <u64>IF : 0)
  setFlags(s, getFlags(s) & ~clear)
  store<u64>(s, target, CPU_RIP)
  return true
}

function longGate(s: usize, vector: u32, error: u32, flags: u32, ret: u64): bool {
  const idtr = segment(s, SEG_IDTR)
  const x = ext(flags)
  const idtError = (vector << 3) | 2 | x
  const cpl = load<u32>(s, CPU_CPL)
  if ((vector << 4) + 15 > load<u32>(idtr, SEG_LIMIT)) return gateFault(s, EXC_GP, idtError)
  const at = load<u64>(idtr, SEG_BASE) + <u64>(vector << 4)
  const gate = sysRead(s, at, 8)
  if (load<u32>(s, CPU_LEAVE)) return false
  const high = sysRead(s, at + 8, 8)
  if (load<u32>(s, CPU_LEAVE)) return false
  const type = <u32>(gate >> 40) & 0x1f
  if ((type != 14 && type != 15) || ((high >> 40) & 0x1f) != 0) return gateFault(s, EXC_GP, idtError)
  if (x == 0 && (<u32>(gate >> 45) & 3) < cpl) return gateFault(s, EXC_GP, idtError)
  if (((gate >> 47) & 1) == 0) return gateFault(s, EXC_NP, idtError)
  const selector = <u32>(gate >> 16) & 0xffff
  const target = (high << 32) | ((gate >> 32) & 0xffff0000) | (gate & 0xffff)
  const inner = handlerSegment(s, selector, x, true)
  if (inner < 0) return false
  const cs = descriptor()
  const newCpl = <u32>inner
  const ist = <u32>(gate >> 32) & 7
  let rsp: u64
  if (ist != 0 || newCpl < cpl) {
    rsp = stackPointer(s, ist != 0 ? 0x1c + (ist << 3) : 4 + (newCpl << 3), x)
    if (load<u32>(s, CPU_LEAVE)) return false
  } else {
    rsp = load<u64>(s, RSP)
    if (!code64(s)) rsp &= 0xffffffff
  }
  const ss = segment(s, SEG_SS)
  beginStack64(rsp & ~(<u64>15), newCpl, x)
  if (!stackPush(s, 8, <u64>load<u16>(ss, SEG_SELECTOR))) return false
  if (!stackPush(s, 8, load<u64>(s, RSP))) return false
  if (!stackPush(s, 8, pushedFlags(s, vector, flags))) return false
  if (!stackPush(s, 8, <u64>load<u16>(segment(s, SEG_CS), SEG_SELECTOR))) return false
  if (!stackPush(s, 8, ret)) return false
  if ((flags & EXCF_ERROR) != 0 && !stackPush(s, 8, <u64>error)) return false
  if (!canonical(s, target)) return gateFault(s, EXC_GP, x)
  if (!markAccessed(s, selector, cs)) return false
  store<u64>(s, stackTop(), RSP)
  if (newCpl < cpl) {
    store<u16>(ss, <u16>newCpl, SEG_SELECTOR)
    store<u64>(ss, 0, SEG_BASE)
    store<u32>(ss, 0xffffffff, SEG_LIMIT)
    store<u16>(ss, <u16>(0xc93 | (newCpl << 5)), SEG_ATTRIB)
  }
  setDescriptorCache(s, SEG_CS, (selector & 0xfffc) | newCpl, cs)
  store<u32>(s, newCpl, CPU_CPL)
  const clear = <u64>TF | FLAG_NT | FLAG_RF | FLAG_VM | ((type & 1) == 0 ? <u64>IF : 0)
  setFlags(s, getFlags(s) & ~clear)
  store<u64>(s, target, CPU_RIP)
  return true
}

function gateFault(s: usize, vector: u32, error: u32): bool {
  raiseError(s, vector, error)
  return false
}

/** Checks the code segment of a gate; its privilege level, or -1 with the exception raised. Leaves the descriptor in descriptor(). */
function handlerSegment(s: usize, selector: u32, x: u32, long: bool): i32 {
  const cpl = load<u32>(s, CPU_CPL)
  if ((selector & 0xfffc) == 0) {
    raiseError(s, EXC_GP, x)
    return -1
  }
  if (!fetchDescriptor(s, selector, EXC_GP, x)) return -1
  const attrib = attributes(descriptor())
  const dpl = (attrib >> 5) & 3
  const error = descriptorError(selector, x)
  if (!codeSegment(attrib) || dpl > cpl || (long && (attrib & (ATTR_L | ATTR_DB)) != ATTR_L)) {
    raiseError(s, EXC_GP, error)
    return -1
  }
  if ((attrib & 0x80) == 0) {
    raiseError(s, EXC_NP, error)
    return -1
  }
  return (attrib & 4) != 0 ? <i32>cpl : <i32>dpl
}
