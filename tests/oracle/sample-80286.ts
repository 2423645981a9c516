/** `node build/tests/oracle/sample-80286.js FOLDER [PER_OPCODE]`: makes tests/vectors/80286/sample.moo.gz, see the README there. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync, gzipSync } from 'node:zlib'
import { chunks } from './moo.ts'

function chunk(tag: string, ...parts: Uint8Array[]): Uint8Array {
  const body = Buffer.concat(parts)
  const head = Buffer.alloc(8)
  head.write(tag, 'latin1')
  head.writeUInt32LE(body.length, 4)
  return Buffer.concat([head, body])
}

/** A TEST chunk without what the test does not look at. */
function stripped(body: Uint8Array): Uint8Array {
  const kept: Uint8Array[] = [body.subarray(0, 4)]
  for (const c of chunks(body.subarray(4))) {
    if (c.tag === 'BYTS' || c.tag === 'EXCP') kept.push(c.whole)
    else if (c.tag === 'INIT' || c.tag === 'FINA')
      kept.push(chunk(c.tag, ...[...chunks(c.body)].filter((x) => x.tag !== 'QUEU').map((x) => x.whole)))
  }
  return chunk('TEST', ...kept)
}

const [folder = '', per = '14'] = process.argv.slice(2)
const out: Uint8Array[] = []
for (const file of readdirSync(folder)
  .filter((f) => f.endsWith('.MOO.gz'))
  .toSorted()) {
  const tests = [...chunks(gunzipSync(readFileSync(join(folder, file))))].filter((c) => c.tag === 'TEST')
  const step = Math.max(1, Math.floor(tests.length / Number(per)))
  out.push(chunk('FILE', Buffer.from(file.replace('.MOO.gz', ''))))
  for (let i = 0; i < Number(per) && i * step < tests.length; i++) out.push(stripped(tests[i * step]?.body ?? new Uint8Array()))
}
const packed = gzipSync(Buffer.concat(out), { level: 9 })
writeFileSync(fileURLToPath(new URL('../../../tests/vectors/80286/sample.moo.gz', import.meta.url)), packed)
process.stdout.write(`${packed.length} bytes\n`)
