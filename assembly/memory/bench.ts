/** The translation path alone, as a benchmark calls it (bench/memory.ts, beside bench/translation.c): no part of the emulator. */
import { CPU_TLB_BASE, TLB_ADDEND, TLB_READ } from '../generated/layout'
import { quickFill } from './quick'
import { PLAIN, translate } from './translate'

/** Sum of `n` 8-byte loads from random places of the `mask` + 8 bytes at `base`, made as the loop makes them. */
export function benchLoads(s: usize, base: u64, mask: u32, n: u32): u64 {
  let x: u32 = 1
  let sum: u64 = 0
  for (; n != 0; n--) {
    x = x * 1664525 + 1013904223
    const va = base + <u64>((x >> 4) & mask)
    const e = <usize>load<u32>(s, CPU_TLB_BASE) + (<usize>(va >> 7) & 0x7fe0)
    if (load<u64>(e, TLB_READ) != ((va + 7) & ~0xfff) && !quickFill(s, va, 16) && translate(s, va, 0) != PLAIN) return 0
    sum += load<u64>(<usize>(<u32>va + load<u32>(e, TLB_ADDEND)))
  }
  return sum
}
