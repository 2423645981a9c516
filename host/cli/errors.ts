/** Exit statuses of the command line (contract, "Command line") and the one kind of error that is the user's. */

export const STATUS = {
  ok: 0,
  no: 1,
  stopped: 120,
  usage: 122,
  budget: 124,
  guestFailed: 126,
  interrupted: 130,
} as const

/** Bad usage or bad input: one clear line, status 122, no stack trace. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'UsageError'
  }
}

export const usage = (message: string): never => {
  throw new UsageError(message)
}
