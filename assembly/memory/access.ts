/** Guest accesses by linear address that miss the L1 TLB, and whole-operand helpers for cold handlers. STUB: memory room. */
import { CPU_LEAVE } from '../generated/layout'

/** Host address of `size` readable bytes (RAM, or CPU_SCRATCH filled); 0 = leaving, LEAVE is set. */
export function slowRead(s: usize, op: usize, va: u64, size: u32): usize { return unreachable() }
/** Stores `value`; 0, or the LEAVE code. */
export function slowWrite(s: usize, op: usize, va: u64, size: u32, value: u64): u32 { return unreachable() }
/** Address of `size` bytes to be read and then written in place; 0 = leaving. If it is CPU_SCRATCH, call commitModify after the store. */
export function slowModify(s: usize, op: usize, va: u64, size: u32): usize { return unreachable() }
export function commitModify(s: usize, op: usize): u32 { return unreachable() }
/** TLB hit or slow path; check CPU_LEAVE after it. */
export function readMem(s: usize, op: usize, va: u64, size: u32): u64 { return unreachable() }
export function writeMem(s: usize, op: usize, va: u64, size: u32, value: u64): u32 { return unreachable() }
/** As slowModify, TLB first. */
export function modifyMem(s: usize, op: usize, va: u64, size: u32): usize { return unreachable() }
/** Copies n (<= 64) bytes between guest memory and `address`; 0 or LEAVE. Faults before any byte is written. */
export function readBytes(s: usize, op: usize, va: u64, address: usize, n: u32): u32 { return unreachable() }
export function writeBytes(s: usize, op: usize, va: u64, address: usize, n: u32): u32 { return unreachable() }
/** Address of va if the rest of its page is plain RAM for this access at the current privilege, else 0 (no fault): bulk string forms. */
export function plainRead(s: usize, va: u64): usize { return unreachable() }
export function plainWrite(s: usize, va: u64): usize { return unreachable() }
/** Implicit supervisor accesses (descriptor tables, TSS, IDT); check CPU_LEAVE. */
export function sysRead(s: usize, va: u64, size: u32): u64 { return unreachable() }
export function sysWrite(s: usize, va: u64, size: u32, value: u64): u32 { return unreachable() }
/** Linear-memory address of the code byte at `linear`; 0 = fault raised (LEAVE set). */
export function fetchAddress(s: usize, linear: u64): usize { return unreachable() }
/** Guest-physical address (C-bit removed) that `va` translates to, ~0 if none; no side effects. */
export function probe(s: usize, va: u64): u64 { return unreachable() }
export function leaving(s: usize): bool { return load<u32>(s, CPU_LEAVE) != 0 }
