/** CPU models. No behaviour here. */
export const CPUID_SIGNATURE = { 'EPYC-Milan': 0xa00f11, 'EPYC-v4': 0x800f12 } as const
