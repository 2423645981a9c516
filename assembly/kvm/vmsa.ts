/** SEV-ES: the encrypted VMSA. */
import { exitFailEntry } from './exits'
import { isSevEs, vkvm } from './state'
import { VKVM_PROTECTED } from '../generated/layout'

/** At KVM_RUN: 0 = go on, 1 = an exit is filled in. */
export function esEnter(s: usize): i32 {
  if (!isSevEs(s)) return 0
  if (load<u32>(vkvm(s), VKVM_PROTECTED) == 0) {
    exitFailEntry(s)
    return 1
  }
  return 0
}

/** After KVM_RUN. */
export function esLeave(s: usize): void {}
