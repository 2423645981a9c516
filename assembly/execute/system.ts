/**
 * System instructions: control and debug registers, MSRs, fast system calls, time, identification,
 * cache and TLB control (SDM vol 2; APM vol 3). For SEV-ES guests the instructions that KVM intercepts
 * become #VC after their own exception checks (APM vol 2, 15.9, 15.35.5; facts: sev.md 1.9).
 */
import { readDr, writeCr0, writeCr3, writeCr4, writeCr8, writeDr, writeXcr0 } from '../cpu/control'
import { raise, raiseDebug, raiseError, unimplementedFeature, vmmCommunication } from '../cpu/exceptions'
import {
  F_1_ECX,
  F_7_EBX,
  F_7_ECX,
  F_D1_EAX,
  F_80000001_ECX,
  F_80000001_EDX,
  F_80000008_EBX,
  feature,
  featureOrBare,
  intelCompatible,
} from '../cpu/features'
import { IF, TF, getFlags, setFlags } from '../cpu/flags'
import {
  CR0_PE,
  CR0_TS,
  CR4_DE,
  CR4_FSGSBASE,
  CR4_OSXSAVE,
  CR4_PCE,
  CR4_TSD,
  CR4_UMIP,
  EFER_SCE,
  EFER_SVME,
  FLAG_AC,
  FLAG_RF,
  FLAG_VM,
  canonical,
  code64,
  leaveWith,
  longMode,
  protectedMode,
  segment,
  sevEs,
  updateMode,
  virtual8086,
  windowOpened,
} from '../cpu/mode'
import { msrPassThrough, msrRead } from '../cpu/msr'
import {
  CPU_CPL,
  CPU_CR0,
  CPU_CR2,
  CPU_CR3,
  CPU_CR4,
  CPU_CR8,
  CPU_CSTAR,
  CPU_DR7,
  CPU_EFER,
  CPU_EFLAGS,
  CPU_KERNEL_GS_BASE,
  CPU_LEAVE,
  CPU_LSTAR,
  CPU_MSR_VALUE,
  CPU_PENDING_DB,
  CPU_RIP,
  CPU_RIP_MASK,
  CPU_SFMASK,
  CPU_STAR,
  CPU_STEP_CANCEL,
  CPU_SYSENTER_CS,
  CPU_SYSENTER_EIP,
  CPU_SYSENTER_ESP,
  CPU_TSC_AUX,
  CPU_XCR0,
  EXC_GP,
  EXC_UD,
  LEAVE_BRANCH,
  LEAVE_NEXT,
  OPF_LOCK,
  OP_FLAGS,
  OP_IMM,
  OP_MODRM,
  OP_NEXT,
  OP_REG,
  OP_RM,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_FS,
  SEG_GS,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  UNIMPLEMENTED_SVM,
} from '../generated/layout'
import { flushTlb, flushTlbLocal, invalidatePage, selectTlb } from '../memory/tlb'
import { readMem, writeMem } from '../memory/access'
import { pendRetry, vmmcall } from './vmgexit'
import { pollPause, pollTsc } from '../kvm/pio'
import { guestMsrRead, guestMsrWrite, MSR_GP, MSR_LEFT } from '../kvm/msr-exit'
import { tscNow } from '../kvm/time'
import { cpuidAnswer, cpuidEax, cpuidEbx, cpuidEcx, cpuidEdx } from '../kvm/cpuid'
import { addressMask, ea, getRm, instructionRip, isMemory, operandSize, setRm, writeRegister } from './operands'

const RAX: usize = 0
const RCX: usize = 8
const RDX: usize = 16
const RBX: usize = 24
const RSP: usize = 32
const R11: usize = 88

function left(s: usize): bool {
  return load<u32>(s, CPU_LEAVE) != 0
}

function done(s: usize): u32 {
  return leaveWith(s, LEAVE_NEXT)
}

function cpl(s: usize): u32 {
  return load<u32>(s, CPU_CPL)
}

function gp(s: usize): u32 {
  return raiseError(s, EXC_GP, 0)
}

function nextRip(s: usize, op: usize): u64 {
  return (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK)
}

/** EDX:EAX, upper halves zeroed. */
function putPair(s: usize, value: u64): void {
  store<u64>(s, value & 0xffffffff, RAX)
  store<u64>(s, value >> 32, RDX)
}

function getPair(s: usize): u64 {
  return <u64>load<u32>(s, RAX) | ((<u64>load<u32>(s, RDX)) << 32)
}

// Control and debug registers.

/** Control register number; LOCK MOV CR0 is CR8 on AMD (CPUID 0x80000001 ECX[4]). */
function crNumber(s: usize, op: usize): u32 {
  const n = <u32>load<u8>(op, OP_REG) >> 3
  return n == 0 && (<u32>load<u8>(op, OP_FLAGS) & OPF_LOCK) != 0 ? 8 : n
}

export function movFromCr(s: usize, op: usize): u32 {
  const n = crNumber(s, op)
  if (n > 8 || n == 1 || (n > 4 && n < 8)) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const value =
    n == 0
      ? load<u64>(s, CPU_CR0)
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
  let ok = true
  if (n == 0) ok = writeCr0(s, value)
  else if (n == 2) store<u64>(s, value, CPU_CR2)
  else if (n == 3) ok = writeCr3(s, value)
  else if (n == 4) ok = writeCr4(s, value)
  else ok = writeCr8(s, value)
  return ok ? done(s) : gp(s)
}

/** Debug register number with the DR4/DR5 aliases resolved; 0xff = #UD. */
function drNumber(s: usize, op: usize): u32 {
  const n = <u32>load<u8>(op, OP_REG) >> 3
  if (n > 7) return 0xff
  if (n == 4 || n == 5) return (load<u64>(s, CPU_CR4) & CR4_DE) != 0 ? 0xff : n + 2
  return n
}

export function movFromDr(s: usize, op: usize): u32 {
  const n = drNumber(s, op)
  if (n == 0xff) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  if ((load<u64>(s, CPU_DR7) & 0x2000) != 0) return raiseDebug(s, 0x2000)
  if (n == 7 && sevEs(s)) return vmmCommunication(s, 0x27)
  writeRegister(s + <usize>load<u8>(op, OP_RM), code64(s) ? 8 : 4, readDr(s, n))
  return 0
}

export function movToDr(s: usize, op: usize): u32 {
  const n = drNumber(s, op)
  if (n == 0xff) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  if ((load<u64>(s, CPU_DR7) & 0x2000) != 0) return raiseDebug(s, 0x2000)
  const from = s + <usize>load<u8>(op, OP_RM)
  const value = code64(s) ? load<u64>(from) : <u64>load<u32>(from)
  if (n == 7 && sevEs(s)) return vmmCommunication(s, 0x37)
  return writeDr(s, n, value) ? done(s) : gp(s)
}

export function smsw(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_UMIP) != 0 && cpl(s) > 0) return gp(s)
  return setRm(s, op, isMemory(op) ? 2 : operandSize(op), load<u64>(s, CPU_CR0))
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
  if (canonical(va)) invalidatePage(s, va)
  return done(s)
}

/** INVPCID: PCIDs do not tag translations here, so every kind drops at least what it names. */
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
  if (type > 3 || (type < 2 && pcid >> 12 != 0) || (type == 0 && !canonical(address))) return gp(s)
  if ((load<u64>(s, CPU_CR4) & 0x20000) == 0 && type < 2 && pcid != 0) return gp(s)
  if (type == 0) invalidatePage(s, address)
  else if (type == 2) flushTlb(s)
  else flushTlbLocal(s)
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

// Identification and time.

export function cpuid(s: usize, op: usize): u32 {
  if (sevEs(s)) return vmmCommunication(s, 0x72)
  // CPUID faulting (MISC_FEATURES_ENABLES bit 0).
  if (cpl(s) != 0 && msrRead(s, 0x140, true) && (load<u64>(s, CPU_MSR_VALUE) & 1) != 0) return gp(s)
  cpuidAnswer(s, load<u32>(s, RAX), load<u32>(s, RCX))
  store<u64>(s, <u64>cpuidEax(s), RAX)
  store<u64>(s, <u64>cpuidEbx(s), RBX)
  store<u64>(s, <u64>cpuidEcx(s), RCX)
  store<u64>(s, <u64>cpuidEdx(s), RDX)
  return 0
}

export function rdtsc(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_TSD) != 0 && cpl(s) != 0) return gp(s)
  pollTsc(s, instructionRip(s, op))
  putPair(s, tscNow(s))
  return done(s)
}

export function rdtscp(s: usize, op: usize): u32 {
  if (!featureOrBare(s, F_80000001_EDX, 27)) return raise(s, EXC_UD)
  if ((load<u64>(s, CPU_CR4) & CR4_TSD) != 0 && cpl(s) != 0) return gp(s)
  pollTsc(s, instructionRip(s, op))
  putPair(s, tscNow(s))
  store<u64>(s, load<u64>(s, CPU_TSC_AUX) & 0xffffffff, RCX)
  return done(s)
}

export function rdpid(s: usize, op: usize): u32 {
  if (!feature(s, F_7_ECX, 22)) return raise(s, EXC_UD)
  writeRegister(s + <usize>load<u8>(op, OP_RM), code64(s) ? 8 : 4, load<u64>(s, CPU_TSC_AUX) & 0xffffffff)
  return 0
}

/** No PMU is offered: every counter is out of range. */
export function rdpmc(s: usize, op: usize): u32 {
  if (cpl(s) != 0 && (load<u64>(s, CPU_CR4) & CR4_PCE) == 0 && protectedMode(s)) return gp(s)
  return sevEs(s) ? vmmCommunication(s, 0x6f) : gp(s)
}

export function rdpru(s: usize, op: usize): u32 {
  if (!feature(s, F_80000008_EBX, 4)) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8e) : raise(s, EXC_UD)
}

/** MONITOR and MWAIT are no-ops under KVM (quirk MWAIT_NEVER_UD_FAULTS). */
export function monitor(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8a) : 0
}

export function mwait(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8b) : 0
}

export function monitorx(s: usize, op: usize): u32 {
  if (!feature(s, F_80000001_ECX, 29)) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8a) : 0
}

export function mwaitx(s: usize, op: usize): u32 {
  if (!feature(s, F_80000001_ECX, 29)) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8b) : 0
}

// MSRs.

export function rdmsr(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  const index = load<u32>(s, RCX)
  if (sevEs(s) && !msrPassThrough(index)) return vmmCommunication(s, 0x7c)
  const result = guestMsrRead(s, index)
  if (result == MSR_GP) return gp(s)
  if (result == MSR_LEFT) return pendRetry(s, op)
  putPair(s, load<u64>(s, CPU_MSR_VALUE))
  return done(s)
}

export function wrmsr(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  const index = load<u32>(s, RCX)
  if (sevEs(s) && !msrPassThrough(index)) return vmmCommunication(s, 0x7c)
  const result = guestMsrWrite(s, index, getPair(s))
  return result == MSR_GP ? gp(s) : result == MSR_LEFT ? pendRetry(s, op) : done(s)
}

// Segment bases.

function baseAccess(s: usize): bool {
  return code64(s) && (load<u64>(s, CPU_CR4) & CR4_FSGSBASE) != 0
}

function readBase(s: usize, op: usize, n: u32): u32 {
  if (!baseAccess(s)) return raise(s, EXC_UD)
  writeRegister(s + <usize>load<u8>(op, OP_RM), operandSize(op), load<u64>(segment(s, n), SEG_BASE))
  return 0
}

function writeBase(s: usize, op: usize, n: u32): u32 {
  if (!baseAccess(s)) return raise(s, EXC_UD)
  const from = s + <usize>load<u8>(op, OP_RM)
  const value = operandSize(op) == 8 ? load<u64>(from) : <u64>load<u32>(from)
  if (!canonical(value)) return gp(s)
  store<u64>(segment(s, n), value, SEG_BASE)
  return 0
}

export function rdfsbase(s: usize, op: usize): u32 {
  return readBase(s, op, SEG_FS)
}
export function rdgsbase(s: usize, op: usize): u32 {
  return readBase(s, op, SEG_GS)
}
export function wrfsbase(s: usize, op: usize): u32 {
  return writeBase(s, op, SEG_FS)
}
export function wrgsbase(s: usize, op: usize): u32 {
  return writeBase(s, op, SEG_GS)
}

export function swapgs(s: usize, op: usize): u32 {
  if (!code64(s)) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const gs = segment(s, SEG_GS)
  const base = load<u64>(gs, SEG_BASE)
  store<u64>(gs, load<u64>(s, CPU_KERNEL_GS_BASE), SEG_BASE)
  store<u64>(s, base, CPU_KERNEL_GS_BASE)
  return 0
}

// Fast system calls.

function setFlat(s: usize, n: u32, selector: u32, attrib: u32): void {
  const d = segment(s, n)
  store<u64>(d, 0, SEG_BASE)
  store<u32>(d, 0xffffffff, SEG_LIMIT)
  store<u16>(d, <u16>selector, SEG_SELECTOR)
  store<u16>(d, <u16>attrib, SEG_ATTRIB)
}

const CODE_32: u32 = 0xc9b
const CODE_64: u32 = 0xa9b
const DATA: u32 = 0xc93
const DPL_3: u32 = 0x60

function arrive(s: usize, rip: u64): u32 {
  store<u64>(s, rip, CPU_RIP)
  updateMode(s)
  return leaveWith(s, LEAVE_BRANCH)
}

/** SYSCALL and SYSRET trap on the TF they end with, not on the one they began with. */
function stepByNewFlags(s: usize, before: u64): void {
  if (<u32>before & TF) store<u32>(s, 1, CPU_STEP_CANCEL)
  if (<u32>load<u64>(s, CPU_EFLAGS) & TF) store<u32>(s, load<u32>(s, CPU_PENDING_DB) | 0x4000, CPU_PENDING_DB)
}

export function syscall(s: usize, op: usize): u32 {
  const long = longMode(s)
  if ((load<u64>(s, CPU_EFER) & EFER_SCE) == 0 || !protectedMode(s) || (intelCompatible(s) && !code64(s))) return raise(s, EXC_UD)
  const star = load<u64>(s, CPU_STAR)
  const selector = <u32>(star >> 32) & 0xfffc
  const next = nextRip(s, op)
  const flags = getFlags(s)
  if (long) {
    const rip = code64(s) ? load<u64>(s, CPU_LSTAR) : load<u64>(s, CPU_CSTAR)
    store<u64>(s, next, RCX)
    store<u64>(s, flags & ~FLAG_RF, R11)
    setFlat(s, SEG_CS, selector, CODE_64)
    setFlat(s, SEG_SS, (selector + 8) & 0xffff, DATA)
    setFlags(s, flags & ~(load<u64>(s, CPU_SFMASK) | FLAG_RF))
    store<u32>(s, 0, CPU_CPL)
    stepByNewFlags(s, flags)
    return arrive(s, rip)
  }
  store<u64>(s, next & 0xffffffff, RCX)
  setFlat(s, SEG_CS, selector, CODE_32)
  setFlat(s, SEG_SS, (selector + 8) & 0xffff, DATA)
  setFlags(s, flags & ~(<u64>IF | FLAG_RF | FLAG_VM))
  store<u32>(s, 0, CPU_CPL)
  return arrive(s, star & 0xffffffff)
}

export function sysret(s: usize, op: usize): u32 {
  const long = longMode(s)
  if ((load<u64>(s, CPU_EFER) & EFER_SCE) == 0 || !protectedMode(s) || (intelCompatible(s) && !code64(s))) return raise(s, EXC_UD)
  if (cpl(s) != 0) return gp(s)
  const selector = <u32>(load<u64>(s, CPU_STAR) >> 48) & 0xffff
  const old = getFlags(s)
  let rip: u64
  if (long && operandSize(op) == 8) {
    rip = load<u64>(s, RCX)
    // Intel checks RCX at CPL 0; AMD faults on the fetch at CPL 3.
    if (intelCompatible(s) && !canonical(rip)) return gp(s)
    setFlat(s, SEG_CS, ((selector + 16) & 0xffff) | 3, CODE_64 | DPL_3)
  } else {
    rip = load<u64>(s, RCX) & 0xffffffff
    setFlat(s, SEG_CS, selector | 3, CODE_32 | DPL_3)
  }
  setFlat(s, SEG_SS, ((selector + 8) & 0xffff) | 3, DATA | DPL_3)
  const flags = long ? (load<u64>(s, R11) & 0x3c7fd7) | 2 : old | <u64>IF
  setFlags(s, flags)
  store<u32>(s, 3, CPU_CPL)
  stepByNewFlags(s, old)
  if ((old & <u64>IF) == 0 && (flags & <u64>IF) != 0) windowOpened(s)
  return arrive(s, rip)
}

/** On AMD, SYSENTER and SYSEXIT do not exist in long mode (APM vol 3). */
function sysenterMissing(s: usize): bool {
  return longMode(s) && !intelCompatible(s)
}

export function sysenter(s: usize, op: usize): u32 {
  if (sysenterMissing(s)) return raise(s, EXC_UD)
  const selector = <u32>load<u64>(s, CPU_SYSENTER_CS) & 0xfffc
  if (!protectedMode(s) || selector == 0) return gp(s)
  const long = longMode(s)
  setFlags(s, getFlags(s) & ~(<u64>IF | FLAG_RF | FLAG_VM))
  setFlat(s, SEG_CS, selector, long ? CODE_64 : CODE_32)
  setFlat(s, SEG_SS, (selector + 8) & 0xffff, DATA)
  store<u32>(s, 0, CPU_CPL)
  store<u64>(s, long ? load<u64>(s, CPU_SYSENTER_ESP) : load<u64>(s, CPU_SYSENTER_ESP) & 0xffffffff, RSP)
  return arrive(s, long ? load<u64>(s, CPU_SYSENTER_EIP) : load<u64>(s, CPU_SYSENTER_EIP) & 0xffffffff)
}

export function sysexit(s: usize, op: usize): u32 {
  if (sysenterMissing(s)) return raise(s, EXC_UD)
  const selector = <u32>load<u64>(s, CPU_SYSENTER_CS) & 0xfffc
  if (!protectedMode(s) || selector == 0 || cpl(s) != 0) return gp(s)
  const wide = operandSize(op) == 8
  const rip = load<u64>(s, RDX)
  const rsp = load<u64>(s, RCX)
  if (wide && (!canonical(rip) || !canonical(rsp))) return gp(s)
  setFlat(s, SEG_CS, ((selector + (wide ? 32 : 16)) & 0xffff) | 3, (wide ? CODE_64 : CODE_32) | DPL_3)
  setFlat(s, SEG_SS, ((selector + (wide ? 40 : 24)) & 0xffff) | 3, DATA | DPL_3)
  store<u32>(s, 3, CPU_CPL)
  store<u64>(s, wide ? rsp : rsp & 0xffffffff, RSP)
  return arrive(s, wide ? rip : rip & 0xffffffff)
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

/** VMCALL: KVM accepts it beside VMMCALL; the emulation that does so cannot see an SEV-ES guest. */
export function vmcall(s: usize, op: usize): u32 {
  return sevEs(s) ? raise(s, EXC_UD) : vmmcall(s, op)
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

/** RSM outside system management mode. */
export function rsm(s: usize, op: usize): u32 {
  if (sevEs(s)) return vmmCommunication(s, 0x73)
  return raise(s, EXC_UD)
}

/** UD0, UD1, UD2. */
export function ud(s: usize, op: usize): u32 {
  return raise(s, EXC_UD)
}
