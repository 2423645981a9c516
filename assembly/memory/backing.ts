/**
 * Backings: anonymous host memory (what mmap(-1, length) gives), whose frames are allocated on first touch.
 * Owns the BACKING structures and their frame maps: a directory with an entry for 4 MiB, whose tables of 1024 frames come with
 * the first touch. A slot holds a reference; the creator holds one until backingFree.
 */
import { BACKING_FRAMES, BACKING_LENGTH, BACKING_PAGES, BACKING_REFERENCES } from '../generated/layout'
import { allocPages, frameAlloc, frameCode, frameFree, freePages, pagesFor } from './frames'
import { flushEverywhere } from './tlb'
import { invalidateLines } from '../decode/cache'

/** A backing of `pages` 4 KiB pages, 0 = out of memory. */
export function backingCreate(pages: u32): usize {
  const b = allocPages(1)
  if (b == 0) return 0
  const length = pagesFor(((<u64>pages + 1023) >> 10) << 2)
  const frames = length != 0 ? allocPages(length) : 0
  if (length != 0 && frames == 0) {
    freePages(b, 1)
    return 0
  }
  store<u32>(b, pages, BACKING_PAGES)
  store<u32>(b, <u32>frames, BACKING_FRAMES)
  store<u32>(b, 1, BACKING_REFERENCES)
  store<u32>(b, length << 12, BACKING_LENGTH)
  return b
}

export function backingRetain(b: usize): void {
  store<u32>(b, load<u32>(b, BACKING_REFERENCES) + 1, BACKING_REFERENCES)
}

/** Drops one reference; with the last one every frame goes back. */
export function backingFree(b: usize): void {
  const left = load<u32>(b, BACKING_REFERENCES) - 1
  store<u32>(b, left, BACKING_REFERENCES)
  if (left != 0) return
  flushEverywhere()
  backingDiscard(b, 0, load<u32>(b, BACKING_PAGES))
  const directory = <usize>load<u32>(b, BACKING_FRAMES)
  const length = load<u32>(b, BACKING_LENGTH)
  for (let at: u32 = 0; at < length; at += 4) {
    const leaf = <usize>load<u32>(directory + <usize>at)
    if (leaf != 0) freePages(leaf, 1)
  }
  freePages(directory, length >> 12)
  freePages(b, 1)
}

/** Gives the frames of a page range back (they read as zero DRAM afterwards). The caller has flushed TLBs. */
export function backingDiscard(b: usize, first: u32, count: u32): void {
  const directory = <usize>load<u32>(b, BACKING_FRAMES)
  for (let i: u64 = first, end = <u64>first + <u64>count; i < end; ) {
    const leaf = <usize>load<u32>(directory + ((<usize>(i >> 10)) << 2))
    const next = ((i >> 10) + 1) << 10
    if (leaf == 0) {
      i = next
      continue
    }
    for (; i < next && i < end; i++) {
      const at = leaf + ((<usize>(i & 1023)) << 2)
      const frame = <usize>load<u32>(at)
      if (frame == 0) continue
      const lines = frameCode(frame)
      if (lines != 0) invalidateLines(0, frame, lines)
      store<u32>(at, 0)
      frameFree(frame)
    }
  }
}

/** Frame of page `page` if it was ever touched, else 0. */
export function backingPeek(b: usize, page: u32): usize {
  const leaf = <usize>load<u32>(<usize>load<u32>(b, BACKING_FRAMES) + ((<usize>(page >> 10)) << 2))
  return leaf == 0 ? 0 : <usize>load<u32>(leaf + ((<usize>(page & 1023)) << 2))
}

/** Frame of page `page`, allocated now if need be; 0 = out of memory. */
export function backingFrame(b: usize, page: u32): usize {
  const entry = <usize>load<u32>(b, BACKING_FRAMES) + ((<usize>(page >> 10)) << 2)
  let leaf = <usize>load<u32>(entry)
  if (leaf == 0) {
    leaf = allocPages(1)
    if (leaf == 0) return 0
    store<u32>(entry, <u32>leaf)
  }
  const at = leaf + ((<usize>(page & 1023)) << 2)
  let frame = <usize>load<u32>(at)
  if (frame == 0) {
    frame = frameAlloc()
    store<u32>(at, <u32>frame)
  }
  return frame
}

/** Allocates a page range (fallocate); false = out of memory. */
export function backingFill(b: usize, first: u32, count: u32): bool {
  for (let i: u32 = 0; i < count; i++) if (backingFrame(b, first + i) == 0) return false
  return true
}

/** FALLOC_FL_PUNCH_HOLE: the part of the range that lies in the backing reads as zero afterwards. */
export function backingPunch(b: usize, first: u32, count: u32): void {
  const pages = load<u32>(b, BACKING_PAGES)
  if (first >= pages) return
  flushEverywhere()
  backingDiscard(b, first, count < pages - first ? count : pages - first)
}
