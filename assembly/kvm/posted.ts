/**
 * MMIO writes leave with their instruction already behind them: KVM's emulator writes registers and RIP back before the exit
 * (x86_emulate_instruction, "writeback" stays true for writes), and hands out what it wrote in pieces of at most 8 bytes
 * (complete_emulated_mmio). Here the instruction is executed again at once with each piece taken as done; the pieces behind
 * the first wait in VCPU_FPU + QUEUE for the next KVM_RUN. Owns VKVM_MMIO_NEXT and VKVM_MMIO_COUNT.
 */
import { execute } from '../generated/execute'
import { KVM_EXIT_MMIO, RUN_EXIT_REASON, RUN_MMIO_ADDRESS, RUN_MMIO_DATA, RUN_MMIO_IS_WRITE, RUN_MMIO_LENGTH } from '../generated/kvm'
import {
  CPU_BUDGET,
  CPU_EVENT,
  CPU_GPR,
  CPU_ICOUNT,
  CPU_SLICE_END,
  CPU_STOP_REASON,
  EVENT_KICK,
  PENDING_MMIO_MORE,
  PENDING_MMIO_WRITE,
  PENDING_NONE,
  STOP_EXIT,
  VCPU_FPU,
  VKVM_MMIO_COUNT,
  VKVM_MMIO_NEXT,
  VKVM_PENDING,
  VKVM_REPLAY,
} from '../generated/layout'
import { complete } from './complete'
import { singleStepping } from './debug'
import { REPLAY_ALONE } from './events'
import { runOf, vkvm } from './state'

/** Behind the largest XSAVE image. Rows of address, data u64 and length u32, 24 bytes each. */
const QUEUE: usize = 0xa00
const ROW: usize = 24
const ROWS: u32 = 64

function row(s: usize, n: u32): usize {
  return s + VCPU_FPU + QUEUE + <usize>n * ROW
}

function show(s: usize, n: u32): void {
  const run = runOf(s)
  const at = row(s, n)
  store<u64>(run, load<u64>(at), RUN_MMIO_ADDRESS)
  store<u64>(run, load<u64>(at, 8), RUN_MMIO_DATA)
  store<u32>(run, load<u32>(at, 16), RUN_MMIO_LENGTH)
  store<u8>(run, 1, RUN_MMIO_IS_WRITE)
  store<u32>(run, KVM_EXIT_MMIO, RUN_EXIT_REASON)
}

/** The instruction at RIP once, and no event: true if it left for userspace again. */
function again(s: usize): bool {
  const end = load<u64>(s, CPU_ICOUNT) + 1
  store<u64>(s, end, CPU_SLICE_END)
  store<u32>(vkvm(s), REPLAY_ALONE, VKVM_REPLAY)
  atomic.store<u64>(s + CPU_BUDGET, end)
  execute(s)
  return load<u32>(s, CPU_STOP_REASON) == STOP_EXIT
}

/** KVM_RUN is about to return with an MMIO write. */
export function finishWrite(s: usize): void {
  const k = vkvm(s)
  const run = runOf(s)
  if (singleStepping(s) || (atomic.load<u32>(s + CPU_EVENT) & EVENT_KICK) != 0) return
  const icount = load<u64>(s, CPU_ICOUNT)
  const rcx = load<u64>(s, CPU_GPR + 8)
  let count: u32 = 0
  while (load<u32>(k, VKVM_PENDING) == PENDING_MMIO_WRITE && count < ROWS) {
    const at = row(s, count++)
    store<u64>(at, load<u64>(run, RUN_MMIO_ADDRESS))
    store<u64>(at, load<u64>(run, RUN_MMIO_DATA), 8)
    store<u32>(at, load<u32>(run, RUN_MMIO_LENGTH), 16)
    complete(s)
    if (!again(s)) break
    if (load<u64>(s, CPU_ICOUNT) != icount || load<u64>(s, CPU_GPR + 8) != rcx) {
      // The next round of a REP has left: its turn comes when userspace is done with this one.
      store<u32>(k, PENDING_NONE, VKVM_PENDING)
      break
    }
  }
  show(s, 0)
  if (count > 1) {
    store<u32>(k, 1, VKVM_MMIO_NEXT)
    store<u32>(k, count, VKVM_MMIO_COUNT)
    store<u32>(k, PENDING_MMIO_MORE, VKVM_PENDING)
  }
}

/** The next KVM_RUN after a piece: true if another one is to be shown. */
export function nextPiece(s: usize): bool {
  const k = vkvm(s)
  const next = load<u32>(k, VKVM_MMIO_NEXT)
  if (next >= load<u32>(k, VKVM_MMIO_COUNT)) return false
  show(s, next)
  store<u32>(k, next + 1, VKVM_MMIO_NEXT)
  store<u32>(k, PENDING_MMIO_MORE, VKVM_PENDING)
  return true
}
