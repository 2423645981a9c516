/**
 * Model-specific registers: one pair of functions for RDMSR/WRMSR and for the host. The table is
 * spec/msr.ts; what has side effects is here (Linux 7.3 kvm_get_msr_common, svm_get_msr; APM vol 2,
 * appendix A). Owns the MSR fields of the CPU structure. Result of a read: CPU_MSR_VALUE.
 */
import {
  CPU_APIC_BASE,
  CPU_EFER,
  CPU_GHCB,
  CPU_HWCR,
  CPU_MC_BANKS,
  CPU_MCG_CAP,
  CPU_MCG_CTL,
  CPU_MSR_VALUE,
  CPU_MTRR_DEF,
  CPU_MTRR_FIXED,
  CPU_MTRR_VAR,
  CPU_PAT,
  CPU_PKRS,
  CPU_SEV_STATUS,
  CPU_SMBASE,
  CPU_TSC_ADJUST,
  CPU_TSC_AUX,
  CPU_TSC_OFFSET,
  CPU_MISC_ENABLE,
  CPU_VM,
  EXITS_APERFMPERF,
  QUIRK_MISC_ENABLE_NO_MWAIT,
  VM_NO_PLATFORM_INFO,
  CPU_XSS,
  SEG_BASE,
  SEG_FS,
  SEG_GS,
} from '../generated/layout'
import { EFER_SVME } from '../generated/registers'
import {
  MSRF_CANONICAL,
  MSRF_IGNORE,
  MSRF_PASS,
  MSRF_READ_ONLY,
  MSRF_WRITE_ONLY,
  MSR_COUNT,
  MSR_KIND_CONSTANT,
  MSR_KIND_FIELD,
  MSR_ROWS,
  msrOffset,
} from '../generated/msr'
import { writeEfer } from './control'
import {
  F_1_ECX,
  F_7_EBX,
  F_7_ECX,
  F_7_EDX,
  F_80000001_EDX,
  F_80000008_EBX,
  F_80000021_EAX,
  F_D1_EAX,
  F_VENDOR,
  feature,
  featureWord,
  reservedGpaBits,
} from './features'
import { apicBaseWrite } from '../kvm/lapic'
import { tscDeadlineRead, tscDeadlineWrite, x2apicRead, x2apicWrite } from '../kvm/lapic-registers'
import { apicSync, clockStale, isPvMsr, pvMsrHas, pvMsrRead, pvMsrWrite } from '../kvm/pv'
import { exitsDisabled, quirk, vmOf } from '../kvm/state'
import { now, tscNow } from '../kvm/time'
import { flushTlb } from '../memory/tlb'
import { canonicalRegister, registerBits, segment, sevEs } from './mode'

function row(index: u32): i32 {
  let low: i32 = 0
  let high: i32 = <i32>MSR_COUNT - 1
  while (low <= high) {
    const mid = (low + high) >> 1
    const at = load<u32>(MSR_ROWS + <usize>mid * 24)
    if (at == index) return mid
    if (at < index) low = mid + 1
    else high = mid - 1
  }
  return -1
}

function found(s: usize, value: u64): bool {
  store<u64>(s, value, CPU_MSR_VALUE)
  return true
}

/** KVM does not intercept this MSR for an SEV-ES guest. */
export function msrPassThrough(index: u32): bool {
  const n = row(index)
  return n >= 0 && (<u32>load<u8>(MSR_ROWS + <usize>n * 24, 5) & MSRF_PASS) != 0
}

/** Reset values of the table. */
export function resetMsrs(s: usize): void {
  for (let n: u32 = 0; n < MSR_COUNT; n++) {
    const at = MSR_ROWS + <usize>n * 24
    if (<u32>load<u8>(at, 4) == MSR_KIND_FIELD) store<u64>(s + msrOffset(n), load<u64>(at, 16))
  }
  store<u64>(s, 0x0007040600070406, CPU_PAT)
  store<u64>(s, 0, CPU_MTRR_DEF)
  memory.fill(s + CPU_MTRR_FIXED, 0, 88)
  memory.fill(s + CPU_MTRR_VAR, 0, 128)
  memory.fill(s + CPU_MC_BANKS, 0, 1024)
  store<u64>(s, 0, CPU_MCG_CTL)
  store<u64>(s, 0, CPU_TSC_AUX)
  store<u64>(s, 0, CPU_TSC_ADJUST)
  store<u64>(s, 0, CPU_HWCR)
  store<u64>(s, 0x30000, CPU_SMBASE)
  store<u64>(s, 0x1800, CPU_MISC_ENABLE)
}

function bankAddress(s: usize, index: u32): usize {
  if (index < 0x400 || index >= 0x400 + ((<u32>(load<u64>(s, CPU_MCG_CAP) & 0xff)) << 2)) return 0
  const n = index - 0x400
  return n < 128 ? s + CPU_MC_BANKS + ((<usize>n) << 3) : 0
}

function fixedMtrr(index: u32): i32 {
  if (index == 0x250) return 0
  if (index == 0x258 || index == 0x259) return <i32>index - 0x257
  if (index >= 0x268 && index <= 0x26f) return <i32>index - 0x265
  return -1
}

/** The guest's CPUID has what the MSR belongs to (before a CPUID table exists, everything). */
function offered(s: usize, index: u32): bool {
  if (featureWord(s, F_VENDOR) == 0) return true
  const ebx = featureWord(s, F_80000008_EBX)
  const edx = featureWord(s, F_7_EDX)
  switch (index) {
    // SPEC_CTRL, STIBP, SSBD, or AMD's IBRS, STIBP, SSBD.
    case 0x48:
      return (edx & 0x8c000000) != 0 || (ebx & 0x0100c000) != 0
    // SPEC_CTRL, IBPB, or SBPB.
    case 0x49:
      return (edx & (1 << 26)) != 0 || (ebx & (1 << 12)) != 0 || feature(s, F_80000021_EAX, 27)
    case 0x10b:
      return (edx & (1 << 28)) != 0
    case 0x6e1:
      return feature(s, F_7_ECX, 31)
    case 0x3b:
      return feature(s, F_7_EBX, 1)
    case 0xc0000103:
      return feature(s, F_80000001_EDX, 27) || feature(s, F_7_ECX, 22)
    case 0xc001011f:
      return (ebx & (1 << 25)) != 0
    default:
      return true
  }
}

/** The MSR exists, whether or not this access to it is legal. */
export function msrKnown(s: usize, index: u32): bool {
  return row(index) >= 0 || (index & 0xffffff00) == 0x800 || bankAddress(s, index) != 0
}

/**
 * SYSENTER_ESP and _EIP of an AMD guest: KVM's own accessors carry 32 bits (svm_get_msr, svm_set_msr), while the guest's accesses go to
 * the CPU, unintercepted (svm_recalc_msr_intercepts), and keep 64 here, as kvm-unit-tests' msr wants.
 */
function lowHalf(s: usize, index: u32): bool {
  return (index == 0x175 || index == 0x176) && featureWord(s, F_VENDOR) == 1
}

/** Reads an MSR into CPU_MSR_VALUE; false: #GP (unknown, or write-only). */
export function msrRead(s: usize, index: u32, host: bool): bool {
  if (!host && (!offered(s, index) || (index == 0xce && load<u32>(load<u32>(s, CPU_VM), VM_NO_PLATFORM_INFO) != 0))) return false
  const n = row(index)
  if (n >= 0) {
    const at = MSR_ROWS + <usize>n * 24
    const kind = <u32>load<u8>(at, 4)
    if ((<u32>load<u8>(at, 5) & MSRF_WRITE_ONLY) != 0) return host ? found(s, 0) : false
    if (kind == MSR_KIND_FIELD) return found(s, load<u64>(s + msrOffset(n)) & (host && lowHalf(s, index) ? 0xffffffff : ~(<u64>0)))
    if (kind == MSR_KIND_CONSTANT) return found(s, load<u64>(at, 16))
    if (isPvMsr(index)) {
      if (pvMsrHas(s, index)) return found(s, pvMsrRead(s, index))
      return host ? found(s, 0) : false // advertised: the host reads 0
    }
    return specialRead(s, index, host)
  }
  if ((index & 0xffffff00) == 0x800) apicSync(s)
  if ((index & 0xffffff00) == 0x800) return x2apicRead(s, index, s + CPU_MSR_VALUE)
  const bank = bankAddress(s, index)
  if (bank) return found(s, load<u64>(bank))
  // APERF and MPERF, when KVM does not intercept them: both count at the rate of the host's TSC.
  if ((index == 0xe7 || index == 0xe8) && !host && exitsDisabled(s, EXITS_APERFMPERF)) return found(s, now(s) * 2)
  return false
}

function specialRead(s: usize, index: u32, host: bool): bool {
  switch (index) {
    case 0x10:
      return found(s, tscNow(s))
    case 0x1b:
      return found(s, load<u64>(s, CPU_APIC_BASE))
    case 0x3b:
      return found(s, load<u64>(s, CPU_TSC_ADJUST))
    case 0x9e:
      return host ? found(s, load<u64>(s, CPU_SMBASE)) : false
    case 0x1a0:
      return found(s, load<u64>(s, CPU_MISC_ENABLE))
    case 0x17b:
      return host || (load<u64>(s, CPU_MCG_CAP) & 0x100) != 0 ? found(s, load<u64>(s, CPU_MCG_CTL)) : false
    case 0x277:
      return found(s, load<u64>(s, CPU_PAT))
    case 0x2ff:
      return found(s, load<u64>(s, CPU_MTRR_DEF))
    case 0x6e0:
      return found(s, tscDeadlineRead(s))
    case 0x6e1:
      return found(s, <u64>load<u32>(s, CPU_PKRS))
    case 0xda0:
      return found(s, load<u64>(s, CPU_XSS))
    case 0xc0000080:
      return found(s, load<u64>(s, CPU_EFER))
    case 0xc0000100:
      return found(s, load<u64>(segment(s, SEG_FS), SEG_BASE))
    case 0xc0000101:
      return found(s, load<u64>(segment(s, SEG_GS), SEG_BASE))
    case 0xc0000103:
      return found(s, load<u64>(s, CPU_TSC_AUX))
    case 0xc0010015:
      return found(s, load<u64>(s, CPU_HWCR))
    case 0xc0010130:
      return sevEs(s) ? found(s, load<u64>(s, CPU_GHCB)) : false
    case 0xc0010131:
      return found(s, load<u64>(s, CPU_SEV_STATUS))
    default: {
      if (index >= 0x200 && index < 0x210) return found(s, load<u64>(s + CPU_MTRR_VAR + ((<usize>(index - 0x200)) << 3)))
      const f = fixedMtrr(index)
      return f >= 0 ? found(s, load<u64>(s + CPU_MTRR_FIXED + ((<usize>f) << 3))) : false
    }
  }
}

/** Writes an MSR; false: #GP. */
export function msrWrite(s: usize, index: u32, value: u64, host: bool): bool {
  if (!host && !offered(s, index)) return false
  const n = row(index)
  if (n >= 0) {
    const at = MSR_ROWS + <usize>n * 24
    const kind = <u32>load<u8>(at, 4)
    const flags = <u32>load<u8>(at, 5)
    if (index == 0x179) return false // IA32_MCG_CAP: KVM_X86_SETUP_MCE alone sets it
    if (kind == MSR_KIND_CONSTANT) return (flags & MSRF_IGNORE) != 0 || (host && value == load<u64>(at, 16))
    if (!host && (flags & MSRF_READ_ONLY) != 0) return false
    if (kind == MSR_KIND_FIELD) {
      if (!host && (flags & MSRF_IGNORE) != 0) return true
      // svm_set_msr takes any SYSCALL_MASK; a guest's write is the hardware's to check
      if ((value & ~load<u64>(at, 8)) != 0 && (!host || index != 0xc0000084)) return false
      if ((flags & MSRF_CANONICAL) != 0 && !canonicalRegister(s, value)) {
        // __kvm_set_msr: AMD takes any SYSENTER_ESP/EIP, KVM makes it canonical
        if (index != 0x175 && index != 0x176) return false
        const shift = 64 - registerBits(s)
        value = <u64>(((<i64>value) << shift) >> shift)
      }
      if (host && lowHalf(s, index)) value &= 0xffffffff
      store<u64>(s + msrOffset(n), value)
      return true
    }
    if (isPvMsr(index)) return pvMsrHas(s, index) ? pvMsrWrite(s, index, value, host) : host && value == 0
    return specialWrite(s, index, value, host)
  }
  if ((index & 0xffffff00) == 0x800) apicSync(s)
  if ((index & 0xffffff00) == 0x800) return x2apicWrite(s, index, value)
  const bank = bankAddress(s, index)
  if (bank) {
    // Bank controls take all ones or (nearly) zero; STATUS only zero from the guest unless HWCR.McStatusWrEn.
    const part = index & 3
    if (!host && part == 1 && value != 0 && (load<u64>(s, CPU_HWCR) & (1 << 18)) == 0) return false
    if (part == 0 && value != 0 && (value | (1 << 10) | 1) != ~(<u64>0)) return false
    store<u64>(bank, value)
    return true
  }
  return false
}

function memoryType(type: u32): bool {
  return type < 8 && ((0x73 >> type) & 1) != 0 // 0 1 4 5 6
}

function patValid(value: u64): bool {
  for (let i: u64 = 0; i < 64; i += 8) {
    const type = <u32>(value >> i) & 0xff
    if (type >= 8 || ((0xf3 >> type) & 1) == 0) return false // 0 1 4 5 6 7
  }
  return true
}

function mtrrWrite(s: usize, index: u32, value: u64): bool {
  const f = fixedMtrr(index)
  if (f >= 0) {
    for (let i: u64 = 0; i < 64; i += 8) if (!memoryType(<u32>(value >> i) & 0xff)) return false
    store<u64>(s + CPU_MTRR_FIXED + ((<usize>f) << 3), value)
    return true
  }
  const beyond = reservedGpaBits(s)
  if ((index & 1) == 0) {
    if (!memoryType(<u32>value & 0xff) || (value & (0xf00 | beyond)) != 0) return false
  } else if ((value & (0x7ff | beyond)) != 0) return false
  store<u64>(s + CPU_MTRR_VAR + ((<usize>(index - 0x200)) << 3), value)
  return true
}

/** IA32_MISC_ENABLE: BTS and PEBS are read-only, EMON keeps; MWAIT (bit 18) shows in CPUID unless a quirk hides it. */
function miscEnable(s: usize, value: u64, host: bool): bool {
  const old = load<u64>(s, CPU_MISC_ENABLE)
  if (!host) {
    if ((old ^ value) & 0x1800) return false
    value = (value & ~(<u64>0x80)) | (old & 0x80)
  }
  if (!quirk(s, QUIRK_MISC_ENABLE_NO_MWAIT) && ((old ^ value) & (1 << 18)) != 0 && !feature(s, F_1_ECX, 0)) return false
  store<u64>(s, value, CPU_MISC_ENABLE)
  return true
}

function specialWrite(s: usize, index: u32, value: u64, host: bool): bool {
  switch (index) {
    case 0x10: {
      const delta = value - tscNow(s)
      store<u64>(s, load<u64>(s, CPU_TSC_OFFSET) + delta, CPU_TSC_OFFSET)
      if (!host) store<u64>(s, load<u64>(s, CPU_TSC_ADJUST) + delta, CPU_TSC_ADJUST)
      clockStale(vmOf(s))
      return true
    }
    case 0x1b:
      return apicBaseWrite(s, value, host)
    case 0x3b: {
      const delta = value - load<u64>(s, CPU_TSC_ADJUST)
      if (!host) store<u64>(s, load<u64>(s, CPU_TSC_OFFSET) + delta, CPU_TSC_OFFSET)
      store<u64>(s, value, CPU_TSC_ADJUST)
      clockStale(vmOf(s))
      return true
    }
    case 0x49:
      return (value & ~(<u64>0x81)) == 0
    case 0x10b:
      return (value & ~(<u64>1)) == 0
    case 0x9e: {
      if (!host) return false
      store<u64>(s, value, CPU_SMBASE)
      return true
    }
    case 0x17b: {
      if ((load<u64>(s, CPU_MCG_CAP) & 0x100) == 0 && (value != 0 || !host)) return false
      if (value != 0 && value != ~(<u64>0)) return false
      store<u64>(s, value, CPU_MCG_CTL)
      return true
    }
    case 0x1a0:
      return miscEnable(s, value, host)
    case 0x277: {
      if (!patValid(value)) return false
      store<u64>(s, value, CPU_PAT)
      return true
    }
    case 0x2ff: {
      if ((value & ~(<u64>0xcff)) != 0 || !memoryType(<u32>value & 0xff)) return false
      store<u64>(s, value, CPU_MTRR_DEF)
      return true
    }
    case 0x6e0: {
      tscDeadlineWrite(s, value)
      return true
    }
    case 0x6e1: {
      if (value >> 32) return false
      store<u32>(s, <u32>value, CPU_PKRS)
      flushTlb(s)
      return true
    }
    case 0xda0: {
      // No supervisor state component is offered.
      if (!host && !feature(s, F_D1_EAX, 3)) return false
      if (value != 0) return false
      store<u64>(s, value, CPU_XSS)
      return true
    }
    case 0xc0000080: {
      if (sevEs(s)) value = (value & ~EFER_SVME) | (load<u64>(s, CPU_EFER) & EFER_SVME)
      return writeEfer(s, value)
    }
    case 0xc0000100:
    case 0xc0000101: {
      if (!canonicalRegister(s, value)) return false
      store<u64>(segment(s, index == 0xc0000100 ? SEG_FS : SEG_GS), value, SEG_BASE)
      return true
    }
    case 0xc0000103: {
      // bits 63:32 are dropped by AMD, reserved elsewhere; no table is no AMD
      if (value >> 32 && featureWord(s, F_VENDOR) != 1) return false
      store<u64>(s, value & 0xffffffff, CPU_TSC_AUX)
      return true
    }
    case 0xc0010015: {
      // Ignored: FFDIS, IGNNE, TLB cache disable. Kept: McStatusWrEn, TscFreqSel. Anything else is #GP.
      value &= ~(<u64>0x148)
      if ((value & ~(<u64>0x1040000)) != 0) return false
      store<u64>(s, value, CPU_HWCR)
      return true
    }
    case 0xc0010130: {
      if (!sevEs(s)) return false
      store<u64>(s, value, CPU_GHCB)
      return true
    }
    default:
      return index >= 0x200 && index <= 0x26f ? mtrrWrite(s, index, value) : false
  }
}
