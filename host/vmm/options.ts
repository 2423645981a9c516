/**
 * What a caller may ask of a machine, what a run reports, and the checks of both.
 * Every refusal is a CloisterError whose message names the input and the rule it breaks.
 */
import { CloisterError } from '../errors.ts'
import type { KvmOptions } from '../index.ts'
import { parseCpu, vcpuSignature } from './cpu-types.ts'
import { detect } from './loaders/detect.ts'

/** VM types by the names of the command line; `snp` and `tdx` are refused in this version. */
export const machineTypes = ['default', 'sev', 'sev-es', 'snp', 'tdx', 'sev-legacy', 'sev-es-legacy'] as const
/** One of `machineTypes`. */
export type MachineType = (typeof machineTypes)[number]

/** CPU modes at a raw image's entry. */
export const imageModes = ['real16', 'protected32', 'long64'] as const
/** One of `imageModes`. */
export type ImageMode = (typeof imageModes)[number]

/** A raw flat guest, entered directly. */
export interface FlatImage {
  /** Its content. */
  bytes: Uint8Array
  /** Guest-physical address it is loaded at. */
  load: number | bigint
  /** Guest-physical address it is entered at. */
  entry: number | bigint
  /** `long64`: CPL 0, the first 4 GiB mapped one to one, flat segments, RSP = load address, interrupts off. */
  mode: ImageMode
}

/** What `Machine.create` takes: firmware, a kernel or an image, and everything else by default. */
export interface MachineOptions {
  /** VM type; default `default`. */
  type?: MachineType
  /** OVMF-style image, mapped to end at 4 GiB. */
  firmware?: Uint8Array
  /** Raw flat guest. */
  image?: FlatImage
  /** bzImage, ELF with a PVH note, or Multiboot 1: entered directly, or through the firmware if there is one. */
  kernel?: Uint8Array
  /** Initial RAM disk, or the Multiboot module. */
  initrd?: Uint8Array
  /** Kernel command line. */
  append?: string
  /** Bytes of RAM, a multiple of 4096; default 256 MiB. */
  memory?: number | bigint
  /** Number of vCPUs; default 1. */
  smp?: number
  /** CPU model: `default` or a name of docs/cpu-models.md, with `,+feature` and `,-feature` after it. */
  cpu?: string
  /** vCPU type whose CPUID(1).EAX the measured VMSA holds in RDX. */
  vcpuType?: string
  /** Measures page by page, so that launchSteps names every page: the digest is the same. */
  stepByPage?: boolean
  /** SEV_FEATURES of the VMSA. */
  guestFeatures?: number | bigint
  /** SEV guest policy; default 0x1, with bit 2 (0x5) for SEV-ES. */
  policy?: number | bigint
  /** KVM_CREATE_IRQCHIP: default true; false is refused for SEV-ES (requirement B4). */
  irqchip?: boolean
  /** System management mode: default false; true is refused, for SEV-ES by requirement B5, else because no device raises an SMI yet. */
  smm?: boolean
  /** Which kernel's KVM is modelled. */
  linux?: '6.12' | '7.3'
  /** Policy profile. */
  profile?: NonNullable<KvmOptions['profile']>
  /** Seed of every random number of the machine; default 0. */
  seed?: number | bigint
  /** Seconds since 1970 that the real-time clock starts with; default 2026-01-01. */
  epoch?: number
  /** Instructions of all vCPUs together after which run() stops. */
  maxInstructions?: number | bigint
  /** Never run ahead of the wall clock: for somebody at the console. What the guest sees stays the same. Default false. */
  pace?: boolean
  /** Wall-clock seconds after which run() stops. */
  timeoutSeconds?: number
  /** Bytes the guest writes to its serial port. */
  onSerial?: (bytes: Uint8Array) => void
  /** Bytes the guest writes to OVMF's debug port 0x402. */
  onDebug?: (bytes: Uint8Array) => void
  /** One line per event of the kinds listed in `traceKinds`. */
  trace?: (line: string) => void
  /** Which events `trace` is told; default none. */
  traceKinds?: readonly TraceKind[]
  /** The core, for hosts without file access (see openKvm). */
  wasm?: NonNullable<KvmOptions['wasm']>
}

/** Kinds of events that can be traced. */
export const traceKindNames = ['exits', 'ghcb', 'tdcall', 'firmware', 'pio', 'mmio'] as const
/** One of `traceKindNames`. */
export type TraceKind = (typeof traceKindNames)[number]

/** How a run ended. */
export type ExitReason =
  | 'powered-off'
  | 'halted'
  | 'debug-exit'
  | 'budget-instructions'
  | 'budget-time'
  | 'guest-terminated'
  | 'triple-fault'
  | 'unimplemented'
  | 'interrupted'
  | 'internal-error'

/** Schema 1 of `--report`. */
export interface RunReport {
  /** Version of this shape. */
  schema: 1
  /** VM type. */
  type: MachineType
  /** How the run ended, and what is known beyond that. */
  exit: { reason: ExitReason; detail: string | null }
  /** Instructions of all vCPUs. */
  instructions: number
  /** Wall-clock seconds. */
  seconds: number
  /** Exits to userspace by the kernel's names (KVM_EXIT_*). */
  exits: Record<string, number>
  /** GHCB events by name (SVM_EXIT_*, MSR_*); null without SEV-ES. */
  ghcb: Record<string, number> | null
  /** TDVMCALLs by name; null without TDX. */
  tdvmcall: Record<string, number> | null
  /** Launch digest in hexadecimal; null for an ordinary guest. */
  launchDigest: string | null
  /** Number of vCPUs. */
  vcpus: number
}

/** What `machine.run()` gives back. */
export interface RunResult {
  /** How the run ended. */
  reason: ExitReason
  /** What is known beyond that. */
  detail: string | null
  /** Exit status of `cloister run`: contract, "Command line". */
  status: number
  /** Whole value written to the debug-exit port. */
  debugExit: number | null
  /** What `cloister run --report` writes. */
  report: RunReport
}

const MiB = 1024 * 1024
/** SEV API 55766, guest policy: SEV-ES is required. */
const SEV_POLICY_ES = 4n

/** Options with every default filled in. */
export interface Checked extends Omit<MachineOptions, 'memory' | 'maxInstructions'> {
  type: MachineType
  memory: number
  maxInstructions?: number
  smp: number
  cpu: string
  policy: bigint
  irqchip: boolean
  smm: boolean
  epoch: number
}

const refuse = (code: string, message: string): never => {
  throw new CloisterError(code, message)
}

/** What firmware can start: a kernel that is told apart by content, or an EFI application ("MZ"). */
const isBootable = (kernel: Uint8Array): boolean =>
  ['bzImage', 'elf-pvh', 'multiboot'].includes(detect(kernel)) || (kernel[0] === 0x4d && kernel[1] === 0x5a)

const plain = (value: number | bigint | undefined): number | undefined => (typeof value === 'bigint' ? Number(value) : value)

export const isEncrypted = (type: MachineType): boolean => type.startsWith('sev')
export const isSevEs = (type: MachineType): boolean => type === 'sev-es' || type === 'sev-es-legacy'

/** Checks everything that can be refused before a VM exists. */
export function checkOptions(options: MachineOptions): Checked {
  const type = options.type ?? 'default'
  if (!machineTypes.includes(type)) refuse('type', `unknown VM type '${String(type)}': one of ${machineTypes.join(', ')}`)
  if (type === 'snp' || type === 'tdx')
    refuse(
      'unsupported-type',
      `VM type '${type}' cannot be launched yet: this version launches ${machineTypes.filter((t) => t !== 'snp' && t !== 'tdx').join(', ')}`,
    )
  for (const [name, bytes] of [
    ['firmware', options.firmware],
    ['kernel', options.kernel],
    ['initrd', options.initrd],
    ['image', options.image?.bytes ?? options.image],
  ] as const)
    if (bytes !== undefined && !(bytes instanceof Uint8Array)) refuse(name, `${name}: wants the file's bytes, a Uint8Array`)
  const memory = plain(options.memory) ?? 256 * MiB
  if (!Number.isSafeInteger(memory) || memory <= 0) refuse('memory', `memory ${memory}: must be a positive number of bytes`)
  if (memory < MiB) refuse('memory', `memory ${memory}: a machine has at least 1 MiB`)
  if (memory % 4096 !== 0) refuse('memory', `memory ${memory}: must be a multiple of 4096 bytes`)
  const smp = options.smp ?? 1
  if (!Number.isInteger(smp) || smp < 1 || smp > maximumCpus) refuse('smp', `smp ${smp}: must be a whole number from 1 to ${maximumCpus}`)
  const most = maximumMemory(smp)
  if (memory > most)
    refuse(
      'memory',
      `memory ${memory}: more than the ${most / MiB} MiB that fit the emulator's 4 GiB beside ${smp} vCPU${smp > 1 ? 's' : ''}`,
    )
  const es = isSevEs(type)
  const irqchip = options.irqchip ?? true
  // Requirement B4: KVM would launch such a guest; refusing it is the VMM's rule.
  if (es && !irqchip)
    refuse(
      'irqchip',
      `VM type '${type}' needs the in-kernel interrupt controller: its state cannot be moved in and out of a protected vCPU`,
    )
  const smm = options.smm ?? false
  // Requirement B5.
  if (es && smm) refuse('smm', `VM type '${type}' cannot have SMM: entering it would rewrite registers that the VMSA protects`)
  if (smm) refuse('smm', 'smm: nothing on this board raises an SMI yet')
  const policy = BigInt(options.policy ?? (es ? 5 : 1))
  const hex = policy.toString(16)
  if (policy < 0n || policy > 0xffffffffn) refuse('policy', `policy 0x${hex}: a SEV guest policy has 32 bits`)
  // The firmware would say INVALID_ASID: SEV-ES guests have ASIDs of their own (SEV API 55766, ACTIVATE).
  if (isEncrypted(type) && ((policy & SEV_POLICY_ES) !== 0n) !== es)
    refuse('policy', `policy 0x${hex}: bit 2 (ES) must be ${es ? 'set' : 'clear'} for VM type '${type}'`)
  if (options.kernel || options.initrd || options.append !== undefined) {
    if (!options.kernel) refuse('kernel', 'an initrd or a command line needs a kernel')
    if (options.image) refuse('guest', 'a kernel and a raw image exclude each other')
    if (options.kernel && options.firmware && !isBootable(options.kernel))
      refuse('kernel', 'kernel: neither a bzImage, nor ELF with a PVH note, nor Multiboot 1, nor an EFI application')
    if (isEncrypted(type) && !options.firmware)
      refuse('unsupported-kernel', `VM type '${type}' boots a kernel through firmware only in this version`)
  }
  if (options.firmware && options.image) refuse('guest', 'firmware and a raw image exclude each other')
  if (!options.firmware && !options.image && !options.kernel) refuse('guest', 'nothing to run: give firmware, a kernel or a raw image')
  if (options.image && !imageModes.includes(options.image.mode)) {
    refuse('mode', `unknown image mode '${String(options.image.mode)}': one of ${imageModes.join(', ')}`)
  }
  for (const kind of options.traceKinds ?? [])
    if (!traceKindNames.includes(kind)) refuse('trace', `unknown trace kind '${String(kind)}': any of ${traceKindNames.join(', ')}`)
  if (options.seed !== undefined && typeof options.seed !== 'bigint' && !Number.isSafeInteger(options.seed))
    refuse('seed', `seed ${String(options.seed)}: must be a whole number`)
  const cpu = options.cpu ?? 'default'
  if (typeof cpu !== 'string') refuse('cpu', `cpu ${String(cpu)}: wants the name of a model`)
  const { model } = parseCpu(cpu)
  if (options.vcpuType !== undefined) vcpuSignature(options.vcpuType)
  const vcpuType = options.vcpuType ?? (model === 'default' ? undefined : model)
  const { timeoutSeconds, maxInstructions: _, ...rest } = options
  const maxInstructions = plain(options.maxInstructions)
  if (maxInstructions !== undefined && !(Number.isSafeInteger(maxInstructions) && maxInstructions > 0)) {
    refuse('max-instructions', `max-instructions ${maxInstructions}: must be a positive whole number`)
  }
  if (timeoutSeconds !== undefined && !(timeoutSeconds > 0))
    refuse('timeout', `timeout ${timeoutSeconds}: must be a positive number of seconds`)
  return {
    ...rest,
    ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
    ...(maxInstructions === undefined ? {} : { maxInstructions }),
    ...(vcpuType === undefined ? {} : { vcpuType }),
    type,
    memory,
    smp,
    cpu,
    policy,
    irqchip,
    smm,
    epoch: options.epoch ?? 1767225600,
  }
}

/** xAPIC ids are 8 bits, the last one addresses everybody. */
const maximumCpus = 255

/** One openKvm has 4 GiB for everything; firmware, page tables of the core and the vCPUs (9 MiB each) need a part of it. */
const maximumMemory = (cpus: number): number => 3712 * MiB - cpus * 9 * MiB
