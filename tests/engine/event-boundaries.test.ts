/**
 * An NMI, an interrupt and an SMI at every boundary of random programs in 64-bit code: flags between an instruction that sets them and one that
 * reads them, repetitions, shadows, x87 and SSE state, code that changes itself. Handlers that change flags and registers and put the
 * registers back leave no trace. `CLOISTER_ENGINE_SEED`, `CLOISTER_ENGINE_PROGRAMS`.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, L, Machine, STUBS } from '../system/machine.ts'

const seed = Number(process.env['CLOISTER_ENGINE_SEED'] ?? Date.now() & 0xffff)
const programs = Number(process.env['CLOISTER_ENGINE_PROGRAMS'] ?? 12)
let word = (seed * 2654435761 + 1) >>> 0 || 1
function random(n: number): number {
  word ^= word << 13
  word ^= word >>> 17
  word ^= word << 5
  return (word >>> 0) % n
}

const DATA = 0x30ff0
const COUNTER = 0x36000
const SMBASE = 0x30000
const VECTOR = 0x30

/** RSI and RDI point at data across a page edge, RCX counts, R15 is the code's own address. */
const pieces: readonly (() => number[])[] = [
  // ALU on registers and memory, then a reader of its flags.
  ...[0x01, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39, 0x85].map((op) => (): number[] => {
    const size = random(3)
    const cc = random(16)
    const rm = random(2) ? [0xc3 | (random(2) << 3)] : [0x46 | (random(2) << 3), random(16)]
    const prefix = size === 0 ? [0x66] : size === 1 ? [0x48] : []
    const reader = [
      [0x70 | cc, 3, 0x48, 0xff, 0xc2],
      [0x0f, 0x90 | cc, 0xc0],
      [0x48, 0x0f, 0x40 | cc, 0xd3],
      [0x48, 0x11, 0xda],
      [0x9f],
      [0x48, 0xd1, 0xd2],
      [0x0f, 0x84, 0, 0, 0, 0],
      [0x90, 0x70 | cc, 2, 0x90, 0x90],
    ][random(8)] as number[]
    return [...prefix, op, ...rm, ...reader]
  }),
  () => [0x48, 0xff, [0xc0, 0xc3, 0xc8, 0xcb][random(4)] as number, 0x70 | random(16), 2, 0x89, 0xd8],
  () => [0x48, 0x0f, 0xaf, 0xc3, 0x70 | (random(16) & 0xf1), 1, 0x90],
  () => [0x48, 0xc1, [0xe0, 0xe8, 0xf8, 0xc0, 0xd0][random(5)] as number, random(65), 0x73, 1, 0x90],
  // push rsi; push rdi; mov ecx,n; rep movsb / stosb / repe cmpsb; pop rdi; pop rsi
  () => [0x56, 0x57, 0xb9, random(40), 0, 0, 0, 0xf3, [0xa4, 0xaa, 0xa6][random(3)] as number, 0x5f, 0x5e],
  // sti; cli; mov ss
  () => [0xfb, 0x48, 0x01, 0x06, 0xfa, 0x48, 0x83, 0x46, 0x08, 0x11, 0xfb],
  () => [0x8c, 0xd2, 0x8e, 0xd2, 0x48, 0x03, 0x56, 0x08],
  () => [0x9c, 0x48, 0x83, 0x34, 0x24, 0x41, 0x9d, 0x0f, 0x92, 0xc3],
  // fld1; fadd st,st0; fstp qword [rsi]; addsd xmm0,[rsi]; cvtsd2si rax,xmm0
  () => [0xd9, 0xe8, 0xd8, 0xc0, 0xdd, 0x1e, 0xf2, 0x0f, 0x58, 0x06, 0xf2, 0x48, 0x0f, 0x2d, 0xc0],
  () => [0x66, 0x0f, 0x2f, 0x06, 0x77, 2, 0x89, 0xc3],
  // call over a changed immediate: inc byte [r15 + n]
  () => [0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3],
  () => [0xf0, 0x48, 0x0f, 0xc1, 0x06, 0x72, 1, 0x90],
  () => [0x48, 0x87, 0x5e, 0x0c, 0x48, 0x99, 0x48, 0xf7, 0xd8, 0x19, 0xc9],
]

/** mov ecx,2; again: ...; dec [count]; jnz again; jmp $ */
function program(): number[] {
  const body: number[] = []
  for (let i = 0; i < 14; i++) body.push(...(pieces[random(pieces.length)] as () => number[])())
  // MOV AL,imm whose immediate it increments.
  const at = body.length
  body.push(0xb0, 0x11, 0x00, 0xc3, 0x41, 0xfe, 0x87, ...[0, 8, 16, 24].map((s) => ((at + 1) >> s) & 255))
  // dec dword [COUNTER + 8]; jnz (near) back
  const back = [0xff, 0x0c, 0x25, (COUNTER + 8) & 255, (COUNTER >> 8) & 255, (COUNTER >> 16) & 255, 0]
  const length = body.length + back.length + 6
  return [...body, ...back, 0x0f, 0x85, ...[0, 8, 16, 24].map((s) => (-length >> s) & 255), 0xeb, 0xfe]
}

class Guest {
  readonly m = new Machine('long', true)
  private readonly code: number[]
  private readonly smram: number

  constructor(code: number[]) {
    const { m } = this
    this.code = code
    // Long mode in CPUID: the save area has 64 bits.
    m.everyFeature()
    this.smram = call(m.core, 'backingCreate', 16)
    call(m.core, 'slotSet', m.vm, (1 << 16) | 1, BigInt(SMBASE), 0x10000n, 0, this.smram, 0)
    // push rax; push rcx; xor eax,eax; sub rcx,rcx; inc qword [COUNTER]; pop rcx; pop rax; iretq
    const handler = [
      0x50,
      0x51,
      0x31,
      0xc0,
      0x48,
      0x29,
      0xc9,
      0x48,
      0xff,
      0x04,
      0x25,
      COUNTER & 255,
      (COUNTER >> 8) & 255,
      COUNTER >> 16,
      0,
    ]
    const at = STUBS + 0x1000
    m.code([...handler, 0x59, 0x58, 0x48, 0xcf], at)
    // jmp there from the stub (16 bytes a stub)
    for (const v of [2, VECTOR]) {
      const d = at - (STUBS + v * 16 + 5)
      m.code([0xe9, ...[0, 8, 16, 24].map((s) => (d >> s) & 255)], STUBS + v * 16)
    }
    // SMM: xor ax,ax; sub cx,cx; inc dword cs:[7f00]; rsm
    const { view, bytes } = m.core
    view.setBigUint64(L.STAGING, 0n, true)
    bytes.set([0x31, 0xc0, 0x29, 0xc9, 0x2e, 0x66, 0xff, 0x06, 0x00, 0x7f, 0x0f, 0xaa], L.STAGING)
    call(m.core, 'backingWrite', this.smram, 0x8000n, L.STAGING, 12)
  }

  /** Back to the beginning, with what was decoded kept. */
  begin(): void {
    const { m } = this
    m.code(this.code)
    for (let n = 0; n < 16; n++) m.setReg(n, BigInt.asUintN(64, BigInt(n + 3) * 0x9e3779b97f4a7c15n))
    m.setReg(4, 0x20000n)
    m.setReg(6, BigInt(DATA))
    m.setReg(7, BigInt(DATA + 0x40))
    m.setReg(15, BigInt(CODE))
    for (let i = 0; i < 32; i++) m.poke(DATA + i * 8, BigInt.asUintN(64, BigInt(i) * 0x8421_1248_8001_7ffen))
    m.poke(DATA + 0x20, 0x3ff8_0000_0000_0000n)
    m.poke(COUNTER, 0n)
    m.poke(COUNTER + 8, 2n)
    for (const f of [L.CPU_FSW, L.CPU_FTOP, L.CPU_FTAG]) m.set32(f, 0)
    m.core.bytes.fill(0, m.s + L.CPU_XMM, m.s + L.CPU_XMM + 512)
    m.core.bytes.fill(0, m.s + L.CPU_ST, m.s + L.CPU_ST + 128)
    m.set32(L.CPU_FCW, 0x37f)
    m.set32(L.CPU_MXCSR, 0x1f80)
    m.set32(L.CPU_HALTED, 0)
    m.set64(L.CPU_CR0, 0x80000013n)
    m.set64(L.CPU_CR4, 0x620n)
    m.setFlags(0x202n)
    m.set64(L.CPU_RIP, BigInt(CODE))
    m.changed()
  }

  run(n: number): void {
    call(this.m.core, 'vcpuRun', this.m.s, BigInt(n))
  }

  get end(): number {
    return CODE + this.code.length - 2
  }

  state(): string {
    const { m } = this
    const parts = [m.rip, m.flags & ~0x10000n, BigInt(m.u32(L.CPU_MXCSR)), BigInt(m.u32(L.CPU_FSW)), BigInt(m.u32(L.CPU_FTOP))]
    for (let n = 0; n < 16; n++) parts.push(m.reg(n))
    for (let i = 0; i < 40; i++) parts.push(m.peek(DATA + i * 8))
    for (let i = 0; i < 4; i++) parts.push(m.u64(L.CPU_XMM + i * 8))
    for (const n of [L.SEG_CS, L.SEG_SS, L.SEG_DS]) parts.push(BigInt(m.selector(n)), BigInt(m.attrib(n)), m.base(n), BigInt(m.limit(n)))
    for (let i = 0; i < this.code.length; i += 8) parts.push(m.peek(CODE + i))
    return parts.map((v) => v.toString(16)).join(' ')
  }

  smis(): number {
    const { m } = this
    m.core.view.setBigUint64(L.STAGING, 0n, true)
    call(m.core, 'backingRead', this.smram, 0x7f00n, L.STAGING, 4)
    return m.core.view.getUint32(L.STAGING, true)
  }

  interrupt(): void {
    const { m } = this
    m.core.view.setUint32(m.s + L.VCPU_KVM + L.VKVM_INTERRUPT, 0x100 | VECTOR, true)
    m.set32(L.CPU_EVENT, m.u32(L.CPU_EVENT) | L.EVENT_INTERRUPT)
  }
}

test(`NMI, interrupt and SMI at every boundary of ${programs} programs, seed ${seed}`, () => {
  let events = 0
  for (let p = 0; p < programs; p++) {
    const code = program()
    const hex = Buffer.from(code).toString('hex')
    const g = new Guest(code)
    g.begin()
    let count = 0
    for (; count < 2000 && Number(g.m.rip) !== g.end; count++) g.run(1)
    assert.is(Number(g.m.rip), g.end, `seed ${seed}, program ${p}: ${hex}`)
    const stepped = g.state()
    g.begin()
    g.run(5000)
    assert.is(g.state(), stepped, `seed ${seed}, program ${p}, whole: ${hex}`)
    for (const kind of ['nmi', 'interrupt', 'smi'] as const)
      for (let n = 0; n <= count; n++) {
        const label = `seed ${seed}, program ${p}, ${kind} after ${n}: ${hex}`
        g.begin()
        if (n > 0) g.run(n)
        const before = g.smis()
        if (kind === 'nmi') call(g.m.core, 'queueNmi', g.m.s)
        else if (kind === 'smi') call(g.m.core, 'queueSmi', g.m.s)
        else g.interrupt()
        g.run(5000)
        assert.is(g.state(), stepped, label)
        assert.is(kind === 'smi' ? g.smis() - before : Number(g.m.peek(COUNTER)), 1, label)
        events++
      }
  }
  console.log(`boundaries: ${events} events, seed ${seed}`)
  assert.ok(events > programs * 100)
})

test.run()
