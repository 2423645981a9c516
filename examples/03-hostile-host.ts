/**
 * A host that flips one bit of an SEV-ES guest's private memory: it sees only ciphertext, and what it writes decrypts
 * to noise. `node build/examples/03-hostile-host.js`
 */
import { readFileSync } from 'node:fs'
import { Machine } from 'cloister/vmm'

const bytes = new Uint8Array(readFileSync(new URL('../../tests/guests/sev-es.bin', import.meta.url)))
const LOAD = 0x200000
const SECRET = LOAD + Buffer.from(bytes).indexOf('PRIVATE')

async function run(flip: number | null): Promise<void> {
  using machine = await Machine.create({
    type: 'sev-es',
    image: { bytes, load: LOAD, entry: LOAD, mode: 'long64' },
    memory: 16 * 1024 * 1024,
  })
  machine.launch()
  const seen = machine.readMemory(SECRET, 16)
  process.stdout.write(`the host reads ${seen === null ? 'nothing' : Buffer.from(seen).toString('hex')} where the guest keeps its secret\n`)
  if (flip !== null) {
    const byte = machine.readMemory(flip, 1) ?? new Uint8Array(1)
    machine.writeMemory(flip, Uint8Array.of((byte[0] ?? 0) ^ 1))
  }
  const { reason, detail } = await machine.run()
  process.stdout.write(`${flip === null ? 'untouched' : 'one bit of its code flipped'}: ${reason}${detail === null ? '' : `, ${detail}`}\n`)
}

await run(null)
await run(LOAD + 0x60)
