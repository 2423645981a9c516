/** Writes docs/cpu-models.md: what each CPU model offers and what it lacks against its namesake. */
import {
  CPU_ADDED,
  CPU_BEYOND_KVM,
  CPU_DEFAULT_WITHOUT,
  CPU_MODELS,
  FEATURE_BITS,
  FEATURE_WORDS,
  type FeatureWord,
} from '../spec/cpu-models.ts'
import { CPUID_AMD } from '../spec/cpuid.ts'

const column = { eax: 2, ebx: 3, ecx: 4, edx: 5 } as const

/** Features that spec/cpuid.ts offers, in the order of the bits. */
function offered(): string[] {
  return (Object.keys(FEATURE_WORDS) as FeatureWord[]).flatMap((word) => {
    const [leaf, subleaf, register] = FEATURE_WORDS[word]
    const row = CPUID_AMD.find((r) => r[0] === leaf && (r[1] ?? 0) === subleaf)
    return Object.entries(FEATURE_BITS[word])
      .filter(([, bit]) => row !== undefined && ((row[column[register]] >>> bit) & 1) === 1)
      .map(([name]) => name)
  })
}

export function cpuModelsDocument(): string {
  const have = new Set([...offered(), ...CPU_BEYOND_KVM.split(' ')])
  const added = new Set(CPU_ADDED.split(' '))
  const left = new Set(CPU_DEFAULT_WITHOUT.split(' '))
  const list = (names: Iterable<string>): string => [...names].map((n) => `\`${n}\``).join(' ') || 'nothing'
  // Models with equal features and family share a line.
  const groups = new Map<string, string[]>()
  for (const [name, { family, model, stepping, features }] of Object.entries(CPU_MODELS)) {
    const key = `${family}/${model}/${stepping}/${features.split(' ').toSorted().join(' ')}`
    groups.set(key, [...(groups.get(key) ?? []), name])
  }
  const rows = [...groups.values()].map((names) => {
    const { family, model, stepping, features } = CPU_MODELS[names[0] as string] as (typeof CPU_MODELS)[string]
    const lacks = features.split(' ').filter((f) => !have.has(f))
    return `| ${names.map((n) => `\`${n}\``).join(', ')} | ${family}, ${model}, ${stepping} | ${list(lacks)} |`
  })
  return `<!-- Written by tools/generate-cpu-models.ts from spec/cpu-models.ts and spec/cpuid.ts. Do not edit. -->
# CPU models

\`--cpu MODEL\` chooses what CPUID tells the guest. A model has the signature of its namesake (QEMU's name) and those of its
features that this emulator executes; what is masked in CPUID is not there: its instructions raise #UD, its control-register bits #GP.
\`--cpu MODEL,+FEATURE,-FEATURE\` adds and removes single features.

All models also have what KVM emulates itself: ${list(added)}. KVM_GET_SUPPORTED_CPUID never names ${list(CPU_BEYOND_KVM.split(' '))}; a guest may have it all the same.

\`default\` is the signature of EPYC-Milan with everything that the emulator has but ${list(left)}:
${list([...have].filter((f) => !left.has(f)))}.

Everything that can be asked for: ${list(have)}.

## What a model lacks against its namesake

| model | family, model, stepping | lacks |
|---|---|---|
${rows.join('\n')}
`
}
