/**
 * The way back into the fast loop after a TLB miss that memory/quick.ts does not know: the whole translation, and nothing else.
 * Faults, MMIO, page crossings and anything unusual are left to the slow function.
 */
import {
  CPU_LEAVE,
  CPU_OP,
  CPU_SAVED_OP,
  CPU_STOP_REASON,
  CPU_TLB_BASE,
  STOP_NONE,
  STOP_RING_FULL,
  TLB_READ,
  TLB_WRITE,
} from '../generated/layout'
import { ringAgain } from '../memory/dirty-ring'
import { PLAIN, translate, truncate } from '../memory/translate'

/** True if the L1 TLB now serves an access of miss code `n` (size << 2 | 1 read, 2 write) to `va`. */
export function refill(s: usize, va: u64, n: u32): bool {
  if (truncate(s, va) != va || <u32>(va & 0xfff) + (n >> 2) > 0x1000) return false
  store<u32>(s, load<u32>(s, CPU_SAVED_OP), CPU_OP)
  const write = (n >> 1) & 1
  if (translate(s, va, write) != PLAIN) {
    // The slow function meets the same fault again and reports it; a ring that became full it would not see a second time.
    if (load<u32>(s, CPU_STOP_REASON) == STOP_RING_FULL) ringAgain()
    store<u32>(s, 0, CPU_LEAVE)
    store<u32>(s, STOP_NONE, CPU_STOP_REASON)
    return false
  }
  const e = <usize>load<u32>(s, CPU_TLB_BASE) + <usize>((va >> 7) & 0x7fe0)
  return (write ? load<u64>(e, TLB_WRITE) : load<u64>(e, TLB_READ)) == (va & ~0xfff)
}
