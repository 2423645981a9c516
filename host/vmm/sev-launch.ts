/**
 * The launch sequence of SEV and SEV-ES guests as a VMM performs it with KVM_MEMORY_ENCRYPT_OP (Linux
 * Documentation/virt/kvm/x86/amd-memory-encryption.rst): INIT, LAUNCH_START, LAUNCH_UPDATE_DATA for each measured range,
 * LAUNCH_UPDATE_VMSA (SEV-ES), LAUNCH_MEASURE, LAUNCH_FINISH.
 */
import { CloisterError } from '../errors.ts'
import type { Vm } from '../index.ts'
import { isSevEs, type MachineType } from './options.ts'

export interface LaunchRange {
  /** What it is, for a trace. */
  name: string
  guest: number
  /** Host address. */
  address: bigint
  length: number
}

/** What the launch of an encrypted guest left behind. */
export interface LaunchRecord {
  /** SHA-256 over everything measured, as the firmware keeps it; lower-case hexadecimal. */
  digest: string
  /** HMAC over it, 32 bytes: what LAUNCH_MEASURE gives a guest owner. */
  measure: Uint8Array
  /** Its nonce, 16 bytes. */
  nonce: Uint8Array
  /** What was measured, in order. */
  steps: LaunchStep[]
}

/** One measured piece and the digest after it. */
export interface LaunchStep {
  /** Guest-physical address; of a VMSA, whose page belongs to KVM, `-`. */
  address: string
  /** LAUNCH_UPDATE_DATA or LAUNCH_UPDATE_VMSA. */
  kind: 'data' | 'vmsa'
  /** What it is. */
  source: string
  /** Bytes. */
  length: number
  /** Digest after it, in hexadecimal. */
  digest: string
}

export class SevLaunch {
  readonly #type: MachineType
  readonly #vm: Vm
  readonly #trace: ((line: string) => void) | null

  constructor(type: MachineType, vm: Vm, trace: ((line: string) => void) | null) {
    this.#type = type
    this.#vm = vm
    this.#trace = trace
  }

  /** Before any vCPU exists. */
  init(features: bigint): void {
    if (features !== 0n && this.#type.endsWith('-legacy')) {
      throw new CloisterError('guest-features', `guest features 0x${features.toString(16)}: the legacy init commands know none`)
    }
    this.#vm.sevInit({ vmsaFeatures: features })
    this.#trace?.(`firmware init ${this.#type}`)
  }

  run(policy: number, ranges: readonly LaunchRange[], cpus: number): LaunchRecord {
    const vm = this.#vm
    const steps: LaunchStep[] = []
    const digest = (): string => vm.launchDigest() ?? ''
    const handle = vm.launchStart({ policy })
    this.#trace?.(`firmware LAUNCH_START policy=0x${policy.toString(16)} handle=${handle}`)
    for (const { name, guest, address, length } of ranges) {
      vm.launchUpdateData(address, length)
      steps.push({
        address: `0x${guest.toString(16)}`,
        kind: 'data',
        source: `${name}, 0x${length.toString(16)} bytes`,
        length,
        digest: digest(),
      })
      this.#trace?.(`firmware LAUNCH_UPDATE_DATA ${name} gpa=0x${guest.toString(16)} length=0x${length.toString(16)} digest=${digest()}`)
    }
    if (isSevEs(this.#type)) {
      vm.launchUpdateVmsa()
      steps.push({ address: '-', kind: 'vmsa', source: `${cpus} vCPU${cpus > 1 ? 's' : ''}`, length: cpus * 4096, digest: digest() })
      this.#trace?.(`firmware LAUNCH_UPDATE_VMSA vcpus=${cpus} digest=${digest()}`)
    }
    const blob = vm.launchMeasure()
    const result = { digest: digest(), measure: blob.slice(0, 32), nonce: blob.slice(32, 48), steps }
    vm.launchFinish()
    this.#trace?.('firmware LAUNCH_FINISH')
    return result
  }
}
