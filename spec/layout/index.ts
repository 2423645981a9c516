/** The linear-memory map: every structure and region of the core, from which both compilers get constants. */
import { cpu, seg, segmentNames } from './cpu.ts'
import { block, frame, map, op, tlb, vcpuArena, vcpuArenaSize } from './engine.ts'
import { chip, irqchipConstants, lapic, pic, pit } from './irqchip.ts'
import { kvmConstants, vkvm } from './kvm.ts'
import { mmu } from './memory.ts'
import { vm } from './vm.ts'
import type { Region, Struct } from './struct.ts'

export const structs: readonly Struct[] = [
  cpu,
  seg,
  op,
  block,
  tlb,
  frame,
  vm.vm,
  vm.slot,
  vm.backing,
  vm.global,
  mmu,
  vkvm,
  lapic,
  pic,
  pit,
  chip,
]
export const regions: readonly Region[] = [...map, ...vcpuArena]

/** Enumerations and bit names shared by assembly/ and host/. */
export const constants: Readonly<Record<string, number>> = {
  VCPU_ARENA_SIZE: vcpuArenaSize,
  ...Object.fromEntries(segmentNames.map((name, i) => [`SEG_${name}`, i])),
  // MODE word
  MODE_CS16: 0,
  MODE_CS32: 1,
  MODE_CS64: 2,
  // 16-bit code with a limit beyond 64 KiB (big real mode): only branches truncate EIP
  MODE_CS16_BIG: 3,
  MODE_CS_MASK: 3,
  MODE_SS32: 4,
  MODE_FLAT: 8,
  MODE_USER: 16,
  MODE_LONG: 32,
  // LEAVE: why an op ends its block
  LEAVE_NONE: 0,
  LEAVE_FAULT: 1,
  LEAVE_NEXT: 2,
  LEAVE_BRANCH: 3,
  LEAVE_EXIT_RETRY: 4,
  LEAVE_EXIT_NEXT: 5,
  LEAVE_EXIT_BRANCH: 6,
  // STOP: why execute() returned
  STOP_NONE: 0,
  STOP_BUDGET: 1,
  STOP_EXIT: 2,
  STOP_EVENT: 3,
  STOP_UNIMPLEMENTED: 4,
  STOP_SHUTDOWN: 5,
  // the size budget is spent (STOP_DETAIL = guest-physical address); instruction fetch outside of memory slots
  STOP_OUT_OF_MEMORY: 6,
  STOP_FETCH_MMIO: 7,
  // no memory of the kind that the attribute says (STOP_DETAIL = guest-physical page, STOP_INFO = 1 private); dirty ring soft-full
  STOP_MEMORY_FAULT: 8,
  STOP_RING_FULL: 9,
  // kvm_vm_dead: KVM_RUN returns -EIO, now and for ever
  STOP_DEAD: 10,
  // OP flags
  OPF_MEM: 1,
  OPF_LOCK: 2,
  OPF_REP: 4,
  OPF_REPNE: 8,
  OPF_SIZE_SHIFT: 4,
  OPF_ADDR_SHIFT: 6,
  /** Also the distance of the tags TLB_READ and TLB_WRITE in an L1 entry. */
  ACCESS_WRITE: 8,
  EA_FLAT64: 0,
  EA_FLAT32: 1,
  EA_GENERAL: 2,
  EA_SEGMENT64: 3,
  // Lazy flag classes
  FLAG_EAGER: 0,
  FLAG_SUB: 1,
  FLAG_ADD: 2,
  FLAG_LOGIC: 3,
  FLAG_INC: 4,
  FLAG_DEC: 5,
  FLAG_RESULT_ONLY: 6,
  // Event word
  EVENT_TIMER: 1,
  EVENT_INTERRUPT: 2,
  EVENT_NMI: 4,
  EVENT_INIT: 8,
  EVENT_SIPI: 16,
  EVENT_KICK: 32,
  EVENT_FLUSH: 64,
  EVENT_SINGLE_STEP: 128,
  EVENT_SMI: 256,
  EVENT_WINDOW: 512,
  // Exceptions
  EXC_DE: 0,
  EXC_DB: 1,
  EXC_NMI: 2,
  EXC_BP: 3,
  EXC_OF: 4,
  EXC_BR: 5,
  EXC_UD: 6,
  EXC_NM: 7,
  EXC_DF: 8,
  EXC_TS: 10,
  EXC_NP: 11,
  EXC_SS: 12,
  EXC_GP: 13,
  EXC_PF: 14,
  EXC_MF: 16,
  EXC_AC: 17,
  EXC_MC: 18,
  EXC_XM: 19,
  EXC_VC: 29,
  // Armed breakpoints
  DEBUG_EXEC: 1,
  DEBUG_DATA: 2,
  // UNIMPLEMENTED: what a handler that stops by name lacks
  UNIMPLEMENTED_OPCODE: 0,
  UNIMPLEMENTED_TASK_SWITCH: 1,
  UNIMPLEMENTED_VM86: 2,
  UNIMPLEMENTED_RSM: 3,
  UNIMPLEMENTED_SVM: 4,
  UNIMPLEMENTED_DELIVERY_MMIO: 5,
  UNIMPLEMENTED_MMIO_LENGTH: 6,
  // not ours: KVM's emulator lacks it
  UNIMPLEMENTED_MMIO_X87: 7,
  EXCF_ERROR: 1,
  EXCF_SOFT: 2,
  EXCF_INT3: 4,
  EXCF_TRAP: 8,
  EXCF_EXTERNAL: 16,
  EXCF_NMI: 32,
  ...kvmConstants,
  ...irqchipConstants,
  FRAME_ALLOCATED: 1,
  FRAME_TOUCHED: 2,
  FRAME_VMSA: 4,
  FRAME_TAMPERED: 8,
}
