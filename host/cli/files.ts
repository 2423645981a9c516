/** Files the user names: every way of failing is one clear line. */
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { usage } from './errors.ts'

function why(error: unknown): string {
  const code = (error as NodeJS.ErrnoException).code
  const known: Record<string, string> = {
    ENOENT: 'no such file',
    EISDIR: 'is a directory',
    EACCES: 'permission denied',
    ENOTDIR: 'no such file',
    ENOSPC: 'no space left',
    EROFS: 'read-only file system',
    ERR_FS_FILE_TOO_LARGE: 'too large',
    ELOOP: 'too many links',
    ENAMETOOLONG: 'name too long',
  }
  return known[code ?? ''] ?? code ?? String(error)
}

/** The bytes of a file; `name` is what gave it, `--option` or a word of the usage line. */
export function readInput(name: string, path: string): Uint8Array<ArrayBuffer> {
  if (path === '') return usage(`${name}: no file is named`)
  try {
    const stat = statSync(path)
    if (stat.isDirectory()) return usage(`${name} ${path}: is a directory`)
    if (!stat.isFile() && !stat.isFIFO()) return usage(`${name} ${path}: is not a file`)
    if (stat.isFile() && stat.size === 0) return usage(`${name} ${path}: is empty`)
    if (stat.size > 1024 * 1024 * 1024) return usage(`${name} ${path}: too large`)
    return new Uint8Array(readFileSync(path))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
    return usage(`${name} ${path}: ${why(error)}`)
  }
}

export function writeOutput(name: string, path: string, text: string): void {
  if (path === '') usage(`${name}: no file is named`)
  writing(name, path, () => writeFileSync(path, text))
}

/** Writes by `action`; a failure is told as the option's. */
export function writing(name: string, path: string, action: () => void): void {
  try {
    action()
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    usage(`${name} ${path}: ${code === 'ENOENT' || code === 'ENOTDIR' ? 'no such directory' : why(error)}`)
  }
}
