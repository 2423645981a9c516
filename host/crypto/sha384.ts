/** SHA-384 (FIPS 180-4), synchronous, on pairs of 32-bit words: SNP's launch digest and ID block signatures. */

/** Floor of the k-th root. */
function root(n: bigint, k: bigint): bigint {
  let low = 0n
  let high = 1n << BigInt(Math.ceil(n.toString(2).length / Number(k)) + 1)
  while (low < high) {
    const middle = (low + high + 1n) >> 1n
    if (middle ** k <= n) low = middle
    else high = middle - 1n
  }
  return low
}

const PRIMES = Array.from({ length: 410 }, (_, n) => n).filter(
  (n) => n > 1 && ![2, 3, 5, 7, 11, 13, 17, 19].some((p) => p < n && n % p === 0),
)

/** The first 64 bits of the fractional part of the k-th root of a prime, as two words. */
const fraction = (prime: number, k: bigint): [number, number] => {
  const bits = root(BigInt(prime) << (64n * k), k) & 0xffff_ffff_ffff_ffffn
  return [Number(bits >> 32n), Number(bits & 0xffff_ffffn)]
}

let constants: { readonly k: Int32Array; readonly initial: Int32Array } | null = null

/** K: cube roots of the first 80 primes (4.2.3); H0: square roots of the 9th to 16th (5.3.4). */
function tables(): { readonly k: Int32Array; readonly initial: Int32Array } {
  constants ??= {
    k: Int32Array.from(PRIMES.slice(0, 80).flatMap((p) => fraction(p, 3n))),
    initial: Int32Array.from(PRIMES.slice(8, 16).flatMap((p) => fraction(p, 2n))),
  }
  return constants
}

const W = new Int32Array(160)

function compress(state: Int32Array, view: DataView, at: number): void {
  const { k } = tables()
  for (let i = 0; i < 32; i++) W[i] = view.getInt32(at + i * 4)
  for (let i = 32; i < 160; i += 2) {
    const [ah, al] = [W[i - 30] as number, W[i - 29] as number]
    const [bh, bl] = [W[i - 4] as number, W[i - 3] as number]
    // sigma0: ROTR 1, ROTR 8, SHR 7; sigma1: ROTR 19, ROTR 61, SHR 6.
    const s0h = ((ah >>> 1) | (al << 31)) ^ ((ah >>> 8) | (al << 24)) ^ (ah >>> 7)
    const s0l = ((al >>> 1) | (ah << 31)) ^ ((al >>> 8) | (ah << 24)) ^ ((al >>> 7) | (ah << 25))
    const s1h = ((bh >>> 19) | (bl << 13)) ^ ((bl >>> 29) | (bh << 3)) ^ (bh >>> 6)
    const s1l = ((bl >>> 19) | (bh << 13)) ^ ((bh >>> 29) | (bl << 3)) ^ ((bl >>> 6) | (bh << 26))
    const low = (s0l >>> 0) + (s1l >>> 0) + ((W[i - 13] as number) >>> 0) + ((W[i - 31] as number) >>> 0)
    W[i + 1] = low
    W[i] = s0h + s1h + (W[i - 14] as number) + (W[i - 32] as number) + Math.floor(low / 0x1_0000_0000)
  }
  const word = (i: number): number => state[i] as number
  let [ah, al, bh, bl] = [word(0), word(1), word(2), word(3)]
  let [ch, cl, dh, dl] = [word(4), word(5), word(6), word(7)]
  let [eh, el, fh, fl] = [word(8), word(9), word(10), word(11)]
  let [gh, gl, hh, hl] = [word(12), word(13), word(14), word(15)]
  for (let i = 0; i < 160; i += 2) {
    // Sigma1: ROTR 14, 18, 41; Sigma0: ROTR 28, 34, 39.
    const s1h = ((eh >>> 14) | (el << 18)) ^ ((eh >>> 18) | (el << 14)) ^ ((el >>> 9) | (eh << 23))
    const s1l = ((el >>> 14) | (eh << 18)) ^ ((el >>> 18) | (eh << 14)) ^ ((eh >>> 9) | (el << 23))
    const s0h = ((ah >>> 28) | (al << 4)) ^ ((al >>> 2) | (ah << 30)) ^ ((al >>> 7) | (ah << 25))
    const s0l = ((al >>> 28) | (ah << 4)) ^ ((ah >>> 2) | (al << 30)) ^ ((ah >>> 7) | (al << 25))
    const t1l = (hl >>> 0) + (s1l >>> 0) + (((el & fl) ^ (~el & gl)) >>> 0) + ((k[i + 1] as number) >>> 0) + ((W[i + 1] as number) >>> 0)
    const t1h = (hh + s1h + ((eh & fh) ^ (~eh & gh)) + (k[i] as number) + (W[i] as number) + Math.floor(t1l / 0x1_0000_0000)) | 0
    const t2l = (s0l >>> 0) + (((al & bl) ^ (al & cl) ^ (bl & cl)) >>> 0)
    const t2h = (s0h + ((ah & bh) ^ (ah & ch) ^ (bh & ch)) + Math.floor(t2l / 0x1_0000_0000)) | 0
    hh = gh
    hl = gl
    gh = fh
    gl = fl
    fh = eh
    fl = el
    const e = (dl >>> 0) + (t1l % 0x1_0000_0000)
    eh = (dh + t1h + Math.floor(e / 0x1_0000_0000)) | 0
    el = e | 0
    dh = ch
    dl = cl
    ch = bh
    cl = bl
    bh = ah
    bl = al
    const a = (t1l % 0x1_0000_0000) + (t2l % 0x1_0000_0000)
    ah = (t1h + t2h + Math.floor(a / 0x1_0000_0000)) | 0
    al = a | 0
  }
  const end = [ah, al, bh, bl, ch, cl, dh, dl, eh, el, fh, fl, gh, gl, hh, hl]
  for (let i = 0; i < 16; i += 2) {
    const low = ((state[i + 1] as number) >>> 0) + ((end[i + 1] as number) >>> 0)
    state[i] = (state[i] as number) + (end[i] as number) + Math.floor(low / 0x1_0000_0000)
    state[i + 1] = low
  }
}

export function sha384(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const message = new Uint8Array(Math.ceil((length + 17) / 128) * 128)
  let at = 0
  for (const part of parts) {
    message.set(part, at)
    at += part.length
  }
  message[length] = 0x80
  const view = new DataView(message.buffer)
  view.setBigUint64(message.length - 8, BigInt(length) * 8n)
  const state = tables().initial.slice()
  for (at = 0; at < message.length; at += 128) compress(state, view, at)
  const out = new Uint8Array(48)
  const words = new DataView(out.buffer)
  for (let i = 0; i < 12; i++) words.setInt32(i * 4, state[i] as number)
  return out
}
