/** struct kvm_cpuid2 and kvm_cpuid_entry2 (uapi/asm/kvm.h). */

/** One leaf: struct kvm_cpuid_entry2, all fields u32. */
export interface CpuidEntry {
  /** CPUID leaf (EAX). */
  function: number
  /** Subleaf (ECX), where `flags` says that it counts. */
  index: number
  /** KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1. */
  flags: number
  /** What CPUID answers. */
  eax: number
  /** What CPUID answers. */
  ebx: number
  /** What CPUID answers. */
  ecx: number
  /** What CPUID answers. */
  edx: number
}

export const CPUID_ENTRY_SIZE = 40
export const SIGNIFICANT_INDEX = 1

export function encodeCpuid(entries: readonly CpuidEntry[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8 + entries.length * CPUID_ENTRY_SIZE)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, entries.length, true)
  entries.forEach((e, i) => {
    const at = 8 + i * CPUID_ENTRY_SIZE
    for (const [j, value] of [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx].entries())
      view.setUint32(at + j * 4, value >>> 0, true)
  })
  return bytes
}

export function decodeCpuid(bytes: Uint8Array): CpuidEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const n = Math.min(view.getUint32(0, true), Math.floor((bytes.length - 8) / CPUID_ENTRY_SIZE))
  return Array.from({ length: n }, (_, i) => {
    const u32 = (j: number): number => view.getUint32(8 + i * CPUID_ENTRY_SIZE + j * 4, true)
    return { function: u32(0), index: u32(1), flags: u32(2), eax: u32(3), ebx: u32(4), ecx: u32(5), edx: u32(6) }
  })
}
