/**
 * XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS (SDM vol 1, chapter 13) for the components x87 (0), SSE (1) and PKRU (9), in the
 * standard and the compacted format. Owns no state of its own.
 */
import {
  CPU_CPL,
  CPU_CR0,
  CPU_CR4,
  CPU_FCW,
  CPU_FSW,
  CPU_FTAG,
  CPU_FTOP,
  CPU_GPR,
  CPU_MXCSR,
  CPU_PKRU,
  CPU_ST,
  CPU_XCR0,
  CPU_XMM,
  CPU_XSS,
  EXC_GP,
  EXC_NM,
  EXC_UD,
  VCPU_FPU,
} from '../generated/layout'
import { CR0_TS, CR4_OSXSAVE } from '../generated/registers'
import { raise, raiseError } from '../cpu/exceptions'
import { leaving } from '../memory/access'
import { beginState, readArea, readOperand, STATE, writeArea, writeOperand } from './area'
import { buildX87, buildXmm, loadX87, loadXmm, mxcsrMask, xmmCount } from './fxsave'
import { operandSize } from './operands'
import { left } from './sse-operands'
import { setPkru } from './pkru'
import { initX87 } from './x87-state'

const X87: u64 = 1
const SSE: u64 = 2
const PKRU: u64 = 0x200
/** Where PKRU lies: CPUID 0xD.9 in the standard format; right behind the header in the compacted one. */
const PKRU_STANDARD: u64 = 2432
const PKRU_COMPACTED: u64 = 576
/** MXCSR belongs to SSE and to AVX. */
const MXCSR_OWNERS: u64 = 6
const COMPACTED: u64 = 1 << 63
const MXCSR_RESET: u32 = 0x1f80
/** The header starts here: XSTATE_BV, XCOMP_BV, 48 bytes of zeros. */
const HEADER: u32 = 512

/** Linear address after the common checks; test leaving(s). */
function area(s: usize, op: usize, write: bool, privileged: bool): u64 {
  if ((load<u64>(s, CPU_CR4) & CR4_OSXSAVE) == 0) {
    raise(s, EXC_UD)
    return 0
  }
  if (privileged && load<u32>(s, CPU_CPL) != 0) {
    raiseError(s, EXC_GP, 0)
    return 0
  }
  if ((load<u64>(s, CPU_CR0) & CR0_TS) != 0) {
    raise(s, EXC_NM)
    return 0
  }
  return beginState(s, op, write)
}

function requested(s: usize, enabled: u64): u64 {
  return enabled & (<u64>load<u32>(s, CPU_GPR) | ((<u64>load<u32>(s, CPU_GPR + 16)) << 32))
}

/** Components that differ from their initial state. */
function inUse(s: usize): u64 {
  let found: u64 = 0
  if (load<u32>(s, CPU_FCW) != 0x37f || (load<u32>(s, CPU_FSW) | load<u32>(s, CPU_FTOP) | load<u32>(s, CPU_FTAG)) != 0) found = X87
  for (let i: usize = 0; i < 8 && found == 0; i++) {
    const p = s + CPU_ST + (i << 4)
    if (load<u64>(p) != 0 || load<u16>(p, 8) != 0) found = X87
  }
  const n = xmmCount(s)
  let any = i64x2.splat(0)
  for (let i: u32 = 0; i < n; i++) any = v128.or(any, v128.load(s + ((<usize>i) << 5), CPU_XMM))
  if (load<u32>(s, CPU_PKRU) != 0) found |= PKRU
  return v128.any_true(any) ? found | SSE : found
}

/** Bytes 0..23 and 32..159 of the image go to memory, then MXCSR, XMM and the header as the form of the instruction asks. */
function save(s: usize, op: usize, va: u64, parts: u64, mxcsr: bool, header: u32, state: u64, compaction: u64): u32 {
  const p = s + VCPU_FPU
  if ((parts & PKRU) != 0) {
    store<u64>(s + VCPU_FPU, <u64>load<u32>(s, CPU_PKRU))
    const failed = writeArea(s, op, va + (header == 16 ? PKRU_COMPACTED : PKRU_STANDARD), s + VCPU_FPU, 8)
    if (failed) return failed
  }
  // One write keeps the instruction whole when a later page faults: what is not saved is read first.
  const leave = readOperand(s, op, va, p, STATE)
  if (leave) return leave
  const kept = load<u64>(p, 24)
  if ((parts & X87) != 0) buildX87(s, p, operandSize(op) == 8)
  store<u64>(p, mxcsr ? <u64>load<u32>(s, CPU_MXCSR) | ((<u64>mxcsrMask(s)) << 32) : kept, 24)
  if ((parts & SSE) != 0) buildXmm(s, p)
  store<u64>(p + HEADER, state)
  if (header == 16) store<u64>(p + HEADER, compaction, 8)
  return writeOperand(s, op, va, p, HEADER + header, STATE)
}

export function xsave(s: usize, op: usize): u32 {
  return standard(s, op, false)
}
export function xsaveopt(s: usize, op: usize): u32 {
  return standard(s, op, true)
}
function standard(s: usize, op: usize, optimise: bool): u32 {
  const va = area(s, op, true, false)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  if (readOperand(s, op, va, p, STATE)) return left(s)
  const mask = requested(s, load<u64>(s, CPU_XCR0))
  const used = inUse(s)
  const state = (load<u64>(p, HEADER) & ~mask) | (used & mask)
  return save(s, op, va, optimise ? mask & used : mask, (mask & MXCSR_OWNERS) != 0, 8, state, 0)
}
export function xsavec(s: usize, op: usize): u32 {
  return compacted(s, op, false)
}
export function xsaves(s: usize, op: usize): u32 {
  return compacted(s, op, true)
}
function compacted(s: usize, op: usize, supervisor: bool): u32 {
  const va = area(s, op, true, supervisor)
  if (leaving(s)) return left(s)
  const mask = requested(s, load<u64>(s, CPU_XCR0) | (supervisor ? load<u64>(s, CPU_XSS) : 0))
  let used = inUse(s)
  // Here MXCSR counts as SSE state (SDM vol 1, 13.10).
  if (load<u32>(s, CPU_MXCSR) != MXCSR_RESET) used |= SSE
  const parts = mask & used
  return save(s, op, va, parts, (parts & SSE) != 0, 16, parts, mask | COMPACTED)
}

export function xrstor(s: usize, op: usize): u32 {
  return restore(s, op, false)
}
export function xrstors(s: usize, op: usize): u32 {
  return restore(s, op, true)
}
function restore(s: usize, op: usize, supervisor: bool): u32 {
  const va = area(s, op, false, supervisor)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  if (readOperand(s, op, va, p, STATE)) return left(s)
  const enabled = load<u64>(s, CPU_XCR0) | (supervisor ? load<u64>(s, CPU_XSS) : 0)
  const mask = requested(s, enabled)
  const state = load<u64>(p + HEADER)
  const compaction = load<u64>(p + HEADER, 8)
  const compact = (compaction & COMPACTED) != 0
  let rest = load<u64>(p + HEADER, 16)
  if (compact) for (let i: usize = 24; i < 64; i += 8) rest |= load<u64>(p + HEADER + i)
  let bad = rest != 0 || (supervisor && !compact)
  if (compact) bad = bad || (state & ~compaction) != 0 || (compaction & ~(enabled | COMPACTED)) != 0
  else bad = bad || compaction != 0 || (state & ~enabled) != 0
  const loadsMxcsr = compact ? (mask & state & SSE) != 0 : (mask & MXCSR_OWNERS) != 0
  if (bad || (loadsMxcsr && (load<u32>(p, 24) & ~mxcsrMask(s)) != 0)) return raiseError(s, EXC_GP, 0)
  let pkru: u32 = 0
  if ((mask & state & PKRU) != 0) {
    const at = p + HEADER + 64
    if (readArea(s, op, va + (compact ? PKRU_COMPACTED : PKRU_STANDARD), at, 8)) return left(s)
    pkru = load<u32>(at)
  }
  if ((mask & PKRU) != 0) setPkru(s, pkru)
  if ((mask & X87) != 0) {
    if ((state & X87) != 0) loadX87(s, p, operandSize(op) == 8)
    else {
      initX87(s)
      memory.fill(s + CPU_ST, 0, 128)
    }
  }
  if (loadsMxcsr) store<u32>(s, load<u32>(p, 24), CPU_MXCSR)
  else if ((mask & SSE) != 0) store<u32>(s, MXCSR_RESET, CPU_MXCSR)
  if ((mask & SSE) != 0) {
    if ((state & SSE) == 0) memory.fill(p + 160, 0, 256)
    loadXmm(s, p)
  }
  return 0
}
