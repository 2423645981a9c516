/** Machine code for every memory form of the opcode map: operand [rbx], other operand rCX, in each operand size that a row has. */
import type { Opcode } from '../../spec/opcodes/index.ts'

const immediateBytes: Record<string, number[]> = {
  Ib: [5],
  Ub: [5],
  Iw: [5, 0],
  Iz: [5, 0, 0, 0],
  IwIb: [8, 0, 2],
}

export function encodings(o: Opcode): [string, number[]][] {
  const out: [string, number[]][] = []
  const modrm = ((o.ext ?? 1) << 3) | 3
  if (o.map >= 4) {
    const pp = { any: 0, NP: 0, 66: 1, F3: 2, F2: 3 }[o.prefix]
    const vvvv = o.operands.includes('By') ? 14 : 15
    for (const w of [0, 0x80]) out.push([`W${w >> 7}`, [0xc4, 0xe0 | (o.map - 3), w | (vvvv << 3) | pp, o.opcode, modrm]])
    return out
  }
  const escape = o.map === 0 ? [] : o.map === 1 ? [0x0f] : o.map === 2 ? [0x0f, 0x38] : [0x0f, 0x3a]
  const mandatory = { any: [], NP: [], 66: [0x66], F3: [0xf3], F2: [0xf2] }[o.prefix]
  const sized = o.size === 'v' || o.size === 'y' || o.size === 'd64'
  for (const [name, prefix, rex, half] of [
    ['', [], [], false],
    ['66', [0x66], [], true],
    ['W', [], [0x48], false],
  ] as const) {
    if (name !== '' && !sized && !(name === 'W' && o.prefix !== 'any')) continue
    if (half && o.prefix !== 'any') continue
    const immediate = [...(immediateBytes[o.immediate] ?? [])]
    if (half && o.immediate === 'Iz') immediate.length = 2
    out.push([name, [...prefix, ...mandatory, ...rex, ...escape, o.opcode, modrm, ...immediate]])
  }
  return out
}
