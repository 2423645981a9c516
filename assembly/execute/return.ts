/** Far RET, IRET and software interrupts (SDM vol 2 RET, IRET, INT; vol 3, 6.12; APM vol 2, 8.9). */
import { arrive, checkTarget, nullStack, switched } from './transfer'
import { softwareInterrupt } from '../cpu/delivery'
import { raiseError, vmmCommunication } from '../cpu/exceptions'
import { IF, TF, getFlags, overflow, setFlags } from '../cpu/flags'
import { ATTR_DB, ATTR_L, code64, leaveWith, longMode, protectedMode, segment, sevEs, virtual8086, windowOpened } from '../cpu/mode'
import {
  applyStack,
  attributes,
  beginStackCurrent,
  codeSegment,
  descriptor,
  fetchDescriptor,
  markAccessed,
  setDescriptorCache,
  setRealCache,
  stackPop,
  stackRead,
  stackSkip,
  writableData,
} from '../cpu/segments'
import {
  CPU_CPL,
  CPU_DEBUG_ARMED,
  CPU_LEAVE,
  CPU_NMI_BLOCKED,
  CPU_TRIPLE_FAULT,
  EXCF_INT3,
  EXCF_SOFT,
  EXCF_TRAP,
  EXC_BP,
  EXC_DB,
  EXC_GP,
  EXC_NP,
  EXC_OF,
  EXC_SS,
  LEAVE_BRANCH,
  LEAVE_FAULT,
  LEAVE_EXIT_BRANCH,
  LEAVE_NEXT,
  OP_IMM,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GS,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
} from '../generated/layout'
import { FLAG_AC, FLAG_ID, FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_VIF, FLAG_VIP, FLAG_VM } from '../generated/registers'
import { TASK_RETURN, taskSwitch } from '../cpu/task'
import { sysRead } from '../memory/access'
import { breakpoint } from '../kvm/debug'
import { instructionRip, operandSize } from './operands'
import { enterVirtual, intVirtual, iretVirtual } from './virtual8086'
import { left, nextRip } from './common'

const RSP: usize = 32

/** Data segments that the outer level may not see become null (SDM vol 3, 5.8.6); their bases stay, as 64-bit code can observe. */
function dropInnerSegments(s: usize, cpl: u32): void {
  for (let i: u32 = 0; i < 4; i++) {
    const n: u32 = i == 0 ? SEG_ES : i == 1 ? SEG_DS : i == 2 ? SEG_FS : SEG_GS
    const at = segment(s, n)
    const attrib = <u32>load<u16>(at, SEG_ATTRIB)
    if ((attrib & 0x8000) != 0) continue
    if ((!codeSegment(attrib) || (attrib & 4) == 0) && ((attrib >> 5) & 3) < cpl) {
      store<u16>(at, 0, SEG_SELECTOR)
      store<u16>(at, 0x8000, SEG_ATTRIB)
    }
  }
}

/** RETF, RETF imm16 */
export function retFar(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const release = load<u64>(op, OP_IMM) & 0xffff
  beginStackCurrent(s, 0)
  // CS comes first (measured on Zen 4).
  const selector = <u32>stackRead(s, <u64>size, size) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const rip = stackRead(s, 0, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  stackSkip(<u64>(size << 1))
  if (!protectedMode(s) || virtual8086(s)) {
    if (rip > <u64>load<u32>(segment(s, SEG_CS), SEG_LIMIT)) return raiseError(s, EXC_GP, 0)
    stackSkip(release)
    applyStack(s)
    setRealCache(s, SEG_CS, selector)
    return arrive(s, rip)
  }
  return returnTo(s, size, selector, rip, release, false, 0)
}

/** Common end of RETF and IRET in protected and long mode: the stack stands behind CS (and FLAGS). */
function returnTo(s: usize, size: u32, selector: u32, rip: u64, release: u64, interrupt: bool, flags: u64): u32 {
  const cpl = load<u32>(s, CPU_CPL)
  const rpl = selector & 3
  const error = selector & 0xfffc
  if (rpl != cpl && !(interrupt && code64(s))) {
    // The outer stack is read before the selector is looked at (measured on Zen 4).
    stackRead(s, release + <u64>size, size)
    if (!left(s)) stackRead(s, release, size)
    if (left(s)) return load<u32>(s, CPU_LEAVE)
  }
  if (error == 0) return raiseError(s, EXC_GP, 0)
  if (!fetchDescriptor(s, selector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
  const d = descriptor()
  const attrib = attributes(d)
  const dpl = (attrib >> 5) & 3
  if (!codeSegment(attrib) || rpl < cpl || ((attrib & 4) != 0 ? dpl > rpl : dpl != rpl)) return raiseError(s, EXC_GP, error)
  const long = longMode(s)
  if (long && (attrib & (ATTR_L | ATTR_DB)) == (ATTR_L | ATTR_DB)) return raiseError(s, EXC_GP, error)
  if ((attrib & 0x80) == 0) return raiseError(s, EXC_NP, error)
  const from64 = code64(s)
  if (rpl == cpl && !(interrupt && from64)) {
    if (checkTarget(s, d, rip)) return load<u32>(s, CPU_LEAVE)
    if (!markAccessed(s, selector, d)) return load<u32>(s, CPU_LEAVE)
    stackSkip(release)
    applyStack(s)
    setDescriptorCache(s, SEG_CS, selector, d)
    if (interrupt) returnFlags(s, size, flags, cpl)
    return arrive(s, rip)
  }
  // IRET looks at its target before it looks at SS (measured on Zen 4).
  if (interrupt && checkTarget(s, d, rip)) return load<u32>(s, CPU_LEAVE)
  stackSkip(release)
  const sp = stackPop(s, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const ssSelector = <u32>stackPop(s, size) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const to64 = long && (attrib & ATTR_L) != 0
  let ssDescriptor: u64 = 0
  if ((ssSelector & 0xfffc) == 0) {
    if (!to64 || rpl == 3 || (ssSelector & 3) != rpl) return raiseError(s, EXC_GP, 0)
  } else {
    if (!fetchDescriptor(s, ssSelector, EXC_GP, 0)) return load<u32>(s, CPU_LEAVE)
    ssDescriptor = descriptor()
    const a = attributes(ssDescriptor)
    if ((ssSelector & 3) != rpl || ((a >> 5) & 3) != rpl || !writableData(a)) return raiseError(s, EXC_GP, ssSelector & 0xfffc)
    if ((a & 0x80) == 0) return raiseError(s, EXC_SS, ssSelector & 0xfffc)
    if (!markAccessed(s, ssSelector, ssDescriptor)) return load<u32>(s, CPU_LEAVE)
  }
  if (checkTarget(s, d, rip)) return load<u32>(s, CPU_LEAVE)
  if (!markAccessed(s, selector, d)) return load<u32>(s, CPU_LEAVE)
  setDescriptorCache(s, SEG_CS, selector, d)
  if (ssDescriptor == 0) {
    nullStack(s, rpl)
    store<u16>(segment(s, SEG_SS), <u16>ssSelector, SEG_SELECTOR)
  } else setDescriptorCache(s, SEG_SS, ssSelector, ssDescriptor)
  if (interrupt) returnFlags(s, size, flags, cpl)
  store<u32>(s, rpl, CPU_CPL)
  if (to64) store<u64>(s, sp + release, RSP)
  else if (<u32>load<u16>(segment(s, SEG_SS), SEG_ATTRIB) & ATTR_DB) store<u64>(s, (sp + release) & 0xffffffff, RSP)
  else store<u16>(s, <u16>(sp + release), RSP)
  if (rpl > cpl) dropInnerSegments(s, rpl)
  return arrive(s, rip)
}

/** RFLAGS as IRET sets them at privilege `cpl` (SDM vol 2, IRET). RF is kept only while a breakpoint is armed: nothing else can see it. */
function returnFlags(s: usize, size: u32, value: u64, cpl: u32): void {
  const old = getFlags(s)
  let change: u64 = 0x8d5 | <u64>TF | 0x400 | FLAG_NT
  if (size != 2) change |= FLAG_AC | FLAG_ID | (load<u32>(s, CPU_DEBUG_ARMED) ? FLAG_RF : 0)
  if (<u64>cpl <= (old & FLAG_IOPL) >> 12) change |= <u64>IF
  if (cpl == 0) change |= FLAG_IOPL | (size != 2 ? FLAG_VIF | FLAG_VIP : 0)
  setFlags(s, (old & ~(change | FLAG_RF)) | (value & change))
  if ((old & <u64>IF) == 0 && (value & change & <u64>IF) != 0) windowOpened(s)
}

function interruptReturn(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const flags = getFlags(s)
  if (protectedMode(s) && !virtual8086(s) && (flags & FLAG_NT) != 0) {
    if (longMode(s)) return raiseError(s, EXC_GP, 0)
    if (sevEs(s)) return vmmCommunication(s, 0x7d)
    const link = <u32>sysRead(s, load<u64>(segment(s, SEG_TR), SEG_BASE), 2)
    if (left(s)) return load<u32>(s, CPU_LEAVE)
    return switched(s, taskSwitch(s, link, TASK_RETURN, nextRip(s, op), getFlags(s), 0, false, 0))
  }
  if (virtual8086(s)) return iretVirtual(s, size)
  beginStackCurrent(s, 0)
  // From the flags down, then SS and RSP where they are always there (measured on Zen 4).
  const image = stackRead(s, <u64>(size << 1), size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const selector = <u32>stackRead(s, <u64>size, size) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const rip = stackRead(s, 0, size)
  if (!left(s) && code64(s)) {
    stackRead(s, <u64>(size << 2), size)
    if (!left(s)) stackRead(s, <u64>(size * 3), size)
  }
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  stackSkip(<u64>(size * 3))
  if (!protectedMode(s)) {
    if (rip > <u64>load<u32>(segment(s, SEG_CS), SEG_LIMIT)) return raiseError(s, EXC_GP, 0)
    applyStack(s)
    setRealCache(s, SEG_CS, selector)
    const change: u64 = size == 2 ? 0x7fd5 : 0x257fd5
    setFlags(s, (flags & ~(change | FLAG_RF)) | (image & change))
    if ((flags & <u64>IF) == 0 && (image & <u64>IF) != 0) windowOpened(s)
    return arrive(s, rip)
  }
  if ((image & FLAG_VM) != 0 && size == 4 && load<u32>(s, CPU_CPL) == 0 && !longMode(s)) return enterVirtual(s, rip, selector, image)
  return returnTo(s, size, selector, rip, 0, true, image)
}

/** NMIs are unblocked by every IRET, also one that faults (SDM vol 3, 6.7.1; svm_complete_interrupts: RIP is another than at the intercept). */
export function iret(s: usize, op: usize): u32 {
  const leave = interruptReturn(s, op)
  // KVM cannot see the IRET of an SEV-ES guest: NMI_COMPLETE unblocks there (svm_enable_nmi_window)
  if (load<u32>(s, CPU_NMI_BLOCKED) && (leave == LEAVE_BRANCH || leave == LEAVE_FAULT) && !sevEs(s)) {
    store<u32>(s, 0, CPU_NMI_BLOCKED)
    windowOpened(s)
  }
  return leave
}

function software(s: usize, op: usize, vector: u32, kind: u32): u32 {
  if (!softwareInterrupt(s, op, vector, kind, nextRip(s, op))) return stoppedOrFault(s)
  return leaveWith(s, LEAVE_BRANCH)
}

/** A failed software interrupt: a fault of the instruction, or a stop in the task that a task gate led to. */
function stoppedOrFault(s: usize): u32 {
  return load<u32>(s, CPU_TRIPLE_FAULT) ? leaveWith(s, LEAVE_EXIT_BRANCH) : load<u32>(s, CPU_LEAVE)
}

export function intN(s: usize, op: usize): u32 {
  const vector = <u32>load<u64>(op, OP_IMM) & 0xff
  if (virtual8086(s)) {
    const leave = intVirtual(s, vector, nextRip(s, op))
    if (leave) return leave
  }
  return software(s, op, vector, EXCF_SOFT)
}

export function int3(s: usize, op: usize): u32 {
  const leave = breakpoint(s, instructionRip(s, op))
  if (leave) return leaveWith(s, leave)
  return software(s, op, EXC_BP, EXCF_INT3)
}

export function into(s: usize, op: usize): u32 {
  return overflow(s) ? software(s, op, EXC_OF, EXCF_INT3) : leaveWith(s, LEAVE_NEXT)
}

/** INT1 (ICEBP): a #DB trap without privilege check; intercepted for SEV-ES guests. */
export function int1(s: usize, op: usize): u32 {
  if (sevEs(s)) return vmmCommunication(s, 0x88)
  if (!softwareInterrupt(s, op, EXC_DB, EXCF_TRAP, nextRip(s, op))) return stoppedOrFault(s)
  return leaveWith(s, LEAVE_BRANCH)
}
