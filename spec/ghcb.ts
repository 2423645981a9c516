/**
 * GHCB: page layout, NAE events and MSR protocol. GHCB specification (AMD 56421) as Linux 7.3
 * arch/x86/include/asm/{svm.h,sev-common.h} and arch/x86/kvm/svm/sev.c implement it.
 */

/** Offsets in the GHCB page; the valid bit of a field is its offset / 8. */
export const ghcbOffsets = {
  CPL: 0xcb,
  XSS: 0x140,
  DR7: 0x160,
  RAX: 0x1f8,
  RCX: 0x308,
  RDX: 0x310,
  RBX: 0x318,
  RSI: 0x330,
  SW_EXITCODE: 0x390,
  SW_EXITINFO1: 0x398,
  SW_EXITINFO2: 0x3a0,
  SW_SCRATCH: 0x3a8,
  XCR0: 0x3e8,
  VALID_BITMAP: 0x3f0,
  SHARED_BUFFER: 0x800,
  SHARED_BUFFER_END: 0xff0,
  PROTOCOL_VERSION: 0xffa,
  USAGE: 0xffc,
} as const

/** SW_EXITINFO1 = 2: sub-codes in SW_EXITINFO2 (sev-common.h GHCB_ERR_*). */
export const ghcbErrors = {
  NOT_REGISTERED: 1,
  INVALID_USAGE: 2,
  INVALID_SCRATCH_AREA: 3,
  MISSING_INPUT: 4,
  INVALID_INPUT: 5,
  INVALID_EVENT: 6,
} as const

export interface NaeEvent {
  readonly code: number
  readonly name: string
  /** Fields beyond SW_EXITCODE, SW_EXITINFO1 and SW_EXITINFO2 that must be valid (some only in certain forms). */
  readonly required: readonly string[]
  readonly snpOnly?: boolean
}

/** Non-automatic exits that KVM knows; names are those of uapi/asm/svm.h. */
export const naeEvents: readonly NaeEvent[] = [
  { code: 0x27, name: 'SVM_EXIT_READ_DR7', required: [] },
  { code: 0x37, name: 'SVM_EXIT_WRITE_DR7', required: ['rax'] },
  { code: 0x6e, name: 'SVM_EXIT_RDTSC', required: [] },
  { code: 0x6f, name: 'SVM_EXIT_RDPMC', required: ['rcx'] },
  { code: 0x72, name: 'SVM_EXIT_CPUID', required: ['rax', 'rcx', 'xcr0 if rax = 0xd'] },
  { code: 0x76, name: 'SVM_EXIT_INVD', required: [] },
  { code: 0x7b, name: 'SVM_EXIT_IOIO', required: ['sw_scratch if string', 'rax if OUT'] },
  { code: 0x7c, name: 'SVM_EXIT_MSR', required: ['rcx', 'rax and rdx if write'] },
  { code: 0x81, name: 'SVM_EXIT_VMMCALL', required: ['rax', 'cpl'] },
  { code: 0x87, name: 'SVM_EXIT_RDTSCP', required: [] },
  { code: 0x89, name: 'SVM_EXIT_WBINVD', required: [] },
  { code: 0x8a, name: 'SVM_EXIT_MONITOR', required: ['rax', 'rcx', 'rdx'] },
  { code: 0x8b, name: 'SVM_EXIT_MWAIT', required: ['rax', 'rcx'] },
  { code: 0x80000001, name: 'SVM_VMGEXIT_MMIO_READ', required: ['sw_scratch'] },
  { code: 0x80000002, name: 'SVM_VMGEXIT_MMIO_WRITE', required: ['sw_scratch'] },
  { code: 0x80000003, name: 'SVM_VMGEXIT_NMI_COMPLETE', required: [] },
  { code: 0x80000004, name: 'SVM_VMGEXIT_AP_HLT_LOOP', required: [] },
  { code: 0x80000005, name: 'SVM_VMGEXIT_AP_JUMP_TABLE', required: [] },
  { code: 0x80000010, name: 'SVM_VMGEXIT_PSC', required: ['sw_scratch'], snpOnly: true },
  { code: 0x80000011, name: 'SVM_VMGEXIT_GUEST_REQUEST', required: [], snpOnly: true },
  { code: 0x80000012, name: 'SVM_VMGEXIT_EXT_GUEST_REQUEST', required: [], snpOnly: true },
  { code: 0x80000013, name: 'SVM_VMGEXIT_AP_CREATION', required: ['rax unless destroy'], snpOnly: true },
  { code: 0x8000fffd, name: 'SVM_VMGEXIT_HV_FEATURES', required: [] },
  { code: 0x8000fffe, name: 'SVM_VMGEXIT_TERM_REQUEST', required: [] },
  { code: 0x8000ffff, name: 'SVM_VMGEXIT_UNSUPPORTED_EVENT', required: [] },
]

/** GHCB MSR (0xc0010130) protocol: request code, response code. */
export const msrProtocol: readonly {
  readonly request: number
  readonly response: number
  readonly name: string
  readonly snpOnly?: boolean
}[] = [
  { request: 0x002, response: 0x001, name: 'SEV_INFO' },
  { request: 0x004, response: 0x005, name: 'CPUID' },
  { request: 0x006, response: 0x007, name: 'AP_RESET_HOLD' },
  { request: 0x010, response: 0x011, name: 'PREFERRED_GPA', snpOnly: true },
  { request: 0x012, response: 0x013, name: 'REGISTER_GPA', snpOnly: true },
  { request: 0x014, response: 0x015, name: 'PAGE_STATE_CHANGE', snpOnly: true },
  { request: 0x080, response: 0x081, name: 'HV_FEATURES' },
  { request: 0x100, response: 0, name: 'TERMINATE' },
]
