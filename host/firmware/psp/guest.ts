/**
 * One SEV or SEV-ES guest context in the firmware: state machine, launch digest, keys, and the
 * commands on guest memory (SEV API 55766, chapters 6 and 7). Statuses are firmware codes, not errnos.
 *
 * States: UNINIT -LAUNCH_START-> LAUNCH_UPDATE -LAUNCH_MEASURE-> LAUNCH_SECRET -LAUNCH_FINISH-> RUNNING;
 * LAUNCH_FINISH is accepted from LAUNCH_UPDATE too, as the kernel's selftests expect. RUNNING -SEND_START-> SENDING
 * -SEND_FINISH-> SENT (-SEND_CANCEL-> RUNNING); UNINIT -RECEIVE_START-> RECEIVING -RECEIVE_FINISH-> RUNNING.
 */
import { aes128Ctr } from '../../crypto/aes.ts'
import { sharedSecret, sign } from '../../crypto/p384.ts'
import { equalBytes, Sha256 } from '../../crypto/sha256.ts'
import { FIRMWARE_STATUS as FW, GUEST_STATE, SEV_API, SEV_POLICY, SEV_SIZE } from '../../generated/psp.ts'
import { STAGING, STAGING_SIZE } from '../../generated/layout.ts'
import { ALGORITHM, certificateFields, certificateKey, encodeSignature, USAGE } from './certificate.ts'
import type { Platform } from './platform.ts'
import { checkReceiver } from './roots.ts'
import { launchMeasurement, openPacket, sealPacket, secretMac, type TransportKeys, unwrapSession, wrapSession } from './session.ts'

/** A place in guest memory as the kernel names it to the firmware. */
export interface Memory {
  /** Core address of the BACKING. */
  readonly backing: number
  readonly offset: number
}

export class Guest {
  readonly handle: number
  readonly policy: number
  readonly #platform: Platform
  state: number = GUEST_STATE.UNINIT
  asid = 0
  #keys: TransportKeys = { tek: new Uint8Array(16), tik: new Uint8Array(16) }
  /** Memory-encryption key, two 64-bit halves. */
  readonly #vek: readonly [bigint, bigint]
  readonly #hash = new Sha256()
  #digest: Uint8Array<ArrayBuffer> | null = null
  #measurement: Uint8Array<ArrayBuffer> | null = null

  constructor(platform: Platform, handle: number, policy: number, shared: Guest | null) {
    this.#platform = platform
    this.handle = handle
    this.policy = policy
    const key = new DataView(platform.random.bytes(16).buffer)
    this.#vek = shared !== null ? shared.#vek : [key.getBigUint64(0, true), key.getBigUint64(8, true)]
  }

  get policyEs(): boolean {
    return (this.policy & SEV_POLICY.ES) !== 0
  }

  /** The launch digest: of what has been measured so far, final after LAUNCH_MEASURE. */
  get digest(): Uint8Array<ArrayBuffer> {
    return this.#digest ?? this.#hash.digest()
  }

  /** LAUNCH_START. Without a session the firmware makes TEK and TIK itself. */
  launchStart(dhCert: Uint8Array | null, session: Uint8Array | null): number {
    if (!this.#apiSuffices(SEV_API.MAJOR, SEV_API.MINOR)) return FW.POLICY_FAILURE
    if (dhCert !== null || session !== null) {
      if (dhCert === null) return FW.INVALID_CERTIFICATE
      if (session === null || session.length < SEV_SIZE.SESSION) return FW.INVALID_LEN
      const owner = certificateKey(dhCert)
      const z = owner === null ? null : sharedSecret(this.#platform.keys().pdh.secret, owner)
      if (z === null) return FW.INVALID_CERTIFICATE
      const keys = unwrapSession(z, this.policy, session)
      if (keys === null) return FW.BAD_MEASUREMENT
      this.#keys = keys
    } else {
      this.#keys = { tek: this.#platform.random.bytes(16), tik: this.#platform.random.bytes(16) }
    }
    this.state = GUEST_STATE.LAUNCH_UPDATE
    return FW.SUCCESS
  }

  /** The policy names the lowest API version that may hold the guest. */
  #apiSuffices(major: number, minor: number): boolean {
    return ((this.policy >>> 16) & 0xff) * 256 + (this.policy >>> 24) <= major * 256 + minor
  }

  activated(asid: number): void {
    this.asid = asid
    this.#platform.core.call.setKey(asid, BigInt.asIntN(64, this.#vek[0]), BigInt.asIntN(64, this.#vek[1]))
  }

  /** LAUNCH_UPDATE_DATA: measures what the host sees there now, then encrypts it in place. */
  launchUpdateData(memory: Memory, length: number): number {
    if (this.state !== GUEST_STATE.LAUNCH_UPDATE) return FW.INVALID_GUEST_STATE
    if (this.asid === 0) return FW.INACTIVE
    if (length === 0 || length % 16 !== 0) return FW.INVALID_LEN
    if (memory.offset % 16 !== 0) return FW.INVALID_ADDRESS
    const { call, staging } = this.#platform.core
    for (let done = 0; done < length; ) {
      const n = Math.min(STAGING_SIZE, length - done)
      if (call.backingRead(memory.backing, BigInt(memory.offset + done), STAGING, n) < 0) return FW.INVALID_ADDRESS
      this.#hash.update(staging.subarray(0, n))
      done += n
    }
    return call.pspEncrypt(memory.backing, BigInt(memory.offset), length, this.asid) < 0 ? FW.INVALID_ADDRESS : FW.SUCCESS
  }

  /** LAUNCH_UPDATE_VMSA: measures a vCPU's VMSA; SEV-ES guests only. The caller then has silicon seal it. */
  launchUpdateVmsa(image: Uint8Array): number {
    if (this.state !== GUEST_STATE.LAUNCH_UPDATE) return FW.INVALID_GUEST_STATE
    if (!this.policyEs) return FW.POLICY_FAILURE
    if (this.asid === 0) return FW.INACTIVE
    this.#hash.update(image)
    return FW.SUCCESS
  }

  /** LAUNCH_MEASURE: MEASURE 32, MNONCE 16. */
  launchMeasure(): { status: number; data: Uint8Array<ArrayBuffer> | null } {
    if (this.state !== GUEST_STATE.LAUNCH_UPDATE) return { status: FW.INVALID_GUEST_STATE, data: null }
    this.#digest = this.#hash.digest()
    const mnonce = this.#platform.random.bytes(16)
    const data = new Uint8Array(SEV_SIZE.MEASUREMENT)
    data.set(launchMeasurement(this.#keys.tik, this.policy, this.#digest, mnonce))
    data.set(mnonce, 32)
    this.#measurement = data
    this.state = GUEST_STATE.LAUNCH_SECRET
    return { status: FW.SUCCESS, data }
  }

  /** LAUNCH_SECRET: checks the packet and writes the plaintext into encrypted guest memory. */
  launchSecret(header: Uint8Array, ciphertext: Uint8Array, memory: Memory, guestLength: number): number {
    if (this.state !== GUEST_STATE.LAUNCH_SECRET) return FW.INVALID_GUEST_STATE
    if (header.length !== SEV_SIZE.PACKET_HEADER || guestLength % 16 !== 0 || guestLength > SEV_SIZE.BLOB_MAX) return FW.INVALID_LEN
    if (memory.offset % 16 !== 0) return FW.INVALID_ADDRESS
    // Flag bit 0 announces a compressed payload.
    if ((header[0] as number) & 1) return FW.UNSUPPORTED
    if (ciphertext.length !== guestLength) return FW.INVALID_LEN
    const mac = secretMac(this.#keys.tik, header, guestLength, ciphertext, this.#measurement as Uint8Array)
    if (!equalBytes(mac, header.subarray(20, 52))) return FW.BAD_MEASUREMENT
    return this.#write(memory, aes128Ctr(this.#keys.tek, header.subarray(4, 20), ciphertext)) ? FW.SUCCESS : FW.INVALID_ADDRESS
  }

  launchFinish(): number {
    if (this.state !== GUEST_STATE.LAUNCH_UPDATE && this.state !== GUEST_STATE.LAUNCH_SECRET) return FW.INVALID_GUEST_STATE
    this.#digest ??= this.#hash.digest()
    this.state = GUEST_STATE.RUNNING
    return FW.SUCCESS
  }

  /** DBG_DECRYPT of 16-byte units; the policy decides. */
  debugDecrypt(memory: Memory, out: Uint8Array): number {
    const status = this.#debugAllowed(memory, out.length)
    if (status !== FW.SUCCESS) return status
    return this.#read(memory, out) ? FW.SUCCESS : FW.INVALID_ADDRESS
  }

  debugEncrypt(memory: Memory, bytes: Uint8Array): number {
    const status = this.#debugAllowed(memory, bytes.length)
    if (status !== FW.SUCCESS) return status
    return this.#write(memory, bytes) ? FW.SUCCESS : FW.INVALID_ADDRESS
  }

  #debugAllowed(memory: Memory, length: number): number {
    if (this.state === GUEST_STATE.UNINIT) return FW.INVALID_GUEST_STATE
    if (this.policy & SEV_POLICY.NODBG) return FW.POLICY_FAILURE
    if (length % 16 !== 0) return FW.INVALID_LEN
    return memory.offset % 16 === 0 ? FW.SUCCESS : FW.INVALID_ADDRESS
  }

  #read(memory: Memory, out: Uint8Array): boolean {
    const { call, staging } = this.#platform.core
    for (let done = 0; done < out.length; ) {
      const n = Math.min(STAGING_SIZE, out.length - done)
      if (call.pspRead(memory.backing, BigInt(memory.offset + done), STAGING, n, this.asid) < 0) return false
      out.set(staging.subarray(0, n), done)
      done += n
    }
    return true
  }

  #write(memory: Memory, bytes: Uint8Array): boolean {
    const { call, staging } = this.#platform.core
    for (let done = 0; done < bytes.length; ) {
      const n = Math.min(STAGING_SIZE, bytes.length - done)
      staging.set(bytes.subarray(done, done + n))
      if (call.pspWrite(memory.backing, BigInt(memory.offset + done), STAGING, n, this.asid) < 0) return false
      done += n
    }
    return true
  }

  /** ATTESTATION: mnonce 0x00, digest 0x10, policy 0x30, signature usage and algorithm 0x34, signature 0x40 by the PEK over 0x00..0x33. */
  attestation(mnonce: Uint8Array): { status: number; data: Uint8Array<ArrayBuffer> | null } {
    if (this.state === GUEST_STATE.UNINIT) return { status: FW.INVALID_GUEST_STATE, data: null }
    const data = new Uint8Array(SEV_SIZE.ATTESTATION_REPORT)
    const view = new DataView(data.buffer)
    data.set(mnonce.subarray(0, 16))
    data.set(this.digest, 0x10)
    view.setUint32(0x30, this.policy, true)
    view.setUint32(0x34, USAGE.PEK, true)
    view.setUint32(0x38, ALGORITHM.ECDSA_SHA256, true)
    encodeSignature(sign(this.#platform.keys().pek.secret, data.subarray(0, 0x34)), data.subarray(0x40))
    return { status: FW.SUCCESS, data }
  }

  /**
   * SEND_START: a session for the platform whose PDH this is. The policy decides whom the guest may go to: NOSEND nobody,
   * DOMAIN platforms of the same OCA, SEV platforms that the (model's) AMD root vouches for. In which order the firmware
   * looks at length and certificates is UNVERIFIED.
   */
  sendStart(
    pdh: Uint8Array,
    chain: Uint8Array,
    roots: Uint8Array,
    room: number,
  ): { status: number; session: Uint8Array<ArrayBuffer> | null } {
    const refused = (status: number): { status: number; session: null } => ({ status, session: null })
    if (this.state !== GUEST_STATE.RUNNING) return refused(FW.INVALID_GUEST_STATE)
    if ((this.policy & SEV_POLICY.NOSEND) !== 0) return refused(FW.POLICY_FAILURE)
    if (room < SEV_SIZE.SESSION) return refused(FW.INVALID_LEN)
    if (pdh.length < SEV_SIZE.CERTIFICATE || chain.length < 3 * SEV_SIZE.CERTIFICATE) return refused(FW.INVALID_LEN)
    const key = certificateKey(pdh)
    if (key === null || certificateFields(pdh).usage !== USAGE.PDH) return refused(FW.INVALID_CERTIFICATE)
    const receiver = checkReceiver(pdh, chain, roots, this.policy, this.#platform.ownerKey())
    if (receiver !== FW.SUCCESS) return refused(receiver)
    const pek = certificateFields(chain)
    if (!this.#apiSuffices(pek.major, pek.minor)) return refused(FW.POLICY_FAILURE)
    const z = sharedSecret(this.#platform.keys().pdh.secret, key)
    if (z === null) return refused(FW.INVALID_CERTIFICATE)
    const { random } = this.#platform
    this.#keys = { tek: random.bytes(16), tik: random.bytes(16) }
    this.state = GUEST_STATE.SENDING
    return { status: FW.SUCCESS, session: wrapSession(z, this.policy, this.#keys, random.bytes(16), random.bytes(16)) }
  }

  /** SEND_UPDATE_DATA: guest memory under the transport keys. */
  sendUpdateData(
    memory: Memory,
    length: number,
    headerRoom: number,
    room: number,
  ): { status: number; packet: { header: Uint8Array<ArrayBuffer>; data: Uint8Array<ArrayBuffer> } | null } {
    if (this.state !== GUEST_STATE.SENDING) return { status: FW.INVALID_GUEST_STATE, packet: null }
    const status = headerRoom < SEV_SIZE.PACKET_HEADER || room < length || length === 0 ? FW.INVALID_LEN : this.#movable(memory, length)
    if (status !== FW.SUCCESS) return { status, packet: null }
    const plaintext = new Uint8Array(length)
    if (!this.#read(memory, plaintext)) return { status: FW.INVALID_ADDRESS, packet: null }
    return { status: FW.SUCCESS, packet: sealPacket(this.#keys, this.#platform.random.bytes(16), plaintext) }
  }

  sendFinish(): number {
    return this.#leave(GUEST_STATE.SENDING, GUEST_STATE.SENT)
  }

  sendCancel(): number {
    return this.#leave(GUEST_STATE.SENDING, GUEST_STATE.RUNNING)
  }

  /** RECEIVE_START: the session that the sender's SEND_START made, unwrapped with the sender's PDH. */
  receiveStart(senderPdh: Uint8Array, session: Uint8Array): number {
    if (!this.#apiSuffices(SEV_API.MAJOR, SEV_API.MINOR)) return FW.POLICY_FAILURE
    if (senderPdh.length < SEV_SIZE.CERTIFICATE || session.length < SEV_SIZE.SESSION) return FW.INVALID_LEN
    const sender = certificateKey(senderPdh)
    const z = sender === null ? null : sharedSecret(this.#platform.keys().pdh.secret, sender)
    if (z === null) return FW.INVALID_CERTIFICATE
    const keys = unwrapSession(z, this.policy, session)
    if (keys === null) return FW.BAD_MEASUREMENT
    this.#keys = keys
    this.state = GUEST_STATE.RECEIVING
    return FW.SUCCESS
  }

  /** RECEIVE_UPDATE_DATA: a packet into encrypted guest memory. */
  receiveUpdateData(header: Uint8Array, data: Uint8Array, memory: Memory, length: number): number {
    if (this.state !== GUEST_STATE.RECEIVING) return FW.INVALID_GUEST_STATE
    if (header.length < SEV_SIZE.PACKET_HEADER || data.length !== length) return FW.INVALID_LEN
    const status = this.#movable(memory, length)
    if (status !== FW.SUCCESS) return status
    // Flag bit 0 announces a compressed payload.
    if ((header[0] as number) & 1) return FW.UNSUPPORTED
    const plaintext = openPacket(this.#keys, header, data, length)
    if (plaintext === null) return FW.BAD_MEASUREMENT
    return this.#write(memory, plaintext) ? FW.SUCCESS : FW.INVALID_ADDRESS
  }

  receiveFinish(): number {
    return this.#leave(GUEST_STATE.RECEIVING, GUEST_STATE.RUNNING)
  }

  #movable(memory: Memory, length: number): number {
    if (this.asid === 0) return FW.INACTIVE
    if (length === 0 || length % 16 !== 0 || length > SEV_SIZE.BLOB_MAX) return FW.INVALID_LEN
    return memory.offset % 16 === 0 ? FW.SUCCESS : FW.INVALID_ADDRESS
  }

  /** Transport keys are of one journey. */
  #leave(from: number, to: number): number {
    if (this.state !== from) return FW.INVALID_GUEST_STATE
    this.state = to
    this.#keys = { tek: new Uint8Array(16), tik: new Uint8Array(16) }
    return FW.SUCCESS
  }

  destroy(): void {
    this.state = GUEST_STATE.UNINIT
    this.asid = 0
  }
}
