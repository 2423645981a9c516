/** The /dev/sev file descriptor: platform commands (drivers/crypto/ccp/sev-dev.c sev_ioctl). */
import { SEV_ISSUE, SEV_ISSUE_CMD } from '../generated/kvm-abi.ts'
import { FIRMWARE_STATUS as FW, SEV_SIZE } from '../generated/psp.ts'
import { viewOf } from './dispatch.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'

const SEV_DEV = 'drivers/crypto/ccp/sev-dev.c'
/** struct sev_issue_cmd is packed: cmd u32, data u64, error u32. */
const ISSUE_SIZE = 16

export class SevFd implements FileDescriptor {
  readonly kind = 'sev'
  readonly kernel: Kernel

  constructor(kernel: Kernel) {
    this.kernel = kernel
  }

  ioctl(request: number, argument: IoctlArgument): number {
    const { kernel } = this
    if (request >>> 0 !== SEV_ISSUE_CMD)
      return kernel.refuse('EINVAL', `0x${request.toString(16)}`, 'only SEV_ISSUE_CMD is known', `${SEV_DEV} sev_ioctl`)
    const bytes =
      argument instanceof Uint8Array ? (argument.length >= ISSUE_SIZE ? argument : null) : kernel.memory.copyIn(argument ?? 0, ISSUE_SIZE)
    if (bytes === null) return kernel.badPointer('SEV_ISSUE_CMD')
    const view = viewOf(bytes)
    const command = view.getUint32(0, true)
    if (command > SEV_ISSUE.SNP_VLEK_LOAD) return kernel.refuse('EINVAL', 'SEV_ISSUE_CMD', `no command ${command}`, `${SEV_DEV} sev_ioctl`)
    const name = Object.entries(SEV_ISSUE).find(([, id]) => id === command)?.[0] ?? 'SEV_ISSUE_CMD'
    const answer = this.#issue(command, name, view.getBigUint64(4, true))
    view.setUint32(12, answer.status, true)
    if (!(argument instanceof Uint8Array) && !kernel.memory.copyOut(argument ?? 0, bytes)) return kernel.badPointer('SEV_ISSUE_CMD')
    if (answer.errno !== 0) return answer.errno
    return answer.status === FW.SUCCESS
      ? 0
      : kernel.refuse('EIO', name, `firmware status 0x${answer.status.toString(16)}`, `${SEV_DEV} __sev_do_cmd_locked`)
  }

  close(): void {
    // The platform outlives its file descriptors.
  }

  #issue(command: number, name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const { psp, memory } = kernel
    const copied = (ok: boolean): { errno: number; status: number } => ({ errno: ok ? 0 : kernel.badPointer(name), status: FW.SUCCESS })
    switch (command) {
      case SEV_ISSUE.SEV_FACTORY_RESET:
      case SEV_ISSUE.SEV_PEK_GEN:
        return { errno: 0, status: psp.generatePek() }
      case SEV_ISSUE.SEV_PDH_GEN:
        return { errno: 0, status: psp.generatePdh() }
      case SEV_ISSUE.SEV_PLATFORM_STATUS:
        return copied(memory.copyOut(data, psp.status()))
      case SEV_ISSUE.SEV_PDH_CERT_EXPORT:
        return this.#exportPdh(name, data)
      case SEV_ISSUE.SEV_GET_ID2:
        return this.#chipId(name, data)
      default:
        return { errno: kernel.unimplemented(name, name), status: FW.SUCCESS }
    }
  }

  /** pdh address u64, length u32, chain address u64, length u32 (packed). Zero lengths ask for the sizes. */
  #exportPdh(name: string, data: bigint): { errno: number; status: number } {
    const { memory, psp, refuse } = { memory: this.kernel.memory, psp: this.kernel.psp, refuse: this.kernel }
    const input = memory.copyIn(data, 24)
    if (input === null) return { errno: refuse.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    const [pdhAddress, pdhLength, chainAddress, chainLength] = [
      view.getBigUint64(0, true),
      view.getUint32(8, true),
      view.getBigUint64(12, true),
      view.getUint32(20, true),
    ]
    const query = pdhAddress === 0n || pdhLength === 0 || chainAddress === 0n || chainLength === 0
    const chainSize = 3 * SEV_SIZE.CERTIFICATE
    if (!query && (pdhLength > SEV_SIZE.BLOB_MAX || chainLength > SEV_SIZE.BLOB_MAX)) {
      return {
        errno: refuse.refuse('EFAULT', name, `a buffer above ${SEV_SIZE.BLOB_MAX} bytes`, `${SEV_DEV} sev_ioctl_do_pdh_export`),
        status: FW.SUCCESS,
      }
    }
    view.setUint32(8, SEV_SIZE.CERTIFICATE, true)
    view.setUint32(20, chainSize, true)
    if (!memory.copyOut(data, input)) return { errno: refuse.badPointer(name), status: FW.SUCCESS }
    if (query || pdhLength < SEV_SIZE.CERTIFICATE || chainLength < chainSize) return { errno: 0, status: FW.INVALID_LEN }
    const { pdh, chain } = psp.certificates()
    const ok = memory.copyOut(pdhAddress, pdh) && memory.copyOut(chainAddress, chain)
    return { errno: ok ? 0 : refuse.badPointer(name), status: FW.SUCCESS }
  }

  /** address u64, length u32 (packed). */
  #chipId(name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const input = kernel.memory.copyIn(data, 12)
    if (input === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    const id = kernel.psp.chipId()
    const [address, length] = [view.getBigUint64(0, true), view.getUint32(8, true)]
    view.setUint32(8, id.length, true)
    if (!kernel.memory.copyOut(data, input)) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    if (address === 0n || length < id.length) return { errno: 0, status: FW.INVALID_LEN }
    return { errno: kernel.memory.copyOut(address, id) ? 0 : kernel.badPointer(name), status: FW.SUCCESS }
  }
}
