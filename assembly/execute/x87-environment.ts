/**
 * FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM vol 1, 8.1.10; figures 8-9 to 8-12): 16- and 32-bit, protected and real-mode images.
 * Owns no state; works on the words of x87-state.ts.
 */
import { CPU_CR0, CPU_EFLAGS, CPU_FCS, CPU_FCW, CPU_FDP, CPU_FDS, CPU_FIP, CPU_FOP, CPU_FTAG, CPU_ST, VCPU_FPU } from '../generated/layout'
import { leaving } from '../memory/access'
import { beginEnvironment, MOVED, readOperand, writeOperand } from './area'
import { operandSize } from './operands'
import { left, stored } from './sse-operands'
import { NORMAL, ZERO } from './softfloat'
import { unpackExtended } from './softfloat-extended'
import { initX87, setControlWord, setStatusWord, st, statusWord, summarise, x87Available, x87Usable } from './x87-state'

const EFLAGS_VM: u64 = 1 << 17

/** Real-address and virtual-8086 mode store linear pointers instead of selectors. */
function realMode(s: usize): bool {
  return (load<u64>(s, CPU_CR0) & 1) == 0 || (load<u64>(s, CPU_EFLAGS) & EFLAGS_VM) != 0
}

/** Two bits for each physical register: 0 valid, 1 zero, 2 special, 3 empty. */
function tagWord(s: usize): u32 {
  const abridged = load<u32>(s, CPU_FTAG)
  let tags: u32 = 0
  for (let i: u32 = 0; i < 8; i++) {
    let tag: u32 = 3
    if (((abridged >> i) & 1) != 0) {
      const c = unpackExtended(s + CPU_ST + ((<usize>i) << 4))
      tag = c == NORMAL ? 0 : c == ZERO ? 1 : 2
    }
    tags |= tag << (i << 1)
  }
  return tags
}
function setTagWord(s: usize, tags: u32): void {
  let abridged: u32 = 0
  for (let i: u32 = 0; i < 8; i++) if (((tags >> (i << 1)) & 3) != 3) abridged |= 1 << i
  store<u32>(s, abridged, CPU_FTAG)
}

/** Writes the environment at p; returns its size. */
function build(s: usize, op: usize, p: usize): u32 {
  const wide = operandSize(op) != 2
  const real = realMode(s)
  const fop = load<u32>(s, CPU_FOP)
  const cs = load<u32>(s, CPU_FCS)
  const ds = load<u32>(s, CPU_FDS)
  const ip = <u32>load<u64>(s, CPU_FIP) + (real ? cs << 4 : 0)
  const dp = <u32>load<u64>(s, CPU_FDP) + (real ? ds << 4 : 0)
  if (wide) {
    store<u32>(p, load<u32>(s, CPU_FCW) | 0xffff0000)
    store<u32>(p, statusWord(s) | 0xffff0000, 4)
    store<u32>(p, tagWord(s) | 0xffff0000, 8)
    store<u32>(p, real ? (ip & 0xffff) | 0xffff0000 : ip, 12)
    store<u32>(p, real ? ((ip >> 16) << 12) | fop : cs | (fop << 16), 16)
    store<u32>(p, real ? (dp & 0xffff) | 0xffff0000 : dp, 20)
    store<u32>(p, real ? (dp >> 16) << 12 : ds | 0xffff0000, 24)
    return 28
  }
  store<u16>(p, <u16>load<u32>(s, CPU_FCW))
  store<u16>(p, <u16>statusWord(s), 2)
  store<u16>(p, <u16>tagWord(s), 4)
  store<u16>(p, <u16>ip, 6)
  store<u16>(p, <u16>(real ? ((ip >> 4) & 0xf000) | fop : cs), 8)
  store<u16>(p, <u16>dp, 10)
  store<u16>(p, <u16>(real ? (dp >> 4) & 0xf000 : ds), 12)
  return 14
}
/** What FLDENV and FRSTOR loaded before a later word failed, at the end of the address size: not the control word (measured on Zen 4). */
function restorePart(s: usize, p: usize, step: u32, moved: u32): u32 {
  const leave = left(s)
  if (moved > step) setStatusWord(s, <u32>load<u16>(p + step))
  if (moved > step * 2) setTagWord(s, <u32>load<u16>(p + step * 2))
  if (moved > step * 7) restoreRegisters(s, p + step * 7, (moved - step * 7) / 10)
  return leave
}
function restoreRegisters(s: usize, p: usize, n: u32): void {
  for (let i: u32 = 0; i < n; i++) {
    const to = st(s, i)
    store<u64>(to, load<u64>(p + i * 10))
    store<u16>(to, load<u16>(p + i * 10, 8), 8)
  }
}
function restore(s: usize, op: usize, p: usize): void {
  const wide = operandSize(op) != 2
  const real = realMode(s)
  const step: usize = wide ? 4 : 2
  setTagWord(s, <u32>load<u16>(p + step * 2))
  setControlWord(s, <u32>load<u16>(p))
  setStatusWord(s, <u32>load<u16>(p + step))
  const ip = p + step * 3
  const dp = p + step * 5
  let fip = wide && !real ? load<u32>(ip) : <u32>load<u16>(ip)
  let fdp = wide && !real ? load<u32>(dp) : <u32>load<u16>(dp)
  const cs = wide ? load<u32>(ip, 4) : <u32>load<u16>(ip, 2)
  const ds = wide ? load<u32>(dp, 4) : <u32>load<u16>(dp, 2)
  if (real) {
    fip |= wide ? (cs >> 12) << 16 : (cs & 0xf000) << 4
    fdp |= wide ? (ds >> 12) << 16 : (ds & 0xf000) << 4
    store<u32>(s, cs & 0x7ff, CPU_FOP)
  } else if (wide) store<u32>(s, (cs >> 16) & 0x7ff, CPU_FOP)
  store<u32>(s, real ? 0 : cs & 0xffff, CPU_FCS)
  store<u32>(s, real ? 0 : ds & 0xffff, CPU_FDS)
  store<u64>(s, <u64>fip, CPU_FIP)
  store<u64>(s, <u64>fdp, CPU_FDP)
}

export function fnstenv(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  const size: u32 = operandSize(op) == 2 ? 14 : 28
  const va = beginEnvironment(s, op, size, true)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  const leave = writeOperand(s, op, va, p, build(s, op, p), size)
  if (stored(leave)) {
    store<u32>(s, load<u32>(s, CPU_FCW) | 0x3f, CPU_FCW)
    summarise(s)
  }
  return leave
}
export function fldenv(s: usize, op: usize): u32 {
  if (!x87Usable(s)) return left(s)
  const size: u32 = operandSize(op) == 2 ? 14 : 28
  const va = beginEnvironment(s, op, size, false)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  if (readOperand(s, op, va, p, size)) return restorePart(s, p, size / 7, MOVED)
  restore(s, op, p)
  return 0
}
export function fnsave(s: usize, op: usize): u32 {
  if (!x87Available(s)) return left(s)
  const header: u32 = operandSize(op) == 2 ? 14 : 28
  const va = beginEnvironment(s, op, header + 80, true)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  build(s, op, p)
  for (let i: u32 = 0; i < 8; i++) {
    const from = st(s, i)
    store<u64>(p + header + i * 10, load<u64>(from))
    store<u16>(p + header + i * 10, load<u16>(from, 8), 8)
  }
  const leave = writeOperand(s, op, va, p, header + 80, header + 80)
  if (stored(leave)) initX87(s)
  return leave
}
export function frstor(s: usize, op: usize): u32 {
  if (!x87Usable(s)) return left(s)
  const header: u32 = operandSize(op) == 2 ? 14 : 28
  const va = beginEnvironment(s, op, header + 80, false)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  if (readOperand(s, op, va, p, header + 80)) return restorePart(s, p, header / 7, MOVED)
  restore(s, op, p)
  restoreRegisters(s, p + header, 8)
  return 0
}
