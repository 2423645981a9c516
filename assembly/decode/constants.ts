/**
 * Constants of the block cache that cold handlers reach through invalidateLines. A file of its own: generated/opcodes
 * compiles every handler before decode/cache.ts, which imports it, has declared anything.
 */
/** BLOCK_COUNT of a dropped block. */
export const DROPPED: u32 = 0x7fffffff
