/**
 * A machine: KVM objects, memory, vCPUs and board put together as a VMM does it, launched, and run to its end.
 * The order of calls is QEMU's; for an encrypted guest the launch is sev-launch.ts. Everything the guest does later
 * comes back through run-loop.ts.
 */
import { CloisterError } from '../errors.ts'
import { exitName, type Kvm, openKvm, type Vcpu, type Vm } from '../index.ts'
import { applyBiosState } from './bios-state.ts'
import { Board } from './board.ts'
import { Flash, variableStoreLength } from './devices/flash.ts'
import { createVcpu, type ResetState } from './first-state.ts'
import { acpiFiles, facsAddress, PM_BASE, PM_BASE_440, WAKING_VECTOR } from './loaders/acpi.ts'
import { biosBoot } from './loaders/bios-boot.ts'
import { detect } from './loaders/detect.ts'
import { type EntryState, loadFlat } from './loaders/flat.ts'
import { ACPI_PLACE, checkForUefi, loadKernel } from './loaders/kernel.ts'
import { type Firmware, loadFirmware } from './loaders/ovmf.ts'
import { type AddressSpace, splitMemory } from './memory.ts'
import { MemoryMap, pagesOf } from './memory-map.ts'
import { type Checked, checkOptions, isEncrypted, isSevEs, type MachineOptions, type RunResult } from './options.ts'
import { PACE, Pacer, pause } from './pace.ts'
import { resultOf } from './result.ts'
import { type Outcome, RunLoop } from './run-loop.ts'
import { type LaunchRecord, type LaunchStep, SevLaunch } from './sev-launch.ts'
import { SHADOW, SHADOW_END } from './shadow.ts'
import { Stream } from './stream.ts'

/** Wall-clock milliseconds between two looks at the event loop. */
const BREATH = 20

/**
 * A whole guest: `await Machine.create(options)`, then `await machine.run()`. Refused options are a CloisterError whose code is
 * the option's name. Disposing it closes its KVM.
 */
export class Machine {
  /** Its device. */
  readonly kvm: Kvm
  /** Its VM. */
  readonly vm: Vm
  /** Its vCPUs by APIC id. */
  readonly vcpus: readonly Vcpu[]
  /** @internal */
  readonly board: Board
  /** @internal */
  readonly space: AddressSpace
  readonly #options: Checked
  readonly #firmware: Firmware | null
  readonly #serial: Stream
  readonly #debug: Stream
  readonly #sev: SevLaunch | null
  readonly #map: MemoryMap
  readonly #reset: ResetState
  #record: LaunchRecord | null = null
  #launched = false
  #inputOpen = true
  #wake: (() => void) | null = null

  /** Checks the options, opens KVM and builds the machine; nothing has run yet. CloisterError: code = the option, or openKvm's. */
  static async create(options: MachineOptions): Promise<Machine> {
    const checked = checkOptions(options)
    const firmware = checked.firmware ? loadFirmware(checked.firmware) : null
    // Requirement B3: without the block nobody knows where the others start, and their registers are sealed.
    if (firmware && firmware.apReset === null && isSevEs(checked.type) && checked.smp > 1) {
      throw new CloisterError('firmware', `firmware: no SEV-ES reset block, which ${checked.smp} vCPUs of a '${checked.type}' guest need`)
    }
    const { kernel, initrd, append, memory, smp } = checked
    if (firmware && kernel) {
      if (detect(firmware.image) === 'firmware') checkForUefi({ kernel, initrd, memory })
      else biosBoot({ kernel, initrd, append, memory, cpus: smp })
    }
    const kvm = await openKvm({
      host: 'amd',
      ...(checked.profile === undefined ? {} : { profile: checked.profile }),
      ...(checked.linux === undefined ? {} : { linux: checked.linux }),
      ...(checked.seed === undefined ? {} : { seed: BigInt(checked.seed) }),
      ...(checked.wasm === undefined ? {} : { wasm: checked.wasm }),
    })
    return new Machine(checked, firmware, kvm)
  }

  private constructor(options: Checked, firmware: Firmware | null, kvm: Kvm) {
    this.#options = options
    this.#firmware = firmware
    this.kvm = kvm
    this.#serial = new Stream(options.onSerial)
    this.#debug = new Stream(options.onDebug)
    const { type } = options
    this.vm = kvm.createVm(type)
    const firmwareTrace = options.traceKinds?.includes('firmware') ? (options.trace ?? null) : null
    this.#sev = isEncrypted(type) ? new SevLaunch(type, this.vm, firmwareTrace) : null
    this.#sev?.init(BigInt(options.guestFeatures ?? 0))
    if (options.irqchip) {
      this.vm.createIrqchip()
      this.vm.createPit2()
    }
    const multiboot = options.kernel !== undefined && detect(options.kernel) === 'multiboot'
    // An EFI application that firmware starts ("MZ", but no Linux): kvm-unit-tests come in that form too, and want their device.
    const application = options.kernel?.[0] === 0x4d && options.kernel[1] === 0x5a && detect(options.kernel) === 'unknown'
    if (multiboot && options.irqchip) applyBiosState(this.vm)
    // KVM refuses read-only slots for the newer SEV-ES type (kvm_arch_has_readonly_mem); others have a real ROM.
    this.#map = new MemoryMap(kvm, this.vm, options.memory, firmware, type !== 'sev-es')
    const { flash, shadow, pam, space } = this.#map
    this.space = space
    const entry = options.image || (options.kernel && !firmware) ? this.#loadImage() : null
    const made = Array.from({ length: options.smp }, (_, id) => createVcpu({ kvm, vm: this.vm, options, firmware }, id, entry))
    this.vcpus = made.map(({ vcpu }) => vcpu)
    this.#reset = (made[0] as (typeof made)[0]).reset
    // A #VC handler built on edk2's exception library (up to 2022.11 at least) cannot return a value in RBP, which OVMF's
    // reads of memory-mapped PCI configuration use: under SEV-ES it finds no device on q35.
    const chipset = isSevEs(type) ? 'i440fx' : 'q35'
    this.board = new Board({
      memory: options.memory,
      cpus: options.smp,
      epoch: options.epoch,
      chipset,
      testDevice: multiboot || application,
      shadowing: { initial: pam, onShadow: (registers) => shadow.set(registers) },
      space: this.space,
      now: () => this.vm.clock,
      irqLine: (gsi, level) => this.vm.irqLine(gsi, level),
      hpetLegacy: (on) => this.#hpetLegacy(on),
      onSerial: (byte) => this.#serial.put(byte),
      onDebug: (byte) => this.#debug.put(byte),
    })
    this.board.bus.addMmio(shadow, SHADOW, SHADOW_END - SHADOW)
    // What firmware would have programmed.
    if (!firmware) this.board.power.move(PM_BASE)
    else {
      if (options.kernel) this.#offerKernel(options.kernel, detect(firmware.image) === 'firmware')
      for (const file of acpiFiles(options.smp, chipset === 'q35' ? PM_BASE : PM_BASE_440)) this.board.fwCfg.addFile(file.name, file.bytes)
    }
    if (flash && firmware) this.board.bus.addMmio(new Flash(flash), firmware.base, flash.length)
  }

  /** A kernel for firmware: UEFI takes it from fw_cfg itself, a BIOS needs an option ROM. */
  #offerKernel(kernel: Uint8Array, uefi: boolean): void {
    const { initrd, append, memory, smp } = this.#options
    const { fwCfg } = this.board
    if (uefi) return fwCfg.setKernel(kernel, initrd, append)
    const boot = biosBoot({ kernel, initrd, append, memory, cpus: smp })
    fwCfg.setKernel(boot.kernel, initrd, append)
    for (const file of boot.files) fwCfg.addFile(file.name, file.bytes)
  }

  /** KVM_PIT_FLAGS_HPET_LEGACY: channel 0 of the 8254 no longer reaches IRQ 0. */
  #hpetLegacy(on: boolean): void {
    if (!this.#options.irqchip) return
    const pit = new Uint8Array(112)
    this.vm.ioctl('KVM_GET_PIT2', pit)
    const view = new DataView(pit.buffer)
    view.setUint32(72, (view.getUint32(72, true) & ~1) | (on ? 1 : 0), true)
    this.vm.ioctl('KVM_SET_PIT2', pit)
  }

  /** What a BIOS does on the way out of S3: the first CPU enters the FACS's waking vector in real mode. */
  #resume(): boolean {
    const { board } = this
    if (this.#firmware || !this.#options.kernel || this.#sev) return false
    while (!board.power.woken) {
      const at = board.deadline
      if (at === Number.POSITIVE_INFINITY) return false
      this.vm.sleepUntil(at)
      board.expire(at)
    }
    const bytes = this.readMemory(facsAddress(this.#options.smp, ACPI_PLACE) + WAKING_VECTOR, 4)
    if (!bytes) return false
    const vector = new DataView(bytes.buffer).getUint32(0, true)
    for (const [id, vcpu] of this.vcpus.entries()) {
      vcpu.setSregs(this.#reset.sregs)
      vcpu.setRegs({ ...this.#reset.regs, rip: BigInt(vector & 15) })
      const sregs = vcpu.getSregs()
      sregs.cs = { ...sregs.cs, selector: (vector >> 4) & 0xffff, base: BigInt(vector & ~15) }
      vcpu.setSregs(sregs)
      vcpu.setMpState(id === 0 ? 0 : 1)
    }
    return true
  }

  /** Loads what is entered without firmware. */
  #loadImage(): EntryState {
    const { image, kernel, initrd, append, memory, smp } = this.#options
    const cBit = this.#sev ? 1n << BigInt(cBitPosition(this.kvm)) : 0n
    const loaded = kernel
      ? loadKernel({ kernel, initrd, append, memory, cpus: smp })
      : image
        ? loadFlat(image, Math.min(memory, splitMemory(memory).low), cBit)
        : null
    if (!loaded) throw new CloisterError('internal', 'nothing to load')
    this.#map.place(loaded.pieces)
    return loaded.entry
  }

  /** Launches the guest (once): for an encrypted one measures and seals it. */
  launch(): void {
    if (this.#launched) return
    this.#launched = true
    if (!this.#sev) return
    const { flash, regions } = this.#map
    const ranges = this.#options.stepByPage ? regions.flatMap(pagesOf) : regions
    this.#record = this.#sev.run(Number(this.#options.policy), ranges, this.#options.smp)
    if (flash && this.#firmware) {
      // The variable store is measured with the rest of the image, but the guest maps it shared and the VMM is its flash chip:
      // from now on the chip holds the image's bytes, not their ciphertext (as with QEMU's separate variable store).
      const { image } = this.#firmware
      flash.write(0, image.subarray(0, variableStoreLength(image)))
    }
  }

  /** Launches, and gives the digest that the firmware computed, in hexadecimal. CloisterError `measure` for an ordinary guest. */
  measure(): string {
    if (!this.#sev) throw new CloisterError('measure', `VM type '${this.#options.type}' has no launch measurement`)
    this.launch()
    return (this.#record as LaunchRecord).digest
  }

  /** The digest once launched; null for an ordinary guest. */
  get launchDigest(): string | null {
    return this.#record?.digest ?? null
  }

  /** What was measured, piece by piece; empty before launch(). */
  get launchSteps(): readonly LaunchStep[] {
    return this.#record?.steps ?? []
  }

  /** Digest, measurement and nonce of the launch; null for an ordinary guest or before launch(). */
  get launchRecord(): LaunchRecord | null {
    return this.#record
  }

  /** Bytes for the guest's serial port. */
  serialInput(bytes: Uint8Array): void {
    this.board.serial.input(bytes)
    this.#wake?.()
  }

  /** No more input will come: a guest that sleeps until then has halted for good. */
  closeInput(): void {
    this.#inputOpen = false
    this.#wake?.()
  }

  /** A copy of guest-physical memory as the host sees it: ciphertext of private pages; null where there is no RAM. */
  readMemory(address: number | bigint, length: number): Uint8Array | null {
    const bytes = new Uint8Array(length)
    return this.space.read(Number(address), bytes) ? bytes : null
  }

  /** Writes through the host's view: into encrypted memory this writes ciphertext. False where there is no RAM. */
  writeMemory(address: number | bigint, bytes: Uint8Array): boolean {
    return this.space.write(Number(address), bytes)
  }

  /** Launches if need be and runs the guest to its end, a budget, or `signal`; a guest's failure is a result, not an exception. */
  async run({ signal }: { signal?: AbortSignal } = {}): Promise<RunResult> {
    this.launch()
    const { maxInstructions, timeoutSeconds, trace, traceKinds } = this.#options
    const started = performance.now()
    const loop = new RunLoop({
      cpus: this.vcpus,
      board: this.board,
      maxInstructions: maxInstructions ?? Number.POSITIVE_INFINITY,
      deadline: timeoutSeconds === undefined ? Number.POSITIVE_INFINITY : started + timeoutSeconds * 1000,
      now: () => this.vm.clock,
      arm: (ns) => this.vm.setDeadline(ns),
      resume: () => this.#resume(),
      exitName,
      refusal: () => this.kvm.lastRefusal()?.reason ?? 'no reason recorded',
      trace: trace ?? null,
      traceExits: traceKinds?.includes('exits') ?? false,
      traceGhcb: traceKinds?.includes('ghcb') ?? false,
      tracePorts: traceKinds?.includes('pio') ?? false,
      traceMmio: traceKinds?.includes('mmio') ?? false,
    })
    let outcome: Outcome | null = null
    const pacer = this.#options.pace ? new Pacer() : null
    while (outcome === null) {
      const limit = pacer ? this.vm.clock + PACE : Number.POSITIVE_INFINITY
      outcome = loop.run(BREATH, limit)
      this.#serial.flush()
      this.#debug.flush()
      if (outcome) break
      if (loop.waiting) {
        if (!this.#inputOpen) outcome = { reason: 'halted', detail: 'waiting for an interrupt that cannot come', debugExit: null }
        else if (timeoutSeconds !== undefined && performance.now() >= started + timeoutSeconds * 1000) {
          outcome = { reason: 'budget-time', detail: `${timeoutSeconds} seconds`, debugExit: null }
        } else await this.#sleep(10)
      } else {
        const ahead = pacer?.ahead(this.vm.clock) ?? 0
        await (ahead > 1 ? this.#sleep(ahead) : pause(0))
      }
      if (signal?.aborted) outcome ??= { reason: 'interrupted', detail: null, debugExit: null }
    }
    return resultOf(outcome, {
      options: this.#options,
      loop,
      seconds: (performance.now() - started) / 1000,
      ghcb: () => this.ghcbCounts(),
      launchDigest: this.launchDigest,
    })
  }

  /** Until input arrives, at most so long. */
  async #sleep(milliseconds: number): Promise<void> {
    await Promise.race([
      pause(milliseconds),
      new Promise<void>((resolve) => {
        this.#wake = resolve
      }),
    ])
    this.#wake = null
  }

  /** GHCB events of all vCPUs by name. */
  ghcbCounts(): Record<string, number> {
    const sum: Record<string, number> = {}
    for (const vcpu of this.vcpus) for (const [name, n] of vcpu.notes.ghcbCounts()) sum[name] = (sum[name] ?? 0) + n
    return sum
  }

  /** Closes its KVM. */
  [Symbol.dispose](): void {
    this.kvm[Symbol.dispose]()
  }
}

/** CPUID Fn8000_001F_EBX[5:0]. */
function cBitPosition(kvm: Kvm): number {
  return (kvm.supportedCpuid().find((e) => e.function === 0x8000001f)?.ebx ?? 0) & 0x3f
}
