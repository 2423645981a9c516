/**
 * Every memory form of the opcode map on memory-mapped I/O: userspace that answers with the bytes of a memory gets the same registers
 * and leaves the same bytes there as the form does on RAM, also where the operand begins in RAM and ends in MMIO. While a read waits
 * for its answer the vCPU is at the instruction, with its registers as before; an NMI that comes meanwhile is taken behind it.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { call } from '../support/core.ts'
import { CODE, L, type Machine, PML4 } from '../system/machine.ts'
import { FormBench } from './bench.ts'
import { encodings } from './forms.ts'

/** The page before MMIO, and MMIO: no slot has it. */
const LAST = 0x3ff000
const MMIO = 0x400000
/** The same two pages as RAM. */
const TWIN = 0x120000
const SCRATCH = 0x140000
const STACK = 0x148000
const EXIT_MMIO = 6
const EXIT_INTERNAL_ERROR = 17

const pattern = Uint8Array.from({ length: 8192 }, (_, i) => (i * 37 + (i >> 8) * 11 + 3) & 0xff)

interface Outcome {
  state: string
  bytes: Buffer
  exits: number
  /** KVM_EXIT_INTERNAL_ERROR: what KVM's emulator does not know. */
  refused: boolean
}

class Bench extends FormBench {
  readonly #device = new Uint8Array(4096)

  constructor() {
    super((m) => {
      m.poke(PML4 + 0x2010, BigInt(MMIO) | 0x83n)
      m.poke(PML4 + 0x2008, 0x200083n)
    })
  }

  #registers(): string {
    const { m } = this
    const part = this.part.bind(this)
    return `${part(L.CPU_GPR, 128)} ${m.flags} ${part(L.CPU_SEGMENTS, 160)} ${part(L.CPU_CR0, 8)} ${part(L.CPU_CR3, 32)} ${part(L.CPU_FCW, 12)} ${part(L.CPU_ST, 128)} ${part(L.CPU_XMM, 512)}`
  }

  /** One instruction with its operand at `base` + `offset`, base being LAST (MMIO behind it) or TWIN. `nmi`: during the first read. */
  run(code: readonly number[], base: number, offset: number, nmi = false, prepare: (m: Machine, at: number) => void = () => {}): Outcome {
    const { m } = this
    const { view, bytes } = m.core
    this.restart()
    bytes.fill(0, m.s + L.VCPU_KVM, m.s + L.VCPU_KVM + 0x460)
    this.write(base, pattern.subarray(0, 4096))
    if (base === TWIN) this.write(base + 4096, pattern.subarray(4096))
    else this.#device.set(pattern.subarray(4096))
    this.write(SCRATCH, new Uint8Array(0x1000).fill(0x49))
    this.write(STACK - 0x100, new Uint8Array(0x200))
    this.general(SCRATCH + 0x800)
    // Addresses show in no result: RBX and RDI are put back at the end.
    m.setReg(3, BigInt(base + offset))
    m.setReg(7, BigInt(base + offset))
    m.setReg(4, BigInt(STACK))
    this.vectors()
    m.set64(L.CPU_RIP, BigInt(CODE))
    prepare(m, base + offset)
    m.code([...code, 0x90, 0x90])
    m.changed()
    const before = this.#registers()
    const end = m.u64(L.CPU_ICOUNT) + 1n
    let exits = 0
    let refused = false
    for (let calls = 0; ; calls++) {
      assert.ok(calls < 200, 'stuck')
      const result = call(m.core, 'vcpuRun', m.s, end > m.u64(L.CPU_ICOUNT) ? end - m.u64(L.CPU_ICOUNT) : 0n)
      if (result < 0) break
      const reason = m.u32(L.VCPU_RUN + 8)
      if (reason !== EXIT_MMIO) {
        refused = reason === EXIT_INTERNAL_ERROR
        break
      }
      exits++
      const at = m.s + L.VCPU_RUN + 32
      const gpa = Number(view.getBigUint64(at, true))
      const n = view.getUint32(at + 16, true)
      assert.ok(gpa >= MMIO && gpa + n <= MMIO + 4096 && n >= 1 && n <= 8, `${n} bytes at ${gpa.toString(16)}`)
      if (view.getUint8(at + 20) !== 0) this.#device.set(bytes.subarray(at + 8, at + 8 + n), gpa - MMIO)
      else {
        assert.is(m.rip, BigInt(CODE), 'RIP during a read')
        // A repetition has done its rounds so far.
        if (code[0] !== 0xf3 && code[0] !== 0xf2) assert.is(this.#registers(), before, 'registers during a read')
        bytes.set(this.#device.subarray(gpa - MMIO, gpa - MMIO + n), at + 8)
        if (nmi && exits === 1) call(m.core, 'queueNmi', m.s)
      }
    }
    // Addresses of either place are relative to it.
    for (let n = 0; n < 16; n++) if (m.reg(n) >= BigInt(base) && m.reg(n) < BigInt(base + 0x2000)) m.setReg(n, m.reg(n) - BigInt(base))
    const both = Buffer.concat([this.read(base, 4096), base === TWIN ? this.read(base + 4096, 4096) : Buffer.from(this.#device)])
    return {
      state: `${m.rip.toString(16)} ${this.#registers()} ${this.read(SCRATCH, 4096).toString('base64')}`,
      bytes: both,
      exits,
      refused,
    }
  }
}

const apart = /^(VMRUN|VMLOAD|VMSAVE|INVLPGA|INVLPG|LGDT|LIDT|MONITOR|LEA)/
/** Stored in parts, and more of them than an instruction may have here. */
const large = /^(FXRSTOR|FXSAVE|XSAVE|XRSTOR|FNSTENV|FNSAVE|FBSTP)/

test('every memory form on MMIO, whole and behind RAM', () => {
  const b = new Bench()
  const wrong: string[] = []
  const refused = new Set<string>()
  const silent = new Set<string>()
  let same = 0
  let exits = 0
  const only = process.env['CLOISTER_FORM']
  for (const o of opcodes) {
    if (!o.modrm || o.mod === 'reg' || o.exact !== undefined || o.flags.has('no64') || apart.test(o.mnemonic)) continue
    if (only !== undefined && !o.text.includes(only)) continue
    let seen = 0
    for (const [variant, code] of encodings(o)) {
      for (const offset of [0x1000, 0x1103, 0xfff, 0xffc, 0xff8, 0xff1]) {
        for (const locked of o.flags.has('lock') ? [false, true] : [false]) {
          const bytes = locked ? [0xf0, ...code] : code
          const where = `${o.text} ${variant} (${Buffer.from(bytes).toString('hex')}) at ${offset.toString(16)}`
          const want = b.run(bytes, TWIN, offset)
          const got = b.run(bytes, LAST, offset)
          seen += got.exits
          exits += got.exits
          if (got.refused) {
            refused.add(o.mnemonic)
            // FSTP of ten bytes is eight and two.
            if (!large.test(o.mnemonic) && !o.text.startsWith('DB/7m') && !got.bytes.equals(pattern))
              wrong.push(`${where}: refused with a part stored`)
            continue
          }
          if (got.state !== want.state)
            wrong.push(`${where}: registers after ${got.exits} exits\n${got.state.slice(0, 300)}\n${want.state.slice(0, 300)}`)
          else if (!got.bytes.equals(want.bytes)) {
            const at = got.bytes.findIndex((v, i) => v !== want.bytes[i])
            wrong.push(
              `${where}: memory at ${at.toString(16)}: ${got.bytes.subarray(at, at + 16).toString('hex')} not ${want.bytes.subarray(at, at + 16).toString('hex')}`,
            )
          } else same++
          if (got.exits > 0 && offset === 0x1000) {
            const late = b.run(bytes, LAST, offset, true)
            if (!late.bytes.equals(want.bytes)) wrong.push(`${where}: with an NMI, memory`)
          }
        }
      }
    }
    if (seen === 0) silent.add(o.text.split(' ').slice(0, 2).join(' '))
  }
  process.stdout.write(`  ${same} alike, ${exits} exits; refused: ${[...refused].join(' ')}; without an exit: ${[...silent].join(', ')}\n`)
  assert.equal(wrong.slice(0, 10), [], `${wrong.length} wrong`)
})

/** `at` is where the first byte of what lies in both places is. */
interface Form {
  name: string
  code: number[]
  prepare: (m: Machine, at: number) => void
  /** With an NMI during the first read its frame would lie in MMIO. */
  frame?: boolean
}
const forms: Form[] = []
const pointers = (m: Machine, values: Partial<Record<number, number>>): void => {
  for (const [n, value] of Object.entries(values)) m.setReg(Number(n), BigInt(value as number))
}
for (const [size, prefix] of [
  [1, []],
  [2, [0x66]],
  [4, []],
  [8, [0x48]],
] as const) {
  const wide = size === 1 ? 0 : 1
  const low = SCRATCH + 0x300
  const string = (name: string, opcode: number, rep: number[], rsi: 'at' | 'low', rdi: 'at' | 'low', flags = 3n): void =>
    void forms.push({
      name: `${name} ${size}, ${rsi} ${rdi}`,
      code: [...rep, ...prefix, opcode],
      prepare: (m, at) => {
        pointers(m, { 6: rsi === 'at' ? at : low, 7: rdi === 'at' ? at : low })
        m.setFlags(flags)
      },
    })
  for (const rep of [[], [0xf3]]) {
    const r = rep.length ? 'rep ' : ''
    string(`${r}movs`, 0xa4 + wide, rep, 'at', 'low')
    string(`${r}movs`, 0xa4 + wide, rep, 'low', 'at')
    string(`${r}stos`, 0xaa + wide, rep, 'low', 'at')
    string(`${r}lods`, 0xac + wide, rep, 'at', 'low')
    string(`${r}std movs`, 0xa4 + wide, rep, 'at', 'low', 0x403n)
    string(`${r}std stos`, 0xaa + wide, rep, 'low', 'at', 0x403n)
    string(`${r}cmps`, 0xa6 + wide, rep, 'at', 'low')
    string(`${r}cmps`, 0xa6 + wide, rep, 'low', 'at')
    string(`${r}scas`, 0xae + wide, rep, 'low', 'at')
    if (rep.length) string('repne cmps', 0xa6 + wide, [0xf2], 'at', 'low')
    if (rep.length) string('repne scas', 0xae + wide, [0xf2], 'low', 'at')
  }
}
for (const [name, code] of [
  ['push rcx', [0x51]],
  ['push cx', [0x66, 0x51]],
  ['push imm8', [0x6a, 5]],
  ['push imm32', [0x68, 1, 2, 3, 4]],
  ['push [rsi]', [0xff, 0x36]],
  ['pushf', [0x9c]],
  ['push fs', [0x0f, 0xa0]],
  ['call rel', [0xe8, 16, 0, 0, 0]],
  ['call rsi', [0xff, 0xd6]],
  ['pop rcx', [0x59]],
  ['pop cx', [0x66, 0x59]],
  ['pop [rsi]', [0x8f, 0x06]],
  ['leave', [0xc9]],
] as const)
  forms.push({ name, code: [...code], prepare: (m, at) => pointers(m, { 4: at + 8, 5: at + 8 }), frame: true })
forms.push(
  { name: 'push [rbx]', code: [0xff, 0x33], prepare: () => {} },
  { name: 'push [rbx] on the same stack', code: [0xff, 0x33], prepare: (m, at) => pointers(m, { 4: at + 24 }), frame: true },
  { name: 'pop [rbx]', code: [0x8f, 0x03], prepare: () => {} },
  { name: 'pop [rbx] of the same stack', code: [0x8f, 0x03], prepare: (m, at) => pointers(m, { 4: at + 24 }), frame: true },
  { name: 'enter 16,0', code: [0xc8, 16, 0, 0], prepare: (m, at) => pointers(m, { 4: at + 8, 5: 0x1234 }), frame: true },
  { name: 'xlat', code: [0xd7], prepare: () => {} },
  { name: 'bt [rbx], rcx', code: [0x48, 0x0f, 0xa3, 0x0b], prepare: (m) => pointers(m, { 1: 100 }) },
  { name: 'bts [rbx], rcx', code: [0x48, 0x0f, 0xab, 0x0b], prepare: (m) => pointers(m, { 1: 100 }) },
)

test('stack and string forms on MMIO, whole and behind RAM', () => {
  const b = new Bench()
  const wrong: string[] = []
  let exits = 0
  for (const f of forms) {
    let seen = 0
    for (const offset of [0x1010, 0x1103, 0xfff, 0xffc, 0xff8, 0xff1, 0xff9]) {
      const where = `${f.name} (${Buffer.from(f.code).toString('hex')}) at ${offset.toString(16)}`
      const want = b.run(f.code, TWIN, offset, false, f.prepare)
      const got = b.run(f.code, LAST, offset, false, f.prepare)
      seen += got.exits
      if (got.refused) wrong.push(`${where}: refused`)
      else if (got.state !== want.state)
        wrong.push(`${where}: registers after ${got.exits} exits\n${got.state.slice(0, 300)}\n${want.state.slice(0, 300)}`)
      else if (!got.bytes.equals(want.bytes)) {
        const at = got.bytes.findIndex((v, i) => v !== want.bytes[i])
        wrong.push(
          `${where}: memory at ${at.toString(16)}: ${got.bytes.subarray(at, at + 16).toString('hex')} not ${want.bytes.subarray(at, at + 16).toString('hex')}`,
        )
      }
      if (!f.frame && got.exits > 0 && !b.run(f.code, LAST, offset, true, f.prepare).bytes.equals(want.bytes))
        wrong.push(`${where}: with an NMI, memory`)
    }
    exits += seen
    assert.ok(seen > 0, `${f.name}: no exit`)
  }
  process.stdout.write(`  ${forms.length} forms, ${exits} exits\n`)
  assert.equal(wrong.slice(0, 10), [], `${wrong.length} wrong`)
})

test.run()
