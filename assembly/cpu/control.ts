/**
 * Control and debug registers: what may be written, and which translations it drops (SDM vol 3, 2.5,
 * 4.10.4; APM vol 2, 3.1). Owns CPU_CR0..CR4, CPU_CR8, CPU_XCR0, CPU_DR*. Each write returns false
 * where the instruction raises #GP(0); nothing has changed then.
 */
import {
  CPU_CR0,
  CPU_CR3,
  CPU_CR4,
  CPU_CR8,
  CPU_DR,
  CPU_DR6,
  CPU_DR7,
  CPU_EFER,
  CPU_EVENT,
  CPU_VM,
  CPU_XCR0,
  EVENT_INTERRUPT,
  SEG_ATTRIB,
  SEG_CS,
  SEG_TR,
  VM_C_BIT,
} from '../generated/layout'
import {
  CR0_CD,
  CR0_NW,
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_CET,
  CR4_FSGSBASE,
  CR4_LA57,
  CR4_OSXSAVE,
  CR4_PAE,
  CR4_PCIDE,
  CR4_PGE,
  CR4_PKE,
  CR4_PKS,
  CR4_PSE,
  CR4_SMAP,
  CR4_SMEP,
  CR4_UMIP,
  EFER_LMA,
  EFER_LME,
  EFER_SVME,
} from '../generated/registers'
import { writeProtectionChanged } from '../memory/quick'
import { flushTlb, flushTlbArrays, flushTlbLocal } from '../memory/tlb'
import { updateDebug } from './debug'
import {
  F_1_ECX,
  F_7_EBX,
  F_7_ECX,
  F_D0_EAX,
  F_D0_EDX,
  F_80000001_EDX,
  feature,
  featureOrBare,
  featureWord,
  physicalBits,
} from './features'
import { ATTR_L, code64, longMode, segment, sevEs, updateMode, windowOpened } from './mode'

/** Bits that exist: PE MP EM TS ET NE WP AM NW CD PG. */
const CR0_DEFINED: u64 = 0xe005003f

export function writeCr0(s: usize, value: u64): bool {
  if (value >> 32) return false
  value = (value & CR0_DEFINED) | 0x10
  if ((value & CR0_PG) != 0 && (value & CR0_PE) == 0) return false
  if ((value & CR0_NW) != 0 && (value & CR0_CD) == 0) return false
  const old = load<u64>(s, CPU_CR0)
  const cr4 = load<u64>(s, CPU_CR4)
  let efer = load<u64>(s, CPU_EFER)
  if ((value & CR0_WP) == 0 && (cr4 & CR4_CET) != 0) return false
  if ((value & CR0_PG) != 0 && (old & CR0_PG) == 0) {
    if (efer & EFER_LME) {
      if ((cr4 & CR4_PAE) == 0 || (<u32>load<u16>(segment(s, SEG_CS), SEG_ATTRIB) & ATTR_L) != 0) return false
      // A 16-bit TSS cannot be used in long mode.
      if ((load<u16>(segment(s, SEG_TR), SEG_ATTRIB) & 0xd) == 1) return false
      efer |= EFER_LMA
    }
  } else if ((value & CR0_PG) == 0 && (old & CR0_PG) != 0) {
    if (code64(s) || (cr4 & CR4_PCIDE) != 0) return false
    efer &= ~EFER_LMA
  }
  store<u64>(s, value, CPU_CR0)
  store<u64>(s, efer, CPU_EFER)
  if ((value ^ old) & (CR0_PG | CR0_PE)) flushTlb(s)
  else if ((value ^ old) & CR0_WP) writeProtectionChanged(s)
  updateMode(s)
  return true
}

/** Bits of CR4 that this vCPU may set. */
function cr4Allowed(s: usize): u64 {
  let allowed: u64 = 0x7ff // VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT
  if (featureOrBare(s, F_7_ECX, 2)) allowed |= CR4_UMIP
  if (featureOrBare(s, F_7_EBX, 0)) allowed |= CR4_FSGSBASE
  if (featureOrBare(s, F_1_ECX, 17)) allowed |= CR4_PCIDE
  if (featureOrBare(s, F_1_ECX, 26)) allowed |= CR4_OSXSAVE
  if (featureOrBare(s, F_7_EBX, 7)) allowed |= CR4_SMEP
  if (featureOrBare(s, F_7_EBX, 20)) allowed |= CR4_SMAP
  if (featureOrBare(s, F_7_ECX, 3)) allowed |= CR4_PKE
  if (feature(s, F_7_ECX, 16)) allowed |= CR4_LA57
  if (feature(s, F_7_ECX, 31)) allowed |= CR4_PKS
  return allowed
}

export function writeCr4(s: usize, value: u64): bool {
  if (value & ~cr4Allowed(s)) return false
  const old = load<u64>(s, CPU_CR4)
  if (longMode(s)) {
    if ((value & CR4_PAE) == 0) return false
    if ((value ^ old) & CR4_LA57) return false
  }
  if ((value & CR4_PCIDE) != 0 && (old & CR4_PCIDE) == 0) {
    if (!longMode(s) || (load<u64>(s, CPU_CR3) & 0xfff) != 0) return false
  }
  if ((value & CR4_CET) != 0 && (load<u64>(s, CPU_CR0) & CR0_WP) == 0) return false
  store<u64>(s, value, CPU_CR4)
  if ((value ^ old) & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_PKS | CR4_LA57)) flushTlb(s)
  updateMode(s)
  return true
}

export function writeCr3(s: usize, value: u64): bool {
  let keep = false
  if (longMode(s)) {
    if ((load<u64>(s, CPU_CR4) & CR4_PCIDE) != 0) {
      keep = value >> 63 != 0
      value &= ~((<u64>1) << 63)
    }
    if (value >> 52) return false
    // The C-bit lies above the reduced width; without encryption those bits are reserved.
    const bits = <u64>physicalBits(s)
    if (bits < 52 && ((value >> bits) & ~cBitMask(s, bits)) != 0) return false
  } else value &= 0xffffffff
  store<u64>(s, value, CPU_CR3)
  if (keep) flushTlbArrays(s)
  else flushTlbLocal(s)
  return true
}

/** CR3 bits above the physical width that memory encryption defines. */
function cBitMask(s: usize, bits: u64): u64 {
  const vm = <usize>load<u32>(s, CPU_VM)
  return vm ? load<u64>(vm, VM_C_BIT) >> bits : 0
}

export function writeCr8(s: usize, value: u64): bool {
  if (value & ~(<u64>15)) return false
  store<u64>(s, value, CPU_CR8)
  // A lower task priority may let an interrupt in that the local APIC holds.
  atomic.or<u32>(s + CPU_EVENT, EVENT_INTERRUPT)
  windowOpened(s)
  return true
}

/** XSETBV: components that CPUID 0xD offers, x87 always, AVX only with SSE (SDM vol 1, 13.3). */
export function writeXcr0(s: usize, value: u64): bool {
  const offered = <u64>featureWord(s, F_D0_EAX) | ((<u64>featureWord(s, F_D0_EDX)) << 32)
  if ((value & 1) == 0 || (value & ~(offered | 1)) != 0) return false
  if ((value & 4) != 0 && (value & 2) == 0) return false
  const avx512 = value & 0xe0
  if (avx512 != 0 && (avx512 != 0xe0 || (value & 4) == 0)) return false
  const bound = value & 0x18
  if (bound != 0 && bound != 0x18) return false
  const tile = value & 0x60000
  if (tile != 0 && tile != 0x60000) return false
  store<u64>(s, value, CPU_XCR0)
  return true
}

/** DR0..DR3, DR6, DR7 (aliases resolved by the caller). */
export function writeDr(s: usize, n: u32, value: u64): bool {
  if (n < 4) {
    store<u64>(s + CPU_DR + ((<usize>n) << 3), value)
    updateDebug(s)
    return true
  }
  if (value >> 32) return false
  if (n == 6) store<u64>(s, (value & 0xe00f) | 0xffff0ff0, CPU_DR6)
  else {
    store<u64>(s, (value & 0xffff2fff) | 0x400, CPU_DR7)
    updateDebug(s)
  }
  return true
}

export function readDr(s: usize, n: u32): u64 {
  return n < 4 ? load<u64>(s + CPU_DR + ((<usize>n) << 3)) : n == 6 ? load<u64>(s, CPU_DR6) : load<u64>(s, CPU_DR7)
}

/** Long-mode bits of EFER; SVME is ignored for SEV-ES guests by the caller. */
export function writeEfer(s: usize, value: u64): bool {
  const old = load<u64>(s, CPU_EFER)
  let allowed: u64 = 1 | EFER_LMA | 0x4000
  if (featureOrBare(s, F_80000001_EDX, 29)) allowed |= EFER_LME
  if (featureOrBare(s, F_80000001_EDX, 20)) allowed |= 0x800
  if (sevEs(s)) allowed |= EFER_SVME // set by KVM in the VMSA; the guest's value is ignored (see msr.ts)
  // SVME elsewhere (no nested virtualisation is offered), LMSLE and TCE are not settable.
  if (value & ~allowed) return false
  if (((value ^ old) & EFER_LME) != 0 && (load<u64>(s, CPU_CR0) & CR0_PG) != 0) return false
  value = (value & ~EFER_LMA) | (old & EFER_LMA)
  store<u64>(s, value, CPU_EFER)
  if ((value ^ old) & 0x800) flushTlb(s)
  updateMode(s)
  return true
}
