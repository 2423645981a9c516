/**
 * Sessions (SEV API 55766, "LAUNCH_START", "key derivation"; checked against virtee/sev src/session): how guest owner and
 * firmware, or two firmwares (SEND_START, RECEIVE_START), agree on TEK and TIK, and the packets under these keys. The
 * owner's side is `createLaunchSession`. The shared value z is the x coordinate of the ECDH point, 48 bytes big endian.
 */
import { aes128Ctr } from '../../crypto/aes.ts'
import { type KeyPair, keyPair, sharedSecret } from '../../crypto/p384.ts'
import { equalBytes, hmacSha256 } from '../../crypto/sha256.ts'
import { CloisterError } from '../../errors.ts'
import { SEV_API, SEV_SIZE } from '../../generated/psp.ts'
import { ALGORITHM, certificateKey, encodeCertificate, USAGE } from './certificate.ts'

/** Transport encryption and integrity keys. */
export interface TransportKeys {
  /** Encryption key, 16 bytes. */
  readonly tek: Uint8Array<ArrayBuffer>
  /** Integrity key, 16 bytes. */
  readonly tik: Uint8Array<ArrayBuffer>
}

const u32 = (value: number): Uint8Array => {
  const bytes = new Uint8Array(4)
  new DataView(bytes.buffer).setUint32(0, value, true)
  return bytes
}

/** NIST SP 800-108 in counter mode with HMAC-SHA-256, one block (16 bytes). */
export function kdf(key: Uint8Array, context: Uint8Array, label: string): Uint8Array<ArrayBuffer> {
  return hmacSha256(key, u32(1), new TextEncoder().encode(label), Uint8Array.of(0), context, u32(128)).slice(0, 16)
}

/** Key-encryption and key-integrity keys from the shared secret and the session's nonce. */
export function sessionKeys(z: Uint8Array, nonce: Uint8Array): { master: Uint8Array; kek: Uint8Array; kik: Uint8Array } {
  const master = kdf(z, nonce, 'sev-master-secret')
  const none = new Uint8Array(0)
  return { master, kek: kdf(master, none, 'sev-kek'), kik: kdf(master, none, 'sev-kik') }
}

/** Session blob: nonce 16, wrapped TEK and TIK 32, IV 16, MAC of the wrapped keys 32, MAC of the policy 32. */
export function wrapSession(
  z: Uint8Array,
  policy: number,
  keys: TransportKeys,
  nonce: Uint8Array,
  iv: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const { kek, kik } = sessionKeys(z, nonce)
  const wrapped = aes128Ctr(kek, iv, Uint8Array.of(...keys.tek, ...keys.tik))
  const out = new Uint8Array(SEV_SIZE.SESSION)
  out.set(nonce, 0)
  out.set(wrapped, 16)
  out.set(iv, 48)
  out.set(hmacSha256(kik, wrapped), 64)
  out.set(hmacSha256(keys.tik, u32(policy)), 96)
  return out
}

/** The firmware's side: null if a MAC is wrong. */
export function unwrapSession(z: Uint8Array, policy: number, session: Uint8Array): TransportKeys | null {
  const { kek, kik } = sessionKeys(z, session.subarray(0, 16))
  const wrapped = session.subarray(16, 48)
  if (!equalBytes(hmacSha256(kik, wrapped), session.subarray(64, 96))) return null
  const keys = aes128Ctr(kek, session.subarray(48, 64), wrapped)
  const tik = keys.slice(16, 32)
  if (!equalBytes(hmacSha256(tik, u32(policy)), session.subarray(96, 128))) return null
  return { tek: keys.slice(0, 16), tik }
}

/** What a guest owner sends to the platform, and the keys to keep (SEV API 55766, LAUNCH_START). */
export interface LaunchSession extends TransportKeys {
  /** The owner's Diffie-Hellman certificate: LAUNCH_START's dh_uaddr. */
  readonly dhCert: Uint8Array<ArrayBuffer>
  /** LAUNCH_START's session_uaddr. */
  readonly session: Uint8Array<ArrayBuffer>
}

/**
 * What a guest owner does before the launch: takes the platform's PDH certificate (SEV_PDH_CERT_EXPORT),
 * makes a session for this policy. `random` gives n random bytes (default: the runtime's). CloisterError `ERR_CERTIFICATE` for
 * a certificate without a P-384 key.
 */
export function createLaunchSession(
  pdhCertificate: Uint8Array,
  policy: number,
  random: (n: number) => Uint8Array = systemRandom,
): LaunchSession {
  const pdh = certificateKey(pdhCertificate)
  if (pdh === null) throw new CloisterError('ERR_CERTIFICATE', 'not a SEV certificate with a P-384 key')
  const owner: KeyPair = keyPair(random(56))
  const z = sharedSecret(owner.secret, pdh)
  if (z === null) throw new CloisterError('ERR_CERTIFICATE', 'the PDH key is not a point of P-384')
  const keys = { tek: new Uint8Array(random(16)), tik: new Uint8Array(random(16)) }
  return {
    ...keys,
    dhCert: encodeCertificate(owner.point, USAGE.PDH, ALGORITHM.ECDH_SHA256),
    session: wrapSession(z, policy, keys, random(16), random(16)),
  }
}

function systemRandom(n: number): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(n))
}

/** What LAUNCH_MEASURE must give, 32 bytes, for a 32-byte digest and its 16-byte nonce: HMAC(TIK, 0x04 | API major | minor | build | policy | digest | mnonce). */
export function launchMeasurement(
  tik: Uint8Array,
  policy: number,
  digest: Uint8Array,
  mnonce: Uint8Array,
  api: { readonly MAJOR: number; readonly MINOR: number; readonly BUILD: number } = SEV_API,
): Uint8Array<ArrayBuffer> {
  return hmacSha256(tik, Uint8Array.of(0x04, api.MAJOR, api.MINOR, api.BUILD), u32(policy), digest, mnonce)
}

/** What `vm.launchSecret` takes. */
export interface SecretPacket {
  /** LAUNCH_SECRET's header: flags, IV, MAC. */
  readonly header: Uint8Array<ArrayBuffer>
  /** The secret, padded to 16 bytes, under the TEK. */
  readonly ciphertext: Uint8Array<ArrayBuffer>
}

/** The owner's side of LAUNCH_SECRET: encrypts a secret for the guest with this measurement (its first 32 bytes); `iv` 16 bytes. */
export function packSecret(
  keys: TransportKeys,
  measurement: Uint8Array,
  secret: Uint8Array,
  iv: Uint8Array = systemRandom(16),
): SecretPacket {
  const padded = new Uint8Array(Math.ceil(secret.length / 16) * 16)
  padded.set(secret)
  const ciphertext = aes128Ctr(keys.tek, iv, padded)
  const header = new Uint8Array(SEV_SIZE.PACKET_HEADER)
  header.set(iv, 4)
  header.set(secretMac(keys.tik, header, padded.length, ciphertext, measurement), 20)
  return { header, ciphertext }
}

/** First byte of a packet's MAC: what the packet is. */
const CONTEXT = { SECRET: 0x01, DATA: 0x02 } as const

/** mac = HMAC(TIK, context | flags | iv | guest_len | trans_len | ciphertext | extra). */
function packetMac(
  tik: Uint8Array,
  context: number,
  header: Uint8Array,
  guestLength: number,
  ciphertext: Uint8Array,
  extra: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  return hmacSha256(tik, Uint8Array.of(context), header.subarray(0, 20), u32(guestLength), u32(ciphertext.length), ciphertext, extra)
}

/** LAUNCH_SECRET: bound to the measurement. */
export function secretMac(
  tik: Uint8Array,
  header: Uint8Array,
  guestLength: number,
  ciphertext: Uint8Array,
  measurement: Uint8Array,
): Uint8Array<ArrayBuffer> {
  return packetMac(tik, CONTEXT.SECRET, header, guestLength, ciphertext, measurement.subarray(0, 32))
}

/** SEND_UPDATE_DATA: a piece of guest memory under the transport keys. */
export function sealPacket(
  keys: TransportKeys,
  iv: Uint8Array,
  plaintext: Uint8Array,
): { header: Uint8Array<ArrayBuffer>; data: Uint8Array<ArrayBuffer> } {
  const data = aes128Ctr(keys.tek, iv, plaintext)
  const header = new Uint8Array(SEV_SIZE.PACKET_HEADER)
  header.set(iv, 4)
  header.set(packetMac(keys.tik, CONTEXT.DATA, header, plaintext.length, data), 20)
  return { header, data }
}

/** RECEIVE_UPDATE_DATA: the plaintext, or null if the MAC is wrong. */
export function openPacket(keys: TransportKeys, header: Uint8Array, data: Uint8Array, guestLength: number): Uint8Array | null {
  const mac = packetMac(keys.tik, CONTEXT.DATA, header, guestLength, data)
  return equalBytes(mac, header.subarray(20, 52)) ? aes128Ctr(keys.tek, header.subarray(4, 20), data) : null
}
