/** Data breakpoints as the memory paths see them (SDM vol 3, 17.2.4, 17.2.5). A leaf: no imports but constants. */
import { CPU_DR, CPU_DR7, CPU_PENDING_DB, VCPU_KVM, VKVM_DEBUG_DR, VKVM_DEBUG_DR7, VKVM_GUEST_DEBUG } from '../generated/layout'

/** KVM_GUESTDBG_USE_HW_BP: the debugger's breakpoints are in force, not the guest's (vcpu->arch.eff_db). */
export function hostBreakpoints(s: usize): bool {
  return (load<u32>(s + VCPU_KVM, VKVM_GUEST_DEBUG) & 0x20000) != 0
}

/** The DR7 in force. */
export function activeDr7(s: usize): u32 {
  return <u32>(hostBreakpoints(s) ? load<u64>(s + VCPU_KVM, VKVM_DEBUG_DR7) : load<u64>(s, CPU_DR7))
}

/** DR0..DR3 in force. */
export function activeDr(s: usize, n: u32): u64 {
  return load<u64>(s + (hostBreakpoints(s) ? <usize>(VCPU_KVM + VKVM_DEBUG_DR) : <usize>CPU_DR) + ((<usize>n) << 3))
}

function length(dr7: u32, n: u32): u64 {
  const code = (dr7 >> (18 + (n << 2))) & 3
  return code == 0 ? 1 : code == 1 ? 2 : code == 2 ? 8 : 4
}

/** A page with watched bytes: data accesses to it must come through watchAccess. */
export function watchedPage(s: usize, va: u64): bool {
  const dr7 = activeDr7(s)
  for (let n: u32 = 0; n < 4; n++) {
    if (((dr7 >> (n << 1)) & 3) == 0 || ((dr7 >> (16 + (n << 2))) & 1) == 0) continue
    if (((activeDr(s, n) ^ va) & ~(<u64>0xfff)) == 0) return true
  }
  return false
}

/** A data access: notes the breakpoints it hits for the end of the instruction. */
export function watchAccess(s: usize, va: u64, size: u32, write: bool): void {
  const dr7 = activeDr7(s)
  let hit: u32 = 0
  for (let n: u32 = 0; n < 4; n++) {
    if (((dr7 >> (n << 1)) & 3) == 0) continue
    const kind = (dr7 >> (16 + (n << 2))) & 3
    if (kind != 3 && (kind != 1 || !write)) continue
    const bytes = length(dr7, n)
    const from = activeDr(s, n) & ~(bytes - 1)
    if (va < from + bytes && from < va + <u64>size) hit |= 1 << n
  }
  if (hit) store<u32>(s, load<u32>(s, CPU_PENDING_DB) | hit, CPU_PENDING_DB)
}
