/** The library's own synchronous cryptography against Node's. */
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  randomBytes,
  sign as nodeSign,
  verify as nodeVerify,
} from 'node:crypto'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { aes128Ctr, aes256Gcm } from '../../host/crypto/aes.ts'
import { fromBytes, keyPair, sign, toBytes, verify } from '../../host/crypto/p384.ts'
import { hmacSha256, sha256 } from '../../host/crypto/sha256.ts'
import { sha384 } from '../../host/crypto/sha384.ts'

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
const bytes = (n: number): Uint8Array<ArrayBuffer> => new Uint8Array(randomBytes(n))

test('AES-128-CTR, counter overflow included', () => {
  for (let i = 0; i < 100; i++) {
    const [key, iv, data] = [bytes(16), bytes(16), bytes(i * 7)]
    if (i % 3 === 0) iv.fill(0xff, i % 16)
    const cipher = createCipheriv('aes-128-ctr', key, iv)
    assert.is(hex(aes128Ctr(key, iv, data)), hex(Buffer.concat([cipher.update(data), cipher.final()])), `key ${hex(key)} iv ${hex(iv)}`)
  }
})

test('AES-256-GCM seals and opens', () => {
  for (const n of [0, 1, 15, 16, 17, 384, 500]) {
    const [key, iv, aad, data] = [bytes(32), bytes(12), bytes(n % 40), bytes(n)]
    const cipher = createCipheriv('aes-256-gcm', key, iv).setAAD(aad)
    const want = Buffer.concat([cipher.update(data), cipher.final()])
    const sealed = aes256Gcm(key, iv, aad, data, true)
    assert.is(hex(sealed.data), hex(want), `key ${hex(key)} iv ${hex(iv)} ${n}`)
    assert.is(hex(sealed.tag), hex(cipher.getAuthTag()))
    const opened = aes256Gcm(key, iv, aad, sealed.data, false)
    assert.is(hex(opened.data), hex(data))
    assert.is(hex(opened.tag), hex(sealed.tag))
    const node = createDecipheriv('aes-256-gcm', key, iv).setAAD(aad).setAuthTag(sealed.tag)
    assert.is(hex(Buffer.concat([node.update(sealed.data), node.final()])), hex(data))
  }
})

test('SHA-256 and its HMAC', () => {
  for (const n of [0, 1, 55, 56, 63, 64, 65, 128, 4096, 10_000]) {
    const [key, data] = [bytes(n % 90), bytes(n)]
    assert.is(hex(sha256(data.subarray(0, n >> 1), data.subarray(n >> 1))), createHash('sha256').update(data).digest('hex'), hex(data))
    assert.is(hex(hmacSha256(key, data)), createHmac('sha256', key).update(data).digest('hex'), hex(data))
  }
})

test('SHA-384', () => {
  for (const n of [0, 1, 3, 55, 111, 112, 113, 127, 128, 129, 255, 4096, 10_000]) {
    const data = bytes(n)
    assert.is(hex(sha384(data)), createHash('sha384').update(data).digest('hex'), hex(data))
    assert.is(hex(sha384(data.subarray(0, n >> 1), data.subarray(n >> 1))), hex(sha384(data)))
  }
})

test('ECDSA P-384 with SHA-384 both ways', () => {
  const pair = keyPair(bytes(56))
  const b64 = (value: bigint): string => Buffer.from(toBytes(value, 48, false)).toString('base64url')
  const jwk = { kty: 'EC', crv: 'P-384', x: b64(pair.point.x), y: b64(pair.point.y), d: b64(pair.secret) }
  const message = bytes(96)
  const mine = sign(pair.secret, message, sha384)
  const ieee = new Uint8Array([...toBytes(mine.r, 48, false), ...toBytes(mine.s, 48, false)])
  const publicKey = createPublicKey({ key: { kty: jwk.kty, crv: jwk.crv, x: jwk.x, y: jwk.y }, format: 'jwk' })
  assert.ok(nodeVerify('sha384', message, { key: publicKey, dsaEncoding: 'ieee-p1363' }, ieee))
  const theirs = nodeSign('sha384', message, { key: createPrivateKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' })
  const signature = { r: fromBytes(theirs.subarray(0, 48), false), s: fromBytes(theirs.subarray(48), false) }
  assert.ok(verify(pair.point, message, signature, sha384))
  assert.not.ok(verify(pair.point, message, signature), 'another hash')
  message[0] = (message[0] as number) ^ 1
  assert.not.ok(verify(pair.point, message, signature, sha384))
})

test.run()
