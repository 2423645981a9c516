/** Which encodings exist: x87, the SSE parts of map 0F, and maps 0F 38 and 0F 3A, each against the physical CPU's #UD. */
import { suite } from 'uvu'
import { opcodes } from '../../spec/opcodes/index.ts'
import type { Opcode } from '../../spec/opcodes/index.ts'
import { needs } from '../support/needs.ts'
import { makeCase, Random } from './cases.ts'
import { Emulated } from './emulated.ts'
import { runNative } from './native.ts'

const UD = 6
/** Owned by other rooms or absent from one of the two CPUs: INVPCID, MOVDIRI, MOVDIR64B, GFNI, CET stores, ENQCMD. */
const elsewhere = /^(66 0f 38 82|(66 )?0f 38 f[5-9]|f[23] 0f 38 f[5-9]|66 0f 38 cf|66 0f 3a c[ef])/
const prefixes = [[], [0x66], [0xf3], [0xf2]]
const sseArea = (op: number): boolean =>
  [
    [0x10, 0x17],
    [0x28, 0x2f],
    [0x50, 0x7f],
    [0xc2, 0xc6],
    [0xd0, 0xfe],
  ].some(([low, high]) => op >= (low as number) && op <= (high as number))

function encodings(): number[][] {
  const list: number[][] = []
  // Trailing zeros are immediates, or ADD [rax], al.
  for (const prefix of prefixes) {
    for (const map of [[0x0f], [0x0f, 0x38], [0x0f, 0x3a]]) {
      for (let op = 0; op < 256; op++) {
        if (map.length === 1 && !sseArea(op)) continue
        for (const modrm of [0xc1, 0x06]) list.push([...prefix, ...map, op, modrm, 0, 0, 0, 0])
      }
    }
    for (const group of [0x71, 0x72, 0x73, 0xae]) {
      if (group === 0xae && prefix[0] === 0xf3) continue
      for (let reg = 0; reg < 8; reg++)
        for (const modrm of [0xc1, 0x06]) list.push([...prefix, 0x0f, group, modrm | (reg << 3), 0, 0, 0, 0])
    }
  }
  for (let op = 0xd8; op <= 0xdf; op++) {
    for (let modrm = 0xc0; modrm < 256; modrm++) list.push([op, modrm])
    for (let reg = 0; reg < 8; reg++) list.push([op, 6 | (reg << 3)])
  }
  return list
}

const test = suite('encodings')
needs(test, 'amdOracle', 'x87 and SSE encodings exist where the CPU has them', () => {
  const row = opcodes.find((o) => o.mnemonic === 'ADDPS') as Opcode
  const r = new Random(5)
  const cases = encodings().map((code) => {
    const { state } = makeCase(row, r, 'masked')
    state.gpr[0] = 0x37ff00n
    const fx = new DataView(state.fx.buffer)
    fx.setUint16(0, 0x37f, true)
    fx.setUint16(2, 0, true)
    fx.setUint32(24, 0x1f80, true)
    return { code, state }
  })
  const native = runNative(cases)
  const core = new Emulated()
  const wrong: string[] = []
  cases.forEach(({ code, state }, i) => {
    const text = code.map((b) => b.toString(16).padStart(2, '0')).join(' ')
    if (elsewhere.test(text)) return
    const theirs = native[i]?.vector === UD
    if (theirs !== (core.run(code, state, true).vector === UD))
      wrong.push(`${text}: ${theirs ? 'only the core has it' : 'only the CPU has it'}`)
  })
  if (wrong.length > 0) throw new Error(wrong.join('\n'))
})
test.run()
