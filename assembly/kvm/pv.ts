/**
 * Paravirtual services of KVM (Linux 7.3 Documentation/virt/kvm/x86/msr.rst; arch/x86/kvm/{x86,lapic}.c): kvmclock and wall clock,
 * steal time, PV EOI, poll control, and the switches of asynchronous page faults, which never come since no page of a guest is
 * ever away. All pages lie in memory that the host reads (address space 0). Owns VKVM_PV_*, VM_CLOCK_OFFSET, VM_WALL_CLOCK.
 */
import {
  APIC_IRR,
  APIC_ISR,
  CPU_ID,
  CPU_TSC_OFFSET,
  VCPU_FPU,
  VKVM_APF_ENABLE,
  VKVM_APF_VECTOR,
  VKVM_POLL_CONTROL,
  VKVM_PV_CLOCK,
  VKVM_PV_CLOCK_STALE,
  VKVM_PV_ENFORCE,
  VKVM_PV_EOI,
  VKVM_PV_EOI_PENDING,
  VKVM_PV_FEATURES,
  VKVM_PV_STOPPED,
  VKVM_STEAL,
  VKVM_STEAL_LAST,
  VKVM_STEAL_PREEMPTED,
  VKVM_TSC_KHZ,
  VKVM_VAPIC,
  VKVM_WHY,
  VM_CLOCK_OFFSET,
  VM_MASTER_CLOCK,
  VM_OLD_CLOCK,
  VM_TSC_KHZ,
  VM_VCPU_COUNT,
  VM_VCPUS,
  VM_WALL_CLOCK,
  VM_WALL_EPOCH,
  WHY_BUDGET,
} from '../generated/layout'
import { flushTlb } from '../memory/tlb'
import { gpaRead, gpaWrite } from '../memory/physical'
import { slotSpace } from '../memory/slots'
import { ioapicHandles } from './ioapic'
import { lapicEoi } from './lapic-registers'
import { highest, reg, setTpr } from './lapic-state'
import { kernelApic, lapicOf, vkvm, vmOf } from './state'
import { now, tscNow } from './time'

/** KVM_FEATURE_* bits. */
const CLOCKSOURCE: u32 = 0
const CLOCKSOURCE2: u32 = 3
const ASYNC_PF: u32 = 4
const STEAL_TIME: u32 = 5
const PV_EOI: u32 = 6
const PV_TLB_FLUSH: u32 = 9
const ASYNC_PF_VMEXIT: u32 = 10
const POLL_CONTROL: u32 = 12
const ASYNC_PF_INT: u32 = 14

/** guest_pv_has: without KVM_CAP_ENFORCE_PV_FEATURE_CPUID everything is there. */
export function pvHas(s: usize, bit: u32): bool {
  const k = vkvm(s)
  return load<u32>(k, VKVM_PV_ENFORCE) == 0 || ((load<u32>(k, VKVM_PV_FEATURES) >> bit) & 1) != 0
}

function hostWrite(s: usize, gpa: u64, from: usize, n: u32): bool {
  const old = slotSpace(0)
  const good = gpaWrite(vmOf(s), gpa, from, n)
  slotSpace(old)
  return good
}

function hostRead(s: usize, gpa: u64, to: usize, n: u32): bool {
  const old = slotSpace(0)
  const good = gpaRead(vmOf(s), gpa, to, n)
  slotSpace(old)
  return good
}

/** kvmclock: virtual time plus what KVM_SET_CLOCK added. */
function kvmclock(s: usize): u64 {
  return now(s) + load<u64>(vmOf(s), VM_CLOCK_OFFSET)
}

function khzOf(s: usize): u32 {
  const own = load<u32>(vkvm(s), VKVM_TSC_KHZ)
  return own ? own : <u32>load<u64>(vmOf(s), VM_TSC_KHZ)
}

/** use_master_clock: there are vCPUs, all TSCs run alike, and the boot processor does not use the old MSRs. */
function alike(vm: usize): bool {
  if (load<u32>(vm, VM_OLD_CLOCK)) return false
  let first: usize = 0
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + ((<usize>i) << 2))
    if (!s) continue
    if (!first) first = s
    else if (load<u64>(s, CPU_TSC_OFFSET) != load<u64>(first, CPU_TSC_OFFSET) || khzOf(s) != khzOf(first)) return false
  }
  return first != 0
}

/** pvclock_update_vm_gtod_copy: at an entry after something changed, and at KVM_SET_CLOCK. */
export function masterUpdate(vm: usize): void {
  store<u32>(vm, alike(vm) ? 1 : 0, VM_MASTER_CLOCK)
}

export function masterClock(vm: usize): bool {
  return load<u32>(vm, VM_MASTER_CLOCK) != 0
}

/** kvm_get_time_scale from the TSC's rate to nanoseconds: the shift; the multiplier is left in `scaleMul`. */
let scaleMul: u32 = 0
function scale(khz: u32): i32 {
  let scaled: u64 = 1000000000
  let ticks: u64 = <u64>khz * 1000
  let shift: i32 = 0
  while (ticks > scaled * 2 || ticks >> 32 != 0) {
    ticks >>= 1
    shift--
  }
  while (ticks <= scaled || scaled >> 32 != 0) {
    if (scaled >> 32 != 0 || (ticks & 0x80000000) != 0) scaled >>= 1
    else ticks <<= 1
    shift++
  }
  scaleMul = <u32>((scaled << 32) / ticks)
  return shift
}

/** kvm_guest_time_update: struct pvclock_vcpu_time_info of 32 bytes. */
function writeClock(s: usize): void {
  const k = vkvm(s)
  const msr = load<u64>(k, VKVM_PV_CLOCK)
  store<u32>(k, 0, VKVM_PV_CLOCK_STALE)
  masterUpdate(vmOf(s))
  if ((msr & 1) == 0) return
  const gpa = msr & ~(<u64>1)
  const p = s + VCPU_FPU
  if ((gpa & 0xfff) > 4096 - 32 || !hostRead(s, gpa, p, 32)) return
  const version = (load<u32>(p) + 1) | 1
  const stopped = load<u8>(p, 29) & 2
  memory.fill(p, 0, 32)
  store<u64>(p, tscNow(s), 8)
  store<u64>(p, kvmclock(s), 16)
  store<i8>(p, <i8>scale(khzOf(s)), 28)
  store<u32>(p, scaleMul, 24)
  store<u8>(p, (masterClock(vmOf(s)) ? 1 : 0) | stopped | (load<u32>(k, VKVM_PV_STOPPED) ? 2 : 0), 29)
  store<u32>(k, 0, VKVM_PV_STOPPED)
  store<u32>(p, version + 1)
  hostWrite(s, gpa, p, 32)
}

/** All vCPUs update their page before they run again (KVM_REQ_GLOBAL_CLOCK_UPDATE). */
export function clockStale(vm: usize): void {
  const count = load<u32>(vm, VM_VCPU_COUNT)
  for (let i: u32 = 0; i < count; i++) {
    const s: usize = load<u32>(vm + VM_VCPUS + ((<usize>i) << 2))
    if (s) store<u32>(vkvm(s), 1, VKVM_PV_CLOCK_STALE)
  }
}

/** kvm_write_system_time. */
function systemTime(s: usize, value: u64, old: bool, host: bool): void {
  const vm = vmOf(s)
  if (load<u32>(s, CPU_ID) == 0 && !host) store<u32>(vm, old ? 1 : 0, VM_OLD_CLOCK)
  store<u64>(vkvm(s), value, VKVM_PV_CLOCK)
  clockStale(vm)
  if (!host) writeClock(s)
}

/** kvm_write_wall_clock: struct pvclock_wall_clock {version, sec, nsec}: the time at which kvmclock was 0. */
function wallClock(s: usize, gpa: u64): void {
  store<u64>(vmOf(s), gpa, VM_WALL_CLOCK)
  const p = s + VCPU_FPU
  if (gpa == 0 || !hostRead(s, gpa, p, 4)) return
  const version = (load<u32>(p) + 2) & ~1
  const epoch = load<u64>(vmOf(s), VM_WALL_EPOCH) - load<u64>(vmOf(s), VM_CLOCK_OFFSET)
  store<u32>(p, version)
  store<u32>(p, <u32>(epoch / 1000000000), 4)
  store<u32>(p, <u32>(epoch % 1000000000), 8)
  hostWrite(s, gpa, p, 12)
}

/** record_steal_time at an entry: what passed since this vCPU was stopped by its budget went to others. */
function recordSteal(s: usize): void {
  const k = vkvm(s)
  const gpa = load<u64>(k, VKVM_STEAL) & ~(<u64>63)
  const p = s + VCPU_FPU
  if (!hostRead(s, gpa, p, 64)) return
  if (pvHas(s, PV_TLB_FLUSH) && (load<u8>(p, 16) & 2) != 0) flushTlb(s)
  const last = load<u64>(k, VKVM_STEAL_LAST)
  const time = now(s)
  // Nobody ran since its budget ended: where a caller cuts a run into pieces must not show (the clock is one of instructions).
  if (last == 0 || time != last) {
    store<u64>(p, load<u64>(p) + (last != 0 && time > last ? time - last : 0))
    store<u32>(p, ((load<u32>(p, 8) + 1) & ~1) + 2, 8)
  }
  store<u8>(p, 0, 16)
  store<u64>(k, 0, VKVM_STEAL_LAST)
  store<u32>(k, 0, VKVM_STEAL_PREEMPTED)
  hostWrite(s, gpa, p, 64)
}

/** Before the guest runs. */
export function pvEnter(s: usize): void {
  const k = vkvm(s)
  if (load<u64>(k, VKVM_STEAL) & 1) recordSteal(s)
  vapicTo(s)
}

/** Requests that came up since: called wherever KVM would enter the guest again. */
export function pvUpdate(s: usize): void {
  if (load<u32>(vkvm(s), VKVM_PV_CLOCK_STALE)) writeClock(s)
}

/** After it left: kvm_steal_time_set_preempted, and what the local APIC has to learn. */
export function pvLeave(s: usize): void {
  const k = vkvm(s)
  apicSync(s)
  if ((load<u64>(k, VKVM_STEAL) & 1) == 0 || load<u32>(k, VKVM_STEAL_PREEMPTED)) return
  store<u64>(k, load<u32>(k, VKVM_WHY) == WHY_BUDGET ? now(s) : 0, VKVM_STEAL_LAST)
  store<u32>(k, 1, VKVM_STEAL_PREEMPTED)
  store<u8>(s + VCPU_FPU, 1)
  hostWrite(s, (load<u64>(k, VKVM_STEAL) & ~(<u64>63)) + 16, s + VCPU_FPU, 1)
}

/** The guest may have ended an interrupt, or set its task priority, in memory (kvm_lapic_sync_from_vapic). */
export function apicSync(s: usize): void {
  const k = vkvm(s)
  const p = s + VCPU_FPU
  if (load<u32>(k, VKVM_PV_EOI_PENDING)) {
    store<u32>(k, 0, VKVM_PV_EOI_PENDING)
    const gpa = load<u64>(k, VKVM_PV_EOI) & ~(<u64>1)
    if ((load<u64>(k, VKVM_PV_EOI) & 1) != 0 && hostRead(s, gpa, p, 1)) {
      if (load<u8>(p) & 1) {
        // Not yet: the guest has to do it the long way now.
        store<u8>(p, 0)
        hostWrite(s, gpa, p, 1)
      } else lapicEoi(s)
    }
  }
  const page = load<u64>(k, VKVM_VAPIC)
  if (page != 0 && hostRead(s, page, p, 4)) setTpr(s, load<u32>(p) & 0xff)
}

/** An interrupt was delivered: if nothing else is in service or waits and no IOAPIC listens, a cleared bit in memory is enough. */
export function pvEoiOffer(s: usize): void {
  const k = vkvm(s)
  if ((load<u64>(k, VKVM_PV_EOI) & 1) == 0) return
  const a = lapicOf(s)
  if (highest(a, APIC_IRR) >= 0) return
  const vector = highest(a, APIC_ISR)
  if (vector < 0 || ioapicHandles(vmOf(s), <u32>vector)) return
  let count: u32 = 0
  for (let i: usize = 0; i < 8; i++) count += <u32>popcnt<u32>(reg(a, <usize>APIC_ISR + (i << 4)))
  if (count != 1) return
  const p = s + VCPU_FPU
  store<u8>(p, 1)
  if (hostWrite(s, load<u64>(k, VKVM_PV_EOI) & ~(<u64>1), p, 1)) store<u32>(k, 1, VKVM_PV_EOI_PENDING)
}

/** kvm_lapic_sync_to_vapic: TPR, class in service, and the highest vector that waits. */
export function vapicTo(s: usize): void {
  const page = load<u64>(vkvm(s), VKVM_VAPIC)
  if (page == 0) return
  const a = lapicOf(s)
  const irr = highest(a, APIC_IRR)
  const isr = highest(a, APIC_ISR)
  const word = (reg(a, 0x80) & 0xff) | ((isr < 0 ? 0 : <u32>isr & 0xf0) << 8) | ((irr < 0 ? 0 : <u32>irr) << 24)
  store<u32>(s + VCPU_FPU, word)
  hostWrite(s, page, s + VCPU_FPU, 4)
}

export function isPvMsr(index: u32): bool {
  return index == 0x11 || index == 0x12 || (index >= 0x4b564d00 && index <= 0x4b564d07)
}

/** KVM_FEATURE_* that an MSR belongs to. */
function featureOf(index: u32): u32 {
  switch (index) {
    case 0x11:
    case 0x12:
      return CLOCKSOURCE
    case 0x4b564d00:
    case 0x4b564d01:
      return CLOCKSOURCE2
    case 0x4b564d02:
      return ASYNC_PF
    case 0x4b564d03:
      return STEAL_TIME
    case 0x4b564d04:
      return PV_EOI
    case 0x4b564d05:
      return POLL_CONTROL
    default:
      return ASYNC_PF_INT
  }
}

/** The MSR is offered to this guest. */
export function pvMsrHas(s: usize, index: u32): bool {
  return pvHas(s, featureOf(index))
}

export function pvMsrRead(s: usize, index: u32): u64 {
  const k = vkvm(s)
  switch (index) {
    case 0x11:
    case 0x4b564d00:
      return load<u64>(vmOf(s), VM_WALL_CLOCK)
    case 0x12:
    case 0x4b564d01:
      return load<u64>(k, VKVM_PV_CLOCK)
    case 0x4b564d02:
      return load<u64>(k, VKVM_APF_ENABLE)
    case 0x4b564d03:
      return load<u64>(k, VKVM_STEAL)
    case 0x4b564d04:
      return load<u64>(k, VKVM_PV_EOI)
    case 0x4b564d05:
      return load<u64>(k, VKVM_POLL_CONTROL)
    case 0x4b564d06:
      return load<u64>(k, VKVM_APF_VECTOR)
    default:
      return 0
  }
}

/** False = #GP. */
export function pvMsrWrite(s: usize, index: u32, value: u64, host: bool): bool {
  const k = vkvm(s)
  switch (index) {
    case 0x11:
    case 0x4b564d00:
      wallClock(s, value)
      return true
    case 0x12:
    case 0x4b564d01:
      systemTime(s, value, index == 0x12, host)
      return true
    case 0x4b564d02:
      // kvm_pv_enable_async_pf
      if (value & 0x30) return false
      if ((value & 4) != 0 && !pvHas(s, ASYNC_PF_VMEXIT)) return false
      if ((value & 8) != 0 && !pvHas(s, ASYNC_PF_INT)) return false
      if (!kernelApic(s)) return value == 0
      store<u64>(k, value, VKVM_APF_ENABLE)
      return true
    case 0x4b564d03:
      if (value & 0x3e) return false
      store<u64>(k, value, VKVM_STEAL)
      store<u64>(k, 0, VKVM_STEAL_LAST)
      if ((value & 1) != 0 && !host) recordSteal(s)
      return true
    case 0x4b564d04:
      if (value & 2) return false
      // An EOI that was offered is taken back first, or the guest's handler believes it (reboot notifiers switch it off in one).
      apicSync(s)
      store<u64>(k, value, VKVM_PV_EOI)
      return true
    case 0x4b564d05:
      if (value >> 1) return false
      store<u64>(k, value, VKVM_POLL_CONTROL)
      return true
    case 0x4b564d06:
      if (value >> 8) return false
      if (!kernelApic(s)) return false
      store<u64>(k, value, VKVM_APF_VECTOR)
      return true
    default:
      return true // an acknowledgement of what never came
  }
}
