/**
 * NIST P-384 (SP 800-186, 3.2.1.4): key pairs, ECDH and ECDSA with SHA-256 or SHA-384, for SEV's certificates and
 * sessions and SNP's ID blocks. Plain BigInt arithmetic, not constant time: every key here belongs to a model.
 */
import { sha256 } from './sha256.ts'

const P = 2n ** 384n - 2n ** 128n - 2n ** 96n + 2n ** 32n - 1n
const N = 0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973n
const B = 0xb3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aefn
const G: Point = {
  x: 0xaa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7n,
  y: 0x3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5fn,
}

export interface Point {
  readonly x: bigint
  readonly y: bigint
}
export interface KeyPair {
  readonly secret: bigint
  readonly point: Point
}
export interface Signature {
  readonly r: bigint
  readonly s: bigint
}

const mod = (a: bigint, m: bigint): bigint => {
  const r = a % m
  return r < 0n ? r + m : r
}

function invert(a: bigint, m: bigint): bigint {
  let [r0, r1] = [m, mod(a, m)]
  let [t0, t1] = [0n, 1n]
  while (r1 !== 0n) {
    const q = r0 / r1
    ;[r0, r1] = [r1, r0 - q * r1]
    ;[t0, t1] = [t1, t0 - q * t1]
  }
  return mod(t0, m)
}

/** Jacobian coordinates; z = 0 is the point at infinity. */
type Jacobian = readonly [x: bigint, y: bigint, z: bigint]
const INFINITY: Jacobian = [1n, 1n, 0n]

function doublePoint([x, y, z]: Jacobian): Jacobian {
  if (z === 0n || y === 0n) return INFINITY
  const zz = (z * z) % P
  const m = mod(3n * (x - zz) * (x + zz), P)
  const yy = (y * y) % P
  const s = (4n * x * yy) % P
  const x3 = mod(m * m - 2n * s, P)
  return [x3, mod(m * (s - x3) - 8n * yy * yy, P), (2n * y * z) % P]
}

function addPoints(a: Jacobian, b: Jacobian): Jacobian {
  if (a[2] === 0n) return b
  if (b[2] === 0n) return a
  const [x1, y1, z1] = a
  const [x2, y2, z2] = b
  const zz1 = (z1 * z1) % P
  const zz2 = (z2 * z2) % P
  const u1 = (x1 * zz2) % P
  const u2 = (x2 * zz1) % P
  const s1 = (y1 * zz2 * z2) % P
  const s2 = (y2 * zz1 * z1) % P
  if (u1 === u2) return s1 === s2 ? doublePoint(a) : INFINITY
  const h = mod(u2 - u1, P)
  const r = mod(s2 - s1, P)
  const hh = (h * h) % P
  const hhh = (h * hh) % P
  const v = (u1 * hh) % P
  const x3 = mod(r * r - hhh - 2n * v, P)
  return [x3, mod(r * (v - x3) - s1 * hhh, P), (z1 * z2 * h) % P]
}

function multiply(k: bigint, point: Point): Point | null {
  let result = INFINITY
  for (const bit of mod(k, N).toString(2)) {
    result = doublePoint(result)
    if (bit === '1') result = addPoints(result, [point.x, point.y, 1n])
  }
  return affine(result)
}

function affine([x, y, z]: Jacobian): Point | null {
  if (z === 0n) return null
  const inverse = invert(z, P)
  const square = (inverse * inverse) % P
  return { x: (x * square) % P, y: (y * square * inverse) % P }
}

export function onCurve({ x, y }: Point): boolean {
  return x >= 0n && x < P && y >= 0n && y < P && mod(y * y - (x * x * x - 3n * x + B), P) === 0n
}

/** A key pair from 48 or more random bytes. */
export function keyPair(random: Uint8Array): KeyPair {
  const secret = mod(fromBytes(random, false), N - 1n) + 1n
  return { secret, point: multiply(secret, G) as Point }
}

/** The x coordinate of the shared point, 48 bytes big endian; null if `peer` is not on the curve. */
export function sharedSecret(secret: bigint, peer: Point): Uint8Array<ArrayBuffer> | null {
  if (!onCurve(peer)) return null
  const point = multiply(secret, peer)
  return point === null ? null : toBytes(point.x, 48, false)
}

export type Hash = (message: Uint8Array) => Uint8Array

/** ECDSA over hash(message); the nonce is derived from key and message, so that runs repeat. */
export function sign(secret: bigint, message: Uint8Array, hash: Hash = sha256): Signature {
  const digest = hash(message)
  const e = fromBytes(digest, false)
  for (let i = 0; ; i++) {
    const half = sha256(toBytes(secret, 48, false), digest, Uint8Array.of(i))
    const k = mod(fromBytes(new Uint8Array([...half, ...sha256(half)]), false), N - 1n) + 1n
    const r = mod((multiply(k, G) as Point).x, N)
    const s = mod(invert(k, N) * (e + r * secret), N)
    if (r !== 0n && s !== 0n) return { r, s }
  }
}

export function verify(point: Point, message: Uint8Array, { r, s }: Signature, hash: Hash = sha256): boolean {
  if (!onCurve(point) || r <= 0n || r >= N || s <= 0n || s >= N) return false
  const e = fromBytes(hash(message), false)
  const w = invert(s, N)
  const a = multiply(e * w, G)
  const b = multiply(r * w, point)
  if (b === null) return false
  const sum = a === null ? b : affine(addPoints([a.x, a.y, 1n], [b.x, b.y, 1n]))
  return sum !== null && mod(sum.x, N) === r
}

export function fromBytes(bytes: Uint8Array, littleEndian: boolean): bigint {
  let value = 0n
  for (let i = 0; i < bytes.length; i++) value = (value << 8n) | BigInt(bytes[littleEndian ? bytes.length - 1 - i : i] as number)
  return value
}

export function toBytes(value: bigint, length: number, littleEndian: boolean): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(length)
  let rest = value
  for (let i = 0; i < length; i++, rest >>= 8n) out[littleEndian ? i : length - 1 - i] = Number(rest & 0xffn)
  return out
}
