/** Fast system calls, and the segment bases they live with: SYSCALL..SYSEXIT, SWAPGS, RDFSBASE.. (SDM vol 2; APM vol 3). */
import { raise } from '../cpu/exceptions'
import { intelCompatible } from '../cpu/features'
import { IF, TF, getFlags, setFlags } from '../cpu/flags'
import { canonical, canonicalRegister, code64, leaveWith, longMode, protectedMode, segment, updateMode, windowOpened } from '../cpu/mode'
import {
  CPU_CPL,
  CPU_CR4,
  CPU_CSTAR,
  CPU_EFER,
  CPU_EFLAGS,
  CPU_KERNEL_GS_BASE,
  CPU_LSTAR,
  CPU_PENDING_DB,
  CPU_RIP,
  CPU_SFMASK,
  CPU_STAR,
  CPU_STEP_CANCEL,
  CPU_SYSENTER_CS,
  CPU_SYSENTER_EIP,
  CPU_SYSENTER_ESP,
  EXC_UD,
  LEAVE_BRANCH,
  OP_RM,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_FS,
  SEG_GS,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
} from '../generated/layout'
import { CR4_FSGSBASE, EFER_SCE, FLAG_RF, FLAG_VM } from '../generated/registers'
import { operandSize, writeRegister } from './operands'
import { cpl, gp, nextRip } from './common'

const RCX: usize = 8
const RDX: usize = 16
const RSP: usize = 32
const R11: usize = 88

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
  if (!canonicalRegister(s, value)) return gp(s)
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
    if (intelCompatible(s) && !canonical(s, rip)) return gp(s)
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
  if (!protectedMode(s) || cpl(s) != 0) return gp(s)
  if (sysenterMissing(s)) return raise(s, EXC_UD)
  const selector = <u32>load<u64>(s, CPU_SYSENTER_CS) & 0xfffc
  if (selector == 0) return gp(s)
  const wide = operandSize(op) == 8
  const rip = load<u64>(s, RDX)
  const rsp = load<u64>(s, RCX)
  if (wide && (!canonical(s, rip) || !canonical(s, rsp))) return gp(s)
  setFlat(s, SEG_CS, ((selector + (wide ? 32 : 16)) & 0xffff) | 3, (wide ? CODE_64 : CODE_32) | DPL_3)
  setFlat(s, SEG_SS, ((selector + (wide ? 40 : 24)) & 0xffff) | 3, DATA | DPL_3)
  store<u32>(s, 3, CPU_CPL)
  store<u64>(s, wide ? rsp : rsp & 0xffffffff, RSP)
  return arrive(s, wide ? rip : rip & 0xffffffff)
}
