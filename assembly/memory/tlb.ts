/** Software TLB: selection, flush, single invalidation. STUB: memory room. */
/** Chooses the L1 array from CPL, CR4.SMAP and RFLAGS.AC. */
export function selectTlb(s: usize): void { }
/** Everything, global entries included; new jump-cache generation. */
export function flushTlb(s: usize): void { }
/** MOV to CR3: keeps global entries. */
export function flushTlbLocal(s: usize): void { }
export function invalidatePage(s: usize, va: u64): void { }
/** All vCPUs of all VMs that may map the frame. */
export function flushEverywhere(): void { }
/** The frame becomes code: its write tags go. */
export function dropWriteTags(frame: usize): void { }
