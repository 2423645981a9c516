/** Completion of a pending exit at the next KVM_RUN: the payload is read again from kvm_run (complete_userspace_io). */
import { setAccumulator } from '../execute/io'
import { RUN_MMIO_DATA, RUN_MSR_DATA, RUN_MSR_ERROR } from '../generated/kvm'
import {
  CPU_EFLAGS,
  CPU_GPR,
  CPU_ICOUNT,
  CPU_INTERRUPT_SHADOW,
  CPU_PENDING_DB,
  CPU_MMIO_CURSOR,
  CPU_MMIO_DONE,
  CPU_MMIO_LOG,
  CPU_RIP,
  PENDING_GHCB_IN,
  PENDING_GHCB_MMIO,
  PENDING_GHCB_STRING,
  PENDING_HYPERCALL,
  PENDING_IN,
  PENDING_INS,
  PENDING_MMIO_READ,
  PENDING_MMIO_WRITE,
  PENDING_NONE,
  PENDING_OUT,
  PENDING_RDMSR,
  PENDING_SKIP,
  PENDING_WRMSR,
  VKVM_BUFFER,
  VKVM_INJECT_GP,
  VKVM_INS_END,
  VKVM_INS_POS,
  VKVM_NEXT_RIP,
  VKVM_PENDING,
  VKVM_PENDING_RIP,
  VKVM_PIO_COUNT,
  VKVM_PIO_SIZE,
  VKVM_REPLAY,
  VKVM_REPLAY_ICOUNT,
  VKVM_REPLAY_RCX,
  VKVM_REPLAY_RIP,
} from '../generated/layout'
import { TF } from '../cpu/flags'
import { singleStepping } from './debug'
import { completeGhcbMsr } from './ghcb'
import { completeGhcbIn, completeGhcbMmio, completeGhcbString } from './ghcb-io'
import { completeHypercall } from './hypercall'
import { pioData } from './pio'
import { isSevEs, runOf, vkvm } from './state'

/** The instruction retires now (kvm_skip_emulated_instruction, its single-step trap included). */
function skipInstruction(s: usize): void {
  store<u64>(s, load<u64>(vkvm(s), VKVM_NEXT_RIP), CPU_RIP)
  store<u64>(s, load<u64>(s, CPU_ICOUNT) + 1, CPU_ICOUNT)
  store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
  // A debugger's step is an exit of its own (kvm_vcpu_do_singlestep).
  if ((load<u64>(s, CPU_EFLAGS) & TF) != 0 && !singleStepping(s)) store<u32>(s, load<u32>(s, CPU_PENDING_DB) | 0x4000, CPU_PENDING_DB)
}

/** Executes the instruction at RIP again before any event. A new instruction (or iteration) starts a new log. */
function replay(s: usize, fragment: bool, data: u64, mask: u64): void {
  const k = vkvm(s)
  const icount = load<u64>(s, CPU_ICOUNT)
  const rip = load<u64>(s, CPU_RIP)
  const rcx = load<u64>(s, CPU_GPR + 8)
  const same =
    load<u32>(k, VKVM_REPLAY) != 0 &&
    load<u64>(k, VKVM_REPLAY_ICOUNT) == icount &&
    load<u64>(k, VKVM_REPLAY_RIP) == rip &&
    load<u64>(k, VKVM_REPLAY_RCX) == rcx
  let done: u32 = same ? load<u32>(s, CPU_MMIO_DONE) : 0
  if (fragment) {
    store<u64>(s + CPU_MMIO_LOG + ((<usize>(done & 15)) << 3), data & mask)
    done++
  }
  store<u32>(s, done, CPU_MMIO_DONE)
  store<u32>(s, 0, CPU_MMIO_CURSOR)
  store<u32>(k, 1, VKVM_REPLAY)
  store<u64>(k, icount, VKVM_REPLAY_ICOUNT)
  store<u64>(k, rip, VKVM_REPLAY_RIP)
  store<u64>(k, rcx, VKVM_REPLAY_RCX)
}

/** complete_userspace_rdmsr / wrmsr: the value, or #GP when userspace reports an error. */
function completeMsr(s: usize, read: bool): void {
  const run = runOf(s)
  if (load<u8>(run, RUN_MSR_ERROR) != 0) {
    store<u32>(vkvm(s), 1, VKVM_INJECT_GP)
    return
  }
  if (read) {
    store<u64>(s, <u64>load<u32>(run, RUN_MSR_DATA), CPU_GPR)
    store<u64>(s, <u64>load<u32>(run, RUN_MSR_DATA + 4), CPU_GPR + 16)
  }
  skipInstruction(s)
}

/** 1 = run on, 0 = another exit is filled in, negative errno. */
export function complete(s: usize): i32 {
  const k = vkvm(s)
  const kind = load<u32>(k, VKVM_PENDING)
  store<u32>(k, PENDING_NONE, VKVM_PENDING)
  const size = load<u32>(k, VKVM_PIO_SIZE)
  const moved = load<u64>(s, CPU_RIP) != load<u64>(k, VKVM_PENDING_RIP)
  switch (kind) {
    case PENDING_IN:
      // kvm_is_linear_rip: userspace that moved RIP keeps what it set
      if (moved) return 1
      setAccumulator(s, size, load<u32>(pioData(s)))
      skipInstruction(s)
      return 1
    case PENDING_OUT:
    case PENDING_SKIP:
      if (!moved) skipInstruction(s)
      return 1
    case PENDING_INS:
      memory.copy(k + VKVM_BUFFER, pioData(s), <usize>(load<u32>(k, VKVM_PIO_COUNT) * size))
      store<u32>(k, 0, VKVM_INS_POS)
      store<u32>(k, load<u32>(k, VKVM_PIO_COUNT) * size, VKVM_INS_END)
      replay(s, false, 0, 0)
      return 1
    case PENDING_MMIO_READ:
      replay(s, true, load<u64>(runOf(s), RUN_MMIO_DATA), size == 8 ? ~(<u64>0) : ((1 as u64) << ((size << 3) as u64)) - 1)
      return 1
    case PENDING_MMIO_WRITE:
      replay(s, true, 0, 0)
      return 1
    case PENDING_HYPERCALL:
      completeHypercall(s)
      if (!isSevEs(s) && !moved) skipInstruction(s)
      return 1
    case PENDING_RDMSR:
    case PENDING_WRMSR:
      if (isSevEs(s)) completeGhcbMsr(s, kind == PENDING_RDMSR)
      else if (!moved) completeMsr(s, kind == PENDING_RDMSR)
      return 1
    case PENDING_GHCB_IN:
      return completeGhcbIn(s)
    case PENDING_GHCB_STRING:
      return completeGhcbString(s)
    case PENDING_GHCB_MMIO:
      return completeGhcbMmio(s)
    default:
      return 1
  }
}
