/** Accesses beyond the plain hit: page crossings, slots, dirty log, pages with code, the size budget. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { bareMachine, call, call64, frameOf, L, loadCore, type Bare } from '../support/core.ts'

const test = suite('memory access')
const OP = 0x8000

function machine(pages = 64, limit = 0): Bare {
  const m = bareMachine(pages, limit)
  m.core.view.setUint8(OP + L.OP_SEG, L.SEG_DS)
  return m
}

const leave = (m: Bare): number => m.core.view.getUint32(m.s + L.CPU_LEAVE, true)

/** Identity 4-level mapping of the first 2 MiB by 4 KiB pages, tables at 0x1000..0x4000. */
function paged(m: Bare): void {
  const { core, s } = m
  const poke = (at: number, value: bigint): void => {
    core.view.setBigUint64(L.STAGING, value, true)
    call(core, 'backingWrite', m.backing, BigInt(at), L.STAGING, 8)
  }
  for (let i = 1; i < 4; i++) poke(i * 0x1000, BigInt((i + 1) * 0x1000 + 7))
  for (let i = 0; i < 64; i++) poke(0x4000 + i * 8, BigInt(i * 4096 + 7))
  core.view.setBigUint64(s + L.CPU_CR0, 0x80010001n, true)
  core.view.setBigUint64(s + L.CPU_CR4, 0x20n, true)
  core.view.setBigUint64(s + L.CPU_EFER, 0x500n, true)
  core.view.setBigUint64(s + L.CPU_CR3, 0x1000n, true)
  call(core, 'flushTlb', s)
}

test('an access that crosses into a page that faults writes nothing', () => {
  const m = machine()
  paged(m)
  const { core, s } = m
  core.view.setBigUint64(L.STAGING, 0n, true)
  call(core, 'backingWrite', m.backing, BigInt(0x4000 + 9 * 8), L.STAGING, 8) // page 9 is not present
  assert.is(call(core, 'writeMem', s, OP, 0x8ffcn, 8, 0x1122334455667788n), L.LEAVE_FAULT)
  assert.is(leave(m), L.LEAVE_FAULT)
  core.view.setUint32(s + L.CPU_LEAVE, 0, true)
  assert.is(call64(core, 'readMem', s, OP, 0x8ffcn, 4), 0n)
  assert.is(call(core, 'modifyMem', s, OP, 0x8ffdn, 4), 0)
  core.view.setUint32(s + L.CPU_LEAVE, 0, true)
  core.view.setBigUint64(L.STAGING, BigInt(9 * 4096 + 7), true)
  call(core, 'backingWrite', m.backing, BigInt(0x4000 + 9 * 8), L.STAGING, 8)
  assert.is(call(core, 'writeMem', s, OP, 0x8ffcn, 8, 0x1122334455667788n), 0)
  assert.is(call64(core, 'readMem', s, OP, 0x8ffcn, 8), 0x1122334455667788n)
  assert.is(call64(core, 'readMem', s, OP, 0x9000n, 4), 0x11223344n)
  assert.is(call64(core, 'readMem', s, OP, 0x8fffn, 2), 0x4455n)
  const p = call(core, 'modifyMem', s, OP, 0x8ffen, 4)
  assert.is(p, s + L.CPU_SCRATCH)
  assert.is(core.view.getUint32(p, true), 0x33445566)
  core.view.setUint32(p, 0xdeadbeef, true)
  assert.is(call(core, 'commitModify', s, OP), 0)
  assert.is(call64(core, 'readMem', s, OP, 0x8ffen, 4), 0xdeadbeefn)
})

test('64 bytes cross a page', () => {
  const m = machine()
  const data = Uint8Array.from({ length: 64 }, (_, i) => i + 1)
  m.core.bytes.set(data, L.STAGING)
  assert.is(call(m.core, 'writeBytes', m.s, OP, 0x5fe1n, L.STAGING, 64), 0)
  m.core.bytes.fill(0, L.STAGING, L.STAGING + 64)
  assert.is(call(m.core, 'readBytes', m.s, OP, 0x5fe1n, L.STAGING, 64), 0)
  assert.equal(m.core.bytes.slice(L.STAGING, L.STAGING + 64), data)
})

test('linear addresses wrap at 4 GiB outside of long mode', () => {
  const m = machine()
  const top = call(m.core, 'backingCreate', 1)
  assert.is(call(m.core, 'slotSet', m.vm, 1, 0xfffff000n, 4096n, 0, top, 0), 0)
  assert.is(call(m.core, 'writeMem', m.s, OP, 0xfffffffen, 4, 0x44332211n), 0)
  assert.is(call64(m.core, 'readMem', m.s, OP, 0n, 2), 0x4433n)
  assert.is(call64(m.core, 'readMem', m.s, OP, 0xfffffffen, 2), 0x2211n)
})

test('slots: creation, overlap, deletion, and several per 2 MiB', () => {
  const m = machine(16)
  const { core, vm } = m
  const b = call(core, 'backingCreate', 1024)
  const set = (id: number, gpa: bigint, size: bigint, flags = 0, offset = 0): number =>
    call(core, 'slotSet', vm, id, gpa, size, flags, b, offset) | 0
  assert.is(set(1, 0x8000n, 0x1000n), -17, 'overlap')
  assert.is(set(1, 0x10800n, 0x1000n), -22, 'alignment')
  assert.is(set(1, 0x10000n, 0x401000n), -22, 'longer than its memory')
  assert.is(set(1, 0x10000n, 0x1000n, 8), -22, 'unknown flag')
  assert.is(set(1, 0xfffffffffffff000n, 0x2000n), -22, 'wraps')
  assert.is(set(9, 0x10000n, 0n), -22, 'deleting nothing')
  assert.is(set(1, 0x10000n, 0x1000n), 0)
  assert.is(set(2, 0x400000n, 0x200000n, 0, 512), 0)
  assert.is(set(3, 0x300000000n, 0x200000n), 0, 'above 8 GiB')
  const find = (gpa: bigint): number => {
    const slot = call(core, 'slotFind', vm, gpa)
    return slot === 0 ? -1 : core.view.getUint32(slot + L.SLOT_ID, true)
  }
  const where = (): number[] =>
    [0x0n, 0xffffn, 0x10000n, 0x10fffn, 0x11000n, 0x3fffffn, 0x400000n, 0x5fffffn, 0x600000n, 0x2ffffffffn, 0x300000000n, 0x300200000n].map(
      find,
    )
  assert.equal(where(), [0, 0, 1, 1, -1, -1, 2, 2, -1, -1, 3, -1])
  assert.is(set(2, 0x600000n, 0x200000n, 0, 512), 0, 'move')
  assert.equal(where(), [0, 0, 1, 1, -1, -1, -1, -1, 2, -1, 3, -1])
  assert.is(set(2, 0x600000n, 0x100000n, 0, 512), -22, 'resize')
  assert.is(set(2, 0x600000n, 0x200000n, 2, 512), -22, 'READONLY is fixed')
  assert.is(set(1, 0x10000n, 0n), 0)
  assert.is(find(0x10000n), -1)
})

test('a moved slot takes its bytes along, TLBs follow', () => {
  const m = machine(16)
  const b = call(m.core, 'backingCreate', 16)
  call(m.core, 'slotSet', m.vm, 1, 0x100000n, 0x10000n, 0, b, 0)
  assert.is(call(m.core, 'writeMem', m.s, OP, 0x100010n, 4, 0x55n), 0)
  call(m.core, 'slotSet', m.vm, 1, 0x200000n, 0x10000n, 0, b, 0)
  assert.is(call64(m.core, 'readMem', m.s, OP, 0x200010n, 4), 0x55n)
  assert.is(call(m.core, 'slotFind', m.vm, 0x100010n), 0)
})

test('dirty log: stores of guest, kernel and walker, each page once', () => {
  const m = machine(64)
  const { core, s, vm } = m
  paged(m)
  call(core, 'slotSet', vm, 0, 0n, 64n * 4096n, 1, m.backing, 0)
  const log = (): bigint => {
    assert.is(call(core, 'dirtyLog', vm, 0, L.STAGING, 0, 4096) | 0, 8)
    return core.view.getBigUint64(L.STAGING, true)
  }
  assert.is(log(), 0n)
  call64(core, 'readMem', s, OP, 0x9000n, 8)
  assert.is(log(), 0b11110n, 'accessed bits of the walk')
  call(core, 'writeMem', s, OP, 0x9000n, 8, 1n)
  call(core, 'writeMem', s, OP, 0x9008n, 8, 1n)
  call(core, 'writeMem', s, OP, 0xafffn, 2, 1n)
  assert.is(log(), 0b111000010000n)
  call(core, 'writeMem', s, OP, 0x9000n, 8, 1n)
  assert.is(log(), 0b001000000000n, 'D is set already')
  call64(core, 'readMem', s, OP, 0x9000n, 8)
  assert.is(log(), 0n)
  call(core, 'gpaWrite', vm, 0xcfffn, L.STAGING, 2)
  call(core, 'backingWrite', m.backing, 0xf000n, L.STAGING, 2)
  assert.is(log(), 0b11000000000000n, 'the kernel marks, the owner of the mapping does not')
  assert.is(call(core, 'dirtyLog', vm, 5, L.STAGING, 0, 4096) | 0, -2)
  call(core, 'slotSet', vm, 0, 0n, 64n * 4096n, 0, m.backing, 0)
  assert.is(call(core, 'dirtyLog', vm, 0, L.STAGING, 0, 4096) | 0, -2)
})

test('stores to code lines drop the code, stores beside them do not', () => {
  const m = machine()
  const { core, s } = m
  core.bytes.set([0x90, 0x90, 0xeb, 0xfe], L.STAGING)
  call(core, 'backingWrite', m.backing, 0x2080n, L.STAGING, 4)
  core.view.setUint32(s + L.CPU_SEGMENTS + L.SEG_CS * 16 + L.SEG_LIMIT, 0xffff, true)
  core.view.setBigUint64(s + L.CPU_RIP_MASK, 0xffffn, true)
  core.view.setBigUint64(s + L.CPU_RIP, 0x2080n, true)
  assert.is(call(core, 'writeMem', s, OP, 0x2100n, 4, 1n), 0)
  const entry = s + L.VCPU_TLB_SUPERVISOR + ((0x2000 >> 7) & 0x7fe0)
  assert.is(core.view.getBigUint64(entry + L.TLB_WRITE, true), 0x2000n)
  const block = call(core, 'lookup', s)
  assert.is.not(block, 0)
  const frame = frameOf(core.view, m.backing, 2)
  const mask = (): number => core.view.getUint32(L.FRAME_INFO + (frame >>> 12) * L.SIZEOF_FRAME + L.FRAME_CODE, true)
  assert.is(mask(), 2)
  assert.is(core.view.getBigUint64(entry + L.TLB_WRITE, true), 0xffffffffffffffffn, 'no write tag any more')
  const count = (): number => core.view.getUint32(block + L.BLOCK_COUNT, true)
  const n = count()
  assert.is(call(core, 'writeMem', s, OP, 0x2100n, 4, 2n), 0)
  assert.is(call(core, 'writeMem', s, OP, 0x207cn, 4, 2n), 0)
  assert.is(count(), n)
  assert.is(call(core, 'writeMem', s, OP, 0x207en, 4, 0x90909090n), 0)
  assert.is(mask(), 0)
  assert.is(count(), 0x7fffffff)
  assert.is.not(call(core, 'lookup', s), 0)
  call(core, 'backingWrite', m.backing, 0x2082n, L.STAGING, 1)
  assert.is(mask(), 0, 'host writes drop code as well')
  assert.is.not(call(core, 'lookup', s), 0)
  const p = call(core, 'modifyMem', s, OP, 0x2080n, 1)
  assert.is(p, s + L.CPU_SCRATCH)
  call(core, 'commitModify', s, OP)
  assert.is(mask(), 0, 'so do read-modify-writes')
})

test('guest touches beyond the budget stop the vCPU by name', () => {
  const limit = Math.ceil(L.HEAP / 65536) + 10 * 16 + 16
  const m = machine(2048, limit)
  let touched = 0
  for (let page = 0; page < 2048; page++, touched++) {
    if (call(m.core, 'writeMem', m.s, OP, BigInt(page * 4096), 4, 1n) !== 0) break
  }
  assert.ok(touched > 100 && touched < 300, `${touched} pages`)
  assert.is(leave(m), L.LEAVE_EXIT_RETRY)
  assert.is(m.core.view.getUint32(m.s + L.CPU_STOP_REASON, true), L.STOP_OUT_OF_MEMORY)
  assert.is(m.core.view.getBigUint64(m.s + L.CPU_STOP_DETAIL, true), BigInt(touched * 4096))
  assert.is(call(m.core, 'allocArena'), 0)
  assert.is(call(m.core, 'backingCreate', 1 << 20), 0)
  assert.is(call(m.core, 'backingWrite', m.backing, BigInt(touched * 4096), L.STAGING, 8) | 0, -12)
})

test('frames and runs are reused, and zero', () => {
  const core = loadCore(Math.ceil(L.HEAP / 65536) + 16)
  const seen = new Set<number>()
  for (let i = 0; i < 50; i++) {
    const run = call(core, 'allocPages', 64)
    assert.is.not(run, 0, `round ${i}`)
    assert.ok(core.bytes.subarray(run, run + 64 * 4096).every((x) => x === 0))
    core.bytes.fill(0xff, run, run + 64 * 4096)
    seen.add(run)
    call(core, 'freePages', run, 64)
    const f = call(core, 'frameAlloc')
    assert.ok(core.bytes.subarray(f, f + 4096).every((x) => x === 0))
    core.bytes.fill(0xff, f, f + 4096)
    call(core, 'frameFree', f)
  }
  assert.is(seen.size, 1)
})

test('the local APIC page lies over a slot, where IA32_APIC_BASE puts it', () => {
  const core = loadCore()
  core.view.setUint8(OP + L.OP_SEG, L.SEG_DS)
  const vm = call(core, 'vmCreate')
  call(core, 'createIrqchip', vm, 0)
  const s = call(core, 'vcpuCreate', vm, 0)
  const ram = call(core, 'backingCreate', 256)
  assert.is(call(core, 'slotSet', vm, 0, 0xfee00000n, 0x100000n, 0, ram, 0), 0)
  core.view.setBigUint64(L.STAGING, 0x1234567890abcdefn, true)
  call(core, 'backingWrite', ram, 0x30n, L.STAGING, 8)
  call(core, 'backingWrite', ram, 0x1030n, L.STAGING, 8)
  core.view.setUint8(OP + L.OP_SEG, L.SEG_DS)
  const read = (va: bigint): bigint => call64(core, 'readMem', s, OP, va, 4)
  assert.is(read(0xfee00030n) & 0xffn, 0x14n, 'version register')
  assert.is(read(0xfee01030n), 0x90abcdefn)
  core.view.setBigUint64(L.STAGING, 0xfee01900n, true)
  assert.is(call(core, 'msrSet', s, 0x1b), 1)
  assert.is(read(0xfee00030n), 0x90abcdefn)
  assert.is(read(0xfee01030n) & 0xffn, 0x14n)
})

test('addresses beyond 2 GiB', () => {
  const core = loadCore()
  core.view.setUint32(L.GLOBAL + L.GLOBAL_FRAME_TOP, 0xe0000000, true)
  const vm = call(core, 'vmCreate')
  assert.ok(vm >= 0xe0000000)
  const s = call(core, 'vcpuCreate', vm, 0)
  const backing = call(core, 'backingCreate', 64)
  assert.is(call(core, 'slotSet', vm, 0, 0n, 64n * 4096n, 0, backing, 0), 0)
  core.bytes.set([0xb8, 0x34, 0x12, 0xa3, 0x00, 0x30, 0xff, 0x06, 0x00, 0x30, 0xf4], L.STAGING) // mov ax; mov [3000h], ax; inc word [3000h]; hlt
  assert.is(call(core, 'backingWrite', backing, 0x2000n, L.STAGING, 16), 0)
  for (const n of [L.SEG_CS, L.SEG_DS]) {
    const at = s + L.CPU_SEGMENTS + n * 16
    core.view.setBigUint64(at + L.SEG_BASE, 0n, true)
    core.view.setUint16(at + L.SEG_SELECTOR, 0, true)
  }
  core.view.setBigUint64(s + L.CPU_RIP, 0x2000n, true)
  call(core, 'cpuModeChanged', s)
  core.view.setBigUint64(s + L.CPU_SLICE_END, 100n, true)
  core.view.setBigUint64(s + L.CPU_BUDGET, 100n, true)
  call(core, 'execute', s)
  assert.is(core.view.getBigUint64(s + L.CPU_RIP, true), 0x200bn)
  assert.is(call(core, 'backingRead', backing, 0x3000n, L.STAGING, 2), 0)
  assert.is(core.view.getUint16(L.STAGING, true), 0x1235)
  // The last page of the budget is never handed out; asking for more is a value, not a trap.
  let n = 0
  while (call(core, 'allocPages', 4096) !== 0) n++
  assert.ok(n > 20)
})

test('backings are checked against their length', () => {
  const core = loadCore()
  const b = call(core, 'backingCreate', 2)
  assert.is(call(core, 'backingRead', b, 8190n, L.STAGING, 2), 0)
  assert.is(call(core, 'backingRead', b, 8191n, L.STAGING, 2) | 0, -14)
  assert.is(call(core, 'backingWrite', b, 0xffffffffffffffffn, L.STAGING, 2) | 0, -14)
  assert.is(call(core, 'pspEncrypt', b, 8n, 16, 1) | 0, -22)
})

test.run()
