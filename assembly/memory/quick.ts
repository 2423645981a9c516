/**
 * TLB misses of the ordinary kind: long mode, a translation in the L2 TLB (served in the loop itself, tools/generate-fill.ts) or a
 * table in the paging-structure cache, a leaf whose A (and D) are set, a page in a slot of plain memory whose frame is stored in the
 * view that is used. Everything else is left to translate(), and nothing has changed then. The conditions that do not depend on the
 * address are prepared in MMU_QUICK_*; whoever changes one of them flushes, and a whole flush drops them.
 */
import {
  CPU_APIC_BASE,
  CPU_CR0,
  CPU_CR4,
  CPU_DEBUG_ARMED,
  CPU_EFER,
  CPU_PKRS,
  CPU_PKRU,
  CPU_VM,
  DEBUG_DATA,
  FRAME_INFO,
  FRAME_TOUCHED,
  MMU_CLEAN,
  MMU_LARGE_BASE,
  MMU_LARGE_MASK,
  MMU_QUICK,
  MMU_QUICK_ALLOW,
  MMU_QUICK_DATA,
  MMU_QUICK_GLOBAL,
  MMU_QUICK_INFO,
  MMU_QUICK_LOCAL,
  MMU_QUICK_MASK,
  MMU_QUICK_PSC,
  MMU_QUICK_UNITS,
  MMU_QUICK_WANT,
  VCPU_KVM,
  VCPU_PSC,
  VCPU_TLB2,
  VCPU_MMU,
  VKVM_SMM,
  VM_ASID,
  VM_C_BIT,
  VM_IRQCHIP,
  VM_PHYS_MASK,
  VM_UNITS,
} from '../generated/layout'
import { install, lookup } from '../generated/fill'
import { slotFind } from './slots'
import {
  CR0_WP,
  CR4_SMEP,
  dropSupervisorStores,
  L2_GLOBAL,
  L2_LARGE,
  L2_PRIVATE,
  L2_STORE,
  L2_U,
  L2_VALID,
  L2_W,
  L2_X,
  PREPARED,
  PSC_LEVEL2,
  quickTags,
  selectTlb,
  SMAP,
  SUPERVISOR,
  USABLE,
  USER,
} from './tlb'

const CR0_PG: u64 = 1 << 31
const CR4_PKE: u64 = 1 << 22
const CR4_PKS: u64 = 1 << 24
const EFER_LMA: u64 = 1 << 10
const EFER_NXE: u64 = 1 << 11
const APIC_ENABLED: u64 = 1 << 11
const APIC_X2: u64 = 1 << 10
const ADDRESS: u64 = 0x000ffffffffff000
const PTE_NX: u64 = 1 << 63
/** P, A. */
const PTE_USED: u64 = 0x21
/** A 2 MiB leaf: PS must be set, address bits 20:13 are reserved. */
const LARGE_WANT: u64 = 0x80
const LARGE_MASK: u64 = 0x1fe080
const PTE_KEY: u64 = 0x78 << 56
/** VM_UNITS reaches 8 GiB. */
const BEYOND: u64 = ~0x1ffffffff
/** The first 8 bytes of a FRAME: CODE, KEY, FLAGS, DIRTY. */
const INFO_MASK: u64 = (0xffff | ((<u64>FRAME_TOUCHED) << 16)) << 32
const INFO_DIRTY: u64 = 1 << 56
const INFO_CODE: u64 = 0xffffffff

const M: usize = VCPU_MMU

/** Prepares MMU_QUICK_*: translate() calls it when they were dropped. */
export function quickPrepare(s: usize): void {
  store<u32>(s, PREPARED, M + MMU_QUICK)
  const vm = <usize>load<u32>(s, CPU_VM)
  const cr0 = load<u64>(s, CPU_CR0)
  const cr4 = load<u64>(s, CPU_CR4)
  const efer = load<u64>(s, CPU_EFER)
  const units = <usize>load<u32>(vm, VM_UNITS)
  if ((cr0 & CR0_PG) == 0 || (efer & EFER_LMA) == 0 || units == 0) return
  if ((load<u32>(s, CPU_DEBUG_ARMED) & DEBUG_DATA) != 0) return
  if (load<u32>(s + VCPU_KVM, VKVM_SMM) != 0) return // other slots
  // Key 0 must not restrict; a page with another key is not for this path.
  const user = (cr4 & CR4_PKE) != 0
  const supervisor = (cr4 & CR4_PKS) != 0
  if ((user && (load<u32>(s, CPU_PKRU) & 3) != 0) || (supervisor && (load<u32>(s, CPU_PKRS) & 3) != 0)) return
  // The local APIC over ordinary memory.
  const base = load<u64>(s, CPU_APIC_BASE)
  if ((base & (APIC_ENABLED | APIC_X2)) == APIC_ENABLED && load<u32>(vm, VM_IRQCHIP) != 0 && slotFind(vm, base & ADDRESS) != 0) return

  const cBit = load<u64>(vm, VM_C_BIT)
  const key = load<u32>(vm, VM_ASID)
  let physical = load<u64>(vm, VM_PHYS_MASK) & ADDRESS
  if (physical == 0) physical = ADDRESS
  physical &= ~cBit
  // Of an encrypted VM private pages alone.
  let mask = PTE_USED | (ADDRESS & ~physical) | (ADDRESS & BEYOND)
  if ((efer & EFER_NXE) == 0) mask |= PTE_NX
  if (user || supervisor) mask |= PTE_KEY
  store<u64>(s, mask, M + MMU_QUICK_MASK)
  store<u64>(s, key != 0 ? PTE_USED | cBit : PTE_USED, M + MMU_QUICK_WANT)
  store<u64>(s, (<u64>(key | (FRAME_TOUCHED << 16))) << 32, M + MMU_QUICK_INFO)
  store<u32>(s, key != 0 ? L2_VALID | L2_PRIVATE : L2_VALID, M + MMU_QUICK_DATA)
  store<u32>(s, <u32>units, M + MMU_QUICK_UNITS)
  store<u32>(s, USABLE, M + MMU_QUICK)
  allowed(s)
  quickTags(s)
}

/** Rights of the three L1 arrays, four bits for each of the 16 values of bits 5:2 of an L2 word. */
function allowed(s: usize): void {
  const all: u64 = 0x1111111111111111
  const u: u64 = 0x1010101010101010
  const dirty: u64 = 0x1111111100000000
  const w: u64 = (load<u64>(s, CPU_CR0) & CR0_WP) != 0 ? 0x1111000000000000 : dirty
  const x: u64 = (load<u64>(s, CPU_CR4) & CR4_SMEP) != 0 ? 0x0100010001000100 : 0x1100110011001100
  store<u64>(s, u | ((u & 0x1111000000000000) << 1) | ((u & 0x1100110011001100) << 2), M + MMU_QUICK_ALLOW + 8 * USER)
  store<u64>(s, all | (w << 1) | (x << 2), M + MMU_QUICK_ALLOW + 8 * SUPERVISOR)
  store<u64>(s, (all & ~u) | ((w & ~u) << 1) | (x << 2), M + MMU_QUICK_ALLOW + 8 * SMAP)
  selectTlb(s)
}

/** CR0.WP has changed: no translation depends on it, only what a tag or a miss makes of one. */
export function writeProtectionChanged(s: usize): void {
  if (load<u64>(s, CPU_CR0) & CR0_WP) dropSupervisorStores(s)
  if (load<u32>(s, M + MMU_QUICK) == USABLE) allowed(s)
}

/** Fills the L1 entry of `va` in the current array; true if an access of miss code `n` (tools/generate-fill.ts) hits it now. */
export function quickFill(s: usize, va: u64, n: u32): bool {
  return lookup(s, va, n) || quickWalk(s, va, n)
}

/** The L2 TLB does not know the page, or its frame has to be looked at. */
export function quickWalk(s: usize, va: u64, n: u32): bool {
  const vpn = va >> 12
  const page = va & ~0xfff
  const l2 = s + ((<usize>(vpn ^ (vpn >> 16)) & 65535) << 4)
  const context = load<u64>(l2, VCPU_TLB2) ^ page
  const want = load<u32>(s, M + MMU_QUICK_DATA)
  let data = load<u32>(l2, VCPU_TLB2 + 8)
  const known = context == load<u64>(s, M + MMU_QUICK_LOCAL) || context == load<u64>(s, M + MMU_QUICK_GLOBAL)
  if (!known || (data & (L2_VALID | L2_PRIVATE)) != want) {
    const psc = s + (<usize>(va >> 17) & 0x1ff0)
    if (load<u64>(psc, VCPU_PSC) != ((va >> 21) | load<u64>(s, M + MMU_QUICK_PSC))) return false
    const word = load<u32>(psc, VCPU_PSC + 12)
    const table = <usize>load<u32>(psc, VCPU_PSC + 8)
    let entry: u64
    let at: u32
    if ((word & PSC_LEVEL2) == 0) {
      entry = load<u64>(table + (<usize>(va >> 9) & 0xff8))
      if ((entry & load<u64>(s, M + MMU_QUICK_MASK)) != load<u64>(s, M + MMU_QUICK_WANT)) return false
      at = <u32>(entry >> 12)
      data = want
    } else {
      if ((va & load<u64>(s, M + MMU_LARGE_MASK)) != load<u64>(s, M + MMU_LARGE_BASE)) return false
      entry = load<u64>(table + (<usize>(va >> 18) & 0xff8))
      if ((entry & (load<u64>(s, M + MMU_QUICK_MASK) | LARGE_MASK)) != (load<u64>(s, M + MMU_QUICK_WANT) | LARGE_WANT)) return false
      at = (<u32>(entry >> 12) & ~0x1ff) | (<u32>vpn & 0x1ff)
      data = want | L2_LARGE
    }
    // In pages of 4 KiB; MASK lets nothing pass at or above 8 GiB.
    const unit = <usize>load<u32>(<usize>load<u32>(s, M + MMU_QUICK_UNITS) + (<usize>(at >> 7) & 0x3ffc))
    const frame = load<u32>(unit + ((<usize>at & 0x1ff) << 2))
    if (frame == 0) return false
    const bits = <u32>entry
    data |= frame | (((bits & (L2_U | L2_GLOBAL)) | ((bits << 3) & L2_W) | ((bits >> 1) & L2_STORE) | (<u32>(~entry >> 60) & L2_X)) & word)
  }
  const info = load<u64>(FRAME_INFO + (<usize>(data >> 8) & ~15))
  if ((info & INFO_MASK) != load<u64>(s, M + MMU_QUICK_INFO)) return false
  const tag = page | (data & L2_GLOBAL ? load<u64>(s, M + MMU_QUICK_GLOBAL) : load<u64>(s, M + MMU_QUICK_LOCAL))
  if ((info & (INFO_DIRTY | INFO_CODE)) == INFO_DIRTY) {
    store<u64>(l2, tag, VCPU_TLB2)
    store<u64>(l2, <u64>data | ((<u64>load<u32>(s, M + MMU_CLEAN)) << 32), VCPU_TLB2 + 8)
    return install(s, va, data, n)
  }
  // No write tag where there is code, or where a store would be the first since a snapshot: translate() knows what to do.
  if ((data & (L2_STORE | L2_W)) == (L2_STORE | L2_W)) return false
  store<u64>(l2, tag, VCPU_TLB2)
  store<u64>(l2, <u64>data, VCPU_TLB2 + 8)
  return install(s, va, data & ~L2_STORE, n)
}
