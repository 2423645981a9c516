/** Loads dist/core.wasm for tests of single rooms: raw exports, a view of the linear memory, and a bare VM with one vCPU. */
import { readFileSync } from 'node:fs'
import * as L from '../../host/generated/layout.ts'

export { L }
export type CoreFunction = (...args: (number | bigint)[]) => number & bigint

export interface Core {
  /** Raw WASM exports: u64 parameters are bigint, all else numbers (u32 results may come out negative: use `>>> 0`). */
  readonly x: Record<string, CoreFunction>
  readonly memory: WebAssembly.Memory
  /** A fresh DataView each time: memory grows. */
  readonly view: DataView
  readonly bytes: Uint8Array
}

let compiled: WebAssembly.Module | undefined

/** A new core in its own memory; `limit` in 64 KiB pages. */
export function loadCore(limit = 0): Core {
  compiled ??= new WebAssembly.Module(readFileSync(new URL('../../../dist/core.wasm', import.meta.url)))
  const memory = new WebAssembly.Memory({ initial: Math.ceil(L.HEAP / 65536), maximum: 65536, shared: true })
  const imports: Record<string, Record<string, unknown>> = { env: { memory } }
  for (const i of WebAssembly.Module.imports(compiled)) {
    if (i.kind !== 'function') continue
    imports[i.module] ??= {}
    const names = imports[i.module]
    if (names)
      names[i.name] = () => {
        throw new Error(`import ${i.module}.${i.name} called`)
      }
  }
  const instance = new WebAssembly.Instance(compiled, imports as WebAssembly.Imports)
  const x = instance.exports as unknown as Record<string, CoreFunction>
  x['memoryInit']?.(limit)
  return {
    x,
    memory,
    get view() {
      return new DataView(memory.buffer)
    },
    get bytes() {
      return new Uint8Array(memory.buffer)
    },
  }
}

/** Calls an export that must exist. */
export function call(core: Core, name: string, ...args: (number | bigint)[]): number {
  const f = core.x[name]
  if (!f) throw new Error(`no export ${name}`)
  const result: number | bigint | undefined = f(...args)
  return typeof result === 'number' ? result >>> 0 : Number(result ?? 0)
}

export function call64(core: Core, name: string, ...args: (number | bigint)[]): bigint {
  const f = core.x[name]
  if (!f) throw new Error(`no export ${name}`)
  return BigInt.asUintN(64, f(...args))
}

export interface Bare {
  readonly core: Core
  readonly vm: number
  readonly s: number
  readonly backing: number
}

/** One VM with `pages` of RAM at 0 and one vCPU whose registers are all zero (real mode, CPL 0); no room but memory is involved. */
export function bareMachine(pages: number, limit = 0): Bare {
  const core = loadCore(limit)
  const vm = call(core, 'allocPages', Math.ceil(L.SIZEOF_VM / 4096))
  const s = call(core, 'allocArena')
  const backing = call(core, 'backingCreate', pages)
  if (vm === 0 || s === 0 || backing === 0) throw new Error('out of memory')
  core.view.setUint32(s + L.CPU_VM, vm, true)
  call(core, 'vcpuRegister', s)
  const status = call(core, 'slotSet', vm, 0, 0n, BigInt(pages) * 4096n, 0, backing, 0) | 0
  if (status !== 0) throw new Error(`slotSet: ${status}`)
  return { core, vm, s, backing }
}

/** Linear address of the frame of a backing's page, 0 = never touched. */
export function frameOf(view: DataView, backing: number, page: number): number {
  const leaf = view.getUint32(view.getUint32(backing + L.BACKING_FRAMES, true) + (page >>> 10) * 4, true)
  return leaf === 0 ? 0 : view.getUint32(leaf + (page & 1023) * 4, true)
}
