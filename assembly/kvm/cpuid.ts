/**
 * CPUID answers: kvm_cpuid() of Linux 7.3 arch/x86/kvm/cpuid.c over the vCPU's KVM_SET_CPUID2 table
 * (count u32 at +0 of region VCPU_CPUID, entries of 40 bytes from +16).
 */
import { quirk, vkvm } from './state'
import {
  CPU_APIC_BASE,
  CPU_CR4,
  CPU_XCR0,
  CPU_XSS,
  VCPU_CPUID,
  VKVM_CPUID_EAX,
  VKVM_CPUID_EBX,
  VKVM_CPUID_ECX,
  VKVM_CPUID_EDX,
  CPU_MISC_ENABLE,
  QUIRK_MISC_ENABLE_NO_MWAIT,
} from '../generated/layout'

const ENTRY: u32 = 40
const SIGNIFICANT_INDEX: u32 = 1
/** kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx. */
const INDEX: usize = 4
const FLAGS: usize = 8
const EAX: usize = 12
const EBX: usize = 16
const ECX: usize = 20
const EDX: usize = 24

/** cpuid_entry2_find. */
function find(s: usize, leaf: u32, index: u32): usize {
  let e: usize = s + VCPU_CPUID + 16
  for (let n = load<u32>(s, VCPU_CPUID); n > 0; n--, e += ENTRY) {
    if (load<u32>(e) == leaf && ((load<u32>(e, FLAGS) & SIGNIFICANT_INDEX) == 0 || load<u32>(e, INDEX) == index)) return e
  }
  return 0
}

/** Vendor string of the guest's leaf 0 is AuthenticAMD or HygonGenuine. */
function amd(basic: usize): bool {
  const ebx = load<u32>(basic, EBX)
  return ebx == 0x68747541 || ebx == 0x6f677948
}

/** get_out_of_range_cpuid_entry: Intel answers with the highest basic leaf, AMD with zeros. */
function outOfRange(s: usize, leaf: u32, index: u32): usize {
  const basic = find(s, 0, 0)
  if (!basic || amd(basic)) return 0
  const range =
    leaf >= 0x40000000 && leaf <= 0x4fffffff
      ? find(s, leaf & 0xffffff00, 0)
      : leaf >= 0xc0000000
        ? find(s, 0xc0000000, 0)
        : find(s, leaf & 0x80000000, 0)
  if (range && leaf <= load<u32>(range, EAX)) return 0
  return find(s, load<u32>(basic, EAX), index)
}

/** xstate_required_size: bytes of the XSAVE area for these components. */
function xsaveSize(s: usize, features: u64, compacted: bool): u32 {
  let size: u32 = 576
  for (let i: u32 = 2; i < 63; i++) {
    if (((features >> <u64>i) & 1) == 0) continue
    const e = find(s, 0xd, i)
    if (!e) continue
    const offset: u32 = compacted ? ((load<u32>(e, ECX) & 2) != 0 ? (size + 63) & ~63 : size) : load<u32>(e, EBX)
    const end = offset + load<u32>(e, EAX)
    if (end > size) size = end
  }
  return size
}

/** Answers CPUID leaf/index into VKVM_CPUID_*; XCR0 as given (SEV-ES: KVM's copy). */
export function cpuidWith(s: usize, leaf: u32, index: u32, xcr0: u64): void {
  const k = vkvm(s)
  let e = find(s, leaf, index)
  let at = leaf
  if (!e) {
    e = outOfRange(s, leaf, index)
    if (e) at = load<u32>(e)
  }
  let eax: u32 = 0
  let ebx: u32 = 0
  let ecx: u32 = 0
  let edx: u32 = 0
  if (e) {
    eax = load<u32>(e, EAX)
    ebx = load<u32>(e, EBX)
    ecx = load<u32>(e, ECX)
    edx = load<u32>(e, EDX)
    // kvm_update_cpuid_runtime
    if (at == 1) {
      ecx = (ecx & ~(1 << 27)) | ((<u32>(load<u64>(s, CPU_CR4) >> 18) & 1) << 27)
      if (!quirk(s, QUIRK_MISC_ENABLE_NO_MWAIT)) ecx = (ecx & ~8) | ((<u32>(load<u64>(s, CPU_MISC_ENABLE) >> 18) & 1) << 3)
      edx = (edx & ~(1 << 9)) | ((<u32>(load<u64>(s, CPU_APIC_BASE) >> 11) & 1) << 9)
    } else if (at == 7 && index == 0) {
      ecx = (ecx & ~(1 << 4)) | ((<u32>(load<u64>(s, CPU_CR4) >> 22) & 1) << 4)
    } else if (at == 0xd && index == 0) {
      ebx = xsaveSize(s, xcr0, false)
    } else if (at == 0xd && index == 1 && (eax & 0xa) != 0) {
      ebx = xsaveSize(s, xcr0 | load<u64>(s, CPU_XSS), true)
    }
  } else if (leaf == 0xb || leaf == 0x1f) {
    // undefined sub-leaves still pass CL and the x2APIC id
    const level = find(s, leaf, 1)
    if (level) {
      ecx = index & 0xff
      edx = load<u32>(level, EDX)
    }
  }
  store<u32>(k, eax, VKVM_CPUID_EAX)
  store<u32>(k, ebx, VKVM_CPUID_EBX)
  store<u32>(k, ecx, VKVM_CPUID_ECX)
  store<u32>(k, edx, VKVM_CPUID_EDX)
}

/** The CPUID instruction of an ordinary guest; results in VKVM_CPUID_EAX..EDX (see cpuidEax()..). */
export function cpuidAnswer(s: usize, leaf: u32, index: u32): void {
  cpuidWith(s, leaf, index, load<u64>(s, CPU_XCR0))
}
export function cpuidEax(s: usize): u32 {
  return load<u32>(vkvm(s), VKVM_CPUID_EAX)
}
export function cpuidEbx(s: usize): u32 {
  return load<u32>(vkvm(s), VKVM_CPUID_EBX)
}
export function cpuidEcx(s: usize): u32 {
  return load<u32>(vkvm(s), VKVM_CPUID_ECX)
}
export function cpuidEdx(s: usize): u32 {
  return load<u32>(vkvm(s), VKVM_CPUID_EDX)
}
