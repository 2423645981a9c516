/** Compiled floating-point code, natively and in the core: sequences, loops and sticky flags, where the oracle sees single instructions. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { needs } from '../support/needs.ts'
import { Machine } from '../system/machine.ts'

const source = fileURLToPath(new URL('../../../tests/oracle/float-program.c', import.meta.url))
const LOAD = 0x100000
const RESULT = 0x200000

function tool(command: string, ...args: string[]): Buffer {
  const { status, stdout, stderr } = spawnSync(command, args, { maxBuffer: 1 << 20 })
  if (status !== 0) throw new Error(`${command}: ${stderr}`)
  return stdout
}

const test = suite('compiled floats')
for (const options of [['-O0'], ['-O2'], ['-O3', '-msse4.2'], ['-O2', '-mfpmath=387']]) {
  needs(test, 'amdOracle', `compiled floating point agrees with this CPU, ${options.join(' ')}`, () => {
    const folder = mkdtempSync(join(tmpdir(), 'cloister-float-'))
    try {
      const [native, object, image] = ['native', 'guest.elf', 'guest.bin'].map((n) => join(folder, n)) as [string, string, string]
      const common = [
        ...options,
        '-fno-stack-protector',
        '-fno-math-errno',
        '-fcf-protection=none',
        '-mno-red-zone',
        '-fno-builtin-memcpy',
        '-fno-builtin-memset',
        source,
      ]
      tool('gcc', ...common, '-DNATIVE', '-o', native)
      tool(
        'gcc',
        ...common,
        '-ffreestanding',
        '-nostdlib',
        '-static',
        '-no-pie',
        '-fno-pie',
        '-Wl,-estart,-Ttext=0x100000,-N,--build-id=none',
        '-o',
        object,
      )
      tool('objcopy', '-O', 'binary', '-j', '.text', '-j', '.rodata*', '-j', '.data', object, image)
      const entry = Number(`0x${/([0-9a-f]+) T start$/m.exec(tool('nm', object).toString())?.[1]}`)
      const expected = tool(native)
      const code = readFileSync(image)
      const m = new Machine('long')
      for (let at = 0; at < code.length; at += 4096) {
        const part = code.subarray(at, at + 4096)
        m.core.bytes.set(part, L.STAGING)
        call(m.core, 'backingWrite', m.backing, BigInt(LOAD + at), L.STAGING, part.length)
      }
      m.set64(L.CPU_CR0, 0x80000033n)
      m.set64(L.CPU_CR4, 0x620n)
      m.set32(L.CPU_MXCSR, 0x1f80)
      m.set32(L.CPU_FCW, 0x37f)
      m.setReg(4, 0x300000n - 8n)
      m.setReg(7, BigInt(RESULT))
      m.set64(L.CPU_RIP, BigInt(entry))
      m.changed()
      const why = m.run(20_000_000)
      assert.ok(why === L.STOP_EXIT && m.rip > BigInt(LOAD), `stopped by ${why} at ${m.rip.toString(16)}`)
      call(m.core, 'backingRead', m.backing, BigInt(RESULT), L.STAGING, 4096)
      const found = Buffer.from(m.core.bytes.slice(L.STAGING, L.STAGING + 4096))
      const at = found.findIndex((b, i) => b !== expected[i])
      assert.is(
        at,
        -1,
        `differs from offset ${at}: CPU ${expected.subarray(at, at + 16).toString('hex')}, core ${found.subarray(at, at + 16).toString('hex')}`,
      )
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
}
test.run()
