/** BT BTS BTR BTC, BSF BSR TZCNT LZCNT POPCNT, SHLD SHRD (SDM vol. 2). Owns no state. */
import { CPU_LEAVE, LEAVE_NONE, OP_IMM, OP_REG, OP_RM, OP_SEG } from '../generated/layout'
import { AF, CF, OF, PF, ZF, getFlags, setArithmetic } from '../cpu/flags'
import { leaving, modifyMem, readMem } from '../memory/access'
import { maskOf, resultFlags, signExtend } from './arith'
import { aborted, linear } from './linear'
import {
  addressMask,
  ea,
  eaWrite,
  effectiveOffset,
  finishRm,
  getReg,
  getRm,
  isMemory,
  modifyRm,
  operandSize,
  readRegister,
  setReg,
} from './operands'

function setCarry(s: usize, bit: u64): void {
  setArithmetic(s, (<u32>getFlags(s) & ~CF) | (<u32>bit & 1))
}

function changed(kind: u32, value: u64, bit: u64): u64 {
  const m: u64 = (<u64>1) << bit
  if (kind == 1) return value | m
  if (kind == 2) return value & ~m
  if (kind == 3) return value ^ m
  return value
}

/** kind: 0 BT, 1 BTS, 2 BTR, 3 BTC. */
function bitTest(s: usize, op: usize, kind: u32, index: u64, string: bool): u32 {
  const size = operandSize(op)
  const bits: u64 = (<u64>size) << 3
  const bit = index & (bits - 1)
  let p: usize
  if (isMemory(op)) {
    let va: u64
    if (string) {
      // A register index addresses a bit string: the operand lies (index div width) operands away.
      const units = signExtend(index, <u32>ctz(size)) >> <i64>ctz(bits)
      const offset = (effectiveOffset(s, op) + <u64>(units * <i64>size)) & addressMask(op)
      va = linear(s, <u32>load<u8>(op, OP_SEG), offset, size, kind != 0)
    } else va = kind == 0 ? ea(s, op, size) : eaWrite(s, op, size)
    if (leaving(s)) return load<u32>(s, CPU_LEAVE)
    if (kind == 0) {
      const value = readMem(s, op, va, size)
      if (leaving(s)) return load<u32>(s, CPU_LEAVE)
      setCarry(s, value >> bit)
      return LEAVE_NONE
    }
    p = modifyMem(s, op, va, size)
    if (p == 0) return load<u32>(s, CPU_LEAVE)
  } else p = s + <usize>load<u8>(op, OP_RM)
  const old = readRegister(p, size)
  if (kind != 0) {
    const code = finishRm(s, op, size, p, changed(kind, old, bit))
    if (aborted(code)) return code
    setCarry(s, old >> bit)
    return code
  }
  setCarry(s, old >> bit)
  return LEAVE_NONE
}

export function bt(s: usize, op: usize): u32 {
  return bitTest(s, op, 0, load<u64>(s + <usize>load<u8>(op, OP_REG)), true)
}
export function bts(s: usize, op: usize): u32 {
  return bitTest(s, op, 1, load<u64>(s + <usize>load<u8>(op, OP_REG)), true)
}
export function btr(s: usize, op: usize): u32 {
  return bitTest(s, op, 2, load<u64>(s + <usize>load<u8>(op, OP_REG)), true)
}
export function btc(s: usize, op: usize): u32 {
  return bitTest(s, op, 3, load<u64>(s + <usize>load<u8>(op, OP_REG)), true)
}
export function btImm(s: usize, op: usize): u32 {
  return bitTest(s, op, 0, <u64>load<u8>(op, OP_IMM), false)
}
export function btsImm(s: usize, op: usize): u32 {
  return bitTest(s, op, 1, <u64>load<u8>(op, OP_IMM), false)
}
export function btrImm(s: usize, op: usize): u32 {
  return bitTest(s, op, 2, <u64>load<u8>(op, OP_IMM), false)
}
export function btcImm(s: usize, op: usize): u32 {
  return bitTest(s, op, 3, <u64>load<u8>(op, OP_IMM), false)
}

/** A zero source sets ZF and leaves the destination alone (AMD; all known CPUs). Other flags are undefined: PF of the result, the rest cleared, as on Zen 4. */
function scan(s: usize, op: usize, reverse: bool): u32 {
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  if (value == 0) {
    setArithmetic(s, ZF | PF)
    return LEAVE_NONE
  }
  const index = reverse ? 63 - clz<u64>(value) : ctz<u64>(value)
  setReg(s, op, size, index)
  setArithmetic(s, resultFlags(index, 3) & PF)
  return LEAVE_NONE
}

export function bsf(s: usize, op: usize): u32 {
  return scan(s, op, false)
}
export function bsr(s: usize, op: usize): u32 {
  return scan(s, op, true)
}

/** TZCNT and LZCNT: CF = source zero, ZF = result zero; of the undefined ones OF stays and the rest is cleared, as on Zen 4. */
function count(s: usize, op: usize, leading: bool): u32 {
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const bits: u64 = (<u64>size) << 3
  const n: u64 = value == 0 ? bits : leading ? clz<u64>(value) - (64 - bits) : ctz<u64>(value)
  setReg(s, op, size, n)
  setArithmetic(s, (<u32>getFlags(s) & OF) | (value == 0 ? CF : 0) | (n == 0 ? ZF : 0))
  return LEAVE_NONE
}

export function tzcnt(s: usize, op: usize): u32 {
  return count(s, op, false)
}
export function lzcnt(s: usize, op: usize): u32 {
  return count(s, op, true)
}

export function popcnt_(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  setReg(s, op, size, popcnt<u64>(value))
  setArithmetic(s, value == 0 ? ZF : 0)
  return LEAVE_NONE
}

/** SHLD/SHRD. 16-bit counts above 16 are undefined: shifted through the 32 bits of both operands and on. */
function doubleShift(s: usize, op: usize, amount: u32, right: bool): u32 {
  const size = operandSize(op)
  const shift = <u32>ctz(size)
  const width: u32 = size << 3
  const n: u64 = amount & (size == 8 ? 63 : 31)
  const p = modifyRm(s, op, size)
  if (p == 0) return load<u32>(s, CPU_LEAVE)
  const a = readRegister(p, size)
  if (n == 0) {
    // The operand is still accessed; a 32-bit register still loses its upper half.
    return finishRm(s, op, size, p, a)
  }
  const b = getReg(s, op, size)
  let r: u64
  let out: u64
  if (size == 2) {
    // 48 bits: a shifts towards b twice, as on Zen 4 (counts beyond 16 are undefined).
    if (right) {
      const all = (b << 32) | (b << 16) | a
      r = (all >> n) & 0xffff
      out = all >> (n - 1)
    } else {
      const all = (a << 32) | (b << 16) | b
      r = ((all << n) >> 32) & 0xffff
      out = all >> (48 - n)
    }
  } else {
    const w = <u64>width
    if (right) {
      r = (a >> n) | (b << (w - n))
      out = a >> (n - 1)
    } else {
      r = (a << n) | (b >> (w - n))
      out = a >> (w - n)
    }
  }
  r &= maskOf(shift)
  const code = finishRm(s, op, size, p, r)
  if (aborted(code)) return code
  // OF is defined for a count of one, where the sign changed; beyond, and for AF, as on Zen 4.
  const carry: u32 = n > width ? 0 : <u32>out & CF
  const last = right ? r ^ (r << 1) : (n < width ? r : 0) ^ ((carry as u64) << (width - 1))
  const flags = resultFlags(r, shift) | carry | AF | ((last >> (width - 1)) & 1 ? OF : 0)
  setArithmetic(s, flags)
  return code
}

export function shldImm(s: usize, op: usize): u32 {
  return doubleShift(s, op, <u32>load<u8>(op, OP_IMM), false)
}
export function shldCl(s: usize, op: usize): u32 {
  return doubleShift(s, op, <u32>load<u8>(s, 8), false)
}
export function shrdImm(s: usize, op: usize): u32 {
  return doubleShift(s, op, <u32>load<u8>(op, OP_IMM), true)
}
export function shrdCl(s: usize, op: usize): u32 {
  return doubleShift(s, op, <u32>load<u8>(s, 8), true)
}
