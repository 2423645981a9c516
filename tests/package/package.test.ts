/**
 * The package as its users get it: the tarball of `npm pack` in a folder of its own, where README's example and the programs of
 * examples/ compile under the strictest options (skipLibCheck off, no DOM types) and run.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'cloister-package-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
const modules = join(folder, 'node_modules')
const installed = join(modules, 'cloister')

interface Packed {
  readonly filename: string
  readonly files: readonly { readonly path: string }[]
}

mkdirSync(join(modules, '@assemblyscript'), { recursive: true })
const [packed] = JSON.parse(
  execFileSync('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', folder], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  }),
) as [Packed]
execFileSync('tar', ['xzf', join(folder, packed.filename), '-C', modules])
cpSync(join(modules, 'package'), installed, { recursive: true })
// What `npm install` would add: the one dependency, and for the compiler Node's types.
symlinkSync(join(root, 'node_modules/@assemblyscript/loader'), join(modules, '@assemblyscript/loader'))
symlinkSync(join(root, 'node_modules/@types'), join(modules, '@types'))

const examples = ['01-hello', '02-refused', '03-hostile-host']
const readme = [...readFileSync(join(root, 'README.md'), 'utf8').matchAll(/^```ts\n(.*?)^```/gms)].map((m) => m[1] ?? '')
writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
mkdirSync(join(folder, 'src/examples'), { recursive: true })
for (const name of examples) cpSync(join(root, `examples/${name}.ts`), join(folder, `src/examples/${name}.ts`))
readme.forEach((text, i) => {
  writeFileSync(join(folder, `src/examples/readme-${i}.ts`), text)
})
// The third example reads a sample guest of the repository.
cpSync(join(root, 'tests/guests/sev-es.bin'), join(folder, 'tests/guests/sev-es.bin'))

const options = {
  target: 'es2022',
  module: 'nodenext',
  types: ['node'],
  strict: true,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  skipLibCheck: false,
  rootDir: 'src',
  outDir: 'build',
}

function compile(lib: readonly string[]): string {
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions: { ...options, lib }, include: ['src'] }))
  return spawnSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', folder], { encoding: 'utf8' }).stdout
}

test('the types hold under strict options, with and without those of the DOM', () => {
  assert.ok(readme.length > 0)
  assert.is(compile(['es2023', 'esnext.disposable', 'dom']), '')
  assert.is(compile(['es2023', 'esnext.disposable']), '')
})

test('the examples run on the installed package', () => {
  const expected: Readonly<Record<string, RegExp>> = {
    '01-hello': /^A\n(.|\n)*instructions/,
    '02-refused': /sev-es {3}after .*EINVAL.*guest_state_protected/,
    '03-hostile-host': /one bit of its code flipped/,
    'readme-0': /Uint8Array(.|\n)*EINVAL.*arch\/x86\/kvm/,
  }
  for (const [name, pattern] of Object.entries(expected)) {
    const run = spawnSync(process.execPath, [join(folder, `build/examples/${name}.js`)], { encoding: 'utf8', timeout: 120_000 })
    assert.is(run.stderr, '', name)
    assert.is(run.status, 0, name)
    assert.match(run.stdout, pattern, name)
  }
})

test('the command runs from the installed package', () => {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
  const run = spawnSync(process.execPath, [join(installed, 'dist/cli.js'), '--version'], { encoding: 'utf8' })
  assert.equal([run.status, run.stdout], [0, `${version}\n`])
})

test('the types show no internals', () => {
  const sources = join(folder, 'src/inside.ts')
  writeFileSync(
    sources,
    `import { type Kvm, type Mapping, type Vcpu, type Vm } from 'cloister'
import type { Machine } from 'cloister/vmm'
type Bare<T, K extends string> = K extends keyof T ? never : true
export const bare: [
  Bare<Kvm, 'kernel'>, Bare<Kvm, 'scratch'>, Bare<Vm, 'file'>, Bare<Vcpu, 'file'>,
  Bare<Mapping, 'backing'>, Bare<Machine, 'space'>, Bare<Machine, 'board'>,
] = [true, true, true, true, true, true, true]
// @ts-expect-error: only openKvm makes a device
new (await import('cloister')).Kvm({})
`,
  )
  assert.is(compile(['es2023', 'esnext.disposable']), '')
  rmSync(sources)
})

test('everything the package needs is in it, and nothing else', () => {
  const paths = packed.files.map(({ path }) => path)
  for (const path of [
    'dist/index.js',
    'dist/index.d.ts',
    'dist/core.wasm',
    'dist/cli.js',
    'LICENSE',
    'NOTICE',
    'README.md',
    'package.json',
  ])
    assert.ok(paths.includes(path), path)
  assert.equal(
    paths.filter((path) => !/^(dist|host)\/|^(LICENSE|NOTICE|README\.md|package\.json)$/.test(path)),
    [],
  )
})

test.run()
