/** Errors of the library. Raw ioctls return negative errnos; only typed wrappers and misuse throw. */

/** Misuse of the library, or something that is not implemented; `code` is stable. */
export class CloisterError extends Error {
  /** `ERR_ARGUMENT`, `ERR_MEMORY`, …; of a machine's options the option's name; of a KvmError the errno's name. */
  readonly code: string
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'CloisterError'
    this.code = code
  }
}

/** Why a call was refused: kept by the kernel floor, read by `kvm.lastRefusal()`. */
export interface Refusal {
  /** Errno name, for example `EINVAL`. */
  readonly code: string
  /** Negative errno. */
  readonly errno: number
  /** Name of the ioctl or command. */
  readonly ioctl: string
  /** One sentence: what was asked and why it is refused. */
  readonly reason: string
  /** Where Linux decides this (file and function), or the name of the Cloister rule. */
  readonly source: string
  /** The protection switch that decided, if one did. */
  readonly switch?: string
  /** True if Linux would serve this call and Cloister does not yet. */
  readonly unimplemented?: boolean
}

/** A refused ioctl, from the typed wrappers. */
export class KvmError extends CloisterError {
  /** Negative errno. */
  readonly errno: number
  /** Name of the ioctl or command. */
  readonly ioctl: string
  /** One sentence: what was asked and why it is refused. */
  readonly reason: string
  /** Where Linux decides this (file and function), or `cloister`. */
  readonly source: string
  constructor(refusal: Refusal) {
    super(refusal.code, `${refusal.ioctl}: ${refusal.code}: ${refusal.reason} [${refusal.source}]`)
    this.name = 'KvmError'
    this.errno = refusal.errno
    this.ioctl = refusal.ioctl
    this.reason = refusal.reason
    this.source = refusal.source
  }
}
