/** SHA extensions (SDM vol 2, SHA1RNDS4..SHA256MSG2). Owns no state. */
import { CPU_XMM, OP_EXTRA } from '../generated/layout'
import { intelCompatible } from '../cpu/features'
import { left, source, sourceOf, xmmReg } from './sse-operands'
import { immediate } from './sse-integer'

/** Intel demands alignment (exception type 4); the AMD reference CPU does not. */
function operand(s: usize, op: usize): usize {
  return intelCompatible(s) ? source(s, op) : sourceOf(s, op, 16)
}
/** Doublewords in the order 3 (bits 127:96) .. 0. */
function put(at: usize, d3: u32, d2: u32, d1: u32, d0: u32): u32 {
  store<u32>(at, d0)
  store<u32>(at, d1, 4)
  store<u32>(at, d2, 8)
  store<u32>(at, d3, 12)
  return 0
}

export function sha1rnds4(s: usize, op: usize): u32 {
  const p = operand(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const kind = immediate(op) & 3
  let a = load<u32>(at, 12)
  let b = load<u32>(at, 8)
  let c = load<u32>(at, 4)
  let d = load<u32>(at)
  let e: u32 = 0
  const constant: u32 = kind == 0 ? 0x5a827999 : kind == 1 ? 0x6ed9eba1 : kind == 2 ? 0x8f1bbcdc : 0xca62c1d6
  for (let i: usize = 0; i < 4; i++) {
    const f = kind == 0 ? (b & c) ^ (~b & d) : kind == 2 ? (b & c) ^ (b & d) ^ (c & d) : b ^ c ^ d
    const t = f + rotl<u32>(a, 5) + load<u32>(p + ((3 - i) << 2)) + e + constant
    e = d
    d = c
    c = rotl<u32>(b, 30)
    b = a
    a = t
  }
  return put(at, a, b, c, d)
}

/** SHA1NEXTE C8, SHA1MSG1 C9, SHA1MSG2 CA. */
export function sha1(s: usize, op: usize): u32 {
  const p = operand(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const kind = load<u32>(op, OP_EXTRA)
  const a0 = load<u32>(at)
  const a1 = load<u32>(at, 4)
  const a2 = load<u32>(at, 8)
  const a3 = load<u32>(at, 12)
  const b0 = load<u32>(p)
  const b1 = load<u32>(p, 4)
  const b2 = load<u32>(p, 8)
  const b3 = load<u32>(p, 12)
  if (kind == 0xc8) return put(at, b3 + rotl<u32>(a3, 30), b2, b1, b0)
  if (kind == 0xc9) return put(at, a1 ^ a3, a0 ^ a2, b3 ^ a1, b2 ^ a0)
  const w16 = rotl<u32>(a3 ^ b2, 1)
  return put(at, w16, rotl<u32>(a2 ^ b1, 1), rotl<u32>(a1 ^ b0, 1), rotl<u32>(a0 ^ w16, 1))
}

function sigma0(x: u32): u32 {
  return rotr<u32>(x, 7) ^ rotr<u32>(x, 18) ^ (x >> 3)
}
function sigma1(x: u32): u32 {
  return rotr<u32>(x, 17) ^ rotr<u32>(x, 19) ^ (x >> 10)
}
export function sha256rnds2(s: usize, op: usize): u32 {
  const p = operand(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  let a = load<u32>(p, 12)
  let b = load<u32>(p, 8)
  let e = load<u32>(p, 4)
  let f = load<u32>(p)
  let c = load<u32>(at, 12)
  let d = load<u32>(at, 8)
  let g = load<u32>(at, 4)
  let h = load<u32>(at)
  for (let i: usize = 0; i < 2; i++) {
    const t = ((e & f) ^ (~e & g)) + (rotr<u32>(e, 6) ^ rotr<u32>(e, 11) ^ rotr<u32>(e, 25)) + load<u32>(s + (i << 2), CPU_XMM) + h
    const next = t + ((a & b) ^ (a & c) ^ (b & c)) + (rotr<u32>(a, 2) ^ rotr<u32>(a, 13) ^ rotr<u32>(a, 22))
    h = g
    g = f
    f = e
    e = t + d
    d = c
    c = b
    b = a
    a = next
  }
  return put(at, a, b, e, f)
}
/** SHA256MSG1 CC, SHA256MSG2 CD. */
export function sha256(s: usize, op: usize): u32 {
  const p = operand(s, op)
  if (!p) return left(s)
  const at = xmmReg(s, op)
  const a0 = load<u32>(at)
  const a1 = load<u32>(at, 4)
  const a2 = load<u32>(at, 8)
  const a3 = load<u32>(at, 12)
  if (load<u32>(op, OP_EXTRA) == 0xcc) return put(at, a3 + sigma0(load<u32>(p)), a2 + sigma0(a3), a1 + sigma0(a2), a0 + sigma0(a1))
  const w16 = a0 + sigma1(load<u32>(p, 8))
  const w17 = a1 + sigma1(load<u32>(p, 12))
  return put(at, a3 + sigma1(w17), a2 + sigma1(w16), w17, w16)
}
