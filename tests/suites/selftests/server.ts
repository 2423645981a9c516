/**
 * The kernel of one client process: runs PROGRAM with shim.so preloaded and answers its file operations with `openKvm`.
 *   LD_PRELOAD=share.so node server.js SHIM HOST LINUX PROGRAM [ARGUMENT...]
 * share.so puts the core's memory into a memfd. Ends with the program's status (128 + signal). CLOISTER_SHIM_TRACE=FILE
 * writes a line per operation.
 */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, readlinkSync, readSync, rmSync, writeSync, readdirSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import type { CpuidEntry } from '../../../host/cpuid/entries.ts'
import { REQUEST } from '../../../host/generated/kvm-abi.ts'
import { CPU_RIP, WHY_BLOCKED, WHY_HALTED_FOREVER, WHY_USER_DEADLINE, WHY_WAIT_SIPI } from '../../../host/generated/layout.ts'
import { GuestMemfd } from '../../../host/kvm/guest-memfd.ts'
import { type Kvm, openKvm } from '../../../host/kvm/kvm.ts'
import { StatsFd } from '../../../host/kvm/stats.ts'
import { VcpuFd } from '../../../host/kvm/vcpu.ts'
import { ClientSpace, type Segment } from './space.ts'

const EINTR = 4
const ENOENT = 2
const ENOMEM = 12
const ENOTTY = 25
/** kvm_userspace_memory_region2.guest_memfd. */
const GUEST_MEMFD_AT = 40
/** Slots that are shared eagerly: the core's memory is 4 GiB. */
const MOST = 3 * 2 ** 30

const [shim, host, linux, program, ...programArguments] = process.argv.slice(2)
if (shim === undefined || program === undefined || (host !== 'amd' && host !== 'intel') || (linux !== '6.12' && linux !== '7.3')) {
  process.stderr.write('usage: server.js SHIM amd|intel 6.12|7.3 PROGRAM [ARGUMENT...]\n')
  process.exit(122)
}

/** Module parameters that clients read: of a machine without nested virtualisation, AVIC and PMU. */
const PARAMETERS: Readonly<Record<string, string>> = {
  'kvm/ignore_msrs': 'N',
  'kvm/enable_pmu': 'N',
  'kvm/tdp_mmu': 'Y',
  'kvm/eager_page_split': 'Y',
  'kvm/force_emulation_prefix': '0',
  'kvm/nx_huge_pages': 'N',
  ...(host === 'amd'
    ? {
        'kvm_amd/npt': 'Y',
        'kvm_amd/avic': 'N',
        'kvm_amd/nested': '0',
        'kvm_amd/lbrv': '0',
        'kvm_amd/enable_mediated_pmu': 'N',
        'kvm_amd/sev': 'Y',
        'kvm_amd/sev_es': 'Y',
        'kvm_amd/sev_snp': 'Y',
      }
    : {
        'kvm_intel/ept': 'Y',
        'kvm_intel/unrestricted_guest': 'Y',
        'kvm_intel/nested': 'N',
        'kvm_intel/enable_mediated_pmu': 'N',
        'kvm_intel/tdx': 'Y',
      }),
}

/** Where share.so put the core's memory: its descriptor, and the file offset of WebAssembly address 0. */
function sharedMemory(): { fd: number; base: number } {
  const line = readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .find((l) => l.includes('memfd:cloister-wasm') && / rw.s /.test(l))
  const fd = readdirSync('/proc/self/fd').find((f) => {
    try {
      return readlinkSync(`/proc/self/fd/${f}`).startsWith('/memfd:cloister-wasm')
    } catch {
      return false
    }
  })
  if (line === undefined || fd === undefined) throw new Error('the memory is not shared: share.so is not preloaded')
  return { fd: Number(fd), base: Number.parseInt(line.split(/\s+/)[2] as string, 16) }
}

const trace = process.env['CLOISTER_SHIM_TRACE'] === undefined ? -1 : openSync(process.env['CLOISTER_SHIM_TRACE'], 'a')
const names = new Map<number, string>(Object.entries(REQUEST).map(([name, code]) => [code, name]))

const REQUEST_SIZE = 48

interface Asked {
  readonly op: number
  readonly fd: number
  readonly request: number
  readonly spare: number
  readonly pid: number
  readonly a: number
  readonly b: number
  readonly c: bigint
}

class Server {
  readonly #kvm: Kvm
  readonly #space: ClientSpace
  readonly #table: readonly CpuidEntry[]
  readonly #shared: { fd: number; base: number }
  #pid = 0
  readonly #memories = new Map<number, number>()
  /** Of the answer under way. */
  value = 0
  segments: Segment[] = []

  constructor(kvm: Kvm) {
    this.#kvm = kvm
    this.#table = kvm.supportedCpuid()
    this.#space = new ClientSpace(kvm.kernel.core, MOST)
    Object.defineProperty(kvm.kernel, 'memory', { value: this.#space })
    this.#shared = sharedMemory()
    // openKvm's own descriptor makes room: the client's numbers are its own.
    kvm.close(3)
  }

  get space(): ClientSpace {
    return this.#space
  }

  get base(): number {
    return this.#shared.base
  }

  /** A new file gets the number that the client chose. */
  #place(result: number, fd: number): number {
    if (result < 0) return result
    const { files } = this.#kvm.kernel
    while (files.length <= fd) files.push(null)
    const file = files[result] ?? null
    files[result] = null
    files[fd] = file
    return fd
  }

  #text(address: number): string {
    const bytes = new Uint8Array(1)
    let text = ''
    for (let at = address; text.length < 256 && this.#space.peek(at, bytes) && bytes[0] !== 0; at++)
      text += String.fromCharCode(bytes[0] as number)
    return text
  }

  #run(fd: number, argument: number, most: number): number {
    const vcpu = this.#kvm.kernel.file(fd)
    if (!(vcpu instanceof VcpuFd) || argument !== 0 || vcpu.vm.dead) return this.#kvm.ioctl(fd, REQUEST.KVM_RUN, argument)
    let result: number
    try {
      result = vcpu.run(most)
    } catch (error) {
      return this.#kvm.kernel.internal('KVM_RUN', error)
    }
    if (result === -EINTR && vcpu.runBytes[1] === 0) {
      const halted = [WHY_BLOCKED, WHY_HALTED_FOREVER, WHY_USER_DEADLINE, WHY_WAIT_SIPI].includes(vcpu.why)
      this.value = halted ? 2 : 1
    }
    return result
  }

  /** A descriptor of the client that KVM knows nothing of is open all the same (-EINVAL and not -EBADF). */
  #ordinaryFile(fd: number): boolean {
    const { files } = this.#kvm.kernel
    if ((files[fd] ?? null) !== null || fd < 0 || !existsSync(`/proc/${this.#pid}/fd/${fd}`)) return false
    while (files.length <= fd) files.push(null)
    files[fd] = { kind: 'stats', ioctl: () => -ENOTTY, close: () => undefined }
    return true
  }

  #ioctl(asked: Asked, argument: bigint): number {
    if (asked.request !== REQUEST.KVM_SET_USER_MEMORY_REGION2) return this.#call(asked, argument)
    const field = new Uint8Array(4)
    const named = this.#space.peek(asked.a + GUEST_MEMFD_AT, field) ? new DataView(field.buffer).getInt32(0, true) : -1
    const placed = this.#ordinaryFile(named)
    const result = this.#call(asked, argument)
    if (placed) this.#kvm.kernel.files[named] = null
    return result
  }

  #call(asked: Asked, argument: bigint): number {
    const { fd, request, spare } = asked
    this.#space.forgetWanted()
    const result = this.#kvm.ioctl(fd, request, (request >>> 16) & 0x3fff ? argument : asked.a)
    // The firmware works on physical pages: the client's buffer has to become such.
    const { wanted } = this.#space
    if (result < 0 && wanted !== null && request === REQUEST.KVM_MEMORY_ENCRYPT_OP) {
      this.value = 1
      this.segments = [{ ...wanted, offset: 0 }]
      return result
    }
    if (spare < 0 || result < 0) return result
    if (request !== REQUEST.KVM_CREATE_DEVICE) return this.#place(result, spare)
    const made = new Uint8Array(4)
    this.#space.peek(asked.a + 4, made)
    this.#place(new DataView(made.buffer).getInt32(0, true), spare)
    new DataView(made.buffer).setInt32(0, spare, true)
    this.#space.poke(asked.a + 4, made)
    return result
  }

  /** Another process speaks: a forked child, or its parent again. */
  #process(pid: number): void {
    let memory = this.#memories.get(pid)
    if (memory === undefined) {
      memory = openSync(`/proc/${pid}/mem`, 'r+')
      this.#memories.set(pid, memory)
    }
    this.#pid = pid
    this.#space.memory = memory
  }

  /** As the client's own CPU: what KVM supports, with the operating system's XSAVE on. */
  #cpuid(leaf: number, index: number): number {
    const entry = this.#table.find((e) => e.function === leaf && ((e.flags & 1) === 0 || e.index === index))
    const osxsave = leaf === 1 ? 1 << 27 : 0
    const { eax = 0, ebx = 0, ecx = 0, edx = 0 } = entry ?? {}
    const pair = (a: number, b: number): Segment => ({ at: a >>> 0, length: b >>> 0, offset: 0 })
    this.segments = [pair(eax, ebx), pair(ecx | osxsave, edx)]
    return 0
  }

  #mmap(fd: number, length: number, offset: number): number {
    const file = this.#kvm.kernel.file(fd)
    const refused = -(this.#kvm.lastRefusal()?.errno ?? 0)
    try {
      const mapping = this.#kvm.mmap(fd, length, offset)
      if (mapping.bytes !== undefined) this.segments = [{ at: 0, length, offset: mapping.bytes.byteOffset }]
      else if (mapping.backing !== 0) {
        this.#kvm.kernel.core.call.backingFill(mapping.backing, 0, Number((file as GuestMemfd).size) / 4096)
        // Behind the end of the file is nothing.
        this.segments = this.#space.segments(mapping.backing, offset, Math.min(length, Number((file as GuestMemfd).size) - offset))
      }
      return 0
    } catch {
      return this.#kvm.lastRefusal()?.errno ?? refused
    }
  }

  #fallocate(asked: Asked): number {
    const { fd, request, a, b } = asked
    const result = this.#kvm.fallocate(fd, request, a, b)
    const file = this.#kvm.kernel.file(fd)
    // A mapping shows new pages where a hole was punched.
    if (result === 0 && file instanceof GuestMemfd && file.mappable && a < Number(file.size)) {
      const length = Math.min(b, Number(file.size) - a)
      this.#kvm.kernel.core.call.backingFill(file.backing, a / 4096, length / 4096)
      this.segments = this.#space.segments(file.backing, a, length)
    }
    return result
  }

  #read(fd: number, address: number, length: number, offset: bigint): number {
    const bytes = new Uint8Array(Math.min(length, 1 << 20))
    const file = this.#kvm.kernel.file(fd)
    const n = file instanceof StatsFd && offset !== 0xffff_ffff_ffff_ffffn ? file.readAt(Number(offset), bytes) : this.#kvm.read(fd, bytes)
    if (n > 0 && !this.#space.poke(address, bytes.subarray(0, n))) return -14
    return n
  }

  #write(fd: number, address: number, length: number): number {
    const bytes = new Uint8Array(Math.min(length, 1 << 20))
    return this.#space.peek(address, bytes) ? this.#kvm.write(fd, bytes) : -14
  }

  #parameter(path: string, buffer: number, length: number): number {
    const match = /^\/sys\/module\/(kvm(?:_amd|_intel)?)\/parameters\/(\w+)$/.exec(path)
    const value = match === null ? undefined : PARAMETERS[`${match[1]}/${match[2]}`]
    if (value === undefined) return -ENOENT
    const bytes = new TextEncoder().encode(`${value}\n`).subarray(0, length)
    this.#space.poke(buffer, bytes)
    return bytes.length
  }

  #close(fd: number): number {
    const { files } = this.#kvm.kernel
    const file = files[fd]
    if (file === null || file === undefined || files.indexOf(file) === files.lastIndexOf(file)) return this.#kvm.close(fd)
    files[fd] = null
    return 0
  }

  #dup(fd: number, other: number): number {
    const { files } = this.#kvm.kernel
    while (files.length <= other) files.push(null)
    files[other] = files[fd] ?? null
    return other
  }

  serve(asked: Asked, argument: bigint): number {
    const { op, fd, a, b, c } = asked
    this.value = 0
    this.segments = []
    if (asked.pid !== this.#pid) this.#process(asked.pid)
    switch (op) {
      case 1:
        return this.#place(this.#kvm.open(this.#text(a)), fd)
      case 2:
        return this.#close(fd)
      case 3:
        return this.#ioctl(asked, argument)
      case 4:
        return this.#run(fd, asked.request, a)
      case 5:
        return this.#mmap(fd, a, b)
      case 6: {
        const { unshared } = this.#space
        const segments = this.#space.claim(a, b)
        if (segments === null) return -ENOMEM
        this.value = this.#space.unshared > unshared ? 1 : 0
        this.segments = segments
        return 0
      }
      case 7:
        this.#space.unclaim(a, b, asked.spare !== 0)
        return 0
      case 8:
        return this.#fallocate(asked)
      case 9:
        return this.#read(fd, a, b, c)
      case 10:
        return this.#write(fd, a, b)
      case 11:
        return this.#place(this.#kvm.eventfd(), fd)
      case 12:
        return this.#parameter(this.#text(a), b, Number(c))
      case 13:
        this.value = process.pid
        this.segments = [{ at: this.#shared.fd, length: 0, offset: 0 }]
        return 0
      case 14:
        return this.#dup(fd, asked.spare)
      case 15:
        return this.#cpuid(a, b)
      default:
        throw new RangeError(`operation ${op}`)
    }
  }

  note(asked: Asked, result: number): void {
    const what = asked.op === 3 ? (names.get(asked.request) ?? `0x${asked.request.toString(16)}`) : `op ${asked.op}`
    const reason = result < 0 && result !== -EINTR ? ` ${this.#kvm.lastRefusal()?.reason ?? ''}` : ''
    const file = this.#kvm.kernel.file(asked.fd)
    const exit =
      asked.op === 4 && file instanceof VcpuFd
        ? ` exit ${file.runView.getUint32(8, true)} rip 0x${file.cpu.getBigUint64(CPU_RIP, true).toString(16)}`
        : ''
    writeSync(trace, `${what} fd ${asked.fd} 0x${asked.a.toString(16)} 0x${asked.b.toString(16)} = ${result}${exit}${reason}\n`)
  }

  /** What a good run leaves empty. */
  complaints(): string[] {
    const list = this.#kvm.kernel.internalErrors.map((e) => `internal error: ${e instanceof Error ? (e.stack ?? e.message) : String(e)}`)
    if (this.#space.unshared > 0) list.push(`note: ${this.#space.unshared} slots were too large to be shared`)
    return list
  }
}

function readAll(fd: number, bytes: Uint8Array): boolean {
  for (let done = 0; done < bytes.length; ) {
    const n = readSync(fd, bytes, done, bytes.length - done, null)
    if (n === 0) return false
    done += n
  }
  return true
}

const directory = mkdtempSync(join(tmpdir(), 'cloister-shim-'))
const [requests, answers] = [join(directory, 'request'), join(directory, 'answer')]
if (spawnSync('mkfifo', [requests, answers]).status !== 0) throw new Error('mkfifo')

const server = new Server(await openKvm({ host, linux }))
/** CPUID instructions of a program that is linked to fixed addresses. */
function cpuidAddresses(path: string): string {
  const listing = spawnSync('objdump', ['-d', '--no-show-raw-insn', path], { encoding: 'utf8', maxBuffer: 1 << 28 }).stdout
  return [...listing.matchAll(/^\s*([0-9a-f]+):\s+cpuid\b/gm)].map((m) => m[1]).join(',')
}

const child = spawn(program, programArguments, {
  stdio: ['ignore', 'inherit', 'inherit'],
  env: { ...process.env, LD_PRELOAD: shim, CLOISTER_SHIM: directory, CLOISTER_SHIM_CPUID: cpuidAddresses(program) },
})
const ended = new Promise<number>((resolve) => {
  child.on('error', () => resolve(127))
  child.on('exit', (status, signal) => resolve(status ?? 128 + constants.signals[signal ?? 'SIGKILL']))
})

const from = openSync(requests, 'r')
const to = openSync(answers, 'w')
const bytes = new Uint8Array(REQUEST_SIZE)
const view = new DataView(bytes.buffer)
while (readAll(from, bytes)) {
  const asked: Asked = {
    op: view.getUint32(0, true),
    fd: view.getInt32(4, true),
    request: view.getUint32(8, true),
    spare: view.getInt32(12, true),
    pid: view.getUint32(16, true),
    a: Number(view.getBigUint64(24, true)),
    b: Number(view.getBigUint64(32, true)),
    c: view.getBigUint64(40, true),
  }
  const result = server.serve(asked, view.getBigUint64(24, true))
  if (trace >= 0) server.note(asked, result)
  const { segments } = server
  const answer = new DataView(new ArrayBuffer(16 + segments.length * 24))
  answer.setBigInt64(0, BigInt(result), true)
  answer.setUint32(8, server.value, true)
  answer.setUint32(12, segments.length, true)
  segments.forEach((s, i) => {
    answer.setBigUint64(16 + i * 24, BigInt(s.at), true)
    answer.setBigUint64(24 + i * 24, BigInt(s.length), true)
    answer.setBigUint64(32 + i * 24, BigInt(s.offset + server.base), true)
  })
  try {
    writeSync(to, new Uint8Array(answer.buffer))
  } catch {
    break // killed
  }
}
closeSync(from)
closeSync(to)
rmSync(directory, { recursive: true })
for (const complaint of server.complaints()) process.stderr.write(`server: ${complaint}\n`)
process.exitCode = await ended
