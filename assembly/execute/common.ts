/** What cold handlers say often. Owns no state. */
import { raiseError } from '../cpu/exceptions'
import { leaveWith } from '../cpu/mode'
import { CPU_CPL, CPU_LEAVE, CPU_RIP, CPU_RIP_MASK, EXC_GP, LEAVE_NEXT, OP_NEXT } from '../generated/layout'

const RAX: usize = 0
const RDX: usize = 16

/** Something has happened that ends the instruction: CPU_LEAVE is the handler's result. */
export function left(s: usize): bool {
  return load<u32>(s, CPU_LEAVE) != 0
}

/** The instruction is done, and what follows is looked at anew (mode, events). */
export function done(s: usize): u32 {
  return leaveWith(s, LEAVE_NEXT)
}

export function cpl(s: usize): u32 {
  return load<u32>(s, CPU_CPL)
}

/** #GP(0). */
export function gp(s: usize): u32 {
  return raiseError(s, EXC_GP, 0)
}

export function nextRip(s: usize, op: usize): u64 {
  return (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK)
}

/** EDX:EAX, upper halves zeroed. */
export function putPair(s: usize, value: u64): void {
  store<u64>(s, value & 0xffffffff, RAX)
  store<u64>(s, value >> 32, RDX)
}

export function getPair(s: usize): u64 {
  return <u64>load<u32>(s, RAX) | ((<u64>load<u32>(s, RDX)) << 32)
}
