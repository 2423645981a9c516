/** BMI1 and BMI2 on general registers (SDM vol 2). VEX.vvvv is in OP_IMM as an offset into CPU. Undefined flags are cleared. */
import { raise } from '../cpu/exceptions'
import { CF, setArithmetic, SF, ZF } from '../cpu/flags'
import { CPU_CR0, CPU_EFLAGS, CPU_GPR, CPU_LEAVE, EXC_UD, OP_IMM } from '../generated/layout'
import { CR0_PE } from '../generated/registers'
import { getRm, operandSize, readRegister, setReg, writeRegister } from './operands'

const VM: u64 = 1 << 17
const RDX: usize = CPU_GPR + 16

/** The E operand, into `source`; 0, or LEAVE: VEX does not exist in real and virtual-8086 mode. */
let source: u64 = 0
function begin(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR0) & CR0_PE) == 0 || (load<u64>(s, CPU_EFLAGS) & VM) != 0) return raise(s, EXC_UD)
  source = getRm(s, op, operandSize(op))
  return load<u32>(s, CPU_LEAVE)
}

function vvvv(s: usize, op: usize): u64 {
  return readRegister(s + <usize>load<u64>(op, OP_IMM), operandSize(op))
}

function truncate(op: usize, value: u64): u64 {
  return operandSize(op) == 8 ? value : value & 0xffffffff
}

/** SF and ZF of `r`, CF as given, OF 0. */
function flags(s: usize, op: usize, r: u64, cf: bool): void {
  const negative = (operandSize(op) == 8 ? r >> 63 : r >> 31) != 0
  setArithmetic(s, (cf ? CF : 0) | (r == 0 ? ZF : 0) | (negative ? SF : 0))
}

export function andn(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  const r = truncate(op, ~vvvv(s, op) & source)
  setReg(s, op, operandSize(op), r)
  flags(s, op, r, false)
  return 0
}

/** BLSR, BLSMSK, BLSI write VEX.vvvv. */
function lowest(s: usize, op: usize, r: u64, cf: bool): u32 {
  r = truncate(op, r)
  writeRegister(s + <usize>load<u64>(op, OP_IMM), operandSize(op), r)
  flags(s, op, r, cf)
  return 0
}

export function blsr(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  return lowest(s, op, source & (source - 1), source == 0)
}

export function blsmsk(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  return lowest(s, op, source ^ (source - 1), source == 0)
}

export function blsi(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  return lowest(s, op, source & (0 - source), source != 0)
}

export function bextr(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  const control = vvvv(s, op)
  const start = control & 0xff
  const length = (control >> 8) & 0xff
  let r = start < 64 ? source >> start : 0
  if (length < 64) r &= ((<u64>1) << length) - 1
  r = truncate(op, r)
  setReg(s, op, operandSize(op), r)
  setArithmetic(s, r == 0 ? ZF : 0)
  return 0
}

export function bzhi(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  const bits = <u64>operandSize(op) * 8
  const n = vvvv(s, op) & 0xff
  const r = n < bits ? source & (((<u64>1) << n) - 1) : source
  setReg(s, op, operandSize(op), r)
  flags(s, op, r, n > bits - 1)
  return 0
}

export function shlx(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  setReg(s, op, operandSize(op), source << (vvvv(s, op) & (operandSize(op) == 8 ? 63 : 31)))
  return 0
}

export function shrx(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  setReg(s, op, operandSize(op), source >> (vvvv(s, op) & (operandSize(op) == 8 ? 63 : 31)))
  return 0
}

export function sarx(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  if (operandSize(op) == 8) setReg(s, op, 8, <u64>(<i64>source >> <i64>(vvvv(s, op) & 63)))
  else setReg(s, op, 4, <u64>(<i32>source >> <i32>(vvvv(s, op) & 31)))
  return 0
}

export function rorx(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  const n = load<u64>(op, OP_IMM)
  if (operandSize(op) == 8) setReg(s, op, 8, rotr<u64>(source, n & 63))
  else setReg(s, op, 4, <u64>rotr<u32>(<u32>source, <u32>n & 31))
  return 0
}

export function pdep(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  let value = vvvv(s, op)
  let r: u64 = 0
  for (let mask = source; mask != 0; mask &= mask - 1) {
    if (value & 1) r |= mask & (0 - mask)
    value >>= 1
  }
  setReg(s, op, operandSize(op), r)
  return 0
}

export function pext(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  const value = vvvv(s, op)
  let r: u64 = 0
  let bit: u64 = 1
  for (let mask = source; mask != 0; mask &= mask - 1) {
    if (value & mask & (0 - mask)) r |= bit
    bit <<= 1
  }
  setReg(s, op, operandSize(op), r)
  return 0
}

/** The low half goes to VEX.vvvv first: with equal destinations the high half stays. */
export function mulx(s: usize, op: usize): u32 {
  const leave = begin(s, op)
  if (leave) return leave
  const low = s + <usize>load<u64>(op, OP_IMM)
  if (operandSize(op) == 4) {
    const p = source * <u64>load<u32>(s, RDX)
    writeRegister(low, 4, p)
    setReg(s, op, 4, p >> 32)
    return 0
  }
  const d = load<u64>(s, RDX)
  const ll = (source & 0xffffffff) * (d & 0xffffffff)
  const hl = (source >> 32) * (d & 0xffffffff) + (ll >> 32)
  const lh = (source & 0xffffffff) * (d >> 32) + (hl & 0xffffffff)
  store<u64>(low, source * d)
  setReg(s, op, 8, (source >> 32) * (d >> 32) + (hl >> 32) + (lh >> 32))
  return 0
}
