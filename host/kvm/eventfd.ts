/**
 * eventfd(2): a 64-bit counter that interrupt routing listens to (irqfd) and guest writes add to (ioeventfd). Counts of
 * ioeventfds wait in the core until somebody looks.
 */
import type { FileDescriptor, Kernel } from './kernel.ts'

const MAX = (1n << 64n) - 1n

/** An ioeventfd bound to this counter. */
export interface Counted {
  /** Takes what the guest has added. */
  take(): bigint
  /** Somebody listens: the core has to report each write at once. */
  notify(on: boolean): void
}

export class EventFd implements FileDescriptor {
  readonly kind = 'eventfd'
  readonly #kernel: Kernel
  #count = 0n
  #listener: (() => void) | null = null
  readonly #sources = new Set<Counted>()

  constructor(kernel: Kernel) {
    this.#kernel = kernel
  }

  /** Called when the counter becomes non-zero; consumes it (irqfd). */
  get listener(): (() => void) | null {
    return this.#listener
  }

  set listener(listener: (() => void) | null) {
    this.#listener = listener
    for (const source of this.#sources) source.notify(listener !== null)
  }

  /** A count that was there before the irqfd raises it too. */
  listen(listener: () => void): void {
    this.listener = listener
    this.collect()
    this.signal(0n)
  }

  attach(source: Counted): void {
    this.#sources.add(source)
    source.notify(this.#listener !== null)
  }

  detach(source: Counted): void {
    this.collect()
    this.#sources.delete(source)
  }

  /** Takes the counts of the ioeventfds. */
  collect(): void {
    for (const source of this.#sources) {
      const n = source.take()
      if (n !== 0n) this.signal(n)
    }
  }

  ioctl(): number {
    return this.#kernel.refuse('ENOTTY', 'ioctl', 'an eventfd has no ioctls', 'fs/eventfd.c')
  }

  read(bytes: Uint8Array): number {
    if (bytes.length < 8) return this.#kernel.refuse('EINVAL', 'read', 'an eventfd gives 8 bytes', 'fs/eventfd.c')
    this.collect()
    if (this.#count === 0n) return this.#kernel.refuse('EAGAIN', 'read', 'the counter is 0', 'fs/eventfd.c')
    new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(0, this.#count, true)
    this.#count = 0n
    return 8
  }

  write(bytes: Uint8Array): number {
    if (bytes.length < 8) return this.#kernel.refuse('EINVAL', 'write', 'an eventfd takes 8 bytes', 'fs/eventfd.c')
    const value = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)
    if (value === MAX) return this.#kernel.refuse('EINVAL', 'write', 'the counter cannot hold that', 'fs/eventfd.c')
    this.collect()
    if (this.#count + value >= MAX) return this.#kernel.refuse('EAGAIN', 'write', 'the counter would overflow', 'fs/eventfd.c')
    this.signal(value)
    return 8
  }

  /** eventfd_signal: saturates. */
  signal(n = 1n): void {
    const sum = this.#count + n
    this.#count = sum < MAX ? sum : MAX
    if (this.#listener !== null && this.#count !== 0n) {
      this.#count = 0n
      this.#listener()
    }
  }

  /** ioeventfds keep their eventfd; an irqfd ends with it (EPOLLHUP). */
  close(): void {
    this.listener = null
  }
}
