/** Exceptions: raising and delivery through the IDT. STUB: system room. */
import { CPU_LEAVE, LEAVE_FAULT } from '../generated/layout'
/** Raises a fault without error code; returns LEAVE_FAULT. */
export function raise(s: usize, vector: u32): u32 { store<u32>(s, LEAVE_FAULT, CPU_LEAVE); return LEAVE_FAULT }
export function raiseError(s: usize, vector: u32, error: u32): u32 { store<u32>(s, LEAVE_FAULT, CPU_LEAVE); return LEAVE_FAULT }
/** #PF: sets CR2. */
export function raisePageFault(s: usize, va: u64, error: u32): u32 { store<u32>(s, LEAVE_FAULT, CPU_LEAVE); return LEAVE_FAULT }
/** Delivers what EXC_* describes (double and triple faults included). RIP is that of the faulting instruction, or past it for traps. 0, or STOP_*. */
export function deliver(s: usize): u32 { return 0 }
/** Delivers an external interrupt or NMI at an instruction boundary. */
export function deliverInterrupt(s: usize, vector: u32): u32 { return 0 }
