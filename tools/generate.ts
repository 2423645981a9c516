/** Writes every generated file from spec/. Runs first in `npm run build`; nothing here ships. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { cpuModelsDocument } from './generate-cpu-models.ts'
import { executeSource } from './generate-execute.ts'
import { fillSource } from './generate-fill.ts'
import { guestsSource } from './generate-guests.ts'
import { kvmAssembly, kvmHost } from './generate-kvm.ts'
import { layoutSource } from './generate-layout.ts'
import { msrAssembly, msrHost } from './generate-msr.ts'
import { coverageDocument, opcodesSource } from './generate-opcodes.ts'
import { policyDocument } from './generate-policy.ts'
import { registersSource } from './generate-registers.ts'

/** Writes only what changed, so that incremental builds stay quick. */
function put(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  try {
    if (readFileSync(path, 'utf8') === text) return
  } catch {
    // not there yet
  }
  writeFileSync(path, text)
}

/** Sources of assembly/, by path below it: where the opcode map's handlers are found. */
function assemblySources(): Map<string, string> {
  const files = readdirSync('assembly', { recursive: true, encoding: 'utf8' }).filter(
    (f) => f.endsWith('.ts') && !f.startsWith('generated'),
  )
  return new Map(files.map((f) => [f.replaceAll('\\', '/'), readFileSync(`assembly/${f}`, 'utf8')]))
}

put('assembly/generated/layout.ts', layoutSource('assembly'))
put('assembly/generated/execute.ts', executeSource())
put('assembly/generated/fill.ts', fillSource())
put('assembly/generated/opcodes.ts', opcodesSource(assemblySources()))
put('host/generated/layout.ts', layoutSource('host'))
put('assembly/generated/msr.ts', msrAssembly())
put('assembly/generated/registers.ts', registersSource())
put('host/generated/msr.ts', msrHost())
put('host/generated/guests.ts', guestsSource())
put('docs/opcodes.md', coverageDocument())
put('docs/policy.md', policyDocument())
put('docs/cpu-models.md', cpuModelsDocument())

/** Data files of spec/ that host code reads: carried over as they are (host/ may not import from outside itself). */
const CONDITIONS = [
  'kvm-pointers',
  'kvm-traits',
  'kvm-condition',
  'kvm-conditions',
  ...['vm', 'launch', 'vcpu', 'msr'].map((part) => `kvm-conditions-${part}`),
]
for (const name of ['kvm-abi', 'kvm-policy', 'kvm-profiles', ...CONDITIONS, 'psp', 'cpuid', 'cpu-models']) {
  const text = readFileSync(`spec/${name}.ts`, 'utf8')
  put(`host/generated/${name}.ts`, `// Copied from spec/${name}.ts by tools/generate.ts. Do not edit.\n${text}`)
}
put('host/generated/guests.ts', guestsSource())
put('assembly/generated/kvm.ts', kvmAssembly())
put('host/generated/kvm.ts', kvmHost())
