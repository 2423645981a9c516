/** State that only a second look shows: SWAPGS, segment caches, faults of implicit accesses in real and virtual-8086 mode, INS, a vCPU that goes. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { CODE, descriptor, GDT, gate, KCODE, KCODE64, KDATA, L, LDT_SEL, Machine, PML4, STUBS, TSS, TSS_SEL } from './machine.ts'

const test = suite('small state')
const HLT = 0xf4

test('SWAPGS exchanges the two bases; a second one takes them back', () => {
  const m = new Machine('long')
  m.segment(L.SEG_GS, KDATA, 0x1111n, 0xffffffff, 0xc93)
  m.set64(L.CPU_KERNEL_GS_BASE, 0xffff_8000_0000_2222n)
  assert.is(m.exec([0x0f, 0x01, 0xf8, HLT]), -1)
  assert.equal([m.base(L.SEG_GS), m.u64(L.CPU_KERNEL_GS_BASE)], [0xffff_8000_0000_2222n, 0x1111n])
  assert.is(m.selector(L.SEG_GS), KDATA)
  m.set32(L.CPU_HALTED, 0)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.run(10)
  assert.equal([m.base(L.SEG_GS), m.u64(L.CPU_KERNEL_GS_BASE)], [0x1111n, 0xffff_8000_0000_2222n])
})

test('segment caches: real-mode loads are accessed writable data, null selectors have no limit', () => {
  const real = new Machine('real')
  real.segment(L.SEG_DS, 0, 0n, 0xffff, 0x82)
  assert.is(real.exec([0xb8, 0x34, 0x12, 0x8e, 0xd8, HLT]), -1)
  assert.equal(
    [real.selector(L.SEG_DS), real.base(L.SEG_DS), real.limit(L.SEG_DS), real.attrib(L.SEG_DS)],
    [0x1234, 0x12340n, 0xffff, 0x93],
  )
  for (const mode of ['protected', 'long'] as const) {
    const m = new Machine(mode)
    assert.is(m.exec([0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xe0, 0x0f, 0x00, 0xd0, HLT]), -1)
    for (const n of [L.SEG_DS, L.SEG_FS, L.SEG_LDTR])
      assert.equal([m.selector(n), m.base(n), m.limit(n), m.attrib(n) & 0x8000], [0, 0n, 0, 0x8000])
  }
})

test('selectors of LLDT, LTR, VERR, VERW, LAR and LSL have 16 bits, from a register and from memory', () => {
  for (const [ext, selector, opcode] of [
    [2, 0x140, 0x00],
    [3, 0x130, 0x00],
    [4, 0x110, 0x00],
    [5, 0x110, 0x00],
    [1, 0x110, 0x02],
    [1, 0x110, 0x03],
  ] as const)
    for (const memory of [false, true]) {
      const m = new Machine('protected')
      for (const at of [TSS_SEL, LDT_SEL, KDATA, KCODE]) m.poke(GDT + at, 0n)
      m.poke(GDT + 0x110, descriptor(0, 0x2345, 0x093))
      m.poke(GDT + 0x130, descriptor(TSS, 0x67, 0x089))
      m.poke(GDT + 0x140, descriptor(0x3800, 0x7f, 0x082))
      m.poke(0x5000, BigInt(selector), 2)
      m.setReg(0, memory ? 0x5000n : BigInt(selector) | 0xabcd0000n)
      m.code([0x0f, opcode, (memory ? 0 : 0xc0) | (ext << 3), HLT])
      m.run(10)
      assert.is(Number(m.rip), CODE + 4, `${opcode}/${ext}`)
      if (opcode === 0 && ext < 4) assert.is(m.selector(ext === 2 ? L.SEG_LDTR : L.SEG_TR), selector)
      else assert.is(m.flags & 0x40n, 0x40n, `${opcode}/${ext}: ZF`)
      if (opcode === 2) assert.is(Number(m.reg(1)), 0x9300)
      if (opcode === 3) assert.is(Number(m.reg(1)), 0x2345)
    }
})

test('real mode: a vector table where nothing is leaves to the VMM before anything is pushed', () => {
  const m = new Machine('real')
  m.segment(L.SEG_IDTR, 0, 0x800000n, 0x3ff, 0)
  m.poke(0x6ff0, 0x1122334455667788n)
  m.poke(0x6ff8, 0x1122334455667788n)
  m.code([0xcd, 0x21])
  assert.is(m.run(5), L.STOP_EXIT)
  const run = m.s + L.VCPU_RUN
  assert.is(m.core.view.getUint32(run + 8, true), 6, 'KVM_EXIT_MMIO')
  assert.equal([m.core.view.getBigUint64(run + 32, true), m.core.view.getUint32(run + 48, true)], [0x800084n, 4])
  assert.equal([m.rip, m.reg(4), m.peek(0x6ff8)], [0n, 0x7000n, 0x1122334455667788n])
})

/** 4 KiB pages below 2 MiB. */
function paged(m: Machine): (page: number, entry: number) => void {
  const long = m.mode === 'long'
  const size = long ? 8 : 4
  const table = 0x61000
  for (let i = 0; i < 512; i++) m.poke(table + i * size, BigInt(i * 4096) | 7n, size)
  if (long) m.poke(PML4 + 0x2000, BigInt(table) | 7n)
  else {
    m.poke(0x60000, BigInt(table) | 7n, 4)
    m.set64(L.CPU_CR3, 0x60000n)
    m.set64(L.CPU_CR0, 0x80010011n)
    m.changed()
  }
  call(m.core, 'flushTlb', m.s)
  return (page, entry) => {
    m.poke(table + page * size, BigInt(page * 4096 + entry), size)
    call(m.core, 'flushTlb', m.s)
  }
}

test('virtual-8086 mode with VME: a redirection map that is not there is #PF, not #GP', () => {
  for (const [absent, offset] of [
    [0x31, 102],
    [0x32, 0],
  ] as const) {
    const m = new Machine('protected')
    const map = paged(m)
    // The offset of the I/O map lies at the end of the first page or at the beginning of the second, the maps behind.
    const tss = offset ? 0x31000 - 102 : 0x31f00
    m.poke(tss + 4, 0x28000n, 4)
    m.poke(tss + 8, BigInt(KDATA), 4)
    m.poke(tss + 102, 0x140n, 2)
    m.segment(L.SEG_TR, TSS_SEL, BigInt(tss), 0x300, 0x8b)
    m.set64(L.CPU_CR4, 1n)
    const frame = [0x100, 0x1000, 0x20202, 0x800, 0x2000, 0, 0, 0, 0]
    m.setReg(4, 0x7000n)
    frame.forEach((v, i) => m.poke(0x7000 + i * 4, BigInt(v), 4))
    m.code([0xcd, 0x21], 0x10100)
    m.code([0xcf])
    m.changed()
    m.run(1)
    assert.is(m.cpl, 3)
    map(absent, 6)
    m.run(1)
    assert.is(Number(m.rip), STUBS + 14 * 16 + 1, `page ${absent.toString(16)}`)
    assert.is(Number(m.u64(L.CPU_CR2)) >> 12, absent)
    assert.equal([m.frame(0) & 5, m.frame(1), m.frame(4), m.frame(5)], [0, 0x100, 0x800, 0x2000])
  }
})

test('INS into a page that faults: RCX and RDI stay, and the element is read again', () => {
  for (const mode of ['protected', 'long'] as const)
    for (const code of [[0x6c], [0xf3, 0x6c], [0xf3, 0x6d]]) {
      const m = new Machine(mode, true)
      const map = paged(m)
      m.setReg(1, 3n)
      m.setReg(2, 0x71n)
      m.setReg(7, 0x30000n)
      map(0x30, 6)
      m.code([...code, HLT])
      call(m.core, 'vcpuRun', m.s, 1n)
      // The port is KVM's or the VMM's: complete the read of the VMM.
      const run = m.s + L.VCPU_RUN
      if (m.core.view.getUint32(run + 8, true) === 2) {
        m.core.bytes.fill(0x5a, m.s + L.VCPU_PIO, m.s + L.VCPU_PIO + 16)
        call(m.core, 'vcpuRun', m.s, 2n)
      }
      const label = `${mode}: ${code.join()}`
      assert.is(Number(m.u64(L.CPU_CR2)), 0x30000, label)
      assert.equal([Number(m.reg(1)), Number(m.reg(7))], [3, 0x30000], label)
      assert.is(Number(m.rip) >> 4, (STUBS + 14 * 16) >> 4, label)
      assert.is(m.frame(1), CODE, label)
    }
})

test('RDMSR and WRMSR carry all 64 bits, MOVDIRI stores four or eight bytes', () => {
  const m = new Machine('long')
  m.everyFeature()
  // wrmsr; xor eax,eax; xor edx,edx; rdmsr; hlt
  for (let bit = 0; bit < 32; bit++)
    for (const high of [0n, 0xffff_ffffn]) {
      const low = 1n << BigInt(bit)
      m.set32(L.CPU_HALTED, 0)
      m.set64(L.CPU_RIP, BigInt(CODE))
      // IA32_TSC_AUX has 32 bits, KERNEL_GS_BASE 64 that are canonical.
      for (const [register, value] of [
        [1, 0xc0000102n],
        [0, low],
        [2, high && 0xffff_8000n],
      ] as const)
        m.setReg(register, value)
      assert.is(m.exec([0x0f, 0x30, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x32, HLT]), -1)
      assert.equal([m.reg(0), m.reg(2)], [low, high && 0xffff_8000n])
    }
  for (const [code, stored] of [
    [[0x0f, 0x38, 0xf9, 0x06], 0xffff_ffff_89ab_cdefn],
    [[0x48, 0x0f, 0x38, 0xf9, 0x06], 0x0123_4567_89ab_cdefn],
  ] as const) {
    m.set32(L.CPU_HALTED, 0)
    m.set64(L.CPU_RIP, BigInt(CODE))
    m.setReg(0, 0x0123_4567_89ab_cdefn)
    m.setReg(6, 0x30000n)
    m.poke(0x30000, 0xffff_ffff_ffff_ffffn)
    assert.is(m.exec([...code, HLT]), -1)
    assert.is(m.peek(0x30000), stored)
  }
})

test('flat code checks limits, kinds and bases of whichever data segments are not flat', () => {
  const segments = [L.SEG_ES, L.SEG_SS, L.SEG_DS] as const
  const override = { [L.SEG_ES]: 0x26, [L.SEG_SS]: 0x36, [L.SEG_DS]: 0x3e }
  // Limit, attributes and base of what is not flat; what a load at 0x5000 and a store there do: -1 or the vector, and the base.
  for (const [name, limit, attrib, base, loads, stores] of [
    ['short', 0x5002, 0x493, 0, 13, 13],
    ['just long enough', 0x5003, 0x493, 0, -1, -1],
    ['read-only', 0xffffffff, 0xc91, 0, -1, 13],
    ['expand-down', 0x5000, 0xc97, 0, 13, 13],
    ['with a base', 0xffffffff, 0xc93, 0x1000, -1, -1],
    ['null', 0, 0x8000, 0, 13, 13],
  ] as const)
    for (let which = 1; which < 8; which++)
      for (const n of segments)
        for (const store of [false, true]) {
          const m = new Machine('protected')
          m.poke(0x5000, 0x11111111n, 4)
          m.poke(0x6000, 0x22222222n, 4)
          segments.forEach((x, i) => {
            if ((which >> i) & 1) m.segment(x, x === L.SEG_SS ? KDATA : 0x80, BigInt(base), limit, attrib)
          })
          // Handlers need a stack: events go through a task of their own.
          m.poke(GDT + 0x88, descriptor(0x7000, 0x67, 0x089))
          for (const [at, v] of [
            [0x20, STUBS + 0xf80],
            [0x24, 2],
            [0x38, 0x28000],
            [0x4c, KCODE],
            ...[0x48, 0x50, 0x54, 0x58, 0x5c].map((a) => [a, KDATA] as const),
          ] as const)
            m.poke(0x7000 + at, BigInt(v), 4)
          for (const v of [12, 13]) m.idt(v, 0x0000_8500_0088_0000n)
          m.changed()
          m.setReg(0, 0x33333333n)
          m.code([override[n] as number, store ? 0x89 : 0x8b, 0x05, 0x00, 0x50, 0, 0, HLT])
          m.run(3)
          const bad = ((which >> segments.indexOf(n)) & 1) !== 0 ? (store ? stores : loads) : -1
          const label = `${name}, ${which}, segment ${n}, ${store ? 'store' : 'load'}`
          assert.is(m.selector(L.SEG_TR) === 0x88, bad >= 0, label)
          if (bad >= 0) continue
          assert.is(Number(m.rip), CODE + 8, label)
          const at = ((which >> segments.indexOf(n)) & 1) !== 0 && base ? 0x6000 : 0x5000
          if (store) assert.is(Number(m.peek(at, 4)), 0x33333333, label)
          else assert.is(Number(m.reg(0)), at === 0x6000 ? 0x22222222 : 0x11111111, label)
        }
})

test('LAR and LSL by descriptor type: the 286 types end with long mode', () => {
  const known = {
    protected: { lar: [1, 2, 3, 4, 5, 9, 11, 12], lsl: [1, 2, 3, 9, 11] },
    long: { lar: [2, 9, 11, 12], lsl: [2, 9, 11] },
  }
  for (const mode of ['protected', 'long'] as const)
    for (let type = 0; type < 32; type++)
      for (const [name, opcode] of [
        ['lar', 2],
        ['lsl', 3],
      ] as const) {
        const m = new Machine(mode)
        m.poke(GDT + 0x110, descriptor(0, 0x123, 0x080 | type))
        m.poke(GDT + 0x118, 0n)
        m.setReg(0, 0x110n)
        m.setReg(1, 0x7777n)
        m.code([0x0f, opcode, 0xc8, HLT])
        m.run(10)
        const valid = type >= 16 || known[mode][name].includes(type)
        const label = `${mode}: ${name} of type ${type}`
        assert.is((m.flags & 0x40n) !== 0n, valid, label)
        assert.is(Number(m.reg(1)), valid ? (name === 'lar' ? 0x8000 | (type << 8) : 0x123) : 0x7777, label)
      }
})

test('null SS in 64-bit code keeps the level', () => {
  for (const cpl of [0, 1, 2]) {
    const m = new Machine('long')
    m.segment(L.SEG_CS, KCODE64 | cpl, 0n, 0xffffffff, 0xa9b | (cpl << 5))
    m.set32(L.CPU_CPL, cpl)
    m.changed()
    m.setReg(0, BigInt(cpl))
    m.code([0x8e, 0xd0, 0x90])
    m.run(2)
    assert.equal([Number(m.rip), m.selector(L.SEG_SS), m.attrib(L.SEG_SS)], [CODE + 3, cpl, 0x8000 | (cpl << 5)])
  }
})

test('an INT without TF cancels no single step that begins later', () => {
  const m = new Machine('long')
  m.idt(0x40, gate(KCODE64, 0x11000, 0x8e))
  m.code([0x48, 0xcf], 0x11000)
  // int 0x40; push 0x102; popfq; nop; nop
  assert.is(m.exec([0xcd, 0x40, 0x68, 2, 1, 0, 0, 0x9d, 0x90, 0x90, HLT]), 1)
  assert.is(m.frame(0), CODE + 9)
})

test('code across a page edge, after code that was decoded later', () => {
  for (let offset = -15; offset <= 2; offset++) {
    const m = new Machine('long')
    const at = CODE + 0x1000 + offset
    const other = CODE + 0x3000
    const jump = (from: number, to: number): number[] => [0xe9, ...[0, 8, 16, 24].map((x) => ((to - from - 5) >> x) & 255)]
    // add eax,0x11223344; add ebx,0x01020304; jmp other | add ecx,1; dec edx; jz end; jmp at
    m.code([0x05, 0x44, 0x33, 0x22, 0x11, 0x81, 0xc3, 4, 3, 2, 1, ...jump(at + 11, other)], at)
    m.code([0x83, 0xc1, 1, 0xff, 0xca, 0x74, 5, ...jump(other + 7, at), HLT], other)
    for (let n = 0; n < 4; n++) m.setReg(n, 0n)
    m.setReg(2, 5n)
    m.set64(L.CPU_RIP, BigInt(at))
    m.run(200)
    assert.equal([m.reg(0), m.reg(3), m.reg(1)], [0x55ab0054n, 0x050a0f14n, 5n], `offset ${offset}`)
    assert.is(Number(m.rip), other + 13)
  }
})

test('INS and OUTS with 16-bit addresses leave the upper halves of their registers', () => {
  for (const [code, index] of [
    [[0xf3, 0x6c], 7],
    [[0xf3, 0x6e], 6],
    [[0x6d], 7],
    [[0x67, 0xf3, 0x6c], 7],
  ] as const) {
    const m = new Machine('real', true)
    const wide = code[0] === 0x67
    const upper = wide ? 0n : 0xabcd0000n
    m.segment(L.SEG_ES, 0, 0n, 0xffff, 0x93)
    m.setReg(1, upper | 2n)
    m.setReg(2, 0x21n)
    m.setReg(index, upper | 0x5000n)
    m.code([...code, HLT])
    for (let i = 0; i < 10 && m.rip !== BigInt(code.length + 1); i++) call(m.core, 'vcpuRun', m.s, 20n)
    const repeated = code.length > 1
    assert.equal([m.reg(1), m.reg(index)], [upper | (repeated ? 0n : 2n), upper | 0x5002n], code.join())
  }
})

test('a vCPU that goes is taken off the list that flushes reach, and no other', () => {
  for (const gone of [0, 1, 2]) {
    const m = new Machine('long')
    const list = (): number[] =>
      Array.from({ length: m.core.view.getUint32(L.GLOBAL + L.GLOBAL_VCPU_COUNT, true) }, (_, i) =>
        m.core.view.getUint32(L.GLOBAL + L.GLOBAL_VCPUS + i * 4, true),
      )
    const all = [m.s, call(m.core, 'vcpuCreate', m.vm, 1), call(m.core, 'vcpuCreate', m.vm, 2)]
    assert.equal(list(), all)
    call(m.core, 'vcpuUnregister', all[gone] as number)
    assert.equal(list().toSorted(), all.filter((_, i) => i !== gone).toSorted())
    call(m.core, 'vcpuUnregister', all[gone] as number)
    assert.is(list().length, 2, 'once')
  }
})

test.run()
