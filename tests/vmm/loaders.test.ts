/** What the machine refuses before a VM exists, and how guests are laid out in memory. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { CloisterError } from '../../host/errors.ts'
import { detect } from '../../host/vmm/loaders/detect.ts'
import { loadFlat } from '../../host/vmm/loaders/flat.ts'
import { GUID, guidTable, loadFirmware } from '../../host/vmm/loaders/ovmf.ts'
import { checkOptions, type MachineOptions } from '../../host/vmm/options.ts'
import { needs } from '../support/needs.ts'
import { ovmf } from './helpers.ts'

const refused = (code: string, words: RegExp, run: () => unknown): void => {
  try {
    run()
  } catch (error) {
    assert.instance(error, CloisterError)
    assert.is((error as CloisterError).code, code)
    assert.match((error as CloisterError).message, words)
    assert.not((error as CloisterError).message.includes('\n'))
    return
  }
  assert.unreachable(`not refused: ${code}`)
}

const image = { bytes: new Uint8Array([0xf4]), load: 0x10000, entry: 0x10000, mode: 'long64' } as const

test('options are refused with a stable code and one line', () => {
  const cases: [string, RegExp, MachineOptions][] = [
    ['type', /unknown VM type 'sgx'/, { image, type: 'sgx' as 'sev' }],
    ['unsupported-type', /'tdx' cannot be launched yet/, { image, type: 'tdx' }],
    ['memory', /positive/, { image, memory: 0 }],
    ['memory', /more than/, { image, memory: 2 ** 40 }],
    ['memory', /4096/, { image, memory: 1024 * 1024 + 1 }],
    ['smp', /smp 0/, { image, smp: 0 }],
    ['smp', /1 to 255/, { image, smp: 256 }],
    ['memory', /beside 255 vCPUs/, { image, smp: 255, memory: 2 ** 31 }],
    ['guest', /nothing to run/, {}],
    ['guest', /exclude/, { image, firmware: new Uint8Array(4096) }],
    ['cpu', /unknown CPU model 'Z80'/, { image, cpu: 'Z80' }],
    ['vcpu-type', /unknown vCPU type/, { image, type: 'sev-es', vcpuType: 'EPYC-Paris' }],
    ['mode', /real16, protected32, long64/, { image: { ...image, mode: 'long' as 'long64' } }],
    ['irqchip', /in-kernel interrupt controller/, { image, type: 'sev-es', irqchip: false }],
    ['irqchip', /in-kernel interrupt controller/, { image, type: 'sev-es-legacy', irqchip: false }],
    ['smm', /SMM/, { image, type: 'sev-es', smm: true }],
    ['kernel', /needs a kernel/, { image, append: 'quiet' }],
    ['guest', /exclude/, { image, kernel: new Uint8Array(1) }],
    ['unsupported-kernel', /through firmware only/, { type: 'sev-es', kernel: new Uint8Array(1) }],
    ['policy', /32 bits/, { image, policy: 2n ** 40n }],
    ['max-instructions', /positive/, { image, maxInstructions: 0 }],
    ['timeout', /positive/, { image, timeoutSeconds: -1 }],
  ]
  for (const [code, words, options] of cases) refused(code, words, () => checkOptions(options))
  assert.is(checkOptions({ image, type: 'sev-es' }).policy, 5n)
  assert.is(checkOptions({ image, type: 'sev' }).policy, 1n)
})

test('firmware that cannot be firmware is refused', () => {
  const text = new TextEncoder().encode('This is a text file, not firmware.\n'.repeat(1000))
  refused('firmware', /text file/, () => loadFirmware(text))
  refused('firmware', /at least 4096/, () => loadFirmware(text.subarray(0, 100)))
  refused('firmware', /not a multiple/, () => loadFirmware(new Uint8Array(5000).fill(0x90)))
  refused('firmware', /no reset vector/, () => loadFirmware(new Uint8Array(8192)))
  refused('firmware', /at most/, () => loadFirmware(new Uint8Array(17 * 1024 * 1024)))
})

needs(test, 'ovmf', 'Debian OVMF: base, SEV-ES reset address, truncation', () => {
  const file = ovmf()
  const firmware = loadFirmware(file)
  assert.is(firmware.base, 0xffe00000)
  assert.is(firmware.apReset, 0x80b004)
  assert.is(guidTable(file).size, 5)
  assert.is(guidTable(file).get(GUID.SEV_SECRET)?.length, 8)
  assert.is(detect(file), 'firmware')
  refused('firmware', /truncated/, () => loadFirmware(file.subarray(0, 0x100000)))
  refused('firmware', /not a multiple/, () => loadFirmware(file.subarray(0, 1000001)))
})

test('flat images: tables, registers and refusals', () => {
  const loaded = loadFlat(image, 1 << 28, 1n << 51n)
  assert.is(loaded.entry.rip, 0x10000)
  assert.is(loaded.entry.rsp, 0x10000)
  assert.is(loaded.entry.efer, 0x500)
  const tables = loaded.pieces.find((p) => p.address === 0x1000)
  assert.ok(tables)
  const view = new DataView(tables.bytes.buffer)
  assert.is(view.getBigUint64(0, true), 0x8000000002003n)
  assert.is(view.getBigUint64(0x2000 + 2047 * 8, true), 0x80000ffe00083n)
  const real = loadFlat({ ...image, mode: 'real16', load: 0x7c00, entry: 0x7c00 }, 1 << 28, 0n)
  assert.is(real.entry.rip, 0x7c00)
  assert.is(real.entry.code.base, 0)
  refused('image', /overlaps/, () => loadFlat({ ...image, load: 0x6000 }, 1 << 28, 0n))
  refused('image', /does not fit/, () => loadFlat({ ...image, load: 1 << 28 }, 1 << 28, 0n))
  refused('image', /empty/, () => loadFlat({ ...image, bytes: new Uint8Array() }, 1 << 28, 0n))
  refused('image', /first MiB/, () => loadFlat({ ...image, mode: 'real16', entry: 0x200000 }, 1 << 28, 0n))
  refused('image', /below 4 GiB/, () => loadFlat({ ...image, entry: -1 }, 1 << 28, 0n))
})

test('files are told apart by content', () => {
  const bz = new Uint8Array(1024)
  bz.set([0x48, 0x64, 0x72, 0x53], 0x202)
  assert.is(detect(bz), 'bzImage')
  const elf = new Uint8Array(64)
  elf.set([0x7f, 0x45, 0x4c, 0x46])
  assert.is(detect(elf), 'elf')
  const multiboot = new Uint8Array(64)
  new DataView(multiboot.buffer).setUint32(0, 0x1badb002, true)
  new DataView(multiboot.buffer).setUint32(8, -0x1badb002 >>> 0, true)
  assert.is(detect(multiboot), 'multiboot')
  assert.is(detect(readFileSync(new URL(import.meta.url))), 'unknown')
})

test.run()
