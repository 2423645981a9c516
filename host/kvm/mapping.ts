/**
 * The caller's address space: what `mmap` hands out. Addresses are made up, but every u64 pointer
 * field of every ioctl resolves them; an address outside every mapping is -EFAULT, as in Linux.
 */
import { CloisterError } from '../errors.ts'
import type { Core } from '../engine/core.ts'
import { STAGING, STAGING_SIZE } from '../generated/layout.ts'

/** Where mmap areas begin on x86-64 Linux without randomisation, so that logs look familiar. */
const FIRST_ADDRESS = 0x7f00_0000_0000
/** Unmapped bytes between two mappings: a pointer that runs over the end faults. */
const GUARD = 0x10_0000
const PAGE = 4096
/** 4 GiB is the budget of one device. */
const MOST_PAGES = 0x100000

/** Memory shared between the caller and the kernel floor. What it shows is what the host would see. */
export class Mapping {
  /** Valid in every u64 pointer field of every ioctl. */
  readonly address: bigint
  /** Bytes, a multiple of 4096. */
  readonly length: number
  /** Live bytes; only for the mapping of a vCPU file descriptor (`kvm_run`, PIO page, coalesced ring). */
  readonly bytes?: Uint8Array
  /** Address of the core's BACKING structure; 0 for a vCPU mapping. @internal */
  readonly backing: number
  readonly #core: Core

  /** @internal */
  constructor(core: Core, address: number, length: number, backing: number, bytes?: Uint8Array) {
    this.#core = core
    this.address = BigInt(address)
    this.length = length
    this.backing = backing
    if (bytes) this.bytes = bytes
  }

  /**
   * A copy of `n` bytes at `offset`: ciphertext where the guest's memory is encrypted. CloisterError `ERR_RANGE` outside,
   * `ERR_FAULT` for pages that are not shared with the VMM (guest_memfd).
   */
  read(offset: number | bigint, n: number): Uint8Array<ArrayBuffer> {
    this.#check(Number(offset), n)
    const out = new Uint8Array(n)
    if (!this.readInto(Number(offset), out)) throw new CloisterError('ERR_FAULT', 'SIGBUS: these pages are not shared with the VMM')
    return out
  }

  /**
   * Writes through the host's view: into an encrypted page this changes the ciphertext. CloisterError `ERR_RANGE` outside,
   * `ERR_MEMORY` when the budget of the device is spent.
   */
  write(offset: number | bigint, bytes: Uint8Array): void {
    this.#check(Number(offset), bytes.length)
    if (!this.writeFrom(Number(offset), bytes)) throw new CloisterError('ERR_MEMORY', 'the memory budget of this device (openKvm) is spent')
  }

  #check(offset: number, n: number): void {
    if (!this.#inside(offset, n))
      throw new CloisterError('ERR_RANGE', `mapping: ${n} bytes at ${offset} do not lie inside ${this.length} bytes`)
  }

  /** As `read`, without exceptions: false if the range is not inside. @internal */
  readInto(offset: number, out: Uint8Array): boolean {
    if (!this.#inside(offset, out.length)) return false
    if (this.bytes) {
      out.set(this.bytes.subarray(offset, offset + out.length))
      return true
    }
    const { call, staging } = this.#core
    for (let done = 0; done < out.length; ) {
      const n = Math.min(STAGING_SIZE, out.length - done)
      if (call.backingRead(this.backing, BigInt(offset + done), STAGING, n) < 0) return false
      out.set(n === STAGING_SIZE ? staging : staging.subarray(0, n), done)
      done += n
    }
    return true
  }

  /** As `write`, without exceptions. @internal */
  writeFrom(offset: number, bytes: Uint8Array): boolean {
    if (!this.#inside(offset, bytes.length)) return false
    if (this.bytes) {
      this.bytes.set(bytes, offset)
      return true
    }
    const { call, staging } = this.#core
    for (let done = 0; done < bytes.length; ) {
      const n = Math.min(STAGING_SIZE, bytes.length - done)
      staging.set(bytes.subarray(done, done + n))
      if (call.backingWrite(this.backing, BigInt(offset + done), STAGING, n) < 0) return false
      done += n
    }
    return true
  }

  #inside(offset: number, n: number): boolean {
    return Number.isInteger(offset) && offset >= 0 && n >= 0 && offset + n <= this.length
  }
}

/** A pointer resolved: mapping and byte offset in it. */
export interface Place {
  readonly mapping: Mapping
  readonly offset: number
}

/** @internal */
export class AddressSpace {
  readonly #core: Core
  readonly #bases: number[] = []
  readonly #mappings: (Mapping | null)[] = []
  #next = FIRST_ADDRESS

  constructor(core: Core) {
    this.#core = core
  }

  /** Anonymous memory; null if the core has no room for it. */
  anonymous(length: number): Mapping | null {
    const pages = Math.ceil(length / PAGE)
    if (pages >= MOST_PAGES) return null
    const backing = this.#core.call.backingCreate(pages) >>> 0
    if (backing === 0) return null
    return this.#add(new Mapping(this.#core, this.#next, pages * PAGE, backing))
  }

  /** A mapping of a file's pages, which live in `backing`; 0: nothing that may be touched. */
  file(length: number, backing: number): Mapping {
    if (backing !== 0) this.#core.call.backingRetain(backing)
    return this.#add(new Mapping(this.#core, this.#next, Math.ceil(length / PAGE) * PAGE, backing))
  }

  /** The pages of a vCPU. */
  live(bytes: Uint8Array): Mapping {
    return this.#add(new Mapping(this.#core, this.#next, bytes.length, 0, bytes))
  }

  unmap(mapping: Mapping): void {
    const i = this.#mappings.indexOf(mapping)
    if (i < 0) return
    this.#mappings[i] = null
    if (mapping.backing) this.#core.call.backingFree(mapping.backing)
  }

  /** The mapping that holds `n` bytes at `address`, or null. */
  find(address: bigint | number, n: number): Place | null {
    const at = Number(address)
    let low = 0
    let high = this.#bases.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#bases[middle] as number) <= at) low = middle + 1
      else high = middle
    }
    const mapping = this.#mappings[low - 1]
    if (!mapping) return null
    const offset = at - (this.#bases[low - 1] as number)
    return offset + n <= mapping.length ? { mapping, offset } : null
  }

  /** copy_from_user: null is -EFAULT. */
  copyIn(address: bigint | number, n: number): Uint8Array<ArrayBuffer> | null {
    const place = this.find(address, n)
    if (!place) return null
    const out = new Uint8Array(n)
    return place.mapping.readInto(place.offset, out) ? out : null
  }

  /** copy_to_user: false is -EFAULT. */
  copyOut(address: bigint | number, bytes: Uint8Array): boolean {
    const place = this.find(address, bytes.length)
    return place !== null && place.mapping.writeFrom(place.offset, bytes)
  }

  #add(mapping: Mapping): Mapping {
    this.#bases.push(this.#next)
    this.#mappings.push(mapping)
    this.#next += Math.ceil((mapping.length + GUARD) / PAGE) * PAGE
    return mapping
  }
}
