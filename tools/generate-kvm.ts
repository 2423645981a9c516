/** Writes the constants of spec/exits.ts, spec/ghcb.ts and spec/vmsa.ts for assembly/ and host/. */
import { exitConstants, exitReasons, runOffsets } from '../spec/exits.ts'
import { ghcbErrors, ghcbOffsets, msrProtocol, naeEvents } from '../spec/ghcb.ts'
import { vmsaOffsets, vmsaSegments } from '../spec/vmsa.ts'

export function kvmSource(target: 'assembly' | 'host'): string {
  const lines = ['// Generated from spec/{exits,ghcb,vmsa}.ts by tools/generate.ts. Do not edit.', '']
  const put = (prefix: string, values: Readonly<Record<string, number>>, type: string): void => {
    const kind = target === 'assembly' ? `: ${type}` : ''
    for (const [name, value] of Object.entries(values)) lines.push(`export const ${prefix}${name}${kind} = 0x${value.toString(16)}`)
  }
  put('KVM_EXIT_', exitReasons, 'u32')
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
  if (target === 'host') {
    lines.push('', '/** Names of GHCB events: NAE codes, and MSR-protocol requests with bit 63 of the counter row set. */')
    lines.push(
      `export const naeNames: Readonly<Record<number, string>> = ${JSON.stringify(Object.fromEntries(naeEvents.map((e) => [e.code, e.name])))}`,
    )
    lines.push(
      `export const msrProtocolNames: Readonly<Record<number, string>> = ${JSON.stringify(Object.fromEntries(msrProtocol.map((m) => [m.request, `GHCB_MSR_${m.name}`])))}`,
    )
  }
  return `${lines.join('\n')}\n`
}
