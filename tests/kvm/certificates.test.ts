/**
 * checkReceiver: each link of the chain broken alone, for each policy (AMD SEV API 0.24, chapter 5 "Certificates", and 6.8
 * SEND_START: DOMAIN asks for the same OCA, SEV for AMD's roots).
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { keyPair } from '../../host/crypto/p384.ts'
import { ALGORITHM, encodeCertificate, signCertificate, USAGE } from '../../host/firmware/psp/certificate.ts'
import { checkReceiver, rootKeys, sevRootCertificates } from '../../host/firmware/psp/roots.ts'
import { FIRMWARE_STATUS as FW, SEV_POLICY, SEV_SIZE } from '../../host/generated/psp.ts'

const test = suite('certificates of a receiver')
const SIZE = SEV_SIZE.CERTIFICATE
const key = (n: number): ReturnType<typeof keyPair> => keyPair(Uint8Array.from({ length: 56 }, (_, i) => (i * 7 + n * 31 + 1) & 255))
const [pdhKey, pek, oca, cek, other] = [key(1), key(2), key(3), key(4), key(5)] as const
const { ark, ask } = rootKeys()
type Key = typeof pek
const { DOMAIN, SEV } = SEV_POLICY

/** A certificate of `subject` with one or two signatures [key, usage]. */
function certificate(subject: Key, usage: number, ...signers: (readonly [Key, number])[]): Uint8Array<ArrayBuffer> {
  const bytes = encodeCertificate(subject.point, usage, usage === USAGE.PDH ? ALGORITHM.ECDH_SHA256 : ALGORITHM.ECDSA_SHA256)
  signers.forEach(([signer, as], slot) => signCertificate(bytes, slot as 0 | 1, signer, as))
  return bytes
}
interface Chain {
  pdh: Uint8Array
  pek: Uint8Array
  oca: Uint8Array
  cek: Uint8Array
  roots: Uint8Array
}
const good = (): Chain => ({
  pdh: certificate(pdhKey, USAGE.PDH, [pek, USAGE.PEK]),
  pek: certificate(pek, USAGE.PEK, [oca, USAGE.OCA], [cek, USAGE.CEK]),
  oca: certificate(oca, USAGE.OCA, [oca, USAGE.OCA]),
  cek: certificate(cek, USAGE.CEK, [ask, USAGE.ASK]),
  roots: sevRootCertificates(),
})
const check = (c: Chain, policy: number, owner = oca): number =>
  checkReceiver(c.pdh, Uint8Array.from([...c.pek, ...c.oca, ...c.cek]), c.roots, policy, owner.point)

/** Bytes of a key's coordinates lie at 0x14, those of the first signature at 0x414 + 8. */
const flip = (bytes: Uint8Array, at: number): Uint8Array => {
  const out = Uint8Array.from(bytes)
  out[at] = (out[at] as number) ^ 1
  return out
}
const invalid = (bytes: Uint8Array): Uint8Array => {
  const out = Uint8Array.from(bytes)
  out.fill(0xff, 0x10, 0x14) // no such curve
  return out
}

// name, what is changed, answers for policy DOMAIN, SEV and both
const OK = FW.SUCCESS
const BAD = FW.BAD_SIGNATURE
const CASES: readonly (readonly [name: string, change: (c: Chain) => void, domain: number, sev: number, both: number])[] = [
  ['good', () => {}, OK, OK, OK],
  ['PDH signed by somebody else', (c) => (c.pdh = certificate(pdhKey, USAGE.PDH, [other, USAGE.PEK])), BAD, BAD, BAD],
  ['PDH signed under another usage', (c) => (c.pdh = certificate(pdhKey, USAGE.PDH, [pek, USAGE.OCA])), BAD, BAD, BAD],
  ['PDH altered', (c) => (c.pdh = flip(c.pdh, 0x14)), BAD, BAD, BAD],
  ['PEK without the OCA', (c) => (c.pek = certificate(pek, USAGE.PEK, [cek, USAGE.CEK])), BAD, OK, BAD],
  ['PEK without the CEK', (c) => (c.pek = certificate(pek, USAGE.PEK, [oca, USAGE.OCA])), OK, BAD, BAD],
  ['PEK: another OCA', (c) => (c.pek = certificate(pek, USAGE.PEK, [other, USAGE.OCA], [cek, USAGE.CEK])), BAD, OK, BAD],
  ['PEK: another CEK', (c) => (c.pek = certificate(pek, USAGE.PEK, [oca, USAGE.OCA], [other, USAGE.CEK])), OK, BAD, BAD],
  ['CEK of somebody else', (c) => (c.cek = certificate(cek, USAGE.CEK, [other, USAGE.ASK])), OK, BAD, BAD],
  ['CEK under another usage', (c) => (c.cek = certificate(cek, USAGE.CEK, [ask, USAGE.ARK])), OK, BAD, BAD],
  ['roots cut short', (c) => (c.roots = c.roots.subarray(0, 2 * SIZE - 1)), OK, BAD, BAD],
  ['roots longer than they are', (c) => (c.roots = Uint8Array.from([...c.roots, 1, 2, 3])), OK, OK, OK],
  ['ASK altered', (c) => (c.roots = flip(c.roots, 0x14)), OK, BAD, BAD],
  ['ARK altered', (c) => (c.roots = flip(c.roots, SIZE + 0x14)), OK, BAD, BAD],
  ['ASK with no key', (c) => (c.roots = Uint8Array.from([...invalid(c.roots.subarray(0, SIZE)), ...c.roots.subarray(SIZE)])), OK, BAD, BAD],
  ['ARK with no key', (c) => (c.roots = Uint8Array.from([...c.roots.subarray(0, SIZE), ...invalid(c.roots.subarray(SIZE))])), OK, BAD, BAD],
  [
    'a whole chain of somebody else',
    (c) => {
      c.cek = certificate(cek, USAGE.CEK, [other, USAGE.ASK])
      c.roots = Uint8Array.from([
        ...certificate(other, USAGE.ASK, [other, USAGE.ARK]),
        ...certificate(other, USAGE.ARK, [other, USAGE.ARK]),
      ])
    },
    OK,
    BAD,
    BAD,
  ],
  [
    'an ASK of somebody else beside the right ARK',
    (c) => {
      c.cek = certificate(cek, USAGE.CEK, [other, USAGE.ASK])
      c.roots = Uint8Array.from([...certificate(other, USAGE.ASK, [other, USAGE.ARK]), ...c.roots.subarray(SIZE)])
    },
    OK,
    BAD,
    BAD,
  ],
  [
    'the right ASK under an ARK of somebody else',
    (c) => {
      c.roots = Uint8Array.from([...certificate(ask, USAGE.ASK, [other, USAGE.ARK]), ...certificate(other, USAGE.ARK, [other, USAGE.ARK])])
    },
    OK,
    BAD,
    BAD,
  ],
  [
    'the ASK signed under another usage',
    (c) => (c.roots = Uint8Array.from([...certificate(ask, USAGE.ASK, [ark, USAGE.ASK]), ...c.roots.subarray(SIZE)])),
    OK,
    BAD,
    BAD,
  ],
  ...(['pek', 'oca', 'cek'] as const).map(
    (which) =>
      [
        `${which.toUpperCase()} with no key`,
        (c: Chain) => void (c[which] = invalid(c[which])),
        FW.INVALID_CERTIFICATE,
        FW.INVALID_CERTIFICATE,
        FW.INVALID_CERTIFICATE,
      ] as const,
  ),
]
for (const [name, change, domain, sev, both] of CASES) {
  test(name, () => {
    const chain = good()
    change(chain)
    assert.is(check(chain, DOMAIN), domain, 'DOMAIN')
    assert.is(check(chain, SEV), sev, 'SEV')
    assert.is(check(chain, DOMAIN | SEV), both, 'both')
    assert.is(check(chain, 0), OK, 'a policy that asks for neither looks at nothing')
  })
}

test('DOMAIN: a chain of another owner is whole, and refused', () => {
  assert.is(check(good(), DOMAIN, other), FW.POLICY_FAILURE)
  assert.is(check(good(), SEV, other), OK)
  assert.is(check(good(), DOMAIN | SEV, other), FW.POLICY_FAILURE)
  // The same x with the other y is another point.
  const mirrored = { point: { x: oca.point.x, y: oca.point.y + 1n } } as Key
  assert.is(check(good(), DOMAIN, mirrored), FW.POLICY_FAILURE)
  assert.is(check(good(), DOMAIN, { point: { x: oca.point.x + 1n, y: oca.point.y } } as Key), FW.POLICY_FAILURE)
})

test('the roots: ASK first, then ARK, each with its usage', () => {
  const roots = sevRootCertificates()
  const usage = (at: number): number => new DataView(roots.buffer).getUint32(at + 8, true)
  assert.equal([roots.length, usage(0), usage(SIZE)], [2 * SIZE, USAGE.ASK, USAGE.ARK])
  assert.is.not(ark.secret, ask.secret)
})

test.run()
