/** What the documents name exists: links, paths, npm scripts, commands and their options. */
import { existsSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { root, textOf } from './sources.ts'

/** Written by hand; the other files of docs/ are generated. */
const documents = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'docs/how-it-works.md', 'docs/selftests.md']
const texts = documents.map((path) => ({ path, text: textOf(path) }))

test('links between files lead somewhere', () => {
  for (const { path, text } of texts)
    for (const [, to = ''] of text.matchAll(/\]\((?!\w+:)([^)#]+)/g))
      assert.ok(existsSync(join(root, dirname(path), to)), `${path} links to ${to}`)
})

test('paths in code quotes exist', () => {
  const top = ['assembly', 'host', 'spec', 'tools', 'tests', 'bench', 'examples', 'docs', '.ci']
  let seen = 0
  for (const { path, text } of texts) {
    for (const [, quoted = ''] of text.matchAll(/`([\w./-]+\/[\w./-]*)`/g)) {
      // build/ holds what is compiled from the rest.
      const source = quoted.startsWith('build/') ? quoted.slice(6).replace(/\.js$/, '.ts') : quoted
      // What is generated or written by a run is not in the repository, nor is Linux's source.
      if (!top.includes(source.split('/')[0] ?? '') || /\/(generated|results)\b|selftests\/kvm$/.test(source)) continue
      seen++
      assert.ok(existsSync(join(root, source)), `${path} names ${quoted}`)
    }
  }
  assert.ok(seen > 30, `${seen} paths`)
})

test('npm scripts that are named exist, and every script is named or part of another', () => {
  const { scripts } = JSON.parse(textOf('package.json')) as { scripts: Record<string, string> }
  const named = new Set(texts.flatMap(({ text }) => [...text.matchAll(/npm (?:run )?([a-z:-]+)/g)].map((m) => m[1] ?? '')))
  for (const name of named) assert.ok(['ci', 'test', 'run', 'install'].includes(name) || scripts[name] !== undefined, `npm run ${name}`)
  for (const name of Object.keys(scripts)) {
    const inner = Object.values(scripts).some((s) => new RegExp(`npm run (?:-s )?${name}\\b`).test(s))
    assert.ok(inner || named.has(name), `the script ${name} is named nowhere`)
  }
})

test('options that README names are in the help', () => {
  const help = readdirSync(join(root, 'host/cli'))
    .filter((name) => name.endsWith('.ts'))
    .map((name) => textOf(`host/cli/${name}`))
    .join('\n')
  for (const [, option = ''] of textOf('README.md').matchAll(/[ `]--([a-z][a-z-]*)/g)) {
    // Options of Deno and of V8.
    if (option === 'help' || option === 'allow-read' || option.startsWith('no-turbo')) continue
    assert.ok(help.includes(`name: '${option}'`), `--${option}`)
  }
})

test.run()
