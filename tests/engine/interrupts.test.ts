/**
 * A timer interrupt (local APIC) at every boundary of a loop with REP MOVS, page-crossing stores, MOV SS, CLI and
 * STI, in real mode: the end is that of the run without, every boundary is met, and none in a shadow or with IF clear.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { L } from '../support/core.ts'
import { EXIT, GPR, Guest } from '../kvm-core/guest.ts'
import { CODE as MACHINE_CODE, Machine, STUBS } from '../system/machine.ts'

/**
 * mov dword fs:[f0],1ff; fs:[3e0],b; fs:[320],40; fs:[380],COUNT; mov bp,3; sti;
 * outer: mov cx,5; mov si,5000; mov di,5ffc; cld; rep movsb; mov [6ffe],eax; add eax,81234567; adc [6ffe],eax; mov dx,ss; mov ss,dx;
 * add word [5010],3; cli; inc word [5020]; sti; inc word [5022]; rol eax,3; push eax; pop edx; dec bp; jnz outer; cli; hlt
 */
const program =
  '6466c706f000ff0100006466c706e0030b0000006466c7062003400000006466c706800355555555bd0300fbb90500be0050bffc5ffcf3a466a3fe6f660567452381661106fe6f8cd28ed28306105003faff062050fbff06225066c1c0036650665a4d75c7faf4'
/** push bp; mov bp,sp; push ax; mov ax,[bp+2]; mov [3000],ax; inc word [3002]; mov dword fs:[b0],0; pop ax; pop bp; iret */
const handler = '5589e5508b4602a30030ff0602306466c706b00000000000585dcf'
const CODE = 0x1000
const HANDLER = 0x2000
const bytes = (hex: string): number[] => (hex.match(/../g) ?? []).map((b) => Number.parseInt(b, 16))

interface Ended {
  state: string
  interrupts: number
  /** Offset of the instruction before which the (last) interrupt came. */
  at: number
  instructions: number
}

function run(prepare: (g: Guest, code: number[]) => void): Ended {
  const g = new Guest({ irqchip: true, pit: true })
  const { view } = g.core
  const segment = g.s + L.CPU_SEGMENTS + L.SEG_FS * 16
  view.setBigUint64(segment + L.SEG_BASE, 0xfee00000n, true)
  view.setUint32(g.s + L.CPU_HALTED, 0, true)
  g.write(0x40 * 4, [HANDLER & 0xff, HANDLER >> 8, 0, 0])
  g.write(HANDLER, bytes(handler))
  g.write(0x3000, [0, 0, 0, 0])
  for (let i = 0; i < 64; i++) g.write64(0x5000 + i * 8, (BigInt(i) * 0x9e3779b97f4a7c15n) & 0xffffffffffffffffn)
  const code = bytes(program)
  g.enter(CODE)
  g.setReg(GPR.RSP, 0x9000n)
  g.setReg(GPR.RAX, 0x12345678n)
  prepare(g, code)
  g.write(CODE, code)
  const from = g.u64(L.CPU_ICOUNT)
  // HLT with interrupts off: an in-kernel irqchip waits for good; the budget ends it.
  for (let i = 0; i < 50 && g.rip() !== CODE + code.length; i++) g.run(g.s, 1000n)
  assert.is(g.rip(), CODE + code.length, `stopped at ${g.rip().toString(16)}, exit ${g.reason()}, not ${EXIT.HLT}`)
  const memory = [...g.read(0x5000, 0x2100)]
  const registers = Array.from({ length: 16 }, (_, n) => g.reg(n).toString(16))
  const seen = g.read(0x3000, 4)
  return {
    state: `${registers.join(' ')} ${memory.join()}`,
    interrupts: (seen[2] ?? 0) | ((seen[3] ?? 0) << 8),
    at: ((seen[0] ?? 0) | ((seen[1] ?? 0) << 8)) - CODE,
    instructions: Number(g.u64(L.CPU_ICOUNT) - from),
  }
}

/** The operand of `mov dword fs:[380]`: the timer's initial count. */
const COUNT = program.indexOf('55555555') / 2
const count =
  (n: number) =>
  (_: Guest, code: number[]): void => {
    for (let i = 0; i < 4; i++) code[COUNT + i] = (n >>> (8 * i)) & 0xff
  }
const OUTER = program.indexOf('b90500') / 2
const offset = (text: string): number => program.indexOf(text) / 2

test('a one-shot of the local APIC at every boundary', () => {
  const plain = run(count(0))
  assert.is(plain.interrupts, 0)
  const met = new Set<number>()
  for (let n = 1; n <= plain.instructions + 5; n++) {
    const r = run(count(n))
    assert.is(r.state, plain.state, `count ${n}`)
    assert.ok(r.interrupts <= 1, `count ${n}: ${r.interrupts} interrupts`)
    if (r.interrupts > 0) met.add(r.at)
  }
  // Boundaries that must not be met: after MOV SS, after STI, and those with IF clear.
  const shadow = [offset('8306105003'), offset('ff062250'), offset('ff062050'), offset('fbff062250')]
  for (const at of shadow) assert.not.ok(met.has(at), `interrupted at ${at.toString(16)}`)
  // All others of the loop's body.
  const starts = [
    'b90500',
    'be0050',
    'bffc5f',
    'fcf3a4',
    'f3a4',
    '66a3',
    '66056745',
    '661106',
    '8cd2',
    '8ed2',
    'faff',
    '66c1c003',
    '6650',
    '665a',
    '4d75',
    '75c',
  ]
  for (const text of starts) {
    const at = program.indexOf(text, OUTER * 2) / 2
    assert.ok(met.has(at), `not interrupted at ${at.toString(16)} (${text})`)
  }
})

test('TF in code that is warm: one #DB after every instruction', () => {
  const m = new Machine('long')
  // mov ecx,4; l: call f; nop; dec ecx; jnz l; hlt; f: test ecx,ecx; jz 1f; lea eax,[rax+1]; 1: ret
  m.code([0xb9, 4, 0, 0, 0, 0xe8, 6, 0, 0, 0, 0x90, 0xff, 0xc9, 0x75, 0xf6, 0xf4, 0x85, 0xc9, 0x74, 3, 0x8d, 0x40, 1, 0xc3])
  // The handler counts and notes where: inc r15; mov r14,[rsp]; add r13,r14; iretq
  m.code([0x49, 0xff, 0xc7, 0x4c, 0x8b, 0x34, 0x24, 0x4d, 0x01, 0xf5, 0x48, 0xcf], STUBS + 16)
  const run = (flags: bigint): bigint => {
    m.set64(L.CPU_RIP, BigInt(MACHINE_CODE))
    m.set32(L.CPU_HALTED, 0)
    m.set32(L.CPU_PENDING_DB, 0)
    m.setFlags(flags)
    for (const n of [0, 13, 15]) m.setReg(n, 0n)
    const from = m.u64(L.CPU_ICOUNT)
    m.run(1000)
    assert.is(m.reg(0), 4n)
    return m.u64(L.CPU_ICOUNT) - from
  }
  let plain = 0n
  for (let i = 0; i < 4; i++) plain = run(2n)
  let places: bigint | undefined
  for (let i = 0; i < 4; i++) {
    run(0x102n)
    // That of HLT is left pending when the run ends.
    assert.ok(m.reg(15) === plain - 1n || m.reg(15) === plain, `pass ${i}: ${m.reg(15)} traps in ${plain} instructions`)
    places ??= m.reg(13)
    assert.is(m.reg(13), places, `pass ${i}`)
  }
})

test.run()
