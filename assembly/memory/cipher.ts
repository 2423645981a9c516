/**
 * The memory-encryption cipher: a tweaked 16-byte block cipher per ASID key (APM vol 2, 15.34: ciphertext depends on key
 * and system physical address, and has no freshness). AMD's tweak constants are not public and with random keys nobody can
 * observe the cipher, so it is the Chaskey permutation (12 rounds) as an Even-Mansour cipher, three times cheaper
 * than AES in WASM. The tweak of a page comes from key and frame address through the permutation, that of a granule by a
 * multiplication, so that differences of tweaks are secret too. Decryption is the forward permutation: every
 * fresh private page is decrypted, few are encrypted.
 * Owns: GLOBAL_KEYS. Granules travel in `low` and `high`.
 */
import { GLOBAL, GLOBAL_KEYS } from '../generated/layout'

const ROUNDS: u32 = 12

/** The granule that encrypt() and decrypt() work on. */
export let low: u64 = 0
export let high: u64 = 0

// Tweak of the page used last.
let tweakFrame: usize = 0
let tweakAsid: u32 = 0xffffffff
let tweakLow: u64 = 0
let tweakHigh: u64 = 0

export function setGranule(a: u64, b: u64): void {
  low = a
  high = b
}

function forward(): void {
  let v0 = <u32>low
  let v1 = <u32>(low >> 32)
  let v2 = <u32>high
  let v3 = <u32>(high >> 32)
  for (let round: u32 = 0; round < ROUNDS; round++) {
    v0 += v1
    v1 = rotl<u32>(v1, 5) ^ v0
    v0 = rotl<u32>(v0, 16)
    v2 += v3
    v3 = rotl<u32>(v3, 8) ^ v2
    v0 += v3
    v3 = rotl<u32>(v3, 13) ^ v0
    v2 += v1
    v1 = rotl<u32>(v1, 7) ^ v2
    v2 = rotl<u32>(v2, 16)
  }
  low = <u64>v0 | ((<u64>v1) << 32)
  high = <u64>v2 | ((<u64>v3) << 32)
}

function inverse(): void {
  let v0 = <u32>low
  let v1 = <u32>(low >> 32)
  let v2 = <u32>high
  let v3 = <u32>(high >> 32)
  for (let round: u32 = 0; round < ROUNDS; round++) {
    v2 = rotl<u32>(v2, 16)
    v1 = rotl<u32>(v1 ^ v2, 25)
    v2 -= v1
    v3 = rotl<u32>(v3 ^ v0, 19)
    v0 -= v3
    v3 = rotl<u32>(v3 ^ v2, 24)
    v2 -= v3
    v0 = rotl<u32>(v0, 16)
    v1 = rotl<u32>(v1 ^ v0, 27)
    v0 -= v1
  }
  low = <u64>v0 | ((<u64>v1) << 32)
  high = <u64>v2 | ((<u64>v3) << 32)
}

function setTweak(asid: u32, frame: usize): void {
  if (tweakAsid == asid && tweakFrame == frame) return
  const at: usize = GLOBAL + GLOBAL_KEYS + ((<usize>asid) << 4)
  const keepLow = low
  const keepHigh = high
  low = load<u64>(at) ^ <u64>frame
  high = load<u64>(at, 8) ^ ~((<u64>frame) << 20)
  forward()
  tweakLow = low ^ load<u64>(at)
  tweakHigh = high ^ load<u64>(at, 8)
  tweakAsid = asid
  tweakFrame = frame
  low = keepLow
  high = keepHigh
}

function lanes(word: u64, by: u32): u64 {
  return <u64>(<u32>word * by) | ((<u64>(<u32>(word >> 32) * by)) << 32)
}

/** Plaintext in low/high -> what DRAM holds at `address` (16-byte aligned). */
export function encrypt(asid: u32, address: usize): void {
  setTweak(asid, address & ~4095)
  const by = ((<u32>address >> 3) & 0x1fe) + 1
  const a = lanes(tweakLow, by)
  const b = lanes(tweakHigh, by)
  low ^= a
  high ^= b
  inverse()
  low ^= a
  high ^= b
}

/** What DRAM holds at `address` in low/high -> plaintext. */
export function decrypt(asid: u32, address: usize): void {
  setTweak(asid, address & ~4095)
  const by = ((<u32>address >> 3) & 0x1fe) + 1
  const a = lanes(tweakLow, by)
  const b = lanes(tweakHigh, by)
  low ^= a
  high ^= b
  forward()
  low ^= a
  high ^= b
}

/** DRAM form of the page at `from` -> plaintext at `to`; `frame` is the page the tweak belongs to. */
export function decryptPage(asid: u32, frame: usize, from: usize, to: usize): void {
  setTweak(asid, frame)
  // Granule i has the tweak T * (2i + 1) lane by lane: four granules ahead is + 8T.
  const one = v128.replace_lane<u64>(i64x2.splat(tweakLow), 1, tweakHigh)
  const two = i32x4.add(one, one)
  const eight = i32x4.shl(two, 2)
  let t0 = one
  let t1 = i32x4.add(t0, two)
  let t2 = i32x4.add(t1, two)
  let t3 = i32x4.add(t2, two)
  let p: v128, q: v128, u: v128, w: v128
  for (let i: usize = 0; i < 4096; i += 64) {
    let v0 = v128.xor(v128.load(from + i), t0)
    let v1 = v128.xor(v128.load(from + i, 16), t1)
    let v2 = v128.xor(v128.load(from + i, 32), t2)
    let v3 = v128.xor(v128.load(from + i, 48), t3)
    p = v128.shuffle<u32>(v0, v1, 0, 4, 1, 5)
    q = v128.shuffle<u32>(v2, v3, 0, 4, 1, 5)
    u = v128.shuffle<u32>(v0, v1, 2, 6, 3, 7)
    w = v128.shuffle<u32>(v2, v3, 2, 6, 3, 7)
    v0 = v128.shuffle<u64>(p, q, 0, 2)
    v1 = v128.shuffle<u64>(p, q, 1, 3)
    v2 = v128.shuffle<u64>(u, w, 0, 2)
    v3 = v128.shuffle<u64>(u, w, 1, 3)
    for (let round: u32 = 0; round < ROUNDS; round++) {
      v0 = i32x4.add(v0, v1)
      v1 = v128.xor(v128.or(i32x4.shl(v1, 5), i32x4.shr_u(v1, 27)), v0)
      v0 = v128.shuffle<u8>(v0, v0, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
      v2 = i32x4.add(v2, v3)
      v3 = v128.xor(v128.shuffle<u8>(v3, v3, 3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14), v2)
      v0 = i32x4.add(v0, v3)
      v3 = v128.xor(v128.or(i32x4.shl(v3, 13), i32x4.shr_u(v3, 19)), v0)
      v2 = i32x4.add(v2, v1)
      v1 = v128.xor(v128.or(i32x4.shl(v1, 7), i32x4.shr_u(v1, 25)), v2)
      v2 = v128.shuffle<u8>(v2, v2, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
    }
    p = v128.shuffle<u32>(v0, v1, 0, 4, 1, 5)
    q = v128.shuffle<u32>(v2, v3, 0, 4, 1, 5)
    u = v128.shuffle<u32>(v0, v1, 2, 6, 3, 7)
    w = v128.shuffle<u32>(v2, v3, 2, 6, 3, 7)
    v0 = v128.shuffle<u64>(p, q, 0, 2)
    v1 = v128.shuffle<u64>(p, q, 1, 3)
    v2 = v128.shuffle<u64>(u, w, 0, 2)
    v3 = v128.shuffle<u64>(u, w, 1, 3)
    v128.store(to + i, v128.xor(v0, t0))
    v128.store(to + i, v128.xor(v1, t1), 16)
    v128.store(to + i, v128.xor(v2, t2), 32)
    v128.store(to + i, v128.xor(v3, t3), 48)
    t0 = i32x4.add(t0, eight)
    t1 = i32x4.add(t1, eight)
    t2 = i32x4.add(t2, eight)
    t3 = i32x4.add(t3, eight)
  }
}

/** Plaintext of the page at `from` -> DRAM form at `to`. */
export function encryptPage(asid: u32, frame: usize, from: usize, to: usize): void {
  setTweak(asid, frame)
  // Granule i has the tweak T * (2i + 1) lane by lane: four granules ahead is + 8T.
  const one = v128.replace_lane<u64>(i64x2.splat(tweakLow), 1, tweakHigh)
  const two = i32x4.add(one, one)
  const eight = i32x4.shl(two, 2)
  let t0 = one
  let t1 = i32x4.add(t0, two)
  let t2 = i32x4.add(t1, two)
  let t3 = i32x4.add(t2, two)
  let p: v128, q: v128, u: v128, w: v128
  for (let i: usize = 0; i < 4096; i += 64) {
    let v0 = v128.xor(v128.load(from + i), t0)
    let v1 = v128.xor(v128.load(from + i, 16), t1)
    let v2 = v128.xor(v128.load(from + i, 32), t2)
    let v3 = v128.xor(v128.load(from + i, 48), t3)
    p = v128.shuffle<u32>(v0, v1, 0, 4, 1, 5)
    q = v128.shuffle<u32>(v2, v3, 0, 4, 1, 5)
    u = v128.shuffle<u32>(v0, v1, 2, 6, 3, 7)
    w = v128.shuffle<u32>(v2, v3, 2, 6, 3, 7)
    v0 = v128.shuffle<u64>(p, q, 0, 2)
    v1 = v128.shuffle<u64>(p, q, 1, 3)
    v2 = v128.shuffle<u64>(u, w, 0, 2)
    v3 = v128.shuffle<u64>(u, w, 1, 3)
    for (let round: u32 = 0; round < ROUNDS; round++) {
      v2 = v128.shuffle<u8>(v2, v2, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
      v1 = v128.xor(v1, v2)
      v1 = v128.or(i32x4.shl(v1, 25), i32x4.shr_u(v1, 7))
      v2 = i32x4.sub(v2, v1)
      v3 = v128.xor(v3, v0)
      v3 = v128.or(i32x4.shl(v3, 19), i32x4.shr_u(v3, 13))
      v0 = i32x4.sub(v0, v3)
      v3 = v128.xor(v3, v2)
      v3 = v128.shuffle<u8>(v3, v3, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12)
      v2 = i32x4.sub(v2, v3)
      v0 = v128.shuffle<u8>(v0, v0, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
      v1 = v128.xor(v1, v0)
      v1 = v128.or(i32x4.shl(v1, 27), i32x4.shr_u(v1, 5))
      v0 = i32x4.sub(v0, v1)
    }
    p = v128.shuffle<u32>(v0, v1, 0, 4, 1, 5)
    q = v128.shuffle<u32>(v2, v3, 0, 4, 1, 5)
    u = v128.shuffle<u32>(v0, v1, 2, 6, 3, 7)
    w = v128.shuffle<u32>(v2, v3, 2, 6, 3, 7)
    v0 = v128.shuffle<u64>(p, q, 0, 2)
    v1 = v128.shuffle<u64>(p, q, 1, 3)
    v2 = v128.shuffle<u64>(u, w, 0, 2)
    v3 = v128.shuffle<u64>(u, w, 1, 3)
    v128.store(to + i, v128.xor(v0, t0))
    v128.store(to + i, v128.xor(v1, t1), 16)
    v128.store(to + i, v128.xor(v2, t2), 32)
    v128.store(to + i, v128.xor(v3, t3), 48)
    t0 = i32x4.add(t0, eight)
    t1 = i32x4.add(t1, eight)
    t2 = i32x4.add(t2, eight)
    t3 = i32x4.add(t3, eight)
  }
}

/** Stores a key without looking at what it already protects: see setKey in views.ts. */
export function storeKey(asid: u32, a: u64, b: u64): void {
  const at: usize = GLOBAL + GLOBAL_KEYS + ((<usize>asid) << 4)
  store<u64>(at, a)
  store<u64>(at, b, 8)
  tweakAsid = 0xffffffff
}
