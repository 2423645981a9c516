/**
 * The state of one vCPU. `s` (the address of this structure) is the first parameter of every
 * function of `assembly/` that touches a vCPU. General registers start at offset 0, so that the
 * one-byte operand fields of a decoded op (`OP_RM`, `OP_REG`, `OP_BASE`, `OP_INDEX`) are offsets
 * into it: reg * 8, + 1 for AH..BH; 128 = always zero; 136 = RIP of the current block's start.
 */
import { struct } from './struct.ts'

export const cpu = struct('CPU', 'State of one vCPU', [
  ['GPR', 'u64', 'RAX RCX RDX RBX RSP RBP RSI RDI R8..R15', 16],
  ['ZERO', 'u64', 'always 0: "no base" and "no index"'],
  ['RIP', 'u64', 'architectural RIP at the start of the current block; exact between blocks'],
  ['FLAG_KIND', 'u32', 'lazy flags: class of the last flag-setting operation (FLAG_*)'],
  ['FLAG_SHIFT', 'u32', 'lazy flags: 64 - operand width in bits'],
  ['FLAG_RESULT', 'u64', 'lazy flags: result, zero-extended'],
  ['FLAG_A', 'u64', 'lazy flags: first operand, zero-extended'],
  ['FLAG_B', 'u64', 'lazy flags: second operand, zero-extended'],
  ['EFLAGS', 'u64', 'RFLAGS; the bits that the lazy kind covers are stale (see cpu/flags.ts)'],
  ['ICOUNT', 'u64', 'instructions retired, counted ahead to the end of the current block'],
  ['BUDGET', 'u64', 'leave the loop when ICOUNT would pass this; lowered by whoever wants attention'],
  ['EVENT', 'u32', 'event word (EVENT_*): writers OR into it, then lower BUDGET'],
  ['LEAVE', 'u32', 'why the current op leaves its block (LEAVE_*)'],
  ['TLB_BASE', 'u32', 'address of the L1 TLB array in use (user, supervisor, supervisor + SMAP)'],
  ['MODE', 'u32', 'mode word: what decoding depends on (MODE_*)'],
  ['RIP_MASK', 'u64', '0xffff, 0xffffffff or all ones'],
  ['STACK_MASK', 'u64', '0xffff, 0xffffffff or all ones (SS.B, long mode)'],
  ['JUMP_KEY', 'u32', 'flush generation << 10 | mode word; the tag of the jump cache'],
  ['INDEX', 'u32', 'vCPU index in its VM (order of creation)'],
  ['VM', 'u32', 'address of the VM structure'],
  ['ID', 'u32', 'vcpu_id given to KVM_CREATE_VCPU = initial APIC id'],
  ['LINK', 'u32', 'address of the chain slot that the leaving branch wants linked, 0 = none'],
  ['BLOCK', 'u32', 'address of the current block (valid inside slow calls only)'],
  // Pending exception, raised by raise*() in cpu/exceptions.ts and delivered at the block boundary.
  ['EXC_VECTOR', 'u32', 'vector of the exception that is being raised'],
  ['EXC_ERROR', 'u32', 'its error code'],
  ['EXC_FLAGS', 'u32', 'bit 0: has an error code; bit 1: software interrupt (INT n); bit 2: INT3/INTO; bit 3: trap, RIP already past the instruction; bit 4: external interrupt; bit 5: NMI'],
  ['EXC_SOFT_LENGTH', 'u32', 'instruction length of a software interrupt'],
  ['INTERRUPT_SHADOW', 'u32', '1: by STI, 2: by MOV SS; holds for exactly one instruction'],
  ['NMI_BLOCKED', 'u32', 'NMI delivered and not yet IRETed'],
  ['HALTED', 'u32', 'mp_state as KVM numbers it: 0 runnable 1 uninitialised 2 init-received 3 halted 4 sipi-received 9 ap-reset-hold'],
  ['TRIPLE_FAULT', 'u32', '1 after a triple fault'],
  // Segments: 16 bytes each (SEG_BASE, SEG_LIMIT, SEG_SELECTOR, SEG_ATTRIB).
  ['SEGMENTS', 'u64', 'ES CS SS DS FS GS LDTR TR GDTR IDTR, each 16 bytes', 20, 0x140],
  ['CR0', 'u64', ''], ['CR2', 'u64', ''], ['CR3', 'u64', ''], ['CR4', 'u64', ''], ['CR8', 'u64', 'TPR bits 7:4 as CR8'],
  ['EFER', 'u64', ''], ['XCR0', 'u64', ''], ['XSS', 'u64', ''],
  ['DR', 'u64', 'DR0..DR3', 4], ['DR6', 'u64', ''], ['DR7', 'u64', ''],
  ['CPL', 'u32', 'current privilege level'], ['CPL_PAD', 'u32', ''],
  ['STAR', 'u64', ''], ['LSTAR', 'u64', ''], ['CSTAR', 'u64', ''], ['SFMASK', 'u64', ''], ['KERNEL_GS_BASE', 'u64', ''],
  ['SYSENTER_CS', 'u64', ''], ['SYSENTER_ESP', 'u64', ''], ['SYSENTER_EIP', 'u64', ''],
  ['PAT', 'u64', ''], ['TSC_AUX', 'u64', ''], ['APIC_BASE', 'u64', ''], ['TSC_OFFSET', 'u64', ''], ['TSC_ADJUST', 'u64', ''],
  ['MISC_ENABLE', 'u64', ''], ['DEBUGCTL', 'u64', ''], ['SPEC_CTRL', 'u64', ''], ['FEATURE_CONTROL', 'u64', ''],
  ['GHCB', 'u64', 'MSR 0xc0010130'], ['SEV_STATUS', 'u64', 'MSR 0xc0010131'],
  ['MCG_CAP', 'u64', ''], ['MCG_STATUS', 'u64', ''], ['MCG_CTL', 'u64', ''],
  ['MTRR_DEF', 'u64', ''], ['MTRR_FIXED', 'u64', '11 fixed-range MTRRs', 11], ['MTRR_VAR', 'u64', '8 base/mask pairs', 16],
  ['MC_BANKS', 'u64', '32 banks of CTL STATUS ADDR MISC', 128],
  ['MSR_VALUE', 'u64', 'result of msrRead (cpu/msr.ts)'],
  ['STOP_NAME', 'u32', 'STOP_UNIMPLEMENTED raised by a handler: what is missing (UNIMPLEMENTED_*), 0 = opcode'],
  ['PENDING_DB', 'u32', 'DR6 bits of a trap-class #DB that waits for the instruction boundary'],
  ['HWCR', 'u64', 'MSR 0xc0010015'],
  ['DEBUG_ARMED', 'u32', 'DEBUG_*: breakpoints in DR7 that execution must look at'],
  ['STEP_CANCEL', 'u32', '1: the instruction that just retired takes no single-step trap of its own (INT n, SYSCALL)'],
  ['MSR_STORE', 'u64', 'plain storage of MSRs without a field of their own (spec/msr.ts)', 48],
  // Floating point.
  ['FCW', 'u32', 'x87 control word', 1, 0xa00], ['FSW', 'u32', 'status word without TOP'], ['FTOP', 'u32', 'top of stack 0..7'], ['FTAG', 'u32', 'abridged tag: bit i = physical register i not empty'],
  ['FOP', 'u32', ''], ['MXCSR', 'u32', ''], ['FIP', 'u64', ''], ['FDP', 'u64', ''], ['FCS', 'u32', ''], ['FDS', 'u32', ''],
  ['ST', 'u64', 'physical x87 registers, 16 bytes each: significand u64, sign/exponent u16', 16, 0xa40],
  ['XMM', 'u64', 'XMM/YMM registers, 32 bytes each', 64, 0xb00],
  // Scratch and replay.
  ['SCRATCH', 'u64', 'operands that cross a page, are MMIO, or belong to the other encryption view (aligned to 16 bytes; up to 64 bytes)', 8, 0xe00],
  ['COMMIT_SIZE', 'u32', 'bytes of SCRATCH to be written back by commitModify, 0 = none'], ['COMMIT_PAD', 'u32', ''],
  ['COMMIT_VA', 'u64', 'linear address that SCRATCH belongs to'],
  ['MMIO_DONE', 'u32', 'MMIO fragments of the current instruction already completed'], ['MMIO_CURSOR', 'u32', 'fragments consumed by this execution of the instruction'],
  ['MMIO_LOG', 'u64', 'data of completed MMIO fragments (8 bytes each)', 16],
  ['TIME_BASE', 'u64', 'virtual ns = TIME_BASE + ICOUNT (exact part); rebased at each slice and skip', 1, 0xf00],
  ['RANDOM', 'u64', 'state of the seeded RDRAND/RDSEED generator'],
  ['DEADLINE', 'u64', 'virtual ns of the nearest timer deadline that this vCPU must notice'],
  ['SLICE_END', 'u64', 'ICOUNT at which the current run() slice ends'],
  ['FEATURES', 'u32', 'derived CPUID feature words that execution depends on (see cpu/features.ts)', 16],
  ['TLB_GENERATION', 'u32', 'L2 TLB generation (6 bits)'],
  ['STOP_REASON', 'u32', 'why execute() returned (STOP_*)'],
  ['STOP_DETAIL', 'u64', 'unimplemented: linear RIP; see execute/loop.ts'],
  ['STOP_INFO', 'u64', 'unimplemented: first opcode bytes, little endian'],
  ['OP', 'u32', 'op inside a slow or cold call (exact time), 0 at block boundaries'], ['POLL_COUNT', 'u32', 'consecutive reads of one timer (poll-loop recognition)'],
  ['BLOCKS_TOP', 'u32', 'where the next block is decoded to, 0 = nothing decoded yet'], ['STORM', 'u32', 'exceptions delivered since an instruction last retired'],
  ['PKRU', 'u32', 'rights of protection keys'], ['PKRU_PAD', 'u32', ''],
  ['POLL_KEY', 'u64', 'RIP and port of the last timer read'],
  ['STORM_AT', 'u64', 'ICOUNT that STORM belongs to'],
], 0x1000)

export const seg = struct('SEG', 'One segment register (16 bytes)', [
  ['BASE', 'u64', ''],
  ['LIMIT', 'u32', 'in bytes, granularity expanded'],
  ['SELECTOR', 'u16', ''],
  ['ATTRIB', 'u16', 'VMSA packing: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, DB 10, G 11 (APM vol 2, appendix B); bit 15 = unusable'],
])

/** Segment numbers, in the encoding of the ModRM reg field. */
export const segmentNames = ['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDTR', 'TR', 'GDTR', 'IDTR'] as const
