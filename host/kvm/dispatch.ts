/**
 * ioctl dispatch: request -> entry -> policy -> handler. Entries are made from the request codes of
 * spec/kvm-abi; their order of checks is the kernel's: dead VM, unknown request, copy in (-EFAULT),
 * policy, handler, copy out.
 */
import { REQUEST } from '../generated/kvm-abi.ts'
import type { PolicyEntry, PolicyRule } from '../policy/table.ts'
import type { ErrnoName, IoctlArgument, Kernel } from './kernel.ts'

export type RequestName = keyof typeof REQUEST

/**
 * Serves one request. `bytes` is the struct (empty for scalar requests), `value` the scalar argument,
 * `rule` what the policy table says for this VM type and phase.
 */
export type Handler<T> = (target: T, bytes: Uint8Array, value: number, rule: PolicyRule | null) => number

export interface HandlerOptions {
  /** Total size of a struct with a variable tail, from its header; 0 = header only. */
  readonly tail?: (header: DataView) => number
  /** Row of the policy table, if its name differs from the request's. */
  readonly row?: string
  /** Bytes copied in; the request code's own size field is wrong for a few requests. */
  readonly size?: number
  /** The handler has checks of its own even where the table says that the effect is ignored. */
  readonly checks?: boolean
  /** Argument 0 is legal. */
  readonly nullable?: boolean
  /** The struct is copied in although the request code says _IOR (and nothing is copied out). */
  readonly copiesIn?: boolean
  /** What the kernel asks of the target before it touches the caller's memory. 0 or a negative errno. */
  readonly first?: (target: never) => number
  /** The table's refusal comes before the struct is copied in. */
  readonly refusesFirst?: boolean
  /** Checks of the struct that come before the table's refusal. 0 or a negative errno. */
  readonly before?: (target: never, bytes: Uint8Array) => number
}

export interface IoctlEntry<T> {
  readonly name: string
  readonly size: number
  /** Bit 0: copied in, bit 1: copied out. */
  readonly direction: number
  readonly handler: Handler<T>
  readonly options: HandlerOptions
  readonly row: PolicyEntry | null
}

export type IoctlTable<T> = ReadonlyMap<number, IoctlEntry<T>>

/** Makes a table; the policy rows come from the table in force. */
export function ioctlTable<T>(
  policy: ReadonlyMap<string, PolicyEntry>,
  handlers: readonly (readonly [name: RequestName, handler: Handler<T>, options?: HandlerOptions])[],
): IoctlTable<T> {
  return new Map(
    handlers.map(([name, handler, options = {}]) => {
      const request: number = REQUEST[name]
      const direction = options.copiesIn ? 1 : request >>> 30
      const size = options.size ?? (direction ? (request >>> 16) & 0x3fff : 0)
      return [request, { name, size, direction, handler, options, row: policy.get(options.row ?? name) ?? null }]
    }),
  )
}

/** Source of the refusal of a request that a file descriptor does not have. */
export const UNKNOWN_IOCTL = 'arch/x86/kvm/x86.c kvm_arch_vm_ioctl, kvm_arch_vcpu_ioctl, kvm_arch_dev_ioctl (default)'

const NONE = new Uint8Array(0)

/** The steps of HandlerOptions with the table's own target. */
interface StepsBefore<T> {
  readonly first?: (target: T) => number
  readonly before?: (target: T, bytes: Uint8Array) => number
  readonly refusesFirst?: boolean
}

/** What dispatch needs to know of the target. */
export interface Target {
  readonly kernel: Kernel
  /** Column of the policy table. */
  readonly typeIndex: number
  /** 1 once the switch of this row has flipped. */
  phase(row: PolicyEntry): 0 | 1
}

export function dispatch<T extends Target>(
  table: IoctlTable<T>,
  target: T,
  request: number,
  argument: IoctlArgument,
  unknown: ErrnoName,
): number {
  const entry = table.get(request >>> 0)
  if (entry === undefined) {
    return target.kernel.refuse(
      unknown,
      `0x${(request >>> 0).toString(16)}`,
      'no such request on this kind of file descriptor',
      UNKNOWN_IOCTL,
    )
  }
  const { kernel } = target
  // Scalar requests.
  if (entry.size === 0) {
    const value = argument instanceof Uint8Array ? (argument.length === 0 ? 0 : Number.NaN) : Number(argument ?? 0)
    const rule = entry.row === null ? null : ruleOf(entry.row, target)
    if (rule !== null && rule.result === 'error' && !rule.conditional) return refusedByPolicy(kernel, entry, rule)
    return entry.handler(target, NONE, value, rule)
  }
  const pointer = argument instanceof Uint8Array ? null : argument
  const { first, before, refusesFirst } = entry.options as StepsBefore<T>
  const rule = entry.row === null ? null : ruleOf(entry.row, target)
  const firm = rule !== null && rule.result === 'error' && !rule.conditional
  if (first !== undefined) {
    const refused = first(target)
    // What a profile or another kernel version says wins.
    if (refused < 0) return firm && rule.source !== undefined ? refusedByPolicy(kernel, entry, rule) : refused
  }
  if ((pointer === 0 || pointer === 0n) && entry.options.nullable) return entry.handler(target, NONE, 0, null)
  if (firm && refusesFirst) return refusedByPolicy(kernel, entry, rule)
  // The kernel copies a request's struct in before it asks anything, and looks at an output buffer last.
  const readsFirst = (entry.direction & 1) !== 0
  let bytes = argument instanceof Uint8Array ? enough(argument, entry) : fetch(kernel, pointer, entry)
  const missing = bytes === null
  if (bytes === null) {
    if (readsFirst) return kernel.badPointer(entry.name)
    bytes = new Uint8Array(entry.size)
  }
  if (before !== undefined) {
    const refused = before(target, bytes)
    if (refused < 0) return refused
  }
  if (firm) return refusedByPolicy(kernel, entry, rule)
  if (rule !== null && !rule.conditional) {
    if ((rule.result === 'ok-ignored' || rule.result === 'ok-dropped') && !entry.options.checks) return 0
    if (rule.result === 'ok-zeros') {
      if (missing) return kernel.badPointer(entry.name)
      bytes.fill(0, 0, entry.size)
      return pointer === null || pointer === undefined || kernel.memory.copyOut(pointer, bytes) ? 0 : kernel.badPointer(entry.name)
    }
  }
  const result = entry.handler(target, bytes, 0, rule)
  if (missing) return result < 0 ? result : kernel.badPointer(entry.name)
  // Written back even after an error: some commands return what they need (-E2BIG with nent, sev_cmd.error).
  if (pointer !== null && pointer !== undefined && (entry.direction & 2) !== 0) {
    if (!kernel.memory.copyOut(pointer, bytes)) return kernel.badPointer(entry.name)
  }
  return result
}

function ruleOf(row: PolicyEntry, target: Target): PolicyRule {
  const pair = row.rules[target.typeIndex]
  if (pair === undefined) throw new RangeError(`policy: no column ${target.typeIndex}`)
  return pair[target.phase(row)]
}

function refusedByPolicy(kernel: Kernel, entry: { readonly name: string; readonly row: PolicyEntry | null }, rule: PolicyRule): number {
  const row = entry.row as PolicyEntry
  return kernel.refuse(
    (rule.errno ?? 'EINVAL') as ErrnoName,
    entry.name,
    rule.detail || (row.switch ? `refused for this VM type in its present state (${row.switch})` : 'refused for this VM type'),
    rule.source === undefined ? row.source : `${row.source}; ${rule.source}`,
    { switch: row.switch },
  )
}

/** A caller's array that is too short is memory that is not there. */
function enough(bytes: Uint8Array, entry: { readonly size: number; readonly options: HandlerOptions }): Uint8Array | null {
  return bytes.length >= entry.size ? bytes : null
}

function fetch<T>(kernel: Kernel, pointer: number | bigint | null | undefined, entry: IoctlEntry<T>): Uint8Array | null {
  if (pointer === null || pointer === undefined) return null
  const header = kernel.memory.copyIn(pointer, entry.size)
  if (header === null || entry.options.tail === undefined) return header
  const size = entry.options.tail(new DataView(header.buffer))
  return size > entry.size && size < 1 << 24 ? kernel.memory.copyIn(pointer, size) : header
}

/** A DataView on a struct argument. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
