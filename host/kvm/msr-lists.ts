/** Lists of MSRs from spec/msr: KVM_GET_MSR_INDEX_LIST, and those that an SEV-ES guest reaches without KVM. */
import { msrs } from '../generated/msr.ts'

const passThrough = new Set(msrs.filter((msr) => msr.pass).map((msr) => msr.index))

export function isPassThrough(index: number): boolean {
  return passThrough.has(index)
}

export const savedMsrs: readonly number[] = msrs.filter((msr) => msr.save).map((msr) => msr.index)

/** MSR-based features (KVM_GET_MSR_FEATURE_INDEX_LIST): AMD64_DE_CFG and the microcode revision. */
export const featureMsrs: readonly number[] = [0x8b, 0xc0011029]
