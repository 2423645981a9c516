/**
 * System instructions: control and debug registers, cache and TLB control, virtualisation (SDM vol 2; APM vol 3). For SEV-ES
 * guests the instructions that KVM intercepts become #VC after their own exception checks (APM vol 2, 15.9; facts: sev.md 1.9).
 */
import { readDr, writeCr0, writeCr3, writeCr4, writeCr8, writeDr, writeXcr0 } from '../cpu/control'
import { raise, raiseDebug, unimplementedFeature, vmmCommunication } from '../cpu/exceptions'
import { F_7_EBX, F_D1_EAX, F_80000001_ECX, F_80000008_EBX, feature, featureOrBare } from '../cpu/features'
import { canonical, canonicalRegister, code64, protectedMode, segment, sevEs, updateMode } from '../cpu/mode'
import {
  CPU_CR0,
  CPU_CR2,
  CPU_CR3,
  CPU_CR4,
  CPU_CR8,
  CPU_EFER,
  CPU_EFLAGS,
  CPU_LEAVE,
  CPU_SCRATCH,
  QUIRK_FIX_HYPERCALL_INSN,
  SEG_BASE,
  SEG_CS,
  VM_SEV,
  CPU_RIP,
  CPU_STOP_REASON,
  CPU_TRIPLE_FAULT,
  CPU_XCR0,
  EXC_UD,
  LEAVE_BRANCH,
  LEAVE_EXIT_BRANCH,
  LEAVE_EXIT_NEXT,
  LEAVE_EXIT_RETRY,
  LEAVE_NEXT,
  STOP_SHUTDOWN,
  OPF_LOCK,
  OP_FLAGS,
  OP_MODRM,
  OP_OFFSET,
  OP_REG,
  OP_RM,
  UNIMPLEMENTED_SVM,
} from '../generated/layout'
import { CR0_ET, CR0_PE, CR0_TS, CR4_DE, CR4_OSXSAVE, CR4_UMIP, EFER_SVME, FLAG_AC } from '../generated/registers'
import { flushPcid, flushPcids, flushTlb, invalidatePage, selectTlb } from '../memory/tlb'
import { readMem, writeBytes, writeMem } from '../memory/access'
import { vmmcall } from './vmgexit'
import { activeDr7, hostBreakpoints } from '../cpu/watch'
import { exitBreakpointAt } from '../kvm/debug'
import { KVM_EXIT_SET_TPR } from '../generated/kvm'
import { stopForExit, userApic } from '../kvm/exits'
import { pollPause } from '../kvm/pio'
import { inSmm, leaveSmm } from '../kvm/smm'
import { quirk, vmOf } from '../kvm/state'
import { addressMask, ea, getRm, instructionRip, isMemory, operandSize, setRm, writeRegister } from './operands'
import { cpl, done, getPair, gp, left, putPair } from './common'

const RAX: usize = 0
const RCX: usize = 8
// Control and debug registers.

/** Control register number; LOCK MOV CR0 is CR8 on AMD (CPUID 0x80000001 ECX[4]), and LOCK is #UD otherwise. */
function crNumber(s: usize, op: usize): u32 {
  const n = <u32>load<u8>(op, OP_REG) >> 3
  if ((<u32>load<u8>(op, OP_FLAGS) & OPF_LOCK) == 0) return n
  return n == 0 && featureOrBare(s, F_80000001_ECX, 4) ? 8 : 16
}

/** CR0.ET reads as 1, also if KVM_SET_SREGS left it out (APM vol 2, 3.1.1). */

export function movFromCr(s: usize, op: usize): u32 {
  const n = crNumber(s, op)
  if (n > 8 || n == 1 || (n > 4 && n < 8)) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const value =
    n == 0
      ? load<u64>(s, CPU_CR0) | CR0_ET
      : n == 2
        ? load<u64>(s, CPU_CR2)
        : n == 3
          ? load<u64>(s, CPU_CR3)
          : n == 4
            ? load<u64>(s, CPU_CR4)
            : load<u64>(s, CPU_CR8)
  writeRegister(s + <usize>load<u8>(op, OP_RM), code64(s) ? 8 : 4, value)
  return 0
}

export function movToCr(s: usize, op: usize): u32 {
  const n = crNumber(s, op)
  if (n > 8 || n == 1 || (n > 4 && n < 8)) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const from = s + <usize>load<u8>(op, OP_RM)
  const value = code64(s) ? load<u64>(from) : <u64>load<u32>(from)
  let ok: bool = true
  const priority = load<u64>(s, CPU_CR8)
  if (n == 0) ok = writeCr0(s, value)
  else if (n == 2) store<u64>(s, value, CPU_CR2)
  else if (n == 3) ok = writeCr3(s, value)
  else if (n == 4) ok = writeCr4(s, value)
  else ok = writeCr8(s, value)
  if (!ok) return gp(s)
  if (n == 8 && value < priority && userApic(s) && !sevEs(s)) {
    // cr8_write_interception: a local APIC in userspace may have something to inject now
    stopForExit(s, KVM_EXIT_SET_TPR)
    return LEAVE_EXIT_NEXT
  }
  return done(s)
}

/** Debug register number with the DR4/DR5 aliases resolved; 0xff = #UD. */
function drNumber(s: usize, op: usize): u32 {
  const n = <u32>load<u8>(op, OP_REG) >> 3
  if (n > 7) return 0xff
  if (n == 4 || n == 5) return (load<u64>(s, CPU_CR4) & CR4_DE) != 0 ? 0xff : n + 2
  return n
}

/** DR7.GD: #DB with BD, or the debugger's exit (KVM_GUESTDBG_USE_HW_BP). */
function debugRegisterGuarded(s: usize, op: usize): u32 {
  if (!hostBreakpoints(s)) return raiseDebug(s, 0x2000)
  exitBreakpointAt(s, load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_OFFSET), 0x2000)
  return LEAVE_EXIT_RETRY
}

export function movFromDr(s: usize, op: usize): u32 {
  const n = drNumber(s, op)
  if (n == 0xff) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  if ((activeDr7(s) & 0x2000) != 0) return debugRegisterGuarded(s, op)
  if (n == 7 && sevEs(s)) return vmmCommunication(s, 0x27)
  writeRegister(s + <usize>load<u8>(op, OP_RM), code64(s) ? 8 : 4, readDr(s, n))
  return 0
}

export function movToDr(s: usize, op: usize): u32 {
  const n = drNumber(s, op)
  if (n == 0xff) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  if ((activeDr7(s) & 0x2000) != 0) return debugRegisterGuarded(s, op)
  const from = s + <usize>load<u8>(op, OP_RM)
  const value = code64(s) ? load<u64>(from) : <u64>load<u32>(from)
  if (n == 7 && sevEs(s)) return vmmCommunication(s, 0x37)
  return writeDr(s, n, value) ? done(s) : gp(s)
}

export function smsw(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_UMIP) != 0 && cpl(s) > 0) return gp(s)
  return setRm(s, op, isMemory(op) ? 2 : operandSize(op), load<u64>(s, CPU_CR0) | CR0_ET)
}

/** LMSW: PE MP EM TS; PE cannot be cleared. */
export function lmsw(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  const value = getRm(s, op, 2) & 15
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const old = load<u64>(s, CPU_CR0)
  return writeCr0(s, (old & ~(<u64>14)) | value | (old & CR0_PE)) ? done(s) : gp(s)
}

export function clts(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  store<u64>(s, load<u64>(s, CPU_CR0) & ~CR0_TS, CPU_CR0)
  updateMode(s)
  return done(s)
}

export function xgetbv(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_OSXSAVE) == 0) return raise(s, EXC_UD)
  const n = load<u32>(s, RCX)
  // XCR1 = XINUSE: reporting every enabled component as in use is allowed.
  if (n > 1 || (n == 1 && !feature(s, F_D1_EAX, 2))) return gp(s)
  putPair(s, load<u64>(s, CPU_XCR0))
  return 0
}

export function xsetbv(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_OSXSAVE) == 0) return raise(s, EXC_UD)
  if (cpl(s) != 0 || load<u32>(s, RCX) != 0 || !writeXcr0(s, getPair(s))) return gp(s)
  updateMode(s)
  return done(s)
}

// TLB and caches.

export function invlpg(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  const va = ea(s, op, 1)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (canonical(s, va)) invalidatePage(s, va)
  return done(s)
}

export function invpcid(s: usize, op: usize): u32 {
  if (!feature(s, F_7_EBX, 10)) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const reg = s + <usize>load<u8>(op, OP_REG)
  const type = code64(s) ? load<u64>(reg) : <u64>load<u32>(reg)
  const va = ea(s, op, 16)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const pcid = readMem(s, op, va, 8)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const address = readMem(s, op, va + 8, 8)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (type > 3 || (type < 2 && pcid >> 12 != 0) || (type == 0 && !canonicalRegister(s, address))) return gp(s)
  if ((load<u64>(s, CPU_CR4) & 0x20000) == 0 && type < 2 && pcid != 0) return gp(s)
  if (type == 0) invalidatePage(s, address)
  else if (type == 1) flushPcid(s, <u32>pcid)
  else if (type == 2) flushTlb(s)
  else flushPcids(s)
  return done(s)
}

export function invd(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  return sevEs(s) ? vmmCommunication(s, 0x76) : 0
}

export function wbinvd(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  return sevEs(s) ? vmmCommunication(s, 0x89) : 0
}

export function pause(s: usize, op: usize): u32 {
  pollPause(s)
  return 0
}

export function clzero(s: usize, op: usize): u32 {
  if (!feature(s, F_80000008_EBX, 0)) return raise(s, EXC_UD)
  const va = load<u64>(s, RAX) & addressMask(op) & ~(<u64>63)
  let again: u32 = 0
  for (let i: u64 = 0; i < 64; i += 8) {
    const result = writeMem(s, op, va + i, 8, 0)
    if (result != 0 && result != LEAVE_NEXT) return result
    again |= result
  }
  return again ? done(s) : 0
}

/** CLAC, STAC: CPL 0 and CPUID SMAP, else #UD. */
export function clac(s: usize, op: usize): u32 {
  if (cpl(s) != 0 || !featureOrBare(s, F_7_EBX, 20)) return raise(s, EXC_UD)
  store<u64>(s, load<u64>(s, CPU_EFLAGS) & ~FLAG_AC, CPU_EFLAGS)
  selectTlb(s)
  return 0
}

export function stac(s: usize, op: usize): u32 {
  if (cpl(s) != 0 || !featureOrBare(s, F_7_EBX, 20)) return raise(s, EXC_UD)
  store<u64>(s, load<u64>(s, CPU_EFLAGS) | FLAG_AC, CPU_EFLAGS)
  selectTlb(s)
  return 0
}

// Virtualisation and system management.

/** VMCALL is #UD, upon which KVM writes VMMCALL over it and goes on; in an encrypted guest it cannot. */
export function vmcall(s: usize, op: usize): u32 {
  if (load<u32>(vmOf(s), VM_SEV) != 0 || !quirk(s, QUIRK_FIX_HYPERCALL_INSN)) return raise(s, EXC_UD)
  store<u32>(s, 0xd9010f, CPU_SCRATCH + 32)
  const left = writeBytes(s, op, linearRip(s, op), s + CPU_SCRATCH + 32, 3)
  if (left != 0 && left != LEAVE_NEXT) return left
  store<u32>(s, 0, CPU_LEAVE)
  const result = vmmcall(s, op)
  return result != 0 ? result : LEAVE_NEXT // the block that holds it is gone
}

function linearRip(s: usize, op: usize): u64 {
  const rip = instructionRip(s, op)
  return code64(s) ? rip : (rip + load<u64>(segment(s, SEG_CS), SEG_BASE)) & 0xffffffff
}

/** VMRUN VMLOAD VMSAVE STGI CLGI SKINIT INVLPGA: #UD without EFER.SVME; intercepted for SEV-ES, whose EFER has it. */
export function svm(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_EFER) & EFER_SVME) == 0 || !protectedMode(s)) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const modrm = <u32>load<u8>(op, OP_MODRM)
  if (!sevEs(s)) return unimplementedFeature(s, op, UNIMPLEMENTED_SVM)
  // D8 VMRUN .. DD CLGI are 0x80, 0x81 (VMMCALL), 0x82 .. 0x85; DE SKINIT 0x86; DF INVLPGA 0x7a.
  return vmmCommunication(s, modrm == 0xdf ? 0x7a : 0x80 + (modrm - 0xd8))
}

/** RSM: #UD outside of system management mode; a save area that cannot be loaded is a triple fault (em_rsm). */
export function rsm(s: usize, op: usize): u32 {
  if (sevEs(s)) return vmmCommunication(s, 0x73)
  if (!inSmm(s)) return raise(s, EXC_UD)
  if (leaveSmm(s)) return LEAVE_BRANCH
  store<u32>(s, 2, CPU_TRIPLE_FAULT)
  store<u32>(s, STOP_SHUTDOWN, CPU_STOP_REASON)
  return LEAVE_EXIT_BRANCH
}

/** UD0, UD1, UD2. */
export function ud(s: usize, op: usize): u32 {
  return raise(s, EXC_UD)
}
