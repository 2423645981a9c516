/** Misuse of the library: a stable `code` for programs and one clear line, naming the input and the rule, for people. */
export class CloisterError extends Error {
  readonly code: string

  constructor(code: string, message: string) {
    super(message)
    this.name = 'CloisterError'
    this.code = code
  }
}
