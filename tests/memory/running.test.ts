/** Memory as running code meets it: stores into the running block, read-only slots, fetches from nowhere, views in an encrypted VM. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { CODE, Machine, PML4, STACK } from '../system/machine.ts'

const test = suite('memory under running code')
const MOV_AL = 0xb0
const HLT = 0xf4

/** `bytes` in 64-bit mode; `mov al, 0x11` at CODE + 0x20 is what each case patches to 0x42. */
function patched(bytes: readonly number[]): number {
  const m = new Machine('long')
  m.code([...bytes, ...Array.from({ length: 0x20 - bytes.length }, () => 0x90), MOV_AL, 0x11, HLT])
  m.setReg(3, BigInt(CODE + 0x21)) // rbx: the immediate
  m.setReg(7, BigInt(CODE + 0x21)) // rdi
  m.setReg(6, 0x42n) // rsi
  const before = m.u64(L.CPU_ICOUNT)
  m.run(1000)
  assert.is(m.rip, BigInt(CODE + 0x23))
  assert.ok(m.u64(L.CPU_ICOUNT) - before <= 0x22n)
  return Number(m.reg(0) & 0xffn)
}

test('a store into the running block is seen by the next instruction', () => {
  assert.is(patched([0xc6, 0x03, 0x42]), 0x42, 'mov byte [rbx], 0x42')
  assert.is(patched([0x40, 0x88, 0x33]), 0x42, 'mov [rbx], sil')
  assert.is(patched([0x80, 0x03, 0x31]), 0x42, 'add byte [rbx], 0x31')
  assert.is(patched([0xb0, 0x42, 0xaa]), 0x42, 'stosb')
  assert.is(patched([0xb0, 0x31, 0xf0, 0x0f, 0xc0, 0x03]), 0x42, 'lock xadd [rbx], al')
  assert.is(patched([0xb2, 0x42, 0x86, 0x13]), 0x42, 'xchg [rbx], dl')
  // push: rsp so that the low byte of the pushed value lands on the immediate; the rest overwrites what follows
  assert.is(patched([0x48, 0x89, 0xdc, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xb8, 0x42, HLT, 0, 0, 0, 0, 0, 0, 0x50]), 0x42, 'push rax')
})

test('a store that crosses into a page of code', () => {
  const m = new Machine('long')
  const page = CODE + 0x1000
  m.code([MOV_AL, 0x11, HLT], page)
  m.set64(L.CPU_RIP, BigInt(page))
  m.run(10)
  assert.is(m.reg(0) & 0xffn, 0x11n)
  m.code([0x48, 0x89, 0x03, HLT])
  m.setReg(0, 0xf442b0aabbccddeen)
  m.setReg(3, BigInt(page - 5))
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.run(10)
  m.set64(L.CPU_RIP, BigInt(page))
  m.set32(L.CPU_HALTED, 0)
  m.run(10)
  assert.is(m.reg(0) & 0xffn, 0x42n)
})

test('read-only slots read as memory, stores leave as MMIO', () => {
  const m = new Machine('long')
  const rom = call(m.core, 'backingCreate', 16)
  m.core.view.setBigUint64(L.STAGING, 0x8877665544332211n, true)
  call(m.core, 'backingWrite', rom, 0n, L.STAGING, 8)
  assert.is(call(m.core, 'slotSet', m.vm, 1, 0x600000n, 0x10000n, 2, rom, 0) | 0, 0)
  m.setReg(3, 0x600000n)
  m.code([0x48, 0x8b, 0x03, 0x48, 0x89, 0x03, HLT])
  assert.is(m.run(10), L.STOP_EXIT)
  assert.is(m.reg(0), 0x8877665544332211n)
  const run = m.s + L.VCPU_RUN
  assert.is(m.core.view.getUint32(run + 8, true), 6, 'KVM_EXIT_MMIO')
  assert.is(m.core.view.getBigUint64(run + 32, true), 0x600000n)
  assert.is(m.core.view.getBigUint64(run + 40, true), 0x8877665544332211n)
  assert.equal([m.core.view.getUint32(run + 48, true), m.core.view.getUint8(run + 52)], [8, 1])
})

test('a fetch from where nothing is stops by name', () => {
  const m = new Machine('long')
  m.code([0xff, 0xe0]) // jmp rax
  m.setReg(0, 0x700000n)
  assert.is(m.run(10), L.STOP_FETCH_MMIO)
  assert.is(m.u64(L.CPU_STOP_DETAIL), 0x700000n)
})

test('KVM_RUN ends there: emulation failure, and ENOMEM beyond the size budget', () => {
  const m = new Machine('long')
  m.code([0xff, 0xe0])
  m.setReg(0, 0x700000n)
  assert.is(call(m.core, 'vcpuRun', m.s, 100n) | 0, 0)
  const run = m.s + L.VCPU_RUN
  assert.equal([m.core.view.getUint32(run + 8, true), m.core.view.getUint32(run + 32, true)], [17, 1])
  const small = new Machine('long')
  small.core.view.setUint32(L.GLOBAL + L.GLOBAL_LIMIT_PAGES, small.core.memory.buffer.byteLength / 65536, true)
  while (call(small.core, 'allocPages', 16) !== 0) {
    /* all of it */
  }
  while (call(small.core, 'frameAlloc') !== 0) {
    /* all of it */
  }
  small.code([0x48, 0x89, 0x03, HLT])
  small.setReg(3, 0x300000n)
  assert.is(call(small.core, 'vcpuRun', small.s, 100n) | 0, -12)
  assert.is(small.u32(L.CPU_STOP_REASON), L.STOP_OUT_OF_MEMORY)
  assert.is(small.rip, BigInt(CODE))
})

test('an encrypted VM fetches and walks through the private view whatever the C-bit says', () => {
  const m = new Machine('long')
  const C = 1n << 51n
  m.code([0x48, 0x8b, 0x03, 0x48, 0x8b, 0x0e, HLT]) // mov rax, [rbx]; mov rcx, [rsi]
  m.poke(0x100000, 0x1122334455667788n)
  // Launch: everything there is becomes private.
  call(m.core, 'setKey', 7, 0x1111n, 0x2222n)
  m.core.view.setUint32(m.vm + L.VM_ASID, 7, true)
  m.core.view.setBigUint64(m.vm + L.VM_C_BIT, C, true)
  assert.is(call(m.core, 'pspEncrypt', m.backing, 0n, 0x200000, 7), 0)
  // C is clear in every entry: data is shared, code and tables are private all the same.
  m.setReg(3, 0x100000n)
  m.setReg(6, BigInt(PML4))
  m.run(10)
  assert.is(m.rip, BigInt(CODE + 7))
  assert.ok(m.reg(0) !== 0x1122334455667788n)
  m.core.view.setBigUint64(L.STAGING, 0n, true)
  call(m.core, 'backingRead', m.backing, 0x100000n, L.STAGING, 8)
  assert.is(m.reg(0), m.core.view.getBigUint64(L.STAGING, true))
  // With C set in the leaf the same load sees the plaintext.
  m.core.view.setBigUint64(L.STAGING, 0x87n | C, true)
  call(m.core, 'pspWrite', m.backing, BigInt(PML4 + 0x2000), L.STAGING, 8, 7)
  call(m.core, 'flushTlb', m.s)
  m.set64(L.CPU_RIP, BigInt(CODE))
  m.set32(L.CPU_HALTED, 0)
  m.run(10)
  assert.is(m.reg(0), 0x1122334455667788n)
  assert.is(m.reg(1) & 0xffffffff00ffffffn, (BigInt(PML4 + 0x1000) & 0xfff00000n) | (BigInt(PML4 + 0x1000) & 0xfffffn) | 0x27n)
})

test('code read 200 times through the other view goes on running', () => {
  const m = new Machine('long')
  const C = 1n << 51n
  // Two mappings of the first 2 MiB: at 0 with C, at 2 MiB without.
  m.poke(PML4 + 0x2000, 0x87n | C)
  m.poke(PML4 + 0x2008, 0x87n)
  m.code([0xb9, 200, 0, 0, 0, 0x48, 0x8b, 0x03, 0xff, 0xc9, 0x75, 0xf9, 0x48, 0x8b, 0x16, HLT])
  m.setReg(3, BigInt(0x200000 + CODE))
  m.setReg(6, BigInt(CODE))
  call(m.core, 'setKey', 7, 0x1111n, 0x2222n)
  m.core.view.setUint32(m.vm + L.VM_ASID, 7, true)
  m.core.view.setBigUint64(m.vm + L.VM_C_BIT, C, true)
  call(m.core, 'pspEncrypt', m.backing, 0n, 0x200000, 7)
  m.run(5000)
  assert.is(m.rip, BigInt(CODE + 16))
  call(m.core, 'backingRead', m.backing, BigInt(CODE), L.STAGING, 8)
  assert.is(m.reg(0), m.core.view.getBigUint64(L.STAGING, true))
  assert.is(m.reg(2), 0x8b48000000c8b9n | (0x03n << 56n))
})

test('a page fault in the middle of a block has no effect and names the address', () => {
  const m = new Machine('long')
  assert.is(m.exec([0x50, 0x48, 0x8f, 0x04, 0x25, 0, 0, 0, 0x40, HLT]), 14) // push rax; pop [0x40000000]
  assert.is(m.u64(L.CPU_CR2), 0x40000000n)
  assert.is(m.frame(1), CODE + 1)
  assert.is(m.frame(4), STACK - 8, 'RSP of the faulting pop')
})

test.run()
