/**
 * SEV certificates (SEV API 55766, appendix C; layout as in virtee/sev certs/sev/cert/v1): 2084 bytes,
 * little endian, one P-384 key, up to two signatures over the first 0x414 bytes.
 */
import { fromBytes, type KeyPair, onCurve, type Point, type Signature, sign, toBytes, verify } from '../../crypto/p384.ts'
import { SEV_API, SEV_SIZE } from '../../generated/psp.ts'

/** Key usages. */
export const USAGE = { ARK: 0, ASK: 0x13, INVALID: 0x1000, OCA: 0x1001, PEK: 0x1002, PDH: 0x1003, CEK: 0x1004 } as const
/** Key and signature algorithms. */
export const ALGORITHM = { INVALID: 0, ECDSA_SHA256: 2, ECDH_SHA256: 3, ECDSA_SHA384: 0x102, ECDH_SHA384: 0x103 } as const
const CURVE_P384 = 2
const BODY = 0x414
const COORDINATE = 72
const SIGNATURE = 512
const SIGNATURE_AT = [0x414, 0x61c] as const

/** An unsigned certificate of a public key. */
export function encodeCertificate(point: Point, usage: number, algorithm: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SEV_SIZE.CERTIFICATE)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, 1, true)
  // Only the PEK names the API that made it.
  if (usage === USAGE.PEK) {
    view.setUint8(4, SEV_API.MAJOR)
    view.setUint8(5, SEV_API.MINOR)
  }
  view.setUint32(8, usage, true)
  view.setUint32(0xc, algorithm, true)
  view.setUint32(0x10, CURVE_P384, true)
  bytes.set(toBytes(point.x, COORDINATE, true), 0x14)
  bytes.set(toBytes(point.y, COORDINATE, true), 0x14 + COORDINATE)
  for (const at of SIGNATURE_AT) view.setUint32(at, USAGE.INVALID, true)
  return bytes
}

/** r and s as the firmware writes them: 72 bytes each, little endian. */
export function encodeSignature({ r, s }: Signature, out: Uint8Array): void {
  out.set(toBytes(r, COORDINATE, true), 0)
  out.set(toBytes(s, COORDINATE, true), COORDINATE)
}

export function decodeSignature(bytes: Uint8Array): Signature {
  return { r: fromBytes(bytes.subarray(0, COORDINATE), true), s: fromBytes(bytes.subarray(COORDINATE, 2 * COORDINATE), true) }
}

/** Puts a signature by `signer` into slot 0 or 1. */
export function signCertificate(certificate: Uint8Array, slot: 0 | 1, signer: KeyPair, usage: number): void {
  const view = new DataView(certificate.buffer, certificate.byteOffset, certificate.byteLength)
  const at = SIGNATURE_AT[slot]
  view.setUint32(at, usage, true)
  view.setUint32(at + 4, ALGORITHM.ECDSA_SHA256, true)
  encodeSignature(sign(signer.secret, certificate.subarray(0, BODY)), certificate.subarray(at + 8))
}

/** True if one of the two signatures is by this key in this role. */
export function verifyCertificate(certificate: Uint8Array, signer: Point, usage: number): boolean {
  const view = new DataView(certificate.buffer, certificate.byteOffset, certificate.byteLength)
  return SIGNATURE_AT.some(
    (at) =>
      view.getUint32(at, true) === usage &&
      view.getUint32(at + 4, true) === ALGORITHM.ECDSA_SHA256 &&
      verify(signer, certificate.subarray(0, BODY), decodeSignature(certificate.subarray(at + 8))),
  )
}

/** Slots that hold a signature; null if an empty slot is not wholly empty. */
export function signedSlots(certificate: Uint8Array): (0 | 1)[] | null {
  const view = new DataView(certificate.buffer, certificate.byteOffset, certificate.byteLength)
  const slots: (0 | 1)[] = []
  for (const slot of [0, 1] as const) {
    const at = SIGNATURE_AT[slot]
    if (view.getUint32(at, true) !== USAGE.INVALID || view.getUint32(at + 4, true) !== ALGORITHM.INVALID) slots.push(slot)
    else if (certificate.subarray(at + 8, at + 8 + SIGNATURE).some((b) => b !== 0)) return null
  }
  return slots
}

/** The P-384 key of a certificate, or null if it is not a certificate with a valid one. */
export function certificateKey(certificate: Uint8Array): Point | null {
  if (certificate.length < SEV_SIZE.CERTIFICATE) return null
  const view = new DataView(certificate.buffer, certificate.byteOffset, certificate.byteLength)
  if (view.getUint32(0, true) !== 1 || view.getUint32(0x10, true) !== CURVE_P384) return null
  const coordinate = (at: number): bigint => fromBytes(certificate.subarray(at, at + COORDINATE), true)
  const point = { x: coordinate(0x14), y: coordinate(0x14 + COORDINATE) }
  return onCurve(point) ? point : null
}

/** Version of the API that made it, role and algorithm of its key. */
export function certificateFields(certificate: Uint8Array): { major: number; minor: number; usage: number; algorithm: number } {
  const view = new DataView(certificate.buffer, certificate.byteOffset, certificate.byteLength)
  return {
    major: view.getUint8(4),
    minor: view.getUint8(5),
    usage: view.getUint32(8, true),
    algorithm: view.getUint32(0xc, true),
  }
}
