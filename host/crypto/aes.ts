/** AES-128 (FIPS 197), forward direction only, and CTR mode (SP 800-38A): what SEV's key wrapping and launch secrets use. */

const SBOX = (() => {
  const box = new Uint8Array(256)
  // Multiplicative inverses by walking the generator 3 and its inverse, then the affine map (FIPS 197, 5.1.1).
  let p = 1
  let q = 1
  do {
    p = (p ^ (p << 1) ^ (p & 0x80 ? 0x11b : 0)) & 0xff
    q ^= q << 1
    q ^= q << 2
    q ^= q << 4
    q &= 0xff
    if (q & 0x80) q ^= 0x09
    const rotate = (n: number): number => ((q << n) | (q >> (8 - n))) & 0xff
    box[p] = q ^ rotate(1) ^ rotate(2) ^ rotate(3) ^ rotate(4) ^ 0x63
  } while (p !== 1)
  box[0] = 0x63
  return box
})()

function expand(key: Uint8Array): Uint8Array {
  const w = new Uint8Array(176)
  w.set(key)
  for (let i = 16, rcon = 1; i < 176; i += 4) {
    let t = [w[i - 4], w[i - 3], w[i - 2], w[i - 1]] as number[]
    if (i % 16 === 0) {
      t = [SBOX[t[1] as number], SBOX[t[2] as number], SBOX[t[3] as number], SBOX[t[0] as number]] as number[]
      t[0] = (t[0] as number) ^ rcon
      rcon = (rcon << 1) ^ (rcon & 0x80 ? 0x11b : 0)
    }
    for (let j = 0; j < 4; j++) w[i + j] = (w[i - 16 + j] as number) ^ (t[j] as number)
  }
  return w
}

const double = (x: number): number => ((x << 1) ^ (x & 0x80 ? 0x11b : 0)) & 0xff

function encryptBlock(w: Uint8Array, input: Uint8Array): Uint8Array {
  let s = input.map((b, i) => b ^ (w[i] as number))
  for (let round = 1; round <= 10; round++) {
    // SubBytes and ShiftRows.
    const t = s.map((_, i) => SBOX[s[(i + 4 * (i % 4)) % 16] as number] as number)
    if (round < 10) {
      for (let c = 0; c < 16; c += 4) {
        const [a, b, d, e] = [t[c], t[c + 1], t[c + 2], t[c + 3]] as [number, number, number, number]
        const all = a ^ b ^ d ^ e
        t[c] = a ^ all ^ double(a ^ b)
        t[c + 1] = b ^ all ^ double(b ^ d)
        t[c + 2] = d ^ all ^ double(d ^ e)
        t[c + 3] = e ^ all ^ double(e ^ a)
      }
    }
    s = t.map((b, i) => b ^ (w[round * 16 + i] as number))
  }
  return s
}

/** Encrypts or decrypts (the same) with a big-endian 128-bit counter that starts at `iv`. */
export function aes128Ctr(key: Uint8Array, iv: Uint8Array, data: Uint8Array): Uint8Array<ArrayBuffer> {
  if (key.length !== 16 || iv.length !== 16) throw new RangeError('aes128Ctr: key and iv are 16 bytes')
  const w = expand(key)
  const counter = new Uint8Array(iv)
  const out = new Uint8Array(data.length)
  for (let at = 0; at < data.length; at += 16) {
    const stream = encryptBlock(w, counter)
    for (let i = 0; i < 16 && at + i < data.length; i++) out[at + i] = (data[at + i] as number) ^ (stream[i] as number)
    for (let i = 15; i >= 0; i--) {
      counter[i] = ((counter[i] as number) + 1) & 0xff
      if (counter[i] !== 0) break
    }
  }
  return out
}
