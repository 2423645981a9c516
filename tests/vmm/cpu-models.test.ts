/** CPU models: what CPUID names is there, what a model masks is not. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CloisterError } from '../../host/errors.ts'
import { openKvm } from '../../host/index.ts'
import { cpuidFor, parseCpu } from '../../host/vmm/cpu-types.ts'
import { Machine } from '../../host/vmm/index.ts'

const kvm = await openKvm({ host: 'amd' })
const supported = kvm.supportedCpuid()
kvm[Symbol.dispose]()

const word = (cpu: string, leaf: number, register: 'eax' | 'ebx' | 'ecx' | 'edx'): number =>
  cpuidFor(supported, 0, 1, undefined, parseCpu(cpu)).entries.find((e) => e.function === leaf)?.[register] ?? 0
const has = (cpu: string, leaf: number, register: 'ebx' | 'ecx' | 'edx', bit: number): boolean =>
  ((word(cpu, leaf, register) >>> bit) & 1) === 1

test('models have the features of their namesakes as far as the engine has them', () => {
  assert.ok(has('EPYC-Genoa', 7, 'ecx', 16), 'LA57')
  assert.not(has('EPYC-Milan', 7, 'ecx', 16))
  assert.not(has('default', 7, 'ecx', 16))
  // Linear address bits (Fn8000_0008_EAX[15:8]): with 48, Linux takes its own addresses in five levels for no kernel addresses.
  const linear = (cpu: string): number => (word(cpu, 0x80000008, 'eax') >> 8) & 0xff
  assert.equal(['EPYC-Genoa', 'default,+la57', 'EPYC-Milan', 'default', 'EPYC-Genoa,-la57'].map(linear), [57, 57, 48, 48, 48])
  assert.ok(has('EPYC-Turin', 7, 'ecx', 27) && has('EPYC-Turin', 7, 'ecx', 28), 'MOVDIRI, MOVDIR64B')
  assert.not(has('EPYC-Genoa', 7, 'ecx', 27))
  assert.not(has('EPYC', 1, 'ecx', 17), 'PCID came with Milan')
  assert.ok(has('EPYC-Milan', 1, 'ecx', 17))
  assert.not(has('EPYC-Genoa', 1, 'ecx', 28), 'AVX is not implemented')
  assert.ok(has('EPYC', 1, 'ecx', 21), "x2APIC is KVM's")
  assert.ok(has('default', 7, 'ecx', 31) && !has('EPYC-Genoa', 7, 'ecx', 31), 'PKS')
})

test('single features are added and removed', () => {
  assert.not(has('default,-pcid', 1, 'ecx', 17))
  assert.ok(has('EPYC,+pcid,-x2apic', 1, 'ecx', 17))
  assert.not(has('EPYC,+pcid,-x2apic', 1, 'ecx', 21))
  const refused = (cpu: string, words: RegExp): void => {
    try {
      cpuidFor(supported, 0, 1, undefined, parseCpu(cpu))
    } catch (error) {
      assert.instance(error, CloisterError)
      assert.match((error as CloisterError).message, words)
      return
    }
    assert.unreachable(cpu)
  }
  refused('Z80', /unknown CPU model 'Z80'/)
  refused('toString', /unknown CPU model/)
  refused('default,avx', /write \+avx or -avx/)
  refused('default,+warp', /unknown CPU feature 'warp'/)
  refused('default,+avx2', /'avx2' is not implemented/)
})

/** Runs `code` in long mode: what it leaves in EAX, or why it did not get there. */
async function outcome(cpu: string, code: number[]): Promise<number | string> {
  const bytes = Uint8Array.of(...code, 0xe7, 0xf4, 0xf4)
  const machine = await Machine.create({
    image: { bytes, load: 0x10000, entry: 0x10000, mode: 'long64' },
    memory: 1 << 21,
    cpu,
    maxInstructions: 1000,
  })
  const { debugExit, reason } = await machine.run()
  machine[Symbol.dispose]()
  return debugExit ?? reason
}

test('MOVDIRI and MOVDIR64B raise #UD unless the model offers them', async () => {
  const b8 = [0xb8, 0x78, 0x56, 0x34, 0x12]
  // mov eax, 0x12345678; movdiri [0x20000], eax; mov eax, [0x20000]
  const direct = [...b8, 0x0f, 0x38, 0xf9, 0x04, 0x25, 0, 0, 2, 0, 0x8b, 0x04, 0x25, 0, 0, 2, 0]
  // mov ecx, 0x20040; mov [0x20000], eax; movdir64b rcx, [0x20000]; mov eax, [rcx]
  const wide = [...b8, 0xb9, 0x40, 0, 2, 0, 0x89, 0x04, 0x25, 0, 0, 2, 0, 0x66, 0x0f, 0x38, 0xf8, 0x0c, 0x25, 0, 0, 2, 0, 0x8b, 0x01]
  for (const code of [direct, wide]) {
    assert.is(await outcome('EPYC-Turin', code), 0x12345678)
    assert.is(await outcome('default', code), 'triple-fault')
  }
})

test('a model has the name and the signature of its namesake, in both leaves', () => {
  const brand = (cpu: string): string => {
    const { entries } = cpuidFor(supported, 0, 1, cpu === 'default' ? undefined : cpu, parseCpu(cpu))
    const words = [0x80000002, 0x80000003, 0x80000004].flatMap((leaf) => {
      const e = entries.find((x) => x.function === leaf)
      return e ? [e.eax, e.ebx, e.ecx, e.edx] : []
    })
    return new TextDecoder().decode(new Uint8Array(Uint32Array.from(words).buffer)).replace(/\0+$/, '')
  }
  assert.is(brand('default'), 'AMD EPYC-Milan Processor')
  assert.is(brand('EPYC'), 'AMD EPYC Processor')
  assert.is(brand('EPYC-IBPB'), 'AMD EPYC Processor (with IBPB)')
  assert.is(brand('EPYC-Rome-v4'), 'AMD EPYC-Rome-v4 Processor (no XSAVES)')
  assert.is(brand('EPYC-Genoa'), 'AMD EPYC-Genoa Processor')
  const { entries } = cpuidFor(supported, 0, 1, 'EPYC-Genoa', parseCpu('EPYC-Genoa'))
  assert.equal(
    [1, 0x80000001].map((leaf) => entries.find((e) => e.function === leaf)?.eax),
    [0xa10f10, 0xa10f10],
  )
})

test('cores of one socket share its L3', () => {
  const { entries } = cpuidFor(supported, 1, 4, undefined)
  const caches = entries.filter((e) => e.function === 0x8000001d && (e.eax & 31) !== 0)
  assert.equal(
    caches.map((e) => [(e.eax >>> 5) & 7, (e.eax >>> 14) & 0xfff]),
    [
      [1, 0],
      [1, 0],
      [2, 0],
      [3, 3],
    ],
  )
  const word1 = entries.find((e) => e.function === 0x80000001)
  assert.ok(word1 && (word1.ecx & 2) === 2, 'CmpLegacy')
})

test('an ordinary guest sees no leaf of encrypted memory; the TSC rate is marked as firmware marks it', async () => {
  // mov eax, 0x8000001f; cpuid
  assert.is(await outcome('default', [0xb8, 0x1f, 0, 0, 0x80, 0x0f, 0xa2]), 0)
  // mov ecx, 0xc0010015; rdmsr
  assert.is(await outcome('default', [0xb9, 0x15, 0, 1, 0xc0, 0x0f, 0x32]), 0x01000000)
})

test('INVPCID at CPL 0 as the model has it', async () => {
  // xor eax, eax; xor ecx, ecx; invpcid rcx, [0x20000]; mov al, 7
  const code = [0x31, 0xc0, 0x31, 0xc9, 0x66, 0x0f, 0x38, 0x82, 0x0c, 0x25, 0, 0, 2, 0, 0xb0, 7]
  assert.is(await outcome('EPYC-Milan', code), 7)
  assert.is(await outcome('EPYC-Rome', code), 'triple-fault')
})

test.run()
