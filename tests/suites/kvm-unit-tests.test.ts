/**
 * kvm-unit-tests (not part of this package): CLOISTER_KUT names a directory with the built 64-bit images
 * (x86/*.flat), CLOISTER_KUT32 one with the 32-bit images.
 */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { runMultiboot } from './multiboot.ts'

const test = suite('kvm-unit-tests')

/** Names and the failures that are known: what is not offered. */
const images: Readonly<Record<string, readonly [name: string, ...known: string[]][]>> = {
  CLOISTER_KUT: [
    ['setjmp'],
    ['rdpru'],
    ['syscall'],
    ['pcid'],
    ['tsc'],
    ['memory'],
    ['umip'],
    ['eventinj'],
    ['hypercall'],
    ['idt_test'],
    ['msr'],
    ['xsave'],
    ['smap'],
    ['realmode'],
    ['emulator'],
    ['debug'],
    ['la57'],
    ['apic', 'FAIL: PV IPIs testing'],
    ['ioapic'],
  ],
  CLOISTER_KUT32: [
    ['setjmp'],
    ['cmpxchg8b'],
    ['taskswitch2'],
    ['eventinj'],
    ['smap'],
    ['umip'],
    ['realmode'],
    ['tsc'],
    ['msr'],
    ['emulator'],
  ],
}

for (const [variable, list] of Object.entries(images)) {
  const folder = process.env[variable]
  const bits = variable === 'CLOISTER_KUT' ? '64' : '32'
  if (folder === undefined) {
    process.stdout.write(`# skip: ${bits}-bit images (needs kvm-unit-tests)\n`)
    test.skip(`${bits}-bit images`)
    continue
  }
  for (const [name, ...known] of list) {
    const title = `${bits}-bit ${name}`
    test(title, () => {
      const outcome = runMultiboot(join(folder, 'x86', `${name}.flat`))
      assert.equal(outcome.lines('FAIL'), known, outcome.output.slice(-2000))
      assert.is(outcome.end, known.length > 0 ? 1 : 0, outcome.output.slice(-2000))
      assert.ok(outcome.lines('PASS').length > 0)
    })
  }
}

test.run()
