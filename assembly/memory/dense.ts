/**
 * Dense entries: what the loop needs of an L2 entry, in 8 bytes by the same index, because misses of large working sets wait for the
 * lines of the L2 array (tools/generate-fill.ts, which also writes them). Owns VCPU_TLB_DENSE and MMU_STAMP.
 *
 * u32 data of an L2 entry that MMU_CLEAN allows, u32 tag {11:0 MMU_STAMP, 31:12 address bits 47:28}.
 */
import { MMU_STAMP, VCPU_MMU, VCPU_TLB_DENSE, VCPU_TLB_DENSE_SIZE } from '../generated/layout'

const STAMP_MAX: u32 = 0xfff

/** What the entries were made from has changed - contexts, or which frames hold code: none is valid any more. */
export function newStamp(s: usize): void {
  let stamp = load<u32>(s, VCPU_MMU + MMU_STAMP) + 1
  if (stamp > STAMP_MAX) {
    memory.fill(s + VCPU_TLB_DENSE, 0, VCPU_TLB_DENSE_SIZE)
    stamp = 1
  }
  store<u32>(s, stamp, VCPU_MMU + MMU_STAMP)
}

/** INVLPG. */
export function dropDense(s: usize, va: u64): void {
  store<u64>(s + (<usize>((va >> 9) ^ (va >> 25)) & 0x7fff8), 0, VCPU_TLB_DENSE)
}
