/**
 * AES-128 and AES-256 (FIPS 197), forward direction only, with CTR (SP 800-38A) and GCM (SP 800-38D): what SEV's key
 * wrapping and packets, and SNP's wrapped VLEK use. Synchronous: WebCrypto is not, ioctls are.
 */

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

const double = (x: number): number => ((x << 1) ^ (x & 0x80 ? 0x11b : 0)) & 0xff

/** SubBytes and MixColumns of one byte of row 0, as a big-endian column; rows 1..3 are its rotations. */
const TABLE = Int32Array.from(SBOX, (s) => (double(s) << 24) | (s << 16) | (s << 8) | (double(s) ^ s))

/** Round keys as big-endian words (FIPS 197, 5.2). */
function expand(key: Uint8Array): Int32Array {
  const nk = key.length / 4
  const w = new Int32Array(4 * (nk + 7))
  const view = new DataView(key.buffer, key.byteOffset, key.byteLength)
  const sub = (x: number): number =>
    ((SBOX[x >>> 24] as number) << 24) |
    ((SBOX[(x >>> 16) & 255] as number) << 16) |
    ((SBOX[(x >>> 8) & 255] as number) << 8) |
    (SBOX[x & 255] as number)
  for (let i = 0, rcon = 1; i < w.length; i++) {
    if (i < nk) {
      w[i] = view.getInt32(i * 4)
      continue
    }
    let t = w[i - 1] as number
    if (i % nk === 0) {
      t = sub((t << 8) | (t >>> 24)) ^ (rcon << 24)
      rcon = double(rcon)
    } else if (nk > 6 && i % nk === 4) t = sub(t)
    w[i] = (w[i - nk] as number) ^ t
  }
  return w
}

function mix(p: number, q: number, r: number, s: number): number {
  const x = TABLE[(q >>> 16) & 255] as number
  const y = TABLE[(r >>> 8) & 255] as number
  const z = TABLE[s & 255] as number
  return (TABLE[p >>> 24] as number) ^ ((x >>> 8) | (x << 24)) ^ ((y >>> 16) | (y << 16)) ^ ((z >>> 24) | (z << 8))
}

function last(p: number, q: number, r: number, s: number): number {
  return (
    ((SBOX[p >>> 24] as number) << 24) |
    ((SBOX[(q >>> 16) & 255] as number) << 16) |
    ((SBOX[(r >>> 8) & 255] as number) << 8) |
    (SBOX[s & 255] as number)
  )
}

/** One block: four big-endian words of `block`, in place. */
function encryptBlock(w: Int32Array, block: Int32Array): void {
  let a = (block[0] as number) ^ (w[0] as number)
  let b = (block[1] as number) ^ (w[1] as number)
  let c = (block[2] as number) ^ (w[2] as number)
  let d = (block[3] as number) ^ (w[3] as number)
  let k = 4
  for (; k < w.length - 4; k += 4) {
    const e = mix(a, b, c, d) ^ (w[k] as number)
    const f = mix(b, c, d, a) ^ (w[k + 1] as number)
    const g = mix(c, d, a, b) ^ (w[k + 2] as number)
    d = mix(d, a, b, c) ^ (w[k + 3] as number)
    a = e
    b = f
    c = g
  }
  block[0] = last(a, b, c, d) ^ (w[k] as number)
  block[1] = last(b, c, d, a) ^ (w[k + 1] as number)
  block[2] = last(c, d, a, b) ^ (w[k + 2] as number)
  block[3] = last(d, a, b, c) ^ (w[k + 3] as number)
}

function words(bytes: Uint8Array): Int32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return Int32Array.of(view.getInt32(0), view.getInt32(4), view.getInt32(8), view.getInt32(12))
}

/** XORs `data` with the key stream of a big-endian 128-bit counter. */
function ctr(w: Int32Array, iv: Uint8Array, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const counter = words(iv)
  const stream = new Int32Array(4)
  const out = new Uint8Array(data)
  for (let at = 0; at < out.length; at += 16) {
    stream.set(counter)
    encryptBlock(w, stream)
    const n = Math.min(16, out.length - at)
    for (let i = 0; i < n; i++) out[at + i] = (out[at + i] as number) ^ ((stream[i >> 2] as number) >>> (24 - 8 * (i & 3)))
    for (let i = 3; i >= 0; i--) {
      counter[i] = (counter[i] as number) + 1
      if (counter[i] !== 0) break
    }
  }
  return out
}

/** AES-128-CTR: encrypts or decrypts (the same) with a counter that starts at `iv`. */
export function aes128Ctr(key: Uint8Array, iv: Uint8Array, data: Uint8Array): Uint8Array<ArrayBuffer> {
  if (key.length !== 16 || iv.length !== 16) throw new RangeError('aes128Ctr: key and iv are 16 bytes')
  return ctr(expand(key), iv, data)
}

/** GHASH (SP 800-38D, 6.4) of additional data and ciphertext. */
function ghash(h: bigint, aad: Uint8Array, data: Uint8Array): bigint {
  let y = 0n
  const multiply = (x: bigint): bigint => {
    let z = 0n
    let v = h
    for (let i = 127n; i >= 0n; i--) {
      if ((x >> i) & 1n) z ^= v
      v = v & 1n ? (v >> 1n) ^ (0xe1n << 120n) : v >> 1n
    }
    return z
  }
  for (const bytes of [aad, data]) {
    for (let at = 0; at < bytes.length; at += 16) {
      let block = 0n
      for (let i = 0; i < 16; i++) block = (block << 8n) | BigInt(bytes[at + i] ?? 0)
      y = multiply(y ^ block)
    }
  }
  return multiply(y ^ (BigInt(aad.length * 8) << 64n) ^ BigInt(data.length * 8))
}

/** AES-256-GCM with a 12-byte IV. `sealing`: `data` is plaintext, else ciphertext. The tag is over the ciphertext either way. */
export function aes256Gcm(
  key: Uint8Array,
  iv: Uint8Array,
  aad: Uint8Array,
  data: Uint8Array,
  sealing: boolean,
): { data: Uint8Array<ArrayBuffer>; tag: Uint8Array<ArrayBuffer> } {
  if (key.length !== 32 || iv.length !== 12) throw new RangeError('aes256Gcm: key of 32 and iv of 12 bytes')
  const w = expand(key)
  const h = new Int32Array(4)
  encryptBlock(w, h)
  const subkey = h.reduce((sum, word) => (sum << 32n) | BigInt(word >>> 0), 0n)
  const block = (count: number): Uint8Array => Uint8Array.of(...iv, 0, 0, 0, count)
  const out = ctr(w, block(2), data)
  let tag = ghash(subkey, aad, sealing ? out : data)
  const bytes = new Uint8Array(16)
  for (let i = 15; i >= 0; i--, tag >>= 8n) bytes[i] = Number(tag & 0xffn)
  return { data: out, tag: ctr(w, block(1), bytes) }
}
