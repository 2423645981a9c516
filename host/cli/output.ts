/** Standard output and error, and JSON in which 64-bit values are "0x…" strings. */

import { STATUS } from './errors.ts'

/** A closed pipe (`cloister … | head`) ends the command silently; a run that wants to write its report registers here. */
let closed = (): void => process.exit(0)

export function onClosedPipe(handler: () => void): void {
  closed = handler
}

export function guardPipes(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') return closed()
      if (stream === process.stdout) complain(`standard output: ${error.code ?? error.message}`)
      process.exit(STATUS.usage)
    })
  }
}

export const print = (text: string): void => void process.stdout.write(text)
export const complain = (line: string): void => void process.stderr.write(`cloister: ${line}\n`)

export function json(value: unknown): string {
  const plain = (_key: string, v: unknown) => (typeof v === 'bigint' ? `0x${v.toString(16)}` : v)
  return `${JSON.stringify(value, plain, 2)}\n`
}

export const toHex = (bytes: Uint8Array): string => Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('')

/** Waits until everything written has reached the pipe: process.exit would cut it off. */
export async function drain(): Promise<void> {
  for (const stream of [process.stdout, process.stderr]) {
    if (stream.writableLength > 0) await new Promise<void>((resolve) => stream.write('', () => resolve()))
  }
}
