/**
 * The address space of a client process, in place of the one that `mmap` of the library makes up: every pointer of every
 * ioctl is an address in that process. Ranges that became memory slots lie in the core's own memory, which the client maps
 * too; everything else is read and written through /proc/PID/mem.
 */
import { readSync, writeSync } from 'node:fs'
import type { Core } from '../../../host/engine/core.ts'
import { BACKING_FRAMES, GLOBAL, GLOBAL_FREE_FRAMES } from '../../../host/generated/layout.ts'
import { AddressSpace, Mapping, type Place } from '../../../host/kvm/mapping.ts'

const PAGE = 4096
const USER_END = 2 ** 47

/** A run of bytes: where in the client or a file, and where in the shared memory. */
export interface Segment {
  readonly at: number
  readonly length: number
  readonly offset: number
}

/** Client memory that is no slot. */
class Foreign extends Mapping {
  readonly #space: ClientSpace

  constructor(core: Core, space: ClientSpace) {
    super(core, 0, USER_END, 0)
    this.#space = space
  }

  override readInto(offset: number, out: Uint8Array): boolean {
    return this.#space.peek(offset, out)
  }

  override writeFrom(offset: number, bytes: Uint8Array): boolean {
    return this.#space.poke(offset, bytes)
  }
}

export class ClientSpace extends AddressSpace {
  /** Descriptor of /proc/PID/mem. */
  memory = -1
  /** Ranges too large to be shared eagerly: what the client writes there is not seen by the guest, and the reverse. */
  unshared = 0
  /** Client memory that a call looked for as memory of the machine, and that is not. */
  wanted: { readonly at: number; readonly length: number } | null = null
  readonly #core: Core
  /** In order of addresses, disjoint. */
  readonly #claims: Mapping[] = []
  readonly #foreign: Foreign
  #filled = 0
  /** Backings whose frames are not shared. */
  readonly #lazy = new Set<number>()
  readonly #most: number

  /** At most `most` bytes of slots are filled eagerly. */
  constructor(core: Core, most: number) {
    super(core)
    this.#core = core
    this.#most = most
    this.#foreign = new Foreign(core, this)
  }

  forgetWanted(): void {
    this.wanted = null
  }

  peek(address: number, out: Uint8Array): boolean {
    try {
      return out.length === 0 || readSync(this.memory, out, 0, out.length, address) === out.length
    } catch {
      return false
    }
  }

  poke(address: number, bytes: Uint8Array): boolean {
    try {
      return bytes.length === 0 || writeSync(this.memory, bytes, 0, bytes.length, address) === bytes.length
    } catch {
      return false
    }
  }

  override find(address: bigint | number, n: number): Place | null {
    const at = Number(address)
    if (!(at >= 0) || !(n >= 0) || at + n > USER_END) return null
    const mapping = this.#claims[this.#index(at)]
    if (mapping !== undefined) {
      const offset = at - Number(mapping.address)
      if (offset + n <= mapping.length) return { mapping, offset }
    }
    const byte = new Uint8Array(1)
    if (!this.peek(at, byte) || (n > 1 && !this.peek(at + n - 1, byte))) return null
    const page = at - (at % PAGE)
    this.wanted = { at: page, length: Math.ceil((at + n - page) / PAGE) * PAGE }
    return { mapping: this.#foreign, offset: at }
  }

  override copyIn(address: bigint | number, n: number): Uint8Array<ArrayBuffer> | null {
    const { wanted } = this
    const out = super.copyIn(address, n)
    this.wanted = wanted
    return out
  }

  override copyOut(address: bigint | number, bytes: Uint8Array): boolean {
    const { wanted } = this
    const done = super.copyOut(address, bytes)
    this.wanted = wanted
    return done
  }

  /** Index of the claim with the greatest start that is not above `at`; -1 if there is none. */
  #index(at: number): number {
    let low = 0
    let high = this.#claims.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (Number((this.#claims[middle] as Mapping).address) <= at) low = middle + 1
      else high = middle
    }
    return low - 1
  }

  /** Gives the range memory of the core, where it has none: what the client has to map, or null if there is no room. */
  claim(start: number, length: number): Segment[] | null {
    const segments: Segment[] = []
    const end = start + length
    for (let at = start; at < end; ) {
      const i = this.#index(at)
      const here = this.#claims[i]
      const hereEnd = here === undefined ? 0 : Number(here.address) + here.length
      if (hereEnd > at) {
        at = hereEnd
        continue
      }
      const next = this.#claims[i + 1]
      const stop = Math.min(end, next === undefined ? end : Number(next.address))
      const backing = this.#core.call.backingCreate((stop - at) / PAGE) >>> 0
      if (backing === 0) return null
      this.#claims.splice(i + 1, 0, new Mapping(this.#core, at, stop - at, backing))
      if (this.#filled + stop - at > this.#most) {
        this.unshared++
        this.#lazy.add(backing)
      } else {
        this.#filled += stop - at
        if (!this.#fill(backing, (stop - at) / PAGE)) return null
        for (const s of this.segments(backing, 0, stop - at)) segments.push({ ...s, at: s.at + at })
      }
      at = stop
    }
    this.#join(start, end)
    return segments
  }

  /** Freed frames come back last first: taken from the end they are in order again, and few mappings do. */
  #fill(backing: number, pages: number): boolean {
    const { call } = this.#core
    const free = this.#core.view(GLOBAL + GLOBAL_FREE_FRAMES, 4)
    let left = pages
    while (left > 0 && free.getUint32(0, true) !== 0) if (!call.backingFill(backing, --left, 1)) return false
    return left === 0 || call.backingFill(backing, 0, left) !== 0
  }

  /** A slot needs one mapping: those that [start, end) crosses become one, which keeps the frames of the old ones for good. */
  #join(start: number, end: number): void {
    const first = this.#index(start)
    const last = this.#index(end - 1)
    if (first === last) return
    const parts = this.#claims.slice(first, last + 1)
    const base = Number((parts[0] as Mapping).address)
    const length = parts.reduce((sum, p) => sum + p.length, 0)
    const backing = this.#core.call.backingCreate(length / PAGE) >>> 0
    if (backing === 0) return
    let page = 0
    for (const part of parts) {
      for (let i = 0; i < part.length / PAGE; i++, page++) {
        // A table of the new frame map comes with its first frame.
        if (this.#entry(backing, page) === 0 && !this.#core.call.backingFill(backing, page, 1)) return
        this.#words.setUint32(this.#entry(backing, page), this.#frame(part.backing, i), true)
      }
    }
    const joined = new Mapping(this.#core, base, length, backing)
    this.#core.call.backingRetain(backing)
    this.#claims.splice(first, parts.length, joined)
  }

  get #words(): DataView {
    return new DataView(this.#core.memory.buffer)
  }

  /** Address of the entry of a page in the frame map (assembly/memory/backing.ts), 0: no table yet. */
  #entry(backing: number, page: number): number {
    const words = this.#words
    const table = words.getUint32(words.getUint32(backing + BACKING_FRAMES, true) + (page >> 10) * 4, true)
    return table === 0 ? 0 : table + (page & 1023) * 4
  }

  #frame(backing: number, page: number): number {
    const entry = this.#entry(backing, page)
    return entry === 0 ? 0 : this.#words.getUint32(entry, true)
  }

  /** The client has unmapped it. `keep`, and what is left of a claim: other mappings of the pages remain. */
  unclaim(start: number, length: number, keep: boolean): void {
    for (let i = this.#claims.length - 1; i >= 0; i--) {
      const claim = this.#claims[i] as Mapping
      const at = Number(claim.address)
      if (at + claim.length <= start || at >= start + length) continue
      this.#claims.splice(i, 1)
      if (keep || at < start || at + claim.length > start + length) continue
      if (!this.#lazy.delete(claim.backing)) this.#filled -= claim.length
      this.#core.call.backingFree(claim.backing)
    }
  }

  /** Where the pages of a filled backing lie. */
  segments(backing: number, from: number, length: number): Segment[] {
    const segments: Segment[] = []
    const end = (from + length) / PAGE
    for (let page = from / PAGE; page < end; ) {
      const first = page
      const offset = this.#frame(backing, page)
      while (++page < end && this.#frame(backing, page) === offset + (page - first) * PAGE);
      segments.push({ at: first * PAGE, length: (page - first) * PAGE, offset })
    }
    return segments
  }
}
