/** The /dev/sev file descriptor: platform commands (drivers/crypto/ccp/sev-dev.c sev_ioctl). */
import { SEV_ISSUE, SEV_ISSUE_CMD } from '../generated/kvm-abi.ts'
import { viewOf } from './dispatch.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import { ISSUE_COMMANDS, type Issue, SEV_DEV } from './sev-issue.ts'

/** struct sev_issue_cmd is packed: cmd u32, data u64, error u32. */
const ISSUE_SIZE = 16

export class SevFd implements FileDescriptor {
  readonly kind = 'sev'
  readonly kernel: Kernel
  /** Opened for writing (FMODE_WRITE): what changes keys or configuration needs it. */
  readonly writable: boolean

  constructor(kernel: Kernel, writable = true) {
    this.kernel = kernel
    this.writable = writable
  }

  ioctl(request: number, argument: IoctlArgument): number {
    const { kernel } = this
    const source = `${SEV_DEV} sev_ioctl`
    if (request >>> 0 !== SEV_ISSUE_CMD) return kernel.refuse('EINVAL', `0x${request.toString(16)}`, 'only SEV_ISSUE_CMD is known', source)
    const bytes =
      argument instanceof Uint8Array ? (argument.length >= ISSUE_SIZE ? argument : null) : kernel.memory.copyIn(argument ?? 0, ISSUE_SIZE)
    if (bytes === null) return kernel.badPointer('SEV_ISSUE_CMD')
    const view = viewOf(bytes)
    const id = view.getUint32(0, true)
    const command = ISSUE_COMMANDS.get(id)
    if (command === undefined) return kernel.refuse('EINVAL', 'SEV_ISSUE_CMD', `no command ${id}`, source)
    const name = Object.entries(SEV_ISSUE).find(([, number]) => number === id)?.[0] ?? 'SEV_ISSUE_CMD'
    const issue: Issue = { kernel, name, data: view.getBigUint64(4, true), writable: this.writable, error: view.getUint32(12, true) }
    const result = command(issue)
    view.setUint32(12, issue.error, true)
    if (!(argument instanceof Uint8Array) && !kernel.memory.copyOut(argument ?? 0, bytes)) return kernel.badPointer('SEV_ISSUE_CMD')
    return result
  }

  close(): void {
    // The platform outlives its file descriptors.
  }
}
