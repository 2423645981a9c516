/** Writes spec/registers.ts as typed constants for assembly/. */
import { registerBits, registerFields } from '../spec/registers.ts'

export function registersSource(): string {
  const lines = ['// Generated from spec/registers.ts by tools/generate.ts. Do not edit.']
  for (const [register, { document, bits }] of Object.entries(registerBits)) {
    lines.push('', `// ${document}`)
    for (const [name, bit] of Object.entries(bits)) lines.push(`export const ${register}_${name}: u64 = 1 << ${bit}`)
  }
  lines.push('', ...Object.entries(registerFields).map(([name, mask]) => `export const ${name}: u64 = 0x${mask.toString(16)}`))
  return `${lines.join('\n')}\n`
}
