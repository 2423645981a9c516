/**
 * What happens between blocks: leaving ops (faults, mode changes, exits), events and budgets,
 * single stepping and the one-instruction interrupt shadow.
 */
import { instructionBreakpoint, instructionRetired, takeTrap, trapDue } from '../cpu/debug'
import { deliver } from '../cpu/delivery'
import { TF } from '../cpu/flags'
import { windowOpened } from '../cpu/mode'
import { lookup, quickLookup } from '../decode/cache'
import { chained, H_PARTIAL_END, plain } from '../generated/opcodes'
import {
  BLOCK_BYTES,
  BLOCK_COUNT,
  BLOCK_FRAME2,
  BLOCK_LENGTH,
  CPU_BUDGET,
  CPU_DEBUG_ARMED,
  CPU_EFLAGS,
  CPU_HALTED,
  CPU_ICOUNT,
  CPU_INTERRUPT_SHADOW,
  CPU_LEAVE,
  CPU_LINK,
  CPU_OP,
  CPU_RIP,
  CPU_RIP_MASK,
  CPU_SLICE_END,
  CPU_STOP_REASON,
  CPU_STORM,
  CPU_STORM_AT,
  LEAVE_EXIT_NEXT,
  LEAVE_EXIT_RETRY,
  LEAVE_FAULT,
  LEAVE_NEXT,
  OP_DISP,
  OP_EXTRA,
  OP_ID,
  OP_IMM,
  OP_NEXT,
  OP_OFFSET,
  SIZEOF_OP,
  STOP_BUDGET,
  STOP_EVENT,
  STOP_EXIT,
  VCPU_PARTIAL,
} from '../generated/layout'
import { pollEvents } from '../kvm/events'

export { quickLookup }

/** Header flag in BLOCK_BYTES of the partial block: TF was set when it began, raise #DB after it. */
const STEP_TRAP: u32 = 1
/** Header flag: an interrupt shadow ends with this instruction. */
const STEP_SHADOW: u32 = 2
/** Header flag: breakpoints are armed, so that the boundary after it looks for hits. */
const STEP_DEBUG: u32 = 4
/** Header flag: RF was set, and ends with this instruction. */
const STEP_RESUME: u32 = 8
const RF: u32 = 0x10000
const BLOCK_STEP: usize = BLOCK_BYTES

/** The block to begin with; 0 = stopped at once. */
export function resume(s: usize): usize {
  store<u32>(s, 0, CPU_STOP_REASON)
  store<u32>(s, 0, CPU_LEAVE)
  store<u32>(s, 0, CPU_LINK)
  store<u32>(s, 0, CPU_OP)
  clampBudget(s)
  return enter(s)
}

/** Dropped blocks count 0x7fffffff instructions: the budget must always be nearer than that. */
function clampBudget(s: usize): void {
  const most = load<u64>(s, CPU_ICOUNT) + 0x40000000
  if (load<u64>(s, CPU_BUDGET) > most) store<u64>(s, most, CPU_BUDGET)
}

/** Looks the next block up, delivering fetch faults; 0 = stopped. Cuts it to one instruction for TF or a shadow. */
function enter(s: usize): usize {
  if (trapDue(s) && !taken(s, takeTrap(s))) return 0
  // Events come before the breakpoint and the faults of the next instruction (SDM vol 3, table 6-2).
  if (atomic.load<u64>(s, CPU_BUDGET) <= load<u64>(s, CPU_ICOUNT) && !attend(s)) return 0
  let n = breakpointOrBlock(s)
  while (!n) {
    store<u32>(s, 0, CPU_LINK)
    const leave = load<u32>(s, CPU_LEAVE)
    store<u32>(s, 0, CPU_LEAVE)
    if (leave != LEAVE_FAULT) {
      if (!load<u32>(s, CPU_STOP_REASON)) store<u32>(s, STOP_EXIT, CPU_STOP_REASON)
      return 0
    }
    if (!fault(s)) return 0
    n = breakpointOrBlock(s)
  }
  return stepping(s) ? cut(s, n, 1) : n
}

/**
 * Delivers the pending fault; false = stopped. A guest whose handlers fault at once retires nothing for ever, and the host must
 * get its CPU back all the same (on hardware its timer interrupts): from the 17th exception in a row each counts as an instruction.
 */
function fault(s: usize): bool {
  if (!taken(s, deliver(s))) return false
  const count = load<u64>(s, CPU_ICOUNT)
  if (load<u64>(s, CPU_STORM_AT) != count) {
    store<u64>(s, count, CPU_STORM_AT)
    store<u32>(s, 0, CPU_STORM)
    return true
  }
  const storm = load<u32>(s, CPU_STORM) + 1
  if (storm <= 16) {
    store<u32>(s, storm, CPU_STORM)
    return true
  }
  store<u64>(s, count + 1, CPU_ICOUNT)
  store<u64>(s, count + 1, CPU_STORM_AT)
  if (count + 1 < atomic.load<u64>(s, CPU_BUDGET)) return true
  if (!taken(s, pollEvents(s))) return false
  clampBudget(s)
  return count + 1 < load<u64>(s, CPU_SLICE_END) || taken(s, STOP_BUDGET)
}

/** The budget is spent at a boundary: events and timers, and a new budget. False = stopped. */
function attend(s: usize): bool {
  if (!taken(s, pollEvents(s))) return false
  clampBudget(s)
  const count = load<u64>(s, CPU_ICOUNT)
  if (load<u64>(s, CPU_BUDGET) > count) return true
  store<u64>(s, count + 1, CPU_BUDGET)
  return load<u64>(s, CPU_SLICE_END) > count || taken(s, STOP_BUDGET)
}

/** True if a delivery succeeded; else the stop is recorded. */
function taken(s: usize, stop: u32): bool {
  if (stop) store<u32>(s, stop, CPU_STOP_REASON)
  return stop == 0
}

/** The block at RIP; 0 with CPU_LEAVE set if the fetch faults or an instruction breakpoint is there. */
function breakpointOrBlock(s: usize): usize {
  return load<u32>(s, CPU_DEBUG_ARMED) && instructionBreakpoint(s) ? 0 : lookup(s)
}

/** One instruction at a time: TF, an interrupt shadow, armed breakpoints. */
function stepping(s: usize): bool {
  return (<u32>load<u64>(s, CPU_EFLAGS) & TF) != 0 || (load<u32>(s, CPU_INTERRUPT_SHADOW) | load<u32>(s, CPU_DEBUG_ARMED)) != 0
}

/** A copy of the first `count` instructions of a block, ended by PARTIAL_END; its chain slots are empty. */
function cut(s: usize, n: usize, count: u32): usize {
  const p = s + VCPU_PARTIAL
  memory.copy(p, n, SIZEOF_OP * (<usize>count + 1))
  store<u32>(p, count, BLOCK_COUNT)
  store<u32>(p, count, BLOCK_LENGTH)
  const rflags = <u32>load<u64>(s, CPU_EFLAGS)
  const flags: u32 =
    ((rflags & TF) != 0 ? STEP_TRAP : 0) |
    (load<u32>(s, CPU_INTERRUPT_SHADOW) != 0 ? STEP_SHADOW : 0) |
    (load<u32>(s, CPU_DEBUG_ARMED) != 0 ? ((rflags & RF) != 0 ? STEP_DEBUG | STEP_RESUME : STEP_DEBUG) : 0)
  store<u32>(p, count == 1 ? flags : 0, BLOCK_STEP)
  const last = p + SIZEOF_OP * <usize>count
  if (count == load<u32>(n, BLOCK_LENGTH) && isBranch(last)) {
    store<u32>(last, 0, OP_DISP)
    store<u32>(last, 0, OP_EXTRA)
    store<u8>(last, 0, 8)
  }
  const end = last + SIZEOF_OP
  // What a form relies on may be cut off.
  for (let op = p + SIZEOF_OP; op < end; op += SIZEOF_OP) store<u16>(op, <u16>plain(<u32>load<u16>(op)))
  memory.fill(end, 0, SIZEOF_OP)
  store<u16>(end, <u16>H_PARTIAL_END, OP_ID)
  store<u64>(end, <u64>load<u16>(last, OP_NEXT), OP_IMM)
  return p
}

/** Relative branches keep chain slots in OP_DISP and OP_EXTRA. */
function isBranch(op: usize): bool {
  const id = <u32>load<u16>(op)
  return chained(id)
}

/** After a block `b` left at `op` with nothing known to follow: acts on CPU_LEAVE and finds the next block; 0 = stopped. */
export function boundary(s: usize, b: usize, op: usize): usize {
  const leave = load<u32>(s, CPU_LEAVE)
  store<u32>(s, 0, CPU_LEAVE)
  store<u32>(s, 0, CPU_OP)
  const step: u32 = b == s + VCPU_PARTIAL ? load<u32>(b, BLOCK_STEP) : 0
  if (leave == 0) {
    if (step) return stepped(s, step)
    if (atomic.load<u64>(s, CPU_BUDGET) <= load<u64>(s, CPU_ICOUNT)) {
      store<u32>(s, 0, CPU_LINK)
      return enter(s)
    }
    const n = lookup(s)
    const link = <usize>load<u32>(s, CPU_LINK)
    store<u32>(s, 0, CPU_LINK)
    if (n) {
      if (link && !load<u32>(n, BLOCK_FRAME2)) store<u32>(link, <u32>n)
      return stepping(s) ? cut(s, n, 1) : n
    }
    return enter(s)
  }
  store<u32>(s, 0, CPU_LINK)
  const left = <u64>(load<u32>(b, BLOCK_LENGTH) - u32((op - b) / SIZEOF_OP - 1))
  const mask = load<u64>(s, CPU_RIP_MASK)
  switch (leave) {
    case LEAVE_FAULT:
    case LEAVE_EXIT_RETRY:
      store<u64>(s, load<u64>(s, CPU_ICOUNT) - left, CPU_ICOUNT)
      store<u64>(s, (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)) & mask, CPU_RIP)
      break
    case LEAVE_NEXT:
    case LEAVE_EXIT_NEXT:
      store<u64>(s, load<u64>(s, CPU_ICOUNT) - left + 1, CPU_ICOUNT)
      store<u64>(s, (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & mask, CPU_RIP)
      break
    default:
      store<u64>(s, load<u64>(s, CPU_ICOUNT) - left + 1, CPU_ICOUNT)
  }
  if (leave == LEAVE_FAULT) {
    // A faulting instruction in an interrupt shadow is the one the shadow was for.
    if (load<u32>(s, CPU_INTERRUPT_SHADOW)) {
      store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
      windowOpened(s)
    }
    return fault(s) ? enter(s) : 0
  }
  if (leave >= LEAVE_EXIT_RETRY) {
    if (leave != LEAVE_EXIT_RETRY) {
      if ((step & STEP_SHADOW) != 0) store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
      if (step & STEP_TRAP) {
        instructionRetired(s, true, (step & STEP_RESUME) != 0)
        // The trap ends HLT at once.
        if (load<u32>(s, CPU_STOP_REASON) == STOP_EVENT && load<u32>(s, CPU_HALTED) == 3) {
          store<u32>(s, 0, CPU_HALTED)
          store<u32>(s, 0, CPU_STOP_REASON)
          return enter(s)
        }
      }
    }
    if (!load<u32>(s, CPU_STOP_REASON)) store<u32>(s, STOP_EXIT, CPU_STOP_REASON)
    return 0
  }
  if (step) return stepped(s, step)
  return enter(s)
}

/** After a single-stepped instruction retired: ends the shadow that was active before it, notes the #DB trap of TF. */
function stepped(s: usize, step: u32): usize {
  store<u32>(s, 0, CPU_LINK)
  if (step & STEP_SHADOW) store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
  instructionRetired(s, (step & STEP_TRAP) != 0, (step & STEP_RESUME) != 0)
  return enter(s)
}

/** Entering `n` would pass the budget (or `n` was dropped): events, timers, the end of the slice; 0 = stopped. */
export function overBudget(s: usize, n: usize): usize {
  store<u32>(s, 0, CPU_OP)
  store<u32>(s, 0, CPU_LINK)
  if (load<u32>(n, BLOCK_COUNT) == 0x7fffffff) {
    n = enter(s)
    if (!n || load<u64>(s, CPU_ICOUNT) + <u64>load<u32>(n, BLOCK_COUNT) <= load<u64>(s, CPU_BUDGET)) return n
  }
  const count = load<u64>(s, CPU_ICOUNT)
  const budget = load<u64>(s, CPU_BUDGET)
  // An interrupt may have been injected: look up again.
  if (budget <= count) return attend(s) ? enterWithin(s) : 0
  return cut(s, n, u32(budget - count))
}

function enterWithin(s: usize): usize {
  const n = enter(s)
  if (!n) return 0
  const room = load<u64>(s, CPU_BUDGET) - load<u64>(s, CPU_ICOUNT)
  return <u64>load<u32>(n, BLOCK_COUNT) <= room ? n : cut(s, n, <u32>room)
}
