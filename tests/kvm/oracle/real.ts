/** The real /dev/kvm: builds player.c with gcc and plays scripts on it. */
import { spawnSync } from 'node:child_process'
import { NativeProgram } from '../../support/native-program.ts'
import { type Answer, type Command, line } from './script.ts'

export class RealPlayer {
  readonly #program = new NativeProgram('kvm/oracle/player.c')

  play(commands: readonly Command[]): Answer[] {
    const input = `${commands.map(line).join('\n')}\n`
    const { status, signal, stdout } = spawnSync(this.#program.path, { input, encoding: 'utf8', maxBuffer: 1 << 30, timeout: 120_000 })
    const lines = stdout.split('\n').slice(0, -1)
    if (status !== 0 || lines.length !== commands.length)
      throw new Error(`player: status ${status ?? signal}, ${lines.length} answers to ${commands.length} commands`)
    return lines.map((text) => {
      const [result, bytes] = text.split(' ') as [string, string | undefined]
      return { result: Number(result), bytes: bytes === undefined ? null : new Uint8Array(Buffer.from(bytes, 'hex')) }
    })
  }

  [Symbol.dispose](): void {
    this.#program[Symbol.dispose]()
  }
}
