/** Local APIC timer: one-shot, periodic and TSC-deadline as one deadline in virtual time (bus clock 1 GHz unless userspace sets another). */
import { lapicLocal } from './lapic-delivery'
import { reg, setReg } from './lapic-state'
import { lapicOf, NEVER, signal, vmOf } from './state'
import { now, tscToNs } from './time'
import {
  APIC_LVTT,
  APIC_TDCR,
  APIC_TMCCT,
  APIC_TMICT,
  EVENT_TIMER,
  LAPIC_PERIOD,
  LAPIC_TIMER_DEADLINE,
  LAPIC_TIMER_START,
  LAPIC_TSC_DEADLINE,
  VM_APIC_BUS_NS,
} from '../generated/layout'

/** KVM: min_timer_period_us, against interrupt storms of periodic timers. */
const MIN_PERIOD: u64 = 200000
const MODE: u32 = 0x60000
const PERIODIC: u32 = 0x20000
const DEADLINE: u32 = 0x40000

function divisor(a: usize): u64 {
  return divisorOf(reg(a, APIC_TDCR))
}
function divisorOf(t: u32): u64 {
  return (1 as u64) << (((((t & 3) | ((t & 8) >> 1)) + 1) & 7) as u64)
}

/** KVM_CAP_X86_APIC_BUS_CYCLES_NS. */
function busNs(s: usize): u64 {
  return load<u64>(vmOf(s), VM_APIC_BUS_NS)
}

function arm(s: usize, at: u64): void {
  store<u64>(lapicOf(s), at, LAPIC_TIMER_DEADLINE)
  signal(s, EVENT_TIMER)
}

export function timerCancel(s: usize): void {
  store<u64>(lapicOf(s), NEVER, LAPIC_TIMER_DEADLINE)
}

/** start_apic_timer. */
export function timerStart(s: usize): void {
  begin(s, false)
}

/** kvm_apic_set_state: goes on from the current count; a one-shot timer that has run down fires at once. */
export function timerRestore(s: usize): void {
  begin(s, true)
  setReg(lapicOf(s), APIC_TMCCT, 0)
}

/** set_target_expiration. */
function begin(s: usize, restore: bool): void {
  const a = lapicOf(s)
  const mode = reg(a, APIC_LVTT) & MODE
  timerCancel(s)
  if (mode == DEADLINE) {
    const tsc = load<u64>(a, LAPIC_TSC_DEADLINE)
    if (tsc != 0) arm(s, tscToNs(s, tsc))
    return
  }
  const ns = <u64>reg(a, APIC_TMICT) * divisor(a) * busNs(s)
  if (ns == 0) return
  const time = now(s)
  store<u64>(a, time, LAPIC_TIMER_START)
  const period = mode == PERIODIC && ns < MIN_PERIOD ? MIN_PERIOD : ns
  store<u64>(a, period, LAPIC_PERIOD)
  let left = period
  if (restore) {
    const count = <u64>reg(a, APIC_TMCCT) * divisor(a) * busNs(s)
    if (count != 0 || mode != PERIODIC) left = min<u64>(count, period)
  }
  arm(s, time + left)
}

/** APIC_TDCR was `old` (update_target_expiration): a running timer keeps the count that is left. */
export function timerDivided(s: usize, old: u32): void {
  const a = lapicOf(s)
  const mode = reg(a, APIC_LVTT) & MODE
  const deadline = load<u64>(a, LAPIC_TIMER_DEADLINE)
  const before = divisorOf(old)
  if (mode == DEADLINE || load<u64>(a, LAPIC_PERIOD) == 0 || before == divisor(a)) return
  const time = now(s)
  const ns = <u64>reg(a, APIC_TMICT) * divisor(a) * busNs(s)
  if (ns == 0) return
  store<u64>(a, mode == PERIODIC && ns < MIN_PERIOD ? MIN_PERIOD : ns, LAPIC_PERIOD)
  // A timer that has run down is due at once again: KVM arms it with nothing left.
  arm(s, time + ((deadline != NEVER && deadline > time ? deadline - time : 0) / before) * divisor(a))
}

/** apic_update_lvtt: entering or leaving TSC-deadline mode stops the timer. */
export function timerModeChanged(s: usize, old: u32, value: u32): void {
  if ((old & MODE) == (value & MODE)) return
  const a = lapicOf(s)
  if ((old & MODE) == DEADLINE || (value & MODE) == DEADLINE) {
    timerCancel(s)
    setReg(a, APIC_TMICT, 0)
    store<u64>(a, 0, LAPIC_PERIOD)
    store<u64>(a, 0, LAPIC_TSC_DEADLINE)
  }
  // limit_periodic_timer_frequency
  const period = load<u64>(a, LAPIC_PERIOD)
  if ((value & MODE) == PERIODIC && period != 0 && period < MIN_PERIOD) store<u64>(a, MIN_PERIOD, LAPIC_PERIOD)
}

/** APIC_TMCCT. */
export function timerCount(s: usize): u32 {
  const a = lapicOf(s)
  if ((reg(a, APIC_LVTT) & MODE) == DEADLINE || reg(a, APIC_TMICT) == 0) return 0
  const deadline = load<u64>(a, LAPIC_TIMER_DEADLINE)
  const time = now(s)
  const period = load<u64>(a, LAPIC_PERIOD)
  if (deadline == NEVER || deadline <= time || period == 0) return 0
  // In KVM some time has always passed since the timer was armed, so that its remainder by the period is the count.
  const left = deadline - time
  return <u32>((left == period ? left : left % period) / (divisor(a) * busNs(s)))
}

/** The timer is due: fires, and re-arms a periodic one. */
export function timerExpire(s: usize, time: u64): void {
  const a = lapicOf(s)
  const at = load<u64>(a, LAPIC_TIMER_DEADLINE)
  if (at > time) return
  const mode = reg(a, APIC_LVTT) & MODE
  const period = load<u64>(a, LAPIC_PERIOD)
  if (mode == PERIODIC && period != 0) {
    store<u64>(a, at + period * ((time - at) / period + 1), LAPIC_TIMER_DEADLINE)
  } else {
    timerCancel(s)
    if (mode == DEADLINE) store<u64>(a, 0, LAPIC_TSC_DEADLINE)
  }
  lapicLocal(s, APIC_LVTT)
}
