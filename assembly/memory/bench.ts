/** The translation path alone, as a benchmark calls it (bench/memory.ts, beside bench/translation.c): no part of the emulator. */
import { BENCH_CODE, benchMiss, benchRun, benchStart, benchSum } from '../generated/fill'
import { quickWalk } from './quick'
import { READ } from '../paging/walk'
import { PLAIN, translate } from './translate'

/** Sum of `n` 8-byte loads from random places of the `mask` + 8 bytes at `base`, made as the loop makes them. */
export function benchLoads(s: usize, base: u64, mask: u32, n: u32): u64 {
  benchStart()
  while ((n = benchRun(s, base, mask, n)) != 0) {
    if (!quickWalk(s, benchMiss, BENCH_CODE) && translate(s, benchMiss, READ) != PLAIN) return 0
  }
  return benchSum
}
