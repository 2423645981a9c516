/**
 * Replays what a real VMM asked of /dev/kvm (an strace log) on the modelled KVM, call by call, and says where the
 * answers differ and why. Guests are not executed: KVM_RUN is entered with a budget of no instruction, so
 * every check before the guest is made and nothing after it.
 */
import { CloisterError } from '../errors.ts'
import { encodeCpuid } from '../cpuid/entries.ts'
import { CAP, ERRNO, REQUEST, VM_TYPE } from '../generated/kvm-abi.ts'
import { VKVM_INTERRUPT } from '../generated/layout.ts'
import { type Kvm, openKvm } from '../kvm/kvm.ts'
import type { Mapping } from '../kvm/mapping.ts'
import { UNKNOWN_IOCTL } from '../kvm/dispatch.ts'
import { hold } from '../kvm/held-events.ts'
import { VcpuFd } from '../kvm/vcpu.ts'
import type { Linux, PolicyType, ProfileSource } from '../policy/index.ts'
import { type Command, commandData, commandId, guessLaunch, initCommand } from './guess.ts'
import { isStruct, type LoggedCall, parseLog, requestOf, type Value } from './log.ts'
import { encode, fieldOf, hasFields, knownErrno, scalar } from './structs.ts'

/** `value`: both succeed with different numbers; `unknown`: the log does not hold what the answer depends on. */
export type Verdict = 'same' | 'value' | 'differs' | 'unknown' | 'unimplemented' | 'injected'

export interface ReplayedCall {
  /** Line of the log; null for a call that the replay added. */
  line: number | null
  fd: 'system' | 'vm' | 'vcpu' | 'device' | 'sev'
  ioctl: string
  /** What was logged: `0`, `-EINVAL`, `?`. */
  logged: string
  /** What this KVM answers. */
  answer: string
  verdict: Verdict
  /** What had to be assumed because the log does not show it. */
  assumed: string | null
  reason: string | null
  source: string | null
  switch: string | null
  /** So many calls in a row were alike. */
  count: number
}

export interface ReplayReport {
  schema: 1
  type: PolicyType | null
  host: 'amd' | 'intel'
  calls: ReplayedCall[]
  /** Index in `calls` of the first call that is answered differently. */
  firstDifference: number | null
  summary: Record<Verdict, number>
}

export interface ReplayOptions {
  /** Replay every VM of the log as this type; default: the log's own. */
  readonly type?: PolicyType
  readonly linux?: Linux
  readonly profile?: ProfileSource
  /** Issue the type's own launch commands where a VMM for it would, if the log has none. */
  readonly launch?: boolean
}

interface VmState {
  readonly fd: number
  readonly type: PolicyType
  /** Type by the log's own KVM_CREATE_VM. */
  readonly own: PolicyType
  readonly commands: Command[]
  readonly slots: { address: bigint; gpa: bigint; size: bigint }[]
  next: number
  pages: number
  launched: boolean
}

interface File {
  readonly kind: ReplayedCall['fd'] | 'other'
  readonly fd: number
  readonly vm: VmState | null
  vcpuReady: boolean
  readonly run: Mapping | null
}

interface Region {
  readonly address: bigint
  readonly length: bigint
  mapping: Mapping | null
}

const SIZE = (code: number): number => (code >>> 30 === 0 ? 0 : (code >>> 16) & 0x3fff)
/** Requests whose number is the answer. */
const VALUES = new Set(['KVM_GET_API_VERSION', 'KVM_CHECK_EXTENSION', 'KVM_GET_VCPU_MMAP_SIZE', 'KVM_GET_TSC_KHZ'])
const PAIRS: Readonly<Record<string, keyof typeof REQUEST>> = {
  KVM_SET_REGS: 'KVM_GET_REGS',
  KVM_SET_SREGS: 'KVM_GET_SREGS',
  KVM_SET_SREGS2: 'KVM_GET_SREGS2',
  KVM_SET_VCPU_EVENTS: 'KVM_GET_VCPU_EVENTS',
  KVM_SET_LAPIC: 'KVM_GET_LAPIC',
  KVM_SET_XSAVE: 'KVM_GET_XSAVE',
  KVM_SET_FPU: 'KVM_GET_FPU',
  KVM_SET_XCRS: 'KVM_GET_XCRS',
  KVM_SET_DEBUGREGS: 'KVM_GET_DEBUGREGS',
  KVM_SET_CLOCK: 'KVM_GET_CLOCK',
  KVM_SET_PIT2: 'KVM_GET_PIT2',
  KVM_SET_IRQCHIP: 'KVM_GET_IRQCHIP',
}
/** What a VM can enable (kvm_vm_ioctl_enable_cap). */
const ENABLED: ReadonlySet<number> = new Set([
  CAP.KVM_CAP_SPLIT_IRQCHIP,
  CAP.KVM_CAP_EXIT_HYPERCALL,
  CAP.KVM_CAP_X86_USER_SPACE_MSR,
  CAP.KVM_CAP_EXCEPTION_PAYLOAD,
  CAP.KVM_CAP_X86_TRIPLE_FAULT_EVENT,
  CAP.KVM_CAP_X2APIC_API,
  CAP.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
  CAP.KVM_CAP_DIRTY_LOG_RING,
  CAP.KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
  CAP.KVM_CAP_HALT_POLL,
  CAP.KVM_CAP_MSR_PLATFORM_INFO,
  CAP.KVM_CAP_DISABLE_QUIRKS,
  CAP.KVM_CAP_DISABLE_QUIRKS2,
  CAP.KVM_CAP_X86_DISABLE_EXITS,
  CAP.KVM_CAP_X86_BUS_LOCK_EXIT,
  CAP.KVM_CAP_MAX_VCPU_ID,
  CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
  CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
])
/** Without their contents there is nothing to ask. */
const OPAQUE = new Set([
  'KVM_SET_USER_MEMORY_REGION',
  'KVM_SET_USER_MEMORY_REGION2',
  'KVM_GET_DIRTY_LOG',
  'KVM_CLEAR_DIRTY_LOG',
  'KVM_CREATE_GUEST_MEMFD',
])

export async function replay(text: string, options: ReplayOptions = {}): Promise<ReplayReport> {
  const calls = parseLog(text)
  const kvmCall = (c: LoggedCall): boolean =>
    c.name === 'ioctl' && (requestOf(c.args[1]).name.startsWith('KVM_') || scalar(c.args[1]) === 0xae01n)
  if (!calls.some(kvmCall))
    throw new CloisterError('log', 'no KVM ioctl in this log; make it with: strace -f -e trace=ioctl,openat,mmap -o LOG VMM...')
  const first = calls.find((c) => c.name === 'ioctl' && requestOf(c.args[1]).name === 'KVM_CREATE_VM')
  const type = options.type ?? ownType(calls, first)
  const host = type === 'tdx' ? 'intel' : 'amd'
  const kvm = await openKvm({
    host,
    ...(options.linux && { linux: options.linux }),
    ...(options.profile && { profile: options.profile as 'upstream' }),
  })
  const machine = new Replayer(kvm, calls, options)
  for (const call of calls) machine.step(call)
  const { report } = machine
  if (report.length === 0)
    throw new CloisterError('log', 'no KVM ioctl of this log can be placed: neither the opening of /dev/kvm nor KVM_CREATE_VM is in it')
  const summary: Record<Verdict, number> = { same: 0, value: 0, differs: 0, unknown: 0, unimplemented: 0, injected: 0 }
  for (const call of report) summary[call.verdict] += call.count
  const index = report.findIndex((call) => call.verdict === 'differs')
  return { schema: 1, type, host, calls: report, firstDifference: index < 0 ? null : index, summary }
}

const TYPES: Readonly<Record<number, PolicyType>> = { 0: 'default', 2: 'sev', 3: 'sev-es', 4: 'snp', 5: 'tdx' }

function ownType(calls: readonly LoggedCall[], create: LoggedCall | undefined): PolicyType {
  const type = TYPES[Number(scalar(create?.args[2]) ?? 0n)] ?? 'default'
  const encrypts = calls.some((c) => c.name === 'ioctl' && requestOf(c.args[1]).name === 'KVM_MEMORY_ENCRYPT_OP')
  return type === 'default' && encrypts ? 'sev-legacy' : type
}

class Replayer {
  readonly #kvm: Kvm
  readonly #calls: readonly LoggedCall[]
  readonly #options: ReplayOptions
  readonly #files = new Map<number, File>()
  readonly #regions: Region[] = []
  readonly #events = new Map<bigint, number>()
  readonly #scratch: Mapping
  readonly report: ReplayedCall[] = []
  /** Capability that each thread asked for last: what its next KVM_ENABLE_CAP is for. */
  readonly #asked = new Map<number, number>()
  #doors = 0

  constructor(kvm: Kvm, calls: readonly LoggedCall[], options: ReplayOptions) {
    this.#kvm = kvm
    this.#calls = calls
    this.#options = options
    this.#scratch = kvm.mmap(-1, 0x10000)
  }

  step(call: LoggedCall): void {
    if (call.name === 'openat') this.#open(call)
    else if (call.name === 'mmap') this.#mmap(call)
    else this.#ioctl(call)
  }

  #open({ args, result }: LoggedCall): void {
    const path = args[1]
    if ((path !== '/dev/kvm' && path !== '/dev/sev') || result === null || result < 0n) {
      // A descriptor that is used again for something else is no longer ours.
      if (result !== null && result >= 0n) this.#files.delete(Number(result))
      return
    }
    const fd = this.#kvm.open(path)
    if (fd >= 0)
      this.#files.set(Number(result), { kind: path === '/dev/sev' ? 'sev' : 'system', fd, vm: null, vcpuReady: false, run: null })
  }

  #mmap({ args, result }: LoggedCall): void {
    const length = scalar(args[1])
    if (result === null || result < 0n || length === null || length === 0n) return
    this.#regions.push({ address: BigInt.asUintN(64, result), length, mapping: null })
  }

  /** Our address for an address of the log. */
  #address(value: bigint, length: bigint): bigint {
    if (value === 0n || value >= 1n << 47n) return value
    let region = this.#regions.findLast((r) => value >= r.address && value + length <= r.address + r.length)
    if (region === undefined) {
      region = { address: value, length: length === 0n ? 4096n : length, mapping: null }
      this.#regions.push(region)
    }
    try {
      region.mapping ??= this.#kvm.mmap(-1, Number(region.length))
    } catch {
      return value
    }
    return region.mapping.address + (value - region.address)
  }

  #file(call: LoggedCall): File | null {
    const fd = Number(scalar(call.args[0]) ?? -1n)
    const file = this.#files.get(fd)
    if (file !== undefined) return file
    // The log began after /dev/kvm was opened.
    const { name } = requestOf(call.args[1])
    if (name !== 'KVM_CREATE_VM' && name !== 'KVM_GET_API_VERSION' && name !== 'KVM_CHECK_EXTENSION') return null
    const made: File = { kind: 'system', fd: this.#kvm.open('/dev/kvm'), vm: null, vcpuReady: false, run: null }
    this.#files.set(fd, made)
    return made
  }

  #ioctl(call: LoggedCall): void {
    const file = this.#file(call)
    if (file === null || file.kind === 'other') return
    const { code, name } = requestOf(call.args[1])
    if (code === null) {
      this.#note(call, file, name, null, 'a request that this KVM does not know by name')
      return
    }
    if (name === 'KVM_CREATE_VM') this.#createVm(call, file)
    else if (name === 'KVM_RUN') this.#run(call, file)
    else if (name === 'KVM_MEMORY_ENCRYPT_OP') this.#encrypt(call, file, code)
    else this.#plain(call, file, code, name)
  }

  #createVm(call: LoggedCall, file: File): void {
    const logged = Number(scalar(call.args[2]) ?? 0n)
    const commandsOf = (fd: number): LoggedCall[] =>
      this.#calls.filter(
        (c) => c.name === 'ioctl' && requestOf(c.args[1]).name === 'KVM_MEMORY_ENCRYPT_OP' && Number(scalar(c.args[0])) === fd,
      )
    const ours = call.result === null ? [] : commandsOf(Number(call.result))
    const own = TYPES[logged] ?? 'default'
    const type = this.#options.type ?? (own === 'default' && ours.length > 0 ? 'sev-legacy' : own)
    const number =
      type === 'tdx' ? VM_TYPE.TDX : type === 'snp' ? VM_TYPE.SNP : type === 'sev-es' ? VM_TYPE.SEV_ES : type === 'sev' ? VM_TYPE.SEV : 0
    const argument = this.#options.type === undefined ? logged : number
    const result = this.#kvm.ioctl(file.fd, REQUEST.KVM_CREATE_VM, argument)
    this.#compare(call, file, 'KVM_CREATE_VM', result, argument === logged ? null : `type ${argument} (${type}) instead of ${logged}`)
    if (result < 0 || call.result === null || call.result < 0n) return
    const guessed = ours.filter((c) => !isStruct(c.args[2]))
    const launchType = own === 'default' && ours.length > 0 ? (type.endsWith('legacy') ? type : 'sev-legacy') : own
    const vm: VmState = {
      fd: result,
      type,
      own: launchType,
      commands: guessLaunch(launchType, guessed),
      slots: [],
      next: 0,
      pages: 0,
      launched: ours.length > 0,
    }
    this.#files.set(Number(call.result), { kind: 'vm', fd: result, vm, vcpuReady: false, run: null })
    const init = initCommand(type)
    if (this.#options.launch && !vm.launched && init !== null) this.#inject(vm, init)
  }

  /** A launch command of the replay's own. */
  #inject(vm: VmState, command: Command, fd = vm.fd): number {
    const result = this.#command(vm, fd, command, false)
    this.#push(null, fd === vm.fd ? 'vm' : 'vcpu', `KVM_MEMORY_ENCRYPT_OP ${command}`, '-', result, 'injected', 'not in the log: --launch')
    return result
  }

  #launch(vm: VmState): void {
    if (!this.#options.launch || vm.launched || vm.type === 'default') return
    vm.launched = true
    const es = vm.type.startsWith('sev-es')
    const sequence: Command[] =
      vm.type === 'tdx'
        ? ['KVM_TDX_FINALIZE_VM']
        : vm.type === 'snp'
          ? ['KVM_SEV_SNP_LAUNCH_START', 'KVM_SEV_SNP_LAUNCH_UPDATE', 'KVM_SEV_SNP_LAUNCH_FINISH']
          : [
              'KVM_SEV_LAUNCH_START',
              'KVM_SEV_LAUNCH_UPDATE_DATA',
              ...(es ? (['KVM_SEV_LAUNCH_UPDATE_VMSA'] as const) : []),
              'KVM_SEV_LAUNCH_MEASURE',
              'KVM_SEV_LAUNCH_FINISH',
            ]
    for (const command of sequence) if (this.#inject(vm, command) < 0) break
  }

  #command(vm: VmState, fd: number, command: Command, failed: boolean): number {
    const slot = vm.slots[0]
    const page = BigInt(vm.pages) * 4096n
    const memory = slot === undefined ? this.#scratch.address : slot.address + (page < slot.size ? page : 0n)
    if (command.includes('UPDATE_DATA') || command.includes('LAUNCH_UPDATE') || command.includes('MEM_REGION')) vm.pages++
    const data = commandData(command, {
      es: vm.type.startsWith('sev-es'),
      failed,
      memory,
      gpa: (slot?.gpa ?? 0n) + page,
      scratch: this.#scratch.address + 0x8000n,
    })
    const sev = this.#kvm.open('/dev/sev')
    const bytes = new Uint8Array(24)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, commandId(command), true)
    if (data !== null) {
      this.#scratch.write(0x1000, data)
      view.setBigUint64(8, this.#scratch.address + 0x1000n, true)
    }
    if (!command.startsWith('KVM_TDX')) view.setInt32(20, sev, true)
    return this.#kvm.ioctl(fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, bytes)
  }

  #encrypt(call: LoggedCall, file: File, code: number): void {
    const { vm } = file
    const argument = call.args[2]
    if (vm === null || isStruct(argument)) {
      const id = isStruct(argument) ? argument.fields.get('id') : undefined
      this.#plain(call, file, code, typeof id === 'string' ? `KVM_MEMORY_ENCRYPT_OP ${id}` : 'KVM_MEMORY_ENCRYPT_OP')
      return
    }
    let command: Command
    if (file.kind === 'vcpu') {
      command = call.errno === 'E2BIG' ? 'KVM_TDX_GET_CPUID' : file.vcpuReady ? 'KVM_TDX_INIT_MEM_REGION' : 'KVM_TDX_INIT_VCPU'
      if (command === 'KVM_TDX_INIT_VCPU') file.vcpuReady = true
    } else command = vm.commands[vm.next++] ?? 'KVM_SEV_GUEST_STATUS'
    const result = this.#command(vm, file.fd, command, call.errno !== null)
    this.#compare(call, file, `KVM_MEMORY_ENCRYPT_OP ${command}`, result, 'the command, from its place in the launch')
  }

  #run(call: LoggedCall, file: File): void {
    if (file.run === null || file.vm === null) return
    this.#launch(file.vm)
    // No instruction at all: every check before the entry, nothing of the guest.
    const vcpu = this.#kvm.kernel.file(file.fd)
    const result = vcpu instanceof VcpuFd ? vcpu.run(0) : -ERRNO.EBADF
    const entered = result === 0 || result === -ERRNO.EINTR
    const logged = call.errno
    // The guest of the log took what was waiting for it.
    if (entered && vcpu instanceof VcpuFd) takeEvents(vcpu)
    const ran = logged === null || logged === 'EINTR' || logged === 'EAGAIN' || logged.startsWith('ERESTART')
    if (entered) {
      const words = ran ? null : 'depends on what the guest did, and guests are not executed here'
      this.#push(call, 'vcpu', 'KVM_RUN', loggedText(call), 0, ran ? 'same' : 'unknown', words, 'enters')
    } else this.#compare(call, file, 'KVM_RUN', result, null)
  }

  /** Every other request. */
  #plain(call: LoggedCall, file: File, code: number, name: string): void {
    const size = SIZE(code)
    const request = name.split(' ')[0] as string
    if (request === 'KVM_CREATE_VCPU' && file.vm?.type === 'tdx' && this.#options.launch && !file.vm.launched && file.vm.pages === 0) {
      file.vm.pages = 1
      this.#inject(file.vm, 'KVM_TDX_INIT_VM')
    }
    const argument = call.args[2]
    let assumed: string | null = null
    let result: number
    if (size === 0) {
      let value =
        typeof argument === 'string' && argument.startsWith('KVM_CAP_') && scalar(argument) === null
          ? 0xfffff
          : Number(scalar(argument) ?? 0n)
      if (request === 'KVM_CHECK_EXTENSION') this.#asked.set(call.pid, value)
      if (request === 'KVM_SET_TSC_KHZ' && value !== 0) value = 0
      result = this.#kvm.ioctl(file.fd, code, value)
    } else {
      let bytes: Uint8Array | null = null
      if (isStruct(argument) && hasFields(request)) {
        bytes = encode(request, size, argument, (field, given) => this.#translate(field, given, argument, request))
        if (argument.partial) assumed = 'fields that strace left out are 0'
      } else if (scalar(argument) === 0n) bytes = null
      else if (OPAQUE.has(request)) {
        this.#note(call, file, name, null, 'the log shows only a pointer')
        return
      } else {
        const made = this.#contents(call, file, code, request, size)
        if (made === null) {
          this.#note(call, file, name, null, 'the log shows only a pointer')
          return
        }
        bytes = made.bytes
        assumed = made.why
      }
      result = this.#kvm.ioctl(file.fd, code, bytes ?? 0n)
      if (request.startsWith('KVM_SET_USER_MEMORY_REGION') && bytes !== null && result >= 0 && file.vm !== null) remember(file.vm, bytes)
    }
    const named = typeof argument === 'string' && size === 0 ? `${name} ${argument}` : name
    this.#compare(call, file, named, result, assumed)
    if (result < 0 || call.result === null || call.result < 0n) return
    if (request === 'KVM_CREATE_VCPU') {
      const length = this.#kvm.ioctl(this.#kvm.open('/dev/kvm'), REQUEST.KVM_GET_VCPU_MMAP_SIZE, 0)
      this.#files.set(Number(call.result), { kind: 'vcpu', fd: result, vm: file.vm, vcpuReady: false, run: this.#kvm.mmap(result, length) })
    } else if (request === 'KVM_GET_STATS_FD' || request === 'KVM_CREATE_GUEST_MEMFD') {
      this.#files.set(Number(call.result), {
        kind: request === 'KVM_GET_STATS_FD' ? 'other' : 'device',
        fd: result,
        vm: file.vm,
        vcpuReady: false,
        run: null,
      })
    }
  }

  #translate(field: string, given: bigint, argument: Value | undefined, request: string): bigint {
    switch (field) {
      case 'userspace_addr':
        return this.#address(given, fieldOf(argument, 'memory_size') ?? 0n)
      case 'addr':
        return request.includes('REGION')
          ? this.#address(given, fieldOf(argument, 'size') ?? 0n)
          : request.includes('ATTR')
            ? this.#scratch.address
            : given
      case 'dirty_bitmap':
        return this.#scratch.address
      case 'data':
        return request === 'KVM_MEMORY_ENCRYPT_OP' ? this.#commandData(argument) : given
      case 'guest_memfd':
      case 'sev_fd':
        return BigInt(this.#files.get(Number(given))?.fd ?? Number(BigInt.asIntN(32, given)))
      case 'fd':
      case 'resamplefd':
        return request === 'KVM_IRQFD' || request === 'KVM_IOEVENTFD' ? this.#eventfd(given) : given
      case 'arg':
        return BigInt(
          this.#files.get(Number(given))?.kind === 'vm' && fieldOf(argument, 'cap') === BigInt(CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM)
            ? (this.#files.get(Number(given))?.fd ?? 0)
            : given,
        )
      default:
        return given
    }
  }

  /** kvm_sev_cmd.data of a decoded command: its struct is not in the log. */
  #commandData(argument: Value | undefined): bigint {
    const id = isStruct(argument) ? argument.fields.get('id') : undefined
    if (typeof id !== 'string') return 0n
    const vm = [...this.#files.values()].find((f) => f.kind === 'vm')?.vm
    const slot = vm?.slots[0]
    const data = commandData(id as Command, {
      es: (vm?.type ?? '').startsWith('sev-es'),
      failed: false,
      memory: slot?.address ?? this.#scratch.address,
      gpa: slot?.gpa ?? 0n,
      scratch: this.#scratch.address + 0x8000n,
    })
    if (data === null) return 0n
    this.#scratch.write(0x1000, data)
    return this.#scratch.address + 0x1000n
  }

  #eventfd(given: bigint): bigint {
    if (given < 0n || given >= 1n << 31n) return given
    let fd = this.#events.get(given)
    if (fd === undefined) {
      fd = this.#kvm.eventfd()
      this.#events.set(given, fd)
    }
    return BigInt(fd)
  }

  /** Bytes for a struct that the log does not show; null: nothing sensible can be assumed. */
  #contents(call: LoggedCall, file: File, code: number, name: string, size: number): { bytes: Uint8Array; why: string } | null {
    const short = call.errno === 'E2BIG'
    const zeros = new Uint8Array(size)
    const view = new DataView(zeros.buffer)
    const out = (bytes: Uint8Array, why: string) => ({ bytes, why })
    const list = (header: number, entry: number, n: number): Uint8Array => {
      const bytes = new Uint8Array(header + entry * 512)
      new DataView(bytes.buffer).setUint32(0, n, true)
      return bytes
    }
    const pair = PAIRS[name]
    if (pair !== undefined) {
      const bytes = new Uint8Array(Math.max(size, SIZE(REQUEST[pair])))
      if (this.#kvm.ioctl(file.fd, REQUEST[pair], bytes) < 0) bytes.fill(0)
      return out(bytes, 'the contents: what the matching KVM_GET_* gives')
    }
    switch (name) {
      case 'KVM_GET_MSR_INDEX_LIST':
      case 'KVM_GET_MSR_FEATURE_INDEX_LIST':
        return out(list(4, 4, short ? 0 : 512), 'the length')
      case 'KVM_GET_SUPPORTED_CPUID':
      case 'KVM_GET_EMULATED_CPUID':
      case 'KVM_GET_CPUID2':
        return out(list(8, 40, short ? 0 : 256), 'the length')
      case 'KVM_SET_CPUID2':
        return out(encodeCpuid(this.#kvm.supportedCpuid()), 'the entries: what KVM_GET_SUPPORTED_CPUID gives')
      case 'KVM_GET_MSRS':
      case 'KVM_SET_MSRS': {
        const bytes = list(8, 16, 1)
        new DataView(bytes.buffer).setUint32(8, file.kind === 'system' ? 0x10a : 0x10, true)
        return out(bytes, 'one harmless MSR')
      }
      case 'KVM_ENABLE_CAP': {
        const asked = this.#asked.get(call.pid)
        if (asked === undefined) return null
        // Asking for the in-kernel irqchip and then enabling something is how the split one is chosen.
        const cap = asked === CAP.KVM_CAP_IRQCHIP ? CAP.KVM_CAP_SPLIT_IRQCHIP : asked
        // Not asked for before it is enabled (KVM_CAP_MAX_VCPU_ID, for one): nobody can tell which it is.
        if (!ENABLED.has(cap)) return null
        view.setUint32(0, cap, true)
        view.setBigUint64(8, cap === CAP.KVM_CAP_SPLIT_IRQCHIP ? 24n : cap === CAP.KVM_CAP_EXIT_HYPERCALL ? 0x1000n : 1n, true)
        const capName = Object.entries(CAP).find(([, n]) => n === cap)?.[0] ?? `capability ${cap}`
        // A capability that this KVM cannot enable was probably not the one.
        if (this.#kvm.ioctl(file.fd, REQUEST.KVM_CHECK_EXTENSION, cap) === 0) return null
        return out(zeros, `${capName}, which the thread asked for last`)
      }
      case 'KVM_MEMORY_ENCRYPT_REG_REGION':
      case 'KVM_MEMORY_ENCRYPT_UNREG_REGION': {
        const slot = file.vm?.slots.at(-1)
        if (slot === undefined) return null
        view.setBigUint64(0, slot.address, true)
        view.setBigUint64(8, slot.size, true)
        return out(zeros, 'the region: the slot set last')
      }
      case 'KVM_SET_MEMORY_ATTRIBUTES': {
        const slot = file.vm?.slots.at(-1)
        if (slot === undefined) return null
        view.setBigUint64(0, slot.gpa, true)
        view.setBigUint64(8, slot.size, true)
        view.setBigUint64(16, 8n, true)
        return out(zeros, 'PRIVATE for the slot set last')
      }
      case 'KVM_IRQFD':
        view.setUint32(0, Number(this.#eventfd(BigInt(1000 + this.#doors))), true)
        view.setUint32(4, this.#doors++ % 24, true)
        return out(zeros, 'an eventfd and a GSI')
      case 'KVM_IOEVENTFD':
        view.setBigUint64(8, BigInt(0x2000 + this.#doors++), true)
        view.setUint32(16, 1, true)
        view.setUint32(20, Number(this.#eventfd(2000n)), true)
        view.setUint32(24, 2, true)
        return out(zeros, 'an eventfd on a free port')
      case 'KVM_GET_DEVICE_ATTR':
      case 'KVM_SET_DEVICE_ATTR':
      case 'KVM_HAS_DEVICE_ATTR':
        view.setBigUint64(16, this.#scratch.address, true)
        return out(zeros, 'group 0, attribute 0')
      case 'KVM_X86_SETUP_MCE':
        view.setBigUint64(0, 0x10an, true)
        return out(zeros, '10 banks')
      case 'KVM_SET_SIGNAL_MASK':
        view.setUint32(0, 8, true)
        return out(zeros, 'an empty mask')
      case 'KVM_SET_IDENTITY_MAP_ADDR':
        view.setBigUint64(0, 0xfeffc000n, true)
        return out(zeros, 'the usual address')
      case 'KVM_SIGNAL_MSI':
        view.setUint32(0, 0xfee00000, true)
        return out(zeros, 'vector 0 to APIC 0')
      default:
        return out(zeros, code >>> 30 === 2 ? 'nothing: an output' : 'the contents: zeros')
    }
  }

  #compare(call: LoggedCall, file: File, name: string, result: number, assumed: string | null): void {
    const kind = file.kind === 'other' ? 'device' : file.kind
    const refusal = result < 0 ? this.#kvm.lastRefusal() : null
    let verdict: Verdict
    if (refusal !== null && (refusal.unimplemented || refusal.source === UNKNOWN_IOCTL)) verdict = 'unimplemented'
    else if (call.result === null) verdict = 'unknown'
    else if (call.errno !== null) {
      const same = result < 0 && knownErrno(call.errno) && result === -ERRNO[call.errno as keyof typeof ERRNO]
      // A refusal may lie in contents that the log does not show.
      verdict = same ? 'same' : assumed !== null ? 'unknown' : 'differs'
    } else if (result < 0) verdict = name === 'KVM_ENABLE_CAP' && assumed !== null ? 'unknown' : 'differs'
    else verdict = VALUES.has(name.split(' ')[0] as string) && BigInt(result) !== call.result ? 'value' : 'same'
    this.#push(call, kind, name, loggedText(call), result, verdict, assumed)
  }

  #note(call: LoggedCall, file: File, name: string, answer: number | null, why: string): void {
    this.#push(call, file.kind === 'other' ? 'device' : file.kind, name, loggedText(call), answer, 'unknown', why)
  }

  #push(
    call: LoggedCall | null,
    fd: ReplayedCall['fd'],
    ioctl: string,
    logged: string,
    result: number | null,
    verdict: Verdict,
    assumed: string | null,
    words?: string,
  ): void {
    const refusal = result !== null && result < 0 ? this.#kvm.lastRefusal() : null
    const answer = words ?? (result === null ? 'not asked' : result < 0 ? `-${refusal?.code ?? result}` : String(result))
    const last = this.report.at(-1)
    const reason = refusal?.reason ?? null
    if (
      call !== null &&
      last?.ioctl === ioctl &&
      last.fd === fd &&
      last.answer === answer &&
      last.verdict === verdict &&
      last.logged === logged &&
      last.reason === reason
    ) {
      last.count++
      return
    }
    this.report.push({
      line: call?.line ?? null,
      fd,
      ioctl,
      logged,
      answer,
      verdict,
      assumed,
      reason,
      source: refusal?.source ?? null,
      switch: refusal?.switch ?? null,
      count: 1,
    })
  }
}

/** Vectors and exceptions that an executed guest would have taken. */
function takeEvents(vcpu: VcpuFd): void {
  vcpu.kvm.setUint32(VKVM_INTERRUPT, 0, true)
  hold(vcpu, { exception: null, nmi: false, tripleFault: false })
}

const loggedText = (call: LoggedCall): string =>
  call.result === null
    ? '?'
    : call.errno !== null
      ? `-${call.errno}`
      : `${call.result}${call.note.startsWith('KVM_EXIT') ? ` ${call.note}` : ''}`

function remember(vm: VmState, bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer)
  const size = view.getBigUint64(16, true)
  if (size > 0n) vm.slots.push({ gpa: view.getBigUint64(8, true), size, address: view.getBigUint64(24, true) })
}
