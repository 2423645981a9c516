/**
 * A page fault in the middle of every memory form of the opcode map, and of every stack form: nothing has changed but what the
 * fault's own delivery changes, and once the page is good the instruction does what it does undisturbed. (modify-fault.test.ts
 * has the read-modify-write forms in detail.)
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { FormBench } from './bench.ts'
import { encodings } from './forms.ts'
import { CODE, IST1, KCODE64, KDATA, L, STUBS, IDT, gate } from '../system/machine.ts'

const PAGE = 0x120000
const NEXT = PAGE + 4096
/** What is compared of the two pages. */
const WINDOW = NEXT - 1024
const WINDOW_SIZE = 2048
const PF = BigInt(STUBS + 14 * 16)

const pattern = Uint8Array.from({ length: WINDOW_SIZE }, (_, i) => (i * 37 + (i >> 8) * 11 + 3) & 0xff)

class Bench extends FormBench {
  #mapped = ''

  constructor() {
    super((m) => {
      // Faults are delivered on a stack of their own.
      m.idt(14, gate(KCODE64, STUBS + 14 * 16, 0x8e, 1))
      m.set64(L.CPU_CR0, m.u64(L.CPU_CR0) | 0x10000n)
    })
  }

  /** Maps the two pages: rw, ro or none. */
  pages(first: string, second: string): void {
    if (this.#mapped === first + second) return
    this.#mapped = first + second
    const bits: Record<string, bigint> = { rw: 3n, ro: 1n, none: 0n }
    this.map([PAGE, bits[first] ?? 0n], [NEXT, bits[second] ?? 0n])
  }

  memory(bytes: Uint8Array): void {
    this.write(WINDOW, bytes)
  }
  #window(): Uint8Array {
    return this.read(WINDOW, WINDOW_SIZE)
  }

  /** The same registers every time; RBX is the operand's address. */
  start(address: number, rsp: number, frame: boolean): void {
    const { m } = this
    const { bytes } = m.core
    m.set32(L.CPU_HALTED, 0)
    m.set32(L.CPU_INTERRUPT_SHADOW, 0)
    for (let n = 0; n < 16; n++) m.setReg(n, BigInt(n + 1) * 0x0fedcba987654321n)
    m.setReg(1, 3n)
    m.setReg(2, 0n)
    m.setReg(3, BigInt(address))
    m.setReg(4, BigInt(rsp))
    m.setReg(5, BigInt(rsp))
    m.setReg(6, 0x30000n)
    m.setReg(7, BigInt(address))
    for (let i = 0; i < 128; i++) bytes[m.s + L.CPU_ST + i] = 0
    this.vectors()
    for (const [field, value] of [
      [L.CPU_FCW, 0x37f],
      [L.CPU_FSW, 0],
      [L.CPU_FOP, 0],
      [L.CPU_MXCSR, 0x1f80],
      [L.CPU_FCS, 0],
      [L.CPU_FDS, 0],
    ] as const)
      m.set32(field, value)
    m.set64(L.CPU_FIP, 0n)
    m.set64(L.CPU_FDP, 0n)
    for (const n of [L.SEG_ES, L.SEG_SS, L.SEG_DS, L.SEG_FS, L.SEG_GS]) m.segment(n, KDATA, 0n, 0xffffffff, 0xc93)
    m.segment(L.SEG_CS, KCODE64, 0n, 0xffffffff, 0xa9b)
    m.segment(L.SEG_GDTR, 0, 0x1000n, 0x3ff, 0)
    m.segment(L.SEG_IDTR, 0, BigInt(IDT), 0xfff, 0)
    m.segment(L.SEG_LDTR, 0, 0n, 0, 0x8000)
    m.set64(L.CPU_XCR0, 3n)
    m.set64(L.CPU_CR0, 0x80010011n)
    m.set32(L.CPU_PKRU, 0)
    m.set64(L.CPU_RIP, BigInt(CODE))
    if (frame) {
      // An IRET or RET frame at RSP that leads to good code.
      const words = [BigInt(CODE + 64), BigInt(KCODE64), 2n, BigInt(rsp + 64), BigInt(KDATA)]
      for (const [i, w] of words.entries()) m.poke(rsp + i * 8, w)
    }
    m.changed()
  }

  registers(): string {
    const { m } = this
    const part = this.part.bind(this)
    const fpu = `${part(L.CPU_FCW, 24)} ${part(L.CPU_ST, 128)} ${part(L.CPU_XMM, 512)}`
    return `${part(L.CPU_GPR, 32)} ${part(L.CPU_GPR + 40, 88)} ${fpu} ${part(L.CPU_SEGMENTS, 160)} ${part(L.CPU_CR0, 8)} ${part(L.CPU_CR3, 32)} ${m.u32(L.CPU_PKRU)}`
  }
  state(): string {
    return `${this.m.rip.toString(16)} ${this.m.reg(4).toString(16)} ${this.m.flags} ${this.registers()} ${Buffer.from(this.#window()).toString('base64')}`
  }

  /**
   * One case: what the instruction does undisturbed, with the pages as `bad` says, and after that with good pages. True if it
   * faulted. `torn`: stores before the fault may show.
   */
  check(name: string, address: number, rsp: number, frame: boolean, bad: readonly [string, string], torn: boolean): boolean {
    const { m } = this
    this.pages('rw', 'rw')
    this.memory(pattern)
    this.start(address, rsp, frame)
    m.run(1)
    const good = this.state()
    this.pages('rw', 'rw')
    this.memory(pattern)
    this.start(address, rsp, frame)
    const registers = this.registers()
    const before = this.#window()
    this.pages(...bad)
    m.run(1)
    const where = `${name}, pages ${bad.join(' ')}`
    if (m.rip !== PF + 1n && m.rip !== PF) {
      assert.is(this.state(), good, `${where}: no fault, another result`)
      return false
    }
    const frameAt = Number(m.reg(4))
    assert.is(frameAt, IST1 - 48, `${where}: the fault's stack`)
    assert.is(Number(m.peek(frameAt + 8)), CODE, `${where}: RIP`)
    assert.is(Number(m.peek(frameAt + 24)) & 0x8d5, 1, `${where}: flags`)
    assert.is(Number(m.peek(frameAt + 32)), rsp, `${where}: RSP`)
    const cr2 = Number(m.u64(L.CPU_CR2))
    const faulty = bad[0] === 'rw' ? NEXT : PAGE
    assert.is(cr2 & ~0xfff, faulty, `${where}: CR2 ${cr2.toString(16)}`)
    // SS is null only after a change of privilege; there is none.
    assert.is(this.registers(), registers, `${where}: registers`)
    if (!torn) assert.is(Buffer.compare(this.#window(), before), 0, `${where}: memory`)
    this.pages('rw', 'rw')
    this.start(address, rsp, false)
    m.run(1)
    assert.is(this.state(), good, `${where}: retry`)
    return true
  }
}

/** Rows that the loop below cannot judge: they leave for the host or end the machine. */
const apart = new Set(['VMRUN', 'VMLOAD', 'VMSAVE', 'INVLPGA', 'INVLPG'])
const large = /^(FXSAVE|FXRSTOR|XSAVE|XRSTOR|XSAVEOPT|XSAVEC|XSAVES|XRSTORS|FNSAVE|FRSTOR|FLDENV|FNSTENV|MOVDIR64B)/

test('every memory operand of the opcode map, across a page edge', () => {
  const b = new Bench()
  let forms = 0
  let faulted = 0
  const never: string[] = []
  for (const o of opcodes) {
    if (!o.modrm || o.mod === 'reg' || o.exact !== undefined || o.flags.has('no64') || apart.has(o.mnemonic)) continue
    let some = false
    for (const [variant, code] of encodings(o)) {
      const firsts = large.test(o.mnemonic) ? [0, 1, 8, 13, 27, 28, 29, 63, 94, 107, 416, 511, 512, 575] : [0, 1, 2, 3, 5, 7, 9, 15]
      forms++
      b.m.code([...code, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4])
      for (const first of firsts) {
        for (const bad of ['ro', 'none']) {
          const name = `${o.text} ${variant} (${Buffer.from(code).toString('hex')}), ${first} bytes on the first page`
          if (b.check(name, NEXT - first, 0x20000, false, ['rw', bad], large.test(o.mnemonic))) {
            some = true
            faulted++
          }
        }
      }
    }
    if (!some) never.push(o.text)
  }
  process.stdout.write(`${forms} forms, ${faulted} faults; no fault: ${never.map((t) => t.split(' ').slice(0, 2).join(' ')).join(', ')}\n`)
  assert.ok(forms > 700, `${forms} forms`)
  for (const text of never)
    assert.match(text, /^(8D|0F.1[89A-F]|0F.0D|0F.B9|0F.FF|8E|0F.2[0-3]|66.0F38.82|66.0F38.F8) /, 'a form that never faulted')
  assert.ok(faulted > 5000, `${faulted} faults`)
})

test('every stack form, across a page edge', () => {
  const b = new Bench()
  const forms: [name: string, code: number[], frame: boolean][] = [
    ['push rcx', [0x51], false],
    ['push cx', [0x66, 0x51], false],
    ['push imm8', [0x6a, 5], false],
    ['push imm32', [0x68, 1, 2, 3, 4], false],
    ['push [rsi]', [0xff, 0x36], false],
    ['pushf', [0x9c], false],
    ['push fs', [0x0f, 0xa0], false],
    ['call rel', [0xe8, 16, 0, 0, 0], false],
    ['call rsi', [0xff, 0xd6], false],
    ['enter 16,0', [0xc8, 16, 0, 0], false],
    ['enter 16,1', [0xc8, 16, 0, 1], false],
    ['enter 16,4', [0xc8, 16, 0, 4], false],
    ['int 0x80', [0xcd, 0x80], false],
    ['int3', [0xcc], false],
    ['pop rcx', [0x59], false],
    ['pop cx', [0x66, 0x59], false],
    ['pop [rsi]', [0x8f, 0x06], false],
    ['popf', [0x9d], false],
    ['pop fs', [0x0f, 0xa1], false],
    ['leave', [0xc9], false],
    ['ret', [0xc3], true],
    ['ret 8', [0xc2, 8, 0], true],
    ['retfq', [0x48, 0xcb], true],
    ['iretq', [0x48, 0xcf], true],
  ]
  let faulted = 0
  for (const [name, code, frame] of forms) {
    b.m.code([...code, 0xf4, 0xf4, 0xf4, 0xf4])
    let some = 0
    for (let at = -64; at <= 64; at += frame ? 8 : 3) {
      for (const bad of [
        ['rw', 'ro'],
        ['rw', 'none'],
        ['ro', 'rw'],
        ['none', 'rw'],
      ] as const)
        if (b.check(`${name} at ${at}`, 0x30000, NEXT + at, frame, bad, true)) some++
    }
    assert.ok(some > 0, `${name}: no fault`)
    faulted += some
  }
  process.stdout.write(`${forms.length} stack forms, ${faulted} faults\n`)
})

test.run()
