/**
 * Memory attributes: which guest-physical pages are private (KVM_SET_MEMORY_ATTRIBUTES, virt/kvm/kvm_main.c). They belong to
 * the VM, not to its slots. Owns VM_PRIVATE_*: sorted, disjoint, never adjacent ranges of page numbers.
 */
import { VM_PRIVATE_CAPACITY, VM_PRIVATE_COUNT, VM_PRIVATE_RANGES } from '../generated/layout'
import { allocPages, freePages } from './frames'
import { resetUnits } from './slots'
import { flushEverywhere } from './tlb'

const RANGE: usize = 16
const PER_PAGE: u32 = 256
const ENOMEM: i32 = -12

/** Index of the first range that ends after `page`. */
function firstAfter(vm: usize, page: u64): u32 {
  const ranges = <usize>load<u32>(vm, VM_PRIVATE_RANGES)
  let low: u32 = 0
  let high = load<u32>(vm, VM_PRIVATE_COUNT)
  while (low < high) {
    const middle = (low + high) >>> 1
    if (load<u64>(ranges + <usize>middle * RANGE, 8) > page) high = middle
    else low = middle + 1
  }
  return low
}

/** KVM_MEMORY_ATTRIBUTE_PRIVATE of the page of `gpa`. */
export function isPrivate(vm: usize, gpa: u64): bool {
  const count = load<u32>(vm, VM_PRIVATE_COUNT)
  if (count == 0) return false
  const i = firstAfter(vm, gpa >> 12)
  return i < count && load<u64>(<usize>load<u32>(vm, VM_PRIVATE_RANGES) + <usize>i * RANGE) <= gpa >> 12
}

/** Room for `need` ranges; false = out of memory. */
function reserve(vm: usize, need: u32): bool {
  const have = load<u32>(vm, VM_PRIVATE_CAPACITY)
  if (need <= have * PER_PAGE) return true
  const wanted: u32 = have == 0 ? 1 : have * 2
  const to = allocPages(wanted)
  if (to == 0) return false
  if (have != 0) {
    const from = <usize>load<u32>(vm, VM_PRIVATE_RANGES)
    memory.copy(to, from, (<usize>have) << 12)
    freePages(from, have)
  }
  store<u32>(vm, <u32>to, VM_PRIVATE_RANGES)
  store<u32>(vm, wanted, VM_PRIVATE_CAPACITY)
  return true
}

/** Makes `count` pages from page number `first` on private or shared: 0 or -ENOMEM. */
export function privateSet(vm: usize, first: u64, count: u64, on: bool): i32 {
  const end = first + count
  const n = load<u32>(vm, VM_PRIVATE_COUNT)
  if (!on && n == 0) return 0
  if (!reserve(vm, n + 1)) return ENOMEM
  const ranges = <usize>load<u32>(vm, VM_PRIVATE_RANGES)
  // Ranges [i, j) meet the new one; when it is private, those that touch it too.
  let i = firstAfter(vm, on && first != 0 ? first - 1 : first)
  let j = i
  while (j < n && (on ? load<u64>(ranges + <usize>j * RANGE) <= end : load<u64>(ranges + <usize>j * RANGE) < end)) j++
  const low = i < j ? load<u64>(ranges + <usize>i * RANGE) : first
  const high = i < j ? load<u64>(ranges + <usize>(j - 1) * RANGE, 8) : end
  const before = i < j && low < first
  const behind = i < j && high > end
  const pieces: u32 = on ? 1 : (before ? 1 : 0) + (behind ? 1 : 0)
  memory.copy(ranges + <usize>(i + pieces) * RANGE, ranges + <usize>j * RANGE, <usize>(n - j) * RANGE)
  let at = ranges + <usize>i * RANGE
  if (on) {
    store<u64>(at, before ? low : first)
    store<u64>(at, behind ? high : end, 8)
  } else {
    if (before) {
      store<u64>(at, low)
      store<u64>(at, first, 8)
      at += RANGE
    }
    if (behind) {
      store<u64>(at, end)
      store<u64>(at, high, 8)
    }
  }
  store<u32>(vm, n - (j - i) + pieces, VM_PRIVATE_COUNT)
  if ((n == 0) != (n - (j - i) + pieces == 0)) resetUnits(vm)
  flushEverywhere()
  return 0
}

export function privateFree(vm: usize): void {
  freePages(<usize>load<u32>(vm, VM_PRIVATE_RANGES), load<u32>(vm, VM_PRIVATE_CAPACITY))
  store<u32>(vm, 0, VM_PRIVATE_RANGES)
  store<u32>(vm, 0, VM_PRIVATE_COUNT)
  store<u32>(vm, 0, VM_PRIVATE_CAPACITY)
}
