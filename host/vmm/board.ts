/** Everything on the board but CPUs and memory: which device answers at which port, and how they are wired. */
import { Bus } from './bus.ts'
import { Cmos } from './devices/cmos.ts'
import { DebugExit, DebugPort } from './devices/debug.ts'
import { FW_CFG, FwCfg } from './devices/fw-cfg.ts'
import { Hpet, HPET_BASE, HPET_SIZE } from './devices/hpet.ts'
import { createHostBridge, createHostBridge440, createIsaBridge440, createLpcBridge, PciBus, type Shadowing } from './devices/pci.ts'
import { PowerManagement, ResetPorts } from './devices/power.ts'
import { Serial } from './devices/serial.ts'
import { TestDevice } from './devices/test-device.ts'
import { type AddressSpace, e820File, splitMemory } from './memory.ts'

const COM1_IRQ = 4
const RTC_IRQ = 8

/** A device with something to do at a virtual time (ns; Infinity: nothing). */
export interface TimedDevice {
  readonly deadline: number
  expire(now: number): void
}

/** How a device ends the run. */
export interface Ending {
  kind: 'power-off' | 'reset' | 'debug-exit'
  value: number
  detail: string
}

export interface BoardOptions {
  memory: number
  cpus: number
  epoch: number
  /** Default q35. i440FX has no memory-mapped PCI configuration space. */
  chipset?: 'q35' | 'i440fx'
  /** What the host bridge's attribute registers begin with, and who follows them. */
  shadowing?: Shadowing
  /** kvm-unit-tests' device; default false. */
  testDevice?: boolean
  space: AddressSpace
  /** Virtual time in nanoseconds. */
  now: () => number
  irqLine: (gsi: number, level: boolean) => void
  /** The HPET took IRQ 0 from the 8254, or gave it back. */
  hpetLegacy?: (on: boolean) => void
  onSerial: (byte: number) => void
  onDebug: (byte: number) => void
}

export class Board {
  readonly bus = new Bus()
  readonly serial: Serial
  readonly fwCfg: FwCfg
  readonly power: PowerManagement
  readonly timed: readonly TimedDevice[]
  /** Set by a device that ends the run; the run loop looks after each exit. */
  ending: Ending | null = null
  /** The guest asked for ACPI S3. */
  suspended = false

  constructor(options: BoardOptions) {
    const { bus } = this
    const { low, high } = splitMemory(options.memory)
    this.serial = new Serial(0x3f8, options.onSerial, (level) => options.irqLine(COM1_IRQ, level))
    bus.addPorts(this.serial, 0x3f8, 8, true)
    bus.addPorts(new DebugPort(options.onDebug), 0x402, 1, true)
    bus.addPorts(new DebugExit((value) => this.#end('debug-exit', value, `port 0xf4 written with 0x${value.toString(16)}`)), 0xf4, 4)
    const cmos = new Cmos({
      epoch: options.epoch,
      now: options.now,
      lowMemory: low,
      highMemory: high,
      cpus: options.cpus,
      irq: (level) => options.irqLine(RTC_IRQ, level),
      onAlarm: () => this.power.alarm(),
    })
    bus.addPorts(cmos, 0x70, 2, true)
    const hpet = new Hpet({ now: options.now, irqLine: options.irqLine, legacy: options.hpetLegacy ?? (() => {}) })
    bus.addMmio(hpet, HPET_BASE, HPET_SIZE)
    this.timed = [cmos, hpet]
    const reset = new ResetPorts((what) => this.#end('reset', 0, `reset by ${what}`))
    bus.addPorts(reset, 0x64, 1, true)
    bus.addPorts(reset, 0x92, 1, true)
    const pci = new PciBus()
    bus.addPorts(pci, 0xcf8, 8)
    // 0xcf9 lies inside the address register and belongs to the LPC bridge for byte accesses.
    bus.addPorts(reset, 0xcf9, 1, true)
    this.power = new PowerManagement(bus, options.now, (state) => {
      if (state === 0) this.#end('power-off', 0, 'ACPI S5')
      else if (state === 1) this.suspended = true
    })
    if (options.chipset === 'i440fx') {
      createHostBridge440(pci, options.shadowing)
      createIsaBridge440(pci, (base) => this.power.move(base))
    } else {
      createHostBridge(pci, bus, options.shadowing)
      createLpcBridge(pci, (base) => this.power.move(base))
    }
    if (options.testDevice) TestDevice.attach(bus, options.irqLine)
    this.fwCfg = new FwCfg(options.space)
    bus.addPorts(this.fwCfg, 0x510, 12)
    this.fwCfg.setNumber(FW_CFG.RAM_SIZE, options.memory, 8)
    this.fwCfg.setNumber(FW_CFG.NOGRAPHIC, 1, 2)
    this.fwCfg.setNumber(FW_CFG.NB_CPUS, options.cpus, 2)
    this.fwCfg.setNumber(FW_CFG.MAX_CPUS, options.cpus, 2)
    this.fwCfg.setNumber(FW_CFG.BOOT_MENU, 0, 2)
    this.fwCfg.setNumber(FW_CFG.KERNEL_SIZE, 0, 4)
    this.fwCfg.setNumber(FW_CFG.INITRD_SIZE, 0, 4)
    this.fwCfg.setNumber(FW_CFG.CMDLINE_SIZE, 0, 4)
    this.fwCfg.setNumber(FW_CFG.SETUP_SIZE, 0, 4)
    this.fwCfg.addFile('etc/e820', e820File(options.memory))
  }

  /** Virtual ns at which a device wants to be called. */
  get deadline(): number {
    let at = Number.POSITIVE_INFINITY
    for (const device of this.timed) if (device.deadline < at) at = device.deadline
    return at
  }

  expire(now: number): void {
    for (const device of this.timed) if (device.deadline <= now) device.expire(now)
  }

  #end(kind: Ending['kind'], value: number, detail: string): void {
    this.ending ??= { kind, value, detail }
  }
}
