/**
 * The launch sequence of SEV and SEV-ES guests as a VMM performs it with KVM_MEMORY_ENCRYPT_OP (Linux
 * Documentation/virt/kvm/x86/amd-memory-encryption.rst): INIT, LAUNCH_START, LAUNCH_UPDATE_DATA for each measured range,
 * LAUNCH_UPDATE_VMSA (SEV-ES), LAUNCH_MEASURE, LAUNCH_FINISH. The digest is what the firmware computed: it is read from
 * the attestation report, whose bytes 0x10-0x2f hold it in clear.
 */
import { CloisterError } from '../errors.ts'
import { isSevEs, type MachineType } from './options.ts'

/** KVM_SEV_* command ids, uapi/asm/kvm.h. */
const SEV = { INIT: 0, ES_INIT: 1, LAUNCH_START: 2, UPDATE_DATA: 3, UPDATE_VMSA: 4, MEASURE: 6, FINISH: 7, ATTESTATION_REPORT: 20, INIT2: 22 } as const
const MEASURE_BYTES = 48
const REPORT_BYTES = 0xd0

export interface SevAnswer {
  /** 0 or a negative errno. */
  errno: number
  /** Firmware error, 0 = none. */
  fwError: number
}

/** KVM_MEMORY_ENCRYPT_OP: `data` is the command's structure, results are written back into it. */
export type SevCommand = (id: number, data: Uint8Array | null) => SevAnswer

/** Host memory for results that the firmware writes through a pointer. */
export interface Scratch {
  readonly address: bigint
  read(offset: number, n: number): Uint8Array
}

export interface LaunchRange {
  /** Host address. */
  address: bigint
  length: number
}

export interface LaunchRecord {
  digest: string
  measure: Uint8Array
  nonce: Uint8Array
}

const structure = (size: number, ...fields: [offset: number, size: 4 | 8, value: number | bigint][]): Uint8Array => {
  const out = new Uint8Array(size)
  const view = new DataView(out.buffer)
  for (const [offset, width, value] of fields) {
    if (width === 4) view.setUint32(offset, Number(value), true)
    else view.setBigUint64(offset, BigInt(value), true)
  }
  return out
}

export class SevLaunch {
  readonly #type: MachineType
  readonly #command: SevCommand
  readonly #trace: ((line: string) => void) | null

  constructor(type: MachineType, command: SevCommand, trace: ((line: string) => void) | null) {
    this.#type = type
    this.#command = command
    this.#trace = trace
  }

  #run(name: string, id: number, data: Uint8Array | null): void {
    const { errno, fwError } = this.#command(id, data)
    this.#trace?.(`firmware ${name} errno=${errno} fw_error=0x${fwError.toString(16)}`)
    if (errno === 0) return
    throw new CloisterError('launch', `${name}: errno ${-errno}, firmware error 0x${fwError.toString(16)}`)
  }

  /** Before any vCPU exists. */
  init(features: bigint): void {
    if (this.#type === 'sev-legacy' || this.#type === 'sev-es-legacy') {
      if (features !== 0n) throw new CloisterError('guest-features', `guest features 0x${features.toString(16)}: the legacy init commands know none`)
      const es = isSevEs(this.#type)
      this.#run(es ? 'KVM_SEV_ES_INIT' : 'KVM_SEV_INIT', es ? SEV.ES_INIT : SEV.INIT, null)
    } else this.#run('KVM_SEV_INIT2', SEV.INIT2, structure(48, [0, 8, features]))
  }

  start(policy: bigint): void {
    this.#run('KVM_SEV_LAUNCH_START', SEV.LAUNCH_START, structure(40, [4, 4, policy]))
  }

  update(ranges: readonly LaunchRange[]): void {
    for (const { address, length } of ranges) this.#run('KVM_SEV_LAUNCH_UPDATE_DATA', SEV.UPDATE_DATA, structure(16, [0, 8, address], [8, 4, length]))
  }

  /** Seals the register state (SEV-ES), asks for the measurement and the digest behind it, and lets the guest run. */
  finish(scratch: Scratch): LaunchRecord {
    if (isSevEs(this.#type)) this.#run('KVM_SEV_LAUNCH_UPDATE_VMSA', SEV.UPDATE_VMSA, null)
    this.#run('KVM_SEV_LAUNCH_MEASURE', SEV.MEASURE, structure(16, [0, 8, scratch.address], [8, 4, MEASURE_BYTES]))
    const blob = scratch.read(0, MEASURE_BYTES)
    this.#run('KVM_SEV_LAUNCH_FINISH', SEV.FINISH, null)
    this.#run('KVM_SEV_GET_ATTESTATION_REPORT', SEV.ATTESTATION_REPORT, structure(32, [16, 8, scratch.address], [24, 4, REPORT_BYTES]))
    const digest = [...scratch.read(0x10, 32)].map((b) => b.toString(16).padStart(2, '0')).join('')
    return { digest, measure: blob.slice(0, 32), nonce: blob.slice(32, 48) }
  }
}
