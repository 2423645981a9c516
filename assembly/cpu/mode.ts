/**
 * Derived mode state: what decoding, address formation and the TLB depend on, recomputed after every
 * change of CR0, CR4, EFER, CS, SS, CPL or RFLAGS.VM/AC/TF (SDM vol 3, 2.2; APM vol 2, 1.3).
 * Owns CPU_MODE, CPU_RIP_MASK, CPU_STACK_MASK and the mode bits of CPU_JUMP_KEY.
 */
import {
  CPU_BUDGET,
  CPU_CODE_BASE,
  CPU_CODE_LIMIT,
  CPU_CPL,
  CPU_CR0,
  CPU_CR4,
  CPU_EFER,
  CPU_EFLAGS,
  CPU_EVENT,
  CPU_INTERRUPT_SHADOW,
  CPU_JUMP_KEY,
  CPU_LEAVE,
  CPU_MODE,
  CPU_RIP_MASK,
  CPU_SEGMENTS,
  CPU_STACK_MASK,
  CPU_VM,
  MODE_CS16,
  MODE_CS16_BIG,
  MODE_CS32,
  MODE_CS64,
  MODE_CS_MASK,
  MODE_FLAT,
  MODE_LONG,
  MODE_SS32,
  MODE_USER,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_LIMIT,
  SEG_SS,
  VM_SEV,
} from '../generated/layout'
import { CR0_PE, CR4_LA57, EFER_LMA, FLAG_VM } from '../generated/registers'
import { newJumpGeneration, selectTlb } from '../memory/tlb'
import { F_7_ECX, feature } from './features'

/** Segment attributes, VMSA packing. */
export const ATTR_L: u32 = 0x200
export const ATTR_DB: u32 = 0x400
export const ATTR_UNUSABLE: u32 = 0x8000

export function segment(s: usize, n: u32): usize {
  return s + CPU_SEGMENTS + ((<usize>n) << 4)
}

export function protectedMode(s: usize): bool {
  return (load<u64>(s, CPU_CR0) & CR0_PE) != 0
}

export function longMode(s: usize): bool {
  return (load<u64>(s, CPU_EFER) & EFER_LMA) != 0
}

/** CS is a 64-bit code segment and long mode is active. */
export function code64(s: usize): bool {
  return (load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64
}

export function virtual8086(s: usize): bool {
  return (load<u64>(s, CPU_EFLAGS) & FLAG_VM) != 0 && protectedMode(s)
}

function signExtended(va: u64, bits: i64): bool {
  const shift = 64 - bits
  return <u64>(<i64>(va << shift) >> shift) == va
}

/** Canonical form of an address: 57 bits with CR4.LA57, else 48. */
export function canonical(s: usize, va: u64): bool {
  return signExtended(va, (load<u64>(s, CPU_CR4) & CR4_LA57) != 0 ? 57 : 48)
}

/** Significant bits of what is loaded into MSRs and the bases of segments and tables: all that the CPU has, whatever CR4.LA57. */
export function registerBits(s: usize): i64 {
  return feature(s, F_7_ECX, 16) ? 57 : 48
}

export function canonicalRegister(s: usize, va: u64): bool {
  return signExtended(va, registerBits(s))
}

/** The vCPU belongs to an SEV-ES guest: non-automatic exits become #VC. */
export function sevEs(s: usize): bool {
  const vm = <usize>load<u32>(s, CPU_VM)
  return vm != 0 && load<u32>(vm, VM_SEV) >= 2
}

/** Base 0, limit 4 GiB, readable, writable, expand-up: addresses need no segment arithmetic. */
function flat(d: usize): bool {
  const attrib = <u32>load<u16>(d, SEG_ATTRIB)
  return load<u64>(d, SEG_BASE) == 0 && load<u32>(d, SEG_LIMIT) == 0xffffffff && (attrib & 0x808e) == 0x82
}

/** Recomputes everything derived; drops lazily nothing. Call it after committing the new state. */
export function updateMode(s: usize): void {
  const cs = segment(s, SEG_CS)
  const ss = segment(s, SEG_SS)
  const attrib = <u32>load<u16>(cs, SEG_ATTRIB)
  const lma = longMode(s)
  let mode: u32 = 0
  if (lma && (attrib & ATTR_L) != 0) {
    mode = MODE_CS64
    store<u64>(s, ~(<u64>0), CPU_RIP_MASK)
    store<u64>(s, ~(<u64>0), CPU_STACK_MASK)
  } else {
    const wide = (attrib & ATTR_DB) != 0
    const big = load<u32>(cs, SEG_LIMIT) > 0xffff
    mode = wide ? MODE_CS32 : big ? MODE_CS16_BIG : MODE_CS16
    // EIP runs on past 0xffff in a 16-bit segment whose limit allows it (OVMF's way of SEV-ES APs back to real mode)
    store<u64>(s, wide || big ? 0xffffffff : 0xffff, CPU_RIP_MASK)
    if (<u32>load<u16>(ss, SEG_ATTRIB) & ATTR_DB) {
      mode |= MODE_SS32
      store<u64>(s, 0xffffffff, CPU_STACK_MASK)
    } else store<u64>(s, 0xffff, CPU_STACK_MASK)
    if (
      load<u64>(cs, SEG_BASE) == 0 &&
      load<u32>(cs, SEG_LIMIT) == 0xffffffff &&
      flat(ss) &&
      flat(segment(s, SEG_DS)) &&
      flat(segment(s, SEG_ES))
    )
      mode |= MODE_FLAT
    else if (load<u64>(s, CPU_CODE_BASE) != load<u64>(cs, SEG_BASE) || load<u64>(s, CPU_CODE_LIMIT) != <u64>load<u32>(cs, SEG_LIMIT)) {
      // The same linear address may be outside of the new segment, or another offset in it.
      store<u64>(s, load<u64>(cs, SEG_BASE), CPU_CODE_BASE)
      store<u64>(s, <u64>load<u32>(cs, SEG_LIMIT), CPU_CODE_LIMIT)
      newJumpGeneration(s)
    }
  }
  if (lma) mode |= MODE_LONG
  if (load<u32>(s, CPU_CPL) == 3) mode |= MODE_USER
  store<u32>(s, mode, CPU_MODE)
  store<u32>(s, (load<u32>(s, CPU_JUMP_KEY) & ~(<u32>0x3ff)) | mode, CPU_JUMP_KEY)
  selectTlb(s)
}

/** IF has become 1, or NMIs are unblocked: what waits is looked at before the next block. The handler returns LEAVE_NEXT or LEAVE_BRANCH. */
export function windowOpened(s: usize): void {
  if (atomic.load<u32>(s + CPU_EVENT) != 0) atomic.store<u64>(s + CPU_BUDGET, 0)
}

/** 1 by STI, 2 by MOV SS; the loop runs one instruction and clears it (execute/boundary.ts). */
export function setShadow(s: usize, kind: u32): void {
  store<u32>(s, kind, CPU_INTERRUPT_SHADOW)
}

/** Ends a handler: `code` is what it returns and what CPU_LEAVE says. */
export function leaveWith(s: usize, code: u32): u32 {
  store<u32>(s, code, CPU_LEAVE)
  return code
}
