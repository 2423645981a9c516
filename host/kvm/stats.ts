/**
 * Binary statistics (KVM_GET_STATS_FD; Documentation/virt/kvm/api.rst 4.131): header, id string,
 * descriptors, data. The file descriptor reads like a file, with a position.
 */
import type { FileDescriptor, Kernel } from './kernel.ts'

/** One statistic: name and its present value. All are cumulative counts (flags 0). */
export type Statistic = readonly [name: string, value: () => bigint]

const HEADER = 24
const NAME = 48
/** struct kvm_stats_desc: flags u32, exponent i16, size u16, offset u32, bucket_size u32, name. */
const DESCRIPTOR = 16 + NAME

export class StatsFd implements FileDescriptor {
  readonly kind = 'stats'
  readonly #kernel: Kernel
  readonly #id: string
  readonly #statistics: readonly Statistic[]
  #position = 0

  constructor(kernel: Kernel, id: string, statistics: readonly Statistic[]) {
    this.#kernel = kernel
    this.#id = id
    this.#statistics = statistics
  }

  ioctl(): number {
    return this.#kernel.refuse('ENOTTY', 'ioctl', 'a statistics file has no ioctls', 'virt/kvm/binary_stats.c')
  }

  read(bytes: Uint8Array): number {
    const image = this.#image()
    const part = image.subarray(this.#position, this.#position + bytes.length)
    bytes.set(part)
    this.#position += part.length
    return part.length
  }

  close(): void {
    // Nothing is held.
  }

  #image(): Uint8Array {
    const count = this.#statistics.length
    const descriptors = HEADER + NAME
    const data = descriptors + count * DESCRIPTOR
    const bytes = new Uint8Array(data + count * 8)
    const view = new DataView(bytes.buffer)
    const text = new TextEncoder()
    for (const [i, value] of [0, NAME, count, HEADER, descriptors, data].entries()) view.setUint32(i * 4, value, true)
    bytes.set(text.encode(this.#id).subarray(0, NAME - 1), HEADER)
    this.#statistics.forEach(([name, value], i) => {
      const at = descriptors + i * DESCRIPTOR
      view.setUint16(at + 6, 1, true)
      view.setUint32(at + 8, i * 8, true)
      bytes.set(text.encode(name).subarray(0, NAME - 1), at + 16)
      view.setBigUint64(data + i * 8, value(), true)
    })
    return bytes
  }
}
