/** VMMCALL and VMGEXIT (APM vol 3). */
import { raise, raiseError } from '../cpu/exceptions'
import { CPU_CPL, CPU_GPR, EXC_UD, EXC_VC, LEAVE_NEXT } from '../generated/layout'
import { isSevEs } from '../kvm/state'

const SVM_EXIT_VMMCALL: u32 = 0x81

export function vmmcall(s: usize, op: usize): u32 {
  if (isSevEs(s)) return raiseError(s, EXC_VC, SVM_EXIT_VMMCALL)
  return raise(s, EXC_UD)
}

export function vmgexit(s: usize, op: usize): u32 {
  if (!isSevEs(s)) return vmmcall(s, op)
  return raise(s, EXC_UD)
}
