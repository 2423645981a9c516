/**
 * FXSAVE, FXRSTOR, LDMXCSR, STMXCSR (SDM vol 2, FXSAVE; APM vol 5): the 512-byte image of x87 and SSE state.
 * Owns the region VCPU_FPU (image under construction) and CPU_MXCSR.
 */
import {
  CPU_CPL,
  CPU_CR0,
  CPU_CR4,
  CPU_EFER,
  CPU_FCS,
  CPU_FCW,
  CPU_FDP,
  CPU_FDS,
  CPU_FIP,
  CPU_FOP,
  CPU_FSW,
  CPU_FTAG,
  CPU_MODE,
  CPU_MXCSR,
  CPU_XMM,
  EXC_GP,
  EXC_NM,
  EXC_UD,
  MODE_CS64,
  MODE_CS_MASK,
  VCPU_FPU,
} from '../generated/layout'
import { CR0_EM, CR0_TS, CR4_OSFXSR, EFER_FFXSR } from '../generated/registers'
import { raise, raiseError } from '../cpu/exceptions'
import { intelCompatible } from '../cpu/features'
import { leaving } from '../memory/access'
import { beginImage, readOperand, writeOperand } from './area'
import { getRm, operandSize, setRm } from './operands'
import { left, sseUsable } from './sse-operands'
import { FSW_ES, setControlWord, setStatusWord, st, statusWord } from './x87-state'

// APM vol 2, 3.1.7: fast FXSAVE leaves XMM registers out at CPL 0 in 64-bit mode.
/** Valid MXCSR bits: 15:0, and MM on AMD. */
export function mxcsrMask(s: usize): u32 {
  return intelCompatible(s) ? 0xffff : 0x2ffff
}

function longMode(s: usize): bool {
  return (load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64
}

/** Bytes 0..159 of the image, MXCSR and its mask excepted. `wide`: 64-bit instruction and data pointers. */
export function buildX87(s: usize, p: usize, wide: bool): void {
  store<u16>(p, <u16>load<u32>(s, CPU_FCW))
  store<u16>(p, <u16>statusWord(s), 2)
  store<u16>(p, <u16>load<u32>(s, CPU_FTAG), 4)
  // AMD saves pointers only while an exception is pending (APM vol 5, FXSAVE; the reference CPU writes zeros otherwise).
  const pending = intelCompatible(s) || (load<u32>(s, CPU_FSW) & FSW_ES) != 0
  store<u16>(p, pending ? <u16>load<u32>(s, CPU_FOP) : 0, 6)
  const ip = pending ? load<u64>(s, CPU_FIP) : 0
  const dp = pending ? load<u64>(s, CPU_FDP) : 0
  if (wide) {
    store<u64>(p, ip, 8)
    store<u64>(p, dp, 16)
  } else {
    store<u64>(p, (ip & 0xffffffff) | (pending ? (<u64>load<u32>(s, CPU_FCS)) << 32 : 0), 8)
    store<u64>(p, (dp & 0xffffffff) | (pending ? (<u64>load<u32>(s, CPU_FDS)) << 32 : 0), 16)
  }
  for (let i: u32 = 0; i < 8; i++) {
    const from = st(s, i)
    store<u64>(p + ((<usize>i) << 4), load<u64>(from), 32)
    store<u64>(p + ((<usize>i) << 4), <u64>load<u16>(from, 8), 40)
  }
}

/** The pointers have 57 bits (measured on Zen 4). */
function pointer(value: u64): u64 {
  return <u64>(<i64>(value << 7) >> 7)
}

export function loadX87(s: usize, p: usize, wide: bool): void {
  setControlWord(s, <u32>load<u16>(p))
  setStatusWord(s, <u32>load<u16>(p, 2))
  store<u32>(s, <u32>load<u8>(p, 4), CPU_FTAG)
  store<u32>(s, <u32>load<u16>(p, 6) & 0x7ff, CPU_FOP)
  store<u64>(s, wide ? pointer(load<u64>(p, 8)) : <u64>load<u32>(p, 8), CPU_FIP)
  store<u64>(s, wide ? pointer(load<u64>(p, 16)) : <u64>load<u32>(p, 16), CPU_FDP)
  store<u32>(s, wide ? 0 : <u32>load<u16>(p, 12), CPU_FCS)
  store<u32>(s, wide ? 0 : <u32>load<u16>(p, 20), CPU_FDS)
  for (let i: u32 = 0; i < 8; i++) {
    const to = st(s, i)
    store<u64>(to, load<u64>(p + ((<usize>i) << 4), 32))
    store<u16>(to, load<u16>(p + ((<usize>i) << 4), 40), 8)
  }
}

/** XMM registers that the current mode can name. */
export function xmmCount(s: usize): u32 {
  return longMode(s) ? 16 : 8
}
export function buildXmm(s: usize, p: usize): void {
  const n = xmmCount(s)
  for (let i: u32 = 0; i < n; i++) v128.store(p + ((<usize>i) << 4), v128.load(s + ((<usize>i) << 5), CPU_XMM), 160)
}
export function loadXmm(s: usize, p: usize): void {
  const n = xmmCount(s)
  for (let i: u32 = 0; i < n; i++) v128.store(s + ((<usize>i) << 5), v128.load(p + ((<usize>i) << 4), 160), CPU_XMM)
}

function fxAddress(s: usize, op: usize, write: bool): u64 {
  const cr0 = load<u64>(s, CPU_CR0)
  if ((cr0 & (CR0_EM | CR0_TS)) != 0) {
    raise(s, (cr0 & CR0_EM) != 0 ? EXC_UD : EXC_NM)
    return 0
  }
  return beginImage(s, op, write)
}
function savesXmm(s: usize): bool {
  if ((load<u64>(s, CPU_CR4) & CR4_OSFXSR) == 0) return false
  return (load<u64>(s, CPU_EFER) & EFER_FFXSR) == 0 || load<u32>(s, CPU_CPL) != 0 || !longMode(s)
}

/** FXSAVE and FXSAVE64 (REX.W). Bytes that the image does not define keep what memory held. */
export function fxsave(s: usize, op: usize): u32 {
  const va = fxAddress(s, op, true)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  const osfxsr = (load<u64>(s, CPU_CR4) & CR4_OSFXSR) != 0
  const xmm = savesXmm(s)
  const n: u32 = xmm ? 160 + (xmmCount(s) << 4) : 160
  if (!osfxsr) {
    // MXCSR is left out as well: write around it.
    if (readOperand(s, op, va, p, 512)) return left(s)
  }
  const mxcsr = load<u64>(p, 24)
  buildX87(s, p, operandSize(op) == 8)
  store<u64>(p, osfxsr ? <u64>load<u32>(s, CPU_MXCSR) | ((<u64>mxcsrMask(s)) << 32) : mxcsr, 24)
  if (xmm) buildXmm(s, p)
  return writeOperand(s, op, va, p, n, 512)
}

export function fxrstor(s: usize, op: usize): u32 {
  const va = fxAddress(s, op, false)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  if (readOperand(s, op, va, p, 512)) return left(s)
  const osfxsr = (load<u64>(s, CPU_CR4) & CR4_OSFXSR) != 0
  if (osfxsr) {
    const mxcsr = load<u32>(p, 24)
    if ((mxcsr & ~mxcsrMask(s)) != 0) return raiseError(s, EXC_GP, 0)
    store<u32>(s, mxcsr, CPU_MXCSR)
  }
  loadX87(s, p, operandSize(op) == 8)
  if (savesXmm(s)) loadXmm(s, p)
  return 0
}

export function ldmxcsr(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  const value = <u32>getRm(s, op, 4)
  if (leaving(s)) return left(s)
  if ((value & ~mxcsrMask(s)) != 0) return raiseError(s, EXC_GP, 0)
  store<u32>(s, value, CPU_MXCSR)
  return 0
}
export function stmxcsr(s: usize, op: usize): u32 {
  if (!sseUsable(s)) return left(s)
  return setRm(s, op, 4, load<u32>(s, CPU_MXCSR))
}
