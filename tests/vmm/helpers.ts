/** Input that tests of the machine share. */
import { readFileSync } from 'node:fs'
import { ovmfPath } from '../support/needs.ts'

/** Debian's 2 MiB OVMF image; call it only inside a test that needs it. */
export function ovmf(): Uint8Array {
  const path = ovmfPath()
  if (path === null) throw new Error('no OVMF image')
  return new Uint8Array(readFileSync(path))
}
