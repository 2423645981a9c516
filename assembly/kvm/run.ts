/**
 * KVM_RUN: completes what userspace was asked for, runs, and fills struct kvm_run (kvm_arch_vcpu_ioctl_run and vcpu_run of
 * Linux 7.3 arch/x86/kvm/x86.c). Blocking is virtual: a halted vCPU lets time jump to the next deadline.
 */
import { deliverAgain, deliverException } from '../cpu/delivery'
import { controlFlags } from '../cpu/flags'
import { execute } from '../generated/execute'
import { FLAG_IF } from '../generated/registers'
import { RUN_CR8, RUN_EXIT_REASON, RUN_IMMEDIATE_EXIT } from '../generated/kvm'
import {
  CHIP_HOST_WORK,
  CHIP_RUNNING,
  CHIP_USER_DEADLINE,
  CPU_BUDGET,
  CPU_CR8,
  CPU_EVENT,
  CPU_HALTED,
  CPU_ICOUNT,
  CPU_RIP,
  CPU_SLICE_END,
  CPU_STOP_DETAIL,
  CPU_STOP_INFO,
  CPU_STOP_REASON,
  CPU_STOP_NAME,
  CPU_TRIPLE_FAULT,
  EVENT_KICK,
  PENDING_MMIO_MORE,
  PENDING_MMIO_WRITE,
  PENDING_NONE,
  EXITS_HLT,
  EVENT_SMI,
  EXC_GP,
  EVENT_WINDOW,
  STOP_BUDGET,
  STOP_DEAD,
  STOP_EVENT,
  STOP_EXIT,
  STOP_FETCH_MMIO,
  STOP_MEMORY_FAULT,
  STOP_OUT_OF_MEMORY,
  STOP_RING_FULL,
  STOP_SHUTDOWN,
  STOP_UNIMPLEMENTED,
  UNIMPLEMENTED_DELIVERY_MMIO,
  VKVM_AGAIN,
  VKVM_BLOCKED_AT,
  VKVM_BLOCKED_ONCE,
  VKVM_HELD,
  VKVM_INJECT_GP,
  VKVM_PENDING,
  VKVM_PROTECTED,
  VKVM_PV_UNHALTED,
  VKVM_REPLAY,
  VKVM_WHY,
  VM_CLOCK,
  VM_VCPU_COUNT,
  VM_VCPUS,
  WHY_BLOCKED,
  WHY_BUDGET,
  WHY_HALTED_FOREVER,
  WHY_HOST,
  WHY_KICK,
  WHY_NONE,
  WHY_USER_DEADLINE,
  WHY_WAIT_SIPI,
} from '../generated/layout'
import { apReset } from './ap'
import { ringSync } from './coalesced'
import { complete } from './complete'
import { eventsBlocked, exitStep, singleStepping } from './debug'
import { finishWrite, nextPiece } from './posted'
import { injectHeld } from './held'
import { acceptInit, expireTimers, injected, injectedEvents, nearestDeadline, REPLAY_ALONE, rearm, wakes } from './events'
import {
  exitIntr,
  exitMemoryFault,
  exitRingFull,
  exitShutdown,
  exitVectoring,
  exitWindow,
  saveRunState,
  userApic,
  windowOpen,
  windowWanted,
} from './exits'
import { exitEmulation } from './emulation'
import { unmapGhcb } from './ghcb'
import { esEnter, esLeave } from './vmsa'
import { apicSync, pvEnter, pvLeave, pvUpdate } from './pv'
import { enterSmm, enterSpace, inSmm, smiDue, smmChanged } from './smm'
import { chipOf, clearEvent, exitsDisabled, isSevEs, NEVER, runOf, signal, vkvm, vmOf } from './state'
import { giveClock, now, takeClock } from './time'
import { ringFull, ringRun } from '../memory/dirty-ring'
import { slotSpace } from '../memory/slots'

const EINTR: i32 = -4
const EIO: i32 = -5
const ENOMEM: i32 = -12
const EINVAL: i32 = -22
const EFAULT: i32 = -14

/** Timers that fire without waking a halted vCPU, per call: then the host looks after the others. */
const FUTILE_SKIPS: u32 = 10000

/** -EINTR with the reason kept for the host. */
function interrupted(s: usize, why: u32): i32 {
  store<u32>(vkvm(s), why, VKVM_WHY)
  exitIntr(s)
  return EINTR
}

/** Another vCPU of the VM could run instead. */
function othersRunnable(s: usize): bool {
  const vm = vmOf(s)
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const other: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (!other || other == s) continue
    if (load<u32>(other, CPU_HALTED) == 0 || wakes(other)) return true
  }
  return false
}

/** The nearest deadline of any other vCPU that a timer can wake. */
function othersDeadline(s: usize): u64 {
  const vm = vmOf(s)
  let at = NEVER
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const other: usize = load<u32>(vm + VM_VCPUS + (i << 2))
    if (!other || other == s || load<u32>(other, CPU_HALTED) != 3 || (controlFlags(other) & FLAG_IF) == 0) continue
    const mine = nearestDeadline(other)
    if (mine < at) at = mine
  }
  return at
}

/** Lets the clock jump to `at`. */
function skipTo(s: usize, at: u64): void {
  const time = now(s)
  if (at > time) store<u64>(vmOf(s), at, VM_CLOCK)
  else store<u64>(vmOf(s), time, VM_CLOCK)
  takeClock(s)
}

/**
 * kvm_vcpu_block in virtual time. 0 = runnable, else -EINTR. If the others can run they go first, unless nobody ran since this
 * vCPU said so last time (a host that runs one vCPU only must not hang).
 */
function block(s: usize): i32 {
  const k = vkvm(s)
  for (let futile: u32 = 0; futile < FUTILE_SKIPS; futile++) {
    acceptInit(s)
    apicSync(s)
    const state = load<u32>(s, CPU_HALTED)
    if (state == 0) break
    if (atomic.load<u32>(s + CPU_EVENT) & EVENT_KICK) return 0
    // What fell due while others ran: they may never halt.
    if (nearestDeadline(s) <= now(s)) expireTimers(s)
    if ((state == 3 || state == 9) && wakes(s)) {
      // AP reset hold ends by SIPI or, with value 0, by any other event
      store<u32>(s, 0, CPU_HALTED)
      store<u32>(k, 0, VKVM_PV_UNHALTED)
      break
    }
    const time = now(s)
    const repeated = load<u32>(k, VKVM_BLOCKED_ONCE) != 0 && load<u64>(k, VKVM_BLOCKED_AT) == time
    if (!repeated && othersRunnable(s)) {
      store<u32>(k, 1, VKVM_BLOCKED_ONCE)
      store<u64>(k, time, VKVM_BLOCKED_AT)
      return interrupted(s, state == 3 ? WHY_BLOCKED : WHY_WAIT_SIPI)
    }
    // with FLAG_IF clear no timer of its own wakes it
    const chip = chipOf(vmOf(s))
    const user = chip ? load<u64>(chip, CHIP_USER_DEADLINE) : NEVER
    const own = state == 3 && (controlFlags(s) & FLAG_IF) != 0 ? nearestDeadline(s) : user
    const others = othersDeadline(s)
    if (own == NEVER && others == NEVER)
      return interrupted(s, othersRunnable(s) ? WHY_BLOCKED : state == 3 ? WHY_HALTED_FOREVER : WHY_WAIT_SIPI)
    if (others < own) {
      skipTo(s, others)
      store<u32>(k, 1, VKVM_BLOCKED_ONCE)
      store<u64>(k, now(s), VKVM_BLOCKED_AT)
      return interrupted(s, WHY_BLOCKED)
    }
    skipTo(s, own)
    if (expireTimers(s)) return interrupted(s, WHY_USER_DEADLINE)
  }
  store<u32>(k, 0, VKVM_BLOCKED_ONCE)
  return load<u32>(s, CPU_HALTED) == 0 ? 0 : interrupted(s, WHY_BLOCKED)
}

/** The loop of vcpu_run: 0 = exit filled in, else a negative errno. */
function loop(s: usize, started: u64): i32 {
  const k = vkvm(s)
  let emulated = true
  while (true) {
    if (singleStepping(s) && load<u64>(s, CPU_ICOUNT) != started) {
      exitStep(s, emulated)
      return 0
    }
    const devices = chipOf(vmOf(s))
    if (devices && load<u32>(devices, CHIP_HOST_WORK) != 0) return interrupted(s, WHY_HOST)
    if (load<u32>(s, CPU_HALTED) != 0) {
      const result = block(s)
      if (result) return result
    }
    if (atomic.load<u32>(s + CPU_EVENT) & EVENT_KICK) {
      clearEvent(s, EVENT_KICK)
      return interrupted(s, WHY_KICK)
    }
    if (ringFull(vmOf(s), s)) {
      exitRingFull(s)
      return 0
    }
    if (windowWanted(s)) {
      if (windowOpen(s)) {
        exitWindow(s)
        return 0
      }
      signal(s, EVENT_WINDOW)
    }
    if (load<u64>(s, CPU_ICOUNT) >= load<u64>(s, CPU_SLICE_END)) {
      store<u32>(s, STOP_BUDGET, CPU_STOP_REASON)
      return interrupted(s, WHY_BUDGET)
    }
    if (isSevEs(s)) unmapGhcb(s)
    pvUpdate(s)
    rearm(s)
    if (atomic.load<u32>(s + CPU_EVENT) != 0 || injected(k)) signal(s, injectedEvents(k))
    if (smiDue(s)) signal(s, EVENT_SMI)
    let stop: u32 = 0
    if (load<u32>(k, VKVM_INJECT_GP)) {
      // userspace failed an MSR access
      store<u32>(k, 0, VKVM_INJECT_GP)
      stop = deliverException(s, EXC_GP, true, 0)
    }
    if (stop == 0 && load<u32>(k, VKVM_AGAIN)) stop = deliverAgain(s)
    if (load<u32>(k, VKVM_REPLAY) != 0) {
      // complete_userspace_io comes before all that is injected at the entry: pollEvents sees to both.
      if (load<u32>(k, VKVM_HELD) != 0) atomic.store<u64>(s + CPU_BUDGET, 0)
    } else if (stop == 0) {
      const held = injectHeld(s)
      if (held > 1) stop = held - 2
    }
    // Before the first fetch: the code at RIP may not be there.
    if (stop == 0 && smiDue(s) && load<u32>(k, VKVM_REPLAY) == 0 && !eventsBlocked(s) && !enterSmm(s)) stop = STOP_DEAD
    if (stop == 0) {
      emulated = load<u32>(k, VKVM_REPLAY) != 0
      execute(s)
      stop = load<u32>(s, CPU_STOP_REASON)
    }
    switch (stop) {
      case STOP_EXIT:
        return load<i32>(k, VKVM_WHY) < 0 ? load<i32>(k, VKVM_WHY) : 0
      case STOP_BUDGET:
        if (singleStepping(s) && load<u64>(s, CPU_ICOUNT) != started) {
          exitStep(s, emulated)
          return 0
        }
        return interrupted(s, WHY_BUDGET)
      case STOP_UNIMPLEMENTED:
        if (load<u32>(s, CPU_STOP_NAME) == UNIMPLEMENTED_DELIVERY_MMIO) {
          exitVectoring(s)
          return 0
        }
      case STOP_FETCH_MMIO: // the emulator cannot fetch either
        exitEmulation(s)
        return 0
      case STOP_OUT_OF_MEMORY: // the size budget: as when the host has no page for a fault
        return ENOMEM
      case STOP_MEMORY_FAULT:
        exitMemoryFault(s, load<u64>(s, CPU_STOP_DETAIL), load<u64>(s, CPU_STOP_INFO) != 0)
        return EFAULT
      case STOP_RING_FULL:
        exitRingFull(s)
        return 0
      case STOP_DEAD:
        return EIO
      case STOP_SHUTDOWN: {
        exitShutdown(s)
        // shutdown_interception: the VMCB is undefined now, an ordinary vCPU gets INIT; RIP stays readable for the report
        store<u64>(s, load<u64>(s, CPU_RIP), CPU_STOP_DETAIL)
        if (load<u32>(k, VKVM_PROTECTED) == 0 && load<u32>(s, CPU_TRIPLE_FAULT) == 1) {
          if (inSmm(s)) smmChanged(s, false)
          apReset(s)
          store<u32>(s, 0, CPU_HALTED)
        }
        store<u32>(s, 0, CPU_TRIPLE_FAULT)
        return 0
      }
      case STOP_EVENT: {
        const chip = chipOf(vmOf(s))
        if (load<u32>(s, CPU_HALTED) == 0 && chip && load<u64>(chip, CHIP_USER_DEADLINE) <= now(s)) return interrupted(s, WHY_USER_DEADLINE)
        break
      }
      default:
        break
    }
  }
}

/** KVM_RUN. At most `maxInstructions` are retired. */
export function vcpuRun(s: usize, maxInstructions: u64): i32 {
  const k = vkvm(s)
  const chip = chipOf(vmOf(s))
  const immediate = load<u8>(runOf(s), RUN_IMMEDIATE_EXIT) != 0
  store<i32>(k, WHY_NONE, VKVM_WHY)
  takeClock(s)
  ringRun(s)
  enterSpace(s)
  pvEnter(s)
  ringSync(vmOf(s))
  if (chip) store<u32>(chip, <u32>s, CHIP_RUNNING)
  // The processor itself waits in HLT, and goes on behind it at the next entry.
  if (load<u32>(s, CPU_HALTED) == 3 && userApic(s) && exitsDisabled(s, EXITS_HLT)) store<u32>(s, 0, CPU_HALTED)
  const icount = load<u64>(s, CPU_ICOUNT)
  const room = NEVER - icount
  store<u64>(s, icount + (maxInstructions < room ? maxInstructions : room), CPU_SLICE_END)
  if (singleStepping(s) && maxInstructions != 0) store<u64>(s, icount + 1, CPU_SLICE_END)
  let result: i32 = load<u32>(k, VKVM_PENDING) != 0 && load<u32>(s, CPU_HALTED) == 1 ? uninitialized(s, immediate) : 0
  if (result == 0) result = userCr8(s) ? esEnter(s) : EINVAL
  if (result == 0) {
    if (load<u32>(k, VKVM_PENDING) == PENDING_MMIO_MORE) {
      store<u32>(k, PENDING_NONE, VKVM_PENDING)
      result = nextPiece(s) ? 0 : 1
    } else result = load<u32>(k, VKVM_PENDING) != 0 ? complete(s) : 1
    if (result > 0) {
      if (immediate) {
        // wants_to_run is 0: the instruction whose access was completed ends, then -EINTR, and exit_reason stays what it was
        result = load<u32>(k, VKVM_REPLAY) != 0 ? finish(s, icount) : EINTR
        if (result == EINTR) store<u32>(k, WHY_KICK, VKVM_WHY)
      } else {
        // Userspace may have said since then that this vCPU is halted: the access is completed all the same.
        if (load<u32>(k, VKVM_REPLAY) != 0 && load<u32>(s, CPU_HALTED) != 0) {
          const end = load<u64>(s, CPU_SLICE_END)
          result = finish(s, icount)
          store<u64>(s, end, CPU_SLICE_END)
        } else result = EINTR
        if (result == EINTR) result = loop(s, icount)
      }
    }
  } else if (result > 0) {
    // What VMRUN refuses comes after the events: an SMI without a save area kills the VM first.
    result = !immediate && smiDue(s) && !enterSmm(s) ? EIO : 0
  }
  if (result == 0 && load<u32>(k, VKVM_PENDING) == PENDING_MMIO_WRITE) finishWrite(s)
  pvLeave(s)
  saveRunState(s)
  esLeave(s)
  ringRun(0)
  slotSpace(0)
  if (chip) store<u32>(chip, 0, CHIP_RUNNING)
  giveClock(s)
  return result
}

/** KVM_MP_STATE_UNINITIALIZED over an open access: kvm_arch_vcpu_ioctl_run waits for INIT before it looks at the access. */
function uninitialized(s: usize, immediate: bool): i32 {
  if (!immediate) {
    const result = block(s)
    if (result != 0 || load<u32>(s, CPU_HALTED) != 1) return result
    clearEvent(s, EVENT_KICK)
    return interrupted(s, WHY_KICK)
  }
  store<u32>(vkvm(s), WHY_KICK, VKVM_WHY)
  return EINTR
}

/** complete_emulated_mmio: runs the instruction at RIP to its end, or to its next exit. */
function finish(s: usize, icount: u64): i32 {
  const reason = load<u32>(runOf(s), RUN_EXIT_REASON)
  const halted = load<u32>(s, CPU_HALTED)
  store<u32>(s, 0, CPU_HALTED)
  store<u64>(s, icount + 1, CPU_SLICE_END)
  store<u32>(vkvm(s), REPLAY_ALONE, VKVM_REPLAY)
  const result = loop(s, icount)
  if (halted != 0) store<u32>(s, halted, CPU_HALTED)
  if (result == EINTR) store<u32>(runOf(s), reason, RUN_EXIT_REASON)
  return result
}

/** "Re-sync apic's tpr": without a local APIC in the kernel CR8 is what kvm_run says, and more than four bits are -EINVAL. */
function userCr8(s: usize): bool {
  if (!userApic(s) || load<u32>(vkvm(s), VKVM_PROTECTED) != 0) return true
  const value = load<u64>(runOf(s), RUN_CR8)
  if (value > 15) return false
  store<u64>(s, value, CPU_CR8)
  return true
}

/** As vcpuRun; the name that says what the host's run loop uses it for. */
export function vcpuRunSlice(s: usize, instructions: u64): i32 {
  return vcpuRun(s, instructions)
}

/** Why the last KVM_RUN returned -EINTR (WHY_*). */
export function vcpuWhy(s: usize): u32 {
  return load<u32>(vkvm(s), VKVM_WHY)
}

/** vcpu.kick(): callable from another thread. */
export function vcpuKick(s: usize): void {
  signal(s, EVENT_KICK)
}
