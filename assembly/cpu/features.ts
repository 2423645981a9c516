/**
 * CPUID as execution depends on it: feature words of the vCPU's KVM_SET_CPUID2 table, kept in
 * CPU_FEATURES by updateFeatures() (call it after the table changed). The table lies in VCPU_CPUID:
 * count u32 at +0, kvm_cpuid_entry2 (40 bytes) from +16.
 */
import { CPU_FEATURES, VCPU_CPUID } from '../generated/layout'

/** Indices of the words in CPU_FEATURES. */
export const F_1_ECX: u32 = 0
const F_1_EDX: u32 = 1
export const F_7_EBX: u32 = 2
export const F_7_ECX: u32 = 3
export const F_7_EDX: u32 = 4
export const F_80000001_ECX: u32 = 5
export const F_80000001_EDX: u32 = 6
export const F_80000008_EBX: u32 = 7
const F_80000008_EAX: u32 = 8
export const F_D1_EAX: u32 = 9
export const F_D0_EAX: u32 = 10
export const F_D0_EDX: u32 = 11
const F_8000001F_EAX: u32 = 12
export const F_80000021_EAX: u32 = 13
const F_1_EAX: u32 = 14
/** 0: no CPUID table yet, 1: AMD (or Hygon), 2: another vendor. */
export const F_VENDOR: u32 = 15

/** Address of the entry's EAX (EBX, ECX, EDX follow), 0 if there is none. */
function cpuidEntry(s: usize, leaf: u32, subleaf: u32): usize {
  let e: usize = s + VCPU_CPUID + 16
  for (let n = load<u32>(s, VCPU_CPUID); n > 0; n--, e += 40) {
    if (load<u32>(e) == leaf && ((load<u32>(e, 8) & 1) == 0 || load<u32>(e, 4) == subleaf)) return e + 12
  }
  return 0
}

function put(s: usize, word: u32, entry: usize, register: u32): void {
  store<u32>(s + CPU_FEATURES + ((<usize>word) << 2), entry ? load<u32>(entry + ((<usize>register) << 2)) : 0)
}

export function updateFeatures(s: usize): void {
  const one = cpuidEntry(s, 1, 0)
  put(s, F_1_EAX, one, 0)
  put(s, F_1_ECX, one, 2)
  put(s, F_1_EDX, one, 3)
  const seven = cpuidEntry(s, 7, 0)
  put(s, F_7_EBX, seven, 1)
  put(s, F_7_ECX, seven, 2)
  put(s, F_7_EDX, seven, 3)
  const extended = cpuidEntry(s, 0x80000001, 0)
  put(s, F_80000001_ECX, extended, 2)
  put(s, F_80000001_EDX, extended, 3)
  const sizes = cpuidEntry(s, 0x80000008, 0)
  put(s, F_80000008_EAX, sizes, 0)
  put(s, F_80000008_EBX, sizes, 1)
  put(s, F_D1_EAX, cpuidEntry(s, 0xd, 1), 0)
  const xcr0 = cpuidEntry(s, 0xd, 0)
  put(s, F_D0_EAX, xcr0, 0)
  put(s, F_D0_EDX, xcr0, 3)
  put(s, F_8000001F_EAX, cpuidEntry(s, 0x8000001f, 0), 0)
  put(s, F_80000021_EAX, cpuidEntry(s, 0x80000021, 0), 0)
  const basic = cpuidEntry(s, 0, 0)
  const ebx: u32 = basic ? load<u32>(basic, 4) : 0
  store<u32>(s + CPU_FEATURES + 60, basic == 0 ? 0 : ebx == 0x68747541 || ebx == 0x6f677948 ? 1 : 2)
}

export function feature(s: usize, word: u32, bit: u32): bool {
  return ((load<u32>(s + CPU_FEATURES + ((<usize>word) << 2)) >> bit) & 1) != 0
}

export function featureWord(s: usize, word: u32): u32 {
  return load<u32>(s + CPU_FEATURES + ((<usize>word) << 2))
}

/** KVM before KVM_SET_CPUID2 refuses nothing that depends on features of the guest: treat them as there. */
export function featureOrBare(s: usize, word: u32, bit: u32): bool {
  return featureWord(s, F_VENDOR) == 0 || feature(s, word, bit)
}

export function intelCompatible(s: usize): bool {
  return featureWord(s, F_VENDOR) == 2
}

/** CPUID(1).EAX; 0x600 without a table, as kvm_vcpu_reset has it. */
export function familyModelStepping(s: usize): u32 {
  const one = cpuidEntry(s, 1, 0)
  return one ? load<u32>(one) : 0x600
}

/** Width of guest-physical addresses (CPUID 0x80000008). */
export function physicalBits(s: usize): u32 {
  const bits = featureWord(s, F_80000008_EAX) & 0xff
  return bits ? bits : 48
}

/** kvm_vcpu_reserved_gpa_bits_raw: what KVM's own checks go by; without leaf 0x80000008 that are 36 bits (cpuid_query_maxphyaddr). */
export function reservedGpaBits(s: usize): u64 {
  const leaf = featureWord(s, F_80000008_EAX) & 0xff
  const bits = <u64>(leaf ? leaf : 36)
  return bits > 63 ? 0 : ~(((1 as u64) << bits) - 1)
}
