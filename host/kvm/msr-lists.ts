/** Lists of MSRs from spec/msr: KVM_GET_MSR_INDEX_LIST, and those that an SEV-ES guest reaches without KVM. */
import { msrs } from '../generated/msr.ts'

const passThrough = new Set(msrs.filter((msr) => msr.pass).map((msr) => msr.index))

export function isPassThrough(index: number): boolean {
  return passThrough.has(index)
}

export const savedMsrs: readonly number[] = msrs.filter((msr) => msr.save).map((msr) => msr.index)

/** MSR-based features: microcode revision, and AMD64_DE_CFG with LFENCE_SERIALIZE. */
export const featureMsrValues: ReadonlyMap<number, bigint> = new Map([
  [0x8b, 0x1000065n],
  [0xc0011029, 2n],
])

/** KVM_GET_MSR_FEATURE_INDEX_LIST. */
export const featureMsrs: readonly number[] = [...featureMsrValues.keys()]
