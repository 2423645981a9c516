/** The flash chip's write side, the variable store at an image's start, and the i440FX board that SEV-ES machines have. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Bus } from '../../host/vmm/bus.ts'
import { Flash, variableStoreLength } from '../../host/vmm/devices/flash.ts'
import { createHostBridge440, createIsaBridge440, PciBus } from '../../host/vmm/devices/pci.ts'

const test = suite('flash and i440FX')

function chip(size = 0x4000): { bytes: Uint8Array; flash: Flash } {
  const bytes = new Uint8Array(size).fill(0x5a)
  const memory = {
    address: 0n,
    length: size,
    read: (offset: number, n: number) => bytes.slice(offset, offset + n),
    write: (offset: number, data: Uint8Array) => bytes.set(data, offset),
  }
  return { bytes, flash: new Flash(memory) }
}

test('program and erase; other commands change nothing', () => {
  const { bytes, flash } = chip()
  const put = (offset: number, value: number): void => flash.writeMmio(offset, Uint8Array.of(value))
  for (const command of [0x50, 0x70, 0xff, 0x90]) put(0x10, command)
  assert.is(bytes[0x10], 0x5a)
  put(0x10, 0x10)
  put(0x10, 0xab)
  assert.is(bytes[0x10], 0xab)
  put(0x1234, 0x20)
  put(0x1234, 0x55)
  assert.is(bytes[0x1234], 0x5a, 'not confirmed')
  put(0x1234, 0x20)
  put(0x1234, 0xd0)
  assert.equal(bytes.slice(0x1000, 0x2000), new Uint8Array(0x1000).fill(0xff))
  assert.is(bytes[0x2000], 0x5a)
  const data = new Uint8Array(2)
  flash.readMmio(0x10, data)
  assert.equal([...data], [0xab, 0x5a])
})

test('a variable store is known by its volume header', () => {
  const image = new Uint8Array(0x1000)
  assert.is(variableStoreLength(image), 0)
  image.set([0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50], 16)
  new DataView(image.buffer).setUint32(32, 0x800, true)
  assert.is(variableStoreLength(image), 0x800)
  new DataView(image.buffer).setUint32(32, 0x2000, true)
  assert.is(variableStoreLength(image), 0, 'longer than the image')
})

test('i440FX: ids, and the power block where PIIX4 is told', () => {
  const pci = new PciBus()
  const bus = new Bus()
  bus.addPorts(pci, 0xcf8, 8)
  const bases: (number | null)[] = []
  createHostBridge440(pci)
  createIsaBridge440(pci, (base) => bases.push(base))
  const address = (fn: number, offset: number): void => bus.writePort(0xcf8, 4, (0x80000000 | (fn << 8) | offset) >>> 0)
  address(0, 0)
  assert.is(bus.readPort(0xcfc, 4), 0x12378086)
  address(8, 0)
  assert.is(bus.readPort(0xcfc, 4), 0x70008086)
  address(11, 0)
  assert.is(bus.readPort(0xcfc, 4), 0x71138086)
  address(11, 0x40)
  bus.writePort(0xcfc, 4, 0xb000)
  address(11, 0x80)
  bus.writePort(0xcfc, 1, 1)
  assert.is(bases.at(-1), 0xb000)
  bus.writePort(0xcfc, 1, 0)
  assert.is(bases.at(-1), null)
})

test.run()
