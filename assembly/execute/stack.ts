/** Stack instructions outside the hot switch, segment register moves, and flag instructions (SDM vol 2). */
import { raise, raiseError } from '../cpu/exceptions'
import { CF, DF, IF, TF, arithmetic, getFlags, setArithmetic, setFlags } from '../cpu/flags'
import { F_80000001_ECX, featureOrBare } from '../cpu/features'
import { code64, protectedMode, segment, setShadow, updateMode, virtual8086, windowOpened } from '../cpu/mode'
import { applyStack, beginStackCurrent, loadSegment, stackDone, stackPop, stackPush, stackSkip, stackTop } from '../cpu/segments'
import {
  CPU_CPL,
  CPU_CR4,
  CPU_EFLAGS,
  CPU_LEAVE,
  CPU_STACK_MASK,
  EXC_BR,
  EXC_GP,
  EXC_UD,
  OP_EXTRA,
  OP_IMM,
  OP_MODRM,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GS,
  SEG_SELECTOR,
  SEG_SS,
} from '../generated/layout'
import { CR4_PVI, CR4_VME, FLAG_AC, FLAG_ID, FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_VIF, FLAG_VIP, FLAG_VM } from '../generated/registers'
import { modifyMem, readMem } from '../memory/access'
import { pointerOffset, pointerSelector, pointerSize, readFarPointer } from './far-pointer'
import { selectTlb } from '../memory/tlb'
import { ea, eaBehind, getReg, getRm, isMemory, operandSize, segmentAddress, setReg, setRm, STACK_OP, writeRegister } from './operands'
import { popfVirtual, pushfVirtual } from './virtual8086'
import { done, left } from './common'

const RSP: usize = 32
const RBP: usize = 40

// Segment registers.

/** MOV r/m, Sreg: 16 bits to memory, zero-extended to a register. */
export function movFromSreg(s: usize, op: usize): u32 {
  const n = (<u32>load<u8>(op, OP_MODRM) >> 3) & 7
  if (n > SEG_GS) return raise(s, EXC_UD)
  return setRm(s, op, isMemory(op) ? 2 : operandSize(op), <u64>load<u16>(segment(s, n), SEG_SELECTOR))
}

export function movToSreg(s: usize, op: usize): u32 {
  const n = (<u32>load<u8>(op, OP_MODRM) >> 3) & 7
  if (n > SEG_GS || n == SEG_CS) return raise(s, EXC_UD)
  const selector = <u32>getRm(s, op, 2)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (loadSegment(s, n, selector)) return load<u32>(s, CPU_LEAVE)
  updateMode(s)
  if (n == SEG_SS) setShadow(s, 2)
  return done(s)
}

function pushSreg(s: usize, op: usize, n: u32): u32 {
  const size = operandSize(op)
  beginStackCurrent(s, 0)
  // Zero-extended, also with 32 bits, of which Intel's CPUs leave the upper half alone (measured on Zen 4).
  if (!stackPush(s, size, <u64>load<u16>(segment(s, n), SEG_SELECTOR))) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  return stackDone(s)
}

function popSreg(s: usize, op: usize, n: u32): u32 {
  const size = operandSize(op)
  beginStackCurrent(s, 0)
  // All of the operand is read (measured on Zen 4).
  const selector = <u32>stackPop(s, size) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const sp = stackTop()
  const mask = load<u64>(s, CPU_STACK_MASK)
  if (loadSegment(s, n, selector)) return load<u32>(s, CPU_LEAVE)
  if (mask == 0xffff) store<u16>(s, <u16>sp, RSP)
  else store<u64>(s, sp, RSP)
  updateMode(s)
  if (n == SEG_SS) setShadow(s, 2)
  return done(s)
}

export function pushEs(s: usize, op: usize): u32 {
  return pushSreg(s, op, SEG_ES)
}
export function pushCs(s: usize, op: usize): u32 {
  return pushSreg(s, op, SEG_CS)
}
export function pushSs(s: usize, op: usize): u32 {
  return pushSreg(s, op, SEG_SS)
}
export function pushDs(s: usize, op: usize): u32 {
  return pushSreg(s, op, SEG_DS)
}
export function pushFs(s: usize, op: usize): u32 {
  return pushSreg(s, op, SEG_FS)
}
export function pushGs(s: usize, op: usize): u32 {
  return pushSreg(s, op, SEG_GS)
}
export function popEs(s: usize, op: usize): u32 {
  return popSreg(s, op, SEG_ES)
}
export function popSs(s: usize, op: usize): u32 {
  return popSreg(s, op, SEG_SS)
}
export function popDs(s: usize, op: usize): u32 {
  return popSreg(s, op, SEG_DS)
}
export function popFs(s: usize, op: usize): u32 {
  return popSreg(s, op, SEG_FS)
}
export function popGs(s: usize, op: usize): u32 {
  return popSreg(s, op, SEG_GS)
}

/** LES, LDS, LSS, LFS, LGS: offset first in memory, selector behind it. */
function loadPointer(s: usize, op: usize, n: u32): u32 {
  if (!readFarPointer(s, op)) return load<u32>(s, CPU_LEAVE)
  const offset = pointerOffset
  const size = pointerSize
  if (loadSegment(s, n, pointerSelector)) return load<u32>(s, CPU_LEAVE)
  setReg(s, op, size, offset)
  updateMode(s)
  return done(s)
}

export function les(s: usize, op: usize): u32 {
  return loadPointer(s, op, SEG_ES)
}
export function lds(s: usize, op: usize): u32 {
  return loadPointer(s, op, SEG_DS)
}
export function lss(s: usize, op: usize): u32 {
  return loadPointer(s, op, SEG_SS)
}
export function lfs(s: usize, op: usize): u32 {
  return loadPointer(s, op, SEG_FS)
}
export function lgs(s: usize, op: usize): u32 {
  return loadPointer(s, op, SEG_GS)
}

// PUSHA, POPA, ENTER, LEAVE, BOUND.

export function pusha(s: usize, op: usize): u32 {
  const size = operandSize(op)
  beginStackCurrent(s, 0)
  for (let i: usize = 0; i < 8; i++) if (!stackPush(s, size, load<u64>(s + (i << 3)))) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  return stackDone(s)
}

export function popa(s: usize, op: usize): u32 {
  const size = operandSize(op)
  beginStackCurrent(s, 0)
  // What was popped before a fault stays popped (measured on Zen 4); SP does not move.
  for (let i: i32 = 7; i >= 0; i--) {
    const value = stackPop(s, size)
    if (left(s)) return load<u32>(s, CPU_LEAVE)
    if (i != 4) writeRegister(s + ((<usize>i) << 3), size, value)
  }
  applyStack(s)
  return 0
}

export function enter(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const allocate = load<u64>(op, OP_IMM) & 0xffff
  const level = load<u32>(op, OP_EXTRA) & 31
  const mask = load<u64>(s, CPU_STACK_MASK)
  beginStackCurrent(s, 0)
  if (!stackPush(s, size, load<u64>(s, RBP))) return load<u32>(s, CPU_LEAVE)
  // With a 16-bit stack and a 32-bit operand size EBP takes the upper half of ESP (measured on Zen 4).
  const frame = stackTop() | (load<u64>(s, RSP) & ~mask)
  if (level > 0) {
    let bp = load<u64>(s, RBP)
    for (let i: u32 = 1; i < level; i++) {
      bp -= <u64>size
      // The outer frame pointers are read through a second view of the same stack.
      const top = stackTop()
      stackSkip((bp & mask) - top)
      const value = stackPop(s, size)
      if (left(s)) return load<u32>(s, CPU_LEAVE)
      stackSkip(top - stackTop())
      if (!stackPush(s, size, value)) return load<u32>(s, CPU_LEAVE)
    }
    if (!stackPush(s, size, frame)) return load<u32>(s, CPU_LEAVE)
  }
  stackSkip(-allocate)
  // The new top must be writable; nothing is stored there.
  const va = segmentAddress(s, SEG_SS, stackTop(), size, true)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (!modifyMem(s, STACK_OP, va, size)) return load<u32>(s, CPU_LEAVE)
  writeRegister(s + RBP, size, frame)
  applyStack(s)
  return stackDone(s)
}

export function leave(s: usize, op: usize): u32 {
  const size = operandSize(op)
  beginStackCurrent(s, 0)
  stackSkip(load<u64>(s, RBP) - load<u64>(s, RSP))
  const value = stackPop(s, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  writeRegister(s + RBP, size, value)
  return 0
}

export function bound(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const va = ea(s, op, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const lower = readMem(s, op, va, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const second = eaBehind(s, op, size, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const upper = readMem(s, op, second, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const shift: u64 = <u64>(64 - (size << 3))
  const index = <i64>(getReg(s, op, size) << shift)
  if (index < <i64>(lower << shift) || index > <i64>(upper << shift)) return raise(s, EXC_BR)
  return 0
}

// Flags.

export function pushf(s: usize, op: usize): u32 {
  if (virtual8086(s)) return pushfVirtual(s, operandSize(op))
  beginStackCurrent(s, 0)
  if (!stackPush(s, operandSize(op), getFlags(s) & ~(FLAG_RF | FLAG_VM))) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  return stackDone(s)
}

export function popf(s: usize, op: usize): u32 {
  if (virtual8086(s)) return popfVirtual(s, operandSize(op))
  const size = operandSize(op)
  beginStackCurrent(s, 0)
  const value = stackPop(s, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const old = getFlags(s)
  const cpl = <u64>load<u32>(s, CPU_CPL)
  let change: u64 = 0x8d5 | <u64>(TF | DF) | FLAG_NT
  if (size != 2) change |= FLAG_AC | FLAG_ID
  if (cpl <= (old & FLAG_IOPL) >> 12) change |= <u64>IF
  if (cpl == 0) change |= FLAG_IOPL
  let flags = (old & ~(change | FLAG_RF)) | (value & change)
  // VIF and VIP are cleared by POPFD/POPFQ at CPL 0 (SDM vol 2, POPF, table 4-15).
  if (size != 2 && cpl == 0) flags &= ~(FLAG_VIF | FLAG_VIP)
  applyStack(s)
  setFlags(s, flags)
  if ((old ^ flags) & FLAG_AC) selectTlb(s)
  // Most restore IF as it was: the block goes on.
  if ((old & <u64>IF) == (flags & <u64>IF) && ((old | flags) & <u64>TF) == 0) return 0
  if ((flags & <u64>IF) != 0) windowOpened(s)
  return done(s)
}

/** IOPL lets CLI and STI through here. */
function interruptControl(s: usize): bool {
  return !protectedMode(s) || load<u32>(s, CPU_CPL) <= (<u32>(load<u64>(s, CPU_EFLAGS) >> 12) & 3)
}

/** CLI and STI change VIF instead (CR4.PVI at CPL 3, CR4.VME in virtual-8086 mode). */
function virtualInterrupts(s: usize): bool {
  return load<u32>(s, CPU_CPL) == 3 && (load<u64>(s, CPU_CR4) & (virtual8086(s) ? CR4_VME : CR4_PVI)) != 0
}

export function cli(s: usize, op: usize): u32 {
  const flags = load<u64>(s, CPU_EFLAGS)
  if (interruptControl(s)) store<u64>(s, flags & ~(<u64>IF), CPU_EFLAGS)
  else if (virtualInterrupts(s)) store<u64>(s, flags & ~FLAG_VIF, CPU_EFLAGS)
  else return raiseError(s, EXC_GP, 0)
  return 0
}

export function sti(s: usize, op: usize): u32 {
  const flags = load<u64>(s, CPU_EFLAGS)
  if (interruptControl(s)) {
    if ((flags & <u64>IF) == 0) {
      store<u64>(s, flags | <u64>IF, CPU_EFLAGS)
      // The instruction after a STI that found IF clear runs before any interrupt.
      setShadow(s, 1)
      windowOpened(s)
    }
  } else if (virtualInterrupts(s) && (flags & FLAG_VIP) == 0) store<u64>(s, flags | FLAG_VIF, CPU_EFLAGS)
  else return raiseError(s, EXC_GP, 0)
  return done(s)
}

export function cld(s: usize, op: usize): u32 {
  store<u64>(s, load<u64>(s, CPU_EFLAGS) & ~(<u64>DF), CPU_EFLAGS)
  return 0
}

export function std(s: usize, op: usize): u32 {
  store<u64>(s, load<u64>(s, CPU_EFLAGS) | <u64>DF, CPU_EFLAGS)
  return 0
}

export function clc(s: usize, op: usize): u32 {
  setArithmetic(s, arithmetic(s) & ~CF)
  return 0
}

export function stc(s: usize, op: usize): u32 {
  setArithmetic(s, arithmetic(s) | CF)
  return 0
}

export function cmc(s: usize, op: usize): u32 {
  setArithmetic(s, arithmetic(s) ^ CF)
  return 0
}

export function lahf(s: usize, op: usize): u32 {
  if (code64(s) && !featureOrBare(s, F_80000001_ECX, 0)) return raise(s, EXC_UD)
  store<u8>(s, <u8>((getFlags(s) & 0xd5) | 2), 1)
  return 0
}

export function sahf(s: usize, op: usize): u32 {
  if (code64(s) && !featureOrBare(s, F_80000001_ECX, 0)) return raise(s, EXC_UD)
  setArithmetic(s, (arithmetic(s) & ~0xd5) | (<u32>load<u8>(s, 1) & 0xd5))
  return 0
}
