/** Debian's SeaBIOS, unmodified: shadow RAM by the chipset's attribute registers, big real mode, its own reset. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine } from '../../host/vmm/index.ts'
import { bzImage, pvh } from './synthetic.ts'
import { needs, seabiosPath } from '../support/needs.ts'

for (const file of ['bios.bin', 'bios-256k.bin']) {
  needs(test, 'seabios', `${file} reaches the end of its boot order and resets`, async () => {
    let serial = ''
    let debug = ''
    const machine = await Machine.create({
      firmware: new Uint8Array(readFileSync(`${seabiosPath()}/${file}`)),
      memory: 64 << 20,
      smp: 3,
      maxInstructions: 100_000_000,
      timeoutSeconds: 100,
      onSerial: (bytes) => (serial += new TextDecoder().decode(bytes)),
      onDebug: (bytes) => (debug += new TextDecoder().decode(bytes)),
    })
    const result = await machine.run()
    machine[Symbol.dispose]()
    assert.equal([result.reason, result.detail], ['powered-off', 'reset by port 0xcf9'])
    assert.match(serial, /SeaBIOS \(version 1\.[\s\S]*Booting from Hard Disk[\s\S]*No bootable device\. {2}Retrying in 60 seconds\./)
    assert.match(debug, /SeaBIOS \(version 1\.[\s\S]*Found QEMU fw_cfg[\s\S]*\[RAM\]/)
    // The second image has more features, and code that enters big real mode (16-bit code with a limit of 4 GiB).
    if (file === 'bios-256k.bin')
      assert.match(debug, /Running on QEMU \(q35\)[\s\S]*Found 3 cpu\(s\)[\s\S]*ACPI: parse DSDT[\s\S]*enter handle_19/)
  })
}

needs(test, 'seabios', 'starts a kernel from its option ROM: real-mode setup, command line, initrd, BIOS calls', async () => {
  // jmp 0x268; there: mov ax, 0x2000; mov ds, ax; xor si, si; next: lodsb; test al, al; jz end; mov ah, 0x0e; mov bx, 7; int 0x10;
  // jmp next; end: mov ax, ss; mov ds, ax; mov al, [0x211]; out 0xf4, al
  const kernel = bzImage()
  kernel.set([0xeb, 0x66], 0x200)
  kernel.set(
    [0xb8, 0x00, 0x20, 0x8e, 0xd8, 0x31, 0xf6, 0xac, 0x84, 0xc0, 0x74, 0x09, 0xb4, 0x0e, 0xbb, 0x07, 0x00, 0xcd, 0x10, 0xeb, 0xf2],
    0x268,
  )
  kernel.set([0x8c, 0xd0, 0x8e, 0xd8, 0xa0, 0x11, 0x02, 0xe6, 0xf4, 0xf4], 0x268 + 21)
  const initrd = Uint8Array.from({ length: 5000 }, (_, i) => i * 7)
  let serial = ''
  const machine = await Machine.create({
    firmware: new Uint8Array(readFileSync(`${seabiosPath()}/bios-256k.bin`)),
    kernel,
    initrd,
    append: 'said by the BIOS. ', // its serial console keeps the last characters back
    memory: 64 << 20,
    maxInstructions: 100_000_000,
    onSerial: (bytes) => (serial += new TextDecoder().decode(bytes)),
  })
  const result = await machine.run()
  assert.is(result.reason, 'debug-exit', `${result.detail}\n${serial}`)
  assert.is(result.debugExit, 0x80 | (kernel[0x211] ?? 0), 'CAN_USE_HEAP')
  assert.match(serial, /Booting from ROM[\s\S]*said by the BIOS/)
  const header = new DataView(machine.readMemory(0x10000, 0x300)?.buffer as ArrayBuffer)
  assert.is(header.getUint32(0x21c, true), initrd.length)
  assert.equal(machine.readMemory(header.getUint32(0x218, true), initrd.length), initrd)
  const setup = ((kernel[0x1f1] || 4) + 1) * 512
  assert.equal(machine.readMemory(0x100000, kernel.length - setup), kernel.subarray(setup))
  machine[Symbol.dispose]()
})

needs(test, 'seabios', 'a kernel that is no bzImage, or does not fit, is refused', async () => {
  const firmware = new Uint8Array(readFileSync(`${seabiosPath()}/bios.bin`))
  for (const [words, options] of [
    [/not UEFI boots a bzImage only/, { kernel: pvh() }],
    [/initrd: .* do not fit/, { kernel: bzImage(), initrd: new Uint8Array(20 << 20) }],
  ] as const) {
    try {
      await Machine.create({ firmware, memory: 16 << 20, ...options })
      assert.unreachable()
    } catch (error) {
      assert.match((error as Error).message, words)
    }
  }
})

test.run()
