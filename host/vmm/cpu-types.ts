/**
 * vCPU types and CPU models by QEMU's names (target/i386/cpu.c). What a launch measures of the type is the signature
 * CPUID(1).EAX, which the initial VMSA holds in RDX; what a guest sees of the model is CPUID.
 */
import { CloisterError } from '../errors.ts'
import {
  CPU_ADDED,
  CPU_BEYOND_KVM,
  CPU_DEFAULT_WITHOUT,
  CPU_MODELS,
  FEATURE_BITS,
  FEATURE_WORDS,
  type FeatureWord,
} from '../generated/cpu-models.ts'

/** CPUID(1).EAX from family, model and stepping (APM vol 3, Fn0000_0001_EAX). */
function signature(family: number, model: number, stepping: number): number {
  const base = Math.min(family, 15)
  return ((family - base) << 20) | ((model >> 4) << 16) | (base << 8) | ((model & 15) << 4) | stepping
}

/** CPUID(1).EAX by vCPU type, as QEMU and sev-snp-measure name them. */
export const vcpuTypes: Readonly<Record<string, number>> = Object.fromEntries(
  Object.entries(CPU_MODELS).map(([name, { family, model, stepping }]) => [name, signature(family, model, stepping)]),
)

/** CPUID(1).EAX of a vCPU type; CloisterError `vcpu-type` for a name that is none. */
export function vcpuSignature(name: string): number {
  const found = Object.hasOwn(vcpuTypes, name) ? vcpuTypes[name] : undefined
  if (found === undefined) throw new CloisterError('vcpu-type', `unknown vCPU type '${name}': one of ${Object.keys(vcpuTypes).join(', ')}`)
  return found
}

export interface CpuidEntry {
  function: number
  index: number
  flags: number
  eax: number
  ebx: number
  ecx: number
  edx: number
}

/** `MODEL[,+FEATURE|,-FEATURE]...` */
export interface CpuChoice {
  /** `default` or a name of CPU_MODELS. */
  model: string
  add: readonly string[]
  remove: readonly string[]
}

const wordOf = new Map<string, [word: FeatureWord, bit: number]>(
  (Object.keys(FEATURE_BITS) as FeatureWord[]).flatMap((word) =>
    Object.entries(FEATURE_BITS[word]).map(([name, bit]): [string, [FeatureWord, number]] => [name, [word, bit]]),
  ),
)

/** Refuses what is no model or no feature. */
export function parseCpu(text: string): CpuChoice {
  const [model = '', ...changes] = text.split(',')
  if (model !== 'default' && !Object.hasOwn(CPU_MODELS, model))
    throw new CloisterError('cpu', `unknown CPU model '${model}': default, ${Object.keys(CPU_MODELS).join(', ')}`)
  for (const change of changes) {
    if (!/^[+-]/.test(change)) throw new CloisterError('cpu', `CPU feature '${change}': write +${change} or -${change}`)
    if (!wordOf.has(change.slice(1))) throw new CloisterError('cpu', `unknown CPU feature '${change.slice(1)}'`)
  }
  const of = (sign: string): string[] => changes.filter((c) => c[0] === sign).map((c) => c.slice(1))
  return { model, add: of('+'), remove: of('-') }
}

/** "Auth", CPUID(0).EBX of AMD. */
const AUTHENTIC_AMD = 0x68747541

/** The brand string of a named model in place of the host's (APM vol 3, Fn8000_0002-4: 48 bytes, ended by zeros). */
function setBrand(entries: readonly CpuidEntry[], brand: string): void {
  const bytes = new Uint8Array(48)
  bytes.set(new TextEncoder().encode(brand).subarray(0, 47))
  const view = new DataView(bytes.buffer)
  for (const e of entries) {
    const at = (e.function - 0x80000002) * 16
    if (at < 0 || at > 32) continue
    for (const [i, register] of (['eax', 'ebx', 'ecx', 'edx'] as const).entries()) e[register] = view.getUint32(at + i * 4, true)
  }
}

/** The supported entries with the model's features; a feature that is asked for and not there is refused. */
function masked(supported: readonly CpuidEntry[], { model, add, remove }: CpuChoice): CpuidEntry[] {
  const wanted = new Set(
    `${model === 'default' ? [...wordOf.keys()].join(' ') : (CPU_MODELS[model]?.features ?? '')} ${CPU_ADDED}`.split(' '),
  )
  if (model === 'default') for (const name of CPU_DEFAULT_WITHOUT.split(' ')) wanted.delete(name)
  for (const name of add) wanted.add(name)
  for (const name of remove) wanted.delete(name)
  const entries = supported.map((e) => ({ ...e }))
  const brand = CPU_MODELS[model]?.brand
  if (brand !== undefined) setBrand(entries, brand)
  for (const [name, [word, bit]] of wordOf) {
    const [leaf, subleaf, register] = FEATURE_WORDS[word]
    const entry = entries.find((e) => e.function === leaf && (e.flags === 0 || e.index === subleaf))
    if (entry && CPU_BEYOND_KVM.split(' ').includes(name)) entry[register] = (entry[register] | (1 << bit)) >>> 0
    if (add.includes(name) && (!entry || ((entry[register] >>> bit) & 1) === 0))
      throw new CloisterError('cpu', `CPU feature '${name}' is not implemented`)
    if (entry && !wanted.has(name)) entry[register] = (entry[register] & ~(1 << bit)) >>> 0
  }
  return entries
}

/**
 * CPUID of one vCPU: what KVM supports, with its APIC id and the number of CPUs filled in (QEMU's topology for `-smp N`:
 * N cores of one socket, one thread each), with the features of `cpu` and the signature of `type` when one is asked for.
 */
export function cpuidFor(
  supported: readonly CpuidEntry[],
  id: number,
  cpus: number,
  type: string | undefined,
  cpu: CpuChoice = { model: 'default', add: [], remove: [] },
): { entries: CpuidEntry[]; signature: number } {
  const bits = Math.ceil(Math.log2(cpus))
  const amd = supported[0]?.ebx === AUTHENTIC_AMD
  let found = type === undefined ? 0 : vcpuSignature(type)
  const offered = masked(supported, cpu)
  const la57 = offered.some((e) => e.function === 7 && e.index === 0 && (e.ecx & 0x10000) !== 0)
  const entries = offered.map((e) => {
    switch (e.function) {
      case 1:
        if (type === undefined) found = e.eax
        else e.eax = found
        e.ebx = ((e.ebx & 0xff00) | (id << 24) | (cpus << 16)) >>> 0
        if (cpus > 1) e.edx = (e.edx | 0x10000000) >>> 0
        break
      case 0xb:
        e.edx = id
        break
      case 0x80000001:
        // The signature again; CmpLegacy where AMD has several cores (APM vol 3, Fn8000_0001).
        if (amd) {
          e.eax = found
          if (cpus > 1) e.ecx = (e.ecx | 2) >>> 0
        }
        break
      case 0x8000001d:
        // Every core has its L1 and L2; the L3 belongs to all.
        if (((e.eax >>> 5) & 7) === 3) e.eax = (e.eax | (((1 << bits) - 1) << 14)) >>> 0
        break
      case 0x80000008:
        // Linear address bits: Linux takes what is beyond them for no kernel address (copy_from_kernel_nofault).
        e.eax = (e.eax & ~0xff00) | (la57 ? 0x3900 : 0x3000)
        e.ecx = cpus > 1 ? (bits << 12) | (cpus - 1) : 0
        break
      case 0x8000001e:
        e.eax = id
        e.ebx = id & 0xff
        e.ecx = 0
    }
    return e
  })
  for (const e of entries) {
    if (e.function !== 0xb) continue
    // Level 0: threads (one), level 1: cores of the package.
    e.eax = e.index === 1 ? bits : 0
    e.ebx = e.index === 0 ? 1 : e.index === 1 ? cpus : 0
    e.ecx = e.index | (e.index === 0 ? 0x100 : e.index === 1 ? 0x200 : 0)
  }
  return { entries, signature: found }
}

/**
 * What firmware has set before it starts a kernel: on AMD, HWCR.TscFreqSel, because the TSC does not change its rate (APM vol 2,
 * 3.2.10 and Fn8000_0007; KVM leaves this to the VMM), and without firmware the MTRRs: on, write-back everywhere.
 */
export function firmwareMsrs(entries: readonly CpuidEntry[], direct: boolean): { index: number; value: bigint }[] {
  const invariant = entries.some((e) => e.function === 0x80000007 && (e.edx & 0x100) !== 0)
  const amd = entries.some((e) => e.function === 0 && e.ebx === AUTHENTIC_AMD)
  const mtrr = entries.some((e) => e.function === 1 && (e.edx & 0x1000) !== 0)
  return [
    ...(amd && invariant ? [{ index: 0xc0010015, value: 1n << 24n }] : []),
    ...(direct && mtrr ? [{ index: 0x2ff, value: 0x806n }] : []),
  ]
}
