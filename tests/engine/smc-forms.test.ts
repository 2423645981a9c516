/**
 * Every instruction that stores, over code: behind itself in its own block, over itself, across lines and pages, through another
 * mapping. One machine has run all of it before (decoded, chained); the other decodes every instruction afresh. They end alike,
 * whatever the stored bytes mean as instructions.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { call } from '../support/core.ts'
import { KCODE64, L, type Machine } from '../system/machine.ts'
import { FormBench, TABLE } from './bench.ts'
import { encodings } from './forms.ts'

/** The pages of code, and where the second mapping of them lies. */
const PAGE = 0x120000
const ALIAS = 0x160000
const SCRATCH = 0x140000
const STACK = 0x148000
/** Instructions of one run. */
const STEPS = 14

/** inc r8; inc r9; add r10,5; add r11,r8; mov al,0x21; add r12,rax; lea r13,[r13+1]; then 24 bytes of nop */
const body = [
  ...[0x49, 0xff, 0xc0, 0x49, 0xff, 0xc1, 0x49, 0x83, 0xc2, 5, 0x4d, 0x01, 0xc3, 0xb0, 0x21, 0x49, 0x01, 0xc4, 0x4d, 0x8d, 0x6d, 1],
  ...new Array<number>(24).fill(0x90),
]

interface Form {
  name: string
  code: number[]
  /** What holds the address of the store, and how far behind the target's beginning it points. */
  by: 'rbx' | 'rdi' | 'rax' | 'rsp'
  past?: number
  prepare?: (m: Machine) => void
}

class Bench extends FormBench {
  readonly #fresh: boolean

  /** `fresh`: nothing decoded is used twice. */
  constructor(fresh: boolean) {
    super((m) => {
      for (let i = 0; i < 3; i++) m.poke(TABLE + ((ALIAS >> 12) + i) * 8, BigInt(PAGE + i * 4096) | 3n)
      m.set64(L.CPU_CR0, m.u64(L.CPU_CR0) | 0x10000n)
    })
    this.#fresh = fresh
  }

  /** Nothing decoded in these pages is valid any more. */
  #forget(): void {
    const { m } = this
    const leaf = m.core.view.getUint32(m.core.view.getUint32(m.backing + L.BACKING_FRAMES, true), true)
    for (let page = 0; page < 512; page++) {
      const frame = m.core.view.getUint32(leaf + page * 4, true)
      if (frame !== 0) call(m.core, 'invalidateLines', 0, frame, 0xffffffff)
    }
  }

  /** From `start`, with the store going to `target`. */
  run(f: Form, start: number, target: number, steps = STEPS): void {
    const { m } = this
    this.restart()
    this.general(SCRATCH + 0x800)
    m.setReg(4, BigInt(STACK))
    m.setReg({ rax: 0, rbx: 3, rdi: 7, rsp: 4 }[f.by], BigInt(target + (f.past ?? 0)))
    // Numbers that are instructions, should they be executed.
    this.vectors(
      (i) => [0x49, 0xff, 0xc1, 0x90][i & 3] as number,
      (i) => [0xc9ff4990c9ff4990n, 0x4005 + i],
    )
    m.set64(L.CPU_RIP, BigInt(start))
    f.prepare?.(m)
    m.changed()
    if (!this.#fresh) {
      m.run(steps)
      return
    }
    const end = m.u64(L.CPU_ICOUNT) + BigInt(steps)
    for (let calls = 0; m.u64(L.CPU_ICOUNT) < end && calls < steps + 4; calls++) {
      this.#forget()
      m.set32(L.CPU_STOP_REASON, 0)
      m.run(1)
      if (m.u32(L.CPU_STOP_REASON) !== L.STOP_BUDGET) break
    }
  }

  state(): string {
    const { m } = this
    const part = this.part.bind(this)
    const regs = Array.from({ length: 16 }, (_, n) => m.reg(n).toString(16)).join(' ')
    const rest = `${part(L.CPU_SEGMENTS, 160)} ${part(L.CPU_CR0, 8)} ${part(L.CPU_CR3, 32)} ${part(L.CPU_FCW, 24)}${part(L.CPU_ST, 128)}${part(L.CPU_XMM, 512)}`
    return `rip ${m.rip.toString(16)} flags ${m.flags.toString(16)} regs ${regs}\n${rest}\n${this.read(PAGE - 64, 0x2040).toString('base64')} ${this.read(SCRATCH, 0x1000).toString('base64')}`
  }
}

/** They store nothing, or end the machine. */
const apart = /^(VMRUN|VMLOAD|VMSAVE|INVLPGA|INVLPG|CALL|JMP)/
const at = (m: Machine, value: bigint): void => m.poke(SCRATCH + 0x40, value)
const forms: Form[] = []
for (const o of opcodes) {
  if (!o.modrm || o.mod === 'reg' || o.exact !== undefined || o.flags.has('no64') || apart.test(o.mnemonic)) continue
  for (const [variant, code] of encodings(o)) forms.push({ name: `${o.text} ${variant}`, code, by: 'rbx' })
  if (o.flags.has('lock'))
    for (const [variant, code] of encodings(o)) forms.push({ name: `lock ${o.text} ${variant}`, code: [0xf0, ...code], by: 'rbx' })
}
for (const [size, prefix] of [
  [1, []],
  [2, [0x66]],
  [4, []],
  [8, [0x48]],
] as const) {
  const wide = size === 1 ? 0 : 1
  const pattern = (m: Machine): void => {
    m.setReg(0, 0x90c1ff4990c1ff49n)
    m.setReg(6, BigInt(SCRATCH + 0x40))
    for (let i = 0; i < 8; i++) m.poke(SCRATCH + 0x40 + i * 8, 0x90c1ff4990c1ff49n)
  }
  const down = (m: Machine): void => {
    pattern(m)
    m.setFlags(0x403n)
  }
  for (const [name, opcode] of [
    ['stos', 0xaa + wide],
    ['movs', 0xa4 + wide],
  ] as const) {
    forms.push({ name: `${name} ${size}`, code: [...prefix, opcode], by: 'rdi', prepare: pattern })
    forms.push({ name: `rep ${name} ${size}`, code: [0xf3, ...prefix, opcode], by: 'rdi', prepare: pattern })
    forms.push({ name: `std rep ${name} ${size}`, code: [0xf3, ...prefix, opcode], by: 'rdi', past: 2 * size, prepare: down })
    forms.push({ name: `a32 rep ${name} ${size}`, code: [0x67, 0xf3, ...prefix, opcode], by: 'rdi', prepare: pattern })
  }
}
const value = 0x90c1ff4990c1ff49n
forms.push(
  { name: 'push rbx', code: [0x53], by: 'rsp', past: 8, prepare: (m) => m.setReg(3, value) },
  { name: 'push bx', code: [0x66, 0x53], by: 'rsp', past: 2, prepare: (m) => m.setReg(3, value) },
  { name: 'push r9', code: [0x41, 0x51], by: 'rsp', past: 8, prepare: (m) => m.setReg(9, value) },
  { name: 'push imm8', code: [0x6a, 0x49], by: 'rsp', past: 8 },
  { name: 'push imm32', code: [0x68, 0x49, 0xff, 0xc1, 0x10], by: 'rsp', past: 8 },
  {
    name: 'push [rbp]',
    code: [0xff, 0x75, 0],
    by: 'rsp',
    past: 8,
    prepare: (m) => {
      m.setReg(5, BigInt(SCRATCH + 0x40))
      at(m, value)
    },
  },
  { name: 'pushf', code: [0x9c], by: 'rsp', past: 8 },
  { name: 'push fs', code: [0x0f, 0xa0], by: 'rsp', past: 8 },
  { name: 'call +0', code: [0xe8, 0, 0, 0, 0], by: 'rsp', past: 8 },
  { name: 'call +3', code: [0xe8, 3, 0, 0, 0], by: 'rsp', past: 8 },
  { name: 'enter 0,0', code: [0xc8, 0, 0, 0], by: 'rsp', past: 8, prepare: (m) => m.setReg(5, value) },
  ...[1, 2, 4].flatMap((level): Form[] =>
    [8, 16, 24].map((past) => ({
      name: `enter 0,${level} -${past}`,
      code: [0xc8, 0, 0, level],
      by: 'rsp',
      past,
      prepare: (m) => m.setReg(5, BigInt(SCRATCH + 0x100)),
    })),
  ),
  ...[8, 16, 24, 32, 40].map((past): Form => ({ name: `int 0x80 -${past}`, code: [0xcd, 0x80], by: 'rsp', past })),
  ...[8, 16].map(
    (past): Form => ({
      name: `call far [rbp] -${past}`,
      code: [0x48, 0xff, 0x5d, 0],
      by: 'rsp',
      past,
      prepare: (m) => {
        m.setReg(5, BigInt(SCRATCH + 0x40))
        m.poke(SCRATCH + 0x40, BigInt(PAGE))
        m.poke(SCRATCH + 0x48, BigInt(KCODE64))
      },
    }),
  ),
  { name: 'maskmovdqu', code: [0x66, 0x0f, 0xf7, 0xc1], by: 'rdi' },
  { name: 'maskmovq', code: [0x0f, 0xf7, 0xc1], by: 'rdi' },
  { name: 'clzero', code: [0x0f, 0x01, 0xfc], by: 'rax' },
  { name: 'movdir64b', code: [0x66, 0x0f, 0x38, 0xf8, 0x06], by: 'rax' },
)

/** [where the form begins in the page, where the store goes from the form's end (or beginning), through the alias] */
const places: [begin: (n: number) => number, store: (n: number) => number, alias: boolean][] = [
  [() => 0x200, (n) => n, false],
  [() => 0x200, (n) => n + 3, false],
  [() => 0x200, (n) => n + 14, false],
  [() => 0x200, () => 0, false],
  [() => 0x200, (n) => n - 1, false],
  [(n) => 0x280 - n, (n) => n, false],
  [(n) => 0x27e - n, (n) => n, true],
  [(n) => 0x1000 - n - 7, (n) => n + 4, false],
  [(n) => 0x1000 - n, (n) => n, true],
  [() => 0xfff, (n) => n, false],
  [() => 0x200, (n) => n - 20, false],
]

/** One form at all places; null or what differs. */
function check(f: Form, warm: Bench, fresh: Bench): string | null {
  const n = f.code.length
  for (const [i, [begin, store, alias]] of places.entries()) {
    const start = PAGE + begin(n)
    const code = [...f.code, ...body]
    // jmp to the beginning
    code.push(0xe9, ...new Uint8Array(new Int32Array([-(code.length + 5)]).buffer))
    const image = new Uint8Array(0x2000).fill(0x90)
    image.set(code, begin(n))
    const target = (alias ? ALIAS : PAGE) + begin(n) + store(n)
    for (const b of [warm, fresh]) {
      b.write(PAGE, image)
      b.write(SCRATCH, new Uint8Array(0x1000).fill(0x49))
      b.write(STACK - 0x100, new Uint8Array(0x200))
    }
    // Decoded and chained with the store going elsewhere.
    for (let k = 0; k < 3; k++) warm.run(f, start, SCRATCH + 0x200, 40)
    for (const b of [warm, fresh]) {
      // The form may have changed itself already: only bytes that differ are written back.
      const now = b.read(PAGE, 0x2000)
      for (let j = 0; j < 0x2000; j++) if (now[j] !== image[j]) b.write(PAGE + j, image.subarray(j, j + 1))
      b.write(SCRATCH, new Uint8Array(0x1000).fill(0x49))
      b.write(STACK - 0x100, new Uint8Array(0x200))
      b.run(f, start, target)
    }
    const [a, b] = [warm.state(), fresh.state()]
    if (a !== b) return `${f.name} (${Buffer.from(f.code).toString('hex')}) at place ${i}:\n  ${a.split('\n')[0]}\n  ${b.split('\n')[0]}`
  }
  return null
}

test('every store over code', () => {
  const wrong: string[] = []
  let warm = new Bench(false)
  let fresh = new Bench(true)
  let count = 0
  const only = process.env['CLOISTER_FORM']
  for (const f of forms) {
    if (only !== undefined && !f.name.includes(only)) continue
    // What the stored bytes did may have spoiled the machine.
    if (count++ % 32 === 0) {
      warm = new Bench(false)
      fresh = new Bench(true)
    }
    const found = check(f, warm, fresh)
    if (found) wrong.push(found)
  }
  process.stdout.write(`  ${count} forms at ${places.length} places\n`)
  assert.equal(wrong.slice(0, 20), [], `${wrong.length} forms`)
})

test.run()
