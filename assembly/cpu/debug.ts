/**
 * Debug registers at work: instruction and data breakpoints, and the trap-class #DB that waits for the
 * end of an instruction (SDM vol 3, 17.2, 17.3; APM vol 2, 13.1). While a breakpoint is armed the loop
 * runs one instruction at a time (execute/boundary.ts), and pages with watched bytes get no TLB tags.
 * Owns CPU_DEBUG_ARMED, CPU_PENDING_DB, CPU_STEP_CANCEL.
 */
import {
  CPU_DEBUG_ARMED,
  CPU_DR6,
  CPU_EFLAGS,
  CPU_INTERRUPT_SHADOW,
  CPU_LEAVE,
  CPU_PENDING_DB,
  CPU_RIP,
  CPU_STEP_CANCEL,
  DEBUG_DATA,
  DEBUG_EXEC,
  EXC_DB,
  LEAVE_EXIT_RETRY,
  STOP_EXIT,
  MODE_CS64,
  MODE_CS_MASK,
  CPU_MODE,
  SEG_BASE,
  SEG_CS,
} from '../generated/layout'
import { FLAG_RF } from '../generated/registers'
import { exitBreakpoint } from '../kvm/debug'
import { flushTlb } from '../memory/tlb'
import { deliverTrap } from './delivery'
import { raise } from './exceptions'
import { activeDr, activeDr7, hostBreakpoints } from './watch'
import { segment } from './mode'

const DR6_BS: u32 = 0x4000

/** After DR0..DR3 or DR7 changed: what is armed. */
export function updateDebug(s: usize): void {
  const dr7 = activeDr7(s)
  let armed: u32 = 0
  for (let n: u32 = 0; n < 4; n++) {
    if (((dr7 >> (n << 1)) & 3) == 0) continue
    const kind = (dr7 >> (16 + (n << 2))) & 3
    if (kind == 0) armed |= DEBUG_EXEC
    else if (kind != 2) armed |= DEBUG_DATA
  }
  const old = load<u32>(s, CPU_DEBUG_ARMED)
  store<u32>(s, armed, CPU_DEBUG_ARMED)
  if ((armed | old) & DEBUG_DATA) flushTlb(s)
}

/** An instruction breakpoint at the current RIP, unless RF is set: raises #DB as a fault. True: raised. */
export function instructionBreakpoint(s: usize): bool {
  if ((load<u32>(s, CPU_DEBUG_ARMED) & DEBUG_EXEC) == 0 || (load<u64>(s, CPU_EFLAGS) & FLAG_RF) != 0) return false
  let at = load<u64>(s, CPU_RIP)
  if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) != MODE_CS64) at = (at + load<u64>(segment(s, SEG_CS), SEG_BASE)) & 0xffffffff
  const dr7 = activeDr7(s)
  let hit: u32 = 0
  for (let n: u32 = 0; n < 4; n++) {
    if (((dr7 >> (n << 1)) & 3) == 0 || ((dr7 >> (16 + (n << 2))) & 3) != 0) continue
    if (activeDr(s, n) == at) hit |= 1 << n
  }
  if (!hit) return false
  if (hostBreakpoints(s)) {
    exitBreakpoint(s, hit)
    store<u32>(s, LEAVE_EXIT_RETRY, CPU_LEAVE)
    return true
  }
  store<u64>(s, (load<u64>(s, CPU_DR6) & ~(<u64>15)) | <u64>hit, CPU_DR6)
  raise(s, EXC_DB)
  return true
}

/** CPU_STEP_CANCEL: not retired, a repetition has iterations left. */
export const REPEATS: u32 = 2

/** An instruction that began with TF set (`trap`) or RF set (`resumed`) has retired. */
export function instructionRetired(s: usize, trap: bool, resumed: bool): void {
  if (load<u32>(s, CPU_STEP_CANCEL) == REPEATS) {
    // RF lasts as long as the repetition, and is set in the image that a trap between its iterations leaves.
    store<u32>(s, 0, CPU_STEP_CANCEL)
    if (trap) store<u32>(s, load<u32>(s, CPU_PENDING_DB) | DR6_BS, CPU_PENDING_DB)
    if (load<u32>(s, CPU_PENDING_DB)) store<u64>(s, load<u64>(s, CPU_EFLAGS) | FLAG_RF, CPU_EFLAGS)
    return
  }
  if (resumed) store<u64>(s, load<u64>(s, CPU_EFLAGS) & ~FLAG_RF, CPU_EFLAGS)
  if (load<u32>(s, CPU_STEP_CANCEL)) store<u32>(s, 0, CPU_STEP_CANCEL)
  else if (trap) store<u32>(s, load<u32>(s, CPU_PENDING_DB) | DR6_BS, CPU_PENDING_DB)
}

/** A trap-class #DB is due at this boundary; MOV SS holds it for one instruction. */
export function trapDue(s: usize): bool {
  return load<u32>(s, CPU_PENDING_DB) != 0 && load<u32>(s, CPU_INTERRUPT_SHADOW) != 2
}

/** Delivers it: B0..B3 are replaced, BS is added. 0, or STOP_*. */
export function takeTrap(s: usize): u32 {
  const bits = load<u32>(s, CPU_PENDING_DB)
  if ((bits & 15) != 0 && hostBreakpoints(s)) {
    store<u32>(s, 0, CPU_PENDING_DB)
    exitBreakpoint(s, bits)
    return STOP_EXIT
  }
  if (bits & 15) store<u64>(s, load<u64>(s, CPU_DR6) & ~(<u64>15), CPU_DR6)
  return deliverTrap(s, bits)
}
