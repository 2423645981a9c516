/**
 * The memory path without the interpreter: the core's access functions called from JavaScript. A call costs 10-15 ns by itself:
 * subtract `memory-hit`. Figures to compare with come from prototypes: miss 40-70 ns, granule 15 ns (one block
 * operation) and 30 ns (two), conversion of a page 3-4 us, flush of three L1 arrays 0.6 us.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  BACKING_FRAMES,
  CPU_BUDGET,
  CPU_CR0,
  CPU_CR3,
  CPU_CR4,
  CPU_EFER,
  CPU_GPR,
  CPU_ICOUNT,
  CPU_SEGMENTS,
  CPU_SLICE_END,
  CPU_VM,
  FRAME_INFO,
  FRAME_WRONG,
  HEAP,
  OP_SEG,
  SEG_ATTRIB,
  SEG_CS,
  SEG_DS,
  SEG_LIMIT,
  SIZEOF_FRAME,
  SIZEOF_VM,
  STAGING,
  VM_ASID,
  VM_C_BIT,
} from '../host/generated/layout.ts'
import type { Case } from './cases.ts'

type Call = (...args: (number | bigint)[]) => number

interface Machine {
  readonly x: Record<
    | 'allocPages'
    | 'allocArena'
    | 'backingCreate'
    | 'backingWrite'
    | 'pspWrite'
    | 'slotSet'
    | 'vcpuRegister'
    | 'readBytes'
    | 'writeBytes'
    | 'flushTlb'
    | 'flushTlbLocal'
    | 'invalidatePage'
    | 'setKey'
    | 'pspDecrypt'
    | 'pspEncrypt'
    | 'cpuModeChanged'
    | 'execute'
    | 'benchLoads',
    Call
  >
  readonly view: DataView
  readonly s: number
  readonly vm: number
  readonly backing: number
}

const OP = 0x8000
const C_BIT = 1n << 51n
const ASID = 3
const CALLS = 2048
const STORES = 100_000

/** 4 KiB mappings of `pages` pages at linear 0 (to scattered frames), and once more without C at 512 GiB if encrypted. */
function machine(pages: number, encrypted: boolean): Machine {
  const memory = new WebAssembly.Memory({ initial: Math.ceil(HEAP / 65536), maximum: 65536, shared: true })
  const module = new WebAssembly.Module(readFileSync(new URL('../../dist/core.wasm', import.meta.url)))
  const abort = (): never => {
    throw new Error('abort')
  }
  const instance = new WebAssembly.Instance(module, { env: { memory, abort } })
  const x = instance.exports as unknown as Machine['x'] & Record<'memoryInit', Call>
  x.memoryInit(0)
  const tables = Math.ceil(pages / 512) + 2
  const total = pages + 2 * tables + 1
  const vm = x.allocPages(Math.ceil(SIZEOF_VM / 4096))
  const s = x.allocArena()
  const backing = x.backingCreate(total)
  const set = new DataView(memory.buffer)
  set.setUint32(s + CPU_VM, vm, true)
  x.vcpuRegister(s)
  x.slotSet(vm, 0, 0n, BigInt(total) * 4096n, 0, backing, 0)
  set.setUint8(OP + OP_SEG, SEG_DS)
  const c = encrypted ? C_BIT : 0n
  if (encrypted) {
    x.setKey(ASID, 0x0123456789abcdefn, 0x0fedcba987654321n)
    set.setUint32(vm + VM_ASID, ASID, true)
    set.setBigUint64(vm + VM_C_BIT, C_BIT, true)
  }
  const put = (page: number, index: number, value: bigint): void => {
    set.setBigUint64(STAGING, value, true)
    if (encrypted) x.pspWrite(backing, BigInt(page * 4096 + index * 8), STAGING, 8, ASID)
    else x.backingWrite(backing, BigInt(page * 4096 + index * 8), STAGING, 8)
  }
  const root = pages + 2 * tables
  for (const [half, bit] of [
    [0, c],
    [1, 0n],
  ] as const) {
    const pdpt = pages + half * tables
    put(root, half, BigInt(pdpt * 4096 + 7) | c)
    put(pdpt, 0, BigInt((pdpt + 1) * 4096 + 7) | c)
    for (let i = 0; i < Math.ceil(pages / 512); i++) put(pdpt + 1, i, BigInt((pdpt + 2 + i) * 4096 + 7) | c)
    for (let i = 0; i < pages; i++)
      put(pdpt + 2 + (i >> 9), i & 511, BigInt(((Math.imul(i, 2654435761) >>> 0) % pages) * 4096 + 0x67) | bit)
  }
  const view = new DataView(memory.buffer)
  view.setBigUint64(s + CPU_CR0, 0x80010001n, true)
  view.setBigUint64(s + CPU_CR4, 0x20n, true)
  view.setBigUint64(s + CPU_EFER, 0xd00n, true)
  view.setBigUint64(s + CPU_CR3, BigInt(root * 4096) | c, true)
  x.flushTlb(s)
  return { x, view, s, vm, backing }
}

const WALK = 1_000_000
const MARK = 1.3

/** Random loads over 256 MiB by the translation path alone (assembly/memory/bench.ts), and the same in C (translation.c) by turns. */
function translation(): Case['start'] {
  return async () => {
    const pages = 65536
    const { x, s } = machine(pages, false)
    for (let i = 0; i < pages; i++) check(x.writeBytes(s, OP, BigInt(i) * 4096n, STAGING, 8))
    const loads = (n: number): void => void x.benchLoads(s, 0n, pages * 4096 - 8, n)
    const ours = (): number => {
      const before = process.cpuUsage()
      loads(5 * WALK)
      const { user, system } = process.cpuUsage(before)
      return ((user + system) * 1000) / (5 * WALK)
    }
    const median = (values: number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN
    const compare = (): string => {
      const work = mkdtempSync(join(tmpdir(), 'cloister-walk-'))
      try {
        const program = join(work, 'translation')
        const source = fileURLToPath(new URL('../../bench/translation.c', import.meta.url))
        const gcc = spawnSync('gcc', ['-O2', '-o', program, source], { encoding: 'utf8' })
        if (gcc.error) return 'not compared: no gcc'
        if (gcc.status !== 0) throw new Error(gcc.stderr)
        const rounds = Array.from({ length: 7 }, () => [ours(), Number(spawnSync(program, ['5'], { encoding: 'utf8' }).stdout)] as const)
        const [us, c] = [median(rounds.map(([a]) => a)), median(rounds.map(([, b]) => b))]
        const ratio = median(rounds.map(([a, b]) => a / b))
        return `CPU time by turns ${us.toFixed(0)} ns, in C ${c.toFixed(0)} ns: ratio ${ratio.toFixed(2)} (mark ${MARK}: ${ratio <= MARK ? 'met' : 'MISSED'})`
      } finally {
        rmSync(work, { recursive: true, force: true })
      }
    }
    return { step: () => loads(WALK), close: () => {}, compare }
  }
}

function check(status: number): void {
  if (status !== 0) throw new Error(`access left with ${status}`)
}

/** Random 8-byte reads over the first `pages` pages. */
function reads(pages: number): Case['start'] {
  return async () => {
    const { x, s } = machine(pages, false)
    let seed = 12345
    const next = (): bigint => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
      return BigInt((seed >>> 4) % pages) * 4096n + BigInt((seed >>> 20) & 0xff8)
    }
    for (let i = 0; i < pages; i++) check(x.readBytes(s, OP, BigInt(i) * 4096n, STAGING, 8))
    // More addresses than any cache holds, visited in turn.
    const sets = Array.from({ length: 64 }, () => Array.from({ length: CALLS }, next))
    let turn = 0
    return {
      step: () => {
        const addresses = sets[turn++ & 63] ?? []
        for (const va of addresses) x.readBytes(s, OP, va, STAGING, 8)
      },
      close: () => {},
    }
  }
}

/** Accesses through the view that is not stored; the counter is held down, so that nothing converts. */
function wrongView(write: boolean): Case['start'] {
  return async () => {
    const { x, view, s, backing } = machine(64, true)
    check(x.writeBytes(s, OP, 0n, STAGING, 64))
    const shared = 1n << 39n
    const frame = view.getUint32(view.getUint32(backing + BACKING_FRAMES, true), true)
    const counter = FRAME_INFO + (frame >>> 12) * SIZEOF_FRAME + FRAME_WRONG
    const addresses = Array.from({ length: 256 }, (_, i) => shared + BigInt(i * 16))
    const access = write ? x.writeBytes : x.readBytes
    return {
      step: () => {
        for (let i = 0; i < CALLS; i++) {
          if ((i & 31) === 0) view.setUint32(counter, 0, true)
          access(s, OP, addresses[i & 255] ?? 0n, STAGING, 8)
        }
      },
      close: () => {},
    }
  }
}

function onMachine(prepare: (m: Machine) => () => void, encrypted = false): Case['start'] {
  return async () => ({ step: prepare(machine(64, encrypted)), close: () => {} })
}

/** `mov [rbx], rax; dec rdx; jnz`: a loop that stores into its own page, 2 KiB away from its code, or into another one. */
function storing(own: boolean): Case['start'] {
  return async () => {
    const { x, view, s, backing } = machine(64, false)
    const code = [0x48, 0x89, 0x03, 0x48, 0xff, 0xca, 0x75, 0xf8, 0xf4]
    code.forEach((byte, i) => view.setUint8(STAGING + i, byte))
    x.backingWrite(backing, 0n, STAGING, code.length) // page 0 is mapped to frame 0
    for (let n = 0; n < 6; n++) {
      const at = s + CPU_SEGMENTS + n * 16
      view.setUint32(at + SEG_LIMIT, 0xffffffff, true)
      view.setUint16(at + SEG_ATTRIB, n === SEG_CS ? 0xa9b : 0xc93, true)
    }
    view.setBigUint64(s + CPU_GPR + 2 * 8, 1n << 60n, true)
    view.setBigUint64(s + CPU_GPR + 3 * 8, own ? 0x800n : 0x5800n, true)
    x.cpuModeChanged(s)
    return {
      step: () => {
        const end = view.getBigUint64(s + CPU_ICOUNT, true) + BigInt(3 * STORES)
        view.setBigUint64(s + CPU_SLICE_END, end, true)
        view.setBigUint64(s + CPU_BUDGET, end, true)
        x.execute(s)
      },
      close: () => {},
    }
  }
}

export const memoryCases: readonly Case[] = [
  {
    name: 'memory-hit',
    unit: 'calls',
    note: 'L1 hit called from JavaScript: subtract it from the others',
    units: CALLS,
    start: reads(256),
  },
  { name: 'memory-miss-64M', unit: 'calls', note: 'random loads over 64 MiB of 4 KiB pages', units: CALLS, start: reads(16384) },
  { name: 'memory-miss-256M', unit: 'calls', note: 'random loads over 256 MiB', units: CALLS, start: reads(65536) },
  {
    name: 'memory-walk',
    unit: 'loads',
    note: 'random loads over 256 MiB in 4 KiB pages, by the translation path alone',
    units: WALK,
    start: translation(),
  },
  { name: 'memory-wrong-read', unit: 'calls', note: 'load through the view that is not stored', units: CALLS, start: wrongView(false) },
  { name: 'memory-wrong-write', unit: 'calls', note: 'partial store through it', units: CALLS, start: wrongView(true) },
  {
    name: 'memory-store',
    unit: 'stores',
    note: 'loop of three instructions that stores into another page',
    units: STORES,
    start: storing(false),
  },
  { name: 'memory-store-code', unit: 'stores', note: 'the same into its own page, beside its code', units: STORES, start: storing(true) },
  {
    name: 'memory-convert',
    unit: 'pages',
    note: 'private to raw and back, flushes included',
    units: 2,
    start: onMachine(({ x, s, backing }) => {
      check(x.writeBytes(s, OP, 0n, STAGING, 64))
      return () => {
        // A whole page: converted to raw, then relabelled; the guest's next touch through the other view sees garbage, not a conversion.
        x.pspEncrypt(backing, 0n, 4096, ASID)
        x.pspEncrypt(backing, 0n, 4096, ASID)
      }
    }, true),
  },
  {
    name: 'memory-flush',
    unit: 'flushes',
    note: 'whole flush with one array in use, and one refill',
    units: 1,
    start: onMachine(({ x, s }) => () => {
      x.flushTlb(s)
      x.readBytes(s, OP, 0n, STAGING, 8)
    }),
  },
  {
    name: 'memory-invlpg',
    unit: 'calls',
    note: 'one page invalidated and read again',
    units: 1,
    start: onMachine(({ x, s }) => () => {
      x.invalidatePage(s, 0x5000n)
      x.readBytes(s, OP, 0x5000n, STAGING, 8)
    }),
  },
]
