/**
 * Flags that nobody sees: an instruction whose flags its block overwrites, with nothing between that reads them, may fault or may
 * leave the block, gets its quiet form. A copy that is cut short (execute/boundary.ts) takes the ordinary forms again.
 */
import { OP_IMM, SIZEOF_OP } from '../generated/layout'
import { flagUse, FLAGS_IGNORES, FLAGS_NEEDS, FLAGS_OVERWRITES, quiet } from '../generated/opcodes'

/** Ops from `first` to before `end`, in the order of execution; what follows them sees the flags. */
export function quietUnseen(first: usize, end: usize): void {
  let seen = true
  for (let op = end - SIZEOF_OP; op >= first; op -= SIZEOF_OP) {
    const id = <u32>load<u16>(op)
    const use = flagUse(id)
    const form = seen ? 0 : quiet(id)
    if (form) {
      store<u16>(op, <u16>form)
      if (flagUse(form) == FLAGS_NEEDS) seen = true
    } else if (use == FLAGS_NEEDS) seen = true
    else if (use != FLAGS_IGNORES) {
      // Counts are taken modulo 32 or 64: of what is 0 modulo 32 no more is known.
      if (use == FLAGS_OVERWRITES || (load<u8>(op, OP_IMM) & 31) != 0) seen = false
    }
  }
}
