/** GHCB MSR protocol: sev_handle_vmgexit_msr_protocol of Linux 7.3 arch/x86/kvm/svm/sev.c. */
import {
  GHCB_MSR_AP_RESET_HOLD_REQ,
  GHCB_MSR_AP_RESET_HOLD_RESP,
  GHCB_MSR_CPUID_REQ,
  GHCB_MSR_CPUID_RESP,
  GHCB_MSR_HV_FEATURES_REQ,
  GHCB_MSR_HV_FEATURES_RESP,
  GHCB_MSR_PAGE_STATE_CHANGE_REQ,
  GHCB_MSR_PREFERRED_GPA_REQ,
  GHCB_MSR_REGISTER_GPA_REQ,
  GHCB_MSR_SEV_INFO_REQ,
  GHCB_MSR_SEV_INFO_RESP,
  GHCB_MSR_TERMINATE_REQ,
} from '../generated/kvm'
import {
  CPU_GHCB,
  VKVM_AP_HOLD,
  VKVM_CPUID_EAX,
  VKVM_CPUID_EBX,
  VKVM_CPUID_ECX,
  VKVM_CPUID_EDX,
  VKVM_GHCB_RAX,
  VKVM_GHCB_RBX,
  VKVM_GHCB_RCX,
  VKVM_GHCB_RDX,
  VKVM_GHCB_XCR0,
  VM_C_BIT,
  VM_GHCB_VERSION,
} from '../generated/layout'
import { cpuidWith } from './cpuid'
import { exitSevTerm } from './exits'
import { countEvent, DONE, HV_FEATURES, holdAp, LEFT } from './ghcb-common'
import { vkvm, vmOf } from './state'

/** MSR-protocol events are counted with this bit. */
const PROTOCOL: u64 = 0x8000000000000000

/** DONE, or LEFT with an exit filled in. */
export function msrProtocol(s: usize): u32 {
  const k = vkvm(s)
  const value = load<u64>(s, CPU_GHCB)
  const info = <u32>value & 0xfff
  countEvent(s, PROTOCOL | <u64>info, value, 0)
  switch (info) {
    case GHCB_MSR_SEV_INFO_REQ: {
      const vm = vmOf(s)
      const cbit = load<u64>(vm, VM_C_BIT)
      const version = <u64>load<u32>(vm, VM_GHCB_VERSION)
      store<u64>(s, (version << 48) | ((<u64>1) << 32) | ((cbit ? ctz<u64>(cbit) : 0) << 24) | GHCB_MSR_SEV_INFO_RESP, CPU_GHCB)
      return DONE
    }
    case GHCB_MSR_CPUID_REQ: {
      // the CPUID intercept runs on the register copies: RAX function, RCX 0
      cpuidWith(s, <u32>(value >> 32), 0, load<u64>(k, VKVM_GHCB_XCR0))
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_EAX), VKVM_GHCB_RAX)
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_EBX), VKVM_GHCB_RBX)
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_ECX), VKVM_GHCB_RCX)
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_EDX), VKVM_GHCB_RDX)
      const which = <u32>(value >> 30) & 3
      const answer = load<u32>(k + ((<usize>which) << 2), VKVM_CPUID_EAX)
      store<u64>(s, ((<u64>answer) << 32) | (value & 0xfffff000) | GHCB_MSR_CPUID_RESP, CPU_GHCB)
      return DONE
    }
    case GHCB_MSR_AP_RESET_HOLD_REQ: {
      // preset to "woken without SIPI"; a SIPI sets bit 12
      store<u64>(s, GHCB_MSR_AP_RESET_HOLD_RESP, CPU_GHCB)
      store<u32>(k, 2, VKVM_AP_HOLD)
      return holdAp(s)
    }
    case GHCB_MSR_HV_FEATURES_REQ:
      store<u64>(s, (HV_FEATURES << 12) | GHCB_MSR_HV_FEATURES_RESP, CPU_GHCB)
      return DONE
    case GHCB_MSR_PREFERRED_GPA_REQ:
    case GHCB_MSR_REGISTER_GPA_REQ:
    case GHCB_MSR_PAGE_STATE_CHANGE_REQ: // SNP only: an SEV-ES guest that asks is terminated
    case GHCB_MSR_TERMINATE_REQ:
      exitSevTerm(s, value)
      return LEFT
    default:
      // unknown: the MSR stays as it is
      return DONE
  }
}
