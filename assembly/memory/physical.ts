/**
 * Memory as everybody but the guest's own accesses sees it: the host's raw view of backings and of guest-physical addresses
 * (VMM, in-kernel devices, DMA), and the secure processor's, which holds the keys. Owns nothing; FRAME_TAMPERED marks
 * writes into a VMSA.
 */
import { BACKING_PAGES, FRAME_CODE, FRAME_FLAGS, FRAME_KEY, FRAME_TAMPERED, FRAME_VMSA, SLOT_FLAGS } from '../generated/layout'
import { invalidateLines } from '../decode/cache'
import { backingFrame, backingPeek } from './backing'
import { frameInfo } from './frames'
import { dirtyMark, hasShared, MEM_READONLY, slotFind, slotFrame, slotPeek } from './slots'
import { convert, relabel, viewRead, viewWrite } from './views'

const EFAULT: i32 = -14
const ENOMEM: i32 = -12
const EINVAL: i32 = -22

function pieceOf(offset: u64, n: u32): u32 {
  const room: u32 = 4096 - <u32>(offset & 0xfff)
  return n < room ? n : room
}

/** Writes inside one frame through the view of `key`; code decoded from the bytes goes. */
function put(address: usize, from: usize, n: u32, key: u32): void {
  const frame = address & ~4095
  const info = frameInfo(frame)
  if (n == 4096 && <u32>load<u16>(info, FRAME_KEY) != key) relabel(frame, key) // every granule is replaced: no old byte matters
  viewWrite(address, from, <usize>n, key)
  const flags = load<u8>(info, FRAME_FLAGS)
  if (key == 0 && flags & <u8>FRAME_VMSA) store<u8>(info, flags | <u8>FRAME_TAMPERED, FRAME_FLAGS)
  if (load<u32>(info, FRAME_CODE) != 0) {
    const first = <u32>(((address & ~15) >> 7) & 31)
    const last = <u32>((((address + <usize>n - 1) | 15) >> 7) & 31)
    const hit = load<u32>(info, FRAME_CODE) & (((2 << (last - first)) - 1) << first)
    if (hit != 0) invalidateLines(0, frame, hit)
  }
}

/** Whether [offset, offset + n) lies in the backing. */
function inside(b: usize, offset: u64, n: u32): bool {
  const end = offset + <u64>n
  return b != 0 && end >= offset && end <= (<u64>load<u32>(b, BACKING_PAGES)) << 12
}

function backingGet(b: usize, offset: u64, to: usize, n: u32, key: u32): i32 {
  if (!inside(b, offset, n)) return EFAULT
  while (n != 0) {
    const size = pieceOf(offset, n)
    let frame = backingPeek(b, <u32>(offset >> 12))
    if (frame == 0 && key != 0) {
      frame = backingFrame(b, <u32>(offset >> 12))
      if (frame == 0) return ENOMEM
    }
    if (frame == 0) memory.fill(to, 0, <usize>size)
    else viewRead(frame + <usize>(offset & 0xfff), to, <usize>size, key)
    to += <usize>size
    offset += <u64>size
    n -= size
  }
  return 0
}

function backingPut(b: usize, offset: u64, from: usize, n: u32, key: u32): i32 {
  if (!inside(b, offset, n)) return EFAULT
  while (n != 0) {
    const size = pieceOf(offset, n)
    const frame = backingFrame(b, <u32>(offset >> 12))
    if (frame == 0) return ENOMEM
    put(frame + <usize>(offset & 0xfff), from, size, key)
    from += <usize>size
    offset += <u64>size
    n -= size
  }
  return 0
}

/** The host's view: ciphertext of private frames. 0 or a negative errno. */
export function backingRead(b: usize, offset: u64, to: usize, n: u32): i32 {
  return backingGet(b, offset, to, n, 0)
}

/** The host's view: what a private access reads afterwards is the decryption of these bytes. */
export function backingWrite(b: usize, offset: u64, from: usize, n: u32): i32 {
  return backingPut(b, offset, from, n, 0)
}

/** Plaintext under the key of `asid` (PSP commands, DBG_DECRYPT; the test oracle). */
export function pspRead(b: usize, offset: u64, to: usize, n: u32, asid: u32): i32 {
  return backingGet(b, offset, to, n, asid)
}

export function pspWrite(b: usize, offset: u64, from: usize, n: u32, asid: u32): i32 {
  return backingPut(b, offset, from, n, asid)
}

/** Encrypts in place (LAUNCH_UPDATE_DATA): what the host saw there becomes the plaintext under `asid`. Multiples of 16. */
export function pspEncrypt(b: usize, offset: u64, n: u32, asid: u32): i32 {
  if (!inside(b, offset, n)) return EFAULT
  if ((<u32>offset | n) & 15) return EINVAL
  while (n != 0) {
    const size = pieceOf(offset, n)
    const frame = backingFrame(b, <u32>(offset >> 12))
    if (frame == 0) return ENOMEM
    const at = frame + <usize>(offset & 0xfff)
    if (size == 4096) {
      convert(frame, 0)
      relabel(frame, asid)
    } else {
      const granule = memory.data(16, 16)
      for (let i: usize = 0; i < <usize>size; i += 16) {
        viewRead(at + i, granule, 16, 0)
        put(at + i, granule, 16, asid)
      }
    }
    offset += <u64>size
    n -= size
  }
  return 0
}

/** Decrypts in place (the reverse: shared pages that keep their content). */
export function pspDecrypt(b: usize, offset: u64, n: u32, asid: u32): i32 {
  if (!inside(b, offset, n)) return EFAULT
  if ((<u32>offset | n) & 15) return EINVAL
  while (n != 0) {
    const size = pieceOf(offset, n)
    const frame = backingFrame(b, <u32>(offset >> 12))
    if (frame == 0) return ENOMEM
    const at = frame + <usize>(offset & 0xfff)
    const granule = memory.data(16, 16)
    for (let i: usize = 0; i < <usize>size; i += 16) {
      viewRead(at + i, granule, 16, asid)
      put(at + i, granule, 16, 0)
    }
    offset += <u64>size
    n -= size
  }
  return 0
}

/** Frame flags of a page (FRAME_*), allocating it: VMSA and tamper marks. 0 = out of memory. */
export function backingInfo(b: usize, page: u32): usize {
  if (page >= load<u32>(b, BACKING_PAGES)) return 0
  const frame = backingFrame(b, page)
  return frame != 0 ? frameInfo(frame) : 0
}

/** Copies from guest-physical memory through the host's view; false if any page has no slot. n may cross pages. */
export function gpaRead(vm: usize, gpa: u64, to: usize, n: u32): bool {
  while (n != 0) {
    const size = pieceOf(gpa, n)
    const slot = slotFind(vm, gpa)
    if (slot == 0 || !hasShared(slot)) return false
    const frame = slotPeek(slot, gpa)
    if (frame == 0) memory.fill(to, 0, <usize>size)
    else viewRead(frame + <usize>(gpa & 0xfff), to, <usize>size, 0)
    to += <usize>size
    gpa += <u64>size
    n -= size
  }
  return true
}

/** The same for writes: marks the dirty log as the kernel does; false in a read-only slot (kvm_write_guest fails there). */
export function gpaWrite(vm: usize, gpa: u64, from: usize, n: u32): bool {
  while (n != 0) {
    const size = pieceOf(gpa, n)
    const slot = slotFind(vm, gpa)
    if (slot == 0 || load<u32>(slot, SLOT_FLAGS) & MEM_READONLY || !hasShared(slot)) return false
    const frame = slotFrame(slot, gpa)
    if (frame == 0) return false
    dirtyMark(vm, slot, gpa, true)
    put(frame + <usize>(gpa & 0xfff), from, size, 0)
    from += <usize>size
    gpa += <u64>size
    n -= size
  }
  return true
}
