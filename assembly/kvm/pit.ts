/**
 * 8254 interval timer and port 0x61 as KVM has them (Linux 7.3 arch/x86/kvm/i8254.c; Intel 8254 data sheet).
 * State: CHIP_PIT (struct PIT per channel), one deadline for channel 0 in virtual time.
 */
import { lapicNmiWatchdog } from './lapic-delivery'
import { pitLine } from './irq'
import { chipOf, NEVER, signal, vmOf } from './state'
import { now } from './time'
import {
  CHIP_PIT,
  CHIP_PIT_ACK,
  CHIP_PIT_DEADLINE,
  CHIP_PIT_EXPIRES,
  CHIP_PIT_FLAGS,
  CHIP_PIT_INTERVAL,
  CHIP_PIT_PENDING,
  CHIP_PIT_PERIOD,
  CHIP_PIT_PRESENT,
  CHIP_PIT_REINJECT,
  CHIP_RUNNING,
  CHIP_SPEAKER,
  EVENT_TIMER,
  PIT_BCD,
  PIT_COUNT,
  PIT_COUNT_LATCHED,
  PIT_COUNT_LOAD_TIME,
  PIT_GATE,
  PIT_LATCHED_COUNT,
  PIT_MODE,
  PIT_READ_STATE,
  PIT_RW_MODE,
  PIT_STATUS,
  PIT_STATUS_LATCHED,
  PIT_WRITE_LATCH,
  PIT_WRITE_STATE,
  VM_CLOCK,
  VM_IRQCHIP,
} from '../generated/layout'

const FREQUENCY: u64 = 1193182
const CHANNEL: usize = 32
/** kvm_pit_state2.flags */
const HPET_LEGACY: u32 = 1
/** KVM_CREATE_PIT2: KVM_PIT_SPEAKER_DUMMY. */
const SPEAKER_DUMMY: u32 = 0x100
/** Shortest period of the tick (KVM: min_timer_period_us). */
const MIN_PERIOD: u64 = 200000

const MSB: u32 = 2
const WORD0: u32 = 3
const WORD1: u32 = 4

export function pitHasPort(port: u32): bool {
  return (port >= 0x40 && port <= 0x43) || port == 0x61
}

/** Virtual time for functions that know only the VM. */
function vmNow(vm: usize): u64 {
  const s: usize = load<u32>(chipOf(vm), CHIP_RUNNING)
  return s ? now(s) : load<u64>(vm, VM_CLOCK)
}

function ticksToNs(ticks: u64): u64 {
  return (ticks * 1000000000) / FREQUENCY
}

/** Ticks of the present period (channel 0: what its timer has left, __kpit_elapsed) or since the count was loaded. */
function elapsed(vm: usize, p: usize): u64 {
  const chip = chipOf(vm)
  let ns = vmNow(vm)
  if (p == chip + CHIP_PIT) {
    const interval = load<u64>(chip, CHIP_PIT_INTERVAL)
    ns = interval == 0 ? 0 : interval + ns - load<u64>(chip, CHIP_PIT_EXPIRES)
  } else ns -= load<u64>(p, PIT_COUNT_LOAD_TIME)
  // a 128-bit product avoided by splitting seconds off
  return (ns / 1000000000) * FREQUENCY + ((ns % 1000000000) * FREQUENCY) / 1000000000
}

/** Never 0, whatever KVM_SET_PIT2 brought. */
function reload(p: usize): u64 {
  const n = load<u32>(p, PIT_COUNT)
  return n == 0 ? 0x10000 : <u64>n
}

function count(vm: usize, p: usize): u32 {
  const d = elapsed(vm, p)
  const n = reload(p)
  const mode = load<u8>(p, PIT_MODE)
  if (mode == 0 || mode == 1 || mode == 4 || mode == 5) return <u32>(n - d) & 0xffff
  if (mode == 3) return <u32>(n - ((d * 2) % n))
  return <u32>(n - (d % n))
}

function output(vm: usize, p: usize): u32 {
  const d = elapsed(vm, p)
  const n = reload(p)
  switch (load<u8>(p, PIT_MODE)) {
    case 1:
      return d < n ? 1 : 0
    case 2:
      return d % n == 0 && d != 0 ? 1 : 0
    case 3:
      return d % n < (n + 1) >> 1 ? 1 : 0
    case 4:
    case 5:
      return d == n ? 1 : 0
    default:
      return d >= n ? 1 : 0
  }
}

function setDeadline(vm: usize, at: u64, period: u64): void {
  const chip = chipOf(vm)
  store<u64>(chip, at, CHIP_PIT_DEADLINE)
  store<u64>(chip, period, CHIP_PIT_PERIOD)
  if (at != NEVER) store<u64>(chip, at, CHIP_PIT_EXPIRES)
  const s: usize = load<u32>(chip, CHIP_RUNNING)
  if (s) signal(s, EVENT_TIMER)
}

function loadCount(vm: usize, channel: u32, value: u32): void {
  const chip = chipOf(vm)
  const p = chip + CHIP_PIT + <usize>channel * CHANNEL
  const n = value == 0 ? 0x10000 : value
  store<u32>(p, n, PIT_COUNT)
  const time = vmNow(vm)
  if (channel != 0) {
    store<u64>(p, time, PIT_COUNT_LOAD_TIME)
    return
  }
  const mode = load<u8>(p, PIT_MODE)
  if (load<u32>(vm, VM_IRQCHIP) != 1 || (load<u32>(chip, CHIP_PIT_FLAGS) & HPET_LEGACY) != 0 || mode > 4) {
    setDeadline(vm, NEVER, 0)
    return
  }
  pitResetReinject(vm)
  const ns = ticksToNs(n)
  const periodic = mode == 2 || mode == 3
  const interval = periodic && ns < MIN_PERIOD ? MIN_PERIOD : ns
  store<u64>(chip, interval, CHIP_PIT_INTERVAL)
  setDeadline(vm, time + ns, periodic ? interval : 0)
}

export function pitCreate(vm: usize, flags: u32): void {
  const chip = chipOf(vm)
  store<u32>(chip, 1, CHIP_PIT_PRESENT)
  store<u32>(chip, 1, CHIP_PIT_REINJECT)
  store<u32>(chip, (flags & 1) != 0 ? SPEAKER_DUMMY : 0, CHIP_PIT_FLAGS)
  store<u32>(chip, 0, CHIP_SPEAKER)
  store<u64>(chip, 0, CHIP_PIT_INTERVAL)
  for (let i: u32 = 0; i < 3; i++) {
    const p = chip + CHIP_PIT + <usize>i * CHANNEL
    memory.fill(p, 0, CHANNEL)
    store<u8>(p, 0xff, PIT_MODE)
    store<u8>(p, i != 2 ? 1 : 0, PIT_GATE)
    loadCount(vm, i, 0)
  }
}

/** kvm_pit_reset_reinject: the timer was programmed anew, or IRQ 0 unmasked. */
export function pitResetReinject(vm: usize): void {
  const chip = chipOf(vm)
  store<u32>(chip, 0, CHIP_PIT_PENDING)
  store<u32>(chip, 1, CHIP_PIT_ACK)
}

/** KVM_REINJECT_CONTROL. */
export function pitSetReinject(vm: usize, on: bool): void {
  const chip = chipOf(vm)
  if ((load<u32>(chip, CHIP_PIT_REINJECT) != 0) == on) return
  if (on) pitResetReinject(vm)
  store<u32>(chip, on ? 1 : 0, CHIP_PIT_REINJECT)
}

/** pit_do_work: one edge on GSI 0, unless the last tick still waits for its acknowledgement. */
function tick(vm: usize, chip: usize): void {
  if (load<u32>(chip, CHIP_PIT_REINJECT) != 0) {
    const acknowledged = load<u32>(chip, CHIP_PIT_ACK)
    store<u32>(chip, 0, CHIP_PIT_ACK)
    if (!acknowledged) return
  }
  pitLine(vm, true)
  pitLine(vm, false)
  lapicNmiWatchdog(vm)
}

/** pit_timer_fn: channel 0 is due; a jump of time may have passed several periods. */
export function pitExpire(vm: usize, time: u64): void {
  const chip = chipOf(vm)
  const at = load<u64>(chip, CHIP_PIT_DEADLINE)
  if (at > time) return
  const period = load<u64>(chip, CHIP_PIT_PERIOD)
  const ticks: u64 = period == 0 ? 1 : (time - at) / period + 1
  store<u64>(chip, period == 0 ? NEVER : at + period * ticks, CHIP_PIT_DEADLINE)
  if (period != 0) store<u64>(chip, at + period * ticks, CHIP_PIT_EXPIRES)
  if (load<u32>(chip, CHIP_PIT_REINJECT) != 0) {
    const pending = <u64>load<u32>(chip, CHIP_PIT_PENDING) + ticks
    store<u32>(chip, pending > 0x7fffffff ? 0x7fffffff : <u32>pending, CHIP_PIT_PENDING)
  }
  tick(vm, chip)
}

/** kvm_pit_ack_irq: GSI 0 was acknowledged; what was missed follows. */
export function pitAcknowledge(vm: usize): void {
  const chip = chipOf(vm)
  store<u32>(chip, 1, CHIP_PIT_ACK)
  const pending = load<u32>(chip, CHIP_PIT_PENDING)
  if (pending == 0) return
  store<u32>(chip, pending - 1, CHIP_PIT_PENDING)
  if (pending > 1) tick(vm, chip)
}

function latchCount(vm: usize, p: usize): void {
  if (load<u8>(p, PIT_COUNT_LATCHED)) return
  store<u16>(p, <u16>count(vm, p), PIT_LATCHED_COUNT)
  store<u8>(p, load<u8>(p, PIT_RW_MODE), PIT_COUNT_LATCHED)
}

function latchStatus(vm: usize, p: usize): void {
  if (load<u8>(p, PIT_STATUS_LATCHED)) return
  const status =
    (output(vm, p) << 7) | ((<u32>load<u8>(p, PIT_RW_MODE)) << 4) | ((<u32>load<u8>(p, PIT_MODE)) << 1) | <u32>load<u8>(p, PIT_BCD)
  store<u8>(p, <u8>status, PIT_STATUS)
  store<u8>(p, 1, PIT_STATUS_LATCHED)
}

function setGate(vm: usize, channel: u32, value: u32): void {
  const p = chipOf(vm) + CHIP_PIT + <usize>channel * CHANNEL
  const mode = load<u8>(p, PIT_MODE)
  // modes 1, 2, 3, 5 restart on a rising edge
  if (mode != 0 && mode != 4 && mode <= 5 && <u32>load<u8>(p, PIT_GATE) < value) store<u64>(p, vmNow(vm), PIT_COUNT_LOAD_TIME)
  store<u8>(p, <u8>value, PIT_GATE)
}

function pitWrite(vm: usize, port: u32, value: u32): void {
  const chip = chipOf(vm)
  if (port == 0x61) {
    store<u32>(chip, (value >> 1) & 1, CHIP_SPEAKER)
    setGate(vm, 2, value & 1)
    return
  }
  const address = port & 3
  if (address == 3) {
    const channel = value >> 6
    if (channel == 3) {
      for (let i: u32 = 0; i < 3; i++) {
        if ((value & (2 << i)) == 0) continue
        const c = chip + CHIP_PIT + <usize>i * CHANNEL
        if ((value & 0x20) == 0) latchCount(vm, c)
        if ((value & 0x10) == 0) latchStatus(vm, c)
      }
      return
    }
    const p = chip + CHIP_PIT + <usize>channel * CHANNEL
    const access = (value >> 4) & 3
    if (access == 0) {
      latchCount(vm, p)
      return
    }
    let mode = (value >> 1) & 7
    if (mode > 5) mode -= 4
    store<u8>(p, <u8>access, PIT_RW_MODE)
    store<u8>(p, <u8>access, PIT_READ_STATE)
    store<u8>(p, <u8>access, PIT_WRITE_STATE)
    store<u8>(p, <u8>mode, PIT_MODE)
    store<u8>(p, <u8>(value & 1), PIT_BCD)
    return
  }
  const p = chip + CHIP_PIT + <usize>address * CHANNEL
  switch (<u32>load<u8>(p, PIT_WRITE_STATE)) {
    case MSB:
      loadCount(vm, address, value << 8)
      break
    case WORD0:
      store<u8>(p, <u8>value, PIT_WRITE_LATCH)
      store<u8>(p, <u8>WORD1, PIT_WRITE_STATE)
      break
    case WORD1:
      store<u8>(p, <u8>WORD0, PIT_WRITE_STATE)
      loadCount(vm, address, <u32>load<u8>(p, PIT_WRITE_LATCH) | (value << 8))
      break
    default:
      loadCount(vm, address, value)
      break
  }
}

function pitRead(vm: usize, port: u32): u32 {
  const chip = chipOf(vm)
  if (port == 0x61) {
    const p = chip + CHIP_PIT + 2 * CHANNEL
    const refresh = <u32>(vmNow(vm) >> 14) & 1
    return (load<u32>(chip, CHIP_SPEAKER) << 1) | <u32>load<u8>(p, PIT_GATE) | (output(vm, p) << 5) | (refresh << 4)
  }
  const address = port & 3
  if (address == 3) return 0
  const p = chip + CHIP_PIT + <usize>address * CHANNEL
  if (load<u8>(p, PIT_STATUS_LATCHED)) {
    store<u8>(p, 0, PIT_STATUS_LATCHED)
    return <u32>load<u8>(p, PIT_STATUS)
  }
  const latched = <u32>load<u8>(p, PIT_COUNT_LATCHED)
  if (latched) {
    const value = <u32>load<u16>(p, PIT_LATCHED_COUNT)
    store<u8>(p, latched == WORD0 ? <u8>MSB : 0, PIT_COUNT_LATCHED)
    return latched == MSB ? value >> 8 : value & 0xff
  }
  switch (<u32>load<u8>(p, PIT_READ_STATE)) {
    case MSB:
      return (count(vm, p) >> 8) & 0xff
    case WORD0:
      store<u8>(p, <u8>WORD1, PIT_READ_STATE)
      return count(vm, p) & 0xff
    case WORD1:
      store<u8>(p, <u8>WORD0, PIT_READ_STATE)
      return (count(vm, p) >> 8) & 0xff
    default:
      return count(vm, p) & 0xff
  }
}

/** Port 0x61 belongs to the kernel only with KVM_PIT_SPEAKER_DUMMY. */
export function pitOwnsPort(vm: usize, port: u32): bool {
  return port != 0x61 || (load<u32>(chipOf(vm), CHIP_PIT_FLAGS) & SPEAKER_DUMMY) != 0
}

export function pitBusRead(s: usize, port: u32): u32 {
  return pitRead(vmOf(s), port)
}
export function pitBusWrite(s: usize, port: u32, value: u32): void {
  pitWrite(vmOf(s), port, value)
}

/** struct kvm_pit_state2: three channels of 24 bytes, flags, reserved (112 bytes). */
export function pitGet(vm: usize, to: usize): void {
  const chip = chipOf(vm)
  memory.fill(to, 0, 112)
  for (let i: usize = 0; i < 3; i++) memory.copy(to + i * 24, chip + CHIP_PIT + i * CHANNEL, 24)
  store<u32>(to + 72, (load<u32>(chip, CHIP_PIT_FLAGS) & HPET_LEGACY) | (load<u32>(chip, CHIP_SPEAKER) << 1))
}

export function pitSet(vm: usize, from: usize): void {
  const chip = chipOf(vm)
  for (let i: usize = 0; i < 3; i++) memory.copy(chip + CHIP_PIT + i * CHANNEL, from + i * 24, 24)
  const flags = load<u32>(from + 72)
  store<u32>(chip, (load<u32>(chip, CHIP_PIT_FLAGS) & ~HPET_LEGACY) | (flags & HPET_LEGACY), CHIP_PIT_FLAGS)
  store<u32>(chip, (flags >> 1) & 1, CHIP_SPEAKER)
  loadCount(vm, 0, load<u32>(chip + CHIP_PIT, PIT_COUNT))
}
