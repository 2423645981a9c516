/**
 * The SEV platform: its state, keys and certificate chain (SEV API 55766, chapter 5). In silicon the
 * CEK is fused and signed by AMD's ASK; the model's is its own, self-signed, and no AMD root vouches for it.
 */
import type { Core } from '../../engine/core.ts'
import { type KeyPair, keyPair } from '../../crypto/p384.ts'
import { FIRMWARE_STATUS as FW, PLATFORM_STATE, SEV_API, SEV_SIZE } from '../../generated/psp.ts'
import { ALGORITHM, encodeCertificate, signCertificate, USAGE } from './certificate.ts'
import { Guest } from './guest.ts'
import { Random } from './random.ts'

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
  /** Generation of PEK and PDH: bumped by PEK_GEN, PDH_GEN and factory reset. */
  #pekGeneration = 0
  #pdhGeneration = 0
  #keys: Keys | null = null
  #chain: { pdh: Uint8Array<ArrayBuffer>; chain: Uint8Array<ArrayBuffer> } | null = null
  #nextHandle = 1
  readonly guests = new Map<number, Guest>()
  readonly #asids = new Map<number, number>()
  readonly random: Random

  constructor(core: Core, seed: bigint) {
    this.core = core
    this.#seed = seed
    this.random = new Random(seed, 'launch')
  }

  /** The kernel's ccp driver initialises the platform at module load, so it is never UNINIT here. */
  get state(): number {
    return this.guests.size > 0 ? PLATFORM_STATE.WORKING : PLATFORM_STATE.INIT
  }

  /** struct sev_user_data_status (packed, 12 bytes). */
  status(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(12)
    const view = new DataView(bytes.buffer)
    view.setUint8(0, SEV_API.MAJOR)
    view.setUint8(1, SEV_API.MINOR)
    view.setUint8(2, this.state)
    // SEV_STATUS_FLAGS_CONFIG_ES.
    view.setUint32(3, 0x100, true)
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

  /** PDH certificate (signed by PEK) and the chain PEK (by OCA and CEK), OCA (by itself), CEK (by itself). */
  certificates(): { pdh: Uint8Array<ArrayBuffer>; chain: Uint8Array<ArrayBuffer> } {
    if (this.#chain === null) {
      const keys = this.keys()
      const pdh = encodeCertificate(keys.pdh.point, USAGE.PDH, ALGORITHM.ECDH_SHA256)
      signCertificate(pdh, 0, keys.pek, USAGE.PEK)
      const pek = encodeCertificate(keys.pek.point, USAGE.PEK, ALGORITHM.ECDSA_SHA256)
      signCertificate(pek, 0, keys.oca, USAGE.OCA)
      signCertificate(pek, 1, keys.cek, USAGE.CEK)
      const oca = encodeCertificate(keys.oca.point, USAGE.OCA, ALGORITHM.ECDSA_SHA256)
      signCertificate(oca, 0, keys.oca, USAGE.OCA)
      const cek = encodeCertificate(keys.cek.point, USAGE.CEK, ALGORITHM.ECDSA_SHA256)
      signCertificate(cek, 0, keys.cek, USAGE.CEK)
      const chain = new Uint8Array(3 * SEV_SIZE.CERTIFICATE)
      ;[pek, oca, cek].forEach((certificate, i) => {
        chain.set(certificate, i * SEV_SIZE.CERTIFICATE)
      })
      this.#chain = { pdh, chain }
    }
    return this.#chain
  }

  /** SNP_SET_CONFIG. */
  snpConfig = { reportedTcb: 0n, maskChipId: false }

  /** PEK_CSR: the PEK's certificate before anybody signed it. */
  csr(): Uint8Array<ArrayBuffer> {
    return encodeCertificate(this.keys().pek.point, USAGE.PEK, ALGORITHM.ECDSA_SHA256)
  }

  /** FACTORY_RESET, PEK_GEN: only without guests. */
  generatePek(): number {
    if (this.guests.size > 0) return FW.INVALID_PLATFORM_STATE
    this.#pekGeneration++
    this.#pdhGeneration = 0
    this.#forget()
    return FW.SUCCESS
  }

  generatePdh(): number {
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

  /** A new guest context; see Guest for the commands. */
  createGuest(policy: number): Guest {
    const guest = new Guest(this, this.#nextHandle++, policy)
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
