/**
 * Guest accesses by linear address: TLB hit, or the slow path for misses, page crossings, MMIO, pages with code and the other
 * encryption view; whole-operand helpers for cold handlers. Both pages of a crossing access are checked before any byte
 * moves. Conventions: `op` 0 is an implicit supervisor access; an op whose segment is SS faults with #SS. CPU_LEAVE is set
 * whenever an access did not complete. An address returned by a read or modify is valid until the next access.
 * Owns CPU_SCRATCH, CPU_COMMIT_*.
 */
import {
  CPU_COMMIT_SIZE,
  CPU_COMMIT_VA,
  CPU_DEBUG_ARMED,
  CPU_LEAVE,
  CPU_MODE,
  CPU_SCRATCH,
  CPU_TLB_BASE,
  DEBUG_DATA,
  EA_FLAT32,
  EXC_AC,
  EXC_GP,
  EXC_SS,
  FRAME_CODE,
  FRAME_KEY,
  LEAVE_NEXT,
  MODE_CS64,
  MODE_CS_MASK,
  MODE_FLAT,
  OP_EA,
  OP_SEG,
  SEG_SS,
  TLB_ADDEND,
  TLB_CODE,
  TLB_EXEC,
  TLB_READ,
  TLB_WRITE,
  VCPU_TLB_EMPTY,
} from '../generated/layout'
import { watchAccess } from '../cpu/watch'
import { invalidateLines } from '../decode/cache'
import { raiseError } from '../cpu/exceptions'
import { mmioRead, mmioWrite } from '../kvm/mmio'
import { EXEC, READ, walk, walkGpa, WALK_OK, WRITE } from '../paging/walk'
import { frameInfo } from './frames'
import { arrayBase, currentArray, implicitArray, SMAP, USER } from './tlb'
import { address, canonical, gpa, IMPLICIT, knownPlain, LEFT, MMIO, PLAIN, STACK, translate, truncate, view } from './translate'
import { viewRead, viewWrite } from './views'

const PAGE: u64 = 4096

// The pieces of the access that is under way: one, or two when it crosses a page.
let kind1: u32 = 0
let address1: usize = 0
let gpa1: u64 = 0
let view1: u32 = 0
let size1: u32 = 0
let kind2: u32 = 0
let address2: usize = 0
let gpa2: u64 = 0
let view2: u32 = 0

/** Marks an access to a flat 4 GiB segment of legacy code: it may not pass the limit. */
const FLAT: u32 = 0x80

function how(s: usize, op: usize, access: u32): u32 {
  if (op == 0) return access | IMPLICIT
  const mode = load<u32>(s, CPU_MODE)
  if (load<u8>(op, OP_EA) == <u8>EA_FLAT32 && (mode & MODE_CS_MASK) != MODE_CS64 && (mode & MODE_FLAT) != 0) access |= FLAT
  return load<u8>(op, OP_SEG) == <u8>SEG_SS ? access | STACK : access
}

/** Resolves all pages of an access; false = leaving. Data breakpoints (DR7) are noticed here: their pages have no tags. */
function resolve(s: usize, va: u64, size: u32, manner: u32): bool {
  if (!resolvePages(s, va, size, manner)) return false
  if ((load<u32>(s, CPU_DEBUG_ARMED) & DEBUG_DATA) != 0 && (manner & 3) != EXEC)
    watchAccess(s, truncate(s, va), size, (manner & 3) == WRITE)
  return true
}

/** What #AC asks of an access of so many bytes (measured on Zen 4): its size, 8 of the 10 bytes of x87. */
function alignmentMask(size: u32): u64 {
  return size == 10 ? 7 : size <= 16 && (size & (size - 1)) == 0 ? <u64>(size - 1) : 0
}

function resolvePages(s: usize, va: u64, size: u32, manner: u32): bool {
  va = truncate(s, va)
  const room = <u32>(PAGE - (va & 0xfff))
  size1 = size <= room ? size : room
  // Ten bytes of x87 are accessed as eight and two (measured on Zen 4).
  const split = size == 10 && size1 >= 8
  const last = va + <u64>(size - 1)
  if (!split && size1 != size && (!canonical(s, last) || ((manner & FLAT) != 0 && last > 0xffffffff))) {
    // The address check covers the whole operand and comes before any page fault.
    raiseError(s, manner & STACK ? EXC_SS : EXC_GP, 0)
    return false
  }
  // Alignment comes before the page tables (measured on Zen 4).
  if (
    (manner & IMPLICIT) == 0 &&
    load<u32>(s, CPU_TLB_BASE) == <u32>(s + VCPU_TLB_EMPTY) &&
    (va & alignmentMask(size)) != 0 &&
    canonical(s, va)
  ) {
    raiseError(s, EXC_AC, 0)
    return false
  }
  const kind = translate(s, va, manner)
  if (kind == LEFT) return false
  kind1 = kind
  address1 = address
  gpa1 = gpa
  view1 = view
  if (size1 == size) return true
  if (split && (!canonical(s, last) || ((manner & FLAT) != 0 && last > 0xffffffff))) {
    raiseError(s, manner & STACK ? EXC_SS : EXC_GP, 0)
    return false
  }
  kind2 = translate(s, truncate(s, va + <u64>room), manner)
  address2 = address
  gpa2 = gpa
  view2 = view
  return kind2 != LEFT
}

function load64(from: usize, n: u32): u64 {
  if (n == 8) return load<u64>(from)
  let value: u64 = 0
  for (let i: u32 = 0; i < n; i++) value |= (<u64>load<u8>(from + <usize>i)) << ((<u64>i) << 3)
  return value
}

function store64(to: usize, value: u64, n: u32): void {
  if (n == 8) {
    store<u64>(to, value)
    return
  }
  for (let i: u32 = 0; i < n; i++) store<u8>(to + <usize>i, <u8>(value >> ((<u64>i) << 3)))
}

function readPiece(s: usize, kind: u32, from: usize, at: u64, seen: u32, to: usize, n: u32): bool {
  if (kind != MMIO) {
    viewRead(from, to, <usize>n, seen)
    return true
  }
  // KVM splits emulated MMIO into fragments of at most 8 bytes (kvm_mmio_fragment).
  for (let done: u32 = 0; done < n; done += 8) {
    const size: u32 = n - done < 8 ? n - done : 8
    const value = mmioRead(s, at + <u64>done, size)
    if (load<u32>(s, CPU_LEAVE)) return false
    store64(to + <usize>done, value, size)
  }
  return true
}

/** Lines that [from, from + n) touches. */
function lineMask(from: usize, n: u32): u32 {
  const first = <u32>((from >> 7) & 31)
  const last = <u32>(((from + <usize>n - 1) >> 7) & 31)
  return ((2 << (last - first)) - 1) << first
}

function writePiece(s: usize, kind: u32, to: usize, at: u64, seen: u32, from: usize, n: u32): u32 {
  if (kind == MMIO) {
    for (let done: u32 = 0; done < n; done += 8) {
      const size: u32 = n - done < 8 ? n - done : 8
      const left = mmioWrite(s, at + <u64>done, size, load64(from + <usize>done, size))
      if (left) return left
    }
    return 0
  }
  viewWrite(to, from, <usize>n, seen)
  const info = frameInfo(to)
  const lines = load<u32>(info, FRAME_CODE)
  if (lines == 0) return 0
  const hit = lines & (load<u16>(info, FRAME_KEY) == <u16>seen ? lineMask(to, n) : lineMask(to & ~15, <u32>((to & 15) + n + 15) & ~15))
  if (hit == 0 || !invalidateLines(s, to & ~4095, hit)) return 0
  return LEAVE_NEXT
}

function readPieces(s: usize, to: usize, size: u32): bool {
  if (!readPiece(s, kind1, address1, gpa1, view1, to, size1)) return false
  return size1 == size || readPiece(s, kind2, address2, gpa2, view2, to + <usize>size1, size - size1)
}

function writeFirst(s: usize, from: usize, n: u32): u32 {
  const left = writePiece(s, kind1, address1, gpa1, view1, from, n)
  if (left) store<u32>(s, left, CPU_LEAVE)
  return left
}

function writePieces(s: usize, from: usize, size: u32): u32 {
  // MMIO handlers may access memory themselves: keep the second piece.
  const kind = kind2
  const to = address2
  const at = gpa2
  const seen = view2
  const first = size1
  if (first != size && kind == MMIO && kind1 != MMIO) {
    // It may leave and be executed again: what it reads in RAM must still be what it was.
    const left = writePiece(s, kind, to, at, seen, from + <usize>first, size - first)
    if (left == 0) return writeFirst(s, from, first)
    store<u32>(s, left, CPU_LEAVE)
    return left
  }
  let left = writePiece(s, kind1, address1, gpa1, view1, from, first)
  if ((left == 0 || left == LEAVE_NEXT) && first != size) {
    const second = writePiece(s, kind, to, at, seen, from + <usize>first, size - first)
    if (second) left = second
  }
  if (left) store<u32>(s, left, CPU_LEAVE)
  return left
}

/**
 * Host address for a store of n bytes to a page that has no write tag only because it holds code, if no line with code is
 * touched; else 0.
 */
function besideCode(s: usize, op: usize, va: u64, n: u32): usize {
  const e = entryFor(s, op, va)
  if (load<u32>(e, TLB_CODE) == 0 || load<u64>(e, TLB_READ) != ((va + <u64>n - 1) & ~0xfff)) return 0
  const to = <usize>(<u32>va + load<u32>(e, TLB_ADDEND))
  const lines = load<u32>(frameInfo(to), FRAME_CODE)
  // No code left: the ordinary way gives the page its write tag back.
  return lines != 0 && (lines & lineMask(to, n)) == 0 ? to : 0
}

/** Host address of `size` (<= 64) readable bytes (RAM, or CPU_SCRATCH filled); 0 = leaving, LEAVE is set. */
export function slowRead(s: usize, op: usize, va: u64, size: u32): usize {
  if (!resolve(s, va, size, how(s, op, READ))) return 0
  if (kind1 == PLAIN && size1 == size) return address1
  return readPieces(s, s + CPU_SCRATCH, size) ? s + CPU_SCRATCH : 0
}

/** Stores `value`; 0, or the LEAVE code (LEAVE_NEXT = stored, and the running block's code was hit). */
export function slowWrite(s: usize, op: usize, va: u64, size: u32, value: u64): u32 {
  const beside = besideCode(s, op, va, size)
  if (beside != 0) {
    storeValue(beside, size, value)
    return 0
  }
  if (!resolve(s, va, size, how(s, op, WRITE))) return load<u32>(s, CPU_LEAVE)
  if (kind1 == PLAIN && size1 == size) {
    storeValue(address1, size, value)
    return 0
  }
  store<u64>(s, value, CPU_SCRATCH)
  return writePieces(s, s + CPU_SCRATCH, size)
}

/** Address of `size` bytes to be read and then written in place; 0 = leaving. If it is CPU_SCRATCH, call commitModify after the store. */
export function slowModify(s: usize, op: usize, va: u64, size: u32): usize {
  store<u32>(s, 0, CPU_COMMIT_SIZE)
  const beside = besideCode(s, op, va, size)
  if (beside != 0) return beside
  if (!resolve(s, va, size, how(s, op, WRITE))) return 0
  if (kind1 == PLAIN && size1 == size) return address1
  // A read-only slot resolves to MMIO for the write, but is read as memory.
  const readable = kind1 == MMIO || (size1 != size && kind2 == MMIO)
  if (readable && !resolve(s, va, size, how(s, op, READ))) return 0
  if (!readPieces(s, s + CPU_SCRATCH, size)) return 0
  store<u32>(s, size, CPU_COMMIT_SIZE)
  store<u64>(s, va, CPU_COMMIT_VA)
  return s + CPU_SCRATCH
}

/** Writes CPU_SCRATCH back where slowModify took it from, if it did; 0 or LEAVE. */
export function commitModify(s: usize, op: usize): u32 {
  const size = load<u32>(s, CPU_COMMIT_SIZE)
  if (size == 0) return 0
  store<u32>(s, 0, CPU_COMMIT_SIZE)
  return writeBytesSlow(s, how(s, op, WRITE), load<u64>(s, CPU_COMMIT_VA), s + CPU_SCRATCH, size)
}

function loadValue(from: usize, size: u32): u64 {
  if (size == 8) return load<u64>(from)
  if (size == 4) return <u64>load<u32>(from)
  if (size == 2) return <u64>load<u16>(from)
  if (size == 1) return <u64>load<u8>(from)
  return load64(from, size)
}

function storeValue(to: usize, size: u32, value: u64): void {
  if (size == 8) store<u64>(to, value)
  else if (size == 4) store<u32>(to, <u32>value)
  else if (size == 2) store<u16>(to, <u16>value)
  else if (size == 1) store<u8>(to, <u8>value)
  else store64(to, value, size)
}

/** The L1 entry for `va` in the array that an access of `op` uses. */
function entryFor(s: usize, op: usize, va: u64): usize {
  const base = op != 0 ? <usize>load<u32>(s, CPU_TLB_BASE) : arrayBase(s, implicitArray(s))
  return base + <usize>((va >> 7) & 0x7fe0)
}

/** TLB hit or slow path; check CPU_LEAVE after it. */
export function readMem(s: usize, op: usize, va: u64, size: u32): u64 {
  const e = entryFor(s, op, va)
  if (load<u64>(e, TLB_READ) == ((va + <u64>size - 1) & ~0xfff)) return loadValue(<usize>(<u32>va + load<u32>(e, TLB_ADDEND)), size)
  const from = slowRead(s, op, va, size)
  return from != 0 ? loadValue(from, size) : 0
}

/** 0 or LEAVE. */
export function writeMem(s: usize, op: usize, va: u64, size: u32, value: u64): u32 {
  const e = entryFor(s, op, va)
  if (load<u64>(e, TLB_WRITE) == ((va + <u64>size - 1) & ~0xfff)) {
    storeValue(<usize>(<u32>va + load<u32>(e, TLB_ADDEND)), size, value)
    return 0
  }
  return slowWrite(s, op, va, size, value)
}

/** As slowModify, TLB first. */
export function modifyMem(s: usize, op: usize, va: u64, size: u32): usize {
  const e = entryFor(s, op, va)
  if (load<u64>(e, TLB_WRITE) == ((va + <u64>size - 1) & ~0xfff) && load<u64>(e, TLB_READ) == load<u64>(e, TLB_WRITE)) {
    store<u32>(s, 0, CPU_COMMIT_SIZE)
    return <usize>(<u32>va + load<u32>(e, TLB_ADDEND))
  }
  return slowModify(s, op, va, size)
}

/** Faults as a store of n (<= 64) bytes would, and stores nothing; true if it would be made. No data breakpoint sees it. */
export function writable(s: usize, op: usize, va: u64, n: u32): bool {
  const e = entryFor(s, op, va)
  return load<u64>(e, TLB_WRITE) == ((va + <u64>n - 1) & ~0xfff) || resolvePages(s, va, n, how(s, op, WRITE))
}

/** Copies n (<= 64) bytes of guest memory to `to`; 0 or LEAVE. */
export function readBytes(s: usize, op: usize, va: u64, to: usize, n: u32): u32 {
  const e = entryFor(s, op, va)
  if (load<u64>(e, TLB_READ) == ((va + <u64>n - 1) & ~0xfff)) {
    memory.copy(to, <usize>(<u32>va + load<u32>(e, TLB_ADDEND)), <usize>n)
    return 0
  }
  if (!resolve(s, va, n, how(s, op, READ)) || !readPieces(s, to, n)) return load<u32>(s, CPU_LEAVE)
  return 0
}

/** Copies n (<= 64) bytes from `from` to guest memory; 0 or LEAVE. Faults before any byte is written. */
export function writeBytes(s: usize, op: usize, va: u64, from: usize, n: u32): u32 {
  const e = entryFor(s, op, va)
  if (load<u64>(e, TLB_WRITE) == ((va + <u64>n - 1) & ~0xfff)) {
    memory.copy(<usize>(<u32>va + load<u32>(e, TLB_ADDEND)), from, <usize>n)
    return 0
  }
  const beside = besideCode(s, op, va, n)
  if (beside != 0) {
    memory.copy(beside, from, <usize>n)
    return 0
  }
  return writeBytesSlow(s, how(s, op, WRITE), va, from, n)
}

function writeBytesSlow(s: usize, manner: u32, va: u64, from: usize, n: u32): u32 {
  if (!resolve(s, va, n, manner)) return load<u32>(s, CPU_LEAVE)
  return writePieces(s, from, n)
}

/**
 * Address of va if the rest of its page is plain RAM for this access at the current privilege, else 0: no fault, no fill,
 * no conversion. Do one element by readMem/writeMem then, and try again.
 */
export function plainRead(s: usize, va: u64): usize {
  const e = <usize>load<u32>(s, CPU_TLB_BASE) + <usize>((va >> 7) & 0x7fe0)
  return load<u64>(e, TLB_READ) == (va & ~0xfff) ? <usize>(<u32>va + load<u32>(e, TLB_ADDEND)) : knownPlain(s, va, READ)
}

export function plainWrite(s: usize, va: u64): usize {
  const e = <usize>load<u32>(s, CPU_TLB_BASE) + <usize>((va >> 7) & 0x7fe0)
  return load<u64>(e, TLB_WRITE) == (va & ~0xfff) ? <usize>(<u32>va + load<u32>(e, TLB_ADDEND)) : knownPlain(s, va, WRITE)
}

/** Implicit supervisor accesses (descriptor tables, TSS, IDT); check CPU_LEAVE. */
export function sysRead(s: usize, va: u64, size: u32): u64 {
  return readMem(s, 0, va, size)
}

/** 0 or LEAVE; a hit on decoded code does not leave (no block is running when an exception is delivered). */
export function sysWrite(s: usize, va: u64, size: u32, value: u64): u32 {
  const left = writeMem(s, 0, va, size, value)
  if (left != LEAVE_NEXT) return left
  store<u32>(s, 0, CPU_LEAVE)
  return 0
}

/** Linear-memory address of the code byte at `linear`; 0 = fault raised or stop (LEAVE set). */
export function fetchAddress(s: usize, linear: u64): usize {
  const e = <usize>load<u32>(s, CPU_TLB_BASE) + <usize>((linear >> 7) & 0x7fe0)
  if (load<u64>(e, TLB_EXEC) == (linear & ~0xfff)) return <usize>(<u32>linear + load<u32>(e, TLB_ADDEND))
  return translate(s, truncate(s, linear), EXEC) == LEFT ? 0 : address
}

/** Guest-physical address (C-bit removed) that `va` translates to for a read at the current privilege, ~0 if none; no side effects. */
export function probe(s: usize, va: u64): u64 {
  va = truncate(s, va)
  if (!canonical(s, va)) return ~0
  const array = currentArray(s)
  return walk(s, va, READ, array == USER, array == SMAP, true) == WALK_OK ? walkGpa | (va & 0xfff) : ~0
}

export function leaving(s: usize): bool {
  return load<u32>(s, CPU_LEAVE) != 0
}
