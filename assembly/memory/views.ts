/**
 * Encryption views (design: Views). DRAM always holds ciphertext of what was written through a private view; here a frame
 * is kept in ONE stored form: raw (FRAME_KEY 0: what shared accesses and the host see) or the plaintext under one ASID's
 * key. Only the stored form may have TLB tags. Another view works on 16-byte granules, and after 64 such accesses
 * (or at once, for DRAM never touched before) the frame is converted. Conversion never changes what any view sees.
 * Owns: FRAME_KEY, FRAME_WRONG, FRAME_TOUCHED.
 */
import {
  FRAME_CODE,
  FRAME_DIRTY,
  FRAME_FLAGS,
  FRAME_INFO,
  FRAME_KEY,
  FRAME_TOUCHED,
  FRAME_WRONG,
  SIZEOF_FRAME,
  HEAP,
} from '../generated/layout'
import { decrypt, decryptPage, encrypt, encryptPage, high, low, setGranule, storeKey } from './cipher'
import { frameInfo, memoryTop } from './frames'
import { flushFrame } from './tlb'
import { invalidateLines } from '../decode/cache'

// Competitive rule: conversion cost / slow access cost is about 150; 64 is measured to be as good.
const CONVERT_AFTER: u32 = 64
const ASIDS: u32 = 512

/** Brings low/high from stored form `from` to what view `to` sees. */
function transform(from: u32, to: u32, address: usize): void {
  if (from == to) return
  if (from != 0) encrypt(from, address)
  if (to != 0) decrypt(to, address)
}

/**
 * Re-stores the frame for `view`. Tags of every vCPU go first. The bytes that code was decoded from are the private view of
 * a frame, which stays the same, but blocks are keyed by frame alone, so they go as well.
 */
export function convert(frame: usize, view: u32): void {
  const info = frameInfo(frame)
  const key = <u32>load<u16>(info, FRAME_KEY)
  const flags = load<u8>(info, FRAME_FLAGS)
  store<u32>(info, 0, FRAME_WRONG)
  if (key == view) return
  if (flags & <u8>FRAME_TOUCHED) {
    flushFrame(frame)
    const lines = load<u32>(info, FRAME_CODE)
    if (lines != 0) invalidateLines(0, frame, lines)
  }
  if (key != 0) encryptPage(key, frame, frame, frame)
  if (view != 0) decryptPage(view, frame, frame, frame)
  store<u16>(info, <u16>view, FRAME_KEY)
  changed(info)
}

/** The stored bytes or their meaning changed: touched, and dirty for snapshots (the dirty log is not concerned). */
function changed(info: usize): void {
  store<u8>(info, load<u8>(info, FRAME_FLAGS) | <u8>FRAME_TOUCHED, FRAME_FLAGS)
  store<u8>(info, load<u8>(info, FRAME_DIRTY) | 1, FRAME_DIRTY)
}

/** Declares the stored bytes to be of another form without changing them: LAUNCH_UPDATE in place. */
export function relabel(frame: usize, key: u32): void {
  const info = frameInfo(frame)
  flushFrame(frame)
  const lines = load<u32>(info, FRAME_CODE)
  if (lines != 0) invalidateLines(0, frame, lines)
  store<u16>(info, <u16>key, FRAME_KEY)
  store<u32>(info, 0, FRAME_WRONG)
  changed(info)
}

/** Whether accesses to the frame through `view` may go straight to its bytes; the first touch of fresh DRAM makes it so. */
export function matches(frame: usize, view: u32): bool {
  const info = frameInfo(frame)
  const flags = load<u8>(info, FRAME_FLAGS)
  if ((flags & <u8>FRAME_TOUCHED) == 0) {
    if (view != 0) convert(frame, view)
    else store<u8>(info, flags | <u8>FRAME_TOUCHED, FRAME_FLAGS)
    return true
  }
  return <u32>load<u16>(info, FRAME_KEY) == view
}

/**
 * Counts an access through the wrong view; true if the frame was converted to it now. A frame with decoded code is never
 * converted by counting: it is being executed, so its private form is the one that pays.
 */
export function countWrong(frame: usize, view: u32): bool {
  const info = frameInfo(frame)
  const n = load<u32>(info, FRAME_WRONG) + 1
  store<u32>(info, n, FRAME_WRONG)
  if (n < CONVERT_AFTER || load<u32>(info, FRAME_CODE) != 0) return false
  convert(frame, view)
  return true
}

/** Bytes [at, at + n) of the granule in low/high, n <= 8. */
function extract(at: u32, n: u32, to: usize): void {
  const shift = (<u64>(at & 7)) << 3
  let value = high >> shift
  if (at < 8) {
    value = low >> shift
    if (shift != 0) value |= high << (64 - shift)
  }
  if (n == 8) store<u64>(to, value)
  else if (n == 4) store<u32>(to, <u32>value)
  else if (n == 2) store<u16>(to, <u16>value)
  else if (n == 1) store<u8>(to, <u8>value)
  else for (let i: u32 = 0; i < n; i++) store<u8>(to + <usize>i, <u8>(value >> ((<u64>i) << 3)))
}

/** Replaces bytes [at, at + n) of the granule in low/high, n <= 8. */
function insert(at: u32, n: u32, from: usize): void {
  let value: u64 = 0
  if (n == 8) value = load<u64>(from)
  else if (n == 4) value = <u64>load<u32>(from)
  else if (n == 2) value = <u64>load<u16>(from)
  else if (n == 1) value = <u64>load<u8>(from)
  else for (let i: u32 = 0; i < n; i++) value |= (<u64>load<u8>(from + <usize>i)) << ((<u64>i) << 3)
  const mask: u64 = n == 8 ? ~(<u64>0) : ((<u64>1) << ((<u64>n) << 3)) - 1
  const shift = (<u64>(at & 7)) << 3
  let a = low
  let b = high
  if (at >= 8) b = (b & ~(mask << shift)) | (value << shift)
  else {
    a = (a & ~(mask << shift)) | (value << shift)
    if (at + n > 8) b = (b & ~(mask >> (64 - shift))) | (value >> (64 - shift))
  }
  setGranule(a, b)
}

/** Reads n bytes at `address` (one frame) as `view` sees them. */
export function viewRead(address: usize, to: usize, n: usize, view: u32): void {
  const key = <u32>load<u16>(frameInfo(address), FRAME_KEY)
  if (key == view) {
    memory.copy(to, address, n)
    return
  }
  if (n == 4096) {
    if (key != 0) encryptPage(key, address, address, to)
    if (view != 0) decryptPage(view, address, key != 0 ? to : address, to)
    return
  }
  while (n != 0) {
    const granule = address & ~15
    let at = <u32>(address & 15)
    let part: u32 = 16 - at
    if (<usize>part > n) part = <u32>n
    setGranule(load<u64>(granule), load<u64>(granule, 8))
    transform(key, view, granule)
    address += <usize>part
    n -= <usize>part
    if (part > 8) {
      extract(at, 8, to)
      at += 8
      to += 8
      part -= 8
    }
    extract(at, part, to)
    to += <usize>part
  }
}

/** Writes n bytes at `address` (one frame) through `view`: the rest of a partly written granule keeps what the view sees. */
export function viewWrite(address: usize, from: usize, n: usize, view: u32): void {
  const info = frameInfo(address)
  changed(info)
  const key = <u32>load<u16>(info, FRAME_KEY)
  if (key == view) {
    memory.copy(address, from, n)
    return
  }
  while (n != 0) {
    const granule = address & ~15
    let at = <u32>(address & 15)
    let part: u32 = 16 - at
    if (<usize>part > n) part = <u32>n
    address += <usize>part
    n -= <usize>part
    if (part == 16) setGranule(load<u64>(from), load<u64>(from, 8))
    else {
      setGranule(load<u64>(granule), load<u64>(granule, 8))
      transform(key, view, granule)
      const first: u32 = part > 8 ? 8 : part
      insert(at, first, from)
      if (part > 8) insert(at + 8, part - 8, from + 8)
    }
    from += <usize>part
    transform(view, key, granule)
    store<u64>(granule, low)
    store<u64>(granule, high, 8)
  }
}

/** Sets the key of an ASID. Frames that the old key protects become raw DRAM first: nobody can read them any more. */
export function setKey(asid: u32, a: u64, b: u64): void {
  if (asid == 0 || asid >= ASIDS) return
  const end = frameInfo(<usize>memoryTop())
  for (let info = FRAME_INFO + (HEAP >> 12) * SIZEOF_FRAME; info < end; info += SIZEOF_FRAME) {
    if (<u32>load<u16>(info, FRAME_KEY) == asid) convert(((info - FRAME_INFO) / SIZEOF_FRAME) << 12, 0)
  }
  storeKey(asid, a, b)
}
