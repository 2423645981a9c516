/** Exits to userspace: the bytes of struct kvm_run (Linux 7.3 uapi/linux/kvm.h; offsets in spec/exits.ts). */
import { controlFlags } from '../cpu/flags'
import {
  KVM_EXIT_DIRTY_RING_FULL,
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_HLT,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_EXIT_IOAPIC_EOI,
  KVM_EXIT_IRQ_WINDOW_OPEN,
  KVM_EXIT_MEMORY_FAULT,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SYSTEM_EVENT,
  KVM_INTERNAL_DELIVERY_EV,
  KVM_INTERNAL_UNEXPECTED_EXIT_REASON,
  KVM_MEMORY_EXIT_PRIVATE,
  KVM_SYSTEM_EVENT_SEV_TERM,
  RUN_APIC_BASE,
  RUN_CR8,
  RUN_EOI_VECTOR,
  RUN_EXIT_REASON,
  RUN_FAIL_CPU,
  RUN_FLAGS,
  RUN_HARDWARE_REASON,
  RUN_IF_FLAG,
  RUN_INTERNAL_DATA,
  RUN_INTERNAL_NDATA,
  RUN_INTERNAL_SUBERROR,
  RUN_IO_COUNT,
  RUN_IO_DATA_OFFSET,
  RUN_IO_DIRECTION,
  RUN_IO_PORT,
  RUN_IO_SIZE,
  RUN_MEMORY_FLAGS,
  RUN_MEMORY_GPA,
  RUN_MEMORY_SIZE,
  RUN_MMIO_ADDRESS,
  RUN_MMIO_DATA,
  RUN_MMIO_IS_WRITE,
  RUN_MMIO_LENGTH,
  RUN_READY_FOR_INTERRUPT_INJECTION,
  RUN_REQUEST_INTERRUPT_WINDOW,
  RUN_SYSTEM_DATA,
  RUN_SYSTEM_NDATA,
  RUN_SYSTEM_TYPE,
} from '../generated/kvm'
import {
  CPU_APIC_BASE,
  CPU_CR8,
  APIC_LVT0,
  CPU_INDEX,
  CPU_INTERRUPT_SHADOW,
  VCPU_LAPIC,
  VKVM_HELD,
  CPU_STOP_REASON,
  STOP_EXIT,
  VKVM_IF_FLAG,
  VKVM_INTERRUPT,
  VKVM_PENDING,
  VKVM_SMM,
  VM_IRQCHIP,
} from '../generated/layout'
import { isSevEs, kernelApic, runOf, vkvm, vmOf } from './state'

/** Offset of the PIO data page from kvm_run (KVM_PIO_PAGE_OFFSET * PAGE_SIZE). */
const PIO_DATA_OFFSET: u64 = 4096

/** The handler leaves for userspace. */
export function stopForExit(s: usize, reason: u32): void {
  store<u32>(runOf(s), reason, RUN_EXIT_REASON)
  store<u32>(s, STOP_EXIT, CPU_STOP_REASON)
}

export function exitIo(s: usize, write: bool, port: u32, size: u32, count: u32): void {
  const run = runOf(s)
  store<u8>(run, write ? 1 : 0, RUN_IO_DIRECTION)
  store<u8>(run, <u8>size, RUN_IO_SIZE)
  store<u16>(run, <u16>port, RUN_IO_PORT)
  store<u32>(run, count, RUN_IO_COUNT)
  store<u64>(run, PIO_DATA_OFFSET, RUN_IO_DATA_OFFSET)
  stopForExit(s, KVM_EXIT_IO)
}

/** One MMIO fragment of at most 8 bytes. */
export function exitMmio(s: usize, write: bool, gpa: u64, size: u32, value: u64): void {
  const run = runOf(s)
  store<u64>(run, gpa, RUN_MMIO_ADDRESS)
  // read_exit_mmio leaves the data as they were.
  if (write) store<u64>(run, value, RUN_MMIO_DATA)
  store<u32>(run, size, RUN_MMIO_LENGTH)
  store<u8>(run, write ? 1 : 0, RUN_MMIO_IS_WRITE)
  stopForExit(s, KVM_EXIT_MMIO)
}

export function exitHlt(s: usize): void {
  stopForExit(s, KVM_EXIT_HLT)
}
export function exitShutdown(s: usize): void {
  stopForExit(s, KVM_EXIT_SHUTDOWN)
}
export function exitIntr(s: usize): void {
  store<u32>(runOf(s), KVM_EXIT_INTR, RUN_EXIT_REASON)
}
export function exitWindow(s: usize): void {
  stopForExit(s, KVM_EXIT_IRQ_WINDOW_OPEN)
}

/** kvm_prepare_memory_fault_exit; KVM_RUN returns -EFAULT. */
export function exitMemoryFault(s: usize, page: u64, secret: bool): void {
  const run = runOf(s)
  store<u64>(run, secret ? KVM_MEMORY_EXIT_PRIVATE : 0, RUN_MEMORY_FLAGS)
  store<u64>(run, page & ~0xfff, RUN_MEMORY_GPA)
  store<u64>(run, 4096, RUN_MEMORY_SIZE)
  store<u32>(run, KVM_EXIT_MEMORY_FAULT, RUN_EXIT_REASON)
}

/** kvm_dirty_ring_check_request. */
export function exitRingFull(s: usize): void {
  store<u32>(runOf(s), KVM_EXIT_DIRTY_RING_FULL, RUN_EXIT_REASON)
}

/** Split irqchip: userspace's IOAPIC must see this EOI. */
export function exitEoi(s: usize, vector: u32): void {
  store<u8>(runOf(s), <u8>vector, RUN_EOI_VECTOR)
  stopForExit(s, KVM_EXIT_IOAPIC_EOI)
}

/** VMRUN failed: SVM_EXIT_ERR. */
export function exitFailEntry(s: usize): void {
  const run = runOf(s)
  store<u64>(run, ~(<u64>0), RUN_HARDWARE_REASON)
  store<u32>(run, 0, RUN_FAIL_CPU)
  stopForExit(s, KVM_EXIT_FAIL_ENTRY)
}

/** kvm_prepare_event_vectoring_exit: an exception or interrupt frame, or its descriptors, would lie in MMIO. */
export function exitVectoring(s: usize): void {
  const run = runOf(s)
  const gpa = load<u64>(run, RUN_MMIO_ADDRESS)
  store<u32>(vkvm(s), 0, VKVM_PENDING)
  store<u32>(run, KVM_INTERNAL_DELIVERY_EV, RUN_INTERNAL_SUBERROR)
  store<u32>(run, 5, RUN_INTERNAL_NDATA)
  store<u64>(run, gpa, RUN_INTERNAL_DATA)
  store<u64>(run, 0x400, RUN_INTERNAL_DATA + 8)
  store<u64>(run, 0, RUN_INTERNAL_DATA + 16)
  store<u64>(run, gpa, RUN_INTERNAL_DATA + 24)
  store<u64>(run, 0, RUN_INTERNAL_DATA + 32)
  store<u32>(run, KVM_EXIT_INTERNAL_ERROR, RUN_EXIT_REASON)
}

/** KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON. */
export function exitUnexpected(s: usize, code: u64): void {
  const run = runOf(s)
  store<u32>(run, KVM_INTERNAL_UNEXPECTED_EXIT_REASON, RUN_INTERNAL_SUBERROR)
  store<u32>(run, 2, RUN_INTERNAL_NDATA)
  store<u64>(run, code, RUN_INTERNAL_DATA)
  store<u64>(run, 0, RUN_INTERNAL_DATA + 8)
  stopForExit(s, KVM_EXIT_INTERNAL_ERROR)
}

export function exitSevTerm(s: usize, value: u64): void {
  const run = runOf(s)
  store<u32>(run, KVM_SYSTEM_EVENT_SEV_TERM, RUN_SYSTEM_TYPE)
  store<u32>(run, 1, RUN_SYSTEM_NDATA)
  store<u64>(run, value, RUN_SYSTEM_DATA)
  stopForExit(s, KVM_EXIT_SYSTEM_EVENT)
}

/** kvm_vcpu_ready_for_interrupt_injection, for an interrupt controller in userspace. */
export function windowOpen(s: usize): bool {
  if ((controlFlags(s) & 0x200) == 0 || load<u32>(s, CPU_INTERRUPT_SHADOW) != 0) return false
  const k = vkvm(s)
  return load<u32>(k, VKVM_INTERRUPT) == 0 && load<u32>(k, VKVM_HELD) == 0 && acceptsExtint(s)
}

/** kvm_apic_accept_pic_intr: with the local APIC in the kernel an ExtINT comes through an LVT0 that is not masked. */
function acceptsExtint(s: usize): bool {
  if (!kernelApic(s)) return true
  if ((load<u64>(s, CPU_APIC_BASE) & 0x800) == 0) return load<u32>(s, CPU_INDEX) == 0
  return (load<u32>(s + VCPU_LAPIC + APIC_LVT0) & 0x10700) == 0x700
}

/** dm_request_for_irq_injection: userspace asks, and the PIC is its own. */
export function windowWanted(s: usize): bool {
  return load<u8>(runOf(s), RUN_REQUEST_INTERRUPT_WINDOW) != 0 && load<u32>(vmOf(s), VM_IRQCHIP) != 1
}

/** post_kvm_run_save: the fields every return of KVM_RUN updates. */
export function saveRunState(s: usize): void {
  const run = runOf(s)
  const open = load<u32>(vmOf(s), VM_IRQCHIP) == 1 || windowOpen(s)
  store<u8>(run, isSevEs(s) ? <u8>load<u32>(vkvm(s), VKVM_IF_FLAG) : (controlFlags(s) & 0x200) != 0 ? 1 : 0, RUN_IF_FLAG)
  store<u64>(run, load<u64>(s, CPU_CR8), RUN_CR8)
  store<u64>(run, load<u64>(s, CPU_APIC_BASE), RUN_APIC_BASE)
  store<u8>(run, open ? 1 : 0, RUN_READY_FOR_INTERRUPT_INJECTION)
  store<u16>(run, <u16>(load<u32>(vkvm(s), VKVM_SMM) & 1), RUN_FLAGS) // KVM_RUN_X86_SMM
}

/** True if HLT and interrupts belong to userspace. */
export function userApic(s: usize): bool {
  return !kernelApic(s)
}
