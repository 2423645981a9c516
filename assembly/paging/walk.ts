/**
 * The guest's page walk: no paging, 32-bit with PSE, PAE, 4 and 5 levels (SDM vol 3 chapter 4, APM vol 2 chapter 5),
 * reserved bits as an AMD processor has them. In an encrypted VM tables are read through the private view (APM 15.34.5).
 * Entries are read through the paging-structure cache; A and D are set by compare-exchange once the walk has succeeded, so that
 * a fault leaves every A as it was. The manuals leave this open (SDM vol 3, 4.8); processors and KVM do it so ("KVM: MMU: Update
 * accessed and dirty bits after guest pagetable walk", Linux 3.7; Xen's guest_walk.c). The result is in the walk* globals; owns
 * no state.
 */
import {
  CPU_CR0,
  CPU_CR3,
  CPU_CR4,
  CPU_EFER,
  CPU_PKRS,
  CPU_PKRU,
  CPU_VM,
  FRAME_CODE,
  FRAME_DIRTY,
  MMU_WALKS,
  SLOT_FLAGS,
  VCPU_MMU,
  VM_ASID,
  VM_C_BIT,
  VM_PHYS_MASK,
} from '../generated/layout'
import {
  CR0_PG,
  CR0_WP,
  CR4_LA57,
  CR4_PAE,
  CR4_PGE,
  CR4_PKE,
  CR4_PKS,
  CR4_PSE,
  CR4_SMEP,
  EFER_LMA,
  EFER_NXE,
  PTE_A,
  PTE_D,
  PTE_G,
  PTE_NX,
  PTE_P,
  PTE_PS,
  PTE_U,
  PTE_W,
} from '../generated/registers'
import { frameInfo } from '../memory/frames'
import { dirtyMark, MEM_READONLY, memoryFrame, MISMATCH, slotFind } from '../memory/slots'
import { isPrivate } from '../memory/attributes'
import {
  L2_GLOBAL,
  L2_LARGE,
  L2_PRIVATE,
  L2_STORE,
  L2_U,
  L2_VALID,
  L2_W,
  L2_X,
  noteLarge,
  PSC_LEVEL2,
  pscEntry,
  pscTag,
} from '../memory/tlb'
import { convert, matches } from '../memory/views'
import { invalidateLines } from '../decode/cache'

export const READ: u32 = 0
export const WRITE: u32 = 1
export const EXEC: u32 = 2

/** walk() results. */
export const WALK_OK: u32 = 0
/** #PF with walkError. */
export const WALK_FAULT: u32 = 1
/** No frame for a page table: the budget is spent. */
const WALK_MEMORY: u32 = 2

/** A page table lies in memory that is not there (walkMissing): private without guest_memfd, or the reverse. */
export const WALK_MISSING: u32 = 5
export let walkMissing: u64 = 0

// Another processor changed an entry that needed A or D; the walk succeeds, but entries on its way need A or D.
const AGAIN: u32 = 3
const AGAIN_MARKING: u32 = 4

/** Guest-physical address of the 4 KiB page, C-bit removed. */
export let walkGpa: u64 = 0
/** L2_* rights of the translation, without L2_VALID and L2_STORE. */
export let walkData: u32 = 0
/** D is set in the leaf (always so without paging). */
export let walkDirty: bool = false
export let walkError: u32 = 0
/** A protection key restricts the page: rights depend on the access, nothing may be cached. */
export let walkRestricted: bool = false

const ADDRESS: u64 = 0x000ffffffffff000

const ERROR_P: u32 = 1
const ERROR_W: u32 = 2
const ERROR_U: u32 = 4
const ERROR_RSVD: u32 = 8
const ERROR_ID: u32 = 16
const ERROR_PK: u32 = 32

/** Bits that must be zero in a PAE or long-mode entry, NX and address width apart. A leaf above level 1 has PS set. */
function reserved(level: u32, leaf: bool, long: bool): u64 {
  if (!long) {
    // PAE: 62:52; a PDPTE also 63, 8:5 and 2:1 (as its NX, G, D, A, U and W would be).
    if (level == 3) return 0xfff00000000001e6
    return level == 2 && leaf ? 0x7ff00000001fe000 : 0x7ff0000000000000
  }
  if (level >= 4) return PTE_PS | PTE_G // AMD: G of a non-leaf PML4E and PDPE must be zero
  if (level == 3) return leaf ? 0x3fffe000 : PTE_G
  return level == 2 && leaf ? 0x1fe000 : 0
}

/** Linear address of the table page at `gpa`, in the form the walker reads; 0 = no slot, 1 = out of memory, 2 = WALK_MISSING. */
function tableFrame(vm: usize, gpa: u64, key: u32): usize {
  const slot = slotFind(vm, gpa)
  const frame = slot != 0 ? memoryFrame(vm, slot, gpa) : isPrivate(vm, gpa) ? MISMATCH : 0
  if (frame == MISMATCH) {
    walkMissing = gpa
    return 2
  }
  if (slot == 0) return 0
  if (frame == 0) return 1
  if (!matches(frame, key)) convert(frame, key)
  return frame
}

/** The walker's store to a table page is a store like any other: dirty log, snapshot mark, code lines. False = read-only slot. */
function tableStore(vm: usize, gpa: u64, at: usize): bool {
  const slot = slotFind(vm, gpa)
  if (load<u32>(slot, SLOT_FLAGS) & MEM_READONLY) return false
  dirtyMark(vm, slot, gpa)
  const info = frameInfo(at)
  store<u8>(info, load<u8>(info, FRAME_DIRTY) | 1, FRAME_DIRTY)
  const lines = load<u32>(info, FRAME_CODE) & (1 << (((at >> 7) & 31) as u32))
  if (lines != 0) invalidateLines(0, at & ~4095, lines)
  return true
}

/**
 * Protection keys of user pages (PKRU) and supervisor pages (PKRS), for data accesses (SDM vol 3, 4.6.2): PFERR_PK if the key
 * of the leaf forbids this access.
 * A page that its key restricts at all gets no TLB entry (walkRestricted).
 */
function protectionKey(s: usize, register: u32, entry: u64, access: u32, user: bool): u32 {
  const rights = (register >> (<u32>((entry >> 59) & 15) * 2)) & 3
  if (rights == 0) return 0
  walkRestricted = true
  if (access == EXEC) return 0
  if (rights & 1) return ERROR_PK
  return access == WRITE && (user || (load<u64>(s, CPU_CR0) & CR0_WP) != 0) ? ERROR_PK : 0
}

/** Checks the accumulated rights; 0 or the error code. */
function permission(s: usize, data: u32, access: u32, user: bool, smap: bool): u32 {
  let ok: bool
  if (user) {
    ok = (data & L2_U) != 0
    if (access == WRITE) ok = ok && (data & L2_W) != 0
  } else {
    ok = true
    if (access == WRITE) ok = (data & L2_W) != 0 || (load<u64>(s, CPU_CR0) & CR0_WP) == 0
    if (data & L2_U) {
      if (access == EXEC) ok = (load<u64>(s, CPU_CR4) & CR4_SMEP) == 0
      else if (smap) ok = false
    }
  }
  if (access == EXEC && (data & L2_X) == 0) ok = false
  return ok ? 0 : ERROR_P
}

function fault(s: usize, error: u32, access: u32, user: bool): u32 {
  if (access == WRITE) error |= ERROR_W
  if (user) error |= ERROR_U
  if (access == EXEC) {
    const cr4 = load<u64>(s, CPU_CR4)
    if (cr4 & CR4_SMEP || (cr4 & CR4_PAE && load<u64>(s, CPU_EFER) & EFER_NXE)) error |= ERROR_ID
  }
  walkError = error
  return WALK_FAULT
}

/**
 * Translates `va` (canonical, or below 4 GiB outside of long mode). `user`: an explicit access at CPL 3; `smap`: SMAP holds for
 * this supervisor access. quiet: no A/D updates, nothing cached (probes).
 */
export function walk(s: usize, va: u64, access: u32, user: bool, smap: bool, quiet: bool): u32 {
  const vm = <usize>load<u32>(s, CPU_VM)
  const key = load<u32>(vm, VM_ASID)
  walkRestricted = false
  const privateFlag = key != 0 ? L2_PRIVATE : 0
  if ((load<u64>(s, CPU_CR0) & CR0_PG) == 0) {
    walkGpa = va & 0xfffff000
    walkData = L2_W | L2_X | L2_U | privateFlag
    walkDirty = true
    return WALK_OK
  }
  store<u64>(s, load<u64>(s, VCPU_MMU + MMU_WALKS) + 1, VCPU_MMU + MMU_WALKS)
  const cr4 = load<u64>(s, CPU_CR4)
  if ((cr4 & CR4_PAE) == 0) return walk32(s, vm, va, access, user, smap, quiet)

  const efer = load<u64>(s, CPU_EFER)
  const cBit = load<u64>(vm, VM_C_BIT)
  let physical = load<u64>(vm, VM_PHYS_MASK) & ADDRESS
  if (physical == 0) physical = ADDRESS
  physical &= ~cBit
  let always = ADDRESS & ~physical & ~cBit
  if ((efer & EFER_NXE) == 0) always |= PTE_NX

  let marking = false
  while (true) {
    const result = attempt(s, vm, va, access, user, smap, quiet, physical, always, marking)
    if (result < AGAIN || result == WALK_MISSING) return result
    if (result == AGAIN_MARKING) marking = true
  }
}

/**
 * One pass over the levels of a PAE or long-mode walk. `physical`: address bits without C; `always`: bits reserved at every level;
 * `marking`: from the top, setting the A bits that are missing, as the pass before has reached a page.
 */
function attempt(
  s: usize,
  vm: usize,
  va: u64,
  access: u32,
  user: bool,
  smap: bool,
  quiet: bool,
  physical: u64,
  always: u64,
  marking: bool,
): u32 {
  const cr4 = load<u64>(s, CPU_CR4)
  const long = (load<u64>(s, CPU_EFER) & EFER_LMA) != 0
  const key = load<u32>(vm, VM_ASID)
  const cBit = load<u64>(vm, VM_C_BIT)
  let level: u32 = long ? ((cr4 & CR4_LA57) != 0 ? 5 : 4) : 3
  let tableGpa = long ? load<u64>(s, CPU_CR3) & physical : load<u64>(s, CPU_CR3) & 0xffffffe0
  let table: usize = 0
  let rights: u32 = L2_W | L2_U | L2_X
  let cached = false
  // An entry above lacks A: nothing below it may be cached (SDM vol 3, 4.10.3.1).
  let stale = false
  const psc = pscEntry(s, va)
  if (!marking && load<u32>(psc, 8) != 0 && load<u64>(psc) == pscTag(s, va)) {
    table = <usize>load<u32>(psc, 8)
    const word = load<u32>(psc, 12)
    rights = word & (L2_W | L2_U | L2_X)
    level = word & PSC_LEVEL2 ? 2 : 1
    cached = true
  }
  while (true) {
    if (!cached) {
      table = tableFrame(vm, tableGpa & ~0xfff, key)
      if (table == 1) return WALK_MEMORY
      if (table == 2) return WALK_MISSING
      if (table == 0) return fault(s, ERROR_P | ERROR_RSVD, access, user) // reads as all ones
      table += <usize>(tableGpa & 0xfff) // PAE: 32-byte aligned PDPT
      if (level <= 2 && !quiet && !stale) {
        store<u64>(psc, pscTag(s, va))
        store<u32>(psc, <u32>table, 8)
        const word = rights | L2_VALID | L2_STORE | ((cr4 & CR4_PGE) != 0 ? L2_GLOBAL : 0)
        store<u32>(psc, level == 2 ? word | PSC_LEVEL2 : word, 12)
      }
    }
    const pdpte = !long && level == 3
    const index = <usize>(va >> (12 + 9 * <u64>(level - 1))) & (pdpte ? 3 : 511)
    const at = table + (index << 3)
    const entry = load<u64>(at)
    if ((entry & PTE_P) == 0) return fault(s, 0, access, user)
    const leaf = level == 1 || (level <= 3 && !pdpte && (entry & PTE_PS) != 0)
    if (entry & (always | reserved(level, leaf, long))) return fault(s, ERROR_P | ERROR_RSVD, access, user)
    if (!pdpte) {
      if ((entry & PTE_W) == 0) rights &= ~L2_W
      if ((entry & PTE_U) == 0) rights &= ~L2_U
      if (entry & PTE_NX) rights &= ~L2_X
    }
    let need: u64 = pdpte ? 0 : PTE_A
    if (leaf) {
      let error = permission(s, rights, access, user, smap)
      if (long && (cr4 & (CR4_PKE | CR4_PKS)) != 0) {
        let key: u32 = 0
        if (rights & L2_U) {
          if (cr4 & CR4_PKE) key = protectionKey(s, load<u32>(s, CPU_PKRU), entry, access, user)
        } else if ((cr4 & CR4_PKS) != 0 && !user) key = protectionKey(s, load<u32>(s, CPU_PKRS), entry, access, false)
        if (key != 0) error |= ERROR_P | key
      }
      if (error != 0) return fault(s, error, access, user)
      if (access == WRITE) need |= PTE_D
    }
    if (!quiet && ((entry & need) != need || stale)) {
      // The dirty log needs the table's guest-physical address, which the cache does not have.
      if (leaf && (cached || stale)) return AGAIN_MARKING
      if (!leaf && !marking) stale = true
      else if (tableStore(vm, tableGpa, at) && atomic.cmpxchg<u64>(at, entry, entry | need) != entry) return AGAIN
    }
    if (leaf) {
      const size: u64 = 1 << (12 + 9 * <u64>(level - 1))
      walkGpa = ((entry & physical & ~(size - 1)) | (va & (size - 1))) & ~0xfff
      walkDirty = ((entry | need) & PTE_D) != 0
      if (entry & PTE_G && cr4 & CR4_PGE) rights |= L2_GLOBAL
      if (entry & cBit && key != 0) rights |= L2_PRIVATE
      if (level > 1) {
        rights |= L2_LARGE
        if (!quiet) noteLarge(s, va, size)
      }
      walkData = rights
      return WALK_OK
    }
    tableGpa = entry & physical
    level--
    cached = false
  }
}

/** Sets bits of a 4-byte entry of the table in the page of `gpa`; false = it has changed. */
function mark32(vm: usize, gpa: u64, at: usize, entry: u32, bits: u32): bool {
  return !tableStore(vm, gpa & 0xfffff000, at) || atomic.cmpxchg<u32>(at, entry, entry | bits) == entry
}

/** Two levels of 4-byte entries; 4 MiB pages with CR4.PSE, their address bits 39:32 in entry bits 20:13. */
function walk32(s: usize, vm: usize, va: u64, access: u32, user: bool, smap: bool, quiet: bool): u32 {
  const key = load<u32>(vm, VM_ASID)
  const cr4 = load<u64>(s, CPU_CR4)
  let physical = load<u64>(vm, VM_PHYS_MASK) & ADDRESS
  if (physical == 0) physical = ADDRESS
  const cBit = load<u64>(vm, VM_C_BIT)
  physical &= ~cBit
  while (true) {
    let tableGpa = load<u64>(s, CPU_CR3) & 0xfffff000
    let rights: u32 = L2_W | L2_U | L2_X
    let level: u32 = 2
    let directory: usize = 0
    let directoryEntry: u32 = 0
    let retry = false
    while (!retry) {
      const table = tableFrame(vm, tableGpa, key)
      if (table == 1) return WALK_MEMORY
      if (table == 2) return WALK_MISSING
      if (table == 0) return fault(s, ERROR_P, access, user)
      const at = table + ((<usize>((va >> (level == 2 ? 22 : 12)) & 1023)) << 2)
      const entry = load<u32>(at)
      if ((entry & <u32>PTE_P) == 0) return fault(s, 0, access, user)
      const large = level == 2 && (entry & <u32>PTE_PS) != 0 && (cr4 & CR4_PSE) != 0
      const big = <u64>(entry & 0xffc00000) | ((<u64>((entry >> 13) & 0xff)) << 32)
      if (large && (entry & 0x200000 || (big & ADDRESS & ~physical) != 0)) return fault(s, ERROR_P | ERROR_RSVD, access, user)
      if ((entry & <u32>PTE_W) == 0) rights &= ~L2_W
      if ((entry & <u32>PTE_U) == 0) rights &= ~L2_U
      const leaf = large || level == 1
      let need = <u32>PTE_A
      if (leaf) {
        const error = permission(s, rights, access, user, smap)
        if (error != 0) return fault(s, error, access, user)
        if (access == WRITE) need |= <u32>PTE_D
      }
      if (leaf && !quiet) {
        // The directory first: in case its entry has changed nothing is marked.
        if (
          directory != 0 &&
          (directoryEntry & <u32>PTE_A) == 0 &&
          !mark32(vm, load<u64>(s, CPU_CR3), directory, directoryEntry, <u32>PTE_A)
        )
          retry = true
        else if ((entry & need) != need && !mark32(vm, tableGpa, at, entry, need)) retry = true
        if (retry) continue
      }
      if (!leaf) {
        directory = at
        directoryEntry = entry
        tableGpa = <u64>(entry & 0xfffff000)
        level = 1
        continue
      }
      walkGpa = large ? big | (va & 0x3ff000) : <u64>(entry & 0xfffff000)
      walkDirty = ((entry | need) & <u32>PTE_D) != 0
      if (entry & <u32>PTE_G && cr4 & CR4_PGE) rights |= L2_GLOBAL
      if (key != 0) rights |= L2_PRIVATE
      if (large) {
        rights |= L2_LARGE
        if (!quiet) noteLarge(s, va, 0x400000)
      }
      walkData = rights
      return WALK_OK
    }
  }
}
