/** Self-modifying code: whoever changes bytes that were executed, the next execution sees them. Every case first runs the old code. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { CODE, Machine, PML4 } from '../system/machine.ts'

const HLT = 0xf4
const MOV_AL = 0xb0
const RET = 0xc3
/** A function in a page of its own: mov al, n; ret. */
const FUNCTION = 0x14000
/** Page tables that a case may add. */
const TABLE = 0x60000

const le = (value: number, n: number): number[] => Array.from({ length: n }, (_, i) => (value >>> (8 * i)) & 0xff)
/** mov ebx, imm32; call rbx. */
const callTo = (at: number): number[] => [0xbb, ...le(at, 4), 0xff, 0xd3]

function go(m: Machine, at = CODE): number {
  m.set64(L.CPU_RIP, BigInt(at))
  m.set32(L.CPU_HALTED, 0)
  m.setReg(4, 0x20000n)
  m.run(1000)
  return Number(m.reg(0) & 0xffn)
}

/** Runs `mov al, 0x11` at FUNCTION until it is warm, then lets `change` work, then runs again. */
function twice(change: (m: Machine) => void, before: (m: Machine) => void = () => {}, at = FUNCTION): number {
  const m = new Machine('long')
  before(m)
  m.code([MOV_AL, 0x11, RET], at)
  m.code([...callTo(at), ...callTo(at), HLT])
  for (let i = 0; i < 5; i++) assert.is(go(m), 0x11)
  change(m)
  return go(m)
}

/** Splits the first 2 MiB into 4 KiB pages and maps VA page 0x300000 + i*4096 (present, writable) as `alias` says. */
function smallPages(m: Machine, alias: readonly number[] = []): void {
  for (let i = 0; i < 512; i++) m.poke(TABLE + i * 8, BigInt(i * 4096) | 7n)
  for (let i = 0; i < 512; i++) m.poke(TABLE + 0x1000 + i * 8, BigInt(alias[i] ?? 0x300000 + i * 4096) | 7n)
  m.poke(PML4 + 0x2000, BigInt(TABLE) | 7n)
  m.poke(PML4 + 0x2008, 0n)
  // 0x200000-0x3fffff: the upper half is what `alias` is about.
  const upper = Array.from({ length: 512 }, (_, i) => (i < 256 ? 0x200000 + i * 4096 : (alias[i - 256] ?? 0x200000 + i * 4096)))
  upper.forEach((gpa, i) => m.poke(TABLE + 0x1000 + i * 8, BigInt(gpa) | 7n))
  m.poke(PML4 + 0x2008, BigInt(TABLE + 0x1000) | 7n)
}

/** mov byte [at], value; hlt - run at CODE + 0x1000. */
function storeByGuest(m: Machine, at: number, value: number): void {
  m.code([0xc6, 0x04, 0x25, ...le(at, 4), value, HLT], CODE + 0x1000)
  go(m, CODE + 0x1000)
}

test('the next instruction, at every distance within 20 bytes', () => {
  for (let gap = 0; gap < 20; gap++) {
    const m = new Machine('long')
    // mov byte [rbx], 0x42; nops; mov al, 0x11
    m.code([0xc6, 0x03, 0x42, ...Array.from({ length: gap }, () => 0x90), MOV_AL, 0x11, HLT])
    for (let i = 0; i < 3; i++) {
      m.poke(CODE + 4 + gap, 0x11n, 1)
      m.setReg(3, BigInt(CODE + 4 + gap))
      assert.is(go(m), 0x42, `gap ${gap}, pass ${i}`)
    }
  }
})

test('a loop that patches its own operand in every turn', () => {
  const m = new Machine('long')
  // xor edx,edx; mov ecx,100; l: mov [rbx],cl; mov al,0; movzx eax,al; add edx,eax; dec ecx; jnz l; mov eax,edx; hlt
  m.code([0x31, 0xd2, 0xb9, 100, 0, 0, 0, 0x88, 0x0b, MOV_AL, 0, 0x0f, 0xb6, 0xc0, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xf3, 0x89, 0xd0, HLT])
  m.setReg(3, BigInt(CODE + 10))
  go(m)
  assert.is(m.reg(0), 5050n)
})

test('another page, by every kind of store', () => {
  const kinds: Record<string, number[]> = {
    'mov [rbx], cl': [0x88, 0x0b],
    'add byte [rbx], 0x31': [0x80, 0x03, 0x31],
    'lock xadd': [0xb1, 0x31, 0xf0, 0x0f, 0xc0, 0x0b],
    'xchg [rbx], cl': [0x86, 0x0b],
    'cmpxchg [rbx], cl': [MOV_AL, 0x11, 0x0f, 0xb0, 0x0b],
    stosb: [0x88, 0xc8, 0x48, 0x89, 0xdf, 0xaa],
    movsb: [0x48, 0x8d, 0x74, 0x24, 0xc0, 0x88, 0x0e, 0x48, 0x89, 0xdf, 0xa4],
    'rep movsb': [0x48, 0x8d, 0x74, 0x24, 0xc0, 0x88, 0x0e, 0x48, 0x89, 0xdf, 0xb9, 1, 0, 0, 0, 0xf3, 0xa4],
    'rep stosb': [0x88, 0xc8, 0x48, 0x89, 0xdf, 0xb9, 1, 0, 0, 0, 0xf3, 0xaa],
    'movd [rbx], xmm0': [0x8b, 0x03, 0x88, 0xc8, 0x66, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0x7e, 0x03],
    'bts word [rbx-1], 9..': [0x66, 0x81, 0x73, 0xff, 0x00, 0x53],
    setne: [0x30, 0xc0, 0x0f, 0x95, 0x03, 0x80, 0x03, 0x42],
    'not, neg': [0xf6, 0x13, 0xf6, 0x1b, 0x80, 0x03, 0x30],
    'rol twice': [0xc0, 0x03, 4, 0xc0, 0x03, 4, 0x80, 0x33, 0x53],
    fistp: [0xc6, 0x44, 0x24, 0xc0, 0x42, 0xc6, 0x44, 0x24, 0xc1, 0xc3, 0xdf, 0x44, 0x24, 0xc0, 0xdf, 0x1b],
  }
  for (const [name, bytes] of Object.entries(kinds)) {
    const got = twice((m) => {
      m.code([...bytes, HLT], CODE + 0x1000)
      m.setReg(0, 0x11n)
      m.setReg(1, 0x42n)
      m.setReg(3, BigInt(FUNCTION + 1))
      m.set64(L.CPU_CR4, m.u64(L.CPU_CR4) | 0x600n)
      m.changed()
      go(m, CODE + 0x1000)
    })
    assert.is(got, 0x42, name)
  }
})

test('an instruction that crosses a page edge: either side', () => {
  const edge = FUNCTION + 0xfff
  assert.is(
    twice((m) => storeByGuest(m, edge + 1, 0x42), undefined, edge),
    0x42,
    'second page',
  )
  // The first page: mov al -> mov cl; al keeps what the first call left... a `mov ah` would do as well: b0 -> b4
  const m = new Machine('long')
  m.code([MOV_AL, 0x11, RET], edge)
  m.code([0x31, 0xc0, ...callTo(edge), HLT])
  for (let i = 0; i < 5; i++) assert.is(go(m), 0x11)
  storeByGuest(m, edge, 0xb4)
  assert.is(go(m), 0)
  assert.is(m.reg(0), 0x1100n, 'first page')
})

test('a store that crosses a page edge into code', () => {
  const got = twice((m) => {
    // mov rax, [source]; mov [FUNCTION - 7], rax: its last byte is the first of the page, next store covers 1
    m.code([0x48, 0x89, 0x03, HLT], CODE + 0x1000)
    m.setReg(0, 0x42b0_0000_0000_0000n)
    m.setReg(3, BigInt(FUNCTION - 6))
    go(m, CODE + 0x1000)
  })
  assert.is(got, 0x42)
})

test('through an alias mapping: store by the alias, execute by both', () => {
  const alias = [FUNCTION]
  assert.is(
    twice(
      (m) => storeByGuest(m, 0x300001, 0x42),
      (m) => smallPages(m, alias),
    ),
    0x42,
    'executed at its own address',
  )
  const m = new Machine('long')
  smallPages(m, alias)
  m.changed()
  m.code([MOV_AL, 0x11, RET], FUNCTION)
  m.code([...callTo(0x300000), ...callTo(FUNCTION), HLT])
  for (let i = 0; i < 5; i++) assert.is(go(m), 0x11)
  storeByGuest(m, FUNCTION + 1, 0x42)
  m.code([...callTo(0x300000), HLT])
  assert.is(go(m), 0x42, 'executed at the alias')
})

test('by DMA and by the host mapping of the backing', () => {
  assert.is(
    twice((m) => m.poke(FUNCTION + 1, 0x42n, 1)),
    0x42,
    'one byte',
  )
  assert.is(
    twice((m) => {
      const page = new Uint8Array(4096).fill(0x90)
      page.set([MOV_AL, 0x42, RET])
      m.core.bytes.set(page, L.STAGING)
      call(m.core, 'backingWrite', m.backing, BigInt(FUNCTION), L.STAGING, 4096)
    }),
    0x42,
    'a whole page',
  )
  assert.is(
    twice((m) => {
      m.core.bytes.set([0, MOV_AL, 0x42, RET], L.STAGING)
      call(m.core, 'backingWrite', m.backing, BigInt(FUNCTION + 0xfff - 4096), L.STAGING, 4)
    }),
    0x42,
    'from the page before',
  )
})

test('a page remapped to equal and to different code', () => {
  const OTHER = 0x16000
  const SAME = 0x17000
  const remap = (to: number, flush: (m: Machine) => void) =>
    twice(
      (m) => {
        m.code([MOV_AL, 0x42, RET], OTHER)
        m.code([MOV_AL, 0x11, RET], SAME)
        m.poke(TABLE + (FUNCTION >> 12) * 8, BigInt(to) | 7n)
        flush(m)
      },
      (m) => {
        smallPages(m)
        m.changed()
      },
    )
  const invlpg = (m: Machine): void => {
    m.code([0x0f, 0x01, 0x3c, 0x25, ...le(FUNCTION, 4), HLT], CODE + 0x1000)
    go(m, CODE + 0x1000)
  }
  const cr3 = (m: Machine): void => {
    m.code([0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, HLT], CODE + 0x1000)
    go(m, CODE + 0x1000)
  }
  for (const flush of [invlpg, cr3]) {
    assert.is(remap(OTHER, flush), 0x42, 'different code')
    assert.is(remap(SAME, flush), 0x11, 'equal code')
  }
  // Back again: the first page's blocks must still be right, and what was stored meanwhile seen.
  const m = new Machine('long')
  smallPages(m)
  m.changed()
  m.code([MOV_AL, 0x11, RET], FUNCTION)
  m.code([MOV_AL, 0x42, RET], OTHER)
  m.code([...callTo(FUNCTION), HLT])
  for (let i = 0; i < 6; i++) {
    m.poke(TABLE + (FUNCTION >> 12) * 8, BigInt(i % 2 ? OTHER : FUNCTION) | 7n)
    invlpg(m)
    assert.is(go(m), i % 2 ? 0x42 : 0x11 + (i >> 1), `turn ${i}`)
    if (i % 2) m.poke(FUNCTION + 1, BigInt(0x12 + (i >> 1)), 1)
  }
})

test('code moved away by its memory slot, and back', () => {
  const m = new Machine('long')
  const other = call(m.core, 'backingCreate', 1024)
  m.core.bytes.set([MOV_AL, 0x42, RET], L.STAGING)
  call(m.core, 'backingWrite', other, 0n, L.STAGING, 3)
  const AT = 0x500000
  // 4-6 MiB are beyond the four large pages of the machine: map them.
  for (let i = 0; i < 4; i++) m.poke(PML4 + 0x2010 + i * 8, BigInt(0x400000 + i * 0x200000) | 0x87n)
  const slot = (backing: number, size: bigint, pages: number): void =>
    assert.is(call(m.core, 'slotSet', m.vm, 1, BigInt(AT), size, 0, backing, pages) | 0, 0)
  const low = call(m.core, 'backingCreate', 16)
  m.core.bytes.set([MOV_AL, 0x11, RET], L.STAGING)
  call(m.core, 'backingWrite', low, 0n, L.STAGING, 3)
  m.poke(PML4 + 0x2000 + 2 * 8, 0x400087n)
  m.code([...callTo(AT), HLT])
  for (let i = 0; i < 6; i++) {
    if (i > 0) slot(low, 0n, 0)
    slot(i % 2 ? other : low, 0x10000n, 0)
    assert.is(go(m), i % 2 ? 0x42 : 0x11, `turn ${i}`)
  }
})

test.run()
