/**
 * MOVBE BSWAP, CBW and CWD families, LOOP and JCXZ, MOV moffs, ADCX ADOX, CRC32, RDRAND RDSEED, MOVDIRI MOVDIR64B (SDM vol. 2).
 * Owns CPU_RANDOM (splitmix64 state, seeded by the host: runs are reproducible).
 */
import {
  CPU_LEAVE,
  CPU_RANDOM,
  CPU_RIP,
  CPU_RIP_MASK,
  CPU_SCRATCH,
  EXC_GP,
  EXC_UD,
  LEAVE_BRANCH,
  LEAVE_NONE,
  OPF_REP,
  OPF_REPNE,
  OP_FLAGS,
  OP_IMM,
  OP_REG,
  OP_RM,
  OP_SEG,
  SEG_ES,
} from '../generated/layout'
import { raise, raiseError } from '../cpu/exceptions'
import { F_7_ECX, feature } from '../cpu/features'
import { CF, OF, ZF, getFlags, setArithmetic } from '../cpu/flags'
import { leaving, readBytes, readMem, writeBytes, writeMem } from '../memory/access'
import { maskOf, signExtend } from './arith'
import { aborted, getCounter, linear, nextRip, setCounter } from './linear'
import { addressMask, ea, getReg, getRm, operandSize, setReg, setRm, writeRegister } from './operands'

function swapped(value: u64, size: u32): u64 {
  if (size == 2) return <u64>bswap<u16>(<u16>value)
  if (size == 4) return <u64>bswap<u32>(<u32>value)
  return bswap<u64>(value)
}

/** BSWAP of 16 bits is undefined: zero, as current CPUs do. */
export function bswap_(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const p = s + <usize>load<u8>(op, OP_RM)
  writeRegister(p, size, size == 2 ? 0 : swapped(load<u64>(p), size))
  return LEAVE_NONE
}

export function movbeLoad(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const value = getRm(s, op, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  setReg(s, op, size, swapped(value, size))
  return LEAVE_NONE
}

export function movbeStore(s: usize, op: usize): u32 {
  const size = operandSize(op)
  return setRm(s, op, size, swapped(getReg(s, op, size), size))
}

/** CBW CWDE CDQE: the accumulator's lower half, sign-extended. */
export function cbw(s: usize, op: usize): u32 {
  const size = operandSize(op)
  writeRegister(s, size, <u64>signExtend(load<u64>(s), <u32>ctz(size) - 1))
  return LEAVE_NONE
}

/** CWD CDQ CQO: rDX = sign of rAX. */
export function cwd(s: usize, op: usize): u32 {
  const size = operandSize(op)
  writeRegister(s + 16, size, <u64>(signExtend(load<u64>(s), <u32>ctz(size)) >> 63))
  return LEAVE_NONE
}

function jump(s: usize, op: usize, taken: bool): u32 {
  let to = taken ? load<u64>(s, CPU_RIP) + load<u64>(op, OP_IMM) : nextRip(s, op)
  to &= load<u64>(s, CPU_RIP_MASK)
  if (taken && operandSize(op) == 2) to &= 0xffff
  store<u64>(s, to, CPU_RIP)
  return LEAVE_BRANCH
}

function countDown(s: usize, op: usize): bool {
  const left = getCounter(s, op, 1) - 1
  setCounter(s, op, 1, left)
  return (left & addressMask(op)) != 0
}

export function loop(s: usize, op: usize): u32 {
  return jump(s, op, countDown(s, op))
}
/** LOOPE (wanted = 1) and LOOPNE (0). A REPE or REPNE prefix overrides the opcode's own condition (measured on Zen 4). */
function loopWhile(s: usize, op: usize, wanted: u32): u32 {
  const flags = load<u8>(op, OP_FLAGS)
  if (flags & OPF_REPNE) wanted = 0
  else if (flags & OPF_REP) wanted = 1
  const zero: u32 = <u32>getFlags(s) & ZF ? 1 : 0
  return jump(s, op, countDown(s, op) && zero == wanted)
}
export function loope(s: usize, op: usize): u32 {
  return loopWhile(s, op, 1)
}
export function loopne(s: usize, op: usize): u32 {
  return loopWhile(s, op, 0)
}
export function jcxz(s: usize, op: usize): u32 {
  return jump(s, op, getCounter(s, op, 1) == 0)
}

/** MOV with a full-width offset: OP_IMM is the offset, truncated to the address size. */
export function movFromOffset(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const va = linear(s, <u32>load<u8>(op, OP_SEG), load<u64>(op, OP_IMM) & addressMask(op), size, false)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const value = readMem(s, op, va, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  writeRegister(s, size, value)
  return LEAVE_NONE
}

export function movToOffset(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const va = linear(s, <u32>load<u8>(op, OP_SEG), load<u64>(op, OP_IMM) & addressMask(op), size, true)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  return writeMem(s, op, va, size, load<u64>(s) & maskOf(<u32>ctz(size)))
}

/** ADCX (flag = CF) and ADOX (flag = OF): unsigned addition through one flag only. */
function addThrough(s: usize, op: usize, flag: u32): u32 {
  const size = operandSize(op) == 8 ? 8 : 4
  const b = getRm(s, op, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const a = getReg(s, op, size)
  const flags = <u32>getFlags(s)
  const in_: u64 = flags & flag ? 1 : 0
  const r = a + b + in_
  const out = size == 4 ? r >> 32 != 0 : r < a || (in_ != 0 && r == a)
  setReg(s, op, size, r)
  setArithmetic(s, (flags & ~flag) | (out ? flag : 0))
  return LEAVE_NONE
}

export function adcx(s: usize, op: usize): u32 {
  return addThrough(s, op, CF)
}
export function adox(s: usize, op: usize): u32 {
  return addThrough(s, op, OF)
}

/** CRC-32C, reflected polynomial 0x82f63b78. */
function crc(s: usize, op: usize, size: u32): u32 {
  let data = getRm(s, op, size)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  let c = <u32>getReg(s, op, 4)
  for (let i: u32 = 0; i < size; i++) {
    c ^= <u32>data & 0xff
    data >>= 8
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0x82f6_3b78 : c >> 1
  }
  setReg(s, op, 8, <u64>c)
  return LEAVE_NONE
}

export function crc32Byte(s: usize, op: usize): u32 {
  return crc(s, op, 1)
}
export function crc32(s: usize, op: usize): u32 {
  return crc(s, op, operandSize(op))
}

/** Always succeeds: CF = 1, other arithmetic flags 0. */
export function rdrand(s: usize, op: usize): u32 {
  const x = load<u64>(s, CPU_RANDOM) + 0x9e37_79b9_7f4a_7c15
  store<u64>(s, x, CPU_RANDOM)
  let z = (x ^ (x >> 30)) * 0xbf58_476d_1ce4_e5b9
  z = (z ^ (z >> 27)) * 0x94d0_49bb_1331_11eb
  writeRegister(s + <usize>load<u8>(op, OP_RM), operandSize(op), z ^ (z >> 31))
  setArithmetic(s, CF)
  return LEAVE_NONE
}

/** MOVDIRI: a direct store is a store. */
export function movdiri(s: usize, op: usize): u32 {
  if (!feature(s, F_7_ECX, 27)) return raise(s, EXC_UD)
  const size: u32 = operandSize(op) == 8 ? 8 : 4
  return setRm(s, op, size, getReg(s, op, size))
}

/** MOVDIR64B: 64 bytes from the E operand to ES:[G], which must be aligned. */
export function movdir64b(s: usize, op: usize): u32 {
  if (!feature(s, F_7_ECX, 28)) return raise(s, EXC_UD)
  const from = ea(s, op, 64)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  const offset = load<u64>(s + <usize>load<u8>(op, OP_REG)) & addressMask(op)
  const to = linear(s, SEG_ES, offset, 64, true)
  if (leaving(s)) return load<u32>(s, CPU_LEAVE)
  if (to & 63) return raiseError(s, EXC_GP, 0)
  const code = readBytes(s, op, from, s + CPU_SCRATCH, 64)
  if (aborted(code)) return code
  return writeBytes(s, op, to, s + CPU_SCRATCH, 64)
}
