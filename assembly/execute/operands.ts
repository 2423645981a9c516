/** Operands of cold handlers. Engine room. */
import { CPU_LEAVE, OP_RM, OP_REG, OP_FLAGS, OPF_MEM } from '../generated/layout'
import { readMem, writeMem } from '../memory/access'
/** Linear address of the memory operand; general form (segment base, limit, truncation). May raise: check leaving(s). */
export function ea(s: usize, op: usize, size: u32): u64 { return unreachable() }
/** Value of the E operand, zero-extended; size in bytes. Check leaving(s) if the op has a memory operand. */
export function getRm(s: usize, op: usize, size: u32): u64 { return unreachable() }
/** Writes the E operand; 32-bit register writes zero the upper half. 0 or LEAVE. */
export function setRm(s: usize, op: usize, size: u32, value: u64): u32 { return unreachable() }
/** Value / write of the G operand register. */
export function getReg(s: usize, op: usize, size: u32): u64 { return unreachable() }
export function setReg(s: usize, op: usize, size: u32, value: u64): void { unreachable() }
/** Operand size of the op in bytes (1, 2, 4, 8). */
export function operandSize(op: usize): u32 { return 1 << ((<u32>load<u8>(op, OP_FLAGS) >> 4) & 3) }
/** Address size in bytes (2, 4, 8). */
export function addressSize(op: usize): u32 { return 1 << (<u32>load<u8>(op, OP_FLAGS) >> 6) }
/** Pushes / pops `size` bytes with the current stack size; commits RSP only on success. */
export function push(s: usize, op: usize, size: u32, value: u64): u32 { return unreachable() }
export function pop(s: usize, op: usize, size: u32): u64 { return unreachable() }
