/**
 * IN, OUT, INS, OUTS and HLT. SDM vol 2; permission: SDM vol 1, 19.5.2. What userspace sees follows
 * kvm_fast_pio and the emulator of Linux 7.3 arch/x86/kvm/{x86,emulate}.c.
 */
import { raiseError } from '../cpu/exceptions'
import { controlFlags } from '../cpu/flags'
import {
  CPU_CPL,
  CPU_CR0,
  CPU_GPR,
  CPU_HALTED,
  CPU_LEAVE,
  CPU_RIP,
  CPU_RIP_MASK,
  CPU_SEGMENTS,
  CPU_STOP_REASON,
  EXC_GP,
  EXC_VC,
  LEAVE_EXIT_NEXT,
  LEAVE_EXIT_RETRY,
  LEAVE_FAULT,
  LEAVE_NEXT,
  OP_FLAGS,
  OP_IMM,
  OP_NEXT,
  OP_OFFSET,
  OP_SEG,
  OPF_REP,
  OPF_REPNE,
  PENDING_IN,
  PENDING_INS,
  PENDING_OUT,
  EXITS_HLT,
  QUIRK_OUT_7E_INC_RIP,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_ES,
  SEG_LIMIT,
  SEG_TR,
  STOP_EVENT,
  VKVM_BUFFER,
  VKVM_HALT_EXITS,
  VKVM_INS_END,
  VKVM_INS_KEY,
  VKVM_INS_POS,
  VKVM_NEXT_RIP,
  VKVM_PENDING,
  VKVM_PENDING_RIP,
  VKVM_PIO_COUNT,
  VKVM_PIO_PORT,
  VKVM_PIO_SIZE,
} from '../generated/layout'
import { FLAG_DF } from '../generated/registers'
import { exitHlt } from '../kvm/exits'
import { coalescedWrite } from '../kvm/coalesced'
import { ioeventWrite } from '../kvm/ioevent'
import { busRead, busWrite, chargeAccess, inKernelPort, pioData, pioExit, pollEnd, pollRead, pollWindow } from '../kvm/pio'
import { exitsDisabled, isSevEs, kernelApic, quirk, vkvm } from '../kvm/state'
import { leaving, readMem, sysRead, writeMem } from '../memory/access'
import { addressMask, operandSize, segmentAddress } from './operands'
import { disturbed, giveWay } from './repeat'

const SVM_EXIT_IOIO: u32 = 0x7b

/** IOPL, or the I/O permission bitmap of the TSS (SDM vol 1, 19.5.2). Raises #GP(0). */
function permitted(s: usize, port: u32, size: u32): bool {
  if ((load<u64>(s, CPU_CR0) & 1) == 0) return true
  const flags = controlFlags(s)
  const v86 = (flags & 0x20000) != 0
  if (!v86 && load<u32>(s, CPU_CPL) <= (<u32>(flags >> 12) & 3)) return true
  const tr = s + CPU_SEGMENTS + ((<usize>SEG_TR) << 4)
  const type = <u32>load<u16>(tr, SEG_ATTRIB) & 0xf
  const limit = load<u32>(tr, SEG_LIMIT)
  if ((type == 9 || type == 11) && limit >= 103) {
    const base = load<u64>(tr, SEG_BASE)
    const map = <u32>sysRead(s, base + 102, 2)
    if (leaving(s)) return false
    const at = map + (port >> 3)
    if (at + 1 <= limit) {
      const bits = <u32>sysRead(s, base + <u64>at, 2)
      if (leaving(s)) return false
      if (((bits >> (port & 7)) & ((1 << size) - 1)) == 0) return true
    }
  }
  raiseError(s, EXC_GP, 0)
  return false
}

function rip(s: usize, op: usize): u64 {
  return load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)
}

/** Remembers where to go on, for the completion at the next KVM_RUN. */
function pend(s: usize, op: usize, kind: u32, port: u32, size: u32, count: u32): u32 {
  const k = vkvm(s)
  store<u32>(k, kind, VKVM_PENDING)
  store<u64>(k, (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK), VKVM_NEXT_RIP)
  store<u64>(k, rip(s, op) & load<u64>(s, CPU_RIP_MASK), VKVM_PENDING_RIP)
  store<u32>(k, port, VKVM_PIO_PORT)
  store<u32>(k, size, VKVM_PIO_SIZE)
  store<u32>(k, count, VKVM_PIO_COUNT)
  return LEAVE_EXIT_RETRY
}

/** Writes AL, AX or EAX (EAX clears the upper half). */
export function setAccumulator(s: usize, size: u32, value: u32): void {
  if (size == 1) store<u8>(s, <u8>value, CPU_GPR)
  else if (size == 2) store<u16>(s, <u16>value, CPU_GPR)
  else store<u64>(s, <u64>value, CPU_GPR)
}

function input(s: usize, op: usize, port: u32): u32 {
  let size = operandSize(op)
  if (size == 8) size = 4
  if (!permitted(s, port, size)) return LEAVE_FAULT
  if (isSevEs(s)) return raiseError(s, EXC_VC, SVM_EXIT_IOIO)
  pollRead(s, ((rip(s, op) << 16) | <u64>port) + 1, pollWindow(false))
  chargeAccess(s)
  if (inKernelPort(s, port)) {
    setAccumulator(s, size, busRead(s, port, size))
    return LEAVE_NEXT
  }
  pioExit(s, false, port, size, 1)
  return pend(s, op, PENDING_IN, port, size, 1)
}

function output(s: usize, op: usize, port: u32): u32 {
  let size = operandSize(op)
  if (size == 8) size = 4
  if (!permitted(s, port, size)) return LEAVE_FAULT
  if (isSevEs(s)) return raiseError(s, EXC_VC, SVM_EXIT_IOIO)
  const value = load<u32>(s, CPU_GPR)
  pollEnd(s)
  chargeAccess(s)
  if (inKernelPort(s, port)) {
    busWrite(s, port, size, value)
    return LEAVE_NEXT
  }
  if (ioeventWrite(s, true, <u64>port, size, <u64>value) || coalescedWrite(s, true, <u64>port, size, <u64>value)) return LEAVE_NEXT
  store<u32>(pioData(s), value)
  pioExit(s, true, port, size, 1)
  // For port 0x7e RIP is already past the instruction at the exit.
  if (port == 0x7e && quirk(s, QUIRK_OUT_7E_INC_RIP)) return LEAVE_EXIT_NEXT
  return pend(s, op, PENDING_OUT, port, size, 1)
}

export function inImmediate(s: usize, op: usize): u32 {
  return input(s, op, <u32>load<u64>(op, OP_IMM) & 0xff)
}
export function inDx(s: usize, op: usize): u32 {
  return input(s, op, <u32>load<u16>(s, CPU_GPR + 16))
}
export function outImmediate(s: usize, op: usize): u32 {
  return output(s, op, <u32>load<u64>(op, OP_IMM) & 0xff)
}
export function outDx(s: usize, op: usize): u32 {
  return output(s, op, <u32>load<u16>(s, CPU_GPR + 16))
}

/** Adds to RSI, RDI or RCX in the address size. */
function addIndex(s: usize, at: usize, mask: u64, delta: i64): void {
  const old = load<u64>(s + at)
  const value = (old + <u64>delta) & mask
  store<u64>(s + at, mask == 0xffff ? (old & ~mask) | value : value)
}

const RCX: usize = 8
const RSI: usize = 48
const RDI: usize = 56

/** INS: elements come from the string buffer when userspace or a device filled it, else an exit asks for as many as fit. */
export function ins(s: usize, op: usize): u32 {
  const port = <u32>load<u16>(s, CPU_GPR + 16)
  let size = operandSize(op)
  if (size == 8) size = 4
  if (!permitted(s, port, size)) return LEAVE_FAULT
  if (isSevEs(s)) return raiseError(s, EXC_VC, SVM_EXIT_IOIO)
  const k = vkvm(s)
  const mask = addressMask(op)
  const repeat = (load<u8>(op, OP_FLAGS) & (OPF_REP | OPF_REPNE)) != 0
  const down = (controlFlags(s) & FLAG_DF) != 0
  const step: i64 = down ? -(<i64>size) : <i64>size
  const key = (rip(s, op) << 16) | <u64>port
  const kernel = inKernelPort(s, port)
  if (load<u64>(k, VKVM_INS_KEY) != key) store<u32>(k, load<u32>(k, VKVM_INS_END), VKVM_INS_POS)
  pollEnd(s)
  while (true) {
    if (repeat && (load<u64>(s, CPU_GPR + RCX) & mask) == 0) {
      // what is left when userspace made the count smaller is not for the next instruction
      store<u32>(k, load<u32>(k, VKVM_INS_END), VKVM_INS_POS)
      return LEAVE_NEXT
    }
    const pos = load<u32>(k, VKVM_INS_POS)
    let value: u32
    if (pos < load<u32>(k, VKVM_INS_END)) {
      value = load<u32>(k + VKVM_BUFFER + pos)
    } else if (kernel) {
      chargeAccess(s)
      value = busRead(s, port, size)
    } else {
      // pio_in_emulated: up to the end of the page at RDI, and 1024 bytes
      let count: u32 = 1
      if (repeat) {
        const offset = <u32>load<u64>(s, CPU_GPR + RDI) & 0xfff
        count = (down ? offset : 4096 - offset) / size
        if (count > 1024 / size) count = 1024 / size
        const left = load<u64>(s, CPU_GPR + RCX) & mask
        if (<u64>count > left) count = <u32>left
        if (count == 0) count = 1
      }
      chargeAccess(s)
      store<u64>(k, key, VKVM_INS_KEY)
      pioExit(s, false, port, size, count)
      return pend(s, op, PENDING_INS, port, size, count)
    }
    const va = segmentAddress(s, SEG_ES, load<u64>(s, CPU_GPR + RDI) & mask, size, true)
    if (leaving(s)) return load<u32>(s, CPU_LEAVE)
    const failed = writeMem(s, op, va, size, <u64>value)
    if (failed) return failed
    if (pos < load<u32>(k, VKVM_INS_END)) store<u32>(k, pos + size, VKVM_INS_POS)
    addIndex(s, CPU_GPR + RDI, mask, step)
    if (!repeat) return LEAVE_NEXT
    addIndex(s, CPU_GPR + RCX, mask, -1)
    // What userspace has read ahead belongs to this instruction.
    if (load<u32>(k, VKVM_INS_POS) >= load<u32>(k, VKVM_INS_END) && (load<u64>(s, CPU_GPR + RCX) & mask) != 0 && disturbed(s))
      return giveWay(s, op)
  }
}

/** OUTS: the emulator writes the registers back before each exit, one element per exit. */
export function outs(s: usize, op: usize): u32 {
  const port = <u32>load<u16>(s, CPU_GPR + 16)
  let size = operandSize(op)
  if (size == 8) size = 4
  if (!permitted(s, port, size)) return LEAVE_FAULT
  if (isSevEs(s)) return raiseError(s, EXC_VC, SVM_EXIT_IOIO)
  const mask = addressMask(op)
  const repeat = (load<u8>(op, OP_FLAGS) & (OPF_REP | OPF_REPNE)) != 0
  const step: i64 = (controlFlags(s) & FLAG_DF) != 0 ? -(<i64>size) : <i64>size
  const kernel = inKernelPort(s, port)
  pollEnd(s)
  while (true) {
    if (repeat && (load<u64>(s, CPU_GPR + RCX) & mask) == 0) return LEAVE_NEXT
    const va = segmentAddress(s, <u32>load<u8>(op, OP_SEG), load<u64>(s, CPU_GPR + RSI) & mask, size, false)
    if (leaving(s)) return load<u32>(s, CPU_LEAVE)
    const value = <u32>readMem(s, op, va, size)
    if (leaving(s)) return load<u32>(s, CPU_LEAVE)
    addIndex(s, CPU_GPR + RSI, mask, step)
    if (repeat) addIndex(s, CPU_GPR + RCX, mask, -1)
    chargeAccess(s)
    if (kernel) {
      busWrite(s, port, size, value)
    } else if (!ioeventWrite(s, true, <u64>port, size, <u64>value) && !coalescedWrite(s, true, <u64>port, size, <u64>value)) {
      store<u32>(pioData(s), value)
      pioExit(s, true, port, size, 1)
      return repeat && (load<u64>(s, CPU_GPR + RCX) & mask) != 0 ? LEAVE_EXIT_RETRY : LEAVE_EXIT_NEXT
    }
    if (!repeat) return LEAVE_NEXT
    if ((load<u64>(s, CPU_GPR + RCX) & mask) != 0 && disturbed(s)) return giveWay(s, op)
  }
}

/** HLT: with an APIC in the kernel the vCPU sleeps there, else userspace gets KVM_EXIT_HLT. */
export function hlt(s: usize, op: usize): u32 {
  if (load<u32>(s, CPU_CPL) != 0) return raiseError(s, EXC_GP, 0)
  if (!exitsDisabled(s, EXITS_HLT)) store<u64>(vkvm(s), load<u64>(vkvm(s), VKVM_HALT_EXITS) + 1, VKVM_HALT_EXITS)
  if (kernelApic(s) || exitsDisabled(s, EXITS_HLT)) {
    store<u32>(s, 3, CPU_HALTED)
    store<u32>(s, STOP_EVENT, CPU_STOP_REASON)
  } else {
    exitHlt(s)
  }
  return LEAVE_EXIT_NEXT
}
