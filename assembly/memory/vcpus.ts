/** The machine-wide list of vCPUs, for flushes that concern all of them. Owns GLOBAL_VCPU_COUNT and GLOBAL_VCPUS. */
import { GLOBAL, GLOBAL_VCPUS, GLOBAL_VCPU_COUNT } from '../generated/layout'
import { initTlb } from './tlb'

const MOST: u32 = 1024

/** Puts the arena on the list and readies its TLBs (a zeroed arena would map page 0). False if the list is full. */
export function vcpuRegister(s: usize): bool {
  const n = load<u32>(GLOBAL, GLOBAL_VCPU_COUNT)
  if (n >= MOST) return false
  store<u32>(GLOBAL + ((<usize>n) << 2), <u32>s, GLOBAL_VCPUS)
  store<u32>(GLOBAL, n + 1, GLOBAL_VCPU_COUNT)
  initTlb(s)
  return true
}

export function vcpuUnregister(s: usize): void {
  const n = load<u32>(GLOBAL, GLOBAL_VCPU_COUNT)
  for (let i: u32 = 0; i < n; i++) {
    const at: usize = GLOBAL + ((<usize>i) << 2)
    if (load<u32>(at, GLOBAL_VCPUS) != <u32>s) continue
    store<u32>(at, load<u32>(GLOBAL + ((<usize>(n - 1)) << 2), GLOBAL_VCPUS), GLOBAL_VCPUS)
    store<u32>(GLOBAL, n - 1, GLOBAL_VCPU_COUNT)
    return
  }
}
