/**
 * Leaving a repeated string instruction between two iterations (SDM vol 2, REP; vol 3, 17.3.1.1). The instruction counts when its
 * repetition ends, and once each time it gives way: then time goes on, and timers, budgets and other vCPUs have their turn after at
 * most 64 KiB or, at ports, as soon as one is due. Interrupts find RF as it is, traps set it in the image (both measured on Zen 4).
 */
import {
  CPU_BUDGET,
  CPU_DEBUG_ARMED,
  CPU_EFLAGS,
  CPU_ICOUNT,
  CPU_LEAVE,
  CPU_PENDING_DB,
  CPU_REPEATED,
  CPU_RIP,
  CPU_STEP_CANCEL,
  LEAVE_BRANCH,
} from '../generated/layout'
import { FLAG_TF } from '../generated/registers'
import { REPEATS } from '../cpu/debug'
import { singleStepping } from '../kvm/debug'
import { exactCount } from './count'
import { currentRip } from './linear'

/** Bytes of one uninterrupted stretch of a repetition. */
const STRETCH: u32 = 0x10000

/** What a repetition did before it was left early. Forgotten by whatever else ends this run of it. */
export function takeRepeated(s: usize): u32 {
  const done = load<u32>(s, CPU_REPEATED)
  if (done) store<u32>(s, 0, CPU_REPEATED)
  return done
}

/** Iterations of a stretch of which `done` bytes are done; single-stepping one at a time. */
export function stretch(s: usize, count: u64, shift: u32, done: u32): u64 {
  if ((load<u64>(s, CPU_EFLAGS) & FLAG_TF) != 0 || singleStepping(s)) return 1
  return min(count, <u64>((STRETCH - done) >> shift))
}

/** A data breakpoint was hit, or the budget was lowered while the instruction runs: a timer is due, an event came. */
export function disturbed(s: usize): bool {
  if (load<u32>(s, CPU_PENDING_DB) != 0) return true
  const budget = atomic.load<u64>(s + CPU_BUDGET)
  return budget <= load<u64>(s, CPU_ICOUNT) && budget <= exactCount(s)
}

/** Leaves the block to come back to this same instruction. A single step (FLAG_TF) is no end of a stretch and does not count. */
export function giveWay(s: usize, op: usize): u32 {
  const stepping = (load<u64>(s, CPU_EFLAGS) & FLAG_TF) != 0
  return comeBack(s, op, !stepping, stepping)
}

/**
 * Leaves it because a store must be noticed (code that runs was changed, a device wrote events): that depends on how the code
 * around was cut into blocks, and must not show in the count.
 */
export function giveWayEarly(s: usize, op: usize, done: u32): u32 {
  const stepping = (load<u64>(s, CPU_EFLAGS) & FLAG_TF) != 0
  const counts = done >= STRETCH
  if (!counts && !stepping) store<u32>(s, done, CPU_REPEATED)
  return comeBack(s, op, counts && !stepping, stepping)
}

function comeBack(s: usize, op: usize, counts: bool, stepping: bool): u32 {
  store<u64>(s, currentRip(s, op), CPU_RIP)
  if (!counts) store<u64>(s, load<u64>(s, CPU_ICOUNT) - 1, CPU_ICOUNT)
  if (stepping || load<u32>(s, CPU_DEBUG_ARMED) != 0) store<u32>(s, REPEATS, CPU_STEP_CANCEL)
  store<u32>(s, LEAVE_BRANCH, CPU_LEAVE)
  return LEAVE_BRANCH
}
