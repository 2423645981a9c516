/**
 * Random memory, page tables, registers and modes under KVM_RUN: whatever a guest or its VMM does, the core answers with exits
 * and errors, never with a WASM trap or a hang. SEED=n begins elsewhere.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L, loadCore } from '../support/core.ts'

const test = suite('random machines')
const PAGES = 64
const ASID = 3
const C_BIT = 1n << 51n

function random(seed: number): (n: number) => number {
  let x = seed >>> 0
  return (n) => {
    x = (x + 0x6d2b79f5) >>> 0
    let t = Math.imul(x ^ (x >>> 15), x | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % n
  }
}

function run(seed: number): number {
  const r = random(seed)
  /** Addresses that mean something more often than chance would have it. */
  const word = (): bigint => {
    const low = BigInt(r(3) ? r(PAGES * 4096) : r(0x100000000))
    const kind = r(5)
    if (kind === 0) return low
    if (kind === 1) return low | (BigInt(r(0x100000000)) << 32n)
    if (kind === 2) return low & ~0xfffn
    if (kind === 3) return 0xffff800000000000n | low
    return BigInt.asUintN(64, -BigInt(r(4096)))
  }
  const core = loadCore()
  const vm = call(core, 'vmCreate')
  if (r(2)) call(core, 'createIrqchip', vm, r(2))
  const backing = call(core, 'backingCreate', PAGES)
  call(core, 'slotSet', vm, 0, 0n, BigInt(PAGES * 4096), r(2), backing, 0)
  const s = call(core, 'vcpuCreate', vm, 0)
  const encrypted = r(3) === 0
  if (encrypted) {
    call(core, 'setKey', ASID, 5n, 6n)
    core.view.setUint32(vm + L.VM_ASID, ASID, true)
    core.view.setBigUint64(vm + L.VM_C_BIT, C_BIT, true)
  }
  const write = (at: number, n: number, secret: boolean): void => {
    if (secret) call(core, 'pspWrite', backing, BigInt(at), L.STAGING, n, ASID)
    else call(core, 'backingWrite', backing, BigInt(at), L.STAGING, n)
  }
  const put = (at: number, value: bigint): void => {
    core.view.setBigUint64(L.STAGING, value, true)
    write(at, 8, encrypted)
  }
  for (let page = 0; page < PAGES; page++) {
    const bytes = Uint8Array.from({ length: 4096 }, () => r(256))
    const view = new DataView(bytes.buffer)
    if (r(5) === 0) {
      for (let i = 0; i < 512; i++) {
        const odd = r(40) === 0 ? word() : 0n
        view.setBigUint64(i * 8, BigInt(r(PAGES) * 4096) | BigInt(r(16) ? 7 : r(4096)) | odd | (r(3) ? 0n : C_BIT), true)
      }
    }
    core.bytes.set(bytes, L.STAGING)
    write(page * 4096, 4096, encrypted && r(3) > 0)
  }
  const set = (field: number, value: bigint): void => core.view.setBigUint64(s + field, BigInt.asUintN(64, value), true)
  const mode = (['real', 'protected', 'pae', 'long'] as const)[r(4)] ?? 'real'
  const paging = mode === 'pae' || mode === 'long' || (mode === 'protected' && r(2) === 1)
  set(L.CPU_CR0, 0x10n | (mode === 'real' ? 0n : 1n) | (paging ? 0x80000000n : 0n) | (r(2) ? 0x10000n : 0n))
  set(L.CPU_CR4, (mode === 'pae' || mode === 'long' ? 0x20n : 0x10n) | (r(2) ? 0x80n : 0n) | 0x600n | (r(4) ? 0n : 0x300000n))
  set(L.CPU_EFER, mode === 'long' ? 0xd01n : r(2) ? 0x800n : 0n)
  set(L.CPU_CR3, BigInt(r(PAGES) * 4096))
  if ((mode === 'pae' || mode === 'long') && r(4)) {
    // An identity mapping in place of the random one.
    const top = (PAGES - 4) * 4096
    if (mode === 'long') put(top, BigInt(top + 0x1007))
    put(mode === 'long' ? top + 0x1000 : top, BigInt(top + 0x2001 + (mode === 'long' ? 6 : 0)))
    put(top + 0x2000, BigInt(top + 0x3007))
    for (let i = 0; i < PAGES; i++) put(top + 0x3000 + i * 8, BigInt(i * 4096) | 7n | (r(2) ? C_BIT : 0n))
    set(L.CPU_CR3, BigInt(top))
  }
  for (let i = 0; i < 16; i++) set(L.CPU_GPR + i * 8, mode === 'long' ? word() : word() & 0xffffffffn)
  const cpl = mode === 'real' ? 0 : ([0, 0, 3][r(3)] ?? 0)
  for (let n = 0; n < 10; n++) {
    const at = s + L.CPU_SEGMENTS + n * 16
    const system = n > 5
    core.view.setBigUint64(at + L.SEG_BASE, mode === 'real' ? BigInt(r(0x1000) * 16) : system ? BigInt(r(PAGES * 4096 - 4096)) : 0n, true)
    core.view.setUint32(at + L.SEG_LIMIT, mode === 'real' ? 0xffff : system ? 0xfff : 0xffffffff, true)
    core.view.setUint16(at + L.SEG_SELECTOR, r(65536), true)
    const code = mode === 'long' && r(4) ? 0xa9b : 0xc9b
    const attrib = n === L.SEG_TR ? 0x8b : n === L.SEG_LDTR ? 0x82 : (n === L.SEG_CS ? code : 0xc93) | (cpl << 5)
    core.view.setUint16(at + L.SEG_ATTRIB, mode === 'real' ? 0x93 : attrib, true)
  }
  core.view.setUint32(s + L.CPU_CPL, cpl, true)
  const jump = (): void => set(L.CPU_RIP, BigInt(r(mode === 'real' ? 65536 : PAGES * 4096)))
  jump()
  call(core, 'cpuSetFlags', s, (BigInt(r(0x400000)) & 0x247fd7n) | 2n)
  call(core, 'cpuModeChanged', s)
  for (let turn = 0; turn < 200; turn++) {
    const result = call(core, 'vcpuRun', s, 500n) | 0
    assert.ok(result <= 0 && result > -200, `seed ${seed}: KVM_RUN returned ${result}`)
    if (r(3) && core.view.getUint32(s + L.CPU_STOP_REASON, true) < L.STOP_UNIMPLEMENTED) continue
    core.view.setUint32(s + L.CPU_HALTED, 0, true)
    jump()
    if (r(4) === 0) set(L.CPU_GPR + r(16) * 8, word())
    if (r(6) === 0) {
      core.view.setBigUint64(L.STAGING, word(), true)
      write(r(PAGES * 512) * 8, 8, false)
    }
  }
  return Number(core.view.getBigUint64(s + L.CPU_ICOUNT, true))
}

const base = Number(process.env['SEED'] ?? 1)
test(`seeds ${base} to ${base + 39}`, () => {
  let instructions = 0
  for (let seed = base; seed < base + 40; seed++) {
    try {
      instructions += run(seed)
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) error.message = `seed ${seed}: ${error.message}`
      throw error
    }
  }
  assert.ok(instructions > 10000, `only ${instructions} instructions ran`)
})

test.run()
