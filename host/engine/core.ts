/**
 * Loads core.wasm with @assemblyscript/loader and owns the shared linear memory. The same file runs
 * under Node, Deno and browsers. Regions of the core lie at fixed addresses and shared memory never
 * moves, so a view stays valid when the memory grows; a view of memory handed out later must be made
 * from the current buffer (`view()`), never cached across calls that allocate.
 */
import { instantiate } from '@assemblyscript/loader'
import { CloisterError } from '../errors.ts'
import { HEAP, STAGING, STAGING_SIZE } from '../generated/layout.ts'
import { CORE_EXPORTS, type CoreExports } from './exports.ts'

/** A WebAssembly.Module: named so that programs without lib.dom can use the types. */
type CompiledModule = object

/** The core: where it lies, its bytes, or the compiled WebAssembly.Module. */
export type WasmSource = URL | ArrayBuffer | ArrayBufferView<ArrayBuffer> | CompiledModule

/** 64 KiB pages of WebAssembly memory. */
const PAGE = 0x10000
const MAXIMUM_PAGES = 65536

/** The running core and its memory. @internal */
export interface Core {
  readonly call: CoreExports
  readonly memory: WebAssembly.Memory
  /** Bytes on their way between host code and the core (address `STAGING`). */
  readonly staging: Uint8Array
  readonly stagingView: DataView
  /** A view on `length` bytes at `address`, from the current buffer. */
  bytes(address: number, length: number): Uint8Array
  view(address: number, length: number): DataView
}

async function compile(source: WasmSource): Promise<WebAssembly.Module> {
  if (source instanceof WebAssembly.Module) return source
  if (!(source instanceof URL)) return WebAssembly.compile(source as BufferSource)
  if (source.protocol === 'file:') {
    // Only Node and Deno have file: URLs; both know node:fs.
    const { readFile } = await import('node:fs/promises')
    return WebAssembly.compile(await readFile(source))
  }
  const response = await fetch(source)
  if (!response.ok) throw new CloisterError('ERR_WASM', `cannot load ${source.href}: HTTP ${response.status}`)
  return WebAssembly.compile(await response.arrayBuffer())
}

/** `memory` is the budget in bytes for everything one `openKvm` holds (4 GiB at most). @internal */
export async function loadCore(options: { wasm?: WasmSource; memory?: number } = {}): Promise<Core> {
  const limit = Math.ceil((options.memory ?? MAXIMUM_PAGES * PAGE) / PAGE)
  const initial = Math.ceil(HEAP / PAGE) + 1
  if (!(limit >= initial && limit <= MAXIMUM_PAGES))
    throw new CloisterError('ERR_MEMORY', `memory ${options.memory}: must be ${initial * PAGE} to ${MAXIMUM_PAGES * PAGE} bytes`)
  const module = await compile(options.wasm ?? new URL('../core.wasm', import.meta.url)).catch((error: unknown) => {
    throw error instanceof CloisterError ? error : new CloisterError('ERR_WASM', `cannot load the core: ${String(error)}`, { cause: error })
  })
  const memory = new WebAssembly.Memory({ initial, maximum: MAXIMUM_PAGES, shared: true })
  const { instance } = await instantiate(module, { env: { memory, abort } })
  const raw = instance.exports as unknown as Record<string, unknown>
  const staging = new Uint8Array(memory.buffer, STAGING, STAGING_SIZE)
  const call = withLoudGaps(raw)
  if (!call.memoryInit(limit)) throw new CloisterError('ERR_MEMORY', 'the fixed regions of the core do not fit into memory')
  return {
    call,
    memory,
    staging,
    stagingView: new DataView(memory.buffer, STAGING, STAGING_SIZE),
    bytes: (address, length) => new Uint8Array(memory.buffer, address, length),
    view: (address, length) => new DataView(memory.buffer, address, length),
  }
}

function abort(): never {
  throw new CloisterError('ERR_CORE_ABORT', 'the core aborted: a bug in Cloister')
}

/** Results that are addresses: WebAssembly hands i32 out signed. */
const ADDRESSES: ReadonlySet<string> = new Set(['backingCreate', 'vmCreate', 'vcpuCreate', 'backingInfo'])

/** The raw exports (the loader's wrapped ones cost twice as much per call); what is missing throws by name when called. */
function withLoudGaps(raw: Record<string, unknown>): CoreExports {
  const calls: Record<string, unknown> = {}
  for (const name of CORE_EXPORTS) {
    const value = raw[name]
    calls[name] =
      typeof value === 'function'
        ? ADDRESSES.has(name)
          ? (...args: unknown[]) => (value(...args) as number) >>> 0
          : value
        : () => {
            throw new CloisterError('ERR_UNIMPLEMENTED', `the core does not export ${name} yet`)
          }
  }
  return calls as unknown as CoreExports
}
