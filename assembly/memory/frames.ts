/**
 * Hands out linear memory after HEAP: 4 KiB frames, runs of frames (frame maps, arenas, tables), always zeroed.
 * Memory grows in 16 MiB steps up to GLOBAL_LIMIT_PAGES. Running out is a value (0), never a trap.
 * Owns: GLOBAL_FRAME_TOP, FREE_FRAMES, FREE_ARENAS (list of freed runs), the FRAME records.
 */
import {
  FRAME_ALLOCATED,
  FRAME_CODE,
  FRAME_FLAGS,
  FRAME_INFO,
  FRAME_LINK,
  GLOBAL,
  GLOBAL_FRAME_TOP,
  GLOBAL_FREE_ARENAS,
  GLOBAL_FREE_FRAMES,
  GLOBAL_LIMIT_PAGES,
  HEAP,
  SIZEOF_FRAME,
  VCPU_ARENA_SIZE,
} from '../generated/layout'

const PAGE: usize = 4096
const STEP: u32 = 256 // 64 KiB pages: 16 MiB
// The last 64 KiB stay unused, so that no address computation reaches 2^32.
const MOST: u32 = 65535

/** Address of the FRAME record of the frame at (or around) `address`. */
export function frameInfo(address: usize): usize {
  return FRAME_INFO + (address >> 12) * SIZEOF_FRAME
}

/** Makes [0, end) accessible. */
function reach(end: u64): bool {
  const limit = load<u32>(GLOBAL, GLOBAL_LIMIT_PAGES)
  const most: u32 = limit != 0 && limit < MOST ? limit : MOST
  const need = <u32>((end + 0xffff) >> 16)
  const have = <u32>memory.size()
  if (need <= have) return need <= most || end <= <u64>HEAP
  if (need > most) return false
  let step = need - have
  if (step < STEP) step = STEP
  if (have + step > most) step = most - have
  return memory.grow(<i32>step) >= 0
}

/** Sets the size budget (64 KiB pages, 0 = all of 4 GiB) and makes the fixed regions accessible. False if not even these fit. */
export function memoryInit(limitPages: u32): bool {
  store<u32>(GLOBAL, limitPages, GLOBAL_LIMIT_PAGES)
  if (load<u32>(GLOBAL, GLOBAL_FRAME_TOP) == 0) store<u32>(GLOBAL, <u32>HEAP, GLOBAL_FRAME_TOP)
  return reach(<u64>HEAP)
}

/** `pages` frames of never-used memory, 0 if the budget is spent. */
function bump(pages: u32): usize {
  let top = <usize>load<u32>(GLOBAL, GLOBAL_FRAME_TOP)
  if (top == 0) top = HEAP
  const end = <u64>top + ((<u64>pages) << 12)
  if (!reach(end)) return 0
  store<u32>(GLOBAL, <u32>end, GLOBAL_FRAME_TOP)
  return top
}

/** First fit among the freed runs; the rest of a longer run stays. A free run holds {next u32, pages u32}; all else in it is zero. */
function takeRun(pages: u32): usize {
  let link: usize = GLOBAL + GLOBAL_FREE_ARENAS
  let run = <usize>load<u32>(link)
  while (run != 0) {
    const have = load<u32>(run, 4)
    const next = load<u32>(run)
    if (have >= pages) {
      if (have == pages) store<u32>(link, next)
      else {
        const rest = run + ((<usize>pages) << 12)
        store<u32>(rest, next)
        store<u32>(rest, have - pages, 4)
        store<u32>(link, <u32>rest)
      }
      store<u64>(run, 0)
      return run
    }
    link = run
    run = <usize>next
  }
  return 0
}

/** A run of `pages` zeroed frames, 0 = out of memory. */
export function allocPages(pages: u32): usize {
  const run = takeRun(pages)
  return run != 0 ? run : bump(pages)
}

/** Gives a run back. The list is in order of addresses and neighbours are joined: VMs come and go without splinters. */
export function freePages(address: usize, pages: u32): void {
  if (address == 0 || pages == 0) return
  memory.fill(address, 0, (<usize>pages) << 12)
  let link: usize = GLOBAL + GLOBAL_FREE_ARENAS
  let before: usize = 0
  let next = <usize>load<u32>(link)
  while (next != 0 && next < address) {
    before = next
    link = next
    next = <usize>load<u32>(next)
  }
  let size = pages
  if (next != 0 && address + ((<usize>pages) << 12) == next) {
    size += load<u32>(next, 4)
    const after = <usize>load<u32>(next)
    store<u64>(next, 0)
    next = after
  }
  if (before != 0 && before + ((<usize>load<u32>(before, 4)) << 12) == address) {
    store<u32>(before, <u32>next)
    store<u32>(before, load<u32>(before, 4) + size, 4)
    return
  }
  store<u32>(address, <u32>next)
  store<u32>(address, size, 4)
  store<u32>(link, <u32>address)
}

/** Pages that hold `bytes`. */
export function pagesFor(bytes: u64): u32 {
  return <u32>((bytes + 4095) >> 12)
}

/** One zeroed frame of guest RAM, 0 = out of memory. */
export function frameAlloc(): usize {
  let frame = <usize>load<u32>(GLOBAL, GLOBAL_FREE_FRAMES)
  if (frame != 0) {
    const info = frameInfo(frame)
    store<u32>(GLOBAL, load<u32>(info, FRAME_LINK), GLOBAL_FREE_FRAMES)
    store<u32>(info, 0, FRAME_LINK)
  } else {
    frame = bump(1)
    if (frame == 0) frame = takeRun(1)
    if (frame == 0) return 0
  }
  store<u8>(frameInfo(frame), <u8>FRAME_ALLOCATED, FRAME_FLAGS)
  return frame
}

/** Gives a frame back, zeroed. No TLB may hold it any more, and no block its code (callers flush first). */
export function frameFree(frame: usize): void {
  const info = frameInfo(frame)
  memory.fill(frame, 0, PAGE)
  memory.fill(info, 0, SIZEOF_FRAME)
  store<u32>(info, load<u32>(GLOBAL, GLOBAL_FREE_FRAMES), FRAME_LINK)
  store<u32>(GLOBAL, <u32>frame, GLOBAL_FREE_FRAMES)
}

/** Bytes of linear memory in use or on free lists. */
export function memoryTop(): u32 {
  const top = load<u32>(GLOBAL, GLOBAL_FRAME_TOP)
  return top != 0 ? top : <u32>HEAP
}

export function allocArena(): usize {
  return allocPages(pagesFor(<u64>VCPU_ARENA_SIZE))
}

export function freeArena(s: usize): void {
  freePages(s, pagesFor(<u64>VCPU_ARENA_SIZE))
}

/** Mask of the 128-byte lines that hold decoded code. */
export function frameCode(frame: usize): u32 {
  return load<u32>(frameInfo(frame), FRAME_CODE)
}
