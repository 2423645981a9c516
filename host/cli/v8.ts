/** What V8 has to be told before the core is compiled. */
import { setFlagsFromString } from 'node:v8'

const KEEP_REGISTERS = '--no-turbo-use-mid-tier-regalloc-for-huge-functions'

/**
 * V8 11 (Node 20) gives functions as large as the execution loop a register allocator that keeps nothing in registers from one
 * instruction to the next: 380 MIPS instead of 540 (bench/guests/loops.S, sieve). Other versions may not know the option. The
 * option that was set, or none.
 */
export function tellV8(): string | null {
  if (!process.versions.v8?.startsWith('11.')) return null
  setFlagsFromString(KEEP_REGISTERS)
  return KEEP_REGISTERS
}
