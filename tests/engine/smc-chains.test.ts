/**
 * Stores into code that is warm: inside fused compare-and-branch pairs, into blocks that others are chained to, behind call and
 * return through the jump cache, by another vCPU. After every store the result is that of a machine that never saw the old code.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CODE, L, Machine } from '../system/machine.ts'
import { GPR, Guest } from '../kvm-core/guest.ts'

const HLT = 0xf4
const FAR = 0x14000

function go(m: Machine): bigint {
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.set32(L.CPU_HALTED, 0)
  m.setReg(4, 0x20000n)
  for (const n of [0, 1, 2, 3]) m.setReg(n, 0n)
  m.run(5000)
  return m.reg(0)
}

/** Runs `code` warm, changes each byte that `places` name to each value by a guest's store, and compares with a fresh machine. */
function patched(name: string, code: number[], at: number, places: [offset: number, values: number[]][]): void {
  const m = new Machine('long')
  m.code(code, at)
  if (at !== CODE) m.code([0xbb, at & 255, (at >> 8) & 255, (at >> 16) & 255, 0, 0xff, 0xd3, 0xff, 0xd3, HLT])
  for (let i = 0; i < 4; i++) go(m)
  for (const [offset, values] of places) {
    for (const value of [...values, code[offset] ?? 0]) {
      // mov byte [at + offset], value, from another page.
      const to = at + offset
      m.code([0xc6, 0x04, 0x25, to & 255, (to >> 8) & 255, (to >> 16) & 255, 0, value, HLT], 0x18000)
      m.set64(L.CPU_RIP, 0x18000n)
      m.set32(L.CPU_HALTED, 0)
      m.run(10)
      const fresh = new Machine('long')
      const changed = code.slice()
      changed[offset] = value
      fresh.code(changed, at)
      if (at !== CODE) fresh.code([0xbb, at & 255, (at >> 8) & 255, (at >> 16) & 255, 0, 0xff, 0xd3, 0xff, 0xd3, HLT])
      const want = go(fresh)
      for (let i = 0; i < 3; i++) assert.is(go(m), want, `${name}: byte ${offset} = ${value.toString(16)}, pass ${i}`)
    }
  }
}

test('a fused compare and branch', () => {
  // mov ecx,9; l: inc eax; cmp eax,7; jz e; dec ecx; jnz l; add eax,100; e: hlt
  const code = [0xb9, 9, 0, 0, 0, 0xff, 0xc0, 0x83, 0xf8, 7, 0x74, 7, 0xff, 0xc9, 0x75, 0xf5, 0x83, 0xc0, 100, HLT]
  patched('cmp', code, CODE, [
    [9, [3, 9, 20]],
    [8, [0xe8, 0xc0]],
    [10, [0x75, 0x7f, 0x72]],
    [11, [4, 8]],
    [15, [0xf7]],
    [1, [2, 30]],
    [18, [1]],
  ])
  // the same with test ecx,ecx in registers: mov ecx,6; l: add eax,ecx; dec ecx; test ecx,ecx; jnz l; hlt
  const other = [0xb9, 6, 0, 0, 0, 0x01, 0xc8, 0xff, 0xc9, 0x85, 0xc9, 0x75, 0xf8, HLT]
  patched('test', other, CODE, [
    [10, [0xc8]],
    [11, [0x7f, 0x79]],
    [9, [0x39]],
    [6, [0xd0]],
  ])
})

test('chained blocks, forward and back', () => {
  // mov ecx,5; jmp a; b: add eax,2; dec ecx; jz e; a: add eax,1; jmp b; e: hlt
  const code = [0xb9, 5, 0, 0, 0, 0xeb, 7, 0x83, 0xc0, 2, 0xff, 0xc9, 0x74, 5, 0x83, 0xc0, 1, 0xeb, 0xf4, HLT]
  patched('chain', code, CODE, [
    [9, [20]],
    [16, [40]],
    [6, [0]],
    [12, [0x75]],
    [18, [0xf7]],
    [7, [0x90]],
  ])
})

test('a function on another page, by the jump cache', () => {
  // add eax,5; cmp eax,5; jnz 1f; add eax,64; 1: ret
  const code = [0x83, 0xc0, 5, 0x83, 0xf8, 5, 0x75, 3, 0x83, 0xc0, 64, 0xc3]
  patched('function', code, FAR, [
    [2, [6]],
    [5, [10]],
    [6, [0x74]],
    [10, [1]],
  ])
  // Across the edge of its page.
  patched('across', code, FAR + 0xffa, [
    [2, [6]],
    [5, [10]],
    [6, [0x74]],
    [10, [1]],
  ])
})

test('by another vCPU, between slices and in the middle of its loop', () => {
  const g = new Guest({ vcpus: 2, pages: 512 })
  const [a = 0, b = 0] = g.cpus
  const { view } = g.core
  // vCPU 0: l: mov al,0x11; add bx,ax; inc cx; jmp l
  g.write(0x1000, [0xb0, 0x11, 0x01, 0xc3, 0x41, 0xeb, 0xf9])
  // vCPU 1: inc byte [1001]; inc dx; jmp
  g.write(0x5000, [0xfe, 0x06, 0x01, 0x10, 0x42, 0xeb, 0xf9])
  for (const s of [a, b]) view.setUint32(s + L.CPU_HALTED, 0, true)
  g.enter(0x1000, a)
  g.enter(0x5000, b)
  for (let i = 0; i < 16; i++) for (const s of [a, b]) g.setReg(i, i === GPR.RSP ? 0x9000n : 0n, s)
  let al = 0x11
  let sum = 0n
  for (let slice = 1; slice <= 300; slice++) {
    // Whole turns: four instructions here, three there.
    const turns = 1 + (slice % 7)
    g.run(a, BigInt(4 * turns))
    sum = (sum + BigInt(al * turns)) & 0xffffn
    assert.is(g.reg(GPR.RBX, a) & 0xffffn, sum, `slice ${slice}`)
    g.run(b, BigInt(3 * (slice % 3)))
    al = (al + (slice % 3)) & 255
    assert.is(g.read(0x1001, 1)[0], al)
  }
})

test.run()
