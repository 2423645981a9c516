/**
 * What all file descriptors of one `openKvm` share: the core, the caller's address space, the policy
 * table in force, and the reason of the last refusal.
 */
import { CloisterError, type Refusal } from '../errors.ts'
import type { Core } from '../engine/core.ts'
import { ERRNO } from '../generated/kvm-abi.ts'
import { type Linux, type PolicyEntry, policyTable, type ProfileSource } from '../policy/table.ts'
import { AddressSpace } from './mapping.ts'
import { Platform } from '../firmware/psp/platform.ts'

/** Vendor of the modelled machine: AMD (SEV) or Intel (TDX). */
export type Host = 'amd' | 'intel'
export type ErrnoName = keyof typeof ERRNO

/** The argument of an ioctl: struct bytes, a scalar, or a pointer into a mapping. */
export type IoctlArgument = Uint8Array | number | bigint | null | undefined

export interface KernelOptions {
  readonly host: Host
  readonly profile: ProfileSource
  readonly linux: Linux
  readonly seed: bigint
}

/** Extra detail of a refusal. */
export interface RefusalExtra {
  readonly switch?: string | null
  readonly unimplemented?: boolean
}

export interface FileDescriptor {
  readonly kind: 'system' | 'vm' | 'vcpu' | 'device' | 'sev' | 'eventfd' | 'guest-memfd' | 'stats'
  ioctl(request: number, argument: IoctlArgument): number
  close(): void
  read?(bytes: Uint8Array): number
  write?(bytes: Uint8Array): number
}

/** splitmix64's finaliser: neighbours come to lie far apart, 0 stays 0. */
function scattered(n: bigint): bigint {
  const a = BigInt.asUintN(64, (n ^ (n >> 30n)) * 0xbf58476d1ce4e5b9n)
  const b = BigInt.asUintN(64, (a ^ (a >> 27n)) * 0x94d049bb133111ebn)
  return b ^ (b >> 31n)
}

/** @internal */
export class Kernel {
  readonly core: Core
  readonly options: KernelOptions
  readonly memory: AddressSpace
  readonly policy: ReadonlyMap<string, PolicyEntry>
  readonly psp: Platform
  /** ASIDs that VMs hold (sev_asid_bitmap). */
  readonly asids = new Set<number>()
  /** vCPUs ever created: each has its own random numbers. */
  #vcpus = 0n
  readonly files: (FileDescriptor | null)[] = [null, null, null]
  refusal: Refusal | null = null
  /** Internal errors that were turned into -EIO; tests expect none. */
  internalErrors: unknown[] = []

  constructor(core: Core, options: KernelOptions) {
    this.core = core
    this.options = options
    this.memory = new AddressSpace(core)
    this.policy = policyTable(options.profile, options.linux)
    this.psp = new Platform(core, options.seed)
  }

  /** State that the random numbers of the next vCPU start from (RDRAND, RDSEED). */
  nextRandomState(): bigint {
    return BigInt.asUintN(64, this.options.seed + scattered(this.#vcpus++))
  }

  /** Notes why, returns the negative errno. */
  refuse(code: ErrnoName, ioctl: string, reason: string, source: string, extra: RefusalExtra = {}): number {
    const errno = -ERRNO[code]
    this.refusal = {
      code,
      errno,
      ioctl,
      reason,
      source,
      ...(extra.switch ? { switch: extra.switch } : {}),
      ...(extra.unimplemented ? { unimplemented: true } : {}),
    }
    return errno
  }

  /** Linux would serve this; Cloister does not yet. */
  unimplemented(ioctl: string, what: string): number {
    return this.refuse('ENOSYS', ioctl, `${what} is not implemented by Cloister yet`, 'cloister', { unimplemented: true })
  }

  badPointer(ioctl: string, what = 'the argument does not point into a mapping'): number {
    return this.refuse('EFAULT', ioctl, what, 'include/linux/uaccess.h copy_from_user, copy_to_user')
  }

  /** The lowest free number, as open(2) gives. */
  install(file: FileDescriptor): number {
    let fd = this.files.indexOf(null, 3)
    if (fd < 0) fd = this.files.length
    this.files[fd] = file
    return fd
  }

  file(fd: number): FileDescriptor | null {
    return this.files[fd] ?? null
  }

  /** A bug of ours met inside an ioctl: kept, and answered as a bugged VM would be. */
  internal(ioctl: string, error: unknown): number {
    if (error instanceof CloisterError && error.code === 'ERR_UNIMPLEMENTED') {
      return this.refuse('ENOSYS', ioctl, error.message, 'cloister', { unimplemented: true })
    }
    this.internalErrors.push(error)
    return this.refuse(
      'EIO',
      ioctl,
      `internal error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
      'cloister',
    )
  }
}
