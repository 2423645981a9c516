/**
 * Encryption views (design: Views). DRAM always holds ciphertext of what was written through a private view; here a frame
 * is kept in ONE stored form: raw (FRAME_KEY 0: what shared accesses and the host see) or the plaintext under one ASID's
 * key. Only the stored form may have TLB tags. Another view works on 16-byte granules, and after 64 such accesses
 * (or at once, for DRAM never touched before) the frame is converted. Conversion never changes what any view sees.
 * Owns: FRAME_KEY, FRAME_WRONG, FRAME_TOUCHED.
 */
import {
  FRAME_CODE, FRAME_FLAGS, FRAME_INFO, FRAME_KEY, FRAME_TOUCHED, FRAME_WRONG, SIZEOF_FRAME, HEAP
} from '../generated/layout'
import { decrypt, decryptPage, encrypt, encryptPage, high, low, setGranule, storeKey } from './cipher'
import { frameInfo, memoryTop } from './frames'
import { flushFrame } from './tlb'
import { invalidateLines } from '../decode/cache'

// Competitive rule: conversion cost / slow access cost is about 150; 64 is measured to be as good (facts/memory.md section 4).
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
  store<u8>(info, flags | <u8>FRAME_TOUCHED, FRAME_FLAGS)
}

/** Declares the stored bytes to be of another form without changing them: LAUNCH_UPDATE in place. */
export function relabel(frame: usize, key: u32): void {
  const info = frameInfo(frame)
  flushFrame(frame)
  const lines = load<u32>(info, FRAME_CODE)
  if (lines != 0) invalidateLines(0, frame, lines)
  store<u16>(info, <u16>key, FRAME_KEY)
  store<u32>(info, 0, FRAME_WRONG)
  store<u8>(info, load<u8>(info, FRAME_FLAGS) | <u8>FRAME_TOUCHED, FRAME_FLAGS)
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
  const end = address + n
  for (let at = address & ~15; at < end; at += 16) {
    setGranule(load<u64>(at), load<u64>(at, 8))
    transform(key, view, at)
    if (at >= address && at + 16 <= end) {
      store<u64>(to + (at - address), low)
      store<u64>(to + (at - address), high, 8)
      continue
    }
    const a = low
    const b = high
    for (let i: usize = 0; i < 16; i++) {
      const p = at + i
      if (p >= address && p < end) store<u8>(to + (p - address), <u8>((i < 8 ? a : b) >> ((<u64>i & 7) << 3)))
    }
  }
}

/** Writes n bytes at `address` (one frame) through `view`: the rest of a partly written granule keeps what the view sees. */
export function viewWrite(address: usize, from: usize, n: usize, view: u32): void {
  const info = frameInfo(address)
  store<u8>(info, load<u8>(info, FRAME_FLAGS) | <u8>FRAME_TOUCHED, FRAME_FLAGS)
  const key = <u32>load<u16>(info, FRAME_KEY)
  if (key == view) {
    memory.copy(address, from, n)
    return
  }
  const end = address + n
  for (let at = address & ~15; at < end; at += 16) {
    if (at >= address && at + 16 <= end) setGranule(load<u64>(from + (at - address)), load<u64>(from + (at - address), 8))
    else {
      setGranule(load<u64>(at), load<u64>(at, 8))
      transform(key, view, at)
      let a = low
      let b = high
      for (let i: usize = 0; i < 16; i++) {
        const p = at + i
        if (p < address || p >= end) continue
        const shift = (<u64>i & 7) << 3
        const byte = <u64>load<u8>(from + (p - address)) << shift
        const mask = ~(<u64>0xff << shift)
        if (i < 8) a = (a & mask) | byte
        else b = (b & mask) | byte
      }
      setGranule(a, b)
    }
    transform(view, key, at)
    store<u64>(at, low)
    store<u64>(at, high, 8)
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
