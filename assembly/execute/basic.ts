/**
 * Cold forms of the instructions whose common forms are in the switch: 16-bit operands, segmented
 * stacks, memory shifts, branches that truncate EIP. (SDM vol 2.)
 */
import { raiseError } from '../cpu/exceptions'
import { AF, CF, condition, OF, rotateFlags, setResult } from '../cpu/flags'
import {
  CPU_LEAVE,
  CPU_MODE,
  CPU_RIP,
  CPU_RIP_MASK,
  CPU_SEGMENTS,
  CPU_STACK_MASK,
  EXC_GP,
  LEAVE_BRANCH,
  LEAVE_NEXT,
  MODE_CS64,
  MODE_CS_MASK,
  OP_EXTRA,
  OP_IMM,
  OP_MODRM,
  OP_NEXT,
  OP_RM,
  SEG_CS,
  SEG_LIMIT,
} from '../generated/layout'
import { modifyMem, readMem } from '../memory/access'
import { canonical } from '../memory/translate'
import { arpl } from './descriptor'
import {
  effectiveOffset,
  finishRm,
  getReg,
  getRm,
  modifyRm,
  operandSize,
  pop,
  push,
  readRegister,
  setReg,
  setRm,
  setStackPointer,
  stackAddress,
  STACK_OP,
  writeRegister,
} from './operands'

const RSP: usize = 32

export function lea(s: usize, op: usize): u32 {
  setReg(s, op, operandSize(op), effectiveOffset(s, op))
  return 0
}

function extend(s: usize, op: usize, from: u32, signed: bool): u32 {
  const v = getRm(s, op, from)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  const shift = <u64>(64 - from * 8)
  setReg(s, op, operandSize(op), signed ? <u64>(<i64>(v << shift) >> <i64>shift) : v)
  return 0
}
export function movzx8(s: usize, op: usize): u32 {
  return extend(s, op, 1, false)
}
export function movzx16(s: usize, op: usize): u32 {
  return extend(s, op, 2, false)
}
export function movsx8(s: usize, op: usize): u32 {
  return extend(s, op, 1, true)
}
export function movsx16(s: usize, op: usize): u32 {
  return extend(s, op, 2, true)
}
/** MOVSXD with a 16-bit operand moves 16 bits (APM vol 3); ARPL outside 64-bit mode. */
export function movsxd(s: usize, op: usize): u32 {
  if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) != MODE_CS64) return arpl(s, op)
  // With a 16-bit operand size too four bytes are read (measured on Zen 4).
  return extend(s, op, 4, true)
}

export function setcc(s: usize, op: usize): u32 {
  return setRm(s, op, 1, u64(condition(s, load<u32>(op, OP_EXTRA) & 15)))
}

export function cmov(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const v = getRm(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  if (condition(s, load<u32>(op, OP_EXTRA) & 15)) setReg(s, op, size, v)
  else if (size == 4) setReg(s, op, 4, getReg(s, op, 4))
  return 0
}

/** Overflow of a signed 64 x 64 bit product. */
function mulOverflows(a: i64, b: i64): bool {
  if (a == <i64>(<i32>a) && b == <i64>(<i32>b)) return false
  if (a == 0 || b == 0) return false
  const r = a * b
  if ((a == -1 && b == i64.MIN_VALUE) || (b == -1 && a == i64.MIN_VALUE)) return true
  if (a == -1 || b == -1) return false
  return r / b != a
}

function multiply(s: usize, op: usize, size: u32, a: u64, b: u64): void {
  const shift = <i64>(64 - size * 8)
  const x = <i64>(a << (<u64>shift)) >> shift
  const y = <i64>(b << (<u64>shift)) >> shift
  const r = <u64>(x * y)
  const back = <i64>(r << (<u64>shift)) >> shift
  const overflow = size == 8 ? mulOverflows(x, y) : back != <i64>r
  setReg(s, op, size, r)
  setResult(s, size == 8 ? r : r & (((1 as u64) << ((size * 8) as u64)) - 1), <u32>shift, overflow ? CF | OF : 0)
}

export function imul2(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const b = getRm(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  multiply(s, op, size, getReg(s, op, size), b)
  return 0
}

export function imul3(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const a = getRm(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  multiply(s, op, size, a, load<u64>(op, OP_IMM))
  return 0
}

export function xchgAx(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const rm = s + <usize>load<u8>(op, OP_RM)
  const a = readRegister(s, size)
  writeRegister(s, size, readRegister(rm, size))
  writeRegister(rm, size, a)
  return 0
}

/** ROL ROR SHL SHR SAR of any size and form; ModRM.reg chooses. Undefined flags as on Zen 4: AF set, OF of the last step. */
export function shift(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const code = load<u32>(op, OP_EXTRA) & 0xff
  const bits = size * 8
  let count: u32 = code >= 0xd2 ? <u32>load<u8>(s, 8) : code >= 0xd0 ? 1 : <u32>load<u8>(op, OP_IMM)
  count &= size == 8 ? 63 : 31
  const h = modifyRm(s, op, size)
  if (!h) return load<u32>(s, CPU_LEAVE)
  const a = readRegister(h, size)
  const kind = (<u32>load<u8>(op, OP_MODRM) >> 3) & 7
  const mask = size == 8 ? ~(<u64>0) : ((<u64>1) << (<u64>bits)) - 1
  const top = <u64>(bits - 1)
  let r = a
  let cf: u32 = 0
  let ov: u32 = 0
  if (count) {
    const c = <u64>count
    if (kind < 2) {
      const n = c & top
      if (kind == 0) {
        r = n ? ((a << n) | (a >> (<u64>bits - n))) & mask : a
        cf = <u32>(r & 1)
        ov = <u32>(r >> top) ^ cf
      } else {
        r = n ? ((a >> n) | (a << (<u64>bits - n))) & mask : a
        cf = <u32>(r >> top)
        ov = cf ^ <u32>((r >> (top - 1)) & 1)
      }
    } else if (kind == 5) {
      r = c < <u64>bits ? a >> c : 0
      cf = c <= <u64>bits ? <u32>((a >> (c - 1)) & 1) : 0
      ov = <u32>(r >> (top - 1))
    } else if (kind == 7) {
      const x = <i64>(a << ((64 - bits) as u64)) >> <i64>(64 - bits)
      const n = c > top ? top : c
      r = <u64>(x >> <i64>n) & mask
      cf = c > top ? <u32>(a >> top) : <u32>((x >> <i64>(c - 1)) & 1)
    } else {
      r = c < <u64>bits ? (a << c) & mask : 0
      cf = c <= <u64>bits ? <u32>((a >> (<u64>bits - c)) & 1) : 0
      ov = <u32>(r >> top) ^ cf
    }
  }
  const leave = finishRm(s, op, size, h, r)
  if (leave && leave != LEAVE_NEXT) return leave
  if (count) {
    if (kind < 2) rotateFlags(s, cf | (ov << 11))
    else setResult(s, r, 64 - bits, cf | (ov << 11) | AF)
  }
  return leave
}

export function pushRegister(s: usize, op: usize): u32 {
  const size = operandSize(op)
  return push(s, op, size, readRegister(s + <usize>load<u8>(op, OP_RM), size))
}

export function pushImmediate(s: usize, op: usize): u32 {
  return push(s, op, operandSize(op), load<u64>(op, OP_IMM))
}

export function pushRm(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const v = getRm(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  return push(s, op, size, v)
}

export function popRegister(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const v = pop(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  writeRegister(s + <usize>load<u8>(op, OP_RM), size, v)
  return 0
}

/** The address of POP's memory operand is computed with RSP already incremented (SDM vol 2, POP). */
export function popRm(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const old = load<u64>(s, RSP)
  const v = pop(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  const leave = setRm(s, op, size, v)
  if (leave && leave != LEAVE_NEXT) store<u64>(s, old, RSP)
  return leave
}

/** RIP := target truncated to the operand size, after the code-segment limit check. Returns LEAVE_BRANCH or a fault. */
function branchTo(s: usize, size: u32, target: u64): u32 {
  if (size == 2) target &= 0xffff
  else if (size == 4) target &= 0xffffffff
  const leave = checkTarget(s, target)
  if (leave) return leave
  store<u64>(s, target, CPU_RIP)
  return LEAVE_BRANCH
}

function reachable(s: usize, target: u64): bool {
  if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64) return canonical(s, target)
  return target <= <u64>load<u32>(s + CPU_SEGMENTS + <usize>SEG_CS * 16, SEG_LIMIT)
}

function checkTarget(s: usize, target: u64): u32 {
  return reachable(s, target) ? 0 : raiseError(s, EXC_GP, 0)
}

/** JMP and Jcc whose operand size truncates EIP. */
export function branchRelative(s: usize, op: usize): u32 {
  const code = load<u32>(op, OP_EXTRA) & 0xff
  if (code != 0xe9 && code != 0xeb && !condition(s, code & 15)) return fallThrough(s, op)
  return branchTo(s, operandSize(op), load<u64>(s, CPU_RIP) + load<u64>(op, OP_IMM))
}

/** Ends the block at the next instruction. */
function fallThrough(s: usize, op: usize): u32 {
  store<u64>(s, (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK), CPU_RIP)
  return LEAVE_BRANCH
}

function truncate(value: u64, size: u32): u64 {
  return size == 2 ? value & 0xffff : size == 4 ? value & 0xffffffff : value
}

function call(s: usize, op: usize, target: u64): u32 {
  const size = operandSize(op)
  target = truncate(target, size)
  if (!reachable(s, target)) {
    // The stack is checked before the target (measured on Zen 4).
    const slot = (load<u64>(s, RSP) - <u64>size) & load<u64>(s, CPU_STACK_MASK)
    const va = stackAddress(s, slot, size, true)
    if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
    if (!modifyMem(s, STACK_OP, va, size)) return load<u32>(s, CPU_LEAVE)
    return raiseError(s, EXC_GP, 0)
  }
  const leave = push(s, op, size, (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK))
  if (leave && leave != LEAVE_NEXT) return leave
  store<u64>(s, target, CPU_RIP)
  return LEAVE_BRANCH
}

export function callRelative(s: usize, op: usize): u32 {
  return call(s, op, load<u64>(s, CPU_RIP) + load<u64>(op, OP_IMM))
}

export function callRm(s: usize, op: usize): u32 {
  const target = getRm(s, op, operandSize(op))
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  return call(s, op, target)
}

export function jumpRm(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const target = getRm(s, op, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  return branchTo(s, size, target)
}

/** RET, RET imm16. */
export function ret(s: usize, op: usize): u32 {
  const size = operandSize(op)
  const mask = load<u64>(s, CPU_STACK_MASK)
  const sp = load<u64>(s, RSP) & mask
  const va = stackAddress(s, sp, size, false)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  const target = readMem(s, STACK_OP, va, size)
  if (load<u32>(s, CPU_LEAVE)) return load<u32>(s, CPU_LEAVE)
  const leave = branchTo(s, size, target)
  if (leave == LEAVE_BRANCH) setStackPointer(s, (sp + <u64>size + load<u64>(op, OP_IMM)) & mask)
  return leave
}
