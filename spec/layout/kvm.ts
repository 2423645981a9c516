/** State of the kernel's fast paths (assembly/kvm): per vCPU at region VCPU_KVM, 8 KiB. */
import { struct } from './struct.ts'

export const vkvm = struct('VKVM', 'KVM state of one vCPU, at s + VCPU_KVM', [
  ['PENDING', 'u32', 'what the next KVM_RUN has to complete (PENDING_*)'],
  ['WHY', 'u32', 'why KVM_RUN returned -EINTR (WHY_*)'],
  ['NEXT_RIP', 'u64', 'RIP after the instruction whose I/O is pending'],
  ['PENDING_RIP', 'u64', 'RIP of that instruction: completion is dropped when userspace moved RIP'],
  ['PIO_PORT', 'u32', ''], ['PIO_SIZE', 'u32', ''], ['PIO_COUNT', 'u32', ''], ['REPLAY', 'u32', '1: an instruction is executed again with completed fragments; no event may come before it'],
  ['REPLAY_ICOUNT', 'u64', 'retired instructions when it left'], ['REPLAY_RIP', 'u64', ''], ['REPLAY_RCX', 'u64', ''],
  ['INS_POS', 'u32', 'bytes consumed of the string input'], ['INS_END', 'u32', 'bytes there'], ['INS_KEY', 'u64', 'RIP and port they belong to'],
  ['CPUID_EAX', 'u32', 'answer of cpuidAnswer()'], ['CPUID_EBX', 'u32', ''], ['CPUID_ECX', 'u32', ''], ['CPUID_EDX', 'u32', ''],
  ['INTERRUPT', 'u32', 'KVM_INTERRUPT: vector + 0x100, 0 = none'], ['NMI_PENDING', 'u32', 'NMIs waiting (at most 2)'],
  ['SIPI_VECTOR', 'u32', ''], ['BLOCKED_ONCE', 'u32', '1: last return was "blocked"'], ['BLOCKED_AT', 'u64', 'VM clock then'],
  ['MSR_ERROR', 'u32', 'result of an MSR access made by userspace'], ['MSR_INDEX', 'u32', ''],
  // Poll-loop recognition.
  ['POLL_ICOUNT', 'u64', 'ICOUNT at the last polled access'], ['POLL_JUMPS', 'u64', 'times virtual time was jumped'], ['POLL_NS', 'u64', 'nanoseconds jumped'],
  ['TSC_RIP', 'u64', 'RIP of the last RDTSC'], ['TSC_COUNT', 'u32', 'consecutive RDTSC + PAUSE at one place'], ['TSC_PAUSED', 'u32', 'PAUSE seen since'],
  ['TSC_ICOUNT', 'u64', ''],
  // SEV-ES.
  ['PROTECTED', 'u32', 'guest_state_protected: the VMSA is sealed'], ['VMSA_FRAME', 'u32', 'linear address of the encrypted VMSA frame, 0 = none'],
  ['AP_HOLD', 'u32', '0 none, 1 by NAE event, 2 by MSR protocol'], ['FIRST_SIPI', 'u32', 'received_first_sipi'],
  ['GHCB_GPA', 'u64', 'GHCB page of the exit being handled, 0 = none mapped'],
  ['GHCB_CODE', 'u64', 'SW_EXITCODE'], ['GHCB_INFO1', 'u64', ''], ['GHCB_INFO2', 'u64', ''], ['GHCB_SCRATCH', 'u64', ''],
  ['GHCB_VALID', 'u64', 'valid bitmap as read', 2],
  ['GHCB_RAX', 'u64', 'copies that legacy KVM_GET_REGS shows'], ['GHCB_RBX', 'u64', ''], ['GHCB_RCX', 'u64', ''], ['GHCB_RDX', 'u64', ''], ['GHCB_RSI', 'u64', ''],
  ['GHCB_CPL', 'u32', ''], ['GHCB_ERROR', 'u32', 'last error sub-code, 0 = none'], ['GHCB_XCR0', 'u64', "KVM's copy of XCR0"], ['GHCB_XSS', 'u64', ''],
  ['GHCB_BUFFER', 'u64', 'GPA of the scratch buffer'], ['GHCB_LEFT', 'u32', 'bytes (MMIO) or elements (string I/O) still to move'], ['GHCB_POS', 'u32', 'bytes moved'],
  ['GHCB_ADDRESS', 'u64', 'MMIO: GPA of the access; string I/O: 1 = input'], ['GHCB_OUT', 'u64', 'fields on their way to the page', 3],
  ['IF_FLAG', 'u32', "SEV-ES: the VMCB's GUEST_INTERRUPT_MASK"], ['AP_JUMP_LOCAL', 'u32', ''],
  ['HYPERCALL_NR', 'u64', ''], ['INJECT_UD', 'u32', 'queued #UD (RDTSCP by VMGEXIT)'], ['INJECT_GP', 'u32', 'queued #GP (RDPMC by VMGEXIT)'],
  ['VMSA_STALE', 'u32', 'the encrypted VMSA is older than the state'], ['EOI_EXIT', 'u32', 'split irqchip: vector + 0x100 whose EOI userspace has to see'],
  ['COUNT_USED', 'u32', 'rows of COUNTS in use', 1, 0x400], ['COUNT_LOST', 'u32', 'events without a row'],
  ['COUNTS', 'u64', 'GHCB events: code (bit 63: MSR protocol), count', 250, 0x410],
  ['TRACE_HEAD', 'u32', 'GHCB events ever; the last 32 are in TRACE', 1, 0xbf8],
  ['TRACE', 'u64', 'ring of events: code (as in COUNTS), info 1, info 2, instruction count', 128, 0xc00],
  ['BUFFER', 'u64', 'string I/O data', 512, 0x1000],
], 0x2000)

export const kvmConstants: Readonly<Record<string, number>> = {
  PENDING_NONE: 0, PENDING_IN: 1, PENDING_OUT: 2, PENDING_INS: 3, PENDING_MMIO_READ: 4, PENDING_MMIO_WRITE: 5, PENDING_SKIP: 6,
  PENDING_GHCB_IN: 7, PENDING_GHCB_OUT: 8, PENDING_GHCB_STRING: 9, PENDING_GHCB_MMIO: 10,
  PENDING_HYPERCALL: 11, PENDING_RDMSR: 12, PENDING_WRMSR: 13,
  WHY_NONE: 0, WHY_BUDGET: 1, WHY_BLOCKED: 2, WHY_HALTED_FOREVER: 3, WHY_KICK: 4, WHY_USER_DEADLINE: 5, WHY_WAIT_SIPI: 6,
}
