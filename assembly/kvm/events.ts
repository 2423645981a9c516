/**
 * Events and timers at block boundaries. Order as kvm_check_and_inject_events: INIT and SIPI, then NMI, then the
 * PIC's ExtINT, then the local APIC. The owner re-arms the budget before it re-reads the event word (design).
 */
import { deliverInterrupt, deliverNmi } from '../cpu/delivery'
import { controlFlags } from '../cpu/flags'
import {
  CHIP_HOST_WORK,
  CHIP_PIT_DEADLINE,
  CHIP_USER_DEADLINE,
  CPU_BUDGET,
  CPU_DEADLINE,
  CPU_EVENT,
  CPU_HALTED,
  CPU_ICOUNT,
  CPU_INTERRUPT_SHADOW,
  CPU_NMI_BLOCKED,
  CPU_SLICE_END,
  CPU_TIME_BASE,
  EVENT_FLUSH,
  EVENT_INIT,
  EVENT_INTERRUPT,
  EVENT_KICK,
  EVENT_NMI,
  EVENT_SIPI,
  EVENT_SMI,
  EVENT_TIMER,
  EVENT_WINDOW,
  LAPIC_TIMER_DEADLINE,
  STOP_BUDGET,
  STOP_DEAD,
  STOP_EVENT,
  STOP_EXIT,
  VKVM_EOI_EXIT,
  VKVM_HELD,
  VKVM_INTERRUPT,
  VKVM_NMI_PENDING,
  VKVM_REPLAY,
  CPU_GPR,
  VKVM_REPLAY_ICOUNT,
  VKVM_REPLAY_RCX,
  VKVM_PV_UNHALTED,
  VKVM_SIPI_VECTOR,
  VKVM_TPR_REPORT,
} from '../generated/layout'
import { FLAG_IF } from '../generated/registers'
import { KVM_EXIT_TPR_ACCESS } from '../generated/kvm'
import { exitEoi, exitWindow, stopForExit, windowOpen, windowWanted } from './exits'
import { apReset, apSipi } from './ap'
import { lapicAccept, lapicAcceptsPic, lapicHasInterrupt } from './lapic-state'
import { heldWakes } from './held'
import { enterSmm, inSmm, smiDue } from './smm'
import { apicSync, pvEoiOffer, vapicTo } from './pv'
import { timerExpire } from './lapic-timer'
import { picOutput, picRead } from './pic'
import { pitExpire } from './pit'
import { eventsBlocked } from './debug'
import { chipOf, clearEvent, INJECTED, kernelApic, lapicOf, NEVER, vkvm, vmOf } from './state'
import { now } from './time'

/** The nearest deadline that this vCPU must notice. */
export function nearestDeadline(s: usize): u64 {
  const chip = chipOf(vmOf(s))
  let at = load<u64>(lapicOf(s), LAPIC_TIMER_DEADLINE)
  if (chip) {
    const pit = load<u64>(chip, CHIP_PIT_DEADLINE)
    if (pit < at) at = pit
    const user = load<u64>(chip, CHIP_USER_DEADLINE)
    if (user < at) at = user
  }
  return at
}

/** Fires what is due. True if the VMM's own deadline is among it. */
export function expireTimers(s: usize): bool {
  const time = now(s)
  timerExpire(s, time)
  const chip = chipOf(vmOf(s))
  if (!chip) return false
  pitExpire(vmOf(s), time)
  return load<u64>(chip, CHIP_USER_DEADLINE) <= time
}

/** BUDGET = the slice's end or the nearest deadline, whichever comes first. */
export function rearm(s: usize): void {
  const at = nearestDeadline(s)
  store<u64>(s, at, CPU_DEADLINE)
  const base = load<u64>(s, CPU_TIME_BASE)
  let budget = load<u64>(s, CPU_SLICE_END)
  if (at != NEVER) {
    const icount = at > base ? at - base : 0
    if (icount < budget) budget = icount
  }
  atomic.store<u64>(s + CPU_BUDGET, budget)
}

/** A maskable interrupt is waiting (whether or not FLAG_IF lets it in). */
function interruptPending(s: usize): bool {
  if (load<u32>(vkvm(s), VKVM_INTERRUPT) != 0) return true
  if (!kernelApic(s)) return false
  return (lapicAcceptsPic(s) && picOutput(vmOf(s))) || lapicHasInterrupt(s) >= 0
}

/** Takes its vector: ExtINT before the local APIC. */
function takeVector(s: usize): u32 {
  const k = vkvm(s)
  const user = load<u32>(k, VKVM_INTERRUPT)
  if (user) {
    store<u32>(k, 0, VKVM_INTERRUPT)
    return user & 0xff
  }
  if (lapicAcceptsPic(s) && picOutput(vmOf(s))) return picRead(vmOf(s))
  const vector = <u32>lapicHasInterrupt(s)
  lapicAccept(s, vector)
  return vector
}

/** A halted vCPU has something to wake up for. */
export function wakes(s: usize): bool {
  const event = atomic.load<u32>(s + CPU_EVENT)
  if ((event & (EVENT_INIT | EVENT_SIPI)) != 0 && !inSmm(s)) return true
  if (smiDue(s) || heldWakes(s) || load<u32>(vkvm(s), VKVM_PV_UNHALTED) != 0) return true
  if (load<u32>(vkvm(s), VKVM_NMI_PENDING) != 0 && load<u32>(s, CPU_NMI_BLOCKED) == 0) return true
  return (controlFlags(s) & FLAG_IF) != 0 && interruptPending(s)
}

/** INIT and SIPI (kvm_apic_accept_events). */
export function acceptInit(s: usize): void {
  if (inSmm(s)) {
    // an INIT waits for RSM, a SIPI is lost
    clearEvent(s, EVENT_SIPI)
    return
  }
  const event = atomic.load<u32>(s + CPU_EVENT)
  if (event & EVENT_INIT) {
    clearEvent(s, EVENT_INIT)
    apReset(s)
  }
  if (atomic.load<u32>(s + CPU_EVENT) & EVENT_SIPI) {
    clearEvent(s, EVENT_SIPI)
    if (load<u32>(s, CPU_HALTED) == 2) apSipi(s, load<u32>(vkvm(s), VKVM_SIPI_VECTOR))
  }
}

function injectedInterrupt(k: usize): bool {
  return (load<u32>(k, VKVM_INTERRUPT) & INJECTED) != 0
}

/** One event that may come in now: 0 = there is none, 1 = delivered, else a STOP_* plus 2. */
function injectOne(s: usize): u32 {
  const k = vkvm(s)
  if (injectedInterrupt(k)) return delivered(deliverInterrupt(s, takeVector(s)))
  if (load<u32>(k, VKVM_NMI_PENDING) != 0 && load<u32>(s, CPU_NMI_BLOCKED) == 0) {
    const left = load<u32>(k, VKVM_NMI_PENDING) - 1
    store<u32>(k, left, VKVM_NMI_PENDING)
    if (left == 0) clearEvent(s, EVENT_NMI)
    return delivered(deliverNmi(s))
  }
  if ((controlFlags(s) & FLAG_IF) == 0) return 0
  if (!interruptPending(s)) {
    clearEvent(s, EVENT_INTERRUPT)
    return 0
  }
  const stop = deliverInterrupt(s, takeVector(s))
  if (kernelApic(s)) {
    pvEoiOffer(s)
    vapicTo(s)
  }
  return delivered(stop)
}

function delivered(stop: u32): u32 {
  return stop == 0 ? 1 : stop + 2
}

/** Handlers that are entered with nothing executed before the next event comes in; a guest without end gets its turn. */
const NESTED: u32 = 4

/** Injects what may come in now: one into the other's handler if its gate lets it (KVM leaves at once to do so). 0, or a STOP_*. */
function inject(s: usize): u32 {
  for (let i: u32 = 0; i < NESTED; i++) {
    const one = injectOne(s)
    if (one != 1) return one == 0 ? 0 : one - 2
  }
  const next = load<u64>(s, CPU_ICOUNT) + 1
  if (next < load<u64>(s, CPU_BUDGET)) store<u64>(s, next, CPU_BUDGET)
  return 0
}

/** The host queued an NMI or an interrupt without the event word (KVM_SET_VCPU_EVENTS, KVM_INTERRUPT). */
export function injected(k: usize): bool {
  return load<u32>(k, VKVM_NMI_PENDING) != 0 || load<u32>(k, VKVM_INTERRUPT) != 0
}

/** Their bits in the event word. */
export function injectedEvents(k: usize): u32 {
  return (load<u32>(k, VKVM_NMI_PENDING) != 0 ? EVENT_NMI : 0) | (load<u32>(k, VKVM_INTERRUPT) != 0 ? EVENT_INTERRUPT : 0)
}

/** VKVM_REPLAY: the instruction whose access was completed runs, and nothing behind it (immediate_exit). */
export const REPLAY_ALONE: u32 = 2

/** Called by the loop when ICOUNT would pass BUDGET. 0 = go on, else STOP_*. */
export function pollEvents(s: usize): u32 {
  const k = vkvm(s)
  const icount = load<u64>(s, CPU_ICOUNT)
  if (load<u32>(k, VKVM_REPLAY)) {
    if (icount == load<u64>(k, VKVM_REPLAY_ICOUNT) && load<u64>(s, CPU_GPR + 8) == load<u64>(k, VKVM_REPLAY_RCX)) {
      // the instruction whose I/O was completed runs before anything else
      store<u64>(s, icount + 1, CPU_BUDGET)
      return 0
    }
    const alone = load<u32>(k, VKVM_REPLAY) == REPLAY_ALONE
    store<u32>(k, 0, VKVM_REPLAY)
    if (alone && icount >= load<u64>(s, CPU_SLICE_END)) return STOP_BUDGET
    // What userspace injected waited for its end.
    if (load<u32>(k, VKVM_HELD) != 0) return STOP_EVENT
  }
  const user = expireTimers(s)
  rearm(s)
  if (load<u32>(k, VKVM_TPR_REPORT) & 2) {
    store<u32>(k, 1, VKVM_TPR_REPORT)
    stopForExit(s, KVM_EXIT_TPR_ACCESS)
    return STOP_EXIT
  }
  const eoi = load<u32>(k, VKVM_EOI_EXIT)
  if (eoi) {
    store<u32>(k, 0, VKVM_EOI_EXIT)
    exitEoi(s, eoi & 0xff)
    return STOP_EXIT
  }
  const chip = chipOf(vmOf(s))
  if (chip && load<u32>(chip, CHIP_HOST_WORK) != 0) return STOP_EVENT
  const event = atomic.load<u32>(s + CPU_EVENT)
  if (event || injected(k)) {
    apicSync(s)
    clearEvent(s, EVENT_TIMER | EVENT_FLUSH)
    if (event & EVENT_KICK) return STOP_EVENT
    if (event & (EVENT_INIT | EVENT_SIPI)) {
      acceptInit(s)
      if (load<u32>(s, CPU_HALTED) != 0) return STOP_EVENT
    }
    const blocked = eventsBlocked(s)
    if ((event & EVENT_SMI) != 0 && !blocked) {
      if (smiDue(s) && !enterSmm(s)) return STOP_DEAD
      clearEvent(s, EVENT_SMI)
    }
    if (load<u32>(s, CPU_INTERRUPT_SHADOW) != 0 && !injectedInterrupt(k)) {
      // one more instruction first; the loop ends the shadow after it
      if (icount + 1 < load<u64>(s, CPU_BUDGET)) store<u64>(s, icount + 1, CPU_BUDGET)
      return icount >= load<u64>(s, CPU_SLICE_END) ? STOP_BUDGET : 0
    }
    if (!blocked && ((event & (EVENT_NMI | EVENT_INTERRUPT)) != 0 || injected(k))) {
      const stop = inject(s)
      if (stop) return stop
    }
    if ((event & EVENT_WINDOW) != 0 && windowWanted(s) && windowOpen(s)) {
      clearEvent(s, EVENT_WINDOW)
      exitWindow(s)
      return STOP_EXIT
    }
  }
  if (user) return STOP_EVENT
  return icount >= load<u64>(s, CPU_SLICE_END) ? STOP_BUDGET : 0
}
