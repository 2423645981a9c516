/** Protection keys for user pages: RDPKRU, WRPKRU (SDM vol 2; vol 3, 4.6.2). Owns CPU_PKRU; page walks read it. */
import { raise, raiseError } from '../cpu/exceptions'
import { CPU_CR4, CPU_GPR, CPU_PKRU, EXC_GP, EXC_UD, LEAVE_NEXT } from '../generated/layout'
import { CR4_PKE } from '../generated/registers'
import { flushTlb } from '../memory/tlb'

const RCX: usize = CPU_GPR + 8
const RDX: usize = CPU_GPR + 16

export function rdpkru(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_PKE) == 0) return raise(s, EXC_UD)
  if (load<u32>(s, RCX) != 0) return raiseError(s, EXC_GP, 0)
  store<u64>(s, <u64>load<u32>(s, CPU_PKRU), CPU_GPR)
  store<u64>(s, 0, RDX)
  return 0
}

export function wrpkru(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_PKE) == 0) return raise(s, EXC_UD)
  if (load<u32>(s, RCX) != 0 || load<u32>(s, RDX) != 0) return raiseError(s, EXC_GP, 0)
  setPkru(s, load<u32>(s, CPU_GPR))
  return LEAVE_NEXT
}

/** Rights were decided when the TLB was filled: they are decided anew. */
export function setPkru(s: usize, value: u32): void {
  if (load<u32>(s, CPU_PKRU) == value) return
  store<u32>(s, value, CPU_PKRU)
  if ((load<u64>(s, CPU_CR4) & CR4_PKE) != 0) flushTlb(s)
}
