/**
 * An executable model of KVM's user API (Linux 7.3, facts in the project's kvm notes): what it knows of a VM. It shares no
 * code with the implementation: errnos and values follow from these fields by the rules in vm.ts, launch.ts and vcpu.ts.
 */
import type { ERRNO, REQUEST, VmType } from 'cloister'

export type Name = keyof typeof REQUEST
export type Errno = keyof typeof ERRNO

/** A call as the model sees it. `bytes` is the struct before the call, null for a scalar request. */
export interface Ask {
  readonly name: Name
  readonly vcpu: number | null
  readonly bytes: Uint8Array | null
  readonly value: number
  /** Memory of the caller: null outside the mappings. */
  read(address: bigint, n: number): Uint8Array | null
  /** What stands behind a descriptor. */
  kind(fd: number): string | null
}

/** `want`: ok, an errno, or null where the model has no opinion; then the call must not throw, that is all. */
export interface Verdict {
  readonly want: 'ok' | Errno | null
  /** What is wrong with a successful call's answer. */
  check?(result: number, after: Uint8Array | null): string | null
  /** What a successful call changes. */
  effect?(result: number, after: Uint8Array | null): void
  /** What a refused call changes all the same. */
  failed?(): void
}

export const OK: Verdict = { want: 'ok' }
export const UNKNOWN: Verdict = { want: null }
export const no = (want: Errno): Verdict => ({ want })
export const served = (effect: Verdict['effect']): Verdict => (effect === undefined ? OK : { want: 'ok', effect })

export interface ModelSlot {
  readonly gpa: bigint
  readonly size: bigint
  readonly flags: number
  readonly address: bigint
  readonly gmem: number
  readonly offset: bigint
}

export interface ModelVcpu {
  readonly id: number
  /** guest_state_protected and fpstate_is_confidential. */
  sealed: boolean
  confidential: boolean
  debug: boolean
  /** An exception waits, as far as the model follows: null = it does not know. */
  exception: boolean | null
  cpuid: Uint8Array | null
  mpState: number | null
  regs: Uint8Array | null
  debugregs: Uint8Array | null
  tscKhz: number | null
  banks: number
  tdReady: boolean
  ran: boolean
  vectorWaits: boolean | null
  /** INIT may be on its way (events, local APIC): what it resets is not followed. */
  volatile: boolean
  /** A triple fault may be waiting, which counts as a pending exception. */
  shutting: boolean
}

export class ModelVm {
  readonly type: VmType
  /** Type of KVM_CREATE_VM is a SEV or TDX one, or the legacy init was issued. */
  init = false
  chip: 'none' | 'full' | 'split' = 'none'
  pit = false
  readonly vcpus = new Map<number, ModelVcpu>()
  /** By the order of creation. */
  readonly order: ModelVcpu[] = []
  readonly slots = new Map<number, ModelSlot>()
  readonly gmems = new Map<number, { readonly size: bigint; readonly flags: bigint; readonly bound: Set<number> }>()
  readonly privateFrames = new Set<bigint>()
  maxIds = 0
  tscKhz = 2_000_000
  bsp = 0
  payload = false
  tripleFault = false
  wideIds = false
  ring = false
  /** SEV: 0 no context, 1 LAUNCH_UPDATE, 2 LAUNCH_SECRET, 3 RUNNING, null: a command that the model does not follow was served. */
  launch: number | null = 0
  snp: 'none' | 'started' | 'finished' = 'none'
  readonly snpPages = new Set<bigint>()
  td: 'uninitialized' | 'initialized' | 'runnable' = 'uninitialized'
  readonly regions: string[] = []
  readonly events = new Set<string>()
  /** Its context was taken by another VM (KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM). */
  dead = false
  mirror = false
  /** Interrupt controllers were given states and messages of their own: INIT may come from there. */
  volatile = false

  constructor(type: VmType) {
    this.type = type
  }

  get protectedState(): boolean {
    return this.type === 'sev-es' || this.type === 'snp' || this.type === 'tdx'
  }

  get privateMemory(): boolean {
    return this.type === 'snp' || this.type === 'tdx'
  }

  /** sev_guest(). */
  get sev(): boolean {
    return this.init && this.type !== 'default' && this.type !== 'tdx'
  }

  get sevEs(): boolean {
    return this.sev && this.type !== 'sev' && this.type !== 'sev-legacy'
  }

  /** Linux's kvm_arch_nr_memslot_as_ids. */
  get spaces(): number {
    return this.privateMemory ? 1 : 2
  }
}

export const u8 = (bytes: Uint8Array, at: number): number => bytes[at] ?? 0
export const u16 = (bytes: Uint8Array, at: number): number => new DataView(bytes.buffer, bytes.byteOffset).getUint16(at, true)
export const u32 = (bytes: Uint8Array, at: number): number => new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true)
export const u64 = (bytes: Uint8Array, at: number): bigint => new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true)
export const TOP = 1n << 64n
