/**
 * Damaged guests: 4,000 mutated kernels and firmware images, every prefix of each format, absurd header fields. A file is refused
 * by one line, or what is loaded lies in memory, does not overlap, and runs to any end but a trap of the emulator.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CloisterError } from '../../host/errors.ts'
import { loadKernel } from '../../host/vmm/loaders/kernel.ts'
import { loadFirmware } from '../../host/vmm/loaders/ovmf.ts'
import { Machine } from '../../host/vmm/machine.ts'
import { splitMemory } from '../../host/vmm/memory.ts'
import { ovmfPath } from '../support/needs.ts'
import { read } from '../guests-real/boot.ts'
import { bzImage, multiboot, multibootFlat, pvh } from './synthetic.ts'

const MiB = 1024 * 1024
const MEMORY = 16 * MiB
const seed = Number(process.env['CLOISTER_FUZZ_SEED'] ?? '1')

/** xorshift32 */
function generator(state: number): () => number {
  let x = state | 0 || 1
  return () => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return x >>> 0
  }
}

/** The first bytes of real kernels where they are at hand. */
function heads(): [string, Uint8Array][] {
  const found: [string, Uint8Array][] = []
  for (const name of ['vmlinuz-6.12', 'vmlinux-6.12']) {
    try {
      found.push([name, read(name).subarray(0, 64 * 1024)])
    } catch {
      // not there
    }
  }
  return found
}
const samples: [name: string, bytes: Uint8Array][] = [
  ['multiboot', multiboot()],
  ['multiboot with addresses', multibootFlat()],
  ['multiboot flat, bss', multibootFlat({ end: 0x100200, bss: 0x110000 })],
  ['pvh', pvh()],
  ['bzImage', bzImage()],
  ['bzImage of 32 bits', bzImage({ flags: 0 })],
  ...heads(),
]

const interesting = [0, 1, 0x7f, 0x80, 0xff, 0xfff, 0x1000, 0xffff, 0x100000, 0x7fffffff, 0x80000000, 0xfffff000, 0xffffffff]

function mutate(original: Uint8Array, next: () => number): Uint8Array {
  let bytes = original.slice()
  for (let n = 1 + (next() % 4); n > 0; n--) {
    // Headers are where it matters.
    const at = next() % Math.min(bytes.length, next() % 4 === 0 ? bytes.length : 0x300)
    switch (next() % 6) {
      case 0:
        bytes[at] = next()
        break
      case 1:
        bytes[at] = (bytes[at] ?? 0) ^ (1 << (next() & 7))
        break
      case 2:
      case 3:
        if (at + 4 <= bytes.length) new DataView(bytes.buffer).setUint32(at & ~3, interesting[next() % interesting.length] ?? 0, true)
        break
      case 4:
        bytes = bytes.slice(0, at)
        break
      default:
        bytes.copyWithin(next() % bytes.length, at, at + (next() % 64))
    }
    if (bytes.length === 0) return bytes
  }
  return bytes
}

/** Runs `f`; what it throws must be the package's own error, one short line of printable text. */
function refusal<T>(where: string, f: () => T): T | undefined {
  try {
    return f()
  } catch (error) {
    if (!(error instanceof CloisterError)) throw new Error(`${where}: ${(error as Error).stack}`, { cause: error })
    assert.match(error.message, /^[\x20-\x7e]{1,200}$/, where)
    return undefined
  }
}

function check(where: string, kernel: Uint8Array, memory = MEMORY, initrd?: Uint8Array): boolean {
  const loaded = refusal(where, () => loadKernel({ kernel, memory, cpus: 1, initrd, append: 'quiet' }))
  if (!loaded) return false
  const { low } = splitMemory(memory)
  let end = 0
  for (const { address, bytes } of loaded.pieces) {
    assert.ok(
      Number.isInteger(address) && address >= end,
      `${where}: a piece at 0x${address.toString(16)} overlaps what ends at 0x${end.toString(16)}`,
    )
    end = address + bytes.length
  }
  assert.ok(end <= low, `${where}: loaded to 0x${end.toString(16)} of 0x${low.toString(16)}`)
  return true
}

test('every prefix of every format', () => {
  for (const [name, bytes] of samples) {
    const step = bytes.length > 4096 ? 61 : 1
    for (let n = 0; n < bytes.length; n += step) check(`${name} cut to ${n}`, bytes.subarray(0, n))
  }
})

test('initrds and memories of every size', () => {
  for (const [name, bytes] of samples) {
    for (const memory of [MiB, 2 * MiB, 3 * MiB, 4 * MiB, MEMORY])
      for (const size of [1, 4095, 4096, MiB, 2 * MiB, 3 * MiB, 13 * MiB, 14 * MiB, MEMORY - 4096, MEMORY, 2 * MEMORY])
        check(`${name}, initrd ${size}, memory ${memory}`, bytes, memory, new Uint8Array(size))
  }
})

const accepted: [string, Uint8Array][] = []
test('4,000 mutated kernels', () => {
  for (let i = 0; i < 4000; i++) {
    const [name, bytes] = samples[i % samples.length] as [string, Uint8Array]
    const number = seed * 1000003 + i
    const bad = mutate(bytes, generator(number))
    if (check(`${name}, seed ${number}`, bad)) accepted.push([`${name}, seed ${number}`, bad])
  }
  process.stdout.write(`seed ${seed}: ${accepted.length} of 4000 accepted\n`)
})

test('what was accepted runs to an end', async () => {
  const some = accepted.filter((_, i) => i % Math.ceil(accepted.length / 120) === 0)
  const ends = new Map<string, number>()
  for (const [where, kernel] of some) {
    const machine = await Machine.create({ kernel, memory: MEMORY, maxInstructions: 30_000, timeoutSeconds: 30 })
    const { reason, status, detail } = await machine.run()
    machine[Symbol.dispose]()
    ends.set(reason, (ends.get(reason) ?? 0) + 1)
    // 120 is for what the emulator does not implement; it must say what by name.
    if (status === 120) assert.not.match(`${detail}`, /unreachable|RuntimeError|out of bounds|TypeError|undefined/, where)
    assert.not.match(`${detail}`, /\n/, where)
  }
  process.stdout.write(`${[...ends].map(([k, n]) => `${k} ${n}`).join(', ')}\n`)
})

test('firmware: prefixes and mutations', () => {
  const path = ovmfPath()
  const image = new Uint8Array(0x10000).map((_, i) => (i * 7) & 255)
  if (path === null) image.set([0xea, 0, 0, 0, 0xf0], 0xfff0)
  const next = generator(seed)
  for (let i = 0; i < 2000; i++) {
    const bad = image.slice()
    for (let n = next() % 8; n > 0; n--) bad[bad.length - 1 - (next() % 128)] = next()
    refusal(`firmware ${i}`, () => loadFirmware(i % 3 ? bad : bad.subarray(0, next() % bad.length)))
  }
})

test.run()
