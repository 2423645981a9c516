/** Translation state of one vCPU that only the memory room reads. */
import { struct } from './struct.ts'

export const mmu = struct(
  'MMU',
  'Translation state, at the start of VCPU_WRITE_LIST',
  [
    ['LARGE_BASE', 'u64', 'INVLPG of an address with (va & LARGE_MASK) == LARGE_BASE may concern a large page: flush all'],
    ['LARGE_MASK', 'u64', 'LARGE_BASE ~0 = no large page was cached since the last full flush'],
    ['GLOBAL_GENERATION', 'u32', 'generation (6 bits) of the global entries of the L2 TLB'],
    ['USED', 'u32', 'bit i: L1 array i holds entries since its last fill'],
    ['WALKS', 'u64', 'page walks since creation'],
    ['FLUSHES', 'u64', 'whole-L1 flushes since creation'],
    ['WRITE_COUNT', 'u32', 'length of WRITE_LIST; beyond its size the list is incomplete'],
    ['PSC_GENERATION', 'u32', 'second generation (9 bits) in the tags of the paging-structure cache: INVLPG empties all of it'],
    ['WRITE_LIST', 'u32', 'addresses of L1 entries that were given a write tag', 1000],
  ],
  0x1000,
)
