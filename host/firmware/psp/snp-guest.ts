/**
 * One SNP guest context of the firmware: launch digest and identity (SEV-SNP ABI 56860: SNP_LAUNCH_START, _UPDATE, _FINISH;
 * digest as in virtee/sev src/measurement/gctx.rs). Statuses are firmware codes; the codes of a refused ID block are
 * UNVERIFIED.
 */
import { type Point, fromBytes, onCurve, verify } from '../../crypto/p384.ts'
import { sha384 } from '../../crypto/sha384.ts'
import { equalBytes } from '../../crypto/sha256.ts'
import { FIRMWARE_STATUS as FW, SNP_API, SNP_CPUID, SNP_ID, SNP_PAGE } from '../../generated/psp.ts'
import { decodeSignature } from './certificate.ts'

const DIGEST = 48
const COORDINATE = 72
const CURVE_P384 = 2
/** ECDSA P-384 with SHA-384, the only algorithm there is. */
const ALGORITHM = 1
const PAGE_INFO = 0x70

/** What SNP_LAUNCH_FINISH is given. */
export interface SnpFinish {
  readonly idBlock: Uint8Array | null
  /** Present with the ID block. */
  readonly idAuth: Uint8Array | null
  readonly authorKey: boolean
  readonly hostData: Uint8Array
  readonly vcekDisabled: boolean
}

export class SnpGuest {
  readonly policy: bigint
  /** GSTATE_LAUNCH, then GSTATE_RUNNING. */
  finished = false
  #digest: Uint8Array<ArrayBuffer> = new Uint8Array(DIGEST)
  /** What an attestation report will say of the guest. */
  identity: { readonly block: Uint8Array; readonly idKeyDigest: Uint8Array; readonly authorKeyDigest: Uint8Array | null } | null = null
  hostData: Uint8Array = new Uint8Array(32)
  vcekDisabled = false

  constructor(policy: bigint) {
    this.policy = policy
  }

  /** SNP_LAUNCH_START: the policy names the lowest ABI version. */
  start(): number {
    const [major, minor] = [Number((this.policy >> 8n) & 0xffn), Number(this.policy & 0xffn)]
    return major * 256 + minor > SNP_API.MAJOR * 256 + SNP_API.MINOR ? FW.POLICY_FAILURE : FW.SUCCESS
  }

  /** The launch digest so far. */
  get digest(): Uint8Array<ArrayBuffer> {
    return this.#digest
  }

  /**
   * SNP_LAUNCH_UPDATE: every page counts with type and address, contents only of normal and VMSA pages. A CPUID page that
   * the firmware does not like is corrected in place and refused with INVALID_PARAM.
   */
  update(type: number, gpa: bigint, page: Uint8Array | null): number {
    if (this.finished) return FW.INVALID_GUEST_STATE
    if (type === SNP_PAGE.CPUID && page !== null && !checkCpuid(page)) return FW.INVALID_PARAM
    const info = new Uint8Array(PAGE_INFO)
    const view = new DataView(info.buffer)
    info.set(this.#digest)
    if (page !== null && (type === SNP_PAGE.NORMAL || type === SNP_PAGE.VMSA)) info.set(sha384(page), DIGEST)
    view.setUint16(96, PAGE_INFO, true)
    view.setUint8(98, type)
    view.setBigUint64(104, gpa, true)
    this.#digest = sha384(info)
    return FW.SUCCESS
  }

  /** SNP_LAUNCH_FINISH. */
  finish({ idBlock, idAuth, authorKey, hostData, vcekDisabled }: SnpFinish): number {
    if (this.finished) return FW.INVALID_GUEST_STATE
    if (idBlock !== null && idAuth !== null) {
      const status = this.#identify(idBlock, idAuth, authorKey)
      if (status !== FW.SUCCESS) return status
    }
    this.hostData = hostData
    this.vcekDisabled = vcekDisabled
    this.finished = true
    return FW.SUCCESS
  }

  /** The guest owner's word on what this guest has to be, signed with the ID key, that signed with the author key. */
  #identify(block: Uint8Array, auth: Uint8Array, authorKey: boolean): number {
    const [fields, page] = [viewOf(block), viewOf(auth)]
    if (fields.getUint32(SNP_ID.BLOCK_VERSION, true) !== 1 || page.getUint32(0, true) !== ALGORITHM) return FW.INVALID_PARAM
    if (authorKey && page.getUint32(4, true) !== ALGORITHM) return FW.INVALID_PARAM
    const part = (at: number, size: number): Uint8Array => auth.subarray(at, at + size)
    const idKeyBytes = part(SNP_ID.AUTH_ID_KEY, SNP_ID.KEY_SIZE)
    const idKey = publicKey(idKeyBytes)
    const blockSignature = decodeSignature(part(SNP_ID.AUTH_BLOCK_SIGNATURE, SNP_ID.SIGNATURE_SIZE))
    if (idKey === null) return FW.INVALID_KEY
    if (!verify(idKey, block, blockSignature, sha384)) return FW.BAD_SIGNATURE
    let authorKeyDigest: Uint8Array | null = null
    if (authorKey) {
      const authorKeyBytes = part(SNP_ID.AUTH_AUTHOR_KEY, SNP_ID.KEY_SIZE)
      const author = publicKey(authorKeyBytes)
      const keySignature = decodeSignature(part(SNP_ID.AUTH_ID_KEY_SIGNATURE, SNP_ID.SIGNATURE_SIZE))
      if (author === null) return FW.INVALID_KEY
      if (!verify(author, idKeyBytes, keySignature, sha384)) return FW.BAD_SIGNATURE
      authorKeyDigest = sha384(authorKeyBytes)
    }
    if (!equalBytes(block.subarray(0, DIGEST), this.#digest)) return FW.BAD_MEASUREMENT
    if (fields.getBigUint64(SNP_ID.BLOCK_POLICY, true) !== this.policy) return FW.POLICY_FAILURE
    this.identity = { block: block.slice(), idKeyDigest: sha384(idKeyBytes), authorKeyDigest }
    return FW.SUCCESS
  }
}

/** False: the page has too many entries, or features that were cleared now. */
function checkCpuid(page: Uint8Array): boolean {
  const view = viewOf(page)
  const count = view.getUint32(0, true)
  if (count > SNP_CPUID.COUNT_MAX) return false
  let good = true
  for (let i = 0; i < count; i++) {
    const at = SNP_CPUID.HEADER + i * SNP_CPUID.ENTRY
    for (const [leaf, subleaf, register, bits] of SNP_CPUID.REFUSED) {
      if (view.getUint32(at, true) !== leaf || view.getUint32(at + 4, true) !== subleaf) continue
      const value = view.getUint32(at + register, true)
      if ((value & bits) === 0) continue
      view.setUint32(at + register, (value & ~bits) >>> 0, true)
      good = false
    }
  }
  return good
}

/** curve u32, x and y of 72 bytes each, little endian. */
function publicKey(bytes: Uint8Array): Point | null {
  if (viewOf(bytes).getUint32(0, true) !== CURVE_P384) return null
  const coordinate = (at: number): bigint => fromBytes(bytes.subarray(at, at + COORDINATE), true)
  const point = { x: coordinate(4), y: coordinate(4 + COORDINATE) }
  return onCurve(point) ? point : null
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
