/**
 * RDMSR and WRMSR of a guest as KVM serves them: filters (KVM_X86_SET_MSR_FILTER, kvm_msr_allowed) and exits to userspace
 * (KVM_CAP_X86_USER_SPACE_MSR, kvm_msr_user_space) around the MSR table. Owns CHIP_MSR_FILTER and the pages behind it.
 */
import { msrKnown, msrRead, msrWrite } from '../cpu/msr'
import { KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, RUN_MSR_DATA, RUN_MSR_ERROR, RUN_MSR_INDEX, RUN_MSR_REASON } from '../generated/kvm'
import { CHIP_MSR_FILTER, PENDING_RDMSR, PENDING_WRMSR, VKVM_PENDING, VM_USER_MSR_MASK } from '../generated/layout'
import { allocPages, freePages } from '../memory/frames'
import { stopForExit } from './exits'
import { chipOf, runOf, vkvm, vmOf } from './state'

export const MSR_DONE: u32 = 0
export const MSR_GP: u32 = 1
export const MSR_LEFT: u32 = 2

/** KVM_MSR_EXIT_REASON_* */
const INVAL: u32 = 1
const UNKNOWN: u32 = 2
const FILTER: u32 = 4

// Filter pages: default deny u32, ranges u32; 16-byte ranges (flags, nmsrs, base, 0) from +16; bitmaps of 0x600 bytes from +0x400.
const PAGES: u32 = 7
const BITMAPS: usize = 0x400
const BITMAP: usize = 0x600
const MOST: u32 = 16

/** A new, empty filter replaces the old one: everything is allowed, or denied. -ENOMEM, 0. */
export function msrFilterBegin(vm: usize, deny: bool): i32 {
  const chip = chipOf(vm)
  msrFilterFree(vm)
  const at = allocPages(PAGES)
  if (!at) return -12
  store<u32>(at, deny ? 1 : 0)
  store<u32>(chip, <u32>at, CHIP_MSR_FILTER)
  return 0
}

/** One range: flags bit 0 reads, bit 1 writes; the bitmap (1 = allowed) lies at `from`. */
export function msrFilterRange(vm: usize, flags: u32, count: u32, base: u32, from: usize): i32 {
  const at: usize = load<u32>(chipOf(vm), CHIP_MSR_FILTER)
  const n = at ? load<u32>(at, 4) : MOST
  if (n >= MOST || count > <u32>(BITMAP << 3)) return -22
  const r = at + 16 + ((<usize>n) << 4)
  store<u32>(r, flags)
  store<u32>(r, count, 4)
  store<u32>(r, base, 8)
  memory.copy(at + BITMAPS + <usize>n * BITMAP, from, <usize>((count + 7) >> 3))
  store<u32>(at, n + 1, 4)
  return 0
}

export function msrFilterFree(vm: usize): void {
  const chip = chipOf(vm)
  const at: usize = load<u32>(chip, CHIP_MSR_FILTER)
  if (at) freePages(at, PAGES)
  store<u32>(chip, 0, CHIP_MSR_FILTER)
}

/** kvm_msr_allowed: the first range that covers the access decides; x2APIC registers are never filtered. */
function allowed(s: usize, index: u32, type: u32): bool {
  const at: usize = load<u32>(chipOf(vmOf(s)), CHIP_MSR_FILTER)
  if (!at || (index >= 0x800 && index <= 0x8ff)) return true
  const n = load<u32>(at, 4)
  for (let i: u32 = 0; i < n; i++) {
    const r = at + 16 + ((<usize>i) << 4)
    const bit = index - load<u32>(r, 8)
    if (bit >= load<u32>(r, 4) || (load<u32>(r) & type) == 0) continue
    return ((<u32>load<u8>(at + BITMAPS + <usize>i * BITMAP + (bit >> 3)) >> (bit & 7)) & 1) != 0
  }
  return load<u32>(at) == 0
}

function leave(s: usize, write: bool, index: u32, value: u64, reason: u32): u32 {
  if ((load<u32>(vmOf(s), VM_USER_MSR_MASK) & reason) == 0) return MSR_GP
  const run = runOf(s)
  store<u8>(run, 0, RUN_MSR_ERROR)
  memory.fill(run + RUN_MSR_ERROR + 1, 0, 7)
  store<u32>(run, reason, RUN_MSR_REASON)
  store<u32>(run, index, RUN_MSR_INDEX)
  store<u64>(run, value, RUN_MSR_DATA)
  stopForExit(s, write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR)
  store<u32>(vkvm(s), write ? PENDING_WRMSR : PENDING_RDMSR, VKVM_PENDING)
  return MSR_LEFT
}

/** MSR_DONE with the value in CPU_MSR_VALUE, MSR_GP, or MSR_LEFT with the exit filled in. */
export function guestMsrRead(s: usize, index: u32): u32 {
  const pass = allowed(s, index, 1)
  if (pass && msrRead(s, index, false)) return MSR_DONE
  return leave(s, false, index, 0, !pass ? FILTER : msrKnown(s, index) ? INVAL : UNKNOWN)
}

export function guestMsrWrite(s: usize, index: u32, value: u64): u32 {
  const pass = allowed(s, index, 2)
  if (pass && msrWrite(s, index, value, false)) return MSR_DONE
  return leave(s, true, index, value, !pass ? FILTER : msrKnown(s, index) ? INVAL : UNKNOWN)
}
