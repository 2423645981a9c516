/** The repository's own sources as the structure tests read them: files, imports, exported values. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../../../', import.meta.url))

/** Paths of the TypeScript files below these folders, generated ones included; `/` on every system. */
export function sources(...folders: string[]): string[] {
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((path) => path.endsWith('.ts'))
      .map((path) => `${folder}/${path.replaceAll('\\', '/')}`),
  )
}

export const textOf = (path: string): string => readFileSync(join(root, path), 'utf8')

export interface Import {
  /** Path of the imported file; package imports are left out. */
  readonly to: string
  /** Names taken from it; `*` = all of them. */
  readonly names: readonly string[]
}

const PACKAGE: Readonly<Record<string, string>> = {
  cloister: 'host/index.ts',
  'cloister/vmm': 'host/vmm/index.ts',
  'cloister/test': 'host/test/index.ts',
}

/** What a file imports or re-exports from others of the repository, also by `import()`. */
export function importsOf(path: string, text: string = textOf(path)): Import[] {
  const target = (name: string): string | undefined => {
    if (!name.startsWith('.')) return PACKAGE[name]
    const at = normalize(join(dirname(path), name)).replaceAll('\\', '/')
    return at.endsWith('.ts') ? at : `${at}.ts`
  }
  const found: Import[] = []
  const statement = /^(?:import|export)\s+(?:type\s+)?(?:\w+\s*,\s*)?(\*(?:\s+as\s+\w+)?|\{[^}]*\}|\w+)\s*from\s*'([^']+)'/gm
  for (const [, clause = '', name = ''] of text.matchAll(statement)) {
    const to = target(name)
    if (to === undefined) continue
    const names = clause.startsWith('{')
      ? clause
          .slice(1, -1)
          .split(',')
          .map(
            (n) =>
              n
                .replace(/^\s*type\s+/, '')
                .trim()
                .split(/\s+as\s+/)[0] ?? '',
          )
          .filter((n) => n !== '')
      : ['*']
    found.push({ to, names })
  }
  for (const [, name = ''] of text.matchAll(/^import '([^']+)'|import\('([^']+)'\)/gm)) {
    const to = target(name)
    if (to !== undefined) found.push({ to, names: ['*'] })
  }
  return found
}
