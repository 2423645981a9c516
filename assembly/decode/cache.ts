/** Block cache: lookup, chaining, invalidation. STUB: engine room. */
/** The block at the current RIP, decoded if need be; 0 = an exception is pending (LEAVE set). */
export function lookup(s: usize): usize { return 0 }
/** Code bytes in these 128-byte lines of `frame` (linear frame address) change: drops the blocks of every vCPU. True if `s`'s current block was hit (s may be 0). */
export function invalidateLines(s: usize, frame: usize, lines: u32): bool { return false }
/** Drops every block of this vCPU. */
export function flushBlocks(s: usize): void { }
