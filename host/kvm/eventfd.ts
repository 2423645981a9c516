/** eventfd(2): a 64-bit counter that interrupt routing listens to. */
import type { FileDescriptor, Kernel } from './kernel.ts'

export class EventFd implements FileDescriptor {
  readonly kind = 'eventfd'
  readonly #kernel: Kernel
  #count = 0n
  /** Called when the counter becomes non-zero; consumes it (irqfd). */
  listener: (() => void) | null = null

  constructor(kernel: Kernel) {
    this.#kernel = kernel
  }

  ioctl(): number {
    return this.#kernel.refuse('ENOTTY', 'ioctl', 'an eventfd has no ioctls', 'fs/eventfd.c')
  }

  read(bytes: Uint8Array): number {
    if (bytes.length < 8) return this.#kernel.refuse('EINVAL', 'read', 'an eventfd gives 8 bytes', 'fs/eventfd.c')
    if (this.#count === 0n) return this.#kernel.refuse('EAGAIN', 'read', 'the counter is 0', 'fs/eventfd.c')
    new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(0, this.#count, true)
    this.#count = 0n
    return 8
  }

  write(bytes: Uint8Array): number {
    if (bytes.length < 8) return this.#kernel.refuse('EINVAL', 'write', 'an eventfd takes 8 bytes', 'fs/eventfd.c')
    this.signal(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
    return 8
  }

  signal(n = 1n): void {
    this.#count += n
    if (this.listener !== null && this.#count !== 0n) {
      this.#count = 0n
      this.listener()
    }
  }

  close(): void {
    this.listener = null
  }
}
