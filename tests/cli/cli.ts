/** Runs the built command as a user would, in a process of its own. */
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const command = join(root, 'dist/cli.js')

export interface Outcome {
  status: number | null
  stdout: string
  stderr: string
}

export function cloister(args: readonly string[], options: { input?: string; timeout?: number } = {}): Outcome {
  const { status, stdout, stderr } = spawnSync(process.execPath, [command, ...args], {
    encoding: 'utf8',
    input: options.input ?? '',
    timeout: options.timeout ?? 120_000,
    maxBuffer: 64 * 1024 * 1024,
  })
  return { status, stdout, stderr }
}

/** The same without waiting; its input is empty. */
export function cloisterAsync(args: readonly string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [command, ...args], { stdio: ['ignore', 'pipe', 'pipe'], timeout: 120_000 })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString()
    })
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString()
    })
    child.on('close', (status) => resolve({ status, stdout, stderr }))
  })
}

export const guest = (name: string): string => join(root, 'tests/guests', name)
export { command, root }

/** A folder for files of one test file, removed at the end of the process. */
export function workFolder(): { path(name: string): string; put(name: string, bytes: Uint8Array | string): string } {
  const folder = mkdtempSync(join(tmpdir(), 'cloister-test-'))
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  const path = (name: string) => join(folder, name)
  return {
    path,
    put: (name, bytes) => {
      writeFileSync(path(name), bytes)
      return path(name)
    },
  }
}
