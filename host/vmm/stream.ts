/** Bytes on their way from a device to the host, handed over by lines or when asked. */
const SIZE = 1024
const NEWLINE = 10

export class Stream {
  readonly #sink: ((bytes: Uint8Array) => void) | undefined
  readonly #bytes = new Uint8Array(SIZE)
  #used = 0

  constructor(sink: ((bytes: Uint8Array) => void) | undefined) {
    this.#sink = sink
  }

  put(byte: number): void {
    if (!this.#sink) return
    this.#bytes[this.#used++] = byte
    if (byte === NEWLINE || this.#used === SIZE) this.flush()
  }

  flush(): void {
    if (this.#used === 0 || !this.#sink) return
    const bytes = this.#bytes.slice(0, this.#used)
    this.#used = 0
    this.#sink(bytes)
  }
}
