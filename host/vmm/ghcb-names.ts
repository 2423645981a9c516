/** Names of GHCB events as the core counts them: SW_EXITCODE (uapi/asm/svm.h), or with bit 63 a code of the MSR protocol. */
const events: Readonly<Record<number, string>> = {
  0x27: 'SVM_EXIT_READ_DR7',
  0x37: 'SVM_EXIT_WRITE_DR7',
  0x6e: 'SVM_EXIT_RDTSC',
  0x6f: 'SVM_EXIT_RDPMC',
  0x72: 'SVM_EXIT_CPUID',
  0x76: 'SVM_EXIT_INVD',
  0x7b: 'SVM_EXIT_IOIO',
  0x7c: 'SVM_EXIT_MSR',
  0x81: 'SVM_EXIT_VMMCALL',
  0x87: 'SVM_EXIT_RDTSCP',
  0x89: 'SVM_EXIT_WBINVD',
  0x8a: 'SVM_EXIT_MONITOR',
  0x8b: 'SVM_EXIT_MWAIT',
  0x80000001: 'SVM_VMGEXIT_MMIO_READ',
  0x80000002: 'SVM_VMGEXIT_MMIO_WRITE',
  0x80000003: 'SVM_VMGEXIT_NMI_COMPLETE',
  0x80000004: 'SVM_VMGEXIT_AP_HLT_LOOP',
  0x80000005: 'SVM_VMGEXIT_AP_JUMP_TABLE',
  0x80000010: 'SVM_VMGEXIT_PSC',
  0x80000011: 'SVM_VMGEXIT_GUEST_REQUEST',
  0x80000012: 'SVM_VMGEXIT_EXT_GUEST_REQUEST',
  0x80000013: 'SVM_VMGEXIT_AP_CREATION',
  0x8000fffd: 'SVM_VMGEXIT_HV_FEATURES',
  0x8000fffe: 'SVM_VMGEXIT_TERM_REQUEST',
  0x8000ffff: 'SVM_VMGEXIT_UNSUPPORTED_EVENT',
}
const protocol: Readonly<Record<number, string>> = {
  0x002: 'MSR_SEV_INFO',
  0x004: 'MSR_CPUID',
  0x006: 'MSR_AP_RESET_HOLD',
  0x010: 'MSR_PREFERRED_GPA',
  0x012: 'MSR_REGISTER_GPA',
  0x014: 'MSR_PAGE_STATE_CHANGE',
  0x080: 'MSR_HV_FEATURES',
  0x100: 'MSR_TERMINATE',
}

export function ghcbEventName(code: bigint): string {
  const number = Number(BigInt.asUintN(63, code))
  return (code >> 63n ? protocol[number] : events[number]) ?? `${code >> 63n ? 'MSR' : 'SVM_EXIT'}_0x${number.toString(16)}`
}
