/** Virtual time inside a block: RDTSC, the APIC timer's count and its deadline are exact, wherever the instruction stands. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, L, Machine, PML4 } from '../system/machine.ts'

const HLT = 0xf4
const nops = (n: number): number[] => Array.from({ length: n }, () => 0x90)

test('RDTSC: two ticks an instruction, in one block', () => {
  for (const n of [0, 1, 2, 7, 30]) {
    const m = new Machine('long')
    // rdtsc; mov ebx,eax; nops; rdtsc; sub eax,ebx; hlt
    m.code([0x0f, 0x31, 0x89, 0xc3, ...nops(n), 0x0f, 0x31, 0x29, 0xd8, HLT])
    for (let i = 0; i < 3; i++) {
      m.set64(L.CPU_RIP, BigInt(CODE))
      m.set32(L.CPU_HALTED, 0)
      m.run(100)
      assert.is(Number(m.reg(0)), 2 * (n + 2), `${n} between them, pass ${i}`)
    }
  }
})

test('a one-shot of the APIC timer comes after as many instructions as it counts, wherever it was started in its block', () => {
  for (const before of [0, 3, 20, 40]) {
    for (const behind of [0, 5, 50]) {
      const m = new Machine('long', true)
      m.poke(PML4 + 0x1018, BigInt(PML4 + 0x3000) | 7n)
      m.poke(PML4 + 0x3000 + 0x1f7 * 8, 0xfee00097n)
      m.setReg(3, 0xfee00000n)
      // mov dword [rbx+0xf0],0x1ff; [rbx+0x3e0],0xb; [rbx+0x320],0x40; sti; nops; mov dword [rbx+0x380],60; inc rcx...
      const word = (at: number, value: number): number[] => [0xc7, 0x83, at & 255, at >> 8, 0, 0, value & 255, (value >> 8) & 255, 0, 0]
      const inc = [0x48, 0xff, 0xc1]
      m.code([
        ...word(0xf0, 0x1ff),
        ...word(0x3e0, 0xb),
        ...word(0x320, 0x40),
        0xfb,
        ...nops(before),
        ...word(0x380, 60),
        ...Array.from({ length: 100 }, () => inc).flat(),
        ...nops(behind),
        HLT,
      ])
      m.setReg(1, 0n)
      call(m.core, 'vcpuRun', m.s, 1000n)
      // The store itself is one of the 60.
      assert.is(Number(m.reg(1)), 59, `${before} before, ${behind} behind`)
    }
  }
})

test.run()
