/** KVM_GET_SUPPORTED_CPUID of the modelled host, and CPU models by QEMU's names. */
import { CPUID_AMD, CPUID_INTEL, CPUID_SIGNATURE } from '../generated/cpuid.ts'
import { type CpuidEntry, SIGNIFICANT_INDEX } from './entries.ts'

export { CPUID_SIGNATURE } from '../generated/cpuid.ts'
export type CpuModel = keyof typeof CPUID_SIGNATURE

export function supportedCpuid(host: 'amd' | 'intel'): CpuidEntry[] {
  return (host === 'amd' ? CPUID_AMD : CPUID_INTEL).map(([leaf, subleaf, eax, ebx, ecx, edx]) => ({
    function: leaf,
    index: subleaf ?? 0,
    flags: subleaf === null ? 0 : SIGNIFICANT_INDEX,
    eax: eax >>> 0,
    ebx: ebx >>> 0,
    ecx: ecx >>> 0,
    edx: edx >>> 0,
  }))
}
