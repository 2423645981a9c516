/**
 * The same guest stopped at every budget N = 1..5000 shows the state that single-stepping shows, and going on from there leads to
 * the same end. The guests are tests/guests/budget.S: real mode, protected mode with paging and CPL 3, long mode with page
 * faults, stores into code and the trap flag, long mode under two timers' interrupts.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call } from '../support/core.ts'
import { gate, KCODE, KCODE64, L, Machine, PML4, STUBS, type Mode } from '../system/machine.ts'

const STEPS = 5000
const BASE = 0x10000
const TABLE = 0x60000
const image = new Uint8Array(readFileSync(new URL('../../../tests/guests/budget.bin', import.meta.url)))
const word = (i: number): number => new DataView(image.buffer).getUint32(i * 4, true)

const RAM_PAGES = 1024
/** Fields of the vCPU that say where its caches are, not what it is. */
const cached = [L.CPU_JUMP_KEY, L.CPU_BLOCKS_TOP, L.CPU_TLB_CONTEXT, L.CPU_TLB_BASE]

class Runner {
  readonly m: Machine
  readonly start: bigint
  readonly #cpu: Uint8Array
  readonly #chip: Uint8Array
  readonly #ram: Uint8Array[] = []
  /** Pages that the guest changes: state() looks at them, reset() restores them. */
  pages: number[] = []
  readonly #chipAt: number

  constructor(mode: Mode, row: number, chips: boolean) {
    this.m = new Machine(mode, chips)
    const { m } = this
    const { core, s } = m
    for (let at = 0; at < image.length; at += 4096) this.#write((BASE + at) >> 12, image.subarray(at, at + 4096))
    if (mode === 'real') {
      m.segment(L.SEG_SS, 0x2000, 0x20000n, 0xffff, 0x93)
      m.setReg(4, 0x8000n)
      m.poke(0, BigInt(word(row + 1) - BASE) | 0x10000000n, 4)
      m.poke(0x21 * 4, BigInt(word(row + 2) - BASE) | 0x10000000n, 4)
      m.set64(L.CPU_RIP, BigInt(word(row) - BASE))
    } else {
      const long = mode === 'long'
      const code = long ? KCODE64 : KCODE
      m.idt(14, gate(code, word(row + 1), 0x8e))
      m.idt(0x80, gate(code, word(row + 2), 0xee))
      m.idt(0, gate(code, word(row + 3), 0x8e))
      if (long) {
        m.idt(1, gate(code, word(15), 0x8e))
        for (let i = 0; i < 512; i++) m.poke(TABLE + i * 8, BigInt(i * 4096) | (i >= 0x100 && i < 0x109 ? 6n : 7n))
        m.poke(PML4 + 0x2000, BigInt(TABLE) | 7n)
        // The local APIC's page: the fourth gigabyte begins with it (a 2 MiB page).
        m.poke(PML4 + 0x1018, BigInt(PML4 + 0x3000) | 7n)
        m.poke(PML4 + 0x3000 + 0x1f7 * 8, 0xfee00097n)
        m.set64(L.CPU_CR4, m.u64(L.CPU_CR4) | 0x600n)
      } else {
        for (let i = 0; i < 1024; i++) m.poke(TABLE + i * 4, BigInt(i * 4096) | (i >= 0x100 && i < 0x109 ? 6n : 7n), 4)
        m.poke(0x43000, BigInt(TABLE) | 7n, 4)
        m.set64(L.CPU_CR3, 0x43000n)
        m.set64(L.CPU_CR0, 0x80000011n)
      }
      if (chips) {
        m.idt(0x40, gate(code, word(row + 1), 0x8e))
        m.idt(0x20, gate(code, word(row + 2), 0x8e))
        m.idt(14, gate(code, word(9), 0x8e))
      }
      m.setReg(4, 0x28000n)
      m.set64(L.CPU_RIP, BigInt(word(row)))
    }
    m.changed()
    this.#chipAt = core.view.getUint32(m.vm + L.VM_KVM_STATE, true)
    this.start = m.u64(L.CPU_ICOUNT)
    this.#cpu = core.bytes.slice(s, s + L.VCPU_LAPIC + L.SIZEOF_LAPIC)
    this.#chip = core.bytes.slice(this.#chipAt, this.#chipAt + L.SIZEOF_CHIP)
    for (let page = 0; page < RAM_PAGES; page++) this.#ram.push(this.#read(page).slice())
  }

  #read(page: number): Uint8Array {
    call(this.m.core, 'backingRead', this.m.backing, BigInt(page) << 12n, L.STAGING, 4096)
    return this.m.core.bytes.subarray(L.STAGING, L.STAGING + 4096)
  }
  #write(page: number, bytes: Uint8Array): void {
    this.m.core.bytes.set(bytes, L.STAGING)
    call(this.m.core, 'backingWrite', this.m.backing, BigInt(page) << 12n, L.STAGING, 4096)
  }

  /** Back to the beginning; decoded blocks stay wherever the code is what it was. */
  reset(): void {
    const { core, s, vm } = this.m
    const { view, bytes } = core
    const keep = cached.map((field) => view.getUint32(s + field, true))
    bytes.set(this.#cpu, s)
    cached.forEach((field, i) => view.setUint32(s + field, keep[i] ?? 0, true))
    bytes.fill(0, s + L.VCPU_KVM, s + L.VCPU_KVM + L.SIZEOF_VKVM)
    bytes.set(this.#chip, this.#chipAt)
    view.setBigUint64(vm + L.VM_CLOCK, 0n, true)
    for (const page of this.pages) {
      const was = this.#ram[page] as Uint8Array
      if (Buffer.compare(this.#read(page), was) !== 0) this.#write(page, was)
    }
    call(core, 'flushTlb', s)
    this.m.changed()
  }

  /** Runs until `n` instructions in all have retired. */
  to(n: number): void {
    const { m } = this
    const end = this.start + BigInt(n)
    for (let calls = 0; m.u64(L.CPU_ICOUNT) < end; calls++) {
      assert.ok(calls < 100, `stuck at ${m.rip.toString(16)} before ${n}, exit ${m.u32(L.VCPU_RUN + 8)}`)
      call(m.core, 'vcpuRun', m.s, end - m.u64(L.CPU_ICOUNT))
    }
    assert.is(m.u64(L.CPU_ICOUNT), end, `${n} instructions`)
  }

  /** Pages that are not what they were at first. */
  changed(): number[] {
    const differs = (page: number): boolean => Buffer.compare(this.#read(page), this.#ram[page] as Uint8Array) !== 0
    return Array.from({ length: RAM_PAGES }, (_, page) => page).filter(differs)
  }

  /** Registers, segments, control registers, x87 and XMM state, what is pending, and memory. */
  state(): string {
    const { m } = this
    const { bytes } = m.core
    const hash = createHash('sha1')
    const field = (from: number, size: number): void => void hash.update(bytes.subarray(m.s + from, m.s + from + size))
    hash.update(String(m.flags))
    field(L.CPU_GPR, 128)
    field(L.CPU_RIP, 8)
    field(L.CPU_INTERRUPT_SHADOW, 12)
    field(L.CPU_SEGMENTS, 160)
    field(L.CPU_CR0, 40)
    field(L.CPU_DR6, 12)
    field(L.CPU_PENDING_DB, 4)
    field(L.CPU_FCW, 16)
    field(L.CPU_ST, 0xe00 - L.CPU_ST)
    field(L.VCPU_LAPIC, L.SIZEOF_LAPIC)
    for (const page of this.pages) hash.update(this.#read(page))
    return hash.digest('base64')
  }
}

/** Enough to find what differs. */
function show(m: Machine): string {
  const regs = Array.from({ length: 16 }, (_, n) => m.reg(n).toString(16)).join(' ')
  return `rip ${m.rip.toString(16)} cpl ${m.cpl} flags ${m.flags.toString(16)} shadow ${m.u32(L.CPU_INTERRUPT_SHADOW)} regs ${regs}`
}

function compare(mode: Mode, row: number, chips: boolean): Runner {
  const scout = new Runner(mode, row, chips)
  scout.to(STEPS / 2)
  const pages = new Set([0x43, 0x60, ...scout.changed()])
  scout.to(STEPS)
  for (const page of scout.changed()) pages.add(page)
  const stepped = new Runner(mode, row, chips)
  stepped.pages = [...pages]
  const expected: string[] = []
  const text: string[] = []
  for (let n = 1; n <= STEPS; n++) {
    stepped.to(n)
    expected.push(stepped.state())
    text.push(show(stepped.m))
  }
  assert.equal(
    stepped.changed().filter((page) => !pages.has(page)),
    [],
    'pages that only single-stepping changes',
  )
  const r = new Runner(mode, row, chips)
  r.pages = stepped.pages
  for (let n = 1; n <= STEPS; n++) {
    r.reset()
    r.to(n)
    if (r.state() !== expected[n - 1]) assert.unreachable(`budget ${n}: ${show(r.m)}\n  stepped: ${text[n - 1]}`)
    if (n % 16 === 0) {
      r.to(STEPS)
      assert.is(r.state(), expected[STEPS - 1], `stopped once at ${n}`)
    }
  }
  // No vector without a handler: their stubs halt.
  assert.ok(!(stepped.m.rip >= BigInt(STUBS) && stepped.m.rip < BigInt(STUBS + 0x1000)), 'ended in a stub')
  return r
}

test('real mode', () => {
  compare('real', 0, false)
})
test('protected mode, paging, CPL 3', () => {
  compare('protected', 4, false)
})
test('long mode, page faults, stores into code, trap flag, CPL 3', () => {
  const { m } = compare('long', 8, false)
  assert.ok(m.reg(15) > 100n, `${m.reg(15)} single-step traps`)
})
test('long mode, interrupts of the local APIC and of the PIT', () => {
  const { m } = compare('long', 12, true)
  assert.ok(m.reg(15) > 20n, `${m.reg(15)} of the APIC timer`)
  assert.ok(m.reg(13) > 0n, `${m.reg(13)} of the PIT`)
})

test.run()
