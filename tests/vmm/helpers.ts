/** Input that tests of the machine share. */
import { existsSync, readFileSync } from 'node:fs'

const path = '/usr/share/ovmf/OVMF.fd'

/** Debian's 2 MiB OVMF image, null where the package is not installed. */
export const ovmf = (): Uint8Array | null => (existsSync(path) ? new Uint8Array(readFileSync(path)) : null)
