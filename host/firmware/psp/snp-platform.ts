/**
 * The SNP half of the platform: versions, configuration and the VLEK (SEV-SNP ABI 56860: SNP_PLATFORM_STATUS, SNP_CONFIG,
 * SNP_COMMIT, SNP_VLEK_LOAD; structures of Linux uapi/linux/psp-sev.h). Owns the SNP configuration of the chip.
 */
import { aes256Gcm } from '../../crypto/aes.ts'
import { equalBytes } from '../../crypto/sha256.ts'
import { FIRMWARE_STATUS as FW, SEV_API, SNP_API, SNP_TCB, SNP_VLEK } from '../../generated/psp.ts'
import { Random } from './random.ts'

/** Bits of struct sev_user_data_snp_config and, in the same places, of the status. */
const MASK_CHIP_ID = 1
const MASK_CHIP_KEY = 2
const VLEK_EN = 4

export class SnpPlatform {
  readonly #seed: bigint
  /** SNP_INIT: the kernel's ccp driver sends it when it loads. */
  initialised = true
  #reportedTcb = SNP_TCB
  #masks = 0
  /** Hashstick of SNP_VLEK_LOAD and the TCB that it was made for. */
  #vlek: { readonly hashstick: Uint8Array<ArrayBuffer>; readonly tcb: bigint } | null = null

  constructor(seed: bigint) {
    this.#seed = seed
  }

  /** SNP_SHUTDOWN_EX; configuration and VLEK are those of a fresh SNP_INIT afterwards. */
  shutdown(): void {
    this.initialised = false
    this.#reportedTcb = SNP_TCB
    this.#masks = 0
    this.#vlek = null
  }

  /** struct sev_user_data_snp_status: version, state, RMP flag, build, masks, guests, TCB versions. */
  status(guests: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(32)
    const view = new DataView(bytes.buffer)
    view.setUint8(0, SNP_API.MAJOR)
    view.setUint8(1, SNP_API.MINOR)
    view.setUint8(2, this.initialised ? 1 : 0)
    view.setUint8(3, this.initialised ? 1 : 0)
    view.setUint32(4, SEV_API.BUILD, true)
    view.setUint32(8, this.#masks | (this.#vlek === null ? 0 : VLEK_EN), true)
    view.setUint32(12, guests, true)
    view.setBigUint64(16, SNP_TCB, true)
    view.setBigUint64(24, this.#reportedTcb, true)
    return bytes
  }

  /** SNP_CONFIG (64 bytes): reported TCB u64 (0 = the current one), masks u32, reserved. */
  configure(config: Uint8Array): number {
    const view = new DataView(config.buffer, config.byteOffset, config.byteLength)
    const [tcb, masks] = [view.getBigUint64(0, true), view.getUint32(8, true)]
    if ((masks & ~(MASK_CHIP_ID | MASK_CHIP_KEY)) !== 0 || config.subarray(12).some((b) => b !== 0)) return FW.INVALID_PARAM
    // A reported TCB is never above the installed one, part by part.
    for (let at = 0n; at < 64n; at += 8n) if (((tcb >> at) & 0xffn) > ((SNP_TCB >> at) & 0xffn)) return FW.INVALID_PARAM
    this.#reportedTcb = tcb === 0n ? SNP_TCB : tcb
    this.#masks = masks
    return FW.SUCCESS
  }

  /** Key shared by chip and key server: the model's is derived from the chip's seed. */
  #wrappingKey(): Uint8Array<ArrayBuffer> {
    return new Random(this.#seed, 'vlek wrapping').bytes(32)
  }

  /** What AMD's key server sends for this chip: the hashstick wrapped with AES-256-GCM, bound to a TCB version. */
  wrapVlek(hashstick: Uint8Array, tcb = SNP_TCB, iv: Uint8Array = new Random(this.#seed, 'vlek iv').bytes(12)): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(SNP_VLEK.SIZE)
    out.set(iv)
    new DataView(out.buffer).setBigUint64(SNP_VLEK.TCB, tcb, true)
    const { data, tag } = aes256Gcm(this.#wrappingKey(), iv, out.subarray(SNP_VLEK.TCB, SNP_VLEK.TAG), hashstick, true)
    out.set(data, SNP_VLEK.WRAPPED)
    out.set(tag, SNP_VLEK.TAG)
    return out
  }

  /** SNP_VLEK_LOAD. The codes of a bad wrapping and a TCB above the installed one are UNVERIFIED. */
  loadVlek(wrapped: Uint8Array): number {
    if (!this.initialised) return FW.INVALID_PLATFORM_STATE
    const iv = wrapped.slice(0, SNP_VLEK.IV)
    const sealed = wrapped.subarray(SNP_VLEK.WRAPPED, SNP_VLEK.TCB)
    const { data, tag } = aes256Gcm(this.#wrappingKey(), iv, wrapped.subarray(SNP_VLEK.TCB, SNP_VLEK.TAG), sealed, false)
    if (!equalBytes(tag, wrapped.subarray(SNP_VLEK.TAG, SNP_VLEK.SIZE))) return FW.BAD_MEASUREMENT
    const tcb = new DataView(wrapped.buffer, wrapped.byteOffset, wrapped.byteLength).getBigUint64(SNP_VLEK.TCB, true)
    for (let at = 0n; at < 64n; at += 8n) if (((tcb >> at) & 0xffn) > ((SNP_TCB >> at) & 0xffn)) return FW.INVALID_PARAM
    this.#vlek = { hashstick: data, tcb }
    return FW.SUCCESS
  }
}
