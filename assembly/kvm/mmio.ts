/** MMIO from the memory room: addresses without a slot, the local APIC page, stores to read-only slots. STUB: irqchip room. */
/** Reads `size` (1..8) bytes at `gpa`. Sets CPU_LEAVE (LEAVE_EXIT_RETRY) when userspace must act first, or LEAVE_FAULT after raising #VC. */
export function mmioRead(s: usize, gpa: u64, size: u32): u64 { return unreachable() }
/** Writes; 0, or the LEAVE code (also in CPU_LEAVE). */
export function mmioWrite(s: usize, gpa: u64, size: u32, value: u64): u32 { return unreachable() }
