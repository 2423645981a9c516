/** Prints the story of one sample guest: calls, exits (equal neighbours folded into one line), what the host reads. */
import { print } from '../output.ts'
import type { Exit } from './guest.ts'

const quote = (text: string): string => JSON.stringify(text)

export class Narrator {
  readonly #print: (text: string) => void
  private calls: string[] = []
  private folded: { exit: Exit; times: number; text: string } | null = null
  exits = 0

  constructor(silent = false) {
    this.#print = silent ? () => {} : print
  }

  title(text: string): void {
    this.#print(`\n== ${text}\n`)
  }

  ioctl(name: string, result: number): void {
    this.calls.push(result < 0 ? `${name} (${result})` : name)
  }

  flushCalls(): void {
    if (this.calls.length > 0) this.#print(`   ioctls   ${this.calls.join(', ')}\n`)
    this.calls = []
  }

  exit(exit: Exit): void {
    this.exits++
    const last = this.folded
    if (last !== null && last.exit.name === exit.name && last.exit.detail === exit.detail) {
      last.times++
      last.text += exit.text
      if (exit.text.endsWith('\n')) this.flushExits()
      return
    }
    this.flushExits()
    this.folded = { exit, times: 1, text: exit.text }
    if (exit.text.endsWith('\n')) this.flushExits()
  }

  flushExits(): void {
    const last = this.folded
    this.folded = null
    if (last === null) return
    const what = [last.exit.name, last.exit.detail ?? '', last.times > 1 ? `x ${last.times}` : '', last.text === '' ? '' : quote(last.text)]
    this.#print(`   exit     ${what.filter((w) => w !== '').join('  ')}\n`)
  }

  fact(name: string, text: string): void {
    this.flushCalls()
    this.flushExits()
    this.#print(`   ${name.padEnd(8)} ${text}\n`)
  }
}

/** Up to 24 bytes as text where they are text, else as hexadecimal. */
export function glimpse(bytes: Uint8Array): string {
  const part = bytes.subarray(0, 24)
  if (part.every((b) => b >= 32 && b < 127)) return quote(String.fromCharCode(...part))
  return Array.from(part, (b) => b.toString(16).padStart(2, '0')).join(' ')
}
