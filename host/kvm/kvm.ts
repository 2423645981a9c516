/** The public device: raw ioctls and the typed wrappers over them. */
import { type CpuidEntry, decodeCpuid } from '../cpuid/entries.ts'
import { CloisterError, KvmError, type Refusal } from '../errors.ts'
import { loadCore, type WasmSource } from '../engine/core.ts'
import { CAP, ERRNO, REQUEST, SEV_ISSUE, SEV_ISSUE_CMD, VM_TYPE } from '../generated/kvm-abi.ts'
import { SEV_SIZE } from '../generated/psp.ts'
import { PROFILES, type Profile, type ProfileData } from '../policy/profiles.ts'
import { type Linux, parseProfile, type PolicyType } from '../policy/table.ts'
import { EventFd } from './eventfd.ts'
import { GuestMemfd } from './guest-memfd.ts'
import { type Host, type IoctlArgument, Kernel } from './kernel.ts'
import type { Mapping } from './mapping.ts'
import { capNumber } from './names.ts'
import { SevFd } from './sev.ts'
import { SystemFd } from './system.ts'
import { VcpuFd } from './vcpu.ts'
import { makeVm, type Vm } from './typed-vm.ts'
import { VmFd } from './vm.ts'

export type { WasmSource } from '../engine/core.ts'

/** VM types; the legacy ones are ordinary VMs that `vm.sevInit()` turns into SEV guests. */
export type VmType = PolicyType

/** What `openKvm` takes; everything has a default. */
export interface KvmOptions {
  /** The machine below KVM: an AMD host (SEV) or an Intel one (TDX). Default `amd`. */
  readonly host?: Host
  /** Policy profile, default `upstream`. */
  readonly profile?: Profile | ProfileData
  /** Whose KVM is modelled, default `7.3`. */
  readonly linux?: Linux
  /** Budget in bytes for everything this device holds; at most (and by default) 4 GiB. */
  readonly memory?: number | bigint
  /** The core (`cloister/core.wasm`), if it does not lie beside the library. */
  readonly wasm?: WasmSource
  /** Worker module for parallel mode, which is to come: accepted, and nothing runs in a Worker yet. */
  readonly worker?: URL
  /** Seed of everything random in the modelled machine, default 0. */
  readonly seed?: number | bigint
}

/**
 * Opens the modelled machine's /dev/kvm (and, on an AMD host, /dev/sev). Each device is a machine of its own. CloisterError
 * `ERR_ARGUMENT`, `ERR_MEMORY` or `profile` for options that cannot be, `ERR_WASM` for a core that cannot be loaded.
 */
export async function openKvm(options: KvmOptions = {}): Promise<Kvm> {
  const { host = 'amd', profile = 'upstream', linux = '7.3', seed = 0 } = options
  if (typeof seed !== 'bigint' && !Number.isSafeInteger(seed))
    throw new CloisterError('ERR_ARGUMENT', `seed must be a whole number, not ${String(seed)}`)
  if (host !== 'amd' && host !== 'intel') throw new CloisterError('ERR_ARGUMENT', `host must be amd or intel, not ${String(host)}`)
  if (typeof profile === 'string' && !PROFILES.includes(profile))
    throw new CloisterError('ERR_ARGUMENT', `profile must be one of ${PROFILES.join(', ')}, not ${String(profile)}`)
  if (linux !== '6.12' && linux !== '7.3') throw new CloisterError('ERR_ARGUMENT', `linux must be 6.12 or 7.3, not ${String(linux)}`)
  const table = typeof profile === 'string' ? profile : parseProfile(profile)
  const core = await loadCore({
    ...(options.wasm === undefined ? {} : { wasm: options.wasm }),
    ...(options.memory === undefined ? {} : { memory: typeof options.memory === 'bigint' ? Number(options.memory) : options.memory }),
  })
  return makeKvm(new Kernel(core, { host, profile: table, linux, seed: BigInt.asUintN(64, BigInt(seed)) }))
}

const VM_TYPES: Readonly<Record<VmType, number>> = {
  default: VM_TYPE.DEFAULT,
  'sev-legacy': VM_TYPE.DEFAULT,
  'sev-es-legacy': VM_TYPE.DEFAULT,
  sev: VM_TYPE.SEV,
  'sev-es': VM_TYPE.SEV_ES,
  snp: VM_TYPE.SNP,
  tdx: VM_TYPE.TDX,
}

/** Bytes that the typed wrappers keep for structs behind pointers. */
const SCRATCH = 0x10000

/** Makes the device over its kernel floor: `openKvm` alone does. */
let makeKvm: (kernel: Kernel) => Kvm

/**
 * The device: raw ioctls, which return negative errnos, and typed wrappers, which throw KvmError with the reason. Disposing it
 * closes every file descriptor.
 */
export class Kvm {
  static {
    makeKvm = (kernel) => new Kvm(kernel)
  }

  readonly #kernel: Kernel
  readonly #fd: number
  #scratch: Mapping | null = null

  private constructor(kernel: Kernel) {
    this.#kernel = kernel
    this.#fd = this.open('/dev/kvm')
  }

  /** The kernel floor, for the rooms above that live in this package. @internal */
  get kernel(): Kernel {
    return this.#kernel
  }

  /** Vendor of the machine. */
  get host(): Host {
    return this.#kernel.options.host
  }

  /** Whose KVM answers. */
  get linux(): Linux {
    return this.#kernel.options.linux
  }

  // Raw layer.

  /** A file descriptor, or a negative errno. `flags` as open(2)'s: O_RDONLY 0, O_WRONLY 1, O_RDWR 2 (the default). */
  open(path: string, flags = 2): number {
    const kernel = this.#kernel
    if (path === '/dev/kvm') return kernel.install(new SystemFd(kernel))
    if (path === '/dev/sev' && kernel.options.host === 'amd') return kernel.install(new SevFd(kernel, (flags & 3) !== 0))
    return kernel.refuse('ENOENT', 'open', `no ${path} on this host`, 'cloister')
  }

  /**
   * ioctl(2): a Linux request code (REQUEST) with struct bytes, a scalar or the address of a mapping; results are written into
   * `arg`. Non-negative, or a negative errno whose reason `lastRefusal()` keeps. Never throws.
   */
  ioctl(fd: number, request: number, arg?: IoctlArgument): number {
    const kernel = this.#kernel
    const file = kernel.file(fd)
    if (file === null) return kernel.refuse('EBADF', 'ioctl', `no file descriptor ${fd}`, 'fs/ioctl.c')
    try {
      return file.ioctl(request, arg)
    } catch (error) {
      return kernel.internal(`0x${Number(request).toString(16)}`, error)
    }
  }

  /** close(2): 0 or -EBADF. A VM lives until its last vCPU is closed too. */
  close(fd: number): number {
    const kernel = this.#kernel
    const file = kernel.file(fd)
    if (file === null) return kernel.refuse('EBADF', 'close', `no file descriptor ${fd}`, 'fs/open.c')
    kernel.files[fd] = null
    file.close()
    return 0
  }

  /**
   * `fd` -1: anonymous memory for slots and pointers; a vCPU: its `kvm_run` pages, or from `offset` 64 pages on its dirty
   * ring; a guest_memfd with GUEST_MEMFD_FLAG_MMAP. `length` and `offset` in bytes. KvmError EINVAL, ENOMEM, EBADF or ENODEV.
   */
  mmap(fd: number, length: number | bigint, offset: number | bigint = 0): Mapping {
    return this.#mmap(fd, Number(length), Number(offset))
  }

  #mmap(fd: number, length: number, offset: number): Mapping {
    const kernel = this.#kernel
    if (!(length > 0)) throw this.#error(kernel.refuse('EINVAL', 'mmap', 'length must be positive', 'mm/mmap.c'))
    if (fd === -1) {
      const mapping = kernel.memory.anonymous(length)
      if (mapping === null) throw this.#error(kernel.refuse('ENOMEM', 'mmap', `no room for ${length} bytes`, 'cloister'))
      return mapping
    }
    const file = kernel.file(fd)
    if (file instanceof VcpuFd) {
      const mapping = file.mmap(length, offset)
      if (typeof mapping === 'number') throw this.#error(mapping)
      return mapping
    }
    if (file instanceof GuestMemfd) {
      const mapping = file.mmap(length)
      if (typeof mapping === 'number') throw this.#error(mapping)
      return mapping
    }
    throw this.#error(kernel.refuse(file === null ? 'EBADF' : 'ENODEV', 'mmap', `file descriptor ${fd} cannot be mapped`, 'mm/mmap.c'))
  }

  /** munmap(2) of a whole mapping: its addresses become -EFAULT. */
  munmap(mapping: Mapping): void {
    this.#kernel.memory.unmap(mapping)
  }

  /** fallocate(2) on a guest_memfd: FALLOC_FL_KEEP_SIZE 1, FALLOC_FL_PUNCH_HOLE 2; `offset` and `length` in bytes. 0 or a negative errno. */
  fallocate(fd: number, mode: number, offset: number | bigint, length: number | bigint): number {
    const file = this.#kernel.file(fd)
    if (file === null) return this.#kernel.refuse('EBADF', 'fallocate', `no file descriptor ${fd}`, 'fs/open.c')
    if (file instanceof GuestMemfd) return file.fallocate(mode, BigInt(offset), BigInt(length))
    return this.#kernel.refuse('ENODEV', 'fallocate', 'not a regular file', 'fs/open.c vfs_fallocate')
  }

  /** read(2) of a statistics or event file descriptor: the number of bytes, or a negative errno. */
  read(fd: number, bytes: Uint8Array): number {
    const file = this.#kernel.file(fd)
    if (file === null) return this.#kernel.refuse('EBADF', 'read', `no file descriptor ${fd}`, 'fs/read_write.c')
    return file.read?.(bytes) ?? this.#kernel.refuse('EINVAL', 'read', 'this file descriptor cannot be read', 'fs/read_write.c')
  }

  /** write(2): adds to an event file descriptor (8 bytes, little endian). 8, or a negative errno. */
  write(fd: number, bytes: Uint8Array): number {
    const file = this.#kernel.file(fd)
    if (file === null) return this.#kernel.refuse('EBADF', 'write', `no file descriptor ${fd}`, 'fs/read_write.c')
    return file.write?.(bytes) ?? this.#kernel.refuse('EINVAL', 'write', 'this file descriptor cannot be written', 'fs/read_write.c')
  }

  /** eventfd(2), for KVM_IRQFD and KVM_IOEVENTFD: a file descriptor. */
  eventfd(): number {
    return this.#kernel.install(new EventFd(this.#kernel))
  }

  /** Why the last refused call was refused: errno, reason, and where Linux decides it. Null if none was. */
  lastRefusal(): Refusal | null {
    return this.#kernel.refusal
  }

  // Typed wrappers.

  /**
   * KVM_CREATE_VM. For the legacy types an ordinary VM that `vm.sevInit()` turns into one. KvmError EINVAL for a type this host
   * does not have, CloisterError `ERR_ARGUMENT` for a name that is none.
   */
  createVm(type: VmType = 'default'): Vm {
    if (!Object.hasOwn(VM_TYPES, type)) throw new CloisterError('ERR_ARGUMENT', `no VM type ${String(type)}`)
    const fd = this.check(this.ioctl(this.#fd, REQUEST.KVM_CREATE_VM, VM_TYPES[type]))
    return makeVm(this, fd, type, this.#kernel.file(fd) as VmFd)
  }

  /** KVM_CHECK_EXTENSION on /dev/kvm, by number or name: 0 = not there. */
  checkExtension(cap: number | keyof typeof CAP): number {
    return this.check(this.ioctl(this.#fd, REQUEST.KVM_CHECK_EXTENSION, capNumber(cap)))
  }

  /** KVM_GET_SUPPORTED_CPUID: defaults, not a mask of what is possible. */
  supportedCpuid(): CpuidEntry[] {
    const bytes = new Uint8Array(8 + 256 * 40)
    new DataView(bytes.buffer).setUint32(0, 256, true)
    this.check(this.ioctl(this.#fd, REQUEST.KVM_GET_SUPPORTED_CPUID, bytes))
    return decodeCpuid(bytes)
  }

  /** SEV_ISSUE_CMD on /dev/sev: the struct of the command (SEV_ISSUE) goes in and comes back. `errno` is 0 or negative. */
  sevIssue(command: number, data: Uint8Array): { errno: number; fwError: number; data: Uint8Array } {
    const fd = this.check(this.open('/dev/sev'))
    const scratch = this.scratch(data)
    const arg = new Uint8Array(16)
    const view = new DataView(arg.buffer)
    view.setUint32(0, command, true)
    view.setBigUint64(4, data.length === 0 ? 0n : scratch, true)
    const errno = this.ioctl(fd, SEV_ISSUE_CMD, arg)
    this.close(fd)
    return { errno, fwError: view.getUint32(12, true), data: this.readScratch(data.length) }
  }

  /** SEV_PDH_CERT_EXPORT: this platform's PDH certificate (2084 bytes) and the chain PEK, OCA, CEK (three of them). */
  sevCertificates(): { pdh: Uint8Array<ArrayBuffer>; chain: Uint8Array<ArrayBuffer> } {
    const data = new Uint8Array(24)
    const view = new DataView(data.buffer)
    const [size, chainSize] = [SEV_SIZE.CERTIFICATE, 3 * SEV_SIZE.CERTIFICATE]
    view.setBigUint64(0, this.scratch(new Uint8Array(size), 0x4000), true)
    view.setUint32(8, size, true)
    view.setBigUint64(12, this.scratch(new Uint8Array(chainSize), 0x8000), true)
    view.setUint32(20, chainSize, true)
    this.check(this.sevIssue(SEV_ISSUE.SEV_PDH_CERT_EXPORT, data).errno)
    return { pdh: this.readScratch(size, 0x4000), chain: this.readScratch(chainSize, 0x8000) }
  }

  /** Gives back what a raw call returned; a negative errno is thrown as KvmError with the last refusal. */
  check(result: number): number {
    if (result < 0) throw this.#error(result)
    return result
  }

  #error(errno: number): KvmError {
    const refusal = this.#kernel.refusal
    if (refusal !== null && refusal.errno === errno) return new KvmError(refusal)
    const code = Object.entries(ERRNO).find(([, n]) => n === -errno)?.[0] ?? `E${-errno}`
    return new KvmError({ code, errno, ioctl: 'unknown', reason: 'no reason was kept', source: 'cloister' })
  }

  /** Puts bytes where a pointer can reach them; the next call overwrites them. @internal */
  scratch(bytes: Uint8Array, offset = 0): bigint {
    this.#scratch ??= this.mmap(-1, SCRATCH)
    if (bytes.length > 0) this.#scratch.write(offset, bytes)
    return this.#scratch.address + BigInt(offset)
  }

  /** @internal */
  readScratch(n: number, offset = 0): Uint8Array<ArrayBuffer> {
    this.#scratch ??= this.mmap(-1, SCRATCH)
    return this.#scratch.read(offset, n)
  }

  /** Closes every file descriptor. */
  [Symbol.dispose](): void {
    for (let fd = this.#kernel.files.length - 1; fd >= 3; fd--) if (this.#kernel.file(fd) !== null) this.close(fd)
  }
}
