/** A VM driven by raw ioctl calls only, for the walker, the property test and the fuzzer: states are reached as a VMM would. */
import { CAP, type Kvm, type Mapping, REQUEST, SEV_COMMAND, TDX_COMMAND, type VmType } from 'cloister'

export const TYPE_NUMBER: Readonly<Record<VmType, number>> = {
  default: 0,
  'sev-legacy': 0,
  'sev-es-legacy': 0,
  sev: 2,
  'sev-es': 3,
  snp: 4,
  tdx: 5,
}
const PAGES = 16

/** Places in the scratch memory: struct kvm_tdx_init_vm, and what the conditions call $buf. */
const TD_AT = 0x4800
const BUF = 0x5000
const ZERO_AT = 0x4c00
const TD_INIT = `u64@0=${1 << 28} u64@8=7 u32@256=1 u32@264=0x80000008 u32@276=${48 << 16}`

export const isEs = (type: VmType): boolean => type.startsWith('sev-es')
export const hostOf = (type: VmType): 'amd' | 'intel' => (type === 'tdx' ? 'intel' : 'amd')

/** What stopped a state from being reached. */
export class NotReached extends Error {}

export class RawMachine {
  readonly kvm: Kvm
  readonly type: VmType
  readonly system: number
  readonly sev: number
  guestMemfd = -1
  readonly vm: number
  readonly memory: Mapping
  readonly scratch: Mapping
  readonly vcpus: number[] = []
  /** Its context was moved to another VM: it is dead. */
  moved = false
  /** The type that a case of the other host's asks about. */
  asked: VmType | null = null
  /** What the last case made ($new). */
  made = -1
  #split = false
  #fd = -1
  readonly #opened: number[] = []

  constructor(kvm: Kvm, type: VmType, shared?: { memory: Mapping; scratch: Mapping }) {
    this.kvm = kvm
    this.type = type
    this.system = kvm.open('/dev/kvm')
    this.sev = kvm.host === 'amd' ? kvm.open('/dev/sev') : -1
    this.memory = shared?.memory ?? kvm.mmap(-1, PAGES * 4096)
    this.scratch = shared?.scratch ?? kvm.mmap(-1, 0x8000)
    this.vm = this.#must(kvm.ioctl(this.system, REQUEST.KVM_CREATE_VM, TYPE_NUMBER[type]), 'KVM_CREATE_VM')
  }

  #must(result: number, what: string): number {
    if (result < 0) throw new NotReached(`${what} ${this.type}: ${result} ${this.kvm.lastRefusal()?.reason}`)
    return result
  }

  get vcpu(): number {
    return this.vcpus[0] ?? -1
  }

  /** struct bytes from `u32@0=1 u64@8=$mem`; `<KVM_GET_X` and `<$td` start from what is there. */
  struct(size: number, fields: string, fd = this.vcpu): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(size)
    const view = new DataView(bytes.buffer)
    for (const field of fields.split(' ').filter((f) => f !== '')) {
      if (field.startsWith('<')) {
        this.#start(field.slice(1), bytes, fd, fields)
        continue
      }
      const m = /^u(8|16|32|64)@(\d+)=(.+)$/.exec(field)
      if (m === null) throw new RangeError(`field ${field}`)
      const value = this.#value(m[3] as string)
      const at = Number(m[2])
      if (m[1] === '64') view.setBigUint64(at, BigInt.asUintN(64, value), true)
      else if (m[1] === '32') view.setUint32(at, Number(BigInt.asUintN(32, value)), true)
      else if (m[1] === '16') view.setUint16(at, Number(value), true)
      else view.setUint8(at, Number(value))
    }
    return bytes
  }

  #start(from: string, bytes: Uint8Array, fd: number, fields: string): void {
    if (from === '$td') bytes.set(this.struct(304, TD_INIT))
    else if (from === '$cpuid') bytes.set(this.supportedCpuid().subarray(0, bytes.length))
    else {
      // What selects the state comes first in the struct (chip_id).
      bytes.set(
        this.struct(
          8,
          fields
            .split(' ')
            .filter((f) => f.startsWith('u32@0='))
            .join(' '),
        ),
      )
      this.#must(this.kvm.ioctl(fd, REQUEST[from as keyof typeof REQUEST], bytes), from)
    }
  }

  supportedCpuid(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(8 + 256 * 40)
    new DataView(bytes.buffer).setUint32(0, 256, true)
    this.#must(this.kvm.ioctl(this.system, REQUEST.KVM_GET_SUPPORTED_CPUID, bytes), 'KVM_GET_SUPPORTED_CPUID')
    return bytes
  }

  /** Closed with the machine. */
  keep(fd: number): void {
    this.#opened.push(fd)
  }

  #open(fd: number): bigint {
    this.#opened.push(fd)
    return BigInt(fd)
  }

  get buf(): bigint {
    return this.scratch.address + BigInt(BUF)
  }

  #value(text: string): bigint {
    switch (text) {
      case '$buf':
        return this.buf
      case '$wild':
        return 0x10000n
      case '$edge':
        return this.memory.address + BigInt(this.memory.length - 4)
      case '$type':
        return BigInt(TYPE_NUMBER[this.asked ?? this.type])
      case '$new':
        return BigInt(this.made)
      case '$gmem':
        return this.#open(this.#must(this.ioctl('KVM_CREATE_GUEST_MEMFD', this.struct(64, `u64@0=${PAGES * 4096}`)), '$gmem'))
      case '$fd':
        if (this.#fd < 0) this.#fd = Number(this.#open(this.kvm.eventfd()))
        return BigInt(this.#fd)
      case '$zero':
        this.scratch.write(ZERO_AT, new Uint8Array(128))
        return this.scratch.address + BigInt(ZERO_AT)
      case '$start':
      case '$snp-start':
        this.scratch.write(ZERO_AT, this.struct(64, text === '$start' ? `u32@4=${isEs(this.type) ? 5 : 1}` : 'u64@0=0x30000'))
        return this.scratch.address + BigInt(ZERO_AT)
      case '$td':
        this.scratch.write(TD_AT, this.struct(304, TD_INIT))
        return this.scratch.address + BigInt(TD_AT)
      case '$mem':
        return this.memory.address
      case '$slot':
        return this.scratch.address
      case '$eventfd':
        return this.#open(this.kvm.eventfd())
      case '$sev':
        return BigInt(this.sev)
      case '$vm':
        return BigInt(this.vm)
      default:
        return BigInt(text)
    }
  }

  ioctl(name: keyof typeof REQUEST, arg: Uint8Array | number | bigint = 0, fd = this.vm): number {
    return this.kvm.ioctl(fd, REQUEST[name], arg)
  }

  /** KVM_MEMORY_ENCRYPT_OP with the struct's bytes behind `data`. */
  command(id: number, data: Uint8Array | null = null, fd = this.vm): number {
    const arg = new Uint8Array(24)
    const view = new DataView(arg.buffer)
    view.setUint32(0, id, true)
    if (data !== null) {
      this.scratch.write(0, data)
      view.setBigUint64(8, this.scratch.address, true)
    }
    if (this.type !== 'tdx') view.setInt32(20, this.sev, true)
    return this.kvm.ioctl(fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, arg)
  }

  do(step: string): void {
    const must = (result: number): number => this.#must(result, step)
    switch (step) {
      case 'init':
        if (this.type === 'default') return
        if (this.type === 'tdx') {
          if (!this.#split) this.do('split')
          this.do('td')
        } else if (this.type === 'sev-legacy') must(this.command(SEV_COMMAND.KVM_SEV_INIT))
        else if (this.type === 'sev-es-legacy') must(this.command(SEV_COMMAND.KVM_SEV_ES_INIT))
        else must(this.command(SEV_COMMAND.KVM_SEV_INIT2, new Uint8Array(48)))
        return
      case 'td':
        must(this.command(TDX_COMMAND.KVM_TDX_INIT_VM, this.struct(304, TD_INIT)))
        return
      case 'secure-tsc':
        must(this.command(SEV_COMMAND.KVM_SEV_INIT2, this.struct(48, 'u64@0=0x200')))
        return
      case 'irqchip':
        must(this.ioctl('KVM_CREATE_IRQCHIP'))
        return
      case 'split':
        must(this.ioctl('KVM_ENABLE_CAP', this.struct(104, `u32@0=${CAP.KVM_CAP_SPLIT_IRQCHIP} u64@8=24`)))
        this.#split = true
        return
      case 'pit':
        must(this.ioctl('KVM_CREATE_PIT2', new Uint8Array(64)))
        return
      case 'vcpu': {
        const id = this.vcpus.length
        this.vcpus.push(must(this.ioctl('KVM_CREATE_VCPU', id)))
        return
      }
      case 'cpuid': {
        const bytes = this.supportedCpuid()
        for (const vcpu of this.vcpus) must(this.kvm.ioctl(vcpu, REQUEST.KVM_SET_CPUID2, bytes))
        return
      }
      case 'slot':
        must(this.ioctl('KVM_SET_USER_MEMORY_REGION', this.struct(32, `u64@16=${PAGES * 4096} u64@24=$mem`)))
        return
      case 'log-slot':
        must(this.ioctl('KVM_SET_USER_MEMORY_REGION', this.struct(32, `u32@4=1 u64@16=${PAGES * 4096} u64@24=$mem`)))
        return
      case 'region':
        must(this.ioctl('KVM_MEMORY_ENCRYPT_REG_REGION', this.struct(16, 'u64@0=$mem u64@8=0x1000')))
        return
      case 'debug':
        must(this.ioctl('KVM_SET_GUEST_DEBUG', this.struct(72, 'u32@0=1'), this.vcpu))
        return
      case 'seal':
        this.#seal(must)
        return
      case 'gmem-slot':
        this.#gmemSlot(must)
        return
      case 'td-vcpu':
        for (const vcpu of this.vcpus) must(this.command(TDX_COMMAND.KVM_TDX_INIT_VCPU, null, vcpu))
        return
      case 'start':
        must(
          this.type === 'snp'
            ? this.command(SEV_COMMAND.KVM_SEV_SNP_LAUNCH_START, this.struct(64, 'u64@0=0x30000'))
            : this.command(SEV_COMMAND.KVM_SEV_LAUNCH_START, this.struct(40, `u32@4=${isEs(this.type) ? 5 : 1}`)),
        )
        return
      case 'data':
        must(this.command(SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_DATA, this.struct(16, 'u64@0=$mem u32@8=0x1000')))
        return
      case 'vmsa':
        must(this.command(SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_VMSA))
        return
      case 'measure': {
        const measure = this.struct(16, 'u32@8=48')
        new DataView(measure.buffer).setBigUint64(0, this.scratch.address + 0x4000n, true)
        must(this.command(SEV_COMMAND.KVM_SEV_LAUNCH_MEASURE, measure))
        return
      }
      case 'finish':
        must(this.command(SEV_COMMAND.KVM_SEV_LAUNCH_FINISH))
        return
      default:
        throw new RangeError(`step ${step}`)
    }
  }

  /** A slot with guest_memfd at 1 MiB whose pages are private. */
  #gmemSlot(must: (result: number) => number): void {
    const fd = (this.guestMemfd = must(this.ioctl('KVM_CREATE_GUEST_MEMFD', this.struct(64, `u64@0=${PAGES * 4096}`))))
    must(
      this.ioctl(
        'KVM_SET_USER_MEMORY_REGION2',
        this.struct(160, `u32@0=3 u32@4=4 u64@8=0x100000 u64@16=${PAGES * 4096} u64@24=$mem u32@40=${fd}`),
      ),
    )
    must(this.ioctl('KVM_SET_MEMORY_ATTRIBUTES', this.struct(32, `u64@0=0x100000 u64@8=${PAGES * 4096} u64@16=8`)))
  }

  #seal(must: (result: number) => number): void {
    switch (this.type) {
      case 'default':
        return
      case 'snp':
        this.#gmemSlot(must)
        this.do('start')
        must(this.command(SEV_COMMAND.KVM_SEV_SNP_LAUNCH_UPDATE, this.struct(64, 'u64@0=0x100 u64@8=$mem u64@16=0x1000 u8@24=1')))
        must(this.command(SEV_COMMAND.KVM_SEV_SNP_LAUNCH_FINISH, new Uint8Array(88)))
        return
      case 'tdx':
        this.do('cpuid')
        this.do('td-vcpu')
        must(this.command(TDX_COMMAND.KVM_TDX_FINALIZE_VM))
        return
      default:
        for (const step of ['start', 'data', ...(isEs(this.type) ? ['vmsa'] : []), 'measure', 'finish']) this.do(step)
    }
  }

  close(): void {
    for (const fd of [...this.#opened, ...this.vcpus]) this.kvm.close(fd)
    if (this.guestMemfd >= 0) this.kvm.close(this.guestMemfd) // it holds the VM
    this.kvm.close(this.vm)
    if (this.sev >= 0) this.kvm.close(this.sev)
    this.kvm.close(this.system)
  }
}
