/** Programs in C that tests build with gcc when they run: the physical CPU and the real /dev/kvm as oracles. */
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** A built program in a folder of its own, which goes with it. */
export class NativeProgram {
  readonly path: string
  readonly #folder = mkdtempSync(join(tmpdir(), 'cloister-native-'))

  /** `source` is a path below tests/. Throws what gcc says. */
  constructor(source: string, flags: readonly string[] = []) {
    this.path = join(this.#folder, basename(source, '.c'))
    const from = fileURLToPath(new URL(`../../../tests/${source}`, import.meta.url))
    const { status, stderr } = spawnSync('gcc', ['-O1', ...flags, '-o', this.path, from], { encoding: 'utf8' })
    if (status !== 0) throw new Error(`${source} does not build: ${stderr}`)
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

/** Flags of programs that jump into generated code and take its signals: nothing of theirs may be on its stack. */
export const SIGNAL_FLAGS = ['-fno-stack-protector', '-mno-red-zone', '-fcf-protection=none']

/** A running program that answers requests on its standard input with bytes on its standard output. */
export class NativeServer {
  readonly #program: NativeProgram
  readonly #child: ChildProcessWithoutNullStreams
  #chunks: Buffer[] = []
  #have = 0
  #wake: (() => void) | undefined
  #ended: string | undefined

  constructor(source: string, flags: readonly string[]) {
    this.#program = new NativeProgram(source, flags)
    this.#child = spawn(this.#program.path, [], { stdio: 'pipe' })
    this.#child.stdout.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#have += chunk.length
      this.#wake?.()
    })
    this.#child.on('exit', (code, signal) => {
      this.#ended = `${source} ended: ${code ?? signal}`
      this.#wake?.()
    })
    // A program that has ended is reported by take().
    this.#child.stdin.on('error', () => {})
  }

  send(request: Buffer): void {
    this.#child.stdin.write(request)
  }

  /** The next `n` bytes of the answer; throws when the program ends before. */
  async take(n: number): Promise<Buffer> {
    while (this.#have < n) {
      if (this.#ended !== undefined) throw new Error(this.#ended)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    const all = this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks)
    const rest = all.subarray(n)
    this.#chunks = rest.length > 0 ? [rest] : []
    this.#have = rest.length
    return all.subarray(0, n)
  }

  close(): void {
    this.#child.stdin.end()
    this.#program[Symbol.dispose]()
  }
}
