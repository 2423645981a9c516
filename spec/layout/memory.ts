/** Translation state of one vCPU that only the memory room reads. */
import { struct } from './struct.ts'

export const mmu = struct(
  'MMU',
  'Translation state, at VCPU_MMU',
  [
    ['LARGE_BASE', 'u64', 'INVLPG of an address with (va & LARGE_MASK) == LARGE_BASE may concern a large page: flush all'],
    ['LARGE_MASK', 'u64', 'LARGE_BASE ~0 = no large page was cached since the last full flush'],
    ['GLOBAL_CONTEXT', 'u32', 'context of the global entries of the L2 TLB'],
    ['USED', 'u32', 'bit i: L1 array i holds entries since its last fill'],
    ['WALKS', 'u64', 'page walks since creation'],
    ['FLUSHES', 'u64', 'whole-L1 flushes since creation'],
    ['FILLS', 'u32', 'length of FILL_LIST; a full list is incomplete'],
    ['PSC_GENERATION', 'u32', 'second generation (9 bits) in the tags of the paging-structure cache: INVLPG empties all of it'],
    ['CONTEXTS', 'u32', 'the last context that was given out (12 bits)'],
    ['PCIDS', 'u32', '1 = contexts other than that of PCID 0 may be in use'],
    ['CLEAN', 'u32', 'in an L2 entry: its frame is stored in the view of the VM, dirty and without code; counts frames that get code'],
    ['STAMP', 'u32', 'low 12 bits of the tags of valid entries at VCPU_TLB_DENSE, above them 20 bits of the address (47:28); never 0'],
    ['MISS', 'u64', 'linear address at which the fast loop function missed'],
    // What memory/quick.ts needs at every miss, prepared; see quickPrepare.
    ['QUICK', 'u32', '0 = to be prepared again'],
    ['QUICK_BIT', 'u32', 'bit of the current L1 array in USED'],
    ['QUICK_PSC', 'u64', 'tag of a PSC entry without its address bits'],
    ['QUICK_LOCAL', 'u64', 'tag of an L2 entry without its page'],
    ['QUICK_GLOBAL', 'u64', 'the same of a global one'],
    ['QUICK_NOW', 'u64', 'QUICK_ALLOW of the current L1 array'],
    ['QUICK_MASK', 'u64', 'bits of a leaf that must be as in WANT'],
    ['QUICK_WANT', 'u64', ''],
    ['QUICK_INFO', 'u64', 'KEY and FLAGS of the first 8 bytes of a FRAME'],
    [
      'QUICK_ALLOW',
      'u64',
      'by L1 array (3 = none): 4 bits for each of the 16 combinations of L2_U, L2_X, L2_W, L2_STORE: 1 read, 2 write, 4 execute',
      4,
    ],
    ['QUICK_DATA', 'u32', 'L2_VALID and L2_PRIVATE'],
    ['QUICK_UNITS', 'u32', 'VM_UNITS of the VM'],
    ['FILL_LIST', 'u32', 'addresses of the L1 entries that were filled since the last flush', 900],
  ],
  0x1000,
)
