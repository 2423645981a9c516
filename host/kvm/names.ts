/** Requests and capabilities by their kernel names; a name that does not exist is misuse of the library, not request 0. */
import { CloisterError } from '../errors.ts'
import { CAP, REQUEST } from '../generated/kvm-abi.ts'

export function requestCode(name: keyof typeof REQUEST): number {
  return REQUEST[name] ?? misnamed('request', name)
}

export function capNumber(cap: number | keyof typeof CAP): number {
  return typeof cap === 'number' ? cap : (CAP[cap] ?? misnamed('capability', cap))
}

function misnamed(what: string, name: unknown): never {
  throw new CloisterError('ERR_ARGUMENT', `no ${what} is called ${String(name)}`)
}
