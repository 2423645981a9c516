/** The firmware's random numbers: seeded, so that a run repeats. SHA-256 of seed, purpose and a counter. */
import { sha256 } from '../../crypto/sha256.ts'

export class Random {
  readonly #seed: Uint8Array
  #counter = 0

  constructor(seed: bigint, purpose: string) {
    const bytes = new Uint8Array(8)
    new DataView(bytes.buffer).setBigUint64(0, seed, true)
    this.#seed = sha256(new TextEncoder().encode(`cloister psp ${purpose}`), bytes)
  }

  bytes(n: number): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(n)
    const counter = new Uint8Array(4)
    for (let at = 0; at < n; at += 32) {
      new DataView(counter.buffer).setUint32(0, this.#counter++, true)
      out.set(sha256(this.#seed, counter).subarray(0, Math.min(32, n - at)), at)
    }
    return out
  }
}
