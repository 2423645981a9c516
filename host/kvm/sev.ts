/** The /dev/sev file descriptor (drivers/crypto/ccp/sev-dev.c sev_ioctl). */
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.js'

export class SevFd implements FileDescriptor {
  readonly kind = 'sev'
  readonly kernel: Kernel

  constructor(kernel: Kernel) {
    this.kernel = kernel
  }

  ioctl(request: number, _argument: IoctlArgument): number {
    return this.kernel.unimplemented('SEV_ISSUE_CMD', `request 0x${request.toString(16)}`)
  }

  close(): void {
    // The platform outlives its file descriptors.
  }
}
