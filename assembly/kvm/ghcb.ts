/**
 * VMGEXIT through the GHCB page: sev_handle_vmgexit of Linux 7.3 arch/x86/kvm/svm/sev.c, with VM_LINUX 612 for the order and
 * sub-codes of 6.12. The page is read and written through the host's view: a GHCB in a private page reads as ciphertext.
 */
import {
  GHCB_CPL,
  GHCB_ERR_INVALID_EVENT,
  GHCB_ERR_INVALID_INPUT,
  GHCB_ERR_INVALID_USAGE,
  GHCB_ERR_MISSING_INPUT,
  GHCB_RAX,
  GHCB_RBX,
  GHCB_RCX,
  GHCB_RDX,
  GHCB_RSI,
  GHCB_SW_EXITCODE,
  GHCB_SW_EXITINFO1,
  GHCB_SW_EXITINFO2,
  GHCB_SW_SCRATCH,
  GHCB_USAGE,
  GHCB_VALID_BITMAP,
  GHCB_XCR0,
  GHCB_XSS,
  KVM_EINVAL,
  RUN_MSR_DATA,
  RUN_MSR_ERROR,
  SVM_EXIT_CPUID,
  SVM_EXIT_INVD,
  SVM_EXIT_IOIO,
  SVM_EXIT_MONITOR,
  SVM_EXIT_MSR,
  SVM_EXIT_MWAIT,
  SVM_EXIT_RDPMC,
  SVM_EXIT_RDTSC,
  SVM_EXIT_RDTSCP,
  SVM_EXIT_READ_DR7,
  SVM_EXIT_VMMCALL,
  SVM_EXIT_WBINVD,
  SVM_EXIT_WRITE_DR7,
  SVM_VMGEXIT_AP_CREATION,
  SVM_VMGEXIT_AP_HLT_LOOP,
  SVM_VMGEXIT_AP_JUMP_TABLE,
  SVM_VMGEXIT_EXT_GUEST_REQUEST,
  SVM_VMGEXIT_GUEST_REQUEST,
  SVM_VMGEXIT_HV_FEATURES,
  SVM_VMGEXIT_MMIO_READ,
  SVM_VMGEXIT_MMIO_WRITE,
  SVM_VMGEXIT_NMI_COMPLETE,
  SVM_VMGEXIT_PSC,
  SVM_VMGEXIT_TERM_REQUEST,
  SVM_VMGEXIT_UNSUPPORTED_EVENT,
} from '../generated/kvm'
import {
  CHIP_AP_JUMP_TABLE,
  CPU_GHCB,
  CPU_MSR_VALUE,
  CPU_NMI_BLOCKED,
  CPU_STOP_REASON,
  STOP_EXIT,
  VKVM_AP_HOLD,
  VKVM_BUFFER,
  VKVM_CPUID_EAX,
  VKVM_CPUID_EBX,
  VKVM_CPUID_ECX,
  VKVM_CPUID_EDX,
  VKVM_GHCB_CODE,
  VKVM_GHCB_CPL,
  VKVM_GHCB_ERROR,
  VKVM_GHCB_GPA,
  VKVM_GHCB_INFO1,
  VKVM_GHCB_INFO2,
  VKVM_GHCB_OUT,
  VKVM_GHCB_RAX,
  VKVM_GHCB_RBX,
  VKVM_GHCB_RCX,
  VKVM_GHCB_RDX,
  VKVM_GHCB_RSI,
  VKVM_GHCB_SCRATCH,
  VKVM_GHCB_VALID,
  VKVM_GHCB_XCR0,
  VKVM_GHCB_XSS,
  VKVM_INJECT_GP,
  VKVM_INJECT_UD,
  VKVM_WHY,
  VM_LINUX,
} from '../generated/layout'
import { gpaRead, gpaWrite } from '../memory/physical'
import { cpuidWith } from './cpuid'
import { exitSevTerm, exitUnexpected } from './exits'
import { countEvent, DONE, HV_FEATURES, holdAp, LEFT } from './ghcb-common'
import { ghcbIo, ghcbMmio } from './ghcb-io'
import { hypercall } from './hypercall'
import { guestMsrRead, guestMsrWrite, MSR_DONE, MSR_GP, MSR_LEFT } from './msr-exit'
import { chipOf, runOf, signal, vkvm, vmOf } from './state'

/** Where the fields from 0x140 up to the end of the bitmap are copied to (the string buffer is free at that time). */
const COPY: usize = 0x140
const COPY_SIZE: u32 = 0x2c0

function field(s: usize, offset: usize): u64 {
  return load<u64>(vkvm(s) + VKVM_BUFFER + (offset - COPY))
}

/** The valid bit of a field, as it was when the guest exited. */
function valid(s: usize, offset: usize): bool {
  const bit = <u32>(offset >> 3)
  return ((load<u64>(vkvm(s) + VKVM_GHCB_VALID + ((<usize>(bit >> 6)) << 3)) >> <u64>(bit & 63)) & 1) != 0
}

function fieldIfValid(s: usize, offset: usize): u64 {
  return valid(s, offset) ? field(s, offset) : 0
}

/** Writes n bytes of the mapped GHCB from VKVM_GHCB_OUT and flags `bits` of bitmap byte `byte` valid. */
function putFields(s: usize, offset: usize, n: u32, byte: usize, bits: u32): void {
  const vm = vmOf(s)
  const gpa = load<u64>(vkvm(s), VKVM_GHCB_GPA)
  const at = vkvm(s) + VKVM_GHCB_OUT
  gpaWrite(vm, gpa + offset, at, n)
  gpaRead(vm, gpa + GHCB_VALID_BITMAP + byte, at, 1)
  store<u8>(at, load<u8>(at) | <u8>bits)
  gpaWrite(vm, gpa + GHCB_VALID_BITMAP + byte, at, 1)
}

function setInfo(s: usize, one: u64, two: u64): void {
  const out = vkvm(s) + VKVM_GHCB_OUT
  store<u64>(out, one)
  store<u64>(out, two, 8)
  // SW_EXITINFO1 and 2: valid bits 115 and 116
  putFields(s, GHCB_SW_EXITINFO1, 16, 14, 0x18)
}

/** svm_vmgexit_bad_input: malformed input with a sub-code; the guest resumes. */
export function badInput(s: usize, code: u32): u32 {
  store<u32>(vkvm(s), code, VKVM_GHCB_ERROR)
  setInfo(s, 2, <u64>code)
  return DONE
}

/** KVM_RUN returns this errno. */
export function refuse(s: usize, errno: u32): u32 {
  store<i32>(vkvm(s), -(<i32>errno), VKVM_WHY)
  store<u32>(s, STOP_EXIT, CPU_STOP_REASON)
  return LEFT
}

/** sev_es_sync_from_ghcb. False: the page cannot be mapped. */
function readPage(s: usize, gpa: u64): bool {
  const vm = vmOf(s)
  const k = vkvm(s)
  const at = k + VKVM_BUFFER
  if (!gpaRead(vm, gpa + COPY, at, COPY_SIZE)) return false
  memory.copy(k + VKVM_GHCB_VALID, at + (GHCB_VALID_BITMAP - COPY), 16)
  store<u64>(k, field(s, GHCB_SW_EXITCODE), VKVM_GHCB_CODE)
  store<u64>(k, field(s, GHCB_SW_EXITINFO1), VKVM_GHCB_INFO1)
  store<u64>(k, field(s, GHCB_SW_EXITINFO2), VKVM_GHCB_INFO2)
  store<u64>(k, fieldIfValid(s, GHCB_SW_SCRATCH), VKVM_GHCB_SCRATCH)
  store<u64>(k, fieldIfValid(s, GHCB_RAX), VKVM_GHCB_RAX)
  store<u64>(k, fieldIfValid(s, GHCB_RBX), VKVM_GHCB_RBX)
  store<u64>(k, fieldIfValid(s, GHCB_RCX), VKVM_GHCB_RCX)
  store<u64>(k, fieldIfValid(s, GHCB_RDX), VKVM_GHCB_RDX)
  store<u64>(k, fieldIfValid(s, GHCB_RSI), VKVM_GHCB_RSI)
  if (valid(s, GHCB_XCR0)) store<u64>(k, field(s, GHCB_XCR0), VKVM_GHCB_XCR0)
  if (valid(s, GHCB_XSS)) store<u64>(k, field(s, GHCB_XSS), VKVM_GHCB_XSS)
  gpaRead(vm, gpa + GHCB_CPL, at, 1)
  store<u32>(k, valid(s, GHCB_CPL) ? <u32>load<u8>(at) : 0, VKVM_GHCB_CPL)
  // a page that cannot be written cannot be mapped either
  memory.fill(at, 0, 16)
  return gpaWrite(vm, gpa + GHCB_VALID_BITMAP, at, 16)
}

/** sev_es_are_required_ghcb_fields_valid. */
function complete(s: usize, code: u64): bool {
  const k = vkvm(s)
  if (!valid(s, GHCB_SW_EXITCODE) || !valid(s, GHCB_SW_EXITINFO1) || !valid(s, GHCB_SW_EXITINFO2)) return false
  const info1 = load<u64>(k, VKVM_GHCB_INFO1)
  if (code > 0xffffffff) return true
  switch (<u32>code) {
    case SVM_EXIT_WRITE_DR7:
      return valid(s, GHCB_RAX)
    case SVM_EXIT_RDPMC:
      return valid(s, GHCB_RCX)
    case SVM_EXIT_CPUID:
      return valid(s, GHCB_RAX) && valid(s, GHCB_RCX) && (load<u64>(k, VKVM_GHCB_RAX) != 0xd || valid(s, GHCB_XCR0))
    case SVM_EXIT_IOIO:
      return (info1 & 4) != 0 ? valid(s, GHCB_SW_SCRATCH) : (info1 & 1) != 0 || valid(s, GHCB_RAX)
    case SVM_EXIT_MSR:
      return valid(s, GHCB_RCX) && (info1 == 0 || (valid(s, GHCB_RAX) && valid(s, GHCB_RDX)))
    case SVM_EXIT_VMMCALL:
      return valid(s, GHCB_RAX) && valid(s, GHCB_CPL)
    case SVM_EXIT_MONITOR:
      return valid(s, GHCB_RAX) && valid(s, GHCB_RCX) && valid(s, GHCB_RDX)
    case SVM_EXIT_MWAIT:
      return valid(s, GHCB_RAX) && valid(s, GHCB_RCX)
    case SVM_VMGEXIT_MMIO_READ:
    case SVM_VMGEXIT_MMIO_WRITE:
      return valid(s, GHCB_SW_SCRATCH)
    default:
      return true
  }
}

function snpOnly(code: u64): bool {
  return (
    code == <u64>SVM_VMGEXIT_PSC ||
    code == <u64>SVM_VMGEXIT_GUEST_REQUEST ||
    code == <u64>SVM_VMGEXIT_EXT_GUEST_REQUEST ||
    code == <u64>SVM_VMGEXIT_AP_CREATION
  )
}

/** Handles the VMGEXIT of a guest whose GHCB MSR holds a page address. DONE or LEFT. */
export function pageProtocol(s: usize): u32 {
  const k = vkvm(s)
  const gpa = load<u64>(s, CPU_GHCB)
  // without a GHCB, right back to the guest
  if (gpa == 0 || !readPage(s, gpa)) return DONE
  store<u64>(k, gpa, VKVM_GHCB_GPA)
  store<u32>(k, 0, VKVM_GHCB_ERROR)
  const code = load<u64>(k, VKVM_GHCB_CODE)
  countEvent(s, code, load<u64>(k, VKVM_GHCB_INFO1), load<u64>(k, VKVM_GHCB_INFO2))
  const at = k + VKVM_BUFFER
  gpaRead(vmOf(s), gpa + GHCB_USAGE, at, 4)
  if (load<u32>(at) != 0) return badInput(s, GHCB_ERR_INVALID_USAGE)
  if (snpOnly(code)) return badInput(s, load<u32>(vmOf(s), VM_LINUX) < 700 ? GHCB_ERR_MISSING_INPUT : GHCB_ERR_INVALID_EVENT)
  if (!complete(s, code)) return badInput(s, GHCB_ERR_MISSING_INPUT)
  setInfo(s, 0, 0)
  if (code > 0xffffffff) return badInput(s, GHCB_ERR_INVALID_EVENT)
  return dispatch(s, <u32>code)
}

function dispatch(s: usize, code: u32): u32 {
  const k = vkvm(s)
  switch (code) {
    case SVM_EXIT_IOIO:
      return ghcbIo(s)
    case SVM_EXIT_CPUID:
      cpuidWith(s, load<u32>(k, VKVM_GHCB_RAX), load<u32>(k, VKVM_GHCB_RCX), load<u64>(k, VKVM_GHCB_XCR0))
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_EAX), VKVM_GHCB_RAX)
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_EBX), VKVM_GHCB_RBX)
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_ECX), VKVM_GHCB_RCX)
      store<u64>(k, <u64>load<u32>(k, VKVM_CPUID_EDX), VKVM_GHCB_RDX)
      return DONE
    case SVM_EXIT_MSR:
      return msrEvent(s)
    case SVM_VMGEXIT_MMIO_READ:
      return ghcbMmio(s, false)
    case SVM_VMGEXIT_MMIO_WRITE:
      return ghcbMmio(s, true)
    case SVM_EXIT_VMMCALL:
      return hypercall(
        s,
        load<u64>(k, VKVM_GHCB_RAX),
        load<u64>(k, VKVM_GHCB_RBX),
        load<u64>(k, VKVM_GHCB_RCX),
        load<u64>(k, VKVM_GHCB_RDX),
        load<u64>(k, VKVM_GHCB_RSI),
        load<u32>(k, VKVM_GHCB_CPL),
        true,
      )
        ? LEFT
        : DONE
    case SVM_EXIT_READ_DR7: // DR7 is the guest's own: nothing to do
    case SVM_EXIT_WRITE_DR7:
    case SVM_EXIT_INVD:
    case SVM_EXIT_WBINVD:
    case SVM_EXIT_MONITOR: // KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    case SVM_EXIT_MWAIT:
      return DONE
    case SVM_EXIT_RDPMC: // no PMU
      store<u32>(k, 1, VKVM_INJECT_GP)
      return DONE
    case SVM_EXIT_RDTSCP:
      store<u32>(k, 1, VKVM_INJECT_UD)
      return DONE
    case SVM_EXIT_RDTSC:
      exitUnexpected(s, <u64>SVM_EXIT_RDTSC)
      return LEFT
    case SVM_VMGEXIT_NMI_COMPLETE:
      store<u32>(s, 0, CPU_NMI_BLOCKED)
      signal(s, 0)
      return DONE
    case SVM_VMGEXIT_AP_HLT_LOOP:
      store<u32>(k, 1, VKVM_AP_HOLD)
      return holdAp(s)
    case SVM_VMGEXIT_AP_JUMP_TABLE:
      return jumpTable(s)
    case SVM_VMGEXIT_HV_FEATURES:
      setInfo(s, 0, HV_FEATURES)
      return DONE
    case SVM_VMGEXIT_TERM_REQUEST:
      exitSevTerm(s, load<u64>(k, VKVM_GHCB_GPA))
      return LEFT
    case SVM_VMGEXIT_UNSUPPORTED_EVENT:
      return refuse(s, KVM_EINVAL)
    default:
      return badInput(s, GHCB_ERR_INVALID_EVENT)
  }
}

function jumpTable(s: usize): u32 {
  const k = vkvm(s)
  const chip = chipOf(vmOf(s))
  const info1 = load<u64>(k, VKVM_GHCB_INFO1)
  if (info1 == 0) store<u64>(chip, load<u64>(k, VKVM_GHCB_INFO2), CHIP_AP_JUMP_TABLE)
  else if (info1 == 1) setInfo(s, 0, load<u64>(chip, CHIP_AP_JUMP_TABLE))
  else return badInput(s, GHCB_ERR_INVALID_INPUT)
  return DONE
}

/** RDMSR, WRMSR; userspace may answer. */
function msrEvent(s: usize): u32 {
  const k = vkvm(s)
  const index = load<u32>(k, VKVM_GHCB_RCX)
  let result: u32
  if (load<u64>(k, VKVM_GHCB_INFO1) != 0) {
    result = guestMsrWrite(s, index, (load<u64>(k, VKVM_GHCB_RDX) << 32) | (load<u64>(k, VKVM_GHCB_RAX) & 0xffffffff))
  } else {
    result = guestMsrRead(s, index)
    if (result == MSR_DONE) putMsr(s, load<u64>(s, CPU_MSR_VALUE))
  }
  if (result == MSR_GP) failMsr(s)
  return result == MSR_LEFT ? LEFT : DONE
}

function putMsr(s: usize, value: u64): void {
  store<u64>(vkvm(s), value & 0xffffffff, VKVM_GHCB_RAX)
  store<u64>(vkvm(s), value >> 32, VKVM_GHCB_RDX)
}

/** #GP through the GHCB (EVENTINJ form: valid, type exception, vector 13). */
function failMsr(s: usize): void {
  setInfo(s, 1, 0x8000030d)
}

/** Userspace answered (svm_complete_emulated_msr). */
export function completeGhcbMsr(s: usize, read: bool): void {
  const run = runOf(s)
  if (load<u8>(run, RUN_MSR_ERROR) != 0) failMsr(s)
  else if (read) putMsr(s, load<u64>(run, RUN_MSR_DATA))
}

/** sev_es_unmap_ghcb: before the guest runs again its GHCB gets RAX..RDX back. */
export function unmapGhcb(s: usize): void {
  const k = vkvm(s)
  store<u32>(k, 0, VKVM_AP_HOLD)
  if (load<u64>(k, VKVM_GHCB_GPA) == 0) return
  const out = k + VKVM_GHCB_OUT
  store<u64>(out, load<u64>(k, VKVM_GHCB_RAX))
  // RAX: valid bit 63; RCX, RDX, RBX lie together: bits 97 to 99
  putFields(s, GHCB_RAX, 8, 7, 0x80)
  store<u64>(out, load<u64>(k, VKVM_GHCB_RCX))
  store<u64>(out, load<u64>(k, VKVM_GHCB_RDX), 8)
  store<u64>(out, load<u64>(k, VKVM_GHCB_RBX), 16)
  putFields(s, GHCB_RCX, 24, 12, 0x0e)
  store<u64>(k, 0, VKVM_GHCB_GPA)
}

/** A SIPI ends an AP reset hold (sev_vcpu_deliver_sipi_vector): a later one than the first. */
export function releaseAp(s: usize): void {
  const hold = load<u32>(vkvm(s), VKVM_AP_HOLD)
  if (hold == 1) setInfo(s, 0, 1)
  else if (hold == 2) store<u64>(s, (load<u64>(s, CPU_GHCB) & 0xfff) | 0x1000, CPU_GHCB)
}
