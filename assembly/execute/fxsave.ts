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
  EXC_AC,
  EXC_GP,
  EXC_NM,
  EXC_SS,
  EXC_UD,
  LEAVE_NEXT,
  MODE_CS64,
  MODE_CS_MASK,
  OP_SEG,
  SEG_SS,
  VCPU_FPU,
} from '../generated/layout'
import { raise, raiseError } from '../cpu/exceptions'
import { intelCompatible } from '../cpu/features'
import { leaving, plainRead, plainWrite, readBytes, readMem, writable, writeBytes } from '../memory/access'
import { alignmentChecked } from '../memory/tlb'
import { canonical } from '../memory/translate'
import { ea, eaWrite, getRm, operandSize, setRm } from './operands'
import { left, sseUsable } from './sse-operands'
import { FSW_ES, setControlWord, setStatusWord, st, statusWord } from './x87-state'

const CR0_EM: u64 = 1 << 2
const CR0_TS: u64 = 1 << 3
const CR4_OSFXSR: u64 = 1 << 9
// APM vol 2, 3.1.7: fast FXSAVE leaves XMM registers out at CPL 0 in 64-bit mode.
const EFER_FFXSR: u64 = 1 << 14
/** Valid MXCSR bits: 15:0, and MM on AMD. */
export function mxcsrMask(s: usize): u32 {
  return intelCompatible(s) ? 0xffff : 0x2ffff
}

export function longMode(s: usize): bool {
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

/** Copies `n` bytes from guest memory; an area of up to a page, of which no byte may be missing. 0 or LEAVE. */
export function readArea(s: usize, op: usize, va: u64, to: usize, n: u32): u32 {
  if (!areaCanonical(s, op, va, n) || !areaAligned(s, va, n)) return left(s)
  for (let done: u32 = 0; done < n; ) {
    const at = va + done
    let chunk: u32 = 4096 - (<u32>at & 4095)
    if (chunk > n - done) chunk = n - done
    const p = plainRead(s, at)
    if (p) {
      memory.copy(to + done, p, chunk)
    } else {
      chunk = alignmentChecked(s) ? 1 : chunk > 64 ? 64 : chunk
      const leave = readBytes(s, op, at, to + done, chunk)
      if (leave) return leave
    }
    done += chunk
  }
  return 0
}
/** FXSAVE and FXRSTOR want a canonical area, the others a canonical first word, before the first page is looked at (measured on Zen 4). */
function areaCanonical(s: usize, op: usize, va: u64, n: u32): bool {
  if (canonical(s, va) && canonical(s, va + (n == 14 || n == 94 ? 2 : n > 108 ? n : 4) - 1)) return true
  raiseError(s, load<u8>(op, OP_SEG) == <u8>SEG_SS ? EXC_SS : EXC_GP, 0)
  return false
}

/** #AC: an area counts as words of 4 bytes, the small environments as words of 2 (measured on Zen 4). */
function areaAligned(s: usize, va: u64, n: u32): bool {
  if (!alignmentChecked(s) || (va & (n == 14 || n == 94 ? 1 : 3)) == 0 || !canonical(s, va)) return true
  raiseError(s, EXC_AC, 0)
  return false
}

/** Copies `n` bytes to guest memory; a fault on a later page is raised before the first byte is written. */
export function writeArea(s: usize, op: usize, va: u64, from: usize, n: u32): u32 {
  const last = va + n - 1
  const page = last & ~(<u64>4095)
  if (!areaCanonical(s, op, va, n) || !areaAligned(s, va, n)) return left(s)
  if (page > va && !(writable(s, op, va, 1) && writable(s, op, page, 1))) return left(s)
  let retired: u32 = 0
  for (let done: u32 = 0; done < n; ) {
    const at = va + done
    let chunk: u32 = 4096 - (<u32>at & 4095)
    if (chunk > n - done) chunk = n - done
    const p = plainWrite(s, at)
    if (p) {
      memory.copy(p, from + done, chunk)
    } else {
      chunk = alignmentChecked(s) ? 1 : chunk > 64 ? 64 : chunk
      const leave = writeBytes(s, op, at, from + done, chunk)
      if (leave == LEAVE_NEXT) retired = leave
      else if (leave) return leave
    }
    done += chunk
  }
  return retired
}

function fxAddress(s: usize, op: usize, write: bool): u64 {
  const cr0 = load<u64>(s, CPU_CR0)
  if ((cr0 & (CR0_EM | CR0_TS)) != 0) {
    raise(s, (cr0 & CR0_EM) != 0 ? EXC_UD : EXC_NM)
    return 0
  }
  // Its beginning, then alignment, then all of it against the segment's limit (measured on Zen 4).
  const va = write ? eaWrite(s, op, 4) : ea(s, op, 4)
  if (leaving(s) || !areaCanonical(s, op, va, 4)) return va
  if ((va & 15) != 0) {
    if (areaAligned(s, va, 512)) raiseError(s, EXC_GP, 0)
    return va
  }
  if (write) eaWrite(s, op, 512)
  else ea(s, op, 512)
  if (leaving(s)) return va
  // The last page is written to even if only reserved bytes lie there (measured on Zen 4).
  if (!areaCanonical(s, op, va, 512)) return va
  const page = (va + 511) & ~(<u64>4095)
  if (page > va && !write) readMem(s, op, va + 511, 1)
  if (write && page > va && writable(s, op, va + 511, 1)) writable(s, op, va, 1)
  return va
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
    if (readArea(s, op, va, p, 160)) return left(s)
  }
  const mxcsr = load<u64>(p, 24)
  buildX87(s, p, operandSize(op) == 8)
  store<u64>(p, osfxsr ? <u64>load<u32>(s, CPU_MXCSR) | ((<u64>mxcsrMask(s)) << 32) : mxcsr, 24)
  if (xmm) buildXmm(s, p)
  return writeArea(s, op, va, p, n)
}

export function fxrstor(s: usize, op: usize): u32 {
  const va = fxAddress(s, op, false)
  if (leaving(s)) return left(s)
  const p = s + VCPU_FPU
  if (readArea(s, op, va, p, 512)) return left(s)
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
