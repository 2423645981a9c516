/**
 * Port I/O: the in-kernel bus (PIC, PIT), exits for everything else, and recognition of poll loops
 * (a port read again and again from one place lets virtual time jump; facts: OVMF polls the ACPI PM timer 15 million times).
 */
import { exactCount } from '../execute/count'
import { exitIo } from './exits'
import { picBusRead, picBusWrite, picHasPort } from './pic'
import { pitBusRead, pitBusWrite, pitHasPort, pitOwnsPort } from './pit'
import { chipOf, vkvm, vmOf } from './state'
import { advance, DEVICE_NS, now } from './time'
import {
  CHIP_PIC_PRESENT,
  CHIP_PIT_PRESENT,
  CPU_DEADLINE,
  CPU_POLL_COUNT,
  CPU_POLL_KEY,
  VCPU_PIO,
  VKVM_POLL_ICOUNT,
  VKVM_POLL_JUMPS,
  VKVM_POLL_NS,
  VKVM_TSC_COUNT,
  VKVM_TSC_ICOUNT,
  VKVM_TSC_PAUSED,
  VKVM_TSC_RIP,
} from '../generated/layout'

/** A jump is never longer than this, so that short waits stay short. */
const POLL_MAX_NS: u64 = 100000
/** Reads of one port from one place before time starts to jump. */
const POLL_START: u32 = 8
/** Instructions between two reads that still make a tight loop; the #VC path of a SEV-ES guest runs some 400. */
const POLL_WINDOW: u64 = 96
const POLL_WINDOW_GHCB: u64 = 4000

/** One more read of `key` (place and port). Two RDTSCs in the loop mean that the guest calibrates: time does not jump there. */
export function pollRead(s: usize, key: u64, window: u64): void {
  const k = vkvm(s)
  const icount = exactCount(s)
  const last = load<u64>(k, VKVM_POLL_ICOUNT)
  store<u64>(k, icount, VKVM_POLL_ICOUNT)
  if (load<u64>(s, CPU_POLL_KEY) != key || icount - last > window || load<u64>(k, VKVM_TSC_ICOUNT) > last) {
    store<u64>(s, key, CPU_POLL_KEY)
    store<u32>(s, 0, CPU_POLL_COUNT)
    return
  }
  const count = load<u32>(s, CPU_POLL_COUNT) + 1
  store<u32>(s, count, CPU_POLL_COUNT)
  if (count >= POLL_START) pollJump(s, count - POLL_START)
}

/** Steps of 1, 2, 4 .. 100 us, doubled every fourth read, never past the next deadline. */
function pollJump(s: usize, round: u32): void {
  const k = vkvm(s)
  const shift = round >> 2
  let step: u64 = shift >= 7 ? POLL_MAX_NS : (<u64>1000) << (<u64>shift)
  const deadline = load<u64>(s, CPU_DEADLINE)
  const time = now(s)
  if (deadline <= time) return
  if (deadline - time < step) step = deadline - time
  advance(s, step)
  store<u64>(k, load<u64>(k, VKVM_POLL_JUMPS) + 1, VKVM_POLL_JUMPS)
  store<u64>(k, load<u64>(k, VKVM_POLL_NS) + step, VKVM_POLL_NS)
}

/** Any other device access ends a poll loop. */
export function pollEnd(s: usize): void {
  store<u64>(s, 0, CPU_POLL_KEY)
  store<u32>(vkvm(s), 0, VKVM_TSC_COUNT)
}

/** RDTSC, PAUSE, RDTSC .. at one place: rounds before time starts to jump, and instructions one round may have. */
const TSC_START: u32 = 32
const TSC_WINDOW: u64 = 256

/** RDTSC at `rip`: a loop of RDTSC and PAUSE (delay and wait loops) lets time jump like a polled port. */
export function pollTsc(s: usize, rip: u64): void {
  const k = vkvm(s)
  const icount = exactCount(s)
  if (load<u64>(k, VKVM_TSC_RIP) == rip && load<u32>(k, VKVM_TSC_PAUSED) != 0 && icount - load<u64>(k, VKVM_TSC_ICOUNT) < TSC_WINDOW) {
    const count = load<u32>(k, VKVM_TSC_COUNT) + 1
    store<u32>(k, count, VKVM_TSC_COUNT)
    if (count >= TSC_START) pollJump(s, count - TSC_START)
  } else {
    store<u32>(k, 0, VKVM_TSC_COUNT)
  }
  store<u32>(k, 0, VKVM_TSC_PAUSED)
  store<u64>(k, icount, VKVM_TSC_ICOUNT)
  store<u64>(k, rip, VKVM_TSC_RIP)
}

export function pollPause(s: usize): void {
  store<u32>(vkvm(s), 1, VKVM_TSC_PAUSED)
}

export function pollWindow(ghcb: bool): u64 {
  return ghcb ? POLL_WINDOW_GHCB : POLL_WINDOW
}

/** True if a device in the kernel owns the port. */
export function inKernelPort(s: usize, port: u32): bool {
  const chip = chipOf(vmOf(s))
  if (!chip) return false
  return (
    (load<u32>(chip, CHIP_PIC_PRESENT) != 0 && picHasPort(port)) ||
    (load<u32>(chip, CHIP_PIT_PRESENT) != 0 && pitHasPort(port) && pitOwnsPort(vmOf(s), port))
  )
}

/** Reads an in-kernel port (inKernelPort() holds). The PIC answers 0 to anything but bytes (picdev_read), the PIT one byte to any size. */
export function busRead(s: usize, port: u32, size: u32): u32 {
  return pitHasPort(port) ? pitBusRead(s, port) : size == 1 ? picBusRead(s, port) : 0
}

export function busWrite(s: usize, port: u32, size: u32, value: u32): void {
  if (pitHasPort(port)) pitBusWrite(s, port, value & 0xff)
  else if (size == 1) picBusWrite(s, port, value & 0xff)
}

/** Fills the PIO page and the exit. */
export function pioExit(s: usize, write: bool, port: u32, size: u32, count: u32): void {
  exitIo(s, write, port, size, count)
}

export function pioData(s: usize): usize {
  return s + VCPU_PIO
}

/** Charges the fixed cost of an access. */
export function chargeAccess(s: usize): void {
  advance(s, DEVICE_NS)
}
