/** VMMCALL and VMGEXIT (APM vol 3; facts: VMGEXIT is VMMCALL outside SEV-ES). */
import { raise, raiseError, vmmCommunication } from '../cpu/exceptions'
import {
  CPU_CPL,
  CPU_GHCB,
  CPU_GPR,
  CPU_MODE,
  CPU_RIP,
  CPU_RIP_MASK,
  EXC_GP,
  EXC_UD,
  LEAVE_EXIT_NEXT,
  LEAVE_EXIT_RETRY,
  LEAVE_NEXT,
  MODE_CS64,
  MODE_CS_MASK,
  OP_NEXT,
  OP_OFFSET,
  VKVM_INJECT_GP,
  VKVM_INJECT_UD,
  VKVM_NEXT_RIP,
  VKVM_PENDING_RIP,
} from '../generated/layout'
import { pageProtocol, unmapGhcb } from '../kvm/ghcb'
import { LEFT } from '../kvm/ghcb-common'
import { msrProtocol } from '../kvm/ghcb-msr'
import { hypercall } from '../kvm/hypercall'
import { isSevEs, vkvm } from '../kvm/state'

const SVM_EXIT_VMMCALL: u32 = 0x81

export function vmmcall(s: usize, op: usize): u32 {
  if (isSevEs(s)) return vmmCommunication(s, SVM_EXIT_VMMCALL)
  const wide = (load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64
  const r = s + CPU_GPR
  if (!hypercall(s, load<u64>(r), load<u64>(r, 24), load<u64>(r, 8), load<u64>(r, 16), load<u64>(r, 48), load<u32>(s, CPU_CPL), wide))
    return LEAVE_NEXT
  return pendRetry(s, op)
}

/** Leaves with RIP on the instruction; completion moves past it. */
export function pendRetry(s: usize, op: usize): u32 {
  const mask = load<u64>(s, CPU_RIP_MASK)
  store<u64>(vkvm(s), (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & mask, VKVM_NEXT_RIP)
  store<u64>(vkvm(s), (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET)) & mask, VKVM_PENDING_RIP)
  return LEAVE_EXIT_RETRY
}

export function vmgexit(s: usize, op: usize): u32 {
  if (!isSevEs(s)) return vmmcall(s, op)
  const result = (load<u64>(s, CPU_GHCB) & 0xfff) != 0 ? msrProtocol(s) : pageProtocol(s)
  if (result == LEFT) return LEAVE_EXIT_NEXT
  unmapGhcb(s)
  const k = vkvm(s)
  const gp = load<u32>(k, VKVM_INJECT_GP) != 0
  if (!gp && load<u32>(k, VKVM_INJECT_UD) == 0) return LEAVE_NEXT
  // the queued exception meets the guest after VMGEXIT: RIP is already past it
  store<u32>(k, 0, VKVM_INJECT_GP)
  store<u32>(k, 0, VKVM_INJECT_UD)
  store<u64>(s, load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT) - <u64>load<u16>(op, OP_OFFSET), CPU_RIP)
  return gp ? raiseError(s, EXC_GP, 0) : raise(s, EXC_UD)
}
