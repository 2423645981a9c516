/**
 * Replays what a real VMM asked of /dev/kvm (an strace log) on the modelled KVM, call by call, and says where the
 * answers differ and why. Guests are not executed: KVM_RUN is entered with a budget of no instruction, so
 * every check before the guest is made and nothing after it.
 */
import { CloisterError } from '../errors.ts'
import { CAP, ERRNO, REQUEST, VM_TYPE } from '../generated/kvm-abi.ts'
import { VKVM_INTERRUPT } from '../generated/layout.ts'
import { type Kvm, openKvm } from '../kvm/kvm.ts'
import { hold } from '../kvm/held-events.ts'
import { VcpuFd } from '../kvm/vcpu.ts'
import type { Linux, PolicyType, ProfileSource } from '../policy/index.ts'
import { Contents, OPAQUE } from './contents.ts'
import { type Command, guessLaunch, initCommand } from './guess.ts'
import { Launches } from './launch.ts'
import { isStruct, type LoggedCall, parseLog, requestOf, type Value } from './log.ts'
import { LoggedProcess, type File, type VmState } from './process.ts'
import { Findings, loggedText, type ReplayedCall, type ReplayReport, type Verdict } from './report.ts'
import { encode, fieldOf, hasFields, scalar, structSize } from './structs.ts'

export interface ReplayOptions {
  /** Replay every VM of the log as this type; default: the log's own. */
  readonly type?: PolicyType
  readonly linux?: Linux
  readonly profile?: ProfileSource
  /** Issue the type's own launch commands where a VMM for it would, if the log has none. */
  readonly launch?: boolean
}

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
  const report = machine.calls
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
  readonly #process: LoggedProcess
  readonly #findings: Findings
  readonly #launches: Launches
  readonly #contents: Contents

  constructor(kvm: Kvm, calls: readonly LoggedCall[], options: ReplayOptions) {
    this.#kvm = kvm
    this.#calls = calls
    this.#options = options
    this.#process = new LoggedProcess(kvm)
    this.#findings = new Findings(kvm)
    this.#launches = new Launches(kvm, this.#process, this.#findings)
    this.#contents = new Contents(kvm, this.#process)
  }

  get calls(): ReplayedCall[] {
    return this.#findings.calls
  }

  step(call: LoggedCall): void {
    if (call.name === 'openat') this.#process.open(call)
    else if (call.name === 'mmap') this.#process.mmap(call)
    else this.#ioctl(call)
  }

  #ioctl(call: LoggedCall): void {
    const file = this.#process.file(call)
    if (file === null || file.kind === 'other') return
    const { code, name } = requestOf(call.args[1])
    if (code === null) {
      this.#findings.note(call, file.kind, name, 'a request that this KVM does not know by name')
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
    this.#findings.compare(
      call,
      file.kind,
      'KVM_CREATE_VM',
      result,
      argument === logged ? null : `type ${argument} (${type}) instead of ${logged}`,
    )
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
    this.#process.files.set(Number(call.result), { kind: 'vm', fd: result, vm, vcpuReady: false, run: null })
    const init = initCommand(type)
    if (this.#options.launch && !vm.launched && init !== null) this.#launches.inject(vm, init)
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
    const result = this.#launches.command(vm, file.fd, command, call.errno !== null)
    this.#findings.compare(call, file.kind, `KVM_MEMORY_ENCRYPT_OP ${command}`, result, 'the command, from its place in the launch')
  }

  #run(call: LoggedCall, file: File): void {
    if (file.run === null || file.vm === null) return
    if (this.#options.launch) this.#launches.launch(file.vm)
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
      this.#findings.push(call, 'vcpu', 'KVM_RUN', loggedText(call), 0, ran ? 'same' : 'unknown', words, 'enters')
    } else this.#findings.compare(call, file.kind, 'KVM_RUN', result, null)
  }

  /** Every other request. */
  #plain(call: LoggedCall, file: File, code: number, name: string): void {
    const size = structSize(code)
    const request = name.split(' ')[0] as string
    if (request === 'KVM_CREATE_VCPU' && file.vm?.type === 'tdx' && this.#options.launch && !file.vm.launched && file.vm.pages === 0) {
      file.vm.pages = 1
      this.#launches.inject(file.vm, 'KVM_TDX_INIT_VM')
    }
    const argument = call.args[2]
    let assumed: string | null = null
    let result: number
    if (size === 0) {
      let value =
        typeof argument === 'string' && argument.startsWith('KVM_CAP_') && scalar(argument) === null
          ? 0xfffff
          : Number(scalar(argument) ?? 0n)
      if (request === 'KVM_CHECK_EXTENSION') this.#process.asked.set(call.pid, value)
      if (request === 'KVM_SET_TSC_KHZ' && value !== 0) value = 0
      result = this.#kvm.ioctl(file.fd, code, value)
    } else {
      let bytes: Uint8Array | null = null
      if (isStruct(argument) && hasFields(request)) {
        bytes = encode(request, size, argument, (field, given) => this.#translate(field, given, argument, request))
        if (argument.partial) assumed = 'fields that strace left out are 0'
      } else if (scalar(argument) === 0n) bytes = null
      else if (OPAQUE.has(request)) {
        this.#findings.note(call, file.kind, name, 'the log shows only a pointer')
        return
      } else {
        const made = this.#contents.of(call, file, code, request, size)
        if (made === null) {
          this.#findings.note(call, file.kind, name, 'the log shows only a pointer')
          return
        }
        bytes = made.bytes
        assumed = made.why
      }
      result = this.#kvm.ioctl(file.fd, code, bytes ?? 0n)
      if (request.startsWith('KVM_SET_USER_MEMORY_REGION') && bytes !== null && result >= 0 && file.vm !== null) remember(file.vm, bytes)
    }
    const named = typeof argument === 'string' && size === 0 ? `${name} ${argument}` : name
    this.#findings.compare(call, file.kind, named, result, assumed)
    if (result < 0 || call.result === null || call.result < 0n) return
    if (request === 'KVM_CREATE_VCPU') {
      const length = this.#kvm.ioctl(this.#kvm.open('/dev/kvm'), REQUEST.KVM_GET_VCPU_MMAP_SIZE, 0)
      this.#process.files.set(Number(call.result), {
        kind: 'vcpu',
        fd: result,
        vm: file.vm,
        vcpuReady: false,
        run: this.#kvm.mmap(result, length),
      })
    } else if (request === 'KVM_GET_STATS_FD' || request === 'KVM_CREATE_GUEST_MEMFD') {
      this.#process.files.set(Number(call.result), {
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
        return this.#process.address(given, fieldOf(argument, 'memory_size') ?? 0n)
      case 'addr':
        return request.includes('REGION')
          ? this.#process.address(given, fieldOf(argument, 'size') ?? 0n)
          : request.includes('ATTR')
            ? this.#process.scratch.address
            : given
      case 'dirty_bitmap':
        return this.#process.scratch.address
      case 'data':
        return request === 'KVM_MEMORY_ENCRYPT_OP' ? this.#launches.commandData(argument) : given
      case 'guest_memfd':
      case 'sev_fd':
        return BigInt(this.#process.files.get(Number(given))?.fd ?? Number(BigInt.asIntN(32, given)))
      case 'fd':
      case 'resamplefd':
        return request === 'KVM_IRQFD' || request === 'KVM_IOEVENTFD' ? this.#process.eventfd(given) : given
      case 'arg':
        return BigInt(
          this.#process.files.get(Number(given))?.kind === 'vm' && fieldOf(argument, 'cap') === BigInt(CAP.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM)
            ? (this.#process.files.get(Number(given))?.fd ?? 0)
            : given,
        )
      default:
        return given
    }
  }
}

/** Vectors and exceptions that an executed guest would have taken. */
function takeEvents(vcpu: VcpuFd): void {
  vcpu.kvm.setUint32(VKVM_INTERRUPT, 0, true)
  hold(vcpu, { exception: null, nmi: false, tripleFault: false })
}

function remember(vm: VmState, bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer)
  const size = view.getBigUint64(16, true)
  if (size > 0n) vm.slots.push({ gpa: view.getBigUint64(8, true), size, address: view.getBigUint64(24, true) })
}
