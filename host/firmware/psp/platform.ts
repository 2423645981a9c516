/**
 * The SEV platform: its state, keys and certificate chain (SEV API 55766, chapter 5; which command in which state: AMD's
 * sev-tool, sevapi.h SEV_PLATFORM_STATE). In silicon the CEK is fused and signed by AMD's ASK; the model's: see roots.
 */
import type { Core } from '../../engine/core.ts'
import { type KeyPair, keyPair, type Point } from '../../crypto/p384.ts'
import { FIRMWARE_STATUS as FW, PLATFORM_STATE, SEV_API, SEV_SIZE } from '../../generated/psp.ts'
import {
  ALGORITHM,
  certificateFields,
  certificateKey,
  encodeCertificate,
  signCertificate,
  signedSlots,
  USAGE,
  verifyCertificate,
} from './certificate.ts'
import { Guest } from './guest.ts'
import { Random } from './random.ts'
import { rootKeys } from './roots.ts'
import { SnpPlatform } from './snp-platform.ts'

/** ASIDs as CPUID 0x8000001F reports them on Milan: 1..MIN_SEV-1 are for SEV-ES and SNP guests. */
export const ASID = { MIN_SEV: 100, MAX: 509 } as const

interface Keys {
  readonly cek: KeyPair
  readonly oca: KeyPair
  readonly pek: KeyPair
  readonly pdh: KeyPair
}

export class Platform {
  readonly core: Core
  readonly #seed: bigint
  /** PLATFORM_STATE is not UNINIT: the kernel's ccp driver sends INIT when it loads. */
  initialised = true
  /** Generation of PEK and PDH: bumped by PEK_GEN, PDH_GEN, PEK_CERT_IMPORT and FACTORY_RESET. */
  #pekGeneration = 0
  #pdhGeneration = 0
  /** The certificate of the OCA that took ownership, and the PEK that it signed; null while the platform owns itself. */
  #owner: { readonly oca: Uint8Array<ArrayBuffer>; readonly pek: Uint8Array<ArrayBuffer> } | null = null
  #keys: Keys | null = null
  #chain: { pdh: Uint8Array<ArrayBuffer>; chain: Uint8Array<ArrayBuffer> } | null = null
  #nextHandle = 1
  readonly guests = new Map<number, Guest>()
  readonly #asids = new Map<number, number>()
  readonly random: Random
  /** The SNP half of the firmware. */
  readonly snp: SnpPlatform

  constructor(core: Core, seed: bigint) {
    this.core = core
    this.#seed = seed
    this.random = new Random(seed, 'launch')
    this.snp = new SnpPlatform(seed)
  }

  get state(): number {
    if (!this.initialised) return PLATFORM_STATE.UNINIT
    return this.guests.size > 0 ? PLATFORM_STATE.WORKING : PLATFORM_STATE.INIT
  }

  /** SHUTDOWN: every guest context is gone. */
  shutdown(): void {
    for (const guest of [...this.guests.values()]) this.decommission(guest)
    this.initialised = false
  }

  /** struct sev_user_data_status (packed, 12 bytes). */
  status(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(12)
    const view = new DataView(bytes.buffer)
    view.setUint8(0, SEV_API.MAJOR)
    view.setUint8(1, SEV_API.MINOR)
    view.setUint8(2, this.state)
    // Bit 0: owned from outside; SEV_STATUS_FLAGS_CONFIG_ES, which INIT decides.
    view.setUint32(3, (this.#owner === null ? 0 : 1) | (this.initialised ? 0x100 : 0), true)
    view.setUint8(7, SEV_API.BUILD)
    view.setUint32(8, this.guests.size, true)
    return bytes
  }

  keys(): Keys {
    if (this.#keys === null) {
      const make = (purpose: string): KeyPair => keyPair(new Random(this.#seed, purpose).bytes(56))
      this.#keys = {
        cek: make('cek'),
        oca: make(`oca ${this.#pekGeneration}`),
        pek: make(`pek ${this.#pekGeneration}`),
        pdh: make(`pdh ${this.#pekGeneration} ${this.#pdhGeneration}`),
      }
    }
    return this.#keys
  }

  /** The key whose domain this platform belongs to (policy bit DOMAIN). */
  ownerKey(): Point {
    return this.#owner === null ? this.keys().oca.point : (certificateKey(this.#owner.oca) as Point)
  }

  /** PDH certificate (signed by PEK) and the chain PEK (by OCA and CEK), OCA (by itself), CEK (by the ASK). */
  certificates(): { pdh: Uint8Array<ArrayBuffer>; chain: Uint8Array<ArrayBuffer> } {
    if (this.#chain === null) {
      const keys = this.keys()
      const pdh = encodeCertificate(keys.pdh.point, USAGE.PDH, ALGORITHM.ECDH_SHA256)
      signCertificate(pdh, 0, keys.pek, USAGE.PEK)
      let pek = this.#owner?.pek.slice()
      let oca = this.#owner?.oca
      if (pek === undefined || oca === undefined) {
        pek = this.csr()
        signCertificate(pek, 0, keys.oca, USAGE.OCA)
        oca = encodeCertificate(keys.oca.point, USAGE.OCA, ALGORITHM.ECDSA_SHA256)
        signCertificate(oca, 0, keys.oca, USAGE.OCA)
      }
      signCertificate(pek, signedSlots(pek)?.[0] === 0 ? 1 : 0, keys.cek, USAGE.CEK)
      const cek = encodeCertificate(keys.cek.point, USAGE.CEK, ALGORITHM.ECDSA_SHA256)
      signCertificate(cek, 0, rootKeys().ask, USAGE.ASK)
      const chain = new Uint8Array(3 * SEV_SIZE.CERTIFICATE)
      chain.set(pek)
      chain.set(oca, SEV_SIZE.CERTIFICATE)
      chain.set(cek, 2 * SEV_SIZE.CERTIFICATE)
      this.#chain = { pdh, chain }
    }
    return this.#chain
  }

  /** PEK_CSR: the PEK's certificate before anybody signed it. */
  csr(): Uint8Array<ArrayBuffer> {
    return encodeCertificate(this.keys().pek.point, USAGE.PEK, ALGORITHM.ECDSA_SHA256)
  }

  /** PEK_CERT_IMPORT: another OCA signed our CSR and owns the platform from here on. */
  importPek(pek: Uint8Array<ArrayBuffer>, oca: Uint8Array<ArrayBuffer>): number {
    if (this.state !== PLATFORM_STATE.INIT) return FW.INVALID_PLATFORM_STATE
    if (this.#owner !== null) return FW.ALREADY_OWNED
    if (pek.length < SEV_SIZE.CERTIFICATE || oca.length < SEV_SIZE.CERTIFICATE) return FW.INVALID_LEN
    const [pekCertificate, ocaCertificate] = [pek.slice(0, SEV_SIZE.CERTIFICATE), oca.slice(0, SEV_SIZE.CERTIFICATE)]
    // As sev-tool's SEVCert::verify_signed_pek_csr: exactly one signature, by the OCA; the OCA signs itself.
    const [pekKey, ocaKey] = [certificateKey(pekCertificate), certificateKey(ocaCertificate)]
    const [of, by] = [certificateFields(pekCertificate), certificateFields(ocaCertificate)]
    const mine = this.keys().pek.point
    if (
      pekKey === null ||
      ocaKey === null ||
      of.usage !== USAGE.PEK ||
      of.algorithm !== ALGORITHM.ECDSA_SHA256 ||
      by.usage !== USAGE.OCA ||
      by.major !== 0 ||
      by.minor !== 0 ||
      signedSlots(pekCertificate)?.length !== 1 ||
      pekKey.x !== mine.x ||
      pekKey.y !== mine.y
    )
      return FW.INVALID_CERTIFICATE
    if (!verifyCertificate(pekCertificate, ocaKey, USAGE.OCA) || !verifyCertificate(ocaCertificate, ocaKey, USAGE.OCA))
      return FW.BAD_SIGNATURE
    this.#owner = { oca: ocaCertificate, pek: pekCertificate }
    return this.generatePdh()
  }

  /** FACTORY_RESET, in UNINIT only: keys and owner start anew. */
  factoryReset(): number {
    return this.initialised ? FW.INVALID_PLATFORM_STATE : this.#newPek()
  }

  /** PEK_GEN, in INIT only. */
  generatePek(): number {
    return this.state === PLATFORM_STATE.INIT ? this.#newPek() : FW.INVALID_PLATFORM_STATE
  }

  #newPek(): number {
    this.#pekGeneration++
    this.#pdhGeneration = 0
    this.#owner = null
    this.#forget()
    return FW.SUCCESS
  }

  /** PDH_GEN, in INIT and WORKING. */
  generatePdh(): number {
    if (!this.initialised) return FW.INVALID_PLATFORM_STATE
    this.#pdhGeneration++
    this.#forget()
    return FW.SUCCESS
  }

  #forget(): void {
    this.#keys = null
    this.#chain = null
  }

  /** Unique id of the chip (GET_ID2). */
  chipId(): Uint8Array<ArrayBuffer> {
    return new Random(this.#seed, 'chip id').bytes(64)
  }

  /** A new guest context with the key of `shared` or a new one; see Guest for the commands. */
  createGuest(policy: number, shared: Guest | null = null): Guest {
    const guest = new Guest(this, this.#nextHandle++, policy, shared)
    this.guests.set(guest.handle, guest)
    return guest
  }

  /** DECOMMISSION: the context is gone; its handle is never used again. */
  decommission(guest: Guest): number {
    if (guest.asid !== 0) this.#asids.delete(guest.asid)
    this.guests.delete(guest.handle)
    guest.destroy()
    return FW.SUCCESS
  }

  /** ACTIVATE: installs the guest's key under an ASID of the range its policy belongs to. */
  activate(guest: Guest, asid: number): number {
    if (asid < 1 || asid > ASID.MAX) return FW.INVALID_ASID
    if (guest.policyEs !== asid < ASID.MIN_SEV) return FW.INVALID_ASID
    if (guest.asid !== 0) return FW.ACTIVE
    if (this.#asids.has(asid)) return FW.ASID_OWNED
    this.#asids.set(asid, guest.handle)
    guest.activated(asid)
    return FW.SUCCESS
  }
}
