/**
 * The AMD secure processor's SEV interface as data: status codes (Linux uapi/linux/psp-sev.h), guest
 * states (AMD's sev-tool), policy bits (SEV API 55766,
 * table "Guest policy", as used by Linux and virtee/sev). No behaviour here.
 */

/** Firmware status codes; the name is the kernel's without SEV_RET_. */
export const FIRMWARE_STATUS = {
  SUCCESS: 0,
  INVALID_PLATFORM_STATE: 1,
  INVALID_GUEST_STATE: 2,
  INVALID_CONFIG: 3,
  INVALID_LEN: 4,
  ALREADY_OWNED: 5,
  INVALID_CERTIFICATE: 6,
  POLICY_FAILURE: 7,
  INACTIVE: 8,
  INVALID_ADDRESS: 9,
  BAD_SIGNATURE: 0xa,
  BAD_MEASUREMENT: 0xb,
  ASID_OWNED: 0xc,
  INVALID_ASID: 0xd,
  WBINVD_REQUIRED: 0xe,
  DFFLUSH_REQUIRED: 0xf,
  INVALID_GUEST: 0x10,
  INVALID_COMMAND: 0x11,
  ACTIVE: 0x12,
  HWSEV_RET_PLATFORM: 0x13,
  HWSEV_RET_UNSAFE: 0x14,
  UNSUPPORTED: 0x15,
  INVALID_PARAM: 0x16,
  RESOURCE_LIMIT: 0x17,
  SECURE_DATA_INVALID: 0x18,
  INVALID_PAGE_SIZE: 0x19,
  INVALID_PAGE_STATE: 0x1a,
  INVALID_MDATA_ENTRY: 0x1b,
  INVALID_PAGE_OWNER: 0x1c,
  AEAD_OFLOW: 0x1d,
  EXIT_RING_BUFFER: 0x1f,
  RMP_INIT_REQUIRED: 0x20,
  BAD_SVN: 0x21,
  BAD_VERSION: 0x22,
  SHUTDOWN_REQUIRED: 0x23,
  UPDATE_FAILED: 0x24,
  RESTORE_REQUIRED: 0x25,
  RMP_INITIALIZATION_FAILED: 0x26,
  INVALID_KEY: 0x27,
  SHUTDOWN_INCOMPLETE: 0x28,
} as const

/**
 * KVM_SEV_GUEST_STATUS.state, the firmware's GSTATE (AMD's sev-tool, sevapi.h SEV_GUEST_STATE; QEMU's SevState). The kernel's
 * documentation lists RECEIVING before SENDING, but the number comes from the firmware.
 */
export const GUEST_STATE = { UNINIT: 0, LAUNCH_UPDATE: 1, LAUNCH_SECRET: 2, RUNNING: 3, SENDING: 4, RECEIVING: 5, SENT: 6 } as const

/** Guest policy bits of SEV and SEV-ES. */
export const SEV_POLICY = { NODBG: 1, NOKS: 2, ES: 4, NOSEND: 8, DOMAIN: 16, SEV: 32 } as const

/**
 * SNP guest policy: bits KVM accepts (7.3: 0..17, 19..25; 6.12: 0..17, 19, 20), the bit that must be set, and the two bits that
 * 6.12 demands and refuses (SMT, SINGLE_SOCKET).
 */
export const SNP_POLICY = {
  MASK: 0x3fbffffn,
  MASK_6_12: 0x1bffffn,
  REQUIRED: 0x20000n,
  SMT: 0x10000n,
  DEBUG: 0x80000n,
  SINGLE_SOCKET: 0x100000n,
} as const

/** VMSA SEV_FEATURES bits (APM vol 2, 15.34 and appendix B). */
export const SEV_FEATURE = { SNP_ACTIVE: 1n, DEBUG_SWAP: 1n << 5n, SECURE_TSC: 1n << 9n } as const

/** Platform states of SEV_PLATFORM_STATUS. */
export const PLATFORM_STATE = { UNINIT: 0, INIT: 1, WORKING: 2 } as const

/** SEV firmware API that this PSP speaks: 1.55 build 24 (Milan). */
export const SEV_API = { MAJOR: 1, MINOR: 55, BUILD: 24 } as const

/** Sizes (SEV API 55766: certificate format, session data, measurement, secret header, attestation report). */
export const SEV_SIZE = {
  CERTIFICATE: 2084,
  SESSION: 128,
  MEASUREMENT: 48,
  /** Flags, IV, MAC of LAUNCH_SECRET, SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA. */
  PACKET_HEADER: 52,
  ATTESTATION_REPORT: 208,
  BLOB_MAX: 0x4000,
} as const

/** SNP ABI of the modelled firmware, and its TCB: boot loader 4, SNP 22, microcode 211. */
export const SNP_API = { MAJOR: 1, MINOR: 55 } as const
export const SNP_TCB = 0xd316000000000004n

/** Wrapped VLEK hashstick (SEV-SNP ABI 56860, SNP_VLEK_LOAD): length of the IV, then offsets. */
export const SNP_VLEK = { IV: 12, WRAPPED: 16, TCB: 400, TAG: 416, SIZE: 432 } as const

/** Page types of SNP_LAUNCH_UPDATE (Linux include/linux/psp-sev.h SNP_PAGE_TYPE_*). VMSA is KVM's own. */
export const SNP_PAGE = { NORMAL: 1, VMSA: 2, ZERO: 3, UNMEASURED: 4, SECRETS: 5, CPUID: 6 } as const

/** ID block and ID authentication page of SNP_LAUNCH_FINISH (SEV-SNP ABI 56860; AMD's sev-tool, sevapi.h): sizes and offsets. */
export const SNP_ID = {
  BLOCK_SIZE: 96,
  BLOCK_FAMILY: 48,
  BLOCK_VERSION: 80,
  BLOCK_POLICY: 88,
  AUTH_SIZE: 4096,
  AUTH_BLOCK_SIGNATURE: 0x40,
  AUTH_ID_KEY: 0x240,
  AUTH_ID_KEY_SIGNATURE: 0x680,
  AUTH_AUTHOR_KEY: 0x880,
  SIGNATURE_SIZE: 512,
  KEY_SIZE: 1028,
} as const

/**
 * CPUID page of SNP_LAUNCH_UPDATE: count u32, 12 reserved bytes, then entries of 48 bytes (EAX_IN, ECX_IN, XCR0_IN, XSS_IN u64,
 * EAX, EBX, ECX, EDX, reserved u64). `REFUSED`: features that the firmware does not let a guest be told of, as far as a VMM has
 * learnt (QEMU 9.2 target/i386/sev.c sev_snp_mask_cpuid_features): leaf, subleaf, offset in the entry, bits. The rest of the
 * firmware's own policy is not public in what was read.
 */
export const SNP_CPUID = {
  COUNT_MAX: 64,
  HEADER: 16,
  ENTRY: 48,
  REFUSED: [
    // TSC_DEADLINE
    [0x1, 0, 32, 0x0100_0000],
    // TSC_ADJUST
    [0x7, 0, 28, 0x0000_0002],
    // SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, CORE_CAPABILITY, SSBD
    [0x7, 0, 36, 0xfc00_0000],
    // VIRT_SSBD
    [0x8000_0008, 0, 28, 0x0200_0000],
  ],
} as const
