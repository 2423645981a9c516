/** Virtual-8086 mode: the instructions sensitive to IOPL, and the mode extensions of CR4.VME (SDM vol 3, 20.2, 20.3). Owns no state. */
import { IF, TF, getFlags, setFlags } from '../cpu/flags'
import { leaveWith, segment, updateMode, windowOpened } from '../cpu/mode'
import { applyStack, beginStackCurrent, setRealCache, stackDone, stackPop, stackPush } from '../cpu/segments'
import {
  CPU_CPL,
  CPU_CR4,
  CPU_LEAVE,
  CPU_RIP,
  LEAVE_BRANCH,
  LEAVE_NEXT,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GS,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
} from '../generated/layout'
import { CR4_VME, FLAG_AC, FLAG_ID, FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_VIF, FLAG_VIP, FLAG_VM } from '../generated/registers'
import { readMem, sysRead } from '../memory/access'
import { STACK_OP } from './operands'
import { gp, left } from './common'

const RSP: usize = 32
const CHANGEABLE: u64 = 0x8d5 | 0x100 | 0x400 | 0x4000

function iopl3(s: usize): bool {
  return (getFlags(s) & FLAG_IOPL) == FLAG_IOPL
}

function vme(s: usize): bool {
  return (load<u64>(s, CPU_CR4) & CR4_VME) != 0
}

/** FLAGS as 16-bit code under VME sees them: IOPL 3, VIF in place of IF. */
function virtualImage(flags: u64): u64 {
  return (flags & ~(<u64>IF)) | FLAG_IOPL | ((flags & FLAG_VIF) >> 10)
}

/** Takes a 16-bit FLAGS image under VME with IOPL below 3; false: #GP (TF, or an interrupt is pending). */
function setVirtual(s: usize, image: u64): bool {
  const old = getFlags(s)
  if ((image & <u64>TF) != 0 || ((image & <u64>IF) != 0 && (old & FLAG_VIP) != 0)) return false
  const change = CHANGEABLE & ~(<u64>TF)
  setFlags(s, (old & ~(change | FLAG_VIF | FLAG_RF)) | (image & change) | ((image & <u64>IF) << 10))
  return true
}

export function pushfVirtual(s: usize, size: u32): u32 {
  const flags = getFlags(s)
  const real = iopl3(s)
  if (!real && (size != 2 || !vme(s))) return gp(s)
  beginStackCurrent(s, 0)
  if (!stackPush(s, size, (real ? flags : virtualImage(flags)) & ~(FLAG_RF | FLAG_VM))) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  return stackDone(s)
}

export function popfVirtual(s: usize, size: u32): u32 {
  const real = iopl3(s)
  if (!real && (size != 2 || !vme(s))) return gp(s)
  beginStackCurrent(s, 0)
  const image = stackPop(s, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (real) setReal(s, size, image)
  else if (!setVirtual(s, image)) return gp(s)
  applyStack(s)
  windowOpened(s)
  return leaveWith(s, LEAVE_NEXT)
}

/** A FLAGS image with IOPL 3: everything but IOPL, VM, VIF and VIP. */
function setReal(s: usize, size: u32, image: u64): void {
  const change = CHANGEABLE | <u64>IF | (size != 2 ? FLAG_AC | FLAG_ID : 0)
  setFlags(s, (getFlags(s) & ~(change | FLAG_RF)) | (image & change))
  updateMode(s)
}

export function iretVirtual(s: usize, size: u32): u32 {
  const real = iopl3(s)
  if (!real && (size != 2 || !vme(s))) return gp(s)
  beginStackCurrent(s, 0)
  const rip = stackPop(s, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const selector = <u32>stackPop(s, size) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const image = stackPop(s, size)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (rip > <u64>load<u32>(segment(s, SEG_CS), SEG_LIMIT)) return gp(s)
  if (real) setReal(s, size, image)
  else if (!setVirtual(s, image)) return gp(s)
  applyStack(s)
  setRealCache(s, SEG_CS, selector)
  store<u64>(s, rip, CPU_RIP)
  windowOpened(s)
  return leaveWith(s, LEAVE_BRANCH)
}

/** The bit of the TSS's interrupt redirection map: 0 goes to the program's own vector table. */
function redirected(s: usize, vector: u32): bool {
  const tr = segment(s, SEG_TR)
  const map = <u32>sysRead(s, load<u64>(tr, SEG_BASE) + 102, 2)
  if (left(s)) return false
  const at = map - 32 + (vector >> 3)
  if (map < 32 || at > load<u32>(tr, SEG_LIMIT)) return false
  const bits = <u32>sysRead(s, load<u64>(tr, SEG_BASE) + <u64>at, 1)
  return !left(s) && ((bits >> (vector & 7)) & 1) == 0
}

/** INT n: 0 = through the IDT, else what the handler returns. */
export function intVirtual(s: usize, vector: u32, next: u64): u32 {
  if (vme(s)) {
    const own = redirected(s, vector)
    if (left(s)) return load<u32>(s, CPU_LEAVE)
    if (own) return ownVector(s, vector, next)
  }
  return iopl3(s) ? 0 : gp(s)
}

/** An 8086 interrupt inside the virtual machine. */
function ownVector(s: usize, vector: u32, next: u64): u32 {
  const entry = <u32>readMem(s, STACK_OP, <u64>(vector << 2), 4)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const flags = getFlags(s)
  const real = iopl3(s)
  beginStackCurrent(s, 0)
  if (!stackPush(s, 2, real ? flags : virtualImage(flags))) return load<u32>(s, CPU_LEAVE)
  if (!stackPush(s, 2, <u64>load<u16>(segment(s, SEG_CS), SEG_SELECTOR))) return load<u32>(s, CPU_LEAVE)
  if (!stackPush(s, 2, next)) return load<u32>(s, CPU_LEAVE)
  applyStack(s)
  setFlags(s, flags & ~(<u64>TF | FLAG_NT | FLAG_RF | (real ? <u64>IF : FLAG_VIF)))
  setRealCache(s, SEG_CS, entry >> 16)
  store<u64>(s, <u64>(entry & 0xffff), CPU_RIP)
  updateMode(s)
  return leaveWith(s, LEAVE_BRANCH)
}

/** IRETD at CPL 0 with VM in its image: EIP, CS and EFLAGS are popped already. */
export function enterVirtual(s: usize, rip: u64, selector: u32, image: u64): u32 {
  const sp = stackPop(s, 4)
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const ss = <u32>stackPop(s, 4) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const es = <u32>stackPop(s, 4) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const ds = <u32>stackPop(s, 4) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const fs = <u32>stackPop(s, 4) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  const gs = <u32>stackPop(s, 4) & 0xffff
  if (left(s)) return load<u32>(s, CPU_LEAVE)
  if (rip > 0xffff) return gp(s)
  setFlags(s, (image & 0x3e7fd7) | FLAG_VM)
  store<u32>(s, 3, CPU_CPL)
  setRealCache(s, SEG_CS, selector)
  setRealCache(s, SEG_SS, ss)
  setRealCache(s, SEG_ES, es)
  setRealCache(s, SEG_DS, ds)
  setRealCache(s, SEG_FS, fs)
  setRealCache(s, SEG_GS, gs)
  store<u64>(s, sp, RSP)
  store<u64>(s, rip, CPU_RIP)
  updateMode(s)
  windowOpened(s)
  return leaveWith(s, LEAVE_BRANCH)
}
