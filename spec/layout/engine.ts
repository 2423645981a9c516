/** Decoded code, TLBs and the linear-memory map. Figures behind the sizes: docs/how-it-works.md. */
import { chain, struct } from './struct.ts'

const KiB = 1024
const MiB = 1024 * KiB

/** One decoded instruction (32 bytes). One op is one instruction, always. */
export const op = struct('OP', 'One decoded instruction', [
  ['ID', 'u16', 'handler (H_*)'],
  ['ACCESS', 'u8', 'memory forms of the loop: bytes of the access - 1, ACCESS_WRITE'],
  ['FLAGS', 'u8', 'OPF_*: memory operand, LOCK, REP, REPNE, operand size, address size'],
  ['RM', 'u8', 'ModRM.rm register (or the register in the opcode byte) as an offset into CPU'],
  ['REG', 'u8', 'ModRM.reg register as an offset into CPU'],
  ['BASE', 'u8', 'base register offset: 128 none, 136 RIP'],
  ['INDEX', 'u8', 'index register offset: 128 none'],
  ['SCALE', 'u8', 'shift of the index, 0..3'],
  [
    'EA',
    'u8',
    'EA_FLAT64 0: address is final; EA_FLAT32 1: truncate to 32 bits; EA_GENERAL 2: segment base, limit and truncation by ea(); EA_SEGMENT64 3: FS or GS base in 64-bit mode',
  ],
  ['SEG', 'u8', 'segment number of the memory operand (0..5)'],
  ['MODRM', 'u8', 'raw ModRM byte (0 without)'],
  ['OFFSET', 'u16', 'offset of the instruction from the start of its block'],
  ['NEXT', 'u16', 'offset of the following instruction'],
  ['IMM', 'u64', 'immediate, sign-extended; branches: distance from the block start to the target; moffs: the address'],
  ['DISP', 'u32', 'i32 displacement (RIP-relative: plus NEXT); branches: chain slot, taken'],
  ['EXTRA', 'u32', 'opcode byte; far pointers: selector; branches: chain slot, not taken'],
])

export const block = struct('BLOCK', 'Header of a decoded block (32 bytes); its ops follow', [
  ['COUNT', 'u32', 'instructions; 0x7fffffff = dropped'],
  ['MODE', 'u32', 'mode word it was decoded for'],
  ['FRAME', 'u32', 'linear address of the first byte (frame + offset): the key'],
  ['FRAME2', 'u32', 'frame of the second page when the (only) instruction crosses, else 0'],
  ['NEXT', 'u32', 'next block in the same hash bucket'],
  ['BYTES', 'u32', 'length of the covered code'],
  ['FRAME_NEXT', 'u32', 'next block of the same frame bucket'],
  ['LENGTH', 'u32', 'instructions; kept when the block is dropped'],
])

export const tlb = struct('TLB', 'L1 TLB entry (32 bytes); index = (VA >> 7) & 0x7fe0', [
  ['READ', 'u64', 'page VA or all ones'],
  ['WRITE', 'u64', 'page VA or all ones; never set for a page that holds code'],
  ['EXEC', 'u64', 'page VA or all ones'],
  ['ADDEND', 'u32', 'linear frame address - VA (mod 2^32)'],
  ['CODE', 'u32', '1 = no write tag only because the frame holds code: a store needs but the test of its lines'],
])

/** One vCPU's private memory, relative to `s`. */
export const vcpuArena = chain(0, [
  ['VCPU_STATE', 4 * KiB, 'CPU structure'],
  ['VCPU_LAPIC', 4 * KiB, 'local APIC registers and timer state'],
  ['VCPU_RUN', 4 * KiB, 'struct kvm_run'],
  ['VCPU_PIO', 4 * KiB, 'PIO data page (kvm_run page 1)'],
  ['VCPU_COALESCED', 4 * KiB, 'coalesced MMIO ring (kvm_run page 2)'],
  ['VCPU_KVM', 8 * KiB, 'KVM state of the vCPU: pending completion, events, GHCB copies'],
  ['VCPU_CPUID', 16 * KiB, 'KVM_SET_CPUID2 entries (40 bytes each)'],
  ['VCPU_VMSA', 4 * KiB, 'plaintext image of the VMSA while the vCPU runs'],
  ['VCPU_PARTIAL', 8 * KiB, 'block cut to the budget, and the single-instruction block'],
  ['VCPU_TLB_USER', 32 * KiB, 'L1 TLB for CPL 3'],
  ['VCPU_TLB_SUPERVISOR', 32 * KiB, 'L1 TLB for CPL 0..2'],
  ['VCPU_TLB_SMAP', 32 * KiB, 'L1 TLB for CPL 0..2 with SMAP enforced'],
  ['VCPU_TLB2', 1024 * KiB, 'L2 TLB, 65536 entries of 16 bytes: reach 256 MiB'],
  ['VCPU_TLB_DENSE', 512 * KiB, 'what the loop needs of L2 entries in 8 bytes each, by the same index: u32 data, u32 tag (MMU_STAMP)'],
  ['VCPU_CONTEXTS', 16 * KiB, 'by PCID: u32 context of its entries in the L2 TLB and the paging-structure cache, 0 = none are valid'],
  ['VCPU_PSC', 8 * KiB, 'paging-structure cache, 512 entries of 16 bytes'],
  ['VCPU_MMU', 4 * KiB, 'MMU structure'],
  ['VCPU_JUMP', 64 * KiB, 'jump cache, 4096 entries of 16 bytes: linear RIP u64, block u32, key u32'],
  ['VCPU_BUCKETS', 64 * KiB, 'block hash, 16384 heads'],
  ['VCPU_FRAME_BUCKETS', 16 * KiB, 'blocks by frame, 4096 heads'],
  ['VCPU_TLB_EMPTY', 32 * KiB, 'L1 TLB without tags: CPL 3 with alignment checks (CR0.AM, RFLAGS.AC) takes the slow path always'],
  ['VCPU_BLOCKS', 8 * MiB, 'decoded blocks, filled upwards, flushed whole'],
  ['VCPU_FPU', 4 * KiB, 'image under construction of FXSAVE, XSAVE and FSAVE; operands of x87 and SSE handlers'],
])
export const vcpuArenaSize = 10 * MiB

/** The shared linear memory from address 0. Everything after FRAMES is handed out by memory/frames.ts. */
export const map = chain(0, [
  ['STATIC', 256 * KiB, 'static data of the compiler (memoryBase 1024); decode tables'],
  ['GLOBAL', 64 * KiB, 'machine-wide state, keys, allocator'],
  ['COLD_TABLE', 16 * KiB, 'function-table index of each cold handler (u32)'],
  ['STAGING', 64 * KiB, 'bytes on their way between host code and the core'],
  ['FRAME_INFO', 16 * MiB, 'FRAME structure of every 4 KiB frame of the 4 GiB'],
])

export const frame = struct('FRAME', 'What is known of one 4 KiB frame (16 bytes), at FRAME_INFO + (address >> 12) * 16', [
  ['CODE', 'u32', 'mask of 128-byte lines that hold decoded code of any vCPU'],
  ['KEY', 'u16', 'stored form: 0 = raw (what shared accesses and the host see), else plaintext of the guest with this ASID'],
  ['FLAGS', 'u8', 'FRAME_*: allocated, touched, VMSA, tampered'],
  ['DIRTY', 'u8', 'bit 0: written since the last snapshot; bit 1: in the dirty log'],
  ['WRONG', 'u32', 'accesses through the other view since the last conversion'],
  ['LINK', 'u32', 'free list'],
])
