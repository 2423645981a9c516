/**
 * Random page tables, modes and accesses against a walker in TypeScript that knows no TLB: results, error codes, the page
 * reached, and every accessed and dirty bit. Changed leaves are invalidated one by one, changed tables by a flush. What the quick
 * way of filling (memory/quick.ts) takes on must be what the model allows, tag by tag.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { bareMachine, call, frameOf, L } from '../support/core.ts'

const test = suite('page walks against a model')
const OP = 0x8000
const DATA = 0x20000 // 16 pages, each holding its own number
const NX = 1n << 63n

function random(seed: number): (n: number) => number {
  let x = seed >>> 0
  return (n) => {
    x = (x + 0x6d2b79f5) >>> 0
    let t = Math.imul(x ^ (x >>> 15), x | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % n
  }
}

type Style = 'long' | 'pae' | 'legacy'

function run(seed: number, style: Style, steps: number): void {
  const r = random(seed)
  const m = bareMachine(1100)
  const { core, s, backing } = m
  const size = style === 'legacy' ? 4 : 8
  const peek = (at: number): bigint => {
    core.view.setBigUint64(L.STAGING, 0n, true)
    call(core, 'backingRead', backing, BigInt(at), L.STAGING, size)
    return core.view.getBigUint64(L.STAGING, true)
  }
  const poke = (at: number, value: bigint): void => {
    core.view.setBigUint64(L.STAGING, value, true)
    call(core, 'backingWrite', backing, BigInt(at), L.STAGING, size)
  }
  const set = (field: number, value: bigint): void => core.view.setBigUint64(s + field, value, true)
  for (let i = 0; i < 16; i++) for (let k = 0; k < 4096; k += 512) poke(DATA + i * 4096 + k, BigInt(i + 1))
  // A page of numbers behind every large page, too.
  const behind = style === 'legacy' ? 0x400000 : 0x200000
  for (let i = 0; i < 16; i++) poke(behind + i * 4096, BigInt(i + 1))
  core.view.setUint8(OP + L.OP_SEG, L.SEG_DS)
  core.view.setBigUint64(m.vm + L.VM_PHYS_MASK, (1n << 40n) - 1n, true)

  // Tables: level by level one page, the last level two (two regions of linear space).
  const top = style === 'long' ? 4 : style === 'pae' ? 3 : 2
  const base = style === 'long' ? 0xffff800000000000n : 0n
  const table = (level: number, region = 0): number => 0x1000 + (top - level) * 0x2000 + (level === 1 ? region * 0x1000 : 0)
  const bits = style === 'legacy' ? 10n : 9n
  const index = (va: bigint, level: number): number => {
    const all = Number((va >> (12n + bits * BigInt(level - 1))) & ((1n << bits) - 1n))
    return style === 'pae' && level === 3 ? all & 3 : all
  }
  const vaOf = (region: number, page: number): bigint => base + (BigInt(region) << (12n + bits)) + BigInt(page) * 4096n
  const flags = (upper: boolean): bigint => {
    let f = 1n
    if (r(6)) f |= 2n
    if (r(5)) f |= 4n
    if (r(upper ? 3 : 2)) f |= 0x20n
    if (!upper && r(2)) f |= 0x40n
    if (r(upper ? 40 : 12) === 0) f &= ~1n
    if (style !== 'legacy' && r(8) === 0) f |= NX
    if (r(upper ? 60 : 20) === 0 && style !== 'legacy') f |= 1n << 45n
    return f
  }
  const setTable = (level: number, region: number): void => {
    const va = vaOf(region, 0)
    const at = table(level) + index(va, level) * size
    if (style === 'pae' && level === 3) poke(at, BigInt(table(2)) | (r(20) ? 1n : 0n))
    else if (level === 2 && r(6) === 0) poke(at, BigInt(behind) | flags(false) | 0x80n)
    else poke(at, BigInt(table(level - 1, region)) | flags(true))
  }
  const setLeaf = (region: number, page: number): void => {
    poke(table(1, region) + page * size, BigInt(DATA + r(16) * 4096) | flags(false) | (r(8) === 0 ? 0x100n : 0n))
  }
  for (let level = top; level > 1; level--) for (const region of [0, 1]) setTable(level, region)
  for (const region of [0, 1]) for (let page = 0; page < 16; page++) setLeaf(region, page)

  const state = { wp: true, smep: false, smap: false, nxe: true, cpl: 0, ac: false, pge: true }
  const mode = (): void => {
    set(L.CPU_CR0, 0x80000001n | (state.wp ? 0x10000n : 0n))
    set(
      L.CPU_CR4,
      (style === 'legacy' ? 0x10n : 0x20n) | (state.pge ? 0x80n : 0n) | (state.smep ? 0x100000n : 0n) | (state.smap ? 0x200000n : 0n),
    )
    set(L.CPU_EFER, (style === 'long' ? 0x500n : 0n) | (state.nxe ? 0x800n : 0n))
    call(core, 'flushTlb', s)
  }
  const privilege = (): void => {
    core.view.setUint32(s + L.CPU_CPL, state.cpl, true)
    set(L.CPU_EFLAGS, state.ac ? 0x40000n : 0n)
    call(core, 'selectTlb', s)
  }
  set(L.CPU_CR3, BigInt(table(top)))
  mode()
  privilege()

  type Kind = 'r' | 'w' | 'x' | 'sr' | 'sw'
  /** What must happen, and the changes to the tables. */
  const model = (va: bigint, kind: Kind): { result: string; changes: Map<number, bigint> } => {
    const changes = new Map<number, bigint>()
    // A walk that faults sets no A.
    const untouched = new Map<number, bigint>()
    const implicit = kind === 'sr' || kind === 'sw'
    const user = state.cpl === 3 && !implicit
    const write = kind === 'w' || kind === 'sw'
    const pf = (p: number, rsvd: number): { result: string; changes: Map<number, bigint> } => {
      const id = kind === 'x' && (state.smep || (style !== 'legacy' && state.nxe)) ? 16 : 0
      return { result: `#PF ${p | (write ? 2 : 0) | (user ? 4 : 0) | rsvd | id}`, changes: untouched }
    }
    let [w, u, x] = [true, true, true]
    let at = table(top)
    for (let level = top; ; level--) {
      const where = at + index(va, level) * size
      const entry = changes.get(where) ?? peek(where)
      untouched.set(where, peek(where))
      if (!(entry & 1n)) return pf(0, 0)
      const pdpte = style === 'pae' && level === 3
      const large = level > 1 && (entry & 0x80n) !== 0n
      const leaf = level === 1 || large
      if (style !== 'legacy') {
        if (entry & (0xfffn << 40n) & ~(0x7ffn << 52n) & ((1n << 52n) - 1n)) return pf(1, 8)
        if (entry & NX && (!state.nxe || pdpte)) return pf(1, 8)
        if (pdpte && entry & 0x1e6n) return pf(1, 8)
      }
      if (!pdpte) {
        w = w && (entry & 2n) !== 0n
        u = u && (entry & 4n) !== 0n
        x = x && !(style !== 'legacy' && entry & NX)
      }
      if (leaf) {
        const smap = state.smap && (implicit || !state.ac)
        let ok = user ? u && (!write || w) : !write || w || !state.wp
        if (kind === 'x') {
          if (!user && u && state.smep) ok = false
          if (!x) ok = false
        } else if (!user && u && smap) ok = false
        if (!ok) return pf(1, 0)
        changes.set(where, entry | 0x20n | (write ? 0x40n : 0n))
        const page = large ? behind + Number((va >> 12n) & 15n) * 4096 : Number(entry & 0xffffff000n)
        return { result: `page ${page.toString(16)}`, changes }
      }
      if (!pdpte) changes.set(where, entry | 0x20n)
      at = Number(entry & 0xffffff000n)
    }
  }

  /** The entry that a quick fill has left allows no more than the model does without changing anything. */
  const quick = (va: bigint, kind: 'r' | 'w', where: string): void => {
    const { view } = core
    const e = view.getUint32(s + L.CPU_TLB_BASE, true) + Number((va >> 7n) & 0x7fe0n)
    const tags = {
      r: view.getBigUint64(e + L.TLB_READ, true),
      w: view.getBigUint64(e + L.TLB_WRITE, true),
      x: view.getBigUint64(e + L.TLB_EXEC, true),
    }
    assert.is(tags[kind], va & ~0xfffn, where)
    for (const as of ['r', 'w', 'x'] as const) {
      if (tags[as] !== (va & ~0xfffn)) continue
      const { result, changes } = model(va, as)
      assert.ok(result.startsWith('page'), `${where}: tag for ${as}, ${result}`)
      for (const [at, value] of changes) assert.is(peek(at), value, `${where}: tag for ${as}, entry at ${at.toString(16)}`)
      const frame = frameOf(view, backing, Number.parseInt(result.slice(5), 16) >> 12)
      assert.is((view.getUint32(e + L.TLB_ADDEND, true) + Number(va & 0xfffff000n)) >>> 0, frame, where)
    }
    seen.quick++
  }

  const entryFields = L.CPU_EXC_ERROR
  const seen = { faults: 0, ok: 0, quick: 0 }
  for (let step = 0; step < steps; step++) {
    const what = r(100)
    const region = r(2)
    const page = r(16)
    const va = vaOf(region, page) + BigInt(r(4096) & 0xff8)
    if (what < 8) {
      setLeaf(region, page)
      call(core, 'invalidatePage', s, va)
    } else if (what < 10) {
      setTable(2 + r(top - 1), region)
      call(core, 'flushTlb', s)
    } else if (what < 13) {
      const field = (['wp', 'smep', 'smap', 'nxe', 'pge'] as const)[r(style === 'legacy' ? 3 : 5)]
      if (field) state[field] = !state[field]
      mode()
      privilege()
    } else if (what < 16) {
      state.wp = !state.wp
      set(L.CPU_CR0, 0x80000001n | (state.wp ? 0x10000n : 0n))
      call(core, 'writeProtectionChanged', s)
    } else if (what < 22) {
      state.cpl = r(2) ? 3 : r(3)
      state.ac = r(2) === 1
      privilege()
    } else if (what < 24 && !state.pge) call(core, 'flushTlbLocal', s)
    else {
      const kind = (['r', 'w', 'x', 'sr', 'sw', 'r', 'w'] as const)[r(7)] ?? 'r'
      const expected = model(va, kind)
      core.view.setUint32(s + L.CPU_LEAVE, 0, true)
      const where = `seed ${seed} ${style} step ${step}: ${kind} ${va.toString(16)} ${JSON.stringify(state)}`
      if ((kind === 'r' || kind === 'w') && r(2) && call(core, 'quickFill', s, va, kind === 'r' ? 5 : 6)) quick(va, kind, where)
      if (style === 'long') assert.is(call(core, 'quickFill', s, va ^ (1n << BigInt(47 + r(17))), 5), 0, `${where}: not canonical`)
      let address = 0
      if (kind === 'x') address = call(core, 'fetchAddress', s, va)
      else if (kind === 'r') call(core, 'readBytes', s, OP, va, L.STAGING, 1)
      else if (kind === 'sr') call(core, 'readBytes', s, 0, va, L.STAGING, 1)
      else {
        // Write back what is there already: the page numbers stay.
        const place = expected.result.startsWith('page') ? Number.parseInt(expected.result.slice(5), 16) : DATA
        const old = peek(place + Number(va & 0xff8n)) & 0xffn
        core.view.setBigUint64(L.STAGING, old, true)
        call(core, 'writeBytes', s, kind === 'w' ? OP : 0, va, L.STAGING, 1)
      }
      const got = core.view.getUint32(s + L.CPU_LEAVE, true) === 0 ? 'ok' : `#PF ${core.view.getUint32(s + entryFields, true)}`
      assert.is(got, expected.result.startsWith('page') ? 'ok' : expected.result, where)
      if (got === 'ok') {
        seen.ok++
        const place = Number.parseInt(expected.result.slice(5), 16)
        if (kind === 'x') {
          const frame = frameOf(core.view, backing, place >> 12)
          assert.is(address, frame + Number(va & 0xfffn), where)
        }
        const data = core.view.getUint8(L.STAGING)
        if (kind === 'r' || kind === 'sr') assert.is(BigInt(data), peek(place + Number(va & 0xff8n)) & 0xffn, where)
      } else seen.faults++
      for (const [at, value] of expected.changes) assert.is(peek(at), value, `${where}: entry at ${at.toString(16)}`)
    }
  }
  assert.ok(seen.ok > steps / 8 && seen.faults > steps / 20, `seed ${seed}: ${JSON.stringify(seen)}`)
  assert.is(seen.quick > steps / 60, style === 'long', `seed ${seed}: ${JSON.stringify(seen)}`)
}

const base = Number(process.env['SEED'] ?? Date.now() % 100000)
for (const style of ['long', 'pae', 'legacy'] as const)
  test(`${style}, seed ${base}`, () => {
    for (let i = 0; i < 3; i++) run(base + i, style, 6000)
  })
test.run()
