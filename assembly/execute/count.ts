/** How many instructions have retired, exactly: CPU_ICOUNT is counted ahead to the end of the block. Owns no state. */
import { BLOCK_LENGTH, CPU_ICOUNT, CPU_OP, OP_OFFSET, SIZEOF_OP } from '../generated/layout'

/** Index of an op in its block: the first op has offset 0. */
function opIndex(op: usize): u32 {
  let i: u32 = 0
  while (load<u16>(op, OP_OFFSET) != 0) {
    op -= SIZEOF_OP
    i++
  }
  return i
}

/** Instructions retired before the op being executed (CPU_OP), or at the current boundary. */
export function exactCount(s: usize): u64 {
  const op = <usize>load<u32>(s, CPU_OP)
  const count = load<u64>(s, CPU_ICOUNT)
  if (!op) return count
  const index = opIndex(op)
  return count - <u64>(load<u32>(op - <usize>(index + 1) * SIZEOF_OP, BLOCK_LENGTH) - index)
}
