/** Requests, capabilities and SEV commands by their kernel names; a name that does not exist is misuse of the library, not number 0. */
import { CloisterError } from '../errors.ts'
import { CAP, REQUEST, SEV_COMMAND } from '../generated/kvm-abi.ts'

export function requestCode(name: keyof typeof REQUEST): number {
  return byName('request', REQUEST, name)
}

export function capNumber(cap: number | keyof typeof CAP): number {
  return typeof cap === 'number' ? cap : byName('capability', CAP, cap)
}

export function sevCommandNumber(command: number | keyof typeof SEV_COMMAND): number {
  return typeof command === 'number' ? command : byName('SEV command', SEV_COMMAND, command)
}

function byName<T extends object>(what: string, table: T, name: keyof T): T[keyof T] {
  if (!Object.hasOwn(table, name)) throw new CloisterError('ERR_ARGUMENT', `no ${what} is called ${String(name)}`)
  return table[name]
}
