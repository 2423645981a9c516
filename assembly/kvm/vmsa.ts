/**
 * The VMSA of an SEV-ES vCPU: sev_es_sync_vmsa of Linux 7.3 arch/x86/kvm/svm/sev.c over the state that svm.c keeps in the
 * VMCB (EFER.SVME, CR4.MCE, CR0 without CD and NW), sealed into a frame that holds ciphertext only. While the guest runs
 * its state is in the CPU structure; the frame is written when somebody looks. Owns VKVM_VMSA_FRAME and region VCPU_VMSA.
 */
import { updateDebug } from '../cpu/debug'
import { getFlags, setFlags } from '../cpu/flags'
import { updateMode } from '../cpu/mode'
import {
  VMSA_CPL,
  VMSA_CR0,
  VMSA_CR2,
  VMSA_CR3,
  VMSA_CR4,
  VMSA_CSTAR,
  VMSA_DBGCTL,
  VMSA_DR0,
  VMSA_DR6,
  VMSA_DR7,
  VMSA_EFER,
  VMSA_FPREG_X87,
  VMSA_FPREG_XMM,
  VMSA_FPREG_YMM_HI,
  VMSA_G_PAT,
  VMSA_KERNEL_GS_BASE,
  VMSA_LSTAR,
  VMSA_MXCSR,
  VMSA_R8,
  VMSA_RAX,
  VMSA_RBP,
  VMSA_RBX,
  VMSA_RCX,
  VMSA_RDI,
  VMSA_RDX,
  VMSA_RFLAGS,
  VMSA_RIP,
  VMSA_RSI,
  VMSA_RSP,
  VMSA_SEG_CS,
  VMSA_SEG_DS,
  VMSA_SEG_ES,
  VMSA_SEG_FS,
  VMSA_SEG_GDTR,
  VMSA_SEG_GS,
  VMSA_SEG_IDTR,
  VMSA_SEG_LDTR,
  VMSA_SEG_SS,
  VMSA_SEG_TR,
  VMSA_SEV_FEATURES,
  VMSA_SFMASK,
  VMSA_SPEC_CTRL,
  VMSA_STAR,
  VMSA_SYSENTER_CS,
  VMSA_SYSENTER_EIP,
  VMSA_SYSENTER_ESP,
  VMSA_X87_DP,
  VMSA_X87_FCW,
  VMSA_X87_FOP,
  VMSA_X87_FSW,
  VMSA_X87_FTW,
  VMSA_X87_RIP,
  VMSA_XCR0,
  VMSA_XSS,
} from '../generated/kvm'
import { CR4_MCE, EFER_SVME } from '../generated/registers'
import {
  CPU_CPL,
  CPU_CR0,
  CPU_CR2,
  CPU_CR3,
  CPU_CR4,
  CPU_CSTAR,
  CPU_DEBUGCTL,
  CPU_DR,
  CPU_DR6,
  CPU_DR7,
  CPU_EFER,
  CPU_FCW,
  CPU_FDP,
  CPU_FIP,
  CPU_FOP,
  CPU_FSW,
  CPU_FTAG,
  CPU_FTOP,
  CPU_GHCB,
  CPU_GPR,
  CPU_KERNEL_GS_BASE,
  CPU_LSTAR,
  CPU_MXCSR,
  CPU_PAT,
  CPU_PKRU,
  CPU_RIP,
  CPU_SEGMENTS,
  CPU_SFMASK,
  CPU_SPEC_CTRL,
  CPU_ST,
  CPU_STAR,
  CPU_SYSENTER_CS,
  CPU_SYSENTER_EIP,
  CPU_SYSENTER_ESP,
  CPU_TSC_AUX,
  CPU_XCR0,
  CPU_XMM,
  CPU_XSS,
  FRAME_FLAGS,
  FRAME_KEY,
  FRAME_TAMPERED,
  FRAME_TOUCHED,
  FRAME_VMSA,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GDTR,
  SEG_GS,
  SEG_IDTR,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
  VCPU_VMSA,
  VKVM_AP_HOLD,
  VKVM_FIRST_SIPI,
  VKVM_GHCB_XCR0,
  VKVM_GHCB_XSS,
  VKVM_PROTECTED,
  VKVM_VMSA_FRAME,
  VKVM_VMSA_STALE,
  VM_ASID,
  VM_TYPE,
  VM_VMSA_FEATURES,
} from '../generated/layout'
import { encryptPage } from '../memory/cipher'
import { frameAlloc, frameFree, frameInfo } from '../memory/frames'
import { flushTlb } from '../memory/tlb'
import { exitFailEntry } from './exits'
import { isSevEs, vkvm, vmOf } from './state'

const CR0_CD_NW: u64 = 0x60000000

/** svm_set_segment's packing; a segment marked unusable is not present. */
function putSegment(s: usize, to: usize, n: u32, attributes: bool): void {
  const d = s + CPU_SEGMENTS + ((<usize>n) << 4)
  const attrib = <u32>load<u16>(d, SEG_ATTRIB)
  store<u16>(to, load<u16>(d, SEG_SELECTOR))
  store<u16>(to + 2, attributes ? <u16>((attrib & 0x8000) != 0 ? attrib & 0xf7f : attrib & 0xfff) : 0)
  store<u32>(to + 4, load<u32>(d, SEG_LIMIT))
  store<u64>(to + 8, load<u64>(d, SEG_BASE))
}

function copy(s: usize, from: usize, to: usize, at: usize): void {
  store<u64>(to + at, load<u64>(s + from))
}

/** Writes the 4096 bytes that LAUNCH_UPDATE_VMSA measures and encrypts. */
export function vmsaBuild(s: usize, to: usize): void {
  const vm = vmOf(s)
  memory.fill(to, 0, 4096)
  putSegment(s, to + VMSA_SEG_ES, SEG_ES, true)
  putSegment(s, to + VMSA_SEG_CS, SEG_CS, true)
  putSegment(s, to + VMSA_SEG_SS, SEG_SS, true)
  putSegment(s, to + VMSA_SEG_DS, SEG_DS, true)
  putSegment(s, to + VMSA_SEG_FS, SEG_FS, true)
  putSegment(s, to + VMSA_SEG_GS, SEG_GS, true)
  putSegment(s, to + VMSA_SEG_GDTR, SEG_GDTR, false)
  putSegment(s, to + VMSA_SEG_LDTR, SEG_LDTR, true)
  putSegment(s, to + VMSA_SEG_IDTR, SEG_IDTR, false)
  putSegment(s, to + VMSA_SEG_TR, SEG_TR, true)
  const ss = s + CPU_SEGMENTS + ((<usize>SEG_SS) << 4)
  store<u8>(to + VMSA_CPL, <u8>((<u32>load<u16>(ss, SEG_ATTRIB) >> 5) & 3))
  store<u64>(to + VMSA_EFER, load<u64>(s, CPU_EFER) | EFER_SVME)
  copy(s, CPU_XSS, to, VMSA_XSS)
  store<u64>(to + VMSA_CR4, load<u64>(s, CPU_CR4) | CR4_MCE)
  copy(s, CPU_CR3, to, VMSA_CR3)
  store<u64>(to + VMSA_CR0, load<u64>(s, CPU_CR0) & ~CR0_CD_NW)
  copy(s, CPU_DR7, to, VMSA_DR7)
  copy(s, CPU_DR6, to, VMSA_DR6)
  store<u64>(to + VMSA_RFLAGS, getFlags(s))
  copy(s, CPU_RIP, to, VMSA_RIP)
  if (load<u32>(vkvm(s), VKVM_PROTECTED)) memory.copy(to + VMSA_DR0, s + CPU_DR, 32)
  copy(s, CPU_GPR, to, VMSA_RAX)
  copy(s, CPU_GPR + 8, to, VMSA_RCX)
  copy(s, CPU_GPR + 16, to, VMSA_RDX)
  copy(s, CPU_GPR + 24, to, VMSA_RBX)
  copy(s, CPU_GPR + 32, to, VMSA_RSP)
  copy(s, CPU_GPR + 40, to, VMSA_RBP)
  copy(s, CPU_GPR + 48, to, VMSA_RSI)
  copy(s, CPU_GPR + 56, to, VMSA_RDI)
  memory.copy(to + VMSA_R8, s + CPU_GPR + 64, 64)
  copy(s, CPU_STAR, to, VMSA_STAR)
  copy(s, CPU_LSTAR, to, VMSA_LSTAR)
  copy(s, CPU_CSTAR, to, VMSA_CSTAR)
  copy(s, CPU_SFMASK, to, VMSA_SFMASK)
  copy(s, CPU_KERNEL_GS_BASE, to, VMSA_KERNEL_GS_BASE)
  copy(s, CPU_SYSENTER_CS, to, VMSA_SYSENTER_CS)
  copy(s, CPU_SYSENTER_ESP, to, VMSA_SYSENTER_ESP)
  copy(s, CPU_SYSENTER_EIP, to, VMSA_SYSENTER_EIP)
  copy(s, CPU_CR2, to, VMSA_CR2)
  copy(s, CPU_PAT, to, VMSA_G_PAT)
  copy(s, CPU_DEBUGCTL, to, VMSA_DBGCTL)
  copy(s, CPU_SPEC_CTRL, to, VMSA_SPEC_CTRL)
  store<u64>(to + VMSA_SEV_FEATURES, load<u64>(vm, VM_VMSA_FEATURES))
  copy(s, CPU_XCR0, to, VMSA_XCR0)
  // KVM_SEV_ES_INIT leaves FPU and AVX out, so that older measurements stay valid
  if (load<u32>(vm, VM_TYPE) != 0 || load<u32>(vkvm(s), VKVM_PROTECTED) != 0) putFpu(s, to)
}

function putFpu(s: usize, to: usize): void {
  const top = load<u32>(s, CPU_FTOP)
  copy(s, CPU_FDP, to, VMSA_X87_DP)
  store<u32>(to + VMSA_MXCSR, load<u32>(s, CPU_MXCSR))
  store<u16>(to + VMSA_X87_FTW, <u16>load<u32>(s, CPU_FTAG))
  store<u16>(to + VMSA_X87_FSW, <u16>((load<u32>(s, CPU_FSW) & 0xc7ff) | (top << 11)))
  store<u16>(to + VMSA_X87_FCW, <u16>load<u32>(s, CPU_FCW))
  store<u16>(to + VMSA_X87_FOP, <u16>load<u32>(s, CPU_FOP))
  copy(s, CPU_FIP, to, VMSA_X87_RIP)
  for (let i: u32 = 0; i < 8; i++) {
    const st = s + CPU_ST + ((<usize>((top + i) & 7)) << 4)
    store<u64>(to + VMSA_FPREG_X87 + ((<usize>i) << 3), load<u64>(st))
    store<u16>(to + VMSA_FPREG_X87 + 64 + ((<usize>i) << 1), load<u16>(st, 8))
  }
  for (let i: usize = 0; i < 16; i++) {
    memory.copy(to + VMSA_FPREG_XMM + i * 16, s + CPU_XMM + i * 32, 16)
    memory.copy(to + VMSA_FPREG_YMM_HI + i * 16, s + CPU_XMM + i * 32 + 16, 16)
  }
}

/** Encrypts the vCPU's state into its frame. */
function writeFrame(s: usize, frame: usize): void {
  const image = s + VCPU_VMSA
  vmsaBuild(s, image)
  encryptPage(load<u32>(vmOf(s), VM_ASID), frame, image, frame)
  memory.fill(image, 0, 4096)
  store<u32>(vkvm(s), 0, VKVM_VMSA_STALE)
}

/** LAUNCH_UPDATE_VMSA of one vCPU: from here on its state is sealed. 0, -EINVAL (already sealed) or -ENOMEM. */
export function vmsaSeal(s: usize): i32 {
  const k = vkvm(s)
  if (load<u32>(k, VKVM_PROTECTED)) return -22
  const frame = frameAlloc()
  if (!frame) return -12
  const info = frameInfo(frame)
  store<u16>(info, 0, FRAME_KEY)
  store<u8>(info, load<u8>(info, FRAME_FLAGS) | <u8>(FRAME_TOUCHED | FRAME_VMSA), FRAME_FLAGS)
  store<u32>(k, <u32>frame, VKVM_VMSA_FRAME)
  writeFrame(s, frame)
  store<u32>(k, 1, VKVM_PROTECTED)
  store<u64>(k, load<u64>(s, CPU_XCR0), VKVM_GHCB_XCR0)
  store<u64>(k, load<u64>(s, CPU_XSS), VKVM_GHCB_XSS)
  // the hardware owns EFER.SVME and CR4.MCE as they are in the VMSA
  store<u64>(s, load<u64>(s, CPU_EFER) | EFER_SVME, CPU_EFER)
  store<u64>(s, load<u64>(s, CPU_CR4) | CR4_MCE, CPU_CR4)
  store<u64>(s, load<u64>(s, CPU_CR0) & ~CR0_CD_NW, CPU_CR0)
  return 0
}

/** What the host reads of the sealed page: ciphertext of the state at the last exit. False: no VMSA. */
export function vmsaHostRead(s: usize, offset: u32, to: usize, n: u32): bool {
  const k = vkvm(s)
  const frame: usize = load<u32>(k, VKVM_VMSA_FRAME)
  if (!frame || offset > 4096 || n > 4096 - offset) return false
  if (load<u32>(k, VKVM_VMSA_STALE) != 0 && !tampered(frame)) writeFrame(s, frame)
  memory.copy(to, frame + offset, n)
  return true
}

/** The host overwrites bytes of it: the next VMRUN fails. */
export function vmsaHostWrite(s: usize, offset: u32, from: usize, n: u32): bool {
  const k = vkvm(s)
  const frame: usize = load<u32>(k, VKVM_VMSA_FRAME)
  if (!frame || offset > 4096 || n > 4096 - offset) return false
  if (load<u32>(k, VKVM_VMSA_STALE) != 0 && !tampered(frame)) writeFrame(s, frame)
  if (memory.compare(frame + offset, from, n) == 0) return true
  memory.copy(frame + offset, from, n)
  const info = frameInfo(frame)
  store<u8>(info, load<u8>(info, FRAME_FLAGS) | <u8>FRAME_TAMPERED, FRAME_FLAGS)
  return true
}

function tampered(frame: usize): bool {
  return (load<u8>(frameInfo(frame), FRAME_FLAGS) & <u8>FRAME_TAMPERED) != 0
}

function move(from: usize, to: usize, at: usize, n: usize): void {
  memory.copy(to + at, from + at, n)
}

/**
 * sev_migrate_from: the VMSA goes to the vCPU of another VM, and with it what is architecturally in it, the GHCB MSR and what
 * KVM keeps with the page (struct vcpu_sev_es_state). Everything else of the target (local APIC, mp_state, MSRs that KVM
 * emulates, TSC) stays its own.
 */
export function vmsaMove(from: usize, to: usize): void {
  move(from, to, CPU_GPR, 128)
  setFlags(to, getFlags(from))
  move(from, to, CPU_RIP, 8)
  move(from, to, CPU_SEGMENTS, 160)
  move(from, to, CPU_CR0, 8)
  move(from, to, CPU_CR2, 8)
  move(from, to, CPU_CR3, 8)
  move(from, to, CPU_CR4, 8)
  move(from, to, CPU_EFER, 8)
  move(from, to, CPU_XCR0, 8)
  move(from, to, CPU_XSS, 8)
  move(from, to, CPU_DR, 32)
  move(from, to, CPU_DR6, 8)
  move(from, to, CPU_DR7, 8)
  move(from, to, CPU_CPL, 4)
  move(from, to, CPU_STAR, 8)
  move(from, to, CPU_LSTAR, 8)
  move(from, to, CPU_CSTAR, 8)
  move(from, to, CPU_SFMASK, 8)
  move(from, to, CPU_KERNEL_GS_BASE, 8)
  move(from, to, CPU_SYSENTER_CS, 8)
  move(from, to, CPU_SYSENTER_ESP, 8)
  move(from, to, CPU_SYSENTER_EIP, 8)
  move(from, to, CPU_PAT, 8)
  move(from, to, CPU_TSC_AUX, 8)
  move(from, to, CPU_DEBUGCTL, 8)
  move(from, to, CPU_SPEC_CTRL, 8)
  move(from, to, CPU_GHCB, 8)
  move(from, to, CPU_FCW, CPU_ST + 128 - CPU_FCW)
  move(from, to, CPU_XMM, 512)
  move(from, to, CPU_PKRU, 4)
  const k = vkvm(from)
  const target = vkvm(to)
  move(k, target, VKVM_VMSA_FRAME, 4)
  move(k, target, VKVM_VMSA_STALE, 4)
  move(k, target, VKVM_PROTECTED, 4)
  move(k, target, VKVM_AP_HOLD, 4)
  move(k, target, VKVM_FIRST_SIPI, 4)
  store<u32>(k, 0, VKVM_VMSA_FRAME)
  store<u32>(k, 0, VKVM_PROTECTED)
  updateMode(to)
  updateDebug(to)
  flushTlb(to)
}

export function vmsaFree(s: usize): void {
  const frame: usize = load<u32>(vkvm(s), VKVM_VMSA_FRAME)
  if (frame) frameFree(frame)
  store<u32>(vkvm(s), 0, VKVM_VMSA_FRAME)
}

/** VMRUN's view of the VMSA at KVM_RUN: 0 = go on, 1 = KVM_EXIT_FAIL_ENTRY is filled in (never sealed, or tampered with). */
export function esEnter(s: usize): i32 {
  if (!isSevEs(s)) return 0
  const k = vkvm(s)
  if (load<u32>(k, VKVM_PROTECTED) == 0 || tampered(load<u32>(k, VKVM_VMSA_FRAME))) {
    exitFailEntry(s)
    return 1
  }
  return 0
}

/** After KVM_RUN the encrypted page is older than the vCPU's state. */
export function esLeave(s: usize): void {
  if (isSevEs(s)) store<u32>(vkvm(s), 1, VKVM_VMSA_STALE)
}
