/** The launch commands of a replay: those of the log, whose structs it rarely shows, and with `launch` those that it lacks. */
import { REQUEST } from '../generated/kvm-abi.ts'
import type { Kvm } from '../kvm/kvm.ts'
import { type Command, commandData, commandId } from './guess.ts'
import { isStruct, type Value } from './log.ts'
import type { LoggedProcess, VmState } from './process.ts'
import type { Findings } from './report.ts'

export class Launches {
  readonly #kvm: Kvm
  readonly #process: LoggedProcess
  readonly #findings: Findings

  constructor(kvm: Kvm, process: LoggedProcess, findings: Findings) {
    this.#kvm = kvm
    this.#process = process
    this.#findings = findings
  }

  /** A launch command of the replay's own. */
  inject(vm: VmState, command: Command, fd = vm.fd): number {
    const result = this.command(vm, fd, command, false)
    this.#findings.push(
      null,
      fd === vm.fd ? 'vm' : 'vcpu',
      `KVM_MEMORY_ENCRYPT_OP ${command}`,
      '-',
      result,
      'injected',
      'not in the log: --launch',
    )
    return result
  }

  /** The commands between init and the first KVM_RUN, once. */
  launch(vm: VmState): void {
    if (vm.launched || vm.type === 'default') return
    vm.launched = true
    const es = vm.type.startsWith('sev-es')
    const sequence: Command[] =
      vm.type === 'tdx'
        ? ['KVM_TDX_FINALIZE_VM']
        : vm.type === 'snp'
          ? ['KVM_SEV_SNP_LAUNCH_START', 'KVM_SEV_SNP_LAUNCH_UPDATE', 'KVM_SEV_SNP_LAUNCH_FINISH']
          : [
              'KVM_SEV_LAUNCH_START',
              'KVM_SEV_LAUNCH_UPDATE_DATA',
              ...(es ? (['KVM_SEV_LAUNCH_UPDATE_VMSA'] as const) : []),
              'KVM_SEV_LAUNCH_MEASURE',
              'KVM_SEV_LAUNCH_FINISH',
            ]
    for (const command of sequence) if (this.inject(vm, command) < 0) break
  }

  /** One command with a struct of our own, for a page of the first slot; `failed`: the log's was refused. */
  command(vm: VmState, fd: number, command: Command, failed: boolean): number {
    const slot = vm.slots[0]
    const page = BigInt(vm.pages) * 4096n
    const memory = slot === undefined ? this.#process.scratch.address : slot.address + (page < slot.size ? page : 0n)
    if (command.includes('UPDATE_DATA') || command.includes('LAUNCH_UPDATE') || command.includes('MEM_REGION')) vm.pages++
    const data = commandData(command, {
      es: vm.type.startsWith('sev-es'),
      failed,
      memory,
      gpa: (slot?.gpa ?? 0n) + page,
      scratch: this.#process.scratch.address + 0x8000n,
    })
    const sev = this.#kvm.open('/dev/sev')
    const bytes = new Uint8Array(24)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, commandId(command), true)
    if (data !== null) {
      this.#process.scratch.write(0x1000, data)
      view.setBigUint64(8, this.#process.scratch.address + 0x1000n, true)
    }
    if (!command.startsWith('KVM_TDX')) view.setInt32(20, sev, true)
    return this.#kvm.ioctl(fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, bytes)
  }

  /** kvm_sev_cmd.data of a decoded command: its struct is not in the log. */
  commandData(argument: Value | undefined): bigint {
    const id = isStruct(argument) ? argument.fields.get('id') : undefined
    if (typeof id !== 'string') return 0n
    const vm = [...this.#process.files.values()].find((f) => f.kind === 'vm')?.vm
    const slot = vm?.slots[0]
    const data = commandData(id as Command, {
      es: (vm?.type ?? '').startsWith('sev-es'),
      failed: false,
      memory: slot?.address ?? this.#process.scratch.address,
      gpa: slot?.gpa ?? 0n,
      scratch: this.#process.scratch.address + 0x8000n,
    })
    if (data === null) return 0n
    this.#process.scratch.write(0x1000, data)
    return this.#process.scratch.address + 0x1000n
  }
}
