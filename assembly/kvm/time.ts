/** Virtual time: 1 instruction = 1 ns; now = TIME_BASE + ICOUNT of the running vCPU; VM_CLOCK between slices. */
import { exactCount } from '../execute/count'
import { chipOf, NEVER, vkvm } from './state'
import {
  CHIP_USER_DEADLINE,
  CPU_BUDGET,
  CPU_DEADLINE,
  CPU_ICOUNT,
  CPU_TIME_BASE,
  CPU_TSC_OFFSET,
  CPU_VM,
  VKVM_TSC_KHZ,
  VM_CLOCK,
  VM_TSC_KHZ,
} from '../generated/layout'

/** Fixed cost of a port or MMIO access to a device (design: time). */
export const DEVICE_NS: u64 = 1000

/** Virtual nanoseconds since the VM was created, as this vCPU sees them: exact inside a block too, however it was cut. */
export function now(s: usize): u64 {
  return load<u64>(s, CPU_TIME_BASE) + exactCount(s)
}

const DEFAULT_KHZ: u64 = 2000000

/** KVM_SET_TSC_KHZ of the vCPU, or of the VM (2 GHz). */
function tscKhz(s: usize): u64 {
  const own = load<u32>(vkvm(s), VKVM_TSC_KHZ)
  return own ? <u64>own : load<u64>(load<u32>(s, CPU_VM), VM_TSC_KHZ)
}

/** The guest's TSC: scaled virtual time and the vCPU's offset. */
export function tscNow(s: usize): u64 {
  const ns = now(s)
  const khz = tscKhz(s)
  const ticks = khz == DEFAULT_KHZ ? ns * 2 : (ns / 1000000) * khz + ((ns % 1000000) * khz) / 1000000
  return ticks + load<u64>(s, CPU_TSC_OFFSET)
}

/** Virtual ns at which the guest's TSC reaches `tsc`. */
export function tscToNs(s: usize, tsc: u64): u64 {
  const ticks = tsc - load<u64>(s, CPU_TSC_OFFSET)
  if (<i64>ticks < 0) return 0
  const khz = tscKhz(s)
  if (khz == DEFAULT_KHZ || khz == 0) return (ticks + 1) / 2
  const whole = ticks / khz
  return whole > 0xfffffffffff ? NEVER : whole * 1000000 + ((ticks % khz) * 1000000 + khz - 1) / khz
}

/** Lets time pass without instructions; a deadline that is now due is noticed at the next block boundary. */
export function advance(s: usize, ns: u64): void {
  const base = load<u64>(s, CPU_TIME_BASE) + ns
  store<u64>(s, base, CPU_TIME_BASE)
  const deadline = load<u64>(s, CPU_DEADLINE)
  const at = deadline > base ? deadline - base : 0
  if (at < load<u64>(s, CPU_BUDGET)) store<u64>(s, at, CPU_BUDGET)
}

/** The slice starts: this vCPU takes the VM's clock. */
export function takeClock(s: usize): void {
  store<u64>(s, load<u64>(load<u32>(s, CPU_VM), VM_CLOCK) - load<u64>(s, CPU_ICOUNT), CPU_TIME_BASE)
}

/** The slice ends: the VM's clock is this vCPU's time. */
export function giveClock(s: usize): void {
  store<u64>(load<u32>(s, CPU_VM), load<u64>(s, CPU_TIME_BASE) + load<u64>(s, CPU_ICOUNT), VM_CLOCK)
}

/** Announces a deadline of a device in userspace: KVM_RUN returns -EINTR (WHY_USER_DEADLINE) there. All ones = none. */
export function setUserDeadline(vm: usize, ns: u64): void {
  store<u64>(chipOf(vm), ns, CHIP_USER_DEADLINE)
}

/** Virtual ns of a VM (between runs, or of the vCPU that runs). */
export function vmClock(vm: usize): u64 {
  return load<u64>(vm, VM_CLOCK)
}
