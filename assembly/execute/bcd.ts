/** AAA AAS AAM AAD DAA DAS and SALC (SDM vol. 2; SALC: undocumented D6). Legacy modes only. Owns no state. */
import { EXC_DE, LEAVE_NONE, OP_IMM } from '../generated/layout'
import { AF, CF, carry, getFlags, setArithmetic } from '../cpu/flags'
import { raise } from '../cpu/exceptions'
import { resultFlags } from './arith'

function adjustAscii(s: usize, subtract: bool): u32 {
  let ax = <u32>load<u16>(s)
  let flags: u32 = 0
  if ((ax & 0xf) > 9 || (<u32>getFlags(s) & AF) != 0) {
    ax = subtract ? ax - 0x106 : ax + 0x106
    flags = AF | CF
  }
  store<u16>(s, <u16>(ax & 0xff0f))
  setArithmetic(s, flags | resultFlags(<u64>(ax & 0xf), 0))
  return LEAVE_NONE
}

export function aaa(s: usize, op: usize): u32 {
  return adjustAscii(s, false)
}

export function aas(s: usize, op: usize): u32 {
  return adjustAscii(s, true)
}

export function aam(s: usize, op: usize): u32 {
  const base = <u32>load<u8>(op, OP_IMM)
  if (base == 0) return raise(s, EXC_DE)
  const al = <u32>load<u8>(s)
  store<u8>(s, <u8>(al % base))
  store<u8>(s, <u8>(al / base), 1)
  setArithmetic(s, resultFlags(<u64>(al % base), 0))
  return LEAVE_NONE
}

export function aad(s: usize, op: usize): u32 {
  const base = <u32>load<u8>(op, OP_IMM)
  const al = (<u32>load<u8>(s) + <u32>load<u8>(s, 1) * base) & 0xff
  store<u16>(s, <u16>al)
  setArithmetic(s, resultFlags(<u64>al, 0))
  return LEAVE_NONE
}

function adjustDecimal(s: usize, subtract: bool): u32 {
  const old = <u32>load<u8>(s)
  const before = <u32>getFlags(s)
  let al = old
  let flags: u32 = 0
  if ((old & 0xf) > 9 || (before & AF) != 0) {
    al = subtract ? al - 6 : al + 6
    if (al > 0xff) flags |= CF
    flags |= AF
  }
  if (old > 0x99 || (before & CF) != 0) {
    al = subtract ? al - 0x60 : al + 0x60
    flags |= CF
  }
  store<u8>(s, <u8>al)
  setArithmetic(s, flags | resultFlags(<u64>al, 0))
  return LEAVE_NONE
}

export function daa(s: usize, op: usize): u32 {
  return adjustDecimal(s, false)
}

export function das(s: usize, op: usize): u32 {
  return adjustDecimal(s, true)
}

export function salc(s: usize, op: usize): u32 {
  store<u8>(s, carry(s) ? 0xff : 0)
  return LEAVE_NONE
}
