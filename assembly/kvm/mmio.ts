/**
 * MMIO: local APIC and I/O APIC in the kernel, everything else by exits of at most 8 bytes. An instruction leaves with
 * RIP on it and is executed again; fragments that userspace has completed are answered from the log (CPU_MMIO_LOG).
 */
import { raise, raiseError, unimplementedFeature } from '../cpu/exceptions'
import { exactCount } from '../execute/count'
import { fetchAddress } from '../memory/access'
import { apicSync, vapicTo } from './pv'
import { exitMmio } from './exits'
import { coalescedWrite } from './coalesced'
import { ioeventWrite } from './ioevent'
import { ioapicHas, ioapicRead, ioapicWrite } from './ioapic'
import { lapicHas, lapicMmioRead, lapicMmioWrite } from './lapic-registers'
import { pollEnd, pollRead, pollWindow } from './pio'
import { isSevEs, vkvm, vmOf } from './state'
import { advance, DEVICE_NS } from './time'
import {
  CPU_CPL,
  CPU_LEAVE,
  CPU_OP,
  EXC_UD,
  OP_EXTRA,
  OP_MODRM,
  OP_OFFSET,
  UNIMPLEMENTED_MMIO_X87,
  VM_EMULATION_EXITS,
  CPU_MMIO_CURSOR,
  CPU_MMIO_DONE,
  CPU_MMIO_LOG,
  CPU_RIP,
  EXC_VC,
  LEAVE_EXIT_RETRY,
  LEAVE_FAULT,
  PENDING_MMIO_READ,
  PENDING_MMIO_WRITE,
  UNIMPLEMENTED_MMIO_LENGTH,
  VKVM_PENDING,
  VKVM_PIO_SIZE,
  CPU_GPR,
  CPU_RIP_MASK,
  CPU_SEGMENTS,
  OP_NEXT,
  SEG_BASE,
  SEG_CS,
  VKVM_REPLAY,
  VKVM_REPLAY_ICOUNT,
  VKVM_REPLAY_RCX,
  VKVM_REPLAY_RIP,
} from '../generated/layout'

/** Rows of CPU_MMIO_LOG. */
const LOG_ROWS: u32 = 16
const SVM_EXIT_NPF: u32 = 0x400

/** In-kernel devices at gpa; size <= 8. */
export function busHas(s: usize, gpa: u64): bool {
  return lapicHas(s, gpa) || ioapicHas(vmOf(s), gpa)
}

export function busMmioRead(s: usize, gpa: u64, size: u32): u64 {
  apicSync(s)
  if (lapicHas(s, gpa)) return lapicMmioRead(s, <u32>gpa & 0xfff, size)
  const value = <u64>ioapicRead(vmOf(s), <u32>gpa & 0xff)
  return size < 4 ? value & (((1 as u64) << ((size << 3) as u64)) - 1) : value
}

export function busMmioWrite(s: usize, gpa: u64, size: u32, value: u64): void {
  apicSync(s)
  if (lapicHas(s, gpa)) lapicMmioWrite(s, <u32>gpa & 0xfff, size, <u32>value)
  else ioapicWrite(vmOf(s), <u32>gpa & 0xff, <u32>value)
  vapicTo(s)
}

/** A fragment that userspace completed before this re-execution; counts the cursor on. */
function replayed(s: usize): bool {
  return load<u32>(vkvm(s), VKVM_REPLAY) != 0 && load<u32>(s, CPU_MMIO_CURSOR) < load<u32>(s, CPU_MMIO_DONE)
}

/** A fragment was done without userspace: if a later one of the same instruction leaves, it must not be done again. */
function swallowed(s: usize): void {
  const k = vkvm(s)
  const op: usize = load<u32>(s, CPU_OP)
  if (!op) return
  const icount = exactCount(s)
  const rip = (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)) & load<u64>(s, CPU_RIP_MASK)
  const rcx = load<u64>(s, CPU_GPR + 8)
  const same =
    load<u32>(k, VKVM_REPLAY) != 0 &&
    load<u64>(k, VKVM_REPLAY_ICOUNT) == icount &&
    load<u64>(k, VKVM_REPLAY_RIP) == rip &&
    load<u64>(k, VKVM_REPLAY_RCX) == rcx
  const done: u32 = same ? load<u32>(s, CPU_MMIO_DONE) + 1 : 1
  store<u32>(s, done, CPU_MMIO_DONE)
  store<u32>(s, done, CPU_MMIO_CURSOR)
  store<u32>(k, 1, VKVM_REPLAY)
  store<u64>(k, icount, VKVM_REPLAY_ICOUNT)
  store<u64>(k, rip, VKVM_REPLAY_RIP)
  store<u64>(k, rcx, VKVM_REPLAY_RCX)
}

function leave(s: usize, kind: u32, size: u32): void {
  const k = vkvm(s)
  store<u32>(k, kind, VKVM_PENDING)
  store<u32>(k, size, VKVM_PIO_SIZE)
  store<u32>(s, LEAVE_EXIT_RETRY, CPU_LEAVE)
}

/** The opcode of `op`, which ends in D8..DF, is such a byte alone: an x87 instruction, not one of the 0F map. */
function escape(s: usize, op: usize): bool {
  const mask = load<u64>(s, CPU_RIP_MASK)
  const long = mask == ~(<u64>0)
  const base = long ? 0 : load<u64>(s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4), SEG_BASE)
  const rip = load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)
  const length = <u32>load<u16>(op, OP_NEXT) - <u32>load<u16>(op, OP_OFFSET)
  for (let i: u32 = 0; i < length; i++) {
    const linear = base + ((rip + <u64>i) & mask)
    const at = fetchAddress(s, long ? linear : linear & 0xffffffff)
    if (!at) {
      store<u32>(s, 0, CPU_LEAVE)
      return false
    }
    const byte = <u32>load<u8>(at)
    const prefix =
      byte == 0x66 ||
      byte == 0x67 ||
      (byte & 0xfe) == 0xf2 ||
      (byte & 0xfe) == 0x64 ||
      (byte & 0xe7) == 0x26 ||
      (long && (byte & 0xf0) == 0x40)
    if (!prefix) return (byte & 0xf8) == 0xd8
  }
  return false
}

/**
 * KVM's emulator, which every such access goes through, knows no x87 but FNSTCW and FNSTSW (handle_emulation_failure): an exit,
 * or for user code, unless userspace wants to see it, #UD. The code to leave with, 0 = it can.
 */
function beyondEmulator(s: usize): u32 {
  const op: usize = load<u32>(s, CPU_OP)
  if (!op || (load<u32>(op, OP_EXTRA) & 0xf8) != 0xd8 || !escape(s, op)) return 0
  const opcode = load<u32>(op, OP_EXTRA)
  if ((<u32>load<u8>(op, OP_MODRM) & 0x38) == 0x38 && (opcode == 0xd9 || opcode == 0xdd)) return 0
  if (load<u32>(s, CPU_CPL) == 0 || load<u32>(vmOf(s), VM_EMULATION_EXITS) != 0) return unimplementedFeature(s, op, UNIMPLEMENTED_MMIO_X87)
  return raise(s, EXC_UD)
}

/** Reads `size` (1..8) bytes; CPU_LEAVE is set when the answer has to come from userspace. */
export function mmioRead(s: usize, gpa: u64, size: u32): u64 {
  if (isSevEs(s)) {
    // the nested page table has a reserved bit there: #VC, the guest's handler asks by VMGEXIT
    store<u32>(s, raiseError(s, EXC_VC, SVM_EXIT_NPF), CPU_LEAVE)
    return 0
  }
  const beyond = beyondEmulator(s)
  if (beyond) {
    store<u32>(s, beyond, CPU_LEAVE)
    return 0
  }
  if (busHas(s, gpa)) {
    pollRead(s, ((gpa << 16) ^ load<u64>(s, CPU_RIP)) | 1, pollWindow(false))
    advance(s, DEVICE_NS)
    return busMmioRead(s, gpa, size)
  }
  if (replayed(s)) {
    const at = load<u32>(s, CPU_MMIO_CURSOR)
    store<u32>(s, at + 1, CPU_MMIO_CURSOR)
    return load<u64>(s + CPU_MMIO_LOG + ((<usize>at) << 3))
  }
  pollRead(s, ((gpa << 16) ^ load<u64>(s, CPU_RIP)) | 1, pollWindow(false))
  advance(s, DEVICE_NS)
  if (load<u32>(vkvm(s), VKVM_REPLAY) != 0 && load<u32>(s, CPU_MMIO_DONE) >= LOG_ROWS && load<u32>(s, CPU_MMIO_CURSOR) >= LOG_ROWS) {
    // e.g. FXRSTOR from a device: more fragments than the log holds
    store<u32>(s, unimplementedFeature(s, 0, UNIMPLEMENTED_MMIO_LENGTH), CPU_LEAVE)
    return 0
  }
  exitMmio(s, false, gpa, size, 0)
  leave(s, PENDING_MMIO_READ, size)
  return 0
}

/** Writes; 0, or the LEAVE code (also in CPU_LEAVE). */
export function mmioWrite(s: usize, gpa: u64, size: u32, value: u64): u32 {
  if (isSevEs(s)) {
    store<u32>(s, raiseError(s, EXC_VC, SVM_EXIT_NPF), CPU_LEAVE)
    return LEAVE_FAULT
  }
  const beyond = beyondEmulator(s)
  if (beyond) {
    store<u32>(s, beyond, CPU_LEAVE)
    return beyond
  }
  if (busHas(s, gpa)) {
    pollEnd(s)
    advance(s, DEVICE_NS)
    busMmioWrite(s, gpa, size, value)
    return 0
  }
  if (replayed(s)) {
    store<u32>(s, load<u32>(s, CPU_MMIO_CURSOR) + 1, CPU_MMIO_CURSOR)
    return 0
  }
  pollEnd(s)
  advance(s, DEVICE_NS)
  if (ioeventWrite(s, false, gpa, size, value) || coalescedWrite(s, false, gpa, size, value)) {
    swallowed(s)
    return 0
  }
  exitMmio(s, true, gpa, size, size == 8 ? value : value & (((1 as u64) << ((size << 3) as u64)) - 1))
  leave(s, PENDING_MMIO_WRITE, size)
  return LEAVE_EXIT_RETRY
}
