/** RAM and ROM at 0xC0000-0xFFFFF by the host bridge's attribute registers, seen by the guest. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Bus } from '../../host/vmm/bus.ts'
import { createHostBridge440, PciBus } from '../../host/vmm/devices/pci.ts'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import type { RamRange } from '../../host/vmm/memory.ts'
import { ShadowMemory } from '../../host/vmm/shadow.ts'

const word = (n: number): number[] => [n & 255, (n >> 8) & 255]
/** q35's register 0x90 + n := value, by mechanism 1. */
const pam = (n: number, value: number): number[] => [
  ...[0x66, 0xb8, (0x90 + n) & 0xfc, 0, 0, 0x80, 0xba, ...word(0xcf8), 0x66, 0xef],
  ...[0xb2, 0xfc + (n & 3), 0xb0, value, 0xee],
]
const store = (at: number, value: number): number[] => [0xc6, 0x06, ...word(at), value]
/** The byte at DS:at to the serial port. */
const tell = (at: number): number[] => [0xa0, ...word(at), 0xba, ...word(0x3f8), 0xee]
const ds = (segment: number): number[] => [0xb8, ...word(segment), 0x8e, 0xd8, 0x8e, 0xc0]
const STOP = [0xfa, 0xf4]

async function told(options: MachineOptions): Promise<number[]> {
  const out: number[] = []
  const machine = await Machine.create({ memory: 4 << 20, maxInstructions: 200_000, onSerial: (bytes) => out.push(...bytes), ...options })
  const result = await machine.run()
  machine[Symbol.dispose]()
  assert.is(result.reason, 'halted', String(result.detail))
  return out
}

test('without firmware all is RAM; each of the four attributes of an area', async () => {
  const bytes = Uint8Array.from([
    ...ds(0xd000),
    ...[...store(0, 0x11), ...tell(0)],
    ...[...pam(3, 0x31), ...store(0, 0x22), ...tell(0)],
    ...[...pam(3, 0x32), ...store(0, 0x33), ...tell(0)],
    ...[...pam(3, 0x30), ...store(0, 0x44), ...tell(0)],
    // The other half of the register is the area behind.
    ...[...store(0x4000, 0x55), ...tell(0x4000)],
    ...[...pam(3, 0x33), ...tell(0)],
    ...STOP,
  ])
  const out = await told({ image: { bytes, load: 0x7c00, entry: 0x7c00, mode: 'real16' } })
  assert.equal(out, [0x11, 0x11, 0xff, 0xff, 0x55, 0x33])
})

test('firmware copies itself into the RAM below its ROM while it runs there', async () => {
  const rom = new Uint8Array(0x10000).fill(0xf4)
  const X = 0x8000
  rom[X] = 0x77
  const increment = [0xfe, 0x06, ...word(X)]
  rom.set([
    ...ds(0xf000),
    ...[...increment, ...tell(X)],
    // Reads from ROM, writes to RAM: rep movsw over itself.
    ...[...pam(0, 0x20), 0x31, 0xf6, 0x31, 0xff, 0xb9, ...word(0x8000), 0xfc, 0xf3, 0xa5],
    ...[...increment, ...tell(X)],
    ...[...pam(0, 0x30), ...tell(X), ...increment, ...tell(X)],
    ...[...pam(0, 0x10), ...increment, ...tell(X)],
    ...[...pam(0, 0x00), ...tell(X)],
    ...STOP,
  ])
  rom.set([0xea, 0, 0, 0, 0xf0], 0xfff0)
  // The increment of what reads as ROM wrote RAM: ROM's byte plus one.
  assert.equal(await told({ firmware: rom }), [0x77, 0x77, 0x78, 0x79, 0x79, 0x77])
})

test('i440FX has the registers at 0x59; a kernel without read-only slots gets what it can do', () => {
  const pci = new PciBus()
  let seen: number[] = []
  createHostBridge440(pci, { initial: [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33], onShadow: (r) => (seen = [...r]) })
  assert.is(pci.readConfig(0, 0x58, 4), 0x33333000)
  pci.writeConfig(0, 0x58, 4, 0xff21ff00)
  assert.equal(
    seen,
    [0x30, 0x21, 0x33, 0x33, 0x33, 0x33, 0x33].map((v, i) => (i === 2 ? 0x33 : v)),
  )
  pci.writeConfig(0, 0x50, 4, 0)
  const host = (
    length: number,
    fill: number,
  ): { address: bigint; length: number; read: (o: number, n: number) => Uint8Array; write: (o: number, b: Uint8Array) => void } => {
    const bytes = new Uint8Array(length).fill(fill)
    return { address: 0n, length, read: (o, n) => bytes.slice(o, o + n), write: (o, b) => bytes.set(b, o) }
  }
  for (const readOnlySlots of [true, false]) {
    const slots = new Set<RamRange>()
    const ram = host(0x100000, 0x11)
    const rom = host(0x40000, 0x22)
    const bus = new Bus()
    const shadow = new ShadowMemory({
      ...{ ram, rom: { image: rom, length: 0x20000 }, readOnlySlots },
      map: (r) => void slots.add(r),
      unmap: (r) => assert.ok(slots.delete(r)),
    })
    bus.addMmio(shadow, 0xc0000, 0x40000)
    const list = (): string[] =>
      [...slots]
        .toSorted((a, b) => a.guest - b.guest)
        .map(
          (r) =>
            `${r.guest.toString(16)}+${r.size.toString(16)} ${r.memory === ram ? 'ram' : 'rom'} ${r.offset.toString(16)}${r.readOnly ? ' ro' : ''}`,
        )
    const get = (at: number): number => {
      const data = new Uint8Array(1)
      bus.readMmio(at, data)
      return data[0] as number
    }
    shadow.set([0, 0, 0, 0, 0, 0, 0])
    assert.equal(list(), [`e0000+20000 rom 20000${readOnlySlots ? ' ro' : ''}`])
    assert.equal([get(0xc0000), get(0xe0000)], [0xff, 0x22])
    shadow.set([0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33])
    assert.equal(list(), ['c0000+40000 ram c0000'])
    shadow.set([0x20, 0x13, 0, 0, 0, 0, 0x30])
    assert.equal(
      list(),
      readOnlySlots
        ? ['c0000+4000 ram c0000', 'c4000+4000 ram c4000 ro', 'e0000+c000 rom 20000 ro', 'ec000+4000 ram ec000', 'f0000+10000 rom 30000 ro']
        : ['c0000+4000 ram c0000', 'e0000+c000 rom 20000', 'ec000+4000 ram ec000'],
    )
    assert.equal([get(0xc4000), get(0xf0000)], [0x11, 0x22])
    bus.writeMmio(0xc4000, Uint8Array.of(0x33))
    bus.writeMmio(0xf0000, Uint8Array.of(0x44))
    assert.equal([get(0xc4000), get(0xf0000), ram.read(0xf0000, 1)[0]], [0x11, 0x22, 0x44])
  }
})

test.run()
