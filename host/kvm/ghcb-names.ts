/** Names of GHCB events as the core counts them: SW_EXITCODE, or with bit 63 a code of the MSR protocol (spec/ghcb.ts). */
import { msrProtocolNames, naeNames } from '../generated/kvm.ts'

export function ghcbEventName(code: bigint): string {
  const number = Number(BigInt.asUintN(63, code))
  return (code >> 63n ? msrProtocolNames[number] : naeNames[number]) ?? `${code >> 63n ? 'MSR' : 'SVM_EXIT'}_0x${number.toString(16)}`
}
