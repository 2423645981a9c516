/**
 * REP between its iterations: what a trap, a timer, a budget finds there. The cases with traps were measured on an EPYC (Zen 4),
 * user mode, PTRACE_POKEUSER and TF: RF is 1 in the image but behind the last iteration.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { Guest } from '../kvm-core/guest.ts'
import { CODE, gate, KCODE64, L, Machine, PML4 } from '../system/machine.ts'

const AT = 0x100000
const FROM = 0x140000
const HANDLER = 0x11000
const le = (value: number, bytes = 4): number[] => Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) & 0xff)
/** mov ecx,count; mov edi,AT; mov esi,FROM; mov eax,al */
const set = (count: number, si = FROM, al = 0): number[] => [0xb9, ...le(count), 0xbf, ...le(AT), 0xbe, ...le(si), 0xb8, ...le(al)]

for (const [name, bytes, size, rw] of [
  ['stosb', [0xf3, 0xaa], 1, 1],
  ['movsb', [0xf3, 0xa4], 1, 1],
  ['stosq', [0xf3, 0x48, 0xab], 8, 1],
  ['repe scasb', [0xf3, 0xae], 1, 3],
  ['lodsb', [0xf3, 0xac], 1, 3],
  ['repe cmpsb', [0xf3, 0xa6], 1, 3],
] as const) {
  for (const length of [64, 1024, 8192]) {
    for (const offset of [20, length - 1]) {
      test(`a data breakpoint ${offset} bytes into ${length} of ${name} traps behind its iteration`, () => {
        const m = new Machine('long')
        // mov rdx,AT+offset; mov dr0,rdx; mov edx,dr7; mov dr7,rdx
        const arm = [0xba, ...le(AT + offset), 0x0f, 0x23, 0xc2, 0xba, ...le(1 | (rw << 16)), 0x0f, 0x23, 0xfa]
        const start = [...arm, ...set(length / size, name === 'lodsb' ? AT : FROM)]
        assert.is(m.exec([...start, ...bytes, 0x90, 0xf4]), 1)
        const iterations = Math.floor(offset / size) + 1
        const done = iterations === length / size
        assert.is(m.reg(1), BigInt(length / size - iterations), 'rcx')
        assert.is(m.reg(name === 'lodsb' ? 6 : 7), BigInt(AT + iterations * size))
        assert.is(m.frame(0), CODE + start.length + (done ? bytes.length : 0), 'rip')
        assert.is((m.frame(2) >> 16) & 1, done ? 0 : 1, 'RF')
        assert.is(m.u64(L.CPU_DR6) & 0xe00fn, 1n)
      })
    }
  }
}

test('single steps', () => {
  const m = new Machine('long')
  m.idt(1, gate(KCODE64, HANDLER, 0x8e))
  // mov r13,[rsp+16]; shr r13d,16; and r13d,1; add r14,r14; or r14,r13; iretq
  m.code(
    [0x4c, 0x8b, 0x6c, 0x24, 0x10, 0x41, 0xc1, 0xed, 0x10, 0x41, 0x83, 0xe5, 0x01, 0x4d, 0x01, 0xf6, 0x4d, 0x09, 0xee, 0x48, 0xcf],
    HANDLER,
  )
  m.setReg(14, 1n)
  // pushfq; or dword [rsp],100; popfq; rep movsb; nop; pushfq; and dword [rsp],~100; popfq; hlt
  const code = [
    ...set(4),
    0x9c,
    0x81,
    0x0c,
    0x24,
    0,
    1,
    0,
    0,
    0x9d,
    0xf3,
    0xa4,
    0x90,
    0x9c,
    0x81,
    0x24,
    0x24,
    0xff,
    0xfe,
    0xff,
    0xff,
    0x9d,
    0xf4,
  ]
  assert.is(m.exec(code), -1)
  assert.is(m.reg(14).toString(2), '111100000')
  assert.is(m.reg(1), 0n)
})

test('KVM_GUESTDBG_SINGLESTEP stops behind each iteration', () => {
  const g = new Guest()
  g.write(0x1000, [0xb9, 3, 0, 0xf3, 0xaa, 0xf4]) // mov cx,3; rep stosb; hlt
  g.enter(0x1000)
  g.core.view.setUint32(g.s + L.VCPU_KVM + L.VKVM_GUEST_DEBUG, 3, true)
  const seen: [number, number][] = []
  for (let i = 0; i < 4; i++) {
    assert.is(g.run(), 0)
    assert.is(g.reason(), 4) // KVM_EXIT_DEBUG
    seen.push([g.rip(), Number(g.reg(1))])
  }
  assert.equal(seen, [
    [0x1003, 3],
    [0x1003, 2],
    [0x1003, 1],
    [0x1005, 0],
  ])
})

test('RF lasts as long as the repetition: an instruction breakpoint on it hits once', () => {
  const m = new Machine('long')
  m.idt(1, gate(KCODE64, HANDLER, 0x8e))
  m.code([0x49, 0xff, 0xc7, 0x81, 0x4c, 0x24, 0x10, 0, 0, 1, 0, 0x48, 0xcf], HANDLER) // inc r15; or dword [rsp+16],10000; iretq
  const start = set(200_000)
  const arm = [0xba, ...le(CODE + start.length + 16), 0x0f, 0x23, 0xc2, 0xba, ...le(1), 0x0f, 0x23, 0xfa]
  assert.is(m.exec([...start, ...arm, 0xf3, 0xaa, 0xf4]), -1)
  assert.is(m.reg(15), 1n)
  assert.is(m.reg(1), 0n)
})

/** A one-shot of the local APIC within `code`, behind its 20 bytes of setting up; the handler notes RCX and arms the timer `again`. */
function timed(count: number, again: number, code: readonly number[]): { m: Machine; seen: bigint[] } {
  const m = new Machine('long', true)
  m.poke(PML4 + 0x1000 + 3 * 8, BigInt(PML4 + 0x3000) | 7n)
  m.poke(PML4 + 0x3000 + 0x1f7 * 8, 0xfee00087n)
  m.idt(0x40, gate(KCODE64, HANDLER, 0x8e))
  const apic = (register: number, value: number): number[] => [0xc7, 0x83, ...le(register), ...le(value)] // mov dword [rbx+register],value
  m.code([0x49, 0x89, 0x08, 0x49, 0x83, 0xc0, 0x08, ...apic(0xb0, 0), ...apic(0x380, again), 0x48, 0xcf], HANDLER) // mov [r8],rcx; add r8,8
  const NOTES = 0x30000
  const prologue = [0x41, 0xb8, ...le(NOTES), 0xbb, ...le(0xfee00000), ...apic(0xf0, 0x1ff), ...apic(0x3e0, 0xb), ...apic(0x320, 0x40)]
  m.code([...prologue, ...code.slice(0, 20), ...apic(0x380, count), 0xfb, ...code.slice(20), 0xfa, 0xf4])
  m.set32(L.CPU_HALTED, 0)
  for (let i = 0; i < 100 && m.u32(L.CPU_HALTED) !== 3; i++) call(m.core, 'vcpuRun', m.s, 100_000n)
  assert.is(m.u32(L.CPU_HALTED), 3, `stopped at ${m.rip.toString(16)}`)
  const seen: bigint[] = []
  for (let at = NOTES; at < Number(m.reg(8)); at += 8) seen.push(m.peek(at))
  return { m, seen }
}

for (const [name, bytes] of [
  ['stosb', [0xf3, 0xaa]],
  ['lodsb', [0xf3, 0xac]],
  ['repe scasb', [0xf3, 0xae]],
] as const) {
  test(`a timer that is due all the time comes in every 64 KiB of ${name}, and nothing is lost`, () => {
    const total = 0x280000
    const al = name === 'stosb' ? 7 : 0
    const { m, seen } = timed(3, 3, [...set(total, AT, al), ...bytes])
    const inside = seen.filter((n) => n > 0n && n < BigInt(total))
    assert.equal(
      inside,
      Array.from({ length: 39 }, (_, k) => BigInt(total - (k + 1) * 65536)),
    )
    assert.is(m.reg(1), 0n)
    if (name !== 'lodsb') assert.is(m.reg(7), BigInt(AT + total))
    if (name === 'stosb') for (const at of [0, 65535, 65536, total - 1]) assert.is(m.peek(AT + at, 1), 7n)
  })
}

test('a timer due in REP OUTS to a chip comes in behind that element', () => {
  const { seen } = timed(100_000, 0, [...set(1000), 0x66, 0xba, 0x21, 0, 0xf3, 0x6e]) // mov dx,21; rep outsb
  assert.is(seen.length, 1)
  assert.ok(seen[0] !== undefined && seen[0] >= 898n && seen[0] <= 901n, String(seen[0])) // 1 us each
})

for (const [name, bytes, target] of [
  ['REP STOS', [0xf3, 0xaa], 0x200000],
  ['REP MOVS over its own code, unchanged', [0xf3, 0xa4], 0],
  ['REP LODS', [0xf3, 0xac], 0x200000],
] as const) {
  test(`${name}: a repetition over 128 GiB gives the budget its turn`, () => {
    const m = new Machine('long')
    // All linear addresses from 1 GiB on are one large page.
    for (let i = 1; i < 512; i++) m.poke(PML4 + 0x1000 + i * 8, BigInt(PML4 + 0x3000) | 7n)
    for (let i = 0; i < 512; i++) m.poke(PML4 + 0x3000 + i * 8, BigInt(target) | 0xe7n)
    m.code(bytes)
    m.setReg(1, 1n << 37n)
    m.setReg(6, 1n << 30n)
    m.setReg(7, 1n << 30n)
    const from = m.u64(L.CPU_ICOUNT)
    const stretches = 40
    assert.is(m.run(stretches), L.STOP_BUDGET)
    assert.is(m.u64(L.CPU_ICOUNT) - from, BigInt(stretches))
    assert.is(m.reg(1), (1n << 37n) - BigInt(stretches) * 65536n)
    assert.is(m.rip, BigInt(CODE))
  })
}

/** mov bx,flag; again: monitor [ax]; cmp byte [flag],0; jne done; mwait; jmp again; done: hlt, with a store by the other vCPU. */
for (const late of [0, 1, 50, 3000]) {
  test(`MONITOR and MWAIT: the other vCPU stores after ${late} rounds`, () => {
    const g = new Guest({ irqchip: true, vcpus: 2 })
    const [a, b] = g.cpus as [number, number]
    const wait = [
      0xfa, 0xb8, 0, 0x30, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xc8, 0x80, 0x3e, 0, 0x30, 0, 0x75, 5, 0x0f, 0x01, 0xc9, 0xeb, 0xf1, 0xf4,
    ]
    g.write(0x1000, wait)
    // mov cx,late; l: jcxz s; loop l; s: inc byte [3000]; hlt
    g.write(0x2000, [0xb9, ...le(late, 2), 0xe3, 2, 0xe2, 0xfc, 0xfe, 0x06, 0, 0x30, 0xfa, 0xf4])
    for (const [s, at] of [
      [a, 0x1000],
      [b, 0x2000],
    ] as const) {
      g.core.view.setUint32(s + L.CPU_HALTED, 0, true)
      g.enter(at, s)
    }
    let turns = 0
    for (; turns < 200 && g.u32(L.CPU_HALTED, a) !== 3; turns++) {
      g.run(a, 100n)
      if (g.u32(L.CPU_HALTED, b) === 0) g.run(b, 100n)
    }
    assert.is(g.rip(a), 0x1000 + wait.length, `after ${turns} turns`)
    assert.is(g.read(0x3000, 1)[0], 1)
    assert.ok(turns <= late / 50 + 3)
  })
}

test.run()
