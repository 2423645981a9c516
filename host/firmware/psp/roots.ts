/**
 * The model's stand-in for AMD's signing keys. In silicon a chip's CEK is signed by AMD's ASK, that by the ARK, both RSA keys
 * with certificates of their own format; here both are P-384 keys in SEV's format, the same for every emulated platform, and
 * no AMD root vouches for them.
 */
import { type KeyPair, keyPair, type Point } from '../../crypto/p384.ts'
import { FIRMWARE_STATUS as FW, SEV_POLICY, SEV_SIZE } from '../../generated/psp.ts'
import { ALGORITHM, certificateKey, encodeCertificate, signCertificate, USAGE, verifyCertificate } from './certificate.ts'
import { Random } from './random.ts'

let keys: { readonly ark: KeyPair; readonly ask: KeyPair } | null = null

/** Keys that every emulated platform has in common. */
export function rootKeys(): { readonly ark: KeyPair; readonly ask: KeyPair } {
  const make = (purpose: string): KeyPair => keyPair(new Random(0n, purpose).bytes(56))
  keys ??= { ark: make('model ark'), ask: make('model ask') }
  return keys
}

/** ASK (signed by the ARK) and ARK (by itself): what KVM_SEV_SEND_START takes as amd_certs. A VMM downloads AMD's. */
export function sevRootCertificates(): Uint8Array<ArrayBuffer> {
  const { ark, ask } = rootKeys()
  const out = new Uint8Array(2 * SEV_SIZE.CERTIFICATE)
  const middle = encodeCertificate(ask.point, USAGE.ASK, ALGORITHM.ECDSA_SHA256)
  signCertificate(middle, 0, ark, USAGE.ARK)
  out.set(middle)
  const root = encodeCertificate(ark.point, USAGE.ARK, ALGORITHM.ECDSA_SHA256)
  signCertificate(root, 0, ark, USAGE.ARK)
  out.set(root, SEV_SIZE.CERTIFICATE)
  return out
}

/** True if `roots` is ASK and ARK of this model and the ASK signed `cek`. */
function vouchedFor(cek: Uint8Array, roots: Uint8Array): boolean {
  if (roots.length < 2 * SEV_SIZE.CERTIFICATE) return false
  const ask = certificateKey(roots.subarray(0, SEV_SIZE.CERTIFICATE))
  const ark = certificateKey(roots.subarray(SEV_SIZE.CERTIFICATE))
  return (
    ask !== null &&
    ark !== null &&
    same(ark, rootKeys().ark.point) &&
    verifyCertificate(roots.subarray(0, SEV_SIZE.CERTIFICATE), ark, USAGE.ARK) &&
    verifyCertificate(cek, ask, USAGE.ASK)
  )
}

const same = (a: Point, b: Point): boolean => a.x === b.x && a.y === b.y

/**
 * May a guest of this policy go to the platform with this PDH and chain (PEK, OCA, CEK)? Chains are looked at when the policy
 * asks for one: DOMAIN = the OCA is ours, SEV = the CEK is AMD's.
 */
export function checkReceiver(pdh: Uint8Array, chain: Uint8Array, roots: Uint8Array, policy: number, owner: Point): number {
  if ((policy & (SEV_POLICY.DOMAIN | SEV_POLICY.SEV)) === 0) return FW.SUCCESS
  const part = (i: number): Uint8Array => chain.subarray(i * SEV_SIZE.CERTIFICATE, (i + 1) * SEV_SIZE.CERTIFICATE)
  const [pek, oca, cek] = [certificateKey(part(0)), certificateKey(part(1)), certificateKey(part(2))]
  if (pek === null || oca === null || cek === null) return FW.INVALID_CERTIFICATE
  if (!verifyCertificate(pdh, pek, USAGE.PEK)) return FW.BAD_SIGNATURE
  if ((policy & SEV_POLICY.DOMAIN) !== 0) {
    if (!verifyCertificate(part(0), oca, USAGE.OCA)) return FW.BAD_SIGNATURE
    if (!same(oca, owner)) return FW.POLICY_FAILURE
  }
  if ((policy & SEV_POLICY.SEV) !== 0) {
    if (!verifyCertificate(part(0), cek, USAGE.CEK) || !vouchedFor(part(2), roots)) return FW.BAD_SIGNATURE
  }
  return FW.SUCCESS
}
