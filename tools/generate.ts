/** Writes every generated file from spec/. Runs first in `npm run build`; nothing here ships. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { guestsSource } from './generate-guests.ts'
import { layoutSource } from './generate-layout.ts'

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

put('assembly/generated/layout.ts', layoutSource('assembly'))
put('host/generated/layout.ts', layoutSource('host'))

/** Data files of spec/ that host code reads: carried over as they are (host/ may not import from outside itself). */
for (const name of ['kvm-abi', 'kvm-policy', 'psp', 'cpuid']) {
  const text = readFileSync(`spec/${name}.ts`, 'utf8')
  put(`host/generated/${name}.ts`, `// Copied from spec/${name}.ts by tools/generate.ts. Do not edit.\n${text}`)
}
put('host/generated/guests.ts', guestsSource())
