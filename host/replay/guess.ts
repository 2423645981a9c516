/**
 * What a log does not show: strace prints most structs of KVM as bare pointers. Commands of KVM_MEMORY_ENCRYPT_OP are guessed
 * from their place in the launch (the order that every VMM keeps), other structs are filled with something that Linux
 * accepts. Everything guessed is reported as assumed.
 */
import { SEV_COMMAND, TDX_COMMAND } from '../generated/kvm-abi.ts'
import type { PolicyType } from '../policy/index.ts'
import type { LoggedCall } from './log.ts'

export type Command = keyof typeof SEV_COMMAND | keyof typeof TDX_COMMAND

export const commandId = (name: Command): number => (({ ...SEV_COMMAND, ...TDX_COMMAND }) as Readonly<Record<string, number>>)[name] ?? 0

const INIT: Readonly<Partial<Record<PolicyType, Command>>> = {
  'sev-legacy': 'KVM_SEV_INIT',
  'sev-es-legacy': 'KVM_SEV_ES_INIT',
  sev: 'KVM_SEV_INIT2',
  'sev-es': 'KVM_SEV_INIT2',
  snp: 'KVM_SEV_INIT2',
}

export const initCommand = (type: PolicyType): Command | null => INIT[type] ?? null

/** Commands of the VM's launch in order, one for each logged call. `calls` are those whose contents are unknown. */
export function guessLaunch(type: PolicyType, calls: readonly LoggedCall[]): Command[] {
  const n = calls.length
  const out: Command[] = new Array<Command>(n)
  const failed = (i: number): boolean => (calls[i]?.errno ?? null) !== null
  if (type === 'tdx') {
    let i = 0
    // The table of capabilities is asked for until it fits.
    while (i < n && failed(i)) out[i++] = 'KVM_TDX_CAPABILITIES'
    if (i < n) out[i++] = 'KVM_TDX_CAPABILITIES'
    if (i < n) out[i++] = 'KVM_TDX_INIT_VM'
    for (; i < n; i++) out[i] = 'KVM_TDX_FINALIZE_VM'
    return out
  }
  if (type === 'snp') {
    for (let i = 0; i < n; i++) {
      out[i] =
        i === 0
          ? 'KVM_SEV_INIT2'
          : i === 1
            ? 'KVM_SEV_SNP_LAUNCH_START'
            : i === n - 1
              ? 'KVM_SEV_SNP_LAUNCH_FINISH'
              : 'KVM_SEV_SNP_LAUNCH_UPDATE'
    }
    return out
  }
  const es = type.startsWith('sev-es')
  out.fill('KVM_SEV_LAUNCH_UPDATE_DATA')
  let last = n - 1
  if (n > 4) {
    out[last--] = 'KVM_SEV_LAUNCH_FINISH'
    out[last--] = 'KVM_SEV_LAUNCH_MEASURE'
    // The length of the measurement is asked for first, which fails with it.
    if (failed(last)) out[last--] = 'KVM_SEV_LAUNCH_MEASURE'
    if (es && last > 2) out[last--] = 'KVM_SEV_LAUNCH_UPDATE_VMSA'
  }
  if (n > 1) out[1] = 'KVM_SEV_LAUNCH_START'
  if (n > 0) out[0] = initCommand(type) ?? 'KVM_SEV_INIT'
  return out
}

/** The struct behind a command's `data`, null if it has none. `memory` is a page of guest memory, `scratch` a free page. */
export function commandData(
  command: Command,
  context: { es: boolean; failed: boolean; memory: bigint; gpa: bigint; scratch: bigint },
): Uint8Array | null {
  const make = (size: number, fill: (view: DataView) => void = () => undefined): Uint8Array => {
    const bytes = new Uint8Array(size)
    fill(new DataView(bytes.buffer))
    return bytes
  }
  switch (command) {
    case 'KVM_SEV_INIT2':
      return make(48)
    case 'KVM_SEV_LAUNCH_START':
      return make(40, (v) => v.setUint32(4, context.es ? 5 : 1, true))
    case 'KVM_SEV_LAUNCH_UPDATE_DATA':
      return make(16, (v) => {
        v.setBigUint64(0, context.memory, true)
        v.setUint32(8, 4096, true)
      })
    case 'KVM_SEV_LAUNCH_MEASURE':
      return make(16, (v) => {
        if (context.failed) return
        v.setBigUint64(0, context.scratch, true)
        v.setUint32(8, 48, true)
      })
    case 'KVM_SEV_GUEST_STATUS':
      return make(12)
    case 'KVM_SEV_SNP_LAUNCH_START':
      return make(64, (v) => v.setBigUint64(0, 0x30000n, true))
    case 'KVM_SEV_SNP_LAUNCH_UPDATE':
      return make(64, (v) => {
        v.setBigUint64(0, context.gpa >> 12n, true)
        v.setBigUint64(8, context.memory, true)
        v.setBigUint64(16, 4096n, true)
        v.setUint8(24, 1)
      })
    case 'KVM_SEV_SNP_LAUNCH_FINISH':
      return make(88)
    case 'KVM_TDX_CAPABILITIES':
      return make(2056 + 256 * 40, (v) => v.setUint32(2048, context.failed ? 0 : 256, true))
    case 'KVM_TDX_INIT_VM':
      return make(264 + 40, (v) => {
        v.setBigUint64(0, 1n << 28n, true)
        v.setBigUint64(8, 7n, true)
        v.setUint32(256, 1, true)
        v.setUint32(264, 0x80000008, true)
        v.setUint32(276, 48 << 16, true)
      })
    case 'KVM_TDX_INIT_MEM_REGION':
      return make(24, (v) => {
        v.setBigUint64(0, context.memory, true)
        v.setBigUint64(8, context.gpa, true)
        v.setBigUint64(16, 1n, true)
      })
    case 'KVM_TDX_GET_CPUID':
      return make(8 + 256 * 40, (v) => v.setUint32(0, context.failed ? 0 : 256, true))
    default:
      return null
  }
}
