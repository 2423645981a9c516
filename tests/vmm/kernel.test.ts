/** Kernels of each format run; what is broken is refused in one line. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CloisterError } from '../../host/errors.ts'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import { acpiFiles } from '../../host/vmm/loaders/acpi.ts'
import { loadKernel, type KernelOptions } from '../../host/vmm/loaders/kernel.ts'
import { bzImage, multiboot, multibootFlat, pvh } from './synthetic.ts'

const MiB = 1024 * 1024
const formats: readonly [name: string, kernel: Uint8Array, line: string][] = [
  ['bzImage', bzImage(), 'quiet splash'],
  ['bzImage of 32 bits', bzImage({ flags: 0 }), 'quiet splash'],
  ['ELF with a PVH note', pvh(), 'quiet splash'],
  ['Multiboot ELF', multiboot(), 'kernel quiet splash'],
  ['Multiboot with addresses in its header', multibootFlat(), 'kernel quiet splash'],
]

for (const [name, kernel, line] of formats) {
  test(`${name}: command line and initrd arrive`, async () => {
    let output = ''
    const machine = await Machine.create({
      kernel,
      initrd: Uint8Array.of(42, 1, 2, 3),
      append: 'quiet splash',
      memory: 16 * MiB,
      maxInstructions: 1_000_000,
      onSerial: (bytes) => (output += new TextDecoder().decode(bytes)),
    })
    const { debugExit, status, detail } = await machine.run()
    machine[Symbol.dispose]()
    assert.is(debugExit, 42, String(detail))
    assert.is(status, 85)
    assert.is(output, line)
  })
}

const refused = (words: RegExp, kernel: Uint8Array, more: Partial<KernelOptions> = {}, code = 'kernel'): void => {
  try {
    loadKernel({ kernel, memory: 16 * MiB, cpus: 1, ...more })
  } catch (error) {
    assert.instance(error, CloisterError, String((error as Error).stack))
    assert.is((error as CloisterError).code, code)
    assert.match((error as CloisterError).message, words)
    assert.not((error as CloisterError).message.includes('\n'))
    return
  }
  assert.unreachable(`not refused: ${words}`)
}

test('kernels cut in half', () => {
  refused(/truncated/, bzImage().subarray(0, 0x500))
  refused(/truncated/, bzImage().subarray(0, 0x220))
  refused(/truncated/, pvh().subarray(0, 0x220))
  refused(/truncated/, pvh().subarray(0, 0x100))
  refused(/truncated/, multiboot().subarray(0, 0x220))
  refused(/truncated/, multibootFlat({ end: 0x100400 }))
  refused(/truncated/, multibootFlat().subarray(0, 20))
})

test('an initrd larger than memory', () => {
  const initrd = new Uint8Array(17 * MiB)
  for (const [, kernel] of formats) refused(/do(es)? not fit/, kernel, { initrd }, 'initrd')
  refused(/needs memory to/, bzImage({ initSize: 32 * MiB }))
})

test('absurd addresses', () => {
  refused(/0xf0000000.*does not fit/, multiboot({ address: 0xf0000000 }))
  refused(/0x3f000000.*does not fit/, multiboot({ address: 0x3f000000 }))
  refused(/entry 0xdeadbeef points outside/, multiboot({ entry: 0xdeadbeef }))
  refused(/does not fit/, multibootFlat({ load: 0xfffff000 }))
  refused(/do not fit the file/, multibootFlat({ header: 0x200000 }))
  refused(/lies behind its end/, multibootFlat({ end: 0x1000 }))
  refused(/bss end/, multibootFlat({ bss: 0x100010 }))
  refused(/entry 0x10 points outside/, multibootFlat({ entry: 0x10 }))
  refused(/PVH entry 0xdead0000 points outside/, pvh({ entry: 0xdead0000 }))
  refused(/PVH note of 2 bytes/, pvh({ noteSize: 2 }))
  refused(/does not fit/, pvh({ address: 0x4000000000, entry: 0 }))
})

test('a kernel in low memory leaves room for its module', () => {
  const low = multiboot({ address: 0x8000 })
  const initrd = new Uint8Array(MiB).fill(1)
  const module = loadKernel({ kernel: low, memory: 16 * MiB, cpus: 1, initrd }).pieces.find((p) => p.bytes === initrd)
  assert.is(module?.address, MiB)
})

test('a Multiboot kernel finds the BIOS data area', () => {
  const { pieces } = loadKernel({ kernel: multiboot(), memory: 16 * MiB, cpus: 1 })
  const area = pieces.find((p) => p.address === 0x400)?.bytes
  assert.ok(area)
  const words = new DataView(area.buffer, area.byteOffset)
  assert.is(words.getUint16(0x0e, true), 0x9fc0, 'segment of the EBDA')
  assert.is(words.getUint16(0x13, true), 639, 'KiB of base memory')
})

test('zeros behind a segment are its memory too', () => {
  const wide = multiboot({ address: 0x8000 })
  new DataView(wide.buffer).setUint32(52 + 20, 0x90000, true)
  refused(/loaded at 0x8000 ends at 0x98000, on what is loaded at 0x90000|on what is loaded at 0x9[0-9a-f]000/, wide)
})

test('a PVH entry above 4 GiB', () => {
  const far = pvh({ noteSize: 8 })
  new DataView(far.buffer).setUint32(0x100 + 20, 1, true)
  refused(/PVH entry lies above 4 GiB/, far)
})

test('a bzImage whose last paragraph is short', () => {
  loadKernel({ kernel: bzImage().subarray(0, 0x7f8), memory: 16 * MiB, cpus: 1 })
  refused(/truncated/, bzImage().subarray(0, 0x7f0))
})

test('a command line that the kernel would cut', () => {
  const kernel = bzImage()
  new DataView(kernel.buffer).setUint32(0x238, 2047, true)
  refused(/command line of 2048 bytes: at most 2047/, kernel, { append: 'x'.repeat(2048) }, 'append')
  loadKernel({ kernel, memory: 16 * MiB, cpus: 1, append: 'x'.repeat(2047) })
  refused(/NUL/, kernel, { append: 'quiet\0' }, 'append')
})

test('files that are no kernels, or too old', () => {
  refused(/neither a bzImage/, new TextEncoder().encode('To be, or not to be, that is the question.\n'.repeat(100)))
  refused(/neither a bzImage/, new Uint8Array(0))
  refused(/gzip/, Uint8Array.of(0x1f, 0x8b, 8, 0))
  refused(/boot protocol 2.10/, bzImage({ version: 0x20a }))
  refused(/features 0x8/, multiboot({ flags: 8 }))
  refused(/too small/, bzImage(), { memory: MiB })
  refused(/command line of/, bzImage(), { append: 'x'.repeat(5000) }, 'append')
})

test('damaged kernels load or are refused, whatever the damage', () => {
  let seed = 12345
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
    return Math.floor((seed / 2 ** 32) * n)
  }
  const values = [0, 1, 0x7f, 0x80, 0xff]
  for (const [name, kernel] of formats) {
    for (let round = 0; round < 4000; round++) {
      const file = kernel.slice(0, random(4) === 0 ? random(kernel.length) : kernel.length)
      for (let n = random(6) + 1; n > 0 && file.length > 0; n--) file[random(Math.min(file.length, 0x280))] = values[random(5)] as number
      try {
        loadKernel({ kernel: file, memory: 16 * MiB, cpus: 1, append: 'x', initrd: new Uint8Array(10) })
      } catch (error) {
        assert.instance(error, CloisterError, `${name}, round ${round}: ${(error as Error).stack}`)
      }
    }
  }
})

test('ACPI tables through fw_cfg: following the loader script gives valid tables', () => {
  const files = new Map(acpiFiles(2, 0x600).map((f) => [f.name, f.bytes]))
  const script = files.get('etc/table-loader') as Uint8Array
  const view = new DataView(script.buffer)
  const text = (at: number): string => new TextDecoder().decode(script.subarray(at, at + 56)).replace(/\0.*$/, '')
  const base = new Map<string, number>()
  for (let at = 0; at < script.length; at += 128) {
    const file = text(at + 4)
    const bytes = files.get(file) as Uint8Array
    const data = new DataView(bytes.buffer)
    const kind = view.getUint32(at, true)
    if (kind === 1) base.set(file, file.endsWith('rsdp') ? 0xf0000 : 0x7e000000)
    else if (kind === 2) {
      const offset = view.getUint32(at + 116, true)
      const target = base.get(text(at + 60)) as number
      if (script[at + 120] === 8) data.setBigUint64(offset, data.getBigUint64(offset, true) + BigInt(target), true)
      else data.setUint32(offset, data.getUint32(offset, true) + target, true)
    } else if (kind === 3) {
      const [result, start, length] = [60, 64, 68].map((o) => view.getUint32(at + o, true)) as [number, number, number]
      bytes[result] = -bytes.subarray(start, start + length).reduce((a, b) => a + b, 0) & 255
    } else assert.unreachable(`command ${kind}`)
  }
  const sum = (bytes: Uint8Array): number => bytes.reduce((a, b) => (a + b) & 255, 0)
  const rsdp = files.get('etc/acpi/rsdp') as Uint8Array
  const tables = files.get('etc/acpi/tables') as Uint8Array
  assert.is(sum(rsdp.subarray(0, 20)), 0)
  assert.is(sum(rsdp), 0)
  const memory = new DataView(tables.buffer)
  const at = (address: bigint | number): number => Number(address) - 0x7e000000
  const table = (address: bigint | number): { name: string; bytes: Uint8Array } => {
    const bytes = tables.subarray(at(address), at(address) + memory.getUint32(at(address) + 4, true))
    return { name: new TextDecoder().decode(bytes.subarray(0, 4)), bytes }
  }
  const xsdt = table(new DataView(rsdp.buffer).getBigUint64(24, true))
  assert.is(xsdt.name, 'XSDT')
  assert.is(sum(xsdt.bytes), 0)
  const names: string[] = []
  for (let i = 36; i < xsdt.bytes.length; i += 8) {
    const one = table(new DataView(xsdt.bytes.buffer, xsdt.bytes.byteOffset).getBigUint64(i, true))
    names.push(one.name)
    assert.is(sum(one.bytes), 0, one.name)
    if (one.name !== 'FACP') continue
    const fadt = new DataView(one.bytes.buffer, one.bytes.byteOffset)
    assert.is(table(fadt.getUint32(36, true)).name, 'FACS')
    assert.is(table(fadt.getUint32(40, true)).name, 'DSDT')
    assert.is(table(fadt.getBigUint64(140, true)).name, 'DSDT')
  }
  assert.equal(names, ['FACP', 'APIC', 'HPET'])
})

test('what UEFI firmware could not start is refused: half a kernel, an initrd larger than memory, ELF', async () => {
  const firmware = new Uint8Array(0x10000).fill(0x90)
  firmware.set(new TextEncoder().encode('_FVH'), 0x28)
  new DataView(firmware.buffer).setBigUint64(0x20, 0x10000n, true)
  firmware.set([0xeb, 0xfe], 0xfff0)
  const cases: [words: RegExp, code: string, options: Partial<MachineOptions>][] = [
    [/truncated: the header says/, 'kernel', { kernel: bzImage().subarray(0, 0x7e0) }],
    [/5242880 bytes do not fit the 4194304 bytes of memory/, 'initrd', { kernel: bzImage(), initrd: new Uint8Array(5 * MiB) }],
    [/without firmware/, 'kernel', { kernel: pvh() }],
    [/without firmware/, 'kernel', { kernel: multiboot() }],
  ]
  for (const [words, code, options] of cases) {
    try {
      await Machine.create({ firmware, memory: 4 * MiB, ...options })
      assert.unreachable(String(words))
    } catch (error) {
      assert.instance(error, CloisterError, String(error))
      assert.is((error as CloisterError).code, code)
      assert.match((error as CloisterError).message, words)
    }
  }
  const machine = await Machine.create({ firmware, memory: 4 * MiB, kernel: bzImage(), initrd: new Uint8Array(MiB) })
  machine[Symbol.dispose]()
})

test.run()
