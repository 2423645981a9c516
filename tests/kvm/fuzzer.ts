/**
 * Raw ioctls from valid states: requests of every row with plausible, mutated and hostile arguments on VMs of every type in
 * every phase. No exception may escape, no trap, no memory growth; cells that the policy table holds firm must answer so.
 */
import { ERRNO, type Kvm, openKvm, policyTable, POLICY_TYPES, type PolicyEntry, REQUEST, type VmType } from 'cloister'
import { hostOf, NotReached, RawMachine } from './raw-machine.ts'

export interface FuzzReport {
  calls: number
  /** Calls that went past the first check: served, or refused for a reason of their own. */
  deep: number
  /** Rows x types x phases asked at least once. */
  cells: number
  wrong: string[]
  /** Bytes of the core's memory after the first round and at the end. */
  memory: { before: number; after: number }
  descriptors: { before: number; after: number }
}

const NONE = { KVM_RUN: 1, KVM_CREATE_VM: 1 } as const

/** xorshift32: the same calls for the same seed. */
function generator(seed: number): (n: number) => number {
  let x = seed | 0 || 1
  return (n) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % n
  }
}

const SETUPS = [
  [],
  ['init'],
  ['init', 'irqchip', 'pit', 'slot', 'vcpu', 'cpuid'],
  ['init', 'slot', 'vcpu', 'cpuid'],
  ['init', 'slot', 'vcpu', 'seal'],
] as const

/** Struct bytes: a GET's own answer, small numbers, pointers, or noise. */
function fill(bytes: Uint8Array, random: (n: number) => number, machine: RawMachine, request: number): void {
  const view = new DataView(bytes.buffer)
  const kind = random(8)
  if (kind === 0) for (let i = 0; i < bytes.length; i++) bytes[i] = random(256)
  if (kind === 1) bytes.fill(255)
  if (kind >= 2 && kind <= 5 && bytes.length >= 24) {
    view.setUint32(0, random(4), true)
    view.setUint32(4, random(4) === 0 ? random(8) : 0, true)
    view.setBigUint64(8, random(2) ? machine.memory.address + BigInt(random(16) * 4096) : BigInt(random(64) * 4096), true)
    view.setBigUint64(16, random(3) ? BigInt(random(16) * 4096) : machine.scratch.address, true)
    if (bytes.length >= 32) view.setBigUint64(24, random(2) ? machine.memory.address : BigInt(random(16)), true)
  }
  if (request === REQUEST.KVM_MEMORY_ENCRYPT_OP) {
    view.setUint32(0, random(5) ? random(24) : 100 + random(5), true)
    view.setUint32(4, 0, true)
    view.setBigUint64(8, random(8) ? machine.scratch.address : BigInt(random(2 ** 31)), true)
    view.setUint32(16, 0, true)
    if (machine.type !== 'tdx') view.setInt32(20, random(6) ? machine.sev : random(40), true)
    const data = new Uint8Array(64)
    const inner = new DataView(data.buffer)
    for (let at = 0; at < 64; at += 8) {
      const value = random(4) === 0 ? machine.memory.address + BigInt(random(17) * 0x800) : random(3) ? 0n : BigInt(random(0x3000))
      inner.setBigUint64(at, value, true)
    }
    machine.scratch.write(0, data)
  }
}

export async function fuzz(calls: number, seed: number, types: readonly VmType[] = POLICY_TYPES): Promise<FuzzReport> {
  const random = generator(seed)
  const table = [...policyTable().values()].filter((e) => e.request !== null && !((e.ioctl.split(/[@ ]/)[0] as string) in NONE))
  const report: FuzzReport = {
    calls: 0,
    deep: 0,
    cells: 0,
    wrong: [],
    memory: { before: 0, after: 0 },
    descriptors: { before: 0, after: 0 },
  }
  const cells = new Set<string>()
  const perType = Math.ceil(calls / types.length)
  for (const type of types) {
    const kvm = await openKvm({ memory: 128 << 20, host: hostOf(type) })
    const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
    const settled = Math.min(100, Math.floor(perType / 4000))
    let done = 0
    let base = 0
    let files = 0
    for (let round = 0; done < perType; round++) {
      done += oneVm(kvm, type, shared, random, table, cells, report, Math.min(2000, perType - done), round)
      // Everything a VM held is given back with its last descriptor; the high-water mark is reached after a few of them.
      const open = kvm.kernel.files.filter((f) => f !== null).length
      if (round === settled) {
        base = kvm.kernel.core.memory.buffer.byteLength
        files = open
      }
    }
    if (base > 0) {
      report.memory.before += base
      report.memory.after += kvm.kernel.core.memory.buffer.byteLength
      report.descriptors.before += files
      report.descriptors.after += kvm.kernel.files.filter((f) => f !== null).length
    }
    for (const error of kvm.kernel.internalErrors.slice(0, 5))
      report.wrong.push(`${type}: internal error: ${error instanceof Error ? error.stack : String(error)}`)
    kvm[Symbol.dispose]()
  }
  report.cells = cells.size
  return report
}

function oneVm(
  kvm: Kvm,
  type: VmType,
  shared: { memory: RawMachine['memory']; scratch: RawMachine['scratch'] },
  random: (n: number) => number,
  table: readonly PolicyEntry[],
  cells: Set<string>,
  report: FuzzReport,
  calls: number,
  round: number,
): number {
  const column = POLICY_TYPES.indexOf(type)
  const floor = new Set(kvm.kernel.files.flatMap((f, fd) => (f === null ? [] : [fd])))
  const machine = new RawMachine(kvm, type, shared)
  const setup = SETUPS[round % SETUPS.length] as readonly (typeof SETUPS)[number][number][]
  let sealed = setup.includes('seal' as never)
  try {
    for (const step of setup) if (type !== 'tdx' || (step !== 'irqchip' && step !== 'pit')) machine.do(step)
  } catch (error) {
    if (!(error instanceof NotReached)) throw error
    sealed = false
  }
  let n = 0
  for (; n < calls; n++) {
    const entry = table[random(table.length)] as PolicyEntry
    const name = entry.ioctl.split(/[@ ]/)[0] as keyof typeof REQUEST
    if (name === 'KVM_CREATE_VCPU' && machine.vcpus.length > 2) continue
    const vcpu = entry.scope === 'vcpu' || (entry.scope === 'vm+vcpu' && random(2) === 1)
    const fd = entry.scope.startsWith('system')
      ? random(2)
        ? machine.system
        : machine.vm
      : vcpu
        ? (machine.vcpus.at(-1) ?? -1)
        : machine.vm
    const request = entry.request as number
    const size = (request >>> 16) & 0x3fff
    const pick = random(12)
    let arg: Uint8Array | number | bigint
    if (size === 0)
      arg = pick < 8 ? random(8) : ([-1, 2 ** 40, Number.NaN, -1n, 1n << 63n, machine.memory.address][pick % 6] as number | bigint)
    else if (pick === 0)
      arg = [0, 1, -1n, 1n << 63n, machine.memory.address, machine.memory.address + 0xfff0n, Number.NaN][random(7)] as number | bigint
    else {
      const bytes = new Uint8Array(pick === 1 ? random(size) : Math.max(size, 24) + (random(4) === 0 ? 40 * random(64) : 0))
      if (bytes.length > 24) fill(bytes, random, machine, request)
      arg = bytes
    }
    const result = kvm.ioctl(fd, request, arg)
    report.calls++
    const refusal = result < 0 ? kvm.lastRefusal() : null
    if (!Number.isInteger(result)) report.wrong.push(`${entry.ioctl} ${type}: ${String(result)}`)
    if (name === 'KVM_CREATE_VCPU' && result >= 0) machine.vcpus.push(result)
    const first = refusal !== null && (refusal.code === 'EFAULT' || refusal.code === 'EBADF' || refusal.source === 'unknown ioctl')
    if (!first) report.deep++
    const phase = sealed ? 1 : 0
    cells.add(`${entry.ioctl} ${entry.scope} ${type} ${phase}`)
    // What the table refuses, whatever the argument: nothing else may come out (but a bad pointer or a dead VM).
    const rule = entry.rules[column]?.[phase]
    if (
      rule?.result === 'error' &&
      !rule.conditional &&
      setup.length > 2 &&
      entry.scope === 'vcpu' &&
      type !== 'tdx' &&
      (sealed || type !== 'snp')
    ) {
      const wanted = -ERRNO[rule.errno as keyof typeof ERRNO]
      if (machine.vcpus.length === 1 && result !== wanted && refusal?.code !== 'EFAULT' && refusal?.code !== 'EIO')
        report.wrong.push(`${entry.ioctl} ${type} ${setup.join(' ')}: table ${rule.errno}, got ${result} (${refusal?.reason})`)
    }
  }
  for (let fd = kvm.kernel.files.length - 1; fd >= 3; fd--) if (kvm.kernel.file(fd) !== null && !floor.has(fd)) kvm.close(fd)
  return n
}
