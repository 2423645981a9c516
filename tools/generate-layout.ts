/** Writes the constants of spec/layout for assembly/ (typed usize) and host/ (plain numbers). */
import { constants, regions, structs } from '../spec/layout/index.ts'

export function layoutSource(target: 'assembly' | 'host'): string {
  const type = target === 'assembly' ? ': usize' : ''
  const plain = target === 'assembly' ? ': u32' : ''
  const lines = ['// Generated from spec/layout by tools/generate.ts. Do not edit.', '']
  const put = (name: string, value: number, doc: string, kind = type): void => {
    lines.push(`${doc ? `/** ${doc} */\n` : ''}export const ${name}${kind} = ${value < 10 ? value : `0x${value.toString(16)}`}`)
  }
  for (const r of regions) {
    put(r.name, r.offset, r.doc)
    put(`${r.name}_SIZE`, r.size, '')
  }
  const last = regions.find((r) => r.name === 'FRAME_INFO')
  if (!last) throw new Error('spec/layout: no FRAME_INFO region')
  put('HEAP', last.offset + last.size, 'first address handed out by memory/frames.ts')
  for (const s of structs) {
    for (const f of s.fields) put(`${s.name}_${f.name}`, f.offset, f.doc)
    put(`SIZEOF_${s.name}`, s.size, s.doc)
  }
  for (const [name, value] of Object.entries(constants)) put(name, value, '', plain)
  return `${lines.join('\n')}\n`
}
