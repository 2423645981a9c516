/**
 * Raw ioctls from valid states: requests of every row of the policy table on VMs of every type in every phase. Most arguments
 * are what a VMM would send with some bytes changed, the others hostile. Every answer is held against the executable model
 * (tests/kvm/model); no exception may escape, no trap, and a VM that is closed leaves not a byte behind.
 */
import { type Kvm, openKvm, policyTable, POLICY_TYPES, type PolicyEntry, REQUEST, type VmType } from 'cloister'
import {
  FRAME_INFO,
  FRAME_LINK,
  GLOBAL,
  GLOBAL_FRAME_TOP,
  GLOBAL_FREE_ARENAS,
  GLOBAL_FREE_FRAMES,
  SIZEOF_FRAME,
} from '../../host/generated/layout.ts'
import { bring, SETUPS } from './model/bring.ts'
import { Caller, type Pick } from './model/calls.ts'
import { Judge } from './model/judge.ts'
import type { Name } from './model/state.ts'
import { hostOf, NotReached, RawMachine } from './raw-machine.ts'

export interface FuzzReport {
  calls: number
  /** Calls that went past the first check: served, or refused for a reason of their own. */
  deep: number
  /** Calls whose answer the model foretold. */
  judged: number
  /** Rows x types x phases asked at least once. */
  cells: number
  wrong: string[]
  /** Bytes of the core's memory after the reserve was made and at the end, over all types. */
  memory: { before: number; after: number }
  /** Bytes that closed VMs left behind. */
  leaked: number
  descriptors: { before: number; after: number }
}

/** xorshift32: the same calls for the same seed. */
function generator(seed: number): Pick {
  let x = seed | 0 || 1
  return (n) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % n
  }
}

/** Memory of the core that is not on a free list. */
function liveBytes(kvm: Kvm): number {
  const v = kvm.kernel.core.view(0, kvm.kernel.core.memory.buffer.byteLength)
  let live = v.getUint32(GLOBAL + GLOBAL_FRAME_TOP, true)
  for (let frame = v.getUint32(GLOBAL + GLOBAL_FREE_FRAMES, true); frame !== 0; ) {
    live -= 4096
    frame = v.getUint32(FRAME_INFO + (frame >>> 12) * SIZEOF_FRAME + FRAME_LINK, true)
  }
  for (let run = v.getUint32(GLOBAL + GLOBAL_FREE_ARENAS, true); run !== 0; run = v.getUint32(run, true))
    live -= v.getUint32(run + 4, true) * 4096
  return live
}

const VCPUS = 3

/** A VM larger than any that follows: what it needed stays on the free lists, so that the core need not grow again. */
function reserve(kvm: Kvm): void {
  const vm = kvm.createVm('default')
  for (let i = 0; i < VCPUS + 2; i++) vm.createVcpu(i)
  kvm[Symbol.dispose]()
}

export async function fuzz(calls: number, seed: number, types: readonly VmType[] = POLICY_TYPES): Promise<FuzzReport> {
  const random = generator(seed)
  const table = [...policyTable().values()].filter((e) => e.request !== null && !/^KVM_(RUN|CREATE_VM)\b/.test(e.ioctl))
  const report: FuzzReport = {
    calls: 0,
    deep: 0,
    judged: 0,
    cells: 0,
    wrong: [],
    memory: { before: 0, after: 0 },
    leaked: 0,
    descriptors: { before: 0, after: 0 },
  }
  const cells = new Set<string>()
  const perType = Math.ceil(calls / types.length)
  for (const type of types) {
    const kvm = await openKvm({ memory: 192 << 20, host: hostOf(type) })
    reserve(kvm)
    const shared = { memory: kvm.mmap(-1, 0x10000), scratch: kvm.mmap(-1, 0x8000) }
    shared.memory.write(0, new Uint8Array(0x10000))
    shared.scratch.write(0, new Uint8Array(0x8000))
    // The typed wrapper's own scratch pages.
    kvm.scratch(new Uint8Array(0x10000))
    const size = kvm.kernel.core.memory.buffer.byteLength
    const live = liveBytes(kvm)
    const open = (): number => kvm.kernel.files.filter((f) => f !== null).length
    const files = open()
    for (let done = 0, round = 0; done < perType && report.wrong.length < 50; round++) {
      done += oneVm(kvm, type, shared, random, table, cells, report, Math.min(2000, perType - done), round)
      const left = liveBytes(kvm) - live
      if (left !== 0 && report.leaked === 0) report.wrong.push(`${type}, VM ${round}: ${left} bytes left behind`)
      report.leaked += Math.abs(left)
    }
    report.memory.before += size
    report.memory.after += kvm.kernel.core.memory.buffer.byteLength
    report.descriptors.before += files
    report.descriptors.after += open()
    for (const error of kvm.kernel.internalErrors.slice(0, 5))
      report.wrong.push(`${type}: internal error: ${error instanceof Error ? error.stack : String(error)}`)
    kvm[Symbol.dispose]()
  }
  report.cells = cells.size
  return report
}

/** Pointers and scalars that nobody should send. */
const HOSTILE = [0, 1, -1, 2 ** 40, Number.NaN, -1n, 1n << 63n, 7n] as const

function oneVm(
  kvm: Kvm,
  type: VmType,
  shared: { memory: RawMachine['memory']; scratch: RawMachine['scratch'] },
  random: Pick,
  table: readonly PolicyEntry[],
  cells: Set<string>,
  report: FuzzReport,
  calls: number,
  round: number,
): number {
  const floor = new Set(kvm.kernel.files.flatMap((f, fd) => (f === null ? [] : [fd])))
  const machine = new RawMachine(kvm, type, shared)
  const judge = new Judge(machine)
  const caller = new Caller(machine)
  const setup = SETUPS[round % SETUPS.length] as string
  try {
    bring(machine, judge, setup)
  } catch (error) {
    if (!(error instanceof NotReached)) throw error
    report.wrong.push(`${type}: ${setup}: ${error.message}`)
  }
  const sealed = setup.includes('seal')
  let n = 0
  for (; n < calls; n++) {
    const entry = table[random(table.length)] as PolicyEntry
    const name = entry.ioctl.split(/[@ ]/)[0] as Name
    if (!(name in REQUEST) || (name === 'KVM_CREATE_VCPU' && machine.vcpus.length >= VCPUS)) continue
    cells.add(`${entry.ioctl} ${entry.scope} ${type} ${sealed ? 1 : 0}`)
    const onVcpu = entry.scope === 'vcpu' || (entry.scope === 'vm+vcpu' && random(2) === 1)
    report.calls++
    let result: number
    let wrong: string | null = null
    const hostile = random(8) === 0
    if (entry.scope === 'system' || hostile || (onVcpu && machine.vcpus.length === 0)) {
      // Refused by the argument, or without an effect on what the model follows.
      const fd = entry.scope.startsWith('system') ? machine.system : onVcpu ? (machine.vcpus[0] ?? -1) : machine.vm
      const request = REQUEST[name]
      const size = request >>> 30 === 0 ? 0 : (request >>> 16) & 0x3fff
      const scalar = HOSTILE[random(HOSTILE.length)] as number | bigint
      const argument =
        size === 0 ? (entry.scope.startsWith('system') ? random(8) : Number.NaN) : random(2) ? scalar : new Uint8Array(random(size))
      result = size === 0 && !entry.scope.startsWith('system') && name !== 'KVM_CREATE_VCPU' ? 0 : kvm.ioctl(fd, request, argument)
      if (!Number.isInteger(result)) wrong = `${entry.ioctl}: ${String(result)}`
      if (result >= 0 && name === 'KVM_CREATE_VCPU') wrong = 'a vCPU with a hostile id'
    } else {
      const vcpu = onVcpu ? random(machine.vcpus.length) : null
      const argument = caller.argument(name, vcpu, random)
      const answer = judge.call(name, vcpu, argument)
      ;({ result, wrong } = answer)
      if (answer.judged) report.judged++
      if (name === 'KVM_CREATE_GUEST_MEMFD' && result >= 0) caller.noteGmem(result)
    }
    const refusal = result < 0 ? kvm.lastRefusal() : null
    if (refusal === null || (refusal.code !== 'EFAULT' && refusal.code !== 'EBADF' && !refusal.source.includes('(default)'))) report.deep++
    if (wrong !== null) report.wrong.push(`${type}, ${setup || 'created'}, VM ${round}, call ${n}: ${wrong}`)
  }
  for (let fd = kvm.kernel.files.length - 1; fd >= 3; fd--) if (kvm.kernel.file(fd) !== null && !floor.has(fd)) kvm.close(fd)
  return n
}
