/** The real /dev/kvm: builds player.c with gcc and plays scripts on it. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Answer, type Command, line } from './script.ts'

export class RealPlayer {
  readonly #folder = mkdtempSync(join(tmpdir(), 'cloister-kvm-'))
  readonly #program = join(this.#folder, 'player')

  constructor() {
    const source = fileURLToPath(new URL('../../../../tests/kvm/oracle/player.c', import.meta.url))
    const build = spawnSync('gcc', ['-O1', '-o', this.#program, source], { encoding: 'utf8' })
    if (build.status !== 0) throw new Error(`player.c does not build: ${build.stderr}`)
  }

  play(commands: readonly Command[]): Answer[] {
    const input = `${commands.map(line).join('\n')}\n`
    const { status, signal, stdout } = spawnSync(this.#program, { input, encoding: 'utf8', maxBuffer: 1 << 30, timeout: 120_000 })
    const lines = stdout.split('\n').slice(0, -1)
    if (status !== 0 || lines.length !== commands.length)
      throw new Error(`player: status ${status ?? signal}, ${lines.length} answers to ${commands.length} commands`)
    return lines.map((text) => {
      const [result, bytes] = text.split(' ') as [string, string | undefined]
      return { result: Number(result), bytes: bytes === undefined ? null : new Uint8Array(Buffer.from(bytes, 'hex')) }
    })
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true, force: true })
  }
}
