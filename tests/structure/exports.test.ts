/** Nothing is exported for nobody: every exported function, class and constant of what is built is used by another file. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { importsOf, sources, textOf } from './sources.ts'

const FOLDERS = ['assembly', 'host', 'spec', 'tools', 'tests', 'bench', 'examples']
const BUILT = /^(assembly|host|bench)\//
/** Entry points: what they export is for the package's users, WebAssembly, or a command line. */
const ENTRIES = new Set(['assembly/index.ts', 'host/index.ts', 'host/vmm/index.ts', 'host/test/index.ts'])
/** Kept although nothing uses it today. */
const KEPT: Readonly<Record<string, string>> = {
  'assembly/execute/operands.ts unimplemented': 'the handler that a row of spec/opcodes names while its instruction is missing',
}
/** Data files of spec/ are copied to host/generated (tools/generate.ts), which others import; they are judged there. */
const isCopied = (path: string): boolean => path.startsWith('spec/')

const paths = sources(...FOLDERS)
const used = new Map<string, Set<string>>()
for (const path of paths) {
  for (const { to, names } of importsOf(path)) {
    const set = used.get(to) ?? new Set()
    for (const name of names) set.add(name)
    used.set(to, set)
  }
}

test('every exported value is imported somewhere', () => {
  const idle: string[] = []
  for (const path of paths) {
    const names = used.get(path)
    if (!BUILT.test(path) || ENTRIES.has(path) || path.includes('/generated/') || names?.has('*')) continue
    const text = textOf(path)
    for (const [, name = ''] of text.matchAll(/^export (?:async )?(?:abstract )?(?:function\*?|const|let|class) (\w+)/gm))
      if (!names?.has(name) && KEPT[`${path} ${name}`] === undefined) idle.push(`${path} ${name}`)
  }
  assert.equal(idle, [])
})

/** Where a name that an entry point exports is declared: path and the text before the declaration. */
function declaration(path: string, name: string): { path: string; before: string } | null {
  const text = textOf(path)
  const own = new RegExp(`^export (?:abstract )?(?:class|function|async function|const|let|interface|type) ${name}\\b`, 'm').exec(text)
  if (own) return { path, before: text.slice(0, own.index).trimEnd() }
  for (const { to, names } of importsOf(path)) {
    const found = names.includes(name) || names.includes('*') ? declaration(to, name) : null
    if (found) return found
  }
  return null
}

function publicNames(path: string): string[] {
  const text = textOf(path)
  const own = [...text.matchAll(/^export (?:async )?(?:class|function|const|let|interface|type) (\w+)/gm)].map((m) => m[1] ?? '')
  const listed = [...text.matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap((m) => (m[1] ?? '').split(','))
  const stars = [...text.matchAll(/^export (?:type )?\* from '([^']+)'/gm)].flatMap(([, from = '']) =>
    importsOf(path, `export * from '${from}'`).flatMap(({ to }) => publicNames(to)),
  )
  return [...own, ...listed.map((n) => n.trim().replace(/^type /, '')), ...stars].filter((n) => n !== '')
}

test('every name that the package exports is declared with a doc comment of its own', () => {
  const bare: string[] = []
  let seen = 0
  for (const entry of ['host/index.ts', 'host/vmm/index.ts', 'host/test/index.ts']) {
    for (const name of publicNames(entry)) {
      const found = declaration(entry, name)
      assert.ok(found, `${entry} exports ${name}: no declaration found`)
      seen++
      // The comment at the head of a file is not the declaration's.
      if (!found.before.replace(/^(?:\/\/[^\n]*\n)*\/\*\*.*?\*\//s, '').endsWith('*/')) bare.push(`${found.path} ${name}`)
    }
  }
  assert.equal(bare, [])
  assert.ok(seen > 90, `${seen} names`)
})

test('every file that is no program, test or example is imported somewhere', () => {
  const programs = /\.test\.ts$|^examples\/|^tests\/run\.ts$|^tools\/(generate|optimize)\.ts$|^host\/cli\.ts$|^bench\/\w*(run|peers)\.ts$/
  const idle = paths.filter(
    (path) => !used.has(path) && !programs.test(path) && !isCopied(path) && !ENTRIES.has(path) && !textOf(path).includes('process.argv'),
  )
  assert.equal(idle, [])
})

test.run()
