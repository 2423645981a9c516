/**
 * Encryption views against a model: DRAM that always holds ciphertext. Random sequences of guest accesses through both views,
 * host accesses, and commands of the secure processor; the seed is printed with every failure.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { bareMachine, call, call64, frameOf, L } from '../support/core.ts'

const test = suite('encryption views')

/** The cipher again, written from its description in assembly/memory/cipher.ts: blocks are four u32. */
function permute(v: Uint32Array, backwards: boolean): void {
  const rotl = (x: number, n: number): number => ((x << n) | (x >>> (32 - n))) >>> 0
  let [a, b, c, d] = [v[0]!, v[1]!, v[2]!, v[3]!]
  for (let round = 0; round < 12; round++) {
    if (!backwards) {
      a = (a + b) >>> 0
      b = rotl(b, 5) ^ a
      a = rotl(a, 16)
      c = (c + d) >>> 0
      d = rotl(d, 8) ^ c
      a = (a + d) >>> 0
      d = rotl(d, 13) ^ a
      c = (c + (b >>> 0)) >>> 0
      b = rotl(b, 7) ^ c
      c = rotl(c, 16)
    } else {
      c = rotl(c, 16)
      b = rotl(b ^ c, 25)
      c = (c - b) >>> 0
      d = rotl(d ^ a, 19)
      a = (a - d) >>> 0
      d = rotl(d ^ c, 24)
      c = (c - d) >>> 0
      a = rotl(a, 16)
      b = rotl(b ^ a, 27)
      a = (a - b) >>> 0
    }
  }
  v.set([a, b, c, d])
}

function crypt(bytes: Uint8Array, at: number, frame: number, key: readonly [bigint, bigint], encrypting: boolean): void {
  const words = new Uint32Array(4)
  const k = new Uint32Array(new BigUint64Array(key).buffer)
  const seed = new BigUint64Array([BigInt(frame), BigInt.asUintN(64, ~(BigInt(frame) << 20n))])
  const tweak = new Uint32Array(new BigUint64Array([key[0] ^ seed[0]!, key[1] ^ seed[1]!]).buffer)
  permute(tweak, false)
  const by = ((at & 4095) >> 4) * 2 + 1
  const t = Array.from(tweak, (x, i) => Math.imul(x ^ k[i]!, by) >>> 0)
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  for (let i = 0; i < 4; i++) words[i] = view.getUint32(at + i * 4, true) ^ t[i]!
  permute(words, encrypting)
  for (let i = 0; i < 4; i++) view.setUint32(at + i * 4, words[i]! ^ t[i]!, true)
}

const ASID = 5
const OP = 0x8000
const C_BIT = 1n << 51n
const PAGES = 12 // pages under test, at guest-physical 0
const TABLES = 16 // page number of the page tables
const SHARED = 0x40000000n // linear address of the C=0 mapping; the C=1 mapping is at 0
const EFER_LMA = 0x500n

function random(seed: number): (n: number) => number {
  let x = seed >>> 0
  return (n) => {
    x = (x + 0x6d2b79f5) >>> 0
    let t = Math.imul(x ^ (x >>> 15), x | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % n
  }
}

function world() {
  const m = bareMachine(32)
  const { core, vm, s, backing } = m
  let key: [bigint, bigint] = [0x0123456789abcdefn, 0xfedcba9876543210n]
  call(core, 'setKey', ASID, key[0], key[1])
  core.view.setUint32(vm + L.VM_ASID, ASID, true)
  core.view.setBigUint64(vm + L.VM_C_BIT, C_BIT, true)
  core.view.setUint8(OP + L.OP_SEG, L.SEG_DS)
  const table = (page: number, index: number, value: bigint): void => {
    core.view.setBigUint64(L.STAGING, value, true)
    assert.is(call(core, 'pspWrite', backing, BigInt(page * 4096 + index * 8), L.STAGING, 8, ASID), 0)
  }
  table(TABLES, 0, BigInt((TABLES + 1) * 4096 + 3) | C_BIT)
  table(TABLES + 1, 0, BigInt((TABLES + 2) * 4096 + 3) | C_BIT)
  table(TABLES + 1, 1, BigInt((TABLES + 4) * 4096 + 3) | C_BIT)
  table(TABLES + 2, 0, BigInt((TABLES + 3) * 4096 + 3) | C_BIT)
  table(TABLES + 4, 0, BigInt((TABLES + 5) * 4096 + 3) | C_BIT)
  // The clearing of the rest of each table is a write too: a private read of untouched DRAM is not zero.
  for (let i = 0; i < PAGES; i++) {
    table(TABLES + 3, i, BigInt(i * 4096 + 3) | C_BIT)
    table(TABLES + 5, i, BigInt(i * 4096 + 3))
  }
  core.view.setBigUint64(s + L.CPU_CR0, 0x80010001n, true)
  core.view.setBigUint64(s + L.CPU_CR4, 0x20n, true)
  core.view.setBigUint64(s + L.CPU_EFER, EFER_LMA, true)
  core.view.setBigUint64(s + L.CPU_CR3, BigInt(TABLES * 4096) | C_BIT, true)
  call(core, 'selectTlb', s)
  call(core, 'flushTlb', s)
  const dram = new Uint8Array(PAGES * 4096)
  const frame = (page: number): number => {
    const f = frameOf(core.view, backing, page)
    if (f !== 0) return f
    call(core, 'backingInfo', backing, page)
    return frameOf(core.view, backing, page)
  }
  return {
    ...m,
    dram,
    frame,
    get key() {
      return key
    },
    setKey(lo: bigint, hi: bigint) {
      key = [lo, hi]
      call(core, 'setKey', ASID, lo, hi)
    },
    see(at: number, n: number, secret: boolean): Uint8Array {
      const out = new Uint8Array(n)
      for (let g = at & ~15; g < at + n; g += 16) {
        const page = dram.slice(g & ~4095, (g & ~4095) + 4096)
        if (secret) crypt(page, g & 4095, frame(g >> 12), key, false)
        for (let i = 0; i < 16; i++) if (g + i >= at && g + i < at + n) out[g + i - at] = page[(g & 4095) + i]!
      }
      return out
    },
    write(at: number, data: Uint8Array, secret: boolean): void {
      for (let g = at & ~15; g < at + data.length; g += 16) {
        const page = dram.slice(g & ~4095, (g & ~4095) + 4096)
        if (secret) crypt(page, g & 4095, frame(g >> 12), key, false)
        for (let i = 0; i < 16; i++) if (g + i >= at && g + i < at + data.length) page[(g & 4095) + i] = data[g + i - at]!
        if (secret) crypt(page, g & 4095, frame(g >> 12), key, true)
        dram.set(page.subarray(g & 4095, (g & 4095) + 16), g)
      }
    },
  }
}

function run(seed: number, steps: number): void {
  const r = random(seed)
  const w = world()
  const { core, s, backing, vm } = w
  const where = (step: number, what: string): string => `seed ${seed} step ${step}: ${what}`
  const conversions = { n: 0 }
  for (let step = 0; step < steps; step++) {
    const hot = r(4) === 0 ? r(PAGES) : Math.floor(step / 300) % PAGES
    const secret = r(8) === 0 ? r(2) === 1 : Math.floor(step / 150) % 2 === 1
    const n = [1, 2, 4, 8, 16, 64, 3, 31][r(8)]!
    let at = hot * 4096 + r(4096)
    if (at + n > PAGES * 4096) at = PAGES * 4096 - n
    const va = BigInt(at) + (secret ? 0n : SHARED)
    const data = Uint8Array.from({ length: n }, () => r(256))
    const staged = (): Uint8Array => core.bytes.slice(L.STAGING, L.STAGING + n)
    const kind = r(40)
    const keys = [0, 1, 2].map((p) => core.view.getUint16(L.FRAME_INFO + (w.frame(p) >>> 12) * L.SIZEOF_FRAME + L.FRAME_KEY, true)).join()
    if (kind < 12) {
      assert.is(call(core, 'readBytes', s, OP, va, L.STAGING, n), 0, where(step, 'read'))
      assert.equal(staged(), w.see(at, n, secret), where(step, `guest read ${n} at ${at.toString(16)} ${secret}`))
    } else if (kind < 24) {
      core.bytes.set(data, L.STAGING)
      assert.is(call(core, 'writeBytes', s, OP, va, L.STAGING, n), 0, where(step, 'write'))
      w.write(at, data, secret)
    } else if (kind < 27 && [1, 2, 4, 8].includes(n)) {
      const expected = new DataView(w.see(at, 8 > n ? n : 8, secret).buffer)
      const got = call64(core, 'readMem', s, OP, va, n)
      const want =
        n === 8
          ? expected.getBigUint64(0, true)
          : BigInt(n === 4 ? expected.getUint32(0, true) : n === 2 ? expected.getUint16(0, true) : expected.getUint8(0))
      assert.is(got, want, where(step, 'readMem'))
    } else if (kind < 30 && [1, 2, 4, 8].includes(n)) {
      const value = new Uint8Array(8)
      value.set(data)
      assert.is(call(core, 'writeMem', s, OP, va, n, new DataView(value.buffer).getBigUint64(0, true)), 0)
      w.write(at, data, secret)
    } else if (kind < 33) {
      const p = call(core, 'modifyMem', s, OP, va, n)
      assert.equal(core.bytes.slice(p, p + n), w.see(at, n, secret), where(step, 'modify read'))
      core.bytes.set(data, p)
      assert.is(call(core, 'commitModify', s, OP), 0)
      w.write(at, data, secret)
    } else if (kind === 33) {
      assert.is(call(core, 'backingRead', backing, BigInt(at), L.STAGING, n), 0)
      assert.equal(staged(), w.see(at, n, false), where(step, 'host read'))
    } else if (kind === 34) {
      core.bytes.set(data, L.STAGING)
      if (r(2)) assert.is(call(core, 'backingWrite', backing, BigInt(at), L.STAGING, n), 0)
      else assert.is(call(core, 'gpaWrite', vm, BigInt(at), L.STAGING, n), 1)
      w.write(at, data, false)
    } else if (kind === 35) {
      assert.is(call(core, 'pspRead', backing, BigInt(at), L.STAGING, n, ASID), 0)
      assert.equal(staged(), w.see(at, n, true), where(step, 'psp read'))
    } else if (kind === 36) {
      core.bytes.set(data, L.STAGING)
      assert.is(call(core, 'pspWrite', backing, BigInt(at), L.STAGING, n, ASID), 0)
      w.write(at, data, true)
    } else if (kind === 37 && r(4) === 0) {
      // Encrypt or decrypt in place: whole pages and granules.
      const start = r(2) ? at & ~4095 : at & ~15
      const length = Math.min(PAGES * 4096 - start, [16, 48, 4096, 8192][r(4)]!)
      const encrypting = r(2) === 0
      const old = w.see(start, length, !encrypting)
      assert.is(call(core, encrypting ? 'pspEncrypt' : 'pspDecrypt', backing, BigInt(start), length, ASID), 0)
      w.write(start, old, encrypting)
    } else if (kind === 38 && r(30) === 0) {
      const page = Uint8Array.from({ length: 4096 }, () => r(256))
      core.bytes.set(page, L.STAGING)
      assert.is(call(core, 'backingWrite', backing, BigInt(hot * 4096), L.STAGING, 4096), 0)
      w.write(hot * 4096, page, false)
    } else if (kind === 39 && r(10) === 0) call(core, r(2) ? 'flushTlb' : 'flushTlbLocal', s)
    const after = [0, 1, 2].map((p) => core.view.getUint16(L.FRAME_INFO + (w.frame(p) >>> 12) * L.SIZEOF_FRAME + L.FRAME_KEY, true)).join()
    if (after !== keys) conversions.n++
  }
  for (let page = 0; page < PAGES; page++) {
    call(core, 'backingRead', backing, BigInt(page * 4096), L.STAGING, 4096)
    assert.equal(core.bytes.slice(L.STAGING, L.STAGING + 4096), w.see(page * 4096, 4096, false), `seed ${seed}: page ${page} at the end`)
  }
  assert.ok(conversions.n > 4, `seed ${seed}: only ${conversions.n} conversions`)
}

const base = Number(process.env['SEED'] ?? Date.now() % 100000)
for (let i = 0; i < 4; i++) test(`random accesses, seed ${base + i}`, () => run(base + i, 6000))

test('a private read of untouched DRAM sees the decryption of zeros', () => {
  const w = world()
  call(w.core, 'readBytes', w.s, OP, 0x3000n, L.STAGING, 64)
  const seen = w.core.bytes.slice(L.STAGING, L.STAGING + 64)
  assert.equal(seen, w.see(0x3000, 64, true))
  assert.ok(seen.some((x) => x !== 0))
  call(w.core, 'backingRead', w.backing, 0x3000n, L.STAGING, 64)
  assert.equal(w.core.bytes.slice(L.STAGING, L.STAGING + 64), new Uint8Array(64))
})

test('ciphertext depends on the address, and moved ciphertext decrypts to garbage', () => {
  const w = world()
  const secret = new TextEncoder().encode('sixteen byte key')
  for (const at of [0x1000, 0x1010, 0x2000]) {
    w.core.bytes.set(secret, L.STAGING)
    call(w.core, 'writeBytes', w.s, OP, BigInt(at), L.STAGING, 16)
  }
  const raw = (at: number): Uint8Array => {
    call(w.core, 'backingRead', w.backing, BigInt(at), L.STAGING, 16)
    return w.core.bytes.slice(L.STAGING, L.STAGING + 16)
  }
  const [a, b, c] = [raw(0x1000), raw(0x1010), raw(0x2000)]
  assert.not.equal(a, secret)
  assert.not.equal(a, b)
  assert.not.equal(a, c)
  w.core.bytes.set(a, L.STAGING)
  call(w.core, 'backingWrite', w.backing, 0x2000n, L.STAGING, 16)
  call(w.core, 'readBytes', w.s, OP, 0x2000n, L.STAGING, 16)
  assert.not.equal(w.core.bytes.slice(L.STAGING, L.STAGING + 16), secret)
})

test('a new key of the same ASID does not read what the old one protected', () => {
  const w = world()
  call(w.core, 'writeMem', w.s, OP, 0x1000n, 8, 0x1234n)
  call(w.core, 'backingRead', w.backing, 0x1000n, L.STAGING, 16)
  const cipher = w.core.bytes.slice(L.STAGING, L.STAGING + 16)
  call(w.core, 'setKey', ASID, 7n, 9n)
  call(w.core, 'backingRead', w.backing, 0x1000n, L.STAGING, 16)
  assert.equal(w.core.bytes.slice(L.STAGING, L.STAGING + 16), cipher)
  call(w.core, 'pspRead', w.backing, 0x1000n, L.STAGING, 16, ASID)
  assert.ok(w.core.view.getBigUint64(L.STAGING, true) !== 0x1234n)
})

test('a host write into a VMSA page marks it', () => {
  const w = world()
  const info = call(w.core, 'backingInfo', w.backing, 9)
  w.core.view.setUint8(info + L.FRAME_FLAGS, w.core.view.getUint8(info + L.FRAME_FLAGS) | L.FRAME_VMSA)
  call(w.core, 'pspWrite', w.backing, 0x9000n, L.STAGING, 4096, ASID)
  assert.is(w.core.view.getUint8(info + L.FRAME_FLAGS) & L.FRAME_TAMPERED, 0)
  call(w.core, 'backingWrite', w.backing, 0x9010n, L.STAGING, 1)
  assert.is(w.core.view.getUint8(info + L.FRAME_FLAGS) & L.FRAME_TAMPERED, L.FRAME_TAMPERED)
})

test('freed frames come back as zero DRAM', () => {
  const w = world()
  call(w.core, 'writeMem', w.s, OP, 0x1000n, 8, 0x1234n)
  const f = w.frame(1)
  call(w.core, 'slotsFree', w.vm)
  call(w.core, 'backingFree', w.backing)
  assert.equal(w.core.bytes.slice(f, f + 4096), new Uint8Array(4096))
  assert.is(w.core.view.getUint16(L.FRAME_INFO + (f >>> 12) * L.SIZEOF_FRAME + L.FRAME_KEY, true), 0)
})

test.run()
