/** Writes what spec/exits.ts, spec/ghcb.ts, spec/vmsa.ts and the exit numbers of spec/kvm-abi.ts say, for assembly/ and host/. */
import { exitConstants, runOffsets } from '../spec/exits.ts'
import { ghcbErrors, ghcbOffsets, msrProtocol, naeEvents } from '../spec/ghcb.ts'
import { EXIT } from '../spec/kvm-abi.ts'
import { vmsaOffsets, vmsaSegments } from '../spec/vmsa.ts'

const HEAD = '// Generated from spec/{exits,ghcb,vmsa,kvm-abi}.ts by tools/generate.ts. Do not edit.'

/** Typed constants. */
export function kvmAssembly(): string {
  const lines = [HEAD, '']
  const put = (prefix: string, values: Readonly<Record<string, number>>, type: string): void => {
    for (const [name, value] of Object.entries(values)) lines.push(`export const ${prefix}${name}: ${type} = 0x${value.toString(16)}`)
  }
  put('', EXIT, 'u32')
  put('RUN_', runOffsets, 'usize')
  put('KVM_', exitConstants, 'u32')
  put('GHCB_', ghcbOffsets, 'usize')
  put('GHCB_ERR_', ghcbErrors, 'u32')
  put('', Object.fromEntries(naeEvents.map((e) => [e.name, e.code])), 'u32')
  put(
    'GHCB_MSR_',
    Object.fromEntries(msrProtocol.flatMap((m) => [[`${m.name}_REQ`, m.request], ...(m.response ? [[`${m.name}_RESP`, m.response]] : [])])),
    'u32',
  )
  put('VMSA_SEG_', vmsaSegments, 'usize')
  put('VMSA_', vmsaOffsets, 'usize')
  return `${lines.join('\n')}\n`
}

/** What the host half reads: struct kvm_run, and the names of GHCB events. */
export function kvmHost(): string {
  const record = (values: Readonly<Record<number, string>>): string => `: Readonly<Record<number, string>> = ${JSON.stringify(values)}`
  return [
    HEAD,
    '',
    '/** Offsets in struct kvm_run. */',
    '/** Byte offsets in struct kvm_run, flat: a union member by its exit (uapi/linux/kvm.h); for `vcpu.runView`. */',
    `export const RUN = ${JSON.stringify(runOffsets)} as const`,
    '/** Names of NAE events by SW_EXITCODE. */',
    `export const naeNames${record(Object.fromEntries(naeEvents.map((e) => [e.code, e.name])))}`,
    '/** Names of requests of the GHCB MSR protocol. */',
    `export const msrProtocolNames${record(Object.fromEntries(msrProtocol.map((m) => [m.request, `MSR_${m.name}`])))}`,
    '',
  ].join('\n')
}
