/** RFLAGS: lazy arithmetic flags and their materialised form. STUB: engine room. */
/** RFLAGS with all lazy bits computed (bit 1 set). */
export function getFlags(s: usize): u64 { return 2 }
/** Replaces RFLAGS whole (bit 1 forced); the caller has masked what may change. Call updateMode if AC, VM or TF may have changed. */
export function setFlags(s: usize, value: u64): void { }
/** Replaces CF PF AF ZF SF OF only, from their RFLAGS positions in `bits`. */
export function setArithmetic(s: usize, bits: u32): void { }
export function carry(s: usize): u32 { return 0 }
/** Condition code 0..15 of Jcc/SETcc/CMOVcc. */
export function condition(s: usize, code: u32): bool { return false }
