/** Debian's SeaBIOS, unmodified: shadow RAM by the chipset's attribute registers, big real mode, its own reset. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine } from '../../host/vmm/index.ts'
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

test.run()
