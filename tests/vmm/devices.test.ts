/** The machine's devices alone, without the engine. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Bus } from '../../host/vmm/bus.ts'
import { Cmos } from '../../host/vmm/devices/cmos.ts'
import { Flash } from '../../host/vmm/devices/flash.ts'
import { Hpet } from '../../host/vmm/devices/hpet.ts'
import { FW_CFG, FwCfg, type GuestMemory } from '../../host/vmm/devices/fw-cfg.ts'
import { createHostBridge, createLpcBridge, PciBus } from '../../host/vmm/devices/pci.ts'
import { PowerManagement, ResetPorts } from '../../host/vmm/devices/power.ts'
import { Serial } from '../../host/vmm/devices/serial.ts'

const MiB = 1024 * 1024

const serial = (): { uart: Serial; out: number[]; line: boolean[] } => {
  const out: number[] = []
  const line: boolean[] = []
  return {
    uart: new Serial(
      0x3f8,
      (b) => out.push(b),
      (l) => line.push(l),
    ),
    out,
    line,
  }
}

test('bus: absent ports read as ones, wide accesses to byte devices are split', () => {
  const bus = new Bus()
  assert.is(bus.readPort(0x80, 1), 0xff)
  assert.is(bus.readPort(0x80, 4), 0xffffffff)
  const written: [number, number][] = []
  bus.addPorts({ readPort: (port) => port & 0xff, writePort: (port, _size, value) => void written.push([port, value]) }, 0x10, 4, true)
  assert.is(bus.readPort(0x10, 4), 0x13121110)
  bus.writePort(0x12, 2, 0xbbaa)
  assert.equal(written, [
    [0x12, 0xaa],
    [0x13, 0xbb],
  ])
})

test('serial: divisor latch, scratch, loopback and modem status', () => {
  const { uart, out } = serial()
  uart.writePort(0x3fb, 1, 0x83)
  uart.writePort(0x3f8, 1, 1)
  uart.writePort(0x3f9, 1, 0)
  assert.is(uart.readPort(0x3f8, 1), 1)
  uart.writePort(0x3fb, 1, 3)
  uart.writePort(0x3ff, 1, 0x5a)
  assert.is(uart.readPort(0x3ff, 1), 0x5a)
  assert.is(uart.readPort(0x3fe, 1), 0xb0)
  uart.writePort(0x3fc, 1, 0x1a)
  assert.is(uart.readPort(0x3fe, 1), 0x90)
  uart.writePort(0x3f8, 1, 0x42)
  assert.equal(out, [])
  assert.is(uart.readPort(0x3fd, 1), 0x61)
  assert.is(uart.readPort(0x3f8, 1), 0x42)
  uart.writePort(0x3fc, 1, 3)
  uart.writePort(0x3f8, 1, 0x43)
  assert.equal(out, [0x43])
})

test('serial: THR-empty interrupt is acknowledged by reading IIR, received data by reading RBR', () => {
  const { uart, line } = serial()
  uart.writePort(0x3f9, 1, 2)
  assert.equal(line, [true])
  assert.is(uart.readPort(0x3fa, 1), 2)
  assert.is(uart.readPort(0x3fa, 1), 1)
  assert.equal(line, [true, false])
  uart.writePort(0x3f9, 1, 1)
  uart.input(new Uint8Array([1, 2]))
  assert.equal(line, [true, false, true])
  assert.is(uart.readPort(0x3fa, 1), 4)
  assert.is(uart.readPort(0x3f8, 1), 1)
  assert.is(uart.readPort(0x3f8, 1), 2)
  assert.is(uart.readPort(0x3fd, 1), 0x60)
  assert.equal(line, [true, false, true, false])
})

test('serial: input beyond the FIFO waits and is not lost', () => {
  const { uart } = serial()
  uart.writePort(0x3fa, 1, 1)
  assert.is(uart.readPort(0x3fa, 1), 0xc1)
  uart.input(Uint8Array.from({ length: 40 }, (_, i) => i))
  const got: number[] = []
  while (uart.readPort(0x3fd, 1) & 1) got.push(uart.readPort(0x3f8, 1))
  assert.equal(
    got,
    Array.from({ length: 40 }, (_, i) => i),
  )
})

test('cmos: time is the epoch plus virtual time; memory sizes', () => {
  let now = 0
  const cmos = new Cmos({
    epoch: 1767225600,
    now: () => now,
    lowMemory: 256 * MiB,
    highMemory: 2048 * MiB,
    cpus: 4,
    irq: () => {},
    onAlarm: () => {},
  })
  const read = (i: number): number => (cmos.writePort(0x70, 1, i), cmos.readPort(0x71, 1))
  assert.equal([9, 8, 7, 6, 4, 2, 0].map(read), [0x26, 1, 1, 5, 0, 0, 0])
  assert.is(read(0x32), 0x20)
  now = 3661e9
  assert.equal([4, 2, 0].map(read), [1, 1, 1])
  assert.is(read(0x34) | (read(0x35) << 8), (240 * MiB) / 65536)
  assert.is(read(0x5b) | (read(0x5c) << 8) | (read(0x5d) << 16), (2048 * MiB) / 65536)
  assert.is(read(0x5f), 3)
  assert.is(read(0x0d), 0x80)
  assert.is(read(0x0a) & 0x80, 0)
  cmos.writePort(0x70, 1, 9)
  cmos.writePort(0x71, 1, 0x30)
  assert.is(read(9), 0x30)
})

test('cmos: periodic, update and alarm interrupts; update in progress', () => {
  let now = 0
  let alarms = 0
  const levels: boolean[] = []
  const cmos = new Cmos({
    epoch: 1767225600,
    now: () => now,
    lowMemory: 256 * MiB,
    highMemory: 0,
    cpus: 1,
    irq: (level) => levels.push(level),
    onAlarm: () => alarms++,
  })
  const read = (i: number): number => (cmos.writePort(0x70, 1, i), cmos.readPort(0x71, 1))
  const write = (i: number, v: number): void => (cmos.writePort(0x70, 1, i), cmos.writePort(0x71, 1, v))
  const at = (time: number): void => {
    now = time
    if (cmos.deadline <= now) cmos.expire(now)
  }
  assert.is(cmos.deadline, Number.POSITIVE_INFINITY)
  write(0x0b, 0x42) // periodic at the default 1024 Hz
  assert.is(cmos.deadline, Math.ceil(1e9 / 1024))
  at(cmos.deadline)
  assert.equal(levels, [true])
  assert.is(read(0x0c), 0xc0)
  assert.is(read(0x0c), 0)
  assert.equal(levels.slice(0, 2), [true, false])
  write(0x0b, 0x12)
  assert.is(cmos.deadline, 1e9)
  at(1e9 - 100_000)
  assert.is(read(0x0a) & 0x80, 0x80)
  at(1e9)
  assert.is(read(0x0a) & 0x80, 0)
  assert.is(read(0x0c) & 0x90, 0x90)
  // At 00:00:03 of any hour.
  write(0x01, 0x03)
  write(0x03, 0)
  write(0x05, 0xc0)
  write(0x0b, 0x22)
  at(2e9)
  assert.is(alarms, 0)
  at(3e9)
  assert.is(alarms, 1)
  assert.is(read(0x0c) & 0xa0, 0xa0)
})

test('hpet: counter, one-shot, periodic and level interrupts, legacy route', () => {
  let now = 0
  const events: string[] = []
  const hpet = new Hpet({
    now: () => now,
    irqLine: (gsi, level) => events.push(`${gsi}${level ? '+' : '-'}`),
    legacy: (on) => events.push(on ? 'legacy' : 'standard'),
  })
  const read = (offset: number): bigint => {
    const bytes = new Uint8Array(8)
    hpet.readMmio(offset, bytes)
    return new DataView(bytes.buffer).getBigUint64(0, true)
  }
  const write = (offset: number, value: number): void => {
    const bytes = new Uint8Array(4)
    new DataView(bytes.buffer).setUint32(0, value, true)
    hpet.writeMmio(offset, bytes)
  }
  const happened = (time: number): string[] => {
    now = time
    if (hpet.deadline <= now) hpet.expire(now)
    return events.splice(0)
  }
  assert.is(read(0), 0x989680_8086a201n)
  now = 5000
  assert.is(read(0xf0), 0n, 'stands still until enabled')
  write(0x10, 1)
  now = 6000
  assert.is(read(0xf0), 100n)
  const wide = new Uint8Array(4)
  hpet.readMmio(0xf4, wide)
  assert.equal([...wide], [0, 0, 0, 0])
  // Timer 1, edge, line 20.
  write(0x120, (20 << 9) | 4)
  write(0x128, 200)
  write(0x12c, 0)
  assert.is(hpet.deadline, 7000)
  assert.equal(happened(6999), [])
  assert.equal(happened(7000), ['20+', '20-'])
  // Timer 0, periodic, 32 bits, in the legacy route.
  events.length = 0
  write(0x10, 3)
  write(0x100, 0x8 | 0x4 | 0x40 | 0x100)
  write(0x108, 300)
  write(0x108, 50)
  assert.equal(happened(7500), ['legacy'])
  assert.equal(happened(8000), ['0+', '0-'])
  assert.is(hpet.deadline, 8500)
  assert.equal(happened(9700), ['0+', '0-'], 'late: one interrupt, the grid stays')
  assert.is(hpet.deadline, 10_000)
  write(0x100, 0)
  // Timer 2, level, line 21: up until its status bit is cleared.
  write(0x140, (21 << 9) | 4 | 2)
  write(0x148, 2000)
  write(0x14c, 0)
  assert.equal(happened(25_000), ['21+'])
  assert.is(read(0x20), 4n)
  write(0x20, 4)
  assert.equal(events.splice(0), ['21-'])
  assert.is(read(0x20), 0n)
})

const ram = (size: number): GuestMemory & { bytes: Uint8Array } => {
  const bytes = new Uint8Array(size)
  return {
    bytes,
    read: (a, to) => a + to.length <= size && (to.set(bytes.subarray(a, a + to.length)), true),
    write: (a, from) => a + from.length <= size && (bytes.set(from, a), true),
  }
}

test('fw_cfg: signature, id, numbers and file directory by port', () => {
  const device = new FwCfg(ram(64))
  device.setNumber(FW_CFG.NB_CPUS, 2, 2)
  device.addFile('etc/zebra', new Uint8Array([1, 2, 3]))
  device.addFile('etc/e820', new Uint8Array(20))
  const read = (key: number, n: number): number[] => {
    device.writePort(0x510, 2, key)
    return Array.from({ length: n }, () => device.readPort(0x511, 1))
  }
  assert.equal(
    read(0, 4),
    [...'QEMU'].map((c) => c.charCodeAt(0)),
  )
  assert.equal(read(1, 4), [3, 0, 0, 0])
  assert.equal(read(5, 3), [2, 0, 0])
  const directory = read(0x19, 4 + 128)
  assert.equal(directory.slice(0, 14), [0, 0, 0, 2, 0, 0, 0, 20, 0, 0x20, 0, 0, 0x65, 0x74])
  assert.is(String.fromCharCode(...directory.slice(12, 20)), 'etc/e820')
  assert.equal(directory.slice(68, 74), [0, 0, 0, 3, 0, 0x21])
  assert.equal(read(0x21, 4), [1, 2, 3, 0])
  assert.is(device.readPort(0x514, 4), 0x554d4551)
})

test('fw_cfg: a kernel is handed over in two parts, setup_sects of its header (0 means 4) and the rest', () => {
  for (const [sectors, setup] of [
    [0, 5 * 512],
    [7, 8 * 512],
    [255, 8192], // more than the file has: all of it
  ] as const) {
    const kernel = new Uint8Array(8192)
    kernel[0x1f1] = sectors
    const device = new FwCfg(ram(64))
    device.setKernel(kernel, new Uint8Array(3), 'quiet')
    const size = (key: number): number => {
      device.writePort(0x510, 2, key)
      return [0, 8, 16, 24].reduce((n, shift) => n + (device.readPort(0x511, 1) << shift), 0)
    }
    assert.equal([FW_CFG.SETUP_SIZE, FW_CFG.KERNEL_SIZE, FW_CFG.INITRD_SIZE, FW_CFG.CMDLINE_SIZE].map(size), [setup, 8192 - setup, 3, 6])
  }
})

test('fw_cfg: DMA select, read, skip, error', () => {
  const memory = ram(256)
  const device = new FwCfg(memory)
  device.addFile(
    'a',
    Uint8Array.from({ length: 8 }, (_, i) => i + 1),
  )
  const command = (control: number, length: number, address: number): number => {
    const view = new DataView(memory.bytes.buffer)
    view.setUint32(0, control)
    view.setUint32(4, length)
    view.setBigUint64(8, BigInt(address))
    device.writePort(0x514, 4, 0)
    device.writePort(0x518, 4, 0)
    return view.getUint32(0)
  }
  assert.is(command(0x00200000 | 8 | 2, 3, 0x40), 0)
  assert.equal([...memory.bytes.subarray(0x40, 0x44)], [1, 2, 3, 0])
  assert.is(command(4, 2, 0), 0)
  assert.is(command(2, 4, 0x40), 0)
  assert.equal([...memory.bytes.subarray(0x40, 0x44)], [6, 7, 8, 0])
  assert.is(command(2, 4, 0x1000), 1)
  assert.is(command(16, 4, 0x40), 1)
})

test('pci: mechanism 1, sizing, and the window that PCIEXBAR moves', () => {
  const bus = new Bus()
  const pci = new PciBus()
  createHostBridge(pci, bus)
  const bases: (number | null)[] = []
  createLpcBridge(pci, (base) => bases.push(base))
  bus.addPorts(pci, 0xcf8, 8)
  const read = (address: number, size = 4, lane = 0): number => {
    bus.writePort(0xcf8, 4, (0x80000000 | address) >>> 0)
    return bus.readPort(0xcfc + lane, size)
  }
  assert.is(read(0), 0x29c08086)
  assert.is(read(0, 2, 2), 0x29c0)
  assert.is(read(0xf800), 0x29188086)
  assert.is(read(0xf808), 0x06010002)
  assert.is(read(0x0800), 0xffffffff)
  bus.writePort(0xcf8, 4, 0x8000f840)
  bus.writePort(0xcfc, 4, 0x600)
  bus.writePort(0xcf8, 4, 0x8000f844)
  bus.writePort(0xcfc, 1, 0x80)
  assert.equal(bases, [null, 0x600])
  assert.is(read(0xf840), 0x601)
  const data = new Uint8Array(4)
  assert.not(bus.readMmio(0xe0000000, data))
  assert.equal([...data], [255, 255, 255, 255])
  bus.writePort(0xcf8, 4, 0x80000064)
  bus.writePort(0xcfc, 4, 0)
  bus.writePort(0xcf8, 4, 0x80000060)
  bus.writePort(0xcfc, 4, 0xe0000001)
  assert.ok(bus.readMmio(0xe00f8000, data))
  assert.equal([...data], [0x86, 0x80, 0x18, 0x29])
})

test('power: timer, sleep, reset ports', () => {
  const bus = new Bus()
  let now = 0
  const off: number[] = []
  const pm = new PowerManagement(
    bus,
    () => now,
    (state) => off.push(state),
  )
  pm.move(0x600)
  now = 1e9
  assert.is(bus.readPort(0x608, 4), 3579545)
  now = 10e9
  assert.is(bus.readPort(0x608, 4), 35795450 % 0x1000000)
  bus.writePort(0x604, 2, 0x2000)
  assert.equal(off, [0])
  assert.is(bus.readPort(0x604, 2), 0)
  const resets: string[] = []
  const reset = new ResetPorts((what) => resets.push(what))
  reset.writePort(0xcf9, 1, 2)
  reset.writePort(0xcf9, 1, 6)
  reset.writePort(0x64, 1, 0xfe)
  assert.equal(resets, ['port 0xcf9', 'keyboard controller'])
})

test('flash: erase, program, commands that are not carried out', () => {
  const bytes = new Uint8Array(8192).fill(0x55)
  const chip = new Flash({
    address: 0n,
    length: bytes.length,
    read: (offset, n) => bytes.slice(offset, offset + n),
    write: (offset, data) => bytes.set(data, offset),
  })
  const write = (offset: number, ...values: number[]): void => {
    for (const value of values) chip.writeMmio(offset, Uint8Array.of(value))
  }
  write(0x1234, 0x20, 0xd0)
  assert.is(bytes[0xfff], 0x55)
  assert.ok(bytes.subarray(0x1000).every((b) => b === 0xff))
  write(0x1234, 0xff, 0x10, 0xab, 0xff)
  assert.is(bytes[0x1234], 0xab)
  write(0, 0x50, 0x70, 0xff, 0x20, 0x00, 0xff)
  assert.is(bytes[0], 0x55)
  const data = new Uint8Array(1)
  chip.readMmio(0x1234, data)
  assert.is(data[0], 0xab)
})

test.run()
